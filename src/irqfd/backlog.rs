//! What is left to the worker.
//!
//! The kernel's counterpart is the work queue that irqfds of pins inject from. A line that has something to do stands
//! in the backlog at most once: it is `BUSY` until the worker has done with it. It gets one turn, and goes to the end
//! of the backlog if that leaves something to do. So between two turns of a line there is at most one of each other
//! line.
//!
//! A turn is in no section, but in a [`Deferral`]: what the sink's calls would have to wait for comes after the turn.
//! A worker never waits for a worker, for that one may wait for this one.

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
    /// No more will be pushed.
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
    /// Signals that everything requested before is done: on the way to the end of the backlog for the second time. The
    /// first time, the worker may have been in a turn that a request came too late for, and that line comes after this.
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

    /// Whether this is the process that has the thread, and no child of it.
    #[inline]
    pub(super) fn has_worker(&self) -> bool {
        !self.process.is_over()
    }

    /// A line that the caller is the driver of.
    pub(super) fn push(&self, line: Arc<IrqLine>) {
        self.jobs.push(Job::Turn(line));
        self.wake.signal();
    }

    /// Waits until the worker has done what was requested before. A worker, this one or another, does not wait.
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
            // Acquire pairs with the Release in `close`; looked at before the queue, so that nothing is left in it.
            let closed = self.closed.load(Ordering::Acquire);
            match self.jobs.pop() {
                Some(Job::Turn(line)) => {
                    let deferral = Deferral::new();
                    // A panic has been reported, and what else the line has to do is done.
                    match panic::catch_unwind(AssertUnwindSafe(|| turn(&line))) {
                        Ok(Turn::Rests) => {}
                        Ok(Turn::GoesOn) | Err(_) => self.jobs.push(Job::Turn(line)),
                    }
                    // So has that of a destructor of what the sink has detached.
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

    /// No more will be pushed.
    pub(super) fn close(&self) {
        // Release pairs with the Acquire in `work`.
        self.closed.store(true, Ordering::Release);
        self.wake.signal();
    }
}
