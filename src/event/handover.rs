//! The end of an event whose count goes on living elsewhere: [`fd::EventFd`](crate::fd::EventFd) becomes a kernel
//! eventfd.
//!
//! [`move_out`](Event::move_out) takes the count and puts [`MOVED`] in its place, in one step. So each call has its
//! effect before it, here, or finds it and is made again where the count is now; none can fall in between.
//!
//! `MOVED` is the overflow state, which no write reaches. It has this meaning only for events that are not signalled,
//! that is for those that only the calls below are made on.

use super::counter::fits;
use super::{Event, Mode, WriteError};
use crate::sync::waiters::Release;

const MOVED: u64 = u64::MAX;

/// The count is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved;

impl Event {
    /// Takes the count for good. Calls that are asleep go on sleeping until [`wake_moved`](Self::wake_moved).
    pub(crate) fn move_out(&self) -> u64 {
        self.counter.replace(MOVED)
    }

    /// Has all who sleep find out that the count has moved.
    pub(crate) fn wake_moved(&self) {
        self.counter.readers().notify(Release::All, 0, |_| ());
        self.counter.writers().notify(Release::All, 0, |_| ());
    }

    /// A read. `None` if the count is 0 and the call is not to block.
    #[inline]
    pub(crate) fn read_here(&self, blocking: bool) -> Result<Option<u64>, Moved> {
        let value = match self.take_here() {
            Some(result) => result?,
            None if blocking => self.wait_to_take_here()?,
            None => return Ok(None),
        };
        self.wake_writers();
        Ok(Some(value))
    }

    /// A write.
    #[inline]
    pub(crate) fn write_here(
        &self,
        n: u64,
        blocking: bool,
    ) -> Result<Result<(), WriteError>, Moved> {
        if n == u64::MAX {
            return Ok(Err(WriteError::Invalid));
        }
        match self.add_here(n) {
            Some(result) => result?,
            None if blocking => self.wait_to_add_here(n)?,
            None => return Ok(Err(WriteError::WouldBlock)),
        }
        self.counter.wake_readers(n, self);
        Ok(Ok(()))
    }

    #[cold]
    #[inline(never)]
    fn wait_to_take_here(&self) -> Result<u64, Moved> {
        let take = || self.take_here();
        // Once it has moved, everybody has something to leave for.
        let left_over = || self.left_over();
        let result = self.spin.wait(
            None,
            || self.count() != 0,
            take,
            || self.counter.readers().wait(None, take, left_over),
        );
        result.unwrap_or_else(|| unreachable!("a read without a deadline timed out"))
    }

    #[cold]
    #[inline(never)]
    fn wait_to_add_here(&self, n: u64) -> Result<(), Moved> {
        let add = || self.add_here(n);
        let ready = || {
            let count = self.count();
            count == MOVED || fits(count, n)
        };
        // Who makes room wakes all writers, and so does the move.
        let sleep = || self.counter.writers().wait(None, add, || Release::NOBODY);
        let result = self.spin.wait(None, ready, add, sleep);
        result.unwrap_or_else(|| unreachable!("a write without a deadline timed out"))
    }

    /// `None`, with a `DEKKER` load, if the count is 0.
    #[inline(always)]
    fn take_here(&self) -> Option<Result<u64, Moved>> {
        let before = self.counter.update(|count| match (self.mode, count) {
            (_, 0 | MOVED) => None,
            (Mode::Counter, _) => Some(0),
            (Mode::Semaphore, count) => Some(count - 1),
        });
        match (self.mode, before) {
            (_, None) => self.moved(),
            (Mode::Counter, Some(count)) => Some(Ok(count)),
            (Mode::Semaphore, Some(_)) => Some(Ok(1)),
        }
    }

    /// `None`, with a `DEKKER` load, if there is no room.
    #[inline(always)]
    fn add_here(&self, n: u64) -> Option<Result<(), Moved>> {
        match self.counter.add(n) {
            Some(()) => Some(Ok(())),
            None => self.moved(),
        }
    }

    fn moved<T>(&self) -> Option<Result<T, Moved>> {
        (self.counter.look() == MOVED).then_some(Err(Moved))
    }
}
