//! The waiters for one condition: sleeping threads, which are woken once per announcement, and observers.
//!
//! The kernel's counterpart is `wait_queue_head_t` with `wait_event()` and `wake_up()`. The condition itself ("the
//! counter is not zero") and the list of observers are kept elsewhere. A [`Waiters`] only records that there are
//! waiters, and of which kinds.
//!
//! ```text
//!     waiter      wait(deadline, attempt, left_over)           or watch(), which takes nothing
//!     waker       make the condition true; if has_work() { notify(…) }
//! ```
//!
//! ```text
//!     state       | claimed : 6 | threads in wait() : 22 | TASKS | OBSERVED | ARMED | ANNOUNCED |   a waker loads it
//!     generation  | number of claims : 32                                                       |   slept on
//!
//!     sleeper                                        waker
//!     1  state += one waiter                         1  make the condition true
//!     2  key = generation                            2  ANNOUNCED?  no: done, nobody has to be woken
//!     3  state |= ANNOUNCED                          3  claim: clear ANNOUNCED (one waker wins; the others are done)
//!     4  condition true?  take, go to 7              4  generation += 1
//!     5  sleep while generation == key               5  wake one thread, or as many as can go on, or all
//!     6  key = generation; condition true?  take; no: again from 3
//!     7  state -= one waiter, one claimed; nobody left: clear ANNOUNCED
//!        others left: set ANNOUNCED for them; condition (still) true: be their waker
//! ```
//!
//! **Shares.** A waker that has something for [each](Release::Each) of `n` threads, such as the units of a semaphore,
//! must not clear the announcement of the remaining threads: the next waker has something for one of those, and the
//! first thread may not have run by then. So the claim of such a waker leaves ANNOUNCED set and counts `n` threads as
//! claimed, until as many are claimed as there are threads. Then it clears ANNOUNCED and wakes all remaining threads.
//! Hence a storm of signals makes no more system calls than there are threads in `wait()`. A thread that leaves with a
//! share owes the others nothing as long as they are announced or all of them are claimed, because the waker that makes
//! a share also wakes a thread for it.
//!
//! Why no wake-up is lost:
//!
//! * Sleeper 3 and 4 against waker 1 and 2 is a [`DEKKER`] handshake: the sleeper sees the condition, or the waker sees
//!   the announcement.
//! * A claim between sleeper 4 and 5 changes the generation, so the sleep does not begin. Comparing with the
//!   announcement itself would not be enough: another thread, for which the condition is not true, may have set it
//!   again in between.
//! * A claim clears the announcement of all threads, but may wake only one. Every thread that leaves, for whatever
//!   reason, announces the threads that stay, and checks the condition once more on their behalf (7). That covers
//!   wake-ups of a thread that is about to time out or that takes nothing, units left over, and signals that came while
//!   nothing was announced.
//! * Without a claim, the announcement is cleared only by the last thread that leaves, in the same step in which the
//!   thread ceases to be counted. No thread is left that could miss the announcement, and a later signal makes no
//!   system call.
//!
//! Tasks wait in a list of their own. [`TASKS`] tells a waker to examine that list, see `src/event/wakers.rs`.
//!
//! There are two kinds of observers. Observers of the first kind are called each time; [`OBSERVED`] is set as long as
//! there are any. Observers of the second kind are called once and then not again before they ask, like an epoll that
//! has the event in its ready list already. Such an observer sets [`ARMED`] and then checks the condition, and a waker
//! that sees the bit claims it and calls all of them. That is the handshake of sleeper 3 and 4. A signal costs one load
//! if no call is outstanding.
//!
//! The number of claimed threads orders nothing and wakes nobody by itself, so it need not be exact. It is too low
//! after a thread has left that was not claimed; the consequence is wake-ups for nobody. It is too high after a claimed
//! thread has found nothing and sleeps again; the consequence is that a claim wakes all remaining threads too early. If
//! it is too high, there is an announcement, because a thread that sleeps again announces itself first. A thread that
//! leaves relies on that.
//!
//! 22 bits are enough for as many threads as Linux can have (`PID_MAX_LIMIT`).
//!
//! The generation wraps after 2^32 claims. To sleep through a wake-up, a thread would have to be preempted between 2 or
//! 6 and 5 for exactly that many claims, each of which is a system call: more than ten minutes.

