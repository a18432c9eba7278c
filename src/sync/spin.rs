//! How long to spin before sleeping.
//!
//! [`Spin`] documents the rule, `lesson` implements it, and [`Spinner`] applies it to the blocking calls of an event
//! and to the waits of a poller.
//!
//! A spin only loads, and it comes before the announcement, so a signal to a spinning thread makes no system call. Its
//! length is a time, because a `PAUSE` takes 10 cycles on one x86 processor and 140 on another. Between two loads the
//! thread reads the clock, and touches nothing else of the event. A cache line that its last owner leaves alone for
//! some 40 ns moves to the signaller in one step instead of two (shared, then owned). That took a third off the
//! ping-pong of two spinning threads.

mod lesson;
mod pace;

pub(crate) use pace::{Beat, Pace, spin_until};

use super::atomic::{AtomicU64, Ordering};
use super::cpus::single_cpu;
use super::wake_queue;
use lesson::{Lesson, Terms};
use std::time::{Duration, Instant};

/// What a blocking call does before it sleeps.
///
/// This corresponds to QEMU's `poll-max-ns` and KVM's `halt_poll_ns`. It changes how a call waits, never what it
/// returns. An [`Event`](crate::Event) applies it to its blocking calls, and a [`Poller`](crate::poll::Poller) to its
/// waits. Each event and each poller learns for itself.
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
///
/// # When an adaptive spin pays
///
/// A sleep and a wake-up take two system calls, two context switches and, in a virtual machine, often an interrupt to
/// another CPU: 5 to 50 µs. A spin saves them if the signal comes meanwhile, and costs its time otherwise. It costs
/// more if the signaller needs the CPU that the spin takes. So an adaptive spin keeps accounts:
///
/// ```text
///                                  a trial of 8 spins
///                      ┌────────────────────────────────────────────┐
///                      ▼                                            │ after 16, 32, … 1,024 short waits
///              ┌──── open ────┐                             ┌──── closed ────┐
///              │ spin, then   │   no credit, or overdrawn   │ sleep at once, │
///              │ sleep        │ ──────────────────────────▶ │ time the wait  │
///              └──────────────┘                             └────────────────┘
///      found:   credit + (a wait asleep − this wait)         "a wait asleep" is the mean of the short waits here
///      in vain: credit − the spin
///      each:    savings + (a wait asleep − this wait)
/// ```
///
/// * **Credit** says whether spins find something. A spin in vain subtracts its time. A spin that finds something adds
///   what it has saved: the time of a short wait asleep less the time of this wait, and at least half of a spin. (If
///   the signals come at times that do not depend on the waiter, spinning does not shorten the waits, but the waiter
///   runs sooner.) Credit is enough for a trial of 8 spins at first, and for 16 at most. If both sides of a ping-pong
///   sleep, a wait takes twice the default's 20 µs, so spinning pays if a third of the spins find something. Without
///   credit, the spin is closed.
/// * **Savings** say whether the waits became shorter in total. That differs from credit if threads share CPUs: the
///   scheduler takes the CPU from a spinning thread, and gives it back milliseconds later, however many spins have
///   found something before. Each wait that ends late enters the savings with all its time. If the savings are
///   overdrawn, the spin is closed, even if it has credit. After 32 waits that were delayed this way, the spin is
///   closed once, to measure what waits take asleep now.
/// * **While closed**, a spin costs one reading of the clock before and one after a sleep. It is tried again after 16
///   short waits, which are waits of at most `max` and 200 µs; long waits do not count. The number doubles with each
///   trial in vain, up to 1,024, and is 16 again when the credit is full.
/// * **No spin is longer** than `max`, or than twice a short wait asleep, because it could not save anything then. That
///   makes trials cheap if both sides share a CPU and a sleep takes 2 µs. A spin lets other threads run every 50 µs. If
///   it finds something after that, it was in vain, because a sleep would have done the same.
/// * **The length does not grow step by step**, as KVM's and QEMU's do. While both sides sleep, a wait takes so long
///   that a short spin never pays, although a long one would make the waits short.
/// * With one CPU in the machine there are no adaptive spins.
///
/// What ping-pongs take in a virtual machine with two AMD EPYC (Zen 4) CPUs and Linux 6.18, as microseconds
/// a round and, in brackets, microseconds of CPU time of both threads a round (`cargo bench --bench spin`; medians of
/// 11 turns; "fixed" spins for 5, 20 or 50 µs before each sleep, whichever of these takes the shortest rounds):
///
/// | | `Never` | fixed | `DEFAULT` |
/// |---|---|---|---|
/// | a side on each CPU | 66 (46) | 0.97 (0.91) | 1.16 (1.00) |
/// | bursts of 64 rounds, then 1 ms | 50 (25) | 0.29 (1.6) | 0.44 (1.3) |
/// | bursts of 4 rounds, then 1 ms | 35 (34) | 4.4 (24) | 4.4 (16) |
/// | both sides on one CPU | 4.1 (4.1) | 15 (15) | 4.3 (4.3) |
/// | two pairs on one CPU | 5.9 (5.9) | 16 (16) | 6.2 (6.2) |
/// | two pairs, a side of each on each CPU | 18 (18) | 0.37 (0.35) | 0.52 (0.42) |
/// | two pairs on two CPUs, anywhere | 6.1 (6.0) | 5.1 (7.2) | 2.7 (5.0) |
/// | one side beside a vCPU | 88 (38) | 0.52 (0.34) | 0.71 (0.43) |
/// | the same, with 10 µs of work a round | 109 (49) | 34 (21) | 31 (21) |
///
/// The vCPU is a KVM guest that computes without a pause on the CPU of one side. It has 73 to 78 % of that CPU while
/// the side sleeps, and about 60 % while it spins: **the accounts are the waiter's own**, and do not include what the
/// vCPU would have done with the time. If the vCPU is worth more than the device, use [`Spin::Never`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spin {
    /// Sleep at once.
    Never,
    /// Spin as long as that [pays](Self#when-an-adaptive-spin-pays). It does not pay if nothing comes in time, if the
    /// signaller shares this CPU, or if more threads run than there are CPUs. Then this is like `Never`, except for 8
    /// attempts in about a thousand short waits.
    Adaptive {
        /// The longest time to spin before one sleep.
        max: Duration,
    },
    /// Never sleep: spin until the call can return or its deadline passes. Other threads may run every 50 µs, and all
    /// the time on a machine with one CPU.
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

