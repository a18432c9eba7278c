//! How long a poller looks before it sleeps.

use crate::Spin;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::spin::{Pace, single_cpu};
use std::time::{Duration, Instant};

/// A poller's policy, and what has been learnt.
pub(super) struct Window {
    policy: Spin,
    /// What the lesson says, for who looks without the lock.
    is_open: AtomicBool,
    lesson: Mutex<Lesson>,
}

impl Window {
    pub(super) fn new(policy: Spin) -> Self {
        Window {
            policy,
            is_open: AtomicBool::new(true),
            lesson: Mutex::new(Lesson::FIRST),
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
                if single_cpu() || !self.is_open.load(Ordering::Relaxed) {
                    return None;
                }
                Some(max)
            }
        };
        Some(Pace::new(longest, deadline))
    }

    /// After a look that found something, and so saved a sleep, or not; and that was interrupted, or not.
    pub(super) fn looked(&self, found: bool, pace: &Pace) {
        if pace.was_interrupted() {
            self.learn(|lesson| lesson.interrupted(pace.last));
        } else if found {
            self.learn(|lesson| lesson.hit(pace.last));
        }
    }

    /// After a sleep that ended with something to report. The wait began at `start`.
    pub(super) fn slept(&self, start: Instant) {
        let Spin::Adaptive { max } = self.policy else {
            return;
        };
        let now = Instant::now();
        let short = now - start <= max.saturating_add(LATE);
        self.learn(|lesson| lesson.slept(short, now));
    }

    /// Whether sleeps are to be timed.
    pub(super) fn learns(&self) -> bool {
        matches!(self.policy, Spin::Adaptive { .. })
    }

    /// Of threads that learn at the same time, one does.
    fn learn(&self, next: impl FnOnce(&mut Lesson)) {
        if let Ok(mut lesson) = self.lesson.try_lock() {
            next(&mut lesson);
            self.is_open.store(lesson.is_open(), Ordering::Relaxed);
        }
    }
}

/// By how much a wait may exceed the window, if both sides sleep: each has to be woken, which takes up to some 100 µs
/// in a virtual machine. If the same two are awake, the wait may be far shorter than the window.
const LATE: Duration = Duration::from_micros(200);

/// What is known of one poller.
///
/// The window is open, and then it is the longest, or it is closed. Nothing in between is tried: while both sides
/// sleep, the time that a wait takes says nothing of the time it would take if they did not.
///
/// Hits do not tell everything. A thread that looks takes the CPU from others, and they take it back for a time slice
/// at once, however many hits there were before. So when another thread has had the CPU for long, the time that rounds
/// have taken since the window opened is compared with the time that they took when it was closed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lesson {
    /// How many more looks may be in vain before the window closes; 0 if it is closed.
    credit: u8,
    /// The window opens again after so many short waits, as a power of two.
    patience: u8,
    /// Short waits since it was closed.
    short_waits: u16,
    /// Interruptions since it was last closed.
    interruptions: u8,
    /// Rounds were slower for interruptions when there was the last one. Then hits do not make up for a trial in vain.
    was_slower: bool,
    /// When the last round ended.
    last: Option<Instant>,
    /// The rounds since it was opened or closed.
    rounds: Rounds,
    /// Those while it was last closed.
    closed: Rounds,
}

/// So many, in so much time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rounds {
    number: u32,
    time: Duration,
}

impl Rounds {
    const NONE: Rounds = Rounds {
        number: 0,
        time: Duration::ZERO,
    };

    /// Whether one of these took longer than one of those.
    fn are_slower_than(self, those: Rounds) -> bool {
        let product = |time: Duration, number: u32| time.as_nanos() * u128::from(number);
        product(self.time, those.number) > product(those.time, self.number)
    }
}

impl Lesson {
    /// What a trial may cost: two sides that sleep need some rounds to fall into step.
    const TRIAL: u8 = 8;
    /// What a hit is worth. A third of the looks must be hits.
    const HIT: u8 = 2;
    const MOST_CREDIT: u8 = 16;
    const LEAST_PATIENCE: u8 = 4;
    const MOST_PATIENCE: u8 = 10;
    /// After so many the window closes for a moment, to see what rounds take then.
    const MOST_INTERRUPTIONS: u8 = 32;

    const FIRST: Lesson = Lesson {
        credit: Self::TRIAL,
        patience: Self::LEAST_PATIENCE,
        short_waits: 0,
        interruptions: 0,
        was_slower: false,
        last: None,
        rounds: Rounds::NONE,
        closed: Rounds::NONE,
    };

    fn is_open(&self) -> bool {
        self.credit != 0
    }

    /// A round has ended. One in which nothing was to be done for long `counts` for nothing.
    fn round(&mut self, now: Instant, counts: bool) {
        if let (Some(last), true) = (self.last, counts) {
            self.rounds.number += 1;
            self.rounds.time += now - last;
        }
        self.last = Some(now);
    }

    fn close(&mut self, patience: u8) {
        self.credit = 0;
        self.patience = patience.min(Self::MOST_PATIENCE);
        self.short_waits = 0;
        self.interruptions = 0;
        self.rounds = Rounds::NONE;
    }

    fn hit(&mut self, now: Instant) {
        self.round(now, true);
        self.credit = Self::MOST_CREDIT.min(self.credit + Self::HIT);
        if self.credit == Self::MOST_CREDIT && !self.was_slower {
            self.patience = Self::LEAST_PATIENCE;
        }
    }

