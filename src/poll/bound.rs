//! A kernel eventfd bound to an event: what arrives there is carried over here.
//!
//! ```text
//!     KVM, vhost, another process ──▶ eventfd ──▶ epoll ──▶ a thread in wait ──▶ Event
//!                                       count  ── read ──▶ carrier ── write ──▶ count
//! ```
//!
//! What was read and does not fit stays with the [`Carrier`]. As long as there is any, the eventfd is not read, so that
//! it fills and holds up its writers as the event would; a read of the event queues the binding again.
//!
//! The eventfd is watched for edges, so it is read until it is empty; one thread at a time does so. A thread that finds
//! another at it leaves a note and goes.

use super::item::{Item, What};
use super::poller::{Poller, Registration};
use super::{PollError, Watch};
use crate::Event;
use crate::event::transfer::{Carrier, Step};
use crate::event::{Interest, Observation};
use crate::sync::atomic::{AtomicU32, Ordering};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;
use std::sync::Arc;

pub(super) struct Bound {
    /// A duplicate, so that it is there as long as the binding.
    fd: OwnedFd,
    event: Arc<Event>,
    /// Who came to carry since the one at it last looked, himself included; 0 if there is none.
    callers: AtomicU32,
    carrier: Carrier,
}

/// Attempts to read in one go. A semaphore gives one unit each time, the eventfd may be written to without end, and
/// others wait.
const READS: u32 = 64;

/// What to do after a round of carrying.
#[derive(PartialEq, Eq)]
enum Then {
    /// The eventfd is empty, or the event full.
    Stop,
    /// There may be more to read, but it is the turn of others.
    GoOn,
    /// The binding has been deleted.
    End,
}

impl Bound {
    pub(super) fn event(&self) -> &Arc<Event> {
        &self.event
    }

    /// Carries over what there is, `item` being the binding's; or what is left, if that has been deleted. Not under the
    /// poller's lock: the event's observers are called.
    pub(super) fn carry(&self, item: &Item) {
        if item.is_deleted() {
            // Whoever carries at the moment reads no more after this.
            return self.carrier.settle(&self.event);
        }
        // AcqRel here and below: rounds come one after the other, and see what a caller saw before.
        if self.callers.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        let at_it = AtIt { bound: self, item };
        let mut reads = READS;
        loop {
            let callers = self.callers.load(Ordering::Acquire);
            match self.round(item, &mut reads) {
                // Later, and others first.
                Then::GoOn => return drop(at_it),
                // Here it ends, with the callers left as they are.
                Then::End => return std::mem::forget(at_it),
                Then::Stop => {
                    let done = self.callers.compare_exchange(
                        callers,
                        0,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    );
                    if done.is_ok() {
                        return std::mem::forget(at_it);
                    }
                }
            }
        }
    }

    /// Carries until there is nothing left to carry, or no more `reads`.
    fn round(&self, item: &Item, reads: &mut u32) -> Then {
        while *reads != 0 {
            *reads -= 1;
            let (over, read) = (|| item.is_deleted(), || self.read());
            match self.carrier.step(&self.event, over, read) {
                Step::Carried => {}
                Step::Empty => return Then::Stop,
                Step::Full => {
                    // A read from now on queues the binding.
                    self.event.arm(Interest::Reads);
                    if self.event.count_after_asking() >= u64::MAX - 1 {
                        return Then::Stop;
                    }
                }
                Step::Over => return Then::End,
            }
        }
        Then::GoOn
    }

    /// What is in the eventfd, without waiting for it, be it non-blocking or not.
    fn read(&self) -> Option<u64> {
        loop {
            match read_at_once(self.fd.as_fd()) {
                Err(Errno::INTR) => {}
                result => return result.ok(),
            }
        }
    }
}

/// Whoever carries. If it stops with work left, or an observer panics, the binding is queued again.
struct AtIt<'a> {
    bound: &'a Bound,
    item: &'a Item,
}

impl Drop for AtIt<'_> {
    fn drop(&mut self) {
        self.bound.callers.swap(0, Ordering::AcqRel);
        self.item.enqueue();
    }
}

