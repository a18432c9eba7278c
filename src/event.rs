//! The event, and what signals it, observes it and waits for it.
//!
//! | type | is for |
//! |---|---|
//! | [`Event`] | a 64-bit counter that threads and tasks wait for: the kernel's `eventfd(2)` without a descriptor |
//! | [`EventHandle`] | keeping an event alive: whatever keeps an event takes anything that becomes a handle |
//! | [`Signaller`] | one thread's way to signal an event without a locked instruction, after [`use_membarrier`](crate::use_membarrier) |
//! | [`Batch`] | signals and writes to many events, delivered together: one wake-up for each thread |
//! | [`Observation`], [`Observer`] | code that is called when an event changes, on the thread that changes it |
//! | [`ReadFuture`], [`WriteFuture`], [`WaitReadableFuture`], [`Readings`] | waiting in async code |
//! | [`EventState`] | an event as plain data |
//!
//! ```text
//!     count     0 ..= u64::MAX − 1 by write();  u64::MAX by signal() alone: the overflow state
//!     readers   wait for count > 0              woken by write() and signal()
//!     writers   wait for count + n < u64::MAX   woken by read()
//! ```

// The kernel's counterpart is `struct eventfd_ctx` of `fs/eventfd.c`, a counter and a wait queue under one spinlock,
// reached by system calls. Here the counter is an atomic, and there is a `Waiters` for each of the two conditions that
// threads wait for, see `src/event/counter.rs`:
//
//
// Besides threads, an event has a list of `Observer`s, which are called when the event changes, see
// `src/event/observer.rs`, and lists of waiting tasks, see `src/event/wakers.rs`. A reader that sleeps at other events
// too is marked as a visitor, see `src/event/visitor.rs`.
//
// A call is a compare-exchange of the count, and then one load of the other side's `Waiters`. That is all while nobody
// sleeps or observes. `src/sync/waiters.rs` argues which load pairs with which store; the accesses of `count` are its
// `DEKKER` accesses. The count itself hands the data over: each operation on it is a read-modify-write that acquires
// and releases. So a read synchronises with every write that it consumed, and a writer that had to wait synchronises
// with the read that made room.
//
// A count with signallers is no longer one word, see `src/event/split.rs`. Everything else is the same.
//
// The limits are exact, so the count changes by compare-exchange and never by adding first and correcting afterwards.
// After a lost race, the loser backs off for a moment, which lets the winner keep the cache line. Under contention,
// that is faster than `fetch_add`.

// What only descriptors need is not used where there are none.
#![cfg_attr(
    any(doorbell_no_eventfd, not(target_os = "linux")),
    allow(dead_code, unused_imports)
)]

mod batch;
mod change;
pub(crate) mod counter;
mod error;
mod future;
mod handle;
mod handover;
mod observer;
mod readiness;
mod signaller;
mod signallers;
mod split;
mod state;
#[cfg(all(target_os = "linux", not(loom)))]
pub(crate) mod transfer;
/// Open to `loom-tests`, which model it with an eventfd of their own.
#[cfg(all(target_os = "linux", loom))]
pub mod transfer;
mod visitor;
mod wakers;

pub use crate::sync::spin::Spin;
pub use batch::{Batch, Removed};
pub use change::{Change, Interest};
pub use error::{Unwritten, WriteError};
pub use future::{ReadFuture, Readings, WaitReadableFuture, WriteFuture};
pub use handle::{EventHandle, WeakEventHandle};
pub(crate) use handover::Handover;
pub use observer::{Observation, Observer};
pub use readiness::Readiness;
pub use signaller::Signaller;
pub use state::EventState;

pub(crate) use counter::Owner;
pub(crate) use signallers::Signallers;
pub(crate) use wakers::WaitTicket;

use counter::Counter;
use observer::Observers;
use visitor::Visitor;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::limit::Limit;
use crate::sync::spin::Spinner;
use crate::sync::waiters::{ARMED, OBSERVED, Release, TASKS, Waiters};
use crossbeam_utils::CachePadded;
use std::fmt;
#[cfg(not(loom))]
use std::mem::offset_of;
use std::time::{Duration, Instant};

/// What a read takes. Fixed when the event is made, as `EFD_SEMAPHORE` is for an eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Mode {
    /// The whole count, leaving 0.
    Counter,
    /// One unit, leaving the rest.
    Semaphore,
}

