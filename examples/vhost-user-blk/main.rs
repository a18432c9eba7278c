//! A vhost-user-blk back-end: a disk for a virtual machine in another process, whose device loop is doorbell's poller.
//!
//! ```text
//!     front-end (QEMU, a driver in userspace)                 this process: one thread
//!     socket  ── memory, rings, kick and call eventfds ─────▶ device  keeps what was told, starts and stops queues
//!     kick    ── eventfd, only while no thread polls ───────▶ loop    Poller::wait: kicks as edges, never read
//!     rings   ◀─ shared memory ─────────────────────────────▶         and a probe for each available ring
//!     call    ◀─ eventfd, when the driver wants it ────────── vring   PolledQueue::serve
//! ```
//!
//! | what | where |
//! |---|---|
//! | the socket, and one front-end after the other | [`server`] |
//! | the messages of the protocol | [`device`] |
//! | a queue's set-up and service | [`vring`] |
//! | what a request asks for, and doing it | [`request`], [`disk`] |
//! | the front-end's memory | [`memory`], [`guard`] |
//! | what was in flight before a crash | [`inflight`] |
//! | kick and call eventfds | [`bell`] |
//! | when to interrupt: doorbell's rule, or the rule that it is compared with | [`interrupts`] |
//! | the loop: doorbell's poller, or a loop that it is compared with | [`loops`], [`rust_vmm`] |
//!
//! The protocol is that of the crates `vhost`, `virtio-queue` and `vm-memory`. Some parts of the protocol, as QEMU
//! documents it, are not in these crates, or not supported here: packed rings, dirty logs and so live migration, an
//! IOMMU, in-band notifications, and the message that sends a ring's descriptors in more than one piece. A front-end
//! that breaks the rules is dropped, and the next one served; a driver that does has its queue stopped, as QEMU does
//! it. Nothing is read or written outside of the memory that the front-end has sent.
//!
//! A back-end that was killed can be started again: a front-end that keeps an inflight buffer gives it to the new one,
//! which does again what was not completed, see [`inflight`].
//!
//! `cargo run --release --example vhost-user-blk -- --help` tells the options.

mod bell;
mod device;
mod disk;
mod guard;
mod inflight;
mod interrupts;
mod loops;
mod memory;
mod options;
mod request;
mod rust_vmm;
mod server;
mod signals;
mod stats;
mod vring;

use anyhow::Context;
use clap::Parser;
use device::Device;
use disk::Disk;
use options::{LoopKind, Options};
use request::Requests;
use server::{Server, Socket};
use std::process::ExitCode;

const FAILED: u8 = 1;
const NO_SOCKET: u8 = 3;
const NO_DISK: u8 = 4;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, e)) => {
            eprintln!("vhost-user-blk: {e:#}");
            ExitCode::from(code)
        }
    }
}

fn run(options: &Options) -> Result<(), (u8, anyhow::Error)> {
    let failed = |e: anyhow::Error| (FAILED, e);
    let disk = match (&options.file, options.ram) {
        (Some(path), _) => Disk::in_file(path, options.read_only),
        (None, size) => Disk::in_memory(size.unwrap_or_default(), options.read_only),
    };
    let disk = disk.map_err(|e| (NO_DISK, e))?;
    if options.device_loop == LoopKind::VhostUserBackend {
        let requests = Requests::new(disk, &options.serial);
        return rust_vmm::serve(options, requests).map_err(failed);
    }
    let signals = signals::requests_to_end()
        .and_then(|fd| guard::install().map(|()| fd))
        .context("no signals")
        .map_err(failed)?;
    let socket = Socket::bind(&options.socket).map_err(|e| (NO_SOCKET, e))?;

    let serve = || {
        let requests = Requests::new(disk, &options.serial);
        let device = Device::new(requests, options, loops::make(options)?);
        let mut server = Server::new(socket, signals, device, options.once)?;
        let result = server.run();
        server.print_stats();
        result
    };
    serve().map_err(failed)
}
