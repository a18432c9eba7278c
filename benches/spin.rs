//! What spinning earns and costs: for events that are due so long after the wait for them has begun, how long after the
//! signal the waiter runs, and how much CPU it took; and for the cases in which nothing can be earned.
//!
//! `cargo bench --bench spin`. The policies take turns. The default of [`Spin`] was chosen by these tables.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    // `cargo test --benches` asks only whether it runs.
    let measure = std::env::args().any(|argument| argument == "--bench");
    let (turns, waits) = if measure { (21, 200) } else { (1, 2) };
    cases::spin::due(turns, waits);
    cases::spin::in_vain(turns, 25 * waits);
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