/// An eventfd in userspace: a 64-bit counter, signalled by some threads and waited for by others.
///
/// It behaves as `eventfd(2)` does, without a file descriptor and without a system call while nobody sleeps. It owns no
/// memory but its own until it is [observed](Observation), so it may be a `static`, a field, or shared in an `Arc`.
///
/// * [`signal`](Self::signal) adds 1. It never blocks and never fails, so it suits vCPU threads and callbacks.
/// * [`write`](Self::write) adds any number but `u64::MAX`, and blocks while the sum would reach `u64::MAX`.
/// * [`read`](Self::read) takes the count (or one unit of a [semaphore](Self::semaphore)), and blocks while it is 0.
///
/// Each has a form that does not block and forms with a time limit; [`read_async`](Self::read_async) and
/// [`write_async`](Self::write_async) are for async code. All operations on one event are linearizable. What
/// a thread did before a signal or write is visible to the thread whose read consumed it.
///
/// # Waking
///
/// A signal wakes one reader, which takes the whole count. It makes no system call if no reader sleeps, or if a reader
/// was woken that has not run yet: a burst of signals is one `FUTEX_WAKE`. If the event is a semaphore, each unit wakes
/// a reader of its own at once, whether or not the readers woken before have run. A burst makes no more calls of
/// `FUTEX_WAKE` than there are readers. (The kernel wakes every blocked caller on every operation; most find nothing.)
///
/// A read wakes all blocked writers, and each adds its number if that fits. So a small write may overtake a large one,
/// which may starve, as in the kernel. There is no queue: a thread that calls at the right moment may overtake a woken
/// one.
///
/// # Waking all
///
/// To wake every thread and task that waits, signal an event that nobody reads: each waits with
/// [`wait_readable`](Self::wait_readable) or its [async form](Self::wait_readable_async), or with
/// [`wait_any`](crate::poll::wait_any()) beside the events that it works on, or has the event in its
/// [poller](crate::poll::Poller). The event stays readable, so a thread that begins to wait later returns at once. That
/// makes it a stop flag, or the gate at which threads wait for a start:
///
/// ```
/// use doorbell::Event;
/// use doorbell::poll::wait_any;
/// use std::thread;
///
/// static STOP: Event = Event::new(0);
/// static KICK: Event = Event::new(0);
///
/// let device = thread::spawn(|| {
///     loop {
///         match wait_any(&[&STOP, &KICK], None).expect("no timeout").next() {
///             Some(0) => break,
///             _ => _ = KICK.try_read(), // and serve the queue
///         }
///     }
/// });
/// let monitors = [(); 3].map(|()| thread::spawn(|| STOP.wait_readable()));
///
/// STOP.signal(); // ends all of them
/// device.join().unwrap();
/// for monitor in monitors {
///     monitor.join().unwrap();
/// }
///
/// // To start again: when all have stopped, the flag is taken back, and new threads are started.
/// STOP.read();
/// assert!(!STOP.readiness().is_readable());
/// ```
///
/// The event must not be read before the last of the threads has stopped: a thread that looks later would miss it.
///
/// # Signal handlers
///
/// In a handler of a POSIX signal, [`signal`](Self::signal), [`signal_n`](Self::signal_n),
/// [`try_write`](Self::try_write), [`try_read`](Self::try_read), [`try_read_all`](Self::try_read_all),
/// [`count`](Self::count) and [`readiness`](Self::readiness) are safe (async-signal-safe), as are their likes of a
/// [`SharedEvent`](crate::SharedEvent), on an event that threads alone wait for, with [`read`](Self::read),
/// [`write`](Self::write) and their timed forms: whatever the handler has interrupted, the same call on the same event
/// included. They touch the event's memory only, and make no system call but `futex`, to wake a sleeper. (The exception
/// is a signal that takes the count to `u64::MAX`, in a handler that has interrupted the making of the event's first
/// [signaller](Signaller): it would wait for that for ever.)
///
/// They are not safe on an event that is *observed*: by an [`Observation`], a poller, an irqfd, a mirror or a forward,
/// or by tasks, once it has been waited for with [`read_async`](Self::read_async) or its like, or with
/// [`wait_any`](crate::poll::wait_any()). Such a signal calls the observers, and what the handler has interrupted may
/// be a call of theirs, or the memory allocator. No other call of the crate is safe there, a [`Batch`] included. A
/// handler signals an event of its own instead, and a thread that reads it passes the signals on:
///
/// ```
/// # #[cfg(unix)] {
/// use doorbell::Event;
/// use std::{sync::Arc, thread};
///
/// static FROM_HANDLER: Event = Event::new(0);
///
/// extern "C" fn handler(_: libc::c_int) {
///     FROM_HANDLER.signal();
/// }
///
/// let device = Arc::new(Event::new(0)); // observed by a poller, say
/// let relay = thread::spawn({
///     let device = Arc::clone(&device);
///     move || device.signal_n(FROM_HANDLER.read())
/// });
/// # let handler: extern "C" fn(libc::c_int) = handler;
/// unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
/// unsafe { libc::raise(libc::SIGUSR1) };
/// relay.join().unwrap();
/// assert_eq!(device.read(), 1);
/// # }
/// ```
///
/// # Examples
///
/// ```
/// use doorbell::Event;
/// use std::thread;
///
/// static KICK: Event = Event::new(0);
///
/// let device = thread::spawn(|| KICK.read()); // sleeps until there is something to read
/// KICK.signal();
/// assert_eq!(device.join().unwrap(), 1);
///
/// KICK.signal();
/// KICK.signal_n(2);
/// assert_eq!(KICK.try_read(), Some(3)); // signals add up
/// assert_eq!(KICK.try_read(), None);
/// ```
#[doc(alias = "eventfd")]
#[doc(alias = "condvar")]
#[doc(alias = "semaphore")]
#[doc(alias = "notify")]
#[repr(C)]
pub struct Event {
    /// Aligns the event to cache lines of its own: a neighbour's writes must not slow down a signal.
    _line: [CachePadded<()>; 0],
    observers: Observers,
    spin: Spinner,
    /// The thread that waits here and at other events.
    visitor: Visitor,
    mode: Mode,
    /// An irqfd takes what arrives. There is at most one.
    owned: AtomicBool,
    /// Last, because it ends with fields that only an event with signallers uses.
    counter: Counter,
}

