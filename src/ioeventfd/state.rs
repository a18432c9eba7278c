//! Doorbells as plain data: what a table, an address space and the targets that keep values are saved as.
//!
//! Targets are listed once each, and doorbells refer to them by their place in the list, so that what shared a target
//! before shares one afterwards. Events are referred to by the VMM's numbers for them: their counts are the VMM's to
//! save, with the devices that own the events.

use super::payload::{Kick, Latest, ValueQueue};
use super::{Doorbell, DoorbellArray, DoorbellError, Key, Registration, Table, Target};
use crate::Event;
use crate::errno::Errno;
use crate::event::EventHandle;
use crate::state::{self, UnknownVersion, VERSION};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::{error, fmt, io, ptr};

/// What a [`Table`] is saved as: see [`Table::save`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TableState {
    /// [`VERSION`] when it is saved, and the only one that is restored.
    pub version: u32,
    /// What the doorbells do. Each target is there once.
    pub targets: Vec<TargetState>,
    /// The doorbells, in the order of bus and address.
    pub doorbells: Vec<DoorbellState>,
}

/// A [`Target`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum TargetState {
    /// The VMM's number for an event.
    Event(u64),
    /// The newest value.
    Latest(LatestState),
    /// All values.
    ValueQueue(ValueQueueState),
}

/// A [`Latest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LatestState {
    /// The VMM's number for the event that it signals.
    pub event: u64,
    /// The value last written.
    pub value: u64,
}

/// A [`ValueQueue`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ValueQueueState {
    /// The VMM's number for the event that it signals.
    pub event: u64,
    /// How many writes there is room for: from 1 to [`ValueQueue::MAX_CAPACITY`].
    pub capacity: u32,
    /// The writes that wait, the oldest first.
    pub kicks: Vec<Kick>,
}

/// A [`Doorbell`]. Its targets are places in the list of targets, from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum DoorbellState {
    /// One address.
    Single {
        /// What rings it.
        key: Key,
        /// What it does.
        target: u32,
    },
    /// Many.
    Array {
        /// What rings them.
        array: DoorbellArray,
        /// What each slot does.
        targets: Vec<u32>,
    },
}

/// Why saved doorbells were not restored. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DoorbellStateError {
    /// It was saved by another version of the crate.
    Version(UnknownVersion),
    /// The VMM has no event of this number.
    UnknownEvent(u64),
    /// A doorbell refers to this place in the list of targets, which has none there.
    UnknownTarget(u32),
    /// A queue of values has this capacity, or more writes than it can hold.
    Capacity(u32),
    /// A doorbell is invalid, or collides with another.
    Doorbell {
        /// Its place in the list of doorbells.
        index: usize,
        /// What is wrong with it.
        error: DoorbellError,
    },
}

impl Default for TableState {
    /// That of a table without doorbells.
    fn default() -> Self {
        TableState {
            version: VERSION,
            targets: Vec::new(),
            doorbells: Vec::new(),
        }
    }
}

impl LatestState {
    /// A value, and the VMM's number for the event that is signalled.
    #[must_use]
    pub const fn new(event: u64, value: u64) -> Self {
        LatestState { event, value }
    }
}

impl ValueQueueState {
    /// An empty queue with room for `capacity` writes, and the VMM's number for the event that is signalled.
    #[must_use]
    pub const fn new(event: u64, capacity: u32) -> Self {
        ValueQueueState {
            event,
            capacity,
            kicks: Vec::new(),
        }
    }
}

impl Latest {
    /// The value as plain data. `name` gives the VMM's number for the event.
    #[must_use]
    pub fn save(&self, name: impl FnOnce(&Event) -> u64) -> LatestState {
        LatestState::new(name(self.event()), self.value())
    }

    /// A cell with what was saved. `event` has the event of a number of the VMM's.
    ///
    /// # Errors
    ///
    /// `event` has none of this number.
    pub fn restore(
        state: &LatestState,
        event: impl FnOnce(u64) -> Option<EventHandle>,
    ) -> Result<Self, DoorbellStateError> {
        Ok(Latest::new(find(state.event, event)?, state.value))
    }
}

impl ValueQueue {
    /// The queue with the writes that wait as plain data. `name` gives the VMM's number for the event. The writes stay
    /// in the queue, as with [`iter`](Self::iter).
    #[must_use]
    pub fn save(&self, name: impl FnOnce(&Event) -> u64) -> ValueQueueState {
        ValueQueueState {
            kicks: self.iter().collect(),
            // At most `MAX_CAPACITY`.
            ..ValueQueueState::new(name(self.event()), self.capacity() as u32)
        }
    }

