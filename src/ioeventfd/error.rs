use crate::errno::Errno;
use std::{error, fmt, io};

/// Why [`Table::assign`](super::Table::assign) registered nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AssignError {
    /// The length is not 0, 1, 2, 4 or 8 (`EINVAL`).
    Length,
    /// Address + length is 2^64 or more (`EINVAL`).
    Wrap,
    /// A wildcard length with a datamatch (`EINVAL`).
    WildcardDatamatch,
    /// A datamatch that needs more bytes than the length has, so no write could ever match it (`EINVAL`). KVM accepts it.
    DatamatchWidth,
    /// A registered key takes writes that this one would take (`EEXIST`).
    Collision,
}

/// Why [`Table::deassign`](super::Table::deassign) removed nothing: no entry has that key and that event (`ENOENT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeassignError;

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AssignError::Length => "a doorbell's length must be 0, 1, 2, 4 or 8",
            AssignError::Wrap => "the doorbell reaches beyond the end of the address space",
            AssignError::WildcardDatamatch => "a doorbell of any length cannot have a datamatch",
            AssignError::DatamatchWidth => "the datamatch is wider than the doorbell's length",
            AssignError::Collision => "another doorbell takes these writes",
        })
    }
}

impl fmt::Display for DeassignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no doorbell has this key and this event")
    }
}

impl error::Error for AssignError {}
impl error::Error for DeassignError {}

impl From<AssignError> for io::Error {
    fn from(error: AssignError) -> Self {
        match error {
            AssignError::Collision => Errno::Exists,
            _ => Errno::Invalid,
        }
        .into()
    }
}

impl From<DeassignError> for io::Error {
    fn from(_: DeassignError) -> Self {
        Errno::NoEntry.into()
    }
}