/// The event has whole cache lines. What an event without signallers uses is in the first one, at the usual size.
#[cfg(not(loom))]
const _: () = {
    const LINE: usize = 64;
    assert!(align_of::<Event>() % LINE == 0 && size_of::<Event>() % LINE == 0);
    assert!(offset_of!(Event, counter) + Counter::SIZE_WHOLE <= LINE);
};

impl Event {
    maybe_const! {
        /// An event that a read empties, with `initial` in it.
        ///
        /// An eventfd takes 32 bits here; this takes any value. `u64::MAX` is the overflow state.
        #[must_use]
        pub fn new(initial: u64) -> Self {
            Self::with_mode(initial, Mode::Counter)
        }
    }

    maybe_const! {
        /// An event that a read takes one unit from (`EFD_SEMAPHORE`), with `initial` in it.
        ///
        /// ```
        /// # use doorbell::Event;
        /// let slots = Event::semaphore(2);
        /// assert_eq!(slots.try_read(), Some(1));
        /// assert_eq!(slots.try_read(), Some(1));
        /// assert_eq!(slots.try_read(), None);
        /// ```
        #[doc(alias = "EFD_SEMAPHORE")]
        #[doc(alias = "permits")]
        #[must_use]
        pub fn semaphore(initial: u64) -> Self {
            Self::with_mode(initial, Mode::Semaphore)
        }
    }

    maybe_const! {
        /// An event in the mode given, with `initial` in it.
        #[must_use]
        pub fn with_mode(initial: u64, mode: Mode) -> Self {
            Event {
                _line: [],
                observers: Observers::new(),
                spin: Spinner::new(Spin::DEFAULT),
                visitor: Visitor::new(),
                mode,
                owned: AtomicBool::new(false),
                counter: Counter::new(initial),
            }
        }
    }

    maybe_const! {
        /// The same event with another [`Spin`] policy for its blocking calls.
        #[must_use = "the event is moved into the result"]
        pub fn with_spin(mut self, spin: Spin) -> Self {
            self.spin = Spinner::new(spin);
            self
        }
    }

    /// Adds 1. Shorthand for [`signal_n(1)`](Self::signal_n).
    #[doc(alias = "notify")]
    #[doc(alias = "notify_one")]
    #[doc(alias = "post")]
    #[doc(alias = "release")]
    #[doc(alias = "kick")]
    #[doc(alias = "ring")]
    #[doc(alias = "set")]
    #[doc(alias = "eventfd_signal")]
    #[inline]
    pub fn signal(&self) {
        self.signal_n(1);
    }

