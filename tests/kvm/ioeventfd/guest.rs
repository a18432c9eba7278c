//! A guest that makes one access a run: KVM_SET_REGS, KVM_RUN until the HLT after the access, and KVM_SET_SREGS where
//! the access is in another page than the last.

use crate::vm::{self, Exit, Memory, Vm};
use doorbell::ioeventfd::Bus;
use iced_x86::code_asm::*;
use kvm_bindings::kvm_regs;
use kvm_ioctls::VmFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What the guest does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// A store of 1, 2, 4 or 8 bytes.
    Store(usize),
    /// OUT of 1, 2 or 4 bytes.
    Out(usize),
    /// REP OUTSW of [`STRING`] words.
    OutString,
    /// ADD of 2 bytes to memory.
    Add,
    /// 2-byte stores, over and over, until [`Flag`] is set.
    StoreUntilFlag,
    /// A 2-byte store as soon as [`Flag`] is set.
    StoreAfterFlag,
}

/// How many words [`Instruction::OutString`] writes.
pub const STRING: usize = 5;

const INSTRUCTIONS: [Instruction; 11] = [
    Instruction::Store(1),
    Instruction::Store(2),
    Instruction::Store(4),
    Instruction::Store(8),
    Instruction::Out(1),
    Instruction::Out(2),
    Instruction::Out(4),
    Instruction::OutString,
    Instruction::Add,
    Instruction::StoreUntilFlag,
    Instruction::StoreAfterFlag,
];

impl Instruction {
    /// The plain write of `size` bytes.
    pub fn write(bus: Bus, size: usize) -> Self {
        match bus {
            Bus::Mmio => Instruction::Store(size),
            Bus::Pio => Instruction::Out(size),
        }
    }

    /// The instruction's address in guest memory; a HLT follows it.
    fn address(self) -> u64 {
        let index = INSTRUCTIONS.iter().position(|&other| other == self);
        CODE + 64 * index.expect("an instruction that is assembled") as u64
    }

    /// Takes the value from AX, EAX or [`VALUE`], the offset from BX, the port from DX.
    fn assemble(self) -> Vec<u8> {
        vm::assemble(self.address(), |a| match self {
            Instruction::Store(1) => a.mov(byte_ptr(bx), al),
            Instruction::Store(2) => a.mov(word_ptr(bx), ax),
            Instruction::Store(4) => a.mov(dword_ptr(bx), eax),
            Instruction::Store(8) => {
                a.movq(mm0, qword_ptr(VALUE).cs())?;
                a.movq(qword_ptr(bx), mm0)
            }
            Instruction::Out(1) => a.out(dx, al),
            Instruction::Out(2) => a.out(dx, ax),
            Instruction::Out(4) => a.out(dx, eax),
            Instruction::OutString => a.rep().outsw(),
            Instruction::Add => a.add(word_ptr(bx), ax),
            Instruction::StoreUntilFlag => {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.mov(word_ptr(bx), ax)?;
                a.cmp(byte_ptr(FLAG).cs(), 0)?;
                a.je(again)
            }
            Instruction::StoreAfterFlag => {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.cmp(byte_ptr(FLAG).cs(), 0)?;
                a.je(again)?;
                a.mov(word_ptr(bx), ax)
            }
            Instruction::Store(_) | Instruction::Out(_) => unreachable!("{self:?}"),
        })
    }

    fn bus(self) -> Bus {
        match self {
            Instruction::Out(_) | Instruction::OutString => Bus::Pio,
            _ => Bus::Mmio,
        }
    }

    /// The bytes of one access.
    fn size(self) -> usize {
        match self {
            Instruction::Store(size) | Instruction::Out(size) => size,
            _ => 2,
        }
    }
}

/// Guest-physical memory ends here; above it, an access is MMIO.
pub const MEMORY: u64 = 0x4000;
const PAGE: u64 = 0x1000;
const CODE: u64 = 0x1000;
const VALUE: u64 = 0x2000;
const FLAG: u64 = 0x2800;

/// A byte in guest memory that the guest waits for.
pub struct Flag(Memory);

impl Flag {
    pub fn set(&self, on: bool) {
        // Release: what the guest does when it sees the flag comes after what the test did before.
        self.0.cell(FLAG).store(on.into(), Ordering::Release);
    }

    /// Sets the flag, at the latest when the caller panics, so that the guest ends.
    pub fn set_when_dropped(&self) -> impl Drop {
        struct Set<'a>(&'a Flag);
        impl Drop for Set<'_> {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        Set(self)
    }
}

pub struct Machine(Vm);

impl Machine {
    /// `None` if there is no usable KVM.
    pub fn new() -> Option<Self> {
        let vm = Vm::new(MEMORY)?;
        for instruction in INSTRUCTIONS {
            let code = instruction.assemble();
            vm.memory().load(instruction.address(), &code);
        }
        Some(Machine(vm))
    }

    pub fn vm(&self) -> Arc<VmFd> {
        Arc::clone(self.0.fd())
    }

    pub fn flag(&self) -> Flag {
        Flag(self.0.memory().clone())
    }

    /// Has the guest execute `instruction` once, and passes its exits on.
    pub fn run(
        &mut self,
        instruction: Instruction,
        address: u64,
        value: u64,
        mut on_exit: impl FnMut(Exit),
    ) {
        self.0.memory().load(VALUE, &value.to_le_bytes());
        let mut regs = kvm_regs {
            rip: instruction.address(),
            rax: value,
            ..kvm_regs::default()
        };
        let base = match instruction.bus() {
            Bus::Pio => {
                regs.rdx = address;
                regs.rsi = VALUE;
                regs.rcx = STRING as u64;
                0
            }
            Bus::Mmio => {
                regs.rbx = address % PAGE;
                address - address % PAGE
            }
        };
        self.0.set(regs, base);
        loop {
            match self.0.run() {
                Exit::Halt => return,
                Exit::Write { bus, address, data } => {
                    for data in data.chunks(instruction.size()) {
                        on_exit(Exit::Write {
                            bus,
                            address,
                            data: data.to_vec(),
                        });
                    }
                }
                read => on_exit(read),
            }
        }
    }
}
