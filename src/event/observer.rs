//! Observers: what an event calls, on the thread that signals or reads it.
//!
//! The kernel's counterparts are the callbacks in an eventfd's wait queue: `ep_poll_callback` of epoll, `irqfd_wakeup`
//! of KVM, vhost. Everything that reacts to an event without a thread asleep in it is an observer: pollers, wakers of
//! futures, exported file descriptors, irqfds.
//!
//! ```text
//!     Event ── readers.state ── OBSERVED, ARMED      are there observers to call after a signal?
//!        │ ─── writers.state ── OBSERVED, ARMED      are there observers to call after a read?
//!        └──── Observers ────── Srcu<[Entry]>        which ones; made with the first
//! ```
//!
//! The list is read in a section of [`srcu`](crate::sync::srcu). So a thread that detaches an observer waits until no
//! call of the observer is under way, and then drops it. Attaching waits for nothing. Inside a call, nothing waits: an
//! observer that is detached there is dropped by the same thread when no call is under way any more, at the end of the
//! thread's outermost call or later.
//!
//! **Order.** Threads asleep in the event are woken before anything is called. Next are those that quickly tell a
//! sleeper: the prompt observers (pollers), which are first in the list, and the wait list of tasks. Then all other
//! observers are called, newest first. They may take long, and nothing waits for them.
//!
//! **Fast paths.** Most events have pollers only. Pollers run no foreign code and do not panic, so signals of such
//! events pay for the section and the calls alone. If there are other observers, but no tasks to be woken, the state of
//! nesting is checked, but nothing is queued. If there are tasks to be woken, and nothing else is to be called, the
//! list is not read, so there is no section either.
//!
//! **Nesting.** A callback may signal and read events, including its own. The count changes, threads are woken and
//! pollers are told at once. Other observers are not called from there: they are put into a queue of the thread, and
//! called one after the other by the outermost signal or read when the callback has returned. So a chain of a hundred
//! thousand events needs no more stack than one of two, and no callback is entered a second time by its own thread.
//! Before the next callback, the tasks and the threads in pollers are woken that the last callback has signalled, each
//! once (see [`wake_queue`]). The queue keeps the lists that it is to call, and is worked off in the section of the
//! outermost call.
//!
//! The waker of a task may signal and read events too, also when the task was the only thing to be called. Tasks that
//! this wakes are put into the queue, for the reason above: a waker may poll its task, and that may wake the next one.
//! Other observers of such an event are called at once, as from outside, in a section of their own, because the call of
//! a waker has none.

use super::change::{Change, Interest};
use super::wakers::Wakers;
use super::{Event, EventHandle, Owner};
use crate::panics::{Payload, catch, go_on};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::lazy::Lazy;
use crate::sync::srcu::{Section, Srcu, own_section, with_section};
use crate::sync::waiters::{ARMED, OBSERVED, TASKS, Waiters};
use crate::sync::wake_queue;
use crate::sync::{UnsafeCell, const_thread_local};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::task::Waker;

/// What has happened to an event, and which observers are to be called.
#[derive(Clone, Copy)]
pub(super) struct Changed {
    pub(super) what: Change,
    /// Observers of these kinds, which have been claimed, and tasks.
    pub(super) kinds: u32,
}

