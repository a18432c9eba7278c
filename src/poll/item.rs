//! An item is what gets into a poller's queue: an event that is watched, or a binding.
//!
//! The kernel's counterpart is `struct epitem` and its `ep_poll_callback()`. An item is an observer that asks for one
//! call. The call puts the item into the queue. After that, changes of its event cost nothing, until a thread in `wait`
//! has looked at the item.
//!
//! ```text
//!     state   | QUEUED | ONE_SHOT | EDGE | ENABLED | WRITABLE | READABLE |
//!
//!     signaller                                   thread in wait, under the poller's lock
//!     1  change the count                         1  take the item off the queue; clear QUEUED
//!     2  ARMED?  no: done                         2  set ARMED
//!     3  clear ARMED; set QUEUED                  3  look at the count: not ready?  done, the signaller will call
//!     4  was it clear?  push; wake a thread       4  report
//! ```
//!
//! Thread 2 and 3 against signaller 1 and 2 is the handshake of [`Event::arm`](crate::Event::arm). A signaller that has
//! claimed ARMED before 2 and sees QUEUED at 3 changed the count before 2, so the look at 3 takes it into account. One
//! that comes after 1 queues the item once more, and is reported once more: that is an edge.
//!
//! A level-triggered item that is ready stays in the queue, QUEUED and not armed. Only when a later look finds it not
//! ready, it goes through 1 to 3.
//!
//! If the event has [signallers](crate::event::Signaller), step 2 is followed by a barrier that all threads of the
//! process execute (see `src/event/split.rs`), and a signal to an armed event costs more than a signaller saves. So a
//! level-triggered item with signallers is *hot*: it stays in the queue, ready or not, and each look examines it, until
//! a thread sleeps or [`MOST_IDLE`] looks have found nothing. Then all hot items are armed, with one barrier for all.

use super::bound::Bound;
use super::events;
use super::incoming::{Link, Linked};
use super::queued_binding::QueuedBinding;
use super::shared::Shared;
use super::watch::Watch;
use crate::event::{Change, EventHandle, Interest, Observer, Readiness};
use crate::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

const READABLE: u32 = 1;
const WRITABLE: u32 = 2;
/// It may report something, at least an error. Clear after the report of a one-shot, and after the deletion.
const ENABLED: u32 = 4;
const EDGE: u32 = 8;
const ONE_SHOT: u32 = 16;
/// It is in the queue, or on its way there.
const QUEUED: u32 = 32;
/// It has been deleted. It stays QUEUED, in the queue or not, so that no thread queues it again.
const DELETED: u32 = 64;

pub(super) struct Item {
    link: Link<Item>,
    state: AtomicU32,
    /// How many looks in a row have found nothing. Under the poller's lock.
    idle: AtomicU32,
    pub(super) key: usize,
    pub(super) kind: Kind,
    shared: Arc<Shared<Item>>,
}

pub(super) enum Kind {
    Watched(EventHandle),
    Bound(Bound),
}

/// After this many looks that found nothing, an item is no longer hot: looks cost time too.
const MOST_IDLE: u32 = 256;

/// What the examination of an item found.
pub(super) enum Examined<'a> {
    /// Not ready or disabled. It has left the queue.
    Nothing,
    /// It has left the queue. These flags are to be reported.
    Ready(u8),
    /// These flags are to be reported, and it stays in the queue.
    StillReady(Arc<Item>, u8),
    /// It is not ready, but stays in the queue, to be examined again.
    Hot(Arc<Item>),
    /// It has left the queue and is armed. The caller executes the [barrier](Item::hear_signallers), and then examines
    /// it [once more](Item::examine_armed).
    Armed(&'a Item),
}

