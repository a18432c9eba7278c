//! The front-end's memory, and what happens to it when its files are cut off.

use crate::program::device::refusal;
use crate::program::guard::Guarded;
use std::fs::File;
use std::sync::Arc;
use vhost::vhost_user::Error;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// How many regions the front-end may have.
pub const MOST_REGIONS: u64 = 64;

/// The memory map. It is replaced as a whole; a user of the old map keeps that mapped.
#[derive(Default)]
pub struct Memory {
    map: Arc<GuestMemoryMmap>,
    regions: Vec<Region>,
}

struct Region {
    mapped: Arc<GuestRegionMmap>,
    guest: u64,
    /// The region's address in the front-end, which the addresses of rings refer to.
    user: u64,
    size: u64,
    _guarded: Guarded,
}

impl Memory {
    pub fn map(&self) -> &Arc<GuestMemoryMmap> {
        &self.map
    }

    pub fn set(&mut self, told: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<(), Error> {
        let regions = told
            .iter()
            .zip(files)
            .map(|(told, file)| Region::new(told, file));
        self.replace(regions.collect::<Result<_, _>>()?)
    }

    pub fn add(&mut self, told: &VhostUserMemoryRegion, file: File) -> Result<(), Error> {
        if self.regions.len() as u64 == MOST_REGIONS {
            return Err(refusal(format!("more than {MOST_REGIONS} memory regions")));
        }
        self.regions.push(Region::new(told, file)?);
        let regions = std::mem::take(&mut self.regions);
        self.replace(regions)
    }

    pub fn remove(&mut self, told: &VhostUserMemoryRegion) -> Result<(), Error> {
        let mut regions = std::mem::take(&mut self.regions);
        let before = regions.len();
        regions.retain(|region| {
            (region.guest, region.user, region.size)
                != (told.guest_phys_addr, told.user_addr, told.memory_size)
        });
        if regions.len() == before {
            return Err(refusal(
                "no such memory region is there to be removed".into(),
            ));
        }
        self.replace(regions)
    }

    fn replace(&mut self, mut regions: Vec<Region>) -> Result<(), Error> {
        regions.sort_by_key(|region| region.guest);
        let mapped = regions.iter().map(|region| Arc::clone(&region.mapped));
        // This refuses regions that overlap.
        let map = if regions.is_empty() {
            GuestMemoryMmap::new()
        } else {
            GuestMemoryMmap::from_arc_regions(mapped.collect())
                .map_err(|e| refusal(format!("memory regions: {e}")))?
        };
        *self = Memory {
            map: Arc::new(map),
            regions,
        };
        Ok(())
    }

    /// The guest address of what is at `user` in the front-end.
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            (offset < region.size).then(|| GuestAddress(region.guest + offset))
        })
    }
}

impl Region {
    fn new(told: &VhostUserMemoryRegion, file: File) -> Result<Self, Error> {
        check_size(&file, told.mmap_offset, told.memory_size)?;
        let mapping = told.mmap_region(file)?;
        let guarded = Guarded::new(mapping.as_ptr(), mapping.size())
            .ok_or_else(|| refusal("too many memory regions".into()))?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(told.guest_phys_addr))
            .ok_or_else(|| refusal("a memory region reaches beyond 2^64".into()))?;
        Ok(Region {
            mapped: Arc::new(mapped),
            guest: told.guest_phys_addr,
            user: told.user_addr,
            size: told.memory_size,
            _guarded: guarded,
        })
    }
}

/// Whether a file has the range that is to be mapped. For kinds other than files and memfds, this is not known.
pub fn check_size(file: &File, offset: u64, size: u64) -> Result<(), Error> {
    let metadata = file.metadata().map_err(Error::ReqHandlerError)?;
    let end = offset.checked_add(size);
    if metadata.is_file() && end.is_none_or(|end| end > metadata.len()) {
        return Err(refusal("memory reaches beyond the end of its file".into()));
    }
    Ok(())
}
