//! The buffer in which a back-end notes the requests that it has begun and not completed, for the back-end that
//! replaces it after a crash.
//!
//! The layout is that of "Inflight I/O tracking" in the vhost-user specification, for split virtqueues; the `vhost`
//! crate has only the messages. This back-end completes requests one at a time, in the order in which they were made
//! available, so the used index says everything: [`QueueLog::start`] has the requests after it done again. What a
//! back-end with another order leaves behind cannot be done again by means of `virtio-queue`, which gives out no chain
//! by its head; such a buffer is refused.

use crate::program::device::refusal;
use crate::program::guard::Guarded;
use crate::program::memory::check_size;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vhost::vhost_user::Error;
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

const VERSION: u16 = 1;

// Offsets in the region of a queue.
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const LAST_HEAD_AT: usize = 12;
const USED_AT: usize = 14;
const HEADER: usize = 16;

// Offsets in the state of a descriptor.
const INFLIGHT_AT: usize = 0;
const COUNTER_AT: usize = 8;
const DESCRIPTOR: usize = 16;

/// The buffer.
pub struct Inflight {
    memory: MmapRegion,
    queues: u16,
    queue_size: u16,
    _guarded: Guarded,
}

/// A queue's part of the buffer.
pub struct QueueLog {
    buffer: Arc<Inflight>,
    start: usize,
    counter: u64,
    /// A request that is completed, and has yet to be noted as such.
    completed: Option<u16>,
}

fn region_size(queue_size: u16) -> usize {
    // Each queue's part begins at a cache line of its own.
    (HEADER + DESCRIPTOR * usize::from(queue_size)).next_multiple_of(64)
}

impl Inflight {
    pub fn new(queues: u16, queue_size: u16) -> Result<(Self, VhostUserInflight, File), Error> {
        let size = region_size(queue_size) * usize::from(queues);
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("inflight", flags)?;
            ftruncate(&file, size as u64)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok::<_, std::io::Error>(File::from(file))
        };
        let file = make().map_err(Error::ReqHandlerError)?;
        let told = VhostUserInflight::new(size as u64, 0, queues, queue_size);
        let inflight = Self::map(&told, file.try_clone().map_err(Error::ReqHandlerError)?)?;
        for queue in 0..queues {
            let start = region_size(queue_size) * usize::from(queue);
            inflight.store(start + VERSION_AT, VERSION);
            inflight.store(start + SIZE_AT, queue_size);
        }
        Ok((inflight, told, file))
    }

    /// Maps a buffer that another back-end, or this one earlier, has left.
    pub fn map(told: &VhostUserInflight, file: File) -> Result<Self, Error> {
        let size = region_size(told.queue_size) * usize::from(told.num_queues);
        if told.mmap_size < size as u64 {
            return Err(refusal(format!(
                "the inflight buffer has {} bytes and needs {size}",
                told.mmap_size
            )));
        }
        check_size(&file, told.mmap_offset, size as u64)?;
        let memory = MmapRegion::from_file(FileOffset::new(file, told.mmap_offset), size)
            .map_err(|e| refusal(format!("the inflight buffer: {e}")))?;
        let guarded = Guarded::new(memory.as_ptr(), size)
            .ok_or_else(|| refusal("too many memory regions".into()))?;
        Ok(Inflight {
            memory,
            queues: told.num_queues,
            queue_size: told.queue_size,
            _guarded: guarded,
        })
    }

    fn all(&self) -> VolatileSlice<'_, ()> {
        self.memory.as_volatile_slice()
    }

    fn store(&self, at: usize, value: u16) {
        // Release: later notes are seen after this one. The offset is inside of the buffer: each caller has checked it.
        let stored = self.all().store(value, at, Ordering::Release);
        debug_assert!(stored.is_ok(), "{stored:?}");
    }

    fn load(&self, at: usize) -> u16 {
        self.all().load(at, Ordering::Acquire).unwrap_or(0)
    }
}

