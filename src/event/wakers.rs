//! Tasks that wait for an event, and threads that wait as tasks do: a wait list for each side.
//!
//! The kernel has no counterpart; tokio's `Notify` and `event-listener` are of this kind. The wait lists are next to
//! the event's list of observers. They are made with the first task that waits, and kept with the event, so waiting and
//! waking change no list of observers. The links of a list are in the futures, so waiting allocates nothing. A mutex
//! protects the links, and is held for a few instructions at a time. Wakers are cloned, called and dropped outside of
//! it.
//!
//! ```text
//!     task                                           signal, or read for tasks that want to write
//!     1  try; got something: done                    1  count
//!     2  lock                                        2  TASKS?  no: done
//!        join the list, at its end or,               3  lock
//!        if it was woken, in its old position           list empty, or one is woken that takes all: clear TASKS
//!        set TASKS, unless it is set                    fewer are woken than can go on: take out the first
//!        unlock                                         unlock
//!     3  try; nothing: come back when woken          4  call the waker of the one taken out; from 3 for the next
//!     4  lock
//!        leave; others in the list? set TASKS, unless it is set
//!        unlock
//!     5  there were others: load the count, and wake as in 3 and 4
//! ```
//!
//! A woken task counts as *woken* until it joins again or leaves. But if no task was behind it in the list, or if all
//! tasks can go on, no other task depends on its return: then it is *free*, and leaves without steps 4 and 5. If a read
//! takes the whole count, at most one task can go on; if a read takes a unit, as many as there are units. Of the tasks
//! that want to write, all can go on.
//!
//! Why no wake-up is lost, if a woken task is polled again or dropped (a woken task that is neither keeps the others
//! waiting):
//!
//! * TASKS changes only under the lock. A signal that finds it set takes the lock, before a task that joins or after
//!   it. If before, the task sees in step 3 the count that the signal has changed, because the lock hands it over. If
//!   after, the signal sees the task in the list.
//! * A signal that finds TASKS clear, and the task that sets it and then loads the count, are in the handshake of
//!   `src/sync/waiters.rs`: one sees the other. A task that finds TASKS set loads the count after the task that set it.
//! * TASKS is not cleared while there is a task in the list that a later change has to wake. If it is cleared because a
//!   woken task takes everything, that task sets it again for the tasks in the list when it returns (2 and 4), and then
//!   loads the count. So a burst of signals takes the lock twice.
//! * If there are tasks in the list, and more tasks can go on than are woken, then a thread is about to examine the
//!   list: the one that signalled (3), or the one whose task joined (3) or left (5). A task that leaves does so whether
//!   or not it was woken: it may have joined again without an attempt, as `wait_any` does when another event is ready.
//! * A task in the list beside a free task has joined after the free one was woken, and loaded the count then. So what
//!   the free task was woken for had been taken already.
//!
//! A read wakes all tasks that want to write, so a task that leaves their list owes the others nothing.
//!
//! **Wakers run any code.** A waker may poll its task, signal this event or others, or drop futures. Tasks that such
//! code wakes are taken out of the list at once, but their wakers are called by the outermost signal of the thread, see
//! `src/event/observer.rs`, so the stack does not grow with the list. A round of calls takes no task that has joined,
//! or joined again, since the round began: such a task has loaded the count since, and a waker that polls would make
//! the round endless.

use super::{Change, Event, Mode};
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::brief::LineMutex;
use crate::sync::waiters::{TASKS, Waiters};
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr;
use std::task::Waker;

/// The tasks that wait for the two sides of an event.
#[derive(Default)]
pub(super) struct Wakers {
    readers: WaitList,
    writers: WaitList,
}

impl Wakers {
    fn list(&self, change: Change) -> &WaitList {
        match change {
            Change::Signalled => &self.readers,
            Change::Read => &self.writers,
        }
    }
}

impl Event {
    /// Takes the tasks out of the list that can go on and are not woken yet, and passes the waker of each to `call`.
    pub(super) fn wake_tasks(&self, wakers: &Wakers, change: Change, mut call: impl FnMut(Waker)) {
        let list = wakers.list(change);
        let mut round = Round::default();
        loop {
            let shares = self.shares(change);
            let Some(waker) = list.take_first(self.waiters(change), shares, &mut round) else {
                return;
            };
            call(waker);
            if round.is_over {
                return;
            }
        }
    }

