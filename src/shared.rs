//! Events in memory that processes share.
//!
//! The kernel's counterpart is an eventfd that is passed over a Unix socket. Here the counter and the state of its
//! waiters are in 64 bytes of a memfd, of POSIX shared memory or of a guest's RAM, and each process that has mapped
//! them has a [`SharedEvent`]:
//!
//! ```text
//!     process A                                                        process B
//!     SharedEvent ──────────▶  ┌────────── 64 bytes ──────────┐  ◀────────── SharedEvent
//!       mode, spin             │ magic  count                 │               mode, spin
//!       wakers ──┐             │ readers  writers  mode       │         ┌──── wakers
//!                │             └──────────────────────────────┘         │
//!                └───────── a byte, if B is armed ─────────▶ epoll of B │
//!            epoll of A ◀────────── a byte, if A is armed ──────────────┘
//! ```
//!
//! It is the counter of [`Event`](crate::Event), by the same code, with two differences: its futexes are not private to
//! the process, and it tolerates peers that are killed or hostile (see `src/sync/scope.rs`).
//!
//! System calls: `futex` (`FUTEX_WAIT`, `FUTEX_WAKE`, not private) to sleep and to wake sleepers, `sendto` to wake an
//! armed peer; to create `memfd_create`, `ftruncate`, `fcntl`, `fstat`, `fstatfs`, `mmap`; to attach the last four; to
//! add a waker `getsockopt` and `getpeername`; at the end `munmap`.
//!
//! # The layout, for peers in other languages
//!
//! 64 bytes, aligned to 64, in the byte order of the machine. All fields are accessed as whole words, atomically.
//! This is version 1; a later version may give the reserved bytes a meaning.
//!
//! | offset | bytes | field | |
//! |---|---|---|---|
//! | 0 | 4 | `magic` | `0x6c656244`, "Dbel" on a little-endian machine. Written last by the process that makes the event |
//! | 4 | 2 | `version` | 1 |
//! | 6 | 2 | `size` | 64 |
//! | 8 | 8 | `count` | the counter, `u64::MAX` is the overflow state |
//! | 16 | 4 | `readers.state` | the threads that wait for `count > 0` |
//! | 20 | 4 | `readers.generation` | the word that they sleep on, a futex without the private flag |
//! | 24 | 4 | `writers.state` | the threads that wait for room |
//! | 28 | 4 | `writers.generation` | the word that they sleep on |
//! | 32 | 4 | `mode` | 0: a read takes the whole count, 1: one unit |
//! | 36 | 28 | reserved | 0 |
//!
//! A state is made of bit 0 `ANNOUNCED`, bit 1 `ARMED`, bits 2 and 3 unused here, bits 4 to 25 the number of
//! sleeping threads, bits 26 to 31 the number of those `CLAIMED` that have not left yet (0 in `readers.state` if the
//! mode is 0).
//! All that follows is sequentially consistent (`__atomic_…(…, __ATOMIC_SEQ_CST)` in C, the default).
//!
//! **To signal** `n`: compare-exchange `count` to `count + n`, or `u64::MAX` if that is less; back off for a moment
//! after a lost race. (To write: only if `count + n < u64::MAX`.) Then *notify the readers*, 1 of them, or `n` if the
//! mode is 1.
//!
//! **To read**: exchange `count` for 0, or compare-exchange it to `count - 1` if the mode is 1. If there was
//! something, *notify the writers*, all of them.
//!
//! **To notify** some: load their `state`. If `ANNOUNCED` is set, clear it by compare-exchange; the one that succeeds
//! adds 1 to their `generation` and calls `FUTEX_WAKE` on it for as many. If the mode is 1 and they are readers: if
//! `CLAIMED` and the number to notify are together less than the number of threads, and less than 63, set `CLAIMED` to
//! that sum instead and leave `ANNOUNCED`; else clear `ANNOUNCED`, set `CLAIMED` to the number of threads, at most 63,
//! and wake all. If `ARMED` is set and this process knows wakers, clear it in the same step, and send each a byte
//! without blocking.
//!
//! **To sleep** until one can read (or write):
//!
//! 1. add 16 to `state`, load `generation`;
//! 2. set `ANNOUNCED`, by an `or` even if it is set;
//! 3. try the read (write) again; if it succeeds, go to 5;
//! 4. `FUTEX_WAIT` on `generation` for the value loaded, for 250 ms at most. Load `generation`, try again, and go
//!    back to 2 if that fails and the caller has time left;
//! 5. subtract 16 from `state` and, in the same compare-exchange, 1 from `CLAIMED` if that is not 0, and set
//!    `ANNOUNCED` if the number is not 0 then, else clear it and `CLAIMED`. If it is not 0 and the event can be read
//!    now, notify the readers as if the whole count had been signalled. (Writers need not: a read that makes room wakes
//!    all.)
//!
//! **To sleep in `epoll`**: set `ARMED` in `readers.state` (`writers.state` to wait for room) by an `or` even if it
//! is set, look at `count`, and sleep if that is not what one waits for. A byte in the socket is the wake-up.
//!
//! Why this loses no wake-up is argued in `src/sync/waiters.rs`, and `tests/shared/peer.c` is a peer in C. A process
//! may be killed between any two of these steps. What it leaves behind: a `state` whose number is too high or in which
//! `ANNOUNCED` or `ARMED` stands for no waiter costs wake-ups that wake no thread; an announcement that it claimed
//! without waking a thread delays a sleeper until the end of its 250 ms, and one in `epoll` until the socket reports
//! that it was closed. The count is changed in one step or not at all.

