use super::KernelEvent;
use rustix::event::EventfdFlags;
use std::io;

/// A descriptor that is readable while it is set, closed on exec: an eventfd of which only one bit matters.
///
/// No call blocks.
#[derive(Debug)]
pub(in crate::fd) struct Flag(KernelEvent);

impl Flag {
    pub(in crate::fd) fn new() -> io::Result<Self> {
        KernelEvent::new(EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map(Flag)
    }

    #[cfg(loom)]
    pub(in crate::fd) fn model(&self) -> &KernelEvent {
        &self.0
    }

    /// Makes it readable.
    pub(in crate::fd) fn set(&self) -> io::Result<()> {
        self.0.write(1)
    }

    /// Gives an edge to those that watch it, while it is set.
    pub(in crate::fd) fn set_again(&self) -> io::Result<()> {
        self.0.write(1)
    }

    pub(in crate::fd) fn clear(&self) -> io::Result<()> {
        self.0.read().map(drop)
    }
}

#[cfg(not(loom))]
impl std::os::fd::AsFd for Flag {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
