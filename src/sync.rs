//! Atomics, futexes and memory barriers: std's, or loom's in models.
//!
//! The kernel's counterpart is `<linux/wait.h>` and `<linux/atomic.h>`. No other module of the crate names
//! `std::sync::atomic`, a futex or a fence, so the code that `loom-tests` checks is the code that ships.
//!
//! | here | what it is |
//! |---|---|
//! | [`atomic`] | the atomics |
//! | [`DEKKER`], [`dekker_load`], [`acquire_load`], [`release_store`] | the orderings of handshakes |
//! | [`futex`] | sleep while a word has a value; wake sleepers |
//! | [`scope`] | whether a word is shared with threads of this process or with other processes |
//! | [`waiters`] | the threads and observers that wait for one condition |
//! | [`wake_queue`] | wake-ups held back, so that each sleeper is woken once |
//! | [`parker`] | a thread asleep behind a `Waker` |
//! | [`limit`] | how long a call may wait |
//! | [`lazy`] | a value made when it is first asked for |
//! | [`spin`], [`cpus`] | how long to spin before sleeping, and whether spinning makes sense |
//! | [`srcu`] | snapshots that are read often and replaced seldom |
//! | [`membarrier`] | which barriers `srcu` and signallers use |
//! | [`wide`] | an atomic word of 128 bits |
//! | [`fork`], [`this_thread()`] | which process and which thread this is |
//! | [`Tally`], [`Numbers`] | how often something has happened; numbers that are given out once |
//! | [`brief`], [`fair`], [`Mutex`] | a spinlock, parking_lot's mutex, and std's |
//! | [`UnsafeCell`] | a cell whose accesses loom checks |

#[cfg(not(loom))]
pub(crate) mod brief;
#[cfg(loom)]
pub mod brief;
mod cell;
mod count;
pub(crate) mod cpus;
mod dekker;
#[cfg(target_os = "linux")]
pub(crate) mod fair;
pub(crate) mod fork;
#[cfg(not(loom))]
pub(crate) mod futex;
#[cfg(loom)]
pub mod futex;
pub(crate) mod lazy;
pub(crate) mod limit;
pub(crate) mod membarrier;
pub(crate) mod parker;
pub(crate) mod scope;
pub(crate) mod spin;
#[cfg(not(loom))]
pub(crate) mod srcu;
#[cfg(loom)]
pub mod srcu;
mod this_thread;
pub(crate) mod waiters;
pub(crate) mod wake_queue;
pub(crate) mod wide;

pub(crate) use cell::{ConstPtr, UnsafeCell};
pub(crate) use count::{Numbers, Tally};
pub(crate) use dekker::{DEKKER, acquire_load, dekker_load, release_store};
pub(crate) use this_thread::this_thread;

#[cfg(not(loom))]
pub(crate) use std::sync::atomic;

#[cfg(not(loom))]
pub(crate) use std::thread::yield_now;

#[cfg(loom)]
pub(crate) use loom::thread::yield_now;

#[cfg(loom)]
pub(crate) use loom::sync::atomic;

#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};

/// `thread_local!` for values that begin as a constant, which loom's does not know.
macro_rules! const_thread_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:block;)*) => {
        #[cfg(not(loom))]
        std::thread_local! {
            $($(#[$attribute])* static $name: $type = const $value;)*
        }
        #[cfg(loom)]
        loom::thread_local! {
            $($(#[$attribute])* static $name: $type = $value;)*
        }
    };
}
pub(crate) use const_thread_local;
