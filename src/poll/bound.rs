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
    /// A duplicate, so that it is there as long as the binding.
    fd: OwnedFd,
    event: EventHandle,
    /// Each read may take one unit of several: the eventfd is a semaphore, or the system does not say that it is none.
    by_units: bool,
    /// Who came to carry since the one at it last looked, himself included; 0 if there is none.
    callers: AtomicU32,
    carrier: Carrier,
}

/// Attempts to read in one go. A semaphore gives one unit each time, the eventfd may be written to without end, and
/// others wait.
const READS: u32 = 64;

/// What to do after a round of carrying.
#[derive(PartialEq, Eq)]
enum NextStep {
    /// The eventfd is empty, or the event full.
    Stop,
    /// There may be more to read, but it is the turn of others.
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

    /// Carries over what there is, `item` being the binding's; or what is left, if that has been deleted. Not under the
    /// poller's lock: the event's observers are called.
    pub(super) fn carry(&self, item: &impl QueuedBinding) {
        if item.is_deleted() {
            // Whoever carries at the moment reads no more after this.
            return self.carrier.settle(&self.event);
        }
        // AcqRel here and below: rounds come one after the other, and see what a caller saw before.
        if self.callers.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        let guard = CarryGuard { bound: self, item };
        let mut reads = READS;
        loop {
            let callers = self.callers.load(Ordering::Acquire);
            match self.round(item, &mut reads) {
                // Later, and others first.
                NextStep::GoOn => return drop(guard),
                // Here it ends, with the callers left as they are.
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

    /// Carries until there is nothing left to carry, or no more `reads`.
    fn round(&self, item: &impl QueuedBinding, reads: &mut u32) -> NextStep {
        while *reads != 0 {
            *reads -= 1;
            let (over, read) = (|| item.is_deleted(), || self.read());
            match self.carrier.step(&self.event, over, read) {
                // The read has emptied the eventfd. A write after that is an edge, which epoll reports.
                Step::Carried if !self.by_units => return NextStep::Stop,
                Step::Carried => {}
                Step::Empty => return NextStep::Stop,
                Step::Full => {
                    // A read from now on queues the binding.
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
struct CarryGuard<'a, P: QueuedBinding> {
    bound: &'a Bound,
    item: &'a P,
}

impl<P: QueuedBinding> Drop for CarryGuard<'_, P> {
    fn drop(&mut self) {
        self.bound.callers.swap(0, Ordering::AcqRel);
        self.item.enqueue();
    }
}

/// What the system knows of a descriptor, if there is a `/proc` to ask.
fn what_proc_says(fd: BorrowedFd<'_>) -> Option<String> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // The lines in question come among the first.
    let mut text = [0; 512];
    let length = rustix::io::read(file, &mut text).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).into_owned())
}
