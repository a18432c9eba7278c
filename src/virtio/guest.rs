//! The words of the rings in guest memory.

use super::error::QueueError;
use super::rings::{AVAIL_ELEMENT, HEADER, Words};
use crate::sync::atomic::{AtomicU16, Ordering};
use std::ops::Deref;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, volatile_memory::PtrGuard};

pub(super) struct GuestRings<M> {
    /// Keeps the memory mapped to which `avail` points.
    pub(super) mem: M,
    /// The available ring with its `used_event`.
    avail: PtrGuard,
    used: GuestAddress,
}

// SAFETY: the pointer in `avail` is to memory that `mem` keeps mapped, and is used for atomic loads alone.
unsafe impl<M: Send> Send for GuestRings<M> {}
// SAFETY: as above.
unsafe impl<M: Sync> Sync for GuestRings<M> {}

impl<M: Deref<Target: GuestMemoryBackend>> GuestRings<M> {
    pub(super) fn of(queue: &Queue, mem: M) -> Result<Self, QueueError>
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
        Ok(GuestRings {
            avail,
            used: GuestAddress(queue.used_ring()),
            mem,
        })
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Words for GuestRings<M> {
    #[inline(always)]
    fn load_avail(&self, offset: usize, order: Ordering) -> u16 {
        debug_assert!(offset + 2 <= self.avail.len());
        // SAFETY: inside of `avail`, which is aligned and mapped as long as `self.mem` is there. The driver may write
        // to it at any time; it is accessed by atomics here.
        let word = unsafe { &*self.avail.as_ptr().add(offset).cast::<AtomicU16>() };
        u16::from_le(word.load(order))
    }

    /// A store of the memory's own, which marks the page dirty where that is tracked.
    fn store_used(&self, offset: usize, value: u16, order: Ordering) {
        let at = self.used.unchecked_add(offset as u64);
        let stored = self.mem.store(value.to_le(), at, order);
        debug_assert!(stored.is_ok(), "checked by is_valid(): {stored:?}");
    }
}
