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
//! | the socket, and one front-end after the other | `server` |
//! | the messages of the protocol | `device` |
//! | a queue's set-up and service | `vring` |
//! | what a request asks for, and doing it | `request`, `disk` |
//! | the front-end's memory | `memory`, `guard` |
//! | what was in flight before a crash | `inflight` |
//! | kick and call eventfds | `bell` |
//! | when to interrupt: doorbell's rule, or the rule that it is compared with | `interrupts` |
//! | the loop: doorbell's poller, or a loop that it is compared with | `loops`, `rust_vmm` |
//!
//! The protocol is that of the crates `vhost`, `virtio-queue` and `vm-memory`. Some parts of the protocol, as QEMU
//! documents it, are not in these crates, or not supported here: packed rings, dirty logs and so live migration, an
//! IOMMU, in-band notifications, and the message that sends a ring's descriptors in more than one piece. A front-end
//! that breaks the rules is dropped, and the next one served; a driver that does has its queue stopped, as QEMU does
//! it. Nothing is read or written outside of the memory that the front-end has sent.
//!
//! A back-end that was killed can be started again: a front-end that keeps an inflight buffer gives it to the new one,
//! which does again what was not completed, see `inflight`.
//!
//! `cargo run --release --example vhost-user-blk -- --help` tells the options.

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "program.rs"]
mod program;

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
fn main() -> std::process::ExitCode {
    program::main()
}

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
fn main() {
    println!("skipped: the crates of vhost-user are for 64-bit Linux with the GNU C library");
}
