//! The program, where the crates that it is made of compile.

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

pub fn main() -> ExitCode {
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
