//! Batches against those who wait for their events.

use doorbell::event::{Batch, Change, Interest, Observation};
use doorbell::{Event, Mode, Spin};
use loom::thread;
use loom_tests::{check, futex, spawn};
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

/// As many sleepers go on as there are units, those of writes too.
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

/// Who armed an observer, and saw nothing afterwards, is called, with all counts changed.
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
        let indices = [Arc::clone(observation.event()), second].map(|event| batch.add(event));
        let committer = thread::spawn(move || {
            indices.into_iter().for_each(|index| batch.signal(index));
            batch.commit().unwrap();
        });
        observation.arm(Interest::Signals);
        let seen = observation.event().try_read().is_some();
        committer.join().unwrap();
        assert!(
            seen || calls.load(Ordering::Relaxed) == 1,
            "nobody is called"
        );
    });
}
