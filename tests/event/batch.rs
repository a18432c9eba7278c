//! Batches: what they add up to, what does not fit, which threads are woken, which observers are called, and how often.

use doorbell::event::{Batch, Change, EventHandle, Interest, Observation, Unwritten};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Mode, Spin, WriteError};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const FULL: u64 = u64::MAX - 1;

/// Events with these counts, and a batch that has them under their indices.
fn batch<const N: usize>(initial: [u64; N]) -> ([Arc<Event>; N], Batch) {
    let events = initial.map(|count| Arc::new(Event::new(count)));
    let mut batch = Batch::new();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(batch.add(Arc::clone(event)), index);
    }
    (events, batch)
}

fn counts<const N: usize>(events: &[Arc<Event>; N]) -> [u64; N] {
    events.each_ref().map(|event| event.count())
}

fn unwritten(batch: &Batch) -> Vec<(usize, u64)> {
    batch.unwritten().collect()
}

#[test]
fn nothing_happens_before_the_commit() {
    let (events, mut batch) = batch([0, 5, 0]);
    for index in [0, 2, 0, 0, 2] {
        batch.signal(index);
    }
    batch.signal_n(1, 10);
    batch.write(2, 100).unwrap();
    assert_eq!(counts(&events), [0, 5, 0]);
    batch.commit().unwrap();
    assert_eq!(counts(&events), [3, 15, 102]);
    // The batch is empty then, and works as a new one does.
    batch.commit().unwrap();
    assert_eq!(counts(&events), [3, 15, 102]);
    batch.signal(0);
    batch.commit().unwrap();
    assert_eq!(counts(&events), [4, 15, 102]);
}

#[test]
fn an_event_has_one_place() {
    let (events, mut batch) = batch([0, 0]);
    assert_eq!(batch.add(Arc::clone(&events[1])), 1);
    assert!(batch.event(1).ptr_eq(&events[1]));
    assert_eq!(Arc::strong_count(&events[1]), 2);
}

#[test]
#[should_panic(expected = "index out of bounds")]
fn an_event_that_is_not_there() {
    batch([0, 0]).1.signal(2);
}

#[test]
fn signals_saturate() {
    let (events, mut batch) = batch([FULL, 3, 0]);
    batch.signal(0);
    batch.signal(0);
    batch.signal_n(1, u64::MAX - 4);
    batch.signal_n(2, FULL);
    batch.signal_n(2, FULL);
    batch.commit().unwrap();
    assert_eq!(counts(&events), [u64::MAX, u64::MAX - 1, u64::MAX]);
}

#[test]
fn what_does_not_fit_is_reported_and_kept() {
    let (events, mut batch) = batch([FULL, 0, FULL - 2, 7]);
    batch.write(0, 1).unwrap();
    batch.write(1, 1).unwrap();
    batch.write(2, 2).unwrap();
    batch.write(2, 1).unwrap(); // 3 do not fit, though 2 would
    batch.signal(3);
    let error = batch.commit().unwrap_err();
    assert_eq!(error.events(), 2);
    assert_eq!(counts(&events), [FULL, 1, FULL - 2, 8]);
    assert_eq!(unwritten(&batch), [(0, 1), (2, 3)]);
    let error = io::Error::from(error);
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

    // The next commit makes the writes that have room then, and no others.
    events[2].read();
    batch.write(0, 1).unwrap();
    batch.signal(1);
    assert_eq!(batch.commit().map_err(Unwritten::events), Err(1));
    assert_eq!(counts(&events), [FULL, 2, 3, 8]);
    assert_eq!(unwritten(&batch), [(0, 2)]);
    events[0].read();
    batch.commit().unwrap();
    assert_eq!(counts(&events), [2, 2, 3, 8]);
    assert_eq!(unwritten(&batch), []);
}

#[test]
fn writes_that_no_event_could_take() {
    let (events, mut batch) = batch([0]);
    assert_eq!(batch.write(0, u64::MAX), Err(WriteError::Invalid));
    assert_eq!(unwritten(&batch), []);
    batch.write(0, FULL).unwrap();
    for n in [1, 2, FULL] {
        assert_eq!(batch.write(0, n), Err(WriteError::WouldBlock));
    }
    batch.write(0, 0).unwrap();
    assert_eq!(unwritten(&batch), [(0, FULL)]);
    batch.commit().unwrap();
    assert_eq!(counts(&events), [FULL]);
}

