//! Sleeps while a 32-bit word holds a value, and wake-ups of the sleepers: `futex(2)`, private to the process or shared
//! by processes that have mapped the word.
//!
//! Untimed waits and wake-ups go through `atomic-wait` (Linux, Android, macOS, iOS, Windows, FreeBSD). Timed waits, and
//! waking a number of threads between one and all, use `futex(2)` itself on Linux and Android; elsewhere a timed wait
//! looks at the word at intervals of 50 µs growing to 1 ms, so it notices a wake-up up to 1 ms late. Words that
//! processes share are for Linux and Android only; a word must not be used both ways.
//!
//! Waiting for several words at once uses `futex_waitv(2)`, which Linux has since 5.16. If it is refused, the caller
//! sleeps in another way.
//!
//! Any wait may end spuriously (a signal handler ran, or the wake-up was meant for another thread); callers check their
//! condition again. Under loom the module is a model of the kernel's wait queue, see `model`.

#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
mod os;

#[cfg(loom)]
pub(crate) use model::{most_words, wait, wait_any, wait_shared, wake, wake_shared};
#[cfg(not(loom))]
pub(crate) use os::{most_words, wait, wait_any, wake};
#[cfg(all(not(loom), any(target_os = "linux", target_os = "android")))]
pub(crate) use os::{wait_shared, wake_shared};

/// The most words that [`wait_any`] ever takes.
pub(crate) const MOST_WORDS: usize = 128;

/// Why a [`wait`] or [`wait_any`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The word had another value, a wake-up came, or the wait ended spuriously.
    Woken,
    /// The deadline passed.
    TimedOut,
}

/// The system cannot wait for several words, or does not let this process do so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;
