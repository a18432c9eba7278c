//! The doorbells of one bus as a lookup sees them: sorted arrays, never changed once published.
//!
//! ```text
//!     addresses   [ 0xd0000050  0xd0000050  0xe0003000  0xf0001000 ]    searched: see addresses.rs
//!     entries     [ 4, 0 ─▶ E   4, 1 ─▶ E   0 ─▶ E      array ─▶ slots ]  what to compare and what to ring
//!     doorbells   [ ...                                            ]    the whole, for writers
//! ```
//!
//! The one search is for the first address that is not below the write's. An array owns all addresses up to its end, so
//! if the write falls into one but not to its beginning, it is the one before.

use super::addresses::Addresses;
use super::doorbell::{Doorbell, Spot, Target};
use super::hints::Hint;
use super::payload::{Kick, Latest, ValueQueue};
use crate::Event;
use crate::event::Signallers;
use std::borrow::Cow;
use std::sync::Arc;

/// A doorbell in a table, and what a lookup needs of it in place.
pub(super) struct Registered {
    pub(super) doorbell: Doorbell,
    slots: Slots,
}

/// The slots of an array; of a single doorbell, none.
struct Slots {
    /// log2 of the stride, if that is not 0.
    shift: u32,
    actions: Box<[Action]>,
}

/// A [`Target`] without its share in the ownership, which the [`Registered`] has.
#[derive(Clone, Copy)]
enum Action {
    Event(*const Event),
    Latest(*const Latest),
    ValueQueue(*const ValueQueue),
}

/// Two to a cache line.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Entry {
    address: u64,
    datamatch: u64,
    /// Of the type that `kind` says.
    target: *const (),
    kind: Kind,
    has_datamatch: bool,
    length: u8,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Event,
    Latest,
    ValueQueue,
    /// [`Slots`], told apart by address.
    Array,
    /// [`Slots`], told apart by the value written.
    ArrayByValue,
}

/// A guest's write, but for its address. Few doorbells ask for its value, so it is read when one does.
#[derive(Clone, Copy)]
pub(super) struct Access<'a> {
    /// Not empty.
    data: &'a [u8],
}

impl<'a> Access<'a> {
    /// `None` if nothing was written, which no guest does: there is no access without a byte.
    #[inline(always)]
    pub(super) fn of(data: &'a [u8]) -> Option<Self> {
        (!data.is_empty()).then_some(Access { data })
    }

    /// The length, and what was written, zero-extended. `None` if it is of other than 1, 2, 4 or 8 bytes, which only a
    /// wildcard takes.
    #[inline(always)]
    fn value(self) -> Option<(u8, u64)> {
        Some(match *self.data {
            [byte] => (1, byte.into()),
            [a, b] => (2, u16::from_ne_bytes([a, b]).into()),
            [a, b, c, d] => (4, u32::from_ne_bytes([a, b, c, d]).into()),
            [a, b, c, d, e, f, g, h] => (8, u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
            _ => return None,
        })
    }
}

impl Registered {
    pub(super) fn new(doorbell: Doorbell) -> Self {
        let slots = match &doorbell {
            Doorbell::Single { .. } => Slots {
                shift: 0,
                actions: Box::default(),
            },
            Doorbell::Array { array, targets } => Slots {
                // With a stride of 0 it is not used.
                shift: array.stride.trailing_zeros(),
                actions: targets.iter().map(Action::of).collect(),
            },
        };
        Registered { doorbell, slots }
    }

    fn entry(&self) -> Entry {
        let spot = self.doorbell.spot();
        let (kind, target) = match &self.doorbell {
            Doorbell::Single { target, .. } => match Action::of(target) {
                Action::Event(event) => (Kind::Event, event.cast()),
                Action::Latest(latest) => (Kind::Latest, latest.cast()),
                Action::ValueQueue(queue) => (Kind::ValueQueue, queue.cast()),
            },
            Doorbell::Array { array, .. } => {
                let kind = match array.stride {
                    0 => Kind::ArrayByValue,
                    _ => Kind::Array,
                };
                (kind, (&raw const self.slots).cast())
            }
        };
        Entry {
            address: spot.address,
            datamatch: spot.datamatch.unwrap_or(0),
            target,
            kind,
            has_datamatch: spot.datamatch.is_some(),
            length: spot.length,
        }
    }
}

impl Action {
    fn of(target: &Target) -> Self {
        match target {
            Target::Event(event) => Action::Event(&raw const **event),
            Target::Latest(latest) => Action::Latest(Arc::as_ptr(latest)),
            Target::ValueQueue(queue) => Action::ValueQueue(Arc::as_ptr(queue)),
        }
    }

