//! Events in async code.
//!
//! A future is an attempt and a [`WaitTicket`] in a wait list of the event. The protocol is in `src/event/wakers.rs`.

use super::{Change, Event, WaitTicket, WriteError};
use futures_core::Stream;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Async forms of the blocking calls. They run on any runtime and need none.
///
/// # Order
///
/// Tasks wait in a list. A signal wakes the task that has waited longest, or, if the event is a semaphore, one task per
/// unit at once. A read wakes all tasks that want to write. Blocked threads are woken besides, and before the tasks. If
/// the threads leave nothing, no task is woken. The count is not handed over: a caller at the right moment may overtake
/// a woken task.
///
/// # Cancel safety
///
/// The futures do nothing until they are polled, and may be dropped at any time. A future that has not returned a value
/// has taken or added nothing. If it was woken already, the wake-up goes to the next task.
///
/// A future that was woken must be polled again or dropped. While it is kept without being polled, as a `select!` that
/// goes on with another branch may do, other tasks that wait for the event wait for it.
///
/// # Memory and locks
///
/// Waiting allocates nothing, because the entry in the list is part of the future. That is why the futures are not
/// `Unpin`, as `async` blocks are not. `.await` pins them, and so do [`std::pin::pin!`] and `Box::pin`. Only the first
/// task that ever waits for an event allocates the event's lists.
///
/// Waiting, waking and leaving take a mutex for a few instructions, in which no foreign code runs. A waker may do what
/// a thread may: poll the task on the spot, signal and read events, drop futures. Tasks that it wakes are called after
/// it has returned, so a long list needs no deep stack.
impl Event {
    /// As [`read`](Self::read), in async code: the count, or one unit of a semaphore, as soon as the count is not 0.
    ///
    /// ```
    /// # use doorbell::Event;
    /// # pollster::block_on(async {
    /// let event = Event::new(2);
    /// assert_eq!(event.read_async().await, 2);
    /// # })
    /// ```
    #[doc(alias = "acquire")]
    #[doc(alias = "notified")]
    pub fn read_async(&self) -> ReadFuture<'_> {
        ReadFuture {
            ticket: WaitTicket::new(self, Change::Signalled),
        }
    }

    /// As [`write`](Self::write), in async code: adds `n` as soon as the count can take all of it.
    ///
    /// # Errors
    ///
    /// The future's output is [`WriteError::Invalid`] if `n` is `u64::MAX`, at once. There is no other error.
    ///
    /// ```
    /// # use doorbell::{Event, WriteError};
    /// # pollster::block_on(async {
    /// let event = Event::new(2);
    /// event.write_async(3).await?;
    /// assert_eq!(event.count(), 5);
    /// # Ok::<(), WriteError>(())
    /// # }).unwrap();
    /// ```
    pub fn write_async(&self, n: u64) -> WriteFuture<'_> {
        WriteFuture {
            n,
            ticket: WaitTicket::new(self, Change::Read),
        }
    }

    /// As [`wait_readable`](Self::wait_readable), in async code: completes as soon as the count is not 0, and takes
    /// nothing.
    ///
    /// ```
    /// # use doorbell::Event;
    /// # pollster::block_on(async {
    /// let stop = Event::new(0);
    /// stop.signal();
    /// stop.wait_readable_async().await;
    /// stop.wait_readable_async().await; // it still is
    /// # })
    /// ```
    #[doc(alias = "readable")]
    pub fn wait_readable_async(&self) -> WaitReadableFuture<'_> {
        WaitReadableFuture {
            ticket: WaitTicket::new(self, Change::Signalled),
        }
    }

    /// What successive reads return, as a stream, which never ends. Between two items it is not in the wait list.
    ///
    /// The stream is `Unpin`, as `StreamExt::next` requires. To that end its entry in the wait list is allocated, once
    /// per stream.
    ///
    /// ```
    /// use doorbell::Event;
    /// use futures_core::Stream;
    /// use std::future::poll_fn;
    /// use std::pin::Pin;
    ///
    /// # pollster::block_on(async {
    /// let event = Event::semaphore(2);
    /// let mut readings = event.readings();
    /// // `StreamExt::next` of the futures crate does this.
    /// let first = poll_fn(|context| Pin::new(&mut readings).poll_next(context)).await;
    /// assert_eq!(first, Some(1));
    /// assert_eq!(event.count(), 1);
    /// # })
    /// ```
    #[doc(alias = "stream")]
    pub fn readings(&self) -> Readings<'_> {
        Readings {
            ticket: Box::pin(WaitTicket::new(self, Change::Signalled)),
        }
    }
}

/// Made by [`Event::read_async`]. Polled after it has returned a value, it reads anew.
#[must_use = "futures do nothing unless polled"]
pub struct ReadFuture<'a> {
    ticket: WaitTicket<'a>,
}

impl Future for ReadFuture<'_> {
    type Output = u64;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<u64> {
        // SAFETY: the ticket is pinned with the future: it is not `Unpin`, so neither is the future, which has no
        // destructor of its own and moves it nowhere.
        let ticket = unsafe { self.map_unchecked_mut(|this| &mut this.ticket) };
        poll(ticket, context, Event::try_read)
    }
}

/// Made by [`Event::write_async`]. Polled after it has returned a value, it writes anew.
#[must_use = "futures do nothing unless polled"]
pub struct WriteFuture<'a> {
    n: u64,
    ticket: WaitTicket<'a>,
}

impl Future for WriteFuture<'_> {
    type Output = Result<(), WriteError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let n = self.n;
        // SAFETY: as for `ReadFuture`.
        let ticket = unsafe { self.map_unchecked_mut(|this| &mut this.ticket) };
        poll(ticket, context, |event| match event.try_write(n) {
            Err(WriteError::WouldBlock) => None,
            done => Some(done),
        })
    }
}

/// Made by [`Event::wait_readable_async`]. Polled after it has completed, it waits anew.
#[must_use = "futures do nothing unless polled"]
pub struct WaitReadableFuture<'a> {
    ticket: WaitTicket<'a>,
}

impl Future for WaitReadableFuture<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: as for `ReadFuture`.
        let ticket = unsafe { self.map_unchecked_mut(|this| &mut this.ticket) };
        // It leaves without having taken anything, so its ticket passes on the wake-up.
        poll(ticket, context, |event| (event.units() != 0).then_some(()))
    }
}

/// Made by [`Event::readings`].
#[must_use = "streams do nothing unless polled"]
pub struct Readings<'a> {
    ticket: Pin<Box<WaitTicket<'a>>>,
}

impl Stream for Readings<'_> {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<u64>> {
        let value = ready!(poll(self.ticket.as_mut(), context, Event::try_read));
        Poll::Ready(Some(value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::MAX, None)
    }
}

/// Steps 1 to 5 of a task.
fn poll<T>(
    mut ticket: Pin<&mut WaitTicket<'_>>,
    context: &Context<'_>,
    attempt: impl Fn(&Event) -> Option<T>,
) -> Poll<T> {
    let mut got = attempt(ticket.event());
    if got.is_none() {
        ticket.as_mut().join(context.waker());
        let attempt = || attempt(ticket.event());
        got = attempt().or_else(|| ticket.hear_signallers().then(attempt)?);
    }
    match got {
        None => Poll::Pending,
        Some(got) => {
            ticket.leave();
            Poll::Ready(got)
        }
    }
}

macro_rules! debug {
    ($($future:ident)*) => {
        $(impl fmt::Debug for $future<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($future)).field("event", self.ticket.event()).finish_non_exhaustive()
            }
        })*
    };
}

debug! { ReadFuture WriteFuture WaitReadableFuture Readings }
