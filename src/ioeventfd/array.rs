use super::key::validate_location;
use super::{Bus, DoorbellError, Key};

/// An array of doorbells, which a [`Table`](super::Table) holds as one entry.
///
/// The slots of an array are told apart in one of two ways:
///
/// * by address, if the stride is not 0: a write that starts at `address + i * stride` rings slot `i`. Writes that
///   start at other addresses of the array ring nothing.
/// * by value, if the stride is 0: all slots are at `address`, and a write of the value `i` rings slot `i`, as if each
///   slot had a [datamatch](Key::with_datamatch) of its own. Such an array needs a length. Writes of other values ring
///   nothing.
///
/// An array has its addresses to itself: no other doorbell of the bus may start inside it.
///
/// ```
/// use doorbell::ioeventfd::DoorbellArray;
///
/// // virtio-pci: the notify addresses of 64 queues, `notify_off_multiplier` = 4; the driver writes 2 bytes or 4.
/// let notify = DoorbellArray::virtio_pci(0xe000_3000, 4, 64);
/// assert_eq!(notify, DoorbellArray::mmio(0xe000_3000, 4, 64));
/// // NVMe: tail and head doorbells of 16 queue pairs, CAP.DSTRD = 0, 4 bytes each.
/// let nvme = DoorbellArray::mmio(0xf000_1000, 4, 32).with_length(4);
/// assert_eq!(nvme.slots, 32);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
#[doc(alias = "Range")]
pub struct DoorbellArray {
    /// The address space.
    pub bus: Bus,
    /// The guest address of slot 0.
    pub address: u64,
    /// The distance between two slots, in bytes: a power of two, as virtio and NVMe have it. 0: all slots are at
    /// `address`, and the value that is written says which slot is meant.
    #[doc(alias = "notify_off_multiplier")]
    pub stride: u64,
    /// The number of slots, at least 1.
    pub slots: u32,
    /// 1, 2, 4 or 8: writes of this many bytes. 0, the wildcard: writes of any length, which needs a stride.
    pub length: u32,
}

impl DoorbellArray {
    /// Writes of any length to `address`, `address + stride`, and so on, of either kind.
    ///
    /// A `stride` of 0 needs [`with_length`](Self::with_length).
    #[must_use]
    pub const fn new(bus: Bus, address: u64, stride: u64, slots: u32) -> Self {
        DoorbellArray {
            bus,
            address,
            stride,
            slots,
            length: 0,
        }
    }

    /// Writes of any length to the memory addresses `address`, `address + stride`, and so on.
    ///
    /// A `stride` of 0 needs [`with_length`](Self::with_length).
    #[must_use]
    pub const fn mmio(address: u64, stride: u64, slots: u32) -> Self {
        Self::new(Bus::Mmio, address, stride, slots)
    }

    /// Writes of any length to the ports `port`, `port + stride`, and so on.
    ///
    /// A `stride` of 0 needs [`with_length`](Self::with_length).
    #[must_use]
    pub const fn pio(port: u64, stride: u64, slots: u32) -> Self {
        Self::new(Bus::Pio, port, stride, slots)
    }

    /// The queue notify addresses of a virtio-pci device, in memory: `base` is that of the notification structure (its
    /// BAR and `cap.offset`), and queue `i` has a `queue_notify_off` of `i`. (virtio 1.2, 4.1.4.4)
    ///
    /// With a `notify_off_multiplier` that is not 0, each queue has an address of its own, and a write of any length
    /// rings the queue. With a multiplier of 0, all queues have one address, and the driver tells them apart by the
    /// queue's number, in 2 bytes. QEMU and Firecracker register the same with KVM: a wildcard for each address, or a
    /// datamatch for each number.
    ///
    /// With `VIRTIO_F_NOTIFICATION_DATA` the driver writes 4 bytes, of which only the lower two are the queue's number.
    /// That is no matter with a multiplier. Without one, such a device has a [`ValueQueue`](super::ValueQueue) at
    /// `Key::mmio(base, 4)` instead of an array.
    ///
    /// ```
    /// use doorbell::ioeventfd::{Bus, DoorbellArray, Table};
    /// use doorbell::Event;
    /// use std::sync::Arc;
    ///
    /// let table = Table::new();
    /// let queues = [0; 4].map(|count| Arc::new(Event::new(count)));
    /// for (multiplier, queue3) in [(4, 0xe000_300c), (0, 0xe000_3000)] {
    ///     let notify = DoorbellArray::virtio_pci(0xe000_3000, multiplier, 4);
    ///     let registration = table.assign_array(notify, &queues)?;
    ///     assert!(table.write(Bus::Mmio, queue3, &3_u16.to_ne_bytes()));
    ///     assert_eq!(queues[3].try_read(), Some(1));
    ///     drop(registration);
    /// }
    /// # Ok::<(), doorbell::ioeventfd::DoorbellError>(())
    /// ```
    #[must_use]
    #[doc(alias = "notify_off_multiplier")]
    #[doc(alias = "queue_notify_off")]
    pub const fn virtio_pci(base: u64, notify_off_multiplier: u32, queues: u32) -> Self {
        let array = Self::mmio(base, notify_off_multiplier as u64, queues);
        match notify_off_multiplier {
            0 => array.with_length(2),
            _ => array,
        }
    }

