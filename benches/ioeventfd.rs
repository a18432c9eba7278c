//! Lookups in the ioeventfd table against other ways of keeping one: criterion's account.
//!
//! `cargo bench --bench ioeventfd`. The host's speed drifts; for ratios, see the `ratios` bench.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    cases::criterion(cases::ioeventfd::all());
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches pin threads to CPUs by Linux's means");
}
