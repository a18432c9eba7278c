//! Observers: what an event calls, on the thread that signals or reads it.
//!
//! The kernel's counterpart are the callbacks in an eventfd's wait queue: `ep_poll_callback` of epoll, `irqfd_wakeup`
//! of KVM, vhost. Everything that reacts to an event without a thread asleep in it is an observer: pollers, wakers of
//! futures, exported file descriptors, irqfds.
//!
//! ```text
//!     Event ── readers.state ── OBSERVED, ARMED      is there anybody to call after a signal?
//!        │ ─── writers.state ── OBSERVED, ARMED      is there anybody to call after a read?
//!        └──── Observers ────── Srcu<[Entry]>        whom? made with the first observer
//! ```
//!
//! The list is read in a section of [`srcu`](crate::sync::srcu), so whoever takes an observer out returns when no call
//! of it is under way, and then drops it. Whoever puts one in waits for nothing. Inside a call nobody waits: what is
//! taken out there is dropped by the same thread when no call is under way any more, at the end of its outermost call
//! or later.
//!
//! **Order.** Threads asleep in the event are woken before anything is called. Then come those that let somebody
//! sleeping know, in a moment: the prompt observers (pollers), which stand first in the list, and the line of tasks.
//! Then all others, newest first: they may take their time, and by then nobody depends on them.
//!
//! **Short ways.** Most events have pollers and nobody else. Those run no code from elsewhere and do not panic, so
//! their signals pay for the section and the calls alone. Where there are other observers and no tasks to be woken,
//! what nesting takes is looked at, but nothing is put into a queue. If there are tasks to be woken and nobody else is
//! to be called, the list is not looked at, so there is no section either.
//!
//! **Nesting.** A callback may signal and read events, its own included. The count changes, threads are woken and
//! pollers are told at once. What else that is to call is not called from there: it is put into a queue of the
//! thread's, and called by the outermost signal or read, one after the other, when the callback has returned. So a
//! chain of a hundred thousand events needs no more stack than one of two, and no callback is ever entered a second
//! time by its own thread. Before the next callback, tasks are woken, and those who sleep in a poller are, once for all
//! that the last callback has rung (see [`wake_queue`]). The queue holds on to the lists it is to call, and it is
//! worked off in the section of the outermost call.
//!
//! The waker of a task that is the only one to be called may signal and read events, too. What that wakes of tasks is
//! put into the queue, for the reason above: a waker may poll the task, and that the next one. Other observers of such
//! an event are called at once, as from outside, in a section of their own: the call of a waker has none.

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

/// What has happened to an event, and whom that is for.
#[derive(Clone, Copy)]
pub(super) struct Changed {
    pub(super) what: Change,
    /// Observers of these kinds, which have been claimed, and tasks.
    pub(super) kinds: u32,
}

/// Something to be called when an event changes, on the thread that changes it.
///
/// The call comes after the count has changed and before the `signal`, `write` or `read` returns, unless that was made
/// inside another observer's call, or a task's waker, on the same thread: then it may come as late as before the
/// outermost one returns. Observers are
/// called newest first, as in the kernel. Several threads may call at the same time.
///
/// Before the first observer is called, everybody else who waits for the event has been woken: threads that sleep in it
/// or in [`wait_any`](crate::poll::wait_any()) or in a [`Poller`](crate::poll::Poller), and tasks. In a
/// [`Batch`](super::Batch) that goes for all its events. So an observer that takes its time delays the signaller and
/// the observers behind it, and none of those; and while it is in the call, other threads' signals wake whoever has
/// come since. What an observer signals itself wakes threads at once; those who sleep in a poller are woken when it
/// returns, or waits in a call of this crate; tasks (and threads in `wait_any` for more than 128 events) when it
/// returns. All of them are woken before the next observer is called. An observer that was [armed](Observation::arm) is
/// due one call: until that has come, behind those before it, other signals do not call it.
///
/// The event of an irqfd is the exception: there observers are called first, in a batch too, and threads, pollers and
/// tasks are woken after that, because the irqfd takes the signal before anybody else sees it. What an observer signals
/// itself is an exception from this one: threads and pollers are woken first there, too.
///
/// It must be short, and must not block: it holds up the signaller, and every thread that detaches an observer,
/// deassigns a doorbell or an irqfd, or commits a change of an address space, of whatever event and anywhere in the
/// process, waits until it has returned. So it must not take a lock that another thread holds while it does one of
/// these: the two would wait for each other. Attaching, assigning and signalling wait for no call, and may be done
/// under any lock. All calls that wait are listed [in one place](crate::irqfd#locks-that-a-caller-may-hold).
///
/// It may signal, write to and read any event without blocking, attach and detach observers, itself included, change
/// address spaces, and drop events. None of that waits for other threads, nor does the signal from outside when it
/// ends. So what is said elsewhere to hold when a detaching or deassigning call returns ("no call is under way") holds
/// for calls on this thread only: those that other threads have begun before may outlast it, and the outermost call
/// too. What is detached inside a call is dropped when no call is under way any more: see [`reclaim`](crate::reclaim)
/// for when and where. A ring of events whose observers signal each other for ever is cut: after 2^20 calls in the
/// course of one signal from outside, further signals by callbacks change the counts, but observers are not called for
/// them.
///
/// If it panics, the other observers are called and sleepers are woken nevertheless; then the (outermost) `signal`,
/// `write` or `read` panics with the same payload, after the count has changed as it should.
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
    /// It is one of the crate's own that lets somebody sleeping know, in a moment, and runs no code from elsewhere. So
    /// it stands before all that may take their time, and is called at once, in the call of another one too.
    prompt: bool,
}

