//! A cache of where searches have ended, by address. It pays since a vCPU rings the same doorbells again and again.

use crate::spread::spread;
use std::cell::Cell;

/// A cache with one entry for each hash of an address. A lookup checks what the cache says, so an outdated entry does
/// no harm, and both buses share the cache.
pub(super) struct Hints([Hint; Hints::COUNT]);

/// The lower half of the address, and where the search for it ended. The half of the address is here so that a lookup
/// of another address need not load from the table, which may be large, to find that the hint is of no use.
pub(super) struct Hint(Cell<u64>);

impl Hints {
    /// 4 KiB, in the cache of a CPU that has 32 and more. With half as many, 18 of 64 doorbells at a distance of 8
    /// bytes share a hint with another.
    const COUNT: usize = 1 << Self::BITS;
    const BITS: u32 = 9;

    #[inline(always)]
    pub(super) fn of(&self, address: u64) -> &Hint {
        // A device's doorbells are at equal distances.
        &self.0[spread(address, Self::BITS)]
    }
}

impl Default for Hints {
    fn default() -> Self {
        Hints([const { Hint(Cell::new(0)) }; Hints::COUNT])
    }
}

impl Hint {
    #[inline(always)]
    pub(super) fn index(&self, address: u64) -> Option<usize> {
        let hint = self.0.get();
        (hint as u32 == address as u32).then_some((hint >> 32) as usize)
    }

    pub(super) fn set(&self, address: u64, index: usize) {
        // Beyond 2^32 doorbells the index is truncated, which makes a wrong hint.
        self.0.set((index as u64) << 32 | u64::from(address as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_of_the_address_that_it_was_set_for() {
        let hints = Hints::default();
        for address in [0, 1, 0xfe00_0000, 0xfe00_0008, u64::MAX] {
            hints.of(address).set(address, address as usize % 1000);
            let index = hints.of(address).index(address);
            assert_eq!(index, Some(address as usize % 1000));
            assert_eq!(hints.of(address).index(address ^ 4), None);
        }
    }

    /// As virtio and NVMe have them: few of 64 doorbells at equal distances share a hint, at any distance up to a page.
    #[test]
    fn doorbells_of_a_device_keep_clear_of_one_another() {
        for shift in 1..=12 {
            for base in [0xc000, 0xfe00_0000, 0xe000_3000, 0x38_0000_0000] {
                let hints = Hints::default();
                let addresses = || (0..64).map(|i| base + (i << shift));
                addresses().for_each(|address| hints.of(address).set(address, 1));
                let lost =
                    addresses().filter(|&address| hints.of(address).index(address).is_none());
                assert_eq!(lost.count(), 0, "{base:x} {shift}");
            }
        }
    }
}
