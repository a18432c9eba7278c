//! ioeventfds of a real KVM, and our table on the exits of a second VM: the same calls and the same guest writes must
//! be answered alike, ring the same events, and leave the same writes to the device models.
//!
//! The cases of the ioeventfd reference (I1 to I62), and where they are:
//!
//! | case | test |
//! |---|---|
//! | I1 | `i01_lengths` |
//! | I7, I8 | `i07_wrap_around`, `i08_just_no_wrap_around` |
//! | I9 | `i09_what_is_not_checked` |
//! | I15, I55 | `i55_ten_thousand_entries` |
//! | I16, I20, I22 | `i16_nothing_to_deassign`, `i20_deassign_twice`, `i22_deassign_before_assign` |
//! | I19 | `i19_another_handle_of_the_event` |
//! | I21 | `i21_deassign_by_datamatch` |
//! | I23, I25, I26, I28 | `i23_all_pairs_at_one_address` |
//! | I27, I35 | `i35_…` and `random`, where we differ: nothing could ever ring it, so we refuse it |
//! | I29, I31 | `i29_overlap_at_another_address`, `i31_both_buses` |
//! | I32 to I34, I37 to I41 | `i32_…` to `i41_…` |
//! | I43 | `i43_count_saturates` |
//! | I44, I45, I46 | `i44_…`, `i45_…`, `i46_…`: the VMM gets the string, the halves, the read and the write |
//! | I49 to I52 | `i49_…` to `i52_…`, where KVM misses what is registered and we do not |
//! | I53 | the module `random` |
//! | I57, I58 | `i57_…`, `i58_…`, on each side alone |
//! | I59 | `i59_entry_outlives_every_handle_of_its_event`, where we differ: the registration can remove it |
//! | I2, I3, I5, I13, I17 | an event is not a number that could be wrong, and a key is not a pointer |
//! | I4, I10, I11 | a key has no flags, and no bus for s390's channel I/O |
//! | I14, I56 | a table has only doorbells on it |
//! | I47 | a write to memory reaches no bus and no VMM |
//! | I61 | needs no VM: the models and the stress test of the table |
//! | I62 | `i62_a_change_that_fails_half_way`, of our table only: by a panic, as a failed allocation ends the process |

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod guest;
mod occupied;
mod random;
mod search;
mod sides;
#[path = "../../common/vm.rs"]
mod vm;

use doorbell::Event;
use doorbell::ioeventfd::{Bus, Doorbell, Key, Table};
use guest::{Instruction, STRING};
use libc::{EEXIST, EINVAL, ENOENT};
use sides::{ALIAS, BUSES, Doorbells, Rung, Side, Sides, Write, key_at, mmio, pio};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use vm::Exit;

/// An address of a device, as a port and in memory-mapped I/O.
const A: u64 = 0x8040;

/// Runs a case, unless there is no KVM.
fn on_both(case: impl FnOnce(&mut Sides)) {
    if let Some(mut sides) = Sides::new() {
        case(&mut sides);
    }
}

#[test]
fn i01_lengths() {
    on_both(|sides| {
        for bus in BUSES {
            for length in [3, 5, 6, 7, 9, 16, 1 << 31, u32::MAX] {
                assert_eq!(sides.assign(key_at(bus, A, length), 0), Err(EINVAL));
            }
            for (place, length) in [0, 1, 2, 4, 8].into_iter().enumerate() {
                let address = A + 8 * place as u64;
                assert_eq!(sides.assign(key_at(bus, address, length), 0), Ok(()));
            }
            let matched = key_at(bus, 2 * A, 0).with_datamatch(0);
            assert_eq!(sides.assign(matched, 0), Err(EINVAL));
        }
    });
}

#[test]
fn i07_wrap_around() {
    on_both(|sides| {
        for bus in BUSES {
            for (address, length) in [(u64::MAX, 1), (u64::MAX - 7, 8), (u64::MAX - 2, 4)] {
                assert_eq!(sides.assign(key_at(bus, address, length), 0), Err(EINVAL));
            }
        }
    });
}

#[test]
fn i08_just_no_wrap_around() {
    on_both(|sides| {
        for bus in BUSES {
            for (address, length) in [(u64::MAX, 0), (u64::MAX - 1, 1), (u64::MAX - 8, 8)] {
                assert_eq!(sides.assign(key_at(bus, address, length), 0), Ok(()));
            }
        }
    });
}

