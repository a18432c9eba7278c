//! epoll, and before that a look at the available rings for as long as QEMU would: `adjust_polling_time` of its
//! `util/aio-posix.c`, with its defaults.

use super::epoll::Epoll;
use super::{CountedProbe, Loop};
use doorbell::poll::Probe;
use std::fs::File;
use std::hint::spin_loop;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// The first window after there was none.
const FIRST: Duration = Duration::from_micros(4);
/// Of the waits that find something in the rings, one in this many looks at descriptors.
const BUSY_WAITS: u32 = 1024;

pub struct Qemu {
    epoll: Epoll,
    max: Duration,
    window: Duration,
    probes: Vec<(usize, CountedProbe)>,
    busy_waits: u32,
}

impl Qemu {
    pub fn new(poll_max_us: u32) -> anyhow::Result<Self> {
        Ok(Qemu {
            epoll: Epoll::new()?,
            max: Duration::from_micros(poll_max_us.into()),
            window: Duration::ZERO,
            probes: Vec::new(),
            busy_waits: 0,
        })
    }

    /// Adds the keys of the queues that have requests. Returns whether there are any.
    fn ask(&mut self, ready: &mut Vec<usize>) -> bool {
        let before = ready.len();
        for (key, probe) in &mut self.probes {
            if probe.ready() {
                ready.push(*key);
            }
        }
        ready.len() != before
    }

    fn look_and_sleep(&mut self, start: Instant, ready: &mut Vec<usize>) -> anyhow::Result<()> {
        if !self.window.is_zero() {
            self.probes.iter_mut().for_each(|(_, probe)| probe.begin());
            loop {
                if self.ask(ready) {
                    return Ok(());
                }
                if start.elapsed() >= self.window {
                    break;
                }
                spin_loop();
            }
        }
        for (key, probe) in &mut self.probes {
            if probe.end() {
                ready.push(*key);
            }
        }
        self.epoll.wait(!ready.is_empty(), ready)
    }

    fn adjust(&mut self, blocked: Duration) {
        if blocked <= self.window {
            // The window was long enough.
        } else if blocked > self.max {
            self.window = Duration::ZERO;
        } else if self.window < self.max {
            let longer = if self.window.is_zero() {
                FIRST
            } else {
                2 * self.window
            };
            self.window = longer.min(self.max);
        }
    }
}

impl Loop for Qemu {
    fn watch(&mut self, fd: BorrowedFd<'_>, key: usize) -> anyhow::Result<()> {
        self.epoll.watch(fd, key)
    }

    fn watch_queue(&mut self, kick: &File, key: usize, probe: CountedProbe) -> anyhow::Result<()> {
        self.epoll.watch_kick(kick, key)?;
        self.probes.push((key, probe));
        Ok(())
    }

    fn forget(&mut self, key: usize) -> anyhow::Result<()> {
        self.probes.retain(|(of, _)| *of != key);
        self.epoll.forget(key)
    }

    fn wait(&mut self, at_once: bool, ready: &mut Vec<usize>) -> anyhow::Result<()> {
        self.busy_waits += 1;
        if at_once || self.busy_waits == BUSY_WAITS {
            self.busy_waits = 0;
            self.epoll.wait(true, ready)?;
            if at_once || !ready.is_empty() {
                return Ok(());
            }
        }
        let start = Instant::now();
        self.look_and_sleep(start, ready)?;
        self.adjust(start.elapsed());
        Ok(())
    }
}
