//! Events where a file descriptor is expected, on Unix.
//!
//! The kernel's counterpart is `eventfd_ctx_fdget`, which turns a descriptor into the counter that KVM, vhost and VFIO
//! signal; QEMU's is `EventNotifier`. An [`Event`](crate::Event) has no descriptor, and so can be a `static` or a
//! field, and be moved. It gets one from a [`Mirror`] or a [`Forward`], which keep the event alive. Drop-ins take the
//! place of eventfds in code that has them today.
//!
//! | | what peers do with the descriptor | the count | system calls |
//! |---|---|---|---|
//! | [`Mirror`] | poll it | stays | one when it leaves 0, one when it returns there |
//! | [`Forward`] | read it | goes there | one for each signal |
//! | [`EventFd`] | all that is done with an eventfd | here, then there | none, then one for each call |
//!
//! * A [`Mirror`] is for `poll`, epoll and io_uring, in this process or another, while the event is read here.
//! * A [`Forward`] is for peers that take the count: KVM (`KVM_IRQFD`), vhost, VFIO, a vhost-user peer.
//! * An [`EventFd`] is for code written for `vmm_sys_util::eventfd::EventFd`, and [`EventNotifier`] and
//!   [`EventConsumer`] for that written for `vmm_sys_util::event`. They make the descriptors that the originals make,
//!   when the originals make them. The count is in this process until code asks for a descriptor. So they are faster
//!   where no code does; an eventfd that is registered with epoll or KVM costs what the original costs.
//!
//! (An `Event` itself is not `AsFd`: `as_fd` cannot fail, and the event has no owner for the descriptor, nor a fixed
//! address for the observer that updates it.)
//!
//! On Apple's systems there are no eventfds, and no [`Forward`]. A [`Mirror`] and an [`EventFd`] are made of pipes
//! there: see [`EventFd`](EventFd#where-there-is-no-eventfd).
//!
//! For a descriptor that exists already, and that a peer or the kernel signals, use
//! [`Poller::bind`](crate::poll::Poller::bind) or [`Poller::add_fd`](crate::poll::Poller::add_fd).
//!
//! # Peers and children
//!
//! A process that has a duplicate of a descriptor shares its flags and its count.
//! [`Mirror`](Mirror#peers-that-are-not-trusted) and [`Forward`](Forward#peers-that-are-not-trusted) say what a peer
//! that is not trusted can do with that, and what to give to such peers. They and [`EventFd`](EventFd#child-processes)
//! say what a child made by `fork` shares with its parent.
//!
//! # The types of vmm-sys-util
//!
//! kvm-ioctls, vhost, vhost-user-backend and others have `vmm_sys_util::eventfd::EventFd` in their signatures. With the
//! feature `vmm-sys-util`:
//!
//! | from | to | system calls |
//! |---|---|---|
//! | an original | ours: `From` | none |
//! | one of ours | an original: `From` | the count moves, see [`EventFd`]; the descriptor is the same |
//! | `&` one of ours | an original of its own: `TryFrom` | likewise, and `fcntl(F_DUPFD_CLOEXEC)` |
//! | `&` one of ours | `&` an original: `as_original` | likewise, without the `fcntl` |
//! | `&Forward`, `&Mirror` | an original of its own, or lent: `TryFrom`, `as_original` | `fcntl(F_DUPFD_CLOEXEC)`, or none |
//!
//! After each of the conversions of an [`EventFd`], [`EventNotifier`] or [`EventConsumer`], the count is in the kernel,
//! and shared by all handles, ours and theirs. An original that is made of a [`Mirror`] is to be polled only.
//!
#![cfg_attr(feature = "vmm-sys-util", doc = "```")]
#![cfg_attr(not(feature = "vmm-sys-util"), doc = "```ignore")]
//! use doorbell::fd::EventFd;
//!
//! # fn main() -> std::io::Result<()> {
//! let ours = EventFd::new(0)?;
//! ours.write(3)?;
//! let theirs = vmm_sys_util::eventfd::EventFd::try_from(&ours)?; // to be kept
//! theirs.write(4)?;
//! let register_irqfd = |fd: &vmm_sys_util::eventfd::EventFd| fd.write(5); // stands for VmFd::register_irqfd
//! register_irqfd(&ours.as_original())?;
//! assert_eq!(ours.read()?, 12);
//! # Ok(())
//! # }
//! ```
//!
//! `vmm_sys_util::eventfd::EventFd` is not `AsFd` as of version 0.15, nor is its `TimerFd`. Code that owns an `EventFd`
//! can turn it into an [`EventFd`] of ours, which is (by `From` with the feature, or by its raw descriptor). Code that
//! does not own it borrows its descriptor:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use doorbell::{Event, poll::Poller};
//! use std::os::fd::{AsRawFd, BorrowedFd};
//! use std::sync::Arc;
//!
//! let theirs = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK)?;
//! let kick = Arc::new(Event::new(0));
//! let poller = Poller::new();
//! // SAFETY: `theirs` is open for longer than its descriptor is borrowed.
//! let fd = unsafe { BorrowedFd::borrow_raw(theirs.as_raw_fd()) };
//! poller.bind(fd, &kick, 0)?;
//! # Ok(())
//! # }
//! ```
//!
//! # System calls
//!
//! For a seccomp filter, all system calls there are, on Linux on x86-64, each on the thread that makes the call in the
//! first column:
//!
//! | what | calls |
//! |---|---|
//! | [`Mirror::new`], [`Forward::new`] | `eventfd2`; what an observer's attachment calls (below) |
//! | [`Forward::with_fd`] | what an observer's attachment calls; `write` if there is something in the event |
//! | [`Forward::with_fd_nonblocking`] | `fcntl(F_GETFL)`, `fcntl(F_SETFL)` if it blocks; likewise |
//! | [`Mirror::poll_only`] | `epoll_create1`, `epoll_ctl` |
//! | a signal or read of an event with a `Mirror` | `write`, `read`; `futex` (`FUTEX_WAIT_BITSET`, `FUTEX_WAKE`) where two threads meet |
//! | a signal of an event with a `Forward`, [`Forward::flush`] | `write`; likewise |
//! | the drop of either | `close`, and what an observer's detachment calls (below) |
//! | [`EventFd`], [`EventNotifier`], [`EventConsumer`] | `eventfd2`, `fcntl(F_DUPFD_CLOEXEC)`, `read`, `write`, `close`; `futex` (`FUTEX_WAIT`, `FUTEX_WAKE`): see [there](EventFd#system-calls) for which call makes which |
//!
//! An observer is attached and detached under a lock (`futex`: `FUTEX_WAIT_BITSET`, `FUTEX_WAKE`), and detached with
//! `sched_yield` and `clock_nanosleep` while other threads are in observers' calls. Threads that sleep in an event or
//! an `EventFd` call `futex` (`FUTEX_WAIT`), and threads that wake them `futex` (`FUTEX_WAKE`); the first such sleep in
//! a process reads `/sys/devices/system/cpu/online` before, unless [`prepare_for_seccomp`](crate::prepare_for_seccomp)
//! has. All futexes are private. Where the standard library is built with debug assertions, it calls `fcntl(F_GETFD)`
//! before `close`.
//!
//! Features: `vmm-sys-util` adds conversions from and to the originals, `mio` makes what has a descriptor an
//! `event::Source`, `vm-superio` makes events a `Trigger`.

mod eventfd;
#[cfg(not(any(target_vendor = "apple", doorbell_no_eventfd)))]
mod forward;
#[cfg(not(any(loom, target_vendor = "apple", doorbell_no_eventfd)))]
mod kernel;
/// Open to `loom-tests`, which look at the model.
#[cfg(loom)]
#[allow(missing_docs)]
pub mod kernel;
#[cfg(all(feature = "mio", not(loom)))]
pub(crate) mod mio;
mod mirror;
mod notifier;
#[cfg(all(feature = "vmm-sys-util", not(any(loom, doorbell_no_eventfd))))]
mod originals;
#[cfg(any(target_vendor = "apple", doorbell_no_eventfd))]
mod pipe;
#[cfg(any(target_vendor = "apple", doorbell_no_eventfd))]
use pipe as kernel;
#[cfg(feature = "vm-superio")]
mod superio;

pub use eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};
#[cfg(not(any(target_vendor = "apple", doorbell_no_eventfd)))]
pub use forward::Forward;
pub use mirror::Mirror;
pub use notifier::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
#[cfg(all(feature = "vmm-sys-util", not(any(loom, doorbell_no_eventfd))))]
pub use originals::AsOriginal;
