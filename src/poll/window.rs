//! How long a poller looks before it sleeps.

use crate::Spin;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::spin::{Pace, single_cpu};
use std::time::{Duration, Instant};

/// A poller's policy, and what has been learnt.
pub(super) struct Window {
    policy: Spin,
    /// A [`Lesson`].
    learnt: AtomicU64,
}

impl Window {
    pub(super) fn new(policy: Spin) -> Self {
        Window {
            policy,
            learnt: AtomicU64::new(Lesson::FIRST.to_bits()),
        }
    }

    pub(super) fn policy(&self) -> Spin {
        self.policy
    }

    /// How long to look before this sleep: `None` is not at all.
    pub(super) fn open(&self, deadline: Option<Instant>) -> Option<Pace> {
        let longest = match self.policy {
            Spin::Never => return None,
            Spin::Always => None,
            Spin::Adaptive { max } => {
                if single_cpu() || !self.lesson().is_open() {
                    return None;
                }
                Some(max)
            }
        };
        Some(Pace::new(longest, deadline))
    }

    /// After a look that found something, and so saved a sleep, or not; and that was interrupted, or not.
    pub(super) fn looked(&self, found: bool, interrupted: bool) {
        if interrupted {
            self.learn(Lesson::interrupted);
        } else if found {
            self.learn(Lesson::hit);
        }
    }

    /// After a sleep that ended with something to report. The wait began at `start`.
    pub(super) fn slept(&self, start: Instant) {
        let Spin::Adaptive { max } = self.policy else {
            return;
        };
        let short = start.elapsed() <= max.saturating_add(LATE);
        self.learn(|lesson| lesson.slept(short));
    }

    /// Whether sleeps are to be timed.
    pub(super) fn learns(&self) -> bool {
        matches!(self.policy, Spin::Adaptive { .. })
    }

    fn lesson(&self) -> Lesson {
        Lesson::from_bits(self.learnt.load(Ordering::Relaxed))
    }

    /// Threads that learn at the same time may overwrite each other's lesson.
    fn learn(&self, next: impl FnOnce(Lesson) -> Lesson) {
        let before = self.lesson();
        let after = next(before);
        if after != before {
            self.learnt.store(after.to_bits(), Ordering::Relaxed);
        }
    }
}

/// By how much a wait may exceed the window, if both sides sleep: each has to be woken, which takes up to some 100 µs
/// in a virtual machine. If the same two are awake, the wait may be far shorter than the window.
const LATE: Duration = Duration::from_micros(200);

/// What is known of one poller.
///
/// A thread that wants the same CPU closes the window at once. If that one is another such thread, each keeps the other
/// from the CPU for a time slice while it looks, which costs more than all sleeps that are saved. As the looks find
/// something nevertheless, hits do not tell, and only many of them without an interruption open the window sooner again.
///
/// The window is open, and then it is the longest, or it is closed. Nothing in between is tried: while both sides
/// sleep, the time that a wait takes says nothing of the time it would take if they did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lesson {
    /// How many more looks may be in vain before the window closes; 0 if it is closed.
    credit: u8,
    /// The window opens again after so many short waits, as a power of two.
    patience: u8,
    /// The same, for windows in which another thread took the CPU.
    patience_with_others: u8,
    /// Short waits since it was closed or, while it is open, hits.
    count: u16,
}

impl Lesson {
    /// What a trial may cost: two sides that sleep need some rounds to fall into step.
    const TRIAL: u8 = 8;
    /// What a hit is worth. A third of the looks must be hits.
    const HIT: u8 = 2;
    const MOST_CREDIT: u8 = 16;
    const LEAST_PATIENCE: u8 = 4;
    const MOST_PATIENCE: u8 = 10;
    /// More than there are in a time slice.
    const HITS_WITHOUT_OTHERS: u16 = 8192;

    const FIRST: Lesson = Lesson {
        credit: Self::TRIAL,
        patience: Self::LEAST_PATIENCE,
        patience_with_others: Self::LEAST_PATIENCE,
        count: 0,
    };

    const fn to_bits(self) -> u64 {
        self.credit as u64
            | (self.patience as u64) << 8
            | (self.patience_with_others as u64) << 16
            | (self.count as u64) << 32
    }

    const fn from_bits(bits: u64) -> Self {
        Lesson {
            credit: bits as u8,
            patience: (bits >> 8) as u8,
            patience_with_others: (bits >> 16) as u8,
            count: (bits >> 32) as u16,
        }
    }

    fn is_open(self) -> bool {
        self.credit != 0
    }

    fn hit(mut self) -> Self {
        self.credit = Self::MOST_CREDIT.min(self.credit + Self::HIT);
        if self.credit == Self::MOST_CREDIT {
            self.patience = Self::LEAST_PATIENCE;
        }
        self.count += 1;
        if self.count == Self::HITS_WITHOUT_OTHERS {
            self.count = 0;
            self.patience_with_others = Self::LEAST_PATIENCE.max(self.patience_with_others - 1);
        }
        self
    }

    fn interrupted(mut self) -> Self {
        self.credit = 0;
        self.patience_with_others = Self::MOST_PATIENCE.min(self.patience_with_others + 1);
        self.count = 0;
        self
    }

