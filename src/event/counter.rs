//! The counter and its waiters: what an [`Event`](super::Event) and a [shared](crate::shared) event have in common.
//!
//! The kernel's counterpart is `eventfd_read()`, `eventfd_write()` and `eventfd_signal()`. This file says, for both
//! kinds of events, what each operation does to the count and which threads it wakes. The [`Owner`] says in which mode,
//! after how much spinning, and what is to be called besides.

#[cfg(any(target_os = "linux", target_os = "android"))]
use super::split::Never;
use super::split::{ELSEWHERE, Lanes, Number, OnDemand, Owned, Split, Unsplit};
use super::{Change, Interest, Mode, WriteError};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::limit::{Limit, NoTime};
#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::sync::scope::Shared;
use crate::sync::scope::{Private, RetryBudget, Scope};
use crate::sync::spin::Spinner;
use crate::sync::waiters::{ARMED, Release, Waiters};
use crate::sync::{DEKKER, membarrier, yield_now};
use std::fmt;

/// Its layout is part of what `src/shared.rs` documents.
#[repr(C)]
pub(crate) struct Counter<S: Count = Private> {
    /// The count, unless it is [split](super::split).
    count: AtomicU64,
    /// For `count > 0`.
    readers: Waiters<S>,
    /// For `count + n < u64::MAX`.
    writers: Waiters<S>,
    split: S::Split,
}

/// Whose count can be split.
pub(crate) trait Count: Scope {
    type Split: Split;
}

impl Count for Private {
    type Split = OnDemand;
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Count for Shared {
    type Split = Never;
}

/// What an event has besides its counter.
pub(crate) trait Owner {
    fn mode(&self) -> Mode;

    fn spinner(&self) -> &Spinner;

    /// The kinds that may be here, of [`ARMED`], `OBSERVED` and `TASKS`.
    fn kinds(&self) -> u32;

    /// Whether an observer takes what is signalled before any other waiter sees it.
    fn is_owned(&self) -> bool;

    /// Calls the observers of these kinds, which have been claimed, after a change.
    fn call(&self, change: Change, kinds: u32);
}

impl Counter<Private> {
    /// The size of the first fields, which are all that a whole count uses.
    #[cfg(not(loom))]
    #[allow(dead_code, reason = "Rust 1.85 does not see that an assertion uses it")]
    pub(super) const SIZE_WHOLE: usize = std::mem::offset_of!(Self, split);

    maybe_const! {
        pub(crate) fn new(initial: u64) -> Self {
            Counter {
                count: AtomicU64::new(initial),
                readers: Waiters::new(),
                writers: Waiters::new(),
                split: OnDemand::new(initial),
            }
        }
    }

    /// A lane for a signaller, if there is one left, the count can be split, and `membarrier` is chosen. Waits for a
    /// thread that is splitting the count.
    pub(super) fn claim_lane(&self) -> Option<(Number, Owned)> {
        if !membarrier::is_to_be_had() {
            return None;
        }
        loop {
            match self.try_claim_lane() {
                Ok(lane) => return Some(lane),
                Err(Unsplit::ForGood) => return None,
                Err(Unsplit::ForNow) => yield_now(),
            }
        }
    }

    /// The same without waiting, for a caller that knows that `membarrier` is chosen.
    pub(super) fn try_claim_lane(&self) -> Result<(Number, Owned), Unsplit> {
        let lanes = self.split.split(&self.count)?;
        lanes.claim().ok_or(Unsplit::ForGood)
    }

    /// Puts the counter into the state in which another thread splits it.
    #[cfg(all(test, not(loom)))]
    pub(super) fn pretend_to_split(&self, is_splitting: bool) {
        self.split.pretend_to_split(is_splitting);
    }