/// Something to be called when an event changes, on the thread that changes it.
///
/// The call comes after the count has changed, and before the `signal`, `write` or `read` returns. If that was made
/// inside another observer's call or a task's waker on the same thread, the call may come as late as before the
/// outermost one returns. Observers are called newest first, as in the kernel. Several threads may call at the same
/// time.
///
/// # What is woken before the call
///
/// Before the first observer is called, all other waiters of the event have been woken: threads that sleep in it, in
/// [`wait_any`](crate::poll::wait_any()) or in a [`Poller`](crate::poll::Poller), and tasks. In a
/// [`Batch`](super::Batch), this holds for all its events. So a slow observer delays the signaller and the observers
/// behind it, but no waiter. While it is in the call, signals of other threads wake the waiters that have come since.
///
/// What an observer itself signals wakes threads at once. Threads in a poller are woken when the observer returns, or
/// waits in a call of this crate. Tasks (and threads in `wait_any` for more than 128 events) are woken when it returns.
/// All of them are woken before the next observer is called. An observer that was [armed](Observation::arm) is due one
/// call. Until that call has come, behind the observers before it, other signals do not call it.
///
/// The event of an irqfd is an exception: its observers are called first, in a batch too, and then threads, pollers and
/// tasks are woken, because the irqfd takes the signal before any waiter sees it. If an observer's call signals such an
/// event, threads and pollers are woken first nevertheless.
///
/// # What it must not do
///
/// It must be short, and must not block: it holds up the signaller. Besides, every thread that detaches an observer,
/// deassigns a doorbell or an irqfd, or commits a change of an address space, of any event in the process, waits until
/// it has returned. So it must not take a lock that another thread holds while doing one of these: the two would wait
/// for each other. Attaching, assigning and signalling wait for no call, and may be done under any lock. All calls that
/// wait are listed [in one place](crate::guide::locks).
///
/// # What it may do
///
/// It may signal, write to and read any event without blocking, attach and detach observers, including itself, change
/// address spaces, and drop events. None of that waits for other threads, and neither does the outermost signal when it
/// ends. So what the docs promise for the return of a detaching or deassigning call ("no call is under way") holds for
/// calls on this thread only: calls that other threads have begun before may outlast it, and the outermost call too.
/// What is detached inside a call is dropped when no call is under way any more; [`reclaim`](crate::reclaim) says when
/// and where. A ring of events whose observers signal each other for ever is cut: after 2^20 calls caused by one signal
/// from outside, further signals by callbacks change the counts, but call no observers.
///
/// # Panics
///
/// If it panics, the other observers are called and sleepers are woken nevertheless. Then the (outermost) `signal`,
/// `write` or `read` panics with the same payload. The count has changed as it should.
pub trait Observer: Send + Sync {
    /// Called after the event has changed. It may have changed again since, so load the count if it matters.
    fn notified(&self, change: Change);
}

impl<F: Fn(Change) + Send + Sync> Observer for F {
    fn notified(&self, change: Change) {
        self(change);
    }
}

/// The most calls of observers that the signals of observers may cause in one outermost signal.
const NESTED_CALLS: u32 = 1 << 20;

/// An observer in the list.
///
/// The lists that it stands in may be freed by any thread, so they do not own the observer: it is dropped with the
/// [`Leaving`] that the entry becomes when it is taken out of the list, on the thread that has taken it out.
struct Entry {
    /// Made by `Arc::into_raw`, so that a call need not look for it behind the counts.
    observer: UnsafeCell<*const dyn Observer>,
    interest: Interest,
    /// The bit of [`Waiters`] that it is called for: each time or when armed.
    kind: u32,
    /// For each [`Change`] the bit that it is called for, if any. None from the detaching on, for the calls that a
    /// thread still has in its queue when it detaches in a callback.
    called_for: [AtomicU32; 2],
    /// It is one of the crate's own, which quickly tells a sleeper and runs no foreign code. So it comes before
    /// observers that may take long, and is called at once, inside the call of another observer too.
    prompt: bool,
}

// SAFETY: it owns a count of an observer, which may be called and dropped on any thread.
unsafe impl Send for Entry {}

// SAFETY: likewise. The cell is accessed mutably once, by `Leaving`, when no other thread can find it any more; the
// rest is `Sync`.
unsafe impl Sync for Entry {}

impl Entry {
    fn new(observer: Arc<dyn Observer>, interest: Interest, kind: u32, prompt: bool) -> Arc<Self> {
        Arc::new(Entry {
            observer: UnsafeCell::new(Arc::into_raw(observer)),
            interest,
            kind,
            prompt,
            called_for: [Change::Signalled, Change::Read]
                .map(|change| AtomicU32::new(if interest.includes(change) { kind } else { 0 })),
        })
    }

