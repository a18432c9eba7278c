//! The kernel's futex wait queue, for loom.
//!
//! The queue itself is invisible to loom, so that it adds no happens-before edge that the kernel does not give (but for
//! the one from waking to being woken, which parking has). A sleeper parks for real, so a wake-up that never comes is a deadlock, which loom reports.
//!
//! Two things that happen to a sleeper from outside are threads of the model, so that loom tries them at every point:
//! [`expire`] lets the deadline of every timed wait pass, [`interrupt`] ends all waits for no reason, as a signal
//! handler does. [`lapse`] ends the shared ones from now on, as their own limit does.

use super::Outcome;
use crate::sync::atomic::{AtomicU32, Ordering};
use loom::thread::{self, Thread};
use std::cell::RefCell;
use std::time::{Duration, Instant};

struct Sleeper {
    address: usize,
    ticket: u64,
    timed: bool,
    shared: bool,
    thread: Thread,
}

#[derive(Default)]
struct Queue {
    sleepers: Vec<Sleeper>,
    timed_out: Vec<u64>,
    tickets: u64,
    expired: bool,
    lapsed: bool,
    wakes: u64,
}

std::thread_local! {
    // loom runs all threads of a model as coroutines on one thread of the system.
    static QUEUE: RefCell<Queue> = RefCell::default();
}

loom::lazy_static! {
    static ref QUEUE_TOUCHED: AtomicU32 = AtomicU32::new(0);
}

impl Queue {
    /// Removes the first `count` sleepers that `chosen` picks, and lets them run.
    fn release(&mut self, count: usize, chosen: impl Fn(&Sleeper) -> bool, outcome: Outcome) {
        let mut left = count;
        let (gone, asleep) = std::mem::take(&mut self.sleepers)
            .into_iter()
            .partition::<Vec<_>, _>(|sleeper| {
                let go = left > 0 && chosen(sleeper);
                left -= usize::from(go);
                go
            });
        self.sleepers = asleep;
        for sleeper in gone {
            if outcome == Outcome::TimedOut {
                self.timed_out.push(sleeper.ticket);
            }
            sleeper.thread.unpark();
        }
    }
}

/// Forgets what an earlier run of the model left behind. First thing in every model.
pub fn reset() {
    QUEUE.with_borrow_mut(|queue| *queue = Queue::default());
    // Made before there are threads, lest they are ordered by its making.
    touch();
}

/// Lets time pass: all timed waits, sleeping or to come, end in a time-out.
pub fn expire() {
    touch();
    QUEUE.with_borrow_mut(|queue| {
        queue.expired = true;
        queue.release(usize::MAX, |sleeper| sleeper.timed, Outcome::TimedOut);
    });
}

/// Ends every wait under way for no reason.
pub fn interrupt() {
    touch();
    QUEUE.with_borrow_mut(|queue| queue.release(usize::MAX, |_| true, Outcome::Woken));
}

/// Lets the limit pass that each shared wait has, be it under way or to come.
pub fn lapse() {
    touch();
    QUEUE.with_borrow_mut(|queue| {
        queue.lapsed = true;
        queue.release(usize::MAX, |sleeper| sleeper.shared, Outcome::Woken);
    });
}

/// How many system calls to wake somebody there were.
pub fn wakes() -> u64 {
    QUEUE.with_borrow(|queue| queue.wakes)
}

/// Stands before each step that looks at or changes the queue: it shows loom that those steps depend on one another, so
/// that it tries them in every order. Relaxed, so it orders nothing else.
fn touch() {
    QUEUE_TOUCHED.fetch_add(0, Ordering::Relaxed);
}

pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Outcome {
    sleep(word, expected, deadline, false)
}

pub(crate) fn wait_shared(
    word: &AtomicU32,
    expected: u32,
    deadline: Option<Instant>,
    _at_most: Duration,
) -> Outcome {
    sleep(word, expected, deadline, true)
}

fn sleep(word: &AtomicU32, expected: u32, deadline: Option<Instant>, shared: bool) -> Outcome {
    touch();
    // The kernel compares with the newest value, so this is a read-modify-write: a load of loom's may be stale. No
    // schedule point follows it before the thread stands in the queue, as the kernel's bucket lock has it.
    if word.fetch_add(0, Ordering::Relaxed) != expected {
        return Outcome::Woken;
    }
    let ticket = QUEUE.with_borrow_mut(|queue| {
        if deadline.is_some() && queue.expired {
            return Err(Outcome::TimedOut);
        }
        if shared && queue.lapsed {
            return Err(Outcome::Woken);
        }
        queue.tickets += 1;
        queue.sleepers.push(Sleeper {
            address: address(word),
            ticket: queue.tickets,
            timed: deadline.is_some(),
            shared,
            thread: thread::current(),
        });
        Ok(queue.tickets)
    });
    let ticket = match ticket {
        Ok(ticket) => ticket,
        Err(outcome) => {
            // Those who look up again and again wait for somebody else.
            thread::yield_now();
            return outcome;
        }
    };
    while QUEUE.with_borrow(|queue| queue.sleepers.iter().any(|s| s.ticket == ticket)) {
        thread::park();
    }
    let timed_out = QUEUE.with_borrow_mut(|queue| {
        let place = queue.timed_out.iter().position(|&t| t == ticket);
        place.map(|place| queue.timed_out.swap_remove(place))
    });
    match timed_out {
        Some(_) => Outcome::TimedOut,
        None => Outcome::Woken,
    }
}

pub(crate) fn wake(word: &AtomicU32, count: u32) {
    // The system call is a step of its own: without this, "change the word, then wake" would be one.
    touch();
    QUEUE.with_borrow_mut(|queue| {
        queue.wakes += 1;
        queue.release(
            count as usize,
            |s| s.address == address(word),
            Outcome::Woken,
        );
    });
}

pub(crate) fn wake_shared(word: &AtomicU32, count: u32) {
    wake(word, count);
}

fn address(word: &AtomicU32) -> usize {
    std::ptr::from_ref(word).addr()
}
