//! A GSI's messages by an irqfd of KVM's.
//!
//! KVM's irqfds do not pulse pins here. KVM's worker raises and lowers a pin some time after the signal, by the routes
//! of that time. When it lowers the pin, it takes down a level that `KVM_IRQ_LINE` may have raised meanwhile, because
//! the two are one source to KVM.

use super::Vm;
use super::eventfd::EventFd;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::sync::Arc;

/// An eventfd that KVM sends the message of a GSI for, while it is attached.
pub(super) struct Wire {
    vm: Arc<Vm>,
    gsi: u32,
    /// A semaphore, so that signals that come after it was detached are taken back one by one.
    fd: EventFd,
    /// How often it was attached and detached: an odd number while it is attached. Changed under the lock of the
    /// sink's state.
    changes: AtomicU64,
}

impl Wire {
    pub(super) fn new(vm: Arc<Vm>, gsi: u32) -> io::Result<Self> {
        Ok(Wire {
            vm,
            gsi,
            fd: EventFd::semaphore()?,
            changes: AtomicU64::new(0),
        })
    }

    /// Has KVM send the message that its table has for the GSI.
    pub(super) fn attach(&self) -> io::Result<()> {
        let changes = self.changes.load(Ordering::Relaxed);
        if !is_attached(changes) {
            self.vm.irqfd(&self.fd, self.gsi)?;
            self.changes.store(changes + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// When this returns, KVM injects nothing for it, and what was signalled before has been sent.
    pub(super) fn detach(&self) -> io::Result<()> {
        let changes = self.changes.load(Ordering::Relaxed);
        if is_attached(changes) {
            self.changes.store(changes + 1, Ordering::Relaxed);
            self.vm.deassign_irqfd(&self.fd, self.gsi)?;
        }
        Ok(())
    }

    /// Returns whether the message has been sent.
    pub(super) fn signal(&self) -> bool {
        let changes = self.changes.load(Ordering::Relaxed);
        if !is_attached(changes) || self.fd.signal().is_err() {
            return false;
        }
        // Relaxed, twice: KVM attaches and detaches under the eventfd's lock, which the write takes. If KVM has not
        // seen the write, it was made after a detach that the first load has not seen, and the second load sees that.
        //
        // Nor is it enough that the wire is attached again: KVM has sent one message then for all that it found.
        self.changes.load(Ordering::Relaxed) == changes || !self.fd.take()
    }
}

fn is_attached(changes: u64) -> bool {
    changes % 2 == 1
}

impl Drop for Wire {
    fn drop(&mut self) {
        // If KVM refuses, it lets go of the irqfd when the eventfd is closed.
        let _ = self.detach();
    }
}
