//! Random sequences of assign, deassign and guest writes.
//!
//! KVM finds everything that is registered only if the registered ranges have certain forms. Each of the first tests
//! draws from one such domain, where every answer, signal and exit must be the same as KVM's. The last test draws from
//! everything: KVM must do what a model of its search predicts, and we must find what is registered.
//!
//! `PROPTEST_CASES` sets the number of sequences of each test.

use crate::i35_refused_by_us_alone;
use crate::sides::{BUSES, EVENTS, Sides, Tally, Write, key_at};
use doorbell::ioeventfd::{Bus, Key};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::{env, mem};

/// A place to register at: the address, and the length.
type Slot = (u64, u32);

/// Where the places start, within one page; for both buses, so that a confusion of the buses shows.
const BASE: u64 = 0x8100;

const LENGTHS: [u32; 4] = [1, 2, 4, 8];

/// Values to match and to write. Some differ only in bytes that a shorter write cuts off.
const VALUES: [u64; 6] = [0, 1, 0xff, 0x1_0001, 0x1_0000_0001, 0x8000_0000_0000_0001];

#[derive(Clone, Debug)]
enum Op {
    Assign(Key, usize),
    Deassign(Key, usize),
    Write(Write),
    /// Deassigns a registered key.
    Remove(Index),
    /// Makes a write that a registered key matches, of this size and this value if the key takes any.
    Hit(Index, u32, u64),
}

fn bus() -> impl Strategy<Value = Bus> {
    select(&BUSES[..])
}

/// A key that can be registered at one of the slots.
fn key(slots: Vec<Slot>) -> impl Strategy<Value = Key> {
    let value = prop::option::weighted(0.5, select(&VALUES[..]));
    (bus(), select(slots), value).prop_map(|(bus, (address, length), value)| {
        let mut key = Key::new(bus, address, length);
        key.datamatch = value
            .filter(|_| length > 0)
            .map(|value| value & (u64::MAX >> (64 - 8 * length)));
        key
    })
}

/// A key at the end of the address space, which may be invalid.
fn odd_key() -> impl Strategy<Value = Key> {
    let length = prop_oneof![select(vec![0, 1, 2, 4, 8]), 0..20_u32, any::<u32>()];
    let address = (0..20_u64).prop_map(|n| u64::MAX - n);
    let zero = prop::option::weighted(0.3, Just(0));
    (bus(), address, length, zero).prop_map(|(bus, address, length, datamatch)| {
        let mut key = Key::new(bus, address, length);
        key.datamatch = datamatch;
        key
    })
}

/// A write to one of the slots or next to it.
fn write(slots: Vec<Slot>) -> impl Strategy<Value = Op> {
    let size = select(&LENGTHS[..]);
    (bus(), select(slots), 0..6_u64, size, select(&VALUES[..])).prop_map(
        |(bus, (start, _), offset, size, value)| {
            Op::Write(write_at(bus, start - 2 + offset, size, value))
        },
    )
}

/// No port write has 8 bytes.
fn write_at(bus: Bus, address: u64, size: u32, value: u64) -> Write {
    let size = match bus {
        Bus::Mmio => size,
        Bus::Pio => size.min(4),
    };
    Write {
        bus,
        address,
        size: size as usize,
        value,
    }
}

fn op(slots: Vec<Slot>) -> impl Strategy<Value = Op> {
    prop_oneof![
        24 => (key(slots.clone()), 0..EVENTS).prop_map(|(key, event)| Op::Assign(key, event)),
        4 => (odd_key(), 0..EVENTS).prop_map(|(key, event)| Op::Assign(key, event)),
        3 => (key(slots.clone()), 0..EVENTS).prop_map(|(key, event)| Op::Deassign(key, event)),
        1 => (odd_key(), 0..EVENTS).prop_map(|(key, event)| Op::Deassign(key, event)),
        30 => write(slots),
        // KVM takes milliseconds for a removal.
        5 => any::<Index>().prop_map(Op::Remove),
        30 => hit(),
    ]
}

fn hit() -> impl Strategy<Value = Op> {
    (any::<Index>(), select(&LENGTHS[..]), select(&VALUES[..]))
        .prop_map(|(index, size, value)| Op::Hit(index, size, value))
}

fn ops(slots: impl Strategy<Value = Vec<Slot>>) -> impl Strategy<Value = Vec<Op>> {
    slots.prop_flat_map(|slots| prop::collection::vec(op(slots), 1..200))
}

/// Plays sequences to both sides; `write` compares what they do with a guest's write.
fn play(
    domain: &str,
    sequences: impl Strategy<Value = Vec<Op>>,
    write: impl Fn(&mut Sides, Write),
) {
    each(domain, sequences, |sides, sequence| {
        for op in sequence {
            apply(sides, op, &write);
        }
        // Every entry that is left is removed, with KVM's search among all of them.
        let left: Vec<_> = sides.registered().collect();
        for &(key, _) in &left {
            ring(sides, key, 4, 0, &write);
        }
        for (key, event) in left {
            assert_eq!(sides.deassign(key, event), Ok(()));
        }
    });
}

