//! Scripts of calls, played to `doorbell::Event` and to a real eventfd at once; see `tests/common/script.rs`.
//!
//! At the end of a run it says how many calls were compared, since inputs differ in length.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::kernel::Kernel;
use common::ours::DefaultSpin;
use common::script::Script;
use libfuzzer_sys::fuzz_target;
use std::sync::atomic::{AtomicU64, Ordering};

static CALLS: AtomicU64 = AtomicU64::new(0);

extern "C" fn report() {
    eprintln!("calls compared: {}", CALLS.load(Ordering::Relaxed));
}

fuzz_target!(
    init: {
        // SAFETY: the function is of the type that atexit takes, and there for as long as the program.
        unsafe { libc::atexit(report) };
    },
    |script: Script| {
        CALLS.fetch_add(script.compare::<DefaultSpin, Kernel>(), Ordering::Relaxed);
    }
);
