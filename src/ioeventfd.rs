//! ioeventfd: guest address → event.
//!
//! A guest rings a doorbell by writing to an address. KVM's counterpart is `KVM_IOEVENTFD` with the `kvm_io_bus` arrays
//! behind it (`virt/kvm/eventfd.c`), QEMU's the ioeventfds of a memory region. A [`Table`] holds [`Key`]s, each with
//! the event to signal, sorted:
//!
//! ```text
//!     vCPU exit                    Table, sorted by (bus, address, length, datamatch)
//!     OUT 0xc050, al=1  ──▶        Pio   0xc050      1  Some(1)  ──▶ queue 1
//!                                  Pio   0xc050      2  None     ──▶ queue 0
//!                                  Mmio  0xfe000000  0  None     ──▶ queue 2
//!     true: taken, back to the guest; false: not a doorbell, go on to the device models
//! ```
//!
//! A lookup searches for the address. If the first entry with this address does not match, it searches those with the
//! same address for the length and the value.
//!
//! A write matches, and keys collide, by KVM's rules, with one exception: every registered entry is found, where KVM's
//! search misses some when ranges overlap.
//!
//! # When to use it
//!
//! Under KVM, plain kicks are best left to the kernel: it takes a kick in a tenth of the time of an exit to the VMM. A
//! VMM adds its doorbells to the regions of an [`AddressSpace`](space::AddressSpace), whose listener gives KVM those
//! that KVM can take. The [page of that module](space#from-driver_ok-to-the-kick-and-back) goes through the life of a
//! virtio device, step by step, beside QEMU's and in code. The table has all doorbells, and serves those that the
//! kernel does not take:
//!
//! * **payload doorbells** ([`Latest`], [`ValueQueue`]), which keep what was written, as NVMe and SPDK need it;
//! * **arrays of doorbells** ([`DoorbellArray`]) at equal distances, or told apart by the value written, as one entry:
//!   the notify addresses of virtio-pci, with any `notify_off_multiplier`. KVM is given an array of plain events slot
//!   by slot;
//! * kicks through virtio's **`PCI_CFG` window**, which arrive as accesses to configuration space: the VMM offers them
//!   to the table at the address that they mean;
//! * **confidential guests**, whose data the kernel cannot compare with a datamatch;
//! * the **gap while a BAR moves**, in which the kernel has neither the old doorbell nor the new one;
//! * **hypervisors without ioeventfds**, and **vCPUs emulated in software**;
//! * **device to device**: a device that rings another one in the same process, without a guest or a kernel in between.
//!
//! # Snapshots
//!
//! [`Table::save`] and [`AddressSpace::save`](space::AddressSpace::save) have doorbells, and the values that they keep,
//! as plain data.

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