/// A [`Spin`] policy, and what it has learnt at one event or in one poller.
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

    /// Spins until `ready`, as long as the policy and the deadline allow, then waits with `sleep`.
    ///
    /// `ready` is called in a loop, and must be one relaxed load. `attempt` takes what `ready` has seen.
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        ready: impl Fn() -> bool,
        mut attempt: impl FnMut() -> Option<T>,
        sleep: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        // The thread that would end the wait may be among the sleepers held back.
        wake_queue::let_go();
        // A model explores enough without spins.
        if cfg!(loom) {
            return sleep();
        }
        let pace = self.begin(deadline);
        let Some(mut pace) = pace else {
            let start = self.learns().then(Instant::now);
            let result = sleep();
            if let (Some(start), true) = (start, result.is_some()) {
                self.slept(start.elapsed());
            }
            return result;
        };
        while pace.next().is_some() {
            if ready() {
                if let Some(taken) = attempt() {
                    self.found(&pace);
                    return Some(taken);
                }
            }
        }
        let result = sleep();
        self.lost(&pace, result.is_some());
        result
    }

    /// The spin before a sleep, if there is to be one.
    pub(crate) fn begin(&self, deadline: Option<Instant>) -> Option<Pace> {
        let window = match self.policy {
            Spin::Never => return None,
            Spin::Always => None,
            Spin::Adaptive { .. } if single_cpu() => return None,
            // Time does not pass in a model, so nothing is learnt.
            Spin::Adaptive { max } if cfg!(loom) => Some(max),
            // Before the clock: the cache line of the event is not touched between two loads.
            Spin::Adaptive { max } => Some(self.lesson().window(Terms::new(max))?),
        };
        Some(Pace::new(window, deadline))
    }

    /// After a spin that found something, and so saved a sleep.
    pub(crate) fn found(&self, pace: &Pace) {
        let spun = pace.spun();
        if pace.others_ran() {
            // It came only after others had this CPU, so a sleep would have ended as soon, or sooner.
            self.learn(|lesson, terms| lesson.lost(spun, Some(spun), terms));
        } else {
            self.learn(|lesson, terms| lesson.found(spun, terms));
        }
    }

    /// After a spin in vain and a sleep, which ended with something or with a timeout.
    pub(crate) fn lost(&self, pace: &Pace, got: bool) {
        self.learn(|lesson, terms| {
            let waited = got.then(|| pace.start.elapsed());
            lesson.lost(pace.spun(), waited, terms)
        });
    }

    /// After a wait without a spin, which ended with something.
    pub(crate) fn slept(&self, waited: Duration) {
        self.learn(|lesson, terms| lesson.slept(waited, terms));
    }

    /// Whether waits without a spin are to be timed.
    pub(crate) fn learns(&self) -> bool {
        matches!(self.policy, Spin::Adaptive { .. }) && !single_cpu()
    }

    fn lesson(&self) -> Lesson {
        Lesson::from_bits(self.learnt.load(Ordering::Relaxed))
    }

    /// If the policy is adaptive. Threads that learn at the same time may overwrite each other's lesson.
    fn learn(&self, next: impl FnOnce(Lesson, Terms) -> Lesson) {
        let Spin::Adaptive { max } = self.policy else {
            return;
        };
        if cfg!(loom) {
            return;
        }
        let lesson = self.lesson();
        let learnt = next(lesson, Terms::new(max));
        if learnt != lesson {
            self.learnt.store(learnt.to_bits(), Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::Cell;

    const MAX: Duration = Duration::from_micros(20);

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

    fn spins(spinner: &Spinner) -> bool {
        spinner.begin(None).is_some()
    }

    #[test]
    fn a_spinner_learns_from_spins_in_vain_and_from_short_waits() {
        if single_cpu() {
            return println!("skipped: on one CPU there are no adaptive spins");
        }
        let spinner = Spinner::new(Spin::DEFAULT);
        let asleep = |got: bool| spinner.wait(None, || false, || None, || got.then_some(()));
        // Eight in vain, or fewer if the thread loses the CPU in one, which costs more.
        assert!(spins(&spinner));
        for got in [true, false].repeat(4) {
            asleep(got);
        }
        assert!(!spins(&spinner));
        // A timeout does not tell what a wait takes.
        (0..10_000).for_each(|_| _ = asleep(false));
        assert!(!spins(&spinner));
        // A thread that loses the CPU in one of these has waited for long; that counts for nothing.
        assert!((0..10_000).any(|_| {
            asleep(true);
            spins(&spinner)
        }));
        // What waits took, which is next to nothing, is as long as it spins now.
        let terms = Terms::new(MAX);
        assert!(spinner.lesson().window(terms) < Some(MAX));
    }

    #[test]
    fn a_spinner_learns_from_spins_that_find_something() {
        if single_cpu() {
            return println!("skipped: on one CPU there are no adaptive spins");
        }
        let max = Duration::from_secs(1);
        let spinner = Spinner::new(Spin::Adaptive { max });
        assert_eq!(wait(&spinner, None, 100).0, "spinning");
        assert_ne!(spinner.lesson(), Lesson::FIRST);
        assert!(spins(&spinner));
    }

    #[test]
    fn what_comes_when_others_have_had_the_cpu_was_spun_for_in_vain() {
        if single_cpu() {
            return println!("skipped: on one CPU there are no adaptive spins");
        }
        // Whether eight spins that find something in such a beat leave it open.
        let stays_open = |beat| {
            let max = Duration::from_millis(20);
            let spinner = Spinner::new(Spin::Adaptive { max });
            for _ in 0..8 {
                let Some(mut pace) = spinner.begin(None) else {
                    return false;
                };
                while pace.next().is_some_and(|one| one != beat) {}
                spinner.found(&pace);
            }
            spins(&spinner)
        };
        // A thread that loses the CPU for milliseconds may learn something else.
        assert!((0..10).any(|_| stays_open(Beat::Look)));
        assert!((0..10).any(|_| !stays_open(Beat::LookEverywhere)));
    }

    /// As where the signaller shares the CPU: whatever comes, comes as soon as the waiter sleeps.
    #[test]
    fn where_spinning_does_not_win_there_is_next_to_none() {
        let spinner = Spinner::new(Spin::DEFAULT);
        let waits = 10_000;
        let mut spun = 0;
        for _ in 0..waits {
            spun += u32::from(spins(&spinner));
            assert_eq!(wait(&spinner, None, u32::MAX).0, "asleep");
        }
        assert!(spun < waits / 50, "{spun} spins in {waits} waits");
        assert!(single_cpu() || spun > 0);
    }

    #[test]
    fn other_policies_learn_nothing() {
        let spinner = Spinner::new(Spin::Always);
        assert_eq!(wait(&spinner, None, 1).0, "spinning");
        assert_eq!(wait(&spinner, Some(Instant::now()), u32::MAX).0, "asleep");
        assert_eq!(spinner.lesson(), Lesson::FIRST);
        assert!(!spinner.learns() && !Spinner::new(Spin::Never).learns());
        assert_eq!(Spinner::new(Spin::DEFAULT).learns(), !single_cpu());
    }
}
