//! A count that is split: what signallers have added, each in a lane of its own, and a base for all the rest.
//!
//! The kernel has no counterpart. A signal of an event whose count is one word costs a locked instruction, and the
//! cache line of that word moves between signaller and reader. A [`Signaller`](super::Signaller) adds to a word that no
//! other thread writes:
//!
//! ```text
//!     count = base + lane + lane + …            all of them only ever change like this:
//!
//!     base    what was written, less what was read; by compare-exchange, with a number of its own for each change
//!     lane    signals of one signaller since it was made, by a plain store; it only grows, and one at a time
//! ```
//!
//! **No operation sees a count that never was.** An operation loads the base, then all lanes. Then it changes the base
//! by a compare-exchange, or, if there is nothing to change, loads the base again to see whether it is the same. Each
//! change of the base has a number, so the base was the same all the time. Meanwhile the lanes, and so the count, grew
//! in steps of one. The sum lies between the count before the first lane was loaded and the count after the last one
//! was, so at some moment in between the count had that value. At that moment the operation takes effect, before all
//! later signals. That is why a lane takes signals of 1 only: with steps of 10 and 1, the count could have skipped the
//! sum.
//!
//! The base may be negative: a read of everything in the lanes subtracts it from the base. The count is at most
//! `u64::MAX`. If base and lanes are more, because signals came in the overflow state, the operation that finds that
//! absorbs the rest.
//!
//! **From whole to split.** The count of an event is one word until its first signaller is made:
//!
//! ```text
//!     state    WHOLE ──▶ SPLITTING ──▶ SPLIT       a signaller is made
//!        └───▶ OVERFLOWED                          the count gets to u64::MAX by a signal
//!
//!     1  WHOLE → SPLITTING                         1  the sum is u64::MAX: WHOLE → OVERFLOWED, or is it that already?
//!     2  base = count                              2  put it in place of the count
//!     3  put u64::MAX in place of that count; has it changed?  from 2
//!     4  SPLITTING → SPLIT
//! ```
//!
//! Step 3 is one compare-exchange. An operation on the whole count is one as well, so it takes effect before step 3, or
//! finds `u64::MAX` in the word. In a whole count, `u64::MAX` is the overflow state. A count that has ever overflowed
//! is never split, so in a count that is split, or being split, `u64::MAX` means only that. A signal that would make
//! the count overflow while it is being split waits for step 4; no other operation waits. A split count stays split.

use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::lazy::Lazy;
use crate::sync::scope::{Private, RetryBudget};
use crate::sync::wide::Wide;
use crate::sync::{DEKKER, Numbers, acquire_load, membarrier, release_store, yield_now};
use crossbeam_utils::CachePadded;
use std::num::NonZero;
use std::ops::Deref;
use std::sync::Arc;

/// The value of the word of a count that is split.
pub(super) const ELSEWHERE: u64 = u64::MAX;

/// Further signallers have no lane. Fewer in models, where each lane multiplies the states.
const MOST_LANES: usize = if cfg!(loom) { 2 } else { 64 };

const WHOLE: u8 = 0;
const SPLITTING: u8 = 1;
const SPLIT: u8 = 2;
const OVERFLOWED: u8 = 3;

/// Whether a count can be split, and is.
pub(crate) trait Split {
    /// Whether a count of this kind may be [`ELSEWHERE`].
    const POSSIBLE: bool;

    /// The lanes, if [`ELSEWHERE`] was found in the word.
    fn lanes(&self) -> Option<&Lanes>;

    /// Whether `u64::MAX` may be put into the word, meaning the overflow state. If it may not, the caller loads the
    /// word again before it asks again.
    fn may_overflow(&self) -> bool;
}

/// The count of an event that is shared with other processes stays in one word.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) struct Never;

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Split for Never {
    const POSSIBLE: bool = false;

    fn lanes(&self) -> Option<&Lanes> {
        None
    }

    fn may_overflow(&self) -> bool {
        true
    }
}

/// For the count of an event in this process.
pub(crate) struct OnDemand {
    lanes: Lazy<Lanes>,
    state: AtomicU8,
}

