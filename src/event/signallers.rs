//! The signallers of one thread, found by their events.
//!
//! This is for a thread that signals many events without knowing which: a hash table with a lane in each slot. The
//! address of an event determines its slot. The address is compared and never dereferenced. If another event was made
//! at the address of one that is gone, the number of its lanes differs.

use super::Event;
use super::split::{Number, Owned, Unsplit};
use crate::spread::spread;
use crate::sync::{UnsafeCell, membarrier};

/// Up to a number of signallers, each made when its event is first signalled here. Events beyond that are signalled the
/// usual way.
pub(crate) struct Signallers {
    /// A power of two of them, or none.
    slots: Box<[UnsafeCell<Slot>]>,
}

#[derive(Default)]
struct Slot {
    /// The address of the event, or 0.
    event: usize,
    /// The number of its lanes.
    number: Option<Number>,
    /// `None` if the event had no lane left.
    lane: Option<Owned>,
}

/// The limit for a caller that asks for any number of events: 3 MB.
const MOST_EVENTS: usize = 1 << 16;

/// How far from where it belongs an event's slot may be.
const MOST_STEPS: usize = 4;

impl Signallers {
    pub(crate) fn none() -> Self {
        Signallers {
            slots: Box::from([]),
        }
    }

    /// For up to so many events. It has twice as many slots, so that few events compete for the same one.
    pub(crate) fn new(events: usize) -> Self {
        if events == 0 || !membarrier::is_to_be_had() {
            return Self::none();
        }
        let slots = (2 * events.min(MOST_EVENTS)).max(MOST_STEPS);
        let slots = slots.next_power_of_two();
        let vacant = || UnsafeCell::new(Slot::default());
        Signallers {
            slots: (0..slots).map(|_| vacant()).collect(),
        }
    }

    #[inline(always)]
    pub(crate) fn signal(&self, event: &Event) {
        let first = self.first(event);
        let Some(slot) = self.slots.get(first) else {
            return event.signal();
        };
        let slot = slot.get();
        // SAFETY: one thread at a time has this. It is not here already while it accesses a slot, because accessing one
        // runs no foreign code. The second half of a signal may run code that comes here.
        if unsafe { slot.deref() }.add_one(event) || self.add_one_elsewhere(event, first) {
            event.signalled_by_lane();
        } else {
            event.signal();
        }
    }

    /// Where the search for an event's slot begins. If there are no slots, that is none.
    #[inline(always)]
    fn first(&self, event: &Event) -> usize {
        spread(address(event) as u64, u32::BITS) & self.slots.len().wrapping_sub(1)
    }

    /// Finds the event's slot among those that follow, or makes it one.
    #[cold]
    #[inline(never)]
    fn add_one_elsewhere(&self, event: &Event, first: usize) -> bool {
        let last = self.slots.len() - 1;
        let slots = || (first..first + MOST_STEPS).map(|slot| &self.slots[slot & last]);
        let (mut free, mut refused) = (None, None);
        for slot in slots() {
            let it = slot.get();
            // SAFETY: as in `signal`.
            let it = unsafe { it.deref() };
            if it.add_one(event) {
                return true;
            }
            if it.refuses(event) {
                return false;
            }
            if it.is_free(event) {
                free = free.or(Some(slot));
            } else if it.lane.is_none() {
                refused = Some(slot);
            }
        }
        let Some(slot) = free.or(refused) else {
            return false;
        };
        let (number, lane) = match event.counter.try_claim_lane() {
            // A lookup does not wait. The next one tries again.
            Err(Unsplit::ForNow) => return false,
            claimed => claimed.ok().unzip(),
        };
        let new = Slot {
            event: address(event),
            number,
            lane,
        };
        // SAFETY: as in `signal`. The last count of a lane may go with what was there, and nothing else.
        slot.with_mut(|slot| unsafe { *slot = new });
        let slot = slot.get();
        // SAFETY: as in `signal`.
        unsafe { slot.deref() }.add_one(event)
    }
}

fn address(event: &Event) -> usize {
    std::ptr::from_ref(event).addr()
}

impl Slot {
    /// First half of a signal, if this is the event's slot.
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

    /// Whether it is vacant, or of an event that is gone.
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
    use crate::sync::wide::Wide;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    /// Slots, whether or not there are lanes.
    fn signallers() -> Signallers {
        Signallers {
            slots: (0..MOST_STEPS)
                .map(|_| UnsafeCell::new(Slot::default()))
                .collect(),
        }
    }

    /// A lookup never waits, not even for a thread that makes the event's first signaller. That thread may be
    /// preempted, or may not exist in a forked child.
    #[test]
    fn no_signal_waits_for_a_thread_that_splits_the_count() {
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
        // It was not refused for good, unless by the processor.
        event.counter.pretend_to_split(false);
        signallers.signal(&event);
        assert_eq!(event.number().is_some(), Wide::is_lock_free());
        assert_eq!(event.try_read(), Some(3));
    }
}
