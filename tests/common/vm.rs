//! A virtual machine of a real KVM: guest memory from address 0 up, one vCPU in real mode, and no device but ioeventfds
//! and, if asked for, KVM's interrupt controllers.
//!
//! Without interrupt controllers, a HLT returns from KVM_RUN; with them, the vCPU sleeps there until it is interrupted.

// Each test target uses only a part of this module.
#![allow(dead_code)]

use doorbell::ioeventfd::{Bus, Key};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use kvm_bindings::{
    KVMIO, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

const PAGE: u64 = 0x1000;

#[repr(C, align(4096))]
struct Page([AtomicU64; PAGE as usize / 8]);

/// Guest memory, in use by the guest and the test at the same time. Clones are the same memory.
#[derive(Clone)]
pub struct Memory(Arc<[Page]>);

impl Memory {
    /// The 64-bit cell at `address`, which is a multiple of 8.
    pub fn cell(&self, address: u64) -> &AtomicU64 {
        let page = &self.0[(address / PAGE) as usize];
        &page.0[(address % PAGE / 8) as usize]
    }

    /// Copies a program to `address`, which is a multiple of 8.
    pub fn load(&self, address: u64, program: &[u8]) {
        for (at, bytes) in (address..).step_by(8).zip(program.chunks(8)) {
            let mut cell = [0; 8];
            cell[..bytes.len()].copy_from_slice(bytes);
            let cell = u64::from_le_bytes(cell);
            self.cell(at).store(cell, Ordering::Relaxed);
        }
    }

    /// Has an interrupt vector of real mode point to a handler below 64 KiB.
    pub fn set_vector(&self, vector: u8, handler: u64) {
        // An offset and a segment of 16 bits each, two vectors in a cell.
        let cell = self.cell(4 * u64::from(vector & !1));
        let shift = 32 * u64::from(vector & 1);
        let other = cell.load(Ordering::Relaxed) & !(0xffff_ffff << shift);
        cell.store(other | handler << shift, Ordering::Relaxed);
    }
}

/// The descriptor of the VM, which is not `AsFd`.
pub fn descriptor(vm: &VmFd) -> BorrowedFd<'_> {
    // SAFETY: the VM keeps its descriptor open, and is borrowed for as long.
    unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}

/// A real-mode program at `address`, with a HLT after it.
pub fn assemble(
    address: u64,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(16).expect("16 bits");
    let code = program(&mut a)
        .and_then(|()| a.hlt())
        .and_then(|()| a.assemble(address));
    code.expect("a real-mode program")
}

/// The first PIC's ports, and its register of a bit for each line: edge- or level-triggered.
const PIC_COMMAND: i32 = 0x20;
const PIC_DATA: i32 = 0x21;
const ELCR: u32 = 0x4d0;
/// Line n of the first PIC interrupts by vector 32 + n.
pub const VECTORS: u8 = 0x20;

/// Sets up the first PIC with the lines in `open` unmasked, and those in `level` level-triggered. Changes AL and DX.
pub fn set_up_pic(a: &mut CodeAssembler, open: &[u8], level: &[u8]) -> Result<(), IcedError> {
    use iced_x86::code_asm::{al, dx};
    let bits = |lines: &[u8]| lines.iter().fold(0, |bits, line| bits | 1 << line);
    // The initialisation command words 1 to 4, then the mask.
    for (port, value) in [
        (PIC_COMMAND, 0x11),
        (PIC_DATA, i32::from(VECTORS)),
        (PIC_DATA, 1 << 2), // the second PIC is on line 2
        (PIC_DATA, 1),      // 8086 mode
        (PIC_DATA, 0xff & !bits(open)),
    ] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    a.mov(dx, ELCR)?;
    a.mov(al, bits(level))?;
    a.out(dx, al)
}

/// Non-specific end of interrupt. Changes AL.
pub fn end_of_interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    use iced_x86::code_asm::al;
    a.mov(al, 0x20)?;
    a.out(PIC_COMMAND, al)
}

/// Where a run of the vCPU ended. No ioeventfd took the access: it is for the code that runs the vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Halt,
    Write {
        bus: Bus,
        address: u64,
        /// The elements of a string instruction come in one exit.
        data: Vec<u8>,
    },
    /// The read gives 0.
    Read {
        bus: Bus,
        address: u64,
        size: usize,
    },
    /// The end of an interrupt with this vector, which an IOAPIC of the VMM has sent.
    EndOfInterrupt(u8),
}

pub struct Vm {
    // These stand before the memory, because they must be dropped first.
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    sregs: kvm_sregs,
    memory: Memory,
}

impl Vm {
    /// A VM with this much guest memory; an access above it is MMIO. Without a usable KVM, this says so and returns
    /// `None`.
    pub fn new(memory_size: u64) -> Option<Self> {
        Self::with(memory_size, |_| Ok(()))
    }

