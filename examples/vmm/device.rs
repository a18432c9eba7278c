//! The device: its registers, which the vCPU thread reaches through the buses, and its threads: one per queue, or one.
//!
//! ```text
//!     status        the device                                   each device thread
//!     … DRIVER_OK   starts the threads, assigns the doorbells    waits for kicks, times them, and interrupts
//!     0 (reset)     deassigns the doorbells, stops the threads,  ends
//!                   reads each counter once more: a kick that
//!                   came before the reset is not lost
//! ```
//!
//! Nothing here knows which set-up it runs in: that is behind [`Doorbells`] and [`Interrupt`].

use crate::clock::Clock;
use crate::doorbells::{Doorbells, Interrupt};
use crate::irqfds::Told;
use crate::map::{QUEUES, cell, doorbells, notify_address, port, status};
use crate::memory::Memory;
use crate::pins::Pins;
use crate::syscalls::Syscalls;
use anyhow::{Context, ensure};
use doorbell::ioeventfd::Bus;
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

/// What the device and its threads share.
pub struct Shared {
    pub doorbells: Arc<dyn Doorbells>,
    pub interrupts: [Box<dyn Interrupt>; QUEUES],
    pub memory: Memory,
    pub clock: Clock,
    /// Kicks that each device thread has seen, for the thread that watches.
    pub seen: [AtomicU64; QUEUES],
    /// Kicks per interrupt; 0: no interrupts.
    coalesce: AtomicU16,
    stopping: AtomicBool,
    pins: Option<Pins>,
}

/// What became of the kicks between DRIVER_OK and reset.
pub struct Served {
    /// The sum of what was read from the counters.
    pub seen: u64,
    /// From the kick to the device thread, in nanoseconds.
    pub latency: Histogram<u64>,
    /// The times of the batches by the guest's clock, in nanoseconds.
    pub round_trip: Histogram<u64>,
    /// How often the doorbells have rung, if that is not `seen`.
    pub rung: Option<u64>,
    /// Whether the guest's clock and the device's have agreed in all comparisons. If not, `latency` means nothing.
    pub clock_holds: bool,
    /// Writes to a doorbell's address after the reset, which have no effect.
    pub ignored: u64,
    /// What the irqfds report, if the interrupts go through doorbell's.
    pub told: Option<Told>,
    /// System calls of the vCPU thread and the device threads, if they can be counted.
    pub syscalls: Option<u64>,
}

impl Served {
    pub fn nothing() -> Self {
        // The range is a minute, with three digits. The histogram allocates its memory now, and not while the clock
        // runs.
        let times = || Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds");
        Served {
            seen: 0,
            latency: times(),
            round_trip: times(),
            rung: None,
            clock_holds: true,
            ignored: 0,
            told: None,
            syscalls: Some(0),
        }
    }

    pub fn add(&mut self, other: &Served) {
        self.seen += other.seen;
        self.latency.add(&other.latency).expect("equal bounds");
        self.round_trip
            .add(&other.round_trip)
            .expect("equal bounds");
        if let Some(rung) = other.rung {
            *self.rung.get_or_insert_default() += rung;
        }
        self.ignored += other.ignored;
        self.clock_holds &= other.clock_holds;
        if let Some(told) = &other.told {
            self.told.get_or_insert_default().add(told);
        }
        self.syscalls = self.syscalls.zip(other.syscalls).map(|(a, b)| a + b);
    }
}

pub struct Device {
    status: u8,
    shared: Arc<Shared>,
    clock_holds: bool,
    clocks_compared: Option<u64>,
    running: Option<Running>,
    served: Option<Served>,
}

/// The state from DRIVER_OK to reset.
struct Running {
    threads: Vec<JoinHandle<Served>>,
    /// The counter of the vCPU thread's system calls.
    syscalls: Option<Syscalls>,
}

