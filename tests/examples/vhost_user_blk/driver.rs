//! A real driver: that of the `virtio-driver` crate, which is libblkio's.
//!
//! It is used with EVENT_IDX only: without that, version 0.6.1 loses its own kicks, since nothing keeps it from reading
//! the flag of the used ring before it has published its index.

use crate::backend::PATIENCE;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::Timespec;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioBlkTransport, VirtioFeatureFlags,
};

pub const BLOCK: usize = 4096;
/// Descriptors of a queue: a request takes three.
const QUEUE_SIZE: u16 = 256;
/// The most requests under way.
pub const MOST: usize = 64;

/// How the driver learns of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// By sleeping in the call eventfd.
    Blocking,
    /// By looking at the used ring, with interrupts turned off.
    Polling,
}

pub struct Client {
    pub lanes: Vec<Lane>,
    pub config: VirtioBlkConfig,
    // This comes after the lanes, whose rings are in its memory.
    _transport: Box<VirtioBlkTransport>,
    _memory: Memory,
}

/// A queue and its buffers.
pub struct Lane {
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    /// Buffers of `MOST` blocks.
    buffers: *mut u8,
    /// Kicks that the driver has made.
    pub kicks: u64,
    /// Interrupts that the driver has taken, while it blocks.
    pub interrupts: u64,
}

// SAFETY: the buffers are the lane's own.
unsafe impl Send for Lane {}

/// What to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write,
    /// Read and compare.
    Read,
}

struct Memory {
    start: *mut u8,
    size: usize,
    fd: OwnedFd,
}

impl Memory {
    fn new(size: usize) -> Self {
        let fd = memfd_create("buffers", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, size as u64).expect("room");
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping.
        let start = unsafe { mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &fd, 0) };
        Memory {
            start: start.expect("a mapping").cast(),
            size,
            fd,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the users of the memory are gone before it is dropped.
        unsafe { munmap(self.start.cast(), self.size) }.expect("mapped");
    }
}

impl Client {
    pub fn connect(socket: &Path, queues: usize) -> Result<Self, std::io::Error> {
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let blk = VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::RO
            | VirtioBlkFeatureFlags::BLK_SIZE
            | VirtioBlkFeatureFlags::SEG_MAX
            | VirtioBlkFeatureFlags::MQ;
        let socket = socket.to_str().expect("UTF-8");
        let transport = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(
            socket,
            features.bits() | blk.bits(),
        )?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let config = transport.get_config()?;
        let memory = Memory::new(queues * MOST * BLOCK);
        transport.map_mem_region(memory.start.addr(), memory.size, memory.fd.as_raw_fd(), 0)?;
        let set_up = VirtioBlkQueue::setup_queues(&mut *transport, queues, QUEUE_SIZE)?;
        let lanes = set_up.into_iter().enumerate().map(|(index, queue)| Lane {
            queue,
            notifier: transport.get_submission_notifier(index),
            call: transport.get_completion_fd(index),
            // SAFETY: there is room for all of them.
            buffers: unsafe { memory.start.add(index * MOST * BLOCK) },
            kicks: 0,
            interrupts: 0,
        });
        Ok(Client {
            lanes: lanes.collect(),
            config,
            _transport: transport,
            _memory: memory,
        })
    }

    /// How many blocks the disk has.
    pub fn blocks(&self) -> u64 {
        let sectors: u64 = { self.config.capacity }.into();
        sectors / 8
    }
}

impl Lane {
    /// Writes the content of `blocks` that `seed` determines, or reads and compares it, with up to `depth` requests
    /// under way. Returns how many requests failed.
    pub fn run(
        &mut self,
        op: Op,
        blocks: Range<u64>,
        seed: u64,
        depth: usize,
        waits: Waits,
    ) -> u64 {
        self.run_within(op, blocks, seed, depth, waits, PATIENCE)
    }

    /// The same, and panics when nothing is completed for `patience`.
    pub fn run_within(
        &mut self,
        op: Op,
        blocks: Range<u64>,
        seed: u64,
        depth: usize,
        waits: Waits,
        patience: Duration,
    ) -> u64 {
        assert!(depth <= MOST);
        self.queue.set_used_notif_enabled(waits == Waits::Blocking);
        let mut free: Vec<usize> = (0..depth).collect();
        let mut of_buffer = [0; MOST];
        let mut todo = blocks.clone();
        let (mut done, mut failed) = (0, 0);
        let mut start = Instant::now();
        while done != blocks.end - blocks.start {
            self.submit(op, &mut todo, seed, &mut free, &mut of_buffer);
            let completions: Vec<_> = self.queue.completions().collect();
            for completion in &completions {
                let buffer = completion.context;
                if completion.ret != 0 {
                    failed += 1;
                } else if op == Op::Read {
                    let expected = content(of_buffer[buffer], seed);
                    assert!(
                        self.buffer(buffer) == expected,
                        "block {} is not what was written",
                        of_buffer[buffer]
                    );
                }
                free.push(buffer);
            }
            done += completions.len() as u64;
            if !completions.is_empty() {
                start = Instant::now();
                continue;
            }
            assert!(start.elapsed() < patience, "no completion for {patience:?}");
            if waits == Waits::Blocking && !self.is_called(patience) {
                panic!("no interrupt for {patience:?}, with {done} of {blocks:?} done");
            }
        }
        failed
    }

