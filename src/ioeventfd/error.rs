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
    /// A datamatch that needs more bytes than the length has, so no write could ever match it (`EINVAL`). KVM accepts
    /// it.
    DatamatchWidth,
    /// A stride that is not a power of two (`EINVAL`).
    Stride,
    /// A range without slots, or with another number of slots than of targets (`EINVAL`).
    Slots,
    /// A registered doorbell takes writes that this one would take, or stands inside a range (`EEXIST`).
    Collision,
}

/// Why [`Table::deassign`](super::Table::deassign) removed nothing: no doorbell has that key and that target
/// (`ENOENT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeassignError;

/// Why a batch changed nothing, and which of its doorbells is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchError<E> {
    /// The place of the doorbell in the batch, from 0. If there are several to blame: that of the first that is invalid
    /// or missing, or else that of one which collides.
    pub index: usize,
    /// What is wrong with it.
    pub error: E,
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AssignError::Length => "a doorbell's length must be 0, 1, 2, 4 or 8",
            AssignError::Wrap => "the doorbell reaches beyond the end of the address space",
            AssignError::WildcardDatamatch => "a doorbell of any length cannot have a datamatch",
            AssignError::DatamatchWidth => "the datamatch is wider than the doorbell's length",
            AssignError::Stride => "the stride must be a power of two",
            AssignError::Slots => "a range must have slots, and a target for each",
            AssignError::Collision => "another doorbell takes these writes",
        })
    }
}

impl fmt::Display for DeassignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no doorbell has this key and this target")
    }
}

impl<E: fmt::Display> fmt::Display for BatchError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "doorbell {} of the batch: {}", self.index, self.error)
    }
}

impl error::Error for AssignError {}
impl error::Error for DeassignError {}
impl<E: error::Error> error::Error for BatchError<E> {}

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

impl<E: Into<io::Error>> From<BatchError<E>> for io::Error {
    fn from(batch: BatchError<E>) -> Self {
        batch.error.into()
    }
}
