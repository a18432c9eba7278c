//! The devices that KVM emulates itself, as far as KVM can be asked for them.
//!
//! These devices are on the same buses as ioeventfds (`kvm_io_bus`), and a guest write goes to the first entry that it
//! fits into. `KVM_IOEVENTFD` does not check for collisions with a device. So an ioeventfd inside a device is
//! registered, and then either is never reached or takes the device's writes.

use super::ioctl::Vm;
use crate::ioeventfd::Key;
use std::{error, fmt, io};

/// A device that KVM emulates itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InKernel {
    /// The interrupt controllers of the PC: ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0 and 0x4d1. (`KVM_CREATE_IRQCHIP`)
    Pic,
    /// The timer: ports 0x40 to 0x43. (`KVM_CREATE_PIT2`)
    Pit,
    /// The I/O APIC: 256 bytes of memory addresses from 0xfec0_0000. (`KVM_CREATE_IRQCHIP`)
    IoApic,
    /// The local APICs: the page at 0xfee0_0000. (`KVM_CREATE_IRQCHIP`)
    LocalApic,
}

/// A device that KVM emulates is where the doorbell should be (`EBUSY`).
///
/// The device takes the guest's writes there: they do not exit to the VMM, and the table does not see them. So nothing
/// rings this doorbell, in KVM or in the table. If KVM were given the doorbell, KVM would overlook it or, if it is
/// shorter than the device and at the device's first address, give it writes that are meant for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Occupied {
    /// The device.
    pub device: InKernel,
}

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = match self.device {
            InKernel::Pic => "PIC",
            InKernel::Pit => "PIT",
            InKernel::IoApic => "I/O APIC",
            InKernel::LocalApic => "local APIC",
        };
        write!(
            f,
            "the {device} that KVM emulates takes the guest's writes at this address, and nothing rings the doorbell"
        )
    }
}

impl error::Error for Occupied {}

impl From<Occupied> for io::Error {
    fn from(_: Occupied) -> Self {
        rustix::io::Errno::BUSY.into()
    }
}

/// Fails if a device that KVM emulates would take the writes of the doorbell, or the doorbell those of the device.
#[cfg(target_arch = "x86_64")]
pub(super) fn check_vacant(vm: &Vm, key: &Key) -> Result<(), Occupied> {
    match x86::device_at(key).filter(|&device| x86::is_there(vm, device)) {
        Some(device) => Err(Occupied { device }),
        None => Ok(()),
    }
}

/// On other processors, KVM's devices are where the VMM has put them.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn check_vacant(_: &Vm, _: &Key) -> Result<(), Occupied> {
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::InKernel;
    use crate::ioeventfd::{Bus, Key};
    use crate::kvm::ioctl::Vm;
    use kvm_bindings::KVM_IRQCHIP_IOAPIC;

    /// Where each device is, if the VM has it: bus, first address and size.
    const DEVICES: [(InKernel, Bus, u64, u64); 6] = [
        (InKernel::Pic, Bus::Pio, 0x20, 2),
        (InKernel::Pic, Bus::Pio, 0xa0, 2),
        (InKernel::Pic, Bus::Pio, 0x4d0, 2),
        (InKernel::Pit, Bus::Pio, 0x40, 4),
        (InKernel::IoApic, Bus::Mmio, 0xfec0_0000, 0x100),
        (InKernel::LocalApic, Bus::Mmio, 0xfee0_0000, 0x1000),
    ];

    /// The device that has all of the doorbell's addresses, if the VM has it. A doorbell that reaches beyond a device
    /// gets the writes that do not fit into the device.
    pub(super) fn device_at(key: &Key) -> Option<InKernel> {
        let fits = |&&(_, bus, first, size): &&(InKernel, Bus, u64, u64)| {
            let offset = key.address.checked_sub(first);
            let end = offset.and_then(|offset| offset.checked_add(key.length.max(1).into()));
            bus == key.bus && end.is_some_and(|end| end <= size)
        };
        DEVICES.iter().find(fits).map(|&(device, ..)| device)
    }

    /// Whether KVM has the device. KVM gives the state of its own devices only, so an error says that there is none.
    pub(super) fn is_there(vm: &Vm, device: InKernel) -> bool {
        match device {
            InKernel::Pit => vm.has_pit(),
            // KVM makes all of these at once, or none.
            InKernel::Pic | InKernel::IoApic | InKernel::LocalApic => {
                vm.has_irqchip(KVM_IRQCHIP_IOAPIC)
            }
        }
    }
}