    /// # Safety
    ///
    /// The entry was found in a list in a section that is under way.
    unsafe fn call(&self, change: Change) {
        let observer = self.observer.get();
        // SAFETY: `Leaving` drops it after all such sections.
        unsafe { &**observer.deref() }.notified(change);
    }
}

/// An entry that no list has any more. To be dropped after a grace period.
struct Leaving(Arc<Entry>);

impl Drop for Leaving {
    fn drop(&mut self) {
        // SAFETY: nobody finds the entry any more, and it is made into this once.
        self.0
            .observer
            .with_mut(|it| drop(unsafe { Arc::from_raw(*it) }));
    }
}

type List = Arc<[Arc<Entry>]>;

/// The observers of one event, and its tasks.
pub(super) struct Observers(Lazy<Attached>);

/// What an event has once it has been observed, or a task has waited for it.
struct Attached {
    /// Prompt ones first, then newest first.
    list: Srcu<List>,
    wakers: Wakers,
}

impl Attached {
    fn new() -> Self {
        Attached {
            list: Srcu::new(List::from([])),
            wakers: Wakers::default(),
        }
    }
}

impl Attached {
    /// Calls observers and wakes tasks after a change. Inlined, with scalar arguments, which stay in registers.
    #[inline(always)]
    fn call(&self, section: &Section<'_>, event: &Event, what: Change, kinds: u32) {
        let list = self.list.read(section);
        hold_inside();
        let mut others = &list[..];
        if !event.is_owned() {
            others = call_prompt(others, what, kinds);
        }
        if kinds & TASKS == 0 {
            // The fast paths.
            match others {
                [] => return,
                [first, ..] if !first.prompt && is_outside() => {
                    return call_alone(section, others, what, kinds);
                }
                _ => {}
            }
        }
        self.call_the_rest(section, event, what, kinds);
    }

    /// The same on a thread that has no `srcu` reader, because it has never called before, or is ending.
    #[cold]
    #[inline(never)]
    fn call_for_the_first_time(&self, event: &Event, what: Change, kinds: u32) {
        with_section(|section| self.call(section, event, what, kinds));
    }

    /// The general case. The prompt observers have been called already, unless the event is an irqfd's.
    #[cold]
    #[inline(never)]
    fn call_the_rest(&self, section: &Section<'_>, event: &Event, what: Change, kinds: u32) {
        let change = Changed { what, kinds };
        calling_in(section, is_outside(), |calls| {
            let list = self.list.read(section);
            if event.is_owned() {
                calls.call_others(&list, change);
                self.wake_by_calls(calls, event, change);
            } else {
                self.wake_tasks(calls, event, change);
                calls.call_others(&list, change);
            }
        });
    }

    fn wake_by_calls(&self, calls: &mut Calls<'_, '_>, event: &Event, change: Changed) {
        call_prompt(&self.list.read(calls.section), change.what, change.kinds);
        self.wake_tasks(calls, event, change);
    }

    /// Wakes tasks, or has the thread's outermost call do so.
    fn wake_tasks(&self, calls: &mut Calls<'_, '_>, event: &Event, change: Changed) {
        if change.kinds & TASKS == 0 {
            return;
        }
        if calls.outermost {
            let call = |waker: Waker| calls.catch(|| waker.wake());
            event.wake_tasks(&self.wakers, change.what, call);
        } else {
            event.wake_tasks(&self.wakers, change.what, put_off);
        }
    }

