//! Statistics, which are printed at the end.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A count to which one thread at a time adds.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.get() + n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The statistics of one queue, for all front-ends.
#[derive(Default)]
pub struct QueueStats {
    pub requests: Count,
    pub kicks: Count,
    pub interrupts: Count,
    pub looks: Count,
    pub windows: Count,
    pub sleeps: Count,
}

pub struct Stats {
    pub clients: u64,
    pub dropped: u64,
    pub queues: Vec<Arc<QueueStats>>,
}

impl Stats {
    pub fn new(queues: u16) -> Self {
        Stats {
            clients: 0,
            dropped: 0,
            queues: (0..queues).map(|_| Arc::default()).collect(),
        }
    }
}

const COLUMNS: [&str; 6] = [
    "requests",
    "kicks",
    "interrupts",
    "looks",
    "windows",
    "sleeps",
];

impl QueueStats {
    fn columns(&self) -> [u64; 6] {
        [
            &self.requests,
            &self.kicks,
            &self.interrupts,
            &self.looks,
            &self.windows,
            &self.sleeps,
        ]
        .map(Count::get)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "clients {}, of which dropped {}",
            self.clients, self.dropped
        )?;
        write!(f, "queue")?;
        for name in COLUMNS {
            write!(f, " {name:>12}")?;
        }
        let mut all = [0; 6];
        for (index, queue) in self.queues.iter().enumerate() {
            write!(f, "\n{index:>5}")?;
            for (all, n) in all.iter_mut().zip(queue.columns()) {
                *all += n;
                write!(f, " {n:>12}")?;
            }
        }
        write!(f, "\n  all")?;
        all.iter().try_for_each(|n| write!(f, " {n:>12}"))
    }
}