impl Shared {
    pub fn new(
        doorbells: Arc<dyn Doorbells>,
        interrupts: [Box<dyn Interrupt>; QUEUES],
        memory: Memory,
        clock: Clock,
        pins: Option<Pins>,
    ) -> Self {
        Shared {
            doorbells,
            interrupts,
            memory,
            clock,
            seen: Default::default(),
            coalesce: AtomicU16::new(0),
            stopping: AtomicBool::new(false),
            pins,
        }
    }
}

impl Device {
    pub fn new(shared: Arc<Shared>) -> Self {
        Device {
            status: 0,
            shared,
            clock_holds: true,
            clocks_compared: None,
            running: None,
            served: None,
        }
    }

    /// The calling thread is the vCPU's.
    pub fn keep_vcpu(&self) {
        if let Some(pins) = &self.shared.pins {
            pins.keep_vcpu();
        }
    }

    /// The guest wrote, and rang no doorbell. Returns whether the write was to a register of this device.
    pub fn write(&mut self, bus: Bus, address: u64, data: &[u8]) -> anyhow::Result<bool> {
        match (bus, u16::try_from(address), data) {
            (Bus::Pio, Ok(port::STATUS), &[status]) => self.set_status(status)?,
            (Bus::Pio, Ok(port::COALESCE), &[low, high]) => {
                let kicks = u16::from_ne_bytes([low, high]);
                // Relaxed: a kick follows, which carries it to the device threads.
                self.shared.coalesce.store(kicks, Ordering::Relaxed);
            }
            (Bus::Pio, Ok(port::CLOCK), _) => self.compare_clocks(),
            _ => return Ok(self.ignore_notify(bus, address)),
        }
        Ok(true)
    }

    /// The guest reads a register as a whole.
    pub fn read(&self, bus: Bus, address: u64) -> Option<u8> {
        match (bus, u16::try_from(address).ok()?) {
            (Bus::Pio, port::STATUS) => Some(self.status),
            (Bus::Pio, port) => {
                let queue = port.checked_sub(port::INTERRUPT_STATUS)?;
                let interrupt = self.shared.interrupts.get(usize::from(queue))?;
                Some(interrupt.take_status().into())
            }
            _ => None,
        }
    }

    /// What the device did until the guest reset it; `None` if the guest did not.
    pub fn served(self) -> Option<Served> {
        self.served
    }

    /// The guest's clock must have shown a time between the last comparison and this one.
    fn compare_clocks(&mut self) {
        let guest = self.shared.memory.get(cell::CLOCK);
        let now = self.shared.clock.now();
        if let Some(last) = self.clocks_compared.replace(now) {
            self.clock_holds &= (last..=now).contains(&guest);
        }
    }

    /// After a reset a notify address rings no doorbell: the write comes here and has no effect.
    fn ignore_notify(&mut self, bus: Bus, address: u64) -> bool {
        let notify = (0..QUEUES).any(|queue| notify_address(bus, queue) == address);
        match &mut self.served {
            Some(served) if notify => served.ignored += 1,
            _ => return false,
        }
        true
    }

    fn set_status(&mut self, new: u8) -> anyhow::Result<()> {
        if new == 0 {
            self.reset()?;
        } else if new & !self.status & status::DRIVER_OK != 0 {
            ensure!(
                self.status & status::FEATURES_OK != 0,
                "DRIVER_OK before FEATURES_OK"
            );
            self.activate()?;
        }
        self.status = new;
        Ok(())
    }

