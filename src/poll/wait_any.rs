//! Waiting until one of several events can be read.
//!
//! The kernel's counterpart is `poll(2)`, which puts the caller into the wait queue of each file. Likewise, the caller
//! enters the `readers` of each event, as a blocking reader does, and sleeps on all of them at once.
//!
//! ```text
//!     up to 128 events      enter each `Waiters`; announce at each; look; sleep in futex_waitv(2); leave each
//!     more, or no waitv     join the line of wakers of each, to be unparked; look; sleep; leave each
//! ```
//!
//! A signal wakes one waiter. This waiter takes nothing, and does not know which events it was woken by, so a reader
//! that sleeps at the same event might lose its wake-up. The rule for waiters that leave prevents that
//! (`src/sync/waiters.rs`, step 7): at *every* event that this thread leaves, it looks whether there is something to
//! read, and if so wakes the next waiter, which is a reader or another `wait_any`, for which the same rule holds. If
//! the thread goes on sleeping instead, it announces all waiters at every event again, and then looks.
//!
//! Each event knows the thread as a visitor, so that a batch wakes it once, see `src/event/visitor.rs`.

use crate::event::{Change, Event, Owner, WaitTicket};
use crate::sync::limit::Limit;
use crate::sync::parker::Parker;
use crate::sync::waiters::{MOST_WORDS, Outcome, Refused, Waiters, most_words, sleep_at_all};
use std::cell::Cell;
use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

/// Waits until at least one of the events can be read, or for `timeout`, and says which. It reads none of them.
///
/// This is `poll(2)` for `POLLIN`. It returns at once if there is something to read. Otherwise it spins as a blocking
/// call of the *first* event does (its [`Spin`](crate::Spin) policy), and then sleeps. It returns `None` after a
/// timeout. If other threads read too, an event that was found may be empty when the caller reads it, so use
/// [`try_read`](Event::try_read).
///
/// Other threads may block on the same events: each signal wakes a thread that can go on, and a `wait_any` that is
/// woken wakes the next. (In the kernel, a waiter with `EPOLLEXCLUSIVE` swallows the wake-up.) An event that was
/// signalled and read by other threads in the meantime need not end the wait.
///
/// Without a timeout, or with one too long for the clock, such as `Duration::MAX`, it waits without a limit. With a
/// timeout of zero it looks once and never sleeps. Without events it sleeps for the timeout and returns `None`; if
/// there is no timeout either, it returns `None` at once. An event that is in the list twice is found twice.
///
/// # Stopping many threads
///
/// An event that is signalled once and never read stays readable. So an event `stop` in the lists of several threads
/// stops all of them: each `wait_any`, those to come included, returns with its index.
///
/// ```
/// use doorbell::Event;
/// use doorbell::poll::wait_any;
/// use std::thread;
///
/// static STOP: Event = Event::new(0);
/// static QUEUES: [Event; 3] = [const { Event::new(0) }; 3];
///
/// let threads = QUEUES.each_ref().map(|queue| {
///     thread::spawn(move || {
///         let mut kicks = 0;
///         loop {
///             for index in wait_any(&[&STOP, queue], None).expect("no timeout") {
///                 match index {
///                     0 => return kicks,
///                     _ => kicks += queue.try_read().unwrap_or(0),
///                 }
///             }
///         }
///     })
/// });
/// STOP.signal();
/// for thread in threads {
///     assert_eq!(thread.join().unwrap(), 0);
/// }
/// ```
///
/// # The result borrows the list
///
/// A list that is written into the call is gone at the end of the statement. So give it a name if the result is to have
/// one:
///
/// ```
/// # use doorbell::Event;
/// # use doorbell::poll::wait_any;
/// # let (stop, kick) = (Event::new(0), Event::new(1));
/// let events = [&stop, &kick];
/// let mut ready = wait_any(&events, None).expect("no timeout");
/// assert_eq!(ready.next(), Some(1));
///
/// // Or use the result in the statement.
/// let first = wait_any(&[&stop, &kick], None).and_then(|mut ready| ready.next());
/// assert_eq!(first, Some(1));
/// ```
///
/// # Memory
///
/// It allocates nothing for up to 128 events, on a Linux that has `futex_waitv(2)` (5.16). Otherwise it allocates in
/// proportion to the number of events when it has to sleep.
///
/// # For how many events
///
/// Nothing is kept from one call to the next. Each call looks at all events, and a call that has to sleep enters and
/// leaves each of them, so the cost grows with their number. Measured on a virtual machine with two CPUs, as a fraction
/// of the time that an epoll over as many eventfds takes:
///
/// | events | the last one is ready | round trip of two threads that sleep |
/// |---|---|---|
/// | 1 | 0.01 | 1.0 |
/// | 8 | 0.04 | 1.0 |
/// | 64 | 0.3 | 0.6 |
/// | 128 | 0.5 | 1.1 to 1.5 |
/// | 1,000 | 4 | 0.9 to 1.1 |
///
/// So it suits up to about a hundred events, and lists that change from call to call. For more events, or if the list
/// stays the same, register the events once with a [`Poller`](crate::poll::Poller), where an event that is not ready
/// costs nothing.
///
/// ```
/// use doorbell::Event;
/// use doorbell::poll::wait_any;
/// use std::time::Duration;
///
/// let queues = [Event::new(0), Event::new(0), Event::new(0)];
/// queues[1].signal();
/// queues[2].signal_n(5);
///
/// let ready = wait_any(&queues, None).expect("no timeout");
/// assert_eq!(ready.collect::<Vec<_>>(), [1, 2]);
///
/// queues[1].read();
/// queues[2].read();
/// assert!(wait_any(&queues, Some(Duration::from_millis(1))).is_none());
/// ```
#[doc(alias = "select")]
#[doc(alias = "poll")]
#[must_use = "nothing is read from the events: the result says which of them are ready"]
pub fn wait_any<E: AsRef<Event>>(events: &[E], timeout: Option<Duration>) -> Option<Ready<'_, E>> {
    find(events, Limit::of(timeout))
}

