//! A mutex that is held for a few instructions.
//!
//! The kernel's counterpart is its spinlock. Unlocking is a plain store. A mutex on which threads sleep needs a second
//! locked instruction there, to find out whether somebody does.
//!
//! A thread that finds the mutex locked spins. If that takes longer than the few instructions, the holder has been
//! preempted; so the thread then yields, and in the end sleeps between its attempts, for longer each time. By that the
//! holder gets a CPU, even if the waiting thread has a real-time priority and the holder has none.

use super::atomic::{AtomicBool, Ordering};
use super::{UnsafeCell, release_store};
#[cfg(not(loom))]
use std::{hint, thread, time::Duration};

/// The mutex of wait lists in models: loom's own, so that a model of threads that contend for it does not become one of
/// threads that spin. The mutex that ships has a model of its own.
#[cfg(loom)]
#[derive(Default)]
pub(crate) struct LineMutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> LineMutex<T> {
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().expect("loom has no poison"))
    }
}

#[cfg(not(loom))]
pub(crate) use BriefMutex as LineMutex;

/// The number of attempts before the first yield.
#[cfg(not(loom))]
const SPINS: u32 = 100;
/// The number of attempts before the first sleep.
#[cfg(not(loom))]
const MOST_YIELDS: u32 = SPINS + 10;
#[cfg(not(loom))]
const SHORTEST_SLEEP: Duration = Duration::from_micros(10);
#[cfg(not(loom))]
const LONGEST_SLEEP: Duration = Duration::from_millis(1);

/// See [above](self).
pub struct BriefMutex<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: one thread at a time gets at the value, by `with`.
unsafe impl<T: Send> Sync for BriefMutex<T> {}

impl<T: Default> Default for BriefMutex<T> {
    fn default() -> Self {
        BriefMutex {
            locked: AtomicBool::new(false),
            value: UnsafeCell::new(T::default()),
        }
    }
}

impl<T> BriefMutex<T> {
    /// Runs `f` with the mutex locked. `f` is a few instructions, runs no foreign code and drops nothing.
    #[inline(always)]
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        if !self.lock_once() {
            self.lock_contended();
        }
        let _locked = Locked(&self.locked);
        // SAFETY: a thread that finds `locked` set waits until the end of `_locked` clears it.
        self.value.with_mut(|value| f(unsafe { &mut *value }))
    }

    #[inline(always)]
    fn lock_once(&self) -> bool {
        // Acquire pairs with the Release in `drop`.
        !self.locked.swap(true, Ordering::Acquire)
    }

    #[cfg(not(loom))]
    #[cold]
    #[inline(never)]
    fn lock_contended(&self) {
        let mut attempts = 0;
        let mut pause = SHORTEST_SLEEP;
        loop {
            match attempts {
                0..SPINS => hint::spin_loop(),
                SPINS..MOST_YIELDS => thread::yield_now(),
                _ => {
                    thread::sleep(pause);
                    pause = LONGEST_SLEEP.min(2 * pause);
                }
            }
            attempts = attempts.saturating_add(1);
            // The load keeps the cache line shared until the mutex is unlocked.
            if !self.locked.load(Ordering::Relaxed) && self.lock_once() {
                return;
            }
        }
    }

    #[cfg(loom)]
    fn lock_contended(&self) {
        loop {
            super::yield_now();
            if self.lock_once() {
                return;
            }
        }
    }
}

struct Locked<'a>(&'a AtomicBool);

impl Drop for Locked<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        release_store(self.0, false);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::BriefMutex;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    /// With threads that are preempted inside, too: each increment is two steps.
    #[test]
    fn one_at_a_time() {
        const THREADS: u64 = 4;
        const ROUNDS: u64 = 20_000;
        let count = BriefMutex::<u64>::default();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for round in 0..ROUNDS {
                        count.with(|count| {
                            let before = *count;
                            if round % 1_000 == 0 {
                                thread::yield_now();
                            }
                            *count = before + 1;
                        });
                    }
                });
            }
        });
        assert_eq!(count.with(|count| *count), THREADS * ROUNDS);
    }

    /// While the holder is away for long, a waiting thread sleeps, and gets the mutex in the end.
    #[test]
    fn a_holder_that_is_away() {
        let value = BriefMutex::<u32>::default();
        let inside = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                value.with(|value| {
                    inside.wait();
                    thread::sleep(Duration::from_millis(20));
                    *value = 1;
                });
            });
            inside.wait();
            assert_eq!(value.with(|value| *value), 1);
        });
    }

    /// A panic inside leaves it unlocked.
    #[test]
    fn a_panic() {
        let value = BriefMutex::<u32>::default();
        thread::scope(|scope| {
            let panics = scope.spawn(|| value.with(|_| panic!("inside")));
            assert!(panics.join().is_err());
        });
        value.with(|value| *value = 1);
        assert_eq!(value.with(|value| *value), 1);
    }
}