    /// The same, with KVM's interrupt controllers.
    pub fn with_interrupts(memory_size: u64) -> Option<Self> {
        Self::with(memory_size, VmFd::create_irq_chip)
    }

    /// The same, with what `add` makes before the vCPU is made.
    pub fn with(
        memory_size: u64,
        add: impl FnOnce(&VmFd) -> Result<(), kvm_ioctls::Error>,
    ) -> Option<Self> {
        let made = Self::try_new(memory_size, add);
        if let Err(e) = &made {
            eprintln!("skipped: no usable /dev/kvm ({e})");
        }
        made.ok()
    }

    fn try_new(
        memory_size: u64,
        add: impl FnOnce(&VmFd) -> Result<(), kvm_ioctls::Error>,
    ) -> Result<Self, kvm_ioctls::Error> {
        let vm = Kvm::new()?.create_vm()?;
        // Intel's CPUs want three pages of their own for real mode. This is where QEMU puts them.
        vm.set_tss_address(0xfffb_d000)?;
        add(&vm)?;
        let page = || Page([const { AtomicU64::new(0) }; PAGE as usize / 8]);
        let memory = Memory((0..memory_size / PAGE).map(|_| page()).collect());
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.0.len() as u64 * PAGE,
            userspace_addr: memory.0.as_ptr() as u64,
        };
        // SAFETY: the region is all of `memory`, which lives as long as the vCPU can run, and all that is in it is
        // atomic: the guest writes to it at any time.
        unsafe { vm.set_user_memory_region(region) }?;
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        // OSFXSR and OSXMMEXCPT: SSE instructions are there.
        sregs.cr4 |= 0x600;
        vcpu.set_sregs(&sregs)?;
        Ok(Vm {
            vcpu,
            vm: Arc::new(vm),
            sregs,
            memory,
        })
    }

    pub fn fd(&self) -> &Arc<VmFd> {
        &self.vm
    }

    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Sets what the guest is to do next: `regs`, with DS at `data`. `data` may be a base that no selector has ("unreal
    /// mode", by which real mode reaches the first 4 GiB).
    pub fn set(&mut self, mut regs: kvm_regs, data: u64) {
        regs.rflags |= 2; // always set
        self.vcpu.set_regs(&regs).expect("KVM_SET_REGS");
        if self.sregs.ds.base != data {
            self.sregs.ds.base = data;
            self.vcpu.set_sregs(&self.sregs).expect("KVM_SET_SREGS");
        }
    }

    /// Runs the guest to its next exit.
    pub fn run(&mut self) -> Exit {
        loop {
            return match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => Exit::Halt,
                Ok(VcpuExit::IoOut(port, data)) => Exit::Write {
                    bus: Bus::Pio,
                    address: port.into(),
                    data: data.to_vec(),
                },
                Ok(VcpuExit::MmioWrite(address, data)) => Exit::Write {
                    bus: Bus::Mmio,
                    address,
                    data: data.to_vec(),
                },
                Ok(VcpuExit::MmioRead(address, data)) => {
                    data.fill(0);
                    Exit::Read {
                        bus: Bus::Mmio,
                        address,
                        size: data.len(),
                    }
                }
                Ok(VcpuExit::IoapicEoi(vector)) => Exit::EndOfInterrupt(vector),
                Ok(exit) => panic!("{exit:?}"),
                Err(error) if error.errno() == libc::EINTR => continue,
                Err(error) => panic!("KVM_RUN: {error}"),
            };
        }
    }
}

vmm_sys_util::ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// KVM_IOEVENTFD. A refusal is returned as an errno.
///
/// The ioctl itself: kvm-ioctls derives the length from the type of the datamatch, which makes most keys impossible.
pub fn assign(vm: &VmFd, key: &Key, fd: &EventFd) -> Result<(), i32> {
    ioeventfd(vm, key, fd, 0)
}

/// The same, with KVM_IOEVENTFD_FLAG_DEASSIGN.
pub fn deassign(vm: &VmFd, key: &Key, fd: &EventFd) -> Result<(), i32> {
    ioeventfd(vm, key, fd, 1 << kvm_ioeventfd_flag_nr_deassign)
}

fn ioeventfd(vm: &VmFd, key: &Key, fd: &EventFd, mut flags: u32) -> Result<(), i32> {
    if key.bus == Bus::Pio {
        flags |= 1 << kvm_ioeventfd_flag_nr_pio;
    }
    if key.datamatch.is_some() {
        flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
    }
    let argument = kvm_ioeventfd {
        datamatch: key.datamatch.unwrap_or_default(),
        addr: key.address,
        len: key.length,
        fd: fd.as_raw_fd(),
        flags,
        ..kvm_ioeventfd::default()
    };
    // SAFETY: KVM reads the argument and nothing else.
    match unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), &argument) } {
        0 => Ok(()),
        _ => {
            let error = io::Error::last_os_error();
            Err(error.raw_os_error().expect("an error of the kernel's"))
        }
    }
}
