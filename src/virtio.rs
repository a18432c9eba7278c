//! Virtqueues that a poller polls: the split rings of the `virtio-queue` crate. With the feature `virtio-queue`.
//!
//! A device that sleeps between requests pays two wake-ups a request: its own, for which the driver kicks, and the
//! driver's, which the device interrupts. The device's own can be had for a load instead, while requests come quickly:
//! a [`Poller`](crate::poll::Poller) asks the available ring before it sleeps, and the driver is told not to kick.
//!
//! ```text
//!                      driver                               device, in Poller::wait and in PolledQueue::serve
//!     polling          avail.idx += 1                       begin   used.flags = NO_NOTIFY (EVENT_IDX: nothing)
//!                      kick? no                             ready   avail.idx != next_avail, over and over
//!                                                           serve   pops, completes, interrupts when asked to
//!     to sleep         avail.idx += 1                       end     flags = 0 (EVENT_IDX: avail_event = next)
//!                      full barrier                                 full barrier
//!                      flags, avail_event: kick?                    avail.idx != next_avail: do not sleep
//! ```
//!
//! The last two rows are the handshake of sections 2.7.7.2, 2.7.10 and 2.7.13.4.1 of the virtio 1.2 specification: each
//! side stores its own word, passes a full barrier and then loads the other's. At least one of them sees the other, so
//! that either the driver kicks or the device stays awake.
//!
//! | | what it does |
//! |---|---|
//! | [`PolledQueue`] | the device's half: pops, completes, decides when to interrupt and when to ask for kicks |
//! | [`QueueProbe`] | the poller's half: what [`Poller::attach_probe`](crate::poll::Poller::attach_probe) takes |
//!
//! # When to interrupt
//!
//! A driver that sleeps in its call eventfd and has 32 requests under way is best interrupted for the first of them, so
//! that it wakes up while the device does the other 31. A driver that polls the used ring is best left alone: the full
//! barrier that a sure answer takes costs a tenth of a small request. [`complete`](PolledQueue::complete) therefore
//! looks at what the driver asks for (`used_event`, or `NO_INTERRUPT` in the flags of the available ring) after each
//! request without a barrier, which is a load of memory that the driver of a busy queue rarely writes, and passes the
//! barrier only if the driver seems to want the interrupt. [`finish`](PolledQueue::finish) gives the sure answer, once
//! for all requests that are done; no interrupt is lost, whatever the looks before it have seen.

mod error;
mod probe;
mod queue;
mod rings;

pub use error::QueueError;
pub use probe::QueueProbe;
pub use queue::{PolledQueue, Served};

#[cfg(test)]
mod tests;
