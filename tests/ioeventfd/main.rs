//! The table without a virtual machine: random scripts against a naive model, what KVM has no counterpart for, and many
//! threads at once. `tests/kvm_ioeventfd` has what it shares with KVM.
//!
//! Under a sanitizer they also notice memory that is used after it was freed, or not freed. AddressSanitizer found
//! nothing: `RUSTFLAGS=-Zsanitizer=address cargo +nightly test --target x86_64-unknown-linux-gnu --test ioeventfd`.

#[path = "../common/errors.rs"]
mod errors;
mod script;
mod threads;

use arbitrary::{Arbitrary, Unstructured};
use doorbell::Event;
use doorbell::ioeventfd::{
    AssignError, BatchError, Bus, DeassignError, Doorbell, Key, Kick, Latest, Queue, Range,
    Registration, Table,
};
use errors::assert_becomes;
use proptest::prelude::*;
use script::Script;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

const A: u64 = 0xe000_3000;

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The table does what a list that is scanned does.
    #[test]
    fn scripts(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).expect("any bytes are a script");
        script.compare();
    }
}

/// More addresses than a reader remembers, on both buses, while doorbells come and go: it finds what a search finds.
#[test]
fn a_reader_remembers_less_than_there_is() {
    let mut random = fastrand::Rng::with_seed(1);
    let event = event();
    for with_range in [false, true] {
        let table = Table::new();
        let reader = table.reader();
        let mut there = BTreeMap::new();
        if with_range {
            let range = Range::mmio(1 << 20, 4, 64);
            let targets = (0..64).map(|_| &event);
            table.assign_range(range, targets).unwrap().keep();
        }
        for _ in 0..200 {
            for _ in 0..20 {
                let bus = [Bus::Mmio, Bus::Pio][random.usize(..2)];
                let key = Key {
                    bus,
                    ..Key::mmio(random.u64(..1000), 4)
                };
                match there.remove(&key) {
                    Some(registration) => drop::<Registration>(registration),
                    None => _ = there.insert(key, table.assign(key, &event).unwrap()),
                }
            }
            for _ in 0..500 {
                let bus = [Bus::Mmio, Bus::Pio][random.usize(..2)];
                let key = Key {
                    bus,
                    ..Key::mmio(random.u64(..1000), 4)
                };
                // Another length is another matter.
                let length = [4, 4, 4, 2][random.usize(..4)];
                let expected = u64::from(length == 4 && there.contains_key(&key));
                let took = reader.write(key.bus, key.address, &[0; 4][..length]);
                assert_eq!(u64::from(took), expected, "{key:?} {length}");
                assert_eq!(event.try_read().unwrap_or(0), expected);
            }
        }
    }
}

/// A registration that outlived its doorbell leaves a newer one of the same key alone, even with the same event.
#[test]
fn stale_registration() {
    let table = Table::new();
    let (key, event) = (Key::mmio(A, 4), event());
    let old = table.assign(key, &event).unwrap();
    table.deassign(key, &event).unwrap();
    let new = table.assign(key, &event).unwrap();
    drop(old);
    assert!(table.write(Bus::Mmio, A, &[0; 4]));
    drop(new);
    assert!(!table.write(Bus::Mmio, A, &[0; 4]));
}

/// A kept doorbell holds its event, and nothing else is left behind: no handle of the table, none of the event.
#[test]
fn kept_registration() {
    let table = Table::new();
    let (key, event) = (Key::mmio(A, 4), event());
    table.assign(key, &event).unwrap().keep();
    assert!(table.write(Bus::Mmio, A, &[0; 4]));
    assert_eq!(Arc::strong_count(&event), 2);
    table.deassign(key, &event).unwrap();
    assert_eq!(Arc::strong_count(&event), 1);

    table.assign(key, &event).unwrap().keep();
    drop(table);
    assert_eq!(Arc::strong_count(&event), 1);
}

/// The last handle to an event may be the table's, and the registration can still remove the doorbell.
#[test]
fn registration_without_the_event() {
    let table = Table::new();
    let registration = table.assign(Key::mmio(A, 4), event()).unwrap();
    assert!(table.write(Bus::Mmio, A, &[0; 4]));
    assert_eq!(registration.doorbell().targets()[0].event().count(), 1);
    drop(registration);
    assert!(table.doorbells().is_empty());
}

/// A table lives as long as a registration in it, or a reader of it.
#[test]
fn handles_keep_the_table() {
    let table = Table::new();
    let event = event();
    let reader = table.reader();
    let registration = table.assign(Key::mmio(A, 4), &event).unwrap();
    drop(table);
    assert!(reader.write(Bus::Mmio, A, &[0; 4]));
    drop(registration);
    assert!(!reader.write(Bus::Mmio, A, &[0; 4]));
}

