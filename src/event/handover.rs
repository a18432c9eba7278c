//! An event whose count moves elsewhere: [`fd::EventFd`](crate::fd::EventFd) becomes a kernel eventfd.
//!
//! ```text
//!     the thread that moves                      a call that finds MOVED
//!     1  become the one that moves               1  wait until arrived
//!     2  take the count, put MOVED there         2  make the call again, elsewhere
//!     3  put the count elsewhere
//!     4  arrived = 1
//!     5  wake all threads that sleep here
//! ```
//!
//! Step 2 is atomic. So each call takes effect here before the step, or finds `MOVED` and is made again where the count
//! is then; there is nothing in between. A call that meets the move waits for step 3, which is one `write(2)`: it
//! spins, and sleeps as a reader does if the moving thread was preempted. There is no lock, and a move makes no further
//! system call while no thread sleeps.
//!
//! A signal handler that interrupts the moving thread does not wait, because it would wait for ever. Its calls take
//! effect elsewhere, and the count is added there after the handler has returned.
//!
//! `MOVED` is the overflow state, which no write reaches. It has this meaning only here, where there are no signals.

use super::counter::fits;
use super::{Event, Mode, WriteError};
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use crate::sync::waiters::{Release, Waiters};
use crate::sync::{DEKKER, dekker_load, this_thread};
use std::hint;

const MOVED: u64 = u64::MAX;

/// How often a call that meets a move checks whether the move is done before the call sleeps. This takes a few
/// microseconds, enough for the `write(2)` of a thread that runs.
const LOOKS: u32 = 200;

/// The whole count is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved;

/// An event until its count is moved.
pub(crate) struct Handover {
    event: Event,
    /// Which thread moves the count, or has moved it; 0 if none does.
    mover: AtomicUsize,
    /// Not 0 when the count is where it has been moved to.
    arrived: AtomicU32,
}

/// Second half of the handshake with threads that sleep in a read or a write: the count is `MOVED`.
fn wake_all(waiters: &Waiters) {
    if waiters.is_announced() {
        waiters.notify(|| Release::All, 0, |_| ());
    }
}

impl Handover {
    pub(crate) fn new(mode: Mode) -> Self {
        Handover {
            event: Event::with_mode(0, mode),
            mover: AtomicUsize::new(0),
            arrived: AtomicU32::new(0),
        }
    }

    /// The event, if the count is (still) there.
    pub(crate) fn event(&self) -> Option<&Event> {
        (self.event.count() != MOVED).then_some(&self.event)
    }

    /// Moves the count elsewhere by `put`, unless it is 0 or has been moved already. When this returns, the count is
    /// there, whichever thread moved it. (The exception is a signal handler that has interrupted the moving thread.)
    pub(crate) fn move_out(&self, put: impl FnOnce(u64)) {
        // Relaxed: the exchange elects one thread, and otherwise only the signal handlers of that thread read the
        // value.
        let claim =
            self.mover
                .compare_exchange(0, this_thread(), Ordering::Relaxed, Ordering::Relaxed);
        if claim.is_err() {
            return self.wait_until_arrived();
        }
        let count = self.event.counter.replace(MOVED);
        if count != 0 {
            put(count);
        }
        self.arrive();
    }

    fn arrive(&self) {
        // First half of the handshake with threads about to sleep. Releases what has been put elsewhere.
        self.arrived.swap(1, DEKKER);
        wake_all(self.event.counter.readers());
        wake_all(self.event.counter.writers());
    }

    fn wait_until_arrived(&self) {
        // Acquire pairs with the Release half of `arrive`.
        if self.arrived.load(Ordering::Acquire) == 0 {
            self.wait_for_arrival();
        }
    }

    #[cold]
    #[inline(never)]
    fn wait_for_arrival(&self) {
        if self.mover.load(Ordering::Relaxed) == this_thread() {
            return;
        }
        // No time passes in a loom model.
        let looks = if cfg!(loom) { 0 } else { LOOKS };
        for _ in 0..looks {
            hint::spin_loop();
            // Acquire as above.
            if self.arrived.load(Ordering::Acquire) != 0 {
                return;
            }
        }
        // Second half of the handshake with `arrive`.
        let arrived = || (dekker_load(&self.arrived) != 0).then_some(());
        let arrival = self
            .event
            .counter
            .readers()
            .wait(None, arrived, || Release::All);
        arrival.unwrap_or_else(|| unreachable!("a wait without a deadline timed out"));
    }

    /// A read. `None` if the count is 0 and the call is not to block.
    #[inline]
    pub(crate) fn read(&self, blocking: bool) -> Result<Option<u64>, Moved> {
        let value = match self.take() {
            Some(Ok(value)) => value,
            Some(Err(Moved)) => return Err(self.moved()),
            None if blocking => self.wait_to_take()?,
            None => return Ok(None),
        };
        self.event.wake_writers();
        Ok(Some(value))
    }

    /// A write.
    #[inline]
    pub(crate) fn write(&self, n: u64, blocking: bool) -> Result<Result<(), WriteError>, Moved> {
        if n == u64::MAX {
            return Ok(Err(WriteError::Invalid));
        }
        match self.add(n) {
            Some(Ok(())) => {}
            Some(Err(Moved)) => return Err(self.moved()),
            None if blocking => self.wait_to_add(n)?,
            None => return Ok(Err(WriteError::WouldBlock)),
        }
        self.event.counter.wake_readers(n, &self.event);
        Ok(Ok(()))
    }

    #[cold]
    fn moved(&self) -> Moved {
        self.wait_until_arrived();
        Moved
    }

