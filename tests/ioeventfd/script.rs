//! Scripts: random sequences of changes of a table and guest writes, played to a table and to a naive model, which
//! scans a list. One generator serves the property test and the fuzz target.

use arbitrary::{Arbitrary, Unstructured};
use doorbell::Event;
use doorbell::ioeventfd::{
    BatchError, Bus, Doorbell, DoorbellArray, DoorbellError, Key, Kick, Latest, Reader,
    Registration, Table, Target, ValueQueue,
};
use std::array;
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Script(Vec<Step>);

impl<'a> Arbitrary<'a> for Script {
    /// A script that uses all of the bytes.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Script(steps))
    }
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Assign(Sketch),
    AssignAll(Vec<Sketch>),
    Deassign(Sketch),
    /// Deassigns a registered doorbell with other targets, which are shifted by the second number.
    DeassignShifted(u8, u8),
    /// Deassigns several registered doorbells: the first, and how many.
    DeassignAll(u8, u8),
    Drop(u8),
    Keep(u8),
    Replace(u8, Vec<Sketch>),
    Write([WriteSketch; 4]),
    Pop(u8),
}

/// A doorbell described by few bytes: about one in ten is invalid, and most others have neighbours.
#[derive(Arbitrary, Clone, Debug)]
struct Sketch {
    mmio: bool,
    place: u8,
    length: u8,
    datamatch: Option<u8>,
    array: Option<(u8, u8)>,
    target: u8,
}

#[derive(Arbitrary, Clone, Debug)]
struct WriteSketch {
    mmio: bool,
    place: u8,
    length: u8,
    value: u8,
    by_reader: bool,
}

fn bus(mmio: bool) -> Bus {
    if mmio { Bus::Mmio } else { Bus::Pio }
}

fn address(place: u8) -> u64 {
    match place {
        // The end of the address space.
        0xf0.. => u64::MAX - u64::from(0xff - place),
        _ => 0xe000_0000 + u64::from(place % 8),
    }
}

fn value(small: u8) -> u64 {
    match small {
        0xf0.. => 0x1_0000_0000 + u64::from(small),
        0xe0.. => 0x1_0000 + u64::from(small),
        _ => u64::from(small % 4),
    }
}

/// Most lengths are the same, so that many doorbells of one length meet at an address.
const LENGTHS: [u32; 16] = [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 8, 0, 3, 5];

const EVENTS: usize = 4;
const PAYLOADS: usize = 2;
const QUEUE: usize = 3;

struct Targets {
    events: [Arc<Event>; EVENTS],
    latest: [Arc<Latest>; PAYLOADS],
    queues: [Arc<ValueQueue>; PAYLOADS],
}

impl Targets {
    fn new() -> Self {
        let events = array::from_fn(|_| Arc::new(Event::new(0)));
        Targets {
            latest: array::from_fn(|i| Arc::new(Latest::new(&events[i], 0))),
            queues: array::from_fn(|i| Arc::new(ValueQueue::new(&events[i], QUEUE))),
            events,
        }
    }

    /// The target that a number stands for.
    fn get(&self, number: usize) -> Target {
        match number % (EVENTS + 2 * PAYLOADS) {
            event @ 0..EVENTS => (&self.events[event]).into(),
            latest if latest < EVENTS + PAYLOADS => (&self.latest[latest - EVENTS]).into(),
            queue => (&self.queues[queue - EVENTS - PAYLOADS]).into(),
        }
    }
}

/// A doorbell in the model.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// Distinguishes the doorbell from an equal one that was assigned before or after.
    id: usize,
    place: Place,
    /// Numbers of targets.
    targets: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Key(Key),
    Array(DoorbellArray),
}

