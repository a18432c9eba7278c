//! A model of KVM's I/O bus: the order in which it keeps ioeventfds, and how it looks for one.
//!
//! KVM compares ranges by a relation that is not an order, because "inside" counts as equal. So its binary search may
//! miss a registered entry, depending on the other entries and on the order of registration.

use crate::sides::Write;
use doorbell::ioeventfd::{Bus, Key};
use std::cmp::Ordering;

/// One bus, in KVM's order.
#[derive(Debug, Default)]
pub struct KvmBus(Vec<(Key, usize)>);

impl KvmBus {
    /// A new entry goes before the first that is greater.
    pub fn insert(&mut self, key: Key, event: usize) {
        let new = (key.address, key.length.into());
        let place = self
            .0
            .iter()
            .position(|(other, _)| compare((other.address, other.length.into()), new).is_gt())
            .unwrap_or(self.0.len());
        self.0.insert(place, (key, event));
    }

    pub fn remove(&mut self, key: Key) {
        self.0.retain(|&(other, _)| other != key);
    }

    pub fn entries(&self) -> impl Iterator<Item = (Key, usize)> {
        self.0.iter().copied()
    }

    /// The event that is registered for a write, whether KVM finds it or not.
    pub fn registered(&self, write: Write) -> Option<usize> {
        self.entries()
            .find(|(key, _)| takes(key, write))
            .map(|(_, event)| event)
    }

    /// What KVM may ring: what its search finds. On a CPU with the fast path for memory-mapped doorbells of any length,
    /// KVM keeps those on a bus of their own as well, where none is missed.
    pub fn may_find(&self, write: Write) -> [Option<usize>; 2] {
        let fast = self
            .entries()
            .find(|(key, _)| key.bus == Bus::Mmio && key.length == 0 && takes(key, write));
        let search = self.search(write);
        [search, fast.map_or(search, |(_, event)| Some(event))]
    }

    /// Finds a place that compares equal by bisection, goes back to the first of the run of equals, and then along the
    /// run until an entry takes the write.
    fn search(&self, write: Write) -> Option<usize> {
        let access = (write.address, write.size as u64);
        let equal = |(key, _): &(Key, usize)| {
            compare(access, (key.address, key.length.into())) == Ordering::Equal
        };
        let hit = bisect(&self.0, |(key, _)| {
            compare(access, (key.address, key.length.into()))
        })?;
        let before = self.0[..hit].iter().rev().take_while(|e| equal(e)).count();
        self.0[hit - before..]
            .iter()
            .take_while(|e| equal(e))
            .find(|(key, _)| takes(key, write))
            .map(|&(_, event)| event)
    }
}

/// How `x` compares with `y`, both an address and a length. `x` is equal if it ends within `y` or with it, or if it
/// starts where `y` starts and `y` has no length.
fn compare(x: (u64, u64), y: (u64, u64)) -> Ordering {
    if x.0 < y.0 {
        return Ordering::Less;
    }
    let beyond = match y.1 {
        0 => x.0 > y.0,
        _ => x.0 + x.1 > y.0 + y.1,
    };
    match beyond {
        true => Ordering::Greater,
        false => Ordering::Equal,
    }
}

/// The kernel's binary search. In a total order it would not matter which of two middles the search looks at.
fn bisect<T>(mut entries: &[T], wanted: impl Fn(&T) -> Ordering) -> Option<usize> {
    let mut skipped = 0;
    while !entries.is_empty() {
        let middle = entries.len() / 2;
        match wanted(&entries[middle]) {
            Ordering::Equal => return Some(skipped + middle),
            Ordering::Less => entries = &entries[..middle],
            Ordering::Greater => {
                skipped += middle + 1;
                entries = &entries[middle + 1..];
            }
        }
    }
    None
}

/// Whether the doorbell matches a write.
fn takes(key: &Key, write: Write) -> bool {
    let place = key.bus == write.bus && key.address == write.address;
    let length = key.length == 0 || key.length as usize == write.size;
    place && length && key.datamatch.is_none_or(|value| value == write.data())
}
