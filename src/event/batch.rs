//! Signals collected for several events and delivered at once.
//!
//! The kernel's counterpart is io_uring's eventfd, which is signalled once for a batch of completions. A device
//! thread that completes sixteen requests on four queues owes four signals instead of sixteen:
//!
//! ```text
//!     signal(queue)  ──▶  pending: 5  0  9  2          plain additions, no atomics
//!     commit()       ──▶  1  each pending number is added to its event's count, by one atomic operation
//!                         2  do these events have waiters?  no: done
//!                         3  the threads that sleep in them are claimed
//!                         4  these threads are woken
//!                         5  pollers are told and tasks woken; then the threads in the pollers are woken
//!                         6  the other observers are called
//! ```
//!
//! The passes matter to a thread that waits for several of the events. When the first call or wake-up reaches it, all
//! counts have changed, so it finds all events ready. And it is woken once, because it is woken last:
//!
//! * A poller is put into the [wake queue](crate::sync::wake_queue) by each call that finds it asleep, and stands there
//!   once. When it is woken, all its events are in its queue.
//! * A thread in `wait_any` that is the only reader of several of the events is claimed at each, and woken at the last,
//!   see `src/event/visitor.rs`. (If there are other readers too, each event wakes a thread of its own.)
//!
//! Between the change of a count and the load of its waiters, other counts may change; the handshake of
//! `src/sync/waiters.rs` allows that. All claimed threads are woken before foreign code runs, except the wakers of
//! tasks. So an observer that blocks or takes long keeps no thread asleep, not even one that another thread signals.
//!
//! What remains is one `FUTEX_WAKE` for each event in which a thread of its own sleeps. Sixteen of them in one
//! submission of io_uring, and two at a time with `FUTEX_WAKE_OP`, were measured and took the same time within a tenth:
//! the time is spent in waking the threads.

use super::counter::released;
use super::observer::{Changed, Observers, calling};
use super::split::Owned;
use super::visitor::Number;
use super::{Change, Event, EventHandle, Owner, Unwritten, WriteError};
use crate::panics::go_on;
use crate::sync::membarrier;
use crate::sync::waiters::{Claimed, Release};
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::{fmt, mem, thread};

/// Signals and writes to several events that are delivered together.
///
/// A batch knows its events: [`add`](Self::add) each once, and use the index that it returns. From then on collecting
/// and [committing](Self::commit) allocate nothing, over and over.
///
/// * Signals to one event become one signal of their sum. Writes become one write, which fits as a whole or not at all.
/// * First the counts of all events change, then sleepers and tasks are woken, then observers are called. A thread that
///   sleeps in one of them, in [`wait_any`](crate::poll::wait_any()) on several that no other thread reads, or in a
///   [`Poller`](crate::poll::Poller) for any number of them, is woken once.
/// * An event that is signalled and written to is written to first.
///
/// **Dropping a batch commits it**: a signal that was accepted is delivered. Only writes that do not fit are lost then.
/// [Removing](Self::remove) an event delivers what is pending for it.
///
/// ```
/// use doorbell::Event;
/// use doorbell::event::Batch;
/// use std::sync::Arc;
///
/// let queues = [Event::new(0), Event::new(0)].map(Arc::new);
/// let mut batch = Batch::new();
/// let [rx, tx] = queues.each_ref().map(|queue| batch.add(Arc::clone(queue)));
///
/// for completed in [rx, rx, tx, rx] {
///     batch.signal(completed);
/// }
/// assert_eq!(queues[0].count(), 0);
/// batch.commit()?;
/// assert_eq!(queues[0].read(), 3);
/// assert_eq!(queues[1].read(), 1);
/// # Ok::<(), doorbell::event::Unwritten>(())
/// ```
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    /// One entry for each index; entries of removed events are vacant until [`add`](Self::add) uses them again.
    entries: Vec<Entry>,
    /// How often each event was added and not yet removed. Kept apart from the data that signals touch.
    users: Vec<usize>,
    /// The entries with something pending, in the order in which they got it. Never longer than `entries`.
    pending: Vec<usize>,
    /// Used during a commit. Never longer than `entries`.
    rung: Vec<Rung>,
    /// Whether events that are added get signallers with lanes.
    has_signallers: bool,
}

