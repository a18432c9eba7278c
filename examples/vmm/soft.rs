//! The software vCPU: a thread that makes the guest's writes itself, for machines without KVM.
//!
//! It goes through the same buses to the same device. A write to a doorbell therefore costs what it costs a VMM after a
//! vCPU exit, without the exit.

use crate::bus::Buses;
use crate::clock::Clock;
use crate::doorbells::{Counter, Doorbells, InSpace, Interrupt};
use crate::machine::{Machine, Vcpu};
use crate::map::{BRING_UP, BUSES, QUEUES, cell, notify_address, port, status};
use crate::memory::Memory;
use crate::options::Setup;
use crate::plan::Plan;
use anyhow::ensure;
use doorbell::ioeventfd::Bus;
use doorbell::{Event, Spin};
use std::sync::Arc;
use std::time::Instant;

/// The set-ups that need no KVM.
pub const SETUPS: &[Setup] = if cfg!(target_os = "linux") {
    &[Setup::Doorbell, Setup::Eventfd]
} else {
    &[Setup::Doorbell]
};

/// An interrupt line is a counter of the same kind as the doorbells of the set-up.
type Lines = [Arc<dyn Counter>; QUEUES];

struct SoftVcpu {
    plan: Plan,
    memory: Memory,
    clock: Clock,
    lines: Lines,
}

pub fn machine(plan: &Plan, spin: Spin) -> anyhow::Result<Machine> {
    let (doorbells, lines): (Arc<dyn Doorbells>, Lines) = match plan.setup {
        #[cfg(target_os = "linux")]
        Setup::Eventfd => {
            use crate::doorbells::{InList, eventfds};
            let lines = eventfds()?.map(|fd| Arc::new(fd) as Arc<dyn Counter>);
            (Arc::new(InList::new()?), lines)
        }
        _ => {
            let line = |_| Arc::new(Arc::new(Event::new(0).with_spin(spin))) as Arc<dyn Counter>;
            (Arc::new(InSpace::new(spin)?), std::array::from_fn(line))
        }
    };
    let memory = Memory::new();
    let clock = Clock::Since(Instant::now());
    Ok(Machine {
        interrupts: lines
            .clone()
            .map(|line| Box::new(line) as Box<dyn Interrupt>),
        vcpu: Box::new(SoftVcpu {
            plan: *plan,
            memory: memory.clone(),
            clock,
            lines,
        }),
        memory,
        clock,
        doorbells,
    })
}

impl Vcpu for SoftVcpu {
    /// What [`guest`](crate::guest) does, step by step.
    fn run(&mut self, buses: &mut Buses) -> anyhow::Result<()> {
        out(buses, port::CLOCK, &[0])?;
        self.memory.set(cell::CLOCK, self.clock.now());
        out(buses, port::CLOCK, &[0])?;

        for value in BRING_UP {
            if value & status::DRIVER_OK != 0 {
                let mut read = [0];
                buses.read(Bus::Pio, port::STATUS.into(), &mut read)?;
                ensure!(
                    read[0] & status::FEATURES_OK != 0,
                    "the device refused its features"
                );
                out(buses, port::COALESCE, &self.plan.batch.to_ne_bytes())?;
            }
            out(buses, port::STATUS, &[value])?;
        }

        for _ in 0..self.plan.batches {
            for bus in BUSES {
                for queue in 0..QUEUES {
                    for kick in 0..u64::from(self.plan.batch) {
                        self.memory
                            .set(cell::stamps(queue) + 8 * kick, self.clock.now());
                        self.kick(buses, bus, queue)?;
                    }
                    let interrupts = self.lines[queue].wait();
                    self.count(cell::interrupts(queue), interrupts);
                }
            }
        }

        out(buses, port::COALESCE, &[0, 0])?;
        for bus in BUSES {
            for queue in 0..QUEUES {
                self.kick(buses, bus, queue)?;
            }
        }
        out(buses, port::STATUS, &[0])?;
        for bus in BUSES {
            for queue in 0..QUEUES {
                ring(buses, bus, queue)?;
            }
        }
        Ok(())
    }
}

impl SoftVcpu {
    fn kick(&self, buses: &mut Buses, bus: Bus, queue: usize) -> anyhow::Result<()> {
        ring(buses, bus, queue)?;
        self.count(cell::sent(queue), 1);
        Ok(())
    }

    /// This thread alone writes the guest's counts.
    fn count(&self, cell: u64, n: u64) {
        self.memory.set(cell, self.memory.get(cell) + n);
    }
}

fn ring(buses: &mut Buses, bus: Bus, queue: usize) -> anyhow::Result<()> {
    buses.write(
        bus,
        notify_address(bus, queue),
        &(queue as u16).to_ne_bytes(),
    )
}

fn out(buses: &mut Buses, port: u16, data: &[u8]) -> anyhow::Result<()> {
    buses.write(Bus::Pio, port.into(), data)
}