#[test]
fn i09_what_is_not_checked() {
    on_both(|sides| {
        for key in [
            Key::mmio(A + 1, 8),
            Key::mmio(A + 11, 4),
            Key::pio(0x1_0000, 2),
            Key::pio(u64::MAX / 2, 1),
            Key::pio(A, 8),
        ] {
            assert_eq!(sides.assign(key, 0), Ok(()));
        }
        assert_eq!(sides.write(mmio(A + 1, 8, 0)), Some(0));
        assert_eq!(sides.write(mmio(A + 11, 4, 0)), Some(0));
        // No port write has 8 bytes.
        assert_eq!(sides.write(pio(A, 4, 0)), None);
    });
}

#[test]
fn i16_nothing_to_deassign() {
    on_both(|sides| {
        for bus in BUSES {
            assert_eq!(sides.deassign(key_at(bus, A, 4), 0), Err(ENOENT));
            // A key that could not have been registered is just not found.
            assert_eq!(sides.deassign(key_at(bus, A, 3), 0), Err(ENOENT));
            assert_eq!(sides.deassign(key_at(bus, u64::MAX, 8), 0), Err(ENOENT));
            let matched = key_at(bus, A, 0).with_datamatch(0);
            assert_eq!(sides.deassign(matched, 0), Err(ENOENT));
            assert_eq!(sides.assign(key_at(bus, A, 4), 0), Ok(()));
            for other in [
                key_at(bus, A, 2),
                key_at(bus, A, 0),
                key_at(bus, A + 1, 4),
                key_at(bus, A, 4).with_datamatch(0),
            ] {
                assert_eq!(sides.deassign(other, 0), Err(ENOENT));
            }
            assert_eq!(sides.deassign(key_at(bus, A, 4), 1), Err(ENOENT));
            assert_eq!(sides.deassign(key_at(bus, A, 4), 0), Ok(()));
        }
    });
}

#[test]
fn i19_another_handle_of_the_event() {
    on_both(|sides| {
        assert_eq!(sides.assign(Key::mmio(A, 4), 0), Ok(()));
        assert_eq!(sides.deassign(Key::mmio(A, 4), ALIAS), Ok(()));
        assert_eq!(sides.write(mmio(A, 4, 0)), None);
    });
}

#[test]
fn i20_deassign_twice() {
    on_both(|sides| {
        assert_eq!(sides.assign(Key::mmio(A, 4), 0), Ok(()));
        assert_eq!(sides.deassign(Key::mmio(A, 4), 0), Ok(()));
        assert_eq!(sides.deassign(Key::mmio(A, 4), 0), Err(ENOENT));
    });
}

#[test]
fn i21_deassign_by_datamatch() {
    on_both(|sides| {
        let key = Key::mmio(A, 4);
        assert_eq!(sides.assign(key.with_datamatch(5), 0), Ok(()));
        assert_eq!(sides.deassign(key.with_datamatch(6), 0), Err(ENOENT));
        assert_eq!(sides.deassign(key, 0), Err(ENOENT));
        assert_eq!(sides.write(mmio(A, 4, 5)), Some(0));
        assert_eq!(sides.deassign(key.with_datamatch(5), 0), Ok(()));
        assert_eq!(sides.write(mmio(A, 4, 5)), None);
    });
}

#[test]
fn i22_deassign_before_assign() {
    on_both(|sides| {
        for bus in BUSES {
            assert_eq!(sides.deassign(key_at(bus, A, 1), 0), Err(ENOENT));
            assert_eq!(sides.assign(key_at(bus, A, 1), 0), Ok(()));
            assert_eq!(sides.deassign(key_at(bus, A, 1), 0), Ok(()));
        }
    });
}

