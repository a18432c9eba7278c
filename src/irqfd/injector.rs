//! The irqfd proper: the observer of an assigned event.
//!
//! The kernel's counterpart is `irqfd_wakeup()`: called inside the write, it takes the count away and injects. The
//! change triggers the interrupt rather than the count: a write of 0 interrupts, and so does a signal whose count
//! another reader has taken.
//!
//! **The end of an irqfd.** In the kernel one lock makes a write and its injection one step. So what the count holds
//! when an irqfd goes has interrupted, and is taken away with the irqfd. Here a signal first changes the count and then
//! looks for observers. The count may be that of a signal that finds no observer, because the irqfd has gone; then it
//! must stay. So an injector records how much of the count has [interrupted](Injector::covered), and takes away that
//! much.

use super::board::Board;
use super::line::{IrqLine, Pending, Request, Trigger};
use super::worker::Worker;
use crate::Mode;
use crate::event::{Change, EventHandle, Observer};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{DEKKER, Tally};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;

/// Kept by a router, its irqfds and its level sources. The last of them drops the worker, and then the board.
pub(super) struct Core {
    /// Dropped first, because it does what is left to do on the board.
    pub(super) _worker: Option<Worker>,
    pub(super) board: Arc<Board>,
}

pub(super) struct Injector {
    core: Arc<Core>,
    /// This has joined the line.
    line: Arc<IrqLine>,
    /// Claimed until this is dropped.
    event: EventHandle,
    /// In the line's list.
    resampler: Option<EventHandle>,
    counters: Arc<Counters>,
    /// How much of the count has interrupted, and is taken away when the irqfd goes: what was in the count before the
    /// newest injection (of a semaphore, one unit at most). `NOT_YET` until the count has been read for the first time.
    covered: AtomicU64,
    /// One more than the newest [`Pending`] that a signal is in; 0 if there is none.
    pending: AtomicU64,
}

const NOT_YET: u64 = u64::MAX;

/// An irqfd that is saved, before its events have names.
pub(super) struct SavedIrqfd {
    pub(super) gsi: u32,
    pub(super) event: EventHandle,
    pub(super) resample: Option<EventHandle>,
    pub(super) count: u64,
    pub(super) covered: u64,
    pub(super) pending: bool,
}

#[derive(Default)]
pub(super) struct Counters {
    signals: Tally,
    coalesced: Tally,
}

/// How often an irqfd was signalled, and how often it interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IrqfdCounters {
    /// Signals and writes of its event, and the count that was there when it was assigned, if there was one.
    pub signals: u64,
    /// Signals with an interrupt of their own: at once, or when the line is unmasked, provided that there is a route
    /// then and that the irqfd has not been deassigned before.
    pub injections: u64,
    /// Signals without one, because an interrupt was due already or the line was up.
    pub coalesced: u64,
}

impl Counters {
    pub(super) fn get(&self) -> IrqfdCounters {
        // In this order, because a signal is counted before it is found to be coalesced.
        let coalesced = self.coalesced.get();
        let signals = self.signals.get();
        IrqfdCounters {
            signals,
            injections: signals.saturating_sub(coalesced),
            coalesced,
        }
    }
}

impl Injector {
    /// An injector of an event that the caller has claimed.
    pub(super) fn new(
        core: &Arc<Core>,
        line: Arc<IrqLine>,
        event: EventHandle,
        resampler: Option<EventHandle>,
        counters: &Arc<Counters>,
    ) -> Self {
        line.join();
        if let Some(resampler) = &resampler {
            line.add_resampler(resampler);
        }
        Injector {
            core: Arc::clone(core),
            line,
            event,
            resampler,
            counters: Arc::clone(counters),
            covered: AtomicU64::new(NOT_YET),
            pending: AtomicU64::new(0),
        }
    }

    /// Injects if there is a count, which stays until the next signal. To be called when this is an observer.
    pub(super) fn begin(&self) {
        let count = self.event.count_after_asking();
        let covered = match self.event.mode() {
            Mode::Counter => count,
            Mode::Semaphore => count.min(1),
        };
        // Not if a signal has taken the count by now, or has recorded what it left.
        let _ = self
            .covered
            .compare_exchange(NOT_YET, covered, DEKKER, Ordering::Relaxed);
        if count != 0 {
            self.inject();
        }
    }

