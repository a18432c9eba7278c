//! A kernel eventfd bound to an event: what arrives at the eventfd is carried over to the event.
//!
//! ```text
//!     KVM, vhost, another process ──▶ eventfd ──▶ epoll ──▶ a thread in wait ──▶ Event
//!                                       count  ── read ──▶ carrier ── write ──▶ count
//! ```
//!
//! If the event has no room for what was read, the rest stays with the [`Carrier`]. As long as there is a rest, the
//! eventfd is not read, so that it fills and blocks its writers as the event would. A read of the event queues the
//! binding again.
//!
//! The eventfd is watched for edges, so it is read until it is empty, by one thread at a time. A thread that finds
//! another one carrying counts itself in `callers` and leaves; the other then carries once more.

use super::PollError;
use super::epoll::read_at_once;
use super::queued_binding::QueuedBinding;
use crate::event::transfer::{Carrier, Step};
use crate::event::{EventHandle, Interest};
use crate::sync::atomic::{AtomicU32, Ordering};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

pub(super) struct Bound {
    /// A duplicate, so that it stays open as long as the binding exists.
    fd: OwnedFd,
    event: EventHandle,
    /// A read may take one unit of several: the eventfd is a semaphore, or the system does not tell.
    by_units: bool,
    /// The callers since the thread that carries last checked, that thread included; 0 if no thread carries.
    callers: AtomicU32,
    carrier: Carrier,
}

/// Reads before other work gets its turn: a semaphore gives one unit each time, and a peer may write without end.
const READS: u32 = 64;

/// What to do after a round of carrying.
#[derive(PartialEq, Eq)]
enum NextStep {
    /// The eventfd is empty, or the event full.
    Stop,
    /// There may be more to read, but other work gets its turn first.
    GoOn,
    /// The binding has been deleted.
    End,
}

impl Bound {
    /// A binding of a duplicate of the descriptor.
    pub(super) fn new(fd: impl AsFd, event: EventHandle) -> Result<Self, PollError> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(PollError::of)?;
        let by_units = match what_proc_says(fd.as_fd()) {
            Some(says) if !says.contains("eventfd-count:") => return Err(PollError::NotEventfd),
            // The line came with Linux 6.5.
            Some(says) => !says.contains("eventfd-semaphore: 0"),
            None => true,
        };
        Ok(Bound {
            fd,
            event,
            by_units,
            callers: AtomicU32::new(0),
            carrier: Carrier::new(),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn event(&self) -> &EventHandle {
        &self.event
    }

    /// Carries over what is in the eventfd. If the binding, whose item is `item`, has been deleted, delivers what was
    /// read before and not carried over. Not called under the poller's lock, because the event's observers are called.
    pub(super) fn carry(&self, item: &impl QueuedBinding) {
        if item.is_deleted() {
            // A thread that carries at the moment reads no more after this.
            return self.carrier.settle(&self.event);
        }
        // AcqRel here, and with the accesses below, which it pairs with: rounds come one after the other, and each sees
        // what its callers saw before.
        if self.callers.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        let guard = CarryGuard { bound: self, item };
        let mut reads = READS;
        loop {
            let callers = self.callers.load(Ordering::Acquire);
            match self.round(item, &mut reads) {
                // The guard queues the binding again.
                NextStep::GoOn => return drop(guard),
                // No thread carries any more, so the callers stay as they are.
                NextStep::End => return std::mem::forget(guard),
                NextStep::Stop => {
                    let done = self.callers.compare_exchange(
                        callers,
                        0,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    );
                    if done.is_ok() {
                        return std::mem::forget(guard);
                    }
                }
            }
        }
    }

    /// Carries until nothing is left to carry, or `reads` is 0.
    fn round(&self, item: &impl QueuedBinding, reads: &mut u32) -> NextStep {
        while *reads != 0 {
            *reads -= 1;
            let (over, read) = (|| item.is_deleted(), || self.read());
            match self.carrier.step(&self.event, over, read) {
                // The read has emptied the eventfd. epoll reports an edge for each write after that.
                Step::Carried if !self.by_units => return NextStep::Stop,
                Step::Carried => {}
                Step::Empty => return NextStep::Stop,
                Step::Full => {
                    // From now on, a read of the event queues the binding.
                    self.event.arm(Interest::Reads);
                    if self.event.count_after_asking() >= u64::MAX - 1 {
                        return NextStep::Stop;
                    }
                }
                Step::Over => return NextStep::End,
            }
        }
        NextStep::GoOn
    }

    /// Reads the eventfd without waiting, whether or not it is non-blocking.
    fn read(&self) -> Option<u64> {
        loop {
            match read_at_once(self.fd.as_fd()) {
                Err(Errno::INTR) => {}
                result => return result.ok(),
            }
        }
    }
}

/// Held while a thread carries. If the thread stops with work left, or an observer panics, the binding is queued again.
struct CarryGuard<'a, P: QueuedBinding> {
    bound: &'a Bound,
    item: &'a P,
}

impl<P: QueuedBinding> Drop for CarryGuard<'_, P> {
    fn drop(&mut self) {
        // AcqRel pairs with itself in `carry`: the next round sees this one.
        self.bound.callers.swap(0, Ordering::AcqRel);
        self.item.enqueue();
    }
}

/// What `/proc` says about a descriptor; `None` if it cannot be read.
fn what_proc_says(fd: BorrowedFd<'_>) -> Option<String> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // The lines about eventfds are among the first.
    let mut text = [0; 512];
    let length = rustix::io::read(file, &mut text).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).into_owned())
}
