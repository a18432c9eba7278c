//! A drop-in for `vmm_sys_util::eventfd::EventFd`: an event until somebody needs the descriptor, then a kernel eventfd.
//!
//! ```text
//!     handle ─▶ Descriptor   empty until the move        what this handle's calls go to afterwards
//!           └─▶ Shared ┬─▶ Event                         what they go to before
//!                      └─▶ [Weak<Descriptor>]            who else is to get one; its lock is that of the move
//! ```
//!
//! The move, under the lock: make a descriptor for each handle (all that can fail), take the count out of the event,
//! write it to the new eventfd, fill the descriptors, unlock, wake those who sleep in the event. A call that finds the
//! count taken (see `src/event/handover.rs`) waits for the lock, then has a descriptor to go on with. So the calls
//! before the taking have their effect in the event, those after it in the kernel, and the count is where they look.

use super::kernel::KernelEvent;
use crate::errno::Errno;
use crate::event::Moved;
use crate::sync::lazy::Lazy;
use crate::sync::{Mutex, MutexGuard};
use crate::{Event, Mode};
use rustix::event::EventfdFlags;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, Weak};

/// For [`EventFd::new`]: descriptors are closed on exec.
pub const EFD_CLOEXEC: i32 = EventfdFlags::CLOEXEC.bits() as i32;
/// For [`EventFd::new`]: calls that would block fail instead.
pub const EFD_NONBLOCK: i32 = EventfdFlags::NONBLOCK.bits() as i32;
/// For [`EventFd::new`]: a read takes one unit.
pub const EFD_SEMAPHORE: i32 = EventfdFlags::SEMAPHORE.bits() as i32;

/// An eventfd that makes no system call until its file descriptor is asked for.
///
/// Same API as `vmm_sys_util::eventfd::EventFd`, same results, same errors. Until somebody asks for the descriptor of
/// one of the handles ([`as_raw_fd`](std::os::fd::AsRawFd::as_raw_fd) and the like), the count is an [`Event`] in this
/// process: reads and writes that need not block make no system call. Asking moves the count into a kernel eventfd, for
/// good: every handle gets a descriptor of its own, and all calls from then on are `read(2)` and `write(2)` there, with
/// exactly the kernel's semantics. Threads asleep in a read or write go on sleeping in the kernel; nothing is lost or
/// doubled.
///
/// What differs from the original before that:
///
/// * It is not inherited by child processes. Ask for the descriptor before a fork.
/// * [`new`](Self::new) and [`try_clone`](Self::try_clone) cannot run out of descriptors, but asking for one can:
///   `as_raw_fd` and `into_raw_fd` panic then, [`try_as_fd`](Self::try_as_fd) returns the error. It makes as many
///   descriptors as there are handles.
///
/// System calls: `eventfd2`, `fcntl(F_DUPFD_CLOEXEC)` or `dup` for each other handle and a `write` when it is asked for
/// the descriptor; `read` and `write` after that; `futex` to sleep and to wake before.
///
/// ```
/// use doorbell::fd::{EFD_NONBLOCK, EventFd};
/// use std::io::ErrorKind;
/// use std::os::fd::AsRawFd;
///
/// # fn main() -> std::io::Result<()> {
/// let kick = EventFd::new(EFD_NONBLOCK)?;
/// let other = kick.try_clone()?;
/// kick.write(2)?;
/// kick.write(3)?; // no system call up to here
/// assert!(kick.as_raw_fd() >= 0);
/// assert_eq!(other.read()?, 5); // read(2)
/// assert_eq!(other.read().unwrap_err().kind(), ErrorKind::WouldBlock);
/// # Ok(())
/// # }
/// ```
pub struct EventFd {
    descriptor: Arc<Descriptor>,
    shared: Arc<Shared>,
}

/// What a handle has of the kernel's eventfd.
struct Descriptor {
    fd: Lazy<KernelEvent>,
    close_on_exec: bool,
}

impl Descriptor {
    fn new(close_on_exec: bool) -> Arc<Self> {
        Arc::new(Descriptor {
            fd: Lazy::new(),
            close_on_exec,
        })
    }
}

