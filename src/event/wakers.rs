//! Tasks that wait for an event, and threads that wait as tasks do: a line for each side.
//!
//! The kernel has no counterpart; tokio's `Notify` and `event-listener` are of this kind. The line stands beside
//! the event's list of observers, is made with the first task that waits and kept with the event, so waiting and waking
//! change no list of observers. Its links are in the futures themselves: waiting takes no memory. A mutex keeps them
//! together, for a few instructions at a time; wakers are cloned, called and dropped outside of it.
//!
//! ```text
//!     task                                           signal, or read for those who want to write
//!     1  try; got something: done                    1  count
//!     2  lock                                        2  TASKS?  no: done
//!        join the line, at its end or,               3  lock
//!        if it has been woken, at its old place         nobody in line, or one is woken who takes all: clear TASKS
//!        set TASKS, unless it is set                    fewer are woken than can go on: take out the first
//!        unlock                                         unlock
//!     3  try; nothing: come back when woken          4  call the waker of the one taken out; from 3 for the next
//!     4  lock
//!        leave; others in line? set TASKS, unless it is set
//!        unlock
//!     5  there were others: look, and wake as in 3 and 4
//! ```
//!
//! A woken task counts as *woken* until it joins again or leaves; but not if nobody stood behind it, or if all can go
//! on: then nobody depends on its coming back, it is *free*, and leaves without steps 4 and 5. How many can go on is
//! one or nobody if a read takes the whole count, as many as there are units if it takes one, and everybody for those
//! who want to write.
//!
//! Why no wake-up is lost, if a woken task is polled again or dropped (one that is neither keeps the others waiting):
//!
//! * TASKS changes under the lock alone. A signal that finds it set takes the lock, before a task that joins or after
//!   it. Before: the task sees the count that the signal has changed, in step 3, since the lock hands it over. After:
//!   the signal sees the task in line.
//! * A signal that does not find it set, and who set it and then looks at the count, are in the handshake of
//!   `src/sync/waiters.rs`: one sees the other. A task that finds TASKS set looks later than whoever set it.
//! * TASKS is not cleared while there is somebody in line to be woken by a change to come. If it is cleared because one
//!   is woken who takes all, that one sets it again for those in line when it comes back (2 and 4), and then looks. So
//!   a burst of signals takes the lock twice.
//! * There are never more who can go on than are woken, with others in line, unless somebody is on the way to look:
//!   who made it so by a signal (3), by joining (3) or by leaving (5). Leaving does that whether or not the task was
//!   woken: it may have joined again and not tried, as `wait_any` may that has found another event.
//! * Whoever stands in line beside a free task has joined after that was woken, and looked then: what the free task was
//!   woken for had been taken, or it would not stand there.
//!
//! A read wakes all who want to write, so who leaves that line owes the others nothing.
//!
//! **Wakers run any code.** One may poll the task it is for, signal this event or others, or drop futures. What such
//! code wakes is taken out of line at once, but called by the outermost signal of the thread, see
//! `src/event/observer.rs`, so the stack does not grow with the line. A round of calls takes nobody who has joined, or
//! joined again, since it began: those have looked at the count since, and a waker that polls would keep the round
//! going for ever.

use super::{Change, Event, Mode};
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::brief::LineMutex;
use crate::sync::waiters::{TASKS, Waiters};
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr;
use std::task::Waker;

/// Who is waiting for the two sides of an event.
#[derive(Default)]
pub(super) struct Wakers {
    readers: Line,
    writers: Line,
}

impl Wakers {
    fn line(&self, change: Change) -> &Line {
        match change {
            Change::Signalled => &self.readers,
            Change::Read => &self.writers,
        }
    }
}

