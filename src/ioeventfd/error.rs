use crate::errno::Errno;
use std::{error, fmt, io};

/// Why [`Table::assign`](super::Table::assign) registered nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DoorbellError {
    /// The length is not 0, 1, 2, 4 or 8 (`EINVAL`).
    Length,
    /// The doorbell ends at 2^64 or beyond (`EINVAL`).
    Wrap,
    /// A wildcard length with a datamatch, or with a stride of 0, which is a datamatch for each slot (`EINVAL`).
    WildcardDatamatch,
    /// A datamatch that needs more bytes than the length has, so no write could ever match it (`EINVAL`). KVM accepts
    /// it. Of an array of stride 0, the last slot's number is such a datamatch.
    DatamatchWidth,
    /// A stride that is neither a power of two nor 0 (`EINVAL`).
    Stride,
    /// An array without slots, or with another number of slots than of targets (`EINVAL`).
    Slots,
    /// A registered doorbell takes writes that this one would take, or one is inside the other, an array (`EEXIST`).
    Collision,
}

/// Why [`Table::deassign`](super::Table::deassign) removed nothing: no doorbell has that key and that target
/// (`ENOENT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeassignError;

/// Why a batch changed nothing, and which of its doorbells is the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchError<E> {
    /// The index of the doorbell in the batch. If there are several: that of the first that is invalid or missing, or
    /// else that of one that collides.
    pub index: usize,
    /// What is wrong with it.
    pub error: E,
}

impl fmt::Display for DoorbellError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DoorbellError::Length => "a doorbell's length must be 0, 1, 2, 4 or 8",
            DoorbellError::Wrap => "the doorbell reaches beyond the end of the address space",
            DoorbellError::WildcardDatamatch => {
                "a datamatch, or an array of stride 0, needs a length of 1, 2, 4 or 8"
            }
            DoorbellError::DatamatchWidth => "the datamatch is wider than the doorbell's length",
            DoorbellError::Stride => {
                "the stride must be a power of two, or 0 to go by the value written"
            }
            DoorbellError::Slots => "an array must have slots, and a target for each",
            DoorbellError::Collision => "another doorbell takes these writes",
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

impl error::Error for DoorbellError {}
impl error::Error for DeassignError {}
impl<E: error::Error> error::Error for BatchError<E> {}

impl From<DoorbellError> for io::Error {
    fn from(error: DoorbellError) -> Self {
        match error {
            DoorbellError::Collision => Errno::Exists,
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
