//! An event whose signals go on to the kernel.
//!
//! The kernel's counterpart is an eventfd that KVM (`KVM_IRQFD`), vhost or VFIO holds. They react to writes. So an
//! observer passes on every signal, on the thread that makes it, by a write of its own. Each takes the count of the
//! event, and writes without a lock, since a peer can block a write, and must not block other threads by that.

use super::kernel::KernelEvent;
use crate::errno::Errno;
use crate::event::{Change, EventHandle, Interest, Observation, Observer};
use crate::sync::{Mutex, MutexGuard};
use rustix::event::EventfdFlags;
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, PoisonError};

/// Passes an event's signals on to an eventfd, for the kernel or another process that waits for it.
///
/// It takes over the event as an irqfd does: each signal or write takes the count (all of it, of a semaphore too) and
/// writes it to the eventfd before it returns. So readers and pollers of the eventfd see the count, and those of the
/// event do not. Each signal or write makes one `write(2)` after its change of the count, also if it was of 0. Each of
/// these is an edge, as if the signal had been a `write(2)` in the first place. Of two signals at the same time, one
/// may take the count of both, and the other then writes 0. Both counts have arrived when both signals have returned.
///
/// If a non-blocking eventfd has no room, the number is kept here, later signals stay in the event, and the next signal
/// or [`flush`](Self::flush) tries again. Nothing is lost: the drop of the `Forward` puts a number that is kept back
/// into the event, which saturates as for [`signal_n`](crate::Event::signal_n).
///
/// # Eventfds that block
///
/// [`new`](Self::new) makes a non-blocking eventfd. One that a peer sent may be blocking, and
/// [`with_fd`](Self::with_fd) takes that too. As long as it has room, there is no difference. A signal for which it has
/// no room sleeps in `write(2)` until the eventfd is read: a read of any duplicate makes room, also one by this process
/// through [`as_fd`](std::os::fd::AsFd::as_fd). An eventfd is full at `u64::MAX - 1`. Signals of 1 never fill it; large
/// numbers by [`signal_n`](crate::Event::signal_n) do, or a peer.
///
/// [`with_fd_nonblocking`](Self::with_fd_nonblocking) sets `O_NONBLOCK` first. Then no signal waits for room. But all
/// duplicates share the flag: a peer that would sleep in `read(2)` on the eventfd gets `EAGAIN` instead. QEMU's
/// vhost-user server sets the flag on the eventfds that it is sent; DPDK and SPDK do not, and write.
///
/// # Peers that are not trusted
///
/// A peer with a duplicate of the descriptor shares its flags. A peer that sent a blocking eventfd, or that clears
/// `O_NONBLOCK` later, and then fills the eventfd, blocks each thread that signals the event in its `write(2)`, and
/// each [`flush`](Self::flush), for as long as the peer likes. Linux (as of 6.18) has no write to an eventfd that
/// ignores the flag: `pwritev2(RWF_NOWAIT)` and `splice` are refused, the eventfd cannot be opened a second time, and a
/// check before the write is outdated by the time of the write. A thread that is blocked there holds no lock:
/// [`pending`](Self::pending), `Debug`, reads of the event, and calls of other events go on. A thread that waits until
/// observers' calls have returned (in the drop of the `Forward`, see [`Observation`]) waits for the blocked thread too.
///
/// So a peer that is not trusted, such as the front-end of a vhost-user device, which sent the eventfd in the first
/// place, should get its counts from a thread of its own, in place of a `Forward`:
///
/// ```
/// # use doorbell::{Event, fd::EventFd};
/// # use std::{sync::Arc, thread};
/// # let event = Arc::new(Event::new(3));
/// # let peers_eventfd = EventFd::new(0).unwrap();
/// # let peer = peers_eventfd.try_clone().unwrap();
/// # let signalled = Arc::clone(&event);
/// thread::spawn(move || {
///     // Until the peer breaks it.
///     while peers_eventfd.write(event.read()).is_ok() {}
/// });
/// # assert_eq!(peer.read().unwrap(), 3);
/// # signalled.signal();
/// # assert_eq!(peer.read().unwrap(), 1);
/// ```
///
/// # Child processes
///
/// A child made by `fork` has a copy of the event, and the same eventfd: the child's signals arrive there too. A number
/// that was kept for want of room at the fork is kept in both processes, and arrives twice if both go on. So a child
/// must not use the event and the forward. Its exit, or an `exec`, changes nothing for the parent.
///
/// # Examples
///
/// ```
/// use doorbell::Event;
/// use doorbell::fd::{EventFd, Forward};
/// use std::os::fd::AsFd;
/// use std::sync::Arc;
///
/// # fn main() -> std::io::Result<()> {
/// let event = Arc::new(Event::new(1));
/// let forward = Forward::new(Arc::clone(&event))?;
/// let peer = EventFd::from(forward.as_fd().try_clone_to_owned()?); // as KVM_IRQFD would have it
/// event.signal();
/// assert_eq!(event.count(), 0);
/// assert_eq!(peer.read()?, 2); // what was there before too
/// # Ok(())
/// # }
/// ```
#[must_use = "signals are passed on until this is dropped"]
pub struct Forward {
    // Dropped first: the observer is detached before the sender puts back what it keeps.
    observation: Observation,
    sender: Arc<Sender>,
}

