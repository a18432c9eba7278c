//! ioeventfd: guest address → event.
//!
//! A guest rings a doorbell by writing to an address. KVM's counterpart is `KVM_IOEVENTFD` with the `kvm_io_bus` arrays
//! behind it (`virt/kvm/eventfd.c`), QEMU's the ioeventfds of a memory region. A [`Table`] holds [`Key`]s, each with the
//! event to signal, sorted:
//!
//! ```text
//!     vCPU exit                    Table, sorted by (bus, address, length, datamatch)
//!     OUT 0xc050, al=1  ──▶        Pio   0xc050  1  Some(1)  ──▶ queue 1     one search for the address; then, if the
//!                                  Pio   0xc050  2  None     ──▶ queue 0     first there does not match, one among those
//!                                  Mmio  0xfe000000  0  None ──▶ queue 2     with the same address, for (length, data)
//!     true: taken, back to the guest; false: not a doorbell, go on to the device models
//! ```
//!
//! What matches and what collides is KVM's, except that every registered entry is found: KVM's search misses some when
//! ranges overlap.

mod addresses;
mod doorbell;
mod error;
mod key;
mod lines;
mod payload;
mod range;
pub mod space;
mod table;

pub use doorbell::{Doorbell, Target};
pub use error::{AssignError, BatchError, DeassignError};
pub use key::{Bus, Key};
pub use payload::{Kick, Latest, Queue};
pub use range::Range;
pub use table::{Reader, Registration, Table};