    /// Wakes tasks after a change that no observer is called for, or has the thread's outermost call do so.
    #[inline(never)]
    fn wake_tasks_alone(&self, event: &Event, what: Change) {
        if DEPTH.with(Cell::get) != Depth::Outside {
            hold_inside();
            return event.wake_tasks(&self.wakers, what, put_off);
        }
        let mut panicked = None;
        let mut call = |waker: Waker| _ = catch(&mut panicked, || waker.wake());
        let end = End::of_the_outermost(Depth::Waking);
        event.wake_tasks(&self.wakers, what, &mut call);
        if DEPTH.with(Cell::get) == Depth::PuttingOff {
            wake_those_put_off(call);
            free_queue();
        }
        drop(end);
        go_on(panicked);
    }
}

impl Observers {
    maybe_const! {
        pub(super) fn new() -> Self {
            Observers(Lazy::new())
        }
    }

    /// Calls observers and wakes tasks after a change. An irqfd takes the change before any waiter sees it.
    pub(super) fn call(event: &Event, what: Change, kinds: u32) {
        let Some(attached) = event.observers.0.get() else {
            return;
        };
        if kinds == TASKS {
            return attached.wake_tasks_alone(event, what);
        }
        // SAFETY: it ends here.
        match unsafe { own_section() } {
            Some(section) => attached.call(&section, event, what, kinds),
            None => attached.call_for_the_first_time(event, what, kinds),
        }
    }

    /// Wakes tasks that can go on, as after a change that no observer is called for.
    pub(super) fn wake_tasks(&self, event: &Event, what: Change) {
        if let Some(attached) = self.0.get() {
            attached.wake_tasks_alone(event, what);
        }
    }

    /// Calls the prompt observers and wakes tasks, and nothing else.
    pub(super) fn wake_by_calls(event: &Event, calls: &mut Calls<'_, '_>, change: Changed) {
        if let Some(attached) = event.observers.0.get() {
            attached.wake_by_calls(calls, event, change);
        }
    }

    /// Calls the others that the change is for, or has the thread's outermost call do so.
    pub(super) fn call_others(&self, calls: &mut Calls<'_, '_>, change: Changed) {
        if let Some(attached) = self.0.get() {
            calls.call_others(&attached.list.read(calls.section), change);
        }
    }

    /// Puts an entry before the others, as in the kernel's wait queue, but behind the prompt ones.
    fn add(&self, entry: &Arc<Entry>) {
        let writer = self.0.get_or_make(Attached::new).list.write();
        let list = {
            let list = writer.read();
            let first = if entry.prompt {
                0
            } else {
                list.iter().take_while(|other| other.prompt).count()
            };
            let (before, after) = list.split_at(first);
            let list = before.iter().chain([entry]).chain(after);
            list.cloned().collect()
        };
        writer.publish_without_waiting(list);
    }

    /// Takes an entry out. `before` is given the entries that stay.
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

    /// The wait lists of this event. A change that finds TASKS after this examines them.
    pub(super) fn wakers(&self) -> &Wakers {
        &self.0.get_or_make(Attached::new).wakers
    }
}

