//! A virtual machine with KVM's interrupt controllers and one vCPU in real mode, which counts interrupts.
//!
//! The guest's first run sets up the first PIC (lines 5 and 7 level-triggered, the others edge-triggered) and the local
//! APIC. In each run it takes all interrupts there are, one after the other. Each handler tells the test
//! that an interrupt is in service, then ends it, with the PIC or the APIC.

use crate::refusals;
use crate::vm::{self, Exit, VECTORS, Vm};
use iced_x86::code_asm::*;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_regs,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::{ptr, slice};

/// The vectors of messages.
pub const MESSAGE_VECTORS: [u8; 2] = [0x41, 0x62];
/// A level-triggered line.
pub const LEVEL: u8 = 5;
/// A level-triggered line that the guest has masked.
pub const FENCE: u32 = 7;
/// Lines whose interrupts the guest takes.
pub const LINES: [u8; 3] = [4, LEVEL, 6];

const MEMORY: u64 = 0x4000;
const SET_UP: u64 = 0x1000;
const LOOK: u64 = 0x1100;
const HANDLERS: u64 = 0x2000;
const STACK: u64 = 0x3f00;
/// The APIC's registers, at which DS points.
const APIC: u64 = 0xfee0_0000;

const DONE: u16 = 0xf4;
const IN_SERVICE: u16 = 0xf5;

pub struct Machine(Vm);

impl Machine {
    /// `None`, with a message, if there is no usable KVM.
    pub fn new() -> Option<Self> {
        let mut machine = Machine(Vm::with_interrupts(MEMORY)?);
        machine.load();
        machine.run_from(SET_UP, &mut |vector| assert_eq!(vector, None));
        Some(machine)
    }

    fn load(&self) {
        let memory = self.0.memory();
        let set_up = vm::assemble(SET_UP, |a| {
            let mut done = a.create_label();
            vm::set_up_pic(a, &LINES, &[LEVEL, FENCE as u8])?;
            // The spurious interrupt vector register: enabled.
            a.mov(dword_ptr(0xf0), 0x1ff)?;
            a.set_label(&mut done)?;
            a.mov(dx, u32::from(DONE))?;
            a.out(dx, al)?;
            a.jmp(done)
        });
        memory.load(SET_UP, &set_up);

        let look = vm::assemble(LOOK, |a| {
            let mut again = a.create_label();
            a.sti()?;
            a.set_label(&mut again)?;
            a.mov(dx, u32::from(DONE))?;
            a.out(dx, al)?;
            a.jmp(again)
        });
        memory.load(LOOK, &look);

        let vectors = LINES
            .map(|line| VECTORS + line)
            .into_iter()
            .chain(MESSAGE_VECTORS);
        for (place, vector) in (0..).zip(vectors) {
            let address = HANDLERS + 0x40 * place;
            let handler = vm::assemble(address, |a| {
                a.push(ax)?;
                a.push(dx)?;
                a.mov(dx, u32::from(IN_SERVICE))?;
                a.mov(al, i32::from(vector))?;
                a.out(dx, al)?;
                if MESSAGE_VECTORS.contains(&vector) {
                    a.mov(dword_ptr(0xb0), 0)?;
                } else {
                    vm::end_of_interrupt(a)?;
                }
                // Everything that the end of an interrupt causes must be there before the next one is taken.
                a.mov(dx, u32::from(DONE))?;
                a.out(dx, al)?;
                a.pop(dx)?;
                a.pop(ax)?;
                a.iret()
            });
            memory.load(address, &handler);
            memory.set_vector(vector, address);
        }
    }

    pub fn vm(&self) -> &Arc<VmFd> {
        self.0.fd()
    }

    /// Lets the guest take interrupts until there are none. `show` gets each while it is in service. With `None`, it is
    /// asked to wait for interrupts that it knows to be on their way.
    pub fn run(&mut self, show: &mut dyn FnMut(Option<u8>)) {
        self.run_from(LOOK, show);
    }

    fn run_from(&mut self, rip: u64, show: &mut dyn FnMut(Option<u8>)) {
        let regs = kvm_regs {
            rip,
            rsp: STACK,
            ..kvm_regs::default()
        };
        self.0.set(regs, APIC);
        self.go_on(show);
    }

    /// As [`run`](Self::run), but goes on from where the guest is.
    pub fn go_on(&mut self, show: &mut dyn FnMut(Option<u8>)) {
        // Interrupts come at the entry after an exit, at the latest, so there are none when nothing came between two
        // exits.
        let mut quiet = 0;
        while quiet < 3 {
            quiet += 1;
            match self.0.run() {
                Exit::Write { address, .. } if address == u64::from(DONE) => show(None),
                Exit::Write { address, data, .. } if address == u64::from(IN_SERVICE) => {
                    quiet = 0;
                    show(Some(data[0]));
                }
                exit => panic!("{exit:?}"),
            }
        }
    }
}

