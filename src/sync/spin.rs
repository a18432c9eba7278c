//! How long to look before falling asleep.
//!
//! A sleep and a wake-up cost two system calls, two context switches and, in a virtual machine, often an interrupt to
//! another CPU and a wake from `HLT`: 5 to 50 µs. An event that is due within that time is cheaper to wait for awake.
//! KVM's counterpart is `halt_poll_ns`, and its way of growing and shrinking is followed here.
//!
//! Spinning only loads, so it takes nothing from the signaller but a shared cache line, and it comes before the
//! announcement, so a signal to a spinning thread makes no system call. It is measured in time, since a `PAUSE` takes
//! 10 cycles on one x86 and 140 on another.

use super::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a blocking call does before it sleeps.
///
/// The knob has the role of QEMU's `poll-max-ns` and of KVM's `halt_poll_ns`. It changes only how waiting is done, never
/// what a call returns.
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
    /// Spin for a time that doubles when a little more spinning would have saved a sleep, and halves when the wait turned
    /// out long, down to none. On a machine with one CPU: like `Never`.
    Adaptive {
        /// The longest time to spin before one sleep. More than about four seconds count as that.
        max: Duration,
    },
    /// Never sleep: spin until the call can return or its deadline passes. On a machine with one CPU, let other threads
    /// run in between.
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

/// Where the adaptive window starts, and the least it grows to.
const FIRST_WINDOW_NS: u32 = 2_000;

/// A [`Spin`] policy and what it has learnt at one event.
pub(crate) struct Spinner {
    policy: Spin,
    /// Nanoseconds to spin before the next sleep, if the policy is adaptive.
    window: AtomicU32,
}

