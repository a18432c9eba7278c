//! With whom a word is shared: with the threads of this process, or with other processes, which may be killed at any
//! point and may not keep to the protocol.
//!
//! The kernel's counterpart is the difference between a futex with `FUTEX_PRIVATE_FLAG` and one without. Here a
//! [`Shared`] word follows the protocol of a [`Private`] one, with two bounds added:
//!
//! * **A sleep ends by itself** after [`LOOK_UP`], like a spurious wake-up. A peer may be killed between the claim of
//!   an announcement and the wake-up that it owes, or after it was woken and before it has announced the threads that
//!   sleep on. It may also move a sleeper to another futex. Each of these delays a sleeper by at most `LOOK_UP`.
//! * **A retry loop ends.** An operation that has lost [`MANY`] races in a row for one word goes on without the word: a
//!   read that takes one unit finds none, a write finds no room, a signal adds without checking for overflow, a waker
//!   wakes without a claim, a sleeper leaves without checking whether others stay. Peers that back off, as this code
//!   does, never win that often.

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

/// The interval at which a sleeper on a shared word checks its condition by itself. It bounds the delay of a sleeper
/// whose waker was killed, and costs an idle sleeper one wake-up per interval.
#[cfg(any(target_os = "linux", target_os = "android"))]
const LOOK_UP: std::time::Duration = std::time::Duration::from_millis(250);

/// The number of lost races after which an operation on a shared word gives up.
pub(crate) const MANY: u32 = 1024;

/// The number of lost races after which backing off does not help: others use the cache line all the time, and a pause
/// only makes the loaded value staler.
const FEW: u32 = 16;

const FIRST_PAUSES: u32 = 8;
const MOST_PAUSES: u32 = 64;

/// Counts the races for a word that one operation has lost, and limits them if the word is shared.
pub(crate) struct RetryBudget(u32);

impl RetryBudget {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        RetryBudget(0)
    }

    /// Counts one more lost race, and backs off. Returns whether the operation has to give up.
    #[inline(always)]
    pub(crate) fn spend<S: Scope>(&mut self) -> bool {
        self.0 = back_off(self.0);
        !S::TRUSTED && self.0 >= MANY
    }
}

/// Pauses before the next attempt. Meanwhile the winner keeps the cache line, and uses it for a fraction of what it
/// costs to fetch the line from another CPU, so a few pauses pay for many operations. Returns the new number of lost
/// races.
#[cold]
fn back_off(lost: u32) -> u32 {
    if lost < FEW {
        for _ in 0..MOST_PAUSES.min(FIRST_PAUSES << lost) {
            std::hint::spin_loop();
        }
    }
    lost.saturating_add(1)
}