impl Sketch {
    fn entry(&self, id: usize) -> Entry {
        let length = LENGTHS[usize::from(self.length % 16)];
        let first = usize::from(self.target);
        match self.array.filter(|_| self.place % 4 == 0) {
            None => {
                let mut key = Key::new(bus(self.mmio), address(self.place), length);
                key.datamatch = self.datamatch.map(value);
                Entry {
                    id,
                    place: Place::Key(key),
                    targets: vec![first],
                }
            }
            Some((stride, slots)) => {
                let stride = match stride % 8 {
                    stride @ 0..=4 => stride.into(),
                    5 => 1 << 62,
                    _ => 8,
                };
                let (bus, address) = (bus(self.mmio), address(self.place));
                let array = DoorbellArray::new(bus, address, stride, (slots % 6).into());
                let array = array.with_length(length);
                let targets = usize::from(slots % 6) + usize::from(slots > 0xf0);
                Entry {
                    id,
                    place: Place::Array(array),
                    targets: (first..first + targets).collect(),
                }
            }
        }
    }
}

impl Entry {
    fn doorbell(&self, targets: &Targets) -> Doorbell {
        match self.place {
            Place::Key(key) => Doorbell::new(key, targets.get(self.targets[0])),
            Place::Array(array) => {
                Doorbell::array(array, self.targets.iter().map(|&n| targets.get(n)))
            }
        }
    }

    fn bus(&self) -> Bus {
        match self.place {
            Place::Key(key) => key.bus,
            Place::Array(array) => array.bus,
        }
    }

    fn address(&self) -> u64 {
        match self.place {
            Place::Key(key) => key.address,
            Place::Array(array) => array.address,
        }
    }

    fn end(&self) -> u128 {
        let size = match self.place {
            Place::Key(key) => key.length.into(),
            Place::Array(array) if array.stride == 0 => array.length.into(),
            Place::Array(array) => u128::from(array.stride) * u128::from(array.slots),
        };
        u128::from(self.address()) + size
    }

    fn validate(&self) -> Result<(), DoorbellError> {
        let length = match self.place {
            Place::Array(array) if ![0, 1, 2, 4, 8, 16, 1 << 62].contains(&array.stride) => {
                return Err(DoorbellError::Stride);
            }
            Place::Array(array) if array.slots == 0 => return Err(DoorbellError::Slots),
            // The array is too large for any address: this is reported before the length is checked.
            Place::Array(array)
                if (u128::from(array.stride) * u128::from(array.slots)) >> 64 != 0 =>
            {
                return Err(DoorbellError::Wrap);
            }
            Place::Array(array) => array.length,
            Place::Key(key) => key.length,
        };
        if ![0, 1, 2, 4, 8].contains(&length) {
            return Err(DoorbellError::Length);
        }
        if self.end() > u64::MAX.into() {
            return Err(DoorbellError::Wrap);
        }
        match self.place {
            Place::Key(key) => match key.datamatch {
                Some(_) if length == 0 => Err(DoorbellError::WildcardDatamatch),
                Some(value) if u128::from(value) >= 1 << (8 * length) => {
                    Err(DoorbellError::DatamatchWidth)
                }
                _ => Ok(()),
            },
            Place::Array(array) if array.stride == 0 && length == 0 => {
                Err(DoorbellError::WildcardDatamatch)
            }
            Place::Array(array) if array.slots as usize != self.targets.len() => {
                Err(DoorbellError::Slots)
            }
            Place::Array(_) => Ok(()),
        }
    }

    fn collides(&self, other: &Entry) -> bool {
        let inside = |array: &Entry, other: &Entry| {
            matches!(array.place, Place::Array(_))
                && array.address() <= other.address()
                && (other.address() == array.address()
                    || !array.is_by_value() && u128::from(other.address()) < array.end())
        };
        let both = match (self.place, other.place) {
            (Place::Key(a), Place::Key(b)) => {
                let lengths = a.length == 0 || b.length == 0 || a.length == b.length;
                let values = a.length != b.length
                    || a.datamatch.is_none()
                    || b.datamatch.is_none()
                    || a.datamatch == b.datamatch;
                a.address == b.address && lengths && values
            }
            _ => false,
        };
        self.bus() == other.bus() && (both || inside(self, other) || inside(other, self))
    }

