//! The event against kernel eventfd and bare atomics: criterion's account.
//!
//! `cargo bench --bench event`. The host's speed drifts; for ratios, see the `ratios` bench.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    let cases = [cases::event::all(), cases::batch::all()];
    cases::criterion(cases.into_iter().flatten().collect());
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
