//! The lines that the worker is to drive.
//!
//! The kernel's counterpart is the work queue that irqfds of pins inject from. A line with something to do is in the
//! backlog at most once, because it is `BUSY` until the worker has finished with it. The worker gives it one turn, and
//! puts it at the end of the backlog if that leaves something to do. So between two turns of a line, each other line
//! has at most one.
//!
//! A turn is in no section, but in a [`Deferral`]: if a call of the sink has to wait for something, the wait comes
//! after the turn. A worker never waits for another worker, because two workers could then wait for each other.

use super::line::{IrqLine, Turn};
use crate::Event;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::const_thread_local;
use crate::sync::fork::Process;
use crate::sync::srcu::Deferral;
use crossbeam_queue::SegQueue;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

pub(super) struct Backlog {
    jobs: SegQueue<Job>,
    /// Signalled after each push.
    wake: Event,
    /// Nothing is pushed any more.
    closed: AtomicBool,
    process: Process,
}

const_thread_local! {
    /// This thread is a router's worker.
    static IS_WORKER: Cell<bool> = { Cell::new(false) };
}

pub(super) fn is_worker() -> bool {
    IS_WORKER.with(Cell::get)
}

enum Job {
    Turn(Arc<IrqLine>),
    /// Goes through the backlog twice, then signals that everything requested before is done. Once would not do: when
    /// this is pushed, the worker may be in a turn that a request has come too late for, and that line is pushed again
    /// behind this.
    Flush {
        done: Arc<Event>,
        again: bool,
    },
}

impl Backlog {
    pub(super) fn new() -> Self {
        Backlog {
            jobs: SegQueue::new(),
            wake: Event::new(0),
            closed: AtomicBool::new(false),
            process: Process::current(),
        }
    }

    /// Whether this is the process that has the worker's thread, rather than a child of it.
    #[inline]
    pub(super) fn has_worker(&self) -> bool {
        !self.process.is_over()
    }

    /// Adds a line that the caller is the driver of.
    pub(super) fn push(&self, line: Arc<IrqLine>) {
        self.jobs.push(Job::Turn(line));
        self.wake.signal();
    }

    /// Waits until the worker has done what was requested before. Returns at once on the thread of any worker.
    pub(super) fn flush(&self) {
        if is_worker() {
            return;
        }
        let done = Arc::new(Event::new(0));
        self.jobs.push(Job::Flush {
            done: Arc::clone(&done),
            again: true,
        });
        self.wake.signal();
        done.read();
    }

    /// Gives each line its `turn`, until the backlog is closed and empty. One thread runs this.
    pub(super) fn work(&self, turn: impl Fn(&IrqLine) -> Turn) {
        IS_WORKER.with(|is_worker| is_worker.set(true));
        loop {
            // Acquire pairs with the Release in `close`. Read before the queue, so that nothing is left in the queue.
            let closed = self.closed.load(Ordering::Acquire);
            match self.jobs.pop() {
                Some(Job::Turn(line)) => {
                    let deferral = Deferral::new();
                    // The panic has been reported. The line's other requests are carried out nevertheless.
                    match panic::catch_unwind(AssertUnwindSafe(|| turn(&line))) {
                        Ok(Turn::Rests) => {}
                        Ok(Turn::GoesOn) | Err(_) => self.jobs.push(Job::Turn(line)),
                    }
                    // The destructor of an observer that the sink has detached may panic, too.
                    let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(deferral)));
                }
                Some(Job::Flush { done, again: true }) => {
                    let again = false;
                    self.jobs.push(Job::Flush { done, again });
                }
                Some(Job::Flush { done, again: false }) => done.signal(),
                None if closed => return,
                None => {
                    self.wake.read();
                }
            }
        }
    }

    /// To be called when nothing is pushed any more. The worker's thread then ends with the last line.
    pub(super) fn close(&self) {
        // Release pairs with the Acquire in `work`.
        self.closed.store(true, Ordering::Release);
        self.wake.signal();
    }
}
