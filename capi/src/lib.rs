//! libdoorbell, the C library over the crate doorbell. The rules for callers (errors, ownership, threads, callbacks)
//! are in `cbindgen.toml`, which puts them at the top of the header; the comments of the functions go there too.
//!
//! Each handle is the Rust object itself, behind a pointer that comes from an `Arc` or a `Box`. So a call is that of
//! the Rust API and what it takes to turn its result into an `int`.

#![allow(non_camel_case_types)]
// "The rules for pointers at the top of the header are kept", for each function.
#![allow(clippy::missing_safety_doc)]

mod arguments;
mod failure;
mod handles;

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

// What the header says under THREADS.
const _: () = {
    const fn used_by_many_threads<T: Send + Sync>() {}
    const fn used_by_one_at_a_time<T: Send>() {}
    used_by_many_threads::<doorbell_event>();
    used_by_many_threads::<doorbell_poller>();
    used_by_many_threads::<doorbell_table>();
    used_by_many_threads::<doorbell_router>();
    used_by_many_threads::<doorbell_value_queue>();
    used_by_many_threads::<doorbell_latest>();
    used_by_many_threads::<doorbell_level_source>();
    used_by_many_threads::<doorbell_shared_event>();
    used_by_one_at_a_time::<doorbell_batch>();
    used_by_one_at_a_time::<doorbell_events>();
    used_by_one_at_a_time::<doorbell_reader>();
    used_by_one_at_a_time::<doorbell_poller_fd>();
};

/// Makes lookups in tables cheaper: each then does without a fence, and each change of a table calls membarrier(2)
/// instead, which interrupts all threads of the process. To be called once, at the start of main: before other threads,
/// tables and seccomp filters, which must go on allowing membarrier(2). If it fails, everything works as before.
///
/// ENOSYS, EPERM: the kernel or a filter refuses. EBUSY: a table has been used already.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_use_membarrier() -> c_int {
    attempt(|| Ok(doorbell_rs::use_membarrier()?))
}

/// Does now what the first blocking call does otherwise: reads /sys/devices/system/cpu/online. To be called before
/// threads get seccomp filters that do not allow that.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_prepare_for_seccomp() {
    doorbell_rs::prepare_for_seccomp();
}

/// Frees what threads have removed from pollers, tables and routers inside callbacks, where it could not be freed.
/// Waits for callbacks. EDEADLK: it was called inside a callback, and did nothing.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_reclaim() -> c_int {
    attempt(|| match doorbell_rs::reclaim() {
        true => Ok(()),
        false => Err(Failed(libc::EDEADLK)),
    })
}
