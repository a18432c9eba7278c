//! The signallers of one thread, found by their events.
//!
//! Who rings many doorbells, and does not know which, keeps one of these: a hash table with a lane in each place. What
//! an event's place is follows from its address, which is compared and never followed. That another event has been made
//! at the address of one that has gone shows in the number that the lanes of each event have.

use super::Event;
use super::split::{Number, Owned};
use crate::sync::membarrier;
use std::cell::RefCell;

/// Up to a number of signallers, each made when its event is first signalled here. Events beyond that are signalled the
/// usual way.
pub(crate) struct Signallers {
    /// A power of two of them, or none.
    places: Box<[RefCell<Place>]>,
}

#[derive(Default)]
enum Place {
    #[default]
    Vacant,
    Of(Lane),
    /// The address of an event that had no lane left.
    Refused(usize),
}

struct Lane {
    /// The address of the event.
    event: usize,
    /// The number of its lanes.
    number: Number,
    owned: Owned,
}

/// How far from where it belongs an event's place may be.
const MOST_STEPS: usize = 4;

impl Signallers {
    pub(crate) fn none() -> Self {
        Signallers {
            places: Box::from([]),
        }
    }

    /// For up to so many events. With as many places as that, too many events would be after the same: so there are
    /// twice as many.
    pub(crate) fn new(events: usize) -> Self {
        if events == 0 || !membarrier::is_to_be_had() {
            return Self::none();
        }
        let places = events.saturating_mul(2).max(MOST_STEPS).next_power_of_two();
        Signallers {
            places: (0..places).map(|_| RefCell::default()).collect(),
        }
    }

    #[inline(always)]
    pub(crate) fn signal(&self, event: &Event) {
        if self.places.is_empty() {
            return event.signal();
        }
        let first = self.first(event);
        // What is called by the second half may come here again.
        if self.places[first].borrow().add_one(event) || self.add_one_elsewhere(event, first) {
            event.signalled_by_lane();
        } else {
            event.signal();
        }
    }

    /// Where the search for an event's place begins.
    #[inline(always)]
    fn first(&self, event: &Event) -> usize {
        // Fibonacci hashing: the upper half of the product depends on all bits of the address.
        let hash = (address(event) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        hash as usize & (self.places.len() - 1)
    }

    /// Finds the event's place among those that follow, or makes it one.
    #[cold]
    #[inline(never)]
    fn add_one_elsewhere(&self, event: &Event, first: usize) -> bool {
        let mask = self.places.len() - 1;
        let places = || (first..first + MOST_STEPS).map(|place| &self.places[place & mask]);
        let mut refused = None;
        for place in places() {
            match &*place.borrow() {
                of if of.add_one(event) => return true,
                Place::Refused(other) if *other == address(event) => return false,
                Place::Refused(_) => refused = Some(place),
                _ => {}
            }
        }
        let free = places().find(|place| place.borrow().is_free(event));
        let Some(place) = free.or(refused) else {
            return false;
        };
        let claimed = event.claim_lane();
        let new = claimed.map_or(Place::Refused(address(event)), |(number, owned)| {
            let event = address(event);
            Place::Of(Lane {
                event,
                number,
                owned,
            })
        });
        // The last count of a lane may go with what was there, and no code from elsewhere.
        drop(place.replace(new));
        place.borrow().add_one(event)
    }
}

fn address(event: &Event) -> usize {
    std::ptr::from_ref(event).addr()
}

impl Place {
    /// First half of a signal, if this is the event's place.
    #[inline(always)]
    fn add_one(&self, event: &Event) -> bool {
        match self {
            Place::Of(lane)
                if lane.event == address(event) && event.number() == Some(lane.number) =>
            {
                lane.owned.add_one();
                true
            }
            _ => false,
        }
    }

    /// Whether it is of no use to anybody: vacant, or of an event that has gone.
    fn is_free(&self, event: &Event) -> bool {
        match self {
            Place::Vacant => true,
            Place::Of(lane) => lane.event == address(event) || lane.owned.is_left_alone(),
            Place::Refused(_) => false,
        }
    }
}