    /// Reads blocks one after the other, without looking at them, with `depth` requests under way, for `time`, and at
    /// least until one is completed. Returns how long each took, in nanoseconds.
    #[allow(dead_code, reason = "for the bench")]
    pub fn load(&mut self, blocks: u64, depth: usize, waits: Waits, time: Duration) -> Vec<u32> {
        self.queue.set_used_notif_enabled(waits == Waits::Blocking);
        let mut free: Vec<usize> = (0..depth).collect();
        let mut since = [Instant::now(); MOST];
        let mut took = Vec::new();
        let (start, mut block) = (Instant::now(), 0);
        while start.elapsed() < time || took.is_empty() {
            while let Some(buffer) = free.pop() {
                since[buffer] = Instant::now();
                let bytes = self.buffer_ptr(buffer);
                // SAFETY: the buffer is not touched until the request is completed.
                unsafe {
                    self.queue
                        .read_raw(block * BLOCK as u64, bytes, BLOCK, buffer)
                }
                .expect("the queue has room");
                block = (block + 1) % blocks;
                self.kick();
            }
            let before = took.len();
            for completion in self.queue.completions() {
                assert_eq!(completion.ret, 0);
                let buffer = completion.context;
                took.push(since[buffer].elapsed().as_nanos() as u32);
                free.push(buffer);
            }
            if took.len() == before && waits == Waits::Blocking {
                assert!(self.is_called(PATIENCE), "no interrupt for {PATIENCE:?}");
            }
        }
        // The remaining requests are completed, so that the buffers are free.
        while free.len() != depth {
            free.extend(
                self.queue
                    .completions()
                    .map(|completion| completion.context),
            );
        }
        took
    }

    fn submit(
        &mut self,
        op: Op,
        todo: &mut Range<u64>,
        seed: u64,
        free: &mut Vec<usize>,
        of_buffer: &mut [u64; MOST],
    ) {
        while let Some(buffer) = free.pop() {
            let Some(block) = todo.next() else {
                free.push(buffer);
                break;
            };
            of_buffer[buffer] = block;
            let at = block * BLOCK as u64;
            let bytes = self.buffer_ptr(buffer);
            if op == Op::Write {
                // SAFETY: the buffer is free, so it is ours.
                unsafe { bytes.copy_from_nonoverlapping(content(block, seed).as_ptr(), BLOCK) };
                // SAFETY: the buffer is not touched until the request is completed.
                unsafe { self.queue.write_raw(at, bytes, BLOCK, buffer) }
            } else {
                // SAFETY: the buffer is not touched until the request is completed.
                unsafe { self.queue.read_raw(at, bytes, BLOCK, buffer) }
            }
            .expect("the queue has room");
            self.kick();
        }
    }

    pub fn flush(&mut self) -> i32 {
        self.queue.set_used_notif_enabled(true);
        self.queue.flush(0).expect("the queue has room");
        self.kick();
        loop {
            if let Some(completion) = self.queue.completions().next() {
                return completion.ret;
            }
            assert!(self.is_called(PATIENCE), "no interrupt for {PATIENCE:?}");
        }
    }

    fn kick(&mut self) {
        if self.queue.avail_notif_needed() {
            self.notifier.notify().expect("an eventfd");
            self.kicks += 1;
        }
    }

    /// Waits for an interrupt. False, if none comes.
    fn is_called(&mut self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
        let timeout = Timespec::try_from(patience).expect("seconds");
        let called = poll(&mut fds, Some(&timeout)) == Ok(1);
        if called {
            self.interrupts += self.call.read().expect("an eventfd");
        }
        called
    }

    fn buffer_ptr(&self, index: usize) -> *mut u8 {
        // SAFETY: inside of the lane's buffers.
        unsafe { self.buffers.add(index * BLOCK) }
    }

    fn buffer(&self, index: usize) -> &[u8] {
        // SAFETY: the buffer is read when its request is completed.
        unsafe { std::slice::from_raw_parts(self.buffer_ptr(index), BLOCK) }
    }
}

/// The content of a block.
pub fn content(block: u64, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed << 32 | block);
    std::iter::repeat_with(|| random.u64(..).to_le_bytes())
        .take(BLOCK / 8)
        .flatten()
        .collect()
}
