//! How long to look before falling asleep.
//!
//! A sleep and a wake-up cost two system calls, two context switches and, in a virtual machine, often an interrupt to
//! another CPU and a wake from `HLT`: 5 to 50 µs. An event that is due within that time is cheaper to wait for awake.
//! KVM's counterpart is `halt_poll_ns`, QEMU's `poll-max-ns`; the way in which they grow and shrink is followed here.
//! One thing is added. From within the kernel, KVM sees whether another thread wants the CPU. Here that shows only by
//! its effect: spinning is in vain, and the event comes soon after the sleep has begun, because the signaller was
//! waiting for this CPU, or for one that another spinner held. So spins that have had the whole longest window must
//! succeed about every other time, or spinning rests:
//!
//! ```text
//!                    soon: double                       in vain, no credit
//!     window:  2 µs ──────────────▶ … ──────▶ longest ──────────────────────▶ none, for 2, 4, … 1024 short waits
//!               ▲   ◀────────────── …                                              │
//!               │     late: halve                                                  │
//!               └──────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Spinning only loads, and it comes before the announcement, so a signal to a spinning thread makes no system call. It
//! is measured in time, since a `PAUSE` takes 10 cycles on one x86 and 140 on another. Between two looks stands a look
//! at the clock, and nothing else of the event is touched: a line that its last owner leaves alone for some 40 ns moves
//! to the signaller in one step, not in two (shared, then owned), which took a third off the ping-pong of two spinning
//! threads.

use super::atomic::{AtomicU64, Ordering};
use super::wake_queue;
use std::time::{Duration, Instant};

/// What a blocking call does before it sleeps.
///
/// The knob has the role of QEMU's `poll-max-ns` and of KVM's `halt_poll_ns`. It changes only how waiting is done,
/// never what a call returns.
///
/// ```
/// use doorbell::{Event, Spin};
/// use std::time::Duration;
///
/// // A device thread with a CPU of its own: never sleep, nor make its signaller wake it.
/// static KICK: Event = Event::new(0).with_spin(Spin::Always);
/// // A device thread that shares its CPU with vCPUs.
/// static IDLE: Event = Event::new(0).with_spin(Spin::Never);
/// // Up to 50 µs, as long as that pays off.
/// static WARM: Event = Event::new(0).with_spin(Spin::Adaptive { max: Duration::from_micros(50) });
/// # KICK.signal(); IDLE.signal(); WARM.signal();
/// # assert_eq!((KICK.read(), IDLE.read(), WARM.read()), (1, 1, 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// Sleep at once.
    Never,
    /// Spin for a time that doubles when a little more spinning would have saved a sleep, and halves when the wait
    /// turned out long, down to none. Where spinning does not win, because the machine has one CPU, or the signaller
    /// shares this one, or there are more threads at work than CPUs: like `Never`, but for one attempt in about two
    /// hundred waits.
    Adaptive {
        /// The longest time to spin before one sleep. More than about four seconds count as that.
        max: Duration,
    },
    /// Never sleep: spin until the call can return or its deadline passes. Let other threads run in between: every
    /// 50 µs, and all the time on a machine with one CPU.
    Always,
}

impl Spin {
    /// The default: adaptive, up to 20 µs.
    pub const DEFAULT: Spin = Spin::Adaptive {
        max: Duration::from_micros(20),
    };
}

impl Default for Spin {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A [`Spin`] policy and what it has learnt at one event.
pub(crate) struct Spinner {
    policy: Spin,
    /// A [`Lesson`].
    learnt: AtomicU64,
}

impl Spinner {
    maybe_const! {
        pub(crate) fn new(policy: Spin) -> Self {
            Spinner {
                policy,
                learnt: AtomicU64::new(Lesson::FIRST.to_bits()),
            }
        }
    }

    pub(crate) fn policy(&self) -> Spin {
        self.policy
    }

