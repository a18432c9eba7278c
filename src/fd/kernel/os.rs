//! `eventfd(2)` itself.

use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A file descriptor that is read and written as an eventfd is, 8 bytes at a time.
#[derive(Debug)]
pub(crate) struct KernelEvent(File);

impl KernelEvent {
    /// With a count of 0.
    pub(crate) fn new(flags: EventfdFlags) -> io::Result<Self> {
        Ok(eventfd(0, flags)?.into())
    }

    /// Another descriptor of the same, closed on exec.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(KernelEvent)
    }

    /// `read(2)`, and again if a signal handler has interrupted it.
    pub(crate) fn read(&self) -> io::Result<u64> {
        let mut value = [0; 8];
        (&self.0).read_exact(&mut value)?;
        Ok(u64::from_ne_bytes(value))
    }

    /// `write(2)`, and again if a signal handler has interrupted it.
    pub(crate) fn write(&self, n: u64) -> io::Result<()> {
        (&self.0).write_all(&n.to_ne_bytes())
    }
}

impl From<OwnedFd> for KernelEvent {
    fn from(fd: OwnedFd) -> Self {
        KernelEvent(fd.into())
    }
}

impl From<KernelEvent> for OwnedFd {
    fn from(event: KernelEvent) -> Self {
        event.0.into()
    }
}

impl AsFd for KernelEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
