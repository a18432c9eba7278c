//! A small VMM: a guest rings doorbells, a device thread wakes, and the guest gets its interrupt.
//!
//! ```text
//!                 set-up doorbell                                     set-ups listener, kernel
//!     guest       OUT / MOV to a doorbell ──▶ exit                    OUT / MOV to a doorbell ──▶ KVM_IOEVENTFD
//!     vCPU thread KVM_RUN returns ─▶ AddressSpace::write ─▶ Event                                      │
//!     device      Event::read returns ─▶ Event ─▶ irqfd::Router       poll(2) or read(2) returns  ◀────┘
//!                                        ─▶ KVM_IRQ_LINE                └─▶ (Event ─▶ Router ─▶) KVM_IRQFD
//!     guest       takes the interrupt                                 takes the interrupt
//! ```
//!
//! `doorbell` and `listener` are one address space, without KVM's listener and with it; `kernel` does what the listener
//! does by hand. The set-up `eventfd` is the first one with a list and an eventfd in place of the table and the event:
//! what a VMM does without doorbell when KVM cannot take a doorbell. `level` is `doorbell` with level-triggered
//! interrupts, which the guest ends and the device resamples. `polled` is `listener` with a driver and a device that
//! look into guest memory before they sleep, and kick and interrupt each other only while the other does not look:
//!
//! ```text
//!     guest       kick: a count in guest memory, and a doorbell if the device sleeps      sees the other count
//!     device      Poller::wait returns: a probe has seen the count, or the doorbell rang  ─▶ counts, and interrupts if
//!                                                                                            the guest halts
//! ```
//!
//! All run the same guest and the same device:
//!
//! | what | where |
//! |---|---|
//! | addresses and registers | [`map`] |
//! | the guest | [`guest`], and [`soft`] without KVM |
//! | the VM and the vCPU loop | [`kvm`] |
//! | from a guest's write to a doorbell or a register | [`bus`] |
//! | the device and its threads | [`device`] |
//! | kicks and interrupts, by set-up | [`doorbells`] and what is in it, [`irqfds`], [`kvm`] |
//!
//! `cargo run --release --example vmm -- --help` tells the options.

mod bus;
mod clock;
mod device;
mod doorbells;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod guest;
mod irqfds;
#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    path = "no_kvm.rs"
)]
mod kvm;
mod machine;
mod map;
mod memory;
mod options;
mod pins;
mod plan;
mod progress;
mod report;
mod soft;
mod syscalls;

use anyhow::ensure;
use clap::Parser;
use doorbell::Spin;
use machine::Machine;
use options::{Options, Setup};
use pins::Pins;
use plan::Plan;
use progress::Progress;
use report::Row;
use std::time::Duration;

fn main() {
    if let Err(e) = run(&Options::parse()) {
        fail(&e);
    }
}

/// Ends the program, from any thread.
fn fail(error: &anyhow::Error) -> ! {
    eprintln!("vmm: {error:#}");
    std::process::exit(1)
}

fn run(options: &Options) -> anyhow::Result<()> {
    let cpu = Cpu::choose(options);
    let setups = cpu.choose_setups(options)?;
    let pins = options.pin.then(Pins::new).transpose()?;

    let mut rows = Vec::new();
    for &batch in &options.batch {
        let batches = options.kicks.div_ceil(batch.into());
        rows.extend(setups.iter().map(|&setup| {
            Row::new(Plan {
                setup,
                batch,
                batches,
            })
        }));
    }
    let runs = rows.len() * options.rounds as usize;
    let mut progress = Progress::new(runs, Duration::from_secs(options.watchdog));
    for _ in 0..options.rounds {
        for row in &mut rows {
            let outcome = cpu.machine(&row.plan, options.spin.into())?.run(
                &row.plan,
                pins.as_ref(),
                &mut progress,
            )?;
            outcome.check(&row.plan)?;
            row.outcome.add(&outcome);
        }
    }
    progress.clear();

    println!("{}", report::header());
    for row in &rows {
        println!("{row}");
    }
    println!();
    println!("vCPU: {}", cpu.describe());
    for line in report::notes(&setups, &rows) {
        println!("{line}");
    }
    Ok(())
}

/// What runs the guest.
enum Cpu {
    Kvm(kvm::Kvm),
    Software,
}

impl Cpu {
    fn choose(options: &Options) -> Self {
        if options.software {
            return Cpu::Software;
        }
        match kvm::open(&options.kvm) {
            Ok(kvm) => Cpu::Kvm(kvm),
            Err(e) => {
                eprintln!("vmm: no KVM ({e:#}), so a software vCPU drives the devices");
                Cpu::Software
            }
        }
    }

    fn choose_setups(&self, options: &Options) -> anyhow::Result<Vec<Setup>> {
        let here = match self {
            Cpu::Kvm(_) => kvm::SETUPS,
            Cpu::Software => soft::SETUPS,
        };
        let Some(mut chosen) = options.setups.clone() else {
            return Ok(here.to_vec());
        };
        chosen.retain(|setup| {
            let runs = here.contains(setup);
            if !runs {
                eprintln!("vmm: set-up {setup} left out, since it needs KVM or Linux");
            }
            runs
        });
        ensure!(!chosen.is_empty(), "no set-up left to run");
        Ok(chosen)
    }

    fn describe(&self) -> &'static str {
        match self {
            Cpu::Kvm(_) => "KVM's, in real mode",
            Cpu::Software => {
                "a thread; its interrupts end in counters like its doorbells, Event or eventfd"
            }
        }
    }

    fn machine(&self, plan: &Plan, spin: Spin) -> anyhow::Result<Machine> {
        match self {
            Cpu::Kvm(kvm) => kvm::machine(kvm, plan, spin),
            Cpu::Software => soft::machine(plan, spin),
        }
    }
}