    fn slept(mut self, short: bool) -> Self {
        if self.credit > 0 {
            self.credit -= 1;
            if self.credit == 0 {
                self.patience = Self::MOST_PATIENCE.min(self.patience + 1);
                self.count = 0;
            }
        } else if short {
            self.count += 1;
            if self.count >> self.patience.max(self.patience_with_others) != 0 {
                self.credit = Self::TRIAL;
                self.count = 0;
            }
        }
        self
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SHORT: bool = true;
    const LONG: bool = false;

    /// After how many such sleeps the window closes.
    fn closes_after(mut lesson: Lesson, short: bool) -> usize {
        let mut sleeps = 0;
        while lesson.is_open() {
            lesson = lesson.slept(short);
            sleeps += 1;
        }
        sleeps
    }

    fn closed() -> Lesson {
        (0..8).fold(Lesson::FIRST, |lesson, _| lesson.slept(SHORT))
    }

    /// After how many short waits it opens again, and what it is then.
    fn opens_after(mut lesson: Lesson) -> (usize, Lesson) {
        assert!(!lesson.is_open());
        let mut waits = 0;
        while !lesson.is_open() {
            // Those that are too long to be saved count for nothing.
            lesson = lesson.slept(LONG).slept(SHORT);
            waits += 1;
        }
        (waits, lesson)
    }

    #[test]
    fn it_closes_after_a_trial_in_vain() {
        assert_eq!(closes_after(Lesson::FIRST, SHORT), 8);
        assert_eq!(closes_after(Lesson::FIRST, LONG), 8);
    }

    #[test]
    fn a_third_of_the_looks_must_find_something() {
        let rounds = |hits: usize, sleeps: usize| {
            let mut lesson = Lesson::FIRST;
            for _ in 0..100 {
                lesson = (0..hits).fold(lesson, |lesson, _| lesson.hit());
                lesson = (0..sleeps).fold(lesson, |lesson, _| lesson.slept(SHORT));
            }
            lesson.is_open()
        };
        assert!(rounds(1, 1) && rounds(2, 3) && rounds(1, 2));
        assert!(!rounds(1, 3));
        // However many hits there were, it does not take long.
        let lesson = (0..1_000).fold(Lesson::FIRST, |lesson, _| lesson.hit());
        assert_eq!(closes_after(lesson, SHORT), 16);
    }

    #[test]
    fn trials_in_vain_become_rare() {
        let mut lesson = closed();
        for waits in [32, 64, 128, 256, 512, 1024, 1024, 1024] {
            let (waited, open) = opens_after(lesson);
            assert_eq!(waited, waits);
            lesson = (0..8).fold(open, |lesson, _| lesson.slept(SHORT));
        }
        // One that is not in vain makes up for all.
        let (_, open) = opens_after(lesson);
        let open = (0..4).fold(open, |lesson, _| lesson.hit());
        let lesson = (0..16).fold(open, |lesson, _| lesson.slept(SHORT));
        assert_eq!(opens_after(lesson).0, 32);
    }

    #[test]
    fn another_thread_closes_it() {
        let hits = |lesson, number| (0..number).fold(lesson, |lesson: Lesson, _| lesson.hit());
        let mut lesson = Lesson::FIRST;
        // However many hits there are in between.
        for waits in [32, 64, 128, 256, 512, 1024, 1024] {
            lesson = hits(lesson, 1_000).interrupted();
            assert!(!lesson.is_open());
            let (waited, open) = opens_after(lesson);
            assert_eq!(waited, waits);
            lesson = open;
        }
        // A long time without is a step back, as every one is a step on.
        lesson = hits(lesson, 2 * 8_192).interrupted();
        assert_eq!(opens_after(lesson).0, 512);
        lesson = hits(opens_after(lesson).1, 100 * 8_192).interrupted();
        assert_eq!(opens_after(lesson).0, 32);
    }

    #[test]
    fn it_is_kept_in_bits() {
        let lesson = Lesson {
            credit: 3,
            patience: 10,
            patience_with_others: 9,
            count: 8191,
        };
        assert_eq!(Lesson::from_bits(lesson.to_bits()), lesson);
    }

    #[test]
    fn policies() {
        assert!(Window::new(Spin::Never).open(None).is_none());
        assert!(Window::new(Spin::Always).open(None).is_some());
        let window = Window::new(Spin::DEFAULT);
        let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        (0..8).for_each(|_| window.slept(long_ago));
        assert!(window.open(None).is_none());
        // Long waits do not open it again.
        (0..2_000).for_each(|_| window.slept(long_ago));
        assert!(window.open(None).is_none());
        // Nor does a look that was interrupted count, whatever it found.
        let window = Window::new(Spin::DEFAULT);
        window.looked(true, true);
        assert!(window.open(None).is_none());
        let window = Window::new(Spin::DEFAULT);
        (0..8).for_each(|_| window.looked(true, false));
        (0..8).for_each(|_| window.slept(long_ago));
        assert!(window.open(None).is_some());
        assert!(window.learns() && !Window::new(Spin::Always).learns());
    }
}
