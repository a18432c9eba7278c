//! Scripts of changes and guest writes, played to a table and to a list that is scanned; see
//! `tests/ioeventfd/script.rs`.
//!
//! At the end of a run it says how many steps were compared, since inputs differ in length.

#![no_main]

#[path = "../../tests/ioeventfd/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;
use script::Script;
use std::sync::atomic::{AtomicU64, Ordering};

static STEPS: AtomicU64 = AtomicU64::new(0);

extern "C" fn report() {
    eprintln!("steps compared: {}", STEPS.load(Ordering::Relaxed));
}

fuzz_target!(
    init: {
        // SAFETY: the function is of the type that atexit takes, and there for as long as the program.
        unsafe { libc::atexit(report) };
    },
    |script: Script| {
        STEPS.fetch_add(script.compare(), Ordering::Relaxed);
    }
);
