//! Real file descriptors in the same wait: the poller's epoll instance.
//!
//! It is made when the first descriptor is added. From then on threads sleep in `epoll_pwait(2)`, and who has something
//! for them in the process writes to the *bell*, an eventfd that is in the epoll too, but only if one is announced. The
//! bell is edge-triggered and never read: each write wakes one thread.
//!
//! A thread that sees the bell has used up the wake-up of a sleeper, so it must stand among the [`Waiters`] then, as
//! one that leaves wakes the next if need be.
//!
//! [`Waiters`]: crate::sync::waiters::Waiters

use super::bound::read_at_once;
use super::events::{self, Events};
use super::poller::{Poller, Registered, Registration};
use super::{PollError, Watch};
use crate::sync::limit::has_passed;
use crate::sync::waiters::Outcome;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// The epoll instance and its bell.
pub(super) struct Fds {
    epoll: OwnedFd,
    bell: OwnedFd,
}

/// What the kernel says of one descriptor.
pub(super) use rustix::event::epoll::Event as Found;

/// Tells registrations apart, those under the same key one after the other too.
pub(super) type Token = u64;

/// The bell's; those of registrations count from 0.
const BELL: Token = u64::MAX;

/// Longer sleeps are cut: epoll counts milliseconds in an `int`.
const LONGEST_SLEEP: Duration = Duration::from_millis(i32::MAX as u64);

/// More are left for the next look.
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

    /// Wakes one thread that sleeps in [`sleep`](Self::sleep), or the next to come.
    pub(super) fn ring(&self) {
        // It cannot fail before it has been rung 2^64 times.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Fails where the kernel cannot read eventfds without waiting.
    pub(super) fn check_reads(&self) -> Result<(), PollError> {
        // The bell's count is nobody's.
        match read_at_once(self.bell.as_fd()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(PollError::of(errno)),
        }
    }

    fn add(&self, fd: BorrowedFd<'_>, token: Token, flags: EventFlags) -> Result<(), PollError> {
        let token = EventData::new_u64(token);
        epoll::add(&self.epoll, fd, token, flags).map_err(PollError::of)
    }

    /// Forgets a descriptor, which the kernel may have done itself when it was closed.
    fn delete(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Gives up to `room` of what is ready to `take`.
    pub(super) fn look(&self, room: usize, take: impl FnOnce(&[Found])) -> Result<(), PollError> {
        self.pwait(room, Some(Duration::ZERO), take)
    }

    /// Sleeps until a descriptor is ready, the bell rings or the deadline passes, or for no reason less, such as a
    /// signal handler that ran; then as [`look`](Self::look).
    pub(super) fn sleep(
        &self,
        room: usize,
        deadline: Option<Instant>,
        take: impl FnOnce(&[Found]),
    ) -> Result<Outcome, PollError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.pwait(room, left.map(|left| left.min(LONGEST_SLEEP)), take)?;
        // Whatever was found: there may always be something, such as the bell or a binding, that ends no wait.
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
        take: impl FnOnce(&[Found]),
    ) -> Result<(), PollError> {
        // rustix makes whole milliseconds of it, rounded up.
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

/// The descriptors of a poller that are not its own. Under its lock.
#[derive(Default)]
pub(super) struct FdTable {
    next_token: Token,
    keys: BTreeMap<Token, usize>,
    /// Who was added last under a number. Numbers are given anew when a descriptor was closed without being deleted.
    numbers: BTreeMap<RawFd, Token>,
}

impl FdTable {
    /// Registers with the kernel and notes what its token stands for.
    pub(super) fn add(
        &mut self,
        fds: &Fds,
        fd: BorrowedFd<'_>,
        key: usize,
        flags: EventFlags,
    ) -> Result<FdRegistration, PollError> {
        let token = self.next_token;
        fds.add(fd, token, flags)?;
        self.next_token += 1;
        self.keys.insert(token, key);
        let number = fd.as_raw_fd();
        self.numbers.insert(number, token);
        Ok(FdRegistration { token, number })
    }

    pub(super) fn modify(
        &self,
        fds: &Fds,
        registration: &FdRegistration,
        watch: Watch,
    ) -> Result<(), PollError> {
        let fd = self.fd(registration).ok_or(PollError::NoEntry)?;
        let token = EventData::new_u64(registration.token);
        match epoll::modify(&fds.epoll, fd, token, flags(watch)) {
            Err(Errno::BADF) => Err(PollError::NoEntry),
            result => result.map_err(PollError::of),
        }
    }

    pub(super) fn delete(&mut self, fds: &Fds, registration: &FdRegistration) {
        self.keys.remove(&registration.token);
        if let Some(fd) = self.fd(registration) {
            fds.delete(fd);
            self.numbers.remove(&registration.number);
        }
    }

    /// The descriptor, unless its number is known to have been given to another.
    fn fd(&self, registration: &FdRegistration) -> Option<BorrowedFd<'_>> {
        let ours = self.numbers.get(&registration.number) == Some(&registration.token);
        // SAFETY: it may be closed, and open again as something else. It is only looked for in the list of our own
        // epoll instance, in which nobody else's descriptor is.
        ours.then(|| unsafe { BorrowedFd::borrow_raw(registration.number) })
    }
}

/// A descriptor's place in a [`FdTable`].
pub(super) struct FdRegistration {
    token: Token,
    number: RawFd,
}

impl Registered {
    /// Takes over what the kernel has found. Nobody is told of the bell, nor of what has been deleted in the meantime.
    pub(super) fn take_over(&mut self, events: &mut Events, found: &[Found]) {
        for found in found {
            let Some(key) = self.fds.keys.get(&found.data.u64()) else {
                continue;
            };
            match self.registrations.get(key) {
                Some(Registration::Fd(_)) => events.push(*key, reported(found.flags)),
                Some(Registration::Bound { item, .. }) => {
                    self.bindings.extend(item.enter_queue());
                }
                Some(Registration::Watched { .. }) | None => {}
            }
        }
    }
}

fn flags(watch: Watch) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::IN, watch.readable);
    flags.set(EventFlags::OUT, watch.writable);
    flags.set(EventFlags::ET, watch.edge);
    flags.set(EventFlags::ONESHOT, watch.one_shot);
    flags
}

