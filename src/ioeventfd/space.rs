//! The address space above the table: regions that carry doorbells, and listeners that take them over.
//!
//! A device does not know where the guest will put its registers. It hangs its doorbells on a [`Region`], at offsets;
//! the guest's firmware maps the region, moves it, switches it off and on; and the [`AddressSpace`] works out which
//! doorbells stand at which guest addresses, and tells those who can take guest writes earlier than the VMM does: its
//! [`Listener`]s, KVM above all. QEMU's counterparts are `memory_region_add_eventfd`,
//! `memory_region_transaction_commit` and `MemoryListener` (`system/memory.c`).
//!
//! ```text
//!     Region (BAR 4 at 0xe000_0000)      in force, absolute, sorted         Listener (KVM)        the table
//!       +0x3000  ──▶ queue 0      ──▶   Mmio 0xe000_3000 ──▶ queue 0   ──▶   KVM_IOEVENTFD   and   serves what
//!       +0x3004  ──▶ queue 1            Mmio 0xe000_3004 ──▶ queue 1         what it takes         comes to userspace
//! ```
//!
//! # A commit
//!
//! All changes are made in transactions; a change outside of one is a transaction of its own. The outermost
//! [`commit`](Transaction::commit) compares what is in force with what should be, in one walk over two sorted lists,
//! and then, with the doorbells that are in both left alone:
//!
//! 1. the listeners let go of what has gone, the one with the highest priority first;
//! 2. the table is brought up to date;
//! 3. the listeners take what is new, the one with the lowest priority first;
//! 4. other threads may change the address space again, and the commit waits for guest writes that were looked up
//!    before.
//!
//! The table has every doorbell in force, whoever else has it. So a guest write is served by the listener or, where
//! that has not got the doorbell yet, has let go of it, or never took it, exits to the VMM and is served by the table:
//! one of the two, and never both. The table changes in one step: a doorbell that moves, or is exchanged for another at
//! its own address, is there at every moment, once. A listener that refuses a doorbell costs speed and nothing else,
//! and the [`CommitReport`] says so.
//!
//! # Regions that overlap
//!
//! Guests can map regions over each other, so that is no error. Each address belongs to the region with the highest
//! priority there, or among equals the one mapped last. A doorbell is in force if its first address belongs to its
//! region; an array of doorbells, if all its addresses do. This is QEMU's rule, except that QEMU has no arrays, and also
//! keeps a doorbell that has only its tail in sight, which no guest write could tell from the registers in front of it.
//! Doorbells of two regions thus never collide, and doorbells of one region are checked when they are added.
//!
//! # From DRIVER_OK to the kick, and back
//!
//! | what a virtio device does | in QEMU | here |
//! |---|---|---|
//! | the region is made, with its callbacks | `memory_region_init_io` | [`AddressSpace::region`]; the callbacks are the VMM's own |
//! | the guest programs the BAR | `memory_region_add_subregion`, `memory_region_set_enabled` | [`Region::map`], [`Region::set_enabled`] |
//! | DRIVER_OK is written: an event for each queue | `event_notifier_init` | [`Event::new`](crate::Event::new) |
//! | each is added to the notify region | `memory_region_add_eventfd` | [`Region::add_eventfd`] |
//! | all at once | `memory_region_transaction_begin`, `…_commit` | [`AddressSpace::begin`], [`Transaction::commit`] |
//! | the accelerator takes them | `kvm_mem_ioeventfd_add` | [`Listener::eventfd_add`]; `kvm::KvmListener` |
//! | a write the accelerator did not take | `memory_region_dispatch_write_eventfds` | [`AddressSpace::write`], then the device's callback |
//! | the I/O thread wakes | `event_notifier_test_and_clear` | [`Event::read`](crate::Event::read) |
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
//!     // What it reports is empty, as the transaction around it is not over.
//!     bar.add_eventfd(offset, 0, None, queue)?;
//! }
//! let report = transaction.commit();
//! for refusal in &report.refusals {
//!     eprintln!("slower than it could be: {refusal}");
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
pub use listener::{CommitReport, Listener, ListenerCall, Refusal, RefusalError};
pub use region::Region;
pub use state::{AddressSpaceState, RegionState, SpaceStateError};
