//! What callers may do, and the results.

use crate::NOTHING;
use crate::common::caller::{call_at, wait_until};
use crate::common::counter::Place;
use crate::common::watchdog;
use crate::set::errno;
use doorbell::event::{Change, Interest, Observation};
use doorbell::poll::{Events, PollError, Poller, Watch};
use doorbell::{Event, Spin};
use rustix::io::Errno;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

fn keys(poller: &Poller, room: usize, timeout: Option<Duration>) -> Vec<usize> {
    let mut events = Events::with_capacity(room);
    poller.wait(&mut events, timeout).unwrap();
    events.iter().map(|ready| ready.key()).collect()
}

/// What a poller held may be freed a moment later, by a thread of another test that is changing observers just now.
pub fn is_held_by_fewer_than(number: usize, event: &Arc<Event>) {
    wait_until("an event to be let go of", || {
        Arc::strong_count(event) < number
    });
}

#[test]
fn threads_may_share_it() {
    fn shared<T: Send + Sync>() {}
    shared::<Poller>();
    shared::<Events>();
    shared::<PollError>();
}

#[test]
fn no_room_for_events() {
    let poller = Poller::new();
    let event = Arc::new(Event::new(1));
    poller.add(&event, 1, Watch::READABLE.edge()).unwrap();
    let mut none = Events::with_capacity(0);
    assert_eq!(poller.wait(&mut none, None), Err(PollError::NoCapacity));
    assert_eq!(errno(PollError::NoCapacity), Errno::INVAL);
    // The notification is kept for a buffer with room.
    assert_eq!(keys(&poller, 1, AT_ONCE), [1]);
}

/// More room than any allocation could have.
#[test]
fn room_without_end() {
    let poller = Poller::new();
    let event = Arc::new(Event::new(1));
    poller.add(&event, usize::MAX, Watch::READABLE).unwrap();
    assert_eq!(keys(&poller, usize::MAX, None), [usize::MAX]);
    let fd = rustix::event::eventfd(1, rustix::event::EventfdFlags::empty()).unwrap();
    event.read();
    poller.add_fd(&fd, 0, Watch::READABLE).unwrap();
    assert_eq!(keys(&poller, usize::MAX, None), [0]);
}

#[test]
fn timeouts_of_every_length() {
    let poller = Arc::new(Poller::new());
    assert_eq!(keys(&poller, 1, AT_ONCE), NOTHING);
    let start = Instant::now();
    let timeout = Duration::from_millis(10);
    assert_eq!(keys(&poller, 1, Some(timeout)), NOTHING);
    assert!(start.elapsed() >= timeout);
    let waiting = call_at(Place::Futex, {
        let poller = Arc::clone(&poller);
        move || keys(&poller, 1, Some(Duration::MAX))
    });
    waiting.wait_asleep();
    poller.notify();
    assert_eq!(waiting.finish(), NOTHING);
}

#[test]
fn what_was_in_the_buffer_goes() {
    let poller = Poller::new();
    let event = Arc::new(Event::new(1));
    poller.add(&event, 1, Watch::READABLE).unwrap();
    let mut events = Events::with_capacity(2);
    assert_eq!(poller.wait(&mut events, None), Ok(1));
    event.read();
    assert_eq!(poller.wait(&mut events, AT_ONCE), Ok(0));
    assert!(events.is_empty());
}

#[test]
fn debug_shows_what_is_there() {
    let poller = Poller::with_spin(Spin::Never);
    let shows = |text: &str| format!("{poller:?}").contains(text);
    assert!(shows("registered: 0, queued: 0, incoming: false"));
    assert!(shows("notified: false, waiting: 0, spin: Never"));
    poller.notify();
    assert!(shows("notified: true"));
    assert_eq!(keys(&poller, 1, None), NOTHING);
    assert!(shows("notified: false"));
    let event = Arc::new(Event::new(1));
    poller.add(&event, 5, Watch::READABLE).unwrap();
    assert!(shows("registered: 1, queued: 0, incoming: true"));
    let mut events = Events::with_capacity(1);
    poller.wait(&mut events, None).unwrap();
    assert!(shows("registered: 1, queued: 1, incoming: false"));
    assert_eq!(
        format!("{events:?}"),
        "[Report { key: 5, readable: true, writable: false, error: false, hang_up: false }]"
    );
}

