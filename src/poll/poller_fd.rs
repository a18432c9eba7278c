//! A poller as a file descriptor of another event loop.
//!
//! The descriptor is the poller's epoll instance, which is readable while one of the poller's descriptors is ready, or
//! its bell has been rung and not been heard. So nothing is needed but the two ends of a sleep:
//!
//! ```text
//!     outer loop                                          signaller
//!     arm     1  anything there?  report it               1  change the count; put the item into the queue
//!             2  enter the waiters; hear the bell         2  ANNOUNCED?  no: done, the loop is awake
//!             3  announce                                 3  claim; ring the bell: the descriptor is readable
//!             4  anything there?  leave; report it
//!     sleep in the outer epoll
//!     disarm  5  leave the waiters
//! ```
//!
//! 3 and 4 against 1 and 2 is the handshake of `src/sync/waiters.rs`. The bell is heard before the announcement: what
//! rings it after that is for this loop or for another that is announced, and it stays readable until then.

#[cfg(loom)]
use super::model::Fds;
use super::sleepers::Seat;
use super::{Events, PollError, Poller};
use crate::sync::{Mutex, MutexGuard};
use std::fmt;
use std::sync::{Arc, PoisonError};

/// A poller as one file descriptor, for a program that has an event loop already: an epoll, tokio, event-manager, mio,
/// glib, or another [`Poller`].
///
/// The outer loop watches the descriptor for input and makes two calls: [`arm`](Self::arm) before it sleeps and
/// [`disarm`](Self::disarm) when it is awake again. Between the two, a signal makes the descriptor readable. While the
/// loop is awake, a signal makes no system call, and what is ready is found by `arm`, or by
/// [`Poller::look`] and [`Poller::wait`] with a timeout of zero, which the loop may call at any time:
///
/// | | system calls |
/// |---|---|
/// | `arm` that finds something | none, or with descriptors one `epoll_pwait` in 32 calls |
/// | `arm` that finds nothing | one `epoll_pwait`, which does not wait |
/// | the first signal after that | one `write` |
/// | further signals; `disarm`; signals until the next `arm` | none |
///
/// QEMU's `AioContext` does the same in a glib loop: `arm` is its `prepare` and `disarm` its `check`. A loop that
/// cannot tell when it is about to sleep may leave the poller armed while it does other work, which costs one `write`
/// at most until the next `arm`.
///
/// All that a poller watches takes part: events, descriptors, which make the descriptor readable themselves, bound
/// eventfds, which `arm` carries over, and probes, whose notifications `arm` turns on. Events with
/// [signallers](crate::event::Signaller) are armed with one barrier for all of them. An outer loop that is armed counts
/// as a thread that sleeps in the poller. Other threads may wait for the same poller, in loops of their own or in
/// [`Poller::wait`]: a signal wakes at least one of them, and one that leaves something behind wakes another.
///
/// The descriptor is the poller's epoll instance. It is the same for all `PollerFd`s of a poller, stays the same and
/// stays open as long as one of them exists, is closed on exec, and is of no use in a child process. It can be watched
/// for levels and for edges (`EPOLLET`) and is never writable. A loop must neither read it nor add anything to it.
/// It may be readable for nothing, so `arm` after a wake-up may find nothing.
///
/// # epoll
///
/// ```
/// use doorbell::Event;
/// use doorbell::poll::{Events, Poller, PollerFd, Watch};
/// use rustix::event::epoll;
/// use std::sync::Arc;
/// use std::thread;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = Arc::new(Event::new(0));
/// let poller = Poller::new();
/// poller.add(&queue, 1, Watch::READABLE)?;
/// let poller = PollerFd::new(poller)?;
///
/// let outer = epoll::create(epoll::CreateFlags::CLOEXEC)?;
/// let data = epoll::EventData::new_u64(7);
/// epoll::add(&outer, &poller, data, epoll::EventFlags::IN)?;
///
/// let guest = thread::spawn({
///     let queue = Arc::clone(&queue);
///     move || queue.signal()
/// });
/// let mut ready = Events::with_capacity(16);
/// let mut kicks = 0;
/// while kicks == 0 {
///     // Works off what is ready. When there is nothing more, the poller is armed.
///     while !poller.arm(&mut ready)? {
///         for report in &ready {
///             assert_eq!(report.key(), 1);
///             kicks += queue.try_read().unwrap_or(0);
///         }
///     }
///     if kicks == 0 {
///         let mut found = Vec::with_capacity(8);
///         epoll::wait(&outer, rustix::buffer::spare_capacity(&mut found), None)?;
///     }
///     poller.disarm();
///     // Here the loop handles the other descriptors in `found`.
/// }
/// # guest.join().unwrap();
/// # Ok(())
/// # }
/// ```
///
/// # tokio
///
/// tokio watches for edges, so the readiness is cleared before the poller is armed.
///
/// ```
/// use doorbell::Event;
/// use doorbell::poll::{Events, Poller, PollerFd, Watch};
/// use std::sync::Arc;
/// use tokio::io::{Interest, unix::AsyncFd};
///
/// async fn device(poller: Poller, queue: Arc<Event>) -> Result<u64, Box<dyn std::error::Error>> {
///     let poller = PollerFd::new(poller)?;
///     // SAFETY: a `PollerFd` keeps its descriptor open, and it is always the same one.
///     let fd = unsafe { AsyncFd::register_with_interest(poller, Interest::READABLE) }?;
///     let mut ready = Events::with_capacity(16);
///     let mut kicks = 0;
///     loop {
///         while !fd.get_ref().arm(&mut ready)? {
///             for report in &ready {
///                 assert_eq!(report.key(), 1);
///                 kicks += queue.try_read().unwrap_or(0);
///             }
///         }
///         if kicks >= 3 {
///             return Ok(kicks);
///         }
///         let mut guard = fd.readable().await?;
///         fd.get_ref().disarm();
///         guard.clear_ready();
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = Arc::new(Event::new(0));
/// let poller = Poller::new();
/// poller.add(&queue, 1, Watch::READABLE)?;
/// # let guest = std::thread::spawn({
/// #     let queue = Arc::clone(&queue);
/// #     move || (0..3).for_each(|_| queue.signal())
/// # });
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// assert_eq!(runtime.block_on(device(poller, queue))?, 3);
/// # guest.join().unwrap();
/// # Ok(())
/// # }
/// ```
///
/// Before tokio 1.54, `AsyncFd::with_interest` takes the place of `register_with_interest`.
///
/// # event-manager
///
/// A subscriber works off what is ready, and leaves the poller armed until it is called again.
///
/// ```
/// use doorbell::Event;
/// use doorbell::poll::{self, Poller, PollerFd, Watch};
/// use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
/// use std::sync::Arc;
///
/// struct Device {
///     poller: PollerFd,
///     queue: Arc<Event>,
///     kicks: u64,
/// }
///
/// impl Device {
///     fn work_off(&mut self) {
///         let mut ready = poll::Events::with_capacity(16);
///         self.poller.disarm();
///         while !self.poller.arm(&mut ready).expect("the poller's descriptors are open") {
///             for report in &ready {
///                 assert_eq!(report.key(), 1);
///                 self.kicks += self.queue.try_read().unwrap_or(0);
///             }
///         }
///     }
/// }
///
/// impl MutEventSubscriber for Device {
///     fn init(&mut self, ops: &mut EventOps) {
///         let input = Events::new(&self.poller, EventSet::IN);
///         ops.add(input).expect("the descriptor is not registered yet");
///         self.work_off();
///     }
///
///     fn process(&mut self, _: Events, _: &mut EventOps) {
///         self.work_off();
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = Arc::new(Event::new(0));
/// let poller = Poller::new();
/// poller.add(&queue, 1, Watch::READABLE)?;
/// let device = Device { poller: PollerFd::new(poller)?, queue: Arc::clone(&queue), kicks: 0 };
///
/// let mut manager = EventManager::new().map_err(|error| error.to_string())?;
/// manager.add_subscriber(device);
/// queue.signal();
/// assert_eq!(manager.run().map_err(|error| error.to_string())?, 1);
/// # Ok(())
/// # }
/// ```
#[doc(alias = "epoll")]
#[doc(alias = "AsyncFd")]
#[doc(alias = "prepare_read")]
pub struct PollerFd {
    poller: Arc<Poller>,
    /// While the outer loop may sleep.
    armed: Mutex<Option<Seat>>,
}

