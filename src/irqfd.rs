//! irqfd: an event that interrupts the guest.
//!
//! The kernel's counterparts are `KVM_IRQFD` and `KVM_SET_GSI_ROUTING` (`virt/kvm/eventfd.c`, `virt/kvm/irqchip.c`);
//! QEMU's counterparts are `kvm_irqchip` and the masking of MSI-X vectors. A device signals an [`Event`](crate::Event).
//! The [`Router`] that the event is assigned to takes the count away and interrupts the guest, on the device's thread:
//!
//! ```text
//!     Event ──▶ irqfd ─┐            masked?                route
//!     Event ──▶ irqfd ─┴▶ line of a GSI ── yes ▶ pending
//!                              │  ▲
//!                              └──┼─────── no ─▶ MSI ─▶ signal_msi ──▶ ┐
//!                                 │              pin ─▶ set_level  ──▶ ├ InterruptSink: interrupt controller, or KVM
//!                                 │             none ─▶ lost           ┘              │
//!     resample Event ◀── lower ───┴─────────────── ack: the guest's end of interrupt ◀┘
//! ```
//!
//! * **Edge.** A signal to a GSI that is routed to a pin is a pulse, 1 then 0. If another thread is driving the line at
//!   that moment, that thread makes the pulse. Signals that arrive before it does so are one pulse.
//! * **MSI.** Every signal sends a message of its own before the signal returns.
//! * **Level with resample.** A signal raises the line and leaves it up. At the guest's [`ack`](Router::ack) the line
//!   is lowered *first*. Then the resample events of the GSI are signalled, and a device that still needs service
//!   signals again. All signals between two acks are one.
//! * **Masked.** A masked line keeps one pending bit, or its level, until it is unmasked.
//! * **Deassigned.** When an event is deassigned, signals that have not interrupted stay in its count, including those
//!   that a mask keeps back. A level with resample ends.
//!
//! # Locks that a caller may hold
//!
//! Some calls of a router wait for callbacks that are under way, and some run callbacks on the caller's thread. The
//! page [`guide::locks`](crate::guide::locks) says which, and which locks the caller must not hold then.
//!
//! # Snapshots
//!
//! [`Router::save`] takes a router down as plain data, and [`Router::restore`] makes a new router of it: routes,
//! irqfds, masks, pending bits, and the levels that resampling irqfds, [level sources](LevelSource) and
//! [`set_level`](Router::set_level) hold up. Each interrupt that is on its way at the time comes once, if all parts of
//! the VM are saved and restored in the order of [`guide::snapshot`](crate::guide::snapshot): the router first, because
//! `save` may still change counts of events, and restored last.
//!
//! # Differences from KVM
//!
//! * When the routes of a line change while it is up, the level moves to the new pin. KVM leaves the old pin as it was.
//! * Pulses of two irqfds on one pin do not overlap.
//! * An event cannot be its own resample event. KVM accepts that, and each end of interrupt then interrupts again.

// `line.rs` has the pins and their levels, `backlog.rs` what is left to a worker, `board.rs` the decision about a
// signal, and `injector.rs` the consumption of the event's count. Each file uses those before it.
mod backlog;
mod board;
mod error;
mod injector;
mod level;
mod line;
mod lines;
mod route;
mod router;
mod sink;
mod snapshot;
mod state;
mod worker;

pub use error::{AssignError, RestoreError, RouteError, RoutingError};
pub use injector::IrqfdCounters;
pub use level::LevelSource;
pub use line::LineCounters;
#[cfg(loom)]
pub use line::model;
pub use route::{MsiMessage, Route, RouteChange, Routes};
pub use router::{Irqfd, Router};
pub use sink::{Eoi, InterruptSink};
pub use snapshot::Restored;
pub use state::{IrqfdState, LineState, RouterState};
