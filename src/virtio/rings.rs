//! What the device's half and the poller's half of a queue share: the words of the rings, and how far the device is.

use super::error::QueueError;
use crate::sync::DEKKER;
use crate::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::ops::Deref;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, volatile_memory::PtrGuard};

/// `VIRTQ_USED_F_NO_NOTIFY`: the driver need not kick.
const NO_NOTIFY: u16 = 1;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the device need not interrupt.
const NO_INTERRUPT: u16 = 1;

/// `flags` and `idx`, before the elements of either ring.
const HEADER: usize = 4;
const AVAIL_ELEMENT: usize = 2;
const USED_ELEMENT: u64 = 8;

pub(super) struct Rings<M> {
    /// Keeps mapped what `avail` points to.
    pub(super) mem: M,
    /// The available ring with its `used_event`.
    avail: PtrGuard,
    used: GuestAddress,
    size: u16,
    event_idx: bool,
    /// The device has popped what is before it. Written by the device's half alone; the other one may see an old value,
    /// and then finds the queue ready once too often.
    pub(super) next_avail: AtomicU16,
    /// A poller asks the available ring, and will ask for kicks before it sleeps.
    polled: AtomicBool,
}

// SAFETY: the pointer in `avail` is to memory that `mem` keeps mapped, and is used for atomic loads alone.
unsafe impl<M: Send> Send for Rings<M> {}
// SAFETY: as above.
unsafe impl<M: Sync> Sync for Rings<M> {}

impl<M: Deref<Target: GuestMemoryBackend>> Rings<M> {
    pub(super) fn new(queue: &Queue, mem: M) -> Result<Self, QueueError>
    where
        M::Target: Sized,
    {
        if !queue.is_valid(&*mem) {
            return Err(QueueError::Invalid);
        }
        let avail_size = HEADER + AVAIL_ELEMENT * usize::from(queue.size()) + 2;
        let avail = mem
            .get_slice(GuestAddress(queue.avail_ring()), avail_size)
            .map_err(|_| QueueError::Scattered)?
            .ptr_guard();
        if !avail.as_ptr().cast::<AtomicU16>().is_aligned() {
            return Err(QueueError::Misaligned);
        }
        Ok(Rings {
            avail,
            used: GuestAddress(queue.used_ring()),
            size: queue.size(),
            event_idx: queue.event_idx_enabled(),
            next_avail: AtomicU16::new(queue.next_avail()),
            polled: AtomicBool::new(false),
            mem,
        })
    }

    /// A word of the available ring.
    #[inline(always)]
    fn avail_word(&self, offset: usize, order: Ordering) -> u16 {
        debug_assert!(offset + 2 <= self.avail.len());
        // SAFETY: inside of `avail`, which is aligned and mapped as long as `self.mem` is there. The driver may write
        // to it at any time; it is accessed by atomics here.
        let word = unsafe { &*self.avail.as_ptr().add(offset).cast::<AtomicU16>() };
        u16::from_le(word.load(order))
    }

    /// Whether the driver has made available what has not been popped.
    #[inline(always)]
    pub(super) fn has_more(&self) -> bool {
        // Acquire: pairs with the driver's release of its index. Who is told to look at a request sees it.
        self.avail_word(2, Ordering::Acquire) != self.next_avail.load(Ordering::Relaxed)
    }

    /// Polling begins: the driver need not kick.
    pub(super) fn begin(&self) {
        if self.polled.swap(true, DEKKER) || self.event_idx {
            // With EVENT_IDX the event stays where it is, behind: the driver has passed it and kicks no more.
            return;
        }
        self.store_used(0, NO_NOTIFY, Ordering::Relaxed);
    }

    /// Polling ends: asks for kicks, then looks once more. Whether there is more.
    pub(super) fn end(&self) -> bool {
        // Before the driver is asked for kicks, so that who is woken by one asks for the next.
        self.polled.store(false, DEKKER);
        self.ask_for_kicks()
    }

    /// For the device, which has popped all: asks for kicks, unless a poller polls. Whether there is more.
    #[inline(always)]
    pub(super) fn rearm(&self) -> bool {
        !self.polled.load(DEKKER) && self.ask_for_kicks()
    }

    pub(super) fn is_polled(&self) -> bool {
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
            let avail_event = HEADER as u64 + USED_ELEMENT * u64::from(self.size);
            self.store_used(avail_event, next, DEKKER);
        } else {
            self.store_used(0, 0, DEKKER);
        }
        self.avail_word(2, DEKKER) != next
    }

    /// By way of the memory's own store, which marks the page dirty where that is tracked.
    fn store_used(&self, offset: u64, value: u16, order: Ordering) {
        let at = self.used.unchecked_add(offset);
        let stored = self.mem.store(value.to_le(), at, order);
        debug_assert!(stored.is_ok(), "checked by is_valid(): {stored:?}");
    }

    /// Whether the driver seems to want an interrupt for one of the last `added` used elements, the next of which will
    /// be `next_used`. Without a barrier: it may have changed its mind.
    #[inline(always)]
    pub(super) fn seems_to_want_interrupt(&self, next_used: u16, added: u16) -> bool {
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
    pub(super) fn asks_for(&self) -> u16 {
        let offset = if self.event_idx {
            HEADER + AVAIL_ELEMENT * usize::from(self.size)
        } else {
            0
        };
        self.avail_word(offset, Ordering::Relaxed)
    }
}
