//! The items that have become ready and have not been looked at yet: a stack on which any thread pushes without a lock.
//!
//! ```text
//!     head ──▶ newest ──▶ … ──▶ oldest        push: one compare-exchange      take_all: one swap
//! ```
//!
//! The stack is intrusive: the links are in the items, so a signal allocates nothing. Only the thread that has set the
//! `QUEUED` bit of an item pushes it, and the bit is cleared after the item was taken, so an item is never on the stack
//! twice. There is no ABA problem, because only the whole stack is ever taken, under the poller's lock.
//!
//! The queue owns one count of the `Arc` of each registered item. The count is in this stack, with the thread that has
//! taken the item from here, or, while the item is not queued, [kept](Link::keep) in the item itself. So a signal does
//! not touch the count. When the poller is dropped, the stack is closed: an observer's call may still be under way, and
//! nothing would free an item that it pushed.

use crate::sync::DEKKER;
use crate::sync::atomic::{AtomicPtr, Ordering};
use std::ptr;
use std::sync::Arc;

pub(super) struct Incoming<T> {
    head: AtomicPtr<T>,
}

/// What can be put on the stack.
pub(super) trait Linked: Sized {
    fn link(&self) -> &Link<Self>;
}

/// The link of an item in the stack, or, while the item is not queued, the queue's count of it. It belongs to the
/// thread that has set the item's `QUEUED` bit, then to the thread that has taken the item.
pub(super) struct Link<T>(AtomicPtr<T>);

/// The head of a closed stack.
fn closed<T>() -> *mut T {
    ptr::without_provenance_mut(1)
}

impl<T: Linked> Incoming<T> {
    pub(super) fn new() -> Self {
        Incoming {
            head: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// A relaxed check for the loop that spins; it may be out of date.
    pub(super) fn seems_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// The check after an announcement, with a [`DEKKER`] load.
    pub(super) fn is_empty(&self) -> bool {
        self.head.load(DEKKER).is_null()
    }

    /// Returns false if the stack is closed. Otherwise the caller wakes a thread: the push is the store of the
    /// handshake.
    pub(super) fn push(&self, item: Arc<T>) -> bool {
        let item = Arc::into_raw(item).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        while head != closed() {
            // SAFETY: the count that was taken over above keeps it alive until the stack is taken.
            unsafe { &(*item).link().0 }.store(head, Ordering::Relaxed);
            // Release hands over the link and what was done to the event before.
            match self
                .head
                .compare_exchange_weak(head, item, DEKKER, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => head = now,
            }
        }
        // SAFETY: the count is still ours.
        drop(unsafe { Arc::from_raw(item) });
        false
    }

    /// Takes all items, and passes them to `each`, oldest first. One thread at a time calls this.
    pub(super) fn take_all(&self, mut each: impl FnMut(Arc<T>)) {
        // A load first, so that the cache line stays shared while there is nothing to take.
        if self.is_empty() {
            return;
        }
        // Acquire pairs with the Release of each push since the last time.
        let mut newer = ptr::null_mut();
        let mut item = self.head.swap(ptr::null_mut(), DEKKER);
        while !item.is_null() {
            // SAFETY: the stack, which was taken, owned a count of it.
            let link = unsafe { &(*item).link().0 };
            let older = link.load(Ordering::Relaxed);
            link.store(newer, Ordering::Relaxed);
            (newer, item) = (item, older);
        }
        let mut item = newer;
        while !item.is_null() {
            // SAFETY: as above; this takes over the count.
            let owned = unsafe { Arc::from_raw(item) };
            item = owned.link().0.load(Ordering::Relaxed);
            each(owned);
        }
    }

    /// Drops all items, and makes each later push drop its item.
    pub(super) fn close(&self) {
        loop {
            self.take_all(drop);
            let closing = self.head.compare_exchange(
                ptr::null_mut(),
                closed(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if closing.is_ok() {
                return;
            }
        }
    }
}

impl<T> Link<T> {
    pub(super) fn new() -> Self {
        Link(AtomicPtr::new(ptr::null_mut()))
    }

    /// Keeps the queue's count of the item, until [`take`](Self::take).
    pub(super) fn keep(&self, item: Arc<T>) {
        self.0
            .store(Arc::into_raw(item).cast_mut(), Ordering::Relaxed);
    }

    /// # Safety
    ///
    /// The last call on this link was [`keep`](Self::keep).
    pub(super) unsafe fn take(&self) -> Arc<T> {
        let item = self.0.load(Ordering::Relaxed);
        // SAFETY: it comes from `keep`, and this is the one call that takes it out, as the caller promises.
        unsafe { Arc::from_raw(item) }
    }
}
