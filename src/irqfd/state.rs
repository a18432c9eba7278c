//! What a snapshot has of a router.

use super::Route;
use crate::state::VERSION;

/// A [`Router`](super::Router) as plain data. Made by [`Router::save`](super::Router::save).
///
/// [Counters](super::LineCounters) begin again at 0.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RouterState {
    /// The [version](VERSION) of these structures.
    pub version: u32,
    /// The routes, by GSI.
    pub routes: Vec<(u32, Route)>,
    /// The irqfds, by GSI.
    pub irqfds: Vec<IrqfdState>,
    /// The lines that are not as they were made, by GSI.
    pub lines: Vec<LineState>,
}

impl Default for RouterState {
    /// A router without routes or irqfds, in the version known here.
    fn default() -> Self {
        RouterState {
            version: VERSION,
            routes: Vec::new(),
            irqfds: Vec::new(),
            lines: Vec::new(),
        }
    }
}

/// An irqfd in a [`RouterState`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct IrqfdState {
    /// The GSI.
    pub gsi: u32,
    /// The number of the event.
    pub event: u64,
    /// The number of the resample event, if the irqfd has one.
    pub resample: Option<u64>,
    /// The count of the event. It has interrupted; what is signalled until the restore has not.
    pub count: u64,
    /// The part of the count that goes with the irqfd, because it was there when the irqfd was assigned.
    pub covered: u64,
    /// The newest signal of the event is in the pending bit of the line, and is given back when the irqfd goes.
    pub pending: bool,
}

/// A line in a [`RouterState`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LineState {
    /// The GSI.
    pub gsi: u32,
    /// It is masked.
    pub masked: bool,
    /// Its pending bit.
    pub pending: bool,
    /// A resampling irqfd holds it up, and the guest has not acked that.
    pub asserted: bool,
    /// [`Router::set_level`](super::Router::set_level) holds it up.
    pub level: bool,
    /// So many [level sources](super::LevelSource) hold it up.
    pub sources: usize,
    /// It is up and leads to a message, which has been sent.
    pub sent: bool,
}

impl IrqfdState {
    /// An irqfd of this event, with nothing pending and no count.
    #[must_use]
    pub fn new(gsi: u32, event: u64, resample: Option<u64>) -> Self {
        IrqfdState {
            gsi,
            event,
            resample,
            ..IrqfdState::default()
        }
    }
}

impl LineState {
    /// A line as it is made.
    #[must_use]
    pub fn new(gsi: u32) -> Self {
        LineState {
            gsi,
            ..LineState::default()
        }
    }
}
