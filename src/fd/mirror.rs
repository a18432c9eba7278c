//! An event's readiness as a file descriptor.
//!
//! The kernel's counterpart is what `eventfd_poll` says. The descriptor is a [`Flag`], which is readable while the
//! event's count is not zero. An observer on the thread that changes the count keeps it so:
//!
//! ```text
//!     shown    DARK, LIT: what the descriptor says    MOVING: one thread is finding out, under the lock
//!
//!     signal, then see LIT:  done                     1  lock
//!     read, then see DARK:   done                     2  shown = MOVING
//!     anything else: the steps to the right           3  look at the count; light or put out the descriptor
//!                                                     4  shown = LIT or DARK; unlock
//! ```
//!
//! When a signal or read returns, the descriptor agrees with every count that there has been since. The change of the
//! count and the load of `shown`, on one side, and steps 2 and 3, on the other, are a [`DEKKER`] handshake: the thread
//! in step 3 sees the change, or the thread that made the change sees `MOVING`, and takes the lock to check the count.
//! (An observer that is called on demand would cost less while there is nothing to do, but only its first caller would
//! wait for the descriptor.)
//!
//! An epoll that watches for edges in another process needs an edge each time that the count leaves zero. There may
//! have been no time to make the descriptor unreadable in between, if a signal came right after the read. So a read
//! that finds the count above zero afterwards adds an edge. With a semaphore, a read that leaves units does so too:
//! that cannot be told apart, and costs a system call and an edge too many.

use super::kernel::Flag;
use crate::event::{Change, EventHandle, Interest, Observation, Observer};
use crate::sync::atomic::AtomicU32;
use crate::sync::{DEKKER, Mutex, dekker_load};
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError};

/// A file descriptor that is readable whenever an event is, for `poll(2)`, `epoll(7)` and `io_uring(7)`, in this
/// process or another one that it is passed to.
///
/// It is a non-blocking eventfd, closed on exec. When a [`signal`](crate::Event::signal), `write` or `read` of the
/// event returns, the descriptor says what holds of the count: readable (`POLLIN`) if it is above 0, and not if it is
/// 0. That takes one `write(2)` when the count leaves 0 and one `read(2)` when it returns there, and no system call
/// otherwise, except that each read of a [semaphore](crate::Event::semaphore) that leaves units costs a `write(2)`.
///
/// Where [there are no eventfds](super::EventFd#where-there-is-no-eventfd), it is the reading end of a pipe: never
/// writable, and not to be written to. What gives an edge while it is readable costs a `read(2)`, too.
///
/// # Edges
///
/// A watcher of edges (`EPOLLET`) gets those in this table. An eventfd gives an edge for each `write(2)` and, to a
/// watcher of output, one for each `read(2)`.
///
/// | what happens to the event | edge for `EPOLLIN` | edge for `EPOLLIN` and `EPOLLOUT` |
/// |---|---|---|
/// | the count leaves 0 | one | one |
/// | further signals while it is above 0 | none: those are for [`Forward`](super::Forward) | none |
/// | a read takes it back to 0 | none | one, for the `read(2)` |
/// | a read finds it above 0 afterwards, because it was signalled meanwhile | one | one |
/// | a read of a semaphore leaves units | one for each such read | one for each such read |
///
/// So there may be edges without anything new, but none is missing: a reader that reads the event once for each edge
/// gets everything.
///
/// # Peers that are not trusted
///
/// Peers should only poll it. It is always writable, and its own count means nothing. A peer that reads it makes it
/// unreadable until the count has been 0 again. A peer that writes to it makes it readable until then. A peer that
/// clears its `O_NONBLOCK`, which duplicates share, can block the threads that signal and read the event. None of this
/// changes the event's count. A peer that is not trusted with that much gets [`poll_only`](Self::poll_only) instead.
///
/// # Child processes
///
/// A child made by `fork` has a copy of the event, but the same eventfd: what either process does to its event changes
/// the one descriptor. So a child must not use the event and the mirror, and makes others of its own if it needs some.
/// Its exit, or an `exec`, changes nothing for the parent.
///
/// # Examples
///
/// An event can have any number of mirrors. The drop of a mirror closes its descriptor; duplicates of the descriptor
/// stay as they are at that moment.
///
/// ```
/// use doorbell::Event;
/// use doorbell::fd::Mirror;
/// use rustix::event::{PollFd, PollFlags, Timespec, poll};
/// use std::sync::Arc;
///
/// # fn main() -> std::io::Result<()> {
/// let event = Arc::new(Event::new(0));
/// let mirror = Mirror::new(Arc::clone(&event))?;
/// let is_readable = || poll(&mut [PollFd::new(&mirror, PollFlags::IN)], Some(&Timespec::default()));
///
/// assert_eq!(is_readable()?, 0);
/// event.signal();
/// assert_eq!(is_readable()?, 1);
/// event.read();
/// assert_eq!(is_readable()?, 0);
/// # Ok(())
/// # }
/// ```
#[must_use = "the descriptor goes with the mirror"]
pub struct Mirror {
    // Dropped first: the observer is detached before the descriptor is closed.
    _observation: Observation,
    lamp: Arc<Lamp>,
}

