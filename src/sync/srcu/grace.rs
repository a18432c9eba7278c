//! Grace periods: waiting until all sections that are under way have ended, and freeing afterwards.

use super::kind::{Fenced, Kind};
use super::owed::{FREE_OWN, is_freeing, leave_to_deferral, set_freeing, wait_for};
use super::piles::{
    EVERYBODY, Outdated, Owner, Piles, free, free_each, owners, this_threads_number,
};
use super::slots::{INSIDE, Slot, Slots};
use crate::panics::go_on_unless_panicking;
use crate::sync::atomic::Ordering;
use crate::sync::{Mutex, MutexGuard, membarrier, this_thread};
use std::collections::BTreeMap;
use std::mem::{self, ManuallyDrop};
use std::sync::PoisonError;

/// What the writers of all `Srcu`s share.
pub(super) struct Domain {
    pub(super) slots: Slots,
    /// Held for a moment, and never while something is freed.
    piles: Mutex<Piles>,
}

impl Domain {
    maybe_const! {
        pub(super) fn new() -> Self {
            Domain {
                slots: Slots::new(),
                piles: Mutex::new(BTreeMap::new()),
            }
        }
    }

    /// A slot for a new reader.
    pub(super) fn claim(&self) -> &'static Slot {
        membarrier::fix_choice();
        forked::watch();
        self.slots.claim()
    }

    /// Waits until all sections that are under way have ended, then frees `outdated` and the piles of this thread. If
    /// this thread must not wait, leaves `outdated` for later. Returns whether it has waited.
    pub(super) fn synchronize<K: Kind>(&self, outdated: Option<Outdated>) -> bool {
        if !self.may_wait(wait_for::<K>()) {
            if let Some(outdated) = outdated {
                self.leave::<K>(this_threads_number(), outdated);
            }
            return false;
        }
        // Leaked, rather than freed too early, if the waiting fails.
        let outdated = ManuallyDrop::new(outdated);
        self.wait_for_readers(K::LIGHT);
        let is_light = membarrier::is_light();
        let mut due = self.take_due(true, |pile| pile.is_waited_for(K::LIGHT, is_light));
        due.extend(ManuallyDrop::into_inner(outdated));
        free(due);
        true
    }

    /// Waits until the fenced sections that are under way have ended, and the light ones too if `light`.
    fn wait_for_readers(&self, light: bool) {
        membarrier::fix_choice();
        if light {
            membarrier::heavy();
        }
        for slot in self.slots.iter() {
            slot.wait_for_end();
        }
    }

    /// Puts it into the pile of the thread and of this kind.
    pub(super) fn leave<K: Kind>(&self, thread: u64, outdated: Outdated) {
        membarrier::fix_choice();
        let owner = Owner {
            thread,
            light: K::LIGHT,
        };
        let mut piles = self.lock();
        let pile = piles.entry(owner).or_default();
        if K::LIGHT {
            // There may have been a barrier that is late enough for `next`, but is too early for `outdated`.
            pile.begin_to_wait(true, || self.slots.inside());
            pile.barriers = membarrier::begun();
        }
        pile.push(outdated);
    }

    /// Whether this thread may wait for readers, or free anything, now. If not, the end of the section or deferral that
    /// prevents it does what is `owed`.
    pub(super) fn may_wait(&self, owed: u32) -> bool {
        !is_freeing() && !leave_to_deferral(owed) && !self.leave_to_section(owed)
    }

    /// Whether this thread is inside a section. If it is, the end of the section does what is `owed`.
    fn leave_to_section(&self, owed: u32) -> bool {
        let mut inside = false;
        for slot in self.slots.iter() {
            // Acquire pairs with the Release of the entry: the owner is the thread that entered, or a later one.
            let seq = slot.seq.load(Ordering::Acquire);
            if seq & INSIDE != 0 && slot.owner.load(Ordering::Relaxed) == this_thread() {
                let owes = slot.owes.load(Ordering::Relaxed);
                slot.owes.store(owes | owed & FREE_OWN, Ordering::Relaxed);
                inside = true;
            }
        }
        inside
    }

    /// Frees what is due, without waiting. If this thread must not free now, leaves that for later.
    pub(super) fn free_due(&self, owed: u32) {
        if !self.may_wait(owed) {
            return;
        }
        let own = owed & FREE_OWN == FREE_OWN;
        let mut panicked = None;
        set_freeing(true);
        loop {
            let due = self.take_due(own, |_| false);
            if due.is_empty() {
                break;
            }
            free_each(due, &mut panicked);
            // What destructors have retired.
            if !own {
                break;
            }
        }
        set_freeing(false);
        go_on_unless_panicking(panicked);
    }

    /// What is due of the common piles and, if `own`, of this thread's piles. Of a pile whose readers it `has_waited`
    /// for, everything is due.
    pub(super) fn take_due(&self, own: bool, has_waited: impl Fn(Owner) -> bool) -> Vec<Outdated> {
        let mut due = Vec::new();
        let mut piles = self.lock();
        if piles.is_empty() {
            return due;
        }
        for owner in owners(own) {
            if let Some(pile) = piles.get_mut(&owner) {
                due.append(&mut if owner.thread != EVERYBODY && has_waited(owner) {
                    pile.take_all()
                } else {
                    pile.take_due(owner.light, || self.slots.inside())
                });
                if pile.is_empty() {
                    piles.remove(&owner);
                }
            }
        }
        due
    }

    pub(super) fn reclaim(&self) -> bool {
        if !self.may_wait(FREE_OWN) {
            return false;
        }
        // Leaked, rather than freed too early, if the waiting fails.
        let piles = ManuallyDrop::new(mem::take(&mut *self.lock()));
        self.wait_for_readers(true);
        let piles = ManuallyDrop::into_inner(piles).into_values();
        free(piles.flat_map(|mut pile| pile.take_all()).collect());
        true
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Piles> {
        forked::watch();
        self.piles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(not(loom))]
pub(super) fn domain() -> &'static Domain {
    static DOMAIN: Domain = Domain::new();
    &DOMAIN
}