/// As [`wait_any`], up to a point in time. With a deadline in the past it looks once.
#[must_use = "nothing is read from the events: the result says which of them are ready"]
pub fn wait_any_deadline<E: AsRef<Event>>(events: &[E], deadline: Instant) -> Option<Ready<'_, E>> {
    find(events, Limit::Until(deadline))
}

/// Which events can be read: their indices in the list that was waited for, in ascending order. Made by [`wait_any`].
///
/// The first is the one that was found. The iterator looks at the events after it when it comes to them, so events that
/// become ready in the meantime may be among them, and a noisy event at the front of the list hides no other.
pub struct Ready<'a, E> {
    events: &'a [E],
    /// Found and not yet returned.
    found: Option<usize>,
    /// The index of the next event to look at.
    next: usize,
}

impl<E: AsRef<Event>> Iterator for Ready<'_, E> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let index = self
            .found
            .take()
            .or_else(|| first_ready(self.events, self.next));
        self.next = index.map_or(self.events.len(), |index| index + 1);
        index
    }
}

impl<E: AsRef<Event>> FusedIterator for Ready<'_, E> {}

impl<E> fmt::Debug for Ready<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready")
            .field("found", &self.found)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

fn find<E: AsRef<Event>>(events: &[E], limit: Limit) -> Option<Ready<'_, E>> {
    let found = first_ready(events, 0).or_else(|| wait(events, limit))?;
    Some(Ready {
        events,
        found: Some(found),
        next: 0,
    })
}

/// The first event from `start` on that can be read, with `DEKKER` loads.
fn first_ready<E: AsRef<Event>>(events: &[E], start: usize) -> Option<usize> {
    let ready = |event: &E| event.as_ref().units() != 0;
    Some(start + events[start..].iter().position(ready)?)
}