impl Forward {
    /// Makes an eventfd, non-blocking and closed on exec, and passes on what is in the event.
    ///
    /// Does not wait for other threads.
    ///
    /// # Errors
    ///
    /// Those of `eventfd(2)`: `EMFILE` and `ENFILE` if there are too many descriptors, `ENOMEM`.
    pub fn new(event: impl Into<EventHandle>) -> io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self::start(event.into(), KernelEvent::new(flags)?))
    }

    fn start(event: EventHandle, fd: KernelEvent) -> Self {
        let sender = Arc::new(Sender {
            event: event.clone(),
            fd,
            owed: Mutex::new(0),
        });
        let observer = Arc::clone(&sender) as Arc<dyn Observer>;
        let observation = Observation::new(event, Interest::Signals, observer);
        // If the eventfd is full, `pending` says so.
        let _ = sender.pass_on(false);
        Forward {
            observation,
            sender,
        }
    }

    /// The event that is forwarded.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        self.observation.event()
    }

    /// Tries again to pass on what was kept for want of room.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if the eventfd still has no room. Nothing is lost. (If the eventfd
    /// [blocks](Self#eventfds-that-block), this sleeps instead.)
    pub fn flush(&self) -> io::Result<()> {
        self.sender.pass_on(false)
    }

    /// The number that is kept here for want of room in the eventfd. The count of the event is not in it, nor a number
    /// that a thread is writing at this moment. `u64::MAX` stands for that or more: several threads that find no room
    /// at once can each leave a whole count.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.sender.pending()
    }

    /// As `with_fd`.
    #[cfg(loom)]
    pub fn over(event: impl Into<EventHandle>, fd: super::kernel::model::KernelEvent) -> Self {
        Self::start(event.into(), fd)
    }

    /// The model of the descriptor.
    #[cfg(loom)]
    pub fn fd(&self) -> &super::kernel::model::KernelEvent {
        &self.sender.fd
    }
}

struct Sender {
    event: EventHandle,
    fd: KernelEvent,
    /// Taken from the event, and not written to the descriptor for want of room. It is never locked during a write,
    /// which a peer can block. It is wider than a count, since each of several threads may leave a whole count here,
    /// while others fill the event again.
    owed: Mutex<u128>,
}

impl Sender {
    fn pass_on(&self, signalled: bool) -> io::Result<()> {
        let late = mem::take(&mut *self.owed());
        self.write(late)?;
        let taken = self.event.take_all();
        let result = self.write(taken.into());
        if taken == 0 && late == 0 && signalled {
            // Another thread has taken the count, or the signal was of 0. If there is no room for a write of 0, no edge
            // is missed: the eventfd is readable already.
            let _ = self.fd.write(0);
        }
        if taken != 0 {
            self.event.wake_writers();
        }
        result
    }