#[test]
fn i23_all_pairs_at_one_address() {
    on_both(|sides| {
        for bus in BUSES {
            let mut kinds = vec![key_at(bus, 0, 0)];
            for length in [1, 2, 4, 8] {
                let any = key_at(bus, 0, length);
                kinds.extend([any, any.with_datamatch(5), any.with_datamatch(6)]);
            }
            let places = (A..).step_by(16);
            let pairs = kinds
                .iter()
                .flat_map(|&first| kinds.iter().map(move |&second| (first, second)));
            for (address, (first, second)) in places.zip(pairs) {
                let meet = match (first, second) {
                    (first, second) if first.length == 0 || second.length == 0 => true,
                    (first, second) if first.length != second.length => false,
                    (first, second) => match (first.datamatch, second.datamatch) {
                        (Some(first), Some(second)) => first == second,
                        _ => true,
                    },
                };
                let expected = if meet { Err(EEXIST) } else { Ok(()) };
                let mut first = first;
                first.address = address;
                assert_eq!(sides.assign(first, 0), Ok(()));
                // The event of the other entry makes no difference.
                for event in [0, 1] {
                    let mut second = second;
                    second.address = address;
                    let answer = sides.assign(second, event);
                    assert_eq!(answer, expected, "{second:?} after {first:?}");
                    if answer == Ok(()) {
                        break;
                    }
                }
            }
        }
    });
}

#[test]
fn i29_overlap_at_another_address() {
    on_both(|sides| {
        for bus in BUSES {
            assert_eq!(sides.assign(key_at(bus, A, 8), 0), Ok(()));
            for (offset, length) in [(1, 8), (2, 4), (3, 0), (4, 4), (7, 1)] {
                assert_eq!(sides.assign(key_at(bus, A + offset, length), 1), Ok(()));
            }
        }
    });
}

#[test]
fn i31_both_buses() {
    on_both(|sides| {
        for (event, bus) in BUSES.into_iter().enumerate() {
            assert_eq!(sides.assign(key_at(bus, A, 0), event), Ok(()));
            for (offset, length, value) in [
                (0xc1, 1, 0x7f),
                (0xc2, 2, 0x1337),
                (0xc4, 4, 0xdead_beef),
                (0xc8, 8, 0xdead_beef_dead_beef),
            ] {
                let key = key_at(bus, A + offset, length).with_datamatch(value);
                assert_eq!(sides.assign(key, event), Ok(()));
            }
        }
        assert_eq!(sides.write(mmio(A, 1, 0)), Some(0));
        assert_eq!(sides.write(pio(A, 1, 0)), Some(1));
        assert_eq!(sides.deassign(Key::mmio(A, 0), 0), Ok(()));
        assert_eq!(sides.write(mmio(A, 1, 0)), None);
        assert_eq!(sides.write(pio(A, 1, 0)), Some(1));
    });
}

#[test]
fn i32_exact_address_and_length() {
    on_both(|sides| {
        assert_eq!(sides.assign(Key::mmio(A, 4), 0), Ok(()));
        assert_eq!(sides.write(mmio(A, 4, 7)), Some(0));
        for write in [
            mmio(A, 1, 7),
            mmio(A, 2, 7),
            mmio(A, 8, 7),
            mmio(A + 1, 4, 7),
            mmio(A + 2, 2, 7),
            mmio(A - 2, 4, 7),
        ] {
            assert_eq!(sides.write(write), None);
        }
    });
}

#[test]
fn i33_any_length() {
    on_both(|sides| {
        assert_eq!(sides.assign(Key::mmio(A, 0), 0), Ok(()));
        for size in [1, 2, 4, 8] {
            assert_eq!(sides.write(mmio(A, size, 7)), Some(0));
        }
        assert_eq!(sides.write(mmio(A + 1, 4, 7)), None);
        assert_eq!(sides.write(mmio(A - 2, 4, 7)), None);
    });
}

#[test]
fn i34_length_and_datamatch() {
    on_both(|sides| {
        let key = Key::mmio(A, 2).with_datamatch(5);
        assert_eq!(sides.assign(key, 0), Ok(()));
        assert_eq!(sides.write(mmio(A, 2, 5)), Some(0));
        for (size, value) in [(2, 6), (4, 5), (1, 5), (2, 0x105)] {
            assert_eq!(sides.write(mmio(A, size, value)), None);
        }
    });
}

#[test]
fn i35_datamatch_wider_than_the_length() {
    on_both(|sides| {
        for bus in BUSES {
            for (length, value) in [(1, 0x105), (2, 0x1_0005), (4, 5 << 32), (4, u64::MAX)] {
                i35_refused_by_us_alone(sides, key_at(bus, A, length).with_datamatch(value));
            }
        }
    });
}