/// Signals beside a write take no room from it, and are delivered even if the write does not fit.
#[test]
fn signals_and_writes_of_one_event() {
    let (events, mut batch) = batch([FULL - 2, FULL - 2]);
    batch.signal_n(0, 2);
    batch.write(0, 2).unwrap();
    batch.write(1, 3).unwrap();
    batch.signal(1);
    assert_eq!(batch.commit().map_err(Unwritten::events), Err(1));
    assert_eq!(counts(&events), [u64::MAX, FULL - 1]);
    assert_eq!(unwritten(&batch), [(1, 3)]);
}

#[test]
fn a_dropped_batch_commits() {
    let (events, mut pending) = batch([0, FULL]);
    pending.signal(0);
    pending.write(1, 1).unwrap();
    drop(pending);
    assert_eq!(counts(&events), [1, FULL]);

    let (events, mut pending) = batch([0]);
    panic::catch_unwind(AssertUnwindSafe(|| {
        let mut dropped = Batch::new();
        dropped.add(Arc::clone(&events[0]));
        dropped.signal(0);
        pending.signal(0);
        panic!("on the way out");
    }))
    .unwrap_err();
    assert_eq!(counts(&events), [1]);
    pending.discard();
    drop(pending);
    assert_eq!(counts(&events), [1]);
}

#[test]
fn what_is_discarded_can_come_again() {
    let (events, mut batch) = batch([0, 0]);
    batch.signal(0);
    batch.write(1, 4).unwrap();
    batch.discard();
    assert_eq!(unwritten(&batch), []);
    batch.signal(1);
    batch.commit().unwrap();
    assert_eq!(counts(&events), [0, 1]);
}

/// What is pending for the removed event is delivered, and what is pending for others stays. The batch no longer holds
/// the event.
#[test]
fn a_removed_event_gets_what_is_pending() {
    let (events, mut batch) = batch([0, 5, 0]);
    for index in [2, 1, 0, 1] {
        batch.signal(index);
    }
    batch.write(1, 10).unwrap();
    let removed = batch.remove(1).unwrap();
    assert!(removed.event.ptr_eq(&events[1]));
    assert_eq!(removed.unwritten, None);
    drop(removed);
    assert_eq!(Arc::strong_count(&events[1]), 1);
    assert_eq!(counts(&events), [0, 17, 0]);
    batch.commit().unwrap();
    assert_eq!(counts(&events), [1, 17, 1]);
    assert_eq!(format!("{batch:?}"), "Batch { events: 2, pending: 0 }");
    let nothing_pending = batch.remove(0).unwrap();
    drop((nothing_pending, batch));
    assert_eq!(counts(&events), [1, 17, 1]);
}

#[test]
fn an_index_is_given_out_again() {
    let (events, mut batch) = batch([0, 0, 0]);
    let later = [(); 2].map(|()| Arc::new(Event::new(0)));
    batch.signal(1);
    batch.remove(1).unwrap();
    assert_eq!(
        batch.add(Arc::clone(&events[2])),
        2,
        "the event has an index"
    );
    assert_eq!(batch.add(Arc::clone(&later[0])), 1);
    assert_eq!(batch.add(Arc::clone(&later[1])), 3);
    (0..4).for_each(|index| batch.signal(index));
    batch.commit().unwrap();
    assert_eq!(counts(&events), [1, 1, 1]);
    assert_eq!(counts(&later), [1, 1]);
    assert!(batch.event(1).ptr_eq(&later[0]));
}

/// Each of the queues that share an event removes it.
#[test]
fn an_event_leaves_when_all_have_removed_it() {
    let (events, mut batch) = batch([0]);
    assert_eq!(batch.add(Arc::clone(&events[0])), 0);
    batch.signal(0);
    assert!(batch.remove(0).is_none());
    assert!(batch.get(0).is_some());
    assert_eq!(counts(&events), [0]);
    batch.signal(0);
    assert!(batch.remove(0).is_some());
    assert_eq!(counts(&events), [2]);
    // Indices are given out from the beginning again.
    assert_eq!(batch.add(Arc::clone(&events[0])), 0);
    assert!(batch.remove(0).is_some());
}

/// A write that does not fit comes back to the code that removes the event; signals beside the write are delivered.
#[test]
fn a_removed_event_has_no_room() {
    let (events, mut batch) = batch([FULL - 2, FULL]);
    for (index, n) in [(0, 3), (1, 4)] {
        batch.write(index, n).unwrap();
    }
    batch.signal(0);
    let removed = batch.remove(0).unwrap();
    assert_eq!(removed.unwritten, Some(3));
    assert_eq!(counts(&events), [FULL - 1, FULL]);
    assert_eq!(unwritten(&batch), [(1, 4)]);
    events[1].read();
    batch.commit().unwrap();
    assert_eq!(counts(&events), [FULL - 1, 4]);
}

