//! The poller: what is ready is found by a thread that is awake or wakes one that sleeps.
//!
//! `../breakages/poll.toml` lists the ways in which the code was broken on purpose, and which of these models noticed.

use doorbell::event::{Change, Interest, Observation};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Spin};
use loom::thread;
use loom_tests::{SOME_TIME, check, futex};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One event in one poller, under key 1.
fn one(watch: Watch) -> (Arc<Poller>, Arc<Event>) {
    let poller = Arc::new(Poller::with_spin(Spin::Never));
    let event = Arc::new(Event::new(0).with_spin(Spin::Never));
    poller.add(&event, 1, watch).unwrap();
    (poller, event)
}

/// Runs `f`, with its own handles, on a thread of the model.
fn spawn<A: 'static, B: 'static, T: 'static>(
    (a, b): (&Arc<A>, &Arc<B>),
    f: impl FnOnce(&A, &B) -> T + 'static,
) -> thread::JoinHandle<T> {
    let (a, b) = (Arc::clone(a), Arc::clone(b));
    thread::spawn(move || f(&a, &b))
}

fn wait(poller: &Poller, room: usize, timeout: Option<Duration>) -> Vec<usize> {
    let mut events = Events::with_capacity(room);
    poller.wait(&mut events, timeout).unwrap();
    events.iter().map(|ready| ready.key()).collect()
}

/// The type is given because a crate in this build makes it ambiguous what a bare `[]` is compared as.
const NOTHING: [usize; 0] = [];

fn now(poller: &Poller) -> Vec<usize> {
    wait(poller, 4, Some(Duration::ZERO))
}

/// A signal races a thread that goes to sleep in the poller.
#[test]
fn signal_and_waiter() {
    for watch in [Watch::READABLE, Watch::READABLE.edge()] {
        check("signal_and_waiter", None, move || {
            let (poller, event) = one(watch);
            let signaller = spawn((&poller, &event), |_, event| event.signal());
            assert_eq!(wait(&poller, 1, None), [1]);
            assert_eq!(event.try_read(), Some(1));
            signaller.join().unwrap();
        });
    }
}

/// A thread that takes all events and comes back misses no signal of a level- or edge-triggered event.
#[test]
fn a_waiter_comes_back() {
    for watch in [Watch::READABLE, Watch::READABLE.edge()] {
        check("a_waiter_comes_back", Some(4), move || {
            let (poller, event) = one(watch);
            let signaller = spawn((&poller, &event), |_, event| {
                event.signal();
                event.signal();
            });
            let mut sum = 0;
            while sum < 2 {
                assert_eq!(wait(&poller, 1, None), [1]);
                sum += event.try_read().unwrap_or(0);
            }
            signaller.join().unwrap();
            assert_eq!(now(&poller), NOTHING);
        });
    }
}

/// An edge-triggered event is reported after each signal that comes after a report, even if no thread reads.
#[test]
fn an_edge_after_each_report() {
    check("an_edge_after_each_report", None, || {
        let (poller, event) = one(Watch::READABLE.edge());
        event.signal();
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        assert_eq!(wait(&poller, 1, None), [1]);
        let seen = event.count();
        signaller.join().unwrap();
        if seen == 1 {
            // The second signal came after the report.
            assert_eq!(now(&poller), [1]);
        }
    });
}

/// Two threads push at the same time, and a third takes the events: what is handed over is complete.
#[test]
fn two_signallers() {
    check("two_signallers", Some(2), || {
        let (poller, event) = one(Watch::READABLE.edge());
        let other = Arc::new(Event::new(0));
        poller.add(&other, 2, Watch::READABLE.edge()).unwrap();
        let signallers =
            [&event, &other].map(|event| spawn((&poller, event), |_, event| event.signal()));
        let mut found = now(&poller);
        while found.len() < 2 {
            found.extend(wait(&poller, 2, None));
        }
        found.sort();
        assert_eq!(found, [1, 2]);
        for signaller in signallers {
            signaller.join().unwrap();
        }
    });
}

/// A level that goes and comes back while a thread finds it gone.
#[test]
fn level_gone_and_back() {
    check("level_gone_and_back", None, || {
        let (poller, event) = one(Watch::READABLE);
        event.signal();
        assert_eq!(now(&poller), [1]);
        event.try_read();
        // The event is still in the queue, and not ready.
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        assert_eq!(wait(&poller, 1, None), [1]);
        signaller.join().unwrap();
    });
}

/// Of two threads, one gets the one-shot event.
#[test]
fn one_shot_and_two_waiters() {
    check("one_shot_and_two_waiters", Some(2), || {
        let (poller, event) = one(Watch::READABLE.one_shot());
        let waiters = [(); 2].map(|()| {
            spawn((&poller, &event), |poller, _| {
                let found = wait(poller, 1, None).len();
                if found == 1 {
                    // The other thread may return.
                    poller.notify();
                }
                found
            })
        });
        event.signal();
        event.signal();
        let found = waiters.map(|waiter| waiter.join().unwrap());
        assert_eq!(found[0] + found[1], 1);
    });
}

