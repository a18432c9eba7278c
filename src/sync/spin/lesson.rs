//! What an adaptive spin has cost and what it has saved; [`Spin`](super::Spin) states the rule.
//!
//! The rule has no clock: callers tell it how long waits took. Everything that is known fits into one word, so threads
//! share it by plain loads and stores, and at worst overwrite each other's lesson.

use std::time::Duration;

/// A wait counts as short if it exceeds the longest spin by at most this. If both sides sleep, each has to be woken,
/// which takes up to some 100 µs in a virtual machine; if both were awake, the wait might be far shorter than the spin.
const LATE: Duration = Duration::from_micros(200);

/// What a short wait is assumed to take asleep until one has been measured: one or two wake-ups in a virtual machine.
const GUESS: Duration = Duration::from_micros(50);

/// The longest spin, and the unit that a lesson counts time in: the finest power of two nanoseconds of which
/// [`Terms::SHORT`] are longer than any short wait.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    max: Duration,
    shift: u32,
}

impl Terms {
    const SHORT_BITS: u32 = 13;
    const SHORT: i32 = 1 << Self::SHORT_BITS;

    pub(super) fn new(max: Duration) -> Self {
        let bits = u64::BITS - nanos(max.saturating_add(LATE)).leading_zeros();
        Terms {
            max,
            shift: bits.saturating_sub(Self::SHORT_BITS),
        }
    }

    fn is_short(self, wait: Duration) -> bool {
        wait <= self.max.saturating_add(LATE)
    }

    /// The result is limited, so that sums of a few do not overflow.
    fn ticks(self, time: Duration) -> i32 {
        let ticks = nanos(time) >> self.shift;
        i32::try_from(ticks).map_or(Lesson::MOST_TIME, |ticks| ticks.min(Lesson::MOST_TIME))
    }

    fn duration(self, ticks: i32) -> Duration {
        let factor = 1_u64 << self.shift;
        Duration::from_nanos(factor.saturating_mul(ticks.unsigned_abs().into()))
    }
}

fn nanos(time: Duration) -> u64 {
    let whole = time.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(time.subsec_nanos().into())
}

/// What is known of the waits in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lesson {
    /// What spins in vain may still cost before spinning rests; each costs a [`LOSS`](Self::LOSS). 0 while spinning
    /// rests.
    credit: u8,
    /// After how many short waits asleep spinning is tried again, as a power of two.
    patience: u8,
    /// Whether waits were slower with spinning when that was last known. If so, spins that find something do not make
    /// up for trials in vain.
    was_slower: bool,
    /// While spinning rests, the number of short waits since then; otherwise, the number of spins that were held up.
    count: u16,
    /// Ticks that a short wait took while spinning last rested; 0 if that is not known.
    asleep: u16,
    /// While spinning rests, the ticks that those short waits took together; otherwise, the ticks that waits have saved
    /// in total, compared with waits asleep. Has 24 bits.
    time: i32,
}

impl Lesson {
    /// What a spin in vain costs.
    const LOSS: i32 = 16;
    /// What a trial may cost: two sides that sleep need some rounds to fall into step.
    const TRIAL: u8 = 8 * Self::LOSS as u8;
    const MOST_CREDIT: u8 = u8::MAX;
    const LEAST_PATIENCE: u8 = 4;
    const MOST_PATIENCE: u8 = 10;
    /// After this many held-up spins, spinning rests for a moment, to measure what waits take asleep now.
    const MOST_HELD_UP: u16 = 32;
    /// Waits may be slower by this much before that counts, because they vary.
    const OVERDRAFT: i32 = 4 * Terms::SHORT;
    /// At most this much is saved up for times when waits are slower.
    const MOST_SAVED: i32 = 64 * Terms::SHORT;
    const MOST_TIME: i32 = (1 << 23) - 1;

