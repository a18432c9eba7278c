use super::{Bus, DoorbellArray, DoorbellError, Key, Latest, ValueQueue};
use crate::Event;
use crate::event::EventHandle;
use std::slice;
use std::sync::Arc;

/// What a doorbell does when it is rung.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Target {
    /// Signals the event.
    Event(EventHandle),
    /// Keeps the value, then signals. Takes writes of 1, 2, 4 and 8 bytes only.
    Latest(Arc<Latest>),
    /// Queues the value, then signals. Takes writes of 1, 2, 4 and 8 bytes only.
    ValueQueue(Arc<ValueQueue>),
}

impl Target {
    /// The event that is signalled.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        match self {
            Target::Event(event) => event,
            Target::Latest(latest) => latest.event(),
            Target::ValueQueue(queue) => queue.event(),
        }
    }

    /// What keeps the value last written, if the target is such a one.
    ///
    /// ```
    /// # use doorbell::ioeventfd::{Key, Latest, Table};
    /// # use doorbell::{Event, event::EventHandle};
    /// # use std::sync::Arc;
    /// # let kick = Arc::new(Event::new(0));
    /// # let before = Table::new();
    /// # let tail = Arc::new(Latest::new(&kick, 5));
    /// # let _tail = before.assign(Key::mmio(0xf000_1000, 4), &tail)?;
    /// # let state = before.save(|_| 0);
    /// // The device finds its register again in a table that was restored.
    /// let table = Table::new();
    /// let doorbells = table.restore(&state, |_| Some(EventHandle::from(&kick)))?;
    /// let [target] = doorbells[0].doorbell().targets() else { unreachable!("it was no array") };
    /// let tail = target.latest().expect("it was a `Latest`");
    /// assert_eq!(tail.value(), 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn latest(&self) -> Option<&Arc<Latest>> {
        match self {
            Target::Latest(latest) => Some(latest),
            _ => None,
        }
    }

    /// What queues the values, if the target is such a one.
    #[must_use]
    pub fn value_queue(&self) -> Option<&Arc<ValueQueue>> {
        match self {
            Target::ValueQueue(queue) => Some(queue),
            _ => None,
        }
    }

    /// Whether both are the same object.
    pub(super) fn is(&self, other: &Target) -> bool {
        match (self, other) {
            (Target::Event(a), Target::Event(b)) => a.ptr_eq(b),
            (Target::Latest(a), Target::Latest(b)) => Arc::ptr_eq(a, b),
            (Target::ValueQueue(a), Target::ValueQueue(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

macro_rules! target_from {
    ($($kind:ident)*) => {$(
        impl From<Arc<$kind>> for Target {
            fn from(target: Arc<$kind>) -> Self {
                Target::$kind(target)
            }
        }

        impl From<&Arc<$kind>> for Target {
            fn from(target: &Arc<$kind>) -> Self {
                Target::$kind(Arc::clone(target))
            }
        }
    )*};
}

target_from!(Latest ValueQueue);

macro_rules! target_from_event {
    ($($handle:ty)*) => {$(
        impl From<$handle> for Target {
            fn from(event: $handle) -> Self {
                Target::Event(event.into())
            }
        }
    )*};
}

// What becomes an `EventHandle`.
target_from_event!(EventHandle &EventHandle Arc<Event> &Arc<Event> &'static Event);

impl From<&Target> for Target {
    fn from(target: &Target) -> Self {
        target.clone()
    }
}

/// An entry of a [`Table`](super::Table): which writes ring it, and what happens then.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Doorbell {
    /// One address.
    Single {
        /// What rings it.
        key: Key,
        /// What it does.
        target: Target,
    },
    /// Many addresses, or many values at one address.
    Array {
        /// What rings them.
        array: DoorbellArray,
        /// What each slot does.
        targets: Arc<[Target]>,
    },
}

impl Doorbell {
    /// A doorbell at one address.
    #[must_use]
    pub fn new(key: Key, target: impl Into<Target>) -> Self {
        Doorbell::Single {
            key,
            target: target.into(),
        }
    }

    /// An array of doorbells, with a target for each slot.
    #[must_use]
    pub fn array(
        array: DoorbellArray,
        targets: impl IntoIterator<Item = impl Into<Target>>,
    ) -> Self {
        Doorbell::Array {
            array,
            targets: targets.into_iter().map(Into::into).collect(),
        }
    }

    /// The address space.
    #[must_use]
    pub fn bus(&self) -> Bus {
        match self {
            Doorbell::Single { key, .. } => key.bus,
            Doorbell::Array { array, .. } => array.bus,
        }
    }

    /// Its address, or that of its first slot.
    #[must_use]
    pub fn address(&self) -> u64 {
        match self {
            Doorbell::Single { key, .. } => key.address,
            Doorbell::Array { array, .. } => array.address,
        }
    }

    /// What it does, or what each slot of it does.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        match self {
            Doorbell::Single { target, .. } => slice::from_ref(target),
            Doorbell::Array { targets, .. } => targets,
        }
    }

    pub(super) fn validate(&self) -> Result<(), DoorbellError> {
        match self {
            Doorbell::Single { key, .. } => key.validate(),
            Doorbell::Array { array, targets } => {
                array.validate()?;
                if targets.len() != array.slots as usize {
                    return Err(DoorbellError::Slots);
                }
                Ok(())
            }
        }
    }

    /// Whether a write could ring both, or one is inside the other, so that only one of them may be registered.
    pub(super) fn collides(&self, other: &Doorbell) -> bool {
        use Doorbell::{Array, Single};
        self.bus() == other.bus()
            && match (self, other) {
                (Single { key: a, .. }, Single { key: b, .. }) => a.collides(b),
                (Array { array, .. }, other) if array.contains(other.address()) => true,
                (other, Array { array, .. }) => array.contains(other.address()),
                _ => false,
            }
    }

    /// Whether the same writes ring both, and both have the same targets.
    pub(super) fn is(&self, other: &Doorbell) -> bool {
        use Doorbell::{Array, Single};
        let same_writes = match (self, other) {
            (Single { key: a, .. }, Single { key: b, .. }) => a == b,
            (Array { array: a, .. }, Array { array: b, .. }) => a == b,
            _ => false,
        };
        let (a, b) = (self.targets(), other.targets());
        same_writes && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.is(b))
    }

    /// What doorbells are sorted by. Two doorbells with the same key collide.
    pub(super) fn sort_key(&self) -> (Bus, AddressKey) {
        (self.bus(), self.address_key())
    }

    /// What the doorbells of one bus are sorted by.
    pub(super) fn address_key(&self) -> AddressKey {
        match self {
            Doorbell::Single { key, .. } => AddressKey {
                address: key.address,
                length: key.length as u8,
                datamatch: key.datamatch,
            },
            Doorbell::Array { array, .. } => AddressKey {
                address: array.address,
                length: array.length as u8,
                datamatch: None,
            },
        }
    }
}

/// Two are equal if the same writes ring them, and the targets are the same objects.
impl PartialEq for Doorbell {
    fn eq(&self, other: &Self) -> bool {
        self.is(other)
    }
}

impl Eq for Doorbell {}

/// What the doorbells of one bus are sorted by.
///
/// At one address there is either one entry that takes any length or, for each length, either one entry without a
/// datamatch or any number of entries with one. So all entries that a write could match are neighbours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AddressKey {
    pub(super) address: u64,
    pub(super) length: u8,
    pub(super) datamatch: Option<u64>,
}