    /// Looks for `ready` as long as the policy and the deadline allow, then waits with `sleep`.
    ///
    /// `ready` is asked in a loop and must be one relaxed load; what it saw, `attempt` has to get hold of.
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        ready: impl Fn() -> bool,
        mut attempt: impl FnMut() -> Option<T>,
        sleep: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        // Who is to end the wait may be among those.
        wake_queue::let_go();
        // A model looks often enough without.
        if cfg!(loom) || self.policy == Spin::Never {
            return sleep();
        }
        // Before the clock: what is in the event's line is not touched between two looks.
        let window = self.window();
        let mut pace = Pace::new(window, deadline);
        while pace.next().is_some() {
            if ready() {
                if let Some(taken) = attempt() {
                    self.learn(|lesson, _| lesson.spun_well());
                    return Some(taken);
                }
            }
        }
        let result = sleep();
        let (waited, got) = (pace.start.elapsed(), result.is_some());
        self.learn(|lesson, max| lesson.slept(waited, got, max));
        result
    }

    /// How long to spin; `None` is for ever.
    fn window(&self) -> Option<Duration> {
        match self.policy {
            Spin::Always => None,
            Spin::Adaptive { max } if !single_cpu() => {
                let window = Lesson::from_bits(self.learnt.load(Ordering::Relaxed)).window;
                Some(Duration::from_nanos(window.into()).min(max))
            }
            Spin::Adaptive { .. } | Spin::Never => Some(Duration::ZERO),
        }
    }

    /// If the policy is adaptive. Threads that learn at the same time may overwrite each other's lesson.
    fn learn(&self, next: impl FnOnce(Lesson, Duration) -> Lesson) {
        let Spin::Adaptive { max } = self.policy else {
            return;
        };
        let bits = self.learnt.load(Ordering::Relaxed);
        let learnt = next(Lesson::from_bits(bits), max).to_bits();
        if learnt != bits {
            self.learnt.store(learnt, Ordering::Relaxed);
        }
    }
}

/// The beat of a thread that spins: the end of the spin, and turns for others in between.
pub(crate) struct Pace {
    pub(crate) start: Instant,
    end: Option<Instant>,
    /// When the last turn of others was.
    turn: Instant,
    /// When the last beat was.
    pub(crate) last: Instant,
    was_interrupted: bool,
    single_cpu: bool,
    looked: bool,
}

/// What the beat says, after one that is due.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    Look,
    /// Look, and at what is dearer to look at too.
    LookEverywhere,
}

impl Pace {
    /// For so long, `None` being for ever, but no longer than the deadline.
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
            was_interrupted: false,
            single_cpu: single_cpu(),
            looked: false,
        }
    }

    /// Whether another thread has had the CPU for long in between.
    pub(crate) fn was_interrupted(&self) -> bool {
        self.was_interrupted
    }

    /// Lets a moment pass, and others run now and then. `None` is the end. Under loom, where time does not pass, that
    /// comes after one look.
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
        self.was_interrupted |= now - self.last > INTERRUPTION;
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

/// Looks for `ready`, a relaxed load, for as long as it takes, but no longer than `limit`. Returns whether it came.
/// Makes no system call, whatever the number of CPUs.
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

/// Between two beats, an interrupt or a short turn of another thread takes less. So much is a turn of a thread that
/// does not sleep, and wants this CPU.
const INTERRUPTION: Duration = Duration::from_micros(500);

/// How long a spin that knows no end keeps others from the CPU.
const TURN: Duration = Duration::from_micros(50);

/// What falling asleep and waking up may add to a wait: about what it costs in a virtual machine.
const WAKE_UP: Duration = Duration::from_micros(50);

/// What an adaptive spinner knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lesson {
    /// Nanoseconds to spin before the next sleep.
    window: u32,
    /// How many more spins of the longest window may be in vain.
    credit: u8,
    /// The window grows again from none after as many short waits as this power of two.
    patience: u8,
    /// Short waits since there is no window.
    short_waits: u16,
}

impl Lesson {
    /// Where the window starts, and the least it grows to.
    const FIRST_WINDOW_NS: u32 = 2_000;
    const MOST_CREDIT: u8 = 4;
    const MOST_PATIENCE: u8 = 10;

    const FIRST: Lesson = Lesson {
        window: Self::FIRST_WINDOW_NS,
        credit: 0,
        patience: 0,
        short_waits: 0,
    };

    const fn to_bits(self) -> u64 {
        self.window as u64
            | (self.credit as u64) << 32
            | (self.patience as u64) << 40
            | (self.short_waits as u64) << 48
    }

