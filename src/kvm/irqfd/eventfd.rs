//! An eventfd between this process and KVM.

use rustix::event::EventfdFlags;
use rustix::io::{Errno, read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An eventfd whose reads and writes do not block.
pub(super) struct EventFd(OwnedFd);

impl EventFd {
    pub(super) fn new() -> io::Result<Self> {
        Self::with(EventfdFlags::empty())
    }

    pub(super) fn semaphore() -> io::Result<Self> {
        Self::with(EventfdFlags::SEMAPHORE)
    }

    fn with(mode: EventfdFlags) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | mode;
        Ok(EventFd(rustix::event::eventfd(0, flags)?))
    }

    /// Adds 1.
    pub(super) fn signal(&self) -> Result<(), Errno> {
        write(&self.0, &1_u64.to_ne_bytes()).map(drop)
    }

    /// Takes the count, or 1 from that of a semaphore. Returns whether there was any.
    pub(super) fn take(&self) -> bool {
        read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
