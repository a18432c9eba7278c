use super::{Counter, Doorbells};
use crate::map::{BUSES, QUEUES, bar};
use anyhow::Context;
use doorbell::ioeventfd::space::{AddressSpace, CommitReport, Region};
use doorbell::ioeventfd::{Bus, Key};
use doorbell::poll::{PollError, Poller, Watch};
use doorbell::{Event, Spin};
use std::sync::Arc;

/// The set-ups `doorbell` and `listener`: doorbell's address space, whose table serves the kicks that exit. In
/// `listener` the address space has a listener, by which KVM takes them before they exit.
#[derive(Debug)]
pub struct InSpace {
    space: AddressSpace,
    /// The regions, in the order of [`BUSES`].
    bars: [Region; BUSES.len()],
    events: [Arc<Event>; QUEUES],
    /// The counters in which the device threads wait for the events.
    counters: [Box<dyn Counter>; QUEUES],
    /// The parts of the events' counts that KVM takes.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    in_kernel: Vec<doorbell::kvm::KernelCount>,
}

impl InSpace {
    /// An address space without a listener: all kicks are served in userspace.
    pub fn new(spin: Spin) -> anyhow::Result<Self> {
        let events = std::array::from_fn(|_| Arc::new(Event::new(0).with_spin(spin)));
        let counters = events.clone().map(|event| Box::new(event) as _);
        Self::with(AddressSpace::new(), events, counters)
    }

    /// An address space with a listener: KVM takes kicks first.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub fn with_listener(vm: &kvm_ioctls::VmFd) -> anyhow::Result<Self> {
        use std::os::fd::{AsRawFd, BorrowedFd};
        let space = AddressSpace::new();
        // SAFETY: `vm` keeps its descriptor open. (It is not `AsFd` as of kvm-ioctls 0.25.)
        let vm = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
        let listener = Arc::new(doorbell::kvm::KvmListener::new(vm)?);
        complain(&space.add_listener(listener.clone()));
        let events = std::array::from_fn(|_| Arc::new(Event::new(0)));
        let mut in_kernel = Vec::new();
        for event in &events {
            in_kernel.push(listener.count_of(event)?);
        }
        let counters = std::array::from_fn(|queue| Box::new(in_kernel[queue].clone()) as _);
        let mut space = Self::with(space, events, counters)?;
        space.in_kernel = in_kernel;
        Ok(space)
    }

    /// Has `poller` watch the counter of a queue's doorbells under the key `queue`; and under the key `queue + QUEUES`
    /// the kicks that KVM may refuse, if it takes kicks at all.
    pub fn watch(&self, poller: &Poller, queue: usize, watch: Watch) -> Result<(), PollError> {
        let event = &self.events[queue];
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if let Some(in_kernel) = self.in_kernel.get(queue) {
            poller.add_fd(in_kernel, queue, watch)?;
            return poller.add(event, QUEUES + queue, watch);
        }
        poller.add(event, queue, watch)
    }

    fn with(
        space: AddressSpace,
        events: [Arc<Event>; QUEUES],
        counters: [Box<dyn Counter>; QUEUES],
    ) -> anyhow::Result<Self> {
        let bars = BUSES.map(|bus| space.region(bus, bar(bus).size));
        for (bus, region) in BUSES.into_iter().zip(&bars) {
            complain(&region.map(bar(bus).base)?);
        }
        Ok(InSpace {
            space,
            bars,
            events,
            counters,
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            in_kernel: Vec::new(),
        })
    }

    /// Makes one transaction of changes to each of the doorbells; they take effect together.
    fn change(
        &self,
        doorbells: &[(Key, usize)],
        change: impl Fn(&Region, u64, &Key, &Arc<Event>) -> anyhow::Result<CommitReport>,
    ) -> anyhow::Result<()> {
        let transaction = self.space.begin();
        for (key, queue) in doorbells {
            let place = BUSES.iter().position(|&bus| bus == key.bus);
            let region = &self.bars[place.context("no such bus")?];
            let offset = key.address - bar(key.bus).base;
            // Nothing to report yet: the transaction is open.
            let _ = change(region, offset, key, &self.events[*queue])?;
        }
        complain(&transaction.commit());
        Ok(())
    }
}

/// The table takes what a listener refuses. That costs exits, so it is printed.
fn complain(report: &CommitReport) {
    for refusal in &report.refusals {
        eprintln!("vmm: slower than it could be: {refusal}");
    }
}

impl Doorbells for InSpace {
    fn counter(&self, queue: usize) -> &dyn Counter {
        &*self.counters[queue]
    }

    fn assign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()> {
        self.change(doorbells, |region, offset, key, event| {
            Ok(region.add_eventfd(offset, key.length, key.datamatch, event)?)
        })
    }

    fn deassign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()> {
        self.change(doorbells, |region, offset, key, event| {
            Ok(region.del_eventfd(offset, key.length, key.datamatch, event)?)
        })
    }

    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        self.space.write(bus, address, data)
    }
}