impl Entry {
    /// It is not to be called any more.
    fn detach(&self) {
        for kind in &self.called_for {
            kind.store(0, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn is_called(&self, what: Change, kinds: u32) -> bool {
        // Relaxed: it matters to the thread that set it.
        self.called_for[what as usize].load(Ordering::Relaxed) & kinds != 0
    }
}

/// The entries that are not prompt.
fn others(list: &[Arc<Entry>]) -> &[Arc<Entry>] {
    let prompt = list.iter().take_while(|entry| entry.prompt);
    &list[prompt.count()..]
}

/// Calls the prompt ones that the change is for, and returns the others.
///
/// Prompt ones are called at once, whatever else is under way on this thread. None of them panics.
#[inline(always)]
fn call_prompt(mut list: &[Arc<Entry>], what: Change, kinds: u32) -> &[Arc<Entry>] {
    while let [entry, behind @ ..] = list {
        if !entry.prompt {
            break;
        }
        if entry.is_called(what, kinds) {
            // SAFETY: the list was found in a section, which lasts as long as the list is borrowed.
            unsafe { entry.call(what) };
        }
        list = behind;
    }
    list
}

/// What is to be called and woken for one change, or for several at once.
pub(super) struct Calls<'a, 's> {
    section: &'a Section<'s>,
    /// Not inside another call on this thread.
    outermost: bool,
    /// There have been nested calls, so there may be something in the queue.
    nested: bool,
    /// The first panic.
    panicked: Option<Payload>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Outside,
    /// In the waker of a task, for a change that no observer is called for.
    Waking,
    /// There, and tasks have been put off.
    PuttingOff,
    Calling,
    /// There is something to [settle](Calls::settle).
    Owing,
}

impl Depth {
    #[inline(always)]
    fn is_waking(self) -> bool {
        self == Depth::Waking || self == Depth::PuttingOff
    }
}

/// What calls have caused, to be done by the outermost one.
struct Queue {
    /// Of tasks that are out of line.
    tasks: VecDeque<Waker>,
    others: VecDeque<(List, Changed)>,
}

const_thread_local! {
    static DEPTH: Cell<Depth> = { Cell::new(Depth::Outside) };
    /// Without a destructor, so that it is there for the last signals of a thread. Empty, and without memory of its
    /// own, outside.
    static QUEUE: RefCell<ManuallyDrop<Queue>> = {
        RefCell::new(ManuallyDrop::new(Queue {
            tasks: VecDeque::new(),
            others: VecDeque::new(),
        }))
    };
}

/// Does what `f` has called, all of it even if something panics. Then the first panic goes on.
pub(super) fn calling(f: impl FnOnce(&mut Calls<'_, '_>)) {
    with_section(|section| {
        hold_inside();
        calling_in(section, is_outside(), f);
    });
}

/// Whether the thread is inside no call, except of wakers.
#[inline(always)]
fn is_outside() -> bool {
    let depth = DEPTH.with(Cell::get);
    depth == Depth::Outside || depth.is_waking()
}

/// Has the thread's outermost call wake a task.
fn put_off(waker: Waker) {
    QUEUE.with(|queue| queue.borrow_mut().tasks.push_back(waker));
    if DEPTH.with(Cell::get) == Depth::Waking {
        DEPTH.with(|depth| depth.set(Depth::PuttingOff));
    }
}

/// Wakes tasks that were put off.
#[cold]
#[inline(never)]
fn wake_those_put_off(mut call: impl FnMut(Waker)) {
    let next = || QUEUE.with(|queue| queue.borrow_mut().tasks.pop_front());
    while let Some(waker) = next() {
        call(waker);
    }
}

/// At the end of the outermost call in which something was put into the queue.
#[cold]
#[inline(never)]
fn free_queue() {
    QUEUE.with(|queue| {
        let mut queue = queue.borrow_mut();
        queue.tasks.shrink_to_fit();
        queue.others.shrink_to_fit();
    });
}

/// If the thread is inside a call, wake-ups of pollers are held back from now on.
#[inline(always)]
fn hold_inside() {
    if DEPTH.with(Cell::get) == Depth::Calling {
        hold();
    }
}

/// Holds back wake-ups of pollers until they are [delivered](Calls::settle).
#[cold]
#[inline(never)]
fn hold() {
    DEPTH.with(|depth| depth.set(Depth::Owing));
    wake_queue::hold();
}

/// Calls the observers of a change, in the outermost call of the thread, and does what they have caused.
#[inline(never)]
fn call_alone(section: &Section<'_>, others: &[Arc<Entry>], what: Change, kinds: u32) {
    calling_in(section, true, |calls| calls.call_now(others, what, kinds));
}

#[inline(always)]
fn calling_in(section: &Section<'_>, outermost: bool, f: impl FnOnce(&mut Calls<'_, '_>)) {
    let mut calls = Calls {
        section,
        outermost,
        nested: false,
        panicked: None,
    };
    if outermost {
        let end = End::of_the_outermost(Depth::Calling);
        f(&mut calls);
        calls.settle();
        if calls.nested {
            calls.work_off();
        }
        drop(end);
    } else {
        f(&mut calls);
    }
    go_on(calls.panicked);
}

/// Of the outermost call.
struct End {
    /// Where the thread was before.
    outside: Depth,
}

impl End {
    fn of_the_outermost(inside: Depth) -> Self {
        DEPTH.with(|depth| {
            let outside = depth.get();
            // What the wakers before this have caused comes first.
            let owes = outside == Depth::PuttingOff;
            depth.set(if owes { Depth::Owing } else { inside });
            End { outside }
        })
    }
}

impl Drop for End {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(self.outside));
    }
}

impl Calls<'_, '_> {
    fn catch(&mut self, f: impl FnOnce()) {
        catch(&mut self.panicked, f);
    }

