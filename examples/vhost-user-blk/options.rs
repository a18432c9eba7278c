//! The command line.

use clap::{ArgGroup, Parser, ValueEnum};
use std::path::PathBuf;

/// A vhost-user-blk back-end whose device loop is doorbell's poller.
///
/// It serves one front-end at a time, and the next when that has gone or was dropped for breaking the rules. SIGTERM
/// and SIGINT end it; it prints its statistics then.
///
/// Exits with 0 when it was asked to end, 1 if something failed, 2 for bad options, 3 if the socket cannot be had, 4 if
/// the disk cannot be had.
#[derive(Parser, Debug)]
#[command(name = "vhost-user-blk", after_help = AFTER_HELP, group(ArgGroup::new("disk").required(true)))]
pub struct Options {
    /// Where to listen. A socket that nobody listens to any more is replaced
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// A disk in memory, in bytes or with the suffix K, M or G; a multiple of 512
    #[arg(long, value_name = "SIZE", value_parser = size, group = "disk")]
    pub ram: Option<u64>,

    /// A disk in a file, or a block device
    #[arg(long, value_name = "PATH", group = "disk")]
    pub file: Option<PathBuf>,

    /// The disk cannot be written to
    #[arg(long)]
    pub read_only: bool,

    /// What the disk answers when it is asked for its name, up to 20 bytes
    #[arg(long, value_name = "TEXT", default_value = "doorbell", value_parser = serial)]
    pub serial: String,

    /// Queues that are offered
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: u16,

    /// For how long at most the available rings are polled before the thread sleeps, in microseconds; 0: not at all
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub poll_max_us: u32,

    /// End when the first front-end has gone
    #[arg(long)]
    pub once: bool,

    /// The device loop
    #[arg(long = "loop", value_name = "LOOP", value_enum, default_value_t = LoopKind::Doorbell, hide = true)]
    pub device_loop: LoopKind,

    /// When the driver is asked whether it wants an interrupt
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Interrupts::ByDriver, hide = true)]
    pub interrupts: Interrupts,
}

const AFTER_HELP: &str = "\
Statistics:
  clients     front-ends that were served, and how many of them were dropped for breaking the rules
  requests    completed
  kicks       by the count of the kick eventfds, which are never read
  interrupts  writes to call eventfds
  looks       at an available ring, by its probe
  windows     times that polling began
  sleeps      times that polling ended with nothing found";

/// What waits for kicks: doorbell's poller, or what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoopKind {
    /// doorbell's poller
    Doorbell,
    /// epoll
    Epoll,
    /// epoll, and QEMU's rule for how long to look at the available rings before it
    Qemu,
    /// That of the crate `vhost-user-backend`, and the crate's server; one front-end
    VhostUserBackend,
}

/// When the driver is asked whether it wants an interrupt: doorbell's rule, or what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Interrupts {
    /// As [`PolledQueue::complete`](doorbell::virtio::PolledQueue::complete) finds best
    ByDriver,
    /// After all requests that are there
    AfterAll,
    /// After each request
    AfterEach,
}

fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let number: u64 = number.parse().map_err(|e| format!("{e}"))?;
    match number.checked_mul(unit) {
        Some(size) if size != 0 && size % 512 == 0 && size <= 1 << 40 => Ok(size),
        _ => Err("not a multiple of 512 from 512 to 1024G".into()),
    }
}

fn serial(text: &str) -> Result<String, String> {
    if text.len() <= 20 {
        Ok(text.into())
    } else {
        Err("longer than 20 bytes".into())
    }
}