/// A stopped machine, as plain data.
#[derive(Serialize, Deserialize)]
pub struct MachineState {
    /// The memory, as cells of 64 bits.
    memory: Vec<u64>,
    /// The states of KVM's devices, as the bytes of the structures of its ioctls.
    irqchips: Vec<Vec<u8>>,
    regs: Vec<u8>,
    sregs: Vec<u8>,
    lapic: Vec<u8>,
    events: Vec<u8>,
    mp_state: Vec<u8>,
}

const IRQCHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// The bytes of a structure of an ioctl.
fn bytes<T: Copy>(value: &T) -> Vec<u8> {
    let first = ptr::from_ref(value).cast::<u8>();
    // SAFETY: the bytes are those of the value. The structures of ioctls have no padding, because the kernel fills
    // them.
    unsafe { slice::from_raw_parts(first, size_of::<T>()) }.to_vec()
}

/// A structure of an ioctl, all bits of which are valid.
fn structure<T: Copy>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: the length matches, and any bytes are a valid value, as said above.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}

impl Machine {
    /// Runs until an interrupt is in service, whose vector this returns.
    pub fn run_into_service(&mut self) -> u8 {
        let regs = kvm_regs {
            rip: LOOK,
            rsp: STACK,
            ..kvm_regs::default()
        };
        self.0.set(regs, APIC);
        for _ in 0..4 {
            if let Exit::Write { address, data, .. } = self.0.run() {
                if address == u64::from(IN_SERVICE) {
                    return data[0];
                }
            }
        }
        panic!("no interrupt comes");
    }

    /// Makes the IOAPIC send this pin's level as an interrupt with this vector.
    pub fn open_ioapic_pin(&self, pin: usize, vector: u8) {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..kvm_irqchip::default()
        };
        self.vm().get_irqchip(&mut chip).unwrap();
        // SAFETY: the state of the IOAPIC is what KVM_GET_IRQCHIP gives for this chip.
        let ioapic = unsafe { &mut chip.chip.ioapic };
        // Level-triggered, and not masked.
        ioapic.redirtbl[pin].bits = u64::from(vector) | 1 << 15;
        self.vm().set_irqchip(&chip).unwrap();
    }

    /// Whether the local APIC has a request with this vector.
    pub fn is_requested(&mut self, vector: u8) -> bool {
        refusals::is_requested(self.0.vcpu(), vector)
    }

    pub fn save(&mut self) -> MachineState {
        // This completes the instruction that caused the last exit.
        self.0.vcpu().set_kvm_immediate_exit(1);
        assert!(self.0.vcpu().run().is_err());
        self.0.vcpu().set_kvm_immediate_exit(0);
        let irqchip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            self.vm().get_irqchip(&mut chip).unwrap();
            bytes(&chip)
        };
        let cells = (0..MEMORY).step_by(8);
        let memory = cells.map(|at| self.0.memory().cell(at).load(Ordering::Relaxed));
        let (irqchips, memory) = (IRQCHIPS.map(irqchip).into(), memory.collect());
        let vcpu = self.0.vcpu();
        MachineState {
            memory,
            irqchips,
            regs: bytes(&vcpu.get_regs().unwrap()),
            sregs: bytes(&vcpu.get_sregs().unwrap()),
            lapic: bytes(&vcpu.get_lapic().unwrap()),
            events: bytes(&vcpu.get_vcpu_events().unwrap()),
            mp_state: bytes(&vcpu.get_mp_state().unwrap()),
        }
    }

    pub fn restore(state: &MachineState) -> Self {
        let mut machine = Machine(Vm::with_interrupts(MEMORY).expect("KVM was there before"));
        for (at, &cell) in (0..).step_by(8).zip(&state.memory) {
            machine.0.memory().cell(at).store(cell, Ordering::Relaxed);
        }
        let irqchips = state.irqchips.iter();
        irqchips.for_each(|chip| machine.vm().set_irqchip(&structure(chip)).unwrap());
        let vcpu = machine.0.vcpu();
        vcpu.set_sregs(&structure(&state.sregs)).unwrap();
        vcpu.set_regs(&structure(&state.regs)).unwrap();
        vcpu.set_lapic(&structure(&state.lapic)).unwrap();
        vcpu.set_vcpu_events(&structure(&state.events)).unwrap();
        vcpu.set_mp_state(structure(&state.mp_state)).unwrap();
        machine
    }
}

/// Whether an interrupt of this line of the first PIC is requested.
pub fn is_requested(vm: &VmFd, line: u32) -> bool {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_PIC_MASTER,
        ..kvm_irqchip::default()
    };
    vm.get_irqchip(&mut chip).expect("KVM_GET_IRQCHIP");
    // SAFETY: the state of a PIC is what KVM_GET_IRQCHIP gives for this chip.
    let requested = unsafe { chip.chip.pic.irr };
    requested & 1 << line != 0
}
