//! A drop-in for `vmm_sys_util::eventfd::EventFd`: the descriptors of an eventfd from the start, the count in the
//! process until code asks for one of them.
//!
//! ```text
//!     handle ─▶ descriptor   of its own, as the original's      what calls go to after the move
//!           └─▶ [Handover]   shared by the handles              what they go to before
//! ```
//!
//! No other code has seen a descriptor before the move, so the eventfd has a count of 0 until then. The move takes the
//! count out of the event and writes it to the eventfd: see `src/event/handover.rs`.

use super::kernel::KernelEvent;
use crate::Mode;
use crate::errno::Errno;
use crate::event::Handover;
use rustix::event::EventfdFlags;
use std::fmt;
use std::io;
use std::sync::Arc;

/// For [`EventFd::new`]: the descriptor is closed on exec.
pub const EFD_CLOEXEC: i32 = EventfdFlags::CLOEXEC.bits() as i32;
/// For [`EventFd::new`]: calls that would block fail instead.
pub const EFD_NONBLOCK: i32 = EventfdFlags::NONBLOCK.bits() as i32;
/// For [`EventFd::new`]: a read takes one unit.
pub const EFD_SEMAPHORE: i32 = EventfdFlags::SEMAPHORE.bits() as i32;

/// An eventfd whose count is in the process until its file descriptor is asked for.
///
/// Same API as `vmm_sys_util::eventfd::EventFd`, same results, same errors, same descriptors: [`new`](Self::new) and
/// [`try_clone`](Self::try_clone) make one each. The count is an [`Event`](crate::Event) in this process at first:
/// reads and writes that need not block make no system call. The first time that code asks for the descriptor of one of
/// the handles ([`as_raw_fd`](std::os::fd::AsRawFd::as_raw_fd) and the like), the count is written to the
/// kernel's eventfd, and stays there: all calls of all handles from then on are `read(2)` and `write(2)`, with exactly
/// the kernel's semantics. Threads asleep in a read or write go on sleeping in the kernel; nothing is lost or doubled.
///
/// An eventfd whose descriptor goes to epoll, KVM, vhost or another process therefore costs what the original costs.
/// Threads of one process that signal each other gain. Counted in Cloud Hypervisor with this type in place of the
/// original: while it boots a guest, 1 operation is done in the process and 414 in the kernel. An
/// [`Event`](crate::Event), which its users wait for with a [`Poller`](crate::poll::Poller) or in a
/// [`read`](crate::Event::read), is the way to do better.
///
/// # System calls
///
/// | call | on the thread that calls | |
/// |---|---|---|
/// | [`new`](Self::new) | `eventfd2` | as the original |
/// | [`try_clone`](Self::try_clone) | `fcntl(F_DUPFD_CLOEXEC)` | as the original |
/// | drop | `close` | as the original |
/// | [`read`](Self::read), [`write`](Self::write) before a descriptor was asked for | none; `futex` (`FUTEX_WAIT`, private) to sleep, `futex` (`FUTEX_WAKE`, private) to wake a thread that sleeps | the original: `read`, `write` |
/// | `as_raw_fd`, `as_fd`, `into_raw_fd`, the first time for any of the handles | `write` if the count is not 0; `futex` (`FUTEX_WAKE`) if a thread sleeps in a read or write | the original: none |
/// | the same later | none | |
/// | `read`, `write` later | `read`, `write` | as the original |
///
/// A call that meets the first `as_raw_fd` on another thread waits for its `write`; if that thread does not get to run,
/// by `futex` (`FUTEX_WAIT`, private). There are no locks inside, and no memory is allocated after `new`, so a signal
/// handler may write, and read what is non-blocking, as it may with the original. The first sleep in a process has
/// calls of its own: see [`fd`](crate::fd).
///
/// # Child processes
///
/// A child made by `fork` inherits the descriptors, and a count that is still in the process as a copy: parent and
/// child then have a count each, and do not hear of each other. If both ask for a descriptor after that, the kernel's
/// count gets what was there at the fork twice; and if a thread of the parent was the first to ask at the very moment
/// of the fork, calls in the child wait for it in vain. Ask for a descriptor before the fork, and the count is one, as
/// with the original.
///
/// ```
/// use doorbell::fd::{EFD_NONBLOCK, EventFd};
/// use std::io::ErrorKind;
/// use std::os::fd::AsRawFd;
///
/// # fn main() -> std::io::Result<()> {
/// let kick = EventFd::new(EFD_NONBLOCK)?; // eventfd2
/// let other = kick.try_clone()?; // fcntl
/// kick.write(2)?; // no system call
/// kick.write(3)?;
/// assert!(kick.as_raw_fd() >= 0); // write
/// assert_eq!(other.read()?, 5); // read
/// assert_eq!(other.read().unwrap_err().kind(), ErrorKind::WouldBlock);
/// # Ok(())
/// # }
/// ```
pub struct EventFd {
    fd: KernelEvent,
    /// `None` if the count was in the kernel when the handle was made.
    here: Option<Arc<Here>>,
}

/// What the handles share before the move.
struct Here {
    count: Handover,
    nonblocking: bool,
}

