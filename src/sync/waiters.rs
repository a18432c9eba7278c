//! Who waits for one condition: threads asleep, each announcement paid for with one wake-up, and observers.
//!
//! The kernel's counterpart is `wait_queue_head_t` with `wait_event()` and `wake_up()`. The condition itself ("the
//! counter is not zero") lives elsewhere, and so does the list of observers; a [`Waiters`] knows only who waits.
//!
//! ```text
//!     state       | number of threads in wait() : 29 | OBSERVED | ARMED | ANNOUNCED |   what a waker looks at, one load
//!     generation  | number of announcements claimed : 32                            |   what the threads sleep on
//!
//!     sleeper                                        waker
//!     1  state += one waiter                         1  make the condition true
//!     2  key = generation                            2  ANNOUNCED?  no: done, nobody needs us
//!     3  state |= ANNOUNCED                          3  claim: clear ANNOUNCED (one waker wins; the others are done)
//!     4  condition true?  take, go to 7              4  generation += 1
//!     5  sleep while generation == key               5  wake one thread, or as many as can go on, or all
//!     6  key = generation; condition true?  take; no: again from 3
//!     7  state -= one waiter; nobody left: clear ANNOUNCED
//!        others left: set ANNOUNCED for them; condition (still) true: be their waker
//! ```
//!
//! Why it loses no wake-up:
//!
//! * Sleeper 3 and 4 against waker 1 and 2 is a [`DEKKER`] handshake: the sleeper sees the condition, or the waker sees
//!   the announcement.
//! * Between sleeper 4 and 5 a claim changes the generation, so the sleep does not begin. Comparing with the
//!   announcement itself would not do: another thread may have set it again in between, having found too little for
//!   itself of what would be enough here.
//! * A claim clears the announcement of all, yet may wake but one. Whoever leaves, for whatever reason, announces those
//!   who stay, and looks at the condition once more on their behalf (7). That covers wake-ups that hit a thread about
//!   to time out, units left over, and signals that came while nothing was announced.
//! * The announcement is cleared without a claim only by the last thread to leave, in the same step in which it ceases
//!   to be counted: nobody is left to miss it. So a signal after that makes no system call.
//!
//! Observers are of two kinds. Some are to be called each time: [`OBSERVED`] stands as long as there are any. The others
//! want one call and then none until they ask again, as an epoll does that has the event in its ready list already: who
//! asks sets [`ARMED`] and then looks at the condition, and a waker that sees the bit claims it and calls them all. That is
//! the handshake of sleeper 3 and 4; and a signal to which nobody has a call outstanding costs a load.
//!
//! The generation wraps after 2^32 claims. A thread would have to stand still between 2 or 6 and 5 for exactly that many, each
//! of them a system call (over ten minutes), to sleep through a wake-up.

use super::atomic::{AtomicU32, Ordering};
use super::futex;
pub(crate) use super::futex::{MOST_WORDS, Outcome, Refused, most_words};
use super::scope::{Private, Races, Scope};
use super::{DEKKER, dekker_load};
use std::marker::PhantomData;
use std::mem;
use std::time::Instant;

/// Somebody may sleep who has not been woken yet.
const ANNOUNCED: u32 = 1;
/// Somebody is to be called once.
pub(crate) const ARMED: u32 = 2;
/// Somebody is to be called each time.
pub(crate) const OBSERVED: u32 = 4;
/// One thread in [`Waiters::wait`], in the units of `state`.
const WAITER: u32 = 8;

/// Wakes everybody.
pub(crate) const ALL: u32 = u32::MAX;

/// Its layout is part of what `src/shared.rs` documents.
#[repr(C)]
pub(crate) struct Waiters<S = Private> {
    state: AtomicU32,
    generation: AtomicU32,
    scope: PhantomData<S>,
}

impl<S: Scope> Waiters<S> {
    maybe_const! {
        pub(crate) fn new() -> Self {
            Waiters {
                state: AtomicU32::new(0),
                generation: AtomicU32::new(0),
                scope: PhantomData,
            }
        }
    }