// SAFETY: it owns a count of an observer, which may be called and dropped on any thread.
unsafe impl Send for Entry {}

// SAFETY: likewise. The cell is accessed mutably once, by `Leaving`, when nobody can look at it any more; the rest is
// `Sync`.
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

/// What an event has once somebody observes it or waits for it as a task.
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
    /// Calls and wakes whom a change is for. Inlined, and what it is told are scalars: they stay in registers.
    #[inline(always)]
    fn call(&self, section: &Section<'_>, event: &Event, what: Change, kinds: u32) {
        let list = self.list.read(section);
        hold_inside();
        let mut others = &list[..];
        if !event.is_owned() {
            others = call_prompt(others, what, kinds);
        }
        if kinds & TASKS == 0 {
            // The short ways.
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

    /// The same on a thread that has not called before and has no reader yet; or has none any more, for it ends.
    #[cold]
    #[inline(never)]
    fn call_for_the_first_time(&self, event: &Event, what: Change, kinds: u32) {
        with_section(|section| self.call(section, event, what, kinds));
    }

    /// The whole of it, but for the prompt observers, which have been called unless the event is an irqfd's.
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

    /// Wakes tasks, for a change that is for nobody else; or has the thread's outermost call do so.
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

    /// Calls and wakes whom a change of the event is for. An irqfd takes the change before anybody else sees it.
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

    /// Wakes tasks for whom there may be something, as a change would that is for nobody else.
    pub(super) fn wake_tasks(&self, event: &Event, what: Change) {
        if let Some(attached) = self.0.get() {
            attached.wake_tasks_alone(event, what);
        }
    }

    /// Calls those who armed to be told that somebody sleeps, and do nothing else: pollers and tasks.
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

    /// Puts an entry before the others, as in the kernel's wait queue; but for prompt ones, which are first.
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

    /// The wakers of this event. Who asks for a look at them after this is called.
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

/// Those that are not prompt.
fn others(list: &[Arc<Entry>]) -> &[Arc<Entry>] {
    let prompt = list.iter().take_while(|entry| entry.prompt);
    &list[prompt.count()..]
}

/// Calls the prompt ones that the change is for, and returns the others.
///
/// They are called at once, whatever else is under way on this thread. None of them panics.
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
    /// Not inside another's call on this thread.
    outermost: bool,
    /// There have been calls inside, so there may be something in the queue.
    nested: bool,
    /// The first panic.
    panicked: Option<Payload>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Outside,
    /// In the waker of a task, called for a change that was for nobody else.
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

/// Whether the thread is inside no call, but for those of wakers.
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

/// If the thread is inside a call, whom it wakes in pollers is held back from now on.
#[inline(always)]
fn hold_inside() {
    if DEPTH.with(Cell::get) == Depth::Calling {
        hold();
    }
}

/// Holds back whom the thread wakes in pollers, until it is [settled](Calls::settle).
#[cold]
#[inline(never)]
fn hold() {
    DEPTH.with(|depth| depth.set(Depth::Owing));
    wake_queue::hold();
}

/// Calls those that the change is for, in the outermost call of the thread, and does what they have caused.
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

    /// Holds back whom the thread wakes in pollers, until it is [settled](Self::settle).
    pub(super) fn hold(&mut self) {
        hold();
    }

    /// Wakes whoever has been signalled so far, in the outermost call.
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
        // Those are in pollers, and threads that wait as tasks do.
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
            // Who armed waits for this call, and causes no other by itself.
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

/// An observer's place at an event. Dropping it detaches the observer.
///
/// When the drop returns, no call of the observer is under way on any thread, none will come, and the observer has been
/// dropped, on this thread, unless others hold it. To that end the drop blocks while another thread is inside a
/// callback or a lookup, of whatever event or table, that began before: so the caller holds no lock that any callback
/// may take, nor one that the destructor of the observer takes.
///
/// Inside an observer's call, its own or another, or a guest write that a table serves, the drop waits for nothing.
/// Then no call *begins* on this thread any more. Calls on other threads that are under way may outlast this thread's
/// outermost call, and the observer is dropped after them, by this thread at the end of its outermost call or later, or
/// by [`reclaim`](crate::reclaim). While the thread has a transaction of an
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
    /// Changes that another thread makes during the call may or may not reach it. What was there before does not: look
    /// at the count afterwards. Waits for nobody.
    pub fn new(
        event: impl Into<EventHandle>,
        interest: Interest,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let observation = Self::attach(event.into(), interest, observer, OBSERVED, false);
        observation.for_each_side(|waiters, _| waiters.set(OBSERVED));
        // What is looked at afterwards has what came before.
        observation.hear_signallers(interest);
        observation
    }

    /// Attaches an observer that is called once, for the next change of interest, each time it has been
    /// [armed](Self::arm); not before the first time.
    ///
    /// That suits who will look at the event anyway after the call, as an epoll that has it in its ready list: until it
    /// has looked and armed again, signals cost what they cost without observers. Waits for nobody.
    pub fn on_demand(
        event: impl Into<EventHandle>,
        interest: Interest,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self::attach(event.into(), interest, observer, ARMED, false)
    }

    /// As [`on_demand`](Self::on_demand), for one that only lets a thread know that sleeps: in no time, without
    /// entering other code. It comes before those that may take longer.
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
    /// The caller looks at the count *afterwards*: a change that came before is seen there, a later one calls. A call
    /// may come that this observer did not ask for, because another one of the event's did. Does nothing to an observer
    /// that is called each time.
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
        // Under the list's lock: whoever attaches sets its bit after it has had the lock. ARMED goes with the next
        // claim.
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

    /// Once the last of its kind has gone, a signal does not look for one, whoever else is there.
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