/// As [`first_ready`], after the announcement at all events: `None` too if no event has signallers.
fn first_ready_after_barrier<E: AsRef<Event>>(events: &[E]) -> Option<usize> {
    // The barrier for one event with signallers counts for all events.
    let heard = |event: &E| event.as_ref().hear_signallers();
    events.iter().any(heard).then(|| first_ready(events, 0))?
}

#[cold]
#[inline(never)]
fn wait<E: AsRef<Event>>(events: &[E], limit: Limit) -> Option<usize> {
    let deadline = limit.deadline().ok()?;
    let Some(first) = events.first() else {
        thread::sleep(deadline?.saturating_duration_since(Instant::now()));
        return None;
    };
    // One event in each look, in turns: a look must be short, however many events there are.
    let last_look = Cell::new(0);
    let ready = || {
        let index = last_look.get() + 1;
        let index = if index < events.len() { index } else { 0 };
        last_look.set(index);
        events[index].as_ref().count() != 0
    };
    first.as_ref().spinner().wait(
        deadline,
        ready,
        || Some(last_look.get()),
        || sleep(events, deadline),
    )
}

fn sleep<E: AsRef<Event>>(events: &[E], deadline: Option<Instant>) -> Option<usize> {
    if events.len() <= most_words() {
        if let Ok(found) = sleep_at_readers(events, deadline) {
            return found;
        }
    }
    sleep_in_line(events, deadline)
}

/// Sleeps as a blocking reader does, at all events at once.
fn sleep_at_readers<E: AsRef<Event>>(
    events: &[E],
    deadline: Option<Instant>,
) -> Result<Option<usize>, Refused> {
    let mut keys = [0; MOST_WORDS];
    for (event, key) in events.iter().zip(&mut keys) {
        *key = readers(event).enter();
    }
    events.iter().for_each(|event| event.as_ref().visit());
    let result = loop {
        events.iter().for_each(|event| readers(event).announce());
        if let Some(found) = first_ready(events, 0).or_else(|| first_ready_after_barrier(events)) {
            break Ok(Some(found));
        }
        let outcome = sleep_at_all(events.iter().map(readers).zip(keys), deadline);
        // Before the next announcement, as in `Waiters::wait`.
        for (event, key) in events.iter().zip(&mut keys) {
            *key = readers(event).generation();
        }
        let found = first_ready(events, 0);
        match outcome {
            Ok(Outcome::Woken) if found.is_none() => {}
            outcome => break outcome.map(|_| found),
        }
    };
    for event in events {
        event.as_ref().end_visit();
    }
    result
}

fn readers<E: AsRef<Event>>(event: &E) -> &Waiters {
    event.as_ref().waiters(Change::Signalled)
}

/// Sleeps as a task does, in the list of wakers of each event.
fn sleep_in_line<E: AsRef<Event>>(events: &[E], deadline: Option<Instant>) -> Option<usize> {
    let parker = Arc::new(Parker::new());
    let waker = Waker::from(Arc::clone(&parker));
    // They leave when they are dropped.
    let places = events
        .iter()
        .map(|event| WaitTicket::new(event.as_ref(), Change::Signalled));
    let mut places = Box::into_pin(places.collect::<Box<[_]>>());
    loop {
        for index in 0..events.len() {
            // SAFETY: what is in a pinned slice is pinned.
            let place = unsafe { places.as_mut().map_unchecked_mut(|all| &mut all[index]) };
            place.join(&waker);
        }
        if let Some(found) = first_ready(events, 0).or_else(|| first_ready_after_barrier(events)) {
            return Some(found);
        }
        let outcome = parker.park(deadline);
        let found = first_ready(events, 0);
        if found.is_some() || outcome == Outcome::TimedOut {
            return found;
        }
    }
}
