//! The snapshot that readers share, and its replacement.

use super::grace::domain;
use super::kind::{Fenced, Kind};
use super::owed::FREE;
use super::piles::EVERYBODY;
use super::reader::Section;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{ConstPtr, DEKKER, Mutex, MutexGuard, UnsafeCell, membarrier};
use crossbeam_utils::CachePadded;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::PoisonError;

/// The current snapshot of what readers share with one another and with writers.
///
/// The destructor of a snapshot runs on any thread, so it must run no foreign code. What a snapshot refers to is owned
/// elsewhere; the writer that takes it out passes it as `outdated`.
pub struct Srcu<T, K: Kind = Fenced> {
    /// Never null. On cache lines of its own, so that writers that contend for the lock do not disturb readers.
    current: CachePadded<AtomicPtr<UnsafeCell<T>>>,
    writer: Mutex<()>,
    _kind: PhantomData<K>,
}

impl<T: Send + Sync + 'static, K: Kind> Srcu<T, K> {
    /// With `value` as the first snapshot.
    pub fn new(value: T) -> Self {
        Srcu {
            current: CachePadded::new(AtomicPtr::new(boxed(value))),
            writer: Mutex::new(()),
            _kind: PhantomData,
        }
    }

    /// The current snapshot, for as long as the section lasts.
    ///
    /// A later call inside the same section may see a newer one.
    #[inline(always)]
    pub fn read<'a>(&'a self, _section: &'a Section<'_, K>) -> Snapshot<'a, T> {
        // The load of the handshake with `Writer::publish`; acquires the value.
        let current = self.current.load(DEKKER);
        // SAFETY: it came from `boxed`, and was current after this section had begun. It is freed by `Writer::publish`
        // after a grace period, that is not before the section has ended (see the module), or by the drop of `self`;
        // both are borrowed.
        unsafe { Snapshot::new(current) }
    }

    /// Locks out other writers.
    pub fn write(&self) -> Writer<'_, T, K> {
        Writer {
            current: &self.current,
            // It protects no data, so a panic could not have left any half changed.
            _lock: self.writer.lock().unwrap_or_else(PoisonError::into_inner),
            _kind: PhantomData,
        }
    }
}

/// A snapshot that is not freed as long as this is there.
pub struct Snapshot<'a, T> {
    value: ConstPtr<T>,
    _borrow: PhantomData<&'a T>,
}

impl<T> Snapshot<'_, T> {
    /// # Safety
    ///
    /// It came from [`boxed`], and is not freed before the borrow ends.
    #[inline(always)]
    unsafe fn new(snapshot: *const UnsafeCell<T>) -> Self {
        Snapshot {
            // SAFETY: as promised.
            value: unsafe { (*snapshot).get() },
            _borrow: PhantomData,
        }
    }
}

impl<T> Deref for Snapshot<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: see `new`. There are only shared references to it until then.
        unsafe { self.value.deref() }
    }
}

impl<T, K: Kind> Drop for Srcu<T, K> {
    fn drop(&mut self) {
        // SAFETY: it came from `boxed`, and there are no readers: they borrow `self`.
        unsafe { free_snapshot(self.current.load(Ordering::Relaxed)) };
    }
}

fn boxed<T>(value: T) -> *mut UnsafeCell<T> {
    Box::into_raw(Box::new(UnsafeCell::new(value)))
}

/// # Safety
///
/// `snapshot` came from [`boxed`], nobody else has access to it, and it is not freed again.
unsafe fn free_snapshot<T>(snapshot: *mut UnsafeCell<T>) {
    // SAFETY: as promised.
    unsafe {
        // Nothing but a check of that promise, by loom.
        (*snapshot).with_mut(|_| ());
        drop(Box::from_raw(snapshot));
    }
}

/// The right to publish.
///
/// It must not be held while waiting for a reader: a reader may be waiting for it.
pub struct Writer<'a, T, K: Kind = Fenced> {
    current: &'a AtomicPtr<UnsafeCell<T>>,
    _lock: MutexGuard<'a, ()>,
    _kind: PhantomData<K>,
}

impl<T: Send + Sync + 'static, K: Kind> Writer<'_, T, K> {
    /// The current snapshot.
    pub fn read(&self) -> Snapshot<'_, T> {
        // The lock orders it after the last swap.
        let current = self.current.load(Ordering::Relaxed);
        // SAFETY: it came from `boxed`, and stays current until the writer, which is borrowed, publishes or goes.
        unsafe { Snapshot::new(current) }
    }

    /// Makes `value` the snapshot, unlocks, and waits until no reader holds the previous snapshot. Then drops that and
    /// `outdated`, which it may have pointed to.
    ///
    /// Inside a section of this thread it does not wait, and this thread drops both later, see the module. While the
    /// thread has a [`Deferral`](super::Deferral), all that comes at its end.
    ///
    /// # Panics
    ///
    /// If a destructor does. Or if it cannot find out which readers are inside a section (see [`membarrier`]); then
    /// `value` has been published, and the previous snapshot is leaked.
    pub fn publish(self, value: T, outdated: impl Send + 'static) {
        let old = self.swap(value);
        domain().synchronize::<K>(Some(Box::new(Replaced { old, outdated })));
    }

    /// Makes `value` the snapshot, unlocks, and returns, while readers may still hold the previous snapshot. For a
    /// writer that has only added something. (`call_srcu`)
    ///
    /// # Panics
    ///
    /// As [`publish`](Self::publish).
    pub fn publish_without_waiting(self, value: T) {
        let old = self.swap(value);
        let domain = domain();
        domain.leave::<K>(EVERYBODY, Box::new(Replaced { old, outdated: () }));
        if K::LIGHT && membarrier::is_light() && domain.may_wait(FREE) {
            // If no other thread ever called it, old snapshots would pile up.
            membarrier::heavy();
        }
        domain.free_due(FREE);
    }

    fn swap(self, value: T) -> *mut UnsafeCell<T> {
        // First half of the handshake with `Reader::begin`. Releases the new value to the readers, and acquires the old
        // one from whoever published it, for the sake of its drop.
        self.current.swap(boxed(value), DEKKER)
    }
}

/// A replaced snapshot. Readers may hold it, so it does not become a `Box` before the grace period has passed.
struct Replaced<T, G> {
    old: *mut UnsafeCell<T>,
    #[expect(
        dead_code,
        reason = "dropped together with the snapshot that may point to it"
    )]
    outdated: G,
}

// SAFETY: it owns a `T` and a `G`, both of which may be dropped by another thread.
unsafe impl<T: Send, G: Send> Send for Replaced<T, G> {}

impl<T, G> Drop for Replaced<T, G> {
    fn drop(&mut self) {
        // SAFETY: it came from `boxed`, a writer made it unreachable, and this is dropped after a grace period.
        unsafe { free_snapshot(self.old) };
    }
}
