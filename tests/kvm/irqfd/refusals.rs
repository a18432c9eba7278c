//! What KVM refuses is reported by an error that says why, or by a count.

use crate::vm::descriptor;
use doorbell::Event;
use doorbell::irqfd::{MsiMessage, Route, Router, Routes, RoutingError};
use doorbell::kvm::{Injection, KvmSink, RouteTableError};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::sync::Arc;

const BOTH: [Injection; 2] = [Injection::Userspace, Injection::Kernel];

/// `None`, with a message, if there is no usable KVM.
pub fn machine() -> Option<VmFd> {
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm());
    if let Err(error) = &vm {
        eprintln!("skipped: no usable /dev/kvm ({error})");
    }
    vm.ok()
}

pub fn enable(vm: &VmFd, cap: u32, argument: u32) -> Result<(), kvm_ioctls::Error> {
    let cap = kvm_enable_cap {
        cap,
        args: [argument.into(), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&cap)
}

/// A VM with a split interrupt controller, whose messages are in x2APIC format if asked for.
pub fn split(x2apic: bool) -> Option<VmFd> {
    let vm = machine()?;
    enable(&vm, KVM_CAP_SPLIT_IRQCHIP, 24).unwrap();
    if x2apic {
        let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        enable(&vm, KVM_CAP_X2APIC_API, flags).unwrap();
    }
    Some(vm)
}

fn message(vector: u8) -> MsiMessage {
    MsiMessage::new(0xfee0_0000, vector.into())
}

/// A message with a bit in the address that is invalid in x2APIC format.
fn odd(vector: u8) -> MsiMessage {
    MsiMessage::new(0x11_fee0_0000, vector.into())
}

/// Enables the local APIC.
pub fn enable_apic(vcpu: &VcpuFd) {
    let mut apic = vcpu.get_lapic().unwrap();
    for (at, byte) in (0xf0..).zip(0x1ff_u32.to_le_bytes()) {
        apic.regs[at] = byte as i8;
    }
    vcpu.set_lapic(&apic).unwrap();
}

/// Whether an interrupt with this vector is requested.
pub fn is_requested(vcpu: &VcpuFd, vector: u8) -> bool {
    let vector = usize::from(vector);
    let bits = vcpu.get_lapic().unwrap().regs[0x200 + vector / 32 * 16 + vector % 32 / 8];
    bits >> (vector % 8) & 1 != 0
}

fn reason(result: Result<(), RoutingError>) -> RouteTableError {
    let error = match result.unwrap_err() {
        RoutingError::Refused(error) => error,
        invalid => panic!("{invalid}"),
    };
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    let inner = error.get_ref().expect("the reason is inside");
    *inner.downcast_ref().expect("it is a route table's")
}

#[test]
fn tables_that_kvm_cannot_have() {
    for injection in BOTH {
        let Some(vm) = machine() else { return };
        vm.create_irq_chip().unwrap();
        let router = Router::new(KvmSink::new(descriptor(&vm), injection).unwrap());
        let table = |pins, messages| {
            let mut routes = Routes::identity(pins);
            for gsi in pins..pins + messages {
                routes.set(gsi, Some(Route::Msi(message(0x41)))).unwrap();
            }
            routes
        };
        for (pins, messages) in [(24, 4056), (16, 4064), (0, 4096)] {
            router.set_routes(table(pins, messages)).unwrap();
        }
        for (pins, messages, entries) in [(24, 4057, 4097), (16, 4080, 4112), (8, 4088, 4104)] {
            let before = router.routes();
            // The GSI may have any message, and is not removed from the table to make room.
            let mut routes = table(pins, messages);
            routes.set(pins + 1, Some(Route::Msi(odd(0x42)))).unwrap();
            let result = router.set_routes(routes);
            // If the VMM injects, the messages need no entries.
            if injection == Injection::Userspace {
                result.unwrap();
                continue;
            }
            assert_eq!(reason(result), RouteTableError::Full { entries });
            assert_eq!(router.routes(), before);
        }
        let result = router.set_routes(Routes::identity(25));
        assert_eq!(reason(result), RouteTableError::Pin(24));

        let vm = split(false).expect("KVM was there before");
        let router = Router::new(KvmSink::new(descriptor(&vm), injection).unwrap());
        let result = router.set_route(3, Some(Route::Pin(7)));
        assert_eq!(reason(result), RouteTableError::NoPins(7));
    }
    let texts = [
        RouteTableError::Full { entries: 4097 },
        RouteTableError::Pin(24),
        RouteTableError::NoPins(7),
    ];
    let numbers = ["4097", "24", "7"];
    for (error, number) in texts.iter().zip(numbers) {
        assert!(error.to_string().contains(number), "{error}");
    }
}

/// If KVM wants x2APIC format and a guest writes nonsense into one vector, the guest keeps the others.
#[test]
fn a_message_in_another_format() {
    for injection in BOTH {
        let Some(vm) = split(true) else { return };
        let vm = Arc::new(vm);
        let vcpu = vm.create_vcpu(0).unwrap();
        enable_apic(&vcpu);
        let sink = Arc::new(KvmSink::new(descriptor(&vm), injection).unwrap());
        let router = Router::new(Arc::clone(&sink));
        let events = [(); 3].map(|()| Arc::new(Event::new(0)));
        let _irqfds: Vec<_> = (24..)
            .zip(&events)
            .map(|(gsi, event)| router.assign(event, gsi).unwrap())
            .collect();
        router
            .set_route(24, Some(Route::Msi(message(0x51))))
            .unwrap();
        router.mask(25);
        router.unmask_with_route(25, Route::Msi(odd(0x52))).unwrap();
        router
            .set_route(26, Some(Route::Msi(message(0x53))))
            .unwrap();
        events.iter().for_each(|event| event.signal());
        let requested = [0x51, 0x52, 0x53].map(|vector| is_requested(&vcpu, vector));
        assert_eq!(requested, [true, false, true], "{injection:?}");
        assert_eq!(sink.refused(), 1, "{injection:?}");

        // The table is from a snapshot; then the guest writes a valid message again.
        let table = [(24, odd(0x61)), (25, message(0x62)), (26, message(0x63))];
        let table = table.map(|(gsi, message)| (gsi, Route::Msi(message)));
        router
            .set_routes(Routes::from_entries(table).unwrap())
            .unwrap();
        events.iter().for_each(|event| event.signal());
        let requested = [0x61, 0x62, 0x63].map(|vector| is_requested(&vcpu, vector));
        assert_eq!(requested, [false, true, true], "{injection:?}");
        assert_eq!(sink.refused(), 2, "{injection:?}");
    }
}

/// If KVM does not want x2APIC format, the same message is as good as any, even after a table that KVM refuses.
#[test]
fn a_message_in_a_format_that_kvm_takes() {
    for injection in BOTH {
        let Some(vm) = split(false) else { return };
        let vm = Arc::new(vm);
        let vcpu = vm.create_vcpu(0).unwrap();
        enable_apic(&vcpu);
        let sink = Arc::new(KvmSink::new(descriptor(&vm), injection).unwrap());
        let router = Router::new(Arc::clone(&sink));
        let event = Arc::new(Event::new(0));
        let _irqfd = router.assign(&event, 24).unwrap();
        router.set_route(24, Some(Route::Msi(odd(0x51)))).unwrap();
        event.signal();
        assert!(is_requested(&vcpu, 0x51), "{injection:?}");
        assert_eq!(sink.refused(), 0);
    }
}

/// A message interrupts the CPU that its address names.
#[test]
fn a_message_to_each_cpu() {
    for injection in BOTH {
        let Some(vm) = split(false) else { return };
        let vm = Arc::new(vm);
        let vcpus = [0, 1].map(|id| vm.create_vcpu(id).unwrap());
        vcpus.iter().for_each(enable_apic);
        let sink = Arc::new(KvmSink::new(descriptor(&vm), injection).unwrap());
        let router = Router::new(sink);
        let event = Arc::new(Event::new(0));
        let _irqfd = router.assign(&event, 24).unwrap();
        for (destination, vector) in [(0, 0x51), (1, 0x52)] {
            let message = MsiMessage::new(0xfee0_0000 | destination << 12, vector.into());
            router.set_route(24, Some(Route::Msi(message))).unwrap();
            event.signal();
            let requested = vcpus.each_ref().map(|vcpu| is_requested(vcpu, vector));
            let meant = [destination == 0, destination == 1];
            assert_eq!(requested, meant, "{injection:?}");
        }
    }
}

/// If the VMM sends messages, those to a missing vCPU are counted. If the kernel sends them, it does not report this,
/// and it sends all of them, even for a GSI that was a pin before.
#[test]
fn messages_without_a_cpu() {
    for injection in BOTH {
        let Some(vm) = machine() else { return };
        vm.create_irq_chip().unwrap();
        let sink = Arc::new(KvmSink::new(descriptor(&vm), injection).unwrap());
        let router = Router::new(Arc::clone(&sink));
        let event = Arc::new(Event::new(0));
        let irqfd = router.assign(&event, 20).unwrap();
        let mut sent = 0;
        for route in [Route::Msi(message(0x51)), Route::Pin(20)].repeat(3) {
            router.set_route(20, Some(route)).unwrap();
            for _ in 0..2 {
                event.signal();
                sent += u64::from(matches!(route, Route::Msi(_)));
                let refused = match injection {
                    Injection::Kernel => 0,
                    _ => sent,
                };
                assert_eq!(sink.refused(), refused, "{injection:?}");
            }
        }
        assert_eq!(irqfd.counters().injections, 12);
    }
}

/// A sink takes any object that has the descriptor of a VM, and keeps the VM itself.
#[test]
fn descriptors_of_vms() {
    let Some(vm) = machine() else { return };
    vm.create_irq_chip().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    enable_apic(&vcpu);
    let owned = descriptor(&vm).try_clone_to_owned().unwrap();
    drop(vm);
    let sink = KvmSink::new(&owned, Injection::Userspace).unwrap();
    drop((
        sink,
        KvmSink::new(Arc::new(owned.try_clone().unwrap()), Injection::Kernel).unwrap(),
    ));
    let sink = Arc::new(KvmSink::new(std::fs::File::from(owned), Injection::Userspace).unwrap());
    // The VM's own descriptor and those that the sinks were made of are closed.
    let router = Router::new(Arc::clone(&sink));
    let message = MsiMessage::new(0xfee0_0000, 0x41);
    router.set_route(24, Some(Route::Msi(message))).unwrap();
    let event = Arc::new(Event::new(0));
    let _irqfd = router.assign(&event, 24).unwrap();
    event.signal();
    assert_eq!(sink.refused(), 0);
    assert!(is_requested(&vcpu, 0x41));

    let null = std::fs::File::open("/dev/null").unwrap();
    let error = KvmSink::new(null, Injection::Userspace).unwrap_err();
    assert_eq!(
        std::io::Error::from(error).raw_os_error(),
        Some(libc::ENOTTY)
    );
}

/// KVM takes messages that name their devices, in its table and sent directly. (On x86 it ignores the id.)
#[test]
fn messages_of_devices() {
    for injection in BOTH {
        let Some(vm) = machine() else { return };
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        enable_apic(&vcpu);
        let sink = Arc::new(KvmSink::new(descriptor(&vm), injection).unwrap());
        let router = Router::new(Arc::clone(&sink));
        let of_device = message(0x41).with_devid(0x0108);
        router.set_route(24, Some(of_device.into())).unwrap();
        let event = Arc::new(Event::new(0));
        let _irqfd = router.assign(&event, 24).unwrap();
        event.signal();
        assert_eq!(sink.refused(), 0);
        assert!(is_requested(&vcpu, 0x41), "{injection:?}");
    }
}
