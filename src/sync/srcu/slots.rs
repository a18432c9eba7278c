//! What readers show to writers.

use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use crate::sync::{DEKKER, dekker_load, yield_now};
use crossbeam_utils::{Backoff, CachePadded};
use std::ptr;
use std::thread;
use std::time::Duration;

/// What a reader shows to writers. Never freed, so that writers can walk the list without a lock.
pub(super) struct Slot {
    /// Odd while the reader is inside a section.
    pub(super) seq: AtomicU32,
    /// `this_thread` as of the last section.
    pub(super) owner: AtomicUsize,
    /// What the end of the section has to do: bits of `owed.rs`. Accessed by the owner only.
    pub(super) owes: AtomicU32,
    /// Belongs to a `Reader`.
    pub(super) claimed: AtomicBool,
    /// Set before the slot can be found.
    next: AtomicPtr<CachePadded<Slot>>,
}

/// The bit of `seq` that is set inside a section.
pub(super) const INSIDE: u32 = 1;

/// Readers inside a section, and their sequences.
pub(super) type Readers = Vec<(&'static Slot, u32)>;

/// The slots of all readers.
pub(super) struct Slots {
    /// Newest first. None is ever taken out.
    head: AtomicPtr<CachePadded<Slot>>,
}

impl Slots {
    maybe_const! {
        pub(super) fn new() -> Self {
            Slots {
                head: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'static Slot> {
        // Pairs with the push in `claim`: a reader that could load an old pointer is in the list. See there.
        let mut next = load_head(&self.head);
        std::iter::from_fn(move || {
            // SAFETY: null, or a slot that was leaked, after it had been initialised, by the push that was acquired.
            let slot = unsafe { next.as_ref() }?;
            next = slot.next.load(Ordering::Relaxed);
            Some(&**slot)
        })
    }

    /// A slot for a new reader: one that another reader has left, or a new one.
    pub(super) fn claim(&self) -> &'static Slot {
        let left = self.iter().find(|slot| {
            !slot.claimed.load(Ordering::Relaxed)
                && slot
                    .claimed
                    // Acquire pairs with the Release of the previous reader: its last stores come before the next ones.
                    .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        });
        if let Some(slot) = left {
            return slot;
        }
        let slot: &'static CachePadded<Slot> = Box::leak(Box::new(CachePadded::new(Slot {
            seq: AtomicU32::new(0),
            owner: AtomicUsize::new(0),
            owes: AtomicU32::new(0),
            claimed: AtomicBool::new(true),
            next: AtomicPtr::new(ptr::null_mut()),
        })));
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            slot.next.store(head, Ordering::Relaxed);
            // First half of a handshake, like the store of `seq`: this comes before the reader's first load of a
            // pointer. The writer loads the head after it has swapped the pointer.
            match self.head.compare_exchange_weak(
                head,
                ptr::from_ref(slot).cast_mut(),
                DEKKER,
                Ordering::Relaxed,
            ) {
                Ok(_) => return slot,
                Err(now) => head = now,
            }
        }
    }

    /// The readers that are inside a section now.
    pub(super) fn inside(&self) -> Readers {
        let seen = self.iter().map(|slot| (slot, dekker_load(&slot.seq)));
        seen.filter(|(_, seq)| seq & INSIDE != 0).collect()
    }
}

/// The load of the handshake with a new reader. Under loom a read-modify-write that changes nothing, for the reason
/// given at [`dekker_load`].
fn load_head<T>(head: &AtomicPtr<T>) -> *mut T {
    #[cfg(loom)]
    let _ = head.fetch_update(DEKKER, DEKKER, Some);
    head.load(DEKKER)
}

impl Slot {
    pub(super) fn wait_for_end(&self) {
        // Second half of the handshake with `Reader::begin`. It and the loads below acquire what the reader's leaving
        // released.
        let seq = dekker_load(&self.seq);
        if seq & INSIDE == 0 {
            return;
        }
        let mut patience = Patience::default();
        while dekker_load(&self.seq) == seq {
            patience.pause();
        }
    }
}

/// Pauses while waiting for something that takes nanoseconds, unless a thread was preempted.
#[derive(Default)]
struct Patience {
    backoff: Backoff,
    slept: Duration,
}

impl Patience {
    fn pause(&mut self) {
        if cfg!(loom) {
            yield_now();
        } else if self.backoff.is_completed() {
            let nap = (self.slept / 2).clamp(Duration::from_micros(50), Duration::from_millis(1));
            thread::sleep(nap);
            self.slept += nap;
        } else {
            self.backoff.snooze();
        }
    }
}
