//! The set-up `polled`: the guest's driver rings only if it is asked to, and the device looks into guest memory.
//!
//! ```text
//!     guest                                        device thread, in Poller::wait
//!     1  one more kick in `sent`  ┐ one locked      1  clear `quiet`                        ┐
//!     2  a fence                  ┘ instruction     2  a fence                              │ Probe::end
//!     3  is `quiet` 0?  ring                        3  is `sent` more than was taken?       ┘
//!                                                      yes: go on, awake; no: sleep
//! ```
//!
//! So a kick is found by the look, or rings. `sent` corresponds to the index of an available ring of a virtio device,
//! and `quiet` to its `VRING_USED_F_NO_NOTIFY`. One thread serves all queues: while it is awake for one queue, it is
//! awake for the others.

use super::{Counter, Doorbells, InSpace, Kicks};
use crate::map::{QUEUES, cell};
use crate::memory::Memory;
use doorbell::Spin;
use doorbell::ioeventfd::{Bus, Key};
use doorbell::poll::{Events, Poller, Probe, Watch};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

#[derive(Debug)]
pub struct Polled {
    /// The address space at which rings arrive, as in the set-ups `doorbell` and `listener`.
    space: InSpace,
    poller: Poller,
    queues: [Queue; QUEUES],
}

impl Polled {
    /// The poller's keys are the indices of the queues, and above them those of everything else that is watched.
    pub fn new(space: InSpace, memory: &Memory, spin: Spin) -> anyhow::Result<Self> {
        let poller = Poller::with_spin(spin);
        let queues = std::array::from_fn(|index| Queue {
            index,
            memory: memory.clone(),
            taken: Arc::default(),
        });
        for queue in &queues {
            // The kicks themselves are in guest memory, so rings are watched as edges, and not read before the end.
            space.watch(&poller, queue.index, Watch::READABLE.edge())?;
            poller.attach_probe(queue.index, queue.clone())?;
        }
        Ok(Polled {
            space,
            poller,
            queues,
        })
    }
}

impl Doorbells for Polled {
    fn counter(&self, queue: usize) -> &dyn Counter {
        self.space.counter(queue)
    }

    fn threads(&self) -> usize {
        1
    }

    fn waiter(&self, _: usize) -> Box<dyn FnMut() -> Kicks + '_> {
        let mut events = Events::with_capacity(2 * QUEUES);
        Box::new(move || {
            let waited = self.poller.wait(&mut events, None);
            waited.expect("a poller with a buffer, and descriptors that no other code has");
            self.queues.each_ref().map(Queue::take)
        })
    }

    fn rest(&self, queue: usize) -> u64 {
        self.queues[queue].take()
    }

    fn rung(&self, queue: usize) -> Option<u64> {
        Some(self.counter(queue).take())
    }

    fn stop(&self) -> u64 {
        self.poller.notify();
        0
    }

    fn assign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()> {
        self.space.assign(doorbells)
    }

    fn deassign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()> {
        self.space.deassign(doorbells)
    }

    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        self.space.write(bus, address, data)
    }
}

/// The device's view of a queue.
#[derive(Clone, Debug)]
struct Queue {
    index: usize,
    memory: Memory,
    /// How many of the kicks that the guest has counted are taken.
    taken: Arc<AtomicU64>,
}

impl Queue {
    fn take(&self) -> u64 {
        let sent = self.memory.get_published(cell::sent(self.index));
        // Relaxed: only the device thread counts, and after it has ended, the thread that has joined it.
        sent - self.taken.swap(sent, Ordering::Relaxed)
    }
}

impl Probe for Queue {
    fn ready(&mut self) -> bool {
        let sent = self.memory.get_published(cell::sent(self.index));
        sent != self.taken.load(Ordering::Relaxed)
    }

    fn begin(&mut self) {
        self.memory.set(cell::quiet(self.index), 1);
    }

    fn end(&mut self) -> bool {
        self.memory.set(cell::quiet(self.index), 0);
        // Pairs with the fence between the guest's kick and its look at the flag.
        fence(Ordering::SeqCst);
        self.ready()
    }
}