    fn is_by_value(&self) -> bool {
        matches!(self.place, Place::Array(array) if array.stride == 0)
    }

    /// The slot that a write rings.
    fn slot(&self, bus: Bus, address: u64, data: &[u8]) -> Option<usize> {
        let (length, value) = match self.place {
            Place::Key(key) => (key.length, key.datamatch),
            Place::Array(array) => (array.length, None),
        };
        let rings = bus == self.bus()
            && (length == 0 || length as usize == data.len())
            && (value.is_none() || value == payload(data));
        let starts = |slot: &usize| match self.place {
            Place::Key(key) => key.address == address,
            Place::Array(array) if array.stride == 0 => {
                array.address == address && payload(data) == Some(*slot as u64)
            }
            Place::Array(array) => array.address + array.stride * *slot as u64 == address,
        };
        (0..self.targets.len()).find(starts).filter(|_| rings)
    }
}

fn payload(data: &[u8]) -> Option<u64> {
    Some(match data.len() {
        1 => data[0].into(),
        2 => u16::from_ne_bytes(data.try_into().ok()?).into(),
        4 => u32::from_ne_bytes(data.try_into().ok()?).into(),
        8 => u64::from_ne_bytes(data.try_into().ok()?),
        _ => return None,
    })
}

/// What the targets are expected to hold.
#[derive(Debug, Default, PartialEq)]
struct Held {
    counts: [u64; EVENTS],
    latest: [u64; PAYLOADS],
    queues: [VecDeque<Kick>; PAYLOADS],
}

impl Held {
    fn ring(&mut self, target: usize, slot: usize, value: Option<u64>) -> bool {
        let (number, slot) = (target % (EVENTS + 2 * PAYLOADS), slot as u32);
        let event = match (number, value) {
            (event @ 0..EVENTS, _) => event,
            (_, None) => return false,
            (latest, Some(value)) if latest < EVENTS + PAYLOADS => {
                self.latest[latest - EVENTS] = value;
                latest - EVENTS
            }
            (queue, Some(value)) => {
                let queue = queue - EVENTS - PAYLOADS;
                if self.queues[queue].len() == QUEUE {
                    return false;
                }
                self.queues[queue].push_back(Kick::new(slot, value));
                queue
            }
        };
        self.counts[event] += 1;
        true
    }
}

/// The table and its model.
struct Both {
    table: Table,
    reader: Reader,
    targets: Targets,
    registrations: Vec<(Registration, Entry)>,
    /// What is registered, in any order.
    entries: Vec<Entry>,
    held: Held,
    ids: std::ops::Range<usize>,
}

impl Script {
    /// Plays the script. Returns the number of steps.
    ///
    /// # Panics
    ///
    /// If the two differ.
    pub fn compare(&self) -> u64 {
        let table = Table::new();
        let mut both = Both {
            // Signallers are used if there are lanes, and then there are too few.
            reader: table.reader().with_signallers(2),
            table,
            targets: Targets::new(),
            registrations: Vec::new(),
            entries: Vec::new(),
            held: Held::default(),
            ids: 0..usize::MAX,
        };
        for step in &self.0 {
            both.play(step);
            both.compare();
        }
        drop(both.registrations);
        // Kept doorbells go with the table.
        drop((both.reader, both.table));
        for event in &both.targets.events[PAYLOADS..] {
            assert_eq!(Arc::strong_count(event), 1, "an event has another handle");
        }
        self.0.len() as u64
    }
}

