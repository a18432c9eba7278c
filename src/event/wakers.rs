//! Tasks that wait for an event, and threads that wait as tasks do: a line of wakers for each side.
//!
//! The kernel has no counterpart; tokio's `Notify` and `event-listener` are of this kind. The line stands beside
//! the event's list of observers, is made with the first task that waits and kept with the event, so waiting and waking
//! change no list. It is called on demand: signals cost nothing while nobody has asked since the last call.
//!
//! ```text
//!     task                                           signal
//!     1  try; got something: done                    1  count
//!     2  join the line, at its end or,               2  ARMED?  no: done
//!        if it has been there, at its old place      3  claim: clear ARMED
//!     3  arm                                         4  take the first waker out of the line, and call it
//!     4  try; nothing: come back when woken             (a read: all wakers of those who want to write)
//!     5  leave; others still in line?  hand on:         a semaphore, and more in line than units were added: arm for
//!                                                       them, look, wake as many as there are units less those woken
//!        more units than woken tasks?  wake so many more
//!        none?  arm for those in line, look again
//! ```
//!
//! Task 3 and 4 against signal 1 and 2 is the handshake of `src/sync/waiters.rs`, and hence no wake-up is lost: as
//! long as somebody stands in line, the event is armed, or a call is under way, or a woken task has yet to come back.
//! Such a task is polled, and then joins again or leaves; or it is dropped, and leaves. (One that is neither polled nor
//! dropped keeps the others waiting.) Who joins again arms for everybody, and who leaves does for the others what the
//! signal did for it, be it in line or not. (No case is known in which one in line must: it has armed for the others
//! since it was last woken, and each unit has woken a task or counts one as woken. It is a look too many, for a rule
//! without an exception.)
//!
//! A read wakes all who want to write, so who leaves that line owes the others nothing.

use super::{Change, Event};
use crate::sync::waiters::{ARMED, Release};
use crate::sync::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};
use std::panic::{self, AssertUnwindSafe};
use std::sync::PoisonError;
use std::task::Waker;

/// Who is waiting for the two sides of an event.
#[derive(Default)]
pub(crate) struct Wakers {
    readers: Line,
    writers: Line,
}

impl Wakers {
    pub(super) fn wake(&self, change: Change, tasks: Tasks) {
        match tasks {
            Tasks::First(count) => self.line(change).wake(count),
            Tasks::UpTo(units) => self.line(change).wake_up_to(units),
        }
    }

    /// How many wait that have not been woken.
    pub(super) fn waiting(&self, change: Change) -> usize {
        self.line(change).lock().waiting.len()
    }

    fn line(&self, change: Change) -> &Line {
        match change {
            Change::Signalled => &self.readers,
            Change::Read => &self.writers,
        }
    }
}

/// Which of the tasks that wait are to be woken.
#[derive(Clone, Copy)]
pub(super) enum Tasks {
    /// So many.
    First(usize),
    /// As many as there are units, counting those who have been woken already.
    UpTo(u32),
}

impl Event {
    /// Which tasks to wake after a change for which their arming was claimed.
    pub(super) fn tasks_for(&self, change: Change, whom: Release) -> Tasks {
        let count = match whom {
            Release::One => 1,
            Release::Each(count) => count as usize,
            Release::All => usize::MAX,
        };
        if whom == Release::One || self.observers.waiting_tasks(change) <= count {
            return Tasks::First(count);
        }
        // The others have lost their arming with the claim, and the next signal may have something for one of them: arm
        // for them, and look as they would.
        self.waiters(change).set(ARMED);
        self.hear_signallers();
        Tasks::UpTo(self.units())
    }
}

/// A place in one of the lines of an event, or the intention to take one.
///
/// Dropping it leaves the line.
pub(crate) struct Place<'a> {
    event: &'a Event,
    change: Change,
    /// The number in the line, from the first time on that it was joined.
    number: Option<u64>,
}

impl<'a> Place<'a> {
    /// For who waits until `change` happens.
    pub(crate) fn new(event: &'a Event, change: Change) -> Self {
        Place {
            event,
            change,
            number: None,
        }
    }

    pub(crate) fn event(&self) -> &'a Event {
        self.event
    }

    /// Stands in line, to be woken by the next change. The caller looks at the count *afterwards*, with `DEKKER` loads.
    pub(crate) fn join(&mut self, waker: &Waker) {
        self.number = Some(self.line().join(self.number, waker));
        self.arm();
    }

    /// Stands in line no more, and hands on what may have woken it.
    pub(crate) fn leave(&mut self) {
        let Some(number) = self.number.take() else {
            return;
        };
        let others = self.line().leave(number);
        if others && self.change == Change::Signalled {
            self.hand_on();
        }
    }

    /// Acts as a signal for the others in line, or arms for them.
    #[cold]
    fn hand_on(&self) {
        let wake = |units| self.line().wake_up_to(units);
        let units = self.event.units();
        if units != 0 {
            return wake(units);
        }
        self.arm();
        wake(self.event.units());
    }

    fn arm(&self) {
        self.event.waiters(self.change).set(ARMED);
        if self.change == Change::Signalled {
            self.event.hear_signallers();
        }
    }

    fn line(&self) -> &'a Line {
        self.event.observers.wakers().line(self.change)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The wakers that wait for one kind of change, in the order in which they joined.
#[derive(Default)]
struct Line(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: BTreeMap<u64, Waker>,
    /// The number of who came last.
    last: u64,
    /// Those who have been woken, and have neither joined again nor left.
    woken: usize,
}

impl Line {
    /// A waker is code from elsewhere, so it is cloned, called and dropped outside of the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, number: Option<u64>, waker: &Waker) -> u64 {
        let waker = waker.clone();
        let mut state = self.lock();
        let number = match number {
            Some(number) => {
                state.woken -= usize::from(!state.waiting.contains_key(&number));
                number
            }
            None => {
                state.last += 1;
                state.last
            }
        };
        let replaced = state.waiting.insert(number, waker);
        drop(state);
        drop(replaced);
        number
    }

    /// Returns whether others still stand in line.
    fn leave(&self, number: u64) -> bool {
        let mut state = self.lock();
        let removed = state.waiting.remove(&number);
        state.woken -= usize::from(removed.is_none());
        let others = !state.waiting.is_empty();
        drop(state);
        drop(removed);
        others
    }

    /// Wakes as many as there are units, counting those who have been woken already.
    fn wake_up_to(&self, units: u32) {
        let woken = self.lock().woken;
        self.wake((units as usize).saturating_sub(woken));
    }

    /// Wakes the first `count`, all of them even if one panics. Not those who join, or join again, in the meantime:
    /// they have looked at the count since.
    fn wake(&self, count: usize) {
        let mut panicked = None;
        let mut reached = 0;
        let mut end = u64::MAX;
        for _ in 0..count {
            let mut state = self.lock();
            end = end.min(state.last);
            let first = state
                .waiting
                .range((Excluded(reached), Included(end)))
                .next();
            let Some(number) = first.map(|(&number, _)| number) else {
                break;
            };
            let waker = state.waiting.remove(&number);
            state.woken += 1;
            drop(state);
            reached = number;
            let wake = AssertUnwindSafe(|| waker.map(Waker::wake));
            if let Err(payload) = panic::catch_unwind(wake) {
                panicked.get_or_insert(payload);
            }
        }
        if let Some(payload) = panicked {
            panic::resume_unwind(payload);
        }
    }
}