impl Mirror {
    /// Makes the descriptor, which agrees with the count from then on.
    ///
    /// Does not wait for other threads.
    ///
    /// # Errors
    ///
    /// Those of `eventfd(2)`: `EMFILE` and `ENFILE` if there are too many descriptors, `ENOMEM`.
    pub fn new(event: impl Into<EventHandle>) -> io::Result<Self> {
        let lamp = Arc::new(Lamp::new(event.into(), Flag::new()?));
        Ok(Mirror {
            _observation: Lamp::follow(&lamp),
            lamp,
        })
    }

    /// The event that is mirrored.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        self.lamp.event()
    }

    /// The model of the descriptor.
    #[cfg(loom)]
    pub fn fd(&self) -> &super::kernel::model::KernelEvent {
        self.lamp.flag().model()
    }
}

/// Not readable: the count was 0, or the thread that changed it has not returned yet.
const DARK: u32 = 0;
/// Readable: the count was above 0, or the thread that changed it has not returned yet.
const LIT: u32 = 1;
/// A thread is checking the count and updates the descriptor.
const MOVING: u32 = 2;

/// The descriptor, which is lit while the count is above 0.
pub(super) struct Lamp {
    event: EventHandle,
    fd: Flag,
    shown: AtomicU32,
    /// Locked by the thread that has set `MOVING`.
    moving: Mutex<()>,
}

impl Lamp {
    pub(super) fn new(event: EventHandle, fd: Flag) -> Self {
        Lamp {
            event,
            fd,
            shown: AtomicU32::new(DARK),
            moving: Mutex::new(()),
        }
    }

    /// The descriptor agrees with the count from now on, until what this returns is dropped.
    pub(super) fn follow(lamp: &Arc<Self>) -> Observation {
        let observer = Arc::clone(lamp) as Arc<dyn Observer>;
        let observation = Observation::new(lamp.event.clone(), Interest::Both, observer);
        lamp.update(Change::Signalled);
        observation
    }

    pub(super) fn event(&self) -> &EventHandle {
        &self.event
    }

    pub(super) fn flag(&self) -> &Flag {
        &self.fd
    }

    fn update(&self, change: Change) {
        // The lock protects no data that a panic could have left half changed.
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        // First half of the handshake with `notified`; the load of the count is the second.
        let before = self.shown.swap(MOVING, DEKKER);
        let after = match self.event.count_after_asking() {
            0 => DARK,
            _ => LIT,
        };
        // These fail only if a peer has read or written the descriptor, and it is as it should be then.
        let _ = match (before, after, change) {
            (DARK, LIT, _) => self.fd.set(),
            (LIT, LIT, Change::Read) => self.fd.set_again(),
            (LIT, DARK, _) => self.fd.clear(),
            _ => Ok(()),
        };
        // Releases the change of the descriptor to threads that see `after`. (A read-modify-write for loom's sake.)
        self.shown.swap(after, DEKKER);
    }
}

impl Observer for Lamp {
    fn notified(&self, change: Change) {
        let right = match change {
            Change::Signalled => LIT,
            Change::Read => DARK,
        };
        // The change of the count was the first half of the handshake.
        if dekker_load(&self.shown) != right {
            self.update(change);
        }
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror")
            .field("event", &**self.event())
            .field("fd", &self.lamp.fd)
            .finish()
    }
}

#[cfg(not(loom))]
mod as_fd {
    use super::Mirror;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

    #[cfg(any(target_os = "android", target_os = "linux"))]
    impl Mirror {
        /// Another descriptor that is readable when the mirror's is, for peers that are not trusted: an epoll, closed
        /// on exec, that watches the mirror's.
        ///
        /// `poll(2)`, another epoll and io_uring watch it as they do the mirror's, and get the same edges for input. It
        /// cannot be read or written, and a peer to which it is passed has no way to the eventfd behind it, so nothing
        /// that a peer does puts it out for others or blocks a thread that uses the event. (A peer may add descriptors
        /// of its own to it, and have it readable for no reason.) The kernel does not watch it with `EPOLLEXCLUSIVE`.
        ///
        /// When the mirror is dropped, it is not readable any more, unless the mirror's descriptor was duplicated.
        ///
        /// System calls: `epoll_create1`, `epoll_ctl`.
        ///
        /// # Errors
        ///
        /// Those of `epoll_create(2)` and `epoll_ctl(2)`: `EMFILE` and `ENFILE` if there are too many descriptors,
        /// `ENOMEM`, `ENOSPC`.
        pub fn poll_only(&self) -> std::io::Result<std::os::fd::OwnedFd> {
            use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
            let fd = epoll::create(CreateFlags::CLOEXEC)?;
            epoll::add(&fd, self, EventData::new_u64(0), EventFlags::IN)?;
            Ok(fd)
        }
    }

    impl AsFd for Mirror {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.lamp.flag().as_fd()
        }
    }

    impl AsRawFd for Mirror {
        fn as_raw_fd(&self) -> RawFd {
            self.as_fd().as_raw_fd()
        }
    }
}
