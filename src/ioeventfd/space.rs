//! The address space above the table: regions that carry doorbells, and listeners that take them over.
//!
//! A device does not know where the guest will put its registers. It adds its doorbells to a [`Region`], at offsets.
//! The guest's firmware maps the region, moves it, and switches it off and on. The [`AddressSpace`] works out which
//! doorbells are at which guest addresses, and tells its [`Listener`]s, which can take guest writes before the VMM
//! does: mostly KVM. QEMU's counterparts are `memory_region_add_eventfd`, `memory_region_transaction_commit` and
//! `MemoryListener` (`system/memory.c`).
//!
//! ```text
//!     Region (BAR 4 at 0xe000_0000)      in force, absolute, sorted         Listener (KVM)        the table
//!       +0x3000  ──▶ queue 0      ──▶   Mmio 0xe000_3000 ──▶ queue 0   ──▶   KVM_IOEVENTFD   and   serves what
//!       +0x3004  ──▶ queue 1            Mmio 0xe000_3004 ──▶ queue 1         what it takes         comes to userspace
//! ```
//!
//! # A commit
//!
//! All changes are made in transactions. A change outside of a transaction is a transaction of its own. The outermost
//! [`commit`](Transaction::commit) compares the doorbells in force with those that should be, in one walk over two
//! sorted lists. Doorbells in both lists are left alone. For the others:
//!
//! 1. the listeners let go of the doorbells that are no longer in force, the listener with the highest priority first;
//! 2. the table is updated;
//! 3. the listeners take the new doorbells, the listener with the lowest priority first;
//! 4. the lock of the address space is released, and the commit waits for guest writes that were looked up before.
//!
//! The table has every doorbell in force, whether a listener has it or not. A guest write to a doorbell that a listener
//! has is served by the listener. If the listener does not have the doorbell yet, has let go of it, or has refused it,
//! the write exits to the VMM and is served by the table. A write is never served by both. The table changes in one
//! step: a doorbell that moves, or that is replaced by another at its address, is found once at every moment.
//!
//! The [`CommitReport`] names the doorbells that a listener refused, and [`retry_refused`](AddressSpace::retry_refused)
//! asks again. Such a doorbell works, but is slower. The exception is a doorbell to which no write comes, because a
//! device of KVM's takes the guest's writes: the refusal then [says so](Refusal::is_unreachable), and the doorbell has
//! to go elsewhere. The [table below](#where-something-else-takes-the-writes) has all such places, and those that KVM
//! does not refuse.
//!
//! # Regions that overlap
//!
//! A guest may map regions over each other, which is no error. Each address belongs to the region with the highest
//! priority there; among regions of the same priority, to the one that was mapped last. A doorbell is in force if its
//! first address belongs to its region, and an array of doorbells if all its addresses do. This is QEMU's rule, with
//! two differences: QEMU has no arrays, and it keeps a doorbell of which only later addresses belong to the region.
//! Doorbells of two regions never collide. Doorbells of one region are checked when they are added.
//!
//! # From DRIVER_OK to the kick, and back
//!
//! | what a virtio device does | in QEMU | here |
//! |---|---|---|
//! | the region is made, with its callbacks | `memory_region_init_io` | [`AddressSpace::region`]; the callbacks are those of the VMM |
//! | the guest programs the BAR | `memory_region_add_subregion`, `memory_region_set_enabled` | [`Region::map`], [`Region::set_enabled`] |
//! | DRIVER_OK is written: an event for each queue | `event_notifier_init` | [`Event::new`](crate::Event::new) |
//! | each is added to the notify region | `memory_region_add_eventfd` | [`Region::add_eventfd`] |
//! | all at once | `memory_region_transaction_begin`, `…_commit` | [`AddressSpace::begin`], [`Transaction::commit`] |
//! | the accelerator takes them | `kvm_mem_ioeventfd_add` | [`Listener::eventfd_add`]; `kvm::KvmListener` |
//! | a write the accelerator did not take | `memory_region_dispatch_write_eventfds` | [`AddressSpace::write`], then the device's callback |
//! | the I/O thread wakes | `event_notifier_test_and_clear` | [`Event::try_read`](crate::Event::try_read) |
//! | reset: the doorbells go | `memory_region_del_eventfd` | [`Region::del_eventfd`] |
//! | the notifier is read once more | `virtio_queue_host_notifier_read` | [`Event::try_read`](crate::Event::try_read) |
//!
//! ```
//! use doorbell::{Event, ioeventfd::Bus, ioeventfd::space::AddressSpace};
//! use std::sync::Arc;
//!
//! // The machine is built. With KVM, `space.add_listener(…)` belongs here.
//! let space = AddressSpace::new();
//! let bar = space.region(Bus::Mmio, 0x4000);
//!
//! // The guest programs the BAR and switches memory decoding on.
//! bar.map(0xe000_0000)?;
//!
//! // It writes DRIVER_OK. Both queues' doorbells come up together.
//! let queues = [0, 1].map(|_| Arc::new(Event::new(0)));
//! let transaction = space.begin();
//! for (offset, queue) in [0x3000, 0x3004].into_iter().zip(&queues) {
//!     // Its report is empty, since the transaction is still open.
//!     bar.add_eventfd(offset, 0, None, queue)?;
//! }
//! let report = transaction.commit();
//! for refusal in &report.refusals {
//!     let cost = if refusal.is_unreachable() { "never rung" } else { "slower than it could be" };
//!     eprintln!("{cost}: {refusal}");
//! }
//!
//! // It kicks queue 1, and the write exits to the VMM.
//! assert!(space.write(Bus::Mmio, 0xe000_3004, &[1, 0]));
//! assert_eq!(queues[1].read(), 1);
//!
//! // It moves the BAR. The doorbells go with it.
//! bar.map(0xe800_0000)?;
//! assert!(!space.write(Bus::Mmio, 0xe000_3000, &[0, 0])); // for the device models
//! assert!(space.write(Bus::Mmio, 0xe800_3000, &[0, 0]));
//!
//! // It resets the device. A kick that came before the doorbell went is still there.
//! let transaction = space.begin();
//! for (offset, queue) in [0x3000, 0x3004].into_iter().zip(&queues) {
//!     bar.del_eventfd(offset, 0, None, queue)?;
//! }
//! transaction.commit();
//! assert_eq!(queues[0].try_read(), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![doc = include_str!("space/occupied.md")]

mod address_space;
mod error;
mod flat;
mod listener;
mod region;
mod state;

pub use address_space::{AddressSpace, Transaction};
pub use error::{AddError, MapError};
pub use listener::{CommitReport, Listener, ListenerCall, ListenerHandle, Refusal, RefusalError};
pub use region::Region;
pub use state::{AddressSpaceState, RegionState, SpaceStateError};
