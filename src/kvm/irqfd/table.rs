//! The routes as KVM's table has them.

use super::controller::{NAME, PINS, SEVERAL_ENTRIES, places};
use crate::irqfd::{MsiMessage, Route};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, kvm_irq_routing_entry,
};
use std::{error, fmt, io};

/// How many entries KVM's table has room for.
pub(super) const ENTRIES: usize = 4096;

/// Why KVM's table cannot have the routes. It is what the error of a [`KvmSink`](super::KvmSink) in a
/// [`RoutingError::Refused`](crate::irqfd::RoutingError::Refused) has [inside](io::Error::get_ref).
///
/// ```no_run
/// # #[allow(dead_code)]
/// # fn example(router: &doorbell::irqfd::Router, routes: doorbell::irqfd::Routes) {
/// use doorbell::irqfd::RoutingError;
/// use doorbell::kvm::RouteTableError;
///
/// if let Err(RoutingError::Refused(error)) = router.set_routes(routes) {
///     match error.get_ref().and_then(|inner| inner.downcast_ref()) {
///         Some(RouteTableError::Full { entries }) => println!("{entries} entries are too many"),
///         Some(other) => println!("{other}"),
///         None => println!("KVM_SET_GSI_ROUTING: {error}"),
///     }
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteTableError {
    /// The table has room for 4,096 entries. A message takes one entry, and a pin one as well. On x86 a pin below 16
    /// takes two, because it is a pin of the IOAPIC and of a PIC.
    Full {
        /// What the routes take.
        entries: usize,
    },
    /// KVM's IOAPIC has 24 pins, from 0, and its GIC has 988. This is not one of them.
    Pin(u32),
    /// The interrupt controller is split (on x86), and KVM has no pins. This is the first that was asked for.
    NoPins(u32),
}

impl fmt::Display for RouteTableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteTableError::Full { entries } => write!(
                f,
                "the routes take {entries} entries of KVM's table, which has {ENTRIES}{SEVERAL_ENTRIES}"
            ),
            RouteTableError::Pin(pin) => {
                write!(f, "KVM's {NAME} has {PINS} pins, of which none is {pin}")
            }
            RouteTableError::NoPins(pin) => write!(
                f,
                "with a split interrupt controller KVM has no pins, and so no pin {pin}"
            ),
        }
    }
}

impl error::Error for RouteTableError {}

impl From<RouteTableError> for io::Error {
    /// An `InvalidInput`, for KVM's `EINVAL`, that has the error inside.
    fn from(error: RouteTableError) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Whether KVM can have this pin.
pub(super) fn check_pin(pin: u32, has_pins: bool) -> Result<(), RouteTableError> {
    match pin {
        pin if !has_pins => Err(RouteTableError::NoPins(pin)),
        0..PINS => Ok(()),
        pin => Err(RouteTableError::Pin(pin)),
    }
}

/// Adds what `KVM_SET_GSI_ROUTING` takes for a route.
pub(super) fn add_entries(entries: &mut Vec<kvm_irq_routing_entry>, gsi: u32, route: Route) {
    match route {
        Route::Pin(pin) => entries.extend(places(pin).map(|place| pin_entry(gsi, place))),
        Route::Msi(message) => entries.push(message_entry(gsi, message)),
    }
}

fn pin_entry(gsi: u32, (controller, pin): (u32, u32)) -> kvm_irq_routing_entry {
    let mut entry = entry(gsi, KVM_IRQ_ROUTING_IRQCHIP);
    entry.u.irqchip.irqchip = controller;
    entry.u.irqchip.pin = pin;
    entry
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = entry(gsi, KVM_IRQ_ROUTING_MSI);
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    if let Some(devid) = message.devid() {
        entry.flags = KVM_MSI_VALID_DEVID;
        entry.u.msi.__bindgen_anon_1.devid = devid;
    }
    entry
}

fn entry(gsi: u32, type_: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_,
        ..kvm_irq_routing_entry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message in KVM's table: address, data, flags and device id.
    fn message(message: MsiMessage) -> (u32, u32, u32, u32, u32) {
        let mut made = Vec::new();
        add_entries(&mut made, 40, Route::Msi(message));
        let [entry] = made[..] else {
            panic!("{} entries", made.len());
        };
        assert_eq!((entry.gsi, entry.type_), (40, KVM_IRQ_ROUTING_MSI));
        // SAFETY: all bits of all members are valid, and have been written.
        let (msi, devid) = unsafe { (entry.u.msi, entry.u.msi.__bindgen_anon_1.devid) };
        (msi.address_lo, msi.address_hi, msi.data, entry.flags, devid)
    }

    #[test]
    fn messages_name_their_devices() {
        let plain = MsiMessage::new(0x12_fee0_3000, 0x41);
        assert_eq!(message(plain), (0xfee0_3000, 0x12, 0x41, 0, 0));
        for devid in [0, 0x1234, u32::MAX - 1] {
            let of_device = plain.with_devid(devid);
            assert_eq!(of_device.devid(), Some(devid));
            assert_ne!(of_device, plain);
            let expected = (0xfee0_3000, 0x12, 0x41, KVM_MSI_VALID_DEVID, devid);
            assert_eq!(message(of_device), expected);
        }
        assert_eq!(plain.devid(), None);
    }
}
