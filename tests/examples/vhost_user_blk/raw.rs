//! A front-end and a driver made by hand, which can send what real ones do not.

use crate::backend::PATIENCE;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::Timespec;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::Instant;

pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

/// VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC, FLUSH.
pub const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 9;
pub const EVENT_IDX: u64 = 1 << 29;
/// MQ, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
const PROTOCOL_FEATURES: u64 = 1 | 1 << 9 | 1 << 12 | 1 << 15;

const VERSION: u32 = 1;

/// The size of the memory that the back-end is told of. It lies in the middle of a larger mapping, which shows accesses
/// beside it.
pub const SIZE: usize = 1 << 20;
pub const GUEST: u64 = 1 << 30;
const BESIDE: usize = 1 << 16;
const CANARY: u8 = 0xc5;

/// Offsets in that memory.
pub const DESCRIPTORS: usize = 0;
pub const AVAILABLE: usize = 0x1000;
pub const USED: usize = 0x2000;
pub const HEADERS: usize = 0x3000;
pub const STATUSES: usize = 0x4000;
pub const INDIRECT: usize = 0x5000;
pub const DATA: usize = 0x1_0000;

pub const QUEUE_SIZE: u16 = 16;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT_FLAG: u16 = 4;

pub struct Raw {
    pub stream: UnixStream,
    pub memory: Shared,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub err: OwnedFd,
    pub next_avail: u16,
}

/// Memory that front-end and back-end share, with memory beside it that must not be touched.
pub struct Shared {
    pub fd: OwnedFd,
    start: *mut u8,
}

#[derive(Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Shared {
    fn new() -> Self {
        let fd = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a memfd");
        let size = SIZE + 2 * BESIDE;
        ftruncate(&fd, size as u64).expect("room");
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping.
        let start = unsafe { mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &fd, 0) };
        let start: *mut u8 = start.expect("a mapping").cast();
        // SAFETY: inside of the mapping.
        unsafe {
            start.write_bytes(CANARY, BESIDE);
            start.add(BESIDE + SIZE).write_bytes(CANARY, BESIDE);
        }
        Shared { fd, start }
    }

    /// An offset as one of the front-end's addresses.
    pub fn user(&self, offset: usize) -> u64 {
        (self.start.addr() + BESIDE + offset) as u64
    }

    pub fn write<T: Copy>(&self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= SIZE);
        // SAFETY: inside of the mapping.
        unsafe {
            self.start
                .add(BESIDE + offset)
                .cast::<T>()
                .write_unaligned(value)
        };
    }

    pub fn read<T: Copy>(&self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= SIZE);
        // SAFETY: inside of the mapping; only for integers.
        unsafe { self.start.add(BESIDE + offset).cast::<T>().read_unaligned() }
    }

    pub fn word(&self, offset: usize) -> &AtomicU16 {
        assert!(offset + 2 <= SIZE && offset % 2 == 0);
        // SAFETY: inside of the mapping, and aligned.
        unsafe { &*self.start.add(BESIDE + offset).cast() }
    }

    pub fn region(&self) -> Region {
        Region {
            guest: GUEST,
            size: SIZE as u64,
            user: self.user(0),
            offset: BESIDE as u64,
        }
    }

    #[track_caller]
    pub fn assert_nothing_beside_was_touched(&self) {
        for start in [0, BESIDE + SIZE] {
            // SAFETY: inside of the mapping.
            let beside = unsafe { std::slice::from_raw_parts(self.start.add(start), BESIDE) };
            assert!(beside.iter().all(|&byte| byte == CANARY));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the memory is no longer used.
        unsafe { munmap(self.start.cast(), SIZE + 2 * BESIDE) }.expect("mapped");
    }
}

#[derive(Clone, Copy)]
pub struct Region {
    pub guest: u64,
    pub size: u64,
    pub user: u64,
    pub offset: u64,
}

impl Region {
    pub fn bytes(&self) -> Vec<u8> {
        let words = [self.guest, self.size, self.user, self.offset];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// The payload of SET_MEM_TABLE.
pub fn table(regions: &[Region]) -> Vec<u8> {
    let mut bytes = (regions.len() as u64).to_ne_bytes().to_vec();
    bytes.extend(regions.iter().flat_map(Region::bytes));
    bytes
}

/// The payload of messages about the state of a queue.
pub fn state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

impl Raw {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("a back-end");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let bell = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        Raw {
            stream,
            memory: Shared::new(),
            kick: bell(),
            call: bell(),
            err: bell(),
            next_avail: 0,
        }
    }

    /// Makes a connection up to the memory table, as all front-ends do.
    pub fn begin(socket: &Path, features: u64) -> Self {
        let raw = Self::connect(socket);
        raw.send(SET_OWNER, &[], &[]);
        raw.send(SET_FEATURES, &features.to_ne_bytes(), &[]);
        raw.send(SET_PROTOCOL_FEATURES, &PROTOCOL_FEATURES.to_ne_bytes(), &[]);
        raw
    }

    /// Makes a complete connection, with a queue that runs.
    pub fn set_up(socket: &Path, features: u64) -> Self {
        let raw = Self::begin(socket, features);
        raw.send_memory();
        raw.send_queue();
        raw
    }

    pub fn send_memory(&self) {
        let fd = self.memory.fd.as_fd();
        self.send(SET_MEM_TABLE, &table(&[self.memory.region()]), &[fd]);
    }

    pub fn send_queue(&self) {
        self.send(SET_VRING_NUM, &state(0, QUEUE_SIZE.into()), &[]);
        self.send(SET_VRING_BASE, &state(0, self.next_avail.into()), &[]);
        self.send_rings(DESCRIPTORS as u64, USED as u64, AVAILABLE as u64);
        self.send(SET_VRING_ERR, &0_u64.to_ne_bytes(), &[self.err.as_fd()]);
        self.send(SET_VRING_CALL, &0_u64.to_ne_bytes(), &[self.call.as_fd()]);
        self.send(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[self.kick.as_fd()]);
        self.send(SET_VRING_ENABLE, &state(0, 1), &[]);
    }

    /// Sends the addresses of the rings, which are offsets in the memory, or beyond it.
    pub fn send_rings(&self, descriptors: u64, used: u64, available: u64) {
        let mut bytes = state(0, 0);
        for offset in [descriptors, used, available] {
            bytes.extend(self.memory.user(0).wrapping_add(offset).to_ne_bytes());
        }
        bytes.extend(0_u64.to_ne_bytes());
        self.send(SET_VRING_ADDR, &bytes, &[]);
    }

    pub fn send(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let size = payload.len() as u32;
        let header = [request, VERSION, size].map(u32::to_ne_bytes).concat();
        self.send_bytes(&[&header, payload].concat(), fds);
    }

    /// The back-end may have hung up.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let _ = sendmsg(
            &self.stream,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
    }