    pub(super) const FIRST: Lesson = Lesson {
        credit: Self::TRIAL,
        patience: Self::LEAST_PATIENCE,
        was_slower: false,
        count: 0,
        asleep: 0,
        time: 0,
    };

    pub(super) const fn to_bits(self) -> u64 {
        self.credit as u64
            | (self.patience as u64) << 8
            | (self.was_slower as u64) << 12
            | (self.count as u64) << 13
            | (self.asleep as u64) << 24
            | (self.time as u64) << 40
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Lesson {
            credit: bits as u8,
            patience: (bits >> 8) as u8 & 0xf,
            was_slower: bits >> 12 & 1 != 0,
            count: (bits >> 13) as u16 & 0x7ff,
            asleep: (bits >> 24) as u16,
            time: (bits as i64 >> 40) as i32,
        }
    }

    /// How long to spin before the next sleep, if at all: no longer than twice what waits take asleep, since a longer
    /// spin saves nothing.
    #[inline]
    pub(super) fn window(self, terms: Terms) -> Option<Duration> {
        if self.credit == 0 {
            None
        } else if self.asleep == 0 {
            Some(terms.max)
        } else {
            let twice = terms.duration(2 * i32::from(self.asleep));
            Some(twice.min(terms.max))
        }
    }

    /// The lesson after a spin that took `took` and found something.
    pub(super) fn found(mut self, took: Duration, terms: Terms) -> Self {
        let ticks = terms.ticks(took);
        if self.is_sure() && ticks <= self.asleep.into() {
            return self;
        }
        let Some(window) = self.window(terms) else {
            return self;
        };
        if !terms.is_short(took) {
            return self.held_up(took, terms);
        }
        let (took, asleep) = (ticks, self.asleep(terms));
        let gain = (asleep - took) * Self::LOSS / terms.ticks(window).max(1);
        let gain = if took <= asleep {
            gain.max(Self::LOSS / 2)
        } else {
            gain
        };
        self.saved(asleep - took);
        self.earned(gain)
    }

    /// Whether a spin that saves something changes nothing.
    fn is_sure(self) -> bool {
        self.credit == Self::MOST_CREDIT
            && self.time == Self::MOST_SAVED
            && self.patience == Self::LEAST_PATIENCE
    }

    /// The lesson after a spin of `spun` that found nothing, and a sleep. The whole wait took `waited`, or ended with a
    /// timeout.
    pub(super) fn lost(mut self, spun: Duration, waited: Option<Duration>, terms: Terms) -> Self {
        if self.credit == 0 {
            return self;
        }
        if !terms.is_short(spun) {
            return self.held_up(spun, terms);
        }
        if let Some(waited) = waited.filter(|&waited| terms.is_short(waited)) {
            self.saved(self.asleep(terms) - terms.ticks(waited));
        }
        self.earned(-Self::LOSS)
    }

    /// The lesson after a wait that slept from the beginning, and found something.
    pub(super) fn slept(mut self, waited: Duration, terms: Terms) -> Self {
        if self.credit != 0 || !terms.is_short(waited) {
            return self;
        }
        self.count += 1;
        self.time += terms.ticks(waited);
        if self.count >> self.patience != 0 {
            let asleep = self.time / i32::from(self.count);
            self.asleep = asleep.max(1) as u16;
            self.credit = Self::TRIAL;
            self.count = 0;
            self.time = 0;
        }
        self
    }

    /// The lesson after a spin that ended far too late, because other threads had the CPU.
    fn held_up(mut self, took: Duration, terms: Terms) -> Self {
        self.count += 1;
        self.saved(self.asleep(terms) - terms.ticks(took));
        if self.asleep == 0 {
            return self.closed(Self::LEAST_PATIENCE);
        }
        self.was_slower = self.time < 0;
        if self.was_slower {
            self.closed(self.patience + 1)
        } else if self.count == Self::MOST_HELD_UP {
            self.closed(Self::LEAST_PATIENCE)
        } else {
            self
        }
    }