impl QueueLog {
    /// The log of a queue that begins, whose used index is `used`. `available` returns the head at an index of the
    /// available ring. Requests that were in flight are to be popped again, from `used` on.
    pub fn start(
        buffer: &Arc<Inflight>,
        queue: usize,
        size: u16,
        used: u16,
        available: impl Fn(u16) -> Option<u16>,
    ) -> Result<Self, Error> {
        let start = region_size(buffer.queue_size) * queue;
        if queue >= buffer.queues.into() || size > buffer.queue_size {
            return Err(refusal(format!(
                "the inflight buffer has no room for queue {queue}"
            )));
        }
        let mut log = QueueLog {
            buffer: Arc::clone(buffer),
            start,
            counter: 0,
            completed: None,
        };
        match buffer.load(start + VERSION_AT) {
            // The buffer is as the front-end has made it, in place of this back-end.
            0 => {
                buffer.store(start + VERSION_AT, VERSION);
                buffer.store(start + SIZE_AT, buffer.queue_size);
                buffer.store(start + USED_AT, used);
            }
            VERSION => {}
            version => {
                return Err(refusal(format!(
                    "the inflight buffer has version {version}"
                )));
            }
        }
        if buffer.load(start + USED_AT) != used {
            // The request was completed, but the crash came before that was noted.
            let last = buffer.load(start + LAST_HEAD_AT);
            if last < size {
                log.store_flag(last, false);
            }
            buffer.store(start + USED_AT, used);
        }
        let heads: Vec<u16> = (0..size).filter(|&head| log.flag(head)).collect();
        for (nth, &head) in (0_u16..).zip(&heads) {
            let expected = available(used.wrapping_add(nth));
            if !expected.is_some_and(|head| heads.contains(&head)) {
                return Err(refusal(format!(
                    "request {head} of queue {queue} is in flight out of order"
                )));
            }
        }
        let counters = heads.iter().map(|&head| log.counter_of(head));
        log.counter = counters.max().unwrap_or(0);
        Ok(log)
    }

    pub fn begin(&mut self, head: u16) {
        self.settle();
        self.counter += 1;
        let at = self.descriptor(head) + COUNTER_AT;
        let stored = self.buffer.all().store(self.counter, at, Ordering::Relaxed);
        debug_assert!(stored.is_ok(), "{stored:?}");
        self.store_flag(head, true);
    }

    /// The next step puts the request into the used ring.
    pub fn about_to_complete(&mut self, head: u16) {
        self.buffer.store(self.start + LAST_HEAD_AT, head);
        self.completed = Some(head);
    }

    /// Notes that what was about to be completed has been.
    pub fn settle(&mut self) {
        if let Some(head) = self.completed.take() {
            self.store_flag(head, false);
            let used = self.buffer.load(self.start + USED_AT);
            self.buffer
                .store(self.start + USED_AT, used.wrapping_add(1));
        }
    }

    /// Heads that are out of range have been refused, like chains without descriptors.
    fn descriptor(&self, head: u16) -> usize {
        self.start + HEADER + DESCRIPTOR * usize::from(head)
    }

    fn flag(&self, head: u16) -> bool {
        let at = self.descriptor(head) + INFLIGHT_AT;
        self.buffer
            .all()
            .load::<u8>(at, Ordering::Acquire)
            .unwrap_or(0)
            != 0
    }

    fn store_flag(&self, head: u16, value: bool) {
        let at = self.descriptor(head) + INFLIGHT_AT;
        let stored = self
            .buffer
            .all()
            .store(u8::from(value), at, Ordering::Release);
        debug_assert!(stored.is_ok(), "{stored:?}");
    }

    fn counter_of(&self, head: u16) -> u64 {
        let at = self.descriptor(head) + COUNTER_AT;
        self.buffer.all().load(at, Ordering::Relaxed).unwrap_or(0)
    }
}