impl PollerFd {
    /// The descriptor of a poller, which threads that sleep in the poller sleep in from now on, as after
    /// [`add_fd`](Poller::add_fd). Takes a `Poller`, or an `Arc` of one that is used elsewhere too.
    ///
    /// # Errors
    ///
    /// [`Os`](PollError::Os), if the system has no more descriptors to give.
    pub fn new(poller: impl Into<Arc<Poller>>) -> Result<Self, PollError> {
        let poller = poller.into();
        {
            let _registered = poller.registered();
            poller.fds()?;
        }
        Ok(PollerFd {
            poller,
            armed: Mutex::new(None),
        })
    }

    /// The poller, to add sources to it, and to look at it without arming it.
    #[must_use]
    pub fn poller(&self) -> &Arc<Poller> {
        &self.poller
    }

    /// Before the outer loop sleeps: looks whether something is ready or a thread has called
    /// [`notify`](Poller::notify), and arms the poller if not. Never waits, but for the poller's locks.
    ///
    /// * `true`: `events` is empty, and the loop may sleep. Whatever becomes ready from now on makes the descriptor
    ///   readable.
    /// * `false`: the poller is not armed. What is ready is in `events`, as after a [`wait`](Poller::wait). After a
    ///   notification, or if something was carried over for a [binding](Poller::bind), that may be nothing.
    ///
    /// A poller that is armed already is armed anew. It is armed until [`disarm`](Self::disarm), the next `arm` or the
    /// end of the `PollerFd`.
    ///
    /// # Errors
    ///
    /// Those of `wait`. The poller is not armed then.
    ///
    /// # Panics
    ///
    /// As `wait` does. The poller is not armed then.
    #[must_use = "if it is not armed, there is something to handle, and the loop must not sleep"]
    #[doc(alias = "prepare")]
    pub fn arm(&self, events: &mut Events) -> Result<bool, PollError> {
        self.disarm();
        let seat = self.poller.arm(events)?;
        let armed = seat.is_some();
        // Another thread may have armed it at the same time.
        let before = std::mem::replace(&mut *self.armed(), seat);
        self.give_back(before);
        Ok(armed)
    }