#[test]
fn errors_say_what_is_wrong() {
    let says = |error: PollError, text: &str| assert!(error.to_string().contains(text), "{error}");
    says(PollError::KeyExists, "registered");
    says(PollError::Bound, "watched");
    says(PollError::Os(Errno::NOMEM.raw_os_error()), "memory");
}

#[test]
fn notifications() {
    let poller = Poller::new();
    poller.notify();
    poller.notify();
    assert_eq!(keys(&poller, 1, None), NOTHING);
    // The notifications counted as one.
    let start = Instant::now();
    let timeout = Duration::from_millis(10);
    assert_eq!(keys(&poller, 1, Some(timeout)), NOTHING);
    assert!(start.elapsed() >= timeout);
    // A notification does not hide a ready event.
    let event = Arc::new(Event::new(1));
    poller.add(&event, 1, Watch::READABLE).unwrap();
    poller.notify();
    assert_eq!(keys(&poller, 1, None), [1]);
}

#[test]
fn dropped_in_any_order() {
    let event = Arc::new(Event::new(0));
    for key in 0..3 {
        let poller = Poller::new();
        poller.add(&event, key, Watch::BOTH).unwrap();
        event.signal();
        drop(poller);
        event.signal();
    }
    is_held_by_fewer_than(2, &event);

    let poller = Poller::new();
    poller.add(&event, 1, Watch::READABLE).unwrap();
    drop(event);
    // The poller keeps the event.
    assert_eq!(keys(&poller, 1, AT_ONCE), [1]);
    poller.delete(1).unwrap();
    assert_eq!(keys(&poller, 1, AT_ONCE), NOTHING);
}

/// Nothing accumulates in a poller in which no thread waits.
#[test]
fn added_and_deleted_without_a_wait() {
    let poller = Poller::new();
    let event = Arc::new(Event::new(1));
    for _ in 0..10_000 {
        poller.add(&event, 1, Watch::READABLE).unwrap();
        poller.delete(1).unwrap();
        is_held_by_fewer_than(100, &event);
    }
    assert_eq!(keys(&poller, 1, AT_ONCE), NOTHING);
    is_held_by_fewer_than(2, &event);
}

/// One event in two pollers, and twice in each.
#[test]
fn in_several_pollers() {
    let event = Arc::new(Event::new(0));
    let pollers = [Poller::new(), Poller::new()];
    for poller in &pollers {
        poller.add(&event, 1, Watch::READABLE.edge()).unwrap();
        poller.add(&event, 2, Watch::READABLE).unwrap();
    }
    for _ in 0..3 {
        event.signal();
        for poller in &pollers {
            let mut keys = keys(poller, 4, AT_ONCE);
            keys.sort();
            assert_eq!(keys, [1, 2]);
        }
    }
    event.read();
    pollers[0].delete(1).unwrap();
    event.signal();
    assert_eq!(keys(&pollers[0], 4, AT_ONCE), [2]);
    assert_eq!(keys(&pollers[1], 4, AT_ONCE).len(), 2);
}

/// Observers of the events that a poller watches may change the poller.
#[test]
fn changed_in_an_observers_call() {
    watchdog::limit("changed_in_an_observers_call", || {
        let poller = Arc::new(Poller::new());
        let event = Arc::new(Event::new(0));
        let _observation = {
            let (poller, watched) = (Arc::clone(&poller), Arc::downgrade(&event));
            Observation::new(
                Arc::clone(&event),
                Interest::Signals,
                Arc::new(move |_: Change| {
                    let event = watched.upgrade().unwrap();
                    // The other thread may have deleted the key just now.
                    let _ = poller.delete(1);
                    let _ = poller.add(&event, 1, Watch::READABLE.edge());
                    let _ = poller.modify(1, Watch::READABLE);
                    poller.notify();
                }),
            )
        };
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..1_000).for_each(|_| event.signal()));
            }
            let mut seen = 0;
            while seen < 2_000 {
                keys(&poller, 1, Some(Duration::from_micros(100)));
                seen += event.try_read().unwrap_or(0);
            }
        });
        event.signal();
        assert_eq!(keys(&poller, 1, AT_ONCE), [1]);
    });
}

