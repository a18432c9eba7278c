//! Tables and targets that keep values, saved and restored.

use crate::event;
use doorbell::Event;
use doorbell::event::EventHandle;
use doorbell::ioeventfd::{
    Bus, Doorbell, DoorbellArray, DoorbellError, DoorbellState, DoorbellStateError, Key, Kick,
    Latest, LatestState, Table, TableState, Target, TargetState, ValueQueue, ValueQueueState,
};
use doorbell::state::{UnknownVersion, VERSION};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{ptr, thread};

const EVENTS: usize = 3;
const TARGETS: usize = 7;
const CAPACITY: usize = 3;

/// Events, and targets that share them.
#[derive(Debug)]
struct Device {
    events: [Arc<Event>; EVENTS],
    targets: [Target; TARGETS],
}

impl Device {
    fn new() -> Self {
        let events: [Arc<Event>; EVENTS] = std::array::from_fn(|_| event());
        let targets = std::array::from_fn(|target| {
            let event = &events[target % EVENTS];
            match target {
                0..3 => event.into(),
                3..5 => Arc::new(Latest::new(event, 99)).into(),
                _ => Arc::new(ValueQueue::new(event, CAPACITY)).into(),
            }
        });
        Device { events, targets }
    }

    fn number(&self, event: &Event) -> u64 {
        let mut events = self.events.iter();
        let number = events.position(|other| ptr::eq(&**other, event));
        number.expect("the event is ours") as u64
    }
}

/// The events of a restored VM, with the saved counts.
fn restored(counts: &[u64]) -> Vec<Arc<Event>> {
    let events = counts.iter().map(|&count| Arc::new(Event::new(count)));
    events.collect()
}

fn find(events: &[Arc<Event>], number: u64) -> Option<EventHandle> {
    Some(events.get(usize::try_from(number).ok()?)?.into())
}

/// What the targets of a table hold, in order.
fn held(table: &Table) -> Vec<(u64, Vec<Kick>)> {
    let doorbells = table.doorbells();
    let targets = doorbells.iter().flat_map(|doorbell| doorbell.targets());
    let held = targets.map(|target| match target {
        Target::Latest(latest) => (latest.value(), Vec::new()),
        Target::ValueQueue(queue) => (queue.len() as u64, queue.iter().collect()),
        _ => (0, Vec::new()),
    });
    held.collect()
}

fn doorbell(device: &Device) -> impl Strategy<Value = Doorbell> + use<> {
    let targets = device.targets.clone();
    let bus = prop_oneof![Just(Bus::Mmio), Just(Bus::Pio)];
    let length = proptest::sample::select(&[0, 1, 2, 4, 8][..]);
    let stride = proptest::option::weighted(0.3, proptest::sample::select(&[0, 1, 4][..]));
    let value = proptest::option::weighted(0.5, 0..2_u64);
    (bus, 0..24_u64, length, value, stride, 0..TARGETS, 1..4_u32).prop_map(
        move |(bus, address, length, value, stride, first, slots)| match stride {
            None => {
                let mut key = Key::new(bus, address, length);
                key.datamatch = value;
                Doorbell::new(key, &targets[first])
            }
            Some(stride) => {
                let array = DoorbellArray::new(bus, address, stride, slots).with_length(length);
                let targets = targets.iter().cycle().skip(first).take(slots as usize);
                Doorbell::array(array, targets)
            }
        },
    )
}

fn writes() -> impl Strategy<Value = Vec<(Bus, u64, Vec<u8>)>> {
    let bus = prop_oneof![Just(Bus::Mmio), Just(Bus::Pio)];
    let data = prop_oneof![
        Just(vec![0]),
        (0..4_u16).prop_map(|value| value.to_ne_bytes().to_vec()),
        (0..4_u32).prop_map(|value| value.to_ne_bytes().to_vec()),
        (0..2_u64).prop_map(|value| value.to_ne_bytes().to_vec()),
    ];
    proptest::collection::vec((bus, 0..30_u64, data), 0..60)
}

/// A guest's write: where, and of which bytes.
type Write = (Bus, u64, Vec<u8>);

fn case() -> impl Strategy<Value = (Arc<Device>, Vec<Doorbell>, [Vec<Write>; 2])> {
    let device = Arc::new(Device::new());
    let doorbells = proptest::collection::vec(doorbell(&device), 0..20);
    (Just(device), doorbells, [writes(), writes()])
}

