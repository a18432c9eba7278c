//! Snapshots that are read often and replaced seldom: a small sleepable RCU.
//!
//! The kernel's counterpart is `srcu_struct`, under which KVM keeps its I/O buses and interrupt routes. An [`Srcu`]
//! holds the current snapshot. Readers look at it inside a [`Section`]; a writer publishes another one, and the old one
//! is freed when no reader holds it any more. All `Srcu`s of the process share one set of readers:
//!
//! ```text
//!     slot        one per reader, on cache lines of its own; kept for the next reader when its own has gone
//!       seq       odd: inside a section             the reader alone changes it
//!       owner     the thread that is inside
//!       owes      what the end of the section has to see to
//!
//!     reader                                        writer
//!     1  seq: even -> odd                           1  lock; build the new snapshot; swap the pointer; unlock
//!     2  load the pointer, use the snapshot         2  each slot: seq odd?  wait until it is another
//!     3  seq: odd -> even                           3  free the old snapshot
//! ```
//!
//! Why a writer frees nothing that is in use:
//!
//! * Reader 1 and 2 against writer 1 and 2 is a [`DEKKER`] handshake: the reader loads the new pointer, or the writer
//!   finds the slot odd. For [`Light`] sections, if [`use_membarrier`](super::membarrier) is in force, the reader's
//!   accesses are plain ones in program order, and the writer makes every thread execute a full barrier between its own
//!   two. If a reader's store comes before that barrier in its program, the writer sees the store; if not, its load
//!   comes after too, and sees the new pointer. A [`Fenced`] section inside a light one publishes the sequence once
//!   more, with a fence, so writers of what is read in fenced sections need no such barrier.
//! * Reader 3 releases and the writer's load acquires: the free comes after the last use.
//! * The sequence tells a reader that has left and come back from one that has stayed, so readers in a tight loop do
//!   not hold up writers.
//!
//! A section may stand inside another one of the same thread, of this `Srcu` or any other. A writer that is inside a
//! section itself cannot wait for it, and must not wait for the others, who might be writers waiting for this one. That
//! all share their readers makes the rule simple: inside a section nobody waits. The price is that a writer waits for
//! readers of snapshots that it has nothing to do with, so what runs inside a section must be short.
//!
//! # Who frees
//!
//! What is freed may be an observer, whose destructor is foreign code and may take any lock. So a thread frees what it
//! has retired itself, at a point where its caller expects that, and nothing of others':
//!
//! ```text
//!     a writer outside sections            waits for the readers, then frees what it retired, and what its thread has left
//!     a writer inside a section            leaves it in a pile of its thread's
//!     the end of the outermost section,    looks which readers are inside, without waiting; frees the pile if there are
//!     if something was left in it          none, else writes them down, and the pile waits for the next such end
//!     publish_without_waiting              leaves the old snapshot, which runs no foreign destructor, in everybody's pile
//!     reclaim                              waits for the readers, then frees all piles
//! ```
//!
//! ```text
//!     pile     waiting   freed when the readers written down have left, or have come back since
//!              next      came later; becomes `waiting` when that has been freed
//! ```
//!
//! A pile is looked at by its thread each time it grows, and a look costs no more than there are readers, however much
//! lies in it. So a thread that retires for ever inside sections holds what it has retired in the course of one section
//! of another thread's, or two. After [`use_membarrier`](super::membarrier), what was read in light sections stays in a
//! pile until some thread has called `membarrier` since: the end of a section does not.
//!
//! Destructors run at the end of a section run when it has ended, outside of all locks; changes that they make wait for
//! nothing. One that panics does not keep the others from being run.
//!
//! Writers wait after they have unlocked, so a reader may become a writer inside its section. A caller that publishes
//! while it holds a lock of its own, which readers may want, takes a [`Deferral`] before the lock: then it does not
//! wait before the deferral's end. They spin, yield, then sleep for up to a millisecond at a time; readers never make a
//! system call for them.
//!
//! A process that forks takes the slots along but not the threads: see `forked`.

use super::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use super::{
    ConstPtr, DEKKER, Mutex, MutexGuard, UnsafeCell, const_thread_local, dekker_load, membarrier,
    release_store, this_thread, yield_now,
};
use crate::panics::{Payload, catch, go_on_unless_panicking};
use crossbeam_utils::{Backoff, CachePadded};
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