/// The index of an entry is in `pending` if the entry has signals or a write, including a write of 0.
struct Entry {
    /// `None` if the entry is vacant.
    event: Option<EventHandle>,
    signals: Option<u64>,
    write: Option<u64>,
    /// The signaller for signals of 1.
    lane: Option<Owned>,
}

impl Batch {
    /// A batch without events.
    pub const fn new() -> Self {
        Self::empty(false)
    }

    /// A batch without events, which signals each event that is added by a [`Signaller`](super::Signaller) of its own.
    /// A commit of one pending signal to an event then takes no locked instruction. [`Signaller`](super::Signaller)
    /// describes what that costs others, and when there is no signaller. An event's signaller is dropped when the event
    /// is [removed](Self::remove).
    ///
    /// ```
    /// # use doorbell::Event;
    /// # use doorbell::event::Batch;
    /// # use std::sync::Arc;
    /// let _ = doorbell::use_membarrier(); // first thing in main
    ///
    /// let queue = Arc::new(Event::new(0));
    /// let mut batch = Batch::with_signallers();
    /// let index = batch.add(Arc::clone(&queue));
    /// batch.signal(index);
    /// batch.commit()?;
    /// assert_eq!(queue.read(), 1);
    /// # Ok::<(), doorbell::event::Unwritten>(())
    /// ```
    pub const fn with_signallers() -> Self {
        Self::empty(true)
    }

    const fn empty(has_signallers: bool) -> Self {
        Batch {
            entries: Vec::new(),
            users: Vec::new(),
            pending: Vec::new(),
            rung: Vec::new(),
            has_signallers,
        }
    }

    /// Adds an event, and returns its index. If the event is in the batch already, the index is the same, and this
    /// handle is dropped. The index of a [removed](Self::remove) event may be given out again. The time grows with the
    /// number of events.
    pub fn add(&mut self, event: impl Into<EventHandle>) -> usize {
        let event = event.into();
        let is_it = |known: &EventHandle| known.ptr_eq(&event);
        let same = |entry: &Entry| entry.event.as_ref().is_some_and(is_it);
        if let Some(index) = self.entries.iter().position(same) {
            self.users[index] += 1;
            return index;
        }
        let lane = if self.has_signallers {
            event.claim_lane()
        } else {
            None
        };
        let lane = lane.map(|(_, lane)| lane);
        let entry = Entry {
            event: Some(event),
            signals: None,
            write: None,
            lane,
        };
        let is_vacant = |entry: &Entry| entry.event.is_none();
        if let Some(index) = self.entries.iter().position(is_vacant) {
            self.entries[index] = entry;
            self.users[index] = 1;
            return index;
        }
        self.entries.push(entry);
        self.users.push(1);
        self.pending
            .reserve(self.entries.len() - self.pending.len());
        self.rung.reserve(self.entries.len());
        self.entries.len() - 1
    }