    /// When the outer loop is awake again: signals need not make the descriptor readable any more. What has been
    /// signalled is ready for the next [`arm`](Self::arm). If other threads sleep in the poller, one of them is woken
    /// for what is ready now. Does nothing if the poller is not armed.
    #[doc(alias = "check")]
    #[doc(alias = "cancel_read")]
    pub fn disarm(&self) {
        let before = self.armed().take();
        self.give_back(before);
    }

    fn give_back(&self, seat: Option<Seat>) {
        if let Some(seat) = seat {
            self.poller.disarm(seat);
        }
    }

    fn armed(&self) -> MutexGuard<'_, Option<Seat>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model of the descriptor.
    #[cfg(loom)]
    pub fn fd(&self) -> &Fds {
        self.poller.fds_there()
    }
}

impl Drop for PollerFd {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl fmt::Debug for PollerFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerFd")
            .field("poller", &self.poller)
            .field("armed", &self.armed().is_some())
            .finish()
    }
}

#[cfg(not(loom))]
mod as_fd {
    use super::PollerFd;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

    impl AsFd for PollerFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.poller.fds_there().epoll()
        }
    }

    impl AsRawFd for PollerFd {
        fn as_raw_fd(&self) -> RawFd {
            self.as_fd().as_raw_fd()
        }
    }
}
