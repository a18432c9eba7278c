//! Memory that events are made of, for a peer that writes anything to it.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Words in a line.
pub const WORDS: usize = 16;

/// A memfd, mapped.
pub struct Memory {
    fd: OwnedFd,
    start: *mut u8,
    length: usize,
}

// SAFETY: the mapping is accessed through atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// A file of `length` bytes, all 0.
    pub fn new(length: usize, seals: SealFlags) -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("test", flags).unwrap();
        ftruncate(&fd, length as u64).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        Self::of(fd, length)
    }

    /// The first bytes of a file.
    pub fn of(fd: OwnedFd, length: usize) -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                &fd,
                0,
            )
        };
        Memory {
            fd,
            start: start.unwrap().cast(),
            length,
        }
    }

    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.length);
        self.start.wrapping_add(offset)
    }

    /// The line at `offset`, as words.
    pub fn words(&self, offset: usize) -> &[AtomicU32; WORDS] {
        assert!(offset % 64 == 0 && offset + 64 <= self.length);
        // SAFETY: in bounds and aligned, for as long as it is borrowed; any bytes are atomics.
        unsafe { &*self.at(offset).cast() }
    }

    pub fn count(&self, offset: usize) -> &AtomicU64 {
        assert!(offset % 64 == 0 && offset + 64 <= self.length);
        // SAFETY: as above. The counter is at offset 8.
        unsafe { &*self.at(offset + 8).cast() }
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the memory is no longer borrowed.
        unsafe { munmap(self.start.cast(), self.length) }.unwrap();
    }
}
