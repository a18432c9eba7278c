//! What the observers of a poller reach: its queue, and the threads that sleep.

use super::epoll::Fds;
use super::incoming::{Incoming, Linked};
use crate::sync::DEKKER;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lazy::Lazy;
use crate::sync::waiters::{Release, Waiters};
use crate::sync::wake_queue::{self, Sleeper};
use std::sync::Arc;

pub(super) struct Shared<T> {
    pub(super) incoming: Incoming<T>,
    /// Somebody has asked for a return from `wait`.
    notified: AtomicBool,
    pub(super) waiters: Waiters,
    /// Once it is there, threads sleep in it and no longer on the futex of `waiters`.
    pub(super) fds: Lazy<Fds>,
}

impl<T: Linked + Send + Sync + 'static> Shared<T> {
    pub(super) fn new() -> Self {
        Shared {
            incoming: Incoming::new(),
            notified: AtomicBool::new(false),
            waiters: Waiters::new(),
            fds: Lazy::new(),
        }
    }

    /// On any thread, without a lock, and without a system call unless a thread sleeps. Wakes one then, now or, if more
    /// may come, after that; see [`wake_queue`].
    pub(super) fn push(self: &Arc<Self>, item: Arc<T>) {
        if self.incoming.push(item) && self.waiters.is_announced() {
            wake_queue::wake(self);
        }
    }

    pub(super) fn notify(&self) {
        self.notified.swap(true, DEKKER);
        self.wake();
    }

    pub(super) fn take_notice(&self) -> bool {
        self.notified.load(DEKKER) && self.notified.swap(false, DEKKER)
    }

    pub(super) fn is_notified(&self) -> bool {
        self.notified.load(DEKKER)
    }

    /// A glance, for who spins.
    pub(super) fn seems_quiet(&self) -> bool {
        self.incoming.seems_empty() && !self.notified.load(Ordering::Relaxed)
    }

    /// Wakes one thread, if any is announced.
    pub(super) fn wake(&self) {
        if self.waiters.is_announced() {
            self.wake_now();
        }
    }
}

impl<T: Linked + Send + Sync + 'static> Sleeper for Shared<T> {
    /// One thread, if it has not been woken yet. It wakes the next if it leaves anything.
    fn wake_now(&self) {
        let claimed = self.waiters.claim_sleepers(Release::One);
        match self.fds.get() {
            None => self.waiters.wake_claimed(claimed),
            // Who chose to sleep there did so before it announced itself, so the claim has made this look find it. Who
            // chose the futex before there was another place is woken when that is made.
            Some(fds) => {
                if claimed.are_some() {
                    fds.ring();
                }
            }
        }
    }
}
