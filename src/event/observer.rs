//! Observers: what an event calls, on the thread that signals or reads it.
//!
//! The kernel's counterpart are the callbacks in an eventfd's wait queue: `ep_poll_callback` of epoll, `irqfd_wakeup` of
//! KVM, vhost. Everything that reacts to an event without a thread asleep in it is an observer: pollers, wakers of
//! futures, exported file descriptors, irqfds.
//!
//! ```text
//!     Event ── readers.state ── OBSERVED, ARMED      is there anybody to call after a signal?
//!        │ ─── writers.state ── OBSERVED, ARMED      is there anybody to call after a read?
//!        └──── Observers ────── Srcu<[Entry]>        whom? made with the first observer
//! ```
//!
//! The list is read in a section of [`srcu`](crate::sync::srcu), so whoever takes an observer out returns when no call
//! of it is under way, and then drops it. Whoever puts one in waits for nothing. Inside a call nobody waits: what is taken
//! out there is dropped by the same thread when no call is under way any more, at the end of its outermost call or later.
//!
//! **Nesting.** A callback may signal and read events, its own included. What that is to call is not called from there: it is
//! put into a queue of the thread's, and called by the outermost signal or read, one after the other, when the callback has
//! returned. So a chain of a hundred thousand events needs no more stack than one of two, and no callback is ever
//! entered a second time by its own thread. The count changes at once, and sleepers are woken at once; but those who sleep
//! in a poller are woken when the queue has been worked off, or 256 calls of it, once for all their events (see
//! [`wake_queue`]). The queue holds on to the lists it is to call, and it is worked off in the section of the outermost call.

use super::Event;
use super::wakers::Wakers;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lazy::Lazy;
use crate::sync::srcu::{self, Srcu, with_section};
use crate::sync::waiters::{ARMED, OBSERVED, Waiters};
use crate::sync::wake_queue::{self, Hold};
use crate::sync::{UnsafeCell, const_thread_local};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Arc;

/// What happened to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// It was signalled, or written to, be it with 0.
    Signalled,
    /// Something was read from it.
    Read,
}

/// Which changes of an event are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Signals and writes: afterwards there may be something to read.
    Signals,
    /// Reads: afterwards there may be room to write.
    Reads,
    /// All of them.
    Both,
}

impl Interest {
    pub(crate) fn includes(self, change: Change) -> bool {
        match self {
            Interest::Signals => change == Change::Signalled,
            Interest::Reads => change == Change::Read,
            Interest::Both => true,
        }
    }
}

/// Something to be called when an event changes, on the thread that changes it.
///
/// The call comes after the count has changed and before the `signal`, `write` or `read` returns, unless that was made
/// inside another observer's call on the same thread: then it comes before the outermost one returns. Observers are called
/// newest first, as in the kernel. Several threads may call at the same time.
///
/// It must be short, and must not block: it holds up the signaller, and every thread that detaches an observer, deassigns a
/// doorbell or an irqfd, or commits a change of an address space, of whatever event and anywhere in the process, waits until
/// it has returned. So it must not take a lock that another thread holds while it does one of these: the two would wait for
/// each other. Attaching, assigning and signalling wait for no call, and may be done under any lock. All calls that wait
/// are listed [in one place](crate::irqfd#locks-that-a-caller-may-hold).
///
/// It may signal, write to and read any event without blocking, attach and detach observers, itself included, change
/// address spaces, and drop events. None of that waits for other threads, nor does the signal from outside when it ends. So
/// what is said elsewhere to hold when a detaching or deassigning call returns ("no call is under way") holds for calls on
/// this thread only: those that other threads have begun before may outlast it, and the outermost call too. What is detached
/// inside a call is dropped when no call is under way any more: see [`reclaim`](crate::reclaim) for when and where. A ring of events whose observers signal each other for ever is cut: after 2^20 calls in the course of one
/// signal from outside, further signals by callbacks change the counts, but observers are not called for them.
///
/// If it panics, the other observers are called and sleepers are woken nevertheless; then the (outermost) `signal`, `write`
/// or `read` panics with the same payload, after the count has changed as it should.
pub trait Observer: Send + Sync {
    /// The event has changed. It may have changed again since: whoever wants the count looks at it.
    fn notified(&self, change: Change);
}

impl<F: Fn(Change) + Send + Sync> Observer for F {
    fn notified(&self, change: Change) {
        self(change);
    }
}

/// Calls of observers that one outermost signal may cause by signals of observers.
const NESTED_CALLS: u32 = 1 << 20;

/// Nested calls after which pollers are woken though there are more to come.
const CALLS_PER_WAKE: u32 = 256;

