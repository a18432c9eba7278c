//! irqfd: an event that interrupts the guest.
//!
//! The kernel's counterpart are `KVM_IRQFD` and `KVM_SET_GSI_ROUTING` (`virt/kvm/eventfd.c`, `virt/kvm/irqchip.c`), QEMU's
//! `kvm_irqchip` with the masking of MSI-X vectors. A device signals an [`Event`](crate::Event); a [`Router`] that it is
//! assigned to takes the count away and interrupts the guest, on the device's thread:
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
//! * **Edge.** A signal to a GSI that is routed to a pin is a pulse, 1 then 0. If the line is being driven already, by
//!   another thread, that one pulses; signals that come before it gets to it are one pulse.
//! * **MSI.** Every signal sends a message of its own, before it returns.
//! * **Level with resample.** A signal raises the line and leaves it up. At the guest's [`ack`](Router::ack) the line is
//!   lowered *first*, then the resample events of the GSI are signalled, and a device that still wants something signals
//!   again. Signals in between are one.
//! * **Masked**, a line keeps one pending bit, or its level, until it is unmasked.
//! * **Deassigned**, an event keeps what has not interrupted, also what a mask keeps back.
//!
//! Pins and their levels are in `line.rs`, what is decided about a signal in `board.rs`, the consuming of the event in
//! `injector.rs`.
//!
//! Where it differs from KVM: a line of several sources is kept consistent when the routes change under it (KVM leaves the
//! old pin as it was); pulses of two irqfds on one pin do not run into one another; an event is not its own resample event
//! (KVM accepts that, and storms).

mod board;
mod error;
mod injector;
mod level;
mod line;
mod lines;
mod route;
mod router;
mod sink;
mod worker;

pub use error::{AssignError, RouteError, RoutingError};
pub use injector::IrqfdCounters;
pub use level::LevelSource;
pub use line::LineCounters;
#[cfg(loom)]
pub use line::model;
pub use route::{MsiMessage, Route, RouteChange, Routes};
pub use router::{Irqfd, Router};
pub use sink::{Eoi, InterruptSink};