impl Both {
    fn play(&mut self, step: &Step) {
        match step {
            Step::Assign(sketch) => {
                let entry = self.entry(sketch);
                let expected = entry.validate().and_then(|()| {
                    let collides = self.entries.iter().any(|old| old.collides(&entry));
                    if collides {
                        Err(DoorbellError::Collision)
                    } else {
                        Ok(())
                    }
                });
                let result = match entry.doorbell(&self.targets) {
                    Doorbell::Single { key, target } => self.table.assign(key, target),
                    Doorbell::Array { array, targets } => {
                        self.table.assign_array(array, targets.iter())
                    }
                    other => unreachable!("{other:?}"),
                };
                assert_eq!(result.as_ref().err(), expected.err().as_ref(), "{entry:?}");
                if let Ok(registration) = result {
                    self.registrations.push((registration, entry.clone()));
                    self.entries.push(entry);
                }
            }
            Step::AssignAll(sketches) => {
                let new: Vec<Entry> = sketches.iter().map(|sketch| self.entry(sketch)).collect();
                let result = self.table.assign_all(self.doorbells(&new));
                check_batch(&self.entries, &new, result.as_ref().err());
                if let Ok(registrations) = result {
                    self.entries.extend(new.iter().cloned());
                    self.registrations
                        .extend(registrations.into_iter().zip(new));
                }
            }
            Step::Deassign(sketch) => {
                let entry = self.entry(sketch);
                self.deassign(&entry);
            }
            Step::DeassignShifted(n, shift) => {
                if self.entries.is_empty() {
                    return;
                }
                let mut entry = self.entries[usize::from(*n) % self.entries.len()].clone();
                entry
                    .targets
                    .iter_mut()
                    .for_each(|n| *n += usize::from(*shift));
                self.deassign(&entry);
            }
            Step::DeassignAll(first, second) => {
                if self.entries.is_empty() {
                    return;
                }
                let first_place = usize::from(*first) % self.entries.len();
                let old = self
                    .entries
                    .iter()
                    .skip(first_place)
                    .take((second % 4).into());
                let mut old: Vec<Entry> = old.cloned().collect();
                // At times the first doorbell is deassigned once more, which is one too many.
                let twice = first % 8 == 0 && !old.is_empty();
                if twice {
                    old.push(old[0].clone());
                }
                let result = self.table.deassign_all(self.doorbells(&old));
                assert_eq!(result.err().map(|e| e.index), twice.then(|| old.len() - 1));
                if !twice {
                    self.entries.retain(|entry| !old.contains(entry));
                }
            }
            Step::Drop(n) => {
                if let Some((registration, entry)) = self.pick(*n) {
                    drop(registration);
                    self.entries.retain(|old| *old != entry);
                }
            }
            Step::Keep(n) => {
                if let Some((registration, _)) = self.pick(*n) {
                    registration.keep();
                }
            }
            Step::Replace(count, sketches) => {
                let count = usize::from(count % 4).min(self.registrations.len());
                let rest = self.registrations.split_off(count);
                let (mut old, olds): (Vec<_>, Vec<_>) =
                    std::mem::replace(&mut self.registrations, rest)
                        .into_iter()
                        .unzip();
                let mut entries = self.entries.clone();
                entries.retain(|entry| !olds.contains(entry));
                let new: Vec<Entry> = sketches.iter().map(|sketch| self.entry(sketch)).collect();
                let result = self.table.replace(&mut old, self.doorbells(&new));
                check_batch(&entries, &new, result.as_ref().err());
                if result.is_ok() {
                    entries.extend(new.iter().cloned());
                    self.entries = entries;
                    self.registrations.extend(old.into_iter().zip(new));
                } else {
                    self.registrations.extend(old.into_iter().zip(olds));
                }
            }
            Step::Write(writes) => writes.iter().for_each(|write| self.write(write)),
            Step::Pop(n) => {
                let n = usize::from(*n) % PAYLOADS;
                assert_eq!(
                    self.targets.queues[n].pop(),
                    self.held.queues[n].pop_front()
                );
            }
        }
    }

