use super::RouteError;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

/// What a PCI device writes to interrupt: address and data of a message-signalled interrupt. Made by
/// [`new`](Self::new).
///
/// The GIC's ITS on Arm tells the messages of several devices apart by the device that sends them, so a message can
/// [name the device](Self::with_devid).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "serial::Message", try_from = "serial::Message")
)]
#[non_exhaustive]
pub struct MsiMessage {
    /// Where it is written to. On x86: which CPU.
    pub address: u64,
    /// What is written. On x86: which vector, and how it is delivered.
    pub data: u32,
    /// The complement of the device id, which is not 0. As an `Option<u32>`, it would take the message out of the
    /// registers in which it is passed.
    not_devid: Option<NonZeroU32>,
}

impl MsiMessage {
    /// A message of no device in particular: an address and the data that is written there.
    #[must_use]
    pub const fn new(address: u64, data: u32) -> Self {
        MsiMessage {
            address,
            data,
            not_devid: None,
        }
    }

    /// The same message of the device with this id, which is what the ITS knows the device by: for a PCI device the
    /// requester id, bus, device and function in 16 bits. (`KVM_MSI_VALID_DEVID`)
    ///
    /// # Panics
    ///
    /// If the id is `u32::MAX`, which is no device's.
    #[must_use]
    #[doc(alias = "device_id")]
    #[doc(alias = "requester_id")]
    pub const fn with_devid(mut self, devid: u32) -> Self {
        self.not_devid = NonZeroU32::new(!devid);
        assert!(self.not_devid.is_some(), "u32::MAX is no device's id");
        self
    }

    /// The id of the device, if the message has one.
    #[must_use]
    pub const fn devid(&self) -> Option<u32> {
        match self.not_devid {
            Some(not_devid) => Some(!not_devid.get()),
            None => None,
        }
    }
}

#[cfg(feature = "serde")]
mod serial {
    use super::MsiMessage;

    /// A message as it is written.
    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename = "MsiMessage")]
    pub(super) struct Message {
        address: u64,
        data: u32,
        devid: Option<u32>,
    }

    impl From<MsiMessage> for Message {
        fn from(message: MsiMessage) -> Self {
            Message {
                address: message.address,
                data: message.data,
                devid: message.devid(),
            }
        }
    }

    impl TryFrom<Message> for MsiMessage {
        type Error = &'static str;

        fn try_from(message: Message) -> Result<Self, Self::Error> {
            let plain = MsiMessage::new(message.address, message.data);
            match message.devid {
                None => Ok(plain),
                Some(u32::MAX) => Err("u32::MAX is no device's id"),
                Some(devid) => Ok(plain.with_devid(devid)),
            }
        }
    }
}

impl fmt::Debug for MsiMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("MsiMessage");
        shown
            .field("address", &format_args!("{:#x}", self.address))
            .field("data", &format_args!("{:#x}", self.data));
        if let Some(devid) = self.devid() {
            shown.field("devid", &format_args!("{devid:#x}"));
        }
        shown.finish()
    }
}

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Route {
    /// To a pin of the interrupt controller, which has a level. What the number means is the sink's affair.
    Pin(u32),
    /// To a CPU, by a message.
    Msi(MsiMessage),
}

impl From<MsiMessage> for Route {
    fn from(message: MsiMessage) -> Self {
        Route::Msi(message)
    }
}

/// The routes of all GSIs ("global system interrupts", the numbers that devices' interrupts go by).
///
/// A clone shares what neither of the two changes, so it is cheap, and so is a change of a clone.
///
/// A GSI has one route at most, and a pin one GSI at most. (KVM's default has each of the first GSIs lead to a pin of
/// the IOAPIC and one of the PIC; that is one pin here, and a sink with both controllers tells both.)
///
/// ```
/// use doorbell::irqfd::{MsiMessage, Route, RouteError, Routes};
///
/// let mut routes = Routes::identity(24);
/// let message = MsiMessage::new(0xfee0_0000, 0x41);
/// routes.set(24, Some(Route::Msi(message)))?;
/// assert_eq!(routes.get(4), Some(Route::Pin(4)));
/// assert_eq!(routes.get(25), None);
/// assert_eq!(routes.set(4096, Some(Route::Msi(message))), Err(RouteError::Gsi));
/// # Ok::<(), RouteError>(())
/// ```
#[derive(Clone, Default)]
pub struct Routes {
    by_gsi: Shards<Chunk>,
    /// The GSIs of the pins. The shard is the pin's number modulo `SHARDS`.
    by_pin: Arc<Shards<BTreeMap<u32, u32>>>,
}

/// The routes of as many GSIs, one after the other.
#[derive(Clone)]
struct Chunk([Option<Route>; CHUNK]);

/// With about as many shards, a change of one route of thousands costs the least.
const SHARDS: usize = 32;
const CHUNK: usize = (Routes::MAX_GSI as usize + 1) / SHARDS;

impl Default for Chunk {
    fn default() -> Self {
        Chunk([None; CHUNK])
    }
}

/// An array in parts. Clones share the parts that neither of them has changed since.
#[derive(Clone)]
struct Shards<T>([Option<Arc<T>>; SHARDS]);

impl<T> Default for Shards<T> {
    fn default() -> Self {
        Shards([const { None }; SHARDS])
    }
}

impl<T: Clone + Default> Shards<T> {
    #[inline]
    fn get(&self, shard: usize) -> Option<&T> {
        self.0.get(shard)?.as_deref()
    }