    /// Takes back one [`add`](Self::add). When all of them have been taken back, the event leaves the batch, and is
    /// returned; before that, the result is `None`. So queues that share an event, and therefore an index, each add and
    /// remove the event.
    ///
    /// What is pending for an event that leaves is delivered first, as a [`commit`](Self::commit) of this event alone
    /// does it: its count changes, sleepers are woken, observers are called. When this returns, the batch does nothing
    /// to the event any more. A write for which there is no room changes nothing, and is [handed
    /// back](Removed::unwritten).
    ///
    /// Never blocks, unless an observer does. Allocates nothing, and takes a time that grows with the number of events.
    ///
    /// If an observer panics, then this does, and the event stays in the batch. Its signals have been delivered.
    ///
    /// # Panics
    ///
    /// If the index is not one of [`add`](Self::add)'s, or its event has left.
    ///
    /// # Examples
    ///
    /// A vhost-user front-end replaces the eventfd by which a queue interrupts the driver (`SET_VRING_CALL`). Signals
    /// collected so far go to the old eventfd:
    ///
    /// ```
    /// use doorbell::Event;
    /// use doorbell::event::Batch;
    /// use std::sync::Arc;
    ///
    /// let [old, new] = [(); 2].map(|()| Arc::new(Event::new(0)));
    /// let mut batch = Batch::new();
    /// let mut call = batch.add(Arc::clone(&old));
    /// batch.signal(call);
    ///
    /// batch.remove(call);
    /// call = batch.add(Arc::clone(&new));
    /// assert_eq!((old.count(), Arc::strong_count(&old)), (1, 1));
    ///
    /// batch.signal(call);
    /// batch.commit()?;
    /// assert_eq!((old.count(), new.count()), (1, 1));
    /// # Ok::<(), doorbell::event::Unwritten>(())
    /// ```
    pub fn remove(&mut self, index: usize) -> Option<Removed> {
        let entry = &mut self.entries[index];
        assert!(entry.event.is_some(), "{GONE}");
        if self.users[index] > 1 {
            self.users[index] -= 1;
            return None;
        }
        entry.apply();
        if let Some(whom) = entry.take_awaited() {
            let owned = entry.event().is_owned();
            self.rung.push(Rung::new(index, whom, owned));
        }
        let panicked = self.deliver();
        let entry = &mut self.entries[index];
        if panicked.is_none() || entry.write.is_none() {
            self.pending.retain(|&other| other != index);
        }
        go_on(panicked);
        let unwritten = entry.write.take();
        entry.lane = None;
        let event = entry.event.take()?;
        Some(Removed { event, unwritten })
    }

    /// The event at an index. `None` if the index is not one of [`add`](Self::add)'s, or its event has
    /// [left](Self::remove).
    ///
    /// ```
    /// # use doorbell::Event;
    /// # use doorbell::event::Batch;
    /// # use std::sync::Arc;
    /// let mut batch = Batch::new();
    /// let index = batch.add(Arc::new(Event::new(0)));
    /// assert!(batch.get(index).is_some());
    /// batch.remove(index);
    /// assert!(batch.get(index).is_none());
    /// ```
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&EventHandle> {
        self.entries.get(index)?.event.as_ref()
    }

    /// The event at an index.
    ///
    /// # Panics
    ///
    /// If the index is not one of [`add`](Self::add)'s, or its event has [left](Self::remove).
    #[must_use]
    pub fn event(&self, index: usize) -> &EventHandle {
        self.get(index).expect(GONE)
    }

    /// Adds one signal for an event. Shorthand for [`signal_n(index, 1)`](Self::signal_n).
    ///
    /// # Panics
    ///
    /// If the index is not one of [`add`](Self::add)'s, or its event has [left](Self::remove).
    #[inline]
    pub fn signal(&mut self, index: usize) {
        self.signal_n(index, 1);
    }

    /// Adds `n` signals for an event. Like those of [`Event::signal_n`] they saturate, among themselves and when they
    /// are committed.
    ///
    /// # Panics
    ///
    /// If the index is not one of [`add`](Self::add)'s, or its event has [left](Self::remove).
    #[inline]
    pub fn signal_n(&mut self, index: usize, n: u64) {
        let entry = &mut self.entries[index];
        if let Some(sum) = &mut entry.signals {
            // Only the addition is on the path of the next signal of the event; a choice between the sum and the limit
            // would be, too.
            match sum.checked_add(n) {
                Some(more) => *sum = more,
                None => saturate(sum),
            }
            return;
        }
        assert!(entry.event.is_some(), "{GONE}");
        entry.signals = Some(n);
        if entry.write.is_none() {
            self.pending.push(index);
        }
    }

