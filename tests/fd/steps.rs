//! Calls on the handles of an `EventFd`, for random scripts.

use proptest::prelude::*;

pub const FULL: u64 = u64::MAX - 1;

#[derive(Clone, Debug)]
pub enum Step {
    Write(u64),
    /// Writes this much less than fits.
    Fill(u64),
    Read,
    Clone,
    Drop,
    Ask,
    GiveAway,
    /// `poll(2)` on the descriptor.
    Poll,
}

pub fn step() -> impl Strategy<Value = (usize, Step)> {
    let n = prop_oneof![
        0_u64..4,
        Just(1 << 32),
        Just(FULL),
        Just(u64::MAX),
        any::<u64>()
    ];
    let step = prop_oneof![
        4 => n.prop_map(Step::Write),
        2 => (0_u64..3).prop_map(Step::Fill),
        4 => Just(Step::Read),
        2 => Just(Step::Clone),
        1 => Just(Step::Drop),
        1 => Just(Step::Ask),
        1 => Just(Step::GiveAway),
        1 => Just(Step::Poll),
    ];
    (any::<prop::sample::Index>(), step).prop_map(|(index, step)| (index.index(64), step))
}
