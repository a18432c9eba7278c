//! A machine, from its parts to the end of its run: a vCPU thread at work, and a thread that watches it.

use crate::bus::Buses;
use crate::clock::Clock;
use crate::device::{Device, Shared};
use crate::doorbells::{Doorbells, Interrupt};
use crate::map::QUEUES;
use crate::memory::Memory;
use crate::pins::Pins;
use crate::plan::{Outcome, Plan};
use crate::progress::Progress;
use anyhow::Context;
use std::sync::Arc;
use std::thread;

/// The parts of a set-up.
pub struct Machine {
    pub vcpu: Box<dyn Vcpu>,
    pub memory: Memory,
    pub clock: Clock,
    pub doorbells: Arc<dyn Doorbells>,
    pub interrupts: [Box<dyn Interrupt>; QUEUES],
}

/// A vCPU that KVM runs, or a thread that does what the guest would do.
pub trait Vcpu: Send {
    /// Runs the guest to its end.
    fn run(&mut self, buses: &mut Buses) -> anyhow::Result<()>;
}

impl Machine {
    /// Runs the guest, and the watchdog beside it.
    pub fn run(
        mut self,
        plan: &Plan,
        pins: Option<&Pins>,
        progress: &mut Progress,
    ) -> anyhow::Result<Outcome> {
        let shared = Arc::new(Shared::new(
            Arc::clone(&self.doorbells),
            self.interrupts,
            self.memory.clone(),
            self.clock,
            pins.cloned(),
        ));
        let mut buses = Buses::new(self.doorbells, Device::new(Arc::clone(&shared)));
        let vcpu = thread::Builder::new()
            .name("vcpu 0".into())
            .spawn(move || {
                buses.device.keep_vcpu();
                self.vcpu.run(&mut buses)?;
                let served = buses.device.served();
                let served = served.context("the guest ended without a reset of its device")?;
                anyhow::Ok((buses.kicks, served))
            })?;
        progress.watch(plan, &shared, &vcpu);
        let (exited, served) = vcpu.join().expect("the vCPU thread panicked")?;
        Ok(Outcome::new(plan, &self.memory, exited, served))
    }
}