/// Runs a case, which must leave nothing registered, with each of many values.
fn each<S: Strategy>(what: &str, values: S, case: impl Fn(&mut Sides, S::Value)) {
    // A machine serves one case after the other. A case that fails takes its machine along.
    let spare = RefCell::new(Sides::new());
    if spare.borrow().is_none() {
        return;
    }
    let mut config = ProptestConfig {
        // The failure message holds the value.
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 100;
    }
    let total = RefCell::new(Tally::default());
    let result = TestRunner::new(config).run(&values, |value| {
        let spare_sides = spare.borrow_mut().take();
        let mut sides = spare_sides.or_else(Sides::new).expect("there was KVM");
        case(&mut sides, value);
        *total.borrow_mut() += mem::take(&mut sides.tally);
        spare.replace(Some(sides));
        Ok(())
    });
    println!("{what}: {}", total.borrow());
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn apply(sides: &mut Sides, op: Op, write: &impl Fn(&mut Sides, Write)) {
    match op {
        Op::Assign(key, event) => {
            let _ = sides.assign(key, event);
        }
        Op::Deassign(key, event) => {
            let _ = sides.deassign(key, event);
        }
        Op::Write(it) => write(sides, it),
        Op::Remove(index) => {
            if let Some((key, event)) = pick(sides, index) {
                assert_eq!(sides.deassign(key, event), Ok(()));
            }
        }
        Op::Hit(index, size, value) => {
            if let Some((key, _)) = pick(sides, index) {
                ring(sides, key, size, value, write);
            }
        }
    }
}

fn pick(sides: &Sides, index: Index) -> Option<(Key, usize)> {
    let registered: Vec<_> = sides.registered().collect();
    (!registered.is_empty()).then(|| *index.get(&registered))
}

fn ring(sides: &mut Sides, key: Key, size: u32, value: u64, write: &impl Fn(&mut Sides, Write)) {
    // The guest does not reach addresses at the end of the address space.
    if key.address < 1 << 16 {
        let size = if key.length == 0 { size } else { key.length };
        let value = key.datamatch.unwrap_or(value);
        write(sides, write_at(key.bus, key.address, size, value));
    }
}

/// KVM and our table do the same.
fn strict(sides: &mut Sides, write: Write) {
    sides.write(write);
}

fn any_length() -> impl Strategy<Value = u32> {
    select(&[0, 1, 2, 4, 8][..])
}

/// Slots at any distance from each other.
fn scattered(within: u64, length: impl Strategy<Value = u32>) -> impl Strategy<Value = Vec<Slot>> {
    prop::collection::vec((BASE..BASE + within, length), 1..16)
}

/// Slots in a row, with gaps between them.
fn row(
    gap: impl Strategy<Value = u64>,
    length: impl Strategy<Value = u32>,
) -> impl Strategy<Value = Vec<Slot>> {
    prop::collection::vec((gap, length), 1..16).prop_map(|ranges| {
        let mut end = BASE;
        let mut slots = Vec::new();
        for (gap, length) in ranges {
            slots.push((end + gap, length));
            end += gap + u64::from(length);
        }
        slots
    })
}

#[test]
fn all_of_any_length() {
    play("all of any length", ops(scattered(32, Just(0))), strict);
}

#[test]
fn all_of_one_length() {
    let slots = select(&LENGTHS[..]).prop_flat_map(|length| scattered(32, Just(length)));
    play("all of one length", ops(slots), strict);
}

#[test]
fn disjoint() {
    let slots = row(0..4_u64, select(&LENGTHS[..]));
    play("disjoint", ops(slots), strict);
}

#[test]
fn several_lengths_at_one_start() {
    let slots = row(0..4_u64, Just(8)).prop_map(|mut slots| {
        let (start, _) = slots[slots.len() / 2];
        slots.extend([1, 2, 4].map(|length| (start, length)));
        slots
    });
    play("several lengths at one start", ops(slots), strict);
}

#[test]
fn eight_bytes_apart() {
    let slots = row(8..12_u64, any_length());
    play("eight bytes apart", ops(slots), strict);
}

#[test]
fn registered_in_ascending_order() {
    let sequences = row(0..4_u64, any_length()).prop_flat_map(|slots| {
        let assigns = slots
            .iter()
            .enumerate()
            .flat_map(|(n, &(address, length))| {
                BUSES.map(|bus| Op::Assign(key_at(bus, address, length), n % EVENTS))
            });
        let assigns: Vec<_> = assigns.collect();
        let writes = prop::collection::vec(prop_oneof![hit(), write(slots)], 0..100);
        writes.prop_map(move |writes| [&assigns[..], &writes].concat())
    });
    play("registered in ascending order", sequences, strict);
}

#[test]
fn overlapping() {
    play(
        "overlapping",
        ops(scattered(16, any_length())),
        |sides, write| {
            sides.write_each(write);
        },
    );
}

#[test]
fn datamatch_wider_than_the_length() {
    let wide = (bus(), select(&[1, 2, 4][..]), any::<u64>(), any::<u64>()).prop_filter_map(
        "fits",
        |(bus, length, value, zeros)| {
            let value = value & zeros;
            (value >> (8 * length) != 0).then(|| key_at(bus, BASE, length).with_datamatch(value))
        },
    );
    each(
        "datamatch wider than the length",
        wide,
        i35_refused_by_us_alone,
    );
}