/// What a reader shows to writers. Never freed, so that writers can walk the list without a lock.
struct Slot {
    /// Odd while the reader is inside a section.
    seq: AtomicU32,
    /// [`this_thread`] as of the last section.
    owner: AtomicUsize,
    /// What is to be seen to when the section ends: [`FREE`], [`FREE_OWN`]. Of the owner only.
    owes: AtomicU32,
    /// Belongs to a [`Reader`].
    claimed: AtomicBool,
    /// Set before the slot can be found.
    next: AtomicPtr<CachePadded<Slot>>,
}

/// The bit of `seq` that says so.
const INSIDE: u32 = 1;

/// To free what is due of everybody's pile.
const FREE: u32 = 1;
/// To free what is due of the thread's own piles, too.
const FREE_OWN: u32 = FREE | 2;
/// To wait for readers before, those in fenced sections.
const WAIT: u32 = FREE_OWN | 4;
/// To wait for readers in light sections, too.
const WAIT_LIGHT: u32 = WAIT | 8;

/// How sections are entered. See the module.
pub trait Kind: 'static {
    /// Whether a reader may leave the fence to the writers.
    const LIGHT: bool;
}

/// With a fence, always.
pub struct Fenced;

/// Without a fence, if [`use_membarrier`](super::membarrier) is in force. For what is looked up so often, and changed
/// so seldom, that it pays.
pub struct Light;

impl Kind for Fenced {
    const LIGHT: bool = false;
}

impl Kind for Light {
    const LIGHT: bool = true;
}

fn wait_for<K: Kind>() -> u32 {
    if K::LIGHT { WAIT_LIGHT } else { WAIT }
}

/// What the writers of all `Srcu`s share.
struct Domain {
    /// The slots, newest first. None is ever taken out.
    head: AtomicPtr<CachePadded<Slot>>,
    /// Held for a moment, and never while something is freed.
    piles: Mutex<Piles>,
}

type Outdated = Box<dyn Any + Send>;

type Piles = BTreeMap<Owner, Pile>;

/// Readers inside a section, and their sequences.
type Readers = Vec<(&'static Slot, u32)>;

/// Whose a pile is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    thread: u64,
    /// Whether light sections have read what lies there.
    light: bool,
}

impl Owner {
    /// Whether who has waited for readers, those in light sections only if `light`, has waited for those of this pile.
    /// Where no fence is left to writers, which is if not `is_light`, there is no difference.
    fn is_waited_for(&self, light: bool, is_light: bool) -> bool {
        light || !self.light || !is_light
    }
}

/// In the place of a thread's number.
const EVERYBODY: u64 = 0;

/// What is out of date, and may be in use.
#[derive(Default)]
struct Pile {
    /// Is freed when all of the readers have left.
    waiting: Vec<Outdated>,
    /// Those that were inside when `waiting` was complete, and have not left.
    readers: Readers,
    /// What has come since.
    next: Vec<Outdated>,
    /// [`membarrier::begun`] when the last of `next` came.
    barriers: u64,
}

impl Pile {
    /// Takes out what is due.
    fn take_due(&mut self, light: bool, inside: impl FnOnce() -> Readers) -> Vec<Outdated> {
        let mut due = self.take_waiting();
        self.begin_to_wait(light, inside);
        due.append(&mut self.take_waiting());
        due
    }

    /// `waiting`, if all have left.
    fn take_waiting(&mut self) -> Vec<Outdated> {
        self.readers
            .retain(|(slot, seq)| dekker_load(&slot.seq) == *seq);
        if self.readers.is_empty() {
            mem::take(&mut self.waiting)
        } else {
            Vec::new()
        }
    }

    /// Makes `next` what waits, if nothing does, for the readers that are inside now.
    fn begin_to_wait(&mut self, light: bool, inside: impl FnOnce() -> Readers) {
        let are_seen =
            || !light || !membarrier::is_light() || membarrier::ended_since(self.barriers);
        if self.waiting.is_empty() && !self.next.is_empty() && are_seen() {
            self.readers = inside();
            self.waiting = mem::take(&mut self.next);
        }
    }

    fn take_all(&mut self) -> Vec<Outdated> {
        self.readers.clear();
        let mut all = mem::take(&mut self.waiting);
        all.append(&mut self.next);
        all
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.next.is_empty()
    }
}

