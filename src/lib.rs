#![doc = include_str!("../README.md")]
//!
//! # Fork
//!
//! A child of `fork(2)` has one thread, and a copy of everything in memory. Whether it goes on for good, as a daemon
//! does, or until it executes another program, this is what it may call:
//!
//! | what | in the child |
//! |---|---|
//! | [`Event`], [`event::Batch`], [`poll::wait_any`], futures | all of it. An event is a copy: what one process signals, the other does not see. |
//! | [`SharedEvent`] | all of it. The event is the same in both. |
//! | [`ioeventfd::Table`], [`ioeventfd::space::AddressSpace`], [`event::Observation`], [`irqfd::Router`], [`poll::Poller`] without descriptors | all of it. Whoever was inside a callback or a lookup in another thread is not waited for; what other threads had left to be freed, [`reclaim`] frees. A line whose level or pulse another thread was telling the sink at that moment interrupts no more. |
//! | an [`irqfd::Router::with_worker`] | all of it. The worker does not come along: the sink is called by who signals, as that of [`irqfd::Router::new`]. What the worker was doing, or had in its backlog, stays undone, and those lines interrupt no more. |
//! | what has a descriptor ([`poll::Poller`] with descriptors, `fd::Mirror`, `fd::Forward`) | nothing: the descriptor is the parent's, too, and the memory that goes with it is not. |
//! | `fd::EventFd`, `EventNotifier`, `EventConsumer` | all of it, if a descriptor was asked for before the fork: the count is one then. Else it is a copy, as an event is. |
//! | `kvm` | nothing: KVM refuses the ioctls of other processes than the one that made the VM (`EIO`). |
//!
//! The fork may come at any time, from inside a callback too, with one exception: an object that another thread
//! is *changing* at that moment (attaching and detaching observers, assigning, routes, adding to a poller and waiting
//! at one, waiting in line as a task, making an event's first signaller) stays locked in the child, and a change of
//! the same object there waits for ever. So a child leaves alone what other threads of the parent may have been
//! changing; reading, signalling and looking up are no changes.
//!
//! A child made by other means than `fork` of the C library is not recognised: it may call what needs no recognition,
//! that is the first two rows, where nobody observes.

/// Makes a constructor `const`, but not under loom, whose atomics are made at run time.
macro_rules! maybe_const {
    ($(#[$attribute:meta])* $visibility:vis fn $($rest:tt)*) => {
        $(#[$attribute])*
        #[cfg(not(loom))]
        $visibility const fn $($rest)*

        $(#[$attribute])*
        #[cfg(loom)]
        $visibility fn $($rest)*
    };
}

mod errno;
pub mod event;
#[cfg(target_os = "linux")]
pub mod fd;
pub mod ioeventfd;
pub mod irqfd;
#[cfg(all(
    feature = "kvm",
    target_os = "linux",
    any(
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "x86_64"
    )
))]
pub mod kvm;
mod panics;
pub mod poll;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub mod shared;
mod spread;
pub mod state;
#[cfg(all(feature = "virtio-queue", target_os = "linux", not(loom)))]
pub mod virtio;
/// Open to `loom-tests`: what of it does not depend on the crate of the queue.
#[cfg(loom)]
#[allow(missing_docs)]
pub mod virtio;

#[cfg(not(loom))]
mod sync;
/// Open to `loom-tests`, which drive the model of the futex.
#[cfg(loom)]
#[allow(missing_docs)]
pub mod sync;

pub use event::{Event, Mode, Readiness, Spin, WriteError};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use shared::{AttachError, SharedEvent, WakerError};
pub use sync::membarrier::{MembarrierError, use_membarrier};
pub use sync::spin::prepare_for_seccomp;
pub use sync::srcu::reclaim;