#[cfg(loom)]
pub(super) fn domain() -> &'static Domain {
    loom::lazy_static! {
        static ref DOMAIN: Domain = Domain::new();
    }
    &DOMAIN
}

/// What becomes of readers in a child of this process.
///
/// The child has one thread, and the slots of all. Readers of other threads that were inside a section never leave it,
/// and hold nothing. The slots stay with their readers, some of which the child may go on to use.
#[cfg(all(unix, not(loom)))]
mod forked {
    use super::super::piles::Piles;
    use super::super::slots::INSIDE;
    use super::domain;
    use crate::sync::atomic::{AtomicBool, Ordering};
    use crate::sync::fork::at_fork;
    use crate::sync::{MutexGuard, this_thread};
    use std::cell::UnsafeCell;

    /// Held during a fork, so that no other thread holds it in the child for ever.
    struct Held(UnsafeCell<Option<MutexGuard<'static, Piles>>>);

    // SAFETY: the C library makes forks, with their handlers, take turns, and the forking thread runs all handlers.
    unsafe impl Sync for Held {}

    static HELD: Held = Held(UnsafeCell::new(None));

    /// To be called before the first section, and before the piles are locked for the first time.
    pub(super) fn watch() {
        static WATCHED: AtomicBool = AtomicBool::new(false);
        if !WATCHED.load(Ordering::Relaxed) && !WATCHED.swap(true, Ordering::Relaxed) {
            // SAFETY: the lock that they take is never held while anything is waited for, and the rest is written to
            // slots.
            unsafe { at_fork(Some(hold), Some(let_go), Some(forget_others)) };
        }
    }

    unsafe extern "C" fn hold() {
        let held = domain().lock();
        // SAFETY: see `Held`.
        unsafe { *HELD.0.get() = Some(held) };
    }

    unsafe extern "C" fn let_go() {
        // SAFETY: see `Held`.
        drop(unsafe { (*HELD.0.get()).take() });
    }

    unsafe extern "C" fn forget_others() {
        for slot in domain().slots.iter() {
            let seq = slot.seq.load(Ordering::Relaxed);
            if seq & INSIDE != 0 && slot.owner.load(Ordering::Relaxed) != this_thread() {
                slot.owes.store(0, Ordering::Relaxed);
                // Relaxed: there is no other thread.
                slot.seq.store(seq.wrapping_add(INSIDE), Ordering::Relaxed);
            }
        }
        // SAFETY: this thread has run `hold`.
        unsafe { let_go() };
    }
}

#[cfg(not(all(unix, not(loom))))]
mod forked {
    pub(super) fn watch() {}
}

/// Waits until all fenced sections that are under way have ended. For a caller that has made a change with a
/// [`DEKKER`](crate::sync::DEKKER) store, which fenced sections load with a [`dekker_load`](crate::sync::dekker_load).
/// Does not wait inside a section of this thread's own, or while the thread has a [`Deferral`](super::Deferral);
/// returns whether it has waited.
pub fn synchronize() -> bool {
    domain().synchronize::<Fenced>(None)
}

/// Whether this thread may wait for others now. It may not inside a section, in a destructor that the end of a section
/// runs, or while it has a [`Deferral`](super::Deferral).
pub fn may_wait() -> bool {
    domain().may_wait(0)
}

/// Retires `outdated`, as a change inside a section does.
#[cfg(loom)]
pub fn retire(outdated: impl Send + 'static) {
    let domain = domain();
    domain.leave::<Fenced>(this_threads_number(), Box::new(outdated));
    domain.free_due(FREE_OWN);
}

/// Frees what all threads have left behind by detaching and deassigning inside callbacks.
///
/// An observer that is detached inside an observer's call cannot be dropped there, because another thread may be
/// calling it. The thread that detached it drops it when its outermost call ends, unless another thread is inside a
/// call or a lookup at that moment, of any event or table. In that case, the same thread drops it later: when another
/// of its outermost calls ends in which something was attached or detached, or in a change that it makes outside of
/// calls and that waits. Or this call drops it. No other call drops what another thread has detached, and a signal
/// drops only what callbacks on its own thread have detached.
///
/// So this call is for programs whose threads detach inside calls, and then never do so again, or end. Call it now and
/// then, from a thread that does such work. Or call it when an observer must be gone: in a test, or before memory that
/// an observer refers to is unmapped. It does not wait for what another thread is dropping at the same time. To be
/// certain, call it after the outermost calls have returned in which the observer was detached, or detach it outside of
/// calls.
///
/// It blocks until no other thread is inside a callback or a lookup that began before, and then runs the destructors.
/// So the caller must not hold a lock that a callback, or the destructor of an observer, may take. If destructors
/// panic, all are run nevertheless, and this panics with the first payload.
///
/// Returns false, and does nothing, if it is called where it cannot wait: inside a callback, a lookup, a transaction of
/// an address space, or a destructor that runs at the end of a callback.
///
/// ```
/// use doorbell::Event;
/// use doorbell::event::{Change, Interest, Observation};
/// use std::sync::{Arc, Mutex};
///
/// let event = Arc::new(Event::new(0));
/// let state = Arc::new(());
/// let own = Arc::new(Mutex::new(None));
/// *own.lock().unwrap() = Some(Observation::new(Arc::clone(&event), Interest::Signals, {
///     let (own, _state) = (Arc::downgrade(&own), Arc::clone(&state));
///     // Detaches itself in its first call.
///     Arc::new(move |_: Change| {
///         let _state = &_state;
///         let observation = own.upgrade().and_then(|own| own.lock().unwrap().take());
///         drop(observation);
///     })
/// }));
/// event.signal();
/// doorbell::reclaim();
/// assert_eq!(Arc::strong_count(&state), 1);
/// ```
pub fn reclaim() -> bool {
    domain().reclaim()
}