    /// Calls those in the list that are not prompt and that the change is for, or has the thread's outermost call do
    /// so.
    fn call_others(&mut self, list: &List, change: Changed) {
        let others = others(list);
        if self.outermost {
            self.call_now(others, change.what, change.kinds);
        } else if others
            .iter()
            .any(|it| it.is_called(change.what, change.kinds))
        {
            QUEUE.with(|queue| {
                let list = Arc::clone(list);
                queue.borrow_mut().others.push_back((list, change));
            });
        }
    }

    /// In the outermost call. What comes before is settled before the first, and what each causes before the next.
    #[inline(always)]
    fn call_now(&mut self, others: &[Arc<Entry>], what: Change, kinds: u32) {
        for entry in others {
            if entry.is_called(what, kinds) {
                self.settle();
                // SAFETY: the list was found in the outermost section of this thread, which lasts as long as `self`.
                self.catch(|| unsafe { entry.call(what) });
            }
        }
    }

    /// Holds back wake-ups of pollers until they are [delivered](Self::settle).
    pub(super) fn hold(&mut self) {
        hold();
    }

    /// Wakes all waiters of what has been signalled so far, in the outermost call.
    #[inline(always)]
    fn settle(&mut self) {
        if self.outermost && DEPTH.with(Cell::get) == Depth::Owing {
            self.settle_what_is_owed();
        }
    }

    #[cold]
    #[inline(never)]
    fn settle_what_is_owed(&mut self) {
        wake_those_put_off(|waker| self.catch(|| waker.wake()));
        // These are threads in pollers, and threads that wait as tasks do.
        wake_queue::release();
        DEPTH.with(|depth| depth.set(Depth::Calling));
        self.nested = true;
    }

    #[cold]
    #[inline(never)]
    fn work_off(&mut self) {
        let mut calls = 0;
        let next = || QUEUE.with(|queue| queue.borrow_mut().others.pop_front());
        while let Some((list, mut change)) = next() {
            // An armed observer is due this call, which causes no other by itself.
            if calls == NESTED_CALLS {
                change.kinds &= ARMED;
            } else {
                calls += 1;
            }
            self.call_now(others(&list), change.what, change.kinds);
            self.settle();
        }
        free_queue();
    }
}

/// Keeps an observer attached to an event. Dropping it detaches the observer.
///
/// When the drop returns, no call of the observer is under way on any thread, none will come, and the observer has been
/// dropped on this thread, unless others hold it. To that end, the drop blocks while another thread is inside a
/// callback or a lookup, of any event or table, that began before. So the caller must not hold a lock that a callback
/// may take, or that the destructor of the observer takes.
///
/// Inside the call of any observer, or a guest write that a table serves, the drop waits for nothing. Then no call
/// *begins* on this thread any more. Calls under way on other threads may outlast this thread's outermost call. The
/// observer is dropped after them, by this thread at the end of its outermost call or later, or by
/// [`reclaim`](crate::reclaim). While the thread has a transaction of an
/// [`AddressSpace`](crate::ioeventfd::space::AddressSpace) open, the waiting and the dropping come when that ends.
///
/// An observation keeps the event alive.
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
#[must_use = "dropping it detaches the observer"]
pub struct Observation {
    event: EventHandle,
    entry: Arc<Entry>,
}

impl Observation {
    /// Attaches an observer that is called for every change of interest from now on.
    ///
    /// Changes that another thread makes during this call may or may not reach it, and earlier ones do not: check the
    /// count afterwards. Does not wait.
    ///
    /// The event is an `Arc<Event>`, a reference to one, a static, or a field of something in an `Arc`, by
    /// [`EventHandle::of_field`]`(&device, |d| &d.kick)`.
    pub fn new(
        event: impl Into<EventHandle>,
        interest: Interest,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let observation = Self::attach(event.into(), interest, observer, OBSERVED, false);
        observation.for_each_side(|waiters, _| waiters.set(OBSERVED));
        // A load of the count after this sees what came before.
        observation.hear_signallers(interest);
        observation
    }

