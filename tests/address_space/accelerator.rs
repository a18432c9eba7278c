use doorbell::Event;
use doorbell::ioeventfd::space::{Change, Doorbell, Listener, RefusalError};
use doorbell::ioeventfd::{Bus, Key};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a listener was asked.
pub type Asked = (&'static str, Change, Doorbell);

/// Stands in for KVM: takes doorbells, checks that it is asked for nothing senseless, and takes writes.
pub struct Accelerator {
    name: &'static str,
    priority: i32,
    /// Shared with others whose order of calls matters.
    log: Arc<Mutex<Vec<Asked>>>,
    /// With each doorbell, the writes that its event has not been told of.
    held: Mutex<BTreeMap<Key, (Arc<Event>, u64)>>,
    refuses: fn(Change, &Key) -> bool,
}

impl Accelerator {
    /// Takes everything.
    pub fn new() -> Self {
        Self::with("accelerator", 0, &Arc::default(), |_, _| false)
    }

    pub fn with(
        name: &'static str,
        priority: i32,
        log: &Arc<Mutex<Vec<Asked>>>,
        refuses: fn(Change, &Key) -> bool,
    ) -> Self {
        Accelerator {
            name,
            priority,
            log: Arc::clone(log),
            held: Mutex::default(),
            refuses,
        }
    }

    pub fn holds(&self) -> Vec<Doorbell> {
        let held = self.held.lock().unwrap();
        let doorbell = |(&key, (event, _)): (_, &(Arc<Event>, _))| Doorbell {
            key,
            event: Arc::clone(event),
        };
        held.iter().map(doorbell).collect()
    }

    /// A guest's write, before it exits.
    pub fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        let mut held = self.held.lock().unwrap();
        let hit = held
            .iter_mut()
            .find(|(key, _)| matches(key, bus, address, data));
        hit.map(|(_, (_, kicks))| *kicks += 1).is_some()
    }

    fn answer(&self, change: Change, doorbell: &Doorbell) -> Result<(), RefusalError> {
        let asked = (self.name, change, doorbell.clone());
        self.log.lock().unwrap().push(asked);
        match (self.refuses)(change, &doorbell.key) {
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
        self.answer(Change::Add, doorbell)?;
        let mut held = self.held.lock().unwrap();
        let collision = held.keys().find(|key| collide(key, &doorbell.key));
        assert_eq!(collision, None, "collides with {doorbell:?}");
        held.insert(doorbell.key, (Arc::clone(&doorbell.event), 0));
        Ok(())
    }

    fn eventfd_del(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
        let held = self.held.lock().unwrap().remove(&doorbell.key);
        let (event, kicks) = held.expect("it holds what it is to let go of");
        assert!(Arc::ptr_eq(&event, &doorbell.event));
        event.signal_n(kicks);
        self.answer(Change::Delete, doorbell)
    }
}

/// KVM's collision rule.
pub fn collide(a: &Key, b: &Key) -> bool {
    (a.bus, a.address) == (b.bus, b.address)
        && (a.length == 0
            || b.length == 0
            || a.length == b.length
                && (a.datamatch.is_none() || b.datamatch.is_none() || a.datamatch == b.datamatch))
}

/// KVM's rule for writes of 1, 2, 4 and 8 bytes.
pub fn matches(key: &Key, bus: Bus, address: u64, data: &[u8]) -> bool {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    (key.bus, key.address) == (bus, address)
        && (key.length == 0 || key.length as usize == data.len())
        && key
            .datamatch
            .is_none_or(|value| value == u64::from_le_bytes(bytes))
}
