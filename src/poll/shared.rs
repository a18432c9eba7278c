//! The part of a poller that the observers of its events reach: the queue, and the threads that sleep.

use super::epoll::Fds;
use super::events::Told;
use super::incoming::{Incoming, Linked};
use crate::sync::DEKKER;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::lazy::Lazy;
use crate::sync::waiters::{Release, Waiters};
use crate::sync::wake_queue::{self, Sleeper};
use std::ptr;
use std::sync::Arc;

/// One thread is to return from `wait`.
const ONE: u32 = 1;

pub(super) struct Shared<T> {
    pub(super) incoming: Incoming<T>,
    /// Notifications: the bit [`ONE`] makes any one thread return from `wait`. Above it is the number of notifications
    /// of all, which each buffer of events compares with the number that it knows.
    notices: AtomicU32,
    pub(super) waiters: Waiters,
    /// Once it is made, threads sleep in it and no longer on the futex of `waiters`.
    pub(super) fds: Lazy<Fds>,
}

impl<T: Linked + Send + Sync + 'static> Shared<T> {
    pub(super) fn new() -> Self {
        Shared {
            incoming: Incoming::new(),
            notices: AtomicU32::new(0),
            waiters: Waiters::new(),
            fds: Lazy::new(),
        }
    }

    /// Called on any thread. Takes no lock, and makes no system call unless a thread sleeps. Wakes one thread then, at
    /// once or, if this thread holds wake-ups back, later; see [`wake_queue`].
    pub(super) fn push(self: &Arc<Self>, item: Arc<T>) {
        if self.incoming.push(item) && self.waiters.is_announced() {
            wake_queue::wake(self);
        }
    }

    pub(super) fn notify(&self) {
        self.notices.fetch_or(ONE, DEKKER);
        self.wake();
    }

    /// The caller then wakes a thread.
    pub(super) fn notify_all(&self) {
        self.notices.fetch_add(2 * ONE, DEKKER);
    }

    /// For a thread that has found nothing at first, before it looks on.
    pub(super) fn turn_to_this(&self, told: &mut Told) {
        let notices = self.notices.load(Ordering::Relaxed) & !ONE;
        told.turn_to(ptr::from_ref(self).addr(), notices);
    }

    /// Whether a thread is to return from `wait`. A notification of all comes first, and leaves that of one to others.
    pub(super) fn take_notice(&self, told: &mut Told) -> bool {
        let notices = self.notices.load(DEKKER);
        if notices & !ONE != told.notices && self.tell_of_all(told, notices & !ONE) {
            return true;
        }
        notices & ONE != 0 && self.notices.fetch_and(!ONE, DEKKER) & ONE != 0
    }

    #[cold]
    fn tell_of_all(&self, told: &mut Told, notices: u32) -> bool {
        self.turn_to_this(told);
        std::mem::replace(&mut told.notices, notices) != notices
    }

    pub(super) fn is_notified(&self) -> bool {
        self.notices.load(DEKKER) & ONE != 0
    }

    /// A relaxed check for the loop that spins; it may be out of date.
    pub(super) fn seems_quiet(&self, told: Told) -> bool {
        self.incoming.seems_empty() && self.notices.load(Ordering::Relaxed) == told.notices
    }

    /// Wakes one thread, if any is announced.
    pub(super) fn wake(&self) {
        if self.waiters.is_announced() {
            self.wake_now();
        }
    }
}

impl<T: Linked + Send + Sync + 'static> Sleeper for Shared<T> {
    /// Wakes one thread, unless one has been woken already. That thread wakes the next if it leaves something.
    fn wake_now(&self) {
        let claimed = self.waiters.claim_sleepers(Release::One);
        match self.fds.get() {
            None => self.waiters.wake_claimed(claimed),
            // A thread chooses to sleep here before it announces itself, and the claim acquires that announcement, so
            // this thread sees the epoll instance. A thread that chose the futex before is woken when the epoll
            // instance is made.
            Some(fds) => {
                if claimed.are_some() {
                    fds.ring();
                }
            }
        }
    }
}
