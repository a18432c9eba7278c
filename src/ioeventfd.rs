//! ioeventfd: guest address → event.
//!
//! A guest rings a doorbell by writing to an address. KVM's counterpart is `KVM_IOEVENTFD` with the `kvm_io_bus` arrays
//! behind it (`virt/kvm/eventfd.c`), QEMU's the ioeventfds of a memory region. A [`Table`] holds [`Key`]s, each with
//! the event to signal, sorted:
//!
//! ```text
//!     vCPU exit                    Table, sorted by (bus, address, length, datamatch)
//!     OUT 0xc050, al=1  ──▶        Pio   0xc050  1  Some(1)  ──▶ queue 1     one search for the address; then, if the
//!                                  Pio   0xc050  2  None     ──▶ queue 0     first there does not match, one among those
//!                                  Mmio  0xfe000000  0  None ──▶ queue 2     with the same address, for (length, data)
//!     true: taken, back to the guest; false: not a doorbell, go on to the device models
//! ```
//!
//! What matches and what collides is KVM's, except that every registered entry is found: KVM's search misses some when//! ranges overlap.
//!
//! # When to use it
//!
//! Under KVM, plain kicks are the kernel's: it takes one in a tenth of the time that an exit to the VMM needs. A VMM
//! hangs its doorbells on the regions of an [`AddressSpace`](space::AddressSpace), whose listener gives KVM what it can
//! take; the [page of that module](space#from-driver_ok-to-the-kick-and-back) goes with a virtio device through QEMU's
//! steps, one by one, and has the same in code. The table, which has all doorbells too, serves what the kernel does not
//! take:
//!
//! * **payload doorbells** ([`Latest`], [`ValueQueue`]), which keep what was written: NVMe's and SPDK's;
//! * **stride doorbells** ([`DoorbellArray`]), an array as one entry. KVM can be given one with plain events slot by slot;
//! * kicks through virtio's **`PCI_CFG` window**, which arrive as accesses to configuration space: the VMM offers them
//!   to the table at the address that they mean;
//! * **confidential guests**, whose data the kernel cannot see to compare with a datamatch;
//! * the **gap around a BAR's move**, in which the kernel has neither the old doorbell nor the new one;
//! * **hypervisors without ioeventfds**, and **vCPUs emulated in software**;
//! * **device to device**: what one device of a process rings at another, without a guest or a kernel in between.

mod addresses;
mod array;
mod doorbell;
mod error;
mod hints;
mod key;
mod lookup;
mod payload;
pub mod space;
mod state;
mod table;

pub use array::DoorbellArray;
pub use doorbell::{Doorbell, Target};
pub use error::{BatchError, DeassignError, DoorbellError};
pub use key::{Bus, Key};
pub use payload::{Kick, Latest, ValueQueue};
pub use state::{
    DoorbellState, DoorbellStateError, LatestState, TableState, TargetState, ValueQueueState,
};
pub use table::{Reader, Registration, Table};
