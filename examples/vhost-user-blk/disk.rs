//! The disk: memory or a file.

use anyhow::{Context, ensure};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

pub const SECTOR: u64 = 512;

pub struct Disk {
    store: Store,
    size: u64,
    read_only: bool,
}

enum Store {
    Ram(MmapRegion),
    File(File),
}

impl Disk {
    pub fn in_memory(size: u64, read_only: bool) -> anyhow::Result<Self> {
        let memory = MmapRegion::new(usize::try_from(size)?)
            .with_context(|| format!("no memory for a disk of {size} bytes"))?;
        Ok(Disk {
            store: Store::Ram(memory),
            size,
            read_only,
        })
    }

    pub fn in_file(path: &Path, read_only: bool) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .with_context(|| format!("cannot open the disk {}", path.display()))?;
        // The end is the size of a block device, too.
        let size = file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("the disk {} has no size", path.display()))?;
        ensure!(
            size != 0 && size % SECTOR == 0,
            "the disk {} has {size} bytes, which is no multiple of {SECTOR} above 0",
            path.display()
        );
        Ok(Disk {
            store: Store::File(file),
            size,
            read_only,
        })
    }

    pub fn sectors(&self) -> u64 {
        self.size / SECTOR
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the disk has all of `bytes` from `sector` on.
    pub fn has(&self, sector: u64, bytes: u64) -> bool {
        let end = sector
            .checked_mul(SECTOR)
            .and_then(|start| start.checked_add(bytes));
        bytes % SECTOR == 0 && end.is_some_and(|end| end <= self.size)
    }

    /// Fills `guest` from the disk. The disk [has](Self::has) it.
    pub fn read<B: BitmapSlice>(&self, offset: u64, guest: &VolatileSlice<B>) -> Result<(), Error> {
        match &self.store {
            Store::Ram(memory) => {
                let here = part(memory, offset, guest.len())?;
                here.copy_to_volatile_slice(guest.clone());
                Ok(())
            }
            Store::File(file) => all(guest.len(), |done| {
                let Ok(at) = guest.offset(done) else { return 0 };
                let to = at.ptr_guard_mut();
                // SAFETY: `to` is `at.len()` bytes of guest memory. Other threads may write to it at any time: the
                // kernel allows that, and nothing here has a reference to it.
                let read = unsafe {
                    libc::pread(
                        file.as_raw_fd(),
                        to.as_ptr().cast(),
                        at.len(),
                        (offset + done as u64) as libc::off_t,
                    )
                };
                if let Ok(read) = usize::try_from(read) {
                    at.bitmap().mark_dirty(0, read);
                }
                read
            }),
        }
    }

    /// Writes `guest` to the disk. The disk [has](Self::has) the place, and is not read-only.
    pub fn write<B: BitmapSlice>(
        &self,
        offset: u64,
        guest: &VolatileSlice<B>,
    ) -> Result<(), Error> {
        match &self.store {
            Store::Ram(memory) => {
                let here = part(memory, offset, guest.len())?;
                guest.copy_to_volatile_slice(here);
                Ok(())
            }
            Store::File(file) => all(guest.len(), |done| {
                let Ok(at) = guest.offset(done) else { return 0 };
                let from = at.ptr_guard();
                // SAFETY: as above.
                unsafe {
                    libc::pwrite(
                        file.as_raw_fd(),
                        from.as_ptr().cast(),
                        at.len(),
                        (offset + done as u64) as libc::off_t,
                    )
                }
            }),
        }
    }

    /// What was written is on the disk when this returns.
    pub fn flush(&self) -> Result<(), Error> {
        match &self.store {
            Store::Ram(_) => Ok(()),
            Store::File(file) => file.sync_data(),
        }
    }
}

fn part(memory: &MmapRegion, offset: u64, len: usize) -> Result<VolatileSlice<'_, ()>, Error> {
    let offset = usize::try_from(offset).map_err(Error::other)?;
    memory.get_slice(offset, len).map_err(Error::other)
}

/// Calls `some`, which transfers a part of `len` bytes from a given offset on, until all are transferred.
fn all(len: usize, mut some: impl FnMut(usize) -> libc::ssize_t) -> Result<(), Error> {
    let mut done = 0;
    while done != len {
        match usize::try_from(some(done)) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(_) => match Error::last_os_error() {
                e if e.kind() == ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}
