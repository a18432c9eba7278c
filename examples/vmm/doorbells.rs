//! What differs between the set-ups, seen from the device: how a guest's write becomes a kick, how a device thread
//! waits for it, and how it interrupts the guest.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kernel;
#[cfg(target_os = "linux")]
mod list;
mod polled;
mod space;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use kernel::InKernel;
#[cfg(target_os = "linux")]
pub use list::{InList, eventfds};
pub use polled::Polled;
pub use space::InSpace;

use crate::irqfds::Told;
use crate::map::QUEUES;
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

/// How many kicks, of each queue.
pub type Kicks = [u64; QUEUES];

/// The doorbells of one machine.
///
/// By default, the kicks are in the counters, and each queue has a device thread that sleeps in its counter.
pub trait Doorbells: fmt::Debug + Send + Sync {
    /// The counter to which a queue's doorbells add.
    fn counter(&self, queue: usize) -> &dyn Counter;

    /// How many device threads there are to be.
    fn threads(&self) -> usize {
        QUEUES
    }

    /// The function that a device thread calls again and again: it waits for kicks and takes them.
    fn waiter(&self, thread: usize) -> Box<dyn FnMut() -> Kicks + '_> {
        Box::new(move || {
            let mut kicks = [0; QUEUES];
            kicks[thread] = self.counter(thread).wait();
            kicks
        })
    }

    /// Ends the device threads' waits, with or without kicks. Returns how many kicks there will be that no guest made.
    fn stop(&self) -> u64 {
        (0..QUEUES).for_each(|queue| self.counter(queue).signal());
        QUEUES as u64
    }

    /// The kicks that no thread has taken. There are no threads any more.
    fn rest(&self, queue: usize) -> u64 {
        self.counter(queue).take()
    }

    /// How often the doorbells have rung, if that is not the number of kicks. The device has stopped.
    fn rung(&self, queue: usize) -> Option<u64> {
        let _ = queue;
        None
    }

    /// From now on, guest writes that match one of these keys kick the queue beside it.
    fn assign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()>;

    /// From now on they do not. Earlier kicks are in the counters.
    fn deassign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()>;

    /// A guest's write that has reached the vCPU thread. Returns whether it was a kick.
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
