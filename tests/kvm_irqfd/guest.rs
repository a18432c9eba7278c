//! A virtual machine with KVM's interrupt controllers and one vCPU in real mode, which counts interrupts.
//!
//! The guest's first run sets up the first PIC (lines 5 and 7 level-triggered, the others edge-triggered) and the local
//! APIC. In each run it takes all interrupts there are, one after the other. Each handler tells the test
//! that an interrupt is in service, then ends it, with the PIC or the APIC.

use crate::vm::{self, Exit, VECTORS, Vm};
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip, kvm_regs};
use kvm_ioctls::VmFd;
use std::sync::Arc;

/// Of messages.
pub const MESSAGE_VECTORS: [u8; 2] = [0x41, 0x62];
/// Level-triggered.
pub const LEVEL: u8 = 5;
/// Level-triggered too, but the guest has masked it.
pub const FENCE: u32 = 7;
/// Lines whose interrupts the guest takes.
pub const LINES: [u8; 3] = [4, LEVEL, 6];

const MEMORY: u64 = 0x4000;
const SET_UP: u64 = 0x1000;
const LOOK: u64 = 0x1100;
const HANDLERS: u64 = 0x2000;
const STACK: u64 = 0x3f00;
/// The APIC's registers, where DS is.
const APIC: u64 = 0xfee0_0000;

const DONE: u16 = 0xf4;
const IN_SERVICE: u16 = 0xf5;

pub struct Machine(Vm);

impl Machine {
    /// `None`, and says so, where there is no KVM to be used.
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
                // What the end of an interrupt sets off is to be there before the next is taken.
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

    /// Lets the guest take interrupts until there are none. The caller is shown each while it is in service; and is
    /// asked to wait, `None`, for what it knows to be on its way.
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