    /// # Safety
    ///
    /// The [`Registered`] that this is part of lives.
    #[inline(always)]
    unsafe fn ring(self, slot: u32, access: Access<'_>, signallers: &Signallers) -> bool {
        match self {
            Action::Event(event) => {
                // SAFETY: the registered target holds it.
                signallers.signal(unsafe { &*event });
                true
            }
            Action::Latest(latest) => access.value().is_some_and(|(_, value)| {
                // SAFETY: the registered target holds it.
                unsafe { (*latest).ring(value, signallers) };
                true
            }),
            Action::ValueQueue(queue) => access.value().is_some_and(|(_, value)| {
                // SAFETY: the registered target holds it.
                unsafe { (*queue).ring(Kick { slot, value }, signallers) }
            }),
        }
    }
}

impl Slots {
    /// # Safety
    ///
    /// The [`Registered`] that this is part of lives.
    unsafe fn ring_at(&self, offset: u64, access: Access<'_>, signallers: &Signallers) -> bool {
        let slot = offset >> self.shift;
        if slot << self.shift != offset {
            return false;
        }
        // SAFETY: as promised.
        unsafe { self.ring(slot, access, signallers) }
    }

    /// # Safety
    ///
    /// The [`Registered`] that this is part of lives.
    unsafe fn ring_by_value(&self, access: Access<'_>, signallers: &Signallers) -> bool {
        // SAFETY: as promised.
        access
            .value()
            .is_some_and(|(_, slot)| unsafe { self.ring(slot, access, signallers) })
    }

    /// # Safety
    ///
    /// The [`Registered`] that this is part of lives.
    #[inline(always)]
    unsafe fn ring(&self, slot: u64, access: Access<'_>, signallers: &Signallers) -> bool {
        // The conversions lose nothing: there are at most u32::MAX slots.
        match usize::try_from(slot).ok().and_then(|i| self.actions.get(i)) {
            // SAFETY: as promised.
            Some(action) => unsafe { action.ring(slot as u32, access, signallers) },
            None => false,
        }
    }
}

impl Entry {
    #[inline(always)]
    fn matches(&self, access: Access<'_>) -> bool {
        self.length == 0
            || (usize::from(self.length) == access.data.len()
                && (!self.has_datamatch || self.matches_data(access)))
    }

    /// Not inlined, so that the doorbells without a datamatch need not have the data ready.
    #[inline(never)]
    fn matches_data(&self, access: Access<'_>) -> bool {
        access
            .value()
            .is_some_and(|(_, value)| value == self.datamatch)
    }

    /// # Safety
    ///
    /// The [`Registered`] that this is part of lives.
    #[inline(always)]
    unsafe fn ring(&self, address: u64, access: Access<'_>, signallers: &Signallers) -> bool {
        let action = match self.kind {
            Kind::Event => Action::Event(self.target.cast()),
            // SAFETY: as promised.
            _ => return unsafe { self.ring_other(address, access, signallers) },
        };
        // SAFETY: as promised.
        unsafe { action.ring(0, access, signallers) }
    }

    /// What is no event, which most are: for those, a branch costs less than a table of jumps.
    ///
    /// # Safety
    ///
    /// The [`Registered`] that this is part of lives.
    #[inline(never)]
    unsafe fn ring_other(&self, address: u64, access: Access<'_>, signallers: &Signallers) -> bool {
        let action = match self.kind {
            Kind::Event => Action::Event(self.target.cast()),
            Kind::Latest => Action::Latest(self.target.cast()),
            Kind::ValueQueue => Action::ValueQueue(self.target.cast()),
            Kind::ArrayByValue => {
                // SAFETY: as promised; the kind says so.
                let slots: &Slots = unsafe { &*self.target.cast() };
                // SAFETY: as promised.
                return unsafe { slots.ring_by_value(access, signallers) };
            }
            Kind::Array => {
                // SAFETY: as promised; the kind says so.
                let slots: &Slots = unsafe { &*self.target.cast() };
                // SAFETY: as promised.
                return unsafe { slots.ring_at(address - self.address, access, signallers) };
            }
        };
        // SAFETY: as promised.
        unsafe { action.ring(0, access, signallers) }
    }