proptest! {
    /// A table that went through JSON rings what the first one rings, and has the same pending writes. Doorbells that
    /// shared a target share it afterwards, and saving the table gives the same state.
    #[test]
    fn a_table_goes_through_a_snapshot((device, doorbells, [before, after]) in case()) {
        for target in &device.targets {
            target.event().try_read();
            match target {
                Target::Latest(latest) => latest.set(99),
                Target::ValueQueue(queue) => drop(queue.drain().count()),
                _ => {}
            }
        }
        let table = Table::new();
        for doorbell in doorbells {
            // Some doorbells collide, and some have no valid address.
            let _ = table.assign_all([doorbell]).map(|new| new.into_iter().for_each(|r| r.keep()));
        }
        for (bus, address, data) in &before {
            let _ = table.write(*bus, *address, data);
        }
        let state = table.save(|event| device.number(event));
        let counts = device.events.each_ref().map(|event| event.count());

        let json = serde_json::to_string(&(&state, counts)).unwrap();
        let (read, counts): (TableState, [u64; EVENTS]) = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &state);

        let events = restored(&counts);
        let again = Table::new();
        let registrations = again.restore(&read, |number| find(&events, number)).unwrap();
        prop_assert_eq!(registrations.len(), table.doorbells().len());
        let name = |event: &Event| events.iter().position(|other| ptr::eq(&**other, event)).unwrap() as u64;
        prop_assert_eq!(again.save(name), state);
        let now = events.iter().map(|event| event.count());
        prop_assert!(now.eq(counts), "a restored event was signalled");

        for (bus, address, data) in &after {
            let took = table.write(*bus, *address, data);
            prop_assert_eq!(again.write(*bus, *address, data), took);
        }
        prop_assert_eq!(held(&again), held(&table));
        for (event, other) in events.iter().zip(&device.events) {
            prop_assert_eq!(event.count(), other.count());
        }
        drop(registrations);
        prop_assert!(again.doorbells().is_empty());
    }
}