    fn deassign(&mut self, entry: &Entry) {
        let result = match entry.doorbell(&self.targets) {
            Doorbell::Single { key, target } => self.table.deassign(key, target).is_ok(),
            array => self.table.deassign_all([array]).is_ok(),
        };
        assert_eq!(result, self.take(entry), "{entry:?}");
    }

    fn write(&mut self, write: &WriteSketch) {
        let bus = bus(write.mmio);
        let address = address(write.place);
        let length = LENGTHS[usize::from(write.length % 16)] as usize;
        let data = &value(write.value).to_le_bytes()[..length];
        // No guest access has zero bytes, so an empty write rings nothing, not even a wildcard.
        let entries = if data.is_empty() {
            &[][..]
        } else {
            &self.entries[..]
        };
        let mut matching = entries.iter().filter_map(|entry| {
            entry
                .slot(bus, address, data)
                .map(|slot| (entry.targets[slot], slot))
        });
        let hit = matching.next();
        assert_eq!(matching.next(), None, "two doorbells would take one write");
        let expected =
            hit.is_some_and(|(target, slot)| self.held.ring(target, slot, payload(data)));
        let taken = match write.by_reader {
            true => self.reader.write(bus, address, data),
            false => self.table.write(bus, address, data),
        };
        assert_eq!(taken, expected, "{write:?}");
    }

    fn entry(&mut self, sketch: &Sketch) -> Entry {
        sketch.entry(self.ids.next().expect("fewer steps than that in a script"))
    }

    fn doorbells(&self, entries: &[Entry]) -> Vec<Doorbell> {
        entries
            .iter()
            .map(|entry| entry.doorbell(&self.targets))
            .collect()
    }

    /// Forgets an entry that has the same targets, if there is one.
    fn take(&mut self, entry: &Entry) -> bool {
        let same = |old: &Entry| {
            let targets = |entry: &Entry| {
                let targets = entry.targets.iter();
                targets
                    .map(|n| n % (EVENTS + 2 * PAYLOADS))
                    .collect::<Vec<_>>()
            };
            old.place == entry.place && targets(old) == targets(entry)
        };
        let place = self.entries.iter().position(same);
        place.map(|place| self.entries.remove(place)).is_some()
    }

    fn pick(&mut self, n: u8) -> Option<(Registration, Entry)> {
        let count = self.registrations.len();
        (count > 0).then(|| self.registrations.swap_remove(usize::from(n) % count))
    }

    fn compare(&self) {
        let targets = &self.targets;
        assert_eq!(
            array::from_fn(|i| targets.events[i].count()),
            self.held.counts
        );
        assert_eq!(
            array::from_fn(|i| targets.latest[i].value()),
            self.held.latest
        );
        for (ours, expected) in targets.queues.iter().zip(&self.held.queues) {
            assert_eq!(ours.len(), expected.len());
        }
        let listed = self.table.doorbells();
        assert_eq!(listed.len(), self.entries.len());
        let places = listed
            .iter()
            .map(|doorbell| (doorbell.bus(), doorbell.address()));
        assert!(places.is_sorted());
    }
}

/// Checks whether a batch should have failed, and that its error names the right doorbell.
fn check_batch(old: &[Entry], new: &[Entry], error: Option<&BatchError<DoorbellError>>) {
    for (index, entry) in new.iter().enumerate() {
        if let Err(invalid) = entry.validate() {
            assert_eq!(
                error,
                Some(&BatchError {
                    index,
                    error: invalid
                })
            );
            return;
        }
    }
    let collides = |i: usize| {
        let others = new
            .iter()
            .enumerate()
            .filter(|&(j, _)| j != i)
            .map(|(_, other)| other);
        old.iter()
            .chain(others)
            .any(|other| other.collides(&new[i]))
    };
    match error {
        None => assert!(!(0..new.len()).any(collides)),
        Some(error) => {
            assert_eq!(error.error, DoorbellError::Collision);
            assert!(collides(error.index));
        }
    }
}