fn i35_refused_by_us_alone(sides: &mut Sides, wide: Key) {
    assert_eq!(sides.kernel.doorbells.assign(wide, 0), Ok(()));
    assert_eq!(sides.ours.doorbells.assign(wide, 0), Err(EINVAL));
    // The device model gets every write from both.
    let value = wide.datamatch.expect("a wide one");
    for value in [value, !value] {
        let write = Write {
            bus: wide.bus,
            address: wide.address,
            size: wide.length as usize,
            value,
        };
        assert_eq!(sides.write(write), None);
    }
    // The value differs from the value of its low bytes. (I27)
    let low = value & (u64::MAX >> (64 - 8 * wide.length));
    let narrow = wide.with_datamatch(low);
    assert_eq!(sides.assign(narrow, 1), Ok(()));
    assert_eq!(sides.deassign(narrow, 1), Ok(()));

    assert_eq!(sides.kernel.doorbells.deassign(wide, 0), Ok(()));
    assert_eq!(sides.ours.doorbells.deassign(wide, 0), Err(ENOENT));
}

#[test]
fn i37_datamatch_of_eight_bytes() {
    on_both(|sides| {
        let value = 0x1122_3344_5566_7788;
        let key = Key::mmio(A, 8).with_datamatch(value);
        assert_eq!(sides.assign(key, 0), Ok(()));
        assert_eq!(sides.write(mmio(A, 8, value)), Some(0));
        for value in [value & 0xffff_ffff, value ^ 1 << 63] {
            assert_eq!(sides.write(mmio(A, 8, value)), None);
        }
    });
}

#[test]
fn i38_exact_port_and_length() {
    on_both(|sides| {
        assert_eq!(sides.assign(Key::pio(A, 2), 0), Ok(()));
        assert_eq!(sides.write(pio(A, 2, 7)), Some(0));
        for write in [pio(A, 1, 7), pio(A, 4, 7), pio(A + 1, 2, 7)] {
            assert_eq!(sides.write(write), None);
        }
    });
}

#[test]
fn i39_any_length_at_a_port() {
    on_both(|sides| {
        assert_eq!(sides.assign(Key::pio(A, 0), 0), Ok(()));
        for size in [1, 2, 4] {
            assert_eq!(sides.write(pio(A, size, 7)), Some(0));
        }
    });
}

#[test]
fn i40_one_event_for_each_value() {
    on_both(|sides| {
        for bus in BUSES {
            let key = key_at(bus, A, 2);
            assert_eq!(sides.assign(key.with_datamatch(1), 0), Ok(()));
            assert_eq!(sides.assign(key.with_datamatch(2), 1), Ok(()));
            for (value, rung) in [(1, Some(0)), (2, Some(1)), (3, None)] {
                let write = Write {
                    bus,
                    address: A,
                    size: 2,
                    value,
                };
                assert_eq!(sides.write(write), rung);
            }
        }
    });
}

#[test]
fn i41_one_event_at_three_addresses() {
    on_both(|sides| {
        for address in [A, A + 16, A + 32] {
            assert_eq!(sides.assign(Key::mmio(address, 4), 2), Ok(()));
        }
        for address in [A, A + 16, A + 32] {
            assert_eq!(sides.run(Instruction::Store(4), address, 0), []);
        }
        assert_eq!(sides.take(2), 3);
    });
}

#[test]
fn i43_count_saturates() {
    on_both(|sides| {
        assert_eq!(sides.assign(Key::mmio(A, 4), 0), Ok(()));
        sides.add(0, u64::MAX - 1);
        for _ in 0..2 {
            assert_eq!(sides.run(Instruction::Store(4), A, 0), []);
        }
        assert_eq!(sides.take(0), u64::MAX);
    });
}

#[test]
fn i44_string_rings_once_a_word() {
    on_both(|sides| {
        assert_eq!(sides.assign(Key::pio(A, 2), 0), Ok(()));
        assert_eq!(sides.run(Instruction::OutString, A, 0), []);
        assert_eq!(sides.take(0), STRING as u64);
    });
}

#[test]
fn i45_halves_of_a_write_across_pages() {
    on_both(|sides| {
        let page = 0xb000;
        assert_eq!(sides.assign(Key::mmio(page - 2, 2), 0), Ok(()));
        let second = Key::mmio(page, 2).with_datamatch(0x1122);
        assert_eq!(sides.assign(second, 1), Ok(()));
        assert_eq!(sides.run(Instruction::Store(4), page - 2, 0x1122_3344), []);
        assert_eq!([sides.take(0), sides.take(1)], [1, 1]);
    });
}

