//! Where a line is: in pages that we have mapped, or where the caller says.

use super::error::AttachError;
use super::layout::{SIZE, SharedLayout};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

pub(super) struct Mapping {
    line: NonNull<SharedLayout>,
    _memory: Memory,
}

/// What keeps the line where it is.
enum Memory {
    Mapped {
        _pages: Pages,
    },
    /// Whoever gave the pointer has promised to.
    Given,
    #[cfg(loom)]
    Modelled {
        _line: std::sync::Arc<SharedLayout>,
    },
}

// SAFETY: a line consists of atomics, which any thread may use, and it stays where it is for as long as this exists, in
// whatever thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Deref for Mapping {
    type Target = SharedLayout;

    #[inline(always)]
    fn deref(&self) -> &SharedLayout {
        // SAFETY: it is there as long as `self` is, see `Memory`, it is aligned, and any bytes are a line.
        unsafe { self.line.as_ref() }
    }
}

/// A file in memory that has room for one line and keeps its size.
pub(super) fn create_file() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("doorbell", flags)?;
    rustix::fs::ftruncate(&fd, SIZE as u64)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals)?;
    Ok(fd)
}

/// Whether an access to the file cannot fail, whatever those do who have it open. Asks a peer's file system nothing:
/// what is not the kernel's own has no seals.
pub(super) fn check_safe(fd: BorrowedFd<'_>) -> Result<(), AttachError> {
    match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) if seals.contains(SealFlags::SHRINK) => {}
        // INVAL: a file that cannot be sealed.
        Ok(_) | Err(Errno::INVAL) => return Err(AttachError::NotSealed),
        Err(error) => return Err(os(error)),
    }
    // A hole in it is filled from the huge pages that are left, of which there may be none.
    match huge_page(fd)? {
        Some(_) => Err(AttachError::HugePages),
        None => Ok(()),
    }
}

/// The size of the pages of a file of huge ones.
fn huge_page(fd: BorrowedFd<'_>) -> Result<Option<u64>, AttachError> {
    let stat = rustix::fs::fstatfs(fd).map_err(os)?;
    // The types differ between architectures. The number has 32 bits.
    let huge = stat.f_type as u32 == HUGETLBFS;
    Ok(huge.then_some(stat.f_bsize as u64))
}

/// `HUGETLBFS_MAGIC`.
const HUGETLBFS: u32 = 0x9584_58f6;

fn os(error: Errno) -> AttachError {
    AttachError::Os(error.into())
}

impl Mapping {
    /// Maps the 64 bytes at `offset`. Nobody may shorten the file, or make holes in one of huge pages.
    pub(super) fn map(fd: BorrowedFd<'_>, offset: u64) -> Result<Self, AttachError> {
        if offset % SIZE as u64 != 0 {
            return Err(AttachError::Misaligned);
        }
        let stat = rustix::fs::fstat(fd).map_err(os)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if offset.checked_add(SIZE as u64).is_none_or(|end| end > size) {
            return Err(AttachError::OutOfBounds { size });
        }
        // Huge ones are mapped, and unmapped, in no other units.
        let page = huge_page(fd)?.unwrap_or(rustix::param::page_size() as u64);
        let into_page = offset % page;
        let pages = Pages::map(fd, offset - into_page, page as usize).map_err(os)?;
        // SAFETY: the line is in the page, with which it is aligned.
        let line = unsafe { pages.start.byte_add(into_page as usize) };
        Ok(Mapping {
            line: line.cast(),
            _memory: Memory::Mapped { _pages: pages },
        })
    }

    /// Takes the caller's word that there are 64 bytes, for as long as the place exists.
    pub(super) fn given(ptr: *mut u8) -> Result<Self, AttachError> {
        match NonNull::new(ptr.cast::<SharedLayout>()) {
            Some(line) if line.is_aligned() => Ok(Mapping {
                line,
                _memory: Memory::Given,
            }),
            _ => Err(AttachError::Misaligned),
        }
    }

    /// Two places of one line on the heap: loom's atomics cannot be in shared memory.
    #[cfg(loom)]
    pub(super) fn modelled(line: SharedLayout) -> [Self; 2] {
        let line = std::sync::Arc::new(line);
        [(); 2].map(|()| Mapping {
            line: NonNull::from(&*line),
            _memory: Memory::Modelled {
                _line: std::sync::Arc::clone(&line),
            },
        })
    }
}

/// Unmapped at the end of their life.
struct Pages {
    start: NonNull<c_void>,
    length: usize,
}

impl Pages {
    fn map(fd: BorrowedFd<'_>, offset: u64, length: usize) -> rustix::io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps with nothing.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset,
            )?
        };
        let start = NonNull::new(start).expect("the kernel maps nothing at address 0 unasked");
        Ok(Pages { start, length })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: whoever used the pages borrowed them or is being dropped with them.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}