    /// Attaches an observer that is called once, for the next change of interest, each time it has been
    /// [armed](Self::arm); not before the first time.
    ///
    /// That suits an observer that checks the event anyway after the call, like an epoll that has it in its ready list.
    /// Until it has checked and armed again, signals cost what they cost without observers. Does not wait.
    pub fn on_demand(
        event: impl Into<EventHandle>,
        interest: Interest,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self::attach(event.into(), interest, observer, ARMED, false)
    }

    /// As [`on_demand`](Self::on_demand), for an observer that only and quickly tells a sleeping thread, and runs no
    /// foreign code. It is called before those that may take longer.
    pub(crate) fn prompt_on_demand(
        event: impl Into<EventHandle>,
        interest: Interest,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self::attach(event.into(), interest, observer, ARMED, true)
    }

    fn attach(
        event: EventHandle,
        interest: Interest,
        observer: Arc<dyn Observer>,
        kind: u32,
        prompt: bool,
    ) -> Self {
        let entry = Entry::new(observer, interest, kind, prompt);
        event.observers.add(&entry);
        Observation { event, entry }
    }

    /// Asks for one call after the next change that the observer is attached for and that is of `interest` now.
    ///
    /// The caller checks the count *afterwards*: an earlier change is in the count, a later one calls. A call may come
    /// that this observer did not ask for, because another observer of the event did. For an observer that is called
    /// each time, this does nothing.
    pub fn arm(&self, interest: Interest) {
        self.for_each_side(|waiters, change| {
            if self.entry.kind == ARMED && interest.includes(change) {
                waiters.set(ARMED);
            }
        });
        self.hear_signallers(interest);
    }

    fn hear_signallers(&self, interest: Interest) {
        if self.entry.interest.includes(Change::Signalled) && interest.includes(Change::Signalled) {
            self.event.hear_signallers();
        }
    }

    /// The event that is observed.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
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

impl Drop for Observation {
    fn drop(&mut self) {
        self.entry.detach();
        // Under the lock of the list: a thread that attaches sets its bit after it has had the lock. ARMED is cleared
        // by the next claim.
        self.event.observers.remove(&self.entry, |others| {
            self.for_each_side(|waiters, change| {
                let same =
                    |other: &Arc<Entry>| other.kind == OBSERVED && other.interest.includes(change);
                if self.entry.kind == OBSERVED && !others.iter().any(same) {
                    waiters.clear(OBSERVED);
                }
            });
        });
    }
}

impl fmt::Debug for Observation {
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

    /// Once the last observer of a kind is gone, a signal does not look for one, whatever other observers there are.
    #[test]
    fn the_last_of_a_kind_takes_its_bit_along() {
        let event = Arc::new(Event::new(0));
        let observer = || Arc::new(|_: Change| ());
        let wanted = || {
            [Change::Signalled, Change::Read].map(|change| event.waiters(change).has_work(OBSERVED))
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