    /// The number of the lanes, if it is split.
    #[inline(always)]
    pub(super) fn number(&self) -> Option<Number> {
        self.split.number()
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Counter<Shared> {
    #[cfg(any(loom, test))]
    pub(crate) fn shared(initial: u64) -> Self {
        Counter {
            count: AtomicU64::new(initial),
            readers: Waiters::new(),
            writers: Waiters::new(),
            split: Never,
        }
    }

    /// Initialises memory that nobody uses yet, whatever it contains.
    pub(crate) fn reset(&self, initial: u64) {
        self.count.store(initial, Ordering::Relaxed);
        self.readers.reset();
        self.writers.reset();
    }
}

impl<S: Count> Counter<S> {
    /// The count now, without ordering.
    pub(crate) fn load(&self) -> u64 {
        // Acquire pairs with the store of ELSEWHERE: if the count is split, its lanes are there.
        self.count_in(self.count.load(Ordering::Acquire))
    }

    /// The count, by the [`DEKKER`] load that follows an announcement, or [arming](Self::arm).
    pub(crate) fn load_ordered(&self) -> u64 {
        self.count_in(self.count.load(DEKKER))
    }

    #[inline(always)]
    fn count_in(&self, word: u64) -> u64 {
        self.lanes(word).map_or(word, Lanes::count)
    }

    /// Where the count is, if it is not in the word.
    #[inline(always)]
    fn lanes(&self, word: u64) -> Option<&Lanes> {
        if S::Split::POSSIBLE && word == ELSEWHERE {
            self.split.lanes()
        } else {
            None
        }
    }

    /// To be called after an announcement of a reader: the next load sees each signal of a signaller that has not seen
    /// the announcement. (It sees other signals anyway.) Returns whether there are signallers.
    pub(crate) fn hear_signallers(&self) -> bool {
        self.lanes(self.count.load(DEKKER)).is_some_and(Lanes::hear)
    }

    pub(crate) fn readers(&self) -> &Waiters<S> {
        &self.readers
    }

    pub(crate) fn writers(&self) -> &Waiters<S> {
        &self.writers
    }

    /// The waiters for each change.
    pub(crate) fn sides(&self) -> [(&Waiters<S>, Change); 2] {
        [
            (&self.readers, Change::Signalled),
            (&self.writers, Change::Read),
        ]
    }

    /// Asks for one call after the next change of interest. The caller [loads](Self::load_ordered) the count
    /// afterwards.
    pub(crate) fn arm(&self, interest: Interest) {
        self.arm_unheard(interest);
        if interest.includes(Change::Signalled) {
            self.hear_signallers();
        }
    }

    /// The same without the last step, for a caller that makes it for several events.
    pub(crate) fn arm_unheard(&self, interest: Interest) {
        for (waiters, change) in self.sides() {
            if interest.includes(change) {
                waiters.set(ARMED);
            }
        }
    }

    /// Whether there are, or have been, signallers to be [heard](Self::hear_signallers), by a [`DEKKER`] load.
    pub(crate) fn is_split(&self) -> bool {
        self.lanes(self.count.load(DEKKER)).is_some()
    }

    /// Adds the fields for diagnosing a stuck event, as of now.
    pub(crate) fn describe(&self, owner: &impl Owner, fields: &mut fmt::DebugStruct<'_, '_>) {
        fields
            .field("count", &self.load())
            .field("mode", &owner.mode())
            .field("waiting_readers", &self.readers.count())
            .field("waiting_writers", &self.writers.count())
            .field("spin", &owner.spinner().policy());
    }

    /// Adds `n` up to `u64::MAX`, and wakes readers.
    #[inline(always)]
    pub(crate) fn signal(&self, n: u64, owner: &impl Owner) {
        match self.add_once(n) {
            Ok(_) => self.wake_readers(n, owner),
            Err(now) => self.signal_slow(now, n, owner),
        }
    }

    /// The rest of a signal, in one function, so that the fast path keeps nothing across a call.
    #[cold]
    #[inline(never)]
    fn signal_slow(&self, now: u64, n: u64, owner: &impl Owner) {
        self.add_saturating_contended(now, n);
        self.wake_readers(n, owner);
    }

    #[inline(always)]
    pub(crate) fn try_write(&self, n: u64, owner: &impl Owner) -> Result<(), WriteError> {
        if n == u64::MAX {
            return Err(WriteError::Invalid);
        }
        match self.update_once(room_for(n)) {
            Ok(None) => Err(WriteError::WouldBlock),
            Ok(Some(_)) if self.readers.has_work(owner.kinds()) => self.written(n, owner),
            Ok(Some(_)) => Ok(()),
            Err(now) => self.write_contended(now, n, owner),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_contended(&self, now: u64, n: u64, owner: &impl Owner) -> Result<(), WriteError> {
        self.update_contended(now, room_for(n))
            .ok_or(WriteError::WouldBlock)?;
        self.written(n, owner)
    }

    /// Second half of a write.
    #[cold]
    #[inline(never)]
    fn written(&self, n: u64, owner: &impl Owner) -> Result<(), WriteError> {
        self.wake_readers(n, owner);
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn write_until(
        &self,
        n: u64,
        limit: Limit,
        owner: &impl Owner,
    ) -> Result<(), WriteError> {
        match self.try_write(n, owner) {
            Err(WriteError::WouldBlock) => self.wait_to_write(n, limit, owner),
            done => done,
        }
    }

    #[cold]
    #[inline(never)]
    fn wait_to_write(&self, n: u64, limit: Limit, owner: &impl Owner) -> Result<(), WriteError> {
        let deadline = limit.deadline().map_err(|NoTime| WriteError::TimedOut)?;
        let add = || self.add(n);
        let added = owner.spinner().wait(
            deadline,
            || fits(self.load(), n),
            add,
            // A read wakes all writers, so a writer that leaves owes the others nothing.
            || self.writers.wait(deadline, add, || Release::NOBODY),
        );
        added.ok_or(WriteError::TimedOut)?;
        self.written(n, owner)
    }

    #[inline(always)]
    pub(crate) fn try_read(&self, owner: &impl Owner) -> Option<u64> {
        // One branch for each mode: that takes fewer instructions than checking the mode twice.
        let value = match owner.mode() {
            Mode::Counter => match self.take_once(Mode::Counter) {
                Ok(count) => count?,
                Err(now) => return self.read_contended(now, owner),
            },
            Mode::Semaphore => match self.take_once(Mode::Semaphore) {
                Ok(count) => count.map(|_| 1)?,
                Err(now) => return self.read_contended(now, owner),
            },
        };
        if self.writers.has_work(owner.kinds()) {
            return self.have_read(value, owner);
        }
        Some(value)
    }

    #[cold]
    #[inline(never)]
    fn read_contended(&self, now: u64, owner: &impl Owner) -> Option<u64> {
        let mode = owner.mode();
        let before = self.update_contended(now, rest(mode))?;
        self.have_read(taken(before, mode), owner)
    }

    /// Second half of a read of `value`.
    #[cold]
    #[inline(never)]
    fn have_read(&self, value: u64, owner: &impl Owner) -> Option<u64> {
        self.wake_writers(owner);
        Some(value)
    }

    #[inline(always)]
    pub(crate) fn read_until(&self, limit: Limit, owner: &impl Owner) -> Option<u64> {
        self.try_read(owner)
            .or_else(|| self.wait_to_read(limit, owner))
    }

    #[cold]
    #[inline(never)]
    fn wait_to_read(&self, limit: Limit, owner: &impl Owner) -> Option<u64> {
        let deadline = limit.deadline().ok()?;
        let mode = owner.mode();
        let take = || self.take(mode);
        // Signallers are heard only before a sleep: a thread that was woken finds what it was woken for.
        let take_when_announced = || take().or_else(|| self.hear_signallers().then(take)?);
        let left_over = || {
            self.hear_signallers();
            self.left_over(mode)
        };
        let value = owner.spinner().wait(
            deadline,
            || self.load() != 0,
            take,
            || self.readers.wait(deadline, take_when_announced, left_over),
        )?;
        self.have_read(value, owner)
    }

    /// Waits until the count is not 0, and takes nothing.
    #[inline(always)]
    pub(crate) fn wait_readable(&self, limit: Limit, owner: &impl Owner) -> bool {
        self.load_ordered() != 0 || self.wait_to_watch(limit, owner)
    }

    #[cold]
    #[inline(never)]
    fn wait_to_watch(&self, limit: Limit, owner: &impl Owner) -> bool {
        let Ok(deadline) = limit.deadline() else {
            return false;
        };
        let is_readable = || self.load_ordered() != 0;
        let is_readable_when_announced =
            || is_readable() || (self.hear_signallers() && is_readable());
        // The signal may have woken this thread instead of a reader or of another one that watches. They can all go on.
        let left_over = || {
            self.hear_signallers();
            match self.left_over(owner.mode()) {
                Release::NOBODY => Release::NOBODY,
                _ if S::TRUSTED => Release::All,
                // The protocol in `src/shared.rs` has each thread wake the next.
                some => some,
            }
        };
        let watch = || {
            self.readers
                .watch(deadline, is_readable_when_announced, left_over)
        };
        let found = owner.spinner().wait(
            deadline,
            || self.load() != 0,
            || is_readable().then_some(()),
            || watch().then_some(()),
        );
        found.is_some()
    }

    /// Takes the whole count, in any mode. Never blocks.
    pub(crate) fn try_read_all(&self, owner: &impl Owner) -> Option<u64> {
        let count = self.take(Mode::Counter)?;
        self.have_read(count, owner)
    }

    /// Takes `n` away if there is as much, in any mode.
    pub(super) fn take_back(&self, n: u64, owner: &impl Owner) {
        if n != 0 && self.update(|count| count.checked_sub(n)).is_some() {
            self.wake_writers(owner);
        }
    }

    /// Which readers could go on now, with a [`DEKKER`] load.
    pub(super) fn left_over(&self, mode: Mode) -> Release {
        released(self.load_ordered(), mode)
    }

    /// Takes the count, in any mode, and wakes nobody: [`wake_writers`](Self::wake_writers) is to follow.
    pub(super) fn take_all(&self) -> u64 {
        self.take(Mode::Counter).unwrap_or(0)
    }

    /// Replaces the count, and wakes nobody. Not for an event that may have signallers.
    pub(super) fn replace(&self, count: u64) -> u64 {
        self.count.swap(count, DEKKER)
    }

    /// Takes what a read takes. `None`, by a [`DEKKER`] load, if the count is 0.
    #[inline(always)]
    fn take(&self, mode: Mode) -> Option<u64> {
        let before = match self.take_once(mode) {
            Ok(before) => before,
            Err(now) => self.update_contended(now, rest(mode)),
        };
        Some(taken(before?, mode))
    }

    /// Takes what a read takes, and returns the count before. Fails with the new count if another thread has changed it
    /// meanwhile.
    #[inline(always)]
    fn take_once(&self, mode: Mode) -> Result<Option<u64>, u64> {
        if !S::Split::POSSIBLE && mode == Mode::Counter {
            // Loading first keeps the cache line shared while there is nothing to take. A swap needs no second attempt,
            // whatever a peer does.
            let count = self.count.load(DEKKER);
            return Ok((count != 0)
                .then(|| self.count.swap(0, DEKKER))
                .filter(|&count| count != 0));
        }
        let count = self.count.load(DEKKER);
        // One comparison for both 0 and ELSEWHERE.
        if count.wrapping_sub(1) >= ELSEWHERE - 1 {
            return if count == 0 { Ok(None) } else { Err(count) };
        }
        let rest = match mode {
            Mode::Counter => 0,
            Mode::Semaphore => count - 1,
        };
        self.count
            .compare_exchange(count, rest, DEKKER, DEKKER)
            .map(Some)
    }

    /// First half of a signal of `n`.
    #[inline(always)]
    pub(crate) fn add_saturating(&self, n: u64) {
        if let Err(now) = self.add_once(n) {
            self.add_saturating_contended(now, n);
        }
    }

    /// Adds `n`, unless that leads to the overflow state or another thread is faster; then it fails with the count. A
    /// saturating sum is left to the slow path, because computing it here would cost half as much as an addition.
    #[inline(always)]
    fn add_once(&self, n: u64) -> Result<u64, u64> {
        let count = self.count.load(DEKKER);
        if !fits(count, n) {
            return Err(count);
        }
        self.count
            .compare_exchange(count, count + n, DEKKER, DEKKER)
    }

    #[cold]
    #[inline(never)]
    fn add_saturating_contended(&self, now: u64, n: u64) {
        self.add_contended(now, n, |count| count.saturating_add(n));
    }

    /// Adds `n`, so that the count becomes the `sum` of what it was; or without a limit after too many lost races.
    #[inline(always)]
    fn add_contended(&self, now: u64, n: u64, sum: impl Fn(u64) -> u64) {
        let added = self.update_contended(now, |count| Some(sum(count)));
        if added.is_none() {
            // Exact unless the count wraps, and with such a peer the count means nothing anyway.
            self.count.fetch_add(n, DEKKER);
        }
    }

    /// First half of a write of `n`: adds it if it fits. `None`, by a [`DEKKER`] load, if it does not.
    #[inline(always)]
    pub(crate) fn add(&self, n: u64) -> Option<()> {
        self.update(room_for(n)).map(|_| ())
    }

    /// First half of a write of as much of `n` as fits. Returns how much that is; 0 by a [`DEKKER`] load.
    pub(super) fn add_what_fits(&self, n: u64) -> u64 {
        let part = |count: u64| n.min((u64::MAX - 1).saturating_sub(count));
        let added = |count| Some(part(count)).filter(|&part| part != 0);
        self.update(|count| Some(count + added(count)?))
            .map_or(0, part)
    }

    /// Changes the count to what `next` makes of it, and returns the count before. `None` if `next` gives up, or if the
    /// [`RetryBudget`] is spent.
    ///
    /// All accesses are [`DEKKER`] ones: a success may be what a sleeper must see, and a failure is what a sleeper
    /// loaded after its announcement.
    #[inline(always)]
    pub(super) fn update(&self, next: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        match self.update_once(&next) {
            Ok(done) => done,
            Err(now) => self.update_contended(now, next),
        }
    }

    /// Changes the count unless `next` gives up. Fails with the new count if another thread has changed it meanwhile,
    /// or with [`ELSEWHERE`].
    #[inline(always)]
    fn update_once(&self, next: impl Fn(u64) -> Option<u64>) -> Result<Option<u64>, u64> {
        let count = self.count.load(DEKKER);
        if S::Split::POSSIBLE && count == ELSEWHERE {
            return Err(count);
        }
        let Some(new) = next(count) else {
            return Ok(None);
        };
        self.count
            .compare_exchange(count, new, DEKKER, DEKKER)
            .map(Some)
    }

    /// Continues an `update` after another thread has changed the count to `count`, or found it [`ELSEWHERE`]. A
    /// function of its own, so that the fast path need not save registers for it.
    #[cold]
    #[inline(never)]
    fn update_contended(&self, mut count: u64, next: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let mut retries = RetryBudget::new();
        loop {
            if let Some(lanes) = self.lanes(count) {
                return lanes.update(next);
            }
            if retries.spend::<S>() {
                return None;
            }
            let new = next(count)?;
            if new == ELSEWHERE && !self.split.may_overflow() {
                count = self.count.load(DEKKER);
                continue;
            }
            match self.count.compare_exchange_weak(count, new, DEKKER, DEKKER) {
                Ok(count) => return Some(count),
                Err(now) => count = now,
            }
        }
    }

    /// Second half of a signal or write of `n`.
    #[inline(always)]
    pub(crate) fn wake_readers(&self, n: u64, owner: &impl Owner) {
        if self.readers.has_work(owner.kinds()) {
            self.wake_readers_slow(n, owner);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_readers_slow(&self, n: u64, owner: &impl Owner) {
        let whom = || released(n, owner.mode());
        let call = |kinds| owner.call(Change::Signalled, kinds);
        if owner.is_owned() {
            self.readers
                .notify_observers_first(whom(), owner.kinds(), call);
        } else {
            self.readers.notify(whom, owner.kinds(), call);
        }
    }

    /// Second half of a read.
    #[inline(always)]
    pub(super) fn wake_writers(&self, owner: &impl Owner) {
        if self.writers.has_work(owner.kinds()) {
            self.wake_writers_slow(owner);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_writers_slow(&self, owner: &impl Owner) {
        let call = |kinds| owner.call(Change::Read, kinds);
        self.writers.notify(|| Release::All, owner.kinds(), call);
    }
}

/// What a write of `n` makes of a count, if it fits.
#[inline(always)]
fn room_for(n: u64) -> impl Fn(u64) -> Option<u64> {
    move |count| fits(count, n).then(|| count + n)
}

/// What a read makes of a count, if it is not 0.
#[inline(always)]
fn rest(mode: Mode) -> impl Fn(u64) -> Option<u64> {
    move |count| match mode {
        Mode::Counter => (count != 0).then_some(0),
        Mode::Semaphore => count.checked_sub(1),
    }
}

/// What a read takes from a count that is not 0.
#[inline(always)]
fn taken(count: u64, mode: Mode) -> u64 {
    match mode {
        Mode::Counter => count,
        Mode::Semaphore => 1,
    }
}

/// Whether a write of `n` leaves the count below `u64::MAX`.
#[inline(always)]
pub(super) fn fits(count: u64, n: u64) -> bool {
    n < u64::MAX - count
}

/// Which readers a signal or write of `n` releases.
#[inline(always)]
pub(super) fn released(n: u64, mode: Mode) -> Release {
    match mode {
        // The count is as before, so no announcement is claimed.
        _ if n == 0 => Release::NOBODY,
        Mode::Counter => Release::One,
        Mode::Semaphore => Release::Each(u32::try_from(n).unwrap_or(u32::MAX)),
    }
}

#[cfg(all(test, not(loom), target_os = "linux"))]
mod tests {
    use super::*;
    use crate::sync::scope::MANY;
    use std::cell::Cell;

    /// A peer that changes the count before each attempt cannot make a call try for ever, and no signal is lost. Calls
    /// on a private event do not give up.
    #[test]
    fn races_with_a_peer_end() {
        let counter = Counter::shared(0);
        let attempts = Cell::new(0);
        let interfere = |times, counter: &AtomicU64| {
            attempts.set(attempts.get() + 1);
            if attempts.get() <= times {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        let done = counter.update(|count| {
            interfere(u32::MAX, &counter.count);
            Some(count + 1000)
        });
        assert_eq!((done, attempts.get()), (None, MANY));
        assert_eq!(counter.load(), u64::from(MANY));

        // A signal that gives up adds nevertheless.
        let counter = Counter::shared(0);
        attempts.set(0);
        counter.add_contended(0, 1000, |count| {
            interfere(u32::MAX, &counter.count);
            count + 1000
        });
        assert_eq!(attempts.get(), MANY - 1);
        assert_eq!(counter.load(), u64::from(MANY - 1) + 1000);

        let counter = Counter::<Private>::new(0);
        attempts.set(0);
        let done = counter.update(|count| {
            interfere(3 * MANY, &counter.count);
            Some(count + 1000)
        });
        assert_eq!(
            (done, attempts.get()),
            (Some(u64::from(3 * MANY)), 3 * MANY + 1)
        );
    }
}
