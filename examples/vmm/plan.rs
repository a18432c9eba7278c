//! What one run of the guest is to do, and what must come of it.

use crate::device::Served;
use crate::map::{BUSES, QUEUES, cell};
use crate::memory::Memory;
use crate::options::Setup;
use anyhow::ensure;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub setup: Setup,
    /// Kicks per interrupt.
    pub batch: u16,
    /// Batches by each doorbell.
    pub batches: u32,
}

/// What came of a run, or of several.
pub struct Outcome {
    /// Kicks, counted by the guest.
    pub sent: u64,
    /// Those of them that reached the VMM's vCPU thread.
    pub exited: u64,
    /// Interrupts, counted by the guest.
    pub interrupts: u64,
    /// Interrupts without a reason, counted by the guest beside the others.
    pub spurious: u64,
    /// What the device saw.
    pub served: Served,
}

const DOORBELLS: u64 = (QUEUES * BUSES.len()) as u64;

impl Plan {
    /// All kicks: at the end, each doorbell is rung once more, just before the reset.
    pub fn kicks(&self) -> u64 {
        self.interrupts() * u64::from(self.batch) + DOORBELLS
    }

    /// One for each batch.
    pub fn interrupts(&self) -> u64 {
        DOORBELLS * u64::from(self.batches)
    }
}

impl Outcome {
    pub fn nothing() -> Self {
        Outcome {
            sent: 0,
            exited: 0,
            interrupts: 0,
            spurious: 0,
            served: Served::nothing(),
        }
    }

    /// Puts together what the guest, the vCPU thread and the device have counted.
    pub fn new(memory: &Memory, exited: u64, served: Served) -> Self {
        let sum = |cell: fn(usize) -> u64| (0..QUEUES).map(|queue| memory.get(cell(queue))).sum();
        Outcome {
            sent: sum(cell::sent),
            exited,
            interrupts: sum(cell::interrupts),
            spurious: sum(cell::spurious),
            served,
        }
    }

    /// Whether this is what the plan must lead to.
    pub fn check(&self, plan: &Plan) -> anyhow::Result<()> {
        let of = format!("{}, batch {}", plan.setup, plan.batch);
        let (sent, seen, interrupts) = (self.sent, self.served.seen, self.interrupts);
        let (kicks, batches) = (plan.kicks(), plan.interrupts());
        ensure!(
            sent == kicks,
            "{of}: the guest sent {sent} kicks instead of {kicks}"
        );
        ensure!(
            seen == sent,
            "{of}: {sent} kicks sent, but {seen} events seen"
        );
        ensure!(
            interrupts == batches,
            "{of}: {batches} batches, but {interrupts} interrupts taken"
        );
        if let Some(told) = &self.served.told {
            let in_order = match plan.setup.is_level() {
                // A line may be up at the end for an interrupt that would be spurious.
                true => {
                    let ends = interrupts + self.spurious;
                    told.acks == ends && (ends..=ends + QUEUES as u64).contains(&told.injections)
                }
                false => told.acks == 0 && told.injections == interrupts && told.coalesced == 0,
            };
            ensure!(
                in_order
                    && told.signals == told.made
                    && told.signals == told.injections + told.coalesced,
                "{of}: {interrupts} interrupts taken and {} spurious, but {told:?}",
                self.spurious
            );
        }
        let ignored = self.served.ignored;
        ensure!(
            ignored == DOORBELLS,
            "{of}: of {DOORBELLS} writes after the reset, {ignored} came to the device's registers"
        );
        Ok(())
    }

    pub fn add(&mut self, other: &Outcome) {
        self.sent += other.sent;
        self.exited += other.exited;
        self.interrupts += other.interrupts;
        self.spurious += other.spurious;
        self.served.add(&other.served);
    }
}
