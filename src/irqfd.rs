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
//! A *callback* is a call of an [observer](crate::event::Observer) or of a [sink](InterruptSink), or a guest write that
//! a [table](crate::ioeventfd::Table) serves. Some calls wait until the callbacks that are under way on other threads
//! have returned, for any event, table or router of the process. If one of these callbacks waits for a lock that the
//! caller holds, neither ever returns. So do not make these calls while holding a lock that **any callback of the
//! process** may take, such as the lock of an interrupt controller's model:
//!
//! | waits for callbacks | when |
//! |---|---|
//! | [`Router::set_routes`], [`set_route`](Router::set_route), [`change_routes`](Router::change_routes) | if a route changes |
//! | [`Router::deassign`], drop of an [`Irqfd`], drop of the last handle to a router | if it was assigned; if the router has a [worker](Router::with_worker), always |
//! | [`Router::synchronize`], [`save`](Router::save), [`restore`](Router::restore) | always |
//! | drop of an [`Observation`](crate::event::Observation), and of what has one: `Mirror`, `Forward`, a `Poller`, a bound descriptor; `Poller::delete` | always |
//! | `deassign`, `deassign_all` and `replace` of a [`Table`](crate::ioeventfd::Table), drop of a `Registration` | if a doorbell goes |
//! | the end of a transaction of an [`AddressSpace`](crate::ioeventfd::space::AddressSpace) | if a doorbell goes |
//! | [`reclaim`](crate::reclaim) | always |
//!
//! Inside a callback none of them waits. No other call waits for a callback. This includes the calls that a vCPU makes
//! in an exit and that a device makes for a request: [`assign`](Router::assign) and
//! [`assign_with_resample`](Router::assign_with_resample), [`mask`](Router::mask), [`unmask`](Router::unmask),
//! [`unmask_with_route`](Router::unmask_with_route) and [`unmask_with_routes`](Router::unmask_with_routes),
//! [`set_level`](Router::set_level), [`LevelSource`]s, [`ack`](Router::ack), signals, attaching observers, adding
//! doorbells, and all getters.
//!
//! Some calls run callbacks **on the caller's own thread**. Do not make them while holding a lock that the sink takes,
//! or that an observer of a resample event of the line takes:
//!
//! | call | what it runs |
//! |---|---|
//! | a signal or a write; `assign`, if there is a count | an injection |
//! | `mask`, `unmask`, `set_level`, `LevelSource::set_level` and its drop | the line's level or what is pending on it |
//! | `ack`, [`Eoi::ack`]; `unmask` of an asserted line; the end of the last resampling irqfd | the level, and the resample events |
//! | all that changes routes, the `unmask_with_route`s and `restore` included | [`InterruptSink::set_routes`], if a route changes; and the levels that move |
//! | `assign`, `restore` | [`InterruptSink::connect`] |
//! | `save`, `restore` | [`InterruptSink::flush`]; with KVM, the ends of interrupt that have not been told |
//!
//! (If another thread is driving the line at the moment, that thread runs them.) Changes of routes come one at a time,
//! so a change waits for the sink's `set_routes` of another one. A thread that changes routes must therefore not hold a
//! lock that `set_routes` takes.
//!
//! # Snapshots
//!
//! [`Router::save`] takes a router down as plain data, and [`Router::restore`] makes a new router of it: routes,
//! irqfds, masks, pending bits, and the levels that resampling irqfds, [level sources](LevelSource) and
//! [`set_level`](Router::set_level) hold up. In this order, each interrupt that is on its way at the time comes once.
//! To save a VM:
//!
//! 1. Stop the vCPUs.
//! 2. Stop the devices, and let none of their threads signal an event any more.
//! 3. [`AddressSpace::drain`](crate::ioeventfd::space::AddressSpace::drain), if KVM takes kicks.
//!    [Other eventfds](crate::state#counts-that-are-elsewhere) that are bound to events are emptied now, too.
//! 4. [`Router::save`]. It waits until every signal made so far has reached the sink, and until the sink has
//!    [handed it on](InterruptSink::flush). It may signal resample events.
//! 5. [`AddressSpace::save`](crate::ioeventfd::space::AddressSpace::save), or
//!    [`Table::save`](crate::ioeventfd::Table::save) if there is a table alone.
//! 6. [`Event::save`](crate::Event::save) of all events, the resample events included.
//! 7. The interrupt controllers: the VMM's own, or with KVM `KVM_GET_IRQCHIP`, and of each vCPU `KVM_GET_LAPIC`,
//!    `KVM_GET_VCPU_EVENTS` and the rest. (On arm64 these are attributes of the GIC's and the ITS's devices:
//!    `KVM_GET_DEVICE_ATTR`.) What KVM has taken is in there.
//!
//! To restore it:
//!
//! 1. Make the VM, its vCPUs and its interrupt controllers, and give those their saved states (`KVM_SET_IRQCHIP`,
//!    `KVM_SET_LAPIC`, `KVM_SET_VCPU_EVENTS`).
//! 2. Make the sink, and a new router.
//! 3. [`Event::restore`](crate::Event::restore) of all events.
//! 4. [`AddressSpace::restore`](crate::ioeventfd::space::AddressSpace::restore), or
//!    [`Table::restore`](crate::ioeventfd::Table::restore). Add the listeners, KVM's for instance.
//! 5. [`Router::restore`]. The sink is told again of the levels that are up; an interrupt controller that has its saved
//!    state sees no change. With KVM, the levels are there when this returns.
//! 6. Give each device its irqfds, and its level source if it holds a line up. Attach observers, and fill pollers
//!    again. If a device reads its resample event, a count in there was signalled before the save, and the device has
//!    not looked yet.
//! 7. Start the devices, and then the vCPUs.
//!
//! A device's threads read what is in the events, as if the signals had just come.
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
