//! irqfds against bare signals and KVM's irqfds: criterion's account.
//!
//! `cargo bench --bench irqfd`. The host's speed drifts; for ratios, see the `ratios` bench.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    cases::criterion(cases::irqfd::all());
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
