// In rustdoc the README's links to the guide's pages lead to the pages of this version: the first definition counts.
//! [costs]: guide::costs
//! [fork]: guide::fork
//! [kvm]: guide::kvm
//! [locks]: guide::locks
//! [platforms]: guide::platforms
//! [snapshot]: guide::snapshot
//! [system calls]: guide::system_calls
//! [threat model]: guide::threat_model
//!
#![doc = include_str!("../README.md")]
#![doc(test(attr(deny(warnings))))]
#![cfg_attr(docsrs, feature(doc_cfg))]

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
#[cfg(unix)]
pub mod fd;
#[cfg(any(doc, doctest))]
pub mod guide;
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
pub use sync::cpus::prepare_for_seccomp;
pub use sync::membarrier::{MembarrierError, use_membarrier};
pub use sync::srcu::reclaim;