impl Spinner {
    maybe_const! {
        pub(crate) fn new(policy: Spin) -> Self {
            Spinner {
                policy,
                window: AtomicU32::new(FIRST_WINDOW_NS),
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
        // Time does not pass in a model of loom's.
        if cfg!(loom) || self.policy == Spin::Never {
            return sleep();
        }
        if let Some(taken) = look(BARE_LOOKS, || {}, &ready, &mut attempt) {
            return Some(taken);
        }
        let start = Instant::now();
        let end = earlier(self.window_end(start), deadline);
        let relax = if single_cpu() {
            std::thread::yield_now
        } else {
            std::hint::spin_loop
        };
        while end.is_none_or(|end| Instant::now() < end) {
            if let Some(taken) = look(LOOKS_PER_CLOCK, relax, &ready, &mut attempt) {
                return Some(taken);
            }
        }
        let result = sleep();
        self.adapt(start.elapsed());
        result
    }

    /// When to stop spinning; `None` is never.
    fn window_end(&self, start: Instant) -> Option<Instant> {
        match self.policy {
            Spin::Always => None,
            Spin::Adaptive { max } if !single_cpu() => {
                let window = Duration::from_nanos(self.window.load(Ordering::Relaxed).into());
                Some(start + window.min(max))
            }
            Spin::Adaptive { .. } | Spin::Never => Some(start),
        }
    }

    /// Learns from a wait that took `waited` and ended asleep. Threads that learn at the same time may overwrite each
    /// other's lesson.
    fn adapt(&self, waited: Duration) {
        if let Spin::Adaptive { max } = self.policy {
            let window = self.window.load(Ordering::Relaxed);
            self.window
                .store(next_window(window, waited, max), Ordering::Relaxed);
        }
    }
}

/// The window after a wait of `waited` that a window of `window` nanoseconds was too short for.
fn next_window(window: u32, waited: Duration, max: Duration) -> u32 {
    let max_ns = u32::try_from(max.as_nanos()).unwrap_or(u32::MAX);
    // What was waited includes the waking up, so an event that came within `max` shows as this much.
    if waited <= max + WAKE_UP {
        window.saturating_mul(2).max(FIRST_WINDOW_NS).min(max_ns)
    } else if window < 2 * FIRST_WINDOW_NS {
        0
    } else {
        window / 2
    }
}

/// What falling asleep and waking up may add to a wait: about what it costs in a virtual machine.
const WAKE_UP: Duration = Duration::from_micros(50);

/// Looks before the first look at the clock and the first pause: a few dozen nanoseconds.
const BARE_LOOKS: u32 = 32;

/// Looks between two looks at the clock, which costs about as much as one `PAUSE` of the slow kind.
const LOOKS_PER_CLOCK: u32 = 16;

fn look<T>(
    times: u32,
    relax: impl Fn(),
    ready: impl Fn() -> bool,
    mut attempt: impl FnMut() -> Option<T>,
) -> Option<T> {
    for _ in 0..times {
        if ready() {
            if let Some(taken) = attempt() {
                return Some(taken);
            }
        }
        relax();
    }
    None
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Whether the machine has one CPU only, where spinning holds back the very thread it waits for. Asked of the system
/// once.
fn single_cpu() -> bool {
    static SINGLE: OnceLock<bool> = OnceLock::new();
    *SINGLE.get_or_init(|| online_cpus() == 1)
}

/// How many CPUs run; a great many if the system does not tell.
///
/// Not `available_parallelism()`: in a thread that is pinned to one CPU, as device threads and vCPUs are, that is 1, and
/// says nothing about where the signaller runs.
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

    #[test]
    fn the_window_follows_what_waits_last() {
        let short = MAX + WAKE_UP;
        let long = short + Duration::from_nanos(1);
        // A little longer would have saved the sleep: double, up to the longest.
        assert_eq!(next_window(4 * US, short, MAX), 8 * US);
        assert_eq!(next_window(16 * US, short, MAX), 20 * US);
        assert_eq!(next_window(20 * US, Duration::ZERO, MAX), 20 * US);
        // It would not: halve, down to nothing.
        assert_eq!(next_window(8 * US, long, MAX), 4 * US);
        assert_eq!(next_window(4 * US, long, MAX), 2 * US);
        assert_eq!(next_window(4 * US - 1, long, MAX), 0);
        assert_eq!(next_window(0, long, MAX), 0);
        // From nothing it comes back.
        assert_eq!(next_window(0, short, MAX), 2 * US);
        // A longest time below the first window is kept, and one beyond the type's range is cut.
        assert_eq!(next_window(0, Duration::ZERO, Duration::from_nanos(5)), 5);
        assert_eq!(next_window(0, Duration::ZERO, Duration::ZERO), 0);
        assert_eq!(
            next_window(u32::MAX - 1, Duration::ZERO, Duration::from_secs(60)),
            u32::MAX
        );
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
    fn what_is_there_soon_is_got_without_the_clock() {
        let spinner = Spinner::new(Spin::DEFAULT);
        assert_eq!(wait(&spinner, None, BARE_LOOKS), ("spinning", BARE_LOOKS));
        let past = Some(Instant::now());
        assert_eq!(wait(&spinner, past, BARE_LOOKS), ("spinning", BARE_LOOKS));
        let (got, looks) = wait(&spinner, past, BARE_LOOKS + 1);
        assert_eq!((got, looks), ("asleep", BARE_LOOKS));
    }

    #[test]
    fn what_another_took_is_waited_for_again() {
        let spinner = Spinner::new(Spin::Always);
        let attempts = Cell::new(0);
        let attempt = || {
            attempts.set(attempts.get() + 1);
            (attempts.get() == 3 * BARE_LOOKS).then_some(())
        };
        assert!(spinner.wait(None, || true, attempt, || None).is_some());
    }

    #[test]
    fn the_adaptive_window_is_learnt_from_sleeps() {
        let spinner = Spinner::new(Spin::Adaptive { max: MAX });
        let long = || {
            std::thread::sleep(2 * (MAX + WAKE_UP));
            None::<()>
        };
        spinner.wait(None, || false, || None, long);
        assert_eq!(spinner.window.load(Ordering::Relaxed), 0);
        let start = Instant::now();
        assert_eq!(spinner.window_end(start), Some(start));
        // However slow the machine is, a wait that ends at once is one that a longer window would have caught.
        spinner.adapt(Duration::ZERO);
        assert_eq!(spinner.window.load(Ordering::Relaxed), FIRST_WINDOW_NS);
        if !single_cpu() {
            let end = start + Duration::from_nanos(FIRST_WINDOW_NS.into());
            assert_eq!(spinner.window_end(start), Some(end));
        }
    }

    #[test]
    fn other_policies_learn_nothing() {
        let spinner = Spinner::new(Spin::Always);
        spinner.adapt(Duration::ZERO);
        assert_eq!(spinner.window.load(Ordering::Relaxed), FIRST_WINDOW_NS);
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