/// An observer in the list.
///
/// The lists that it stands in may be freed by any thread, so they do not own the observer: it is dropped with the
/// [`Leaving`] that the entry becomes when it is taken out of the list, on the thread that has taken it out.
struct Entry {
    observer: UnsafeCell<ManuallyDrop<Arc<dyn Observer>>>,
    interest: Interest,
    /// The bit of [`Waiters`] that it is called for: each time or when armed.
    kind: u32,
    /// Not to be called any more: for the calls that a thread still has in its queue when it detaches in a callback.
    detached: AtomicBool,
}

// SAFETY: the cell is written to once, by `Leaving`, when nobody can look at it any more; the rest is `Sync`.
unsafe impl Sync for Entry {}

impl Entry {
    fn new(observer: Arc<dyn Observer>, interest: Interest, kind: u32) -> Arc<Self> {
        Arc::new(Entry {
            observer: UnsafeCell::new(ManuallyDrop::new(observer)),
            interest,
            kind,
            detached: AtomicBool::new(false),
        })
    }

    /// # Safety
    ///
    /// The entry was found in a list in a section that is under way.
    unsafe fn call(&self, change: Change) {
        let observer = self.observer.get();
        // SAFETY: `Leaving` writes to it after all such sections.
        unsafe { observer.deref() }.notified(change);
    }

    /// # Safety
    ///
    /// The entry stands in the current list, under its lock.
    unsafe fn is(&self, wakers: &Arc<Wakers>) -> bool {
        // SAFETY: as in `call`.
        let observer = unsafe { Arc::as_ptr(self.observer.get().deref()) };
        ptr::addr_eq(observer, Arc::as_ptr(wakers))
    }
}

/// An entry that no list has any more. To be dropped after a grace period.
struct Leaving(Arc<Entry>);

impl Drop for Leaving {
    fn drop(&mut self) {
        // SAFETY: nobody finds the entry any more, and it is made into this once.
        self.0
            .observer
            .with_mut(|it| unsafe { ManuallyDrop::drop(&mut *it) });
    }
}

type List = Arc<[Arc<Entry>]>;

/// The observers of one event.
pub(super) struct Observers(Lazy<Attached>);

/// What an event has once somebody observes it or waits for it as a task.
struct Attached {
    list: Srcu<List>,
    wakers: Lazy<Arc<Wakers>>,
    /// The wakers are in the list.
    wakers_listed: AtomicBool,
}

impl Attached {
    fn new() -> Self {
        Attached {
            list: Srcu::new(List::from([])),
            wakers: Lazy::new(),
            wakers_listed: AtomicBool::new(false),
        }
    }
}

impl Drop for Attached {
    /// What is there still was forgotten, but for the wakers. A call of it may stand in the queue of a thread that has let go
    /// of the event.
    fn drop(&mut self) {
        let entries = self.list.write().read().to_vec();
        let wakers = self.wakers.get();
        let (wakers, forgotten): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| {
            // SAFETY: the list is the current one.
            wakers.is_some_and(|wakers| unsafe { entry.is(wakers) })
        });
        for entry in wakers {
            srcu::retire_memory(Leaving(entry));
        }
        for entry in forgotten {
            srcu::retire(Leaving(entry));
        }
    }
}

impl Observers {
    maybe_const! {
        pub(super) fn new() -> Self {
            Observers(Lazy::new())
        }
    }

    /// Calls those of the `kinds` that are interested in `change`, or has the thread's outermost call do so.
    pub(super) fn call(&self, change: Change, kinds: u32) {
        let Some(attached) = self.0.get() else {
            return;
        };
        with_section(|section| {
            let list = attached.list.read(section);
            if !Nesting::is_outermost() {
                return Nesting::defer(Deferred {
                    list: Arc::clone(&list),
                    change,
                    kinds,
                });
            }
            let nesting = Nesting::begin();
            let mut panicked = None;
            call_each(&list, change, kinds, &mut panicked);
            nesting.work_off(&mut panicked);
            drop(nesting);
            if let Some(payload) = panicked {
                panic::resume_unwind(payload);
            }
        });
    }

    /// Puts an entry before the others.
    fn add(&self, entry: &Arc<Entry>) {
        let writer = self.0.get_or_make(Attached::new).list.write();
        let list = [entry]
            .into_iter()
            .chain(&**writer.read())
            .cloned()
            .collect();
        writer.publish_without_waiting(list);
    }

    /// Takes an entry out. `before` is told who stays.
    fn remove(&self, entry: &Arc<Entry>, before: impl FnOnce(&[Arc<Entry>])) {
        let Some(attached) = self.0.get() else {
            return;
        };
        let writer = attached.list.write();
        let (leaving, others): (Vec<_>, Vec<_>) = {
            let list = writer.read();
            list.iter()
                .cloned()
                .partition(|other| Arc::ptr_eq(other, entry))
        };
        before(&others);
        let leaving: Vec<Leaving> = leaving.into_iter().map(Leaving).collect();
        writer.publish(others.into(), leaving);
    }

