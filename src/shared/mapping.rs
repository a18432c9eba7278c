//! The memory of a shared event: pages that this crate has mapped, or a pointer of the caller's.

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
    layout: NonNull<SharedLayout>,
    _memory: Memory,
}

/// What keeps the event's memory valid.
enum Memory {
    Mapped {
        _pages: Pages,
    },
    /// The caller who gave the pointer has promised it.
    Given,
    #[cfg(loom)]
    Modelled {
        _layout: std::sync::Arc<SharedLayout>,
    },
}

// SAFETY: the layout consists of atomics, which any thread may use, and it stays valid as long as this exists, on any
// thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Deref for Mapping {
    type Target = SharedLayout;

    #[inline(always)]
    fn deref(&self) -> &SharedLayout {
        // SAFETY: it is valid as long as `self` is, see `Memory`, it is aligned, and any bytes are a valid layout.
        unsafe { self.layout.as_ref() }
    }
}

/// Makes a memfd with room for one event, whose size cannot change.
pub(super) fn create_file() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("doorbell", flags)?;
    rustix::fs::ftruncate(&fd, SIZE as u64)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals)?;
    Ok(fd)
}

/// Checks that no access to the file can fail, whatever other processes do that have it open. It makes no call of a
/// peer's file system: only files of the kernel's own have seals.
pub(super) fn check_safe(fd: BorrowedFd<'_>) -> Result<(), AttachError> {
    match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) if seals.contains(SealFlags::SHRINK) => {}
        // INVAL: a file that cannot be sealed.
        Ok(_) | Err(Errno::INVAL) => return Err(AttachError::NotSealed),
        Err(error) => return Err(os(error)),
    }
    // An access to a hole needs a huge page, and there may be none left.
    match huge_page(fd)? {
        Some(_) => Err(AttachError::HugePages),
        None => Ok(()),
    }
}

/// The size of the pages, if it is a file of huge pages.
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
    /// Maps the 64 bytes at `offset`. No process may shorten the file, or make holes in a file of huge pages.
    pub(super) fn map(fd: BorrowedFd<'_>, offset: u64) -> Result<Self, AttachError> {
        if offset % SIZE as u64 != 0 {
            return Err(AttachError::Misaligned);
        }
        let stat = rustix::fs::fstat(fd).map_err(os)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if offset.checked_add(SIZE as u64).is_none_or(|end| end > size) {
            return Err(AttachError::OutOfBounds { size });
        }
        // Huge pages can only be mapped and unmapped as a whole.
        let page = huge_page(fd)?.unwrap_or(rustix::param::page_size() as u64);
        let into_page = offset % page;
        let pages = Pages::map(fd, offset - into_page, page as usize).map_err(os)?;
        // SAFETY: the 64 bytes are in the page, and aligned as the page is.
        let layout = unsafe { pages.start.byte_add(into_page as usize) };
        Ok(Mapping {
            layout: layout.cast(),
            _memory: Memory::Mapped { _pages: pages },
        })
    }

    /// Trusts the caller that there are 64 bytes, which stay valid as long as this exists.
    pub(super) fn given(ptr: *mut u8) -> Result<Self, AttachError> {
        match NonNull::new(ptr.cast::<SharedLayout>()) {
            Some(layout) if layout.is_aligned() => Ok(Mapping {
                layout,
                _memory: Memory::Given,
            }),
            _ => Err(AttachError::Misaligned),
        }
    }

    /// Two mappings of one layout on the heap: loom's atomics cannot be in shared memory.
    #[cfg(loom)]
    pub(super) fn modelled(layout: SharedLayout) -> [Self; 2] {
        let layout = std::sync::Arc::new(layout);
        [(); 2].map(|()| Mapping {
            layout: NonNull::from(&*layout),
            _memory: Memory::Modelled {
                _layout: std::sync::Arc::clone(&layout),
            },
        })
    }
}

/// Pages that are unmapped on drop.
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
        // SAFETY: the users of the pages have borrowed them, or are being dropped together with them.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}
