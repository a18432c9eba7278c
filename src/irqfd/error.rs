use crate::errno::Errno;
use crate::state::UnknownVersion;
use std::{error, fmt, io};

/// Why [`Router::assign`](super::Router::assign) and its like assigned nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum AssignError {
    /// The event has an irqfd already, of this router or another (`EBUSY`).
    Busy,
    /// The event is its own resample event, so that every end of interrupt would interrupt again (`EINVAL`). KVM
    /// accepts it.
    SameEvent,
    /// The sink cannot serve this GSI, for the reason it gives.
    Refused(io::Error),
}

/// Why routes are invalid (`EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteError {
    /// The GSI is above [`Routes::MAX_GSI`](super::Routes::MAX_GSI).
    Gsi,
    /// The GSI has two routes. (KVM accepts one pin on each of its interrupt controllers.)
    GsiTwice,
    /// The pin has two GSIs. KVM accepts it, and either GSI then lowers what the other has raised.
    PinTwice,
}

/// Why the routes stayed as they were.
#[derive(Debug)]
#[non_exhaustive]
pub enum RoutingError {
    /// The route is invalid, alone or beside the others.
    Invalid(RouteError),
    /// The sink cannot route like this, for the reason it gives.
    Refused(io::Error),
}

/// Why a [`RouterState`](super::RouterState) was not restored.
#[derive(Debug)]
#[non_exhaustive]
pub enum RestoreError {
    /// The state is of a version that this one does not know.
    Version(UnknownVersion),
    /// The router has routes or irqfds already.
    InUse,
    /// There is no event of this number.
    Event(u64),
    /// The routes are invalid, or the sink refuses them.
    Routes(RoutingError),
    /// An irqfd cannot be assigned.
    Irqfd {
        /// Its GSI.
        gsi: u32,
        /// The reason.
        error: AssignError,
    },
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AssignError::Busy => f.write_str("the event has an irqfd already"),
            AssignError::SameEvent => f.write_str("an event cannot be its own resample event"),
            AssignError::Refused(error) => {
                write!(f, "the interrupt sink cannot serve this GSI: {error}")
            }
        }
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RouteError::Gsi => "the GSI is out of range",
            RouteError::GsiTwice => "the GSI has another route",
            RouteError::PinTwice => "the pin belongs to another GSI",
        })
    }
}

impl fmt::Display for RoutingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RoutingError::Invalid(error) => error.fmt(f),
            RoutingError::Refused(error) => {
                write!(f, "the interrupt sink cannot route like this: {error}")
            }
        }
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Version(error) => error.fmt(f),
            RestoreError::InUse => f.write_str("the router has routes or irqfds already"),
            RestoreError::Event(id) => write!(f, "there is no event {id}"),
            RestoreError::Routes(error) => error.fmt(f),
            RestoreError::Irqfd { gsi, error } => write!(f, "an irqfd of GSI {gsi}: {error}"),
        }
    }
}

impl error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            RestoreError::Version(error) => Some(error),
            RestoreError::Routes(error) => Some(error),
            RestoreError::Irqfd { error, .. } => Some(error),
            RestoreError::InUse | RestoreError::Event(_) => None,
        }
    }
}

impl From<UnknownVersion> for RestoreError {
    fn from(error: UnknownVersion) -> Self {
        RestoreError::Version(error)
    }
}

impl error::Error for AssignError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            AssignError::Refused(error) => Some(error),
            _ => None,
        }
    }
}

impl error::Error for RouteError {}

impl error::Error for RoutingError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            RoutingError::Refused(error) => Some(error),
            RoutingError::Invalid(_) => None,
        }
    }
}

impl From<RouteError> for RoutingError {
    fn from(error: RouteError) -> Self {
        RoutingError::Invalid(error)
    }
}

impl From<AssignError> for io::Error {
    fn from(error: AssignError) -> Self {
        match error {
            AssignError::Busy => Errno::Busy.into(),
            AssignError::SameEvent => Errno::Invalid.into(),
            AssignError::Refused(error) => error,
        }
    }
}

impl From<RouteError> for io::Error {
    fn from(_: RouteError) -> Self {
        Errno::Invalid.into()
    }
}

impl From<RestoreError> for io::Error {
    /// `EBUSY` for a router in use, and `EINVAL` for a state that cannot be restored anywhere.
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Version(_) | RestoreError::Event(_) => Errno::Invalid.into(),
            RestoreError::InUse => Errno::Busy.into(),
            RestoreError::Routes(error) => error.into(),
            RestoreError::Irqfd { error, .. } => error.into(),
        }
    }
}

impl From<RoutingError> for io::Error {
    fn from(error: RoutingError) -> Self {
        match error {
            RoutingError::Invalid(error) => error.into(),
            RoutingError::Refused(error) => error,
        }
    }
}