mod error;
mod layout;
mod mapping;
mod waker;

pub use error::{AttachError, WakerError};

use crate::event::counter::Owner;
use crate::event::{Change, Interest, Mode, Readiness, Spin, WriteError};
use crate::sync::limit::Limit;
use crate::sync::spin::Spinner;
use crate::sync::waiters::ARMED;
#[cfg(loom)]
use layout::SharedLayout;
use layout::Unfit;
use mapping::Mapping;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{fmt, io};
use waker::Waker;

/// An event that several processes use, each through a `SharedEvent` of its own.
///
/// It does what an [`Event`](crate::Event) does, call by call, and costs the same; see there for what each call
/// means. It has no [observers](crate::event::Observation); a peer that sleeps in `epoll` or `poll` is woken through
/// a socket, see [`arm`](Self::arm).
///
/// # A peer is trusted with the event, and with nothing else
///
/// A process that can write to the memory can set the count to anything, and can leave sleepers asleep. Whatever it
/// does, the calls here do not panic and do not touch other memory. Calls that do not wait return, and so do calls
/// whose time limit has passed. For this, a call that has lost a thousand races for the count in a row, as only a peer
/// that changes the count without pause can cause it, finds nothing to read or no room; and a signal then adds without
/// a check for the limit. The mode is the one that was found on attaching. A peer that has the file open can punch a
/// hole into it (`FALLOC_FL_PUNCH_HOLE`): the event is then empty, and each access is a page fault, which waits while
/// the peer punches. In a file that [`create`](Self::create) has made this affects one page, so the side that trusts
/// less should create the file.
///
/// # A peer may be killed
///
/// A peer may be killed at any instruction. Its last operation is then in the count or not, and the event remains
/// usable. A sleeper checks the count 4 times a second, which bounds the delay if a peer is killed just before it wakes
/// the sleeper. A peer that is killed asleep still counts as a sleeper, which costs wake-ups that wake no thread.
///
/// # Examples
///
/// Two handles; the other would be in another process, which got the descriptor over a Unix socket.
///
/// ```
/// use doorbell::{Mode, SharedEvent};
///
/// let (mine, memfd) = SharedEvent::create(0, Mode::Counter)?;
/// let yours = SharedEvent::attach(&memfd, 0)?;
/// drop(memfd); // once it is mapped on both sides, it is not needed any more
///
/// mine.signal();
/// mine.signal();
/// assert_eq!(yours.read(), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// A child that runs another program gets the descriptor as its standard input. (All other descriptors are closed on
/// exec. Do not use standard output: what the child prints would overwrite the event.)
///
/// ```no_run
/// use doorbell::{Mode, SharedEvent};
/// use std::process::Command;
///
/// // In the parent:
/// let (kick, memfd) = SharedEvent::create(0, Mode::Counter)?;
/// let mut child = Command::new("/usr/libexec/device").stdin(memfd).spawn()?;
/// kick.signal();
///
/// // In the program that the child runs:
/// let kick = SharedEvent::attach(std::io::stdin(), 0)?;
/// assert_eq!(kick.read(), 1);
/// # child.wait()?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// For several events, the child's standard input is one end of a pair of Unix sockets, and the parent sends the
/// descriptors through the other end, here by rustix with its feature `net`. (They could also be inherited, by
/// `fcntl(F_SETFD)` without `FD_CLOEXEC`. Then each program that another thread starts in the meantime has them as
/// well.)
///
/// ```
/// use doorbell::{Mode, SharedEvent};
/// use rustix::net::{
///     RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
///     recvmsg, sendmsg,
/// };
/// use std::io::{IoSlice, IoSliceMut};
/// use std::mem::MaybeUninit;
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
///
/// // In the parent, which starts the child with `.stdin(OwnedFd::from(childs))`:
/// let (ours, childs) = UnixStream::pair()?;
/// let (kick, kick_fd) = SharedEvent::create(0, Mode::Counter)?;
/// let (call, call_fd) = SharedEvent::create(0, Mode::Counter)?;
/// let fds = [kick_fd.as_fd(), call_fd.as_fd()];
/// let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
/// let mut message = SendAncillaryBuffer::new(&mut space);
/// assert!(message.push(SendAncillaryMessage::ScmRights(&fds)));
/// sendmsg(&ours, &[IoSlice::new(&[0])], &mut message, SendFlags::empty())?;
/// kick.signal();
///
/// // In the child, which has `std::io::stdin()` in place of `childs`:
/// let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
/// let mut message = RecvAncillaryBuffer::new(&mut space);
/// recvmsg(&childs, &mut [IoSliceMut::new(&mut [0])], &mut message, RecvFlags::CMSG_CLOEXEC)?;
/// let mut events = Vec::new();
/// for part in message.drain() {
///     if let RecvAncillaryMessage::ScmRights(fds) = part {
///         events.extend(fds.map(|fd| SharedEvent::attach(fd, 0)).collect::<Result<Vec<_>, _>>()?);
///     }
/// }
/// assert_eq!(events[0].read(), 1);
/// events[1].signal();
/// # assert_eq!(call.read(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SharedEvent {
    mapping: Mapping,
    mode: Mode,
    spin: Spinner,
    wakers: Vec<Waker>,
}

