//! Sorted addresses, searched one cache line at a time.
//!
//! ```text
//!     [ 17  3f  MAX ..          ]                        above: the last address of each line below
//!         │   │   └───────────────────┐
//!     [ 00 .. 17 ]  [ 18 .. 3f ]  [ 40 .. 52  MAX .. ]   all addresses, and at least one MAX to fill the last line
//! ```
//!
//! A search counts the addresses in a line that are less than the wanted one. The count is the number of the line to go
//! on in, one level below. Each step waits for one cache line and compares all of it at once, without a branch. A
//! binary search takes three dependent steps for the same.
//!
//! `MAX` is not less than any address. So the search stays within the lines, and ends at the first `MAX` at the latest.

use std::array;

/// How many addresses there are to a cache line.
const WIDTH: usize = 8;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct CacheLine([u64; WIDTH]);

impl CacheLine {
    /// The first addresses of `sorted`, filled up with `MAX`.
    fn of<T>(sorted: &[T], address: impl Fn(&T) -> u64) -> Self {
        CacheLine(array::from_fn(|i| sorted.get(i).map_or(u64::MAX, &address)))
    }

    fn last(&self) -> u64 {
        self.0[WIDTH - 1]
    }

    /// How many are less than `address`. The last one is not counted: it is `MAX`, or the search came to this line
    /// since the last one is not less.
    #[inline(always)]
    fn less(&self, address: u64) -> usize {
        let candidates = self.0[..WIDTH - 1].iter();
        candidates.map(|&other| usize::from(other < address)).sum()
    }
}

/// Immutable. Addresses may be equal.
#[derive(Clone, Default)]
pub(super) struct Addresses {
    /// The levels one after the other: first the level of all addresses, last the level of one line. Empty if there are
    /// no addresses.
    lines: Vec<CacheLine>,
    /// Where in `lines` each level begins, the level of one line first.
    levels: Vec<usize>,
}

impl Addresses {
    /// The addresses of elements that are sorted by address.
    pub(super) fn of<T>(sorted: &[T], address: impl Fn(&T) -> u64) -> Self {
        if sorted.is_empty() {
            return Self::default();
        }
        let size = sorted.len() / WIDTH + 1;
        let mut lines = Vec::with_capacity(size + size.div_ceil(WIDTH - 1) + 1);
        lines.extend(
            sorted
                .chunks(WIDTH)
                .map(|chunk| CacheLine::of(chunk, &address)),
        );
        lines.resize(size, CacheLine::of(&[], &address));
        let mut levels = vec![0];
        let mut start = 0;
        while lines.len() - start > 1 {
            let end = lines.len();
            for first in (start..end).step_by(WIDTH) {
                let below = &lines[first..end.min(first + WIDTH)];
                lines.push(CacheLine::of(below, CacheLine::last));
            }
            levels.push(end);
            start = end;
        }
        levels.reverse();
        Addresses { lines, levels }
    }

    /// The index of the first that is not less than `address`, or the number of addresses if all are less.
    #[inline(always)]
    pub(super) fn index(&self, address: u64) -> usize {
        let mut index = 0;
        for &start in &self.levels {
            index = WIDTH * index + self.lines[start + index].less(address);
        }
        index
    }

    /// Whether the address at `index`, where a search has ended, is this one. Behind the last it is `MAX`.
    #[inline(always)]
    pub(super) fn is(&self, index: usize, address: u64) -> bool {
        let line = self.lines.get(index / WIDTH);
        line.is_some_and(|line| line.0[index % WIDTH] == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches end where a search from the front does; at sizes that fill lines and levels, and next to them.
    #[test]
    fn searches_end_in_the_right_place() {
        let sizes = [
            0, 1, 7, 8, 9, 55, 56, 62, 63, 64, 65, 71, 72, 511, 512, 513, 4095, 4096,
        ];
        for size in sizes {
            for repeats in [1, 3, 20] {
                let sorted: Vec<u64> = (0..size).map(|i| 10 * (i / repeats) + 5).collect();
                let addresses = Addresses::of(&sorted, |&address| address);
                for address in (0..10 * size + 20).step_by(5).chain([u64::MAX]) {
                    let index = addresses.index(address);
                    assert_eq!(index, sorted.partition_point(|&other| other < address));
                    let is = sorted.get(index) == Some(&address);
                    assert_eq!(
                        addresses.is(index, address),
                        is || (size > 0 && address == u64::MAX)
                    );
                }
            }
        }
    }

    #[test]
    fn the_highest_address() {
        for others in 0..20 {
            let sorted = (0..others).chain([u64::MAX]).collect::<Vec<_>>();
            let addresses = Addresses::of(&sorted, |&address| address);
            assert_eq!(addresses.index(u64::MAX), others as usize);
            assert_eq!(addresses.index(u64::MAX - 1), others as usize);
        }
    }
}
