//! A virtual machine with KVM's interrupt controllers and one vCPU in real mode, which counts interrupts.
//!
//! The guest's first run sets up the first PIC (lines 5 and 7 level-triggered, the others edge-triggered) and the local APIC. In each
//! run it takes all interrupts there are, one after the other. Each handler tells the test
//! that an interrupt is in service, then ends it, with the PIC or the APIC.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// PIC line n interrupts by vector 32 + n.
pub const VECTORS: u8 = 0x20;
/// Of messages.
pub const MESSAGE_VECTORS: [u8; 2] = [0x41, 0x62];
/// Level-triggered.
pub const LEVEL: u8 = 5;
/// Level-triggered too, but the guest has masked it.
pub const FENCE: u32 = 7;
/// Lines whose interrupts the guest takes.
pub const LINES: [u8; 3] = [4, LEVEL, 6];

const MEMORY: usize = 0x4000;
const SET_UP: u64 = 0x1000;
const LOOK: u64 = 0x1100;
const HANDLERS: u64 = 0x2000;
const STACK: u64 = 0x3f00;
/// ES, for the APIC's registers.
const APIC: u64 = 0xfee0_0000;

const DONE: u16 = 0xf4;
const IN_SERVICE: u16 = 0xf5;
const PIC_COMMAND: i32 = 0x20;
const PIC_DATA: i32 = 0x21;
/// Edge or level, a bit for each line.
const ELCR: u32 = 0x4d0;

#[repr(C, align(4096))]
struct Memory([AtomicU8; MEMORY]);

pub struct Machine {
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    memory: Arc<Memory>,
}

impl Machine {
    /// `None`, and says so, where there is no KVM to be used.
    pub fn new() -> Option<Self> {
        match Self::try_new() {
            Ok(machine) => Some(machine),
            Err(error) => {
                eprintln!("skipped: KVM: {error}");
                None
            }
        }
    }

    fn try_new() -> Result<Self, kvm_ioctls::Error> {
        let vm = Kvm::new()?.create_vm()?;
        // Intel's CPUs want three pages of their own for real mode.
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        let memory = Arc::new(Memory([const { AtomicU8::new(0) }; MEMORY]));
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.0.as_ptr() as u64,
        };
        // SAFETY: the region is all of `memory`, which lives as long as the vCPU can run, and all that is in it is atomic.
        unsafe { vm.set_user_memory_region(region) }?;
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        // A base that no selector has: "unreal mode".
        sregs.es.base = APIC;
        vcpu.set_sregs(&sregs)?;
        let mut machine = Machine {
            vcpu,
            vm: Arc::new(vm),
            memory,
        };
        machine.assemble().expect("these are instructions");
        machine.run_from(SET_UP, &mut |vector| assert_eq!(vector, None));
        Ok(machine)
    }

    fn load(&self, address: u64, bytes: &[u8]) {
        for (cell, &byte) in self.memory.0[address as usize..].iter().zip(bytes) {
            cell.store(byte, Ordering::Relaxed);
        }
    }

    fn assemble(&self) -> Result<(), IcedError> {
        let mut a = CodeAssembler::new(16)?;
        let mut done = a.create_label();
        let open = LINES.iter().fold(0, |bits, line| bits | 1 << line);
        // The initialisation command words 1 to 4, then the mask.
        for (port, value) in [
            (PIC_COMMAND, 0x11),
            (PIC_DATA, i32::from(VECTORS)),
            (PIC_DATA, 1 << 2), // the second PIC is on line 2
            (PIC_DATA, 1),      // 8086 mode
            (PIC_DATA, 0xff & !open),
        ] {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        a.mov(dx, ELCR)?;
        a.mov(al, 1 << LEVEL | 1 << FENCE)?;
        a.out(dx, al)?;
        // The spurious interrupt vector register: enabled.
        a.mov(dword_ptr(0xf0).es(), 0x1ff)?;
        a.set_label(&mut done)?;
        a.mov(dx, u32::from(DONE))?;
        a.out(dx, al)?;
        a.jmp(done)?;
        self.load(SET_UP, &a.assemble(SET_UP)?);

        let mut a = CodeAssembler::new(16)?;
        let mut again = a.create_label();
        a.sti()?;
        a.set_label(&mut again)?;
        a.mov(dx, u32::from(DONE))?;
        a.out(dx, al)?;
        a.jmp(again)?;
        self.load(LOOK, &a.assemble(LOOK)?);

        let vectors = LINES
            .map(|line| VECTORS + line)
            .into_iter()
            .chain(MESSAGE_VECTORS);
        for (place, vector) in (0..).zip(vectors) {
            let address = HANDLERS + 0x40 * place;
            let mut a = CodeAssembler::new(16)?;
            a.push(ax)?;
            a.push(dx)?;
            a.mov(dx, u32::from(IN_SERVICE))?;
            a.mov(al, i32::from(vector))?;
            a.out(dx, al)?;
            if MESSAGE_VECTORS.contains(&vector) {
                a.mov(dword_ptr(0xb0).es(), 0)?;
            } else {
                // Non-specific end of interrupt.
                a.mov(al, 0x20)?;
                a.out(PIC_COMMAND, al)?;
            }
            // What the end of an interrupt sets off is to be there before the next is taken.
            a.mov(dx, u32::from(DONE))?;
            a.out(dx, al)?;
            a.pop(dx)?;
            a.pop(ax)?;
            a.iret()?;
            self.load(address, &a.assemble(address)?);
            // An offset and a segment of 16 bits each.
            self.load(4 * u64::from(vector), &(address as u32).to_le_bytes());
        }
        Ok(())
    }

    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Lets the guest take interrupts until there are none. The caller is shown each while it is in service; and is asked to
    /// wait, `None`, for what it knows to be on its way.
    pub fn run(&mut self, show: &mut dyn FnMut(Option<u8>)) {
        self.run_from(LOOK, show);
    }

    fn run_from(&mut self, rip: u64, show: &mut dyn FnMut(Option<u8>)) {
        let regs = kvm_regs {
            rip,
            rsp: STACK,
            rflags: 2, // always set
            ..kvm_regs::default()
        };
        self.vcpu.set_regs(&regs).expect("KVM_SET_REGS");
        // Interrupts come at the entry after an exit, at the latest, so there are none when nothing came between two exits.
        let mut quiet = 0;
        while quiet < 3 {
            quiet += 1;
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(DONE, _)) => show(None),
                Ok(VcpuExit::IoOut(IN_SERVICE, &[vector])) => {
                    quiet = 0;
                    show(Some(vector));
                }
                Ok(exit) => panic!("{exit:?}"),
                Err(error) if error.errno() == libc::EINTR => quiet = 0,
                Err(error) => panic!("KVM_RUN: {error}"),
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