    fn shares(&self, change: Change) -> Shares {
        match (change, self.mode) {
            (Change::Signalled, Mode::Counter) => Shares {
                now: self.units(),
                most: 1,
            },
            (Change::Signalled, Mode::Semaphore) => Shares {
                now: self.units(),
                most: u32::MAX,
            },
            (Change::Read, _) => Shares {
                now: u32::MAX,
                most: u32::MAX,
            },
        }
    }
}

/// How many tasks can go on, woken ones included.
#[derive(Clone, Copy)]
struct Shares {
    /// As far as is known now.
    now: u32,
    /// The most that can go on before a woken one has returned.
    most: u32,
}

/// The calls of wakers for one change.
#[derive(Default)]
struct Round {
    /// The last number at its beginning.
    end: Option<u64>,
    /// The number of the last task that was taken out.
    reached: u64,
    /// There are no more tasks to wake.
    is_over: bool,
}

/// A position in one of the wait lists of an event, or the intention to take one. It is pinned while it is in a list.
///
/// Dropping it leaves the list.
pub(crate) struct WaitTicket<'a> {
    event: &'a Event,
    change: Change,
    /// There while it is in the list, or woken.
    list: Option<&'a WaitList>,
    node: Node,
}

impl<'a> WaitTicket<'a> {
    /// To wait until `change` happens.
    pub(crate) fn new(event: &'a Event, change: Change) -> Self {
        WaitTicket {
            event,
            change,
            list: None,
            node: Node::new(),
        }
    }

    pub(crate) fn event(&self) -> &'a Event {
        self.event
    }

    /// Joins the list, to be woken by the next change. The caller loads the count *afterwards*, with `DEKKER`; and if
    /// there is nothing, once more after it has [heard](Self::hear_signallers) the signallers.
    pub(crate) fn join(self: Pin<&mut Self>, waker: &Waker) {
        // Before anything changes: cloning may panic.
        let waker = waker.clone();
        // SAFETY: nothing is moved.
        let this = unsafe { self.get_unchecked_mut() };
        let list = match this.list {
            Some(list) => list,
            None => this.event.observers.wakers().list(this.change),
        };
        this.list = Some(list);
        // SAFETY: the node is pinned, and its place leaves when it is dropped: the node is neither moved nor freed
        // before that. It joins no other list, since event and change stay the same.
        drop(unsafe { list.join(&this.node, waker, this.waiters()) });
    }

    /// Leaves the list, and passes on a wake-up that it may have received.
    pub(crate) fn leave(self: Pin<&mut Self>) {
        // SAFETY: nothing is moved.
        unsafe { self.get_unchecked_mut() }.quit();
    }

    fn quit(&mut self) {
        let Some(list) = self.list.take() else {
            return;
        };
        if self.node.is_free() {
            // Most likely: it was woken, and no task was behind it.
            return self.node.forget();
        }
        // SAFETY: it has joined this list.
        let (_waker, others) = unsafe { list.leave(&self.node, self.waiters()) };
        if others && self.change == Change::Signalled {
            self.hand_on();
        }
    }

    /// Acts as a signal for the others in the list. If the count is not 0, no signaller need be heard: in the list of a
    /// semaphore TASKS has been set all the time, and otherwise the task that is woken loads the count itself.
    fn hand_on(&self) {
        if self.event.units() != 0 || self.event.hear_signallers() {
            let observers = &self.event.observers;
            observers.wake_tasks(self.event, self.change);
        }
    }

    /// For a task that wants to read: hears the signallers that have not seen that there are tasks. Returns whether
    /// there are any.
    pub(crate) fn hear_signallers(&self) -> bool {
        self.change == Change::Signalled && self.event.hear_signallers()
    }

    fn waiters(&self) -> &'a Waiters {
        self.event.waiters(self.change)
    }
}

impl Drop for WaitTicket<'_> {
    fn drop(&mut self) {
        self.quit();
    }
}

/// The entry of a ticket in a list.
struct Node {
    /// Accessed under the lock of the list.
    standing: UnsafeCell<Standing>,
    /// It was woken, and no other task depends on its return: the list no longer counts it, and the thread that has
    /// taken it out does not touch it again.
    free: AtomicBool,
    /// The neighbours point here.
    _pinned: PhantomPinned,
}

// SAFETY: its contents are accessed under the lock of one list, by the thread that has the lock, and wakers are `Send`.
unsafe impl Send for Node {}