impl SharedEvent {
    /// Makes an event with `initial` in it, in a memfd of its own.
    ///
    /// Pass the descriptor to the peers, which [`attach`](Self::attach) it at offset 0. After that it may be closed. It
    /// is closed on exec. The file is sealed: its size cannot change. Each event that is made so has a file of its own;
    /// several in one file are made by [`create_at`](Self::create_at).
    ///
    /// # Errors
    ///
    /// What the system says to `memfd_create(2)`, `ftruncate(2)`, `fcntl(2)` or `mmap(2)`.
    pub fn create(initial: u64, mode: Mode) -> io::Result<(Self, OwnedFd)> {
        let fd = mapping::create_file()?;
        let event = Self::at(Mapping::map(fd.as_fd(), 0)?, mode);
        event.mapping.init(initial, mode);
        Ok((event, fd))
    }

    /// Maps the event that a peer has made at `offset` in this file, which must be sealed against shrinking
    /// (`F_SEAL_SHRINK`), as memfds that [`create`](Self::create) makes are, and not of huge pages. The descriptor is
    /// not needed afterwards.
    ///
    /// # Errors
    ///
    /// [`AttachError`], if there is none, or it is of a kind unknown to this version.
    pub fn attach(fd: impl AsFd, offset: u64) -> Result<Self, AttachError> {
        let fd = fd.as_fd();
        mapping::check_safe(fd)?;
        Self::adopt(Mapping::map(fd, offset)?)
    }

    /// As [`attach`](Self::attach), for files that cannot be sealed, such as POSIX shared memory and files of a guest's
    /// RAM, and for files of huge pages.
    ///
    /// # Safety
    ///
    /// No process shortens the file while the event is in use. In a file of huge pages (`hugetlbfs`), no process makes
    /// a hole where the event is either.
    ///
    /// # Errors
    ///
    /// As for `attach`, without [`NotSealed`](AttachError::NotSealed) and [`HugePages`](AttachError::HugePages).
    pub unsafe fn attach_unsealed(fd: impl AsFd, offset: u64) -> Result<Self, AttachError> {
        Self::adopt(Mapping::map(fd.as_fd(), offset)?)
    }