    #[cold]
    #[inline(never)]
    fn wait_to_take(&self) -> Result<u64, Moved> {
        let Event { counter, spin, .. } = &self.event;
        let take = || self.take();
        // If the count has moved, this only wakes other threads early: the moving thread wakes all sleepers when the
        // count has arrived.
        let left_over = || self.event.left_over();
        let result = spin.wait(
            None,
            || self.event.count() != 0,
            take,
            || counter.readers().wait(None, take, left_over),
        );
        let result = result.unwrap_or_else(|| unreachable!("a read without a deadline timed out"));
        result.map_err(|Moved| self.moved())
    }

    #[cold]
    #[inline(never)]
    fn wait_to_add(&self, n: u64) -> Result<(), Moved> {
        let Event { counter, spin, .. } = &self.event;
        let add = || self.add(n);
        let ready = || {
            let count = self.event.count();
            count == MOVED || fits(count, n)
        };
        // A read wakes all writers, and so does the move.
        let sleep = || counter.writers().wait(None, add, || Release::NOBODY);
        let result = spin.wait(None, ready, add, sleep);
        let result = result.unwrap_or_else(|| unreachable!("a write without a deadline timed out"));
        result.map_err(|Moved| self.moved())
    }

    /// `None`, with a `DEKKER` load, if the count is 0.
    #[inline(always)]
    fn take(&self) -> Option<Result<u64, Moved>> {
        let mode = self.event.mode;
        let before = self.event.counter.update(|count| match (mode, count) {
            (_, 0 | MOVED) => None,
            (Mode::Counter, _) => Some(0),
            (Mode::Semaphore, count) => Some(count - 1),
        });
        match (mode, before) {
            (_, None) => self.has_moved(),
            (Mode::Counter, Some(count)) => Some(Ok(count)),
            (Mode::Semaphore, Some(_)) => Some(Ok(1)),
        }
    }

    /// `None`, with a `DEKKER` load, if there is no room.
    #[inline(always)]
    fn add(&self, n: u64) -> Option<Result<(), Moved>> {
        match self.event.counter.add(n) {
            Some(()) => Some(Ok(())),
            None => self.has_moved(),
        }
    }

    fn has_moved<T>(&self) -> Option<Result<T, Moved>> {
        (self.event.counter.load_ordered() == MOVED).then_some(Err(Moved))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Spin;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    const FULL: u64 = u64::MAX - 1;
    /// How long a call may take before it counts as hung.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn handover(count: u64, spin: Spin) -> Arc<Handover> {
        let handover = Handover {
            event: Event::with_mode(count, Mode::Counter).with_spin(spin),
            ..Handover::new(Mode::Counter)
        };
        Arc::new(handover)
    }

    type Call = fn(&Handover) -> Result<(), Moved>;

    const READ: Call = |handover| handover.read(true).map(drop);
    const WRITE: Call = |handover| handover.write(1, true).map(drop);
    const MOVE: Call = |handover| {
        handover.move_out(|_| unreachable!("the count is moved once"));
        Err(Moved)
    };

    /// Makes the call on a thread of its own.
    fn started(handover: &Arc<Handover>, call: Call) -> mpsc::Receiver<Result<(), Moved>> {
        let (give, result) = mpsc::channel();
        let handover = Arc::clone(handover);
        thread::spawn(move || give.send(call(&handover)));
        result
    }

    /// Calls that meet the move return when the count is elsewhere, and sleep until then.
    #[test]
    fn a_move_is_waited_for() {
        for call in [READ, WRITE, MOVE] {
            let handover = handover(5, Spin::Never);
            let mut met = None;
            handover.move_out(|count| {
                assert_eq!(count, 5);
                let result = started(&handover, call);
                while handover.event.counter.readers().count() == 0 {
                    assert_eq!(result.try_recv(), Err(mpsc::TryRecvError::Empty));
                    thread::yield_now();
                }
                met = Some(result);
            });
            let result = met.expect("there was a count").recv_timeout(PATIENCE);
            assert_eq!(result, Ok(Err(Moved)));
            // After that, a call does not wait.
            assert_eq!(call(&handover), Err(Moved));
            assert!(handover.event().is_none());
        }
    }

    /// As in a signal handler that interrupts the thread that moves the count.
    #[test]
    fn the_thread_that_moves_does_not_wait_for_itself() {
        let handover = handover(5, Spin::Never);
        let result = started(&handover, |handover| {
            handover.move_out(|_| {
                for call in [READ, WRITE, MOVE] {
                    assert_eq!(call(handover), Err(Moved));
                }
            });
            Ok(())
        });
        assert_eq!(result.recv_timeout(PATIENCE), Ok(Ok(())));
    }

    /// A call that spins notices a count, room, and that the count has moved.
    #[test]
    fn who_spins_sees_what_it_waits_for() {
        const TAKE: Call = |handover| {
            assert_eq!(handover.read(false), Ok(Some(FULL)));
            Ok(())
        };
        const GIVE: Call = |handover| {
            assert_eq!(handover.write(3, false), Ok(Ok(())));
            Ok(())
        };
        const LEAVE: Call = |handover| {
            handover.move_out(|_| ());
            Err(Moved)
        };
        for (count, blocked, other) in [
            (0, READ, GIVE),
            (0, READ, LEAVE),
            (FULL, WRITE, TAKE),
            (FULL, WRITE, LEAVE),
        ] {
            let handover = handover(count, Spin::Always);
            let result = started(&handover, blocked);
            thread::sleep(Duration::from_millis(5));
            assert_eq!(result.try_recv(), Err(mpsc::TryRecvError::Empty));
            let expected = other(&handover);
            assert_eq!(result.recv_timeout(PATIENCE), Ok(expected));
        }
    }
}