    /// Instead of [`begin`](Self::begin), for an irqfd that was saved with `count` in its event, of which so much was
    /// `covered`. Injects if the event has been signalled since.
    pub(super) fn resume(&self, count: u64, covered: u64) {
        let now = self.event.count_after_asking();
        let _ = self
            .covered
            .compare_exchange(NOT_YET, covered, DEKKER, Ordering::Relaxed);
        if now != count {
            self.inject();
        }
    }

    /// The irqfd as it is now; `pending` is the pending bit of its line.
    pub(super) fn save(&self, pending: Option<Pending>) -> SavedIrqfd {
        let newest = self.pending.load(Ordering::Relaxed).checked_sub(1);
        SavedIrqfd {
            gsi: self.line.gsi,
            event: self.event.clone(),
            resample: self.resampler.clone(),
            count: self.event.count(),
            covered: match self.covered.load(Ordering::Relaxed) {
                NOT_YET => 0,
                covered => covered,
            },
            pending: pending.is_some() && newest.map(Pending) == pending,
        }
    }

    /// The irqfd's newest signal is in this pending bit.
    #[inline]
    pub(super) fn set_pending(&self, Pending(number): Pending) {
        // Several threads may have one each; the newest counts. Relaxed: read when there are no signals any more.
        self.pending.fetch_max(number + 1, Ordering::Relaxed);
    }

    #[inline]
    fn inject(&self) {
        let trigger = match self.resampler {
            None => Trigger::Edge,
            Some(_) => Trigger::Level,
        };
        self.counters.signals.add_one();
        let signalled = self.core.board.signal(&self.line, trigger);
        if signalled.coalesced {
            self.counters.coalesced.add_one();
        }
        if let Some(pending) = signalled.pending {
            self.set_pending(pending);
        }
    }

    pub(super) fn line(&self) -> &IrqLine {
        &self.line
    }

    /// To be called when one unit has been taken from a semaphore. One of the units that are left is covered by the
    /// interrupt to come.
    ///
    /// Of several threads, the last one to store a 1 reads the count after that. If another thread had taken the last
    /// unit since, that thread would have stored something later.
    #[cold]
    fn cover_rest(&self) {
        self.covered.store(1, DEKKER);
        if self.event.count_after_asking() == 0 {
            self.covered.store(0, DEKKER);
        }
    }
}

impl Observer for Injector {
    #[inline]
    fn notified(&self, _: Change) {
        self.event.try_read();
        match self.event.mode() {
            // Relaxed: the covered part has been taken by now, and from then on this is 0. (A swap for the sake of
            // loom, which does not order stores among read-modify-writes.)
            Mode::Counter if self.covered.load(Ordering::Relaxed) == 0 => {}
            Mode::Counter => _ = self.covered.swap(0, Ordering::Relaxed),
            Mode::Semaphore => self.cover_rest(),
        }
        self.inject();
    }
}

impl Injector {
    /// Lets go of the line, except for its count of irqfds.
    fn disconnect(&mut self) {
        let resampler = self.resampler.take();
        let resamples = resampler.is_some();
        let is_last = resampler.is_some_and(|event| self.line.remove_resampler(event));
        let board = &self.core.board;
        let disconnect = || board.sink().disconnect(self.line.gsi, resamples);
        let disconnected = panic::catch_unwind(AssertUnwindSafe(disconnect));
        if is_last {
            // An assertion ends with the last resampling irqfd. If there is a new one by now, its device is asked.
            board.ask(&self.line, Request::Ack);
            board.wait_in_flight();
        }
        if let Err(payload) = disconnected {
            panic::resume_unwind(payload);
        }
    }
}

/// Comes after a grace period since this was an observer.
impl Drop for Injector {
    fn drop(&mut self) {
        // Another thread may be driving the line for a signal of this irqfd.
        if self.line.is_active() {
            self.core.board.wait_in_flight();
        }
        // The sink, or an observer of a resample event, may panic. The event must be disclaimed nevertheless.
        let disconnected = panic::catch_unwind(AssertUnwindSafe(|| self.disconnect()));
        // Relaxed: no other thread has this any more.
        self.event.take_back(self.covered.load(Ordering::Relaxed));
        let pending = self.pending.load(Ordering::Relaxed).checked_sub(1);
        let pending = self.line.leave(pending.map(Pending));
        self.event.disclaim();
        if pending {
            // The mask has kept a signal back. It interrupts if the event is assigned again.
            self.event.signal();
        }
        match disconnected {
            // A second panic would end the process.
            Err(payload) if !thread::panicking() => panic::resume_unwind(payload),
            _ => {}
        }
    }
}