    /// The wakers of this event, which are in the list. They are put there when they are first asked for.
    pub(super) fn wakers(&self) -> &Wakers {
        let attached = self.0.get_or_make(Attached::new);
        let wakers = attached.wakers.get_or_make(Arc::default);
        // Acquire pairs with the Release below: who arms after this is called.
        if !attached.wakers_listed.load(Ordering::Acquire) {
            Self::list_wakers(attached, wakers);
        }
        wakers
    }

    #[cold]
    fn list_wakers(attached: &Attached, wakers: &Arc<Wakers>) {
        let writer = attached.list.write();
        // Of several who come here at once, one is the first to hold the lock.
        // SAFETY: the list is the current one.
        let same = |entry: &Arc<Entry>| unsafe { entry.is(wakers) };
        let listed = writer.read().iter().any(same);
        if !listed {
            let entry = Entry::new(Arc::<Wakers>::clone(wakers), Interest::Both, ARMED);
            let entries = writer.read().iter().cloned().chain([entry]).collect();
            writer.publish_without_waiting(entries);
        }
        attached.wakers_listed.store(true, Ordering::Release);
    }
}

type Payload = Box<dyn Any + Send>;

/// Calls all, even if one panics. The first panic is kept.
fn call_each(list: &[Arc<Entry>], change: Change, kinds: u32, panicked: &mut Option<Payload>) {
    for entry in list {
        // Relaxed: it matters to the thread that set it.
        let called = entry.kind & kinds != 0
            && entry.interest.includes(change)
            && !entry.detached.load(Ordering::Relaxed);
        if called {
            // SAFETY: the section in which the list was found lasts until all that is in the queue has been called.
            let call = AssertUnwindSafe(|| unsafe { entry.call(change) });
            if let Err(payload) = panic::catch_unwind(call) {
                panicked.get_or_insert(payload);
            }
        }
    }
}

/// What a callback has caused, to be called by the outermost call.
struct Deferred {
    list: List,
    change: Change,
    kinds: u32,
}

/// The calls under way on this thread.
struct Nesting;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Outside,
    Calling,
    /// There is something in the queue.
    Deferring,
}

const_thread_local! {
    static DEPTH: Cell<Depth> = { Cell::new(Depth::Outside) };
    /// Without a destructor, so that it is there for the last signals of a thread. Empty, and without memory of its own,
    /// outside.
    static DEFERRED: RefCell<ManuallyDrop<VecDeque<Deferred>>> =
        { RefCell::new(ManuallyDrop::new(VecDeque::new())) };
}

impl Nesting {
    fn is_outermost() -> bool {
        DEPTH.with(|depth| depth.get() == Depth::Outside)
    }

    fn begin() -> Self {
        DEPTH.with(|depth| depth.set(Depth::Calling));
        Nesting
    }

    fn defer(deferred: Deferred) {
        DEFERRED.with(|queue| queue.borrow_mut().push_back(deferred));
        DEPTH.with(|depth| depth.set(Depth::Deferring));
    }

    fn work_off(&self, panicked: &mut Option<Payload>) {
        if DEPTH.with(|depth| depth.get() == Depth::Deferring) {
            Self::work_off_queue(panicked);
        }
    }

    #[cold]
    #[inline(never)]
    fn work_off_queue(panicked: &mut Option<Payload>) {
        let _held = Hold::begin();
        let mut calls = 0;
        let next = || DEFERRED.with(|queue| queue.borrow_mut().pop_front());
        while let Some(Deferred {
            list,
            change,
            kinds,
        }) = next()
        {
            // Who armed waits for this call, and causes no other by itself.
            let kinds = if calls < NESTED_CALLS {
                kinds
            } else {
                kinds & ARMED
            };
            calls += 1;
            if calls % CALLS_PER_WAKE == 0 {
                wake_queue::let_go();
            }
            call_each(&list, change, kinds, panicked);
        }
        DEFERRED.with(|queue| queue.borrow_mut().shrink_to_fit());
    }
}

impl Drop for Nesting {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(Depth::Outside));
    }
}