    /// A queue with what was saved. `event` has the event of a number of the VMM's; it is not signalled.
    ///
    /// # Errors
    ///
    /// `event` has none of this number, the capacity is 0 or above [`MAX_CAPACITY`](Self::MAX_CAPACITY), or there are
    /// more writes than twice the capacity.
    pub fn restore(
        state: &ValueQueueState,
        event: impl FnOnce(u64) -> Option<EventHandle>,
    ) -> Result<Self, DoorbellStateError> {
        let capacity = state.capacity as usize;
        let fits =
            (1..=Self::MAX_CAPACITY).contains(&capacity) && state.kicks.len() <= 2 * capacity;
        if !fits {
            return Err(DoorbellStateError::Capacity(state.capacity));
        }
        let queue = ValueQueue::new(find(state.event, event)?, capacity);
        queue.set_aside(&state.kicks);
        Ok(queue)
    }
}

impl Table {
    /// The doorbells, and what their targets keep, as plain data. `name` gives the VMM's number for each event.
    ///
    /// What is in the table is saved, and what the targets keep a moment later: the vCPUs and the devices are paused
    /// meanwhile, so that nothing is written or taken in between. The events themselves are saved by
    /// [`Event::save`](crate::Event::save). The doorbells of an [`AddressSpace`](super::space::AddressSpace) are saved
    /// [with it](super::space::AddressSpace::save).
    ///
    /// `name` may be called several times for an event.
    ///
    /// ```
    /// use doorbell::Event;
    /// use doorbell::ioeventfd::{Bus, Key, Table, ValueQueue};
    /// use std::sync::Arc;
    ///
    /// // The VMM numbers its events.
    /// let kick = Arc::new(Event::new(0));
    /// let queue = Arc::new(ValueQueue::new(&kick, 16));
    /// let table = Table::new();
    /// table.assign(Key::mmio(0xf000_1000, 4), &queue)?.keep();
    /// assert!(table.write(Bus::Mmio, 0xf000_1000, &7_u32.to_ne_bytes()));
    ///
    /// let state = table.save(|_| 0);
    /// let event = kick.save();
    ///
    /// // On the other side, with what was read from the snapshot.
    /// let events = [Arc::new(Event::restore(&event)?)];
    /// let table = Table::new();
    /// let registrations = table.restore(&state, |number| Some((&events[number as usize]).into()))?;
    /// let doorbell = registrations[0].doorbell();
    /// let doorbell::ioeventfd::Target::ValueQueue(queue) = &doorbell.targets()[0] else {
    ///     panic!("it was a queue")
    /// };
    /// assert_eq!(events[0].try_read(), Some(1));
    /// assert_eq!(queue.pop().map(|kick| kick.value), Some(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn save(&self, mut name: impl FnMut(&Event) -> u64) -> TableState {
        let mut targets = SavedTargets::default();
        let doorbells = self.doorbells();
        let doorbells = doorbells
            .iter()
            .map(|doorbell| targets.doorbell(doorbell, &mut name));
        TableState {
            doorbells: doorbells.collect(),
            targets: targets.states,
            ..TableState::default()
        }
    }

    /// Registers the doorbells that were saved, in one step, beside those that are there. `event` has the event of a
    /// number of the VMM's. No event is signalled.
    ///
    /// Targets that keep values are made anew, with what they kept; the registrations have them, and are in the order
    /// of the saved doorbells.
    ///
    /// # Errors
    ///
    /// Nothing was registered: the state is of another version, refers to an event that there is not, or does not hold
    /// together, or a doorbell collides with one that is there. A state may come from anywhere: an invalid one is an
    /// error, and does not panic.
    pub fn restore(
        &self,
        state: &TableState,
        event: impl FnMut(u64) -> Option<EventHandle>,
    ) -> Result<Vec<Registration>, DoorbellStateError> {
        state::check(state.version)?;
        let targets = restore_targets(&state.targets, event)?;
        let doorbells = state.doorbells.iter();
        let doorbells: Vec<Doorbell> = doorbells
            .map(|doorbell| doorbell.restore(&targets))
            .collect::<Result<_, _>>()?;
        self.assign_all(doorbells)
            .map_err(|batch| DoorbellStateError::Doorbell {
                index: batch.index,
                error: batch.error,
            })
    }
}

