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

/// The outcome of a run, or of several.
pub struct Outcome {
    /// Kicks, counted by the guest.
    pub sent: u64,
    /// Kicks for which the guest wrote to a doorbell.
    pub rung: u64,
    /// Kicks that reached the VMM's vCPU thread.
    pub exited: u64,
    /// Batches that the driver knows to be completed, counted by the guest.
    pub completed: u64,
    /// Interrupts, counted by the guest.
    pub interrupts: u64,
    /// Interrupts without a reason, counted by the guest separately.
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
            rung: 0,
            exited: 0,
            completed: 0,
            interrupts: 0,
            spurious: 0,
            served: Served::nothing(),
        }
    }

    /// Puts together what the guest, the vCPU thread and the device have counted.
    pub fn new(plan: &Plan, memory: &Memory, exited: u64, served: Served) -> Self {
        let sum = |cell: fn(usize) -> u64| (0..QUEUES).map(|queue| memory.get(cell(queue))).sum();
        // In the other set-ups every kick rings, and every batch ends with an interrupt.
        let (rung, completed) = match plan.setup.is_polled() {
            true => (sum(cell::rung), sum(cell::completed)),
            false => (sum(cell::sent), sum(cell::interrupts)),
        };
        Outcome {
            sent: sum(cell::sent),
            rung,
            exited,
            completed,
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
        if let Some(heard) = self.served.rung {
            let rung = self.rung;
            ensure!(
                rung == heard,
                "{of}: the guest rang {rung} times, but the doorbells {heard} times"
            );
        }
        let completed = self.completed;
        ensure!(
            completed == batches && interrupts <= batches,
            "{of}: {batches} batches, but {completed} completed and {interrupts} interrupts taken"
        );
        if let Some(told) = &self.served.told {
            let in_order = if plan.setup.is_level() {
                // At the end a line may be up for an interrupt that would be spurious.
                let ends = interrupts + self.spurious;
                told.acks == ends && (ends..=ends + QUEUES as u64).contains(&told.injections)
            } else if plan.setup.is_polled() {
                // An interrupt that the last look has made unnecessary may be pending when the next one comes: the PIC
                // has one bit for both.
                told.acks == 0 && (interrupts..=batches).contains(&told.injections)
            } else {
                told.acks == 0 && told.injections == interrupts && told.coalesced == 0
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
        self.rung += other.rung;
        self.exited += other.exited;
        self.completed += other.completed;
        self.interrupts += other.interrupts;
        self.spurious += other.spurious;
        self.served.add(&other.served);
    }
}
