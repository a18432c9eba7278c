//! When to look, in the middle of a batch, whether the driver wants an interrupt.
//!
//! If the driver sleeps on another CPU, its wake-up takes as long as dozens of small requests, so an interrupt for the
//! first of a batch is best: the wake-up passes while the device does the rest. If the driver is awake, it finds the
//! requests by itself, and an interrupt is wasted. If the driver sleeps on the device's own CPU, it takes that CPU at
//! once, and the device does the rest later. A driver that is awake or on the device's CPU has *heard* of the interrupt
//! by the time the interrupt has been made: it has asked for the next one, or turned interrupts off. A driver that
//! sleeps elsewhere cannot have done that yet. So if the driver has heard, the next batches are looked into at their
//! end only. How many they are doubles each time that this happens.
//!
//! The looks come after 1, 2, 4, 8… requests of a batch. So they are few, and an interrupt that the driver has asked
//! for comes before the batch has become twice as long.

/// At most 2 to this power of batches in a row are not looked into.
const MOST_PATIENCE: u32 = 6;

#[derive(Debug, Default)]
pub(super) struct Early {
    /// How many requests of this batch are completed.
    completed: u32,
    /// How many batches are not looked into before their end, this one included.
    whole: u32,
    /// How many it will be after the next interrupt that is heard at once, as a power of two.
    patience: u32,
    /// An interrupt is being made, for a driver that asked for this.
    making: Option<u16>,
}

impl Early {
    /// Counts one more completed request. Returns whether to look now.
    #[inline(always)]
    pub(super) fn is_time(&mut self) -> bool {
        self.completed += 1;
        self.whole == 0 && self.completed.is_power_of_two()
    }

    /// Called before an interrupt, for a driver that asks for `asked`.
    pub(super) fn make(&mut self, asked: u16) {
        self.making = Some(asked);
    }

    /// Called after the interrupt, with what the driver asks for now.
    #[inline(always)]
    pub(super) fn made(&mut self, asks: impl FnOnce() -> u16) {
        if let Some(asked) = self.making.take() {
            self.learn(asks() != asked);
        }
    }

    fn learn(&mut self, heard: bool) {
        if heard {
            // The rest of this batch included.
            self.whole = (1 << self.patience) + 1;
            self.patience = MOST_PATIENCE.min(self.patience + 1);
        } else {
            self.patience = self.patience.saturating_sub(1);
        }
    }

    /// The batch ends.
    #[inline(always)]
    pub(super) fn end(&mut self) {
        self.completed = 0;
        self.whole = self.whole.saturating_sub(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A batch of so many, whose driver wants to be interrupted at each look, and hears at once or not. After which
    /// requests there was a look.
    fn batch(early: &mut Early, size: u32, heard: bool) -> Vec<u32> {
        let mut looks = Vec::new();
        for n in 1..=size {
            if early.is_time() {
                looks.push(n);
                early.make(7);
                early.made(|| if heard { 8 } else { 7 });
            }
        }
        early.end();
        looks
    }

    #[test]
    fn a_driver_that_sleeps_elsewhere_is_interrupted_early_in_each_batch() {
        let mut early = Early::default();
        for _ in 0..100 {
            assert_eq!(batch(&mut early, 33, false), [1, 2, 4, 8, 16, 32]);
        }
    }

    #[test]
    fn a_driver_that_hears_at_once_is_left_alone_for_longer_and_longer() {
        let mut early = Early::default();
        for whole in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
            assert_eq!(batch(&mut early, 32, true), [1]);
            for n in 0..whole {
                assert!(batch(&mut early, 32, true).is_empty(), "{n} of {whole}");
            }
        }
        // It takes as many that are not heard at once to forget.
        assert_eq!(batch(&mut early, 4, false), [1, 2, 4]);
        assert_eq!(batch(&mut early, 4, false), [1, 2, 4]);
        assert_eq!(batch(&mut early, 1, true), [1]);
        assert_eq!(
            (0..3)
                .map(|_| batch(&mut early, 1, true).len())
                .sum::<usize>(),
            1
        );
    }

    #[test]
    fn nothing_is_learnt_where_there_was_no_interrupt() {
        let mut early = Early::default();
        for _ in 0..100 {
            assert!(early.is_time());
            early.made(|| unreachable!("nobody was interrupted"));
            early.end();
        }
    }
}
