//! The signallers of one thread, found by their events.
//!
//! Who rings many doorbells, and does not know which, keeps one of these: a hash table with a lane in each place. What
//! an event's place is follows from its address, which is compared and never followed. That another event has been made
//! at the address of one that has gone shows in the number that the lanes of each event have.

use super::Event;
use super::split::{Number, Owned, Unsplit};
use crate::spread::spread;
use crate::sync::{UnsafeCell, membarrier};

/// Up to a number of signallers, each made when its event is first signalled here. Events beyond that are signalled the
/// usual way.
pub(crate) struct Signallers {
    /// A power of two of them, or none.
    places: Box<[UnsafeCell<Place>]>,
}

#[derive(Default)]
struct Place {
    /// The address of the event, or 0.
    event: usize,
    /// The number of its lanes.
    number: Option<Number>,
    /// `None` if the event had no lane left.
    lane: Option<Owned>,
}

/// Who asks for more than anybody has, so as to have no limit, gets these: 3 MB.
const MOST_EVENTS: usize = 1 << 16;

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
        let places = (2 * events.min(MOST_EVENTS)).max(MOST_STEPS);
        let places = places.next_power_of_two();
        let vacant = || UnsafeCell::new(Place::default());
        Signallers {
            places: (0..places).map(|_| vacant()).collect(),
        }
    }

    #[inline(always)]
    pub(crate) fn signal(&self, event: &Event) {
        let first = self.first(event);
        let Some(place) = self.places.get(first) else {
            return event.signal();
        };
        let place = place.get();
        // SAFETY: one thread at a time has this, and it does not come here while it looks at a place or replaces what
        // is there, which runs no code from elsewhere. What is called by the second half of a signal may come here.
        if unsafe { place.deref() }.add_one(event) || self.add_one_elsewhere(event, first) {
            event.signalled_by_lane();
        } else {
            event.signal();
        }
    }

    /// Where the search for an event's place begins. If there are no places, that is none.
    #[inline(always)]
    fn first(&self, event: &Event) -> usize {
        spread(address(event) as u64, u32::BITS) & self.places.len().wrapping_sub(1)
    }

    /// Finds the event's place among those that follow, or makes it one.
    #[cold]
    #[inline(never)]
    fn add_one_elsewhere(&self, event: &Event, first: usize) -> bool {
        let last = self.places.len() - 1;
        let places = || (first..first + MOST_STEPS).map(|place| &self.places[place & last]);
        let (mut free, mut refused) = (None, None);
        for place in places() {
            let it = place.get();
            // SAFETY: as in `signal`.
            let it = unsafe { it.deref() };
            if it.add_one(event) {
                return true;
            }
            if it.refuses(event) {
                return false;
            }
            if it.is_free(event) {
                free = free.or(Some(place));
            } else if it.lane.is_none() {
                refused = Some(place);
            }
        }
        let Some(place) = free.or(refused) else {
            return false;
        };
        let (number, lane) = match event.counter.try_claim_lane() {
            // A look-up waits for nobody. The next one tries again.
            Err(Unsplit::ForNow) => return false,
            claimed => claimed.ok().unzip(),
        };
        let new = Place {
            event: address(event),
            number,
            lane,
        };
        // SAFETY: as in `signal`. The last count of a lane may go with what was there, and nothing else.
        place.with_mut(|place| unsafe { *place = new });
        let place = place.get();
        // SAFETY: as in `signal`.
        unsafe { place.deref() }.add_one(event)
    }
}

fn address(event: &Event) -> usize {
    std::ptr::from_ref(event).addr()
}

impl Place {
    /// First half of a signal, if this is the event's place.
    #[inline(always)]
    fn add_one(&self, event: &Event) -> bool {
        match &self.lane {
            Some(lane) if self.event == address(event) && self.number == event.number() => {
                lane.add_one();
                true
            }
            _ => false,
        }
    }

    /// Whether the event had no lane left.
    fn refuses(&self, event: &Event) -> bool {
        self.event == address(event) && self.lane.is_none()
    }

    /// Whether it is of no use to anybody: vacant, or of an event that has gone.
    fn is_free(&self, event: &Event) -> bool {
        match &self.lane {
            Some(lane) => self.event == address(event) || lane.is_left_alone(),
            None => self.event == 0,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    /// Places, whether or not there are lanes.
    fn signallers() -> Signallers {
        Signallers {
            places: (0..MOST_STEPS)
                .map(|_| UnsafeCell::new(Place::default()))
                .collect(),
        }
    }

    /// A look-up never waits: not for a thread that makes the event's first signaller either, which may have been put
    /// aside, or be one that a fork has left behind.
    #[test]
    fn no_signal_waits_for_who_splits_the_count() {
        let event = Arc::new(Event::new(0));
        event.counter.pretend_to_split(true);
        let (done, signalled) = mpsc::channel();
        thread::spawn({
            let event = Arc::clone(&event);
            move || {
                let signallers = signallers();
                (0..2).for_each(|_| signallers.signal(&event));
                done.send(signallers)
            }
        });
        let patience = Duration::from_secs(20);
        let signallers = signalled.recv_timeout(patience).expect("it waits");
        assert_eq!((event.count(), event.number()), (2, None));
        // It was not refused for good.
        event.counter.pretend_to_split(false);
        signallers.signal(&event);
        assert!(event.number().is_some());
        assert_eq!(event.try_read(), Some(3));
    }
}