/// An observer may wait for the answer of a thread that it has woken in its call.
#[test]
fn a_wait_in_an_observers_call() {
    watchdog::limit("a_wait_in_an_observers_call", || {
        for spin in [Spin::Never, Spin::DEFAULT, Spin::Always] {
            let [questions, answers] = [(); 2].map(|()| Arc::new(Poller::with_spin(spin)));
            let [event, question, answer] = [(); 3].map(|()| Arc::new(Event::new(0)));
            questions.add(&question, 1, Watch::READABLE).unwrap();
            answers.add(&answer, 2, Watch::READABLE).unwrap();
            let other = thread::spawn({
                let (questions, answer) = (Arc::clone(&questions), Arc::clone(&answer));
                move || {
                    assert_eq!(keys(&questions, 4, None), [1]);
                    answer.signal();
                }
            });
            if spin != Spin::Always {
                wait_until("the other to sleep", || questions.stats().sleeps == 1);
            }
            let _observation = Observation::new(
                Arc::clone(&event),
                Interest::Signals,
                Arc::new(move |_: Change| {
                    question.signal();
                    assert_eq!(keys(&answers, 4, None), [2]);
                }),
            );
            event.signal();
            other.join().unwrap();
        }
    });
}

/// A poller may end inside the call of an observer, of one of its own events too.
#[test]
fn dropped_in_an_observers_call() {
    watchdog::limit("dropped_in_an_observers_call", || {
        let event = Arc::new(Event::new(0));
        let poller = Poller::new();
        poller.add(&event, 1, Watch::READABLE).unwrap();
        let poller = Mutex::new(Some(poller));
        let observation = Observation::new(
            Arc::clone(&event),
            Interest::Signals,
            Arc::new(move |_: Change| drop(poller.lock().unwrap().take())),
        );
        event.signal();
        event.signal();
        drop(observation);
        assert_eq!(event.read(), 2);
        is_held_by_fewer_than(2, &event);
    });
}

/// A wait finds the ready events only, however many are registered.
#[test]
fn many_registered() {
    const MANY: usize = 10_000;
    let poller = Poller::new();
    let events: Vec<_> = (0..MANY).map(|_| Arc::new(Event::new(0))).collect();
    for (key, event) in events.iter().enumerate() {
        poller.add(event, key, Watch::READABLE.edge()).unwrap();
    }
    assert_eq!(keys(&poller, MANY, AT_ONCE), NOTHING);
    events[1_234].signal();
    assert_eq!(keys(&poller, MANY, AT_ONCE), [1_234]);
    events.iter().rev().for_each(|event| event.signal());
    let mut found = Vec::new();
    while found.len() < MANY {
        found.extend(keys(&poller, 64, AT_ONCE));
    }
    assert!(found.into_iter().eq((0..MANY).rev()));
}

/// The window closes when its looks have saved no sleep.
#[test]
fn a_window_in_vain() {
    watchdog::limit("a_window_in_vain", || {
        let poller = Arc::new(Poller::with_spin(Spin::DEFAULT));
        for _ in 0..30 {
            let waiter = call_at(Place::Futex, {
                let poller = Arc::clone(&poller);
                move || keys(&poller, 1, None)
            });
            waiter.wait_asleep();
            poller.notify();
            assert_eq!(waiter.finish(), NOTHING);
        }
        let stats = poller.stats();
        assert_eq!((stats.sleeps, stats.hits), (30, 0));
        assert!(stats.windows < 20, "{stats:?}");
    });
}