    /// Adds a write of `n` to an event, as [`Event::try_write`] makes it. It is added to earlier writes; the
    /// [`commit`](Self::commit) finds whether the sum fits.
    ///
    /// # Errors
    ///
    /// [`WriteError::Invalid`] if `n` is `u64::MAX`, and [`WriteError::WouldBlock`] if the sum would be more than an
    /// event can hold at all. What was pending is unchanged.
    ///
    /// # Panics
    ///
    /// If the index is not one of [`add`](Self::add)'s, or its event has [left](Self::remove).
    pub fn write(&mut self, index: usize, n: u64) -> Result<(), WriteError> {
        let entry = &mut self.entries[index];
        assert!(entry.event.is_some(), "{GONE}");
        if n == u64::MAX {
            return Err(WriteError::Invalid);
        }
        let sum = entry.write.unwrap_or(0).checked_add(n);
        let sum = sum.filter(|&sum| sum != u64::MAX);
        let sum = sum.ok_or(WriteError::WouldBlock)?;
        if entry.signals.is_none() && entry.write.is_none() {
            self.pending.push(index);
        }
        entry.write = Some(sum);
        Ok(())
    }

    /// Delivers what is pending: first all counts change, then sleepers in the events and in pollers, and tasks, are
    /// woken, then observers are called. Never blocks, unless an observer does.
    ///
    /// A slow observer keeps no thread asleep: all threads and tasks that this commit wakes are woken before the first
    /// observer is called. Waiters of an irqfd's event are an exception, see [`Observer`](super::Observer).
    ///
    /// If an observer panics, all others are woken and called nevertheless. Then this panics with the first payload.
    ///
    /// # Errors
    ///
    /// [`Unwritten`] if there are writes for which there was no room. Those have changed nothing and stay pending for
    /// the next commit; see [`unwritten`](Self::unwritten). Everything else has been delivered.
    pub fn commit(&mut self) -> Result<(), Unwritten> {
        let Batch {
            entries,
            pending,
            rung,
            ..
        } = &mut *self;
        let mut unwritten = 0;
        for &index in &*pending {
            unwritten += usize::from(!entries[index].apply());
        }
        for &index in &*pending {
            if let Some(whom) = entries[index].take_awaited() {
                let owned = entries[index].event().is_owned();
                rung.push(Rung::new(index, whom, owned));
            }
        }
        let panicked = if rung.is_empty() {
            None
        } else {
            self.deliver()
        };
        let Batch {
            entries, pending, ..
        } = self;
        if unwritten == 0 {
            pending.clear();
        } else {
            pending.retain(|&index| entries[index].write.is_some());
        }
        go_on(panicked);
        match unwritten {
            0 => Ok(()),
            events => Err(Unwritten { events }),
        }
    }

    /// Wakes the waiters and calls the observers of the events in `rung`. Returns the payload of a panic.
    #[cold]
    #[inline(never)]
    fn deliver(&mut self) -> Option<Box<dyn Any + Send>> {
        // The observers may rely on the changes of the counts being visible, those by lanes included.
        membarrier::full();
        let deliver = AssertUnwindSafe(|| deliver(&self.entries, &mut self.rung));
        let panicked = panic::catch_unwind(deliver).err();
        self.rung.clear();
        panicked
    }

    /// The pending writes, as index and number: those that did not fit, and those that were added since the last
    /// commit.
    pub fn unwritten(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.pending
            .iter()
            .filter_map(|&index| Some((index, self.entries[index].write?)))
    }

    /// Forgets what is pending, signals and writes.
    pub fn discard(&mut self) {
        for index in self.pending.drain(..) {
            let entry = &mut self.entries[index];
            (entry.signals, entry.write) = (None, None);
        }
    }
}

