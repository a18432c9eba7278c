//! A stand-in for the ioctls of a VM, for tests on machines without the KVM in question.
//!
//! A [`Machine`] takes the calls for its descriptor, with the arguments as the kernel would read them.

use kvm_bindings::{kvm_irq_level, kvm_irq_routing, kvm_irq_routing_entry, kvm_irqfd, kvm_msi};
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::io::Errno;
use rustix::ioctl::Ioctl;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A call, by what it is and what the kernel reads.
#[derive(Clone)]
pub(in crate::kvm) enum Call {
    IrqLine { irq: u32, level: u32 },
    SetGsiRouting(Vec<kvm_irq_routing_entry>),
    Irqfd(kvm_irqfd),
    SignalMsi(kvm_msi),
}

/// What answers the ioctls of a VM.
pub(in crate::kvm) trait Machine: Send + Sync {
    fn call(&self, call: Call) -> Result<(), Errno>;
}

/// By the inode of the descriptor, which its duplicates share.
static MACHINES: Mutex<BTreeMap<u64, Weak<dyn Machine>>> = Mutex::new(BTreeMap::new());

fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).expect("an open descriptor").st_ino
}

/// A descriptor whose ioctls go to the machine as long as that lives.
pub(in crate::kvm) fn descriptor(machine: &Arc<impl Machine + 'static>) -> OwnedFd {
    let fd = memfd_create("stand-in for a VM", MemfdFlags::CLOEXEC).expect("a memfd");
    let machine: Arc<dyn Machine> = Arc::clone(machine) as _;
    let mut machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    machines.insert(inode(&fd), Arc::downgrade(&machine));
    fd
}

/// As that of rustix.
///
/// # Safety
///
/// The argument is what the ioctl takes.
pub(super) unsafe fn ioctl<F: AsFd, I: Ioctl>(
    fd: F,
    mut ioctl: I,
) -> rustix::io::Result<I::Output> {
    let machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    let machine = machines.get(&inode(fd)).and_then(Weak::upgrade);
    drop(machines);
    let machine = machine.ok_or(Errno::NOTTY)?;
    // SAFETY: by the caller.
    let call = unsafe { decode(ioctl.opcode(), ioctl.as_ptr()) };
    machine.call(call)?;
    let argument = ioctl.as_ptr();
    // SAFETY: none of the calls writes to its argument.
    unsafe { I::output_from_ptr(0, argument) }
}

/// The opcodes are those of `linux/kvm.h`, written out.
///
/// # Safety
///
/// `argument` points to what the ioctl with this opcode takes.
unsafe fn decode(opcode: u32, argument: *const c_void) -> Call {
    // SAFETY: by the caller; so are those below. The structures have no invalid bits.
    unsafe {
        match opcode {
            0x4008_ae61 => {
                let line = argument.cast::<kvm_irq_level>().read();
                Call::IrqLine {
                    irq: line.__bindgen_anon_1.irq,
                    level: line.level,
                }
            }
            0x4008_ae6a => {
                let table = argument.cast::<kvm_irq_routing>();
                let entries = (&raw const (*table).entries).cast::<kvm_irq_routing_entry>();
                let count = (*table).nr as usize;
                Call::SetGsiRouting((0..count).map(|at| entries.add(at).read()).collect())
            }
            0x4020_ae76 => Call::Irqfd(argument.cast::<kvm_irqfd>().read()),
            0x4020_aea5 => Call::SignalMsi(argument.cast::<kvm_msi>().read()),
            _ => panic!("no such ioctl: {opcode:#x}"),
        }
    }
}
