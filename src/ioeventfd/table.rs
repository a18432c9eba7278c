use super::{AssignError, Bus, DeassignError, Key};
use crate::Event;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The doorbells of one virtual machine. Clones are handles to the same table.
///
/// ```
/// use doorbell::{Event, ioeventfd::{Bus, Key, Table}};
/// use std::sync::Arc;
///
/// let table = Table::new();
/// let kick = Arc::new(Event::new(0));
/// let registration = table.assign(Key::pio(0xc050, 2), &kick)?;
///
/// // In the vCPU thread, on an exit for `out dx, ax`:
/// assert!(table.write(Bus::Pio, 0xc050, &[1, 0]));
/// assert_eq!(kick.try_read(), Some(1));
/// // Another length is another matter: the device model's.
/// assert!(!table.write(Bus::Pio, 0xc050, &[1]));
///
/// drop(registration);
/// assert!(!table.write(Bus::Pio, 0xc050, &[1, 0]));
/// # Ok::<(), doorbell::ioeventfd::AssignError>(())
/// ```
#[derive(Clone, Default)]
pub struct Table {
    /// Sorted by key. No two keys collide.
    entries: Arc<RwLock<Vec<Entry>>>,
}

struct Entry {
    key: Key,
    event: Arc<Event>,
}

impl Table {
    /// A table without doorbells.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has guest writes that match `key` signal `event`, until the registration is dropped or the key deassigned.
    ///
    /// When this returns, every write that is looked up from then on finds it. One event may stand under any number of
    /// keys. (`KVM_IOEVENTFD`)
    ///
    /// # Errors
    ///
    /// The key is invalid or collides with a registered one, in the order in which KVM checks; whichever events the
    /// two have. Nothing was registered then.
    pub fn assign(&self, key: Key, event: &Arc<Event>) -> Result<Registration, AssignError> {
        key.validate()?;
        let mut entries = self.lock();
        if entries.iter().any(|entry| entry.key.collides(&key)) {
            return Err(AssignError::Collision);
        }
        let place = entries.partition_point(|entry| entry.key < key);
        let event = Arc::clone(event);
        entries.insert(
            place,
            Entry {
                key,
                event: Arc::clone(&event),
            },
        );
        Ok(Registration {
            table: self.clone(),
            key,
            event,
        })
    }

    /// Ends what [`assign`](Self::assign) of the same key and event began.
    ///
    /// When this returns, no signal comes through the entry any more; what it has signalled stays in the event.
    /// (`KVM_IOEVENTFD_FLAG_DEASSIGN`)
    ///
    /// # Errors
    ///
    /// No entry has this key with this event.
    pub fn deassign(&self, key: Key, event: &Arc<Event>) -> Result<(), DeassignError> {
        let mut entries = self.lock();
        let place = find(&entries, &key).ok_or(DeassignError)?;
        if !Arc::ptr_eq(&entries[place].event, event) {
            return Err(DeassignError);
        }
        entries.remove(place);
        Ok(())
    }

    /// Offers the table a guest's write of `data`, in the byte order of the host, at `address`.
    ///
    /// Signals the event whose key matches, and returns whether there was one. If not, the write is for somebody else:
    /// the caller's device models.
    #[must_use = "a write that no doorbell took is for the device models"]
    pub fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        let entries = self.read();
        let any_length = Key {
            bus,
            address,
            length: 0,
            datamatch: None,
        };
        let found = find(&entries, &any_length).or_else(|| {
            let value = zero_extend(data)?;
            let exact = Key {
                length: data.len() as u32,
                ..any_length
            };
            find(&entries, &exact).or_else(|| find(&entries, &exact.with_datamatch(value)))
        });
        if let Some(place) = found {
            entries[place].event.signal();
        }
        found.is_some()
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Entry>> {
        // The vector is whole at every point where a holder of the lock can panic.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Vec<Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(entries: &[Entry], key: &Key) -> Option<usize> {
    entries.binary_search_by(|entry| entry.key.cmp(key)).ok()
}

/// The value of a write of 1, 2, 4 or 8 bytes; other lengths match only the wildcard.
fn zero_extend(data: &[u8]) -> Option<u64> {
    Some(match *data {
        [byte] => byte.into(),
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        _ => return None,
    })
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.read();
        f.debug_map()
            .entries(entries.iter().map(|entry| (&entry.key, &entry.event)))
            .finish()
    }
}

/// A doorbell that stands in a [`Table`] until this is dropped.
#[must_use = "the doorbell is deassigned when its registration is dropped"]
#[derive(Debug)]
pub struct Registration {
    table: Table,
    key: Key,
    event: Arc<Event>,
}

impl Registration {
    /// What rings it.
    pub fn key(&self) -> Key {
        self.key
    }

    /// What it signals.
    pub fn event(&self) -> &Arc<Event> {
        &self.event
    }

    /// Leaves the doorbell in the table without a guard, to be removed by [`Table::deassign`].
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // It may have been deassigned by key already, which is as good.
        let _ = self.table.deassign(self.key, &self.event);
    }
}
