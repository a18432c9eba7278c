//! An event's readiness as a file descriptor.
//!
//! The kernel's counterpart is what `eventfd_poll` says. The descriptor is an eventfd of its own, of which only one bit
//! matters: it is readable while the event's count is not zero. An observer on the thread that changes the count keeps
//! it so:
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
//! When a signal or read returns, the descriptor agrees with every count there has been since. Step 2 and 3 against the
//! change of the count and the look at `shown` is a [`DEKKER`] handshake: the thread that looks at the count sees the
//! change, or the one that made the change sees `MOVING`, and waits for its turn to look. (An observer that is called
//! on demand would cost less while there is nothing to do, but only its first caller would wait for the descriptor.)
//!
//! An epoll that watches for edges in another process needs one for each time that the count leaves zero, even if the
//! descriptor was not put out in between because a signal came before its reader got to it. So a read that finds the
//! count above zero afterwards adds an edge. Of a semaphore that may be a read that left units behind, which cannot be
//! told from the other case: one edge too many, at the price of a system call.

use super::kernel::KernelEvent;
use crate::event::{Change, EventHandle, Interest, Observation, Observer};
use crate::sync::atomic::AtomicU32;
use crate::sync::{DEKKER, Mutex, dekker_load};
use rustix::event::EventfdFlags;
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
/// # Edges
///
/// Whoever watches for edges (`EPOLLET`) gets what this table says. An eventfd gives one for each `write(2)`, and to
/// who watches for output too, one for each `read(2)`.
///
/// | what happens to the event | edge for `EPOLLIN` | edge for `EPOLLIN` and `EPOLLOUT` |
/// |---|---|---|
/// | the count leaves 0 | one | one |
/// | further signals while it is above 0 | none: those are for [`Forward`](super::Forward) | none |
/// | a read takes it back to 0 | none | one, for the `read(2)` |
/// | a read finds it above 0 afterwards, because it was signalled meanwhile | one | one |
/// | a read of a semaphore leaves units | one for each such read | one for each such read |
///
/// So there may be edges without anything new, but none is missing: who reads the event once for each edge gets all.
///
/// # Peers that are not trusted
///
/// Peers only poll it. It is always writable, and its own count means nothing. A peer that reads it nevertheless puts
/// it out until the count has been 0 again; one that writes to it lights it until then; and one that clears its
/// `O_NONBLOCK`, which duplicates share, can block the threads that signal and read the event. The event's count is
/// safe from all of them. A peer that is not to be trusted with that gets [`poll_only`](Self::poll_only) instead.
///
/// # Child processes
///
/// A child made by `fork` has a copy of the event, but the same eventfd: what either process does to its event shows in
/// the one descriptor. So a child leaves event and mirror alone, or makes others of its own. Its end, or an `exec`,
/// changes nothing for the parent.
///
/// # Examples
///
/// An event can have any number of mirrors. Dropping one closes its descriptor; copies that were made of the
/// descriptor stay as they were then. It keeps the event alive if it holds an `Arc` of it.
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
    // Before the lamp: it is put out of use, then closed.
    observation: Observation,
    lamp: Arc<Lamp>,
}

impl Mirror {
    /// Makes the descriptor, which agrees with the count from then on.
    ///
    /// Waits as [`Observation::new`] does.
    ///
    /// # Errors
    ///
    /// Those of `eventfd(2)`: `EMFILE` and `ENFILE` if there are too many descriptors, `ENOMEM`.
    pub fn new(event: impl Into<EventHandle>) -> io::Result<Self> {
        let event = event.into();
        let lamp = Arc::new(Lamp {
            event: event.clone(),
            fd: KernelEvent::new(EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            shown: AtomicU32::new(DARK),
            moving: Mutex::new(()),
        });
        let observer = Arc::clone(&lamp) as Arc<dyn Observer>;
        let observation = Observation::new(event, Interest::Both, observer);
        lamp.update(Change::Signalled);
        Ok(Mirror { observation, lamp })
    }

    /// The event that is mirrored.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        self.observation.event()
    }

    /// The model of the descriptor.
    #[cfg(loom)]
    pub fn fd(&self) -> &super::kernel::model::KernelEvent {
        &self.lamp.fd
    }
}

/// Not readable, and the count was 0 or the thread that changed it is not done yet.
const DARK: u32 = 0;
/// Readable, likewise.
const LIT: u32 = 1;
/// Somebody is finding out which it is to be.
const MOVING: u32 = 2;

/// The descriptor, and what it shows.
struct Lamp {
    event: EventHandle,
    fd: KernelEvent,
    shown: AtomicU32,
    /// Held by who has set `MOVING`.
    moving: Mutex<()>,
}

impl Lamp {
    fn update(&self, change: Change) {
        // There is nothing behind it that a panic could have left half done.
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        // First half of the handshake with `notified`; the look at the count is the second.
        let before = self.shown.swap(MOVING, DEKKER);
        let after = match self.event.count_after_asking() {
            0 => DARK,
            _ => LIT,
        };
        // Neither can fail for a descriptor that peers leave alone. If they have read or written it, it is as it should
        // be.
        let _ = match (before, after, change) {
            (DARK, LIT, _) | (LIT, LIT, Change::Read) => self.fd.write(1),
            (LIT, DARK, _) => self.fd.read().map(drop),
            _ => Ok(()),
        };
        // Releases what was done to the descriptor to those who see that. (A read-modify-write for the sake of loom.)
        self.shown.swap(after, DEKKER);
    }
}

impl Observer for Lamp {
    fn notified(&self, change: Change) {
        let right = match change {
            Change::Signalled => LIT,
            Change::Read => DARK,
        };
        // After the change of the count, the first half.
        if dekker_load(&self.shown) != right {
            self.update(change);
        }
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror")
            .field("event", &**self.observation.event())
            .field("fd", &self.lamp.fd)
            .finish()
    }
}

#[cfg(not(loom))]
mod as_fd {
    use super::Mirror;
    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

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
        pub fn poll_only(&self) -> io::Result<OwnedFd> {
            let fd = epoll::create(CreateFlags::CLOEXEC)?;
            epoll::add(&fd, self, EventData::new_u64(0), EventFlags::IN)?;
            Ok(fd)
        }
    }

    impl AsFd for Mirror {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.lamp.fd.as_fd()
        }
    }

    impl AsRawFd for Mirror {
        fn as_raw_fd(&self) -> RawFd {
            self.as_fd().as_raw_fd()
        }
    }
}
