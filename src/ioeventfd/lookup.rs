//! The doorbells of one bus as a lookup sees them: sorted arrays, which do not change once they are published.
//!
//! ```text
//!     addresses   [ 0xd0000050  0xd0000050  0xe0003000  0xf0001000 ]    searched: see addresses.rs
//!     entries     [ 4, 0 ─▶ E   4, 1 ─▶ E   0 ─▶ E      array ─▶ slots ]  what to compare and what to ring
//!     doorbells   [ ...                                            ]    all of each doorbell, for changes
//! ```
//!
//! A lookup searches for the first address that is not below the write's. An array of doorbells owns all addresses up
//! to its end. So a write into an array, but not at its beginning, finds the array just before the place where the
//! search ends.

use super::addresses::Addresses;
use super::doorbell::{AddressKey, Doorbell, Target};
use super::hints::Hint;
use super::payload::{Kick, Latest, ValueQueue};
use crate::Event;
use crate::event::Signallers;
use std::borrow::Cow;
use std::sync::Arc;

/// A doorbell in a table, together with what a lookup needs of an array's slots.
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

/// A [`Target`] as a bare pointer. The [`Registered`] doorbell keeps the target alive.
#[derive(Clone, Copy)]
enum Action {
    Event(*const Event),
    Latest(*const Latest),
    ValueQueue(*const ValueQueue),
}

/// What a lookup compares and rings. Two entries fill a cache line.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Entry {
    address: u64,
    datamatch: u64,
    /// Points to the type that `kind` says.
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

/// A guest's write without its address. The value is decoded only for doorbells that need it, which are few.
#[derive(Clone, Copy)]
pub(super) struct Access<'a> {
    /// Not empty.
    data: &'a [u8],
}

impl<'a> Access<'a> {
    /// `None` for a write of no bytes, which no guest can make.
    #[inline(always)]
    pub(super) fn of(data: &'a [u8]) -> Option<Self> {
        (!data.is_empty()).then_some(Access { data })
    }

    /// The length, and the value written, zero-extended. `None` for other lengths than 1, 2, 4 and 8 bytes, which only
    /// a wildcard matches.
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
        let key = self.doorbell.address_key();
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
            address: key.address,
            datamatch: key.datamatch.unwrap_or(0),
            target,
            kind,
            has_datamatch: key.datamatch.is_some(),
            length: key.length,
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
        // SAFETY: as the caller promises.
        unsafe { self.ring(slot, access, signallers) }
    }

    /// # Safety
    ///
    /// The [`Registered`] that this is part of lives.
    unsafe fn ring_by_value(&self, access: Access<'_>, signallers: &Signallers) -> bool {
        // SAFETY: as the caller promises.
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
            // SAFETY: as the caller promises.
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

    /// Not inlined, so that a lookup of a doorbell without a datamatch does not load the data.
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
            // SAFETY: as the caller promises.
            _ => return unsafe { self.ring_other(address, access, signallers) },
        };
        // SAFETY: as the caller promises.
        unsafe { action.ring(0, access, signallers) }
    }

    /// Rings a target that is not an event. Most are events, which a branch finds faster than a jump table does.
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
                // SAFETY: as the caller promises; the kind says so.
                let slots: &Slots = unsafe { &*self.target.cast() };
                // SAFETY: as the caller promises.
                return unsafe { slots.ring_by_value(access, signallers) };
            }
            Kind::Array => {
                // SAFETY: as the caller promises; the kind says so.
                let slots: &Slots = unsafe { &*self.target.cast() };
                // SAFETY: as the caller promises.
                return unsafe { slots.ring_at(address - self.address, access, signallers) };
            }
        };
        // SAFETY: as the caller promises.
        unsafe { action.ring(0, access, signallers) }
    }

    /// The [`AddressKey`] without the address.
    fn key(&self) -> (u8, Option<u64>) {
        (self.length, self.has_datamatch.then_some(self.datamatch))
    }
}