use super::atomic::{AtomicU32, Ordering};
use super::futex;
pub(crate) use super::futex::{MOST_WORDS, Outcome, Refused, most_words};
use super::scope::{Private, RetryBudget, Scope};
use super::{DEKKER, dekker_load};
use std::marker::PhantomData;
use std::time::Instant;

/// A thread may be asleep that has not been woken yet.
const ANNOUNCED: u32 = 1;
/// Observers are to be called once.
pub(crate) const ARMED: u32 = 2;
/// Observers are to be called each time.
pub(crate) const OBSERVED: u32 = 4;
/// There are tasks to be woken. Changes only under the lock of their list.
pub(crate) const TASKS: u32 = 8;
/// One thread in [`Waiters::wait`], in units of `state`.
const WAITER: u32 = 1 << 4;
/// One thread that was claimed while others stay announced, in units of `state`.
const CLAIMED: u32 = 1 << 26;
/// The most claimed threads that `state` can count.
const MOST_CLAIMED: u32 = u32::MAX / CLAIMED;

/// Wakes all threads that sleep on a word.
const ALL: u32 = u32::MAX;

/// How many of the waiting threads can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// One, which takes all there is.
    One,
    /// So many, each of which takes one share.
    Each(u32),
    /// All. A thread that finds too little waits on.
    All,
}

impl Release {
    pub(crate) const NOBODY: Release = Release::Each(0);
}

fn waiters(state: u32) -> u32 {
    state % CLAIMED / WAITER
}