/// A batch registers all or none, and says what is wrong with which.
#[test]
fn batches_are_all_or_nothing() {
    let table = Table::new();
    let event = event();
    let at = |address, length| Doorbell::new(Key::mmio(address, length), &event);
    let standing = table.assign(Key::mmio(A + 8, 0), &event).unwrap();

    let cases = [
        (
            vec![at(A, 4), at(A, 3)],
            1,
            AssignError::Length,
            ErrorKind::InvalidInput,
        ),
        (
            vec![at(A, 4), at(A + 8, 4)],
            1,
            AssignError::Collision,
            ErrorKind::AlreadyExists,
        ),
        (
            vec![at(A, 4), at(A + 4, 4), at(A, 0)],
            2,
            AssignError::Collision,
            ErrorKind::AlreadyExists,
        ),
    ];
    for (batch, index, error, kind) in cases {
        let result = table.assign_all(batch).unwrap_err();
        assert_eq!(result, BatchError { index, error });
        assert_becomes(result, kind);
        assert_eq!(table.doorbells().len(), 1);
        assert!(!table.write(Bus::Mmio, A, &[0; 4]));
    }
    assert_eq!(event.count(), 0);

    let result = table.deassign_all([at(A + 8, 0), at(A, 4)]).unwrap_err();
    assert_eq!(
        result,
        BatchError {
            index: 1,
            error: DeassignError
        }
    );
    assert_becomes(result, ErrorKind::NotFound);
    assert!(table.write(Bus::Mmio, A + 8, &[0; 4]));
    drop(standing);
}

/// Doorbells move, also to where others of the batch stood, and stay where they were if one cannot.
#[test]
fn replace_moves() {
    let table = Table::new();
    let events = [event(), event()];
    let at = |addresses: [u64; 2]| {
        let doorbell = |i: usize| Doorbell::new(Key::mmio(addresses[i], 4), &events[i]);
        [doorbell(0), doorbell(1)]
    };
    let other = table.assign(Key::mmio(A + 16, 4), event()).unwrap();
    let mut registrations = table.assign_all(at([A, A + 8])).unwrap();

    table.replace(&mut registrations, at([A + 8, A])).unwrap();
    assert!(table.write(Bus::Mmio, A, &[0; 4]));
    assert_eq!((events[0].count(), events[1].count()), (0, 1));

    let result = table.replace(&mut registrations, at([A, A + 16]));
    assert_eq!(
        result,
        Err(BatchError {
            index: 1,
            error: AssignError::Collision
        })
    );
    assert!(table.write(Bus::Mmio, A, &[0; 4]));
    assert_eq!((events[0].count(), events[1].count()), (0, 2));

    table.replace(&mut registrations, []).unwrap();
    assert!(registrations.is_empty());
    assert_eq!(table.doorbells().len(), 1);
    drop(other);
}

/// A range rings the slot that a write starts at, whatever is between the slots or beyond the last being nobody's.
#[test]
fn range_slots() {
    let table = Table::new();
    let events: [Arc<Event>; 3] = std::array::from_fn(|_| event());
    let range = Range::pio(0xc000, 4, 3).with_length(2);
    let registration = table.assign_range(range, &events).unwrap();
    for (offset, slot) in [
        (0, Some(0)),
        (4, Some(1)),
        (8, Some(2)),
        (2, None),
        (5, None),
        (12, None),
    ] {
        let taken = table.write(Bus::Pio, 0xc000 + offset, &[0; 2]);
        assert_eq!(taken, slot.is_some(), "{offset}");
        let rung: Vec<usize> = (0..3).filter(|&i| events[i].try_read().is_some()).collect();
        assert_eq!(rung, Vec::from_iter(slot), "{offset}");
    }
    assert!(!table.write(Bus::Pio, 0xc000, &[0; 4]));
    assert!(!table.write(Bus::Mmio, 0xc000, &[0; 2]));
    assert!(!table.write(Bus::Pio, 0xbfff, &[0; 2]));
    drop(registration);
    assert!(!table.write(Bus::Pio, 0xc004, &[0; 2]));
}

/// Nothing else may start inside a range, and a range may not enclose what is there.
#[test]
fn range_collisions() {
    let table = Table::new();
    let event = event();
    let _range = table
        .assign_range(Range::mmio(A, 8, 4), [&event; 4])
        .unwrap();
    let single = |address| table.assign(Key::mmio(address, 8), &event).map(drop);
    let range = |address, slots| {
        table
            .assign_range(Range::mmio(address, 8, slots), vec![&event; slots as usize])
            .map(drop)
    };
    for inside in [A, A + 1, A + 24, A + 31] {
        assert_eq!(single(inside), Err(AssignError::Collision), "{inside:#x}");
        assert_eq!(range(inside, 1), Err(AssignError::Collision), "{inside:#x}");
    }
    assert_eq!(range(A - 8, 2), Err(AssignError::Collision));
    assert_eq!(range(A - 64, 64), Err(AssignError::Collision));
    // What starts outside may reach in, as with single doorbells.
    for outside in [A - 8, A - 1, A + 32] {
        assert_eq!(single(outside), Ok(()), "{outside:#x}");
    }
    assert_eq!(range(A - 8, 1), Ok(()));
    assert_eq!(range(A + 32, 1), Ok(()));
}