    fn interrupted(&mut self, now: Instant) {
        self.round(now, true);
        self.interruptions += 1;
        self.was_slower = self.closed.number != 0 && self.rounds.are_slower_than(self.closed);
        if self.was_slower {
            self.close(self.patience + 1);
        } else if self.closed.number == 0 || self.interruptions == Self::MOST_INTERRUPTIONS {
            self.close(Self::LEAST_PATIENCE);
        }
    }

    fn slept(&mut self, short: bool, now: Instant) {
        self.round(now, short);
        if self.credit > 0 {
            self.credit -= 1;
            if self.credit == 0 {
                self.close(self.patience + 1);
            }
        } else if short {
            self.short_waits += 1;
            if self.short_waits >> self.patience != 0 {
                self.credit = Self::TRIAL;
                self.closed = self.rounds;
                self.rounds = Rounds::NONE;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SHORT: bool = true;
    const LONG: bool = false;

    /// A lesson and its clock.
    struct Course {
        lesson: Lesson,
        now: Instant,
    }

    impl Course {
        fn new() -> Self {
            Course {
                lesson: Lesson::FIRST,
                now: Instant::now(),
            }
        }

        fn after(&mut self, us: u64) -> Instant {
            self.now += Duration::from_micros(us);
            self.now
        }

        fn hits(&mut self, number: usize, us: u64) {
            for _ in 0..number {
                let now = self.after(us);
                self.lesson.hit(now);
            }
        }

        fn sleeps(&mut self, number: usize, short: bool, us: u64) {
            for _ in 0..number {
                let now = self.after(us);
                self.lesson.slept(short, now);
            }
        }

        fn interruption(&mut self, us: u64) {
            let now = self.after(us);
            self.lesson.interrupted(now);
        }

        /// After how many sleeps it closes.
        fn closes_after(&mut self, short: bool) -> usize {
            (0..)
                .find(|_| {
                    let is_open = self.lesson.is_open();
                    if is_open {
                        self.sleeps(1, short, 50);
                    }
                    !is_open
                })
                .unwrap()
        }

        /// After how many short waits of so many microseconds it opens again.
        fn opens_after(&mut self, us: u64) -> usize {
            (0..)
                .find(|_| {
                    let is_open = self.lesson.is_open();
                    if !is_open {
                        // Those that are too long to be saved count for nothing.
                        self.sleeps(1, LONG, 9_000);
                        self.sleeps(1, SHORT, us);
                    }
                    is_open
                })
                .unwrap()
        }
    }

    #[test]
    fn it_closes_after_a_trial_in_vain() {
        assert_eq!(Course::new().closes_after(SHORT), 8);
        assert_eq!(Course::new().closes_after(LONG), 8);
    }

    #[test]
    fn a_third_of_the_looks_must_find_something() {
        let rounds = |hits: usize, sleeps: usize| {
            let mut course = Course::new();
            for _ in 0..100 {
                course.hits(hits, 10);
                course.sleeps(sleeps, SHORT, 50);
            }
            course.lesson.is_open()
        };
        assert!(rounds(1, 1) && rounds(2, 3) && rounds(1, 2));
        assert!(!rounds(1, 3));
        // However many hits there were, it does not take long.
        let mut course = Course::new();
        course.hits(1_000, 10);
        assert_eq!(course.closes_after(SHORT), 16);
    }

    #[test]
    fn trials_in_vain_become_rare() {
        let mut course = Course::new();
        for waits in [32, 64, 128, 256, 512, 1024, 1024, 1024] {
            assert_eq!(course.closes_after(SHORT), 8);
            assert_eq!(course.opens_after(50), waits);
        }
        // One that is not in vain makes up for all.
        course.hits(4, 10);
        assert_eq!(course.closes_after(SHORT), 16);
        assert_eq!(course.opens_after(50), 32);
    }

    /// Looking with interruptions, for each of which there were a thousand rounds, each of so many microseconds.
    fn interrupted(course: &mut Course, us: u64) {
        course.hits(1_000, us);
        course.interruption(4_000);
    }

    #[test]
    fn interruptions_close_it_where_rounds_are_slower_for_that() {
        let mut course = Course::new();
        // It is not known what rounds take without.
        interrupted(&mut course, 10);
        assert!(!course.lesson.is_open());
        assert_eq!(course.opens_after(12), 16);
        // 14 µs are more than 12.
        for waits in [32, 64, 128, 256, 512, 1024, 1024] {
            interrupted(&mut course, 10);
            assert!(!course.lesson.is_open());
            assert_eq!(course.opens_after(12), waits);
        }
    }

    #[test]
    fn interruptions_do_not_close_it_where_rounds_are_faster_nevertheless() {
        let mut course = Course::new();
        interrupted(&mut course, 10);
        assert_eq!(course.opens_after(16), 16);
        // 14 µs are less than 16. Now and then that is looked at again.
        for _ in 0..3 {
            for _ in 0..31 {
                interrupted(&mut course, 10);
                assert!(course.lesson.is_open());
            }
            interrupted(&mut course, 10);
            assert!(!course.lesson.is_open());
            assert_eq!(course.opens_after(16), 16);
        }
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
        // Short ones do.
        (0..32).for_each(|_| window.slept(Instant::now()));
        assert!(window.open(None).is_some());
        let window = Window::new(Spin::DEFAULT);
        let pace = window.open(None).unwrap();
        window.looked(false, &pace);
        (0..8).for_each(|_| window.looked(true, &pace));
        (0..8).for_each(|_| window.slept(long_ago));
        assert!(window.open(None).is_some());
        assert!(window.learns() && !Window::new(Spin::Always).learns());
    }
}
