//! Turns regions with doorbells at offsets into a list of doorbells at addresses, and compares two such lists.

use super::super::{Bus, DeassignError, Doorbell, DoorbellArray, DoorbellError, Key};
use super::AddError;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The number of ports that instructions can reach.
const PORTS: u64 = 0x1_0000;

/// A region as the address space knows it.
#[derive(Clone, Debug)]
pub(super) struct RegionEntry {
    pub bus: Bus,
    /// Where it is mapped. Its end, [`end_at`](RegionEntry::end_at) this base, is valid.
    pub base: Option<u64>,
    pub size: u64,
    pub priority: i32,
    pub enabled: bool,
    /// The greatest in the region that was mapped last.
    pub mapped: u64,
    /// With offsets as addresses, by sort key. No two collide.
    pub doorbells: Vec<Doorbell>,
}

impl RegionEntry {
    pub fn new(bus: Bus, size: u64, priority: i32) -> Self {
        RegionEntry {
            bus,
            base: None,
            size,
            priority,
            enabled: true,
            mapped: 0,
            doorbells: Vec::new(),
        }
    }

    /// The first address behind the region, if it is mapped at `base`. `None` if it cannot be.
    pub fn end_at(&self, base: u64) -> Option<u64> {
        let end = base.checked_add(self.size)?;
        let limit = match self.bus {
            Bus::Mmio => u64::MAX,
            Bus::Pio => PORTS,
        };
        (end <= limit).then_some(end)
    }

    /// Adds a copy of the doorbell.
    pub fn add(&mut self, doorbell: &Doorbell) -> Result<(), AddError> {
        doorbell.validate()?;
        if doorbell.bus() != self.bus {
            return Err(AddError::Bus);
        }
        let end = doorbell.address().checked_add(extent(doorbell));
        if end.is_none_or(|end| end > self.size) {
            return Err(AddError::Outside);
        }
        let index = self.insertion_index(doorbell);
        // If it collides with any, then with a neighbour: all between the two would collide as well.
        let beside = &self.doorbells[index.saturating_sub(1)..self.doorbells.len().min(index + 1)];
        if beside.iter().any(|other| other.collides(doorbell)) {
            return Err(DoorbellError::Collision.into());
        }
        self.doorbells.insert(index, doorbell.clone());
        Ok(())
    }

    /// Removes the doorbell that is equal to this one, and returns it.
    pub fn del(&mut self, doorbell: &Doorbell) -> Result<Doorbell, DeassignError> {
        let index = self.insertion_index(doorbell);
        if self.doorbells.get(index) != Some(doorbell) {
            return Err(DeassignError);
        }
        Ok(self.doorbells.remove(index))
    }

    /// Where the doorbell is in the list, or would be inserted.
    fn insertion_index(&self, doorbell: &Doorbell) -> usize {
        let index = doorbell.sort_key();
        self.doorbells
            .partition_point(|other| other.sort_key() < index)
    }

    /// The place of the first doorbell at `offset` or behind it.
    fn first_from(&self, offset: u64) -> usize {
        self.doorbells
            .partition_point(|doorbell| doorbell.address() < offset)
    }
}

/// How many addresses a doorbell needs, from its own on. One of any length has its first byte, at least.
fn extent(doorbell: &Doorbell) -> u64 {
    match doorbell {
        Doorbell::Single { key, .. } => key.length.max(1).into(),
        Doorbell::Array { array, .. } => array.extent(),
    }
}

/// The doorbell, with its region's base added to its offset.
fn placed_at(base: u64, doorbell: &Doorbell) -> Doorbell {
    match doorbell {
        Doorbell::Single { key, target } => {
            let address = base + key.address;
            Doorbell::new(Key { address, ..*key }, target)
        }
        Doorbell::Array { array, targets } => Doorbell::Array {
            array: DoorbellArray {
                address: base + array.address,
                ..*array
            },
            targets: Arc::clone(targets),
        },
    }
}

/// Addresses that belong to one region, and none before or behind them does.
struct Run<'a> {
    region: &'a RegionEntry,
    base: u64,
    from: u64,
    to: u64,
}

/// Which addresses belong to which region, in their order.
///
/// A sweep over the edges of the regions: between two edges, one region has all addresses.
fn runs<'a>(regions: impl Iterator<Item = &'a RegionEntry>) -> Vec<Run<'a>> {
    let mut edges = Vec::new();
    for region in regions.filter(|region| region.enabled) {
        let Some(base) = region.base else { continue };
        let rank = (region.priority, region.mapped);
        edges.push((region.bus, base, rank, Some((region, base))));
        edges.push((region.bus, base + region.size, rank, None));
    }
    // A region without size begins before it ends.
    edges.sort_unstable_by_key(|&(bus, address, _, begin)| (bus, address, begin.is_none()));

    let mut runs: Vec<Run<'a>> = Vec::new();
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
        if from == to {
            continue;
        }
        match runs.last_mut() {
            // The edge between them is that of a region below.
            Some(run) if std::ptr::eq(run.region, region) && run.to == from => run.to = to,
            _ => runs.push(Run {
                region,
                base,
                from,
                to,
            }),
        }
    }
    runs
}

/// The doorbells that guest writes can reach, at their addresses, in the order of their places.
pub(super) fn flatten<'a>(regions: impl Iterator<Item = &'a RegionEntry>) -> Vec<Doorbell> {
    let mut flat = Vec::new();
    for run in runs(regions) {
        let (from, to) = (run.from - run.base, run.to - run.base);
        let there = run.region.first_from(from)..run.region.first_from(to);
        let in_sight = run.region.doorbells[there]
            .iter()
            .filter(|doorbell| match doorbell {
                Doorbell::Single { .. } => true,
                Doorbell::Array { array, .. } => array.address + array.size() <= to,
            });
        flat.extend(in_sight.map(|doorbell| placed_at(run.base, doorbell)));
    }
    flat
}

/// What to take away from one list, and then to put to it, to make it another.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub removed: Vec<Doorbell>,
    pub added: Vec<Doorbell>,
}

/// Compares two lists in the order of places, in one walk.
pub(super) fn difference(old: &[Doorbell], new: &[Doorbell]) -> Difference {
    let mut difference = Difference::default();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return difference,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.sort_key().cmp(&b.sort_key()),
        };
        let gone = old.next_if(|_| order.is_le());
        let come = new.next_if(|_| order.is_ge());
        if gone != come {
            difference.removed.extend(gone.cloned());
            difference.added.extend(come.cloned());
        }
    }
}
