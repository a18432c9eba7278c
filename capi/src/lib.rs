//! libdoorbell, the C library over the crate doorbell. The rules for callers (errors, ownership, threads, callbacks)
//! are in `cbindgen.toml`, which puts them at the top of the header; the comments of the functions go there too.
//!
//! Each handle is the Rust object itself, behind a pointer that comes from an `Arc` or a `Box`. So a call is that of
//! the Rust API and what it takes to turn its result into an `int`.

#![allow(non_camel_case_types)]
// "The rules for pointers at the top of the header are kept", for each function.
#![allow(clippy::missing_safety_doc)]

mod failure;

// In the order in which the header has them, which blank lines keep.

mod event;

mod batch;

mod shared;

mod poller;

mod table;

mod router;

pub use batch::*;
pub use event::*;
pub use poller::*;
pub use router::*;
pub use shared::*;
pub use table::*;

use failure::{Failed, attempt};
use std::ffi::c_int;

/// Makes the library use membarrier(2), by which lookups in a table, and signals to a level of an interrupt, need no
/// memory fence. To be called once, at the start of main, before there are other threads. Without it, or if it fails
/// (with the errno of the system call), the library uses fences.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_use_membarrier() -> c_int {
    attempt(|| doorbell_rs::use_membarrier().map_err(Failed::from_error))
}

/// Does now what the first blocking call does otherwise: reads /sys/devices/system/cpu/online. To be called before
/// threads get seccomp filters that do not allow that.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_prepare_for_seccomp() {
    doorbell_rs::prepare_for_seccomp();
}

/// Waits until everything that has been removed from pollers, tables and routers so far has been freed.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_reclaim() {
    doorbell_rs::reclaim();
}
