//! Readers and their sections.

use super::grace::domain;
use super::kind::{Fenced, Kind, Light};
use super::slots::{INSIDE, Slot};
use crate::sync::atomic::Ordering;
use crate::sync::{DEKKER, const_thread_local, membarrier, release_store, this_thread};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;

#[cfg(not(loom))]
use std::thread_local;

#[cfg(loom)]
use loom::thread_local;

/// Enters sections. For a thread that often does.
///
/// It may move to another thread between sections.
pub struct Reader {
    pub(super) slot: &'static Slot,
    /// How many sections of this reader are under way, one inside the other.
    depth: Cell<usize>,
    /// The sequence has been published with a fence since the last entry without one.
    published: Cell<bool>,
}

impl Reader {
    /// A reader of all snapshots.
    pub fn new() -> Self {
        Reader {
            slot: domain().claim(),
            depth: Cell::new(0),
            published: Cell::new(true),
        }
    }

    /// Begins a section.
    #[inline(always)]
    pub fn enter(&self) -> Section<'_> {
        self.begin()
    }

    /// Begins a light section.
    #[inline(always)]
    pub fn enter_light(&self) -> Section<'_, Light> {
        self.begin()
    }

    #[inline(always)]
    fn begin<K: Kind>(&self) -> Section<'_, K> {
        let depth = self.depth.get();
        if depth == 0 {
            let slot = self.slot;
            slot.owner.store(this_thread(), Ordering::Relaxed);
            let seq = slot.seq.load(Ordering::Relaxed).wrapping_add(INSIDE);
            // First half of the handshake with `Slot::wait_for_end` and `Domain::inside`; the second is the load in
            // `Srcu::read`. Releases the owner to `leave_to_section`.
            if K::LIGHT && membarrier::is_light() {
                slot.seq.store(seq, Ordering::Release);
                membarrier::light();
                self.published.set(false);
            } else {
                slot.seq.swap(seq, DEKKER);
            }
        } else if !K::LIGHT && !self.published.get() {
            self.publish();
        }
        self.depth.set(depth + 1);
        Section {
            reader: self,
            _kind: PhantomData,
        }
    }

    /// The first half of the handshake, for a fenced section inside a light one.
    #[cold]
    #[inline(never)]
    fn publish(&self) {
        let seq = self.slot.seq.load(Ordering::Relaxed);
        self.slot.seq.swap(seq, DEKKER);
        self.published.set(true);
    }

    #[inline(always)]
    fn leave(&self) {
        let depth = self.depth.get() - 1;
        self.depth.set(depth);
        if depth == 0 {
            let seq = self.slot.seq.load(Ordering::Relaxed).wrapping_add(INSIDE);
            // Pairs with the loads in `Slot::wait_for_end` and `Pile::take_due`.
            release_store(&self.slot.seq, seq);
            if self.slot.owes.load(Ordering::Relaxed) != 0 {
                self.pay();
            }
        }
    }

    /// Frees what can be freed of what was left to the end of the section.
    #[cold]
    #[inline(never)]
    fn pay(&self) {
        let owed = self.slot.owes.load(Ordering::Relaxed);
        self.slot.owes.store(0, Ordering::Relaxed);
        domain().free_due(owed);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A section that was forgotten ends here at the latest: it borrowed the reader.
        let seq = self.slot.seq.load(Ordering::Relaxed);
        if seq & INSIDE != 0 {
            // Pairs with the loads in `Slot::wait_for_end` and `Pile::take_due`.
            release_store(&self.slot.seq, seq.wrapping_add(INSIDE));
        }
        self.slot.owes.store(0, Ordering::Relaxed);
        // Pairs with the Acquire in `Domain::claim`.
        self.slot.claimed.store(false, Ordering::Release);
    }
}

/// A time in which no snapshot that this thread can find is freed.
///
/// It ends with the value. Forgetting it holds up all writers until its reader is dropped, but is safe.
pub struct Section<'a, K: Kind = Fenced> {
    reader: &'a Reader,
    _kind: PhantomData<K>,
}

impl<K: Kind> Drop for Section<'_, K> {
    #[inline(always)]
    fn drop(&mut self) {
        self.reader.leave();
    }
}

/// Runs `f` in a section of the thread's own reader.
#[inline]
pub fn with_section<R>(f: impl FnOnce(&Section<'_>) -> R) -> R {
    with_own(|reader| f(&reader.enter()))
}

/// Runs `f` in a light section of the thread's own reader.
#[inline]
pub fn with_light_section<R>(f: impl FnOnce(&Section<'_, Light>) -> R) -> R {
    with_own(|reader| f(&reader.enter_light()))
}

/// A section of the thread's own reader, if the thread has one. The reader is made in [`with_section`], and gone when
/// the thread ends. For hot paths, which save keeping the captures of a closure in memory.
///
/// # Safety
///
/// The section ends before the thread does, so the caller does not store it.
#[inline(always)]
pub unsafe fn own_section<'a>() -> Option<Section<'a>> {
    // SAFETY: it is there as long as the thread.
    own().map(|reader| unsafe { reader.as_ref() }.enter())
}

#[inline(always)]
fn with_own<R>(f: impl FnOnce(&Reader) -> R) -> R {
    match own().or_else(make_own) {
        // SAFETY: it goes with the thread, after all that runs on it now.
        Some(reader) => f(unsafe { reader.as_ref() }),
        None => f(&Reader::new()),
    }
}

/// The reader of this thread. `None` before it is made, and at the end of the thread, when it is gone already.
#[inline(always)]
fn own() -> Option<NonNull<Reader>> {
    OWN.try_with(Cell::get).unwrap_or(None)
}

#[cold]
#[inline(never)]
fn make_own() -> Option<NonNull<Reader>> {
    struct Own(Reader);
    impl Drop for Own {
        fn drop(&mut self) {
            let _ = OWN.try_with(|own| own.set(None));
        }
    }
    thread_local! {
        static READER: Own = Own(Reader::new());
    }
    let own = READER.try_with(|own| NonNull::from(&own.0)).ok();
    let _ = OWN.try_with(|it| it.set(own));
    own
}

const_thread_local! {
    static OWN: Cell<Option<NonNull<Reader>>> = { Cell::new(None) };
}
