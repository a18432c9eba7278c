//! The memory with store buffers behaves as one: what x86 allows is found, and what x86 forbids is not.

use loom_tests::store_buffers::Step::{Await, Fence, HeavyBarrier, Load, Store, Update};
use loom_tests::store_buffers::{DEADLOCK, END, Protocol, Registers, Step};

const X: usize = 0;
const Y: usize = 1;

fn two(first: &[Step], second: &[Step], at_end: fn(&[u64], &[Registers]) -> bool) -> Protocol {
    Protocol {
        memory: vec![0; 2],
        threads: vec![first.to_vec(), second.to_vec()],
        at_end,
    }
}

/// Whether it can happen that both loads of a Dekker handshake see nothing.
fn both_miss(between_first: &[Step], between_second: &[Step]) -> bool {
    let side = |mine, between: &[Step], others| {
        [&[Store(mine, |_| 1)], between, &[Load(others, 0)]].concat()
    };
    let protocol = two(
        &side(X, between_first, Y),
        &side(Y, between_second, X),
        |_, registers| registers.iter().any(|of| of[0] == 1),
    );
    match protocol.explore() {
        Ok(_) => false,
        Err(wrong) => {
            assert_eq!(wrong.what, END);
            true
        }
    }
}

#[test]
fn store_then_load() {
    assert!(both_miss(&[], &[]));
    assert!(both_miss(&[Fence], &[]));
    assert!(both_miss(&[], &[Fence]));
    assert!(!both_miss(&[Fence], &[Fence]));
}

/// A heavy barrier on one side replaces a fence on each side, unless it comes too early or too late.
#[test]
fn a_heavy_barrier_is_a_fence_of_all() {
    assert!(!both_miss(&[], &[HeavyBarrier]));
    assert!(!both_miss(&[HeavyBarrier], &[HeavyBarrier]));
    let early = two(
        &[Store(X, |_| 1), Load(Y, 0)],
        &[HeavyBarrier, Store(Y, |_| 1), Load(X, 0)],
        |_, registers| registers.iter().any(|of| of[0] == 1),
    );
    assert!(early.explore().is_err());
    let late = two(
        &[Store(X, |_| 1), Load(Y, 0)],
        &[Store(Y, |_| 1), Load(X, 0), HeavyBarrier],
        |_, registers| registers.iter().any(|of| of[0] == 1),
    );
    assert!(late.explore().is_err());
}

/// Stores of one thread arrive in their order, and loads are made in theirs.
#[test]
fn message_passing() {
    let reader = [Load(Y, 0), Load(X, 1)];
    let is_passed =
        |_: &[u64], registers: &[Registers]| registers[1][0] == 0 || registers[1][1] == 1;
    let in_order = [Store(X, |_| 1), Store(Y, |_| 1)];
    two(&in_order, &reader, is_passed).check("message_passing");
    let other_order = [Store(Y, |_| 1), Store(X, |_| 1)];
    assert!(two(&other_order, &reader, is_passed).explore().is_err());
}

#[test]
fn a_thread_sees_its_own_stores() {
    two(
        &[Store(X, |_| 1), Store(X, |_| 2), Load(X, 0)],
        &[],
        |_, registers| registers[0][0] == 2,
    )
    .check("a_thread_sees_its_own_stores");
}

/// A read-modify-write is one access; a load and a store are two.
#[test]
fn additions() {
    let add = [Update(X, 0, |registers| registers[0] + 1)];
    two(&add, &add, |memory, _| memory[X] == 2).check("additions");
    let load_and_store = [Load(X, 0), Store(X, |registers| registers[0] + 1)];
    let protocol = two(&load_and_store, &add, |memory, _| memory[X] == 2);
    assert!(protocol.explore().is_err());
}

#[test]
fn who_waits_for_ever_is_found() {
    let wait = [Await(X, 0, |registers| registers[0] == 1)];
    two(&wait, &[Store(X, |_| 1)], |_, _| true).check("who_waits");
    let wrong = two(&wait, &[Store(X, |_| 2)], |_, _| true).explore();
    assert_eq!(wrong.unwrap_err().what, DEADLOCK);
}
