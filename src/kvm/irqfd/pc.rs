//! The interrupt controllers of the PC: an IOAPIC, two PICs, and the local APICs.

use super::{Error, Vm};
use crate::irqfd::Route;
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};

/// What has the pins.
pub(super) const NAME: &str = "IOAPIC";
/// How many pins there are.
pub(super) const PINS: u32 = 24;
/// Which pins take more than one entry of KVM's table.
pub(super) const SEVERAL_ENTRIES: &str = " (a pin below 16 takes two)";

/// Whether KVM has pins. It has none if the interrupt controller is split. (If there is none at all, the VM refuses a
/// table of routes.)
pub(super) fn has_pins(vm: &Vm) -> Result<bool, Error> {
    Ok(vm.has_irqchip(KVM_IRQCHIP_IOAPIC))
}

/// What `KVM_IRQ_LINE` knows the pins of the GSI by: it has KVM look up the route.
pub(super) fn irq(gsi: u32, _: Option<Route>) -> Option<u32> {
    Some(gsi)
}

/// The controllers that have this pin, each with its own number for the pin.
pub(super) fn places(pin: u32) -> impl Iterator<Item = (u32, u32)> {
    let of_pic = match pin {
        0..8 => Some((KVM_IRQCHIP_PIC_MASTER, pin)),
        8..16 => Some((KVM_IRQCHIP_PIC_SLAVE, pin - 8)),
        _ => None,
    };
    [(KVM_IRQCHIP_IOAPIC, pin)].into_iter().chain(of_pic)
}

/// Whether KVM refuses the message, and every table that has it, if the VM's messages are in x2APIC format
/// (`KVM_CAP_X2APIC_API`): bits 32 to 39 of the address are 0 there.
pub(super) fn is_no_x2apic_message(route: Route) -> bool {
    matches!(route, Route::Msi(message) if (message.address >> 32) as u8 != 0)
}