    /// Makes new ones of whatever is there, for nobody to use yet.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn reset(&self) {
        self.state.store(0, Ordering::Relaxed);
        self.generation.store(0, Ordering::Relaxed);
    }

    /// How many threads wait. A snapshot.
    pub(crate) fn count(&self) -> u32 {
        self.state.load(Ordering::Relaxed) / WAITER
    }

    /// Wakes up to `count` threads if any are announced, after `call` has called the observers of the kinds it is given:
    /// those of `kinds` ([`ARMED`], [`OBSERVED`], both or neither) that there are. Others are left to others. To be called
    /// after the condition was made true with a [`DEKKER`] store.
    #[inline(always)]
    pub(crate) fn notify(&self, count: u32, kinds: u32, call: impl FnOnce(u32)) {
        if self.are_wanted(kinds) {
            self.wake(count, kinds, call);
        }
    }

    /// Whether there is somebody for [`notify`](Self::notify) to wake or call. To be called after the condition was made
    /// true with a [`DEKKER`] store.
    #[inline(always)]
    pub(crate) fn are_wanted(&self, kinds: u32) -> bool {
        // Second half of the handshake with `announce` and `set`.
        dekker_load(&self.state) & (ANNOUNCED | kinds) != 0
    }

    /// What [`notify`](Self::notify) does of it for observers.
    pub(crate) fn notify_observers(&self, kinds: u32, call: impl FnOnce(u32)) {
        let claimed = self.claim(kinds & ARMED);
        if claimed & kinds != 0 {
            call(claimed & kinds);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake(&self, count: u32, kinds: u32, call: impl FnOnce(u32)) {
        // The threads are woken even if an observer panics.
        let sleepers = self.claim_sleepers_and(kinds & ARMED, count);
        if sleepers.state & kinds != 0 {
            call(sleepers.state & kinds);
        }
    }

    /// Wakes up to `count` threads if any are announced.
    fn wake_sleepers(&self, count: u32) {
        drop(self.claim_sleepers(count));
    }

    /// Claims the announcement, if there is one. What is returned wakes up to `count` threads when it is dropped.
    pub(crate) fn claim_sleepers(&self, count: u32) -> Sleepers<'_, S> {
        self.claim_sleepers_and(0, count)
    }

    fn claim_sleepers_and(&self, bits: u32, count: u32) -> Sleepers<'_, S> {
        // Who wakes nobody leaves the announcement to who does.
        let threads = if count == 0 { 0 } else { ANNOUNCED };
        Sleepers {
            waiters: self,
            state: self.claim(threads | bits),
            count,
        }
    }

    /// Wakes those who were claimed, and who sleep.
    pub(crate) fn wake_claimed(&self, claimed: Claimed) {
        if claimed.threads != 0 {
            S::wake(&self.generation, claimed.threads);
        }
    }

    /// Whether anybody may sleep who has not been woken yet. To be called after the condition was made true with a
    /// [`DEKKER`] store: second half of the handshake with `announce`.
    pub(crate) fn is_announced(&self) -> bool {
        self.are_wanted(0)
    }

    /// Wakes everybody who sleeps here or is about to, announced or not.
    #[cfg_attr(any(loom, not(target_os = "linux")), allow(dead_code))]
    pub(crate) fn wake_everybody(&self) {
        drop(Sleepers {
            waiters: self,
            state: ANNOUNCED,
            count: ALL,
        });
    }

    /// Clears those of the bits that are set, for this waker to act upon, and returns the state in which it found them;
    /// those that another waker has claimed are not in it.
    fn claim(&self, bits: u32) -> u32 {
        let mut state = self.state.load(Ordering::Relaxed);
        let mut races = Races::none_lost();
        while state & bits != 0 {
            // Acquire pairs with the Release half of `set`: the announcer has read the generation that ends next, and who
            // armed stands in the list of observers.
            match self.state.compare_exchange_weak(
                state,
                state & !bits,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => state = now,
            }
            if races.lose::<S>() {
                break;
            }
        }
        state
    }

    /// Waits until `attempt` yields something, or until the deadline, after which it is tried a last time.
    ///
    /// `attempt` must look at the condition with [`DEKKER`] loads, those on its failing paths above all. `left_over` says
    /// how many of the other waiters could go on now; it is asked when this one leaves and others stay.
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        attempt: impl FnMut() -> Option<T>,
        left_over: impl FnOnce() -> u32,
    ) -> Option<T> {
        self.wait_in(attempt, |key| self.sleep(key, deadline), left_over)
    }

    /// As [`wait`](Self::wait), for threads that may sleep elsewhere than here: `sleep` is called with the key that
    /// [`sleep`](Self::sleep) takes, and knows the deadline.
    pub(crate) fn wait_in<T>(
        &self,
        mut attempt: impl FnMut() -> Option<T>,
        mut sleep: impl FnMut(u32) -> Outcome,
        left_over: impl FnOnce() -> u32,
    ) -> Option<T> {
        let mut key = self.enter();
        let result = loop {
            self.announce();
            if let Some(taken) = attempt() {
                break Some(taken);
            }
            let outcome = sleep(key);
            // Before announcing anew: one who gets something here costs the next signal no system call.
            key = self.generation();
            let taken = attempt();
            if taken.is_some() || outcome == Outcome::TimedOut {
                break taken;
            }
        };
        self.leave(left_over);
        result
    }

    /// Sleeps until a wake-up after the generation was `key`, the deadline, or for no reason less.
    pub(crate) fn sleep(&self, key: u32, deadline: Option<Instant>) -> Outcome {
        S::wait(&self.generation, key, deadline)
    }

    /// Is killed in `notify` between the claim and the wake-up.
    #[cfg(loom)]
    pub(crate) fn claim_for_nothing(&self) {
        if self.is_announced() {
            self.claim(ANNOUNCED);
        }
    }

    /// Is killed asleep.
    #[cfg(loom)]
    pub(crate) fn wait_for_ever(&self) {
        self.enter();
        self.announce();
    }

    /// Counts this thread as one that waits until it calls [`leave`](Self::leave), and returns the key to sleep with
    /// after the first announcement.
    pub(crate) fn enter(&self) -> u32 {
        self.state.fetch_add(WAITER, Ordering::Relaxed);
        self.generation()
    }

    /// The key to sleep with after the next announcement.
    pub(crate) fn generation(&self) -> u32 {
        // Acquire pairs with the Release in `wake`: who was woken sees what for.
        self.generation.load(Ordering::Acquire)
    }

    /// Asks for a wake-up.
    pub(crate) fn announce(&self) {
        self.set(ANNOUNCED);
    }

    /// Asks for what the bits stand for. The condition is to be looked at afterwards, with [`DEKKER`] loads.
    pub(crate) fn set(&self, bits: u32) {
        // A read-modify-write even if they are set: first half of the handshake with `notify`.
        self.state.fetch_or(bits, DEKKER);
    }

    /// Asks no more for what the bits stand for.
    pub(crate) fn clear(&self, bits: u32) {
        self.state.fetch_and(!bits, Ordering::Relaxed);
    }

    /// Step 7 of who has entered. `left_over` says how many of the others could go on now, if there are others.
    pub(crate) fn leave(&self, left_over: impl FnOnce() -> u32) {
        if self.uncount() {
            let count = left_over();
            if count != 0 {
                self.wake_sleepers(count);
            }
        }
    }

    /// Is counted no more. Returns whether others are; they are announced then.
    fn uncount(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        let mut races = Races::none_lost();
        loop {
            // Wrapping: another process may have written anything.
            let left = state.wrapping_sub(WAITER) & !ANNOUNCED;
            let others = left / WAITER != 0;
            let after = if others { left | ANNOUNCED } else { left };
            // First half of the handshake with `notify`, on behalf of the others.
            match self
                .state
                .compare_exchange_weak(state, after, DEKKER, Ordering::Relaxed)
            {
                Ok(_) => return others,
                Err(now) => state = now,
            }
            if races.lose::<S>() {
                self.state.fetch_sub(WAITER, Ordering::Relaxed);
                self.announce();
                return true;
            }
        }
    }
}

