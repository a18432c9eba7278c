//! The device as the front-end sees it: what each message of the vhost-user protocol does.

use crate::program::bell;
use crate::program::disk::{Disk, SECTOR};
use crate::program::inflight::Inflight;
use crate::program::loops::{CountedProbe, Loop};
use crate::program::memory::{MOST_REGIONS, Memory};
use crate::program::options::{Interrupts, Options};
use crate::program::request::Requests;
use crate::program::stats::Stats;
use crate::program::vring::{Kick, MOST_DESCRIPTORS, RingAddresses, Vring};
use std::fs::File;
use std::io;
use std::sync::Arc;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

const BLK_F_SEG_MAX: u64 = 1 << 2;
const BLK_F_RO: u64 = 1 << 5;
const BLK_F_BLK_SIZE: u64 = 1 << 6;
const BLK_F_FLUSH: u64 = 1 << 9;
const BLK_F_MQ: u64 = 1 << 12;
const RING_F_INDIRECT_DESC: u64 = 1 << 28;
const RING_F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;

/// The most data segments of a request: a queue of 128 descriptors, without header and status.
const MOST_SEGMENTS: u32 = 126;
/// The configuration is as large as the messages allow.
const CONFIG_BYTES: usize = 256;

/// The key of queue 0 in the loop; the others follow. The keys below are the server's.
pub const FIRST_QUEUE: usize = 16;

