//! doorbell's poller: kicks as edges of descriptors that are never read, and a probe for each queue.

use super::{CountedProbe, Loop};
use doorbell::Spin;
use doorbell::poll::{Events, Poller, Watch};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::time::Duration;

pub struct Doorbell {
    poller: Poller,
    polls: bool,
    events: Events,
}

impl Doorbell {
    pub fn new(poll_max_us: u32) -> Self {
        let spin = match poll_max_us {
            0 => Spin::Never,
            us => Spin::Adaptive {
                max: Duration::from_micros(us.into()),
            },
        };
        Doorbell {
            poller: Poller::with_spin(spin),
            polls: poll_max_us != 0,
            events: Events::with_capacity(64),
        }
    }
}

impl Loop for Doorbell {
    fn watch(&mut self, fd: BorrowedFd<'_>, key: usize) -> anyhow::Result<()> {
        Ok(self.poller.add_fd(fd, key, Watch::READABLE)?)
    }

    fn watch_queue(&mut self, kick: &File, key: usize, probe: CountedProbe) -> anyhow::Result<()> {
        self.poller.add_fd(kick, key, Watch::READABLE.edge())?;
        if self.polls {
            self.poller.attach_probe(key, probe)?;
        }
        Ok(())
    }

    fn forget(&mut self, key: usize) -> anyhow::Result<()> {
        Ok(self.poller.delete(key)?)
    }

    fn wait(&mut self, at_once: bool, ready: &mut Vec<usize>) -> anyhow::Result<()> {
        let timeout = at_once.then_some(Duration::ZERO);
        self.poller.wait(&mut self.events, timeout)?;
        ready.extend(self.events.iter().map(|report| report.key()));
        Ok(())
    }
}
