//! Waiting for several events and for file descriptors, and waiting in async code.
//!
//! | | for | the kernel's counterpart |
//! |---|---|---|
//! | [`wait_any()`] | a few events: which can be read? | `poll(2)` |
//! | [`Poller`] | many events by keys, level- or edge-triggered or one-shot; file descriptors too | `epoll(7)`, `ep_poll_callback()` |
//! | [`PollerFd`] | a poller in another event loop: epoll, tokio, event-manager | an epoll in an epoll |
//! | [`Event::wait_readable`](crate::Event::wait_readable) | one event, without taking anything | |
//! | [`Event::read_async`](crate::Event::read_async), [`Event::write_async`](crate::Event::write_async), [`Event::wait_readable_async`](crate::Event::wait_readable_async), [`Event::readings`](crate::Event::readings) | async code, on any runtime | |
//!
//! # How a poller works
//!
//! ```text
//!     signal ──▶ Event ── armed? ──▶ item ── QUEUED already? ──▶ incoming ──▶ wakes one thread, if any sleeps
//!       │                    no: done           yes: done           │ taken as a whole, under the lock
//!       │                                                           ▼
//!       └── at any time, on any thread, without a lock            ready ──▶ a thread in wait: looks, and reports
//! ```
//!
//! For each event that it watches, a poller has an [`Observer`](crate::event::Observer) that asks for one call. The
//! call puts the event into the poller's queue. From then on, signals of the event cost what they cost without a
//! poller, until a thread in [`wait`](Poller::wait) has looked at the event. So a burst of signals to one event or to
//! many costs one wake-up, a busy thread learns of events without a system call, and an event that is not ready costs
//! nothing. If a [`Batch`](crate::event::Batch) or an observer in its call signals many events, the wake-up comes when
//! all of them are in the queue.
//!
//! # Looking before sleeping
//!
//! To wake a thread that sleeps takes 5 to 50 µs, and a system call of the thread that wakes it. If something will be
//! ready soon, it is cheaper to stay awake. So a wait that finds nothing at first goes on looking for a while, the
//! *window*, before it sleeps:
//!
//! ```text
//!                    wait: anything there?  ── yes ──▶ report it
//!                             │ no
//!        ┌────────────────────▼───────────────────┐
//!        │ the window: look again and again at    │ ── found ──▶ report it: a sleep saved, the window stays open
//!        │   the queue of events       (a load)   │
//!        │   hot sources, by probes    (a load)   │       ▲ hot: reported since the thread last slept;
//!        │   descriptors               (50 µs)    │       │      begin: "need not notify"
//!        └────────────────────┬───────────────────┘       │
//!                             │ nothing came              │
//!               end: "notify from now on", and a last look at each hot source ── found ──▶ report it
//!                             │
//!                           sleep ── a kick ──▶ report it
//! ```
//!
//! * **Probes.** A load finds events, since their signals put them into the poller's queue. A load also finds any
//!   source that has a [`Probe`], such as a virtqueue, whose driver need not kick while the poller looks. See [`Probe`]
//!   for the contract, and `doorbell::virtio` (feature `virtio-queue`) for a probe that is ready to use.
//! * **The hot set.** The poller asks only the probes of sources that were reported since the thread last slept, and of
//!   those that were hot before that sleep. All other sources notify, and cost nothing, however many there are. A
//!   source whose probe has just been attached is among these, unless it is ready. A source that has nothing but a
//!   probe is always hot. A source leaves the hot set if it had nothing to do in 16 of these times, or in 2,048 looks
//!   if other sources keep the thread awake.
//! * **The window** is as long as [`Spin::Adaptive`](crate::Spin::Adaptive) allows, or closed. It closes when it does
//!   not [pay](crate::Spin#when-an-adaptive-spin-pays): when too few looks find something, or when other threads need
//!   the CPU, so that waits take longer than they would without looking. It opens again for a trial of eight looks,
//!   after 16 to 1,024 waits that were so short that looking might pay. An event's blocking calls have the same rule.
//!   With [`Spin::Never`](crate::Spin::Never) there is no window: each wait asks the probes once at first, and once
//!   before it sleeps.
//! * **No source starves.** What probes found is first in the buffer in one wait, and what events reported is first in
//!   the next, so a small buffer has room for both in turn. The poller looks at descriptors at least in every 32nd wait
//!   and, during a long wait, every 50 µs.
//! * **Several threads.** One of them looks at the hot sources, and the others sleep. When a thread leaves `wait` with
//!   something to report while another thread sleeps, it turns notifications on: nothing else would wake the other
//!   thread for what comes meanwhile.
//!
//! # Differences from epoll
//!
//! A poller reports what epoll reports of eventfds, in the same order. A fuzz target compares the two. The intended
//! differences are:
//!
//! * A signal handler that runs does not end a wait (epoll: `EINTR`). The handler may call [`notify`](Poller::notify).
//! * An overflow is reported as an error to a watch for errors or for room alone. epoll does not notice it by itself.
//! * A signal wakes threads that sleep in the event itself, whatever else watches the event. (With `EPOLLEXCLUSIVE` the
//!   kernel may leave them asleep.) There is no exclusive watching: let several threads wait on one poller.
//! * If two threads signal an event at once, one of them puts it into the queue. The other may return before that has
//!   happened, and a wait of its own that does not sleep may find nothing. A wait that sleeps is woken. (In the kernel
//!   the second thread would wait for a lock.)
//! * What a probe finds is reported as level-triggered. Its order among the other reports is not specified.
//! * Keys tell registrations apart, so one event can be registered twice, as a descriptor and its duplicate can.
//!   The poller keeps the events alive. A poller is watched by another, or by an epoll, as a [`PollerFd`].
//!
//! # System calls
//!
//! For a seccomp filter, beside those that every `Event` makes (see
//! [`guide::system_calls`](crate::guide::system_calls)):
//!
//! | | only to sleep | only to wake sleepers |
//! |---|---|---|
//! | `wait_any` | `futex_waitv`, with a timeout `clock_gettime` (of the vDSO, if there is one); `futex` (`FUTEX_WAIT`) for one event, for more than 128, or where `futex_waitv` fails with `ENOSYS` or `EPERM` | `futex` (`FUTEX_WAKE`) |
//! | futures | none, but those of their runtime | none, but those of the runtime's wakers |
//!
//! `futex_waitv` came with Linux 5.16. Other systems are treated as if it had failed. A filter that *kills* at
//! `futex_waitv` must allow it. A filter that refuses it costs one failed call.
//!
//! Futures, `wait_any` without `futex_waitv`, and the threads that wake them take a mutex for a few instructions. A
//! thread that finds the mutex taken spins. If the owner has been preempted, the thread calls `sched_yield`, and after
//! some of these calls `clock_nanosleep`. The first future that waits for an event, and the first `wait_any` on it that
//! cannot use `futex_waitv`, calls the memory allocator.
//!
//! The system calls of a poller, beside those of the memory allocator, are below. Here and above, each `futex` is a
//! private one.
//!
//! | what | calls |
//! |---|---|
//! | a signal to an event of a poller | `futex` (`FUTEX_WAKE`) or, in a poller with descriptors, `write`, if a thread sleeps that has not been woken |
//! | [`notify`](Poller::notify) | the same `futex` or `write` |
//! | [`notify_all`](Poller::notify_all) | the same for the first thread that sleeps, and `futex` (`FUTEX_WAIT_BITSET`, `FUTEX_WAKE`) for the lock; each thread that it wakes makes the same call for the next |
//! | [`wait`](Poller::wait) | while events or probes are ready: none, or with descriptors one `epoll_pwait` in 32 waits; else `futex` (`FUTEX_WAIT`) or `epoll_pwait`; while the window is open, `sched_yield` every 50 µs, and with descriptors `epoll_pwait`; `clock_gettime` where that is one; before the first window, what an [`Event`](crate::Event) calls, unless [prepared](crate::prepare_for_seccomp) |
//! | [`look`](Poller::look) | none, or with descriptors one `epoll_pwait` in 32 looks |
//! | [`PollerFd::arm`](PollerFd::arm) | as `look` if it finds something, else one `epoll_pwait`, which does not wait |
//! | [`PollerFd::disarm`](PollerFd::disarm) | none, or as a signal if other threads sleep in the poller and something is ready |
//! | [`add`](Poller::add), [`modify`](Poller::modify), [`delete`](Poller::delete) | `sched_yield` and `clock_nanosleep`, where an event leaves while other threads are in observers' calls; `futex` (`FUTEX_WAIT_BITSET`, `FUTEX_WAKE`) for the locks |
//! | the first descriptor, or the first [`PollerFd`] | `epoll_create1`, `eventfd2`, `epoll_ctl`, and the `futex` of the locks |
//! | [`add_fd`](Poller::add_fd) and its end | `epoll_ctl` |
//! | [`bind`](Poller::bind), [`add_bound`](Poller::add_bound) and their end | `fcntl`, `openat`, `read`, `epoll_ctl`, `preadv2`, `close` |
//! | [`attach_probe`](Poller::attach_probe), [`add_probe`](Poller::add_probe) and their end | `futex` (`FUTEX_WAIT_BITSET`, `FUTEX_WAKE`) for the lock; as a signal, if a thread sleeps |
//! | a bound eventfd that is ready | `preadv2` in `wait`, and one more if it is a semaphore or the kernel is older than 6.5; `write`, if another is ready and another thread sleeps; `futex`, if another thread carries at the time |

