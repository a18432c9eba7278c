//! Criterion's account of all cases.
//!
//! `cargo bench --bench criterion [-- WORD]`, for all groups of cases or those with this in their name. The host's
//! speed drifts between cases, which criterion cannot see: for ratios, see the `ratios` bench.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    cases::criterion(cases::all());
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