/// What the handles share before the move.
struct Shared {
    event: Event,
    nonblocking: bool,
    handles: Mutex<Vec<Weak<Descriptor>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Descriptor>>> {
        // A list that a panic has left is as good as another.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventFd {
    /// An eventfd with a count of 0.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) (`EINVAL`) if `flag` has others in it than [`EFD_CLOEXEC`],
    /// [`EFD_NONBLOCK`] and [`EFD_SEMAPHORE`].
    pub fn new(flag: i32) -> io::Result<Self> {
        if flag & !(EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE) != 0 {
            return Err(Errno::Invalid.into());
        }
        let mode = match flag & EFD_SEMAPHORE {
            0 => Mode::Counter,
            _ => Mode::Semaphore,
        };
        let descriptor = Descriptor::new(flag & EFD_CLOEXEC != 0);
        let handles = Mutex::new(vec![Arc::downgrade(&descriptor)]);
        let shared = Arc::new(Shared {
            event: Event::with_mode(0, mode),
            nonblocking: flag & EFD_NONBLOCK != 0,
            handles,
        });
        Ok(EventFd { descriptor, shared })
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
        if let Some(fd) = self.descriptor.fd.get() {
            return fd.write(v);
        }
        match self.shared.event.write_here(v, !self.shared.nonblocking) {
            Ok(result) => Ok(result?),
            Err(Moved) => self.moved().write(v),
        }
    }

    /// Takes the count, or one unit if it is a semaphore.
    ///
    /// Blocks while the count is 0, unless the eventfd is non-blocking. A signal handler does not interrupt it.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) (`EAGAIN`) if the call would block and is not to. Those of `read(2)`
    /// if the descriptor is not an eventfd's.
    #[inline]
    pub fn read(&self) -> io::Result<u64> {
        if let Some(fd) = self.descriptor.fd.get() {
            return fd.read();
        }
        match self.shared.event.read_here(!self.shared.nonblocking) {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(Errno::Again.into()),
            Err(Moved) => self.moved().read(),
        }
    }

    /// Another handle of the same count. Its descriptor, when there is one, is another too, and closed on exec.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(F_DUPFD_CLOEXEC)`, such as `EMFILE`, if there is a descriptor already.
    pub fn try_clone(&self) -> io::Result<Self> {
        let descriptor = Descriptor::new(true);
        // The lock is not held by a move that has yet to see the new handle.
        let mut handles = self.shared.lock();
        if let Some(fd) = self.descriptor.fd.get() {
            let fd = fd.try_clone(true)?;
            descriptor.fd.get_or_make(|| fd);
        } else {
            handles.retain(|handle| handle.strong_count() != 0);
            handles.push(Arc::downgrade(&descriptor));
        }
        drop(handles);
        Ok(EventFd {
            descriptor,
            shared: Arc::clone(&self.shared),
        })
    }

    /// This handle's descriptor. The first call for any of the handles moves the count into the kernel.
    fn kernel(&self) -> io::Result<&KernelEvent> {
        if let Some(fd) = self.descriptor.fd.get() {
            return Ok(fd);
        }
        let mut handles = self.shared.lock();
        if let Some(fd) = self.descriptor.fd.get() {
            return Ok(fd);
        }
        let Shared {
            event, nonblocking, ..
        } = &*self.shared;
        let mut flags = EventfdFlags::empty();
        flags.set(EventfdFlags::NONBLOCK, *nonblocking);
        flags.set(EventfdFlags::SEMAPHORE, event.mode() == Mode::Semaphore);
        flags.set(EventfdFlags::CLOEXEC, self.descriptor.close_on_exec);
        let fd = KernelEvent::new(flags)?;
        let mut others = Vec::new();
        for other in handles.iter().filter_map(Weak::upgrade) {
            if !Arc::ptr_eq(&other, &self.descriptor) {
                let fd = fd.try_clone(other.close_on_exec)?;
                others.push((other, fd));
            }
        }

        let count = event.move_out();
        if count != 0 {
            if let Err(error) = fd.write(count) {
                unreachable!("{count} fits into a new eventfd: {error}");
            }
        }
        for (other, fd) in others {
            other.fd.get_or_make(|| fd);
        }
        let fd = self.descriptor.fd.get_or_make(|| fd);
        handles.clear();
        drop(handles);
        event.wake_moved();
        Ok(fd)
    }

    /// Where the count has gone.
    #[cold]
    fn moved(&self) -> &KernelEvent {
        // The move holds it until there are descriptors.
        drop(self.shared.lock());
        match self.descriptor.fd.get() {
            Some(fd) => fd,
            None => unreachable!("the count has moved, and every handle has a descriptor"),
        }
    }

    /// As asking for the descriptor does.
    #[cfg(loom)]
    pub fn move_to_kernel(&self) -> &super::kernel::model::KernelEvent {
        self.kernel().expect("the model does not run out")
    }
}

impl From<KernelEvent> for EventFd {
    fn from(fd: KernelEvent) -> Self {
        let event = Event::default();
        event.move_out();
        // What is not to be known before the move is not needed after it.
        let shared = Arc::new(Shared {
            event,
            nonblocking: false,
            handles: Mutex::default(),
        });
        let descriptor = Descriptor::new(true);
        descriptor.fd.get_or_make(|| fd);
        EventFd { descriptor, shared }
    }
}

impl fmt::Debug for EventFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("EventFd");
        match self.descriptor.fd.get() {
            Some(fd) => debug.field("fd", fd),
            None => debug.field("event", &self.shared.event),
        };
        debug.finish()
    }
}

