//! A thread that drives the lines of a [backlog](super::backlog), for sinks that may sleep.

use super::backlog::is_worker;
use super::board::Board;
use crate::sync::srcu;
use std::io;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Its thread ends, with nothing left to do, when this is dropped; or soon after, where nobody is to wait.
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
            // To be neither joined nor detached where it never was.
            return mem::forget(thread);
        };
        backlog.close();
        // The last handle may be dropped by the sink, on this very thread, which then ends when it has returned. Or in
        // a callback, which the sink may be waiting for.
        if !is_worker() && srcu::may_wait() {
            // It catches what panics.
            let _ = thread.join();
        }
    }
}