// What only descriptors need is not used where there are none.
#![cfg_attr(any(loom, not(target_os = "linux")), allow(dead_code))]

mod error;
mod events;
mod incoming;
mod item;
mod poller;
mod probe;
mod probes;
mod queued_binding;
mod registered;
mod shared;
mod sleepers;
mod wait_any;
mod watch;

#[cfg(all(target_os = "linux", not(loom)))]
mod bound;
#[cfg(all(target_os = "linux", not(loom)))]
mod descriptors;
#[cfg(all(target_os = "linux", not(loom)))]
mod epoll;
#[cfg(all(target_os = "linux", not(loom)))]
mod fd_table;
#[cfg(target_os = "linux")]
mod poller_fd;

/// Open to `loom-tests`, where an outer loop waits for it.
#[cfg(loom)]
#[allow(missing_docs)]
pub mod model;
#[cfg(all(not(target_os = "linux"), not(loom)))]
mod no_epoll;
#[cfg(any(loom, not(target_os = "linux")))]
mod no_fds;
#[cfg(loom)]
use model as epoll;
#[cfg(all(not(target_os = "linux"), not(loom)))]
use no_epoll as epoll;
#[cfg(any(loom, not(target_os = "linux")))]
use {no_fds as bound, no_fds as fd_table};

pub use error::PollError;
pub use events::{Events, Report};
pub use poller::{PollStats, Poller};
#[cfg(target_os = "linux")]
pub use poller_fd::PollerFd;
pub use probe::Probe;
pub use wait_any::{Ready, wait_any, wait_any_deadline};
pub use watch::Watch;