/// Two events for two threads that take one each: the thread that is woken wakes the other one for the event that it
/// leaves, or for an event that comes while it leaves.
#[test]
fn two_events_and_two_waiters() {
    check("two_events_and_two_waiters", Some(2), || {
        let (poller, event) = one(Watch::READABLE.edge());
        let other = Arc::new(Event::new(0));
        poller.add(&other, 2, Watch::READABLE.edge()).unwrap();
        let waiter = spawn((&poller, &event), |poller, _| wait(poller, 1, None));
        let signaller = spawn((&other, &event), |other, event| {
            event.signal();
            other.signal();
        });
        let mut found = wait(&poller, 1, None);
        found.extend(waiter.join().unwrap());
        found.sort();
        assert_eq!(found, [1, 2]);
        signaller.join().unwrap();
    });
}

/// A level-triggered event is reported to every thread.
#[test]
fn level_and_two_waiters() {
    check("level_and_two_waiters", Some(2), || {
        let (poller, event) = one(Watch::READABLE);
        let waiter = spawn((&poller, &event), |poller, _| wait(poller, 1, None));
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        assert_eq!(wait(&poller, 1, None), [1]);
        assert_eq!(waiter.join().unwrap(), [1]);
        signaller.join().unwrap();
    });
}

/// A notification ends exactly one wait.
#[test]
fn notify_and_waiter() {
    check("notify_and_waiter", Some(3), || {
        let (poller, event) = one(Watch::READABLE);
        let waiter = spawn((&poller, &event), |poller, _| wait(poller, 1, None));
        poller.notify();
        assert_eq!(waiter.join().unwrap(), NOTHING);
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        assert_eq!(wait(&poller, 1, None), [1]);
        signaller.join().unwrap();
    });
}

/// A notification that comes while the thread that a signal woke leaves is for the other one.
#[test]
fn notify_and_one_that_leaves() {
    check("notify_and_one_that_leaves", Some(2), || {
        let (poller, event) = one(Watch::READABLE.edge());
        let wait = |poller: &Poller| {
            let found = wait(poller, 1, None).len();
            // The thread may have taken the notification, too. Then the thread that is left must have a notification of
            // its own.
            if found == 1 && !format!("{poller:?}").contains("notified: true") {
                poller.notify();
            }
            found
        };
        let waiter = spawn((&poller, &event), move |poller, _| wait(poller));
        let signaller = spawn((&poller, &event), |poller, event| {
            event.signal();
            poller.notify();
        });
        assert_eq!(wait(&poller) + waiter.join().unwrap(), 1);
        signaller.join().unwrap();
    });
}

/// Two threads signal two events: only one of them wakes the thread that sleeps.
#[test]
fn a_wake_is_paid_once() {
    check("a_wake_is_paid_once", Some(2), || {
        let (poller, event) = one(Watch::READABLE);
        let other = Arc::new(Event::new(0));
        poller.add(&other, 2, Watch::READABLE).unwrap();
        let waiter = spawn((&poller, &event), |poller, _| wait(poller, 2, None).len());
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        other.signal();
        signaller.join().unwrap();
        let found = waiter.join().unwrap();
        assert!(futex::wakes() <= 1);
        assert!(found >= 1);
        let before = futex::wakes();
        event.signal();
        assert_eq!(futex::wakes(), before, "a wake-up without a sleeper");
        assert_eq!(now(&poller).len(), 2);
    });
}

/// After a delete nothing is reported. An event that is added later with the same key is reported.
#[test]
fn delete_and_signal() {
    check("delete_and_signal", Some(3), || {
        let (poller, event) = one(Watch::READABLE);
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        poller.delete(1).unwrap();
        assert_eq!(now(&poller), NOTHING);
        let other = Arc::new(Event::new(0));
        poller.add(&other, 1, Watch::READABLE).unwrap();
        signaller.join().unwrap();
        assert_eq!(now(&poller), NOTHING);
        other.signal();
        assert_eq!(now(&poller), [1]);
    });
}

/// One thread takes an item out of the queue; another thread puts it there again, without waiting for the first to arm
/// it.
#[test]
fn wait_and_modify() {
    check("wait_and_modify", None, || {
        let watch = Watch::READABLE.edge();
        let (poller, event) = one(watch);
        event.signal();
        let modifier = spawn((&poller, &event), move |poller, _| {
            poller.modify(1, watch).unwrap();
        });
        let mut found = now(&poller);
        modifier.join().unwrap();
        found.extend(now(&poller));
        assert!(matches!(found[..], [1] | [1, 1]), "{found:?}");
        assert_eq!(now(&poller), NOTHING);
    });
}