impl EventFd {
    /// An eventfd with a count of 0.
    ///
    /// # Errors
    ///
    /// Those of `eventfd(2)`: [`InvalidInput`](io::ErrorKind::InvalidInput) (`EINVAL`) if `flag` has flags other than
    /// [`EFD_CLOEXEC`], [`EFD_NONBLOCK`] and [`EFD_SEMAPHORE`]; `EMFILE` and `ENFILE` if there are too many
    /// descriptors; `ENOMEM`.
    pub fn new(flag: i32) -> io::Result<Self> {
        let flags = EventfdFlags::from_bits_retain(flag as u32);
        // The kernel checks the flags.
        let fd = KernelEvent::new(flags)?;
        let mode = if flags.contains(EventfdFlags::SEMAPHORE) {
            Mode::Semaphore
        } else {
            Mode::Counter
        };
        let here = Here {
            count: Handover::new(mode),
            nonblocking: flags.contains(EventfdFlags::NONBLOCK),
        };
        Ok(EventFd {
            fd,
            here: Some(Arc::new(here)),
        })
    }

    /// Adds `v` to the count.
    ///
    /// Blocks while the sum would exceed `u64::MAX - 1`, unless the eventfd is non-blocking. A signal handler does not
    /// interrupt it.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) (`EINVAL`) if `v` is `u64::MAX`, and
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) (`EAGAIN`) if the call would block and is not to. Those of `write(2)`
    /// if the descriptor is not an eventfd's.
    #[inline]
    pub fn write(&self, v: u64) -> io::Result<()> {
        if let Some(here) = &self.here {
            if let Ok(result) = here.count.write(v, !here.nonblocking) {
                return Ok(result?);
            }
        }
        self.fd.write(v)
    }

    /// Takes the count, or one unit if it is a semaphore.
    ///
    /// Blocks while the count is 0, unless the eventfd is non-blocking. A signal handler does not interrupt it.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) (`EAGAIN`) if the call would block and is not to. Those of `read(2)`
    /// if the descriptor is not an eventfd's, and [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if it is at its end,
    /// or gives less than 8 bytes before it is.
    #[inline]
    pub fn read(&self) -> io::Result<u64> {
        if let Some(here) = &self.here {
            if let Ok(value) = here.count.read(!here.nonblocking) {
                return value.ok_or(Errno::Again.into());
            }
        }
        self.fd.read()
    }

    /// Another handle of the same count, with a descriptor of its own, which is closed on exec. The count stays where
    /// it is.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(F_DUPFD_CLOEXEC)`: `EMFILE` if there are too many descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(EventFd {
            fd: self.fd.try_clone()?,
            here: self.here.clone(),
        })
    }

    /// This handle's descriptor, for other code to use. The first call for any of the handles moves the count into the
    /// kernel.
    fn shown(&self) -> &KernelEvent {
        if let Some(here) = &self.here {
            here.count.move_out(|count| {
                // It fits: the eventfd was empty. If the write fails, the descriptor was closed by other code, as
                // daemons close all that they inherit. Calls of the original would fail then, and calls of this type
                // fail from now on, with the same errors.
                let _ = self.fd.write(count);
            });
        }
        &self.fd
    }

    /// Moves the count, as asking for the descriptor does.
    #[cfg(loom)]
    pub fn move_to_kernel(&self) -> &super::kernel::model::KernelEvent {
        self.shown()
    }
}

impl From<KernelEvent> for EventFd {
    fn from(fd: KernelEvent) -> Self {
        EventFd { fd, here: None }
    }
}

impl fmt::Debug for EventFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("EventFd");
        debug.field("fd", &self.fd);
        let here = self.here.as_ref();
        if let Some(event) = here.and_then(|here| here.count.event()) {
            debug.field("event", event);
        }
        debug.finish()
    }
}

#[cfg(not(loom))]
mod descriptor {
    use super::EventFd;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

    impl AsFd for EventFd {
        /// The descriptor of this handle. The first call for any of the handles moves the count into the kernel, with a
        /// `write(2)` if it is not 0.
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.shown().as_fd()
        }
    }

    impl AsRawFd for EventFd {
        /// As [`as_fd`](AsFd::as_fd).
        fn as_raw_fd(&self) -> RawFd {
            self.as_fd().as_raw_fd()
        }
    }

    impl IntoRawFd for EventFd {
        /// The descriptor of this handle, which is used up. Other handles are left as they are, except that the count
        /// moves as with [`as_fd`](AsFd::as_fd).
        fn into_raw_fd(self) -> RawFd {
            OwnedFd::from(self).into_raw_fd()
        }
    }

    impl From<EventFd> for OwnedFd {
        /// As [`into_raw_fd`](IntoRawFd::into_raw_fd).
        fn from(event: EventFd) -> Self {
            event.shown();
            event.fd.into()
        }
    }

    impl From<OwnedFd> for EventFd {
        /// An eventfd whose count is in the kernel from the start.
        fn from(fd: OwnedFd) -> Self {
            super::KernelEvent::from(fd).into()
        }
    }

    impl FromRawFd for EventFd {
        unsafe fn from_raw_fd(fd: RawFd) -> Self {
            // SAFETY: the caller owns it, and hands it over.
            unsafe { OwnedFd::from_raw_fd(fd) }.into()
        }
    }
}
