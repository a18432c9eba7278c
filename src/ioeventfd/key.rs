use super::DoorbellError;

/// The guest's two address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Bus {
    /// Memory-mapped I/O.
    Mmio,
    /// Port I/O (`KVM_IOEVENTFD_FLAG_PIO`).
    Pio,
}

/// Which guest writes ring a doorbell: bus, exact start address, length, and perhaps the value.
///
/// ```
/// use doorbell::ioeventfd::Key;
///
/// // virtio-mmio: the queue's index is written to one register for all queues.
/// let queue1 = Key::mmio(0xd000_0050, 4).with_datamatch(1);
/// // virtio-pci: each queue has an address of its own, and any width of write will do.
/// let notify0 = Key::mmio(0xe000_3000, 0);
/// assert_eq!((queue1.datamatch, notify0.datamatch), (Some(1), None));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Key {
    /// The address space.
    pub bus: Bus,
    /// The guest address, which a write must start at.
    pub address: u64,
    /// 1, 2, 4 or 8: writes of this many bytes. 0, the wildcard: writes of any length.
    pub length: u32,
    /// Only writes of this value, zero-extended. `None`: writes of any value.
    pub datamatch: Option<u64>,
}

impl Key {
    /// Writes of `length` bytes, or of any length if it is 0, to an address of either kind.
    #[must_use]
    pub const fn new(bus: Bus, address: u64, length: u32) -> Self {
        Key {
            bus,
            address,
            length,
            datamatch: None,
        }
    }

    /// Writes of `length` bytes, or of any length if it is 0, to a memory address.
    #[must_use]
    pub const fn mmio(address: u64, length: u32) -> Self {
        Self::new(Bus::Mmio, address, length)
    }

    /// Writes of `length` bytes, or of any length if it is 0, to a port.
    #[must_use]
    pub const fn pio(port: u64, length: u32) -> Self {
        Self::new(Bus::Pio, port, length)
    }

    /// The same, for writes of `value` only.
    #[must_use]
    #[doc(alias = "datamatch")]
    pub const fn with_datamatch(mut self, value: u64) -> Self {
        self.datamatch = Some(value);
        self
    }

    /// Makes KVM's checks in KVM's order, then one of ours.
    pub(super) fn validate(&self) -> Result<(), DoorbellError> {
        validate_location(self.address, self.length, self.length.into())?;
        match self.datamatch {
            Some(_) if self.length == 0 => Err(DoorbellError::WildcardDatamatch),
            Some(value) if self.length < 8 && value >> (8 * self.length) != 0 => {
                Err(DoorbellError::DatamatchWidth)
            }
            _ => Ok(()),
        }
    }

    /// Whether a write could match both keys, so that only one of them may be registered.
    pub(super) fn collides(&self, other: &Key) -> bool {
        let same_place = self.bus == other.bus && self.address == other.address;
        let same_length = self.length == other.length;
        let same_data = self.datamatch == other.datamatch
            || self.datamatch.is_none()
            || other.datamatch.is_none();
        same_place && (self.length == 0 || other.length == 0 || (same_length && same_data))
    }
}

/// Makes KVM's checks, in KVM's order, of a doorbell that takes `size` bytes of the address space.
pub(super) fn validate_location(address: u64, length: u32, size: u64) -> Result<(), DoorbellError> {
    if !matches!(length, 0 | 1 | 2 | 4 | 8) {
        return Err(DoorbellError::Length);
    }
    // As in KVM, an end of exactly 2^64 counts as a wrap.
    match address.checked_add(size) {
        Some(_) => Ok(()),
        None => Err(DoorbellError::Wrap),
    }
}
