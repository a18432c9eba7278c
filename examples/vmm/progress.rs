//! Shows how far a run is, and ends the program when the run gets stuck.

use crate::device::Shared;
use crate::map::{QUEUES, cell};
use crate::plan::Plan;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub struct Progress {
    /// Give up after this time without a kick.
    patience: Duration,
    terminal: bool,
    shown: Instant,
    /// The number of finished runs, and of all runs.
    finished: usize,
    runs: usize,
}

/// How often to look whether the run has ended.
const LOOK: Duration = Duration::from_millis(10);

impl Progress {
    pub fn new(runs: usize, patience: Duration) -> Self {
        Progress {
            patience,
            terminal: io::stderr().is_terminal(),
            shown: Instant::now(),
            finished: 0,
            runs,
        }
    }

    /// Returns when the vCPU thread has ended.
    ///
    /// If no kick was seen for too long, prints the state of everything and ends the program with 1: threads that are
    /// stuck cannot be joined.
    pub fn watch<T>(&mut self, plan: &Plan, shared: &Shared, vcpu: &JoinHandle<T>) {
        let mut last_seen = 0;
        let mut last_move = Instant::now();
        while !vcpu.is_finished() {
            let seen = shared
                .seen
                .iter()
                .map(|seen| seen.load(Ordering::Relaxed))
                .sum();
            if seen != last_seen {
                (last_seen, last_move) = (seen, Instant::now());
            } else if last_move.elapsed() > self.patience {
                self.clear();
                crate::fail(&anyhow::anyhow!("{}", stuck(plan, shared, self.patience)));
            }
            self.show(plan, seen);
            thread::sleep(LOOK);
        }
        self.finished += 1;
    }

    /// On a terminal one line that is kept up to date, otherwise a line now and then.
    fn show(&mut self, plan: &Plan, seen: u64) {
        let interval = Duration::from_millis(if self.terminal { 100 } else { 2000 });
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let (run, runs) = (self.finished + 1, self.runs);
        let Plan { setup, batch, .. } = plan;
        let line = format!(
            "run {run} of {runs}: {setup}, batch {batch}, {seen} of {} kicks",
            plan.kicks()
        );
        if self.terminal {
            eprint!("\r\x1b[K{line}");
            let _ = io::stderr().flush();
        } else {
            eprintln!("vmm: {line}");
        }
    }

    /// Takes the line off the terminal.
    pub fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// The state of everything, as text.
fn stuck(plan: &Plan, shared: &Shared, patience: Duration) -> String {
    let mut text = format!("no kick seen for {} s in {plan:?}", patience.as_secs());
    for queue in 0..QUEUES {
        let sent = shared.memory.get(cell::sent(queue));
        let seen = shared.seen[queue].load(Ordering::Relaxed);
        let taken = shared.memory.get(cell::interrupts(queue));
        text +=
            &format!("\n  queue {queue}: {sent} kicks sent, {seen} seen, {taken} interrupts taken");
        text += &format!("\n    doorbell: {:?}", shared.doorbells.counter(queue));
        text += &format!("\n    interrupt: {:?}", shared.interrupts[queue]);
    }
    text
}
