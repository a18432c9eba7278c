//! A handle of an [`EventFd`](crate::fd::EventFd) where the system has eventfds: the count is in the process until code
//! asks for one of the descriptors.
//!
//! ```text
//!     handle ─▶ descriptor   of its own, as the original's      what calls go to after the move
//!           └─▶ [Handover]   shared by the handles              what they go to before
//! ```
//!
//! No other code has seen a descriptor before the move, so the eventfd has a count of 0 until then. The move takes the
//! count out of the event and writes it to the eventfd: see `src/event/handover.rs`.

use super::KernelEvent;
use crate::errno::Errno;
use crate::event::{Event, Handover, Mode};
use rustix::event::EventfdFlags;
use std::io;
use std::sync::Arc;

pub(in crate::fd) const CLOEXEC: i32 = EventfdFlags::CLOEXEC.bits() as i32;
pub(in crate::fd) const NONBLOCK: i32 = EventfdFlags::NONBLOCK.bits() as i32;
pub(in crate::fd) const SEMAPHORE: i32 = EventfdFlags::SEMAPHORE.bits() as i32;

/// A handle.
pub(in crate::fd) struct Count {
    fd: KernelEvent,
    /// `None` if the count was in the kernel when the handle was made.
    here: Option<Arc<Here>>,
}

/// What the handles share before the move.
struct Here {
    count: Handover,
    nonblocking: bool,
}

impl Count {
    pub(in crate::fd) fn new(flag: i32) -> io::Result<Self> {
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
        Ok(Count {
            fd,
            here: Some(Arc::new(here)),
        })
    }

    #[inline]
    pub(in crate::fd) fn write(&self, v: u64) -> io::Result<()> {
        if let Some(here) = &self.here {
            if let Ok(result) = here.count.write(v, !here.nonblocking) {
                return Ok(result?);
            }
        }
        self.fd.write(v)
    }

    #[inline]
    pub(in crate::fd) fn read(&self) -> io::Result<u64> {
        if let Some(here) = &self.here {
            if let Ok(value) = here.count.read(!here.nonblocking) {
                return value.ok_or(Errno::Again.into());
            }
        }
        self.fd.read()
    }

    pub(in crate::fd) fn try_clone(&self) -> io::Result<Self> {
        Ok(Count {
            fd: self.fd.try_clone()?,
            here: self.here.clone(),
        })
    }

    /// To be called before other code gets the descriptor: it moves the count into the kernel, if it is not there.
    pub(in crate::fd) fn show(&self) {
        if let Some(here) = &self.here {
            here.count.move_out(|count| {
                // It fits: the eventfd was empty. If the write fails, the descriptor was closed by other code, as
                // daemons close all that they inherit. Calls of the original would fail then, and calls of this type
                // fail from now on, with the same errors.
                let _ = self.fd.write(count);
            });
        }
    }

    /// This handle's descriptor.
    pub(in crate::fd) fn fd(&self) -> &KernelEvent {
        &self.fd
    }

    /// The event, if the count is there.
    pub(in crate::fd) fn event(&self) -> Option<&Event> {
        self.here.as_ref()?.count.event()
    }
}

#[cfg(not(loom))]
impl std::os::fd::AsFd for Count {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(not(loom))]
impl From<Count> for KernelEvent {
    /// Of a count that is in the kernel.
    fn from(count: Count) -> Self {
        count.fd
    }
}

impl From<KernelEvent> for Count {
    fn from(fd: KernelEvent) -> Self {
        Count { fd, here: None }
    }
}