/// An event is in the poller twice: a signal for which only one of the two is armed calls both.
#[test]
fn one_event_twice() {
    check("one_event_twice", Some(3), || {
        let (poller, event) = one(Watch::READABLE.edge());
        poller.add(&event, 2, Watch::READABLE.edge()).unwrap();
        event.signal();
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        assert_eq!(now(&poller), [2, 1]);
        signaller.join().unwrap();
        // Each of the two that had been reported when the signal came.
        now(&poller);
        assert_eq!(now(&poller), NOTHING);
    });
}

/// A one-shot that begins anew while it is signalled is reported.
#[test]
fn modify_and_signal() {
    check("modify_and_signal", None, || {
        let watch = Watch::READABLE.one_shot();
        let (poller, event) = one(watch);
        event.signal();
        assert_eq!(now(&poller), [1]);
        event.try_read();
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        poller.modify(1, watch).unwrap();
        signaller.join().unwrap();
        assert_eq!(now(&poller), [1]);
        assert_eq!(now(&poller), NOTHING);
    });
}

/// An event that is added while it is signalled is reported, and only once if it is edge-triggered.
#[test]
fn add_and_signal() {
    check("add_and_signal", None, || {
        let poller = Arc::new(Poller::with_spin(Spin::Never));
        let event = Arc::new(Event::new(0));
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        poller.add(&event, 1, Watch::READABLE.edge()).unwrap();
        signaller.join().unwrap();
        assert_eq!(now(&poller), [1]);
        assert_eq!(now(&poller), NOTHING);
    });
}

/// A thread that times out does not swallow an event that the next wait should report.
#[test]
fn timeout_races_signal() {
    check("timeout_races_signal", Some(3), || {
        let (poller, event) = one(Watch::READABLE.edge());
        let clock = thread::spawn(futex::expire);
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        let found = wait(&poller, 1, Some(SOME_TIME));
        signaller.join().unwrap();
        assert_eq!([found, now(&poller)].concat(), [1]);
        clock.join().unwrap();
    });
}

/// A thread that times out does not use up the wake-up of a thread that goes on waiting.
#[test]
fn timeout_passes_the_wake_on() {
    check("timeout_passes_the_wake_on", Some(2), || {
        let (poller, event) = one(Watch::READABLE.edge());
        let patient = spawn((&poller, &event), |poller, _| wait(poller, 1, None));
        let hasty = spawn((&poller, &event), |poller, event| {
            if wait(poller, 1, Some(SOME_TIME)) == [1] {
                event.signal();
            }
        });
        let clock = thread::spawn(futex::expire);
        event.signal();
        hasty.join().unwrap();
        assert_eq!(patient.join().unwrap(), [1]);
        clock.join().unwrap();
    });
}

/// A poller is dropped while one of its events is signalled.
#[test]
fn drop_and_signal() {
    check("drop_and_signal", Some(4), || {
        let (poller, event) = one(Watch::READABLE);
        let signaller = spawn((&Arc::new(()), &event), |_, event| event.signal());
        drop(poller);
        signaller.join().unwrap();
        assert_eq!(
            Arc::strong_count(&event),
            1,
            "the poller has left something behind"
        );
    });
}

/// A poller is dropped inside a call, where nothing waits for the signal that is under way.
#[test]
fn drop_in_a_call_and_signal() {
    check("drop_in_a_call_and_signal", Some(2), || {
        let (poller, event) = one(Watch::READABLE);
        let signaller = spawn((&Arc::new(()), &event), |_, event| event.signal());
        let last = Arc::new(Event::new(0));
        let poller = Mutex::new(Some(poller));
        let observation = Observation::new(
            Arc::clone(&last),
            Interest::Signals,
            Arc::new(move |_: Change| drop(poller.lock().unwrap().take())),
        );
        last.signal();
        signaller.join().unwrap();
        drop(observation);
        assert_eq!(
            Arc::strong_count(&event),
            1,
            "the poller has left something behind"
        );
    });
}

/// Reads and writes of an event that is watched for both, from two threads.
#[test]
fn both_edges() {
    check("both_edges", Some(3), || {
        let (poller, event) = one(Watch::BOTH.edge());
        assert_eq!(now(&poller), [1]);
        let signaller = spawn((&poller, &event), |_, event| event.signal());
        let reader = spawn((&poller, &event), |_, event| event.try_read());
        assert_eq!(wait(&poller, 1, None), [1]);
        signaller.join().unwrap();
        if reader.join().unwrap().is_some() && event.count() == 0 {
            // The read is the last edge, and is reported with the first one or by itself.
            now(&poller);
        }
        assert_eq!(now(&poller), NOTHING);
    });
}