    fn asleep(self, terms: Terms) -> i32 {
        match self.asleep {
            0 => terms.ticks(GUESS).max(1),
            ticks => ticks.into(),
        }
    }

    fn saved(&mut self, ticks: i32) {
        self.time = (self.time + ticks).clamp(-Self::MOST_TIME, Self::MOST_SAVED);
        if self.time == Self::MOST_SAVED {
            self.was_slower = false;
        }
    }

    fn earned(mut self, gain: i32) -> Self {
        let credit = (i32::from(self.credit) + gain).clamp(0, Self::MOST_CREDIT.into());
        self.credit = credit as u8;
        if self.time < -Self::OVERDRAFT {
            self.was_slower = true;
            return self.closed(self.patience + 1);
        }
        if self.credit == 0 {
            return self.closed(self.patience + 1);
        }
        if self.credit == Self::MOST_CREDIT && !self.was_slower {
            self.patience = Self::LEAST_PATIENCE;
        }
        self
    }

    fn closed(mut self, patience: u8) -> Self {
        self.credit = 0;
        self.patience = patience.min(Self::MOST_PATIENCE);
        self.count = 0;
        self.time = 0;
        self
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MAX: Duration = us(20);

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// A lesson, and the terms of its waits.
    struct Course {
        lesson: Lesson,
        terms: Terms,
    }

    impl Course {
        fn new() -> Self {
            Self::up_to(MAX)
        }

        fn up_to(max: Duration) -> Self {
            let (lesson, terms) = (Lesson::FIRST, Terms::new(max));
            Course { lesson, terms }
        }

        /// A course whose spinning has rested while waits took this long, and is open for a trial.
        fn with_sleeps_of(asleep: Duration) -> Self {
            let mut course = Self::new();
            course.closes_after(asleep);
            course.opens_after(asleep);
            course
        }

        fn tell(&mut self, next: impl Fn(Lesson, Terms) -> Lesson) {
            let learnt = next(self.lesson, self.terms);
            assert_eq!(Lesson::from_bits(learnt.to_bits()), learnt);
            self.lesson = learnt;
        }

        fn window(&self) -> Option<Duration> {
            self.lesson.window(self.terms)
        }

        fn is_open(&self) -> bool {
            self.window().is_some()
        }

        fn finds(&mut self, number: usize, took: Duration) {
            (0..number).for_each(|_| self.tell(|lesson, terms| lesson.found(took, terms)));
        }

        fn loses(&mut self, number: usize, waited: Duration) {
            let spun = self.window().unwrap_or_default();
            (0..number)
                .for_each(|_| self.tell(|lesson, terms| lesson.lost(spun, Some(waited), terms)));
        }

        fn sleeps(&mut self, number: usize, waited: Duration) {
            (0..number).for_each(|_| self.tell(|lesson, terms| lesson.slept(waited, terms)));
        }

        /// After how many spins in vain spinning rests.
        fn closes_after(&mut self, waited: Duration) -> usize {
            let mut spins = 0;
            while self.is_open() {
                self.loses(1, waited);
                spins += 1;
            }
            spins
        }

        /// After how many short waits spinning is tried again.
        fn opens_after(&mut self, waited: Duration) -> usize {
            let mut waits = 0;
            while !self.is_open() {
                // Waits that are too long for spinning to save do not count.
                self.sleeps(1, MAX + LATE + Duration::from_nanos(1));
                assert!(!self.is_open());
                self.sleeps(1, waited);
                waits += 1;
            }
            waits
        }
    }

    #[test]
    fn it_closes_after_a_trial_in_vain() {
        assert_eq!(Course::new().closes_after(us(50)), 8);
        assert_eq!(Course::new().closes_after(us(9_000)), 8);
        // A timeout costs as much as a spin in vain.
        let mut course = Course::new();
        (0..7).for_each(|_| course.tell(|lesson, terms| lesson.lost(MAX, None, terms)));
        assert!(course.is_open());
        course.tell(|lesson, terms| lesson.lost(MAX, None, terms));
        assert!(!course.is_open());
        // A report of another thread that spun meanwhile comes too late.
        let closed = course.lesson;
        course.finds(1, us(1));
        course.loses(1, us(50));
        assert_eq!(course.lesson, closed);
    }

    #[test]
    fn trials_in_vain_become_rare() {
        let mut course = Course::new();
        for waits in [32, 64, 128, 256, 512, 1024, 1024, 1024] {
            assert_eq!(course.closes_after(us(50)), 8);
            assert_eq!(course.opens_after(us(50)), waits);
        }
        // One spin that finds something makes up for all spins in vain.
        course.finds(4, us(1));
        assert_eq!(course.closes_after(us(50)), 16);
        assert_eq!(course.opens_after(us(50)), 32);
    }

    #[test]
    fn long_waits_open_nothing() {
        let mut course = Course::new();
        course.closes_after(us(9_000));
        course.sleeps(10_000, us(9_000));
        assert!(!course.is_open());
        // At the limit a wait is short.
        assert_eq!(course.opens_after(MAX + LATE), 32);
    }

    /// Whether spinning is on after many rounds, each of `finds` spins that find something after `took` and `loses`
    /// spins in vain.
    fn pays(asleep: Duration, finds: usize, took: Duration, loses: usize) -> bool {
        let mut course = Course::with_sleeps_of(asleep);
        for _ in 0..200 {
            course.finds(finds, took);
            course.loses(loses, asleep);
        }
        course.is_open()
    }

    #[test]
    fn what_a_spin_saves_must_make_up_for_what_others_cost() {
        // A spin in vain costs 20 µs. One that finds something at once saves 40, or 60 where a sleep is dear.
        assert!(pays(us(41), 1, us(1), 1) && pays(us(42), 1, us(1), 2));
        assert!(!pays(us(41), 1, us(1), 3) && pays(us(62), 1, us(1), 3));
        // A spin that finds something late saves less.
        assert!(pays(us(41), 1, us(20), 1) && !pays(us(41), 1, us(20), 2));
        // A sleep saved is worth half a spin in vain, even if the waits are no shorter.
        assert!(pays(us(20), 2, us(20), 1) && !pays(us(20), 1, us(20), 1));
        // A spin that takes longer than a wait asleep is a loss.
        let mut course = Course::new();
        course.finds(4, us(1));
        course.finds(1_000, us(60));
        assert!(!course.is_open());
    }

    #[test]
    fn no_spin_is_longer_than_twice_a_wait_asleep() {
        assert_eq!(Course::new().window(), Some(MAX));
        assert_eq!(Course::with_sleeps_of(us(50)).window(), Some(MAX));
        // This is the case if both sides share a CPU, and a sleep takes little.
        let window = Course::with_sleeps_of(us(2)).window().unwrap();
        assert!(us(3) < window && window <= us(4), "{window:?}");
        let window = Course::with_sleeps_of(Duration::ZERO).window().unwrap();
        assert!(!window.is_zero() && window < us(1), "{window:?}");
    }

    /// A thousand spins find something, each after `took` microseconds; then other threads have the CPU for four
    /// milliseconds.
    fn is_held_up(course: &mut Course, took: u64) {
        course.finds(1_000, us(took));
        course.finds(1, us(4_000));
    }

    #[test]
    fn being_held_up_closes_it_where_waits_are_slower_for_that() {
        let mut course = Course::new();
        // It is not known what waits take without spinning.
        is_held_up(&mut course, 10);
        assert!(!course.is_open());
        assert_eq!(course.opens_after(us(12)), 16);
        // A wait with spinning takes 14 µs, which is more than 12.
        for waits in [32, 64, 128, 256, 512, 1024, 1024] {
            is_held_up(&mut course, 10);
            assert!(!course.is_open());
            assert_eq!(course.opens_after(us(12)), waits);
        }
        // A held-up spin that finds nothing counts as held up, too.
        course.finds(100, us(10));
        course.tell(|lesson, terms| lesson.lost(us(4_000), Some(us(4_010)), terms));
        assert!(!course.is_open());
    }

    #[test]
    fn being_held_up_does_not_close_it_where_waits_are_faster_nevertheless() {
        let mut course = Course::new();
        is_held_up(&mut course, 10);
        assert_eq!(course.opens_after(us(16)), 16);
        // A wait with spinning takes 14 µs, which is less than 16. Now and then that is measured again.
        for _ in 0..3 {
            for _ in 0..31 {
                is_held_up(&mut course, 10);
                assert!(course.is_open());
            }
            is_held_up(&mut course, 10);
            assert!(!course.is_open());
            assert_eq!(course.opens_after(us(16)), 16);
        }
    }

    #[test]
    fn it_closes_where_waits_are_slower_without_being_held_up() {
        // Spins that save 3 µs earn more credit than spins that lose 150 µs cost, but do not save as much time.
        let mut course = Course::with_sleeps_of(us(25));
        let mut rounds = 0;
        while course.is_open() {
            course.finds(8, us(22));
            course.loses(1, us(180));
            rounds += 1;
            assert!(rounds < 100);
        }
        assert!(rounds > 3);
        assert_eq!(course.opens_after(us(25)), 32);
        // Successes do not make the trials frequent until they have saved as much as may be saved up.
        course.finds(100, us(1));
        assert_eq!(course.lesson.patience, 5);
        course.finds(1_000, us(1));
        assert_eq!(course.lesson.patience, Lesson::LEAST_PATIENCE);
    }

    #[test]
    fn what_is_sure_changes_by_losses_only() {
        let mut course = Course::with_sleeps_of(us(41));
        course.finds(1_000, us(1));
        assert!(course.lesson.is_sure());
        let sure = course.lesson;
        course.finds(1_000, us(41));
        assert_eq!(course.lesson, sure);
        course.finds(1, us(50));
        assert_ne!(course.lesson, sure);
        assert_eq!(course.closes_after(us(50)), 16);
    }

    #[test]
    fn a_lesson_is_kept_whole() {
        for time in [-Lesson::MOST_TIME, -1, 0, 1, Lesson::MOST_TIME] {
            for was_slower in [false, true] {
                let lesson = Lesson {
                    credit: 3,
                    patience: 10,
                    was_slower,
                    count: 1024,
                    asleep: u16::MAX,
                    time,
                };
                assert_eq!(Lesson::from_bits(lesson.to_bits()), lesson);
            }
        }
        let lesson = Lesson {
            credit: u8::MAX,
            count: 0,
            ..Lesson::FIRST
        };
        assert_eq!(Lesson::from_bits(lesson.to_bits()), lesson);
    }

    #[test]
    fn any_longest_spin_is_kept_to() {
        for max in [
            Duration::ZERO,
            Duration::from_nanos(5),
            us(20),
            us(1_000),
            Duration::from_secs(100),
            Duration::MAX,
        ] {
            let mut course = Course::up_to(max);
            assert_eq!(course.window(), Some(max));
            // Sums of the longest short waits fit, and their mean is found again.
            for _ in 0..8 {
                course.loses(16, max);
                assert!(!course.is_open());
                let longest = max.saturating_add(LATE);
                course.sleeps(1024, longest);
                let most = Duration::from_nanos(u64::MAX);
                assert_eq!(course.window(), Some(max.min(most)));
                let asleep = i32::from(course.lesson.asleep);
                assert_eq!(asleep, course.terms.ticks(longest));
                assert!(asleep < Terms::SHORT);
            }
            course.finds(10_000, Duration::ZERO);
            course.finds(10_000, Duration::MAX);
        }
    }
}
