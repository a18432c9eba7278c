use doorbell::event::EventHandle;
use doorbell::ioeventfd::space::{Listener, ListenerCall, RefusalError};
use doorbell::ioeventfd::{Bus, Doorbell, DoorbellArray, Key, Target};
use std::sync::{Arc, Mutex};

/// A call that a listener got.
pub type Asked = (&'static str, ListenerCall, Doorbell);

/// Stands in for KVM: takes doorbells, fails at senseless calls, and takes writes.
pub struct Accelerator {
    name: &'static str,
    priority: i32,
    /// Shared with other listeners, if the order of calls matters.
    log: Arc<Mutex<Vec<Asked>>>,
    /// For each doorbell, the events to which its writes have yet to be passed on.
    held: Mutex<Vec<(Doorbell, Vec<EventHandle>)>>,
    refuses: fn(ListenerCall, &Doorbell) -> bool,
}

impl Accelerator {
    /// An accelerator that takes every doorbell.
    pub fn new() -> Self {
        Self::with("accelerator", 0, &Arc::default(), |_, _| false)
    }

    pub fn with(
        name: &'static str,
        priority: i32,
        log: &Arc<Mutex<Vec<Asked>>>,
        refuses: fn(ListenerCall, &Doorbell) -> bool,
    ) -> Self {
        Accelerator {
            name,
            priority,
            log: Arc::clone(log),
            held: Mutex::default(),
            refuses,
        }
    }

    /// The doorbells that it holds, by bus and address.
    pub fn holds(&self) -> Vec<Doorbell> {
        let held = self.held.lock().unwrap();
        let mut doorbells: Vec<_> = held.iter().map(|(doorbell, _)| doorbell.clone()).collect();
        doorbells.sort_by_key(order);
        doorbells
    }

    /// A guest's write, before it exits.
    pub fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        let mut held = self.held.lock().unwrap();
        let hit = held.iter_mut().find_map(|(doorbell, kicks)| {
            let target = rung(doorbell, bus, address, data)?;
            kicks.push(target.event().clone());
            Some(())
        });
        hit.is_some()
    }

    fn answer(&self, call: ListenerCall, doorbell: &Doorbell) -> Result<(), RefusalError> {
        let asked = (self.name, call, doorbell.clone());
        self.log.lock().unwrap().push(asked);
        match (self.refuses)(call, doorbell) {
            true => Err("as told".into()),
            false => Ok(()),
        }
    }
}

impl Listener for Accelerator {
    fn name(&self) -> &'static str {
        self.name
    }

    fn priority(&self) -> i32 {
        self.priority
    }

    fn eventfd_add(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
        self.answer(ListenerCall::Add, doorbell)?;
        let mut held = self.held.lock().unwrap();
        for (other, _) in &*held {
            assert!(!collide(other, doorbell), "{doorbell:?} and {other:?}");
        }
        held.push((doorbell.clone(), Vec::new()));
        Ok(())
    }

    fn eventfd_del(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
        let kicks = {
            let mut held = self.held.lock().unwrap();
            let place = held.iter().position(|(other, _)| other == doorbell);
            let place = place.expect("it holds the doorbell that it is to let go of");
            held.remove(place).1
        };
        kicks.iter().for_each(|event| event.signal());
        self.answer(ListenerCall::Delete, doorbell)
    }
}

/// The key by which lists of doorbells are sorted.
pub fn order(doorbell: &Doorbell) -> (Bus, u64, u32, Option<u64>) {
    let (length, datamatch) = match doorbell {
        Doorbell::Single { key, .. } => (key.length, key.datamatch),
        Doorbell::Array { array, .. } => (array.length, None),
        other => unreachable!("{other:?}"),
    };
    (doorbell.bus(), doorbell.address(), length, datamatch)
}

/// The addresses that an array has to itself.
pub fn addresses(array: &DoorbellArray) -> std::ops::Range<u64> {
    let size = array.stride * u64::from(array.slots);
    array.address..array.address + size.max(1)
}

/// KVM's collision rule, and the table's for arrays.
pub fn collide(a: &Doorbell, b: &Doorbell) -> bool {
    use Doorbell::{Array, Single};
    if a.bus() != b.bus() {
        return false;
    }
    match (a, b) {
        (Single { key: a, .. }, Single { key: b, .. }) => {
            let same_data =
                a.datamatch.is_none() || b.datamatch.is_none() || a.datamatch == b.datamatch;
            a.address == b.address
                && (a.length == 0 || b.length == 0 || a.length == b.length && same_data)
        }
        (Array { array: a, .. }, Array { array: b, .. }) => {
            addresses(a).any(|address| addresses(b).contains(&address))
        }
        (Array { array, .. }, Single { key, .. }) | (Single { key, .. }, Array { array, .. }) => {
            addresses(array).contains(&key.address)
        }
        other => unreachable!("{other:?}"),
    }
}

/// The event that a write of 1, 2, 4 or 8 bytes rings, if the write is this doorbell's.
pub fn rung<'a>(doorbell: &'a Doorbell, bus: Bus, address: u64, data: &[u8]) -> Option<&'a Target> {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    let matches = |key: &Key| {
        (key.bus, key.address) == (bus, address)
            && (key.length == 0 || key.length as usize == data.len())
            && key
                .datamatch
                .is_none_or(|value| value == u64::from_le_bytes(bytes))
    };
    match doorbell {
        Doorbell::Single { key, target } => matches(key).then_some(target),
        Doorbell::Array { array, targets } => {
            let mut slots = (0..).zip(&**targets);
            let slot = slots.find(|&(slot, _)| {
                let address = array.address + array.stride * slot;
                let mut key = Key::new(array.bus, address, array.length);
                key.datamatch = (array.stride == 0).then_some(slot);
                matches(&key)
            });
            slot.map(|(_, target)| target)
        }
        other => unreachable!("{other:?}"),
    }
}
