use super::super::DoorbellError;
use crate::errno::Errno;
use std::{error, fmt, io};

/// Why [`Region::add`](super::Region::add) added nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddError {
    /// The doorbell is not, or not all of it, inside the region (`EINVAL`).
    Outside,
    /// The doorbell is of another bus than the region (`EINVAL`).
    Bus,
    /// Not even a table would take it, wherever the region is.
    Assign(DoorbellError),
}

/// Why [`Region::map`](super::Region::map) left the region where it was: it would reach the end of the 64-bit
/// addresses, or go beyond the last port (`EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapError;

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddError::Outside => f.write_str("the doorbell is outside of its region"),
            AddError::Bus => f.write_str("the doorbell is of another bus than its region"),
            AddError::Assign(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the region would go beyond the end of the address space")
    }
}

impl error::Error for AddError {}
impl error::Error for MapError {}

impl From<DoorbellError> for AddError {
    fn from(error: DoorbellError) -> Self {
        AddError::Assign(error)
    }
}

impl From<AddError> for io::Error {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Outside | AddError::Bus => Errno::Invalid.into(),
            AddError::Assign(error) => error.into(),
        }
    }
}

impl From<MapError> for io::Error {
    fn from(_: MapError) -> Self {
        Errno::Invalid.into()
    }
}