    /// The register `QueueNotify` of a virtio-mmio device, which all queues share: `base` is the address of the device,
    /// whose register is at `base + 0x50`. The driver writes the queue's number to it, in 4 bytes. (virtio 1.2, 4.2.2)
    ///
    /// With `VIRTIO_F_NOTIFICATION_DATA`, only the lower two of the 4 bytes are the queue's number. Such a device has a
    /// [`ValueQueue`](super::ValueQueue) at `Key::mmio(base + 0x50, 4)` instead of an array.
    ///
    /// ```
    /// use doorbell::ioeventfd::{Bus, DoorbellArray, Table};
    /// use doorbell::Event;
    /// use std::sync::Arc;
    ///
    /// let table = Table::new();
    /// let queues = [0; 2].map(|count| Arc::new(Event::new(count)));
    /// let _doorbells = table.assign_array(DoorbellArray::virtio_mmio(0xd000_0000, 2), &queues)?;
    /// assert!(table.write(Bus::Mmio, 0xd000_0050, &1_u32.to_ne_bytes()));
    /// assert_eq!(queues[1].try_read(), Some(1));
    /// # Ok::<(), doorbell::ioeventfd::DoorbellError>(())
    /// ```
    #[must_use]
    #[doc(alias = "QueueNotify")]
    pub const fn virtio_mmio(base: u64, queues: u32) -> Self {
        // At the end of the address space, a saturated address has no room for the register, which is an error.
        Self::mmio(base.saturating_add(0x50), 0, queues).with_length(4)
    }

    /// The same, for writes of `length` bytes only.
    #[must_use]
    pub const fn with_length(mut self, length: u32) -> Self {
        self.length = length;
        self
    }

    /// The doorbell that slot `slot` would be by itself: an address of its own or, if the stride is 0, a datamatch.
    ///
    /// It is meant for listeners that hand an array to a hypervisor slot by slot. `None` if there is no such slot, or
    /// its address is beyond the end of the address space.
    #[must_use]
    pub fn slot(&self, slot: u32) -> Option<Key> {
        let offset = self.stride.checked_mul(slot.into())?;
        let key = Key {
            bus: self.bus,
            address: self.address.checked_add(offset)?,
            length: self.length,
            datamatch: (self.stride == 0).then_some(slot.into()),
        };
        (slot < self.slots).then_some(key)
    }

    /// How many addresses it has to itself.
    pub(super) fn size(&self) -> u64 {
        // `validate` has seen to it that this does not overflow.
        match self.stride {
            0 => 1,
            stride => stride * u64::from(self.slots),
        }
    }

    /// How many addresses the writes to it can touch, from its own on. Of one of any length, a byte of each slot.
    pub(super) fn extent(&self) -> u64 {
        let last = self.stride * u64::from(self.slots - 1);
        last + self.stride.max(self.length.into())
    }

    pub(super) fn contains(&self, address: u64) -> bool {
        address
            .checked_sub(self.address)
            .is_some_and(|offset| offset < self.size())
    }

    pub(super) fn validate(&self) -> Result<(), DoorbellError> {
        if self.stride != 0 && !self.stride.is_power_of_two() {
            return Err(DoorbellError::Stride);
        }
        if self.slots == 0 {
            return Err(DoorbellError::Slots);
        }
        if self.stride == 0 {
            // The slot with the greatest value. If that is valid, all are.
            let last = self.slot(self.slots - 1);
            return last.map_or(Err(DoorbellError::Slots), |key| key.validate());
        }
        let size = self
            .stride
            .checked_mul(self.slots.into())
            .ok_or(DoorbellError::Wrap)?;
        validate_location(self.address, self.length, size)
    }
}
