//! Real file descriptors in the same wait: the poller's epoll instance.
//!
//! It is made when the first descriptor is added, or the first `PollerFd` is made. From then on, threads sleep in
//! `epoll_pwait(2)`. A thread that has something for them, and finds one announced, writes to the *bell*, an eventfd
//! that the epoll instance watches for edges and that is never read. Each write wakes one thread.
//!
//! A thread that hears the bell has used up the wake-up of a sleeper. So it must stand among the [`Waiters`] at the
//! time: a thread that leaves them wakes the next one if something is left.
//!
//! [`Waiters`]: crate::sync::waiters::Waiters

use super::PollError;
use crate::sync::limit::has_passed;
use crate::sync::waiters::Outcome;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// The epoll instance and its bell.
pub(super) struct Fds {
    epoll: OwnedFd,
    bell: OwnedFd,
}

/// What the kernel reports of one descriptor.
pub(super) use rustix::event::epoll::Event as FdReport;

/// Tells registrations apart, including those that have the same key one after the other.
pub(super) type Token = u64;

/// The token of the bell. Those of registrations count from 0.
const BELL: Token = u64::MAX;

/// Longer sleeps are cut into parts: epoll counts milliseconds in an `int`.
const LONGEST_SLEEP: Duration = Duration::from_millis(i32::MAX as u64);

/// Descriptors in one report. More are left for the next look.
const MOST_AT_ONCE: usize = 64;

impl Fds {
    pub(super) fn new() -> Result<Self, PollError> {
        let make = || {
            let epoll = epoll::create(CreateFlags::CLOEXEC)?;
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let flags = EventFlags::IN | EventFlags::ET;
            epoll::add(&epoll, &bell, EventData::new_u64(BELL), flags)?;
            Ok(Fds { epoll, bell })
        };
        make().map_err(PollError::of)
    }

    /// Readable while there is something to take in a [`look`](Self::look).
    pub(super) fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Wakes one thread that sleeps in [`sleep`](Self::sleep), or the next one that calls it.
    pub(super) fn ring(&self) {
        // It cannot fail before 2^64 writes.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Fails if the kernel cannot read eventfds without waiting.
    pub(super) fn check_reads(&self) -> Result<(), PollError> {
        // No thread needs the count of the bell.
        match read_at_once(self.bell.as_fd()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(PollError::of(errno)),
        }
    }

    pub(super) fn add(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        flags: EventFlags,
    ) -> Result<(), PollError> {
        let token = EventData::new_u64(token);
        epoll::add(&self.epoll, fd, token, flags).map_err(PollError::of)
    }

    pub(super) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        flags: EventFlags,
    ) -> Result<(), PollError> {
        let token = EventData::new_u64(token);
        match epoll::modify(&self.epoll, fd, token, flags) {
            Err(Errno::BADF) => Err(PollError::NoEntry),
            result => result.map_err(PollError::of),
        }
    }

    /// Removes a descriptor. The kernel may have done so itself when the descriptor was closed.
    pub(super) fn delete(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Passes up to `room` reports of what is ready to `take`, without sleeping.
    pub(super) fn look(
        &self,
        room: usize,
        take: impl FnOnce(&[FdReport]),
    ) -> Result<(), PollError> {
        self.pwait(room, Some(Duration::ZERO), take)
    }

    /// Sleeps until a descriptor is ready, the bell rings or the deadline passes. May return spuriously, for example
    /// after a signal handler has run. Passes what is ready to `take`, as [`look`](Self::look) does.
    pub(super) fn sleep(
        &self,
        room: usize,
        deadline: Option<Instant>,
        take: impl FnOnce(&[FdReport]),
    ) -> Result<Outcome, PollError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.pwait(room, left.map(|left| left.min(LONGEST_SLEEP)), take)?;
        // Whatever was found: the bell or a binding may come each time, and ends no wait.
        Ok(if has_passed(deadline) {
            Outcome::TimedOut
        } else {
            Outcome::Woken
        })
    }

    fn pwait(
        &self,
        room: usize,
        timeout: Option<Duration>,
        take: impl FnOnce(&[FdReport]),
    ) -> Result<(), PollError> {
        // rustix rounds it up to whole milliseconds.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut buffer = [const { MaybeUninit::uninit() }; MOST_AT_ONCE];
        let room = room.min(MOST_AT_ONCE);
        match epoll::wait(&self.epoll, &mut buffer[..room], timeout.as_ref()) {
            Ok((found, _)) => {
                take(found);
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(PollError::of(errno)),
        }
    }
}

/// Reads an eventfd as `read(2)` does, but fails with `EAGAIN` where that would block, whatever the flags of the open
/// file are: other processes share and may change these. Fails with `EOPNOTSUPP` before Linux 5.8.
pub(super) fn read_at_once(eventfd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut count = [0; 8];
    let mut buffer = [IoSliceMut::new(&mut count)];
    // An offset of -1 is the current position, which an eventfd does not have.
    let whence = u64::MAX;
    match rustix::io::preadv2(eventfd, &mut buffer, whence, ReadWriteFlags::NOWAIT)? {
        8 => Ok(u64::from_ne_bytes(count)),
        _ => Err(Errno::INVAL),
    }
}
