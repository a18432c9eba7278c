//! A split interrupt controller: the VMM has the IOAPIC, and KVM tells it of the guest's ends of interrupts.

use crate::refusals::enable;
use crate::vm::{self, Exit, Vm};
use doorbell::Event;
use doorbell::irqfd::{InterruptSink, MsiMessage, Router, Routes};
use doorbell::kvm::{Injection, KvmSink};
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_regs};
use std::sync::Arc;

const PINS: u32 = 24;
const PIN: u32 = 5;
const VECTOR: u8 = 0x55;
/// A level-triggered message.
const MESSAGE: MsiMessage = MsiMessage::new(0xfee0_0000, 0xc000 | VECTOR as u32);

/// The VMM's IOAPIC, of which the guest has programmed one pin.
struct Ioapic(Arc<KvmSink>);

impl InterruptSink for Ioapic {
    fn set_level(&self, gsi: u32, pin: u32, level: bool) {
        assert_eq!(pin, PIN);
        if level {
            self.0.signal_msi(gsi, MESSAGE);
        }
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        self.0.signal_msi(gsi, message);
    }
}

const SET_UP: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
const STACK: u64 = 0x2f00;
const APIC: u64 = 0xfee0_0000;
const IDLE: u16 = 0xf4;
const IN_SERVICE: u16 = 0xf5;

/// A guest that takes interrupts all the time, and exits when there are none.
fn guest() -> Option<Vm> {
    let mut machine = Vm::with(0x3000, |vm| enable(vm, KVM_CAP_SPLIT_IRQCHIP, PINS))?;
    let memory = machine.memory();
    let set_up = vm::assemble(SET_UP, |a| {
        let mut again = a.create_label();
        // The spurious interrupt vector register: enabled.
        a.mov(dword_ptr(0xf0), 0x1ff)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.mov(dx, u32::from(IDLE))?;
        a.out(dx, al)?;
        a.jmp(again)
    });
    memory.load(SET_UP, &set_up);
    let handler = vm::assemble(HANDLER, |a| {
        a.push(dx)?;
        a.mov(dx, u32::from(IN_SERVICE))?;
        a.out(dx, al)?;
        a.mov(dword_ptr(0xb0), 0)?;
        a.pop(dx)?;
        a.iret()
    });
    memory.load(HANDLER, &handler);
    memory.set_vector(VECTOR, HANDLER);
    let regs = kvm_regs {
        rip: SET_UP,
        rsp: STACK,
        ..kvm_regs::default()
    };
    machine.set(regs, APIC);
    Some(machine)
}

/// Runs the guest until there are no interrupts, and tells the router of their ends. Returns how many interrupts the
/// guest has taken, and how many ends KVM has reported.
fn run(machine: &mut Vm, router: &Router) -> (u32, u32) {
    let (mut taken, mut ended, mut idle) = (0, 0, 0);
    while idle < 3 {
        match machine.run() {
            Exit::Write { address, .. } if address == u64::from(IDLE) => idle += 1,
            Exit::Write { address, .. } if address == u64::from(IN_SERVICE) => taken += 1,
            Exit::EndOfInterrupt(VECTOR) => {
                ended += 1;
                router.ack(PIN);
            }
            exit => panic!("{exit:?}"),
        }
    }
    (taken, ended)
}

/// Ends of interrupts reach the router as the documentation of `KvmSink` says.
#[test]
fn ends_of_interrupts() {
    let Some(mut machine) = guest() else { return };
    let kvm = KvmSink::new(vm::descriptor(machine.fd()), Injection::Userspace).unwrap();
    let kvm = Arc::new(kvm);
    let router = Router::new(Arc::new(Ioapic(Arc::clone(&kvm))));
    router.set_routes(Routes::identity(PINS)).unwrap();
    let [interrupt, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
    let irqfd = router.assign_with_resample(&interrupt, PIN, &resample);
    let _irqfd = irqfd.unwrap();
    assert_eq!(run(&mut machine, &router), (0, 0));

    for _ in 0..2 {
        kvm.set_ioapic_message(PIN, Some(MESSAGE)).unwrap();
        for _ in 0..3 {
            interrupt.signal();
            assert_eq!(run(&mut machine, &router), (1, 1));
            assert_eq!(resample.try_read(), Some(1));
        }
    }
    assert_eq!(kvm.refused(), 0);

    // KVM does not report ends of interrupts that it does not know of: of a masked pin, or of an edge.
    let edge = MsiMessage::new(MESSAGE.address, VECTOR.into());
    for message in [None, Some(edge)] {
        kvm.set_ioapic_message(PIN, message).unwrap();
        interrupt.signal();
        assert_eq!(run(&mut machine, &router), (1, 0));
        assert_eq!(resample.try_read(), None);
        router.ack(PIN);
        resample.try_read();
    }
}

/// `set_ioapic_message` works only for a VMM's IOAPIC, and only on the GSIs of that IOAPIC.
#[test]
fn messages_of_no_ioapic() {
    let Some(machine) = guest() else { return };
    let kvm = KvmSink::new(vm::descriptor(machine.fd()), Injection::Kernel).unwrap();
    let kvm = Arc::new(kvm);
    let router = Router::new(Arc::clone(&kvm));
    let route = doorbell::irqfd::Route::Msi(MESSAGE);
    router.set_route(PIN, Some(route)).unwrap();
    let error = kvm.set_ioapic_message(PIN, Some(MESSAGE)).unwrap_err();
    assert_eq!(error.call(), "KVM_SET_GSI_ROUTING");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    // The refused message is not in the table now either.
    router.set_route(PIN + 1, Some(route)).unwrap();

    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let kvm = KvmSink::new(vm::descriptor(&vm), Injection::Userspace).unwrap();
    kvm.set_ioapic_message(PIN, Some(MESSAGE)).unwrap_err();
}
