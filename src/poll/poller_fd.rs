//! A poller as a file descriptor of another event loop.
//!
//! The descriptor is the poller's epoll instance, which is readable while one of the poller's descriptors is ready, or
//! its bell has been rung and not been heard. So nothing is needed but the two ends of a sleep:
//!
//! ```text
//!     outer loop                                          signaller
//!     arm     1  anything there?  report it               1  change the count; put the item into the queue
//!             2  enter the waiters; hear the bell         2  ANNOUNCED?  no: done, the loop is awake
//!             3  announce                                 3  claim; ring the bell: the descriptor is readable
//!             4  anything there?  leave; report it
//!     sleep in the outer epoll
//!     disarm  5  leave the waiters
//! ```
//!
//! 3 and 4 against 1 and 2 is the handshake of `src/sync/waiters.rs`. The bell is heard before the announcement: what
//! rings it after that is for this loop or for another that is announced, and it stays readable until then.

#[cfg(loom)]
use super::model::Fds;
use super::sleepers::Seat;
use super::{Events, PollError, Poller};
use crate::sync::{Mutex, MutexGuard};
use std::fmt;
use std::sync::{Arc, PoisonError};

/// TODO
pub struct PollerFd {
    poller: Arc<Poller>,
    /// While the outer loop may sleep.
    armed: Mutex<Option<Seat>>,
}

impl PollerFd {
    /// new
    pub fn new(poller: impl Into<Arc<Poller>>) -> Result<Self, PollError> {
        let poller = poller.into();
        {
            let _registered = poller.registered();
            poller.fds()?;
        }
        Ok(PollerFd {
            poller,
            armed: Mutex::new(None),
        })
    }

    /// The poller.
    pub fn poller(&self) -> &Arc<Poller> {
        &self.poller
    }

    /// arm
    pub fn arm(&self, events: &mut Events) -> Result<bool, PollError> {
        self.disarm();
        let seat = self.poller.arm(events)?;
        let armed = seat.is_some();
        // Another thread may have armed it at the same time.
        let before = std::mem::replace(&mut *self.armed(), seat);
        self.give_back(before);
        Ok(armed)
    }

    /// disarm
    pub fn disarm(&self) {
        let before = self.armed().take();
        self.give_back(before);
    }

    fn give_back(&self, seat: Option<Seat>) {
        if let Some(seat) = seat {
            self.poller.disarm(seat);
        }
    }

    fn armed(&self) -> MutexGuard<'_, Option<Seat>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model of the descriptor.
    #[cfg(loom)]
    pub fn fd(&self) -> &Fds {
        self.poller.fds_there()
    }
}

impl Drop for PollerFd {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl fmt::Debug for PollerFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerFd")
            .field("poller", &self.poller)
            .field("armed", &self.armed().is_some())
            .finish()
    }
}

#[cfg(not(loom))]
mod as_fd {
    use super::PollerFd;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

    impl AsFd for PollerFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.poller.fds_there().epoll()
        }
    }

    impl AsRawFd for PollerFd {
        fn as_raw_fd(&self) -> RawFd {
            self.as_fd().as_raw_fd()
        }
    }
}