// SAFETY: likewise; a shared reference to a node leads nowhere without the lock.
unsafe impl Sync for Node {}

struct Standing {
    /// In the order in which tasks have joined. 0: neither in the list nor woken.
    number: u64,
    /// There while it is in the list.
    waker: Option<Waker>,
    previous: *const Node,
    next: *const Node,
}

impl Node {
    fn new() -> Self {
        Node {
            standing: UnsafeCell::new(Standing {
                number: 0,
                waker: None,
                previous: ptr::null(),
                next: ptr::null(),
            }),
            free: AtomicBool::new(false),
            _pinned: PhantomPinned,
        }
    }

    /// Whether the list no longer counts it, for a caller that has the node, or the lock.
    fn is_free(&self) -> bool {
        // Acquire pairs with the Release in `take_first`: the node may be freed.
        self.free.load(Ordering::Acquire)
    }

    /// Resets it, after the list has ceased to count it.
    fn forget(&mut self) {
        // SAFETY: it is borrowed exclusively, and the list no longer leads to it.
        self.standing.with_mut(|it| unsafe { (*it).number = 0 });
        self.free.store(false, Ordering::Relaxed);
    }
}

/// The tasks that wait for one kind of change, in the order in which they joined.
#[derive(Default)]
struct WaitList(LineMutex<Tasks>);

struct Tasks {
    first: *const Node,
    last: *const Node,
    /// In the list, and the last of those that have joined again.
    returned: *const Node,
    /// The number of the task that joined last.
    newest: u64,
    /// How many were woken, are not free, and have neither joined again nor left.
    woken: u32,
}

// SAFETY: the nodes that it leads to may be accessed by any thread that has the lock.
unsafe impl Send for Tasks {}

impl Default for Tasks {
    fn default() -> Self {
        Tasks {
            first: ptr::null(),
            last: ptr::null(),
            returned: ptr::null(),
            newest: 0,
            woken: 0,
        }
    }
}

impl WaitList {
    /// Puts a node into the list, in its old position if it was woken, or replaces its waker. Returns the old waker.
    ///
    /// # Safety
    ///
    /// The node is neither moved nor freed before it has left, and joins no other list until then.
    unsafe fn join(&self, node: &Node, waker: Waker, waiters: &Waiters) -> Option<Waker> {
        self.0.with(|tasks| {
            // SAFETY: as promised, and this is the lock.
            let replaced = unsafe { tasks.join(node, waker) };
            request_wakeups(waiters);
            replaced
        })
    }

    /// Takes a node out of the list, or ceases to count it as woken. Returns its waker, and whether others are in the
    /// list.
    ///
    /// # Safety
    ///
    /// It has joined this list.
    unsafe fn leave(&self, node: &Node, waiters: &Waiters) -> (Option<Waker>, bool) {
        self.0.with(|tasks| {
            // SAFETY: as promised, and this is the lock.
            let waker = unsafe { tasks.leave(node) };
            let others = !tasks.first.is_null();
            if others {
                request_wakeups(waiters);
            }
            (waker, others)
        })
    }

    /// Takes the first node out of the list that the round has not reached yet, if more can go on than are woken.
    fn take_first(&self, waiters: &Waiters, shares: Shares, round: &mut Round) -> Option<Waker> {
        self.0.with(|tasks| {
            if tasks.first.is_null() || tasks.woken >= shares.most {
                if waiters.has(TASKS) {
                    waiters.clear(TASKS);
                }
                return None;
            }
            if tasks.woken >= shares.now {
                return None;
            }
            let end = *round.end.get_or_insert(tasks.newest);
            // SAFETY: all nodes in the list are there until they have left, and this is the lock.
            unsafe {
                let mut node = tasks.first;
                while number(node) <= round.reached {
                    node = next(node);
                }
                if number(node) > end {
                    return None;
                }
                round.reached = number(node);
                let behind = next(node);
                let waker = tasks.unlink(node);
                if tasks.first.is_null() || shares.now == u32::MAX {
                    // Release pairs with the Acquire in `is_free`. From here on, the node may be gone.
                    (*node).free.store(true, Ordering::Release);
                } else {
                    tasks.woken += 1;
                }
                round.is_over = tasks.woken >= shares.now || number(behind) > end;
                waker
            }
        })
    }
}

/// Has each change examine the list. Under the lock.
fn request_wakeups(waiters: &Waiters) {
    if !waiters.has(TASKS) {
        waiters.set(TASKS);
    }
}

