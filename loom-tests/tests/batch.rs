//! Batches against threads that wait for their events.

use doorbell::event::{Batch, Change, Interest, Observation};
use doorbell::poll::{Events, Poller, Watch, wait_any};
use doorbell::{Event, Mode, Spin};
use loom::thread;
use loom_tests::{check, futex, spawn};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn event(initial: u64, mode: Mode) -> Arc<Event> {
    Arc::new(Event::with_mode(initial, mode).with_spin(Spin::Never))
}

/// Both sleepers are woken, though there is another event's change between each change and its wake-up.
#[test]
fn commit_and_sleepers() {
    check("commit_and_sleepers", Some(3), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let readers = events
            .each_ref()
            .map(|event| spawn(event, |event| event.read()));
        let mut batch = Batch::new();
        let [a, b] = events.map(|event| batch.add(event));
        batch.signal(a);
        batch.signal(b);
        batch.signal(a);
        batch.commit().unwrap();
        assert_eq!(readers.map(|reader| reader.join().unwrap()), [2, 1]);
    });
}

/// A write of 0 in a batch releases no reader: the next signal does.
#[test]
fn nothing_committed_and_a_reader() {
    check("nothing_committed_and_a_reader", None, || {
        let event = event(0, Mode::Counter);
        let reader = spawn(&event, |event| event.read());
        let mut batch = Batch::new();
        let index = batch.add(Arc::clone(&event));
        batch.write(index, 0).unwrap();
        batch.commit().unwrap();
        event.signal();
        assert_eq!(reader.join().unwrap(), 1);
    });
}

/// A thread that waits for an event that leaves a batch gets what was pending, without a commit.
#[test]
fn removal_and_a_reader() {
    check("removal_and_a_reader", None, || {
        let event = event(0, Mode::Counter);
        let reader = spawn(&event, |event| event.read());
        let mut batch = Batch::new();
        let index = batch.add(Arc::clone(&event));
        batch.signal(index);
        drop(batch.remove(index).unwrap());
        assert_eq!(reader.join().unwrap(), 1);
        batch.commit().unwrap();
        assert_eq!(event.count(), 0);
    });
}

/// k signals to one event are one change and at most one wake-up.
#[test]
fn merged_signals_are_one() {
    check("merged_signals_are_one", None, || {
        let event = event(0, Mode::Counter);
        let reader = spawn(&event, |event| event.read());
        let mut batch = Batch::new();
        let index = batch.add(event);
        (0..3).for_each(|_| batch.signal(index));
        batch.commit().unwrap();
        assert_eq!(reader.join().unwrap(), 3);
        assert!(futex::wakes() <= 1);
    });
}

/// As many sleepers go on as there are units, including units of writes.
#[test]
fn units_for_two_readers() {
    check("units_for_two_readers", Some(2), || {
        let event = event(0, Mode::Semaphore);
        let readers = [(); 2].map(|()| spawn(&event, |event| event.read()));
        let mut batch = Batch::new();
        let index = batch.add(event);
        batch.write(index, 1).unwrap();
        batch.write(index, 1).unwrap();
        batch.commit().unwrap();
        assert_eq!(readers.map(|reader| reader.join().unwrap()), [1, 1]);
    });
}

/// Two batches over the same events, in opposite order.
#[test]
fn two_batches() {
    check("two_batches", Some(2), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let readers = events.each_ref().map(|event| {
            spawn(event, |event| {
                let mut sum = 0;
                while sum < 3 {
                    sum += event.read();
                }
                sum
            })
        });
        let mut other = Batch::new();
        let [b, a] = [1, 0].map(|index| other.add(Arc::clone(&events[index])));
        let committer = thread::spawn(move || {
            other.signal_n(b, 2);
            other.signal_n(a, 2);
            other.commit().unwrap();
        });
        let mut batch = Batch::new();
        for event in events {
            let index = batch.add(event);
            batch.signal(index);
        }
        batch.commit().unwrap();
        committer.join().unwrap();
        assert_eq!(readers.map(|reader| reader.join().unwrap()), [3, 3]);
    });
}

/// An observer that was armed, and saw nothing afterwards, is called after all counts have changed.
#[test]
fn commit_and_observer() {
    check("commit_and_observer", Some(3), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let calls = Arc::new(AtomicU32::new(0));
        let observer = {
            let (calls, other) = (Arc::clone(&calls), Arc::clone(&events[1]));
            Arc::new(move |_: Change| {
                assert_eq!(other.count(), 1);
                calls.fetch_add(1, Ordering::Relaxed);
            })
        };
        let [first, second] = events;
        let observation = Observation::on_demand(first, Interest::Signals, observer);
        let mut batch = Batch::new();
        let indices = [observation.event().clone(), second.into()].map(|event| batch.add(event));
        let committer = thread::spawn(move || {
            indices.into_iter().for_each(|index| batch.signal(index));
            batch.commit().unwrap();
        });
        observation.arm(Interest::Signals);
        let seen = observation.event().try_read().is_some();
        committer.join().unwrap();
        assert!(
            seen || calls.load(Ordering::Relaxed) == 1,
            "no observer is called"
        );
    });
}