impl OnDemand {
    maybe_const! {
        /// For a count that begins with `initial`.
        pub(super) fn new(initial: u64) -> Self {
            OnDemand {
                lanes: Lazy::new(),
                state: AtomicU8::new(if initial == ELSEWHERE { OVERFLOWED } else { WHOLE }),
            }
        }
    }

    /// The number of the lanes, if there are any. (A count that is being split has lanes that nobody uses yet.)
    #[inline(always)]
    pub(super) fn number(&self) -> Option<Number> {
        self.lanes.get()?.number
    }

    /// Splits the count in the word, unless it is split. Waits for no other thread.
    #[cold]
    pub(super) fn split(&self, word: &AtomicU64) -> Result<&Lanes, Unsplit> {
        if !Wide::is_lock_free() {
            return Err(Unsplit::ForGood);
        }
        // Acquire pairs with the Release below: the lanes are there.
        let claim =
            self.state
                .compare_exchange(WHOLE, SPLITTING, Ordering::Acquire, Ordering::Acquire);
        match claim {
            Ok(_) => {}
            Err(SPLITTING) => return Err(Unsplit::ForNow),
            Err(SPLIT) => return self.lanes.get().ok_or(Unsplit::ForGood),
            Err(_) => return Err(Unsplit::ForGood),
        }
        let lanes = self.lanes.get_or_make(Lanes::new);
        let mut count = word.load(DEKKER);
        loop {
            lanes.base.set(base(0, count.into()));
            match word.compare_exchange(count, ELSEWHERE, DEKKER, DEKKER) {
                Ok(_) => break,
                Err(now) => count = now,
            }
        }
        // Pairs with the Acquire of a thread that finds SPLIT, which then has the lanes.
        self.state.store(SPLIT, Ordering::Release);
        Ok(lanes)
    }

    /// Enters or leaves the state in which another thread splits the count.
    #[cfg(all(test, not(loom)))]
    pub(super) fn pretend_to_split(&self, is_splitting: bool) {
        let state = if is_splitting { SPLITTING } else { WHOLE };
        self.state.store(state, Ordering::Relaxed);
    }
}

/// Why a count is not split.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsplit {
    /// Another thread is splitting it.
    ForNow,
    /// The count has overflowed before, or the processor cannot.
    ForGood,
}

impl Split for OnDemand {
    const POSSIBLE: bool = true;

    fn lanes(&self) -> Option<&Lanes> {
        // Relaxed: the load that found ELSEWHERE in the word acquired what came before it, state and lanes included.
        match self.state.load(Ordering::Relaxed) {
            SPLITTING | SPLIT => self.lanes.get(),
            _ => None,
        }
    }

    fn may_overflow(&self) -> bool {
        let claim =
            self.state
                .compare_exchange(WHOLE, OVERFLOWED, Ordering::Relaxed, Ordering::Relaxed);
        let may = matches!(claim, Ok(_) | Err(OVERFLOWED));
        if !may {
            yield_now();
        }
        may
    }
}

/// Distinguishes the lanes of one event from those of all other events, past and future.
pub(super) type Number = NonZero<u32>;

/// Where a split count is.
pub(crate) struct Lanes {
    /// `None` if all numbers are used up; then no lane is given out.
    number: Option<Number>,
    base: CachePadded<Wide>,
    lanes: [Lazy<Arc<CachePadded<Lane>>>; MOST_LANES],
    /// No lane from this one on has ever been used.
    used: AtomicUsize,
}

impl Lanes {
    fn new() -> Self {
        static NUMBERS: Numbers = Numbers::new();
        Lanes {
            number: NUMBERS.next(),
            base: CachePadded::new(Wide::new(0)),
            lanes: std::array::from_fn(|_| Lazy::new()),
            used: AtomicUsize::new(0),
        }
    }

    /// A lane without an owner, if there is one left.
    pub(super) fn claim(&self) -> Option<(Number, Owned)> {
        let number = self.number?;
        for (index, lane) in self.lanes.iter().enumerate() {
            let lane = lane.get_or_make(Arc::default);
            // Relaxed: a first check that leaves the cache lines of owned lanes where they are.
            if lane.owned.load(Ordering::Relaxed) {
                continue;
            }
            // Acquire pairs with the Release of the previous owner: the new one goes on from what that has stored.
            // Second half of the handshake of `hear`: a waiter that found no owner here has announced itself before.
            if !lane.owned.swap(true, DEKKER) {
                // The Release half pairs with the Acquire in `used`. It comes before the first signal, so a thread that
                // sees the signal sees this. In the handshake of `hear` it counts as the swap does, since `hear` finds
                // the lane through it.
                self.used.fetch_max(index + 1, DEKKER);
                return Some((number, Owned(Arc::clone(lane))));
            }
        }
        None
    }