/// Under the lock of the list, and with nodes that exist.
impl Tasks {
    unsafe fn join(&mut self, node: *const Node, waker: Waker) -> Option<Waker> {
        // SAFETY: as promised, here and below.
        let (replaced, joined) = unsafe {
            with(node, |it| {
                let joined = it.number;
                if joined == 0 {
                    self.newest += 1;
                    it.number = self.newest;
                }
                (it.waker.replace(waker), joined)
            })
        };
        if replaced.is_none() {
            unsafe {
                let free = free_no_more(node);
                self.woken -= u32::from(joined != 0 && !free);
                self.link(node);
            }
        }
        replaced
    }

    unsafe fn leave(&mut self, node: *const Node) -> Option<Waker> {
        // SAFETY: as promised.
        unsafe {
            let waker = self.unlink(node);
            let free = free_no_more(node);
            self.woken -= u32::from(waker.is_none() && !free);
            with(node, |it| it.number = 0);
            waker
        }
    }

    /// Puts a node where its number belongs. That is the end, or near the beginning, behind the nodes that were woken
    /// before it and have joined again too: most likely right behind the last of those.
    unsafe fn link(&mut self, node: *const Node) {
        // SAFETY: as promised.
        unsafe {
            let own = number(node);
            let (mut previous, mut behind) = (self.last, ptr::null());
            if !previous.is_null() && number(previous) > own {
                previous = if !self.returned.is_null() && number(self.returned) < own {
                    self.returned
                } else {
                    ptr::null()
                };
                behind = self.after(previous);
                while number(behind) < own {
                    previous = behind;
                    behind = next(behind);
                }
                self.returned = node;
            }
            with(node, |it| (it.previous, it.next) = (previous, behind));
            self.connect(previous, node);
            self.connect_back(node, behind);
        }
    }

    /// Takes a node out of the list, if it is in it, and returns its waker.
    unsafe fn unlink(&mut self, node: *const Node) -> Option<Waker> {
        // SAFETY: as promised.
        unsafe {
            let (waker, previous, next) = with(node, |it| (it.waker.take(), it.previous, it.next));
            if waker.is_some() {
                self.connect(previous, next);
                self.connect_back(previous, next);
                if self.returned == node {
                    self.returned = previous;
                }
            }
            waker
        }
    }

    /// The node behind another one, or the first.
    unsafe fn after(&self, node: *const Node) -> *const Node {
        if node.is_null() {
            self.first
        } else {
            // SAFETY: as promised.
            unsafe { next(node) }
        }
    }

    /// Makes `next` follow `node`, which is null for the beginning of the list.
    unsafe fn connect(&mut self, node: *const Node, next: *const Node) {
        if node.is_null() {
            self.first = next;
        } else {
            // SAFETY: as promised.
            unsafe { with(node, |it| it.next = next) };
        }
    }

    /// Makes `node` precede `next`, which is null for the end of the list.
    unsafe fn connect_back(&mut self, node: *const Node, next: *const Node) {
        if next.is_null() {
            self.last = node;
        } else {
            // SAFETY: as promised.
            unsafe { with(next, |it| it.previous = node) };
        }
    }
}

/// # Safety
///
/// The node is there, and the caller has the lock of its list, and calls this not within `f`.
unsafe fn with<R>(node: *const Node, f: impl FnOnce(&mut Standing) -> R) -> R {
    // SAFETY: as promised; only the cell is mutated.
    unsafe { (*node).standing.with_mut(|it| f(&mut *it)) }
}

/// Whether it was free.
///
/// # Safety
///
/// As for [`with`].
unsafe fn free_no_more(node: *const Node) -> bool {
    // SAFETY: as promised.
    let free = unsafe { &(*node).free };
    // Relaxed: the lock keeps others away.
    let was_free = free.load(Ordering::Relaxed);
    if was_free {
        free.store(false, Ordering::Relaxed);
    }
    was_free
}

/// The number of a node; behind the end of the list, one that nobody has.
///
/// # Safety
///
/// As for [`with`], unless it is null.
unsafe fn number(node: *const Node) -> u64 {
    if node.is_null() {
        return u64::MAX;
    }
    // SAFETY: as promised.
    unsafe { with(node, |it| it.number) }
}

/// # Safety
///
/// As for [`with`].
unsafe fn next(node: *const Node) -> *const Node {
    // SAFETY: as promised.
    unsafe { with(node, |it| it.next) }
}
