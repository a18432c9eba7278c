//! What a spinning thread does between two loads.

use crate::sync::cpus::single_cpu;
use std::time::{Duration, Instant};

/// The beats of a spinning thread: when the spin ends, and when other threads may run.
pub(crate) struct Pace {
    pub(super) start: Instant,
    end: Option<Instant>,
    /// When other threads last had their turn.
    turn: Instant,
    /// When the last beat was.
    last: Instant,
    single_cpu: bool,
    looked: bool,
}

/// What the thread checks at a beat.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// What is cheap to check.
    Look,
    /// Everything, including what is expensive to check.
    LookEverywhere,
}

impl Pace {
    /// Spins for `window` (`None`: for ever), but no longer than until the deadline.
    pub(crate) fn new(window: Option<Duration>, deadline: Option<Instant>) -> Self {
        let start = Instant::now();
        Pace {
            start,
            end: earlier(
                window.and_then(|window| start.checked_add(window)),
                deadline,
            ),
            turn: start,
            last: start,
            single_cpu: single_cpu(),
            looked: false,
        }
    }

    /// Whether the last beat came after a turn of others.
    pub(super) fn others_ran(&self) -> bool {
        self.last == self.turn && self.last != self.start
    }

    /// From the start to the last beat.
    pub(super) fn spun(&self) -> Duration {
        self.last - self.start
    }

    /// Lets a moment pass, and now and then other threads run. `None` is the end of the spin. Under loom, where time
    /// does not pass, it comes after one beat.
    pub(crate) fn next(&mut self) -> Option<Beat> {
        if cfg!(loom) {
            return (!std::mem::replace(&mut self.looked, true)).then_some(Beat::Look);
        }
        if self.single_cpu {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
        let now = Instant::now();
        self.last = now;
        if self.end.is_some_and(|end| now >= end) {
            return None;
        }
        if now - self.turn <= TURN {
            return Some(Beat::Look);
        }
        std::thread::yield_now();
        self.turn = now;
        Some(Beat::LookEverywhere)
    }
}

/// Spins until `ready`, a relaxed load, but no longer than `limit`. Returns whether it is ready. Makes no system call,
/// whatever the number of CPUs.
pub(crate) fn spin_until(limit: Duration, ready: impl Fn() -> bool) -> bool {
    // Time does not pass in a model of loom's.
    let limit = if cfg!(loom) { Duration::ZERO } else { limit };
    let start = Instant::now();
    while !ready() {
        if start.elapsed() >= limit {
            return false;
        }
        std::hint::spin_loop();
    }
    true
}

/// How long a spin without an end keeps other threads from the CPU.
const TURN: Duration = Duration::from_micros(50);

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_end_counts() {
        let now = Instant::now();
        let later = now + Duration::from_micros(20);
        assert_eq!(earlier(Some(now), Some(later)), Some(now));
        assert_eq!(earlier(Some(later), Some(now)), Some(now));
        assert_eq!(earlier(None, Some(now)), Some(now));
        assert_eq!(earlier(Some(now), None), Some(now));
        assert_eq!(earlier(None, None), None);
    }
}
