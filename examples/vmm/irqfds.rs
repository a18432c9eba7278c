//! Interrupts through doorbell's irqfd: of the set-ups `doorbell`, `listener`, `polled` and `level`.
//!
//! ```text
//!     edge    raise ──▶ Event ──▶ Router ──▶ sink: a pulse
//!     level   raise ──▶ interrupt status = 1 ──▶ Event ──▶ Router ──▶ sink: the line up
//!             the guest reads the status, which becomes 0, and ends the interrupt
//!             ──▶ Router: the line down ──▶ resample Event ──▶ is the status 1 again? Then the Event once more
//! ```
//!
//! The device may raise the line just when the guest ends the interrupt before. Then `raise` and the resampling both
//! signal. Mostly one of the signals is coalesced. If not, the guest takes an interrupt and finds the status 0: a
//! spurious interrupt, which does no harm.

use crate::doorbells::Interrupt;
use crate::map::{LINES, cell};
use crate::memory::Memory;
use crate::options::Setup;
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{Irqfd, Router, Routes};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// What became of a device's interrupts, as counted by its irqfds and its resample events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// The device's signals, counted by the device.
    pub made: u64,
    /// The same, counted by the irqfds.
    pub signals: u64,
    pub injections: u64,
    pub coalesced: u64,
    /// Ends of interrupts of which the device was told.
    pub acks: u64,
}

impl Told {
    pub fn add(&mut self, other: &Told) {
        self.made += other.made;
        self.signals += other.signals;
        self.injections += other.injections;
        self.coalesced += other.coalesced;
        self.acks += other.acks;
    }
}

/// A queue's interrupt line.
#[derive(Debug)]
struct Routed {
    source: Arc<Source>,
    irqfd: Irqfd,
    /// The observation of the resample event, if the line is level-triggered.
    resample: Option<Observation>,
}

/// The device's side.
#[derive(Debug)]
struct Source {
    event: Arc<Event>,
    /// The interrupt status register.
    status: AtomicBool,
    made: AtomicU64,
    acks: AtomicU64,
}

/// The interrupts of all queues, on lines of `router` that lead to the pins of the same number.
pub fn interrupts(
    router: &Router,
    setup: Setup,
    memory: &Memory,
) -> anyhow::Result<Vec<Box<dyn Interrupt>>> {
    router.set_routes(Routes::identity(16))?;
    let mut interrupts: Vec<Box<dyn Interrupt>> = Vec::new();
    for (queue, gsi) in LINES.map(u32::from).into_iter().enumerate() {
        let routed = Routed::new(router, gsi, setup.is_level())?;
        interrupts.push(match setup.is_polled() {
            true => Box::new(IfWanted {
                routed,
                memory: memory.clone(),
                queue,
            }),
            false => Box::new(routed),
        });
    }
    Ok(interrupts)
}

/// The interrupt line for a driver that looks whether the device is done, and is interrupted only while it does not
/// look.
#[derive(Debug)]
struct IfWanted {
    routed: Routed,
    memory: Memory,
    queue: usize,
}

impl Interrupt for IfWanted {
    fn raise(&self) -> anyhow::Result<()> {
        // The driver asks for the interrupt, then looks at what is published here. So the driver sees this, or the
        // device sees that it asks.
        self.memory.publish(cell::used(self.queue));
        match self.memory.get(cell::wanted(self.queue)) {
            0 => Ok(()),
            _ => self.routed.raise(),
        }
    }

    fn told(&self, taken: u64) -> Option<Told> {
        self.routed.told(taken)
    }
}

impl Routed {
    fn new(router: &Router, gsi: u32, level: bool) -> anyhow::Result<Self> {
        let source = Arc::new(Source {
            event: Arc::new(Event::new(0)),
            status: AtomicBool::new(false),
            made: AtomicU64::new(0),
            acks: AtomicU64::new(0),
        });
        if !level {
            return Ok(Routed {
                irqfd: router.assign(&source.event, gsi)?,
                source,
                resample: None,
            });
        }
        let resample = Arc::new(Event::new(0));
        let observer = {
            let (source, resample) = (Arc::clone(&source), Arc::clone(&resample));
            move |_: Change| {
                resample.try_read();
                source.acked();
            }
        };
        Ok(Routed {
            irqfd: router.assign_with_resample(&source.event, gsi, &resample)?,
            source,
            resample: Some(Observation::new(
                resample,
                Interest::Signals,
                Arc::new(observer),
            )),
        })
    }
}

impl Source {
    fn signal(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
        self.event.signal();
    }

    /// The guest has ended an interrupt, and the line is down.
    fn acked(&self) {
        self.acks.fetch_add(1, Ordering::Relaxed);
        // Acquire pairs with `raise`, whose signal may have been coalesced with the signal of the interrupt that ends
        // here.
        if self.status.load(Ordering::Acquire) {
            self.signal();
        }
    }
}

impl Interrupt for Routed {
    fn raise(&self) -> anyhow::Result<()> {
        // Release pairs with `acked`.
        self.source.status.store(true, Ordering::Release);
        self.source.signal();
        Ok(())
    }

    fn take_status(&self) -> bool {
        self.source.status.swap(false, Ordering::Relaxed)
    }

    fn told(&self, taken: u64) -> Option<Told> {
        // The guest has ended the interrupts that it took, but KVM reports this through another thread.
        while self.resample.is_some() && self.source.acks.load(Ordering::Relaxed) < taken {
            thread::sleep(Duration::from_micros(100));
        }
        let counters = self.irqfd.counters();
        Some(Told {
            made: self.source.made.load(Ordering::Relaxed),
            signals: counters.signals,
            injections: counters.injections,
            coalesced: counters.coalesced,
            acks: self.source.acks.load(Ordering::Relaxed),
        })
    }
}
