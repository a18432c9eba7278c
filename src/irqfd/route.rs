use super::RouteError;
use std::fmt;

/// What a PCI device writes to interrupt: address and data of a message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Where it is written to. On x86: which CPU.
    pub address: u64,
    /// What is written. On x86: which vector, and how it is delivered.
    pub data: u32,
}

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// To a pin of the interrupt controller, which has a level. What the number means is the sink's affair.
    Pin(u32),
    /// To a CPU, by a message.
    Msi(MsiMessage),
}

/// The routes of all GSIs ("global system interrupts", the numbers that devices' interrupts go by).
///
/// A GSI has one route at most, and a pin one GSI at most. (KVM's default has each of the first GSIs lead to a pin of the
/// IOAPIC and one of the PIC; that is one pin here, and a sink with both controllers tells both.)
///
/// ```
/// use doorbell::irqfd::{MsiMessage, Route, RouteError, Routes};
///
/// let mut routes = Routes::identity(24);
/// let message = MsiMessage { address: 0xfee0_0000, data: 0x41 };
/// routes.set(24, Some(Route::Msi(message)))?;
/// assert_eq!(routes.get(4), Some(Route::Pin(4)));
/// assert_eq!(routes.get(25), None);
/// assert_eq!(routes.set(4096, Some(Route::Msi(message))), Err(RouteError::Gsi));
/// # Ok::<(), RouteError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// By GSI. The last is some.
    by_gsi: Vec<Option<Route>>,
}

impl Routes {
    /// The highest GSI that can have a route, as in KVM. (An irqfd may be assigned to a higher one, and is of no use.)
    pub const MAX_GSI: u32 = 4095;

    /// No routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// GSI n to pin n, for as many pins as given, from 0: what machines begin with.
    ///
    /// # Panics
    ///
    /// If there are more pins than GSIs.
    pub fn identity(pins: u32) -> Self {
        assert!(pins <= Self::MAX_GSI + 1, "there are 4096 GSIs");
        Routes {
            by_gsi: (0..pins).map(|pin| Some(Route::Pin(pin))).collect(),
        }
    }

    /// All routes at once, as `KVM_SET_GSI_ROUTING` takes them.
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
    /// The GSI is out of range, or the pin is another GSI's. Nothing was changed then.
    pub fn set(&mut self, gsi: u32, route: Option<Route>) -> Result<(), RouteError> {
        if gsi > Self::MAX_GSI {
            return Err(RouteError::Gsi);
        }
        if let Some(Route::Pin(pin)) = route {
            if self.gsi_of(pin).is_some_and(|owner| owner != gsi) {
                return Err(RouteError::PinTwice);
            }
        }
        let index = gsi as usize;
        if self.by_gsi.len() <= index {
            self.by_gsi.resize(index + 1, None);
        }
        self.by_gsi[index] = route;
        while let Some(None) = self.by_gsi.last() {
            self.by_gsi.pop();
        }
        Ok(())
    }

    /// The route of `gsi`.
    #[inline]
    pub fn get(&self, gsi: u32) -> Option<Route> {
        *self.by_gsi.get(gsi as usize)?
    }

    /// Whose pin it is: for an interrupt controller, which knows its pins, and [`Router::ack`](super::Router::ack), which
    /// wants to know the GSI.
    pub fn gsi_of(&self, pin: u32) -> Option<u32> {
        let owner = self.iter().find(|&(_, route)| route == Route::Pin(pin));
        owner.map(|(gsi, _)| gsi)
    }

    /// All of them, by GSI.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Route)> + '_ {
        (0..)
            .zip(&self.by_gsi)
            .filter_map(|(gsi, route)| Some((gsi, (*route)?)))
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
