//! Atomics, futexes and memory barriers: std's or loom's behind one face.
//!
//! The kernel's counterpart is `<linux/wait.h>` and `<linux/atomic.h>`. No other module of the crate names
//! `std::sync::atomic`, a futex or a fence, so the code that `loom-tests` checks is the code that ships.
//!
//! | here | what it is |
//! |---|---|
//! | [`atomic`] | the atomics, std's or loom's |
//! | [`DEKKER`], [`dekker_load`] | the ordering for "I store mine, then look at yours" |
//! | [`futex`] | sleep while a word has a value; wake sleepers |
//! | [`scope`] | whether a word is shared with threads of this process or with other processes |
//! | [`waiters`] | who waits for one condition: threads, woken once per announcement, and observers |
//! | [`wake_queue`] | wake-ups held back, and each sleeper woken once |
//! | [`parker`] | a thread asleep behind a `Waker` |
//! | [`limit`] | how long a call may wait |
//! | [`lazy`] | a value made when it is first asked for |
//! | [`spin`] | how long to look before sleeping |
//! | [`srcu`] | snapshots that are read often and replaced seldom |
//! | [`membarrier`] | which barriers `srcu` and signallers use |
//! | [`wide`] | an atomic word of 128 bits |
//! | [`fork`] | which process this is |
//! | [`Tally`] | how often something has happened |
//! | [`Numbers`] | names for what is not to be mistaken for something else |
//! | [`brief`] | a mutex that is held for a few instructions |
//! | [`Mutex`], [`UnsafeCell`] | std's or loom's |
//! | [`fair`] | parking_lot's mutex, or loom's |

#[cfg(not(loom))]
pub(crate) mod brief;
#[cfg(loom)]
pub mod brief;
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
pub(crate) mod waiters;
pub(crate) mod wake_queue;
pub(crate) mod wide;

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

/// A lock that comes round to everybody. std's may never come to a thread that waits, while others take it over and
/// over.
#[cfg(target_os = "linux")]
pub(crate) mod fair {
    #[cfg(not(loom))]
    pub(crate) use parking_lot::{Mutex as FairMutex, MutexGuard as FairMutexGuard};

    #[cfg(loom)]
    pub(crate) use loom::sync::{Mutex as FairMutex, MutexGuard as FairMutexGuard};
}

#[cfg(loom)]
pub(crate) use loom::cell::{ConstPtr, UnsafeCell};

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

use atomic::Ordering;
use std::num::NonZero;

/// A number that no other living thread has, and not 0.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) fn this_thread() -> usize {
    thread_local! {
        static MARK: u8 = const { 0 };
    }
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

#[cfg(loom)]
pub(crate) fn this_thread() -> usize {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(loom::thread::current().id()) as usize
}

/// The ordering of all accesses in a store-then-load (Dekker) handshake.
///
/// Two threads each write their own word and then read the other's: a signaller adds to the counter and looks for an
/// announcement, a sleeper announces itself and looks at the counter. At least one must see the other. That holds if
/// all four accesses are sequentially consistent: in their single total order one of the loads comes last, and the
/// store it looks for stands before it. On x86 the stores are `lock`-prefixed instructions, which are full barriers,
/// and the loads are plain; on AArch64 they are `casal`/`swpal` and `ldar`.
///
/// None of the four may be weakened on its own: x86 would go on working, and other machines would lose wake-ups.
pub(crate) const DEKKER: Ordering = Ordering::SeqCst;

/// One of the two loads of a [`DEKKER`] handshake; the other word must be written by read-modify-writes only.
///
/// loom gives sequentially consistent accesses only acquire-release meaning, and would report a lost wake-up that C++20
/// and Rust rule out. So under loom this is a read-modify-write that changes nothing: either it comes after the other
/// side's read-modify-write of the word and sees it, or before, and the other side then acquires from it and sees what
/// was stored before it. A fence would do as well, but loom has fences order more than they do: models would pass in
/// which nothing else hands the data over.
#[inline(always)]
pub(crate) fn dekker_load(word: &atomic::AtomicU32) -> u32 {
    if cfg!(loom) {
        word.fetch_add(0, DEKKER)
    } else {
        word.load(DEKKER)
    }
}