/// Why a front-end is dropped.
pub fn refusal(text: String) -> Error {
    Error::ReqHandlerError(io::Error::other(text))
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

pub struct Device {
    pub device_loop: Box<dyn Loop>,
    pub stats: Stats,
    requests: Requests,
    interrupts: Interrupts,
    features: u64,
    memory: Memory,
    inflight: Option<Arc<Inflight>>,
    vrings: Vec<Vring>,
    /// Queues to be served without a wait.
    pub pending: Vec<usize>,
}

impl Device {
    pub fn new(requests: Requests, options: &Options, device_loop: Box<dyn Loop>) -> Self {
        let queues = options.queues;
        Device {
            device_loop,
            stats: Stats::new(queues),
            requests,
            interrupts: options.interrupts,
            features: 0,
            memory: Memory::default(),
            inflight: None,
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            pending: Vec::new(),
        }
    }

    /// Forgets the front-end.
    pub fn reset(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() {
            self.stop(index)?;
            self.vrings[index] = Vring::default();
        }
        self.features = 0;
        self.memory = Memory::default();
        self.inflight = None;
        self.requests.write_through = true;
        Ok(())
    }

    /// Serves a queue, and stops it if its driver breaks the rules.
    pub fn serve(&mut self, index: usize) -> Result<()> {
        let stats = &self.stats.queues[index];
        match self.vrings[index].serve(&mut self.requests, self.interrupts, stats) {
            Ok(more) => {
                if more || self.vrings[index].is_never_kicked() {
                    self.pend(index);
                }
                Ok(())
            }
            Err(why) => {
                eprintln!("vhost-user-blk: queue {index} is stopped: {why}");
                self.stop(index)?;
                self.vrings[index].broken = true;
                if let Some(err) = &self.vrings[index].err {
                    bell::ring(err);
                }
                Ok(())
            }
        }
    }

    fn pend(&mut self, index: usize) {
        if !self.pending.contains(&index) {
            self.pending.push(index);
        }
    }

    fn queues(&self) -> u16 {
        self.vrings.len() as u16
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn vring(&mut self, index: impl TryInto<usize>) -> Result<(usize, &mut Vring)> {
        let index = index.try_into().unwrap_or(usize::MAX);
        match self.vrings.get_mut(index) {
            Some(vring) => Ok((index, vring)),
            None => Err(refusal(format!("there is no queue {index}"))),
        }
    }

    /// Changes a queue, which is stopped meanwhile.
    fn change(
        &mut self,
        index: impl TryInto<usize>,
        change: impl FnOnce(&mut Vring),
    ) -> Result<()> {
        let (index, _) = self.vring(index)?;
        self.stop(index)?;
        change(&mut self.vrings[index]);
        self.start(index)
    }

    /// Changes the memory map, with all queues stopped meanwhile.
    fn change_memory(&mut self, change: impl FnOnce(&mut Memory) -> Result<()>) -> Result<()> {
        for index in 0..self.vrings.len() {
            self.stop(index)?;
        }
        change(&mut self.memory)?;
        (0..self.vrings.len()).try_for_each(|index| self.start(index))
    }

    /// Starts a queue if it has everything that it needs.
    fn start(&mut self, index: usize) -> Result<()> {
        let event_idx = self.has(RING_F_EVENT_IDX);
        let vring = &mut self.vrings[index];
        if !vring.can_run() {
            return Ok(());
        }
        vring.run(index, &self.memory, event_idx, self.inflight.as_ref())?;
        let Some(running) = &vring.running else {
            unreachable!("it runs");
        };
        if let Some(kick) = vring.kick_fd() {
            let probe = CountedProbe {
                probe: running.queue.probe(),
                stats: Arc::clone(&self.stats.queues[index]),
            };
            let key = FIRST_QUEUE + index;
            if let Err(e) = self.device_loop.watch_queue(kick, key, probe) {
                // The queue may have been registered only in part.
                let _ = self.device_loop.forget(key);
                vring.running = None;
                return Err(refusal(format!(
                    "queue {index}: its kick cannot be watched: {e}"
                )));
            }
        }
        // Interrupts and kicks may have been lost with the back-end before this one, or in between.
        if vring.next_avail != 0 {
            if let Some(call) = &vring.call {
                bell::ring(call);
            }
        }
        self.pend(index);
        Ok(())
    }

    fn stop(&mut self, index: usize) -> Result<()> {
        let vring = &mut self.vrings[index];
        if vring.running.is_some() {
            if vring.kick_fd().is_some() {
                self.device_loop
                    .forget(FIRST_QUEUE + index)
                    .map_err(|e| refusal(format!("queue {index}: {e}")))?;
            }
            vring.stop(&self.stats.queues[index]);
        }
        Ok(())
    }
}

/// The features of such a device.
pub fn offered(disk: &Disk, queues: u16) -> u64 {
    let ro = if disk.is_read_only() { BLK_F_RO } else { 0 };
    let mq = if queues > 1 { BLK_F_MQ } else { 0 };
    ro | mq
        | BLK_F_SEG_MAX
        | BLK_F_BLK_SIZE
        | BLK_F_FLUSH
        | RING_F_INDIRECT_DESC
        | RING_F_EVENT_IDX
        | F_VERSION_1
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// Whether a driver that has taken these features can flush.
pub fn can_flush(features: u64) -> bool {
    features & BLK_F_FLUSH != 0
}

/// The configuration of such a device.
pub fn config(disk: &Disk, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &disk.sectors().to_le_bytes());
    put(12, &MOST_SEGMENTS.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(34, &queues.to_le_bytes());
    config
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset()
    }

    fn reset_device(&mut self) -> Result<()> {
        unsupported("RESET_DEVICE")
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(offered(&self.requests.disk, self.queues()))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !offered(&self.requests.disk, self.queues());
        if unknown != 0 {
            return Err(refusal(format!("features {unknown:#x} were not offered")));
        }
        let rings_told_to_run = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for index in 0..self.vrings.len() {
            self.stop(index)?;
            self.vrings[index].enabled |= rings_told_to_run;
        }
        self.features = features;
        self.requests.write_through = !can_flush(features);
        (0..self.vrings.len()).try_for_each(|index| self.start(index))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.get_protocol_features()?.bits();
        if unknown != 0 {
            return Err(refusal(format!(
                "protocol features {unknown:#x} were not offered"
            )));
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.change_memory(|memory| memory.set(regions, files))?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MOST_REGIONS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.change_memory(|memory| memory.add(region, file))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.change_memory(|memory| memory.remove(region))
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        match u16::try_from(num) {
            Ok(size) if size.is_power_of_two() && size <= MOST_DESCRIPTORS => {
                self.change(index, |vring| vring.size = size)
            }
            _ => Err(refusal(format!(
                "queue {index}: {num} is no power of two up to {MOST_DESCRIPTORS}"
            ))),
        }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        for address in [descriptors, used, available] {
            if self.memory.guest_address(address).is_none() {
                return Err(refusal(format!(
                    "queue {index}: no memory at {address:#x} for a ring"
                )));
            }
        }
        let rings = RingAddresses {
            descriptors,
            available,
            used,
        };
        self.change(index, |vring| vring.rings = Some(rings))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let Ok(base) = u16::try_from(base) else {
            return Err(refusal(format!("queue {index}: {base} is no index")));
        };
        self.change(index, |vring| {
            vring.next_avail = base;
            vring.broken = false;
        })
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let (at, _) = self.vring(index)?;
        self.stop(at)?;
        let vring = &mut self.vrings[at];
        vring.kick = Kick::Untold;
        vring.call = None;
        Ok(VhostUserVringState::new(index, vring.next_avail.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.change(index, |vring| vring.kick = fd.map_or(Kick::Never, Kick::By))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (_, vring) = self.vring(index)?;
        vring.call = fd;
        // An interrupt may have gone to the old eventfd a moment ago.
        if let (Some(call), Some(_)) = (&vring.call, &vring.running) {
            bell::ring(call);
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index)?.1.err = fd;
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.change(index, |vring| vring.enabled = enable)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let start = offset as usize;
        let end = start.saturating_add(size as usize);
        match config(&self.requests.disk, self.queues()).get(start..end) {
            Some(part) => Ok(part.to_vec()),
            None => Err(Error::InvalidParam),
        }
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported("nothing in the configuration can be written")
    }

    fn get_inflight_fd(&mut self, told: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        if usize::from(told.num_queues) > self.vrings.len() || told.queue_size > MOST_DESCRIPTORS {
            return Err(refusal(
                "an inflight buffer for queues that there are not".into(),
            ));
        }
        let (inflight, told, file) = Inflight::new(told.num_queues, told.queue_size)?;
        self.change_inflight(inflight)?;
        Ok((told, file))
    }

    fn set_inflight_fd(&mut self, told: &VhostUserInflight, file: File) -> Result<()> {
        self.change_inflight(Inflight::map(told, file)?)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported("GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported("GET_SHARED_OBJECT")
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported("SET_DEVICE_STATE_FD")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("CHECK_DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("GET_SHMEM_CONFIG")
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported("SET_LOG_BASE")
    }
}

impl Device {
    fn change_inflight(&mut self, inflight: Inflight) -> Result<()> {
        for index in 0..self.vrings.len() {
            self.stop(index)?;
        }
        self.inflight = Some(Arc::new(inflight));
        (0..self.vrings.len()).try_for_each(|index| self.start(index))
    }
}