impl Poller {
    /// Binds a kernel eventfd to an event: what KVM, vhost or another process adds to the eventfd, a thread in
    /// [`wait`](Self::wait) carries over to the event, where it is signalled as by a [`write`](Event::write).
    ///
    /// Nothing is lost and nothing doubled. If the event has no room, the rest stays behind until somebody reads it, in
    /// the eventfd as far as possible, whose writers then block. A semaphore eventfd is emptied too, a unit at a time.
    /// Several threads in `wait` carry for several bindings at once: an observer that takes its time holds up its own.
    /// Nothing is carried while nobody waits. The binding itself reports nothing: for that, [`add`](Self::add) the
    /// event, or wait for it elsewhere.
    ///
    /// The poller holds on to a duplicate of the descriptor, and to the event, until [`delete`](Self::delete). What is
    /// in the eventfd then stays there. What has been read is in the event when `delete` returns, also if another
    /// thread has read it this very moment; what had no room is signalled, so that the event may overflow. An eventfd
    /// that is bound twice gives each count to one of the events.
    ///
    /// # Errors
    ///
    /// [`KeyExists`](PollError::KeyExists), [`NotEventfd`](PollError::NotEventfd), [`BadFd`](PollError::BadFd) or
    /// [`Os`](PollError::Os). What kind of descriptor it is, is asked of `/proc`; if that is not there, it is taken for
    /// an eventfd.
    ///
    /// ```
    /// use doorbell::Event;
    /// use doorbell::poll::{Events, Poller, Watch};
    /// use rustix::event::{EventfdFlags, eventfd};
    /// use std::sync::Arc;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vhost = eventfd(0, EventfdFlags::NONBLOCK)?;
    /// let call = Arc::new(Event::new(0));
    /// let poller = Poller::new();
    /// poller.bind(&vhost, &call, 1)?;
    /// poller.add(&call, 2, Watch::READABLE)?;
    ///
    /// rustix::io::write(&vhost, &3_u64.to_ne_bytes())?; // vhost writes to its eventfd …
    /// poller.wait(&mut Events::with_capacity(8), None)?;
    /// assert_eq!(call.try_read(), Some(3)); // … and the event has it
    /// # Ok(())
    /// # }
    /// ```
    pub fn bind(&self, fd: impl AsFd, event: &Arc<Event>, key: usize) -> Result<(), PollError> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(PollError::of)?;
        if !may_be_eventfd(fd.as_fd()) {
            return Err(PollError::NotEventfd);
        }
        let bound = Bound {
            fd,
            event: Arc::clone(event),
            callers: AtomicU32::new(0),
            carrier: Carrier::new(),
        };
        let item = Item::new(key, What::Bound(bound), Arc::clone(self.shared()));
        item.watch(Watch::WRITABLE);
        // Outside the lock, which an observer's call may want.
        let observation = Observation::prompt_on_demand(
            Arc::clone(event),
            Interest::Reads,
            Arc::clone(&item) as _,
        );
        let mut registered = self.registered();
        registered.check_vacant(key)?;
        let What::Bound(bound) = &item.what else {
            unreachable!("made above");
        };
        let fds = self.fds()?;
        fds.check_reads()?;
        let flags = EventFlags::IN | EventFlags::ET;
        let registration = registered.fds.add(fds, bound.fd.as_fd(), key, flags)?;
        registered.register(
            key,
            &item,
            Registration::Bound {
                item: Arc::clone(&item),
                _observation: observation,
                registration,
            },
        );
        Ok(())
    }
}

/// What a `read(2)` of an eventfd gives, but `EAGAIN` if that would block, whatever the flags of its open file say:
/// other processes share those. Needs Linux 5.8, or is `EOPNOTSUPP`.
pub(super) fn read_at_once(eventfd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut count = [0; 8];
    let mut buffer = [IoSliceMut::new(&mut count)];
    // No place in particular: it has none.
    let whence = u64::MAX;
    match rustix::io::preadv2(eventfd, &mut buffer, whence, ReadWriteFlags::NOWAIT)? {
        8 => Ok(u64::from_ne_bytes(count)),
        _ => Err(Errno::INVAL),
    }
}

fn may_be_eventfd(fd: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(path).map_or(true, |target| target.as_os_str() == "anon_inode:[eventfd]")
}