/// Sleeps as [`Waiters::sleep`] does, at several at once, each with its key; at up to [`most_words`].
pub(crate) fn sleep_at_all<'a>(
    waiters: impl ExactSizeIterator<Item = (&'a Waiters, u32)>,
    deadline: Option<Instant>,
) -> Result<Outcome, Refused> {
    futex::wait_any(
        waiters.map(|(waiters, key)| (&waiters.generation, key)),
        deadline,
    )
}

/// Announced threads that a waker has claimed. It wakes them at the end of its life.
pub(crate) struct Sleepers<'a, S: Scope> {
    waiters: &'a Waiters<S>,
    /// As the claim found it.
    state: u32,
    count: u32,
}

impl<S: Scope> Sleepers<'_, S> {
    /// Whether there are any; if not, nothing was announced or another waker has the claim.
    pub(crate) fn are_claimed(&self) -> bool {
        self.state & ANNOUNCED != 0
    }

    /// Leaves it to the caller to wake them, where they sleep.
    pub(crate) fn wake_elsewhere(mut self) {
        self.count = 0;
    }

    /// Leaves it to the caller to wake them later. None of them falls asleep from now on without having looked again.
    pub(crate) fn wake_later(mut self) -> Claimed {
        self.end_generation()
    }

    fn end_generation(&mut self) -> Claimed {
        let count = mem::take(&mut self.count);
        if !self.are_claimed() || count == 0 {
            return Claimed::default();
        }
        // Release pairs with the Acquire in `generation`: an announcement under the new one is not the one claimed.
        self.waiters.generation.fetch_add(1, Ordering::Release);
        let waiters = self.state / WAITER;
        Claimed {
            threads: if count >= waiters { ALL } else { count },
            alone: waiters == 1,
        }
    }
}

impl<S: Scope> Drop for Sleepers<'_, S> {
    fn drop(&mut self) {
        let claimed = self.end_generation();
        self.waiters.wake_claimed(claimed);
    }
}

/// What a waker that has made a claim still has to do.
#[derive(Default)]
pub(crate) struct Claimed {
    /// How many of those who sleep are to be woken.
    threads: u32,
    /// One thread stood there at the time of the claim, and no other.
    alone: bool,
}

impl Claimed {
    /// Whether there is somebody to wake, who stood there alone at the time of the claim.
    pub(crate) fn is_one_alone(&self) -> bool {
        self.alone
    }
}
