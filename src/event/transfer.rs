//! Counts on their way from a kernel eventfd into an event.
//!
//! A thread that has read an eventfd holds the count until it adds the count to the event. In between, the count is in
//! neither of the two. A thread that has taken the eventfd away from its writers, and reads it a last time, would find
//! nothing in it and conclude that the event has everything. So the read and the addition are made under a lock, as one
//! step:
//!
//! ```text
//!     thread that carries                     thread that has taken the eventfd from its writers
//!     1  lock; read; add; unlock              1  lock; read, and find nothing; unlock
//!     2  wake readers, call observers         2  the event has all
//! ```
//!
//! No thread is woken and no foreign code is called under the lock, so the lock is held only for a `read(2)` that does
//! not block and for an addition.

use super::Event;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::fair::{FairMutex, FairMutexGuard};

/// The lock of an event. Other events share it, so an event has no lock of its own.
#[cfg(not(loom))]
fn lock(event: &Event) -> FairMutexGuard<'static, ()> {
    const LOCKS: usize = 64;
    static OF: [FairMutex<()>; LOCKS] = [const { FairMutex::new(()) }; LOCKS];
    let number = std::ptr::from_ref(event).addr() / size_of::<Event>();
    OF[number % LOCKS].lock()
}

#[cfg(loom)]
fn lock(_: &Event) -> FairMutexGuard<'static, ()> {
    loom::lazy_static! {
        static ref OF: FairMutex<()> = FairMutex::new(());
    }
    let of: &'static FairMutex<()> = &OF;
    of.lock().expect("loom has no poison")
}

/// Moves what `read` takes from an eventfd into the event, as a signal does, and returns how much that is. When this
/// returns, everything that other threads have taken from the eventfd for this event is in the event, too.
#[cfg_attr(
    not(any(
        all(
            feature = "kvm",
            any(
                target_arch = "aarch64",
                target_arch = "riscv64",
                target_arch = "x86_64"
            )
        ),
        loom
    )),
    allow(dead_code)
)]
pub fn drain(event: &Event, read: impl FnOnce() -> u64) -> u64 {
    let count = {
        let _lock = lock(event);
        let count = read();
        event.add_saturating(count);
        count
    };
    if count != 0 {
        event.wake_readers(count);
    }
    count
}

/// Carries counts as writes do, which wait for room: it keeps what was read and has no room in the event yet.
pub struct Carrier {
    /// What was read and has no room in the event yet. Changed under the lock.
    rest: AtomicU64,
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything that was read is in the event, and there may be more to read.
    Carried,
    /// There was nothing to read.
    Empty,
    /// The rest has no room in the event.
    Full,
    /// The carrying is over, and nothing was read.
    Over,
}

impl Carrier {
    /// A carrier without a rest.
    #[allow(clippy::new_without_default, reason = "loom's atomics are not const")]
    pub fn new() -> Self {
        Carrier {
            rest: AtomicU64::new(0),
        }
    }

    /// Carries the rest and, if all of it had room, what `read` takes from the eventfd. Does nothing if the carrying
    /// `is_over`.
    pub fn step(
        &self,
        event: &Event,
        is_over: impl FnOnce() -> bool,
        read: impl FnOnce() -> Option<u64>,
    ) -> Step {
        let (added, step) = {
            let _lock = lock(event);
            if is_over() {
                return Step::Over;
            }
            let left = self.rest.load(Ordering::Relaxed);
            let mut added = event.add_what_fits(left);
            let mut rest = left - added;
            let mut step = Step::Full;
            if rest == 0 {
                step = Step::Empty;
                if let Some(count) = read() {
                    let part = event.add_what_fits(count);
                    added = added.saturating_add(part);
                    rest = count - part;
                    step = if rest == 0 { Step::Carried } else { Step::Full };
                }
            }
            self.rest.store(rest, Ordering::Relaxed);
            (added, step)
        };
        if added != 0 {
            event.wake_readers(added);
        }
        step
    }

