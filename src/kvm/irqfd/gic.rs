//! Arm's interrupt controller, the GIC: shared peripheral interrupts (SPIs) are its pins, and an ITS takes messages.
//!
//! After `arch/arm64/kvm/arm.c` (`kvm_vm_ioctl_irq_line`), `vgic/vgic-irqfd.c` and `vgic/vgic-its.c` of Linux. Their
//! constants are here and not taken from kvm-bindings, which has them for arm64 only: this file is tested on
//! other processors, too.

use super::{Error, Vm};
use crate::irqfd::Route;
use rustix::io::Errno;

/// What has the pins.
pub(super) const NAME: &str = "GIC";
/// How many pins there are: the interrupts 32 to 1,019. A GIC may be made with fewer.
pub(super) const PINS: u32 = 1020 - FIRST_SPI;
/// Which pins take more than one entry of KVM's table.
pub(super) const SEVERAL_ENTRIES: &str = "";

/// The interrupts below are private to a CPU.
const FIRST_SPI: u32 = 32;
/// `KVM_ARM_IRQ_TYPE_SPI`, at `KVM_ARM_IRQ_TYPE_SHIFT`. An SPI is no CPU's, so the CPU's number is 0.
const TYPE_SPI: u32 = 1 << 24;
/// The number of the only interrupt controller in KVM's table.
const GIC: u32 = 0;

#[cfg(target_arch = "aarch64")]
const _: () = {
    use kvm_bindings::{KVM_ARM_IRQ_NUM_SHIFT, KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI};
    assert!(TYPE_SPI == KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT);
    assert!(KVM_ARM_IRQ_NUM_SHIFT == 0);
};

/// KVM has pins if it has a GIC.
///
/// # Errors
///
/// There is no GIC (`ENXIO`), or it is not initialized (`EBUSY`; not all kernels say so).
pub(super) fn has_pins(vm: &Vm) -> Result<bool, Error> {
    // There is no question without an effect for it. But no SPI has this number, so nothing is lowered.
    match vm.set_irq_line(TYPE_SPI, false) {
        Err(source) if source.raw_os_error() != Some(Errno::INVAL.raw_os_error()) => Err(Error {
            call: "KVM_IRQ_LINE",
            source,
        }),
        _ => Ok(true),
    }
}

/// What `KVM_IRQ_LINE` knows the pin by, if the route leads to one. KVM does not look up the route.
pub(super) fn irq(_: u32, route: Option<Route>) -> Option<u32> {
    match route {
        Some(Route::Pin(pin)) => Some(TYPE_SPI | (FIRST_SPI + pin)),
        _ => None,
    }
}

/// The controllers that have this pin, each with its own number for the pin.
pub(super) fn places(pin: u32) -> impl Iterator<Item = (u32, u32)> {
    [(GIC, pin)].into_iter()
}

/// There is one format of messages, with any address.
pub(super) fn is_no_x2apic_message(_: Route) -> bool {
    false
}