/// An acquiring load that comes after the look at another word, which the other side changes first.
///
/// Under loom a read-modify-write that changes nothing. With a load, loom did not try that the other side makes both of
/// its changes between the two looks, not even in an exhaustive run (`signal_and_unmask_inside_a_call`, with the looks
/// exchanged). Why is not known: it does so in small programs of that shape.
#[inline(always)]
pub(crate) fn acquire_load(word: &atomic::AtomicU64) -> u64 {
    if cfg!(loom) {
        word.fetch_add(0, Ordering::Acquire)
    } else {
        word.load(Ordering::Acquire)
    }
}

/// A word that [`release_store`] knows.
pub(crate) trait Word {
    type Value;

    fn store(&self, value: Self::Value, ordering: Ordering);

    fn swap(&self, value: Self::Value, ordering: Ordering) -> Self::Value;
}

macro_rules! words {
    ($($word:ident $value:ty),*) => {$(
        impl Word for atomic::$word {
            type Value = $value;

            #[inline(always)]
            fn store(&self, value: $value, ordering: Ordering) {
                self.store(value, ordering);
            }

            #[inline(always)]
            fn swap(&self, value: $value, ordering: Ordering) -> $value {
                self.swap(value, ordering)
            }
        }
    )*};
}

words! { AtomicBool bool, AtomicU32 u32, AtomicU64 u64 }

/// A releasing store to a word that no other thread writes at the time but looks at with [`dekker_load`],
/// [`acquire_load`] or another read-modify-write.
///
/// Under loom that look is a read-modify-write in any case, and loom does not order a plain store among those; so there
/// this is one.
#[inline(always)]
pub(crate) fn release_store<W: Word>(word: &W, value: W::Value) {
    if cfg!(loom) {
        word.swap(value, Ordering::Release);
    } else {
        word.store(value, Ordering::Release);
    }
}

/// How often something has happened, for people to look at. It orders nothing, and nothing depends on it, so models do
/// not need to see it: it is std's under loom too.
#[derive(Default)]
pub(crate) struct Tally(std::sync::atomic::AtomicU64);

impl Tally {
    #[inline(always)]
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// For who knows that nobody else adds at the same time.
    #[inline(always)]
    pub(crate) fn add_one_alone(&self) {
        self.0
            .store(self.get() + 1, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Numbers, each of which is given out once, until there are none left. They order nothing, and which they are does not
/// matter, so it is std's under loom too.
pub(crate) struct Numbers(std::sync::atomic::AtomicU32);

impl Numbers {
    pub(crate) const fn new() -> Self {
        Numbers(std::sync::atomic::AtomicU32::new(0))
    }

    /// `None` from the 2^32nd call on. No number comes twice: who has the same would be taken for the other.
    pub(crate) fn next(&self) -> Option<NonZero<u32>> {
        use std::sync::atomic::Ordering::Relaxed;
        let one_more = |given: u32| given.checked_add(1);
        let given = self.0.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        NonZero::new(given + 1)
    }
}

/// std's cell behind the face of loom's, which notices accesses that nothing keeps apart.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

/// A pointer into an [`UnsafeCell`]: while it is there, nobody may write.
#[cfg(not(loom))]
pub(crate) struct ConstPtr<T>(*const T);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> ConstPtr<T> {
        ConstPtr(self.0.get())
    }

    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

#[cfg(not(loom))]
impl<T> ConstPtr<T> {
    /// # Safety
    ///
    /// The cell is there, and nobody writes to it as long as the reference is used.
    #[inline(always)]
    pub(crate) unsafe fn deref(&self) -> &T {
        // SAFETY: as promised.
        unsafe { &*self.0 }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Numbers;
    use std::num::NonZero;

    #[test]
    fn numbers_come_once() {
        let numbers = Numbers::new();
        assert_eq!(numbers.next(), NonZero::new(1));
        assert_eq!(numbers.next(), NonZero::new(2));
        let numbers = Numbers((u32::MAX - 1).into());
        assert_eq!(numbers.next(), NonZero::new(u32::MAX));
        assert_eq!(numbers.next(), None);
        assert_eq!(numbers.next(), None);
    }
}
