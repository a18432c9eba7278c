//! Places for numbers that lie at equal distances, such as addresses.

/// The highest `bits` bits of the product of the number and 2^64 divided by the golden ratio. They depend on all bits
/// of the number, and those of numbers at equal distances keep clear of one another (Knuth, The Art of Computer
/// Programming 3, 6.4).
#[inline(always)]
pub(crate) fn spread(number: u64, bits: u32) -> usize {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - bits)) as usize
}
