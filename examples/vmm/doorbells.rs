//! What differs between the set-ups, seen from the device: how a guest's write becomes a kick, how a device thread
//! waits for it, and how it interrupts the guest.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kernel;
#[cfg(target_os = "linux")]
mod list;
mod space;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use kernel::InKernel;
#[cfg(target_os = "linux")]
pub use list::{InList, eventfds};
pub use space::InSpace;

use crate::irqfds::Told;
use doorbell::Event;
use doorbell::ioeventfd::{Bus, Key};
use std::fmt;
use std::sync::Arc;

/// A counter to sleep on: an [`Event`] or an eventfd.
pub trait Counter: fmt::Debug + Send + Sync {
    /// Adds 1.
    fn signal(&self);
    /// Takes the count, sleeping while it is 0.
    fn wait(&self) -> u64;
    /// Takes the count, which may be 0.
    fn take(&self) -> u64;
}

impl Counter for Arc<Event> {
    fn signal(&self) {
        Event::signal(self);
    }

    fn wait(&self) -> u64 {
        self.read()
    }

    fn take(&self) -> u64 {
        self.try_read().unwrap_or(0)
    }
}

/// The doorbells of one machine.
pub trait Doorbells: fmt::Debug + Send + Sync {
    /// What a queue's doorbells add to.
    fn counter(&self, queue: usize) -> &dyn Counter;

    /// From now on, guest writes that match one of these keys kick the queue beside it.
    fn assign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()>;

    /// From now on they do not. What came before is in the counters.
    fn deassign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()>;

    /// A guest's write that has reached the vCPU thread. Whether it was a kick.
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool;
}

/// A queue's interrupt line.
pub trait Interrupt: fmt::Debug + Send + Sync {
    fn raise(&self) -> anyhow::Result<()>;

    /// The interrupt status, if there is one: whether the line was raised since this was last asked.
    fn take_status(&self) -> bool {
        false
    }

    /// What became of the interrupts, if they go through an irqfd of doorbell's. The guest has taken `taken` of them.
    fn told(&self, taken: u64) -> Option<Told> {
        let _ = taken;
        None
    }
}

/// An eventfd that is an irqfd, or the line to a software vCPU, which waits for the counter.
impl Interrupt for Arc<dyn Counter> {
    fn raise(&self) -> anyhow::Result<()> {
        self.signal();
        Ok(())
    }
}
