//! Events as file descriptors: mirrors, forwarders, `EventFd` and the other drop-ins.
//!
//! `tests/event/conformance.rs` and `tests/event/stress.rs` run their bodies through `EventFd` too. The cases of the
//! eventfd reference that need a descriptor, and where they are:
//!
//! | case | test |
//! |---|---|
//! | E1 to E5 | `eventfd::e01_flags`, `eventfd::e05_unknown_flags` |
//! | E11, E13 to E17, E19, E27, E28, E33 to E35 | `eventfd::e11_sizes_addresses_and_segments`, against a real eventfd |
//! | E45, E47 | `eventfd_moved::…` and `eventfd_descriptor::…` of `tests/event/conformance.rs` |
//! | E57 | `processes::another_process_reads_and_writes_an_eventfd` |
//! | E63 | `eventfd::e63_select_in_the_overflow_state` |
//! | E9 | the descriptor's maker is `eventfd2`; the legacy call makes the same object |
//! | E49 | holds for `read(2)` only: a method makes an interrupted call again, as the original does |
//! | E58 | a descriptor is closed under its handle only by code that breaks the rules of `AsRawFd` |
//!
//! All of them hold for an `EventFd`, whose descriptor is the kernel's own object. Those that read or write do not hold
//! for a mirror's descriptor: its count is not the event's, and peers only poll it. For a mirror, P1 holds without OUT
//! and ERR (the descriptor is always writable, because an event's room does not concern readers), P16 and P17 hold
//! unchanged, and of the cases about edges P19, P22, P23 and P25 hold. P20 and P21 ask for an edge at each write, while
//! a mirror makes a system call, and an edge, for the first write only.
//!
//! With `--cfg doorbell_no_eventfd`, the module is as it is where the system has no eventfds: then the tests are those
//! of `mirror` and `no_eventfd`.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod child;
#[cfg(not(doorbell_no_eventfd))]
mod eventfd;
#[cfg(not(doorbell_no_eventfd))]
mod forward;
#[cfg(not(doorbell_no_eventfd))]
mod interop;
mod mirror;
#[cfg(doorbell_no_eventfd)]
mod no_eventfd;
#[cfg(not(doorbell_no_eventfd))]
mod processes;
mod steps;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// What poll says now.
fn readiness(fd: impl AsFd) -> PollFlags {
    let mut fds = [PollFd::new(&fd, PollFlags::all())];
    poll(&mut fds, Some(&Timespec::default())).unwrap();
    fds[0].revents()
}

fn is_readable(fd: impl AsFd) -> bool {
    readiness(fd).contains(PollFlags::IN)
}

/// An epoll that watches one descriptor for input.
struct Watch(OwnedFd);

impl Watch {
    fn level(fd: impl AsFd) -> Self {
        Self::new(fd, epoll::EventFlags::IN)
    }

    fn edges(fd: impl AsFd) -> Self {
        Self::new(fd, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    fn new(fd: impl AsFd, flags: epoll::EventFlags) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, fd, epoll::EventData::new_u64(0), flags).unwrap();
        Watch(epoll)
    }

    /// Whether the epoll reports something in time.
    fn wait(&self, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap();
        let mut events = Vec::with_capacity(1);
        let ready = epoll::wait(
            &self.0,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        );
        ready.unwrap();
        !events.is_empty()
    }

    fn now(&self) -> bool {
        self.wait(Duration::ZERO)
    }
}
