//! Events where a file descriptor is expected, on Linux.
//!
//! The kernel's counterpart is `eventfd_ctx_fdget`, which turns a descriptor into the counter that KVM, vhost and VFIO
//! signal; QEMU's is `EventNotifier`. An [`Event`](crate::Event) has no descriptor, and so can be a `static` or a
//! field, and be moved. It gets one from a handle that keeps hold of it, in one of two ways; where code of the VMM has
//! an eventfd in its hands today, a drop-in takes its place.
//!
//! | | what peers do with the descriptor | the count | system calls |
//! |---|---|---|---|
//! | [`Mirror`] | poll it | stays | one when it leaves 0, one when it returns there |
//! | [`Forward`] | read it | goes there | one for each signal |
//! | [`EventFd`] | all that is done with an eventfd | here, then there | none, then one for each call |
//!
//! * A [`Mirror`] is for `poll`, epoll and io_uring, in this process or another, while the event is read here.
//! * A [`Forward`] is for who takes the count: KVM (`KVM_IRQFD`), vhost, VFIO, a vhost-user peer.
//! * An [`EventFd`] is for code written for `vmm_sys_util::eventfd::EventFd`, and [`EventNotifier`] and
//!   [`EventConsumer`] for that written for `vmm_sys_util::event`. The count is an event in this process until somebody
//!   asks for the descriptor.
//!
//! (`AsFd` of an `Event` itself could not fail, and would leave open who closes the descriptor, and what keeps the
//! event in its place for the observer that is to light it.)
//!
//! A descriptor that exists already, and that a peer or the kernel signals, is no matter of this module but of pollers.
//!
//! For a seccomp filter, all system calls there are, on x86-64: `eventfd2`, `read`, `write`, `close`; `dup` and `fcntl`
//! with `F_DUPFD_CLOEXEC` for handles of an [`EventFd`]; `fcntl` with `F_GETFL` for [`Forward::with_fd`]; `futex`,
//! where threads sleep in an event and for the locks inside (the first such sleep in a process reads
//! `/sys/devices/system/cpu/online` before, unless [`prepare_for_seccomp`](crate::prepare_for_seccomp) has);
//! `sched_yield` and `clock_nanosleep` where an observer is detached while others are being called.
//!
//! Features: `vmm-sys-util` adds conversions from and to the originals, `mio` makes what has a descriptor an
//! `event::Source`, `vm-superio` makes events a `Trigger`.

mod eventfd;
mod forward;
#[cfg(not(loom))]
mod kernel;
/// Open to `loom-tests`, which look at the model.
#[cfg(loom)]
#[allow(missing_docs)]
pub mod kernel;
#[cfg(all(feature = "mio", not(loom)))]
mod mio;
mod mirror;
mod notifier;
#[cfg(all(feature = "vmm-sys-util", not(loom)))]
mod originals;
#[cfg(feature = "vm-superio")]
mod superio;

pub use eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};
pub use forward::Forward;
pub use mirror::Mirror;
pub use notifier::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
#[cfg(all(feature = "vmm-sys-util", not(loom)))]
pub use originals::AsOriginal;
#[cfg(feature = "vm-superio")]
pub use superio::SharedTrigger;