impl Domain {
    maybe_const! {
        fn new() -> Self {
            Domain {
                head: AtomicPtr::new(ptr::null_mut()),
                piles: Mutex::new(BTreeMap::new()),
            }
        }
    }

    fn slots(&self) -> impl Iterator<Item = &'static Slot> {
        // Pairs with the push in `claim`: a reader that could load an old pointer is in the list. See there.
        let mut next = load_head(&self.head);
        std::iter::from_fn(move || {
            // SAFETY: null, or a slot that was leaked, after it had been initialised, by the push that was acquired.
            let slot = unsafe { next.as_ref() }?;
            next = slot.next.load(Ordering::Relaxed);
            Some(&**slot)
        })
    }

    /// A slot for a new reader: one that was left by another, or a new one.
    fn claim(&self) -> &'static Slot {
        membarrier::settle();
        forked::watch();
        let left = self.slots().find(|slot| {
            !slot.claimed.load(Ordering::Relaxed)
                && slot
                    .claimed
                    // Acquire pairs with the Release of the reader that left: its last stores come before ours.
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
            // The store of a handshake, as that of `seq` is: before this reader loads its first pointer, and after a
            // writer has swapped it, the writer loads the head.
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

    /// Waits until every section that is under way has ended, then frees `outdated` and what this thread has left; or,
    /// where this thread is not to wait, leaves it all to later. Returns whether it has waited.
    fn synchronize<K: Kind>(&self, outdated: Option<Outdated>) -> bool {
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

    /// Waits until the sections that are under way have ended; the light ones, too, or only those that are fenced.
    fn wait_for_readers(&self, light: bool) {
        membarrier::settle();
        if light {
            membarrier::heavy();
        }
        for slot in self.slots() {
            slot.wait_for_end();
        }
    }

    /// Puts it into a pile of this kind.
    fn leave<K: Kind>(&self, thread: u64, outdated: Outdated) {
        membarrier::settle();
        let owner = Owner {
            thread,
            light: K::LIGHT,
        };
        let mut piles = self.lock();
        let pile = piles.entry(owner).or_default();
        if K::LIGHT {
            // A barrier that does for what is there may have come, which does not do for what comes now.
            pile.begin_to_wait(true, || self.inside());
            pile.barriers = membarrier::begun();
        }
        pile.next.push(outdated);
    }

    /// Whether this thread may wait for readers, or free anything, now. If not, the end of whatever is in the way sees
    /// to what is `owed`.
    fn may_wait(&self, owed: u32) -> bool {
        !FREEING.with(Cell::get) && !Deferral::owe(owed) && !self.leave_to_section(owed)
    }

    /// Whether this thread is inside a section. If it is, that one owes.
    fn leave_to_section(&self, owed: u32) -> bool {
        let mut inside = false;
        for slot in self.slots() {
            // Acquire pairs with the Release of the entry: the owner is the one who entered, or a later one.
            let seq = slot.seq.load(Ordering::Acquire);
            if seq & INSIDE != 0 && slot.owner.load(Ordering::Relaxed) == this_thread() {
                let owes = slot.owes.load(Ordering::Relaxed);
                slot.owes.store(owes | owed & FREE_OWN, Ordering::Relaxed);
                inside = true;
            }
        }
        inside
    }

    /// Frees what is due, without waiting for anything; or leaves that to later.
    fn free_due(&self, owed: u32) {
        if !self.may_wait(owed) {
            return;
        }
        let own = owed & FREE_OWN == FREE_OWN;
        let mut panicked = None;
        FREEING.with(|freeing| freeing.set(true));
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
        FREEING.with(|freeing| freeing.set(false));
        go_on_unless_panicking(panicked);
    }

    /// What is due of everybody's piles and, if asked for, of this thread's: all of those for whose readers it
    /// `has_waited`.
    fn take_due(&self, own: bool, has_waited: impl Fn(Owner) -> bool) -> Vec<Outdated> {
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
                    pile.take_due(owner.light, || self.inside())
                });
                if pile.is_empty() {
                    piles.remove(&owner);
                }
            }
        }
        due
    }

    /// Who is inside a section now.
    fn inside(&self) -> Readers {
        let seen = self.slots().map(|slot| (slot, dekker_load(&slot.seq)));
        seen.filter(|(_, seq)| seq & INSIDE != 0).collect()
    }

    fn reclaim(&self) -> bool {
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

    fn lock(&self) -> MutexGuard<'_, Piles> {
        forked::watch();
        self.piles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn owners(own: bool) -> impl Iterator<Item = Owner> {
    let threads = [Some(EVERYBODY), own.then(this_threads_number)];
    let of = |thread| [false, true].map(|light| Owner { thread, light });
    threads.into_iter().flatten().flat_map(of)
}

/// Drops all of it, even if there is a panic. The first is kept.
fn free_each(due: Vec<Outdated>, panicked: &mut Option<Payload>) {
    for outdated in due {
        catch(panicked, || drop(outdated));
    }
}

fn free(due: Vec<Outdated>) {
    let mut panicked = None;
    free_each(due, &mut panicked);
    go_on_unless_panicking(panicked);
}

/// The load of the handshake with a new reader. Under loom a read-modify-write that changes nothing, for the reason
/// given at [`dekker_load`].
fn load_head<T>(head: &AtomicPtr<T>) -> *mut T {
    #[cfg(loom)]
    let _ = head.fetch_update(DEKKER, DEKKER, Some);
    head.load(DEKKER)
}

impl Slot {
    fn wait_for_end(&self) {
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

/// Waiting for something that takes nanoseconds, unless a thread has lost its CPU.
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

#[cfg(not(loom))]
use std::thread_local;

#[cfg(loom)]
use loom::thread_local;

#[cfg(not(loom))]
fn domain() -> &'static Domain {
    static DOMAIN: Domain = Domain::new();
    &DOMAIN
}

#[cfg(loom)]
fn domain() -> &'static Domain {
    loom::lazy_static! {
        static ref DOMAIN: Domain = Domain::new();
    }
    &DOMAIN
}

/// A number that no other thread ever has, and not [`EVERYBODY`].
fn this_threads_number() -> u64 {
    // From 1, for 0 is everybody. It orders nothing: std's under loom too.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    const_thread_local! {
        static OWN: Cell<u64> = { Cell::new(EVERYBODY) };
    }
    OWN.with(|own| {
        if own.get() == EVERYBODY {
            own.set(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
        own.get()
    })
}

/// What becomes of readers in a child of this process.
///
/// It has one thread, and the slots of all. Those that were inside a section, the forking thread excepted, never leave
/// it, and hold nothing. The slots themselves stay with their readers, some of which the child may go on to use.
#[cfg(all(unix, not(loom)))]
mod forked {
    use super::super::fork::at_fork;
    use super::{INSIDE, MutexGuard, Ordering, Piles, domain, this_thread};
    use crate::sync::atomic::AtomicBool;
    use std::cell::UnsafeCell;

    /// Held during a fork, so that no other thread holds it in the child for ever.
    struct Held(UnsafeCell<Option<MutexGuard<'static, Piles>>>);

    // SAFETY: the C library makes forks, with their handlers, take turns, and who forks runs them all.
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
        for slot in domain().slots() {
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

/// The means to enter sections, for a thread that often does.
///
/// It may move to another thread between sections.
pub struct Reader {
    slot: &'static Slot,
    /// Sections of this reader's that are under way, one inside the other.
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

const_thread_local! {
    static DEFERRALS: Cell<usize> = { Cell::new(0) };
    /// What their end is to see to.
    static DEFERRED: Cell<u32> = { Cell::new(0) };
    /// This thread frees at the end of a section.
    static FREEING: Cell<bool> = { Cell::new(false) };
}

/// A time in which the writers of this thread do not wait for readers. The waiting comes at its end.
///
/// It is for the time in which a thread holds a lock that a reader may wait for inside its section, so it ends after
/// the lock. Forgetting it is safe; nobody but [`reclaim`] frees what the thread retires then.
pub struct Deferral {
    /// Of the thread that began it.
    _thread: PhantomData<*const ()>,
}

impl Deferral {
    /// Begins one, perhaps inside another, whose end it then is that counts.
    pub fn new() -> Self {
        DEFERRALS.with(|deferrals| deferrals.set(deferrals.get() + 1));
        Deferral {
            _thread: PhantomData,
        }
    }

    /// Whether this thread has one. If it has, its end sees to what is `owed`.
    fn owe(owed: u32) -> bool {
        let deferred = DEFERRALS.with(Cell::get) != 0;
        if deferred {
            DEFERRED.with(|all| all.set(all.get() | owed));
        }
        deferred
    }
}

impl Drop for Deferral {
    fn drop(&mut self) {
        let left = DEFERRALS.with(|deferrals| {
            deferrals.set(deferrals.get() - 1);
            deferrals.get()
        });
        if left != 0 {
            return;
        }
        match DEFERRED.with(|owed| owed.replace(0)) {
            0 => {}
            owed if owed & WAIT_LIGHT == WAIT_LIGHT => _ = domain().synchronize::<Light>(None),
            owed if owed & WAIT == WAIT => _ = domain().synchronize::<Fenced>(None),
            owed => domain().free_due(owed),
        }
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

/// A section of the thread's own reader, if that is there: it is made in [`with_section`], and gone when the thread
/// ends. For a hot path, which then need not have ready in memory what a closure takes along.
///
/// # Safety
///
/// The section ends before the thread does: it is kept nowhere.
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

/// The reader of this thread, which nobody else sees. `None` before it is made, and at the end of the thread, when it
/// is gone already.
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

/// Waits until every section that is under way has ended, for who has made a change with a [`DEKKER`] store that fenced
/// sections look at with a [`dekker_load`]. Returns whether it has waited: inside a section of this thread's, or while
/// it has a [`Deferral`], it does not.
pub fn synchronize() -> bool {
    domain().synchronize::<Fenced>(None)
}

/// Whether this thread may wait for others now: not inside a section, nor where the end of one frees, nor while it has
/// a [`Deferral`].
pub fn may_wait() -> bool {
    domain().may_wait(0)
}

/// Has `outdated` dropped as what a change inside a section has left is.
#[cfg(loom)]
pub fn retire(outdated: impl Send + 'static) {
    let domain = domain();
    domain.leave::<Fenced>(this_threads_number(), Box::new(outdated));
    domain.free_due(FREE_OWN);
}

/// Frees what detaching and deassigning inside callbacks has left behind, of all threads, on this thread.
///
/// An observer that is detached inside an observer's call cannot be dropped there, for another thread may be calling
/// it. The thread that detached it drops it when its outermost call ends, unless another thread is inside a call or a
/// lookup at that moment, of whatever event or table. Then it is dropped by the same thread later: when another of its
/// outermost calls ends in which something was attached or detached, or in a change that it makes outside of calls and
/// that waits. Or here. No other call drops anything of another thread's, and a signal drops nothing but what its own
/// thread's callbacks have detached.
///
/// So this is for programs whose threads detach inside calls, and then do so no more, or end. They call this now and
/// then, from a thread that does such things, or when something must be gone: tests, or before the memory that an
/// observer refers to is unmapped. (What another thread is dropping at this very moment is not waited for. Who must
/// know calls this when the outermost calls have returned in which it was detached, or drops it outside of calls.)
///
/// It blocks until no other thread is inside a callback or a lookup that began before, then runs the destructors. So
/// the caller holds no lock that a callback, or the destructor of an observer, may take. If destructors panic, all are
/// run nevertheless, and this panics with the first payload.
///
/// Returns false, having done nothing, if it is called where it cannot wait: inside a callback, a lookup, a transaction
/// of an address space, or a destructor that runs at the end of a callback.
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

/// The current snapshot of what readers share with one another and with writers.
///
/// The destructor of a snapshot runs on whatever thread, so it must run no foreign code: what it leads to is owned
/// elsewhere, and goes as the `outdated` of the writer that takes it out.
pub struct Srcu<T, K: Kind = Fenced> {
    /// Never null. On lines of its own: writers contend for the lock, and readers shall not notice.
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

    /// Keeps other writers out.
    pub fn write(&self) -> Writer<'_, T, K> {
        Writer {
            current: &self.current,
            // There is nothing behind it that a panic could have left half done.
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

    /// Makes `value` the snapshot, lets other writers in, and waits until nobody holds the one before. Then drops that
    /// and `outdated`, which it may have pointed to.
    ///
    /// Inside a section of this thread's it does not wait; this thread drops both later, see the module. While the
    /// thread has a [`Deferral`], all that comes at its end.
    ///
    /// # Panics
    ///
    /// If it cannot find out who is still reading (see [`membarrier`]); `value` is published then, and what was before
    /// is leaked. And if a destructor does.
    pub fn publish(self, value: T, outdated: impl Send + 'static) {
        let old = self.swap(value);
        domain().synchronize::<K>(Some(Box::new(Replaced { old, outdated })));
    }

    /// Makes `value` the snapshot, lets other writers in, and returns, while readers may still hold the one before.
    /// That is for who has only added something. (`call_srcu`)
    ///
    /// # Panics
    ///
    /// As [`publish`](Self::publish).
    pub fn publish_without_waiting(self, value: T) {
        let old = self.swap(value);
        let domain = domain();
        domain.leave::<K>(EVERYBODY, Box::new(Replaced { old, outdated: () }));
        if K::LIGHT && membarrier::is_light() && domain.may_wait(FREE) {
            // Nobody else might ever, and then old snapshots would pile up.
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

/// A snapshot that is current no more. Readers may hold it, so it is no `Box` until the grace period has passed.
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;

    type Book = Srcu<Arc<u32>>;

    /// All writers of a process wait for all its readers. The tests take turns, so that each knows who frees what.
    fn alone() -> impl Drop {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(book: &Book, page: u32) {
        book.write().publish(Arc::new(page), ());
    }

    /// Inside a section nothing is freed under it; its end frees, not the end of a section inside it.
    #[test]
    fn change_inside_nested_sections() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Srcu::new(Arc::clone(&first));
        let reader = Reader::new();
        let outer = reader.enter();
        let page = book.read(&outer);
        with_section(|_| {
            let inner = reader.enter();
            publish(&book, 1);
            assert_eq!(**book.read(&inner), 1);
        });
        assert_eq!(**page, 0);
        assert_eq!(Arc::strong_count(&first), 2);
        drop(outer);
        assert_eq!(Arc::strong_count(&first), 1);
    }

    /// A writer that holds a lock waits after it has given it up, so a reader may take it inside its section.
    #[test]
    fn deferral_around_a_lock() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Srcu::new(Arc::clone(&first));
        let lock = Mutex::new(());
        let (inside, entered) = mpsc::channel();
        let (published, go) = mpsc::channel();
        let (book, lock) = (&book, &lock);
        thread::scope(|scope| {
            scope.spawn(move || {
                with_section(|section| {
                    let page = book.read(section);
                    inside.send(()).expect("the writer lives");
                    let patience = Duration::from_secs(20);
                    go.recv_timeout(patience).expect("the writer waits for us");
                    drop(lock.lock().expect("nobody panics"));
                    assert_eq!(**page, 0);
                });
            });
            entered.recv().expect("the reader lives");
            let outer = Deferral::new();
            let inner = Deferral::new();
            let locked = lock.lock().expect("nobody panics");
            publish(book, 1);
            published.send(()).expect("the reader lives");
            drop(inner);
            drop(locked);
            drop(outer);
            assert_eq!(Arc::strong_count(&first), 1);
        });
    }

    /// The end of a deferral waits for all that was put off, be it twice or of both kinds.
    #[test]
    fn several_changes_in_a_deferral() {
        let _alone = alone();
        for both in [false, true] {
            let pages = [0, 1, 2].map(Arc::new);
            let [first, second, third] = &pages;
            let book = Srcu::new(Arc::clone(first));
            let light = Srcu::<_, Light>::new(Arc::clone(third));
            let deferral = Deferral::new();
            book.write().publish(Arc::clone(second), ());
            publish(&book, 3);
            if both {
                light.write().publish(Arc::new(4), ());
            }
            assert_eq!(pages.each_ref().map(Arc::strong_count), [2; 3]);
            drop(deferral);
            let left = if both { 1 } else { 2 };
            assert_eq!(pages.each_ref().map(Arc::strong_count), [1, 1, left]);
        }
    }

    /// A section that ends in a panic ends.
    #[test]
    fn panic_inside_a_section() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Srcu::new(Arc::clone(&first));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            with_section(|section| {
                let _page = book.read(section);
                publish(&book, 1);
                panic!("in a callback");
            })
        }));
        assert!(result.is_err());
        assert_eq!(Arc::strong_count(&first), 1);
        publish(&book, 2);
    }

    /// A section that was forgotten holds up others until its reader goes, and frees nothing early.
    #[test]
    fn forgotten_section() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Arc::new(Srcu::new(Arc::clone(&first)));
        let reader = Reader::new();
        std::mem::forget(reader.enter());
        let (sender, done) = mpsc::channel();
        let writer = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                publish(&book, 1);
                sender.send(()).expect("somebody listens");
            })
        };
        assert!(done.recv_timeout(Duration::from_millis(20)).is_err());
        assert_eq!(Arc::strong_count(&first), 2);
        drop(reader);
        writer.join().expect("it ends");
        assert_eq!(Arc::strong_count(&first), 1);
        drop(book);
    }

    /// A writer waits for a reader that stays, however often others come and go.
    #[test]
    fn writer_waits_for_the_one_that_stays() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Arc::new(Srcu::new(Arc::clone(&first)));
        let (entered, inside) = mpsc::channel();
        let (leave, asked) = mpsc::channel::<()>();
        let reader = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                with_section(|section| {
                    let page = book.read(section);
                    entered.send(()).expect("somebody listens");
                    asked.recv().expect("to be asked");
                    **page
                })
            })
        };
        inside.recv().expect("it enters");
        let writer = {
            let book = Arc::clone(&book);
            thread::spawn(move || publish(&book, 1))
        };
        for _ in 0..1000 {
            with_section(|section| assert!(**book.read(section) <= 1));
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!writer.is_finished());
        leave.send(()).expect("somebody listens");
        assert_eq!(reader.join().expect("it ends"), 0);
        writer.join().expect("it ends");
        assert_eq!(Arc::strong_count(&first), 1);
    }

    /// A thread whose own reader is gone already, in the destructor of another thread-local value, can still read,
    /// write, and nest both.
    #[test]
    fn after_the_thread_local_reader_is_gone() {
        let _alone = alone();
        struct Last(Arc<Book>, mpsc::Sender<u32>);
        impl Drop for Last {
            fn drop(&mut self) {
                let page = with_section(|section| {
                    publish(&self.0, 7);
                    **self.0.read(section)
                });
                self.1.send(page).expect("somebody listens");
            }
        }
        std::thread_local! {
            static LAST: std::cell::OnceCell<Last> = const { std::cell::OnceCell::new() };
        }
        let first = Arc::new(0);
        let book = Arc::new(Srcu::new(Arc::clone(&first)));
        for reader_goes_first in [true, false] {
            let (sender, page) = mpsc::channel();
            let last = Last(Arc::clone(&book), sender);
            thread::spawn(move || {
                // Destructors run in the order of first use, or the reverse: one of the two comes after the reader's.
                let use_reader = || with_section(|_| ());
                if reader_goes_first {
                    use_reader();
                }
                LAST.with(|cell| assert!(cell.set(last).is_ok()));
                use_reader();
            })
            .join()
            .expect("it ends");
            assert_eq!(page.recv(), Ok(7));
        }
        assert_eq!(Arc::strong_count(&first), 1);
    }

    /// Once its sections have ended, a thread waits, and frees at once.
    #[test]
    fn change_after_a_section() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Srcu::new(Arc::clone(&first));
        with_section(|section| assert_eq!(**book.read(section), 0));
        publish(&book, 1);
        assert_eq!(Arc::strong_count(&first), 1);
        let second = Arc::new(2);
        book.write().publish(Arc::clone(&second), ());
        drop(book);
        assert_eq!(Arc::strong_count(&second), 1);
    }

    fn pile(thread: u64, light: bool) -> Owner {
        Owner { thread, light }
    }

    /// Who has waited for readers takes what is its own: what others have retired meanwhile may be in use.
    #[test]
    fn who_has_waited_takes_its_own() {
        let domain = Domain::new();
        let reader = domain.claim();
        reader.seq.store(INSIDE, Ordering::Relaxed);
        let own = this_threads_number();
        for thread in [own, EVERYBODY] {
            domain.leave::<Fenced>(thread, Box::new(thread));
        }
        assert!(domain.take_due(true, |_| false).is_empty());
        let due = domain.take_due(true, |_| true);
        let due: Vec<_> = due.iter().map(|thread| thread.downcast_ref()).collect();
        assert_eq!(due, [Some(&own)]);
        // Nor does anybody keep an empty pile.
        let piles = || domain.lock().keys().copied().collect::<Vec<_>>();
        assert_eq!(piles(), [pile(EVERYBODY, false)]);
        reader.seq.store(2 * INSIDE, Ordering::Relaxed);
        assert_eq!(domain.take_due(false, |_| false).len(), 1);
        assert_eq!(piles(), []);
    }

    #[test]
    fn whose_readers_are_waited_for() {
        for (of, light, is_light, expected) in [
            // Those in light sections, which all wait for where fences are the readers'.
            (true, true, true, true),
            (true, false, true, false),
            (true, false, false, true),
            (true, true, false, true),
            // All others, always.
            (false, true, true, true),
            (false, false, true, true),
            (false, false, false, true),
            (false, true, false, true),
        ] {
            let waited_for = pile(1, of).is_waited_for(light, is_light);
            assert_eq!(waited_for, expected, "{of} {light} {is_light}");
        }
    }

    /// Retires another one of its kind when it is dropped.
    struct Chain(u64, u32, Arc<AtomicU32>);

    static CHAINED: Domain = Domain::new();

    impl Drop for Chain {
        fn drop(&mut self) {
            self.2.fetch_add(1, Ordering::Relaxed);
            if let Some(length) = self.1.checked_sub(1) {
                let next = Chain(self.0, length, Arc::clone(&self.2));
                CHAINED.leave::<Fenced>(self.0, Box::new(next));
            }
        }
    }

    /// Who frees its own frees what that leads to; who does somebody else's work is done after the first.
    #[test]
    fn what_destructors_retire() {
        let dropped = Arc::new(AtomicU32::new(0));
        let so_far = || dropped.swap(0, Ordering::Relaxed);
        for (thread, owed, expected) in [(this_threads_number(), FREE_OWN, 4), (EVERYBODY, FREE, 1)]
        {
            let chain = Chain(thread, 3, Arc::clone(&dropped));
            CHAINED.leave::<Fenced>(thread, Box::new(chain));
            CHAINED.free_due(owed);
            assert_eq!(so_far(), expected);
        }
    }

    /// All is dropped, whatever panics, and the first panic goes on.
    #[test]
    fn destructors_that_panic() {
        struct Panics(&'static str);
        impl Drop for Panics {
            fn drop(&mut self) {
                std::panic::panic_any(self.0);
            }
        }
        let last = Arc::new(());
        let due: Vec<Outdated> = vec![
            Box::new(Panics("first")),
            Box::new(Panics("second")),
            Box::new(Arc::clone(&last)),
        ];
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| free(due)));
        let payload = result.expect_err("it panics");
        assert_eq!(payload.downcast_ref(), Some(&"first"));
        assert_eq!(Arc::strong_count(&last), 1);
    }

    /// Slots are as many as there were readers at one time, not as there were readers.
    #[test]
    fn slots_are_used_again() {
        let _alone = alone();
        let count = || domain().slots().count();
        let at_once = 8;
        let before = count();
        for _ in 0..250 {
            let threads: Vec<_> = (0..at_once)
                .map(|_| {
                    thread::spawn(|| {
                        with_section(|_| Reader::new().slot.seq.load(Ordering::Relaxed))
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("it ends");
            }
        }
        // The other tests of this process have a few of their own.
        assert!(
            count() <= before + 2 * at_once + 64,
            "{before} -> {}",
            count()
        );
    }

    /// In a forked child there is nobody to end a section that another thread was in: a writer does not wait for it. It
    /// does for one of the forking thread's.
    #[cfg(unix)]
    #[test]
    fn fork_while_another_thread_is_inside() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Arc::new(Srcu::new(Arc::clone(&first)));
        let (entered, inside) = mpsc::channel();
        let (leave, asked) = mpsc::channel::<()>();
        let reader = thread::spawn(move || {
            with_section(|_| {
                entered.send(()).expect("somebody listens");
                asked.recv().expect("to be asked");
            })
        });
        inside.recv().expect("it enters");
        // SAFETY: the child looks at memory of its own, and ends without leaving this block.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: plain system calls.
            unsafe { libc::alarm(30) };
            publish(&book, 1);
            let freed = Arc::strong_count(&first) == 1;
            // SAFETY: as above.
            unsafe { libc::_exit(if freed { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the status is there during the call.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        leave.send(()).expect("somebody listens");
        reader.join().expect("it ends");
        publish(&book, 2);
        assert_eq!(Arc::strong_count(&first), 1);
    }

    /// The choice of barriers is made by the first reader.
    #[test]
    fn too_late_for_membarrier() {
        let _alone = alone();
        use super::super::membarrier::{MembarrierError, use_membarrier};
        let _reader = Reader::new();
        let error = use_membarrier().expect_err("fences are in use");
        assert!(matches!(
            error,
            MembarrierError::TooLate | MembarrierError::Unsupported
        ));
    }
}
