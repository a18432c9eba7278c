//! A virtual machine with one vCPU in real mode, which makes one access a run.
//!
//! The vCPU is kept: a run is KVM_SET_REGS, KVM_RUN until the HLT behind the access, and KVM_SET_SREGS where the access
//! is in another page than the last. There is no interrupt controller, so HLT comes back from KVM_RUN, and no device
//! but ioeventfds on the buses.

use doorbell::ioeventfd::Bus;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

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

    /// Where it stands in guest memory, with a HLT behind it.
    fn address(self) -> u64 {
        let index = INSTRUCTIONS.iter().position(|&other| other == self);
        CODE + 64 * index.expect("an instruction that is assembled") as u64
    }

    /// Takes the value from AX, EAX or [`VALUE`], the offset from BX, the port from DX.
    fn assemble(self) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(16)?;
        match self {
            Instruction::Store(1) => a.mov(byte_ptr(bx), al)?,
            Instruction::Store(2) => a.mov(word_ptr(bx), ax)?,
            Instruction::Store(4) => a.mov(dword_ptr(bx), eax)?,
            Instruction::Store(8) => {
                a.movq(mm0, qword_ptr(VALUE).cs())?;
                a.movq(qword_ptr(bx), mm0)?;
            }
            Instruction::Out(1) => a.out(dx, al)?,
            Instruction::Out(2) => a.out(dx, ax)?,
            Instruction::Out(4) => a.out(dx, eax)?,
            Instruction::OutString => a.rep().outsw()?,
            Instruction::Add => a.add(word_ptr(bx), ax)?,
            Instruction::StoreUntilFlag => {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.mov(word_ptr(bx), ax)?;
                a.cmp(byte_ptr(FLAG).cs(), 0)?;
                a.je(again)?;
            }
            Instruction::StoreAfterFlag => {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.cmp(byte_ptr(FLAG).cs(), 0)?;
                a.je(again)?;
                a.mov(word_ptr(bx), ax)?;
            }
            Instruction::Store(_) | Instruction::Out(_) => unreachable!("{self:?}"),
        }
        a.hlt()?;
        a.assemble(self.address())
    }

    fn bus(self) -> Bus {
        match self {
            Instruction::Out(_) | Instruction::OutString => Bus::Pio,
            _ => Bus::Mmio,
        }
    }

    /// Bytes of one access.
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

/// Guest memory. The guest and the test use it at the same time.
#[repr(C, align(4096))]
struct Memory([AtomicU8; MEMORY as usize]);

impl Memory {
    fn load(&self, address: u64, bytes: &[u8]) {
        for (cell, &byte) in self.0[address as usize..].iter().zip(bytes) {
            cell.store(byte, Ordering::Relaxed);
        }
    }
}

/// A byte in guest memory that the guest waits for.
pub struct Flag(Arc<Memory>);

impl Flag {
    pub fn set(&self, on: bool) {
        // What the guest does when it sees the flag comes after what the test did before.
        self.0.0[FLAG as usize].store(on.into(), Ordering::Release);
    }

    /// Sets it, at the latest when the caller panics, so that the guest comes to an end.
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

/// What a run did that no ioeventfd of the VM took: it is for whoever runs the vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Write {
        bus: Bus,
        address: u64,
        data: Vec<u8>,
    },
    /// It reads as 0.
    Read { bus: Bus, address: u64, size: usize },
}

pub struct Machine {
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    sregs: kvm_sregs,
    memory: Arc<Memory>,
}

impl Machine {
    /// `None` where there is no KVM to be used.
    pub fn new() -> Option<Self> {
        let kvm = Kvm::new().ok()?;
        let vm = kvm.create_vm().ok()?;
        // Intel's CPUs want three pages of their own for real mode. This is where QEMU puts them.
        vm.set_tss_address(0xfffb_d000).ok()?;
        let memory = Arc::new(Memory([const { AtomicU8::new(0) }; MEMORY as usize]));
        for instruction in INSTRUCTIONS {
            let code = instruction.assemble().expect("these are instructions");
            memory.load(instruction.address(), &code);
        }
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: memory.0.as_ptr() as u64,
        };
        // SAFETY: the region is all of `memory`, which lives as long as the vCPU can run, and all that is in it is
        // atomic: the guest writes to it at any time.
        unsafe { vm.set_user_memory_region(region) }.ok()?;
        let vcpu = vm.create_vcpu(0).ok()?;
        let mut sregs = vcpu.get_sregs().ok()?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs).ok()?;
        Some(Machine {
            vcpu,
            vm: Arc::new(vm),
            sregs,
            memory,
        })
    }

    pub fn vm(&self) -> Arc<VmFd> {
        Arc::clone(&self.vm)
    }

    pub fn flag(&self) -> Flag {
        Flag(Arc::clone(&self.memory))
    }

    /// Has the guest execute `instruction`, once, and hands out its exits.
    pub fn run(
        &mut self,
        instruction: Instruction,
        address: u64,
        value: u64,
        mut on_exit: impl FnMut(Exit),
    ) {
        self.memory.load(VALUE, &value.to_le_bytes());
        let mut regs = kvm_regs {
            rip: instruction.address(),
            rflags: 2, // always set
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
        self.vcpu.set_regs(&regs).expect("KVM_SET_REGS");
        if self.sregs.ds.base != base {
            // A base that no selector has: "unreal mode", by which real mode reaches the first 4 GiB.
            self.sregs.ds.base = base;
            self.vcpu.set_sregs(&self.sregs).expect("KVM_SET_SREGS");
        }
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => return,
                // The elements of a string come in one exit.
                Ok(VcpuExit::IoOut(port, data)) => {
                    for data in data.chunks(instruction.size()) {
                        on_exit(Exit::Write {
                            bus: Bus::Pio,
                            address: port.into(),
                            data: data.to_vec(),
                        });
                    }
                }
                Ok(VcpuExit::MmioWrite(address, data)) => on_exit(Exit::Write {
                    bus: Bus::Mmio,
                    address,
                    data: data.to_vec(),
                }),
                Ok(VcpuExit::MmioRead(address, data)) => {
                    data.fill(0);
                    on_exit(Exit::Read {
                        bus: Bus::Mmio,
                        address,
                        size: data.len(),
                    });
                }
                Ok(exit) => panic!("{instruction:?} at {address:#x}: {exit:?}"),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => panic!("KVM_RUN: {error}"),
            }
        }
    }
}
