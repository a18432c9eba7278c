//! The table without a virtual machine: random scripts against a naive model, cases that have no counterpart in KVM,
//! and many threads at once. `tests/kvm/ioeventfd` has the cases that KVM has too.
//!
//! Under a sanitizer the tests also notice memory that is used after it was freed, or never freed. AddressSanitizer
//! found nothing: `RUSTFLAGS=-Zsanitizer=address cargo +nightly test --target x86_64-unknown-linux-gnu --test
//! ioeventfd`.

#[path = "../common/errors.rs"]
mod errors;
mod script;
mod state;
mod threads;

use arbitrary::{Arbitrary, Unstructured};
use doorbell::Event;
use doorbell::event::EventHandle;
use doorbell::ioeventfd::{
    BatchError, Bus, DeassignError, Doorbell, DoorbellArray, DoorbellError, Key, Kick, Latest,
    Registration, Table, Target, ValueQueue,
};
use errors::assert_becomes;
use proptest::prelude::*;
use script::Script;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const A: u64 = 0xe000_3000;

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The table gives the same results as a list that is scanned.
    #[test]
    fn scripts(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).expect("any bytes are a script");
        script.compare();
    }
}

/// More addresses than a reader remembers, on both buses, while doorbells come and go: the reader finds what a search
/// finds.
#[test]
fn a_reader_remembers_less_than_there_is() {
    let mut random = fastrand::Rng::with_seed(1);
    let event = event();
    for with_range in [false, true] {
        let table = Table::new();
        let reader = table.reader();
        let mut there = BTreeMap::new();
        if with_range {
            let array = DoorbellArray::mmio(1 << 20, 4, 64);
            let targets = (0..64).map(|_| &event);
            table.assign_array(array, targets).unwrap().keep();
        }
        for _ in 0..200 {
            for _ in 0..20 {
                let bus = [Bus::Mmio, Bus::Pio][random.usize(..2)];
                let key = Key::new(bus, random.u64(..1000), 4);
                match there.remove(&key) {
                    Some(registration) => drop::<Registration>(registration),
                    None => _ = there.insert(key, table.assign(key, &event).unwrap()),
                }
            }
            for _ in 0..500 {
                let bus = [Bus::Mmio, Bus::Pio][random.usize(..2)];
                let key = Key::new(bus, random.u64(..1000), 4);
                // Another length makes another doorbell.
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

/// A kept doorbell holds its event. No other handle is left behind, of the table or of the event.
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

/// A batch registers all doorbells or none, and its error says which is wrong, and why.
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
            DoorbellError::Length,
            ErrorKind::InvalidInput,
        ),
        (
            vec![at(A, 4), at(A + 8, 4)],
            1,
            DoorbellError::Collision,
            ErrorKind::AlreadyExists,
        ),
        (
            vec![at(A, 4), at(A + 4, 4), at(A, 0)],
            2,
            DoorbellError::Collision,
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

/// Doorbells move, even to places of others in the batch, and all stay where they were if one cannot move.
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
            error: DoorbellError::Collision
        })
    );
    assert!(table.write(Bus::Mmio, A, &[0; 4]));
    assert_eq!((events[0].count(), events[1].count()), (0, 2));

    table.replace(&mut registrations, []).unwrap();
    assert!(registrations.is_empty());
    assert_eq!(table.doorbells().len(), 1);
    drop(other);
}

