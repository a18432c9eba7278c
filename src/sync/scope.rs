//! Who shares a word: the threads of this process, or other processes, which may be killed at any point and may not
//! keep to the protocol.
//!
//! The kernel's counterpart is the difference between a futex with `FUTEX_PRIVATE_FLAG` and one without. For us there
//! is more to it. [`Shared`] protocols are those of [`Private`] ones, word for word, with two bounds:
//!
//! * **A sleep ends by itself** after [`LOOK_UP`], as a wake-up for no reason does. A peer may be killed between the
//!   claim of an announcement and the wake-up it owes, or when it has been woken and has not yet announced those who
//!   sleep on; it may also move a sleeper to another futex. All of that delays a sleeper by `LOOK_UP` at most.
//! * **A race ends.** Who has lost [`MANY`] in a row for one word does without: a read that takes one unit finds
//!   none, a write finds no room, a signal adds without looking whether it overflows, a waker wakes without claiming,
//!   a sleeper leaves without looking whether others stay. Peers that back off, as ours do, never beat anybody so
//!   often.

use super::atomic::AtomicU32;
use super::futex::{self, Outcome};
use std::time::Instant;

/// With whom a word is shared.
pub(crate) trait Scope: 'static {
    /// Whether the others keep to the protocol and live as long as this process.
    const TRUSTED: bool;

    /// Sleeps while `word` holds `expected`, see [`futex`].
    fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Outcome;

    /// Wakes up to `count` threads that sleep on `word`.
    fn wake(word: &AtomicU32, count: u32);
}

/// The threads of this process.
pub(crate) struct Private;

impl Scope for Private {
    const TRUSTED: bool = true;

    fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Outcome {
        futex::wait(word, expected, deadline)
    }

    fn wake(word: &AtomicU32, count: u32) {
        futex::wake(word, count);
    }
}

/// Other processes that have mapped the memory in which the word is.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) struct Shared;

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Scope for Shared {
    const TRUSTED: bool = false;

    fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Outcome {
        futex::wait_shared(word, expected, deadline, LOOK_UP)
    }

    fn wake(word: &AtomicU32, count: u32) {
        futex::wake_shared(word, count);
    }
}

/// The longest that a sleeper among other processes goes without a look at its condition. An idle one costs as many
/// wake-ups; one whose waker was killed at the wrong instruction is late by so much.
#[cfg(any(target_os = "linux", target_os = "android"))]
const LOOK_UP: std::time::Duration = std::time::Duration::from_millis(250);

/// Lost races after which it is no use.
pub(crate) const MANY: u32 = 1024;

/// Lost races after which backing off does not help: somebody has the cache line all the time, and each pause only
/// makes what was seen of the word older.
const FEW: u32 = 16;

const FIRST_PAUSES: u32 = 8;
const MOST_PAUSES: u32 = 64;

/// The races for a word that one operation has lost.
pub(crate) struct Races(u32);

impl Races {
    #[inline(always)]
    pub(crate) fn none_lost() -> Self {
        Races(0)
    }

    /// Counts one more and backs off. Returns whether it is time to give up.
    #[inline(always)]
    pub(crate) fn lose<S: Scope>(&mut self) -> bool {
        self.0 = back_off(self.0);
        !S::TRUSTED && self.0 >= MANY
    }
}

/// What the loser of a race does before it tries again. In that time the winner goes on with the cache line, at a
/// fraction of what it costs to fetch it from another CPU: a few pauses pay for many operations. Returns how many are
/// lost now.
#[cold]
fn back_off(lost: u32) -> u32 {
    if lost < FEW {
        for _ in 0..MOST_PAUSES.min(FIRST_PAUSES << lost) {
            std::hint::spin_loop();
        }
    }
    lost.saturating_add(1)
}
