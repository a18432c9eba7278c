//! What a poller's window earns and costs, at paces between which only the window adapts.
//!
//! `cargo bench --bench window -- [PACE [LOOP ...]]`: paces and loops whose names contain the words, all if there are
//! none. The loops take turns, with driver and device on a CPU each, and are compared with the first of them.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    use std::time::Duration;
    // `cargo test --benches` only checks that it runs.
    let measure = std::env::args().any(|argument| argument == "--bench");
    let mut words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"));
    let pace = words.next().unwrap_or_default();
    let loops: Vec<String> = words.collect();
    // Turns are long enough that the first trials of a window are a small part.
    let (turns, each) = if measure { (7, 300) } else { (1, 1) };
    let each = Duration::from_millis(each);
    cases::window::paces(turns, each, &pace, &loops);
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
