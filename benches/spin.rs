//! What spinning earns and costs: for events that come a given time after the wait for them has begun, how long after
//! the signal the waiter runs, and how much CPU it took; and for threads that wait for each other by turns (on CPUs of
//! their own, in bursts, or on CPUs shared with other such threads or with a vCPU), what a round takes.
//!
//! `cargo bench --bench spin -- [WORD]`: the cases whose names contain the word. The policies take turns. The rule and
//! the default of [`Spin`] were chosen from these tables.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    // `cargo test --benches` only checks that it runs.
    let measure = std::env::args().any(|argument| argument == "--bench");
    let mut words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"));
    let word = words.next().unwrap_or_default();
    let (turns, waits, ms) = if measure { (11, 200, 60) } else { (1, 2, 1) };
    cases::spin::due(turns, waits, &word);
    cases::spin::pairs(turns, std::time::Duration::from_millis(ms), &word);
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