#[test]
fn i46_addition_reads_and_then_rings() {
    on_both(|sides| {
        let key = Key::mmio(A, 2).with_datamatch(7);
        assert_eq!(sides.assign(key, 0), Ok(()));
        let read = Exit::Read {
            bus: Bus::Mmio,
            address: A,
            size: 2,
        };
        assert_eq!(sides.run(Instruction::Add, A, 7), [read]);
        assert_eq!(sides.take(0), 1);
    });
}

/// Registers all entries at their offsets from A, in this order, each with an event of its own; then the guest writes
/// to the one at `target`.
fn in_order(bus: Bus, entries: &[(u64, u32)], target: usize) -> Option<Rung> {
    let mut sides = Sides::new()?;
    for (event, &(offset, length)) in entries.iter().enumerate() {
        let answer = sides.assign(key_at(bus, A + offset, length), event);
        assert_eq!(answer, Ok(()));
    }
    let (offset, length) = entries[target];
    let rung = sides.write_each(Write {
        bus,
        address: A + offset,
        size: if length == 0 { 4 } else { length as usize },
        value: 0,
    });
    assert_eq!(rung.ours, Some(target));
    Some(rung)
}

/// KVM misses the entry.
fn missed(bus: Bus, entries: &[(u64, u32)], target: usize) {
    if let Some(rung) = in_order(bus, entries, target) {
        assert_eq!(rung.kernel, None, "{entries:x?}");
    }
}

/// KVM finds the entry.
fn found(bus: Bus, entries: &[(u64, u32)], target: usize) {
    if let Some(rung) = in_order(bus, entries, target) {
        assert_eq!(rung.kernel, Some(target), "{entries:x?}");
    }
}

#[test]
fn i49_any_length_behind_a_neighbour() {
    // With memory-mapped I/O it depends on the CPU: some have a fast path for entries without a length, which misses
    // none.
    missed(Bus::Pio, &[(0x10, 0), (0xc, 4)], 0);
    for bus in BUSES {
        found(bus, &[(0xc, 4), (0x10, 0)], 1);
    }
}

#[test]
fn i50_aligned_ranges() {
    missed(Bus::Mmio, &[(0, 8), (0xd, 1), (8, 8)], 2);
    found(Bus::Mmio, &[(0, 8), (8, 8), (0xd, 1)], 1);
}

#[test]
fn i51_range_before_what_it_contains() {
    missed(Bus::Pio, &[(0, 2), (0x12, 2), (0x10, 4)], 2);
    found(Bus::Pio, &[(0, 2), (0x10, 4), (0x12, 2)], 1);
}

#[test]
fn i52_ascending_ranges() {
    let entries = [(4, 4), (6, 2), (8, 8), (0xa, 2), (0xc, 4)];
    missed(Bus::Pio, &entries, 4);
}

#[test]
fn i55_ten_thousand_entries() {
    on_both(|sides| {
        let count = 10_000;
        let address = |n: u64| 0x8000_0000 + 16 * n;
        for n in 0..count {
            // The entries come in no order: 7919 is prime.
            let n = n * 7919 % count;
            let event = (n % 4) as usize;
            assert_eq!(sides.assign(Key::mmio(address(n), 4), event), Ok(()));
        }
        for n in [0, 1, count / 2, count - 2, count - 1] {
            let event = (n % 4) as usize;
            assert_eq!(sides.write(mmio(address(n), 4, 0)), Some(event));
            assert_eq!(sides.write(mmio(address(n) + 4, 4, 0)), None);
        }
        assert_eq!(sides.write(mmio(address(count), 4, 0)), None);
    });
}

/// Runs a case with each side alone, unless there is no KVM.
macro_rules! on_either {
    ($case:ident) => {{
        if let (Some(kernel), Some(ours)) = (Side::kernel(), Side::ours()) {
            $case(kernel);
            $case(ours);
        }
    }};
}

#[test]
fn i57_nothing_rings_after_deassign() {
    on_either!(deassign_under_fire);
}

