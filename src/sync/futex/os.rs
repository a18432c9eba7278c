//! The futexes of the operating system.

use super::{MOST_WORDS, Outcome, Refused};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

/// Sleeps while `word` holds `expected`, until a [`wake`] or the deadline. May return spuriously.
///
/// To any `wake` that follows a change of the word, the comparison and the falling asleep are one step.
pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Outcome {
    match deadline {
        None => {
            atomic_wait::wait(word, expected);
            Outcome::Woken
        }
        Some(deadline) => wait_until(word, expected, deadline),
    }
}

/// How many words [`wait_any`] takes, as far as is known: [`MOST_WORDS`] until the system has refused once, and 1 from
/// then on.
pub(crate) fn most_words() -> usize {
    if REFUSED.load(Ordering::Relaxed) {
        1
    } else {
        MOST_WORDS
    }
}

/// Whether the system has no `futex_waitv(2)`, or keeps the process from calling it.
static REFUSED: AtomicBool =
    AtomicBool::new(cfg!(not(any(target_os = "linux", target_os = "android"))));

/// As [`wait`], on several words: sleeps while each word holds its expected value.
///
/// The caller does not learn which word a wake-up was for, and several calls of [`wake`] may have spent their wake-ups
/// on this thread. There must be at most [`most_words`] words.
pub(crate) fn wait_any<'a>(
    mut words: impl ExactSizeIterator<Item = (&'a AtomicU32, u32)>,
    deadline: Option<Instant>,
) -> Result<Outcome, Refused> {
    match (words.len(), words.next()) {
        (1, Some((word, expected))) => Ok(wait(word, expected, deadline)),
        (_, first) => wait_vector(first.into_iter().chain(words), deadline),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn wait_vector<'a>(
    words: impl Iterator<Item = (&'a AtomicU32, u32)>,
    deadline: Option<Instant>,
) -> Result<Outcome, Refused> {
    use rustix::io::Errno;
    use rustix::thread::ClockId;
    use rustix::thread::futex::{self, Timespec, Wait, WaitFlags, WaitPtr, WaitvFlags};

    let mut waits = [Wait::new(); MOST_WORDS];
    let mut length = 0;
    for (wait, (word, expected)) in waits.iter_mut().zip(words) {
        wait.uaddr = WaitPtr::new(word.as_ptr().cast());
        wait.val = expected.into();
        wait.flags = WaitFlags::SIZE_U32 | WaitFlags::PRIVATE;
        length += 1;
    }
    let timeout = match deadline {
        None => None,
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Outcome::TimedOut);
            }
            // `futex_waitv` takes a point in time on the monotonic clock. A time that the kernel's type cannot hold
            // means no limit.
            let now = rustix::time::clock_gettime(ClockId::Monotonic);
            Timespec::try_from(left)
                .ok()
                .and_then(|left| now.checked_add(left))
        }
    };
    let flags = WaitvFlags::empty();
    match futex::waitv(
        &waits[..length],
        flags,
        timeout.as_ref(),
        ClockId::Monotonic,
    ) {
        Err(Errno::TIMEDOUT) => Ok(Outcome::TimedOut),
        // The kernel is older, or a seccomp filter refuses the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            REFUSED.store(true, Ordering::Relaxed);
            Err(Refused)
        }
        // AGAIN, INTR: as for `wait`.
        _ => Ok(Outcome::Woken),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn wait_vector<'a>(
    _words: impl Iterator<Item = (&'a AtomicU32, u32)>,
    _deadline: Option<Instant>,
) -> Result<Outcome, Refused> {
    Err(Refused)
}