    /// Makes an event with `initial` in it of 64 bytes that this process has mapped, for instance in a guest's RAM or
    /// in a memfd that holds several.
    ///
    /// Peers may attach when this has returned. If there is an event in use already, its users see a wrong count, and
    /// no worse.
    ///
    /// # Safety
    ///
    /// The 64 bytes may be read and written as long as the `SharedEvent` exists, and as long as that is so this
    /// process accesses them through `SharedEvent`s only, or atomically.
    ///
    /// # Errors
    ///
    /// [`AttachError::Misaligned`] if the address is not a multiple of 64.
    ///
    /// ```
    /// use doorbell::{Mode, SharedEvent};
    /// use std::cell::UnsafeCell;
    ///
    /// #[repr(align(64))]
    /// struct Ram(UnsafeCell<[u8; 4096]>);
    ///
    /// let ram = Ram(UnsafeCell::new([0xff; 4096]));
    /// let here = ram.0.get().cast::<u8>().wrapping_add(128);
    /// // SAFETY: `ram` outlives both, and no other code accesses it.
    /// let (host, guest) = unsafe {
    ///     (SharedEvent::create_at(here, 0, Mode::Semaphore)?, SharedEvent::attach_at(here)?)
    /// };
    /// guest.signal_n(2);
    /// assert_eq!((host.try_read(), host.try_read(), host.try_read()), (Some(1), Some(1), None));
    /// # Ok::<(), doorbell::AttachError>(())
    /// ```
    pub unsafe fn create_at(ptr: *mut u8, initial: u64, mode: Mode) -> Result<Self, AttachError> {
        let event = Self::at(Mapping::given(ptr)?, mode);
        event.mapping.init(initial, mode);
        Ok(event)
    }

    /// Uses the event that a process has made in 64 bytes that this process has mapped.
    ///
    /// # Safety
    ///
    /// As for [`create_at`](Self::create_at).
    ///
    /// # Errors
    ///
    /// [`AttachError`], if there is none, or it is of a kind unknown to this version.
    pub unsafe fn attach_at(ptr: *mut u8) -> Result<Self, AttachError> {
        Self::adopt(Mapping::given(ptr)?)
    }
}

impl SharedEvent {
    fn adopt(mapping: Mapping) -> Result<Self, AttachError> {
        let mut event = Self::at(mapping, Mode::Counter);
        event.mode = event.mapping.check().map_err(|unfit| match unfit {
            Unfit::Magic => AttachError::NotAnEvent,
            Unfit::Version(version) => AttachError::UnknownVersion(version),
            Unfit::Size(size) => AttachError::WrongSize(size),
            Unfit::Mode(mode) => AttachError::UnknownMode(mode),
        })?;
        Ok(event)
    }

    fn at(mapping: Mapping, mode: Mode) -> Self {
        SharedEvent {
            mapping,
            mode,
            spin: Spinner::new(Spin::DEFAULT),
            wakers: Vec::new(),
        }
    }

    /// An event as two processes see it, for a model of loom's.
    #[cfg(loom)]
    pub fn modelled(initial: u64, mode: Mode) -> [Self; 2] {
        Mapping::modelled(SharedLayout::new(initial)).map(|mapping| Self::at(mapping, mode))
    }

    /// Does what a process does that is killed just before it wakes readers.
    #[cfg(loom)]
    pub fn signal_and_die(&self) {
        self.mapping.counter.add_saturating(1);
        self.mapping.counter.readers().claim_for_nothing();
    }

    /// Does what a process does that is killed asleep in a read.
    #[cfg(loom)]
    pub fn sleep_and_die(&self) {
        self.mapping.counter.readers().wait_for_ever();
    }

    /// The same event with another [`Spin`] policy for the blocking calls of this process.
    #[must_use = "the event is moved into the result"]
    pub fn with_spin(mut self, spin: Spin) -> Self {
        self.spin = Spinner::new(spin);
        self
    }

    /// Adds 1. See [`Event::signal`](crate::Event::signal).
    #[doc(alias = "notify")]
    #[doc(alias = "post")]
    #[doc(alias = "release")]
    #[doc(alias = "kick")]
    #[inline]
    pub fn signal(&self) {
        self.signal_n(1);
    }

