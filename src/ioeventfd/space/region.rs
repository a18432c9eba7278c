use super::super::{Bus, DeassignError, Doorbell, Key, Target};
use super::address_space::{AddressSpace, RegionId};
use super::error::{AddError, MapError};
use super::flat::RegionEntry;
use super::listener::CommitReport;
use std::fmt;

impl AddressSpace {
    /// Makes a region of `size` addresses: enabled, not mapped yet, with priority 0.
    pub fn region(&self, bus: Bus, size: u64) -> Region {
        self.region_with_priority(bus, size, 0)
    }

    /// Makes a region that hides those of lower priority where they overlap, whichever was mapped last.
    pub fn region_with_priority(&self, bus: Bus, size: u64, priority: i32) -> Region {
        let id = self.with_map(|map| map.make_region(RegionEntry::new(bus, size, priority)));
        Region {
            space: self.clone(),
            id,
        }
    }
}

/// A range of guest addresses with doorbells at offsets: a BAR, a block of device registers, a set of ports.
///
/// It is removed from its [`AddressSpace`] when it is dropped. Each change is a transaction of its own, and returns the
/// report of the commit; or it is part of a transaction that the thread has open, and returns an empty report.
#[doc(alias = "MemoryRegion")]
#[doc(alias = "BAR")]
pub struct Region {
    pub(super) space: AddressSpace,
    pub(super) id: RegionId,
}

impl Region {
    /// Maps the region, with its doorbells, at `base`, wherever it was before. (`memory_region_set_address`)
    ///
    /// It becomes the last mapped of its priority, unless it is at `base` already.
    ///
    /// # Errors
    ///
    /// The region would reach the end of the 64-bit addresses or, if it is one of ports, go beyond port 0xffff, which
    /// is the last. Nothing was changed. A guest causes this when it finds out a BAR's size by writing all ones to it.
    /// A BAR with such a value counts as not mapped.
    pub fn map(&self, base: u64) -> Result<CommitReport, MapError> {
        self.space.try_change(|map| {
            let now = map.mapped + 1;
            let region = map.region(self.id);
            region.end_at(base).ok_or(MapError)?;
            if region.base != Some(base) {
                region.base = Some(base);
                region.mapped = now;
                map.mapped = now;
            }
            Ok(())
        })
    }

    /// Unmaps the region, which keeps its doorbells. (`memory_region_del_subregion`)
    pub fn unmap(&self) -> CommitReport {
        self.change(|region| region.base = None)
    }

    /// Switches the region off or on, wherever it is mapped: a PCI command register's memory or I/O bit.
    /// (`memory_region_set_enabled`)
    pub fn set_enabled(&self, enabled: bool) -> CommitReport {
        self.change(|region| region.enabled = enabled)
    }

