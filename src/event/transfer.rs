//! Counts on their way from a kernel eventfd into an event.
//!
//! A thread that has read an eventfd holds the count until it adds the count to the event. In between, the count is in
//! neither of the two. A thread that has taken the eventfd from its writers, and reads it a last time, would find
//! nothing there and believe that the event has everything. So the read and the addition are made under a lock, as one
//! step:
//!
//! ```text
//!     thread that carries                     thread that has taken the eventfd from its writers
//!     1  lock; read; add; unlock              1  lock; read, and find nothing; unlock
//!     2  wake readers, call observers         2  the event has all
//! ```
//!
//! Nobody is woken and nothing foreign is called under the lock, so it is held for a `read(2)` that does not block and
//! for an addition.

use super::Event;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::fair::{FairMutex, FairMutexGuard};

/// The lock of an event, and of others: so an event need not have one.
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
/// returns, all that others have taken from the eventfd for this event is in the event too.
#[cfg_attr(not(any(feature = "kvm", loom)), allow(dead_code))]
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

/// Carries as writes do, which wait for room: keeps what was read and has no room in the event yet.
pub struct Carrier {
    /// Changed under the lock.
    rest: AtomicU64,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All that was read is in the event, and there may be more to read.
    Carried,
    /// There was nothing to read.
    Empty,
    /// What is left has no room in the event.
    Full,
    /// The carrying is over, and nothing was read.
    Over,
}

impl Carrier {
    /// With nothing to carry.
    #[allow(clippy::new_without_default, reason = "loom's atomics are not const")]
    pub fn new() -> Self {
        Carrier {
            rest: AtomicU64::new(0),
        }
    }

    /// Carries what is left and, if all of that had room, what `read` takes from the eventfd; unless it `is_over`.
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

    /// Signals what is left, whether it fits or not, after the carrying `is_over`. When this returns, all that was read
    /// is in the event, and nothing is read any more.
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
