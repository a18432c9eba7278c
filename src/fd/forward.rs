//! An event whose signals go on to the kernel.
//!
//! The kernel's counterpart is an eventfd that KVM (`KVM_IRQFD`), vhost or VFIO holds: what they react to is the write.
//! So an observer passes on every signal, on the thread that makes it, as a write of its own. Each takes what is in the
//! event, and writes without a lock: a peer can hold up a write, and is not to hold up others by that.

use super::kernel::KernelEvent;
use crate::errno::Errno;
use crate::event::{Change, EventHandle, Interest, Observation, Observer};
use crate::sync::{Mutex, MutexGuard};
use rustix::event::EventfdFlags;
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, PoisonError};

/// Passes an event's signals on to an eventfd that somebody in the kernel, or in another process, waits for.
///
/// It owns the event as an irqfd does: each signal or write takes the count there is (all of it, of a semaphore too)
/// and writes it to the eventfd before it returns. So readers and pollers of the event do not see it, but those of the
/// eventfd do. Each signal or write makes one `write(2)` of its own after its change of the count, that of 0 included,
/// and every one of them is an edge there, as it would be had it been a `write(2)` in the first place. Of two signals
/// at the same time one may take the count of both along, and the other then writes 0: both counts have arrived when
/// both have returned.
///
/// If a non-blocking eventfd has no room, the number waits here, later signals wait in the event, and all is tried
/// again at the next signal or [`flush`](Self::flush). Nothing is lost: dropping the `Forward` puts a number that waits
/// back into the event, which saturates as for [`signal_n`](crate::Event::signal_n).
///
/// # Eventfds that block
///
/// [`new`](Self::new) makes a non-blocking eventfd. One that a peer sent may be blocking, and
/// [`with_fd`](Self::with_fd) takes that too. As long as it has room, there is no difference. A signal for which it has
/// no room sleeps in `write(2)` until somebody reads the eventfd: a read of any duplicate makes room, also one by this
/// process through [`as_fd`](std::os::fd::AsFd::as_fd). An eventfd is full at `u64::MAX - 1`: signals of 1 never get
/// there, so it takes large numbers by [`signal_n`](crate::Event::signal_n), or a peer that fills it.
///
/// [`with_fd_nonblocking`](Self::with_fd_nonblocking) sets `O_NONBLOCK` first. Then no signal waits for room, but the
/// flag belongs to all duplicates: a peer that sleeps in `read(2)` on the eventfd gets `EAGAIN` instead. QEMU's
/// vhost-user server sets the flag on the eventfds that it is sent; DPDK and SPDK leave it alone and write.
///
/// # Peers that are not trusted
///
/// Whoever has a duplicate of the descriptor shares its flags: a peer that sent a blocking eventfd, or that clears
/// `O_NONBLOCK` later, and fills the eventfd blocks each thread that signals the event in its `write(2)`, for as long
/// as the peer likes, and [`flush`](Self::flush) likewise. Linux (as of 6.18) has no write to an eventfd that the flag
/// does not govern: `pwritev2(RWF_NOWAIT)` and `splice` are refused, it cannot be opened a second time, and to look
/// before the write leaves the peer the time in between. While a thread is blocked there, it holds no lock:
/// [`pending`](Self::pending), `Debug`, reads of the event and all that other events do go on. A thread that waits
/// until observers' calls have returned (in the drop of the `Forward`, see [`Observation`]) waits for the blocked
/// thread too.
///
/// So a peer that is not trusted, such as the front-end of a vhost-user device, which sent the eventfd in the first
/// place, is to get its counts from a thread that nobody waits for, in place of a `Forward`:
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
/// A child made by `fork` has a copy of the event, and the same eventfd: what it signals arrives there too. What waited
/// for room at the fork waits in both processes, and arrives twice if both go on. So a child leaves event and forward
/// alone. Its end, or an `exec`, changes nothing for the parent.
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
    // Before the sender: it is detached before what it still has goes back.
    observation: Observation,
    sender: Arc<Sender>,
}

impl Forward {
    /// Makes an eventfd, non-blocking and closed on exec, and passes on what is in the event.
    ///
    /// Waits as [`Observation::new`] does.
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
        // A full one is said by `pending`.
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

    /// Passes on what is left from signals for which the eventfd had no room.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if it still has none; what is left stays. (If the eventfd
    /// [blocks](Self#eventfds-that-block), this sleeps instead.)
    pub fn flush(&self) -> io::Result<()> {
        self.sender.pass_on(false)
    }

    /// What is left from signals for which the eventfd had no room: the number that waits here, and not what is in the
    /// event, nor what a thread is writing at this moment. `u64::MAX` says that or more: several threads that find no
    /// room at once can each leave a whole count.
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
    /// Taken from the event, not written to the descriptor, for which there was no room. Locked for moments: a peer can
    /// block writes. Wider than a count, since each of several threads may leave a whole one here, while others fill
    /// the event anew.
    owed: Mutex<u128>,
}

impl Sender {
    fn pass_on(&self, signalled: bool) -> io::Result<()> {
        let late = mem::take(&mut *self.owed());
        self.write(late)?;
        let taken = self.event.take_all();
        let result = self.write(taken.into());
        if taken == 0 && late == 0 && signalled {
            // Another thread has taken it along, or it was 0. Without room nobody misses an edge: there are others to
            // be read.
            let _ = self.fd.write(0);
        }
        if taken != 0 {
            self.event.wake_writers();
        }
        result
    }

    /// Writes `n`, which nobody else has. What there is no room for is owed.
    fn write(&self, mut n: u128) -> io::Result<()> {
        while n != 0 {
            // More than one write may add: the overflow state, or what several threads have left.
            let part = saturated(n).min(u64::MAX - 1);
            if self.fd.write(part).is_err() {
                // For want of room: it fails for nothing else.
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
        // A panic cannot have left it wrong: nothing between its changes panics.
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Sender {
    fn notified(&self, _: Change) {
        // What does not fit stays, see `Forward`.
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

/// As much of `n` as a count can say.
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
        /// Passes signals on to an eventfd that is there already, blocking or not, beginning with what is in the event.
        ///
        /// The descriptor's flags stay as they are, for its duplicates have them too. A blocking eventfd that is full
        /// holds up the threads that signal, as it does those that write to it: see
        /// [above](Self#eventfds-that-block).
        ///
        /// Waits as [`Observation::new`](crate::event::Observation::new) does. Sleeps too if the eventfd blocks, and
        /// has no room for what is in the event.
        pub fn with_fd(event: impl Into<EventHandle>, fd: OwnedFd) -> Self {
            Self::start(event.into(), fd.into())
        }

        /// As [`with_fd`](Self::with_fd), after setting `O_NONBLOCK` if the eventfd blocks: signals for which it has no
        /// room wait in the event, and no thread does.
        ///
        /// The flag is set for all duplicates of the descriptor: a peer's `read(2)` of the empty eventfd fails with
        /// `EAGAIN` where it slept before. So this is for peers that read theirs when it is readable, or that expect
        /// the flag.
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
