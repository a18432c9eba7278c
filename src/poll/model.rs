//! The epoll instance of a poller, for loom: nothing but the bell, an eventfd that is watched for edges.
//!
//! [`Fds::ring`] makes an edge. One thread in [`Fds::sleep`] or [`Fds::look`] takes it. An outer loop that watches the
//! epoll instance sees whether there is an edge, and leaves it there.

use super::PollError;
use crate::sync::waiters::Outcome;
use loom::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

#[derive(Default)]
pub struct Fds {
    bell: Mutex<Bell>,
    rung: Condvar,
}

#[derive(Default)]
struct Bell {
    edge: bool,
    writes: u64,
}

pub(super) enum FdReport {}

impl Fds {
    pub(super) fn new() -> Result<Self, PollError> {
        Ok(Fds::default())
    }

    pub(super) fn ring(&self) {
        let mut bell = self.bell();
        bell.edge = true;
        bell.writes += 1;
        self.rung.notify_all();
    }

    pub(super) fn look(&self, _: usize, take: impl FnOnce(&[FdReport])) -> Result<(), PollError> {
        self.bell().edge = false;
        take(&[]);
        Ok(())
    }

    /// Knows no time: the models of timeouts have no descriptors.
    pub(super) fn sleep(
        &self,
        _: usize,
        deadline: Option<Instant>,
        take: impl FnOnce(&[FdReport]),
    ) -> Result<Outcome, PollError> {
        assert_eq!(deadline, None);
        self.wait_readable_and(|bell| bell.edge = false);
        take(&[]);
        Ok(Outcome::Woken)
    }

    /// What an outer loop does that sleeps until the epoll instance is readable.
    pub fn wait_readable(&self) {
        self.wait_readable_and(|_| {});
    }

    /// How often the bell has been written to.
    pub fn writes(&self) -> u64 {
        self.bell().writes
    }

    fn wait_readable_and(&self, then: impl FnOnce(&mut Bell)) {
        let mut bell = self.bell();
        while !bell.edge {
            bell = self.rung.wait(bell).expect("loom has no poison");
        }
        then(&mut bell);
    }

    fn bell(&self) -> MutexGuard<'_, Bell> {
        self.bell.lock().expect("loom has no poison")
    }
}