/// An array rings the slot that a write starts at, and no write between the slots or beyond the last one.
#[test]
fn range_slots() {
    let table = Table::new();
    let events: [Arc<Event>; 3] = std::array::from_fn(|_| event());
    let array = DoorbellArray::pio(0xc000, 4, 3).with_length(2);
    let registration = table.assign_array(array, &events).unwrap();
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

/// No other doorbell may start inside an array, and an array may not enclose an existing doorbell.
#[test]
fn range_collisions() {
    let table = Table::new();
    let event = event();
    let _range = table
        .assign_array(DoorbellArray::mmio(A, 8, 4), [&event; 4])
        .unwrap();
    let single = |address| table.assign(Key::mmio(address, 8), &event).map(drop);
    let array = |address, slots| {
        table
            .assign_array(
                DoorbellArray::mmio(address, 8, slots),
                vec![&event; slots as usize],
            )
            .map(drop)
    };
    for inside in [A, A + 1, A + 24, A + 31] {
        assert_eq!(single(inside), Err(DoorbellError::Collision), "{inside:#x}");
        assert_eq!(
            array(inside, 1),
            Err(DoorbellError::Collision),
            "{inside:#x}"
        );
    }
    assert_eq!(array(A - 8, 2), Err(DoorbellError::Collision));
    assert_eq!(array(A - 64, 64), Err(DoorbellError::Collision));
    // A doorbell that starts outside may reach in, as with single doorbells.
    for outside in [A - 8, A - 1, A + 32] {
        assert_eq!(single(outside), Ok(()), "{outside:#x}");
    }
    assert_eq!(array(A - 8, 1), Ok(()));
    assert_eq!(array(A + 32, 1), Ok(()));
}

/// Valid and invalid arrays.
#[test]
fn array_validation() {
    let table = Table::new();
    let event = event();
    let assign = |array, targets| {
        let result = table.assign_array(array, vec![&event; targets]).map(drop);
        result.inspect_err(|&error| assert_becomes(error, ErrorKind::InvalidInput))
    };
    assert_eq!(
        assign(DoorbellArray::mmio(A, 12, 1), 1),
        Err(DoorbellError::Stride)
    );
    assert_eq!(
        assign(DoorbellArray::mmio(A, 4, 0), 0),
        Err(DoorbellError::Slots)
    );
    assert_eq!(
        assign(DoorbellArray::mmio(A, 4, 2), 3),
        Err(DoorbellError::Slots)
    );
    assert_eq!(
        assign(DoorbellArray::mmio(A, 1 << 63, 2), 2),
        Err(DoorbellError::Wrap)
    );
    assert_eq!(
        assign(DoorbellArray::mmio(u64::MAX - 7, 4, 2), 2),
        Err(DoorbellError::Wrap)
    );
    assert_eq!(assign(DoorbellArray::mmio(u64::MAX - 8, 4, 2), 2), Ok(()));
    assert_eq!(
        assign(DoorbellArray::mmio(A, 4, 1).with_length(3), 1),
        Err(DoorbellError::Length)
    );
}

/// With a `notify_off_multiplier` of 0, all queues have one address, which no other doorbell may have, and the value of
/// a 2-byte write selects the queue. The table and a reader find the same.
#[test]
fn an_array_without_a_stride_goes_by_the_value_written() {
    let table = Table::new();
    let reader = table.reader();
    let kick = event();
    let queue = Arc::new(ValueQueue::new(&kick, 8));
    let events: [Arc<Event>; 3] = std::array::from_fn(|_| event());
    let array = DoorbellArray::virtio_pci(A, 0, 4);
    assert_eq!((array.stride, array.slots, array.length), (0, 4, 2));
    let mut targets: Vec<Target> = events.iter().map(Target::from).collect();
    targets.push((&queue).into());
    let registration = table.assign_array(array, &targets).unwrap();

    type Write<'a> = &'a dyn Fn(u64, &[u8]) -> bool;
    let by_table: Write = &|address, data| table.write(Bus::Mmio, address, data);
    let by_reader: Write = &|address, data| reader.write(Bus::Mmio, address, data);
    for write in [by_table, by_reader, by_reader] {
        for (slot, event) in (0_u16..).zip(&events) {
            assert!(write(A, &slot.to_ne_bytes()));
            assert_eq!(event.try_read(), Some(1), "{slot}");
        }
        assert!(write(A, &3_u16.to_ne_bytes()));
        assert_eq!(queue.pop(), Some(Kick::new(3, 3)));
        assert_eq!(kick.try_read(), Some(1));
        for other in [4_u16, 0x100, 0x103, u16::MAX] {
            assert!(!write(A, &other.to_ne_bytes()), "{other:#x}");
        }
        assert!(!write(A, &[0]) && !write(A, &[0; 4]) && !write(A, &[0; 8]));
        assert!(!write(A + 1, &[0; 2]) && !write(A + 2, &[0; 2]) && !write(A - 2, &[0; 2]));
    }
    assert_eq!(events.each_ref().map(|event| event.count()), [0; 3]);

    // The address is taken, for all lengths; the next one is not.
    let single = |key| table.assign(key, &kick).map(drop);
    for length in [0, 1, 2, 4, 8] {
        let key = Key::mmio(A, length);
        assert_eq!(single(key), Err(DoorbellError::Collision), "{length}");
    }
    assert_eq!(single(Key::mmio(A + 1, 2)), Ok(()));
    let spread = table.assign_array(DoorbellArray::mmio(A - 8, 8, 2), [&kick; 2]);
    assert_eq!(spread.map(drop), Err(DoorbellError::Collision));
    drop(registration);
    assert_eq!(single(Key::mmio(A, 8)), Ok(()));

    // Slot by slot, this is what KVM would be given.
    let keys: Vec<_> = (0..5).map(|slot| array.slot(slot)).collect();
    let key = |slot| Some(Key::mmio(A, 2).with_datamatch(slot));
    assert_eq!(keys, [key(0), key(1), key(2), key(3), None]);
    let spread = DoorbellArray::virtio_pci(A, 4, 2);
    let keys = [0, 1, 2].map(|slot| spread.slot(slot));
    assert_eq!(
        keys,
        [Some(Key::mmio(A, 0)), Some(Key::mmio(A + 4, 0)), None]
    );
}

/// virtio-mmio's register QueueNotify: 4 bytes at 0x50, whose value is the queue.
#[test]
fn the_queues_of_virtio_mmio() {
    let table = Table::new();
    let queues = [0; 3].map(|count| Arc::new(Event::new(count)));
    let array = DoorbellArray::virtio_mmio(A, 3);
    let _doorbells = table.assign_array(array, &queues).unwrap();
    let key = |queue| Some(Key::mmio(A + 0x50, 4).with_datamatch(queue));
    let keys = [0, 1, 2, 3].map(|slot| array.slot(slot));
    assert_eq!(keys, [key(0), key(1), key(2), None]);

    let write = |offset, data: &[u8]| table.write(Bus::Mmio, A + offset, data);
    assert!(write(0x50, &2_u32.to_ne_bytes()));
    let others: [(u64, &[u8]); 6] = [
        (0x50, &3_u32.to_ne_bytes()),
        (0x50, &0x1_0002_u32.to_ne_bytes()),
        (0x50, &2_u16.to_ne_bytes()),
        (0x50, &2_u64.to_ne_bytes()),
        (0x4c, &2_u32.to_ne_bytes()),
        (0, &2_u32.to_ne_bytes()),
    ];
    for (offset, data) in others {
        assert!(!write(offset, data), "{offset:#x} {data:?}");
    }
    assert_eq!(queues.each_ref().map(|queue| queue.count()), [0, 0, 1]);

    let beyond = DoorbellArray::virtio_mmio(u64::MAX - 1, 3);
    let assigned = table.assign_array(beyond, &queues).map(drop);
    assert_eq!(assigned, Err(DoorbellError::Wrap));
}

/// What a target keeps is found again by its kind.
#[test]
fn what_kind_a_target_is() {
    let kick = event();
    let latest = Arc::new(Latest::new(&kick, 7));
    let queue = Arc::new(ValueQueue::new(&kick, 8));
    let targets = [Target::from(&kick), (&latest).into(), (&queue).into()];
    let found: Vec<_> = targets.iter().map(Target::latest).collect();
    assert!(matches!(found[..], [None, Some(found), None] if Arc::ptr_eq(found, &latest)));
    let found: Vec<_> = targets.iter().map(Target::value_queue).collect();
    assert!(matches!(found[..], [None, None, Some(found)] if Arc::ptr_eq(found, &queue)));
}

/// Valid and invalid arrays without a stride, and the advice that the errors give.
#[test]
fn an_array_without_a_stride_needs_a_length() {
    let table = Table::new();
    let event = event();
    let assign = |array: DoorbellArray| {
        let targets = vec![&event; array.slots as usize];
        table.assign_array(array, targets).map(drop)
    };
    let array = DoorbellArray::mmio(A, 0, 256);
    let error = assign(array).unwrap_err();
    assert_eq!(error, DoorbellError::WildcardDatamatch);
    assert!(
        error.to_string().contains("stride 0, needs a length"),
        "{error}"
    );
    let error = assign(DoorbellArray::mmio(A, 3, 1)).unwrap_err();
    assert!(error.to_string().contains("or 0"), "{error}");
    assert_eq!(assign(array.with_length(1)), Ok(()));
    let wide = DoorbellArray::mmio(A, 0, 257);
    assert_eq!(
        assign(wide.with_length(1)),
        Err(DoorbellError::DatamatchWidth)
    );
    assert_eq!(assign(wide.with_length(2)), Ok(()));
    let none = DoorbellArray::mmio(A, 0, 0);
    assert_eq!(assign(none.with_length(2)), Err(DoorbellError::Slots));
    assert_eq!(assign(wide.with_length(3)), Err(DoorbellError::Length));
    let end = DoorbellArray::mmio(u64::MAX - 2, 0, 2);
    assert_eq!(assign(end.with_length(2)), Ok(()));
    assert_eq!(assign(end.with_length(4)), Err(DoorbellError::Wrap));
}

/// When the event is signalled, the cell has the value, for each width; one event serves many cells.
#[test]
fn latest_values() {
    let table = Table::new();
    let kick = event();
    let cells: [Arc<Latest>; 2] = std::array::from_fn(|_| Arc::new(Latest::new(&kick, 99)));
    let _range = table
        .assign_array(DoorbellArray::mmio(A, 8, 2), &cells)
        .unwrap();
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
    // The write has a width that no cell can keep.
    assert!(!reader.write(Bus::Mmio, A, &[0; 3]));
    assert!(!reader.write(Bus::Mmio, A, &[]));
    assert_eq!(kick.try_read(), None);
}

/// A full queue refuses a write, signals nothing, and loses nothing.
#[test]
fn queue_refuses_when_full() {
    let table = Table::new();
    let kick = event();
    let queue = Arc::new(ValueQueue::new(&kick, 2));
    let _range = table
        .assign_array(DoorbellArray::mmio(A, 4, 3), [&queue; 3])
        .unwrap();
    let write = |slot: u64, value: u8| table.write(Bus::Mmio, A + 4 * slot, &[value]);
    assert!(write(2, 7) && write(0, 8));
    assert!(!write(1, 9));
    assert_eq!(kick.read(), 2);
    assert_eq!(queue.pop(), Some(Kick::new(2, 7)));
    assert!(write(1, 9));
    assert_eq!(queue.pop(), Some(Kick::new(0, 8)));
    assert_eq!(queue.pop(), Some(Kick::new(1, 9)));
    assert_eq!((queue.pop(), kick.read()), (None, 1));
}

/// Listed doorbells can be registered again, and are then listed the same.
#[test]
fn snapshot_and_restore() {
    let table = Table::new();
    let events: [Arc<Event>; 3] = std::array::from_fn(|_| event());
    let _registrations = table
        .assign_all([
            Doorbell::new(Key::pio(0xc050, 2).with_datamatch(1), &events[1]),
            Doorbell::array(DoorbellArray::mmio(A, 4, 2), &events[..2]),
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

/// The owner of an event can do anything when it is dropped, such as change the table: no call drops the last handle of
/// an event while it holds the table.
#[test]
fn the_last_handle_of_an_event_changes_the_table() {
    struct Device {
        kick: Event,
        table: Table,
        registration: Option<Registration>,
        dropped: Arc<AtomicUsize>,
    }
    impl Drop for Device {
        fn drop(&mut self) {
            drop(self.registration.take());
            let key = Key::mmio(0x9000, 4);
            drop(self.table.assign(key, event()).unwrap());
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
    let _watchdog = threads::watchdog();
    let table = Table::new();
    let dropped = Arc::new(AtomicUsize::new(0));
    let kick = |address| {
        let registration = table.assign(Key::mmio(address, 4), event()).unwrap();
        let device = Arc::new(Device {
            kick: Event::new(0),
            table: table.clone(),
            registration: Some(registration),
            dropped: Arc::clone(&dropped),
        });
        EventHandle::of_field(&device, |device| &device.kick)
    };
    let is_dropped = |times| {
        // The drop may happen on another thread, which was in a lookup.
        while dropped.load(Ordering::Relaxed) != times {
            doorbell::reclaim();
            thread::yield_now();
        }
        dropped.store(0, Ordering::Relaxed);
    };
    drop(table.assign(Key::mmio(A, 4), kick(0)).unwrap());
    is_dropped(1);
    let handle = kick(0);
    table.assign(Key::mmio(A, 4), &handle).unwrap().keep();
    table.deassign(Key::mmio(A, 4), handle).unwrap();
    is_dropped(1);
    let mut registrations = vec![table.assign(Key::mmio(A, 4), kick(0)).unwrap()];
    let moved = Doorbell::new(Key::mmio(A + 8, 4), event());
    table.replace(&mut registrations, [moved]).unwrap();
    is_dropped(1);
    assert!(table.assign(Key::mmio(A + 8, 4), kick(0)).is_err());
    assert!(table.assign(Key::mmio(A, 3), kick(0)).is_err());
    assert!(table.deassign(Key::mmio(A, 4), kick(0)).is_err());
    is_dropped(3);
    drop(registrations);
    assert!(table.doorbells().is_empty());
}