/// What a range must be.
#[test]
fn range_validation() {
    let table = Table::new();
    let event = event();
    let assign = |range, targets| {
        let result = table.assign_range(range, vec![&event; targets]).map(drop);
        result.inspect_err(|&error| assert_becomes(error, ErrorKind::InvalidInput))
    };
    assert_eq!(assign(Range::mmio(A, 0, 1), 1), Err(AssignError::Stride));
    assert_eq!(assign(Range::mmio(A, 12, 1), 1), Err(AssignError::Stride));
    assert_eq!(assign(Range::mmio(A, 4, 0), 0), Err(AssignError::Slots));
    assert_eq!(assign(Range::mmio(A, 4, 2), 3), Err(AssignError::Slots));
    assert_eq!(
        assign(Range::mmio(A, 1 << 63, 2), 2),
        Err(AssignError::Wrap)
    );
    assert_eq!(
        assign(Range::mmio(u64::MAX - 7, 4, 2), 2),
        Err(AssignError::Wrap)
    );
    assert_eq!(assign(Range::mmio(u64::MAX - 8, 4, 2), 2), Ok(()));
    assert_eq!(
        assign(Range::mmio(A, 4, 1).with_length(3), 1),
        Err(AssignError::Length)
    );
}

/// The value is there when the event is, of each width; one event serves many cells.
#[test]
fn latest_values() {
    let table = Table::new();
    let kick = event();
    let cells: [Arc<Latest>; 2] = std::array::from_fn(|_| Arc::new(Latest::new(&kick, 99)));
    let _range = table.assign_range(Range::mmio(A, 8, 2), &cells).unwrap();
    let reader = table.reader();
    assert_eq!(cells[1].value(), 99);
    let value = 0x8182_8384_8586_8788_u64;
    for data in [
        &[0x88][..],
        &0x8788_u16.to_ne_bytes(),
        &0x8586_8788_u32.to_ne_bytes(),
        &value.to_ne_bytes(),
    ] {
        assert!(reader.write(Bus::Mmio, A + 8, data));
        let mask = u64::MAX >> (64 - 8 * data.len());
        assert_eq!((kick.read(), cells[1].value()), (1, value & mask));
    }
    assert_eq!(cells[0].value(), 99);
    // Of no width that a cell could keep.
    assert!(!reader.write(Bus::Mmio, A, &[0; 3]));
    assert!(!reader.write(Bus::Mmio, A, &[]));
    assert_eq!(kick.try_read(), None);
}

/// A full queue refuses, signals nothing, and has lost nothing.
#[test]
fn queue_refuses_when_full() {
    let table = Table::new();
    let kick = event();
    let queue = Arc::new(Queue::new(&kick, 2));
    let _range = table
        .assign_range(Range::mmio(A, 4, 3), [&queue; 3])
        .unwrap();
    let write = |slot: u64, value: u8| table.write(Bus::Mmio, A + 4 * slot, &[value]);
    assert!(write(2, 7) && write(0, 8));
    assert!(!write(1, 9));
    assert_eq!(kick.read(), 2);
    assert_eq!(queue.pop(), Some(Kick { slot: 2, value: 7 }));
    assert!(write(1, 9));
    assert_eq!(queue.pop(), Some(Kick { slot: 0, value: 8 }));
    assert_eq!(queue.pop(), Some(Kick { slot: 1, value: 9 }));
    assert_eq!((queue.pop(), kick.read()), (None, 1));
}

/// What is listed can be registered again, and says the same.
#[test]
fn snapshot_and_restore() {
    let table = Table::new();
    let events: [Arc<Event>; 3] = std::array::from_fn(|_| event());
    let _registrations = table
        .assign_all([
            Doorbell::new(Key::pio(0xc050, 2).with_datamatch(1), &events[1]),
            Doorbell::range(Range::mmio(A, 4, 2), &events[..2]),
            Doorbell::new(Key::mmio(A - 4, 0), &events[2]),
        ])
        .unwrap();
    assert!(table.write(Bus::Mmio, A + 4, &[0]));

    let restored = Table::new();
    let _again = restored.assign_all(table.doorbells()).unwrap();
    assert!(restored.write(Bus::Pio, 0xc050, &1_u16.to_ne_bytes()));
    assert_eq!(events[1].count(), 2);
    assert_eq!(format!("{restored:?}"), format!("{table:?}"));
    let addresses: Vec<u64> = restored.doorbells().iter().map(Doorbell::address).collect();
    assert_eq!(addresses, [A - 4, A, 0xc050]);
}
