//! One thread's way to signal an event without a locked instruction.
//!
//! What a signaller adds, where, and why no operation sees a count that never was: see `src/event/split.rs`. Why no
//! sleeper misses it:
//!
//! ```text
//!     signaller                               sleeper
//!     1  store to the lane                    1  announce itself
//!     2  load: announced?  no: done           2  membarrier: each thread of the process executes a full barrier
//!                                             3  load the lanes; nothing there: sleep
//! ```
//!
//! The processor may execute the signaller's load before its store. But during the sleeper's 2, each running thread of
//! the process executes a barrier somewhere in its program, and a thread that does not run has executed one when it was
//! preempted. If the signaller's barrier is after its 1, the sleeper sees the lane at 3. If it is before 1, it is
//! before 2 also, and the signaller sees the announcement.

use super::split::{Number, Owned};
use super::{Event, EventHandle, Owner};
use crate::sync::membarrier;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

/// Signals an event from one thread at a time, for a fraction of what [`Event::signal`] costs.
///
/// ```
/// use doorbell::Event;
/// use doorbell::event::Signaller;
/// use std::sync::Arc;
///
/// let _ = doorbell::use_membarrier(); // first thing in main; without it, signallers signal the usual way
///
/// let kick = Arc::new(Event::new(0));
/// let signaller = Signaller::new(Arc::clone(&kick)); // one for each thread that signals
/// signaller.signal();
/// kick.signal();
/// assert_eq!(kick.read(), 2);
/// ```
///
/// A signal of an event is a locked instruction, which waits until all earlier stores of the thread are visible, and
/// takes the cache line of the count away from the reader. A signaller has a *lane* at its event: a word that
/// no other thread writes. Its signal is a store to that word, and a load that tells whether anybody waits. The count
/// of the event is the sum of the lanes and of what was signalled and written otherwise.
///
/// # What stays the same
///
/// Everything else about the event. Its count, limits, mode and readiness, and what is woken and called, are the same
/// as for [`Event::signal`], whatever other threads signal and write beside the signaller. Observers, tasks and threads
/// that wait are told at once.
///
/// # What it costs others
///
/// The event pays for what its signallers save, from its first one on:
///
/// * A thread that finds nothing and goes to sleep, in the event, a poller or `wait_any`, a task that waits, and an
///   observer that is attached or armed call `membarrier(2)` each time before the last look at the count: 0.1 to
///   0.2 µs if no other thread of the process runs, and some 5 to 10 µs if one does, which is interrupted.
/// * A [`Poller`](crate::poll::Poller) keeps asking a level-triggered event with signallers while it is awake, and
///   calls `membarrier` once for all of them before it sleeps. So it reports such events in the order in which it asks
///   them, where it reports others in the order in which they were signalled.
/// * Where a [watch](crate::poll::Watch) of the event asks for room or errors alone, each signal calls `membarrier`.
/// * Other signals, and reads and writes, take a few nanoseconds more, and up to a cache miss for each lane.
///
/// So a signaller is for the thread that signals much more often than the other side sleeps: a vCPU whose device polls,
/// a producer that a busy consumer keeps up with.
///
/// # When it is no more than a handle
///
/// A signaller has no lane, and signals as [`Event::signal`] does, in these cases:
///
/// * [`use_membarrier`](crate::use_membarrier) has not been called before the signaller was made, or has failed;
/// * the event has ever been in the overflow state while it had no signaller, or was made with a count of `u64::MAX`;
/// * 64 signallers of the event have a lane, until one of those is dropped;
/// * the processor has no atomic words of 128 bits, which the count needs then: it has on x86-64 and AArch64.
///
/// [`has_lane`](Self::has_lane) tells.
///
/// # Memory ordering
///
/// What the thread did before the signal is visible to the thread whose read consumes it, as with any signal. But a
/// signal by a lane is no full barrier: the processor may execute a later load of the thread first. Code that has a
/// store-and-load handshake of its own around the signal needs a fence of its own.
///
/// # Threads, signal handlers, processes
///
/// A signaller can be sent to another thread, and be used by one at a time. Dropping it leaves its signals where they
/// are; the next signaller takes over its lane. One that is forgotten keeps the lane as long as there is the event.
///
/// It is made by allocating memory, so not in a handler of a POSIX signal. A handler may signal the event in the usual
/// way, but not by a signaller that it may have interrupted. After a fork, the child's copy works like the original.
///
/// While the first signaller of an event is being made, a signal that takes the count to `u64::MAX` waits until that is
/// done. So does the making of another one, but for those of a table's
/// [`Reader`](crate::ioeventfd::Reader::with_signallers). A handler that has interrupted it, and a child that is forked
/// from another thread meanwhile, would wait for ever: for a fork, it is a change of the event.
pub struct Signaller {
    event: EventHandle,
    lane: Option<Owned>,
    /// The lane is written by one thread at a time.
    not_sync: PhantomData<Cell<()>>,
}

impl Signaller {
    /// A signaller of the event. Allocates memory, up to 1 KB with the event's first. Waits for no other thread, unless
    /// that is making the event's first signaller just then.
    #[must_use]
    pub fn new(event: impl Into<EventHandle>) -> Self {
        let event = event.into();
        let lane = event.claim_lane().map(|(_, lane)| lane);
        Signaller {
            event,
            lane,
            not_sync: PhantomData,
        }
    }

    /// Adds 1, as [`Event::signal`] does.
    #[inline]
    pub fn signal(&self) {
        match &self.lane {
            Some(lane) => {
                lane.add_one();
                self.event.signalled_by_lane();
            }
            None => self.event.signal(),
        }
    }

    /// Adds `n`, as [`Event::signal_n`] does, and at its price unless `n` is 1.
    #[inline]
    pub fn signal_n(&self, n: u64) {
        if n == 1 {
            self.signal();
        } else {
            self.event.signal_n(n);
        }
    }

    /// Whether its signals do without a locked instruction.
    #[must_use]
    pub fn has_lane(&self) -> bool {
        self.lane.is_some()
    }

    /// The event.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        &self.event
    }
}

impl Event {
    /// A lane for a signaller, if there is one left, and the number of the event's lanes.
    pub(super) fn claim_lane(&self) -> Option<(Number, Owned)> {
        self.counter.claim_lane()
    }

    /// The number of the event's lanes, if it has any.
    #[inline(always)]
    pub(super) fn number(&self) -> Option<Number> {
        self.counter.number()
    }

    /// Second half of a signal of 1 by a lane.
    #[inline(always)]
    pub(super) fn signalled_by_lane(&self) {
        if self.counter.readers().has_work(self.kinds()) {
            self.wake_after_lane();
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_after_lane(&self) {
        // The observers may rely on the change of the count being visible, as with other signals.
        membarrier::full();
        self.counter.wake_readers(1, self);
    }
}

impl fmt::Debug for Signaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signaller")
            .field("event", &*self.event)
            .field("has_lane", &self.has_lane())
            .finish()
    }
}
