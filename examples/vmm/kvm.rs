//! The virtual machine: KVM's part of it, and the vCPU loop.

use crate::bus::Buses;
use crate::clock::Clock;
use crate::doorbells::{Counter, Doorbells, InKernel, InList, InSpace, Interrupt, Polled};
use crate::guest;
use crate::irqfds;
use crate::machine::{Machine, Vcpu};
use crate::map::{LINES, MEMORY_SIZE};
use crate::memory::Memory;
use crate::options::Setup;
use crate::plan::Plan;
use anyhow::{Context, bail, ensure};
use doorbell::Spin;
use doorbell::ioeventfd::Bus;
use doorbell::irqfd::Router;
use doorbell::kvm::{Injection, KvmSink};
use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_userspace_memory_region,
};
pub use kvm_ioctls::Kvm;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

pub const SETUPS: &[Setup] = &[
    Setup::Doorbell,
    Setup::Level,
    Setup::Eventfd,
    Setup::Listener,
    Setup::Polled,
    Setup::Kernel,
];

/// Opens the KVM device and sees whether a machine can be made of it.
pub fn open(path: &Path) -> anyhow::Result<Kvm> {
    let path_name = CString::new(path.as_os_str().as_bytes())?;
    let kvm =
        Kvm::new_with_path(path_name).with_context(|| format!("opening {}", path.display()))?;
    new_vm(&kvm, &Memory::new())?;
    Ok(kvm)
}

/// A VM with an interrupt controller and one vCPU, whose TSC is the host's.
fn new_vm(kvm: &Kvm, memory: &Memory) -> anyhow::Result<(VmFd, VcpuFd)> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    // Intel's CPUs want three pages of their own for real mode. This is where QEMU puts them.
    vm.set_tss_address(0xfffb_d000)
        .context("KVM_SET_TSS_ADDR")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_SIZE,
        userspace_addr: memory.host_address(),
    };
    // SAFETY: the region is all of `memory`, which `KvmVcpu` keeps as long as the vCPU can run. The guest writes to it
    // at any time, and all that is in it is atomic.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    Ok((vm, vcpu))
}

pub fn machine(kvm: &Kvm, plan: &Plan, spin: Spin) -> anyhow::Result<Machine> {
    let memory = Memory::new();
    guest::load(&memory, plan)?;
    let (vm, vcpu) = new_vm(kvm, &memory)?;
    start_at(&vcpu, guest::ENTRY)?;
    // If this fails, as it does before Linux 5.16, the device's comparison of clocks shows that.
    let _ = share_tsc(&vcpu);
    let clock = Clock::Tsc {
        khz: vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?,
    };

    let vm = Arc::new(vm);
    let doorbells: Arc<dyn Doorbells> = match plan.setup {
        Setup::Doorbell | Setup::Level => Arc::new(InSpace::new(spin)?),
        Setup::Eventfd => Arc::new(InList::new()?),
        Setup::Listener => Arc::new(InSpace::with_listener(&vm)?),
        Setup::Polled => {
            let space = InSpace::with_listener(&vm)?;
            Arc::new(Polled::new(space, &memory, spin)?)
        }
        Setup::Kernel => Arc::new(InKernel::new(&vm)?),
    };
    let interrupts = match plan.setup {
        Setup::Doorbell | Setup::Level | Setup::Listener | Setup::Polled => {
            routed(&vm, plan.setup, &memory)?
        }
        Setup::Eventfd => LINES.map(|gsi| IrqLine::boxed(&vm, gsi.into())).into(),
        Setup::Kernel => {
            let irqfds = LINES.map(|gsi| irqfd(&vm, gsi.into()));
            irqfds.into_iter().collect::<anyhow::Result<_>>()?
        }
    };
    Ok(Machine {
        vcpu: Box::new(KvmVcpu {
            vcpu,
            _memory: memory.clone(),
        }),
        memory,
        clock,
        doorbells,
        interrupts: interrupts.try_into().expect("one for each queue"),
    })
}

/// Lets the vCPU start in real mode, with segments at 0, at `entry`.
fn start_at(vcpu: &VcpuFd, entry: u64) -> anyhow::Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rip = entry;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

vmm_sys_util::ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);

/// Makes the guest's time stamp counter the host's. (kvm-ioctls has this ioctl for vCPUs of other architectures only.)
fn share_tsc(vcpu: &VcpuFd) -> io::Result<()> {
    let offset = 0_u64;
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw const offset as u64,
    };
    // SAFETY: the kernel reads the attribute and the u64 that it points to.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

struct KvmVcpu {
    vcpu: VcpuFd,
    /// The memory that the guest runs in.
    _memory: Memory,
}

impl Vcpu for KvmVcpu {
    /// The vCPU loop. With the set-ups `listener` and `kernel`, kicks do not come by here.
    fn run(&mut self, buses: &mut Buses) -> anyhow::Result<()> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(guest::EXIT, &[code])) => {
                    ensure!(
                        code == 0,
                        "the guest found that the device refused its features"
                    );
                    return Ok(());
                }
                Ok(VcpuExit::IoOut(port, data)) => buses.write(Bus::Pio, port.into(), data)?,
                Ok(VcpuExit::IoIn(port, data)) => buses.read(Bus::Pio, port.into(), data)?,
                Ok(VcpuExit::MmioWrite(address, data)) => buses.write(Bus::Mmio, address, data)?,
                Ok(VcpuExit::MmioRead(address, data)) => buses.read(Bus::Mmio, address, data)?,
                Ok(exit) => bail!("KVM_RUN: unexpected exit {exit:?}"),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(e).context("KVM_RUN"),
            }
        }
    }
}

/// Interrupt lines through doorbell's irqfd.
fn routed(
    vm: &Arc<VmFd>,
    setup: Setup,
    memory: &Memory,
) -> anyhow::Result<Vec<Box<dyn Interrupt>>> {
    // SAFETY: `vm` keeps its descriptor open. (It is not `AsFd` as of kvm-ioctls 0.25.)
    let vm = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    let sink = KvmSink::new(vm, Injection::default())?;
    irqfds::interrupts(&Router::new(Arc::new(sink)), setup, memory)
}

/// An interrupt line that is raised and lowered by ioctl.
#[derive(Debug)]
struct IrqLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl IrqLine {
    fn boxed(vm: &Arc<VmFd>, gsi: u32) -> Box<dyn Interrupt> {
        let vm = Arc::clone(vm);
        Box::new(IrqLine { vm, gsi })
    }
}

impl Interrupt for IrqLine {
    fn raise(&self) -> anyhow::Result<()> {
        // The PIC is edge-triggered: it remembers the rise.
        for level in [true, false] {
            self.vm
                .set_irq_line(self.gsi, level)
                .context("KVM_IRQ_LINE")?;
        }
        Ok(())
    }
}

/// An interrupt line that KVM pulses when an eventfd is written.
fn irqfd(vm: &VmFd, gsi: u32) -> anyhow::Result<Box<dyn Interrupt>> {
    let fd = EventFd::new(0).context("eventfd(2)")?;
    vm.register_irqfd(&fd, gsi).context("KVM_IRQFD")?;
    let counter: Arc<dyn Counter> = Arc::new(fd);
    Ok(Box::new(counter))
}
