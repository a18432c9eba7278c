//! Events in async code.
//!
//! A future is an attempt and a [`WaitTicket`] in the event's line of wakers; the protocol is in `src/event/wakers.rs`.

use super::{Change, Event, WaitTicket, WriteError};
use futures_core::Stream;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Async forms of the blocking calls. They run on any runtime and need none.
///
/// Their futures do nothing until polled, and may be dropped at any time: one that has not returned a value has taken
/// or added nothing, and if it had been woken already, the wake-up goes to the next that waits. They wait in line: a
/// signal wakes the one that has waited longest, or, if the event is a semaphore, one for each unit, at once; a read
/// wakes all that want to write. Blocking readers and writers stand in a line of their own and are woken besides; those
/// first, and if they leave nothing by the time that the tasks' turn comes, no task is woken for nothing.
/// Nobody is handed anything, though: who calls at the right moment may overtake a woken task.
///
/// A future that has been woken must be polled again or dropped. If it is kept without being polled, as a `select!`
/// that goes on with another branch may do, the others that wait for the event wait for it.
///
/// Waiting allocates nothing: the ticket in line is part of the future. That is why [`ReadFuture`] and [`WriteFuture`]
/// must be pinned (they are not `Unpin`), as `async` blocks must: `.await` does it, and so do [`std::pin::pin!`] and
/// `Box::pin`. Only the first task that ever waits for an event allocates, the event's line of tasks.
///
/// Waiting, waking and leaving take a mutex for a few instructions, in which no code from elsewhere runs. A waker may
/// do what a thread may: poll the task on the spot, signal and read events, drop futures. What tasks it wakes by that
/// are called when it has returned, so that a long line needs no deep stack.
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

    /// What successive reads return, as a stream, which never ends. Between two items it holds no ticket in the line.
    ///
    /// The stream is `Unpin`, as `StreamExt::next` and its like want it, so that nobody has to pin what is used in a
    /// loop. In return its ticket in line is allocated, once for a stream.
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
        // It leaves without having taken anything, so its ticket hands on what has woken it.
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