    /// Lets guest writes at `offset` signal `event`: writes of `length` bytes, or of any length if that is 0, and of
    /// the value `datamatch`, or of any value if that is `None`. One event may have any number of doorbells.
    /// (`memory_region_add_eventfd`)
    ///
    /// This is [`add`](Self::add) in QEMU's words. `event` may also be a target that keeps what was written.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_eventfd(
        &self,
        offset: u64,
        length: u32,
        datamatch: Option<u64>,
        event: impl Into<Target>,
    ) -> Result<CommitReport, AddError> {
        self.add(single(self.bus(), offset, length, datamatch, event.into()))
    }

    /// Ends what [`add_eventfd`](Self::add_eventfd) with the same arguments began. (`memory_region_del_eventfd`)
    ///
    /// Signals that came before stay in the event. A last read after the commit finds them, so that no kick is lost.
    ///
    /// # Errors
    ///
    /// The region has no such doorbell.
    pub fn del_eventfd(
        &self,
        offset: u64,
        length: u32,
        datamatch: Option<u64>,
        event: impl Into<Target>,
    ) -> Result<CommitReport, DeassignError> {
        self.del(&single(self.bus(), offset, length, datamatch, event.into()))
    }

    /// Adds any doorbell that a [`Table`](super::super::Table) can hold to the region, also an array or a doorbell that
    /// keeps what was written. Its address is an offset in the region, and it moves with the region.
    ///
    /// A listener that has no means for such a doorbell refuses it, which the report of the outermost commit says. The
    /// table serves the doorbell then. An array is in force as a whole, while all its addresses belong to the region,
    /// or not at all.
    ///
    /// ```
    /// use doorbell::ioeventfd::{Bus, Doorbell, Key, Latest, DoorbellArray, space::AddressSpace};
    /// use doorbell::Event;
    /// use std::sync::Arc;
    ///
    /// let space = AddressSpace::new();
    /// let bar = space.region(Bus::Mmio, 0x4000);
    /// bar.map(0xe000_0000)?;
    ///
    /// // virtio-pci: 64 queues, `notify_off_multiplier` = 4. Here one thread serves them all.
    /// let kick = Arc::new(Event::new(0));
    /// bar.add(Doorbell::array(DoorbellArray::mmio(0x3000, 4, 64), [&kick; 64]))?;
    /// // NVMe: the tail of submission queue 0.
    /// let tail = Arc::new(Latest::new(&kick, 0));
    /// bar.add(Doorbell::new(Key::mmio(0x1000, 4), &tail))?;
    ///
    /// bar.map(0xe800_0000)?;
    /// assert!(space.write(Bus::Mmio, 0xe800_30fc, &[63, 0]));
    /// assert!(space.write(Bus::Mmio, 0xe800_1000, &9_u32.to_ne_bytes()));
    /// assert_eq!((kick.read(), tail.value()), (2, 9));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing was added: the doorbell is not inside the region, not valid, or collides with another of this region by
    /// the table's rules.
    pub fn add(&self, doorbell: Doorbell) -> Result<CommitReport, AddError> {
        self.space
            .try_change(|map| map.region(self.id).add(&doorbell))
    }

    /// Ends what [`add`](Self::add) of an equal doorbell began.
    ///
    /// # Errors
    ///
    /// The region has no such doorbell.
    pub fn del(&self, doorbell: &Doorbell) -> Result<CommitReport, DeassignError> {
        self.space
            .try_change(|map| map.region(self.id).del(doorbell))
    }

    /// Removes the region, as dropping it does, and returns the report of the commit.
    pub fn remove(self) -> CommitReport {
        let space = self.space.clone();
        let transaction = space.begin();
        drop(self);
        transaction.commit()
    }

    /// The number of the region in its address space. No two regions of an address space have had the same number, and
    /// a [restored](AddressSpace::restore) region has the number that it was saved with.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Which kind of address it has.
    #[must_use]
    pub fn bus(&self) -> Bus {
        self.read(|region| region.bus)
    }

    /// How many addresses it covers.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.read(|region| region.size)
    }

    /// Where regions overlap, the highest priority wins.
    #[must_use]
    pub fn priority(&self) -> i32 {
        self.read(|region| region.priority)
    }

    /// Where it is mapped, enabled or not. An open transaction's changes count.
    #[must_use]
    pub fn base(&self) -> Option<u64> {
        self.read(|region| region.base)
    }

    /// Whether it is enabled, mapped or not. An open transaction's changes count.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.read(|region| region.enabled)
    }

    /// Its doorbells, in force or not, sorted, with their offsets as addresses. An open transaction's changes count.
    #[must_use]
    pub fn doorbells(&self) -> Vec<Doorbell> {
        self.read(|region| region.doorbells.clone())
    }

    fn read<R>(&self, read: impl FnOnce(&RegionEntry) -> R) -> R {
        self.space.with_map(|map| read(map.region(self.id)))
    }

    fn change(&self, change: impl FnOnce(&mut RegionEntry)) -> CommitReport {
        self.space.change(|map| change(map.region(self.id)))
    }
}

fn single(bus: Bus, offset: u64, length: u32, datamatch: Option<u64>, target: Target) -> Doorbell {
    let mut key = Key::new(bus, offset, length);
    key.datamatch = datamatch;
    Doorbell::new(key, target)
}

impl Drop for Region {
    fn drop(&mut self) {
        self.space.change(|map| map.regions.remove(&self.id));
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read(|region| fmt::Debug::fmt(region, f))
    }
}