    /// Writes `n`, which was taken from the event or from `owed`. What there is no room for goes to `owed`.
    fn write(&self, mut n: u128) -> io::Result<()> {
        while n != 0 {
            // It may be more than one write can add: the overflow state, or what several threads have left.
            let part = saturated(n).min(u64::MAX - 1);
            if self.fd.write(part).is_err() {
                // There was no room: the write fails for no other reason.
                *self.owed() += n;
                return Err(Errno::Again.into());
            }
            n -= u128::from(part);
        }
        Ok(())
    }

    fn pending(&self) -> u64 {
        saturated(*self.owed())
    }

    fn owed(&self) -> MutexGuard<'_, u128> {
        // A panic cannot have left it half changed.
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Sender {
    fn notified(&self, _: Change) {
        // What there is no room for is kept.
        let _ = self.pass_on(true);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let owed = self.pending();
        if owed != 0 {
            self.event.signal_n(owed);
        }
    }
}

/// `n`, or the greatest count if that is less.
fn saturated(n: u128) -> u64 {
    n.try_into().unwrap_or(u64::MAX)
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward")
            .field("event", &**self.observation.event())
            .field("fd", &self.sender.fd)
            .field("pending", &self.sender.pending())
            .finish()
    }
}

#[cfg(not(loom))]
mod as_fd {
    use super::{EventHandle, Forward};
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

    impl Forward {
        /// Passes signals on to an existing eventfd, blocking or not, beginning with the count of the event.
        ///
        /// The descriptor's flags stay as they are, since its duplicates share them. A blocking eventfd that is full
        /// blocks the threads that signal, as it does threads that write to it: see [above](Self#eventfds-that-block).
        ///
        /// Does not wait for other threads. Sleeps if the eventfd blocks, and
        /// has no room for the count of the event.
        pub fn with_fd(event: impl Into<EventHandle>, fd: OwnedFd) -> Self {
            Self::start(event.into(), fd.into())
        }

        /// As [`with_fd`](Self::with_fd), but sets `O_NONBLOCK` first if the eventfd blocks. Signals for which it has
        /// no room stay in the event, and no thread waits.
        ///
        /// The flag is set for all duplicates of the descriptor: a peer's `read(2)` of the empty eventfd fails with
        /// `EAGAIN` where it slept before. So this is for peers that read the eventfd when it is readable, or that
        /// expect the flag.
        ///
        /// # Errors
        ///
        /// Those of `fcntl(F_SETFL)`. None is known of an eventfd.
        pub fn with_fd_nonblocking(event: impl Into<EventHandle>, fd: OwnedFd) -> io::Result<Self> {
            let flags = fcntl_getfl(&fd)?;
            if !flags.contains(OFlags::NONBLOCK) {
                fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
            }
            Ok(Self::with_fd(event, fd))
        }
    }

    impl AsFd for Forward {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.sender.fd.as_fd()
        }
    }

    impl AsRawFd for Forward {
        fn as_raw_fd(&self) -> RawFd {
            self.as_fd().as_raw_fd()
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Event;

    const FULL: u64 = u64::MAX - 1;

    /// Threads that take whole counts and find no room leave all of them, whatever is in the event by then.
    #[test]
    fn more_is_owed_than_a_number_holds() {
        let event = Arc::new(Event::new(0));
        let forward = Forward::new(Arc::clone(&event)).unwrap();
        let state = || (forward.pending(), event.count());
        forward.sender.fd.write(FULL).unwrap();
        let none = Err(std::io::ErrorKind::WouldBlock);
        let write = |n: u64| forward.sender.write(n.into()).map_err(|e| e.kind());
        assert_eq!(write(u64::MAX - 5), none);
        assert_eq!(state(), (u64::MAX - 5, 0));
        assert_eq!(write(FULL), none);
        assert_eq!(state(), (u64::MAX, 0));
        let mut read = 0;
        while let Ok(n) = forward.sender.fd.read() {
            read += u128::from(n);
            let _ = forward.flush();
        }
        assert_eq!(read, u128::from(FULL) * 3 - 4);
        assert_eq!(state(), (0, 0));
    }
}