#[cfg(not(loom))]
mod descriptor {
    use super::EventFd;
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
    use std::sync::Arc;

    impl EventFd {
        /// The descriptor of this handle.
        ///
        /// The first call for any of the handles makes one for each, and moves the count into the kernel.
        ///
        /// # Errors
        ///
        /// Those of `eventfd(2)` and `fcntl(F_DUPFD_CLOEXEC)`: `EMFILE` and `ENFILE` if there are too many descriptors,
        /// `ENOMEM`. Then nothing has changed.
        pub fn try_as_fd(&self) -> io::Result<BorrowedFd<'_>> {
            Ok(self.kernel()?.as_fd())
        }

        /// The descriptor of this handle, which is used up. The other handles are left as they are.
        ///
        /// # Errors
        ///
        /// As for [`try_as_fd`](Self::try_as_fd), and then the handle is gone.
        pub fn try_into_fd(self) -> io::Result<OwnedFd> {
            self.kernel()?;
            // The move may have been made by another handle, which lets go of this one's descriptor before it unlocks.
            drop(self.shared.lock());
            match Arc::into_inner(self.descriptor).and_then(|mut descriptor| descriptor.fd.take()) {
                Some(fd) => Ok(fd.into()),
                None => unreachable!("only a move borrows a handle's descriptor"),
            }
        }

        #[track_caller]
        fn fail(error: io::Error) -> ! {
            panic!("no file descriptor for an EventFd: {error}");
        }
    }

    impl AsFd for EventFd {
        /// As [`try_as_fd`](EventFd::try_as_fd).
        ///
        /// # Panics
        ///
        /// If there cannot be another descriptor.
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.try_as_fd().unwrap_or_else(|error| Self::fail(error))
        }
    }

    impl AsRawFd for EventFd {
        /// As [`try_as_fd`](EventFd::try_as_fd).
        ///
        /// # Panics
        ///
        /// If there cannot be another descriptor.
        fn as_raw_fd(&self) -> RawFd {
            self.as_fd().as_raw_fd()
        }
    }

    impl IntoRawFd for EventFd {
        /// As [`try_into_fd`](EventFd::try_into_fd).
        ///
        /// # Panics
        ///
        /// If there cannot be another descriptor.
        fn into_raw_fd(self) -> RawFd {
            OwnedFd::from(self).into_raw_fd()
        }
    }

    impl From<EventFd> for OwnedFd {
        /// As [`try_into_fd`](EventFd::try_into_fd).
        ///
        /// # Panics
        ///
        /// If there cannot be another descriptor.
        fn from(event: EventFd) -> Self {
            event
                .try_into_fd()
                .unwrap_or_else(|error| EventFd::fail(error))
        }
    }

    impl From<OwnedFd> for EventFd {
        /// An eventfd that is in the kernel from the start.
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
