//! An address space as plain data.
//!
//! Saved are the regions, with their doorbells. Which doorbells are in force follows from them, and the listeners are
//! the VMM's to add again.

use super::super::state::{
    DoorbellState, DoorbellStateError, SavedTargets, TargetState, restore_targets,
};
use super::super::{Bus, Doorbell, Target};
use super::address_space::AddressSpace;
use super::error::{AddError, MapError};
use super::flat::RegionEntry;
use super::listener::CommitReport;
use super::region::Region;
use crate::Event;
use crate::errno::Errno;
use crate::event::EventHandle;
use crate::state::{self, UnknownVersion, VERSION};
use std::collections::BTreeSet;
use std::{error, fmt, io};

/// What an [`AddressSpace`] is saved as: see [`AddressSpace::save`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct AddressSpaceState {
    /// [`VERSION`] when it is saved, and the only one that is restored.
    pub version: u32,
    /// What the doorbells do. Each target is there once.
    pub targets: Vec<TargetState>,
    /// The regions, in the order in which they were made.
    pub regions: Vec<RegionState>,
}

/// A [`Region`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RegionState {
    /// Its number: see [`Region::id`].
    pub id: u64,
    /// Which kind of address it has.
    pub bus: Bus,
    /// How many addresses it covers.
    pub size: u64,
    /// Where regions overlap, the highest priority wins.
    pub priority: i32,
    /// Where it is mapped.
    pub base: Option<u64>,
    /// Whether it is enabled.
    pub enabled: bool,
    /// The order in which the regions were mapped: among regions of one priority, the greatest number wins. Without
    /// meaning if there is no base.
    pub mapped: u64,
    /// The doorbells, with offsets in the region as addresses.
    pub doorbells: Vec<DoorbellState>,
}

/// Why a saved address space was not restored. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpaceStateError {
    /// It was saved by another version of the crate.
    Version(UnknownVersion),
    /// Something is wrong with the list of targets, or with what refers to it.
    Targets(DoorbellStateError),
    /// There is a region of this number already, or there can be none.
    RegionId(u64),
    /// The region cannot be mapped at its base.
    Map {
        /// Its place in the list of regions.
        region: usize,
        /// What is wrong with it.
        error: MapError,
    },
    /// The region cannot have one of its doorbells.
    Add {
        /// Its place in the list of regions.
        region: usize,
        /// The doorbell's place in the region's list.
        index: usize,
        /// What is wrong with it.
        error: AddError,
    },
}

impl Default for AddressSpaceState {
    /// That of an address space without regions.
    fn default() -> Self {
        AddressSpaceState {
            version: VERSION,
            targets: Vec::new(),
            regions: Vec::new(),
        }
    }
}

impl RegionState {
    /// A region as it is made: enabled, not mapped, with priority 0, and without doorbells.
    #[must_use]
    pub const fn new(id: u64, bus: Bus, size: u64) -> Self {
        RegionState {
            id,
            bus,
            size,
            priority: 0,
            base: None,
            enabled: true,
            mapped: 0,
            doorbells: Vec::new(),
        }
    }
}

impl AddressSpace {
    /// The regions, their doorbells, and what the targets keep, as plain data. `name` gives the VMM's number for each
    /// event. An open transaction's changes are in it.
    ///
    /// The events themselves are saved by [`Event::save`](crate::Event::save), after the kicks that listeners keep were
    /// moved to them by [`drain`](Self::drain). The page [`guide::snapshot`](crate::guide::snapshot) has all steps in
    /// their order.
    ///
    /// On the other side, the events are restored first. [`restore`](Self::restore) then makes the regions, and the
    /// VMM adds its listeners, before or after that.
    ///
    /// `name` may be called several times for an event.
    ///
    /// ```
    /// use doorbell::Event;
    /// use doorbell::ioeventfd::{Bus, space::AddressSpace};
    /// use std::sync::Arc;
    ///
    /// let space = AddressSpace::new();
    /// let bar = space.region(Bus::Mmio, 0x1000);
    /// bar.map(0xd000_0000)?;
    /// let kick = Arc::new(Event::new(0));
    /// bar.add_eventfd(0x50, 4, Some(1), &kick)?;
    /// assert!(space.write(Bus::Mmio, 0xd000_0050, &1_u32.to_ne_bytes()));
    ///
    /// // The VMM has one event, number 0; and its device keeps the number of its region.
    /// space.drain();
    /// let state = space.save(|_| 0);
    /// let (event, bar) = (kick.save(), bar.id());
    ///
    /// // On the other side:
    /// let events = [Arc::new(Event::restore(&event)?)];
    /// let space = AddressSpace::new();
    /// let (regions, report) = space.restore(&state, |number| Some((&events[number as usize]).into()))?;
    /// assert!(report.is_clean());
    /// let bar = regions.into_iter().find(|region| region.id() == bar).unwrap();
    /// assert_eq!(bar.base(), Some(0xd000_0000));
    /// assert!(space.write(Bus::Mmio, 0xd000_0050, &1_u32.to_ne_bytes()));
    /// assert_eq!(events[0].read(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "snapshot")]
    #[must_use]
    pub fn save(&self, mut name: impl FnMut(&Event) -> u64) -> AddressSpaceState {
        let regions: Vec<(u64, RegionEntry)> = self.with_map(|map| {
            let regions = map.regions.iter();
            regions.map(|(&id, region)| (id, region.clone())).collect()
        });
        // The numbers say nothing but an order.
        let mapped = regions.iter().filter(|(_, region)| region.base.is_some());
        let mut order: Vec<u64> = mapped.map(|(_, region)| region.mapped).collect();
        order.sort_unstable();
        let mut targets = SavedTargets::default();
        let regions = regions.iter().map(|(id, region)| RegionState {
            priority: region.priority,
            base: region.base,
            enabled: region.enabled,
            mapped: match region.base {
                Some(_) => order.partition_point(|&other| other < region.mapped) as u64,
                None => 0,
            },
            doorbells: {
                let doorbells = region.doorbells.iter();
                doorbells
                    .map(|doorbell| targets.doorbell(doorbell, &mut name))
                    .collect()
            },
            ..RegionState::new(*id, region.bus, region.size)
        });
        AddressSpaceState {
            regions: regions.collect(),
            targets: targets.states,
            ..AddressSpaceState::default()
        }
    }

