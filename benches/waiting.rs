//! `wait_any` against poll(2) over eventfds, futures against those of others, the poller against epoll: criterion's
//! account.
//!
//! `cargo bench --bench waiting`. The host's speed drifts; for ratios, see the `ratios` bench.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    let mut cases = cases::wait_any::all();
    cases.extend(cases::futures::all());
    cases.extend(cases::poll::all());
    cases::criterion(cases);
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