    const fn from_bits(bits: u64) -> Self {
        Lesson {
            window: bits as u32,
            credit: (bits >> 32) as u8,
            patience: (bits >> 40) as u8,
            short_waits: (bits >> 48) as u16,
        }
    }

    /// After a spin that saved a sleep.
    fn spun_well(self) -> Self {
        Lesson {
            credit: Self::MOST_CREDIT.min(self.credit + 1),
            patience: 0,
            short_waits: 0,
            ..self
        }
    }

    /// After a wait of `waited`, which ended asleep: with something or with a timeout.
    fn slept(mut self, waited: Duration, got: bool, max: Duration) -> Self {
        let max_ns = u32::try_from(max.as_nanos()).unwrap_or(u32::MAX);
        self.window = self.window.min(max_ns);
        // What was waited includes the waking up, so an event that came within `max` shows as this much.
        if waited > max.saturating_add(WAKE_UP) {
            self.window = match self.window / 2 {
                half if half < Self::FIRST_WINDOW_NS => 0,
                half => half,
            };
        } else if !got {
            // How long it would have taken is not known.
        } else if self.window == 0 {
            self.short_waits += 1;
            if self.short_waits >= 1 << self.patience {
                self.short_waits = 0;
                self.window = Self::FIRST_WINDOW_NS.min(max_ns);
            }
        } else if self.window < max_ns {
            self.window = self.window.saturating_mul(2).min(max_ns);
        } else if self.credit > 0 {
            self.credit -= 1;
        } else {
            self.window = 0;
            self.patience = Self::MOST_PATIENCE.min(self.patience + 1);
        }
        self
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Does now what the first blocking call of the process would do that spins: opens `/sys/devices/system/cpu/online`,
/// reads it and closes it, to see whether there is more than one CPU.
///
/// Call it before threads get seccomp filters that do not allow that. After it, a blocking call makes no system calls
/// but those that wait, wake and yield, on any thread. It need not be called: what cannot be read counts as many CPUs,
/// but a filter may kill who tries. Calling it again does nothing. [`use_membarrier`](crate::use_membarrier) is the
/// other call that has its place there.
///
/// ```
/// doorbell::prepare_for_seccomp();
/// // From here on threads may be started, and filters installed.
/// ```
pub fn prepare_for_seccomp() {
    single_cpu();
}

/// Whether the machine has one CPU only, where spinning holds back the very thread it waits for. Asked of the system
/// once, or by each of several threads that meet here: none waits for another, which a fork may have left behind.
pub(crate) fn single_cpu() -> bool {
    const UNKNOWN: u8 = 0;
    const ONE: u8 = 1;
    const SEVERAL: u8 = 2;
    // It orders nothing: std's under loom too.
    static CPUS: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(UNKNOWN);
    let known = CPUS.load(std::sync::atomic::Ordering::Relaxed);
    if known != UNKNOWN {
        return known == ONE;
    }
    let single = online_cpus() == 1;
    let known = if single { ONE } else { SEVERAL };
    CPUS.store(known, std::sync::atomic::Ordering::Relaxed);
    single
}

/// How many CPUs run; a great many if the system does not tell.
///
/// Not `available_parallelism()`: in a thread that is pinned to one CPU, as device threads and vCPUs are, that is 1,
/// and says nothing about where the signaller runs.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn online_cpus() -> usize {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    count_cpus(&ranges).unwrap_or(usize::MAX)
}

/// The number of CPUs in a list such as `0-3,8`.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn count_cpus(ranges: &str) -> Option<usize> {
    let mut cpus = 0;
    for range in ranges.trim_end().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        cpus += last.checked_sub(first)? + 1;
    }
    Some(cpus)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn online_cpus() -> usize {
    std::thread::available_parallelism().map_or(usize::MAX, |cpus| cpus.get())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::Cell;

    const US: u32 = 1_000;
    const MAX: Duration = Duration::from_micros(20);

    fn with_window(window: u32) -> Lesson {
        Lesson {
            window,
            ..Lesson::FIRST
        }
    }

    #[test]
    fn the_window_follows_what_waits_last() {
        let short = MAX + WAKE_UP;
        let long = short + Duration::from_nanos(1);
        let after = |window, waited, max| with_window(window).slept(waited, true, max).window;
        // A little longer would have saved the sleep: double, up to the longest.
        assert_eq!(after(4 * US, short, MAX), 8 * US);
        assert_eq!(after(16 * US, short, MAX), 20 * US);
        assert_eq!(after(19 * US, Duration::ZERO, MAX), 20 * US);
        // It would not: halve, down to nothing.
        assert_eq!(after(8 * US, long, MAX), 4 * US);
        assert_eq!(after(4 * US, long, MAX), 2 * US);
        assert_eq!(after(4 * US - 1, long, MAX), 0);
        assert_eq!(after(0, long, MAX), 0);
        // From nothing it comes back.
        assert_eq!(after(0, short, MAX), 2 * US);
        // A longest time below the first window is kept, and one beyond the type's range is cut.
        assert_eq!(after(0, Duration::ZERO, Duration::from_nanos(5)), 5);
        assert_eq!(after(0, Duration::ZERO, Duration::ZERO), 0);
        assert_eq!(after(u32::MAX - 1, Duration::ZERO, Duration::MAX), u32::MAX);
    }

    #[test]
    fn a_timeout_teaches_only_that_it_was_long() {
        let lesson = with_window(8 * US);
        assert_eq!(lesson.slept(MAX, false, MAX), lesson);
        assert_eq!(lesson.slept(2 * (MAX + WAKE_UP), false, MAX).window, 4 * US);
        let resting = with_window(0);
        assert_eq!(resting.slept(MAX, false, MAX), resting);
    }

    #[test]
    fn what_is_in_vain_rests_for_longer_and_longer() {
        let climb = |mut lesson: Lesson| {
            let mut rest = 0;
            while lesson.window == 0 {
                lesson = lesson.slept(MAX, true, MAX);
                rest += 1;
            }
            while lesson.window != 0 {
                lesson = lesson.slept(MAX, true, MAX);
            }
            (rest, lesson)
        };
        let mut lesson = with_window(0);
        let mut rests = Vec::new();
        for _ in 0..12 {
            let (rest, next) = climb(lesson);
            rests.push(rest);
            lesson = next;
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
        // One that was not in vain begins anew.
        assert_eq!(climb(lesson.spun_well()).0, 1);
    }

    #[test]
    fn spins_that_succeed_every_other_time_go_on() {
        let mut lesson = with_window(20 * US);
        for _ in 0..100 {
            lesson = lesson.spun_well();
            assert_eq!(lesson.slept(MAX, true, MAX).window, 20 * US);
            lesson = lesson.slept(MAX, true, MAX);
        }
        // A run of good ones pays for a few, and no more, in vain.
        for _ in 0..100 {
            lesson = lesson.spun_well();
        }
        for _ in 0..Lesson::MOST_CREDIT {
            lesson = lesson.slept(MAX, true, MAX);
            assert_eq!(lesson.window, 20 * US);
        }
        assert_eq!(lesson.slept(MAX, true, MAX).window, 0);
    }

    #[test]
    fn a_lesson_is_kept_whole() {
        let lesson = Lesson {
            window: u32::MAX,
            credit: 3,
            patience: 9,
            short_waits: 1000,
        };
        assert_eq!(Lesson::from_bits(lesson.to_bits()), lesson);
        let lesson = Lesson {
            window: 1,
            credit: u8::MAX,
            patience: 0,
            short_waits: u16::MAX,
        };
        assert_eq!(Lesson::from_bits(lesson.to_bits()), lesson);
    }

    /// Waits for something that is there from the `nth` look on, and returns what it got and from where.
    fn wait(spinner: &Spinner, deadline: Option<Instant>, nth: u32) -> (&'static str, u32) {
        let looks = Cell::new(0);
        let ready = || {
            looks.set(looks.get() + 1);
            looks.get() >= nth
        };
        let got = spinner.wait(deadline, ready, || Some("spinning"), || Some("asleep"));
        (got.expect("one of the two"), looks.get())
    }

    #[test]
    fn never_looks_not_once() {
        assert_eq!(wait(&Spinner::new(Spin::Never), None, 1), ("asleep", 0));
    }

    #[test]
    fn always_looks_until_it_is_there_or_the_deadline() {
        let spinner = Spinner::new(Spin::Always);
        let many = 10_000;
        assert_eq!(wait(&spinner, None, many), ("spinning", many));
        let deadline = Instant::now() + Duration::from_millis(5);
        assert_eq!(wait(&spinner, Some(deadline), u32::MAX).0, "asleep");
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn what_another_took_is_waited_for_again() {
        let spinner = Spinner::new(Spin::Always);
        let attempts = Cell::new(0);
        let attempt = || {
            attempts.set(attempts.get() + 1);
            (attempts.get() == 100).then_some(())
        };
        assert!(spinner.wait(None, || true, attempt, || None).is_some());
    }

    fn learnt(spinner: &Spinner) -> Lesson {
        Lesson::from_bits(spinner.learnt.load(Ordering::Relaxed))
    }

    #[test]
    fn the_adaptive_window_is_learnt_from_sleeps() {
        let spinner = Spinner::new(Spin::Adaptive { max: MAX });
        let long = || {
            std::thread::sleep(2 * (MAX + WAKE_UP));
            None::<()>
        };
        spinner.wait(None, || false, || None, long);
        assert_eq!(learnt(&spinner).window, 0);
        assert_eq!(spinner.window(), Some(Duration::ZERO));
        spinner.learn(|_, _| with_window(8 * US));
        if !single_cpu() {
            assert_eq!(spinner.window(), Some(Duration::from_micros(8)));
            spinner.learn(|_, _| with_window(21 * US));
            assert_eq!(spinner.window(), Some(MAX));
        }
    }

    #[test]
    fn the_adaptive_window_is_learnt_from_spins() {
        let max = Duration::from_secs(1);
        let spinner = Spinner::new(Spin::Adaptive { max });
        spinner.learn(|_, _| with_window(u32::MAX));
        let got = wait(&spinner, None, 1).0;
        if !single_cpu() {
            assert_eq!((got, learnt(&spinner).credit), ("spinning", 1));
        }
    }

    /// As where the signaller shares the CPU: whatever comes, comes as soon as the waiter sleeps.
    #[test]
    fn where_spinning_does_not_win_there_is_next_to_none() {
        let spinner = Spinner::new(Spin::DEFAULT);
        let waits = 10_000;
        let mut spins = 0;
        for _ in 0..waits {
            spins += u32::from(spinner.window() != Some(Duration::ZERO));
            assert_eq!(wait(&spinner, None, u32::MAX).0, "asleep");
        }
        assert!(spins < waits / 50, "{spins} spins in {waits} waits");
        assert!(single_cpu() || spins > 0);
    }

    #[test]
    fn other_policies_learn_nothing() {
        let spinner = Spinner::new(Spin::Always);
        assert_eq!(wait(&spinner, None, 1).0, "spinning");
        assert_eq!(wait(&spinner, Some(Instant::now()), u32::MAX).0, "asleep");
        assert_eq!(learnt(&spinner), Lesson::FIRST);
    }

    #[test]
    fn the_earlier_end_counts() {
        let now = Instant::now();
        let later = now + MAX;
        assert_eq!(earlier(Some(now), Some(later)), Some(now));
        assert_eq!(earlier(Some(later), Some(now)), Some(now));
        assert_eq!(earlier(None, Some(now)), Some(now));
        assert_eq!(earlier(Some(now), None), Some(now));
        assert_eq!(earlier(None, None), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn cpus_are_counted() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-3,8\n"), Some(5));
        assert_eq!(count_cpus("0-1,4-5,7"), Some(5));
        assert_eq!(count_cpus(""), None);
        assert_eq!(count_cpus("3-1"), None);
        assert_eq!(count_cpus("a"), None);
        // A pinned thread has one CPU to itself, and the machine has as many as before.
        let before = online_cpus();
        std::thread::spawn(move || {
            let mut one = rustix::thread::CpuSet::new();
            one.set(0);
            rustix::thread::sched_setaffinity(None, &one).expect("CPU 0 is there");
            assert_eq!(online_cpus(), before);
        })
        .join()
        .unwrap();
    }
}