/// A poller that watches the events for edges, with their indices as keys.
fn poller(events: &[Arc<Event>]) -> Arc<Poller> {
    let poller = Arc::new(Poller::with_spin(Spin::Never));
    for (key, event) in events.iter().enumerate() {
        poller.add(event, key, Watch::READABLE.edge()).unwrap();
    }
    poller
}

/// Waits on a thread of the model until this many edges were reported.
fn wait_for(poller: &Arc<Poller>, edges: usize) -> thread::JoinHandle<()> {
    let poller = Arc::clone(poller);
    thread::spawn(move || {
        let mut found = Events::with_capacity(edges);
        let mut seen = 0;
        while seen < edges {
            seen += poller.wait(&mut found, None).unwrap();
        }
    })
}

fn signal_each(events: impl IntoIterator<Item = Arc<Event>>) -> Batch {
    let mut batch = Batch::new();
    for event in events {
        let index = batch.add(event);
        batch.signal(index);
    }
    batch
}

/// A thread that sleeps in a poller is woken when both events are in the queue, at whatever point it falls asleep.
#[test]
fn commit_and_poller() {
    check("commit_and_poller", Some(3), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let poller = poller(&events);
        let waiter = wait_for(&poller, 2);
        signal_each(events).commit().unwrap();
        waiter.join().unwrap();
        assert!(futex::wakes() <= 1);
    });
}

/// A thread that has taken both events and sleeps again is not woken.
#[test]
fn commit_and_poller_that_sleeps_on() {
    check("commit_and_poller_that_sleeps_on", Some(3), || {
        let [first, second, last] = [(); 3].map(|()| event(0, Mode::Counter));
        let poller = poller(&[&first, &second, &last].map(Arc::clone));
        let waiter = wait_for(&poller, 3);
        signal_each([first, second]).commit().unwrap();
        assert!(futex::wakes() <= 1);
        last.signal();
        waiter.join().unwrap();
        assert!(futex::wakes() <= 2);
    });
}

/// A panic between two of a poller's events takes neither event away from the poller.
#[test]
fn commit_with_a_panic_and_poller() {
    check("commit_with_a_panic_and_poller", Some(2), || {
        let [first, second, broken] = [(); 3].map(|()| event(0, Mode::Counter));
        let poller = poller(&[Arc::clone(&first), Arc::clone(&second)]);
        let observation = Observation::new(
            Arc::clone(&broken),
            Interest::Signals,
            // This prints no message to the terminal.
            Arc::new(|_: Change| panic::resume_unwind(Box::new(()))),
        );
        let waiter = wait_for(&poller, 2);
        let mut batch = signal_each([first, broken, second]);
        panic::catch_unwind(AssertUnwindSafe(|| batch.commit())).unwrap_err();
        waiter.join().unwrap();
        assert!(futex::wakes() <= 1);
        drop(observation);
    });
}

/// Signals that an observer makes in one call wake a poller once, too.
#[test]
fn nested_signals_and_poller() {
    check("nested_signals_and_poller", Some(2), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let poller = poller(&events);
        let first = event(0, Mode::Counter);
        let observation = Observation::new(
            Arc::clone(&first),
            Interest::Signals,
            Arc::new(move |_: Change| events.iter().for_each(|event| event.signal())),
        );
        let waiter = wait_for(&poller, 2);
        first.signal();
        waiter.join().unwrap();
        assert!(futex::wakes() <= 1);
        drop(observation);
    });
}

/// An observer that waits for an answer from a poller that it has rung itself gets the answer.
#[test]
fn an_observer_waits_for_the_poller() {
    check("an_observer_waits_for_the_poller", Some(2), || {
        let [first, second, answer] = [(); 3].map(|()| event(0, Mode::Counter));
        let poller = poller(&[Arc::clone(&first)]);
        let waiter = {
            let (poller, answer) = (Arc::clone(&poller), Arc::clone(&answer));
            thread::spawn(move || {
                poller.wait(&mut Events::with_capacity(1), None).unwrap();
                answer.signal();
            })
        };
        let observation = Observation::new(
            Arc::clone(&second),
            Interest::Signals,
            Arc::new(move |_: Change| {
                // The wake-up is held back until this call returns or waits.
                first.signal();
                answer.read();
            }),
        );
        second.signal();
        waiter.join().unwrap();
        drop(observation);
    });
}

