//! What the device's half and the poller's half of a queue share: the words of the rings, and how far the device is.
//!
//! [`Words`] knows where the words are: in guest memory, or in atomics of loom in `loom-tests`.

use super::early::Early;
use crate::sync::DEKKER;
use crate::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use crate::sync::membarrier;

/// `VIRTQ_USED_F_NO_NOTIFY`: the driver need not kick.
const NO_NOTIFY: u16 = 1;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the device need not interrupt.
const NO_INTERRUPT: u16 = 1;

/// `flags` and `idx`, before the elements of either ring.
pub const HEADER: usize = 4;
pub const AVAIL_ELEMENT: usize = 2;
pub const USED_ELEMENT: usize = 8;

/// The 16-bit words of a split queue's rings that driver and device both access. Offsets are in bytes from the
/// beginning of the ring, values in the byte order of the host.
pub trait Words {
    /// Of the available ring, with its `used_event`: what the driver writes.
    fn load_avail(&self, offset: usize, order: Ordering) -> u16;

    /// Of the used ring, with its `avail_event`: what the device writes.
    fn store_used(&self, offset: usize, value: u16, order: Ordering);
}

pub struct Rings<W> {
    pub words: W,
    size: u16,
    event_idx: bool,
    /// The index of the next chain to pop. Only the device's half writes it. The poller's half may see an old value,
    /// and then finds the queue ready once too often.
    next_avail: AtomicU16,
    /// A poller looks at the available ring, and will ask for kicks before it sleeps.
    polled: AtomicBool,
}

impl<W: Words> Rings<W> {
    /// For a queue with `size` elements whose next chain to pop is `next_avail`.
    pub fn new(words: W, size: u16, event_idx: bool, next_avail: u16) -> Self {
        Rings {
            words,
            size,
            event_idx,
            next_avail: AtomicU16::new(next_avail),
            polled: AtomicBool::new(false),
        }
    }

    /// Called by the device, when `next` is the next chain to pop.
    #[inline(always)]
    pub fn popped(&self, next: u16) {
        self.next_avail.store(next, Ordering::Relaxed);
    }

    /// Whether the driver has made chains available that have not been popped.
    #[inline(always)]
    pub fn has_more(&self) -> bool {
        // Acquire: pairs with the driver's release of its index, so that the device sees the request.
        self.words.load_avail(2, Ordering::Acquire) != self.next_avail.load(Ordering::Relaxed)
    }

    /// Polling begins: the driver need not kick.
    pub fn begin(&self) {
        if self.polled.swap(true, DEKKER) || self.event_idx {
            // With EVENT_IDX, `avail_event` stays where it is. The driver has passed it, and so does not kick.
            return;
        }
        self.words.store_used(0, NO_NOTIFY, Ordering::Relaxed);
    }

    /// Polling ends: asks for kicks, then looks once more. Returns whether there is more.
    pub fn end(&self) -> bool {
        // Before the driver is asked for kicks, so that the thread that a kick wakes asks for the next one.
        self.polled.store(false, DEKKER);
        self.ask_for_kicks()
    }

    /// Called by the device when it has popped all: asks for kicks, unless a poller polls. Returns whether there is
    /// more.
    #[inline(always)]
    pub fn rearm(&self) -> bool {
        !self.polled.load(DEKKER) && self.ask_for_kicks()
    }

    pub fn is_polled(&self) -> bool {
        self.polled.load(DEKKER)
    }

    /// Asks for a kick for the next chain that is made available, and then looks whether one is available already.
    ///
    /// The driver does the mirror image: it stores `avail.idx`, passes a full barrier, and loads the word that is
    /// stored here. Both accesses here are sequentially consistent, so of the two loads at least one sees what the
    /// other side has stored. The look compares with the same index that the driver was given, even if it is out of
    /// date: if they are equal, the next request kicks.
    fn ask_for_kicks(&self) -> bool {
        let next = self.next_avail.load(Ordering::Relaxed);
        if self.event_idx {
            let avail_event = HEADER + USED_ELEMENT * usize::from(self.size);
            self.words.store_used(avail_event, next, DEKKER);
        } else {
            self.words.store_used(0, 0, DEKKER);
        }
        self.words.load_avail(2, DEKKER) != next
    }

    /// Whether the driver seems to want an interrupt for one of the last `added` used elements, the next of which will
    /// be `next_used`. There is no barrier, so the answer may be out of date.
    #[inline(always)]
    fn seems_to_want_interrupt(&self, next_used: u16, added: u16) -> bool {
        let asked = self.asks_for();
        if self.event_idx {
            // vring_need_event() of the specification.
            next_used.wrapping_sub(asked).wrapping_sub(1) < added
        } else {
            asked & NO_INTERRUPT == 0
        }
    }

    /// What the driver has written last of when it wants an interrupt: `used_event`, or the flags of the available
    /// ring.
    #[inline(always)]
    fn asks_for(&self) -> u16 {
        let offset = if self.event_idx {
            HEADER + AVAIL_ELEMENT * usize::from(self.size)
        } else {
            0
        };
        self.words.load_avail(offset, Ordering::Relaxed)
    }
}

/// The requests that were completed since the driver was last asked, with a barrier, whether it wants an interrupt.
/// Only the device's half has it.
#[derive(Debug, Default)]
pub struct Completed {
    unasked: u16,
    early: Early,
}

impl Completed {
    /// Counts one more completed request, for which the driver is asked later.
    #[inline(always)]
    pub fn add_unasked(&mut self) {
        self.unasked = self.unasked.saturating_add(1);
    }

    /// Counts one more completed request; `used.idx` is `next_used`. Returns whether to interrupt the driver now.
    #[inline(always)]
    pub fn add_one<W: Words>(&mut self, rings: &Rings<W>, next_used: u16) -> bool {
        self.add_unasked();
        if !self.early.is_time() || !rings.seems_to_want_interrupt(next_used, self.unasked) {
            return false;
        }
        let asked = rings.asks_for();
        let wanted = self.ask(rings, next_used);
        if wanted {
            self.early.make(asked);
        }
        wanted
    }

    /// Called some time after [`add_one`](Self::add_one), when the driver has been interrupted if that call said so.
    #[inline(always)]
    pub fn interrupted<W: Words>(&mut self, rings: &Rings<W>) {
        self.early.made(|| rings.asks_for());
    }

    /// Ends a batch. Returns whether to interrupt the driver for what has been completed: the reliable answer.
    pub fn finish<W: Words>(&mut self, rings: &Rings<W>, next_used: u16) -> bool {
        self.early.end();
        self.ask(rings, next_used)
    }

    /// The reliable answer.
    ///
    /// The driver does the mirror image: it says in `used_event` or `flags` that it wants an interrupt, passes a full
    /// barrier, and loads `used.idx`, which was stored before this was called. At least one of the two loads sees what
    /// the other side has stored.
    fn ask<W: Words>(&mut self, rings: &Rings<W>, next_used: u16) -> bool {
        if self.unasked == 0 {
            return false;
        }
        // SeqCst: pairs with the barrier of the driver.
        membarrier::full();
        rings.seems_to_want_interrupt(next_used, std::mem::take(&mut self.unasked))
    }
}
