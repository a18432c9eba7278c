//! What a snapshot of a VM holds of this crate, and how it is read back.
//!
//! `save` returns a structure with public fields, and `restore` takes one. With the feature `serde` the structures are
//! `Serialize` and `Deserialize`. The outermost structures carry a [`VERSION`].
//!
//! | what | saved by | restored by |
//! |---|---|---|
//! | an [`Event`](crate::Event): the count, and the mode | [`save`](crate::Event::save) | [`restore`](crate::Event::restore) |
//! | an [`AddressSpace`](crate::ioeventfd::space::AddressSpace): regions and doorbells | [`save`](crate::ioeventfd::space::AddressSpace::save) | [`restore`](crate::ioeventfd::space::AddressSpace::restore) |
//! | a [`Table`](crate::ioeventfd::Table) without one: doorbells | [`save`](crate::ioeventfd::Table::save) | [`restore`](crate::ioeventfd::Table::restore) |
//! | [`Latest`](crate::ioeventfd::Latest), [`ValueQueue`](crate::ioeventfd::ValueQueue): the values they keep | with their space or table, or by themselves | likewise |
//! | a [`Router`](crate::irqfd::Router): routes, irqfds, masks, pending bits, levels | [`save`](crate::irqfd::Router::save) | [`restore`](crate::irqfd::Router::restore) |
//! | pollers, observers, batches, mirrors, forwards, KVM's listener and sink | nothing: they hold no state of the guest's | the VMM makes them anew |
//!
//! The page [`guide::snapshot`](crate::guide::snapshot) has the steps in their order, for a VM with or without KVM. The
//! example `snapshot_restore` has those that need no KVM.
//!
//! # Events
//!
//! A structure refers to an event by a number, which the VMM chooses when it saves, and looks up when it restores. An
//! event that exists already, such as a `static`, takes the saved count by
//! [`signal_n`](crate::Event::signal_n)`(state.count)`, before anything waits for it or observes it, if it is new and
//! its mode is that of the state.
//!
//! # Counts that are elsewhere
//!
//! The state of an event has what is in the event. Three kinds of count are in the kernel instead:
//!
//! * kicks that KVM has taken: [`AddressSpace::drain`](crate::ioeventfd::space::AddressSpace::drain) moves them to
//!   their events;
//! * what a peer has written to an eventfd that is bound to an event ([`Poller::bind`](crate::poll::Poller::bind)), and
//!   that no `wait` has carried over yet. Delete the binding, read the eventfd without blocking, and signal the event
//!   by what was read;
//! * what a `Forward` has passed on and its peer has not read. That belongs to the peer.

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