    /// What of a [`Spot`] is not the address.
    fn key(&self) -> (u8, Option<u64>) {
        (self.length, self.has_datamatch.then_some(self.datamatch))
    }
}

/// See the module. The arrays have the same length and order: that of [`Spot`]s. No two doorbells collide.
#[derive(Clone, Default)]
pub(super) struct Lines {
    addresses: Addresses,
    entries: Box<[Entry]>,
    doorbells: Box<[*const Registered]>,
    /// Whether any is an array.
    has_arrays: bool,
}

// SAFETY: the pointers lead to `Registered`s, of which only shared references are made, and which are `Send` and `Sync`
// but for the pointers in them, which lead to targets of their own.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}
// SAFETY: as above.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Lines {
    /// Rings the doorbell that a write matches, if there is one and it has room. `hint` is where a search ended.
    ///
    /// # Safety
    ///
    /// The doorbells live.
    #[inline(always)]
    pub(super) unsafe fn ring(
        &self,
        address: u64,
        access: Access<'_>,
        hint: &Hint,
        signallers: &Signallers,
    ) -> bool {
        let Some(place) = hint.place(address) else {
            // SAFETY: as promised.
            return unsafe { self.search_and_ring(address, access, hint, signallers) };
        };
        let entry = self.entries.get(place);
        let is_there = entry.is_some_and(|entry| entry.address == address);
        match entry {
            // The lines may be others by now. But whatever stands at the place, nothing else matches if it does.
            Some(entry) if is_there && entry.matches(access) => {
                // SAFETY: as promised.
                unsafe { entry.ring(address, access, signallers) }
            }
            _ if !is_there && !self.has_arrays && self.is_place(place, address) => false,
            // SAFETY: as promised.
            _ => unsafe { self.search_and_ring(address, access, hint, signallers) },
        }
    }

    /// Not inlined, so that what needs no search saves no registers for one.
    ///
    /// # Safety
    ///
    /// The doorbells live.
    #[inline(never)]
    unsafe fn search_and_ring(
        &self,
        address: u64,
        access: Access<'_>,
        hint: &Hint,
        signallers: &Signallers,
    ) -> bool {
        let first = match hint.place(address) {
            Some(place) if self.is_place(place, address) => place,
            _ => self.addresses.place(address),
        };
        hint.set(address, first);
        let Some(found) = self.find(first, address, access) else {
            return false;
        };
        // An array is found from the place behind it.
        hint.set(address, found.max(first));
        // SAFETY: as promised.
        unsafe { self.entries[found].ring(address, access, signallers) }
    }

    /// The same for who has no hint.
    ///
    /// # Safety
    ///
    /// The doorbells live.
    #[inline(always)]
    pub(super) unsafe fn ring_without_hint(
        &self,
        address: u64,
        access: Access<'_>,
        signallers: &Signallers,
    ) -> bool {
        match self.find(self.addresses.place(address), address, access) {
            // SAFETY: as promised.
            Some(found) => unsafe { self.entries[found].ring(address, access, signallers) },
            None => false,
        }
    }

    /// Whether a search for the address would end at `place`.
    #[inline(always)]
    fn is_place(&self, place: usize, address: u64) -> bool {
        let below = |place: usize| {
            let entry = self.entries.get(place);
            entry.is_some_and(|entry| entry.address < address)
        };
        // Both, since a branch on one would go this way as often as that.
        place <= self.entries.len() && !below(place) & (place == 0 || below(place.wrapping_sub(1)))
    }

    /// The place of the entry that a write matches, or that of an array that begins below it. `first` is the place of
    /// the first address that is not below the write's.
    #[inline(always)]
    fn find(&self, first: usize, address: u64, access: Access<'_>) -> Option<usize> {
        if self.addresses.is(first, address) {
            if self.entries.get(first)?.matches(access) {
                return Some(first);
            }
            return self.find_beside(first, access);
        }
        if self.has_arrays {
            return self.find_array(first, access);
        }
        None
    }

    /// The place of the entry that matches, among those with the address of the one at `first` and behind it.
    #[cold]
    fn find_beside(&self, first: usize, access: Access<'_>) -> Option<usize> {
        // Of those of another length, one for any length has the address to itself.
        let (length, value) = access.value()?;
        let same = self.same_address(first);
        // An entry for any data stands where the search for the data ends, or just before.
        let place = same.partition_point(|entry| entry.key() < (length, Some(value)));
        [place, place.wrapping_sub(1)]
            .into_iter()
            .find(|&place| same.get(place).is_some_and(|entry| entry.matches(access)))
            .map(|place| first + place)
    }

