//! The orderings of handshakes, for the hardware and for loom.

use super::atomic::{self, Ordering};

/// The ordering of all accesses in a store-then-load (Dekker) handshake.
///
/// Two threads each write their own word and then read the other's: a signaller adds to the counter and loads the
/// announcement, a sleeper announces itself and loads the counter. At least one must see the other. That holds if all
/// four accesses are sequentially consistent: in their single total order, one of the loads comes last, and the store
/// that it must see comes before it. On x86 the stores are `lock`-prefixed instructions, which are full barriers,
/// and the loads are plain; on AArch64 they are `casal`/`swpal` and `ldar`.
///
/// None of the four may be weakened on its own: it would still work on x86, but other machines would lose wake-ups.
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

/// An acquiring load that comes after the load of another word, which the other side changes first.
///
/// Under loom, this is a read-modify-write that changes nothing. With a load, loom did not try the order in which the
/// other side makes both of its changes between the two loads, even in an exhaustive run
/// (`signal_and_unmask_inside_a_call`, with the loads exchanged). The reason is not known: loom tries it in small
/// programs of that shape.
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

/// A releasing store to a word that no other thread writes at the time, and that others load with [`dekker_load`],
/// [`acquire_load`] or another read-modify-write.
///
/// Under loom, those loads are read-modify-writes, and loom does not order a plain store among them. So under loom this
/// is a read-modify-write too.
#[inline(always)]
pub(crate) fn release_store<W: Word>(word: &W, value: W::Value) {
    if cfg!(loom) {
        word.swap(value, Ordering::Release);
    } else {
        word.store(value, Ordering::Release);
    }
}