impl Event {
    /// Takes those out of line who can go on and are not woken yet, and hands the waker of each to `call`.
    pub(super) fn wake_tasks(&self, wakers: &Wakers, change: Change, mut call: impl FnMut(Waker)) {
        let line = wakers.line(change);
        let mut round = Round::default();
        loop {
            let shares = self.shares(change);
            let Some(waker) = line.take_first(self.waiters(change), shares, &mut round) else {
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

/// How many tasks can go on, those who are woken among them.
#[derive(Clone, Copy)]
struct Shares {
    /// As far as is known now.
    now: u32,
    /// Whatever comes before the next of them has come back.
    most: u32,
}

/// The calls of wakers for one change.
#[derive(Default)]
struct Round {
    /// The last number there was when it began.
    end: Option<u64>,
    /// The number of the last task that was taken out.
    reached: u64,
    /// There was nobody more to be woken.
    is_over: bool,
}

/// A place in one of the lines of an event, or the intention to take one. It is pinned while it is in line.
///
/// Dropping it leaves the line.
pub(crate) struct Place<'a> {
    event: &'a Event,
    change: Change,
    /// While it is in line or woken.
    line: Option<&'a Line>,
    node: Node,
}

impl<'a> Place<'a> {
    /// For who waits until `change` happens.
    pub(crate) fn new(event: &'a Event, change: Change) -> Self {
        Place {
            event,
            change,
            line: None,
            node: Node::new(),
        }
    }

    pub(crate) fn event(&self) -> &'a Event {
        self.event
    }

    /// Stands in line, to be woken by the next change. The caller looks at the count *afterwards*, with `DEKKER` loads;
    /// and if there is nothing, once more when it has [heard](Self::hear_signallers) the signallers.
    pub(crate) fn join(self: Pin<&mut Self>, waker: &Waker) {
        // Before anything changes: it may panic.
        let waker = waker.clone();
        // SAFETY: nothing is moved.
        let this = unsafe { self.get_unchecked_mut() };
        let line = match this.line {
            Some(line) => line,
            None => this.event.observers.wakers().line(this.change),
        };
        this.line = Some(line);
        // SAFETY: the node is pinned, and its place leaves when it is dropped: the node is neither moved nor freed
        // before that. It joins no other line, since event and change stay the same.
        drop(unsafe { line.join(&this.node, waker, this.waiters()) });
    }

    /// Stands in line no more, and hands on what may have woken it.
    pub(crate) fn leave(self: Pin<&mut Self>) {
        // SAFETY: nothing is moved.
        unsafe { self.get_unchecked_mut() }.quit();
    }

    fn quit(&mut self) {
        let Some(line) = self.line.take() else {
            return;
        };
        if self.node.is_free() {
            // Most likely: it was woken, and nobody stood behind it.
            return self.node.forget();
        }
        // SAFETY: it has joined this line.
        let (_waker, others) = unsafe { line.leave(&self.node, self.waiters()) };
        if others && self.change == Change::Signalled {
            self.hand_on();
        }
    }

    /// Acts as a signal for the others in line. If there is something, nobody need be heard: TASKS has been set all the
    /// while if the event is a semaphore, and if it is not, the one that is woken looks for itself.
    fn hand_on(&self) {
        if self.event.units() != 0 || self.event.hear_signallers() {
            let observers = &self.event.observers;
            observers.wake_tasks(self.event, self.change);
        }
    }

    /// Hears those who have not seen that there are tasks. Returns whether there are any, for one who wants to read.
    pub(crate) fn hear_signallers(&self) -> bool {
        self.change == Change::Signalled && self.event.hear_signallers()
    }

    fn waiters(&self) -> &'a Waiters {
        self.event.waiters(self.change)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.quit();
    }
}

/// What a line knows of one that stands in it, or has been woken.
struct Node {
    /// Accessed under the lock of the line.
    standing: UnsafeCell<Standing>,
    /// It has been woken and nobody depends on that, so the line does not know it any more, and who has taken it out
    /// does not touch it again.
    free: AtomicBool,
    /// The neighbours point here.
    _pinned: PhantomPinned,
}

// SAFETY: what is in it is accessed under the lock of one line, by whichever thread has that, and wakers may be sent.
unsafe impl Send for Node {}

// SAFETY: likewise; a shared reference to a node leads nowhere without the lock.
unsafe impl Sync for Node {}

struct Standing {
    /// In the order in which tasks have joined. 0: neither in line nor woken.
    number: u64,
    /// There while it is in line.
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

    /// Whether the line does not know it, in the eyes of who has the node, or the lock.
    fn is_free(&self) -> bool {
        // Acquire pairs with the Release in `take_first`: the node may be freed.
        self.free.load(Ordering::Acquire)
    }

    /// Makes a new one of it, which the line does not know.
    fn forget(&mut self) {
        // SAFETY: it is borrowed exclusively, and the line leads to it no more.
        self.standing.with_mut(|it| unsafe { (*it).number = 0 });
        self.free.store(false, Ordering::Relaxed);
    }
}

/// Who waits for one kind of change, in the order in which they joined.
#[derive(Default)]
struct Line(LineMutex<Tasks>);

struct Tasks {
    first: *const Node,
    last: *const Node,
    /// In line, and the last of those who have joined again.
    returned: *const Node,
    /// The number of who joined last.
    newest: u64,
    /// How many have been woken, and have neither joined again nor left, but for those that are free.
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

impl Line {
    /// Puts a node into line, at its old place if it has been woken, or gives it another waker. Returns the one that
    /// it had.
    ///
    /// # Safety
    ///
    /// The node is neither moved nor freed before it has left, and joins no other line until then.
    unsafe fn join(&self, node: &Node, waker: Waker, waiters: &Waiters) -> Option<Waker> {
        self.0.with(|tasks| {
            // SAFETY: as promised, and this is the lock.
            let replaced = unsafe { tasks.join(node, waker) };
            ask(waiters);
            replaced
        })
    }

    /// Takes a node out of line, or off those who are woken. Returns its waker, and whether others are in line.
    ///
    /// # Safety
    ///
    /// It has joined this line.
    unsafe fn leave(&self, node: &Node, waiters: &Waiters) -> (Option<Waker>, bool) {
        self.0.with(|tasks| {
            // SAFETY: as promised, and this is the lock.
            let waker = unsafe { tasks.leave(node) };
            let others = !tasks.first.is_null();
            if others {
                ask(waiters);
            }
            (waker, others)
        })
    }

    /// Takes the first out of line that the round has not reached yet, if more can go on than are woken.
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
            // SAFETY: all nodes in line are there until they have left, and this is the lock.
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

/// Asks for a look at the line with each change, for who is in it. Under the lock.
fn ask(waiters: &Waiters) {
    if !waiters.has(TASKS) {
        waiters.set(TASKS);
    }
}

/// Under the lock of the line, and with nodes that are there.
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

    /// Puts a node where its number belongs. That is the end, or one of the first places, behind whoever has been woken
    /// before it and has joined again too: most likely right behind the last of those.
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

    /// Takes a node out of line, if it is there, and returns its waker.
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

    /// Makes `next` follow `node`, which is null for the beginning of the line.
    unsafe fn connect(&mut self, node: *const Node, next: *const Node) {
        if node.is_null() {
            self.first = next;
        } else {
            // SAFETY: as promised.
            unsafe { with(node, |it| it.next = next) };
        }
    }

    /// Makes `node` precede `next`, which is null for the end of the line.
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
/// The node is there, and the caller has the lock of its line, and calls this not within `f`.
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

/// The number of a node; behind the end of the line, one that nobody has.
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
