//! The kernel's futex wait queue, for loom.
//!
//! The queue itself is invisible to loom: it adds neither schedule points nor happens-before edges that the kernel does
//! not give. A sleeper parks for real, so a wake-up that never comes is a deadlock, which loom reports.
//!
//! Two things that happen to a sleeper from outside are threads of the model, so that loom tries them at every point:
//! [`expire`] lets the deadline of every timed wait pass, [`interrupt`] ends all waits for no reason, as a signal
//! handler does.

use super::Outcome;
use crate::sync::atomic::{AtomicU32, Ordering};
use loom::thread::{self, Thread};
use std::cell::RefCell;
use std::time::Instant;

struct Sleeper {
    address: usize,
    ticket: u64,
    timed: bool,
    thread: Thread,
}

#[derive(Default)]
struct Queue {
    sleepers: Vec<Sleeper>,
    timed_out: Vec<u64>,
    tickets: u64,
    expired: bool,
}

std::thread_local! {
    // loom runs all threads of a model as coroutines on one thread of the system.
    static QUEUE: RefCell<Queue> = RefCell::default();
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
}

/// Lets time pass: all timed waits, sleeping or to come, end in a time-out.
pub fn expire() {
    schedule_point();
    QUEUE.with_borrow_mut(|queue| {
        queue.expired = true;
        queue.release(usize::MAX, |sleeper| sleeper.timed, Outcome::TimedOut);
    });
}

/// Ends every wait under way for no reason.
pub fn interrupt() {
    schedule_point();
    QUEUE.with_borrow_mut(|queue| queue.release(usize::MAX, |_| true, Outcome::Woken));
}

/// How many sleep now.
pub fn asleep() -> usize {
    QUEUE.with_borrow(|queue| queue.sleepers.len())
}

fn schedule_point() {
    // An access that nothing is ordered by, to a word nobody else knows.
    AtomicU32::new(0).fetch_add(0, Ordering::Relaxed);
    thread::yield_now();
}

pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Outcome {
    // The kernel compares with the newest value, so this is a read-modify-write: a load of loom's may be stale. No
    // schedule point follows it before the thread stands in the queue, as the kernel's bucket lock has it.
    if word.fetch_add(0, Ordering::Relaxed) != expected {
        return Outcome::Woken;
    }
    let ticket = QUEUE.with_borrow_mut(|queue| {
        if deadline.is_some() && queue.expired {
            return None;
        }
        queue.tickets += 1;
        queue.sleepers.push(Sleeper {
            address: address(word),
            ticket: queue.tickets,
            timed: deadline.is_some(),
            thread: thread::current(),
        });
        Some(queue.tickets)
    });
    let Some(ticket) = ticket else {
        return Outcome::TimedOut;
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
    // The system call is a step of its own: without a schedule point here, "change the word, then wake" would be one.
    word.fetch_add(0, Ordering::Relaxed);
    QUEUE.with_borrow_mut(|queue| {
        queue.release(
            count as usize,
            |s| s.address == address(word),
            Outcome::Woken,
        );
    });
}

fn address(word: &AtomicU32) -> usize {
    std::ptr::from_ref(word).addr()
}
