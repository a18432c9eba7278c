//! A thread that drives the lines of a [backlog](super::backlog), for sinks that may sleep.

use super::backlog::is_worker;
use super::board::Board;
use crate::sync::srcu;
use std::io;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// When this is dropped, the thread does what is left to do and ends. The drop waits for that, except inside a
/// callback.
pub(super) struct Worker {
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// For a board with a backlog.
    pub(super) fn start(board: &Arc<Board>) -> io::Result<Self> {
        let thread = {
            let board = Arc::clone(board);
            thread::Builder::new().name("irqfd".into()).spawn(move || {
                if let Some(backlog) = board.backlog() {
                    backlog.work(|line| board.turn(line));
                }
            })?
        };
        Ok(Worker {
            board: Arc::clone(board),
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let Some(backlog) = self.board.backlog() else {
            // In a child of the process there is no such thread, and its handle can be neither joined nor detached.
            return mem::forget(thread);
        };
        backlog.close();
        // The sink may drop the last handle on this very thread, which ends when the sink has returned. A callback must
        // not wait, because the sink may be waiting for it.
        if !is_worker() && srcu::may_wait() {
            // It catches what panics.
            let _ = thread.join();
        }
    }
}
