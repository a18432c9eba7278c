//! A thread that sleeps at several events: a batch that signals all of them wakes it once.
//!
//! The kernel has no counterpart. A thread in `poll(2)` has an entry in each wait queue that leads to the thread, and
//! every waker but the first finds it awake. A futex does not tell which thread sleeps on it. So a thread in `wait_any`
//! leaves its number at each of its events:
//!
//! ```text
//!     visitor                                       batch, when all counts have changed
//!     1  at each event: enter; load the key         1  at each event: claim the announced readers;
//!     2  at each event: leave the number               one only, and then a number is there? it is a visitor
//!     3  at each event: announce                    2  at each event: wake the readers claimed there,
//!     4  check all; sleep; load all keys; from 3       but a visitor only where it was found last
//!     5  at each event: take it away; leave
//! ```
//!
//! Why it is right not to wake a visitor at the other events where it was found:
//!
//! * Suppose that the visitor was the reader claimed there. It had loaded all its keys before it announced itself, so
//!   it had loaded the key of the last event before the claim at that event. Hence the wake-up at the last event ends
//!   the sleep in question, or the sleep does not begin. Before its next sleep, the visitor announces itself at all
//!   events again. If it is not at the last event in the same call, it has left.
//! * Suppose that the visitor came after the claim, and the claimed reader is another thread. Then the visitor
//!   announces that reader with itself, and checks all events. If one of them is ready, it leaves, and wakes the reader
//!   if there is something to read.
//!
//! So there is one wake-up, which comes after all claims: a thread that has woken up and sleeps again is not claimed a
//! second time.

use super::{Change, Event, Owner};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::waiters::{Claimed, Release};
use crate::sync::{Numbers, const_thread_local};
use std::cell::Cell;
use std::num::NonZero;

/// The number of a thread.
pub(super) type Number = NonZero<u32>;

/// A visitor's number at an event. If there are several visitors, it is the number of one of them, or 0.
pub(super) struct Visitor(AtomicU32);

impl Visitor {
    maybe_const! {
        pub(super) fn new() -> Self {
            Visitor(AtomicU32::new(0))
        }
    }

    fn number(&self) -> Option<Number> {
        Number::new(self.0.load(Ordering::Relaxed))
    }
}

/// The number of this thread. A thread that asks when all numbers are given out has none, and is woken at each event
/// like any other reader.
fn own_number() -> Option<Number> {
    static NUMBERS: Numbers = Numbers::new();
    const_thread_local! {
        static OWN: Cell<Option<Number>> = { Cell::new(None) };
    }
    OWN.with(|own| {
        own.set(own.get().or_else(|| NUMBERS.next()));
        own.get()
    })
}

impl Event {
    /// Marks this thread, which has entered as a reader, as one that sleeps at other events too.
    pub(crate) fn visit(&self) {
        let number = own_number().map_or(0, Number::get);
        self.visitor.0.store(number, Ordering::Relaxed);
    }

    /// Leaves like a reader that has taken nothing.
    pub(crate) fn end_visit(&self) {
        // Leaving releases it, and a claim acquires: a claim that finds this thread gone does not find its number.
        self.visitor.0.store(0, Ordering::Relaxed);
        self.waiters(Change::Signalled).leave(false, || {
            self.hear_signallers();
            self.left_over()
        });
    }

    /// Claims readers that can go on. Returns the number too, if the reader is a single visitor.
    pub(super) fn claim_readers(&self, whom: Release) -> (Claimed, Option<Number>) {
        let claimed = self.waiters(Change::Signalled).claim_sleepers(whom);
        let visitor = if claimed.is_one_alone() {
            self.visitor.number()
        } else {
            None
        };
        (claimed, visitor)
    }

    /// Wakes the claimed readers.
    pub(super) fn wake_claimed(&self, claimed: Claimed) {
        self.waiters(Change::Signalled).wake_claimed(claimed);
    }

    /// Whether an observer or a task is to be called after a signal.
    pub(super) fn is_observed(&self) -> bool {
        self.waiters(Change::Signalled).has_observers(self.kinds())
    }

    /// Claims observers after a signal, and returns the kinds that are to be called.
    pub(super) fn claim_observers(&self) -> u32 {
        self.waiters(Change::Signalled)
            .claim_observers(self.kinds())
    }
}