fn claimed(state: u32) -> u32 {
    state / CLAIMED
}

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

    /// Initialises memory that nobody uses yet, whatever it contains.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn reset(&self) {
        self.state.store(0, Ordering::Relaxed);
        self.generation.store(0, Ordering::Relaxed);
    }

    /// How many threads wait. The number may be stale.
    pub(crate) fn count(&self) -> u32 {
        waiters(self.state.load(Ordering::Relaxed))
    }

    /// Wakes threads if any are announced, then has `call` call the observers of those `kinds` (of [`ARMED`],
    /// [`OBSERVED`] and [`TASKS`]) that there are. Observers of other kinds are left to other wakers. To be called
    /// after the condition was made true with a [`DEKKER`] store, if there [is work](Self::has_work).
    #[inline(always)]
    pub(crate) fn notify(
        &self,
        whom: impl FnOnce() -> Release,
        kinds: u32,
        call: impl FnOnce(u32),
    ) {
        // Relaxed: comes after the load of `has_work`. A thread that announces itself after that sees the condition.
        let state = self.state.load(Ordering::Relaxed);
        if state & ANNOUNCED != 0 || !self.claim_observers_once(state, kinds) {
            return self.notify_slow(whom(), kinds, call);
        }
        if state & kinds != 0 {
            call(state & kinds);
        }
    }

    #[cold]
    #[inline(never)]
    fn notify_slow(&self, whom: Release, kinds: u32, call: impl FnOnce(u32)) {
        // The threads first: a call may take long, or wait for one of them. The observers are claimed right before they
        // are called, because other wakers rely on the claim.
        self.wake_sleepers(whom);
        let kinds = self.claim_observers(kinds);
        if kinds != 0 {
            call(kinds);
        }
    }

    /// As [`notify`](Self::notify), but calls the observers first, because one of them takes what the threads wait for.
    /// The threads are woken even if a call panics.
    #[cold]
    #[inline(never)]
    pub(crate) fn notify_observers_first(&self, whom: Release, kinds: u32, call: impl FnOnce(u32)) {
        let _wake_sleepers = CallOnDrop(|| self.wake_sleepers(whom));
        let kinds = self.claim_observers(kinds);
        if kinds != 0 {
            call(kinds);
        }
    }

    /// Whether there are threads or observers for [`notify`](Self::notify) to wake or call. To be called after the
    /// condition was made true with a [`DEKKER`] store.
    #[inline(always)]
    pub(crate) fn has_work(&self, kinds: u32) -> bool {
        // Second half of the handshake with `announce` and `set`.
        dekker_load(&self.state) & (ANNOUNCED | kinds) != 0
    }

    /// Whether there are observers to call, likewise.
    pub(crate) fn has_observers(&self, kinds: u32) -> bool {
        dekker_load(&self.state) & kinds != 0
    }

    /// Claims the armed observers, if they are of the `kinds`, and returns which of the kinds are to be called.
    pub(crate) fn claim_observers(&self, kinds: u32) -> u32 {
        // Relaxed, as in `notify`.
        let state = self.state.load(Ordering::Relaxed);
        if self.claim_observers_once(state, kinds) {
            return state & kinds;
        }
        self.claim(|state| state & !(kinds & ARMED)) & kinds
    }

    /// The same, in one attempt, which succeeds if `state` is still the state.
    #[inline(always)]
    fn claim_observers_once(&self, state: u32, kinds: u32) -> bool {
        let after = state & !(kinds & ARMED);
        // Acquire as in `claim`.
        let claim = || {
            self.state
                .compare_exchange(state, after, Ordering::AcqRel, Ordering::Relaxed)
        };
        after == state || claim().is_ok()
    }

    /// Wakes threads if any are announced.
    #[inline(always)]
    fn wake_sleepers(&self, whom: Release) {
        // Relaxed, as in `notify`.
        if self.state.load(Ordering::Relaxed) & ANNOUNCED != 0 {
            self.wake_announced(whom);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_announced(&self, whom: Release) {
        let claimed = self.claim_sleepers(whom);
        self.wake_claimed(claimed);
    }

    /// Claims threads, if any are announced, which the caller has to wake, here or where they sleep. None of them falls
    /// asleep from now on without having checked the condition again.
    pub(crate) fn claim_sleepers(&self, whom: Release) -> Claimed {
        let state = self.claim(|state| after_claim(state, whom));
        let claimed = Claimed {
            threads: threads_to_wake(state, whom),
            alone: waiters(state) == 1,
        };
        if claimed.are_some() {
            // Release pairs with the Acquire in `generation`: an announcement under the new one is not the one claimed.
            self.generation.fetch_add(1, Ordering::Release);
        }
        claimed
    }

    /// Wakes the claimed threads that are asleep.
    pub(crate) fn wake_claimed(&self, claimed: Claimed) {
        if claimed.are_some() {
            S::wake(&self.generation, claimed.threads);
        }
    }

    /// Whether a thread may be asleep that has not been woken yet. To be called after the condition was made true with
    /// a [`DEKKER`] store: second half of the handshake with `announce`.
    pub(crate) fn is_announced(&self) -> bool {
        self.has_work(0)
    }

    /// Wakes all threads that sleep here or are about to, announced or not.
    #[cfg_attr(any(loom, not(target_os = "linux")), allow(dead_code))]
    pub(crate) fn wake_everybody(&self) {
        // Release as in `claim_sleepers`.
        self.generation.fetch_add(1, Ordering::Release);
        S::wake(&self.generation, ALL);
    }

    /// Makes a claim, unless there is nothing to be claimed, in which case `after` changes nothing. Returns the state
    /// before the claim; what another waker has claimed is not in it.
    fn claim(&self, after: impl Fn(u32) -> u32) -> u32 {
        let mut state = self.state.load(Ordering::Relaxed);
        let mut retries = RetryBudget::new();
        while after(state) != state {
            // Acquire pairs with the Release half of `set`: the announcing thread has read the generation that ends
            // next, and the observer that armed is in the list.
            match self.state.compare_exchange_weak(
                state,
                after(state),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => state = now,
            }
            if retries.spend::<S>() {
                break;
            }
        }
        state
    }

    /// Waits until `attempt` yields something, or until the deadline, after which it makes one last attempt.
    ///
    /// `attempt` must load the condition with [`DEKKER`], on its failing paths above all. `left_over` says which of the
    /// other waiters could go on now. It is called when this thread leaves and others stay.
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        attempt: impl FnMut() -> Option<T>,
        left_over: impl FnOnce() -> Release,
    ) -> Option<T> {
        self.wait_in(attempt, |key| self.sleep(key, deadline), left_over)
    }

    /// As [`wait`](Self::wait), for threads that may sleep elsewhere than here: `sleep` is called with the key that
    /// [`sleep`](Self::sleep) takes, and knows the deadline.
    pub(crate) fn wait_in<T>(
        &self,
        attempt: impl FnMut() -> Option<T>,
        sleep: impl FnMut(u32) -> Outcome,
        left_over: impl FnOnce() -> Release,
    ) -> Option<T> {
        let result = self.enter_and_try(attempt, sleep);
        self.leave(result.is_some(), left_over);
        result
    }

    /// As [`wait`](Self::wait), for a thread that takes nothing: what it was woken for is left to the others.
    pub(crate) fn watch(
        &self,
        deadline: Option<Instant>,
        mut is_true: impl FnMut() -> bool,
        left_over: impl FnOnce() -> Release,
    ) -> bool {
        let attempt = || is_true().then_some(());
        let result = self.enter_and_try(attempt, |key| self.sleep(key, deadline));
        self.leave(false, left_over);
        result.is_some()
    }

    /// Steps 1 to 6 of a sleeper.
    fn enter_and_try<T>(
        &self,
        mut attempt: impl FnMut() -> Option<T>,
        mut sleep: impl FnMut(u32) -> Outcome,
    ) -> Option<T> {
        let mut key = self.enter();
        loop {
            self.announce();
            if let Some(taken) = attempt() {
                break Some(taken);
            }
            let outcome = sleep(key);
            // Before the next announcement: if the attempt succeeds, the next signal makes no system call.
            key = self.generation();
            let taken = attempt();
            if taken.is_some() || outcome == Outcome::TimedOut {
                break taken;
            }
        }
    }

    /// Sleeps until the generation is no longer `key`, until a wake-up or until the deadline. May return spuriously.
    pub(crate) fn sleep(&self, key: u32, deadline: Option<Instant>) -> Outcome {
        S::wait(&self.generation, key, deadline)
    }

    /// What a process leaves behind that is killed in `notify`, between the claim and the wake-up.
    #[cfg(loom)]
    pub(crate) fn claim_for_nothing(&self) {
        if self.is_announced() {
            self.claim(|state| after_claim(state, Release::One));
        }
    }

    /// What a process leaves behind that is killed asleep.
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
        // Acquire pairs with the Release in `claim_sleepers`: a thread that was woken sees the condition.
        self.generation.load(Ordering::Acquire)
    }

    /// Asks for a wake-up.
    pub(crate) fn announce(&self) {
        self.set(ANNOUNCED);
    }

    /// Sets the bits. The caller checks the condition afterwards, with [`DEKKER`] loads.
    pub(crate) fn set(&self, bits: u32) {
        // A read-modify-write even if they are set already: first half of the handshake with `notify`.
        self.state.fetch_or(bits, DEKKER);
    }

    /// Whether any of the bits is set, for a caller that keeps others from changing them.
    pub(crate) fn has(&self, bits: u32) -> bool {
        self.state.load(Ordering::Relaxed) & bits != 0
    }

    /// Clears the bits.
    pub(crate) fn clear(&self, bits: u32) {
        self.state.fetch_and(!bits, Ordering::Relaxed);
    }

    /// Step 7 of a thread that has entered. `took` says whether it has taken a share, `left_over` which of the others
    /// could go on now, if there are others.
    pub(crate) fn leave(&self, took: bool, left_over: impl FnOnce() -> Release) {
        let before = self.uncount();
        if waiters(left(before)) == 0 {
            return;
        }
        match left_over() {
            Release::Each(_) if took && will_be_woken(before) => {}
            whom => self.wake_sleepers(whom),
        }
    }

    /// Ceases to count this thread, and announces the others unless all of them are claimed. Returns the state before.
    fn uncount(&self) -> u32 {
        let mut state = self.state.load(Ordering::Relaxed);
        let mut retries = RetryBudget::new();
        loop {
            let left = left(state);
            let after = if waiters(left) == 0 {
                left % WAITER
            } else if will_be_woken(state) {
                left | state & ANNOUNCED
            } else {
                left | ANNOUNCED
            };
            // First half of the handshake with `notify`, on behalf of the others.
            match self
                .state
                .compare_exchange_weak(state, after, DEKKER, Ordering::Relaxed)
            {
                Ok(_) => return state,
                Err(now) => state = now,
            }
            if retries.spend::<S>() {
                self.state.fetch_sub(WAITER, Ordering::Relaxed);
                self.announce();
                // Another thread may be left that nobody will wake.
                return 2 * WAITER;
            }
        }
    }
}

