//! What the device's half and the poller's half of a queue share: the words of the rings, and how far the device is.
//!
//! Where the words are is [`Words`]' affair: guest memory in a device, atomics of loom in `loom-tests`.

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
    /// The device has popped what is before it. Written by the device's half alone; the other one may see an old value,
    /// and then finds the queue ready once too often.
    next_avail: AtomicU16,
    /// A poller asks the available ring, and will ask for kicks before it sleeps.
    polled: AtomicBool,
}

impl<W: Words> Rings<W> {
    /// Of a queue with `size` elements that goes on at `next_avail`.
    pub fn new(words: W, size: u16, event_idx: bool, next_avail: u16) -> Self {
        Rings {
            words,
            size,
            event_idx,
            next_avail: AtomicU16::new(next_avail),
            polled: AtomicBool::new(false),
        }
    }

    /// For the device, which has popped what is before `next`.
    #[inline(always)]
    pub fn popped(&self, next: u16) {
        self.next_avail.store(next, Ordering::Relaxed);
    }

    /// Whether the driver has made available what has not been popped.
    #[inline(always)]
    pub fn has_more(&self) -> bool {
        // Acquire: pairs with the driver's release of its index. Who is told to look at a request sees it.
        self.words.load_avail(2, Ordering::Acquire) != self.next_avail.load(Ordering::Relaxed)
    }

    /// Polling begins: the driver need not kick.
    pub fn begin(&self) {
        if self.polled.swap(true, DEKKER) || self.event_idx {
            // With EVENT_IDX the event stays where it is, behind: the driver has passed it and kicks no more.
            return;
        }
        self.words.store_used(0, NO_NOTIFY, Ordering::Relaxed);
    }

    /// Polling ends: asks for kicks, then looks once more. Whether there is more.
    pub fn end(&self) -> bool {
        // Before the driver is asked for kicks, so that who is woken by one asks for the next.
        self.polled.store(false, DEKKER);
        self.ask_for_kicks()
    }

    /// For the device, which has popped all: asks for kicks, unless a poller polls. Whether there is more.
    #[inline(always)]
    pub fn rearm(&self) -> bool {
        !self.polled.load(DEKKER) && self.ask_for_kicks()
    }

    pub fn is_polled(&self) -> bool {
        self.polled.load(DEKKER)
    }

    /// Asks for a kick for whatever comes after what has been popped; then looks whether it has come already.
    ///
    /// The driver does the mirror image: it stores `avail.idx`, passes a full barrier, and loads the word that is
    /// stored here. Both accesses here are sequentially consistent, so of the two loads at least one sees what the
    /// other side has stored. The look compares with the very index that the driver was told, be it out of date or not:
    /// if they are equal, the next request kicks.
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
    /// be `next_used`. Without a barrier: it may have changed its mind.
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

/// What has been completed since the driver was last asked for sure whether it wants an interrupt. Of the device's
/// half, which alone completes.
#[derive(Debug, Default)]
pub struct Completed {
    unasked: u16,
    early: Early,
}

impl Completed {
    /// One more has been, and the driver is to be asked later.
    #[inline(always)]
    pub fn add_unasked(&mut self) {
        self.unasked = self.unasked.saturating_add(1);
    }

    /// One more has been, and `used.idx` says `next_used`. Whether the driver is to be interrupted now.
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

    /// To be called some time after [`add_one`](Self::add_one), when the driver has been interrupted if that said so.
    #[inline(always)]
    pub fn interrupted<W: Words>(&mut self, rings: &Rings<W>) {
        self.early.made(|| rings.asks_for());
    }

    /// Ends a batch. Whether the driver is to be interrupted for what has been completed: the sure answer.
    pub fn finish<W: Words>(&mut self, rings: &Rings<W>, next_used: u16) -> bool {
        self.early.end();
        self.ask(rings, next_used)
    }

    /// The sure answer.
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