/// An observer's place at an event. Dropping it detaches the observer.
///
/// When the drop returns, no call of the observer is under way on any thread, none will come, and the observer has been
/// dropped, on this thread, unless others hold it. To that end the drop blocks while another thread is inside a callback or a
/// lookup, of whatever event or table, that began before: so the caller holds no lock that any callback may take, nor one
/// that the destructor of the observer takes.
///
/// Inside an observer's call, its own or another, or a guest write that a table serves, the drop waits for nothing. Then no
/// call *begins* on this thread any more. Calls on other threads that are under way may outlast this thread's outermost call,
/// and the observer is dropped after them, by this thread at the end of its outermost call or later, or by
/// [`reclaim`](crate::reclaim). While the thread has a transaction of an
/// [`AddressSpace`](crate::ioeventfd::space::AddressSpace) open, the waiting and the dropping come when that ends.
///
/// It keeps the event alive if it holds an `Arc` of it. An observation that is forgotten stays until the event is dropped.
///
/// ```
/// use doorbell::event::{Change, Interest, Observation};
/// use doorbell::Event;
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// let event = Arc::new(Event::new(0));
/// let calls = Arc::new(AtomicU32::new(0));
/// let observation = Observation::new(Arc::clone(&event), Interest::Signals, {
///     let calls = Arc::clone(&calls);
///     Arc::new(move |_: Change| {
///         calls.fetch_add(1, Ordering::Relaxed);
///     })
/// });
/// event.signal();
/// event.signal();
/// assert_eq!(calls.load(Ordering::Relaxed), 2);
///
/// drop(observation);
/// event.signal();
/// assert_eq!(calls.load(Ordering::Relaxed), 2);
/// assert_eq!(event.read(), 3); // an observer takes nothing away unless it reads
/// ```
pub struct Observation<E: Deref<Target = Event> = Arc<Event>> {
    event: E,
    entry: Arc<Entry>,
}

impl<E: Deref<Target = Event>> Observation<E> {
    /// Attaches an observer that is called for every change of interest from now on.
    ///
    /// Changes that another thread makes during the call may or may not reach it. What was there before does not: look
    /// at the count afterwards. Waits for nobody.
    pub fn new(event: E, interest: Interest, observer: Arc<dyn Observer>) -> Self {
        let observation = Self::attach(event, interest, observer, OBSERVED);
        observation.for_each_side(|waiters, _| waiters.set(OBSERVED));
        observation
    }

    /// Attaches an observer that is called once, for the next change of interest, each time it has been
    /// [armed](Self::arm); not before the first time.
    ///
    /// That suits who will look at the event anyway after the call, as an epoll that has it in its ready list: until it has
    /// looked and armed again, signals cost what they cost without observers. Waits for nobody.
    pub fn on_demand(event: E, interest: Interest, observer: Arc<dyn Observer>) -> Self {
        Self::attach(event, interest, observer, ARMED)
    }

    fn attach(event: E, interest: Interest, observer: Arc<dyn Observer>, kind: u32) -> Self {
        let entry = Entry::new(observer, interest, kind);
        // Newest first, as in the kernel's wait queue.
        event.observers.add(&entry);
        Observation { event, entry }
    }

    /// Asks for one call after the next change that the observer is attached for and that is of `interest` now.
    ///
    /// The caller looks at the count *afterwards*: a change that came before is seen there, a later one calls. A call may
    /// come that this observer did not ask for, because another one of the event's did. Does nothing to an observer that
    /// is called each time.
    pub fn arm(&self, interest: Interest) {
        self.for_each_side(|waiters, change| {
            if self.entry.kind == ARMED && interest.includes(change) {
                waiters.set(ARMED);
            }
        });
    }

    /// The event that is observed.
    pub fn event(&self) -> &E {
        &self.event
    }

    fn for_each_side(&self, mut f: impl FnMut(&Waiters, Change)) {
        for (waiters, change) in self.event.sides() {
            if self.entry.interest.includes(change) {
                f(waiters, change);
            }
        }
    }
}

impl<E: Deref<Target = Event>> Drop for Observation<E> {
    fn drop(&mut self) {
        self.entry.detached.store(true, Ordering::Relaxed);
        // Under the list's lock: whoever attaches sets its bit after it has had the lock.
        self.event.observers.remove(&self.entry, |others| {
            self.for_each_side(|waiters, change| {
                let same = |other: &Arc<Entry>| {
                    other.kind == self.entry.kind && other.interest.includes(change)
                };
                if !others.iter().any(same) {
                    waiters.clear(self.entry.kind);
                }
            });
        });
    }
}

impl<E: Deref<Target = Event>> fmt::Debug for Observation<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observation")
            .field("event", &*self.event)
            .field("interest", &self.entry.interest)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Once the last of its kind has gone, a signal does not look for one, whoever else is there.
    #[test]
    fn the_last_of_a_kind_takes_its_bit_along() {
        let event = Event::new(0);
        let observer = || Arc::new(|_: Change| ());
        let wanted = || {
            [Change::Signalled, Change::Read]
                .map(|change| event.waiters(change).are_wanted(OBSERVED))
        };
        let _armed = Observation::on_demand(&event, Interest::Both, observer());
        let reads = Observation::new(&event, Interest::Reads, observer());
        let both = Observation::new(&event, Interest::Both, observer());
        assert_eq!(wanted(), [true, true]);
        drop(both);
        assert_eq!(wanted(), [false, true]);
        drop(reads);
        assert_eq!(wanted(), [false, false]);
    }
}