/// The state without one thread and its claim, and without the announcement.
fn left(state: u32) -> u32 {
    let one = if claimed(state) == 0 {
        WAITER
    } else {
        WAITER + CLAIMED
    };
    // Wrapping: another process may have written anything.
    state.wrapping_sub(one) & !ANNOUNCED
}

/// Whether the waiting threads are announced, or all of them claimed. Then a waker that makes a share wakes a thread
/// for it.
fn will_be_woken(state: u32) -> bool {
    state & ANNOUNCED != 0 || claimed(state) >= waiters(state)
}

/// How many threads are claimed after a claim of `count` more, if any are announced. `None` stands for all of them.
fn claimed_by(state: u32, count: u32) -> Option<u32> {
    let claimed = claimed(state).saturating_add(count);
    (claimed < waiters(state).min(MOST_CLAIMED)).then_some(claimed)
}

/// What a claim for `whom` makes of a state.
fn after_claim(state: u32, whom: Release) -> u32 {
    if state & ANNOUNCED == 0 {
        return state;
    }
    let nobody = (state % CLAIMED) & !ANNOUNCED;
    let everybody = nobody + waiters(state).min(MOST_CLAIMED) * CLAIMED;
    match whom {
        // A waker that wakes nobody leaves the announcement to others.
        Release::NOBODY => state,
        Release::One => nobody,
        Release::Each(count) => match claimed_by(state, count) {
            Some(claimed) => state % CLAIMED + claimed * CLAIMED,
            None => everybody,
        },
        Release::All => everybody,
    }
}