/// See the module. The arrays have the same length, and are sorted by [`AddressKey`]. No two doorbells collide.
#[derive(Clone, Default)]
pub(super) struct LookupArrays {
    addresses: Addresses,
    entries: Box<[Entry]>,
    doorbells: Box<[*const Registered]>,
    /// Whether any is an array.
    has_arrays: bool,
}

// SAFETY: the pointers are to `Registered`s, of which only shared references are made. Those are `Send` and `Sync`
// except for the pointers in them, which are to targets that they own.
unsafe impl Send for LookupArrays {}
// SAFETY: as above.
unsafe impl Sync for LookupArrays {}
// SAFETY: as above.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl LookupArrays {
    /// Rings the doorbell that a write matches, if there is one and it has room. `hint` says where a search for the
    /// address has ended before.
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
        let Some(index) = hint.index(address) else {
            // SAFETY: as the caller promises.
            return unsafe { self.search_and_ring(address, access, hint, signallers) };
        };
        let entry = self.entries.get(index);
        let is_there = entry.is_some_and(|entry| entry.address == address);
        match entry {
            // The hint may be from an older snapshot. But if the entry at the index matches, no other entry does.
            Some(entry) if is_there && entry.matches(access) => {
                // SAFETY: as the caller promises.
                unsafe { entry.ring(address, access, signallers) }
            }
            _ if !is_there && !self.has_arrays && self.is_index(index, address) => false,
            // SAFETY: as the caller promises.
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
        let first = match hint.index(address) {
            Some(index) if self.is_index(index, address) => index,
            _ => self.addresses.index(address),
        };
        hint.set(address, first);
        let Some(found) = self.find(first, address, access) else {
            return false;
        };
        // An array is found from the index behind it.
        hint.set(address, found.max(first));
        // SAFETY: as the caller promises.
        unsafe { self.entries[found].ring(address, access, signallers) }
    }

    /// The same without a hint.
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
        match self.find(self.addresses.index(address), address, access) {
            // SAFETY: as the caller promises.
            Some(found) => unsafe { self.entries[found].ring(address, access, signallers) },
            None => false,
        }
    }

    /// Whether a search for the address would end at `index`.
    #[inline(always)]
    fn is_index(&self, index: usize, address: u64) -> bool {
        let below = |index: usize| {
            let entry = self.entries.get(index);
            entry.is_some_and(|entry| entry.address < address)
        };
        // Both are evaluated: a branch on the first would be mispredicted often.
        index <= self.entries.len() && !below(index) & (index == 0 || below(index.wrapping_sub(1)))
    }

    /// The index of the entry that a write matches, or that of an array that begins below it. `first` is the index of
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

    /// The index of the entry that matches, among those with the address of the one at `first` and behind it.
    #[cold]
    fn find_beside(&self, first: usize, access: Access<'_>) -> Option<usize> {
        // An entry for any length would have the address to itself, so the length must be equal.
        let (length, value) = access.value()?;
        let same = self.same_address(first);
        // An entry for any value is where the search for the value ends, or just before.
        let index = same.partition_point(|entry| entry.key() < (length, Some(value)));
        [index, index.wrapping_sub(1)]
            .into_iter()
            .find(|&index| same.get(index).is_some_and(|entry| entry.matches(access)))
            .map(|index| first + index)
    }

    /// The index of the entry before `index`, if that is an array and matches.
    fn find_array(&self, index: usize, access: Access<'_>) -> Option<usize> {
        let index = index.checked_sub(1)?;
        let entry = &self.entries[index];
        (entry.kind == Kind::Array && entry.matches(access)).then_some(index)
    }

    /// The entries with the address of the one at `first`, which is the first.
    fn same_address(&self, first: usize) -> &[Entry] {
        let rest = &self.entries[first..];
        let address = rest.first().map(|entry| entry.address);
        &rest[..rest.partition_point(|entry| Some(entry.address) == address)]
    }

    /// Where the doorbell with this key is, or would be inserted.
    pub(super) fn insertion_index(&self, key: &AddressKey) -> usize {
        let first = self.addresses.index(key.address);
        let rest = (key.length, key.datamatch);
        let before = |entry: &Entry| entry.address == key.address && entry.key() < rest;
        first + self.entries[first..].partition_point(before)
    }

    /// The doorbells, sorted.
    pub(super) fn doorbells(&self) -> &[*const Registered] {
        &self.doorbells
    }

    /// A copy without the doorbells at `removals`, and with `additions`, both sorted. If two collide, the error is the
    /// number of one of them.
    ///
    /// # Safety
    ///
    /// The doorbells live.
    pub(super) unsafe fn edited(
        &self,
        removals: &[usize],
        additions: &[(usize, &Arc<Registered>)],
    ) -> Result<LookupArrays, usize> {
        let mut arrays = Cow::Borrowed(self);
        if !removals.is_empty() {
            arrays = Cow::Owned(LookupArrays::new(
                without(&arrays.entries, removals),
                without(&arrays.doorbells, removals),
            ));
        }
        if !additions.is_empty() {
            // SAFETY: as the caller promises.
            arrays = Cow::Owned(unsafe { arrays.with(additions)? });
        }
        Ok(arrays.into_owned())
    }

    /// # Safety
    ///
    /// The doorbells live.
    unsafe fn with(&self, additions: &[(usize, &Arc<Registered>)]) -> Result<LookupArrays, usize> {
        let indices: Vec<usize> = additions
            .iter()
            .map(|(_, new)| self.insertion_index(&new.doorbell.address_key()))
            .collect();
        // If any two collide, then two neighbours do: all between the two would collide as well.
        for (i, &(number, new)) in additions.iter().enumerate() {
            let collides = |index: usize| {
                self.doorbells.get(index).is_some_and(|&old| {
                    // SAFETY: as the caller promises.
                    unsafe { (*old).doorbell.collides(&new.doorbell) }
                })
            };
            if collides(indices[i].wrapping_sub(1)) || collides(indices[i]) {
                return Err(number);
            }
            if let Some(&(later, next)) = additions.get(i + 1) {
                if next.doorbell.collides(&new.doorbell) {
                    return Err(number.max(later));
                }
            }
        }
        let new = || additions.iter().map(|(_, new)| new);
        Ok(LookupArrays::new(
            with(&self.entries, &indices, new().map(|new| new.entry())),
            with(&self.doorbells, &indices, new().map(|new| Arc::as_ptr(new))),
        ))
    }

    fn new(entries: Box<[Entry]>, doorbells: Box<[*const Registered]>) -> Self {
        LookupArrays {
            addresses: Addresses::of(&entries, |entry| entry.address),
            has_arrays: entries.iter().any(|entry| entry.kind == Kind::Array),
            entries,
            doorbells,
        }
    }
}

/// `old` without the elements at `indices`, which are sorted.
fn without<T: Copy>(old: &[T], indices: &[usize]) -> Box<[T]> {
    let mut rest = Vec::with_capacity(old.len() - indices.len());
    let mut from = 0;
    for &index in indices {
        rest.extend_from_slice(&old[from..index]);
        from = index + 1;
    }
    rest.extend_from_slice(&old[from..]);
    rest.into()
}

/// `old` with one of `new` before the element at each of `indices`, which are sorted.
fn with<T: Copy>(old: &[T], indices: &[usize], new: impl Iterator<Item = T>) -> Box<[T]> {
    let mut all = Vec::with_capacity(old.len() + indices.len());
    let mut from = 0;
    for (&index, new) in indices.iter().zip(new) {
        all.extend_from_slice(&old[from..index]);
        all.push(new);
        from = index;
    }
    all.extend_from_slice(&old[from..]);
    all.into()
}