/// Wakes up to `count` threads that sleep on `word`, the longest asleep first where the system keeps that order.
pub(crate) fn wake(word: &AtomicU32, count: u32) {
    match count {
        0 => {}
        1 => atomic_wait::wake_one(word),
        // futex(2) takes an int, and larger numbers mean all threads.
        count if count >= i32::MAX as u32 => atomic_wait::wake_all(word),
        count => wake_some(word, count),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::{wait_shared, wake_shared};
#[cfg(any(target_os = "linux", target_os = "android"))]
use linux::{wait_until, wake_some};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use super::Outcome;
    use rustix::io::Errno;
    use rustix::thread::futex::{self, Flags, Timespec};
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};

    pub(super) fn wait_until(word: &AtomicU32, expected: u32, deadline: Instant) -> Outcome {
        match time_until(deadline) {
            Duration::ZERO => Outcome::TimedOut,
            left => wait_for(word, Flags::PRIVATE, expected, left),
        }
    }

    /// As [`wait`](super::wait), but also woken by [`wake_shared`] in another process, and for no longer than
    /// `at_most`.
    pub(crate) fn wait_shared(
        word: &AtomicU32,
        expected: u32,
        deadline: Option<Instant>,
        at_most: Duration,
    ) -> Outcome {
        match deadline.map_or(at_most, time_until) {
            Duration::ZERO => Outcome::TimedOut,
            left if left <= at_most => {
                let outcome = wait_for(word, Flags::empty(), expected, left);
                if deadline.is_some() {
                    outcome
                } else {
                    Outcome::Woken
                }
            }
            _ => {
                wait_for(word, Flags::empty(), expected, at_most);
                Outcome::Woken
            }
        }
    }

    pub(super) fn wake_some(word: &AtomicU32, count: u32) {
        wake(word, Flags::PRIVATE, count);
    }

    /// Wakes up to `count` threads, of any process, that sleep in [`wait_shared`] on `word`.
    pub(crate) fn wake_shared(word: &AtomicU32, count: u32) {
        // futex(2) takes an int, and larger numbers mean all threads.
        wake(word, Flags::empty(), count.min(i32::MAX as u32));
    }

    fn time_until(deadline: Instant) -> Duration {
        deadline.saturating_duration_since(Instant::now())
    }

    fn wait_for(word: &AtomicU32, flags: Flags, expected: u32, time: Duration) -> Outcome {
        // More seconds than the kernel's type holds mean no limit.
        let timeout = Timespec::try_from(time).ok();
        match futex::wait(word, flags, expected, timeout.as_ref()) {
            Err(Errno::TIMEDOUT) => Outcome::TimedOut,
            // AGAIN: the word had changed. INTR: a signal handler ran. Both mean: look again.
            _ => Outcome::Woken,
        }
    }

    fn wake(word: &AtomicU32, flags: Flags, count: u32) {
        // The call fails for a bad address, which a reference cannot have, or if another process sleeps on the word by
        // another futex operation than ours, about which nothing can be done.
        let _ = futex::wake(word, flags, count);
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
use portable::{wait_until, wake_some};

/// Replaces a timed futex on systems that offer none to safe, portable code.
#[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
mod portable {
    use super::Outcome;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    const FIRST_NAP: Duration = Duration::from_micros(50);
    const LONGEST_NAP: Duration = Duration::from_millis(1);

    /// Naps until the word changes. A wake-up always follows a change of the word, so this misses none. A wake-up that
    /// comes during a nap wakes no thread, or another sleeper, which then looks at the word itself.
    pub(super) fn wait_until(word: &AtomicU32, expected: u32, deadline: Instant) -> Outcome {
        let mut nap = FIRST_NAP;
        // Acquire pairs with the Release of the thread that changed the word before waking.
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // The time is up whatever the word is by then: the word may change each time that a thread comes to wait.
            if left.is_zero() {
                return Outcome::TimedOut;
            }
            if word.load(Ordering::Acquire) != expected {
                return Outcome::Woken;
            }
            std::thread::sleep(nap.min(left));
            nap = (nap * 2).min(LONGEST_NAP);
        }
    }

    pub(super) fn wake_some(word: &AtomicU32, count: u32) {
        for _ in 0..count {
            atomic_wait::wake_one(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    type WaitUntil = fn(&AtomicU32, u32, Instant) -> Outcome;
    /// The system's and the one for systems without.
    const TIMED: [WaitUntil; 2] = [wait_until, portable::wait_until];
    const SOON: Duration = Duration::from_millis(20);
    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn a_timed_wait_ends_at_its_deadline_and_not_before() {
        for wait_until in TIMED {
            let word = AtomicU32::new(1);
            let deadline = Instant::now() + SOON;
            // A signal handler may cut the wait short, so it is made again, as callers do.
            while wait_until(&word, 1, deadline) != Outcome::TimedOut {
                assert!(Instant::now() < deadline);
            }
            assert!(Instant::now() >= deadline);
        }
    }

    #[test]
    fn a_deadline_in_the_past_does_not_sleep() {
        for wait_until in TIMED {
            let word = AtomicU32::new(1);
            let past = Instant::now();
            assert_eq!(wait_until(&word, 1, past), Outcome::TimedOut);
            assert_eq!(wait_until(&word, 2, past), Outcome::TimedOut);
        }
    }

    #[test]
    fn a_wait_for_another_value_does_not_sleep() {
        let word = AtomicU32::new(1);
        assert_eq!(wait(&word, 2, None), Outcome::Woken);
        assert_eq!(wait(&word, 2, Some(Instant::now() + NEVER)), Outcome::Woken);
        assert_eq!(
            portable::wait_until(&word, 2, Instant::now() + NEVER),
            Outcome::Woken
        );
    }

    /// Two threads sleep; `wake` wakes them after the word has changed.
    fn two_are_woken(wait_until: Option<WaitUntil>, wake: impl Fn(&AtomicU32)) {
        let word = AtomicU32::new(1);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while word.load(Ordering::Acquire) == 1 {
                        match wait_until {
                            Some(timed) => timed(&word, 1, Instant::now() + NEVER),
                            None => wait(&word, 1, None),
                        };
                    }
                });
            }
            thread::sleep(SOON);
            word.store(2, Ordering::Release);
            wake(&word);
        });
    }

    #[test]
    fn sleepers_are_woken() {
        for wait_until in [None, Some(TIMED[0]), Some(TIMED[1])] {
            two_are_woken(wait_until, |word| wake(word, 2));
            two_are_woken(wait_until, |word| wake(word, u32::MAX));
            two_are_woken(wait_until, |word| {
                wake(word, 1);
                wake(word, 1);
            });
            two_are_woken(wait_until, |word| portable::wake_some(word, 2));
        }
    }
}
