//! A thousand million signals by four threads to one event, with a thread that sleeps and wakes: no signal is lost.
//!
//! `cargo test --release --test soak -- --ignored --nocapture`, as `.ci/run --long` does.

// This test uses only a part of the module.
#[allow(dead_code)]
#[path = "../common/watchdog.rs"]
mod watchdog;

use doorbell::{Event, Mode, Spin};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const SIGNALS: u64 = 1_000_000_000;
const THREADS: u64 = 4;

/// The test takes a few minutes at worst; if it takes longer than this, a thread has missed a wake-up.
const LIMIT: Duration = Duration::from_secs(1800);

#[test]
#[ignore = "a minute long; .ci/run --long runs it"]
fn a_counter_conserves_1e9_signals() {
    soak(Mode::Counter);
}

#[test]
#[ignore = "minutes long; .ci/run --long runs it"]
fn a_semaphore_conserves_1e9_signals() {
    soak(Mode::Semaphore);
}

fn soak(mode: Mode) {
    let event = Arc::new(Event::with_mode(0, mode).with_spin(Spin::Never));
    let _watchdog = watchdog::Watchdog::new(LIMIT, {
        let event = Arc::clone(&event);
        move || format!("{event:?}")
    });
    let start = Instant::now();
    let signallers: Vec<_> = (0..THREADS)
        .map(|_| {
            let event = Arc::clone(&event);
            thread::spawn(move || (0..SIGNALS / THREADS).for_each(|_| event.signal()))
        })
        .collect();
    let (mut received, mut reads) = (0, 0_u64);
    while received < SIGNALS {
        received += event.read();
        reads += 1;
    }
    for signaller in signallers {
        signaller.join().expect("nobody panics");
    }
    assert_eq!((received, event.count()), (SIGNALS, 0));
    let seconds = start.elapsed().as_secs_f64();
    let rate = SIGNALS as f64 / seconds / 1e6;
    println!(
        "{mode:?}: {SIGNALS} signals by {THREADS} threads, received in {reads} reads, in {seconds:.1} s: {rate:.1} M/s"
    );
}
