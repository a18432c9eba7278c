//! Counts what a target compared, and says so at the end of a run, since inputs differ in length.

use std::sync::atomic::{AtomicU64, Ordering};

static COMPARED: AtomicU64 = AtomicU64::new(0);

/// To be called once, before the first input.
pub fn report_at_exit() {
    extern "C" fn report() {
        eprintln!("compared: {}", COMPARED.load(Ordering::Relaxed));
    }
    // SAFETY: the function is of the type that atexit takes, and there for as long as the program.
    unsafe { libc::atexit(report) };
}

/// So many more calls, or steps of a script, had the result they should have.
pub fn add(count: u64) {
    COMPARED.fetch_add(count, Ordering::Relaxed);
}
