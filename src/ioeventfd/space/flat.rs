//! From regions with doorbells at offsets to doorbells at addresses, and what changes from one such list to the next.

use super::super::{AssignError, Bus, DeassignError, Key};
use super::{AddError, Doorbell};
use crate::Event;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A region as the address space knows it.
#[derive(Debug)]
pub(super) struct Placed {
    pub bus: Bus,
    /// `base + size` fits in 64 bits.
    pub base: Option<u64>,
    pub size: u64,
    pub priority: i32,
    pub enabled: bool,
    /// Greater in the one mapped later.
    pub mapped: u64,
    /// At offsets, sorted by key. No two collide.
    pub doorbells: Vec<Doorbell>,
}

impl Placed {
    pub fn new(bus: Bus, size: u64, priority: i32) -> Self {
        Placed {
            bus,
            base: None,
            size,
            priority,
            enabled: true,
            mapped: 0,
            doorbells: Vec::new(),
        }
    }

    pub fn add(
        &mut self,
        offset: u64,
        length: u32,
        datamatch: Option<u64>,
        event: &Arc<Event>,
    ) -> Result<(), AddError> {
        let key = self.key(offset, length, datamatch);
        key.validate()?;
        // A doorbell of any length has its first byte, at least.
        let end = offset.checked_add(u64::from(length.max(1)));
        if end.is_none_or(|end| end > self.size) {
            return Err(AddError::Outside);
        }
        // Only those at the same address can collide.
        let rest = &self.doorbells[self.first_from(offset)..];
        let mut there = rest.iter().take_while(|other| other.key.address == offset);
        if there.any(|other| other.key.collides(&key)) {
            return Err(AssignError::Collision.into());
        }
        let place = self.doorbells.partition_point(|other| other.key < key);
        let event = Arc::clone(event);
        self.doorbells.insert(place, Doorbell { key, event });
        Ok(())
    }

    pub fn del(
        &mut self,
        offset: u64,
        length: u32,
        datamatch: Option<u64>,
        event: &Arc<Event>,
    ) -> Result<(), DeassignError> {
        let key = self.key(offset, length, datamatch);
        let found = self.doorbells.binary_search_by(|other| other.key.cmp(&key));
        let place = found.map_err(|_| DeassignError)?;
        if !Arc::ptr_eq(&self.doorbells[place].event, event) {
            return Err(DeassignError);
        }
        self.doorbells.remove(place);
        Ok(())
    }

    fn key(&self, offset: u64, length: u32, datamatch: Option<u64>) -> Key {
        Key {
            bus: self.bus,
            address: offset,
            length,
            datamatch,
        }
    }

    /// The place of the first doorbell at `offset` or behind it.
    fn first_from(&self, offset: u64) -> usize {
        self.doorbells
            .partition_point(|doorbell| doorbell.key.address < offset)
    }
}

/// The doorbells that guest writes can reach, at their addresses, sorted by key.
///
/// A sweep over the edges of the regions: between two edges, one region has all addresses.
pub(super) fn flatten<'a>(regions: impl Iterator<Item = &'a Placed>) -> Vec<Doorbell> {
    let mut edges = Vec::new();
    for region in regions.filter(|region| region.enabled) {
        let Some(base) = region.base else { continue };
        let rank = (region.priority, region.mapped);
        edges.push((region.bus, base, rank, Some((region, base))));
        edges.push((region.bus, base + region.size, rank, None));
    }
    // A region without size begins before it ends.
    edges.sort_unstable_by_key(|&(bus, address, _, begin)| (bus, address, begin.is_none()));

    let mut flat = Vec::new();
    let mut there = BTreeMap::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((_, from, rank, begin)) = edges.next() {
        match begin {
            Some(region) => there.insert(rank, region),
            None => there.remove(&rank),
        };
        // Behind a bus's last edge there is nothing, so the next edge is of the same bus wherever it matters.
        let (Some((_, &(region, base))), Some(&(_, to, ..))) =
            (there.last_key_value(), edges.peek())
        else {
            continue;
        };
        let in_sight = region.first_from(from - base)..region.first_from(to - base);
        flat.extend(region.doorbells[in_sight].iter().map(|doorbell| Doorbell {
            key: Key {
                address: base + doorbell.key.address,
                ..doorbell.key
            },
            event: Arc::clone(&doorbell.event),
        }));
    }
    flat
}

/// What to take away from one list, and then to put to it, to make it another. Both are sorted by key.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub removed: Vec<Doorbell>,
    pub added: Vec<Doorbell>,
}

/// Compares two lists that are sorted by key, in one walk.
pub(super) fn difference(old: &[Doorbell], new: &[Doorbell]) -> Difference {
    let mut difference = Difference::default();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return difference,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.key.cmp(&b.key),
        };
        let gone = old.next_if(|_| order.is_le());
        let come = new.next_if(|_| order.is_ge());
        if gone != come {
            difference.removed.extend(gone.cloned());
            difference.added.extend(come.cloned());
        }
    }
}