    /// Makes the regions that were saved, beside those that are there, and puts their doorbells in force, in one
    /// transaction. `event` has the event of a number of the VMM's. No event is signalled.
    ///
    /// Returns the regions in the order of the state, with the numbers ([`Region::id`]) that they were saved with, and
    /// what the listeners did not do. Regions that are there already count as mapped before those that are restored.
    /// Targets that keep values are made anew, with what they kept: the [doorbells](Region::doorbells) of the regions
    /// have them, and [`Target::value_queue`](crate::ioeventfd::Target::value_queue) and
    /// [`Target::latest`](crate::ioeventfd::Target::latest) take them out.
    ///
    /// # Errors
    ///
    /// Nothing was changed: the state is of another version, refers to an event that there is not, does not hold
    /// together, or has a region of a number that is taken. A state may come from anywhere: an invalid one is an error,
    /// and does not panic.
    pub fn restore(
        &self,
        state: &AddressSpaceState,
        event: impl FnMut(u64) -> Option<EventHandle>,
    ) -> Result<(Vec<Region>, CommitReport), SpaceStateError> {
        state::check(state.version)?;
        let targets = restore_targets(&state.targets, event)?;
        let mut regions = Vec::with_capacity(state.regions.len());
        for (region, saved) in state.regions.iter().enumerate() {
            regions.push(saved.restore(region, &targets)?);
        }
        let mut order: Vec<usize> = (0..regions.len()).collect();
        order.sort_by_key(|&region| state.regions[region].mapped);

        let ids = state.regions.iter().map(|region| region.id);
        let transaction = self.begin();
        self.try_change(|map| {
            let mut unique = BTreeSet::new();
            // The greater half of the numbers is left to regions that are made later.
            let mut is_free = |&id: &u64| {
                id <= u64::MAX / 2 && !map.regions.contains_key(&id) && unique.insert(id)
            };
            if let Some(id) = ids.clone().find(|id| !is_free(id)) {
                return Err(SpaceStateError::RegionId(id));
            }
            for region in order {
                if regions[region].base.is_some() {
                    map.mapped += 1;
                    regions[region].mapped = map.mapped;
                }
            }
            for (id, region) in ids.clone().zip(regions) {
                map.regions.insert(id, region);
                map.next_region = map.next_region.max(id + 1);
            }
            Ok(())
        })?;
        // If a listener panics in the commit, these remove the regions.
        let regions = ids.map(|id| Region {
            space: self.clone(),
            id,
        });
        let regions = regions.collect();
        Ok((regions, transaction.commit()))
    }
}

impl RegionState {
    /// What the address space is to know of the region, which is at place `number` in the list.
    fn restore(&self, number: usize, targets: &[Target]) -> Result<RegionEntry, SpaceStateError> {
        let mut region = RegionEntry::new(self.bus, self.size, self.priority);
        region.enabled = self.enabled;
        region.base = self.base;
        if self.base.is_some_and(|base| region.end_at(base).is_none()) {
            return Err(SpaceStateError::Map {
                region: number,
                error: MapError,
            });
        }
        for (index, saved) in self.doorbells.iter().enumerate() {
            let doorbell: Doorbell = saved.restore(targets)?;
            region
                .add(&doorbell)
                .map_err(|error| SpaceStateError::Add {
                    region: number,
                    index,
                    error,
                })?;
        }
        Ok(region)
    }
}

impl fmt::Display for SpaceStateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpaceStateError::Version(error) => error.fmt(f),
            SpaceStateError::Targets(error) => error.fmt(f),
            SpaceStateError::RegionId(id) => write!(f, "the number {id} of a region is taken"),
            SpaceStateError::Map { region, error } => {
                write!(f, "region {region} of the state: {error}")
            }
            SpaceStateError::Add {
                region,
                index,
                error,
            } => {
                write!(
                    f,
                    "doorbell {index} of region {region} of the state: {error}"
                )
            }
        }
    }
}

impl error::Error for SpaceStateError {}

impl From<UnknownVersion> for SpaceStateError {
    fn from(error: UnknownVersion) -> Self {
        SpaceStateError::Version(error)
    }
}

impl From<DoorbellStateError> for SpaceStateError {
    fn from(error: DoorbellStateError) -> Self {
        SpaceStateError::Targets(error)
    }
}

impl From<SpaceStateError> for io::Error {
    /// `EEXIST` of a collision or a number that is taken, else `EINVAL`.
    fn from(error: SpaceStateError) -> Self {
        match error {
            SpaceStateError::Targets(error) => error.into(),
            SpaceStateError::Add { error, .. } => error.into(),
            SpaceStateError::RegionId(_) => Errno::Exists.into(),
            SpaceStateError::Version(_) | SpaceStateError::Map { .. } => Errno::Invalid.into(),
        }
    }
}
