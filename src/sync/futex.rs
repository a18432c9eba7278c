//! Sleep while a 32-bit word holds a value, and wake those who do: `futex(2)`, private to the process.
//!
//! Untimed waits and wake-ups go through `atomic-wait` (Linux, Android, macOS, iOS, Windows, FreeBSD). Timed waits,
//! and waking a number of threads between one and all, use `futex(2)` itself on Linux and Android; elsewhere a timed
//! wait looks at the word at intervals of 50 µs growing to 1 ms, so it notices a wake-up up to 1 ms late.
//!
//! Any wait may end for no reason (a signal handler ran, a wake-up meant for another); callers look at their condition
//! again. Under loom the module is a model of the kernel's wait queue, see `model`.

#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
mod os;

#[cfg(loom)]
pub(crate) use model::{wait, wake};
#[cfg(not(loom))]
pub(crate) use os::{wait, wake};

/// Why a [`wait`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The word had another value, or a wake-up came, or nothing in particular happened.
    Woken,
    /// The deadline passed.
    TimedOut,
}