    /// Sends a message, and returns the payload of its reply.
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        self.send(request, payload, &[]);
        self.reply(request)
    }

    pub fn reply(&mut self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).expect("a reply");
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!((word(0), word(4)), (request, VERSION | 4));
        let mut payload = vec![0; word(8) as usize];
        self.stream.read_exact(&mut payload).expect("a payload");
        payload
    }

    /// Waits until all messages have been handled: the queue goes on from here.
    pub fn settle(&mut self) {
        let mut config = [0_u32, 4, 0].map(u32::to_ne_bytes).concat();
        config.extend([0; 4]);
        assert_eq!(self.ask(GET_CONFIG, &config).len(), 16);
    }

    /// Whether the back-end hangs up.
    pub fn is_dropped(&mut self) -> bool {
        let mut rest = Vec::new();
        // A reset counts, too: the back-end has not read everything that was sent then.
        !matches!(self.stream.read_to_end(&mut rest),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }

    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        self.describe_at(DESCRIPTORS, index, descriptor);
    }

    pub fn describe_at(&self, table: usize, index: u16, descriptor: Descriptor) {
        let at = table + 16 * usize::from(index);
        self.memory.write(at, descriptor.address.to_le());
        self.memory.write(at + 8, descriptor.len.to_le());
        self.memory.write(at + 12, descriptor.flags.to_le());
        self.memory.write(at + 14, descriptor.next.to_le());
    }

    /// Writes a request of a header, `data` and a status, from descriptor `3 * slot` on.
    pub fn request(&self, slot: u16, kind: u32, sector: u64, data: (u64, u32)) {
        let header = HEADERS + 16 * usize::from(slot);
        self.memory.write(header, kind.to_le());
        self.memory.write(header + 8, sector.to_le());
        let status = STATUSES + usize::from(slot);
        self.memory.write(status, 0xff_u8);
        let written = if kind == 1 { 0 } else { WRITE };
        let first = 3 * slot;
        self.describe(
            first,
            Descriptor {
                address: GUEST + header as u64,
                len: 16,
                flags: NEXT,
                next: first + 1,
            },
        );
        self.describe(
            first + 1,
            Descriptor {
                address: data.0,
                len: data.1,
                flags: NEXT | written,
                next: first + 2,
            },
        );
        self.describe(
            first + 2,
            Descriptor {
                address: GUEST + status as u64,
                len: 1,
                flags: WRITE,
                next: 0,
            },
        );
    }

    pub fn status(&self, slot: u16) -> u8 {
        self.memory.read(STATUSES + usize::from(slot))
    }

    /// Makes a chain available, and kicks.
    pub fn submit(&mut self, head: u16) {
        let place = usize::from(self.next_avail % QUEUE_SIZE);
        self.memory.write(AVAILABLE + 4 + 2 * place, head.to_le());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.publish(self.next_avail);
    }

    /// Makes available the entries before `index`, and kicks whether that is wanted or not.
    pub fn publish(&self, index: u16) {
        self.memory
            .word(AVAILABLE + 2)
            .store(index.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).expect("an eventfd");
    }

    pub fn used(&self) -> u16 {
        u16::from_le(self.memory.word(USED + 2).load(Ordering::Acquire))
    }

    /// Waits until the back-end's used index is `index`.
    #[track_caller]
    pub fn wait_used(&self, index: u16) {
        let start = Instant::now();
        while self.used() != index {
            assert!(
                start.elapsed() < PATIENCE,
                "used {} of {index}",
                self.used()
            );
            std::thread::yield_now();
        }
    }
}

/// Waits until an eventfd is signalled.
#[track_caller]
pub fn wait_for_bell(bell: &OwnedFd) {
    assert!(is_rung(bell, PATIENCE), "no signal for {PATIENCE:?}");
    rustix::io::read(bell, &mut [0_u8; 8]).expect("an eventfd");
}

pub fn is_rung(bell: &OwnedFd, patience: std::time::Duration) -> bool {
    let mut fds = [PollFd::new(bell, PollFlags::IN)];
    let timeout = Timespec::try_from(patience).expect("seconds");
    poll(&mut fds, Some(&timeout)) == Ok(1)
}