impl Entry {
    /// First pass: changes the count. Afterwards, `signals` has what was added. Returns whether nothing is left to
    /// write.
    #[inline(always)]
    fn apply(&mut self) -> bool {
        let signals = self.signals;
        let fits = self.write.is_none() || self.apply_write();
        if let Some(n) = signals {
            match &self.lane {
                Some(lane) if n == 1 => lane.add_one(),
                _ => self.event().counter.add_saturating(n),
            }
        }
        fits
    }

    #[cold]
    #[inline(never)]
    fn apply_write(&mut self) -> bool {
        let fits = |&n: &u64| self.event().counter.add(n).is_some();
        if let Some(n) = self.write.filter(fits) {
            self.write = None;
            self.signals = Some(self.signals.unwrap_or(0).saturating_add(n));
        }
        self.write.is_none()
    }

    /// Second pass: takes the waiters that the signals are for, if there are any.
    #[inline(always)]
    fn take_awaited(&mut self) -> Option<Release> {
        let n = self.signals.take()?;
        let event = self.event();
        let wanted = event.counter.readers().has_work(event.kinds());
        wanted.then(|| released(n, event.mode))
    }

    #[inline(always)]
    fn event(&self) -> &Event {
        self.event.as_deref().expect(GONE)
    }
}

const GONE: &str = "the index has no event, or its event has left the batch";

/// An event that has left a [`Batch`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Removed {
    /// The handle of the event that was [added](Batch::add) first.
    pub event: EventHandle,
    /// The sum of pending writes, if there was no room for it.
    pub unwritten: Option<u64>,
}

/// An event with waiters, and which of them the commit under way has to wake and call.
struct Rung {
    index: usize,
    whom: Release,
    sleepers: Claimed,
    visitor: Option<Number>,
    kinds: u32,
    /// Whether an irqfd takes the signals first.
    owned: bool,
}

impl Rung {
    fn new(index: usize, whom: Release, owned: bool) -> Self {
        Rung {
            owned,
            index,
            whom,
            sleepers: Claimed::default(),
            visitor: None,
            kinds: 0,
        }
    }

    fn change(&self) -> Changed {
        Changed {
            what: Change::Signalled,
            kinds: self.kinds,
        }
    }
}

#[cold]
#[inline(never)]
fn saturate(sum: &mut u64) {
    *sum = u64::MAX;
}

/// The passes from the third on.
#[cold]
#[inline(never)]
fn deliver(entries: &[Entry], rung: &mut Vec<Rung>) {
    let event = |rung: &Rung| entries[rung.index].event();
    for place in 0..rung.len() {
        let (before, after) = rung.split_at_mut(place);
        let it = &mut after[0];
        if it.owned {
            continue;
        }
        (it.sleepers, it.visitor) = event(it).claim_readers(it.whom);
        let same = |other: &&mut Rung| it.visitor.is_some() && other.visitor == it.visitor;
        if let Some(other) = before.iter_mut().rev().find(same) {
            (other.sleepers, other.visitor) = (Claimed::default(), None);
        }
    }
    for it in &mut *rung {
        event(it).wake_claimed(mem::take(&mut it.sleepers));
    }
    rung.retain(|it| it.owned || event(it).is_observed());
    if !rung.is_empty() {
        calling(|calls| {
            calls.hold();
            for it in &mut *rung {
                it.kinds = event(it).claim_observers();
                if !it.owned {
                    Observers::wake_by_calls(event(it), calls, it.change());
                }
            }
            for it in &*rung {
                event(it).observers.call_others(calls, it.change());
            }
            for it in rung.iter().filter(|it| it.owned) {
                Observers::wake_by_calls(event(it), calls, it.change());
                let (sleepers, _) = event(it).claim_readers(it.whom);
                event(it).wake_claimed(sleepers);
            }
        });
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if thread::panicking() {
            // A second panic would end the process.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| self.commit()));
        } else {
            let _ = self.commit();
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_there = |entry: &&Entry| entry.event.is_some();
        let events = self.entries.iter().filter(is_there).count();
        f.debug_struct("Batch")
            .field("events", &events)
            .field("pending", &self.pending.len())
            .finish()
    }
}
