//! The kernel's futex wait queue, for loom.
//!
//! The queue itself is invisible to loom, so that it adds no happens-before edge that the kernel does not give (except
//! for the one from the waking thread to the woken one, which parking has). A sleeper parks for real, so a wake-up that
//! never comes is a deadlock, which loom reports.
//!
//! Two things that happen to a sleeper from outside are threads of the model, so that loom tries them at every point:
//! [`expire`] lets the deadline of every timed wait pass, [`interrupt`] ends all waits spuriously, as a signal handler
//! does. [`lapse`] ends the shared ones from now on, as their own limit does.

use super::{MOST_WORDS, Outcome, Refused};
use crate::sync::atomic::{AtomicU32, Ordering};
use loom::thread::{self, Thread};
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// A thread's place in the queue of one word. A thread that sleeps on several words has a place for each, and one
/// ticket.
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
    woken: u64,
    no_wait_any: bool,
}

std::thread_local! {
    // loom runs all threads of a model as coroutines on one thread of the system.
    static QUEUE: RefCell<Queue> = RefCell::default();
}

loom::lazy_static! {
    static ref QUEUE_TOUCHED: AtomicU32 = AtomicU32::new(0);
}

impl Queue {
    /// How many places a thread has.
    fn places(&self, ticket: u64) -> usize {
        let own = |sleeper: &&Sleeper| sleeper.ticket == ticket;
        self.sleepers.iter().filter(own).count()
    }

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

/// Forgets what an earlier run of the model left behind. Every model calls this first.
pub fn reset() {
    QUEUE.with_borrow_mut(|queue| *queue = Queue::default());
    // The atomic is made before there are threads, so that making it does not order them.
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

/// Spuriously ends every wait that is under way.
pub fn interrupt() {
    touch();
    QUEUE.with_borrow_mut(|queue| queue.release(usize::MAX, |_| true, Outcome::Woken));
}

/// Lets the time limit of each shared wait pass, of waits under way and of later ones.
pub fn lapse() {
    touch();
    QUEUE.with_borrow_mut(|queue| {
        queue.lapsed = true;
        queue.release(usize::MAX, |sleeper| sleeper.shared, Outcome::Woken);
    });
}

/// Makes the kernel one that cannot wait for several words.
pub fn refuse_wait_any() {
    QUEUE.with_borrow_mut(|queue| queue.no_wait_any = true);
}

/// How many places in the queue are taken.
pub fn asleep() -> usize {
    QUEUE.with_borrow(|queue| queue.sleepers.len())
}

/// How many system calls to wake threads there were.
pub fn wakes() -> u64 {
    QUEUE.with_borrow(|queue| queue.wakes)
}

/// How many places in the queue those calls have reached.
pub fn woken() -> u64 {
    QUEUE.with_borrow(|queue| queue.woken)
}

/// Stands before each step that looks at or changes the queue: it shows loom that those steps depend on one another, so
/// that it tries them in every order. Relaxed, so it orders nothing else.
fn touch() {
    QUEUE_TOUCHED.fetch_add(0, Ordering::Relaxed);
}

pub(crate) fn most_words() -> usize {
    let refused = QUEUE.with_borrow(|queue| queue.no_wait_any);
    if refused { 1 } else { MOST_WORDS }
}

pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Outcome {
    wait_for(std::iter::once((word, expected)), deadline, false)
}

pub(crate) fn wait_shared(
    word: &AtomicU32,
    expected: u32,
    deadline: Option<Instant>,
    _at_most: Duration,
) -> Outcome {
    wait_for(std::iter::once((word, expected)), deadline, true)
}

pub(crate) fn wait_any<'a>(
    words: impl ExactSizeIterator<Item = (&'a AtomicU32, u32)>,
    deadline: Option<Instant>,
) -> Result<Outcome, Refused> {
    if words.len() > most_words() {
        return Err(Refused);
    }
    Ok(wait_for(words, deadline, false))
}

/// Sleeps until a wake-up has reached one of the places. As in the kernel, a wake-up may reach a place while the thread
/// still takes others, or after another place was reached and before the thread runs.
fn wait_for<'a>(
    words: impl Iterator<Item = (&'a AtomicU32, u32)>,
    deadline: Option<Instant>,
    shared: bool,
) -> Outcome {
    let ticket = QUEUE.with_borrow_mut(|queue| {
        queue.tickets += 1;
        queue.tickets
    });
    let mut places = 0;
    for (word, expected) in words {
        touch();
        // The kernel compares with the newest value, so this is a read-modify-write: a load of loom's may be stale. No
        // schedule point follows it before the thread stands in the queue, as the kernel's bucket lock has it.
        if word.fetch_add(0, Ordering::Relaxed) != expected {
            leave(ticket);
            return Outcome::Woken;
        }
        let over = QUEUE.with_borrow_mut(|queue| {
            if deadline.is_some() && queue.expired {
                return Some(Outcome::TimedOut);
            }
            if shared && queue.lapsed {
                return Some(Outcome::Woken);
            }
            queue.sleepers.push(Sleeper {
                address: address(word),
                ticket,
                timed: deadline.is_some(),
                shared,
                thread: thread::current(),
            });
            None
        });
        if let Some(outcome) = over {
            leave(ticket);
            if outcome == Outcome::Woken {
                // A thread that looks up again and again waits for another thread.
                thread::yield_now();
            }
            return outcome;
        }
        places += 1;
    }
    while QUEUE.with_borrow(|queue| queue.places(ticket)) == places {
        thread::park();
    }
    leave(ticket)
}

/// Gives up all places, and returns whether one of them had timed out.
fn leave(ticket: u64) -> Outcome {
    if QUEUE.with_borrow(|queue| queue.places(ticket)) != 0 {
        touch();
    }
    QUEUE.with_borrow_mut(|queue| {
        queue.sleepers.retain(|sleeper| sleeper.ticket != ticket);
        let before = queue.timed_out.len();
        queue.timed_out.retain(|&timed_out| timed_out != ticket);
        if queue.timed_out.len() < before {
            Outcome::TimedOut
        } else {
            Outcome::Woken
        }
    })
}

pub(crate) fn wake(word: &AtomicU32, count: u32) {
    // The system call is a step of its own: without this, "change the word, then wake" would be one.
    touch();
    QUEUE.with_borrow_mut(|queue| {
        queue.wakes += 1;
        let before = queue.sleepers.len();
        queue.release(
            count as usize,
            |s| s.address == address(word),
            Outcome::Woken,
        );
        queue.woken += (before - queue.sleepers.len()) as u64;
    });
}

pub(crate) fn wake_shared(word: &AtomicU32, count: u32) {
    wake(word, count);
}

fn address(word: &AtomicU32) -> usize {
    std::ptr::from_ref(word).addr()
}
