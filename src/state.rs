//! What a snapshot of a VM holds of this crate, and how it is read back.
//!
//! An [`Event`](crate::Event) and everything that events are registered with can be saved as plain data and restored
//! from it: `save` returns a structure with public fields, and `restore` takes one. With the feature `serde` the
//! structures are `Serialize` and `Deserialize`.
//!
//! The outermost structures carry a [`VERSION`]. A structure refers to an event by a number, which the VMM chooses when
//! it saves, and looks up when it restores.

use std::error;
use std::fmt;

/// The version of the structures that this version of the crate saves, and the only one that it restores.
pub const VERSION: u32 = 1;

/// The error of a restored structure whose version is another than [`VERSION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownVersion(pub u32);

impl fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state of version {}, where {VERSION} is known", self.0)
    }
}

impl error::Error for UnknownVersion {}

/// Fails if the structure is of another version than [`VERSION`].
pub(crate) fn check(version: u32) -> Result<(), UnknownVersion> {
    if version == VERSION {
        Ok(())
    } else {
        Err(UnknownVersion(version))
    }
}