/// An observer that waits, outside of calls of this crate, for a thread that sleeps at another event of the commit, in
/// a read or a poller.
#[test]
fn an_observer_waits_for_all() {
    for in_poller in [false, true] {
        check("an_observer_waits_for_all", Some(2), move || {
            let [first, second] = [(); 2].map(|()| event(0, Mode::Counter));
            let done = Arc::new(loom::sync::Notify::new());
            let observation = Observation::new(
                Arc::clone(&first),
                Interest::Signals,
                Arc::new({
                    let done = Arc::clone(&done);
                    move |_: Change| done.wait()
                }),
            );
            let poller = poller(&[Arc::clone(&second)]);
            let waiter = {
                let (poller, second) = (Arc::clone(&poller), Arc::clone(&second));
                thread::spawn(move || {
                    if in_poller {
                        poller.wait(&mut Events::with_capacity(1), None).unwrap();
                    } else {
                        second.read();
                    }
                    done.notify();
                })
            };
            signal_each([first, second]).commit().unwrap();
            waiter.join().unwrap();
            drop(observation);
        });
    }
}

/// A thread that sleeps at both events is woken once.
#[test]
fn commit_and_visitor() {
    check("commit_and_visitor", Some(4), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let visitor = visit(&events);
        signal_each(events).commit().unwrap();
        visitor.join().unwrap();
        assert!(futex::woken() <= 1);
    });
}

/// A thread that stands in line at both events is woken once, too.
#[test]
fn commit_and_visitor_in_line() {
    check("commit_and_visitor_in_line", Some(3), || {
        futex::refuse_wait_any();
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let visitor = visit(&events);
        signal_each(events.clone()).commit().unwrap();
        visitor.join().unwrap();
        assert!(futex::wakes() <= 1);
        drop(events);
    });
}

/// Waits on a thread of the model for one of the events.
fn visit(events: &[Arc<Event>; 2]) -> thread::JoinHandle<()> {
    let events = events.clone();
    thread::spawn(move || _ = wait_any(&events, None).expect("no timeout"))
}

/// A reader sleeps beside the visitor at the event at which the visitor is woken for both events.
#[test]
fn commit_and_visitor_beside_a_reader() {
    check("commit_and_visitor_beside_a_reader", Some(2), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let visitor = visit(&events);
        let reader = spawn(&events[1], |event| event.read());
        signal_each(events).commit().unwrap();
        visitor.join().unwrap();
        assert_eq!(reader.join().unwrap(), 1);
    });
}

/// The signal that woke the visitor has been taken; the visitor sleeps on, and the next signal wakes it.
#[test]
fn commit_and_visitor_that_sleeps_on() {
    check("commit_and_visitor_that_sleeps_on", Some(4), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let visitor = visit(&events);
        let [first, second] = events.clone();
        let thief = Observation::new(
            Arc::clone(&first),
            Interest::Signals,
            Arc::new(move |_: Change| events.iter().for_each(|event| _ = event.try_read())),
        );
        signal_each([second, Arc::clone(&first)]).commit().unwrap();
        drop(thief);
        first.signal();
        visitor.join().unwrap();
        assert!(futex::woken() <= 2);
    });
}

/// A visitor comes back to one of the events, and a reader comes to the other.
#[test]
fn commit_and_visitor_that_comes_back() {
    for back in [0, 1] {
        check("commit_and_visitor_that_comes_back", Some(2), move || {
            let events = [(); 2].map(|()| event(0, Mode::Semaphore));
            let visitor = {
                let events = events.clone();
                thread::spawn(move || {
                    wait_any(&events, None).expect("no timeout");
                    events.iter().for_each(|event| _ = event.try_read());
                    wait_any(&[&*events[back]], None).expect("no timeout");
                })
            };
            let reader = spawn(&events[1 - back], |event| event.read());
            let [first, second] = events.clone();
            signal_each([second, first]).commit().unwrap();
            events.iter().for_each(|event| event.signal());
            visitor.join().unwrap();
            reader.join().unwrap();
        });
    }
}

/// A visitor that was claimed at the first event before it slept comes back to the last event alone, and is claimed
/// there. It must be woken there: otherwise the next signal would find no announcement.
#[test]
fn commit_and_visitor_that_comes_back_to_the_last() {
    check(
        "commit_and_visitor_that_comes_back_to_the_last",
        Some(2),
        || {
            let events = [(); 2].map(|()| event(0, Mode::Semaphore));
            let committer = {
                let [first, last] = events.clone();
                thread::spawn(move || {
                    signal_each([first, Arc::clone(&last)]).commit().unwrap();
                    last.signal();
                })
            };
            _ = wait_any(&events, None).expect("no timeout");
            events.iter().for_each(|event| _ = event.try_read());
            _ = wait_any(&events[1..], None).expect("no timeout");
            committer.join().unwrap();
        },
    );
}

/// Two visitors are told apart, whichever other events they sleep at.
#[test]
fn commit_and_two_visitors() {
    check("commit_and_two_visitors", Some(2), || {
        let events = [(); 2].map(|()| event(0, Mode::Counter));
        let visitors = events.each_ref().map(|event| {
            spawn(event, |event| {
                _ = wait_any(&[event], None).expect("no timeout")
            })
        });
        signal_each(events).commit().unwrap();
        for visitor in visitors {
            visitor.join().unwrap();
        }
    });
}
