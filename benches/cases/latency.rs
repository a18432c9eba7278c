//! How long single calls and single wake-ups take, for which a median is not enough.
//!
//! One thread, on a CPU of its own if there are two, sleeps in a bell. The other knows when the first is about to
//! sleep, gives it time to fall asleep, and rings:
//!
//! ```text
//!     ringer     ──── pause ────▶ ring() ─┬─▶ returns        the call: what a signal to a sleeping thread costs
//!     sleeper    wait() ── asleep ········└────▶ wait() returns    the wake-up: from before ring()
//! ```

use super::peers::{Bell, Eventfd, Sleeping, for_each_peer};
use super::{cpu_time, pin};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What one ring, or a burst of them, took.
pub struct Sample {
    /// The time of the thread that rang.
    pub call: Duration,
    /// From before the first ring until the other thread had seen the last one.
    pub woken: Duration,
}

/// Takes a number of samples.
pub type Sampler = Box<dyn FnMut(usize) -> Vec<Sample>>;

/// Rings in a burst.
pub const BURST: u32 = 64;

/// How long a thread gets to fall asleep.
const PAUSE: Duration = Duration::from_micros(100);

/// One ring to a sleeping thread, for each bell.
pub fn wake_ups() -> Vec<(&'static str, Sampler)> {
    let mut all = vec![
        (Sleeping::NAME, one_ring(Sleeping::default)),
        (Eventfd::NAME, one_ring(Eventfd::default)),
    ];
    all.extend(for_each_peer!(one_ring));
    all
}

/// A burst of rings to a thread that was asleep when it began.
pub fn bursts() -> Vec<(&'static str, Sampler)> {
    let mut all = vec![
        (Sleeping::NAME, burst(Sleeping::default)),
        (Eventfd::NAME, burst(Eventfd::default)),
    ];
    all.extend(for_each_peer!(burst));
    all
}

fn one_ring<B: Bell>(make: fn() -> B) -> Sampler {
    sampler(make(), 1)
}

fn burst<B: Bell>(make: fn() -> B) -> Sampler {
    sampler(make(), BURST)
}

fn sampler<B: Bell>(bell: B, rings: u32) -> Sampler {
    Box::new(move |samples| sample(|| bell.ring(), || bell.wait(), rings, PAUSE, samples).0)
}

/// Takes this many samples, with this pause before the first ring of each. Also returns the CPU time of the waiting
/// thread.
pub fn sample(
    ring: impl Fn() + Sync,
    wait: impl Fn() + Sync,
    rings: u32,
    pause: Duration,
    samples: usize,
) -> (Vec<Sample>, Duration) {
    let start = Barrier::new(2);
    // The number of the sample that the sleeper waits for.
    let waiting = AtomicU64::new(0);
    // The number of the sample whose last ring has come or is about to. Some bells keep only one ring, so counting is
    // not enough; others may have rings left for the next sample, which are taken during the pause.
    let last = AtomicU64::new(0);
    let numbers = 1..=samples as u64;
    let sleeper = || {
        pin(0);
        start.wait();
        let cpu = cpu_time();
        let sleep = |number| {
            waiting.store(number, Ordering::Release);
            loop {
                wait();
                if last.load(Ordering::Acquire) == number {
                    return Instant::now();
                }
            }
        };
        let woken: Vec<_> = numbers.clone().map(sleep).collect();
        (woken, cpu_time() - cpu)
    };
    let ringer = || {
        pin(1);
        start.wait();
        let sample = |number| {
            while waiting.load(Ordering::Acquire) != number {
                thread::yield_now();
            }
            let begun = Instant::now();
            while begun.elapsed() < pause {}
            let before = Instant::now();
            for _ in 1..rings {
                ring();
            }
            last.store(number, Ordering::Release);
            ring();
            (before, before.elapsed())
        };
        numbers.clone().map(sample).collect::<Vec<_>>()
    };
    let ((woken, cpu), rung) = thread::scope(|scope| {
        let threads = (scope.spawn(sleeper), scope.spawn(ringer));
        let woken = threads.0.join().expect("nobody panics");
        (woken, threads.1.join().expect("nobody panics"))
    });
    let both = woken.into_iter().zip(rung);
    let samples = both.map(|(woken, (before, call))| Sample {
        call,
        woken: woken - before,
    });
    (samples.collect(), cpu)
}