/// No signal can reach a wrong event: the index of a removed event panics, and is no other event's.
#[test]
fn the_index_of_an_event_that_has_left() {
    let (events, mut batch) = batch([0, 0]);
    assert!(batch.get(1).is_some_and(|event| event.ptr_eq(&events[1])));
    batch.remove(1).unwrap();
    assert!(batch.get(1).is_none() && batch.get(2).is_none());
    let uses: [&dyn Fn(&mut Batch); 5] = [
        &|batch| batch.signal(1),
        &|batch| batch.signal_n(1, 0),
        &|batch| batch.write(1, u64::MAX).unwrap(),
        &|batch| drop(batch.event(1).clone()),
        &|batch| drop(batch.remove(1)),
    ];
    for used in uses {
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| used(&mut batch))).unwrap_err();
        let message = panicked.downcast_ref::<String>().unwrap();
        assert!(message.contains("has left the batch"), "{message}");
    }
    assert_eq!(unwritten(&batch), []);
    batch.commit().unwrap();
    assert_eq!(counts(&events), [0, 0]);
}

#[test]
fn an_observer_panics_in_a_removal() {
    let (events, mut batch) = batch([FULL, 0]);
    let observer = |_: Change| panic!("in a removal");
    let observation = Observation::new(
        Arc::clone(&events[0]),
        Interest::Signals,
        Arc::new(observer),
    );
    batch.write(0, 7).unwrap();
    batch.signal(0);
    batch.signal(1);
    panic::catch_unwind(AssertUnwindSafe(|| batch.remove(0))).unwrap_err();
    drop(observation);
    assert_eq!(counts(&events), [u64::MAX, 0]);
    // The event is still in the batch, with the write for which there was no room.
    assert_eq!(unwritten(&batch), [(0, 7)]);
    events[0].read();
    batch.signal(0);
    assert_eq!(batch.remove(0).unwrap().unwritten, None);
    assert_eq!(counts(&events), [8, 0]);
    batch.commit().unwrap();
    assert_eq!(counts(&events), [8, 1]);
}

#[test]
fn debug_shows_what_is_pending() {
    let (_, mut batch) = batch([0, 0, 0]);
    batch.signal(2);
    assert_eq!(format!("{batch:?}"), "Batch { events: 3, pending: 1 }");
}

/// Every observer sees the counts of all events changed, and each is called once.
#[test]
fn observers_are_called_after_all_counts() {
    const N: usize = 64;
    let events: Arc<[Event; N]> = Arc::new([const { Event::new(0) }; N]);
    let calls = Arc::new(AtomicU64::new(0));
    let observations: Vec<_> = (0..N)
        .map(|index| {
            let (all, calls) = (Arc::clone(&events), Arc::clone(&calls));
            let observer = Arc::new(move |change: Change| {
                assert_eq!(change, Change::Signalled);
                assert!(all.iter().all(|event| event.count() == 2));
                calls.fetch_add(1, Ordering::SeqCst);
            });
            let event = EventHandle::of_field(&events, |all| &all[index]);
            if index % 2 == 0 {
                Observation::new(event, Interest::Signals, observer)
            } else {
                let observation = Observation::on_demand(event, Interest::Signals, observer);
                observation.arm(Interest::Both);
                observation
            }
        })
        .collect();
    let mut batch = Batch::new();
    for index in 0..N {
        let index = batch.add(EventHandle::of_field(&events, |all| &all[index]));
        batch.signal(index);
        batch.signal(index);
    }
    batch.commit().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 64);
    drop(observations);
}

