//! What has become ready and has not been looked at yet: a stack that any thread pushes on without a lock.
//!
//! ```text
//!     head ──▶ newest ──▶ … ──▶ oldest        push: one compare-exchange      take_all: one swap
//! ```
//!
//! It is intrusive: the links are in the items, so a signal allocates nothing. An item is pushed only by the thread
//! that set its `QUEUED` bit, and the bit is cleared after it was taken, so it is never on the stack twice. As only the
//! whole stack is ever taken, and under the poller's lock, there is no ABA.
//!
//! The queue owns a count of the `Arc` of each item that is registered, wherever it is: in this stack, with those who
//! have taken it from here or, between two times, [kept](Link::keep) in the item itself. So a signal need not count.
//! When the poller goes, the stack is closed: an observer's call may still be under way then, and what it would push
//! nobody would free.

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

/// The place of an item in the stack, or of the queue's count of it outside. Of whoever has set the item's `QUEUED`
/// bit, then of who took it.
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

    /// A glance, for who spins.
    pub(super) fn seems_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// With a [`DEKKER`] load: to be asked after an announcement.
    pub(super) fn is_empty(&self) -> bool {
        self.head.load(DEKKER).is_null()
    }

    /// Returns whether somebody will take it. The caller then wakes a thread: the push is the store of its handshake.
    pub(super) fn push(&self, item: Arc<T>) -> bool {
        let item = Arc::into_raw(item).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        while head != closed() {
            // SAFETY: the count that was taken over above keeps it alive until somebody takes it.
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

    /// Takes all, and gives the oldest to `each` first. Only one thread at a time.
    pub(super) fn take_all(&self, mut each: impl FnMut(Arc<T>)) {
        // Looking first keeps the line shared while there is nothing to take.
        if self.is_empty() {
            return;
        }
        // Acquires from every push since the last time.
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

    /// Drops all, and lets nothing in any more.
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

    /// Keeps a count, the item's own, until somebody takes it out.
    pub(super) fn keep(&self, item: Arc<T>) {
        self.0
            .store(Arc::into_raw(item).cast_mut(), Ordering::Relaxed);
    }

    /// # Safety
    ///
    /// The last that happened to it is a [`keep`](Self::keep), and it happens once after that.
    pub(super) unsafe fn take(&self) -> Arc<T> {
        let item = self.0.load(Ordering::Relaxed);
        // SAFETY: it comes from `keep`, and nobody else takes it over, as promised.
        unsafe { Arc::from_raw(item) }
    }
}