    /// The count now.
    pub(super) fn count(&self) -> u64 {
        let mut count = 0;
        self.update(|now| {
            count = now;
            None
        });
        count
    }

    /// Changes the count to what `next` makes of it, and returns what it was; or gives up when `next` does. All of it
    /// is [`DEKKER`], but for the lanes: see [`hear`](Self::hear).
    pub(super) fn update(&self, mut next: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        let mut retries = RetryBudget::new();
        loop {
            let before = self.base.load();
            let added = self.added();
            let sum = (value(before) + i128::from(added)).min(u64::MAX.into());
            let count =
                u64::try_from(sum).unwrap_or_else(|_| unreachable!("more read than there was"));
            match next(count) {
                Some(new) => {
                    let after = base(number(before) + 1, i128::from(new) - i128::from(added));
                    if self.base.replace(before, after) {
                        return Some(count);
                    }
                }
                None if self.base.load() == before => return None,
                None => {}
            }
            retries.spend::<Private>();
        }
    }

    /// The sum of the lanes at some moment between two loads of the base that find the same.
    fn added(&self) -> u64 {
        // They pair with the store of a signaller.
        let added = |lane: &CachePadded<Lane>| acquire_load(&lane.added);
        self.used(Ordering::Acquire).map(added).sum()
    }

    fn used(&self, order: Ordering) -> impl Iterator<Item = &CachePadded<Lane>> {
        let used = self.used.load(order);
        self.lanes[..used]
            .iter()
            .filter_map(Lazy::get)
            .map(Arc::as_ref)
    }

    /// To be called after an announcement: from here on, the caller sees each signal of a signaller that has not seen
    /// the announcement. First half of the handshake; the second is [`Lane::add_one`] and the load of the announcement.
    /// Returns whether there are such signallers.
    #[cold]
    pub(super) fn hear(&self) -> bool {
        // A signaller that has given its lane back has released its signals.
        let any = self.used(DEKKER).any(|lane| lane.owned.load(DEKKER));
        if any {
            membarrier::heavy();
        }
        any
    }
}

/// The signals of the signaller that owns it, and of its previous owners.
#[derive(Default)]
pub(super) struct Lane {
    added: AtomicU64,
    owned: AtomicBool,
}

impl Lane {
    /// First half of a signal, by the owner. There is no processor barrier between it and the load of the announcement:
    /// [`hear`](Lanes::hear) makes up for that.
    #[inline(always)]
    pub(super) fn add_one(&self) {
        // Relaxed: its own. The store pairs with the loads in `added`.
        let added = self.added.load(Ordering::Relaxed);
        release_store(&self.added, added + 1);
        membarrier::light();
    }
}

/// The lane of a signaller, as long as it lives.
pub(super) struct Owned(Arc<CachePadded<Lane>>);

impl Owned {
    /// Whether the event is gone.
    pub(super) fn is_left_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Deref for Owned {
    type Target = Lane;

    #[inline(always)]
    fn deref(&self) -> &Lane {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Pairs with the loads and the swap in `claim` and `hear`.
        release_store(&self.owned, false);
    }
}

/// The number of changes, and the value, of a base: 56 and 72 bits.
///
/// At 10 ns a change, the number wraps after 22 years, and would have to do so within one operation to cause a mistake.
/// The value has room for 2^71 signals.
fn base(number: u128, value: i128) -> u128 {
    number << VALUE_BITS | value as u128 & ((1 << VALUE_BITS) - 1)
}

const VALUE_BITS: u32 = 72;

fn number(base: u128) -> u128 {
    base >> VALUE_BITS
}

fn value(base: u128) -> i128 {
    (base << (u128::BITS - VALUE_BITS)) as i128 >> (i128::BITS - VALUE_BITS)
}