/// Observers are called for a write of 0, as they are without a batch.
#[test]
fn zeros_are_delivered() {
    let (events, mut batch) = batch([0, 0, 0]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let _observations: Vec<_> = events
        .iter()
        .enumerate()
        .map(|(index, event)| {
            let seen = Arc::clone(&seen);
            Observation::new(
                Arc::clone(event),
                Interest::Signals,
                Arc::new(move |_: Change| seen.lock().unwrap().push(index)),
            )
        })
        .collect();
    batch.write(2, 0).unwrap();
    batch.signal_n(1, 0);
    batch.commit().unwrap();
    assert_eq!(*seen.lock().unwrap(), [2, 1]);
    assert_eq!(counts(&events), [0, 0, 0]);
}

#[test]
fn a_panic_keeps_nobody_from_being_called() {
    let (events, mut batch) = batch([0, 0, 0]);
    let called = Arc::new(AtomicU64::new(0));
    let _observations: Vec<_> = events
        .iter()
        .map(|event| {
            let called = Arc::clone(&called);
            let observer = move |_: Change| {
                let before = called.fetch_add(1, Ordering::SeqCst);
                panic!("number {before}");
            };
            Observation::new(Arc::clone(event), Interest::Signals, Arc::new(observer))
        })
        .collect();
    (0..3).for_each(|index| batch.signal(index));
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| batch.commit())).unwrap_err();
    assert_eq!(panicked.downcast_ref::<String>().unwrap(), "number 0");
    assert_eq!(called.load(Ordering::SeqCst), 3);
    assert_eq!(counts(&events), [1, 1, 1]);
    // Nothing is delivered twice.
    batch.commit().unwrap();
    assert_eq!(counts(&events), [1, 1, 1]);
}

/// Tells the sleepers that the test is over, even if it panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Sleepers on several events: they take exactly what a batch gives them.
#[test]
fn sleepers_get_what_was_committed() {
    const ROUNDS: u64 = 2_000;
    for mode in [Mode::Counter, Mode::Semaphore] {
        let events = [(); 4].map(|()| Arc::new(Event::with_mode(0, mode)));
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..8)
                .map(|index| {
                    let (event, end) = (&events[index % 4], &end);
                    scope.spawn(move || {
                        let mut sum = 0;
                        while !end.load(Ordering::SeqCst) {
                            sum += event.read_timeout(Duration::from_millis(100)).unwrap_or(0);
                        }
                        sum
                    })
                })
                .collect();
            let ending = End(&end);
            let mut batch = Batch::new();
            let indices = events.each_ref().map(|event| batch.add(event));
            for round in 0..ROUNDS {
                for index in indices {
                    batch.signal(index);
                    batch.write(index, round % 3).unwrap();
                }
                batch.commit().unwrap();
                if round % 16 == 0 {
                    thread::yield_now();
                }
            }
            let goal = 4 * (0..ROUNDS).map(|round| 1 + round % 3).sum::<u64>();
            while events.iter().any(|event| event.count() != 0) {
                thread::yield_now();
            }
            drop(ending);
            let sum: u64 = readers
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .sum();
            assert_eq!(sum, goal);
        });
    }
}

/// A write of 0 releases no sleeping reader: the next signal does.
#[test]
fn a_write_of_nothing_leaves_a_sleeper_to_the_next_signal() {
    let event = Arc::new(Event::new(0).with_spin(Spin::Never));
    let reader = thread::spawn({
        let event = Arc::clone(&event);
        move || event.read()
    });
    let mut batch = Batch::new();
    let index = batch.add(Arc::clone(&event));
    // The commits come before, while and after the reader falls asleep.
    for _ in 0..100 {
        batch.write(index, 0).unwrap();
        batch.commit().unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert!(!reader.is_finished());
    event.signal();
    let signalled = Instant::now();
    while !reader.is_finished() {
        assert!(
            signalled.elapsed() < Duration::from_secs(30),
            "the reader sleeps on"
        );
        thread::yield_now();
    }
    assert_eq!(reader.join().unwrap(), 1);
}

/// An observer waits, in a call of this crate, for an answer from a thread that sleeps in a poller, and gets it.
#[test]
fn an_observer_waits_for_a_poller() {
    for spin in [Spin::Never, Spin::Always] {
        let (events, mut batch) = batch([0, 0]);
        let answer = Arc::new(Event::new(0).with_spin(spin));
        let poller = Arc::new(Poller::with_spin(Spin::Never));
        poller.add(&events[0], 0, Watch::READABLE).unwrap();
        let waiter = thread::spawn({
            let (poller, answer) = (Arc::clone(&poller), Arc::clone(&answer));
            move || {
                poller.wait(&mut Events::with_capacity(1), None).unwrap();
                answer.signal();
            }
        });
        let _observation = Observation::new(
            Arc::clone(&events[1]),
            Interest::Signals,
            Arc::new(move |_: Change| {
                let patience = Duration::from_secs(20);
                assert_eq!(answer.read_timeout(patience), Some(1));
            }),
        );
        while !format!("{poller:?}").contains("waiting: 1") {
            thread::yield_now();
        }
        // The test holds whether the thread is asleep or about to be.
        thread::sleep(Duration::from_millis(20));
        (0..2).for_each(|index| batch.signal(index));
        batch.commit().unwrap();
        waiter.join().unwrap();
    }
}