/// How many sleepers a waker has to wake that makes a claim for `whom` in this state.
fn threads_to_wake(state: u32, whom: Release) -> u32 {
    if state & ANNOUNCED == 0 {
        return 0;
    }
    match whom {
        Release::One if waiters(state) > 1 => 1,
        Release::Each(count) if claimed_by(state, count).is_some() || count == 0 => count,
        _ => ALL,
    }
}

/// Calls the function when it is dropped.
struct CallOnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for CallOnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
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

/// What a waker that has made a claim still has to do.
#[derive(Default)]
pub(crate) struct Claimed {
    /// How many sleeping threads are to be woken.
    threads: u32,
    /// One thread waited at the time of the claim, and no other.
    alone: bool,
}

impl Claimed {
    /// Whether there are threads to wake.
    pub(crate) fn are_some(&self) -> bool {
        self.threads != 0
    }

    /// Whether there is one thread to wake, and no other one waited at the time of the claim.
    pub(crate) fn is_one_alone(&self) -> bool {
        self.are_some() && self.alone
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Release::{All, Each, One};
    use super::*;

    const NOBODY: Release = Release::NOBODY;
    type Waiters = super::Waiters<Private>;

    /// Threads that wait here, as far as the state knows.
    fn announced(number: u32) -> Waiters {
        let waiters = Waiters::new();
        for _ in 0..number {
            waiters.enter();
            waiters.announce();
        }
        waiters
    }

    /// How many threads such claims wake, one after the other.
    fn claims<const N: usize>(waiters: &Waiters, whom: [Release; N]) -> [u32; N] {
        whom.map(|whom| waiters.claim_sleepers(whom).threads)
    }

    fn leave(waiters: &Waiters, took: bool, left_over: Release) -> u32 {
        let before = waiters.generation();
        waiters.leave(took, || left_over);
        waiters.generation() - before
    }

    #[test]
    fn each_share_wakes_a_thread_of_its_own_and_no_more_than_there_are() {
        let waiters = announced(3);
        assert_eq!(claims(&waiters, [Each(1), Each(1)]), [1, 1]);
        assert_eq!(claims(&waiters, [Each(1), Each(1), Each(9)]), [ALL, 0, 0]);
        assert_eq!(
            claims(&announced(3), [Each(2), NOBODY, Each(2), One]),
            [2, 0, ALL, 0]
        );
        assert_eq!(claims(&announced(3), [Each(u32::MAX), All]), [ALL, 0]);
        assert_eq!(claims(&announced(0), [Each(1), One, All]), [0; 3]);
    }

    #[test]
    fn what_is_taken_whole_wakes_one_and_what_is_for_all_wakes_all() {
        assert_eq!(
            claims(&announced(3), [One, One, Each(1), All]),
            [1, 0, 0, 0]
        );
        assert_eq!(claims(&announced(1), [One, One]), [ALL, 0]);
        assert_eq!(claims(&announced(3), [NOBODY, All, All]), [0, ALL, 0]);
        assert_eq!(claims(&announced(3), [Each(1), One, Each(1)]), [1, 1, 0]);
    }

    /// More than can be counted are woken all at once.
    #[test]
    fn so_many_that_they_are_not_counted() {
        for number in [MOST_CLAIMED, MOST_CLAIMED + 1, 1000] {
            let waiters = announced(number);
            for _ in 1..MOST_CLAIMED {
                assert_eq!(claims(&waiters, [Each(1)]), [1]);
            }
            assert_eq!(claims(&waiters, [Each(1), Each(1)]), [ALL, 0]);
            assert_eq!(waiters.count(), number);
        }
    }

    /// Without an announcement there is nothing to be claimed, and claimed threads stay claimed.
    #[test]
    fn who_is_not_announced_is_not_claimed() {
        let waiters = announced(3);
        claims(&waiters, [Each(1), Each(2)]);
        let before = waiters.state.load(Ordering::Relaxed);
        assert!(!waiters.is_announced());
        assert_eq!(claimed(before), 3);
        waiters.enter();
        assert_eq!(claims(&waiters, [NOBODY, One, Each(1), All]), [0; 4]);
        assert_eq!(waiters.state.load(Ordering::Relaxed), before + WAITER);
    }

    /// A thread that leaves with a share owes nothing to threads that are announced or claimed.
    #[test]
    fn who_leaves_with_a_share() {
        let waiters = announced(3);
        claims(&waiters, [Each(1)]);
        assert_eq!(leave(&waiters, true, Each(1)), 0);
        assert!(waiters.is_announced());
        // It no longer counts as claimed: both are still to be woken.
        assert_eq!(claims(&waiters, [Each(1), Each(1), Each(1)]), [1, ALL, 0]);
        assert_eq!(leave(&waiters, true, Each(1)), 0);
        assert!(!waiters.is_announced());
        assert_eq!(leave(&waiters, true, Each(1)), 0);
        assert_eq!((waiters.count(), waiters.is_announced()), (0, false));
        assert_eq!(waiters.state.load(Ordering::Relaxed), 0);
    }

    /// A thread that leaves without a share was woken for nothing, and acts as the waker.
    #[test]
    fn who_leaves_without_a_share() {
        let waiters = announced(3);
        claims(&waiters, [Each(1)]);
        assert_eq!(leave(&waiters, false, Each(1)), 1);
        assert_eq!(claims(&waiters, [Each(1), Each(1)]), [ALL, 0]);
        assert_eq!(leave(&waiters, false, NOBODY), 0);
        assert_eq!(waiters.count(), 1);
    }

    /// A thread that has come since the claim is not among the claimed ones.
    #[test]
    fn who_leaves_before_one_that_has_come_since() {
        let waiters = announced(2);
        claims(&waiters, [Each(2)]);
        waiters.enter();
        assert_eq!(leave(&waiters, true, NOBODY), 0);
        assert!(waiters.is_announced());
    }

    /// What was taken whole may have been meant for those that stay: they are announced, and woken if there is more.
    #[test]
    fn who_leaves_with_all() {
        let waiters = announced(3);
        claims(&waiters, [One]);
        assert_eq!(leave(&waiters, true, NOBODY), 0);
        assert!(waiters.is_announced());
        assert_eq!(leave(&waiters, true, One), 1);
        assert_eq!((waiters.count(), waiters.is_announced()), (1, false));
    }

    /// Claims and leaving do not change the bits of observers.
    #[test]
    fn observers_are_left_alone() {
        let waiters = announced(2);
        let all = ARMED | OBSERVED | TASKS;
        waiters.set(all);
        claims(&waiters, [Each(1), Each(1)]);
        leave(&waiters, true, NOBODY);
        leave(&waiters, true, NOBODY);
        assert_eq!(waiters.state.load(Ordering::Relaxed), all);
        assert_eq!(waiters.claim_observers(ARMED), ARMED);
        assert_eq!(waiters.claim_observers(all), OBSERVED | TASKS);
    }
}
