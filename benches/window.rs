//! What a poller's window earns and costs, at paces between which nothing but the window adapts.
//!
//! `cargo bench --bench window [WORD]`. The loops take turns, with driver and device on a CPU each.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    use std::time::Duration;
    // `cargo test --benches` asks only whether it runs.
    let measure = std::env::args().any(|argument| argument == "--bench");
    let word = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"));
    let (turns, each) = if measure { (7, 120) } else { (1, 1) };
    let each = Duration::from_millis(each);
    cases::window::paces(turns, each, &word.unwrap_or_default());
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