    fn get_mut(&mut self, shard: usize) -> &mut T {
        Arc::make_mut(self.0[shard].get_or_insert_default())
    }
}

/// How the route of one GSI changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteChange {
    /// The GSI.
    pub gsi: u32,
    /// Its route before.
    pub old: Option<Route>,
    /// Its route from now on, another one.
    pub new: Option<Route>,
}

impl Routes {
    /// The highest GSI that can have a route, as in KVM. (An irqfd may be assigned to a higher one, and is of no use.)
    pub const MAX_GSI: u32 = 4095;

    /// No routes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// GSI n to pin n for the first `pins` pins, which is what machines begin with.
    ///
    /// # Panics
    ///
    /// If there are more pins than GSIs.
    #[must_use]
    pub fn identity(pins: u32) -> Self {
        assert!(pins <= Self::MAX_GSI + 1, "there are 4096 GSIs");
        let mut routes = Routes::new();
        for pin in 0..pins {
            routes.put(pin, Some(Route::Pin(pin)));
        }
        routes
    }

    /// Routes from pairs of a GSI and its route, in any order.
    ///
    /// # Errors
    ///
    /// One of them is invalid alone or beside another.
    pub fn from_entries(
        entries: impl IntoIterator<Item = (u32, Route)>,
    ) -> Result<Self, RouteError> {
        let mut routes = Routes::new();
        for (gsi, route) in entries {
            if routes.get(gsi).is_some() {
                return Err(RouteError::GsiTwice);
            }
            routes.set(gsi, Some(route))?;
        }
        Ok(routes)
    }

    /// Gives `gsi` another route, or none.
    ///
    /// # Errors
    ///
    /// The GSI is out of range, or the pin is another GSI's. Nothing has been changed then.
    pub fn set(&mut self, gsi: u32, route: Option<Route>) -> Result<(), RouteError> {
        if gsi > Self::MAX_GSI {
            return Err(RouteError::Gsi);
        }
        if let Some(Route::Pin(pin)) = route {
            if self.gsi_of(pin).is_some_and(|owner| owner != gsi) {
                return Err(RouteError::PinTwice);
            }
        }
        self.put(gsi, route);
        Ok(())
    }

    /// Gives several GSIs another route, or none, in one step: pins may change hands among them.
    ///
    /// # Errors
    ///
    /// A GSI is out of range or is given twice, or a pin would have two GSIs. Nothing has been changed then.
    pub fn set_all(
        &mut self,
        changes: impl IntoIterator<Item = (u32, Option<Route>)>,
    ) -> Result<(), RouteError> {
        let mut sorted = BTreeMap::new();
        for (gsi, route) in changes {
            if sorted.insert(gsi, route).is_some() {
                return Err(RouteError::GsiTwice);
            }
        }
        let mut routes = self.clone();
        for &gsi in sorted.keys() {
            routes.set(gsi, None)?;
        }
        for (gsi, route) in sorted {
            routes.set(gsi, route)?;
        }
        *self = routes;
        Ok(())
    }

    /// Sets a route that has been checked.
    fn put(&mut self, gsi: u32, route: Option<Route>) {
        let old = self.get(gsi);
        if old == route {
            return;
        }
        if let Some(Route::Pin(pin)) = old {
            let pins = Arc::make_mut(&mut self.by_pin);
            pins.get_mut(pin as usize % SHARDS).remove(&pin);
        }
        if let Some(Route::Pin(pin)) = route {
            let pins = Arc::make_mut(&mut self.by_pin);
            pins.get_mut(pin as usize % SHARDS).insert(pin, gsi);
        }
        let gsi = gsi as usize;
        self.by_gsi.get_mut(gsi / CHUNK).0[gsi % CHUNK] = route;
    }

    /// The route of `gsi`.
    #[must_use]
    #[inline]
    pub fn get(&self, gsi: u32) -> Option<Route> {
        let gsi = gsi as usize;
        self.by_gsi.get(gsi / CHUNK)?.0[gsi % CHUNK]
    }

    /// The GSI of a pin. An interrupt controller knows its pins, and [`Router::ack`](super::Router::ack) takes a GSI.
    #[must_use]
    pub fn gsi_of(&self, pin: u32) -> Option<u32> {
        let pins = self.by_pin.get(pin as usize % SHARDS)?;
        pins.get(&pin).copied()
    }

    /// All of them, by GSI.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Route)> + '_ {
        (0..)
            .step_by(CHUNK)
            .zip(&self.by_gsi.0)
            .filter_map(|(first, chunk)| Some((first, chunk.as_ref()?)))
            .flat_map(|(first, chunk)| (first..).zip(&chunk.0))
            .filter_map(|(gsi, route)| Some((gsi, (*route)?)))
    }

    /// How `new` differs from these, by GSI.
    pub(super) fn changes(&self, new: &Routes) -> Vec<RouteChange> {
        let empty = Chunk::default();
        let mut changes = Vec::new();
        let pairs = self.by_gsi.0.iter().zip(&new.by_gsi.0);
        for (first, (old, new)) in (0..).step_by(CHUNK).zip(pairs) {
            let (old, new) = (old.as_deref(), new.as_deref());
            let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
            if std::ptr::eq(old, new) {
                continue;
            }
            let pairs = old.0.iter().zip(&new.0);
            for (gsi, (&old, &new)) in (first..).zip(pairs) {
                if old != new {
                    changes.push(RouteChange { gsi, old, new });
                }
            }
        }
        changes
    }
}

impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        self.changes(other).is_empty()
    }
}

impl Eq for Routes {}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
