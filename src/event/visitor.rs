//! A thread that sleeps at several events: who rings them all wakes it once.
//!
//! The kernel has no counterpart: who sleeps in `poll(2)` has an entry in each wait queue that leads to the thread, and
//! each waker after the first finds it awake. A futex does not say who sleeps on it. So a thread in `wait_any` leaves
//! its number at each of its events:
//!
//! ```text
//!     visitor                                       batch, when all counts have changed
//!     1  at each event: enter; read the key         1  at each event: claim the readers who are announced;
//!     2  at each event: leave the number               one only, and then a number is there? it is a visitor
//!     3  at each event: announce                    2  at each event: wake those who were claimed there,
//!     4  look; sleep; read all keys; from 3            but a visitor only where it was found last
//!     5  at each event: take it away; leave
//! ```
//!
//! Why it is right not to wake where a visitor was found before that:
//!
//! * If the visitor was the one claimed there: it had read all its keys before it announced itself, so the key of the
//!   last event before the claim at that. Hence the sleep in question is ended by the wake-up at the last event, or
//!   does not begin. Before the next sleep it announces itself anew everywhere. And if it is not at the last event in
//!   the same call, it has left.
//! * If it has come after the claim, and the one claimed is another reader: it announces that one with itself, then
//!   looks, and if it finds anything it leaves, and wakes the other if there is something to read.
//!
//! So there is one wake-up, and it comes after all claims: who has woken up and sleeps again is not claimed once more.

use super::{Change, Event, Owner};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::waiters::{Claimed, Release};
use crate::sync::{Numbers, const_thread_local};
use std::cell::Cell;
use std::num::NonZero;

/// The number of a thread.
pub(super) type Number = NonZero<u32>;

/// The place for a visitor's number at an event. Of several visitors, one leaves it there, or none.
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

/// The number of this thread. One that comes when all are given out has none, and is woken at each event like anybody
/// else.
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
    /// To be known as one that sleeps elsewhere too, for who has entered here as a reader.
    pub(crate) fn visit(&self) {
        let number = own_number().map_or(0, Number::get);
        self.visitor.0.store(number, Ordering::Relaxed);
    }

    /// Leaves as a reader does.
    pub(crate) fn end_visit(&self) {
        // The leaving releases it, and a claim acquires: one that finds this thread gone does not find its number.
        self.visitor.0.store(0, Ordering::Relaxed);
        self.waiters(Change::Signalled).leave(false, || {
            self.hear_signallers();
            self.left_over()
        });
    }

    /// Claims readers for whom there is something, and says who it is, if it is a single visitor.
    pub(super) fn claim_readers(&self, whom: Release) -> (Claimed, Option<Number>) {
        let claimed = self.waiters(Change::Signalled).claim_sleepers(whom);
        let visitor = if claimed.is_one_alone() {
            self.visitor.number()
        } else {
            None
        };
        (claimed, visitor)
    }

    /// Wakes those who were claimed.
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
