//! A queue: its settings from the front-end and, while it runs, the queue itself.

use crate::program::bell;
use crate::program::device::refusal;
use crate::program::inflight::{Inflight, QueueLog};
use crate::program::interrupts;
use crate::program::memory::Memory;
use crate::program::options::Interrupts;
use crate::program::request::{Malformed, Requests};
use crate::program::stats::QueueStats;
use doorbell::virtio::{PolledQueue, QueueError};
use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vhost::vhost_user::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const MOST_DESCRIPTORS: u16 = 32768;

#[derive(Default)]
pub struct Vring {
    pub size: u16,
    pub rings: Option<RingAddresses>,
    pub next_avail: u16,
    pub kick: Kick,
    pub call: Option<File>,
    pub err: Option<File>,
    pub enabled: bool,
    pub running: Option<Running>,
    /// The driver broke the rules. The queue stays stopped until the front-end begins anew.
    pub broken: bool,
}

/// In the front-end's addresses.
#[derive(Clone, Copy)]
pub struct RingAddresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

#[derive(Default)]
pub enum Kick {
    #[default]
    Untold,
    By(File),
    /// The front-end does not kick: the queue is served over and over, without sleep.
    Never,
}

pub struct Running {
    pub queue: PolledQueue<Arc<GuestMemoryMmap>>,
    log: Option<QueueLog>,
}

impl Vring {
    /// Whether the front-end has sent everything that a queue needs to run.
    pub fn can_run(&self) -> bool {
        let kick = !matches!(self.kick, Kick::Untold);
        self.running.is_none() && kick && self.enabled && self.rings.is_some() && !self.broken
    }

    pub fn is_never_kicked(&self) -> bool {
        matches!(self.kick, Kick::Never) && self.running.is_some()
    }

    pub fn kick_fd(&self) -> Option<&File> {
        match &self.kick {
            Kick::By(fd) => Some(fd),
            _ => None,
        }
    }

    /// Makes the queue.
    pub fn run(
        &mut self,
        index: usize,
        memory: &Memory,
        event_idx: bool,
        inflight: Option<&Arc<Inflight>>,
    ) -> Result<(), Error> {
        let rings = self.rings.expect("can_run");
        let of_queue = |e: &dyn fmt::Display| refusal(format!("queue {index}: {e}"));
        let guest = |user| {
            memory
                .guest_address(user)
                .ok_or_else(|| refusal(format!("queue {index}: no memory at {user:#x} for a ring")))
        };
        let mut queue = Queue::new(MOST_DESCRIPTORS).expect("a power of two");
        queue.try_set_size(self.size).map_err(|e| of_queue(&e))?;
        queue
            .try_set_desc_table_address(guest(rings.descriptors)?)
            .map_err(|e| of_queue(&e))?;
        queue
            .try_set_avail_ring_address(guest(rings.available)?)
            .map_err(|e| of_queue(&e))?;
        queue
            .try_set_used_ring_address(guest(rings.used)?)
            .map_err(|e| of_queue(&e))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let map = memory.map();
        if !queue.is_valid(&**map) {
            return Err(of_queue(&QueueError::Invalid));
        }
        let used = queue
            .used_idx(&**map, Ordering::Acquire)
            .map_err(|e| of_queue(&e))?
            .0;
        queue.set_next_used(used);
        queue.set_next_avail(self.next_avail);
        let log = match inflight {
            None => None,
            Some(buffer) => {
                let ring = queue.avail_ring();
                let available = |at: u16| {
                    let element = ring + 4 + 2 * u64::from(at % queue.size());
                    map.read_obj(GuestAddress(element)).ok()
                };
                // The requests after the used index were begun and not completed.
                let log = QueueLog::start(buffer, index, self.size, used, available)?;
                queue.set_next_avail(used);
                Some(log)
            }
        };
        let queue = PolledQueue::new(queue, Arc::clone(map)).map_err(|e| of_queue(&e))?;
        self.running = Some(Running { queue, log });
        Ok(())
    }

    /// Ends what [`run`](Self::run) began, and remembers how far it came.
    pub fn stop(&mut self, stats: &QueueStats) {
        let Some(running) = self.running.take() else {
            return;
        };
        self.next_avail = running.queue.queue().next_avail();
        if let Kick::By(fd) = &self.kick {
            stats.kicks.add(bell::take_kicks(fd));
        }
    }

    /// Serves the driver's requests. Returns whether there are more, for which the driver will not kick.
    pub fn serve(
        &mut self,
        requests: &mut Requests,
        when: Interrupts,
        stats: &QueueStats,
    ) -> Result<bool, Broken> {
        let Some(Running { queue, log }) = &mut self.running else {
            return Ok(false);
        };
        let handle = |chain: virtio_queue::DescriptorChain<&GuestMemoryMmap>| {
            let head = chain.head_index();
            let Some(log) = log.as_mut() else {
                return Ok::<_, Broken>(requests.handle(chain)?);
            };
            if head >= self.size {
                return Err(Malformed::Chain.into());
            }
            log.begin(head);
            let written = requests.handle(chain)?;
            log.about_to_complete(head);
            Ok(written)
        };
        let interrupt = || {
            if let Some(call) = &self.call {
                bell::ring(call);
                stats.interrupts.add(1);
            }
        };
        let served = interrupts::serve(when, queue, self.size, handle, interrupt)?;
        if let Some(log) = log {
            log.settle();
        }
        stats.requests.add(served.requests.into());
        Ok(served.more)
    }
}

/// Why a queue cannot be used any more.
#[derive(Debug)]
pub enum Broken {
    Queue(QueueError),
    Request(Malformed),
}

impl From<QueueError> for Broken {
    fn from(error: QueueError) -> Self {
        Broken::Queue(error)
    }
}

impl From<Malformed> for Broken {
    fn from(error: Malformed) -> Self {
        Broken::Request(error)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Queue(error) => error.fmt(f),
            Broken::Request(error) => error.fmt(f),
        }
    }
}