/// Valid and invalid states. No doorbell of an invalid state is registered.
#[test]
fn an_invalid_state_is_an_error() {
    let table = Table::new();
    let events = [event()];
    let single = |target| DoorbellState::Single {
        key: Key::mmio(0x1000, 4),
        target,
    };
    let state = |change: fn(&mut TableState)| {
        let mut state = TableState::default();
        state.targets = vec![
            TargetState::Event(0),
            TargetState::Latest(LatestState::new(0, 7)),
            TargetState::ValueQueue(ValueQueueState::new(0, 2)),
        ];
        state.doorbells = vec![DoorbellState::Array {
            array: DoorbellArray::mmio(0x2000, 4, 3),
            targets: vec![0, 1, 2],
        }];
        change(&mut state);
        state
    };
    let restore = |state: &TableState| {
        let restored = table.restore(state, |number| find(&events, number));
        let error = restored.map(drop);
        assert!(table.doorbells().is_empty());
        if let Err(error) = &error {
            assert!(!error.to_string().is_empty());
            // Only Unix has these numbers.
            assert!(std::io::Error::from(*error).raw_os_error().is_some() || cfg!(not(unix)));
        }
        error
    };
    assert_eq!(restore(&state(|_| {})), Ok(()));
    let version = VERSION + 1;
    assert_eq!(
        restore(&state(|state| state.version += 1)),
        Err(DoorbellStateError::Version(UnknownVersion(version)))
    );
    assert_eq!(
        restore(&state(|state| state.targets[0] = TargetState::Event(1))),
        Err(DoorbellStateError::UnknownEvent(1))
    );
    let latest = state(|state| state.targets[1] = TargetState::Latest(LatestState::new(2, 0)));
    assert_eq!(restore(&latest), Err(DoorbellStateError::UnknownEvent(2)));
    for target in [3, u32::MAX] {
        let mut state = state(|_| {});
        state.doorbells.push(single(target));
        assert_eq!(
            restore(&state),
            Err(DoorbellStateError::UnknownTarget(target))
        );
    }
    for (capacity, kicks) in [(0, 0), (1 << 20 | 1, 0), (u32::MAX, 0), (2, 5)] {
        let mut queue = ValueQueueState::new(0, capacity);
        queue.kicks = vec![Kick::new(0, 0); kicks];
        let mut state = state(|_| {});
        state.targets[2] = TargetState::ValueQueue(queue);
        assert_eq!(restore(&state), Err(DoorbellStateError::Capacity(capacity)));
    }
    let mut twice = state(|_| {});
    twice.doorbells.extend([single(0), single(1)]);
    let error = restore(&twice).unwrap_err();
    let DoorbellStateError::Doorbell { index, error } = error else {
        panic!("{error}")
    };
    assert!(index > 0);
    assert_eq!(error, DoorbellError::Collision);
    let uneven = state(|state| {
        let array = DoorbellArray::mmio(0x2000, 4, 2);
        state.doorbells[0] = DoorbellState::Array {
            array,
            targets: vec![0, 1, 2],
        };
    });
    let error = DoorbellStateError::Doorbell {
        index: 0,
        error: DoorbellError::Slots,
    };
    assert_eq!(restore(&uneven), Err(error));
    // The version is what a reader looks at first.
    let json = serde_json::to_string(&TableState::default()).unwrap();
    assert!(json.starts_with(r#"{"version":1,"#), "{json}");
}

/// Writes that were looked at are still in the queue, in order, and the queue is as full as it was.
#[test]
fn a_queue_is_looked_at() {
    let table = Table::new();
    let kick = event();
    let queue = Arc::new(ValueQueue::new(&kick, 3));
    let _registration = table.assign(Key::mmio(0x1000, 1), &queue).unwrap();
    let write = |value: u8| table.write(Bus::Mmio, 0x1000, &[value]);
    let values = |queue: &ValueQueue| queue.iter().map(|kick| kick.value).collect::<Vec<_>>();
    assert!(write(1) && write(2));
    assert_eq!(values(&queue), [1, 2]);
    assert_eq!(values(&queue), [1, 2]);
    assert!(write(3) && !write(4) && !queue.push(Kick::new(0, 4)));
    assert_eq!((queue.len(), queue.capacity(), kick.count()), (3, 3, 3));
    assert_eq!(values(&queue), [1, 2, 3]);
    assert!(!write(4));
    assert_eq!(queue.pop(), Some(Kick::new(0, 1)));
    assert!(write(4) && !write(5));
    // The writes that were looked at come before later writes.
    assert_eq!(queue.pop(), Some(Kick::new(0, 2)));
    assert_eq!(values(&queue), [3, 4]);
    assert!(queue.drain().map(|kick| kick.value).eq([3, 4]));
    assert!(queue.is_empty() && write(5));

    let saved = queue.save(|_| 7);
    assert_eq!((saved.event, saved.capacity), (7, 3));
    let again =
        ValueQueue::restore(&saved, |number| (number == 7).then(|| (&kick).into())).unwrap();
    assert_eq!((again.len(), again.capacity()), (1, 3));
    assert!(
        again.push(Kick::new(0, 6)) && again.push(Kick::new(0, 7)) && !again.push(Kick::new(0, 8))
    );
    assert_eq!(values(&again), [5, 6, 7]);
    let latest = Latest::new(&kick, 8);
    let again = Latest::restore(&latest.save(|_| 0), |_| Some((&kick).into())).unwrap();
    assert_eq!(again.value(), 8);
    assert!(Latest::restore(&latest.save(|_| 0), |_| None).is_err());
}

/// Threads write, take and look at the same time: each accepted write is taken out once, in order, and a look sees
/// writes in order, too.
#[test]
fn a_queue_is_looked_at_while_it_is_in_use() {
    const WRITES: u64 = 20_000;
    let _watchdog = crate::threads::watchdog();
    let table = Table::new();
    let queue = Arc::new(ValueQueue::new(event(), 16));
    let _registration = table.assign(Key::mmio(0x1000, 8), &queue).unwrap();
    let done = AtomicBool::new(false);
    let largest = thread::scope(|scope| {
        scope.spawn(|| {
            for value in 0..WRITES {
                while !table.write(Bus::Mmio, 0x1000, &value.to_ne_bytes()) {
                    thread::yield_now();
                }
            }
        });
        let looker = scope.spawn(|| {
            let mut largest = 0;
            while !done.load(Ordering::Relaxed) {
                let values: Vec<u64> = queue.iter().map(|kick| kick.value).collect();
                let mut pairs = values.windows(2);
                assert!(pairs.all(|pair| pair[1] == pair[0] + 1), "{values:?}");
                largest = largest.max(values.len());
                thread::yield_now();
            }
            largest
        });
        for value in 0..WRITES {
            let kick = loop {
                match queue.pop() {
                    Some(kick) => break kick,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(kick.value, value);
        }
        done.store(true, Ordering::Relaxed);
        looker.join().unwrap()
    });
    // The 1 is for a write that was under way.
    assert!(largest <= 2 * 16 + 1, "{largest}");
    assert_eq!(queue.pop(), None);
}
