//! Counts that order nothing.

use std::num::NonZero;

/// How often something has happened, for statistics. It orders nothing, and nothing depends on it, so models do not
/// need to see it: it is std's under loom too.
#[derive(Default)]
pub(crate) struct Tally(std::sync::atomic::AtomicU64);

impl Tally {
    #[inline(always)]
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// For a caller that knows that no other thread adds at the same time.
    #[inline(always)]
    pub(crate) fn add_one_alone(&self) {
        self.0
            .store(self.get() + 1, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Gives out numbers, each of them once, until there are none left. They order nothing, and their values do not matter,
/// so it is std's under loom too.
pub(crate) struct Numbers(std::sync::atomic::AtomicU32);

impl Numbers {
    pub(crate) const fn new() -> Self {
        Numbers(std::sync::atomic::AtomicU32::new(0))
    }

    /// `None` from the 2^32nd call on, because a number that came twice would be mistaken for the first.
    pub(crate) fn next(&self) -> Option<NonZero<u32>> {
        use std::sync::atomic::Ordering::Relaxed;
        let one_more = |given: u32| given.checked_add(1);
        let given = self.0.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        NonZero::new(given + 1)
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