/// The targets that have been met, each with its place in the list.
#[derive(Default)]
pub(super) struct SavedTargets {
    places: BTreeMap<usize, u32>,
    pub(super) states: Vec<TargetState>,
}

impl SavedTargets {
    /// The doorbell, with its targets in the list.
    pub(super) fn doorbell(
        &mut self,
        doorbell: &Doorbell,
        name: &mut impl FnMut(&Event) -> u64,
    ) -> DoorbellState {
        match doorbell {
            Doorbell::Single { key, target } => DoorbellState::Single {
                key: *key,
                target: self.place(target, name),
            },
            Doorbell::Array { array, targets } => DoorbellState::Array {
                array: *array,
                targets: targets
                    .iter()
                    .map(|target| self.place(target, name))
                    .collect(),
            },
        }
    }

    fn place(&mut self, target: &Target, name: &mut impl FnMut(&Event) -> u64) -> u32 {
        // What is at the address is alive, so nothing else is there.
        let address = match target {
            Target::Event(event) => ptr::from_ref::<Event>(event).addr(),
            Target::Latest(latest) => Arc::as_ptr(latest).addr(),
            Target::ValueQueue(queue) => Arc::as_ptr(queue).addr(),
        };
        let states = &mut self.states;
        *self.places.entry(address).or_insert_with(|| {
            states.push(match target {
                Target::Event(event) => TargetState::Event(name(event)),
                Target::Latest(latest) => TargetState::Latest(latest.save(name)),
                Target::ValueQueue(queue) => TargetState::ValueQueue(queue.save(name)),
            });
            (states.len() - 1) as u32
        })
    }
}

/// The targets of a list, with the values that they kept.
pub(super) fn restore_targets(
    states: &[TargetState],
    mut event: impl FnMut(u64) -> Option<EventHandle>,
) -> Result<Vec<Target>, DoorbellStateError> {
    let targets = states.iter().map(|state| {
        Ok(match state {
            TargetState::Event(number) => find(*number, &mut event)?.into(),
            TargetState::Latest(latest) => Arc::new(Latest::restore(latest, &mut event)?).into(),
            TargetState::ValueQueue(queue) => {
                Arc::new(ValueQueue::restore(queue, &mut event)?).into()
            }
        })
    });
    targets.collect()
}

impl DoorbellState {
    /// The doorbell that does what `targets` do, at its places in that list.
    pub(super) fn restore(&self, targets: &[Target]) -> Result<Doorbell, DoorbellStateError> {
        let target = |place: u32| {
            let target = usize::try_from(place).ok().and_then(|i| targets.get(i));
            target.ok_or(DoorbellStateError::UnknownTarget(place))
        };
        Ok(match self {
            DoorbellState::Single { key, target: place } => Doorbell::new(*key, target(*place)?),
            DoorbellState::Array { array, targets } => {
                let targets: Result<Vec<&Target>, _> = targets.iter().map(|&i| target(i)).collect();
                Doorbell::array(*array, targets?)
            }
        })
    }
}

fn find(
    number: u64,
    event: impl FnOnce(u64) -> Option<EventHandle>,
) -> Result<EventHandle, DoorbellStateError> {
    event(number).ok_or(DoorbellStateError::UnknownEvent(number))
}

impl fmt::Display for DoorbellStateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DoorbellStateError::Version(error) => error.fmt(f),
            DoorbellStateError::UnknownEvent(number) => {
                write!(f, "the state refers to event {number}, which there is not")
            }
            DoorbellStateError::UnknownTarget(place) => {
                write!(
                    f,
                    "the state refers to target {place}, which it does not have"
                )
            }
            DoorbellStateError::Capacity(capacity) => {
                write!(
                    f,
                    "a queue of capacity {capacity} is invalid, or has too many writes"
                )
            }
            DoorbellStateError::Doorbell { index, error } => {
                write!(f, "doorbell {index} of the state: {error}")
            }
        }
    }
}

impl error::Error for DoorbellStateError {}

impl From<UnknownVersion> for DoorbellStateError {
    fn from(error: UnknownVersion) -> Self {
        DoorbellStateError::Version(error)
    }
}

impl From<DoorbellStateError> for io::Error {
    /// `EEXIST` of a collision, else `EINVAL`.
    fn from(error: DoorbellStateError) -> Self {
        match error {
            DoorbellStateError::Doorbell { error, .. } => error.into(),
            _ => Errno::Invalid.into(),
        }
    }
}
