//! The software vCPU: a thread that makes the guest's writes itself, for machines without KVM.
//!
//! It goes through the same buses to the same device. A write to a doorbell therefore costs as much as in a VMM after a
//! vCPU exit, without the exit itself.

use crate::bus::Buses;
use crate::clock::Clock;
use crate::doorbells::{Counter, Doorbells, InSpace, Polled};
use crate::irqfds;
use crate::machine::{Machine, Vcpu};
use crate::map::{BRING_UP, BUSES, LINES, QUEUES, cell, notify_address, port, status};
use crate::memory::Memory;
use crate::options::Setup;
use crate::plan::Plan;
use anyhow::ensure;
use doorbell::ioeventfd::Bus;
use doorbell::irqfd::{InterruptSink, MsiMessage, Router};
use doorbell::{Event, Spin};
use std::hint;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// How long a driver that looks goes on looking before it waits for the interrupt.
const PATIENCE: Duration = Duration::from_micros(50);

/// The set-ups that need no KVM.
pub const SETUPS: &[Setup] = if cfg!(target_os = "linux") {
    &[Setup::Doorbell, Setup::Level, Setup::Eventfd, Setup::Polled]
} else {
    &[Setup::Doorbell, Setup::Level, Setup::Polled]
};

/// The interrupt lines of a vCPU: counters of the same kind as the doorbells of the set-up.
type Lines = [Arc<dyn Counter>; QUEUES];

/// The interrupt controller behind doorbell's irqfd.
struct Pic(Lines);

impl InterruptSink for Pic {
    fn set_level(&self, _: u32, pin: u32, level: bool) {
        let queue = LINES.iter().position(|&line| u32::from(line) == pin);
        // A line that goes down has been acked: the vCPU has taken its interrupt.
        if let (Some(queue), true) = (queue, level) {
            self.0[queue].signal();
        }
    }

    fn signal_msi(&self, _: u32, _: MsiMessage) {
        unreachable!("all routes are to pins")
    }
}

struct SoftVcpu {
    plan: Plan,
    memory: Memory,
    clock: Clock,
    lines: Lines,
    /// The router to tell of ends of interrupts, if the set-up has one.
    router: Option<Router>,
}

pub fn machine(plan: &Plan, spin: Spin) -> anyhow::Result<Machine> {
    let memory = Memory::new();
    let mut router = None;
    let (doorbells, lines, interrupts): (Arc<dyn Doorbells>, Lines, Vec<_>) = match plan.setup {
        #[cfg(target_os = "linux")]
        Setup::Eventfd => {
            use crate::doorbells::{InList, Interrupt, eventfds};
            let lines = eventfds()?.map(|fd| Arc::new(fd) as Arc<dyn Counter>);
            let interrupts = lines
                .clone()
                .map(|line| Box::new(line) as Box<dyn Interrupt>);
            (Arc::new(InList::new()?), lines, interrupts.into())
        }
        _ => {
            let line = |_| Arc::new(Arc::new(Event::new(0).with_spin(spin))) as Arc<dyn Counter>;
            let lines: Lines = std::array::from_fn(line);
            let routed = router.insert(Router::new(Arc::new(Pic(lines.clone()))));
            let interrupts = irqfds::interrupts(routed, plan.setup, &memory)?;
            let space = InSpace::new(spin)?;
            let doorbells: Arc<dyn Doorbells> = match plan.setup {
                Setup::Polled => Arc::new(Polled::new(space, &memory, spin)?),
                _ => Arc::new(space),
            };
            (doorbells, lines, interrupts)
        }
    };
    let clock = Clock::Since(Instant::now());
    Ok(Machine {
        interrupts: interrupts.try_into().expect("one for each queue"),
        vcpu: Box::new(SoftVcpu {
            plan: *plan,
            memory: memory.clone(),
            clock,
            lines,
            router,
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
                    let stamps = cell::stamps(queue);
                    for kick in 0..u64::from(self.plan.batch) {
                        self.memory.set(stamps + 8 * kick, self.clock.now());
                        self.kick(buses, bus, queue)?;
                    }
                    match self.plan.setup.is_polled() {
                        true => self.wait_for_completion(queue),
                        false => self.wait_for_interrupt(buses, queue)?,
                    }
                    let took = self.clock.now() - self.memory.get(stamps);
                    self.memory.set(cell::round_trip(queue), took);
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
        if self.plan.setup.is_polled() {
            for queue in 0..QUEUES {
                self.count(cell::interrupts(queue), self.lines[queue].take());
            }
        }
        Ok(())
    }
}

impl SoftVcpu {
    fn kick(&self, buses: &mut Buses, bus: Bus, queue: usize) -> anyhow::Result<()> {
        if !self.plan.setup.is_polled() {
            ring(buses, bus, queue)?;
            self.count(cell::sent(queue), 1);
            return Ok(());
        }
        self.memory.publish(cell::sent(queue));
        if self.memory.get(cell::quiet(queue)) == 0 {
            ring(buses, bus, queue)?;
            self.count(cell::rung(queue), 1);
        }
        Ok(())
    }

    /// Waits until the queue has interrupted with a reason.
    fn wait_for_interrupt(&self, buses: &Buses, queue: usize) -> anyhow::Result<()> {
        loop {
            let interrupts = self.lines[queue].wait();
            if !self.plan.setup.is_level() {
                self.count(cell::interrupts(queue), interrupts);
                return Ok(());
            }
            let mut reason = [0];
            let status = port::INTERRUPT_STATUS + queue as u16;
            buses.read(Bus::Pio, status.into(), &mut reason)?;
            match reason {
                [0] => self.count(cell::spurious(queue), interrupts),
                _ => self.count(cell::interrupts(queue), interrupts),
            }
            if let Some(router) = &self.router {
                router.ack(LINES[queue].into());
            }
            if reason != [0] {
                return Ok(());
            }
        }
    }

    /// Looks for a while whether the device is done with one more batch; then asks for an interrupt.
    fn wait_for_completion(&self, queue: usize) {
        let awaited = self.memory.get(cell::completed(queue)) + 1;
        let is_done = || self.memory.get_published(cell::used(queue)) >= awaited;
        let begun = Instant::now();
        while !is_done() && begun.elapsed() < PATIENCE {
            hint::spin_loop();
        }
        while !is_done() {
            self.memory.set(cell::wanted(queue), 1);
            // Pairs with the fence between the device's count and its look at what is wanted.
            fence(Ordering::SeqCst);
            if !is_done() {
                let interrupts = self.lines[queue].wait();
                self.count(cell::interrupts(queue), interrupts);
            }
        }
        self.memory.set(cell::wanted(queue), 0);
        self.memory.set(cell::completed(queue), awaited);
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
