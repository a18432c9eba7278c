//! The same disk on the crate `vhost-user-backend`, which has a loop of its own, with which doorbell's is compared. It
//! asks about interrupts as other back-ends on that crate do, once after all available requests.

use crate::program::device;
use crate::program::options::Options;
use crate::program::request::Requests;
use anyhow::anyhow;
use std::io::{Error, Result};
use std::sync::{Arc, Mutex};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

const MOST_DESCRIPTORS: usize = 1024;

/// Serves one front-end.
pub fn serve(options: &Options, requests: Requests) -> anyhow::Result<()> {
    let mem = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Backend {
        mem: mem.clone(),
        requests,
        queues: options.queues,
        event_idx: false,
    };
    let backend = Arc::new(Mutex::new(backend));
    let daemon = VhostUserDaemon::new("vhost-user-blk".into(), backend, mem);
    let mut daemon = daemon.map_err(|e| anyhow!("{e}"))?;
    daemon.serve(&options.socket).map_err(|e| anyhow!("{e}"))
}

struct Backend {
    mem: GuestMemoryAtomic<GuestMemoryMmap>,
    requests: Requests,
    queues: u16,
    event_idx: bool,
}

impl Backend {
    fn serve(&mut self, vring: &VringRwLock) -> Result<()> {
        let mem = self.mem.memory();
        let mut done = false;
        loop {
            let chain = vring
                .get_mut()
                .get_queue_mut()
                .iter(&*mem)
                .map_err(Error::other)?
                .next();
            let Some(chain) = chain else {
                break;
            };
            let head = chain.head_index();
            let written = self
                .requests
                .handle(chain)
                .map_err(|e| Error::other(e.to_string()))?;
            vring.add_used(head, written).map_err(Error::other)?;
            done = true;
        }
        if done && vring.needs_notification().map_err(Error::other)? {
            vring.signal_used_queue()?;
        }
        Ok(())
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.queues.into()
    }

    fn max_queue_size(&self) -> usize {
        MOST_DESCRIPTORS
    }

    fn features(&self) -> u64 {
        device::offered(&self.requests.disk, self.queues)
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn acked_features(&mut self, features: u64) {
        self.requests.write_through = !device::can_flush(features);
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let start = offset as usize;
        let config = device::config(&self.requests.disk, self.queues);
        let part = config.get(start..start.saturating_add(size as usize));
        part.map_or(Vec::new(), <[u8]>::to_vec)
    }

    fn update_memory(&mut self, mem: GuestMemoryAtomic<GuestMemoryMmap>) -> Result<()> {
        self.mem = mem;
        Ok(())
    }

    fn handle_event(
        &mut self,
        queue: u16,
        _: EventSet,
        vrings: &[VringRwLock],
        _: usize,
    ) -> Result<()> {
        let Some(vring) = vrings.get(usize::from(queue)) else {
            return Err(Error::other("an event of nothing that is watched"));
        };
        if !self.event_idx {
            return self.serve(vring);
        }
        loop {
            vring.disable_notification().map_err(Error::other)?;
            self.serve(vring)?;
            if !vring.enable_notification().map_err(Error::other)? {
                return Ok(());
            }
        }
    }
}