impl Item {
    /// An item that is disabled until the first [`watch`](Self::watch), and counts as queued until the first
    /// [`leave_queue`](Self::leave_queue).
    pub(super) fn new(key: usize, kind: Kind, shared: Arc<Shared<Item>>) -> Arc<Self> {
        Arc::new(Item {
            link: Link::new(),
            state: AtomicU32::new(QUEUED),
            idle: AtomicU32::new(0),
            key,
            kind,
            shared,
        })
    }

    fn event(&self) -> &EventHandle {
        match &self.kind {
            Kind::Watched(event) => event,
            Kind::Bound(bound) => bound.event(),
        }
    }

    /// Changes what it is watched for. Called under the poller's lock, and followed by [`sample`](Self::sample).
    pub(super) fn watch(&self, watch: Watch) {
        let mut bits = ENABLED;
        for (wanted, bit) in [
            (watch.readable, READABLE),
            (watch.writable, WRITABLE),
            (watch.edge, EDGE),
            (watch.one_shot, ONE_SHOT),
        ] {
            bits |= if wanted { bit } else { 0 };
        }
        let update = |state| Some(state & QUEUED | bits);
        // A call that is asked for from now on sees it: `arm` releases, and the thread that claims the call acquires.
        let _ = self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// Queues it if it is ready, as epoll does when an item is added or modified.
    pub(super) fn sample(&self) {
        let state = self.state.load(Ordering::Relaxed);
        self.arm(state);
        if self.ready_flags(state) != 0 {
            self.enqueue();
        }
    }

    /// Deletes it. Returns whether it may still be in the queue. Called under the poller's lock.
    pub(super) fn delete(&self) -> bool {
        // Acquire pairs with the Release in `leave_queue`.
        let before = self.state.swap(QUEUED | DELETED, Ordering::Acquire);
        let queued = before & QUEUED != 0;
        if !queued {
            // SAFETY: the bit was clear, so the count has been kept, and the thread that sets the bit takes it: this
            // one.
            drop(unsafe { self.link.take() });
        }
        queued
    }

    pub(super) fn is_one_shot(&self) -> bool {
        self.state.load(Ordering::Relaxed) & ONE_SHOT != 0
    }

    /// Returns the count that the caller has to put into the queue; `None` if the item is queued already.
    pub(super) fn enter_queue(&self) -> Option<Arc<Self>> {
        // AcqRel pairs with itself in `leave_queue`: the link is handed over with the bit.
        let before = self.state.fetch_or(QUEUED, Ordering::AcqRel);
        // SAFETY: the bit was clear, so the count has been kept, and the thread that sets the bit takes it: this one.
        (before & QUEUED == 0).then(|| unsafe { self.link.take() })
    }

    /// Called by the thread that has taken it from the queue. From then on any thread may queue it again.
    ///
    /// # Safety
    ///
    /// The item is registered, and stays so as long as the reference is used: the caller has the poller's lock.
    pub(super) unsafe fn leave_queue<'a>(self: Arc<Self>) -> &'a Self {
        // SAFETY: the registration holds a count too.
        let item = unsafe { &*Arc::as_ptr(&self) };
        // Release hands the link over to the thread that sets the bit next. Acquire pairs with the Release in
        // `enter_queue`.
        item.link.keep(self);
        item.state.fetch_and(!QUEUED, Ordering::AcqRel);
        item
    }

    /// Called by the thread that has taken it from the queue. With `may_be_hot`, an item with signallers may stay.
    ///
    /// # Safety
    ///
    /// The item is registered, and the caller has the poller's lock.
    pub(super) unsafe fn examine<'a>(self: Arc<Self>, may_be_hot: bool) -> Examined<'a> {
        let state = self.state.load(Ordering::Relaxed);
        let stays = state & (EDGE | ONE_SHOT) == 0;
        if stays && state & ENABLED != 0 {
            let flags = self.ready_flags(state);
            if flags != 0 {
                self.idle.store(0, Ordering::Relaxed);
                return Examined::StillReady(self, flags);
            }
            if may_be_hot && self.event().has_signallers() {
                let idle = self.idle.load(Ordering::Relaxed) + 1;
                self.idle.store(idle % (MOST_IDLE + 1), Ordering::Relaxed);
                if idle <= MOST_IDLE {
                    return Examined::Hot(self);
                }
            }
        }
        // SAFETY: as promised.
        let item = unsafe { self.leave_queue() };
        if state & ENABLED == 0 {
            return Examined::Nothing;
        }
        item.event().arm_unheard(interest(state));
        if item.event().has_signallers() {
            return Examined::Armed(item);
        }
        item.examine_armed()
    }

    /// The look at the count that follows arming. Called under the poller's lock.
    pub(super) fn examine_armed<'a>(&self) -> Examined<'a> {
        let state = self.state.load(Ordering::Relaxed);
        let flags = self.ready_flags(state);
        if flags == 0 {
            return Examined::Nothing;
        }
        if state & ONE_SHOT != 0 {
            self.state.fetch_and(QUEUED, Ordering::Relaxed);
        }
        if state & (EDGE | ONE_SHOT) != 0 {
            return Examined::Ready(flags);
        }
        // It has just become ready. If another thread is queueing it already, it will be examined again.
        match self.enter_queue() {
            Some(item) => Examined::StillReady(item, flags),
            None => Examined::Nothing,
        }
    }

    /// The barrier between arming and the look at the count. Returns whether the event has signallers; if so, the
    /// barrier was executed, and counts for the signallers of all other events too.
    pub(super) fn hear_signallers(&self) -> bool {
        self.event().hear_signallers()
    }

    /// Carries over for a binding. For one that has been deleted, delivers what was read and not carried over yet.
    pub(super) fn carry(&self) {
        if let Kind::Bound(bound) = &self.kind {
            bound.carry(self);
        }
    }

    /// The flags to be reported of the event now. Called after [`arm`](Self::arm).
    fn ready_flags(&self, state: u32) -> u8 {
        let now = Readiness::of(self.event().count_after_asking());
        let mut flags = 0;
        for (wanted, is, flag) in [
            (READABLE, now.is_readable(), events::READABLE),
            (WRITABLE, now.is_writable(), events::WRITABLE),
            (ENABLED, now.is_error(), events::ERROR),
        ] {
            flags |= if state & wanted != 0 && is { flag } else { 0 };
        }
        flags
    }

    /// Asks for a call after the next change that is of interest.
    fn arm(&self, state: u32) {
        if state & ENABLED != 0 {
            self.event().arm(interest(state));
        }
    }
}

/// The changes for which an enabled item asks to be called.
fn interest(state: u32) -> Interest {
    if state & WRITABLE != 0 {
        Interest::Both
    } else {
        Interest::Signals
    }
}

impl Linked for Item {
    fn link(&self) -> &Link<Item> {
        &self.link
    }
}

impl QueuedBinding for Item {
    fn is_deleted(&self) -> bool {
        self.state.load(Ordering::Relaxed) & DELETED != 0
    }

    /// Queues it and wakes a thread, unless it is queued already.
    fn enqueue(&self) {
        if let Some(item) = self.enter_queue() {
            self.shared.push(item);
        }
    }
}

impl Observer for Item {
    fn notified(&self, change: Change) {
        // Acquire pairs with the Release in `leave_queue`.
        let state = self.state.load(Ordering::Acquire);
        if state & QUEUED != 0 {
            return;
        }
        let wanted = match change {
            Change::Signalled if state & READABLE != 0 => true,
            // An item that is not watched for signals still reports an overflow. (epoll does not.)
            Change::Signalled if state & ENABLED != 0 => {
                self.event().arm(Interest::Signals);
                self.event().count_after_asking() == u64::MAX
            }
            Change::Signalled => false,
            Change::Read => state & WRITABLE != 0,
        };
        if wanted {
            self.enqueue();
        }
    }
}
