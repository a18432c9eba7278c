//! Virtqueues that a poller polls: the split rings of the `virtio-queue` crate. With the feature `virtio-queue`.
//!
//! A device that sleeps between requests needs two wake-ups for each request: its own, for which the driver kicks, and
//! the driver's, for which the device interrupts. While requests come quickly, a load can replace the device's wake-up:
//! a [`Poller`](crate::poll::Poller) looks at the available ring before it sleeps, and tells the driver not to kick.
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
//! A driver may be interrupted after all requests of a batch, or after each, or somewhere in between. If the driver
//! sleeps, an interrupt for the first request is best: the wake-up passes while the device does the other 31. If the
//! driver is awake, or sleeps on the device's own CPU, each interrupt before the end is one too many, and each question
//! whether the driver wants one costs a tenth of a small request.
//!
//! So [`complete`](PolledQueue::complete) looks at what the driver asks for (`used_event`, or `NO_INTERRUPT` in the
//! flags of the available ring) after 1, 2, 4, 8… requests of a batch. A reliable answer takes a full barrier, which
//! `complete` executes only if the driver seems to want the interrupt. After such an interrupt, the next
//! [`pop`](PolledQueue::pop) looks whether the driver has asked for another one by then. If so, the driver was awake or
//! took the device's CPU, and the next 1 to 64 batches are looked into at their end only. The number doubles each time
//! that this happens. [`finish`](PolledQueue::finish) gives the reliable answer, once for all requests that are done,
//! so that no interrupt is lost, whatever the looks before it have seen.
//!
//! Devices with a rule of their own use only [`add_used`](PolledQueue::add_used) and `finish`.
//!
//! # How to: a virtio device on doorbell
//!
//! 1. **One thread, one poller.** [`Spin::Adaptive`](crate::Spin::Adaptive) is how long it may look before it sleeps;
//!    32 µs is QEMU's default. [`Spin::Never`](crate::Spin::Never) turns that off.
//! 2. **The kick.** Watch the descriptor from the front-end for edges, and do not read it. Add an event of this
//!    process, such as one that an [`ioeventfd`](crate::ioeventfd) table rings, by
//!    [`Poller::add`](crate::poll::Poller::add), for edges too.
//! 3. **The probe.** Attach the queue's probe to the same key. From here on, the driver kicks only while the thread
//!    sleeps.
//! 4. **A report** of the key means: serve the queue until there is nothing more.
//! 5. **The call.** Interrupt the driver where `serve` calls `interrupt`, and nowhere else.
//! 6. **The end.** A separate event ends the loop. When the front-end replaces the kick or stops the queue,
//!    [`delete`](crate::poll::Poller::delete) the key, which ends the probe, before you close the descriptor.
//!
//! ```
//! use doorbell::poll::{Events, Poller, Watch};
//! use doorbell::virtio::{PolledQueue, QueueError};
//! use doorbell::{Event, Spin};
//! use rustix::fd::OwnedFd;
//! use std::sync::Arc;
//! use std::time::Duration;
//! use virtio_queue::DescriptorChain;
//! use vm_memory::GuestMemoryMmap;
//!
//! const STOP: usize = 0;
//! const QUEUE: usize = 1;
//!
//! /// Runs on the device's thread.
//! fn device(
//!     mut queue: PolledQueue<Arc<GuestMemoryMmap>>,
//!     kick: &OwnedFd,
//!     stop: &Arc<Event>,
//!     interrupt: impl Fn(),
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let max = Duration::from_micros(32);
//!     let poller = Poller::with_spin(Spin::Adaptive { max });
//!     poller.add(stop, STOP, Watch::READABLE)?;
//!     poller.add_fd(kick, QUEUE, Watch::READABLE.edge())?;
//!     poller.attach_probe(QUEUE, queue.probe())?;
//!     let mut events = Events::with_capacity(8);
//!     loop {
//!         poller.wait(&mut events, None)?;
//!         for report in &events {
//!             match report.key() {
//!                 STOP => return Ok(()),
//!                 _ => while queue.serve(64, handle, &interrupt)?.more {},
//!             }
//!         }
//!     }
//! }
//!
//! /// Does what the request says, and returns how many bytes of the answer it has written.
//! fn handle(chain: DescriptorChain<&GuestMemoryMmap>) -> Result<u32, QueueError> {
//! #   let _ = chain;
//!     // …
//!     Ok(0)
//! }
//! # use rustix::event::{EventfdFlags, eventfd};
//! # use std::cell::Cell;
//! # use virtio_queue::{Queue, QueueT};
//! # use vm_memory::{Bytes, GuestAddress};
//! # let mem = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
//! # let mut queue = Queue::new(16).unwrap();
//! # queue.set_desc_table_address(Some(0x1000), None);
//! # queue.set_avail_ring_address(Some(0x2000), None);
//! # queue.set_used_ring_address(Some(0x3000), None);
//! # queue.set_ready(true);
//! # let queue = PolledQueue::new(queue, Arc::clone(&mem)).unwrap();
//! # mem.write_obj(1_u16, GuestAddress(0x2002)).unwrap();
//! # let (kick, stop) = (eventfd(1, EventfdFlags::empty()).unwrap(), Arc::new(Event::new(0)));
//! # let interrupts = Cell::new(0);
//! # device(queue, &kick, &stop, || {
//! #     interrupts.set(interrupts.get() + 1);
//! #     stop.signal();
//! # }).unwrap();
//! # assert_eq!(interrupts.get(), 1);
//! ```
//!
//! The example `vhost-user-blk` is this with several queues, reconnection, and front-ends that lie.

mod early;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod guest;
#[cfg(not(loom))]
mod probe;
#[cfg(not(loom))]
mod queue;
#[cfg(not(loom))]
mod rings;
#[cfg(loom)]
pub mod rings;

#[cfg(not(loom))]
pub use error::QueueError;
#[cfg(not(loom))]
pub use probe::QueueProbe;
#[cfg(not(loom))]
pub use queue::{PolledQueue, Served};

#[cfg(all(test, not(loom)))]
mod tests;