    fn activate(&mut self) -> anyhow::Result<()> {
        self.shared
            .doorbells
            .assign(&doorbells())
            .context("assigning the doorbells")?;
        let mut threads = Vec::new();
        for number in 0..self.shared.doorbells.threads() {
            let shared = Arc::clone(&self.shared);
            let name = format!("device {number}");
            threads.push(
                thread::Builder::new()
                    .name(name)
                    .spawn(move || shared.serve(number))?,
            );
        }
        let syscalls = Syscalls::start().ok();
        self.running = Some(Running { threads, syscalls });
        Ok(())
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        let mut served = Served::nothing();
        served.syscalls = running.syscalls.map(Syscalls::stop).transpose()?;
        served.clock_holds = self.clock_holds;

        self.shared
            .doorbells
            .deassign(&doorbells())
            .context("deassigning the doorbells")?;
        // Relaxed: the signal below carries it.
        self.shared.stopping.store(true, Ordering::Relaxed);
        let doorbells = &self.shared.doorbells;
        let stops = doorbells.stop();
        for thread in running.threads {
            served.add(&thread.join().expect("a device thread panicked"));
        }
        for queue in 0..QUEUES {
            // This takes what is left after the device threads have ended.
            served.seen += doorbells.rest(queue);
            if let Some(rung) = doorbells.rung(queue) {
                *served.rung.get_or_insert_default() += rung;
            }
            if let Some(told) = self.shared.told(queue) {
                served.told.get_or_insert_default().add(&told);
            }
            self.shared.time_round_trip(queue, &mut served);
        }
        served.seen -= stops;
        self.served = Some(served);
        Ok(())
    }
}

impl Shared {
    /// What a queue's irqfd reports of the interrupts until now. The device thread has ended.
    fn told(&self, queue: usize) -> Option<Told> {
        let spurious = self.memory.get(cell::spurious(queue));
        self.interrupts[queue].told(self.memory.get(cell::interrupts(queue)) + spurious)
    }

    /// A device thread: sees the kicks of its queues until the device is reset.
    fn serve(&self, thread: usize) -> Served {
        if let Some(pins) = &self.pins {
            pins.keep_device(thread);
        }
        let mut wait = self.doorbells.waiter(thread);
        let mut served = Served::nothing();
        let mut in_batch = [0; QUEUES];
        let syscalls = Syscalls::start().ok();
        loop {
            let kicks = wait();
            let now = self.clock.now();
            served.seen += kicks.iter().sum::<u64>();
            // Relaxed, as is `coalesce` below: the wait that took the signal, or the kick, made both visible.
            if self.stopping.load(Ordering::Relaxed) {
                break;
            }
            for queue in (0..QUEUES).filter(|&queue| kicks[queue] != 0) {
                self.seen[queue].fetch_add(kicks[queue], Ordering::Relaxed);
                self.serve_kicks(queue, kicks[queue], now, &mut in_batch[queue], &mut served);
            }
        }
        served.syscalls = syscalls.and_then(|counter| counter.stop().ok());
        served
    }

    fn serve_kicks(
        &self,
        queue: usize,
        kicks: u64,
        now: u64,
        in_batch: &mut u64,
        served: &mut Served,
    ) {
        let batch = self.coalesce.load(Ordering::Relaxed).into();
        if batch == 0 {
            return;
        }
        if *in_batch == 0 {
            self.time_round_trip(queue, served);
        }
        // The guest waits for the interrupt, so these are kicks of one batch, in the order of their time stamps.
        for kick in *in_batch..*in_batch + kicks {
            served.time(
                &self.clock,
                self.memory.get(cell::stamps(queue) + 8 * (kick % batch)),
                now,
            );
        }
        *in_batch += kicks;
        if *in_batch >= batch {
            *in_batch = 0;
            if let Err(e) = self.interrupts[queue].raise() {
                // The guest would wait forever.
                crate::fail(&e.context("interrupting the guest"));
            }
        }
    }

    /// Records how long the guest has waited for the last batch of a queue, if there was one.
    fn time_round_trip(&self, queue: usize, served: &mut Served) {
        match self.memory.get(cell::round_trip(queue)) {
            0 => {}
            ticks => {
                let took = self.clock.nanoseconds(ticks);
                served.round_trip.saturating_record(took);
            }
        }
    }
}

impl Served {
    fn time(&mut self, clock: &Clock, kicked: u64, seen: u64) {
        match seen.checked_sub(kicked) {
            Some(ticks) => self.latency.saturating_record(clock.nanoseconds(ticks)),
            None => self.clock_holds = false,
        }
    }
}