    /// Signals the rest, whether it fits or not, after the carrying `is_over`. When this returns, everything that was
    /// read is in the event, and nothing more is read.
    pub fn settle(&self, event: &Event) {
        let rest = {
            let _lock = lock(event);
            let rest = self.rest.load(Ordering::Relaxed);
            self.rest.store(0, Ordering::Relaxed);
            event.add_saturating(rest);
            rest
        };
        if rest != 0 {
            event.wake_readers(rest);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicUsize;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    const FULL: u64 = u64::MAX - 1;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether `change` wakes a task that has waited for the event before it.
    fn wakes(event: &Event, change: impl FnOnce()) -> bool {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut read = pin!(event.read_async());
        let polled = read.as_mut().poll(&mut Context::from_waker(&waker));
        assert_eq!(polled, Poll::Pending);
        change();
        woken.0.load(Ordering::Relaxed) != 0
    }

    #[test]
    fn a_drain() {
        let event = Event::new(0);
        assert!(!wakes(&event, || assert_eq!(drain(&event, || 0), 0)));
        assert!(wakes(&event, || assert_eq!(drain(&event, || 5), 5)));
        assert_eq!(drain(&event, || u64::MAX), u64::MAX);
        assert_eq!(event.count(), u64::MAX);
    }

    #[test]
    fn steps_while_there_is_room() {
        let (event, carrier) = (Event::new(0), Carrier::new());
        let step = |count| carrier.step(&event, || false, || count);
        assert!(!wakes(&event, || assert_eq!(step(None), Step::Empty)));
        assert!(wakes(&event, || assert_eq!(step(Some(5)), Step::Carried)));
        assert_eq!(step(Some(1)), Step::Carried);
        assert_eq!(
            (event.count(), carrier.rest.load(Ordering::Relaxed)),
            (6, 0)
        );
        assert_eq!(carrier.step(&event, || true, || unreachable!()), Step::Over);
    }

    /// What has no room stays, and nothing is read until it is in the event.
    #[test]
    fn steps_without_room() {
        let (event, carrier) = (Event::new(FULL - 3), Carrier::new());
        let rest = || carrier.rest.load(Ordering::Relaxed);
        let unread = || carrier.step(&event, || false, || unreachable!());
        assert_eq!(carrier.step(&event, || false, || Some(5)), Step::Full);
        assert_eq!((event.count(), rest()), (FULL, 2));
        assert_eq!(unread(), Step::Full);
        assert_eq!((event.count(), rest()), (FULL, 2));
        event.read();
        event.write(FULL - 1).unwrap();
        assert_eq!(unread(), Step::Full);
        assert_eq!((event.count(), rest()), (FULL, 1));
        event.read();
        // The rest and what is read now wake the task once.
        let both = || assert_eq!(carrier.step(&event, || false, || Some(7)), Step::Carried);
        assert!(wakes(&event, both));
        assert_eq!((event.count(), rest()), (8, 0));
        event.write(FULL - 8).unwrap();
        assert_eq!(carrier.step(&event, || false, || Some(2)), Step::Full);
        event.read();
        let alone = || assert_eq!(carrier.step(&event, || false, || None), Step::Empty);
        assert!(wakes(&event, alone));
        assert_eq!(event.count(), 2);
    }

    #[test]
    fn the_end_of_the_carrying() {
        let (event, carrier) = (Event::new(FULL), Carrier::new());
        assert_eq!(carrier.step(&event, || false, || Some(5)), Step::Full);
        event.read();
        assert!(wakes(&event, || carrier.settle(&event)));
        assert_eq!((event.read(), carrier.rest.load(Ordering::Relaxed)), (5, 0));
        assert!(!wakes(&event, || carrier.settle(&event)));
        // The rest is added as signals are, which are never refused.
        event.write(FULL).unwrap();
        assert_eq!(carrier.step(&event, || false, || Some(5)), Step::Full);
        carrier.settle(&event);
        assert_eq!(event.count(), u64::MAX);
    }
}
