//! The irqfd proper: what an event has as its observer.
//!
//! The kernel's counterpart is `irqfd_wakeup()`: called inside the write, it takes the count away and injects. The
//! change is what triggers, not the count: a write of 0 interrupts, and so does a signal whose count somebody else took.

use super::board::Board;
use super::line::{Line, Request};
use super::worker::Worker;
use crate::Event;
use crate::event::{Change, Observer};
use crate::sync::Tally;
use std::sync::Arc;

/// What a router and its irqfds hold on to. The board goes when the last of them has, and the worker before.
pub(super) struct Core {
    /// Dropped first: it finishes what is left to do on the board.
    pub(super) _worker: Option<Worker>,
    pub(super) board: Arc<Board>,
}

/// What a signal does to the line.
#[derive(Clone, Copy)]
pub(super) enum Trigger {
    /// A pulse or a message.
    Edge,
    /// Up, until the guest has acked it.
    Level,
}

pub(super) struct Injector {
    pub(super) core: Arc<Core>,
    pub(super) line: Arc<Line>,
    /// Claimed: it is disclaimed when this is dropped.
    pub(super) event: Arc<Event>,
    /// In the line's list.
    pub(super) resampler: Option<Arc<Event>>,
    pub(super) counters: Arc<Counters>,
}

#[derive(Default)]
pub(super) struct Counters {
    signals: Tally,
    coalesced: Tally,
}

/// How often an irqfd was signalled, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IrqfdCounters {
    /// Signals and writes of its event, and the count that was there when it was assigned, if there was one.
    pub signals: u64,
    /// Those that had an interrupt of their own: at once, or when the line is unmasked, if there is a route then.
    pub injections: u64,
    /// Those that had not, because an interrupt was due already, or the line was up.
    pub coalesced: u64,
}

impl Counters {
    pub(super) fn get(&self) -> IrqfdCounters {
        // In this order: a signal is counted before it is found to be coalesced.
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
    #[inline]
    pub(super) fn inject(&self) {
        let trigger = match self.resampler {
            None => Trigger::Edge,
            Some(_) => Trigger::Level,
        };
        self.counters.signals.add_one();
        if self.core.board.signal(&self.line, trigger) {
            self.counters.coalesced.add_one();
        }
    }
}

impl Observer for Injector {
    #[inline]
    fn notified(&self, _: Change) {
        self.event.try_read();
        self.inject();
    }
}

/// After a grace period in which it was no event's observer any more.
impl Drop for Injector {
    fn drop(&mut self) {
        // Another thread may be driving the line for a signal of ours.
        if self.line.is_busy() {
            self.core.board.settle();
        }
        if let Some(resampler) = self.resampler.take() {
            if self.line.remove_resampler(resampler) {
                // An assertion ends with the last of them. If there is another one meanwhile, it is asked.
                self.core.board.ask(&self.line, Request::Ack);
                self.core.board.settle();
            }
        }
        self.event.try_read();
        self.event.disclaim();
    }
}
