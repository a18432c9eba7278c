use super::key::validate_place;
use super::{AssignError, Bus};

/// An array of doorbells at equal distances, which a [`Table`](super::Table) holds as one entry.
///
/// Slot `i` is rung by a write that starts at `address + i * stride`. Writes to the range that start elsewhere ring
/// nothing. A range has its addresses to itself: no other doorbell of the bus may start inside it.
///
/// ```
/// use doorbell::ioeventfd::Range;
///
/// // virtio-pci: the notify addresses of 64 queues, `notify_off_multiplier` = 4; the driver writes 2 bytes or 4.
/// let notify = Range::mmio(0xe000_3000, 4, 64);
/// // NVMe: tail and head doorbells of 16 queue pairs, CAP.DSTRD = 0, 4 bytes each.
/// let nvme = Range::mmio(0xf000_1000, 4, 32).with_length(4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// The address space.
    pub bus: Bus,
    /// The guest address of slot 0.
    pub address: u64,
    /// The distance between two slots, in bytes: a power of two, as virtio and NVMe have it.
    pub stride: u64,
    /// The number of slots, at least 1.
    pub slots: u32,
    /// 1, 2, 4 or 8: writes of this many bytes. 0, the wildcard: writes of any length.
    pub length: u32,
}

impl Range {
    /// Writes of any length to the memory addresses `address`, `address + stride`, and so on.
    pub const fn mmio(address: u64, stride: u64, slots: u32) -> Self {
        Range {
            bus: Bus::Mmio,
            address,
            stride,
            slots,
            length: 0,
        }
    }

    /// Writes of any length to the ports `port`, `port + stride`, and so on.
    pub const fn pio(port: u64, stride: u64, slots: u32) -> Self {
        Range {
            bus: Bus::Pio,
            ..Self::mmio(port, stride, slots)
        }
    }

    /// The same, for writes of `length` bytes only.
    pub const fn with_length(mut self, length: u32) -> Self {
        self.length = length;
        self
    }

    /// How many bytes of the address space it takes up.
    pub(super) fn size(&self) -> u64 {
        // `validate` has seen to it that this does not overflow.
        self.stride * u64::from(self.slots)
    }

    pub(super) fn contains(&self, address: u64) -> bool {
        address
            .checked_sub(self.address)
            .is_some_and(|offset| offset < self.size())
    }

    pub(super) fn validate(&self) -> Result<(), AssignError> {
        if !self.stride.is_power_of_two() {
            return Err(AssignError::Stride);
        }
        if self.slots == 0 {
            return Err(AssignError::Slots);
        }
        let size = self
            .stride
            .checked_mul(self.slots.into())
            .ok_or(AssignError::Wrap)?;
        validate_place(self.address, self.length, size)
    }
}