    /// Adds `n`, stopping at `u64::MAX`, and wakes readers. Never blocks, never fails.
    ///
    /// [Observers](crate::event::Observer) are called before it returns, and what they detach may be dropped, so it
    /// takes as long as they do. It takes no lock that is held while foreign code runs. It waits for no other thread,
    /// with two exceptions. If tasks wait for the event (or threads in [`wait_any`](crate::poll::wait_any()) for more
    /// than 128 events), it takes the lock of their list, which others hold for a few instructions at a time. And if it
    /// takes the count to `u64::MAX` while another thread makes the first [signaller](Signaller) of the event, it waits
    /// until that is done.
    ///
    /// This is the kernel's own `eventfd_signal()`, which KVM and vhost use. Unlike a `write(2)`, it can take the count
    /// to `u64::MAX`, the overflow state. In that state, a write of any number blocks, and
    /// [`readiness`](Self::readiness) reports an error until the event is read. Further signals are absorbed.
    ///
    /// ```
    /// # use doorbell::Event;
    /// let event = Event::new(u64::MAX - 1);
    /// event.signal_n(5);
    /// assert!(event.readiness().is_error());
    /// assert_eq!(event.read(), u64::MAX);
    /// ```
    #[doc(alias = "post_n")]
    #[doc(alias = "release_n")]
    #[doc(alias = "eventfd_signal")]
    #[inline]
    pub fn signal_n(&self, n: u64) {
        self.counter.signal(n, self);
    }

    /// Adds `n`. Blocks while there is no room for all of it, that is, while `count + n` would exceed `u64::MAX - 1`.
    ///
    /// A write of 0 adds nothing and releases no reader; it blocks only in the overflow state.
    ///
    /// # Errors
    ///
    /// [`WriteError::Invalid`] if `n` is `u64::MAX`, at once, whatever the count.
    #[doc(alias = "eventfd_write")]
    #[inline]
    pub fn write(&self, n: u64) -> Result<(), WriteError> {
        self.counter.write_until(n, Limit::Forever, self)
    }

    /// Adds `n` if the count can take all of it now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`WriteError::WouldBlock`] if it cannot, and [`WriteError::Invalid`] if `n` is `u64::MAX`. The count is as it
    /// was.
    ///
    /// ```
    /// # use doorbell::{Event, WriteError};
    /// let event = Event::new(u64::MAX - 3);
    /// assert_eq!(event.try_write(3), Err(WriteError::WouldBlock));
    /// assert_eq!(event.try_write(2), Ok(()));
    /// assert_eq!(event.count(), u64::MAX - 1);
    /// ```
    #[inline]
    pub fn try_write(&self, n: u64) -> Result<(), WriteError> {
        self.counter.try_write(n, self)
    }

