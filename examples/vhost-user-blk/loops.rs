//! What waits for kicks and for the socket: exchangeable, so that doorbell's poller can be compared with others.

mod doorbell;
mod epoll;
mod qemu;

use crate::program::options::{LoopKind, Options};
use crate::program::stats::QueueStats;
use ::doorbell::poll::Probe;
use ::doorbell::virtio::QueueProbe;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// One thread's.
pub trait Loop: Send {
    /// Reports `fd` as long as it is readable.
    fn watch(&mut self, fd: BorrowedFd<'_>, key: usize) -> anyhow::Result<()>;

    /// Reports a queue after each kick, or when its probe finds something. The kick is not read.
    fn watch_queue(&mut self, kick: &File, key: usize, probe: CountedProbe) -> anyhow::Result<()>;

    /// The probe has been dropped when this returns.
    fn forget(&mut self, key: usize) -> anyhow::Result<()>;

    /// Waits, unless that is `at_once`, and adds the keys of what is ready.
    fn wait(&mut self, at_once: bool, ready: &mut Vec<usize>) -> anyhow::Result<()>;
}

pub fn make(options: &Options) -> anyhow::Result<Box<dyn Loop>> {
    Ok(match options.device_loop {
        LoopKind::Doorbell => Box::new(doorbell::Doorbell::new(options.poll_max_us)),
        LoopKind::Epoll => Box::new(epoll::Epoll::new()?),
        LoopKind::VhostUserBackend => unreachable!("it is that crate's"),
        LoopKind::Qemu => Box::new(qemu::Qemu::new(options.poll_max_us)?),
    })
}

/// A queue's probe, and how often it is used.
pub struct CountedProbe {
    pub probe: QueueProbe<Arc<GuestMemoryMmap>>,
    pub stats: Arc<QueueStats>,
}

impl Probe for CountedProbe {
    #[inline]
    fn ready(&mut self) -> bool {
        self.stats.looks.add(1);
        self.probe.ready()
    }

    fn begin(&mut self) {
        self.stats.windows.add(1);
        self.probe.begin();
    }

    fn end(&mut self) -> bool {
        let found = self.probe.end();
        self.stats.sleeps.add(u64::from(!found));
        found
    }
}