    /// The place of the array that begins before `place`, if what does is one.
    fn find_array(&self, place: usize, access: Access<'_>) -> Option<usize> {
        let place = place.checked_sub(1)?;
        let entry = &self.entries[place];
        (entry.kind == Kind::Array && entry.matches(access)).then_some(place)
    }

    /// The entries with the address of the one at `first`, which is the first.
    fn same_address(&self, first: usize) -> &[Entry] {
        let rest = &self.entries[first..];
        let address = rest.first().map(|entry| entry.address);
        &rest[..rest.partition_point(|entry| Some(entry.address) == address)]
    }

    /// Where `spot` stands, or would.
    pub(super) fn place(&self, spot: &Spot) -> usize {
        let first = self.addresses.place(spot.address);
        let rest = (spot.length, spot.datamatch);
        let before = |entry: &Entry| entry.address == spot.address && entry.key() < rest;
        first + self.entries[first..].partition_point(before)
    }

    /// The doorbells in their order.
    pub(super) fn doorbells(&self) -> &[*const Registered] {
        &self.doorbells
    }

    /// The lines without the doorbells at `removals`, and with `additions`, both sorted. If two collide, the number
    /// that comes with one of them.
    ///
    /// # Safety
    ///
    /// The doorbells live.
    pub(super) unsafe fn edited(
        &self,
        removals: &[usize],
        additions: &[(usize, &Arc<Registered>)],
    ) -> Result<Lines, usize> {
        let mut lines = Cow::Borrowed(self);
        if !removals.is_empty() {
            lines = Cow::Owned(Lines::new(
                without(&lines.entries, removals),
                without(&lines.doorbells, removals),
            ));
        }
        if !additions.is_empty() {
            // SAFETY: as promised.
            lines = Cow::Owned(unsafe { lines.with(additions)? });
        }
        Ok(lines.into_owned())
    }

    /// # Safety
    ///
    /// The doorbells live.
    unsafe fn with(&self, additions: &[(usize, &Arc<Registered>)]) -> Result<Lines, usize> {
        let places: Vec<usize> = additions
            .iter()
            .map(|(_, new)| self.place(&new.doorbell.spot()))
            .collect();
        // If any two collide, then two that will stand side by side do: what stands between them would too.
        for (i, &(number, new)) in additions.iter().enumerate() {
            let collides = |place: usize| {
                self.doorbells.get(place).is_some_and(|&old| {
                    // SAFETY: as promised.
                    unsafe { (*old).doorbell.collides(&new.doorbell) }
                })
            };
            if collides(places[i].wrapping_sub(1)) || collides(places[i]) {
                return Err(number);
            }
            if let Some(&(later, next)) = additions.get(i + 1) {
                if next.doorbell.collides(&new.doorbell) {
                    return Err(number.max(later));
                }
            }
        }
        let new = || additions.iter().map(|(_, new)| new);
        Ok(Lines::new(
            with(&self.entries, &places, new().map(|new| new.entry())),
            with(&self.doorbells, &places, new().map(|new| Arc::as_ptr(new))),
        ))
    }

    fn new(entries: Box<[Entry]>, doorbells: Box<[*const Registered]>) -> Self {
        Lines {
            addresses: Addresses::of(&entries, |entry| entry.address),
            has_arrays: entries.iter().any(|entry| entry.kind == Kind::Array),
            entries,
            doorbells,
        }
    }
}

/// `old` without the elements at `places`, which are sorted.
fn without<T: Copy>(old: &[T], places: &[usize]) -> Box<[T]> {
    let mut rest = Vec::with_capacity(old.len() - places.len());
    let mut from = 0;
    for &place in places {
        rest.extend_from_slice(&old[from..place]);
        from = place + 1;
    }
    rest.extend_from_slice(&old[from..]);
    rest.into()
}

/// `old` with one of `new` before the element at each of `places`, which are sorted.
fn with<T: Copy>(old: &[T], places: &[usize], new: impl Iterator<Item = T>) -> Box<[T]> {
    let mut all = Vec::with_capacity(old.len() + places.len());
    let mut from = 0;
    for (&place, new) in places.iter().zip(new) {
        all.extend_from_slice(&old[from..place]);
        all.push(new);
        from = place;
    }
    all.extend_from_slice(&old[from..]);
    all.into()
}
