//! Batches: a number of signals one by one, collected, and as writes to eventfds.

use super::event::{Eventfd, FETCH_ADD};
use super::{Case, Ratio, alone, two_with};
use crossbeam_utils::CachePadded;
use doorbell::Event;
use doorbell::event::Batch;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |group: &str, who, run| {
        let group = group.to_owned();
        cases.push(Case { group, who, run });
    };

    let event = Event::new(0);
    case(
        ONE_EVENT,
        ONE_BY_ONE,
        alone(move || (0..K).for_each(|_| black_box(&event).signal())),
    );
    let (mut batch, _) = batch(1);
    case(
        ONE_EVENT,
        BATCH,
        alone(move || {
            signal_all(&mut batch, &[0; K]);
            batch.commit()
        }),
    );
    let fd = Eventfd::new();
    case(
        ONE_EVENT,
        EVENTFD,
        alone(move || (0..K).for_each(|_| fd.write(1))),
    );

    let event = Event::new(0);
    case(
        ONE_EVENT_SHARED,
        ONE_BY_ONE,
        super::two(move |_| (0..K).for_each(|_| black_box(&event).signal())),
    );
    let event = Arc::new(Event::new(0));
    case(
        ONE_EVENT_SHARED,
        BATCH,
        two_with(
            move |_| {
                let mut batch = Batch::new();
                batch.add(Arc::clone(&event));
                batch
            },
            |batch| {
                signal_all(batch, &[0; K]);
                batch.commit()
            },
        ),
    );

    let (_, events) = self::batch(EVENTS);
    case(
        MANY_EVENTS,
        ONE_BY_ONE,
        alone(move || events.iter().for_each(|event| event.signal())),
    );
    let (mut batch, _) = self::batch(EVENTS);
    let indices: Vec<_> = (0..EVENTS).collect();
    case(
        MANY_EVENTS,
        BATCH,
        alone(move || {
            signal_all(&mut batch, &indices);
            batch.commit()
        }),
    );
    let counters: Vec<_> = (0..EVENTS)
        .map(|_| CachePadded::new(AtomicU64::new(0)))
        .collect();
    case(
        MANY_EVENTS,
        FETCH_ADD,
        alone(move || {
            counters.iter().for_each(|counter| {
                counter.fetch_add(1, Ordering::SeqCst);
            });
        }),
    );
    let fds: Vec<_> = (0..EVENTS).map(|_| Eventfd::new()).collect();
    case(
        MANY_EVENTS,
        EVENTFD,
        alone(move || fds.iter().for_each(|fd| fd.write(1))),
    );
    cases
}

/// The ratios to report, with their targets.
pub fn ratios() -> Vec<Ratio> {
    [
        (ONE_EVENT, ONE_BY_ONE, BATCH, ">= 5"),
        (ONE_EVENT, EVENTFD, BATCH, ""),
        (ONE_EVENT_SHARED, ONE_BY_ONE, BATCH, ">= 5"),
        (MANY_EVENTS, BATCH, FETCH_ADD, "<= 2.5"),
        (MANY_EVENTS, EVENTFD, BATCH, ""),
        (MANY_EVENTS, ONE_BY_ONE, BATCH, ""),
    ]
    .map(Ratio::from)
    .into()
}

const K: usize = 16;
const EVENTS: usize = 64;

pub const ONE_EVENT: &str = "batch: 16 signals of one event";
const ONE_EVENT_SHARED: &str = "batch: 16 signals of one event, two threads";
pub const MANY_EVENTS: &str = "batch: a signal of each of 64 events";

const ONE_BY_ONE: &str = "doorbell, one by one";
const BATCH: &str = "doorbell, in a batch";
const EVENTFD: &str = "kernel eventfd";

/// Signals as a device does that has completed a request on each of these queues. The compiler must not know the
/// queues.
fn signal_all(batch: &mut Batch, queues: &[usize]) {
    for &queue in black_box(queues) {
        batch.signal(queue);
    }
}

fn batch(events: usize) -> (Batch, Vec<Arc<Event>>) {
    let mut batch = Batch::new();
    let events: Vec<_> = (0..events).map(|_| Arc::new(Event::new(0))).collect();
    for event in &events {
        batch.add(Arc::clone(event));
    }
    (batch, events)
}
