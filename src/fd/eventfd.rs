//! A drop-in for `vmm_sys_util::eventfd::EventFd`. `kernel/count.rs` and `pipe/count.rs` are what it is made of.

use super::kernel::{self, Count};
use std::fmt;
use std::io;

/// For [`EventFd::new`]: the descriptor is closed on exec. The values of the flags are those of the system's `EFD_*`,
/// and of Linux's where there are none.
pub const EFD_CLOEXEC: i32 = kernel::CLOEXEC;
/// For [`EventFd::new`]: calls that would block fail instead.
pub const EFD_NONBLOCK: i32 = kernel::NONBLOCK;
/// For [`EventFd::new`]: a read takes one unit.
pub const EFD_SEMAPHORE: i32 = kernel::SEMAPHORE;

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
/// # Where there is no eventfd
///
/// Apple's systems have none. There, and elsewhere if the compiler is given `--cfg doorbell_no_eventfd`, the count
/// stays in the process, and the descriptor says whether it is above 0. All methods have the results and errors that
/// this page describes, but for what follows.
///
/// * The descriptor is the reading end of a pipe. From the first time on that code asks for one of the descriptors,
///   it is readable when an eventfd would be, for `poll`, `kqueue` and the like, and there is an edge when the count
///   leaves 0. When a read or write of this type returns, the descriptor agrees with the count.
/// * Other code can only wait. If it reads the descriptor, it takes the readiness and no count: the descriptor is not
///   readable then until the count has been 0 again. It cannot write. Nor can another process, which the descriptor may
///   be passed to.
/// * There are no conversions from and to descriptors and `vmm-sys-util`'s types, because the count would not go along.
/// * After a descriptor was asked for, a write that takes the count away from 0 makes a `write(2)`, a read that takes
///   it there a `read(2)`, and both take a lock. So a signal handler must make neither.
/// * An `EventFd` has two descriptors, and each clone has one more. They are non-blocking, whatever the flags say; the
///   methods go by the flags. On Apple's systems, a child that another thread forks inside [`new`](Self::new) may
///   inherit them.
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
pub struct EventFd(pub(super) Count);

impl EventFd {
    /// An eventfd with a count of 0.
    ///
    /// # Errors
    ///
    /// Those of `eventfd(2)`: [`InvalidInput`](io::ErrorKind::InvalidInput) (`EINVAL`) if `flag` has flags other than
    /// [`EFD_CLOEXEC`], [`EFD_NONBLOCK`] and [`EFD_SEMAPHORE`]; `EMFILE` and `ENFILE` if there are too many
    /// descriptors; `ENOMEM`.
    pub fn new(flag: i32) -> io::Result<Self> {
        Count::new(flag).map(EventFd)
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
        self.0.write(v)
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
        self.0.read()
    }

    /// Another handle of the same count, with a descriptor of its own, which is closed on exec. The count stays where
    /// it is.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(F_DUPFD_CLOEXEC)`: `EMFILE` if there are too many descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(EventFd)
    }

    /// Moves the count, as asking for the descriptor does.
    #[cfg(loom)]
    pub fn move_to_kernel(&self) -> &super::kernel::model::KernelEvent {
        self.0.show();
        self.0.fd()
    }
}

impl fmt::Debug for EventFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("EventFd");
        debug.field("fd", &self.0.fd());
        if let Some(event) = self.0.event() {
            debug.field("event", event);
        }
        debug.finish()
    }
}

#[cfg(not(loom))]
mod descriptor {
    use super::EventFd;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

    impl AsFd for EventFd {
        /// The descriptor of this handle. The first call for any of the handles moves the count into the kernel, with a
        /// `write(2)` if it is not 0.
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.show();
            self.0.as_fd()
        }
    }

    impl AsRawFd for EventFd {
        /// As [`as_fd`](AsFd::as_fd).
        fn as_raw_fd(&self) -> RawFd {
            self.as_fd().as_raw_fd()
        }
    }
}
