//! The command line.

use crate::map::MAX_BATCH;
use clap::{Parser, ValueEnum};
use doorbell::Spin;
use std::fmt;
use std::path::PathBuf;

/// A small VMM that runs the same guest and the same device over several kinds of doorbell, and compares them.
///
/// The guest brings up a device with two queues in the virtio manner, kicks each queue by port writes and by MMIO
/// writes, waits for an interrupt after each batch of kicks, and resets the device with kicks still on their way.
///
/// Exits with 0 if every kick was seen and every interrupt taken, 1 if not or if something failed, 2 for bad options.
#[derive(Parser, Debug)]
#[command(name = "vmm", after_help = AFTER_HELP)]
pub struct Options {
    /// Kicks per round by each doorbell, of which there are four (two queues, by port and by MMIO); rounded up to whole
    /// batches
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub kicks: u32,

    /// Kicks per interrupt, one table row for each number [1 to 256]. With 1, every kick finds its device thread
    /// waiting; with more, the vCPU and the device thread work at the same time
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_value = "1,64",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_BATCH)))]
    pub batch: Vec<u16>,

    /// The set-ups to compare [default: all that can run here]
    #[arg(long, value_name = "NAME,NAME,..", value_delimiter = ',', value_enum)]
    pub setups: Option<Vec<Setup>>,

    /// Rounds. In each, every row of the table gets its turn, so that a drift of the machine's speed meets all alike
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// What a device thread does before it sleeps in a doorbell event, or in a poller
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = SpinPolicy::Adaptive)]
    pub spin: SpinPolicy,

    /// Drive the devices from a software vCPU, a thread that makes the guest's writes, even if there is KVM
    #[arg(long)]
    pub software: bool,

    /// The KVM device
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    pub kvm: PathBuf,

    /// Give up when no kick has been seen for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub watchdog: u64,
}

const AFTER_HELP: &str = "\
Columns:
  kicks sent            counted by the guest
  rung                  those for which the guest wrote to a doorbell: all, unless the device has asked it not to
  exited                counted by the vCPU thread: the others that rang KVM took
  events seen           the sum of what the device threads read from their doorbells
  irqfd                 of the set-ups whose interrupts go through doorbell's irqfd, by its counters: signals of the
                        device = injected + coalesced with one that was due already
  ends                  of level-triggered interrupts, of which the irqfd told the device by its resample event
  completed             batches that the driver knows to be done with, counted by the guest
  interrupts            counted by the guest's interrupt handlers: one for each batch, or those that were asked for
  spurious              the same, when a level-triggered device had no reason any more: ends = interrupts + spurious
  kick to device thread from the guest's RDTSC before the kick to RDTSC in the device thread after its read; the guest
                        runs with a TSC offset of 0, which is checked by comparison
  round trip            of a batch, by the guest's clock: from before its first kick until its interrupt has been taken,
                        or the driver has seen that the device is done with it
  syscalls per kick     of the vCPU thread and the device threads from DRIVER_OK to reset, KVM_RUN included, by the
                        tracepoint raw_syscalls:sys_enter; needs tracefs. Not of the thread that hears of ends";

/// How a kick reaches its device thread, and an interrupt the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Setup {
    /// A kick exits, and goes by the vCPU thread and the table of doorbell's AddressSpace to an Event; an interrupt
    /// goes by an Event and doorbell's irqfd, whose sink calls KVM_IRQ_LINE
    Doorbell,
    /// The same, with level-triggered interrupts: the guest reads and clears a status and ends the interrupt, and the
    /// irqfd has the device look whether there is more (resample)
    Level,
    /// A kick exits, and goes by the vCPU thread and a list to write(2) of an eventfd; an interrupt goes by
    /// KVM_IRQ_LINE by hand
    Eventfd,
    /// The address space of the first, with a KvmListener: a kick goes by KVM_IOEVENTFD, past the vCPU thread; an
    /// interrupt as in the first
    Listener,
    /// As the listener, but both sides look into guest memory before they sleep, and notify each other only if asked to:
    /// one device thread serves all queues with a Poller and probes, and the driver looks for a while before it halts
    Polled,
    /// KVM_IOEVENTFD and KVM_IRQFD by hand, with eventfds
    Kernel,
}

impl Setup {
    /// Whether its interrupts are level-triggered.
    pub fn is_level(self) -> bool {
        self == Setup::Level
    }

    /// Whether driver and device look into guest memory, and ring and interrupt only if asked to.
    pub fn is_polled(self) -> bool {
        self == Setup::Polled
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Setup::Doorbell => "doorbell",
            Setup::Level => "level",
            Setup::Eventfd => "eventfd",
            Setup::Listener => "listener",
            Setup::Polled => "polled",
            Setup::Kernel => "kernel",
        })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SpinPolicy {
    /// Sleep at once
    None,
    /// Spin up to 20 µs, as long as that pays off
    Adaptive,
    /// Never sleep: wants a CPU for each queue besides the vCPU's
    Always,
}

impl From<SpinPolicy> for Spin {
    fn from(policy: SpinPolicy) -> Self {
        match policy {
            SpinPolicy::None => Spin::Never,
            SpinPolicy::Adaptive => Spin::DEFAULT,
            SpinPolicy::Always => Spin::Always,
        }
    }
}