fn reported(flags: EventFlags) -> u8 {
    [
        (EventFlags::IN, events::READABLE),
        (EventFlags::OUT, events::WRITABLE),
        (EventFlags::ERR, events::ERROR),
        (EventFlags::HUP, events::HANG_UP),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .fold(0, |bits, (_, bit)| bits | bit)
}

impl Poller {
    /// Watches a file descriptor: a socket, a timer, an eventfd that the kernel signals; whatever epoll takes.
    ///
    /// The flags are epoll's own. From the first descriptor on, threads in [`wait`](Self::wait) sleep in epoll, those
    /// that sleep elsewhere at the time move, and a timeout may pass up to a millisecond late. While events of the
    /// process are ready, descriptors are looked at in every 32nd wait.
    ///
    /// The poller does not keep the descriptor open. As with epoll, [`delete`](Self::delete) comes before closing:
    /// closing ends the registration only if no duplicate is left, and leaves the key in use.
    ///
    /// # Errors
    ///
    /// [`KeyExists`](PollError::KeyExists); [`FdExists`](PollError::FdExists), though a duplicate is another
    /// descriptor; [`BadFd`](PollError::BadFd); [`NotPollable`](PollError::NotPollable); [`Os`](PollError::Os).
    ///
    /// ```
    /// # use doorbell::poll::{Events, Poller, Watch};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut guest, host) = UnixStream::pair()?;
    /// let poller = Poller::new();
    /// poller.add_fd(&host, 7, Watch::READABLE)?;
    /// guest.write_all(b"kick")?;
    ///
    /// let mut events = Events::with_capacity(16);
    /// poller.wait(&mut events, None)?;
    /// assert_eq!(events.iter().next().map(|ready| ready.key()), Some(7));
    /// poller.delete(7)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn add_fd(&self, fd: impl AsFd, key: usize, watch: Watch) -> Result<(), PollError> {
        let mut registered = self.registered();
        registered.check_vacant(key)?;
        let fds = self.fds()?;
        let registration = registered.fds.add(fds, fd.as_fd(), key, flags(watch))?;
        registered
            .registrations
            .insert(key, Registration::Fd(registration));
        Ok(())
    }

    /// The epoll instance, made if it is not there. Under the lock.
    pub(super) fn fds(&self) -> Result<&Fds, PollError> {
        let shared = self.shared();
        if let Some(fds) = shared.fds.get() {
            return Ok(fds);
        }
        let made = Fds::new()?;
        let fds = shared.fds.get_or_make(|| made);
        // Who sleeps on the futex, or is about to, comes over.
        shared.waiters.wake_everybody();
        Ok(fds)
    }
}