    /// Adds `n`, stopping at `u64::MAX`, and wakes readers. Never blocks, never fails. See
    /// [`Event::signal_n`](crate::Event::signal_n).
    #[inline]
    pub fn signal_n(&self, n: u64) {
        self.mapping.counter.signal(n, self);
    }

    /// Adds `n`, blocking while the count cannot take all of it. See [`Event::write`](crate::Event::write).
    ///
    /// # Errors
    ///
    /// [`WriteError::Invalid`] if `n` is `u64::MAX`.
    pub fn write(&self, n: u64) -> Result<(), WriteError> {
        self.mapping.counter.write_until(n, Limit::Forever, self)
    }

    /// Adds `n` if the count can take all of it now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`WriteError::WouldBlock`] if it cannot, and [`WriteError::Invalid`] if `n` is `u64::MAX`.
    #[inline]
    pub fn try_write(&self, n: u64) -> Result<(), WriteError> {
        self.mapping.counter.try_write(n, self)
    }

    /// Adds `n`, blocking up to `timeout` until the count can take all of it.
    ///
    /// # Errors
    ///
    /// [`WriteError::TimedOut`] if there was no room in time, and [`WriteError::Invalid`] if `n` is `u64::MAX`.
    pub fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), WriteError> {
        self.mapping
            .counter
            .write_until(n, Limit::For(timeout), self)
    }

    /// As [`write_timeout`](Self::write_timeout), up to a point in time. One in the past tries once.
    ///
    /// # Errors
    ///
    /// As for `write_timeout`.
    pub fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), WriteError> {
        self.mapping
            .counter
            .write_until(n, Limit::Until(deadline), self)
    }

    /// Takes the count, or one unit of a semaphore, blocking while the count is 0. Never returns 0.
    ///
    /// A peer that is gone signals no more: with peers that may die, prefer the forms with a time limit.
    #[doc(alias = "wait")]
    #[doc(alias = "acquire")]
    pub fn read(&self) -> u64 {
        match self.mapping.counter.read_until(Limit::Forever, self) {
            Some(value) => value,
            None => unreachable!("a read without a deadline timed out"),
        }
    }

    /// Takes the count, or one unit of a semaphore. Never blocks: `None` if the count is 0.
    #[doc(alias = "try_wait")]
    #[doc(alias = "try_acquire")]
    #[inline]
    pub fn try_read(&self) -> Option<u64> {
        self.mapping.counter.try_read(self)
    }

    /// Takes the count, or one unit of a semaphore, blocking up to `timeout` while the count is 0. `None` is a timeout.
    #[must_use = "`None` is a timeout"]
    pub fn read_timeout(&self, timeout: Duration) -> Option<u64> {
        self.mapping.counter.read_until(Limit::For(timeout), self)
    }

    /// As [`read_timeout`](Self::read_timeout), up to a point in time. One in the past tries once.
    #[must_use = "`None` is a timeout"]
    pub fn read_deadline(&self, deadline: Instant) -> Option<u64> {
        self.mapping
            .counter
            .read_until(Limit::Until(deadline), self)
    }

    /// Takes the whole count, of a semaphore too. See [`Event::try_read_all`](crate::Event::try_read_all).
    #[doc(alias = "drain")]
    #[inline]
    pub fn try_read_all(&self) -> Option<u64> {
        self.mapping.counter.try_read_all(self)
    }

    /// Blocks while the count is 0, and takes nothing. See [`Event::wait_readable`](crate::Event::wait_readable).
    ///
    /// The first thread that a signal wakes wakes the next, and so on: of a private event it wakes all at once.
    #[doc(alias = "notify_all")]
    #[doc(alias = "broadcast")]
    #[doc(alias = "poll")]
    pub fn wait_readable(&self) {
        let readable = self.mapping.counter.wait_readable(Limit::Forever, self);
        debug_assert!(readable, "a wait without a deadline timed out");
    }

    /// As [`wait_readable`](Self::wait_readable), for up to `timeout`. Returns whether the event can be read.
    #[must_use = "false is a timeout"]
    pub fn wait_readable_timeout(&self, timeout: Duration) -> bool {
        let limit = Limit::For(timeout);
        self.mapping.counter.wait_readable(limit, self)
    }

    /// As [`wait_readable_timeout`](Self::wait_readable_timeout), up to a point in time. With one in the past, the call
    /// does not sleep.
    #[must_use = "false is a timeout"]
    pub fn wait_readable_deadline(&self, deadline: Instant) -> bool {
        let limit = Limit::Until(deadline);
        self.mapping.counter.wait_readable(limit, self)
    }

    /// The count now. Another thread or process may change it before the caller looks at the result.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.mapping.counter.load()
    }

    /// What `poll(2)` would report of an eventfd now. See [`Event::readiness`](crate::Event::readiness).
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness::of(self.count())
    }

    /// Whether reads take all or one.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How blocking calls of this process wait.
    #[must_use]
    pub fn spin(&self) -> Spin {
        self.spin.policy()
    }

    /// Gives this process the means to wake a peer that sleeps in `epoll`: one end of a pair of connected sockets, of
    /// which the sleeper watches the other.
    ///
    /// A process that signals needs a socket for each process or thread that may [arm](Self::arm). So the sleeper makes
    /// a pair for each peer, and passes one end to it, over a Unix socket; and a pair for itself if its own process
    /// signals too. With a pair for each peer, the death of a peer shows as the end of the connection.
    ///
    /// The socket is sent one byte each time that a change by this process finds the event armed, and one byte now,
    /// since there may have been a change before. That never blocks, whatever the peer has done to the socket. (An
    /// eventfd would not do: the peer could fill it, and make it block.) A socket that is full, or whose other end is
    /// closed, gets nothing.
    ///
    /// # Errors
    ///
    /// [`WakerError`], if it is not one end of a connection between Unix sockets. It is closed then.
    pub fn add_waker(&mut self, socket: impl Into<OwnedFd>) -> Result<(), WakerError> {
        let waker = Waker::new(socket.into())?;
        waker.ring();
        self.wakers.push(waker);
        Ok(())
    }

    /// Asks for one byte in the [socket](Self::add_waker) after the next change of `interest`, and says what the
    /// event is ready for.
    ///
    /// If the event is not ready, the caller may sleep: a change that came before is in the answer, and a later one
    /// sends the byte. (A [`try_read`](Self::try_read) or [`try_write`](Self::try_write) that fails afterwards says the
    /// same. [`count`](Self::count) loads without ordering, and does not.) Before `arm`, and after the byte, signals
    /// cost what they cost if no peer is armed. A byte may come without a reason. A peer may be killed just before it
    /// sends the byte; then its end of the socket is closed, which `epoll` reports.
    ///
    /// ```
    /// use doorbell::event::Interest;
    /// use doorbell::{Mode, SharedEvent};
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mine, memfd) = SharedEvent::create(0, Mode::Counter)?;
    /// let (mut watched, waker) = UnixStream::pair()?;
    /// watched.set_nonblocking(true)?; // and into an epoll
    ///
    /// // In the peer, which was passed both:
    /// let mut yours = SharedEvent::attach(&memfd, 0)?;
    /// yours.add_waker(waker)?;
    /// assert_eq!(watched.read(&mut [0; 64])?, 1); // the first one
    ///
    /// assert!(!mine.arm(Interest::Signals).is_readable()); // so sleep, until the socket is
    /// yours.signal();
    /// yours.signal();
    /// assert_eq!(watched.read(&mut [0; 64])?, 1);
    /// assert_eq!(mine.try_read(), Some(2));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn arm(&self, interest: Interest) -> Readiness {
        let counter = &self.mapping.counter;
        counter.arm(interest);
        Readiness::of(counter.load_ordered())
    }
}

impl Owner for SharedEvent {
    #[inline(always)]
    fn mode(&self) -> Mode {
        self.mode
    }

    fn spinner(&self) -> &Spinner {
        &self.spin
    }

    /// A process without wakers leaves `ARMED` set, for a process that has some.
    #[inline(always)]
    fn kinds(&self) -> u32 {
        if self.wakers.is_empty() { 0 } else { ARMED }
    }

    fn is_owned(&self) -> bool {
        false
    }

    fn call(&self, _: Change, _: u32) {
        self.wakers.iter().for_each(Waker::ring);
    }
}

impl fmt::Debug for SharedEvent {
    /// A snapshot, with fields for diagnosing an event that seems stuck.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("SharedEvent");
        self.mapping.counter.describe(self, &mut fields);
        fields.field("wakers", &self.wakers.len()).finish()
    }
}
