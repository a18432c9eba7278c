//! The threads and outer loops that sleep, and those among them that have not yet heard that all were notified.
//!
//! A bell wakes one thread. A thread that was woken for a notification of all wakes the next when it leaves, as long as
//! any are *late*: asleep since before that notification. If a thread that came later fell asleep beside them, it might
//! be woken in their place, again and again. So none does: while any are late, a thread does not fall asleep.

/// Under the poller's lock.
#[derive(Default)]
pub(super) struct Sleepers {
    /// How often all were notified. It may wrap: no thread sleeps through 2^32 notifications of all.
    round: u32,
    /// How many came after the last notification of all.
    on_time: usize,
    /// How many came before it, and have not left.
    late: usize,
}

/// What a sleeper keeps: the round in which it came.
#[derive(Clone, Copy)]
pub(super) struct Seat {
    round: u32,
}

impl Sleepers {
    /// `None` if some are late; then the caller must not sleep.
    pub(super) fn enter(&mut self) -> Option<Seat> {
        if self.are_late() {
            return None;
        }
        self.on_time += 1;
        Some(Seat { round: self.round })
    }

    pub(super) fn leave(&mut self, seat: Seat) {
        if seat.round == self.round {
            self.on_time -= 1;
        } else {
            self.late -= 1;
        }
    }

    pub(super) fn all_are_late(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.late += std::mem::take(&mut self.on_time);
    }

    pub(super) fn are_late(&self) -> bool {
        self.late != 0
    }
}