/// The guest writes as fast as it can to a doorbell that comes and goes.
fn deassign_under_fire<D: Doorbells>(mut side: Side<D>) {
    let key = Key::mmio(A, 2);
    let flag = side.machine.flag();
    let doorbells = &side.doorbells;
    let machine = &mut side.machine;
    thread::scope(|scope| {
        scope.spawn(|| {
            machine.run(Instruction::StoreUntilFlag, A, 0, |exit| match exit {
                Exit::Write { bus, address, data } => {
                    doorbells.write(bus, address, &data);
                }
                exit => panic!("{exit:?}"),
            });
        });
        // The guest ends its loop even if this panics.
        let _end = flag.set_when_dropped();
        for _ in 0..50 {
            assert_eq!(doorbells.assign(key, 0), Ok(()));
            let patience = Instant::now() + Duration::from_secs(20);
            while doorbells.take(0) == 0 {
                assert!(Instant::now() < patience, "the guest rings nothing");
                thread::yield_now();
            }
            assert_eq!(doorbells.deassign(key, 0), Ok(()));
            doorbells.take(0);
            thread::sleep(Duration::from_millis(2));
            assert_eq!(doorbells.take(0), 0);
        }
    });
}

#[test]
fn i58_assigned_is_found() {
    on_either!(assign_before_write);
}

/// The guest waits until the doorbell is there, and then writes to it.
fn assign_before_write<D: Doorbells>(mut side: Side<D>) {
    let flag = side.machine.flag();
    let doorbells = &side.doorbells;
    let machine = &mut side.machine;
    for round in 0..100 {
        let key = Key::mmio(A + 16 * round, 2);
        flag.set(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                machine.run(
                    Instruction::StoreAfterFlag,
                    key.address,
                    0,
                    |exit| match exit {
                        Exit::Write { bus, address, data } => {
                            assert!(doorbells.write(bus, address, &data), "round {round}");
                        }
                        exit => panic!("{exit:?}"),
                    },
                );
            });
            let _go = flag.set_when_dropped();
            assert_eq!(doorbells.assign(key, 0), Ok(()));
        });
        assert_eq!(doorbells.take(0), 1);
    }
}

#[test]
fn i59_entry_outlives_every_handle_of_its_event() {
    on_both(|sides| {
        let key = Key::mmio(A, 4);
        assert_eq!(sides.kernel.doorbells.assign(key, 1), Ok(()));
        let ours = &sides.ours.doorbells;
        let registration = ours.table.assign(key, &ours.events[1]).unwrap();
        sides.kernel.doorbells.replace(1);
        sides.ours.doorbells.replace(1);

        assert_eq!(sides.run(Instruction::Store(4), A, 0), []);
        assert_eq!(sides.assign(key, 2), Err(EEXIST));
        assert_eq!(sides.deassign(key, 1), Err(ENOENT));

        // KVM's entry stays for good.
        drop(registration);
        assert_eq!(sides.kernel.run(Instruction::Store(4), A, 0), []);
        assert_eq!(sides.ours.run(Instruction::Store(4), A, 0).len(), 1);
        assert_eq!(sides.ours.doorbells.assign(key, 2), Ok(()));
    });
}

/// KVM loses everything on a bus if it runs out of memory when it removes an entry. Our table loses nothing if a change
/// is broken off, whatever change it was.
#[test]
fn i62_a_change_that_fails_half_way() {
    let table = Table::new();
    let event = Arc::new(Event::new(0));
    let doorbell = |n: u64| Doorbell::new(Key::mmio(A + 16 * n, 4), &event);
    let mut registrations = table.assign_all((0..8).map(doorbell)).unwrap();
    let broken_off = || {
        (0..4).map(|n| {
            if n < 3 {
                doorbell(n)
            } else {
                panic!("as told")
            }
        })
    };
    let attempts: [&mut dyn FnMut(); 3] = [
        &mut || table.deassign_all(broken_off()).unwrap(),
        &mut || drop(table.assign_all(broken_off())),
        &mut || table.replace(&mut registrations, broken_off()).unwrap(),
    ];
    for attempt in attempts {
        assert!(catch_unwind(AssertUnwindSafe(attempt)).is_err());
        assert_eq!(table.doorbells(), (0..8).map(doorbell).collect::<Vec<_>>());
        for n in 0..8 {
            assert!(table.write(Bus::Mmio, A + 16 * n, &[0; 4]));
        }
        assert_eq!(event.try_read(), Some(8));
    }
    // The registrations still work.
    drop(registrations);
    assert!(table.doorbells().is_empty());
}