    /// Adds `n`, blocking up to `timeout` until the count can take all of it.
    ///
    /// A timeout too long for the clock, such as `Duration::MAX`, is no limit. With a timeout of zero, the call tries
    /// once and does not sleep. The clock is read only if the call has to wait.
    ///
    /// # Errors
    ///
    /// [`WriteError::TimedOut`] if there was no room in time, and [`WriteError::Invalid`] if `n` is `u64::MAX`. Then
    /// the count was not changed.
    pub fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), WriteError> {
        self.counter.write_until(n, Limit::For(timeout), self)
    }

    /// As [`write_timeout`](Self::write_timeout), up to a point in time. One in the past tries once.
    ///
    /// # Errors
    ///
    /// As for `write_timeout`.
    pub fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), WriteError> {
        self.counter.write_until(n, Limit::Until(deadline), self)
    }

    /// Takes the count, or one unit of a semaphore, blocking while the count is 0. Never returns 0.
    #[doc(alias = "wait")]
    #[doc(alias = "acquire")]
    #[doc(alias = "park")]
    #[doc(alias = "eventfd_read")]
    #[inline]
    pub fn read(&self) -> u64 {
        match self.counter.read_until(Limit::Forever, self) {
            Some(value) => value,
            None => unreachable!("a read without a deadline timed out"),
        }
    }

    /// Takes the count, or one unit of a semaphore. Never blocks: `None` if the count is 0.
    #[doc(alias = "event_notifier_test_and_clear")]
    #[doc(alias = "try_wait")]
    #[doc(alias = "try_acquire")]
    #[doc(alias = "clear")]
    #[doc(alias = "reset")]
    #[inline]
    pub fn try_read(&self) -> Option<u64> {
        self.counter.try_read(self)
    }

    /// Takes the count, or one unit of a semaphore, blocking up to `timeout` while the count is 0.
    ///
    /// `None` is a timeout. What arrives later is there for the next read. A timeout too long for the clock, such as
    /// `Duration::MAX`, is no limit. With a timeout of zero, the call tries once and does not sleep. The clock is read
    /// only if the call has to wait.
    #[doc(alias = "wait_timeout")]
    #[doc(alias = "acquire_timeout")]
    #[must_use = "`None` is a timeout"]
    pub fn read_timeout(&self, timeout: Duration) -> Option<u64> {
        self.counter.read_until(Limit::For(timeout), self)
    }

    /// As [`read_timeout`](Self::read_timeout), up to a point in time. One in the past tries once.
    #[doc(alias = "wait_deadline")]
    #[must_use = "`None` is a timeout"]
    pub fn read_deadline(&self, deadline: Instant) -> Option<u64> {
        self.counter.read_until(Limit::Until(deadline), self)
    }

    /// Takes the whole count, of a semaphore too. Never blocks: `None` if the count is 0.
    ///
    /// On an event in [`Mode::Counter`] this is [`try_read`](Self::try_read). On a semaphore it is as many reads as
    /// there are units, in one step, so no other reader gets a unit in between; an eventfd has no such call. Writers
    /// that the count had no room for are woken, as by any read.
    ///
    /// ```
    /// # use doorbell::Event;
    /// let slots = Event::semaphore(3);
    /// assert_eq!(slots.try_read_all(), Some(3));
    /// assert_eq!(slots.try_read_all(), None);
    /// ```
    #[doc(alias = "drain")]
    #[doc(alias = "drain_permits")]
    #[inline]
    pub fn try_read_all(&self) -> Option<u64> {
        self.counter.try_read_all(self)
    }

    /// Blocks while the count is 0, and takes nothing: `poll(2)` for `POLLIN`.
    ///
    /// Any number of threads may wait so, beside readers. A signal or write that leaves something in the event ends the
    /// wait of every one of them, see [Waking all](Self#waking-all). A reader that takes the count first may leave
    /// nothing to be seen, and then the wait goes on. For the same reason the event may be empty again when the call
    /// returns, so the caller reads with [`try_read`](Self::try_read).
    ///
    /// The wait takes nothing from blocked readers either: a signal wakes a reader besides.
    ///
    /// What a thread did before the signal is visible to the caller, as to one that reads.
    ///
    /// To wait for several events, see [`wait_any`](crate::poll::wait_any()).
    #[doc(alias = "notify_all")]
    #[doc(alias = "broadcast")]
    #[doc(alias = "poll")]
    #[doc(alias = "wait")]
    #[inline]
    pub fn wait_readable(&self) {
        let readable = self.counter.wait_readable(Limit::Forever, self);
        debug_assert!(readable, "a wait without a deadline timed out");
    }

    /// As [`wait_readable`](Self::wait_readable), for up to `timeout`. Returns whether the event can be read.
    ///
    /// A timeout too long for the clock, such as `Duration::MAX`, is no limit. With one of zero, the call does not
    /// sleep.
    #[must_use = "false is a timeout"]
    pub fn wait_readable_timeout(&self, timeout: Duration) -> bool {
        self.counter.wait_readable(Limit::For(timeout), self)
    }

    /// As [`wait_readable_timeout`](Self::wait_readable_timeout), up to a point in time. With one in the past, the call
    /// does not sleep.
    #[must_use = "false is a timeout"]
    pub fn wait_readable_deadline(&self, deadline: Instant) -> bool {
        self.counter.wait_readable(Limit::Until(deadline), self)
    }

    /// The count now. Another thread may change it before the caller looks at the result.
    #[doc(alias = "value")]
    #[doc(alias = "available_permits")]
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counter.load()
    }

    /// What `poll(2)` would report of an eventfd now.
    ///
    /// The load has no ordering, like the kernel's: what was written before a signal is visible to a thread that reads
    /// the event or has [waited](Self::wait_readable) for it, but not to one that only calls this.
    #[doc(alias = "is_readable")]
    #[doc(alias = "is_signalled")]
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness::of(self.count())
    }

    /// The count, for a caller that has just armed an observer: a change that this load misses calls the observer.
    pub(crate) fn count_after_asking(&self) -> u64 {
        self.counter.load_ordered()
    }

    /// To be called after announcing a reader, a task or an observer: the next load of the count sees each signal of a
    /// [`Signaller`] that has not seen the announcement. Returns whether there are such signallers.
    pub(crate) fn hear_signallers(&self) -> bool {
        self.counter.hear_signallers()
    }

    /// Takes `n` away if there is as much, in any mode.
    pub(crate) fn take_back(&self, n: u64) {
        self.counter.take_back(n, self);
    }

    /// Takes the count, in any mode, and wakes nobody: [`wake_writers`](Self::wake_writers) is to follow.
    pub(crate) fn take_all(&self) -> u64 {
        self.counter.take_all()
    }

    /// Adds as much of `n` as there is room for, and wakes nobody: [`wake_readers`](Self::wake_readers) is to follow.
    /// Returns how much that is.
    pub(crate) fn add_what_fits(&self, n: u64) -> u64 {
        self.counter.add_what_fits(n)
    }

    /// First half of a signal of `n`: [`wake_readers`](Self::wake_readers) is to follow.
    pub(crate) fn add_saturating(&self, n: u64) {
        self.counter.add_saturating(n);
    }

    /// Whether reads take all or one.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How blocking calls wait.
    #[must_use]
    pub fn spin(&self) -> Spin {
        self.spin.policy()
    }

    /// How many reads could succeed now, with a [`DEKKER`](crate::sync::DEKKER) load.
    pub(crate) fn units(&self) -> u32 {
        match self.left_over() {
            Release::One => 1,
            Release::Each(units) => units,
            Release::All => u32::MAX,
        }
    }

    /// Which readers could go on now, likewise.
    fn left_over(&self) -> Release {
        self.counter.left_over(self.mode)
    }

    /// Second half of a signal or write of `n`.
    pub(crate) fn wake_readers(&self, n: u64) {
        self.counter.wake_readers(n, self);
    }

    /// Second half of a read.
    pub(crate) fn wake_writers(&self) {
        self.counter.wake_writers(self);
    }

    /// Makes the caller the owner, if there is no other.
    pub(crate) fn claim(&self) -> bool {
        // Acquire pairs with the Release in `disclaim`: the previous owner has finished.
        !self.owned.swap(true, Ordering::Acquire)
    }

    /// Ends what a successful [`claim`](Self::claim) began.
    pub(crate) fn disclaim(&self) {
        self.owned.swap(false, Ordering::Release);
    }

    /// Arms every observer that is attached on demand, see [`Observation::arm`]. For an observer that has no
    /// [`Observation`] at hand, for example in its call.
    pub(crate) fn arm(&self, interest: Interest) {
        self.counter.arm(interest);
    }

    /// The same, for a caller that [hears](Self::hear_signallers) the signallers itself afterwards, if the event
    /// [has](Self::has_signallers) some.
    pub(crate) fn arm_unheard(&self, interest: Interest) {
        self.counter.arm_unheard(interest);
    }

    /// Whether the event has, or has had, signallers with a lane. A [`DEKKER`](crate::sync::DEKKER) load: signallers
    /// that are made later see what was announced before.
    pub(crate) fn has_signallers(&self) -> bool {
        self.counter.is_split()
    }

    /// The waiters for a change.
    pub(crate) fn waiters(&self, change: Change) -> &Waiters {
        match change {
            Change::Signalled => self.counter.readers(),
            Change::Read => self.counter.writers(),
        }
    }

    /// The waiters for each change.
    fn sides(&self) -> [(&Waiters, Change); 2] {
        self.counter.sides()
    }
}

impl Owner for Event {
    #[inline(always)]
    fn mode(&self) -> Mode {
        self.mode
    }

    fn spinner(&self) -> &Spinner {
        &self.spin
    }

    #[inline(always)]
    fn kinds(&self) -> u32 {
        ARMED | OBSERVED | TASKS
    }

    fn is_owned(&self) -> bool {
        // Relaxed: a signal during the claim counts as one before or after it.
        self.owned.load(Ordering::Relaxed)
    }

    fn call(&self, change: Change, kinds: u32) {
        Observers::call(self, change, kinds);
    }
}

impl Default for Event {
    /// An empty event in [`Mode::Counter`].
    fn default() -> Self {
        Event::new(0)
    }
}

/// So that what takes events of any kind of handle takes bare ones, too.
impl AsRef<Event> for Event {
    fn as_ref(&self) -> &Event {
        self
    }
}

impl fmt::Debug for Event {
    /// The fields for diagnosing a stuck event, as of now.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Event");
        self.counter.describe(self, &mut fields);
        fields.finish()
    }
}
