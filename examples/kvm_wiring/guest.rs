//! A guest of six instructions in real mode.

use doorbell::ioeventfd::{Bus, space::AddressSpace};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::{error, ptr};

const MEMORY: usize = 0x2000;
const PROGRAM: u16 = 0x1000;
const HANDLER: u16 = 0x1100;

/// A vCPU writes to the port and halts until it is interrupted by the vector. Writes that KVM does not take exit, and
/// are offered to the doorbells.
pub fn kick_and_wait(
    vm: &VmFd,
    space: &AddressSpace,
    port: u16,
    vector: u8,
) -> Result<(), Box<dyn error::Error>> {
    let [low, high] = port.to_le_bytes();
    let [handler_low, handler_high] = HANDLER.to_le_bytes();
    // SAFETY: fresh memory, which the guest has until the end of the process.
    let memory = unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        mmap_anonymous(ptr::null_mut(), MEMORY, protection, MapFlags::PRIVATE)?
    };
    let load = |at: usize, bytes: &[u8]| {
        // SAFETY: inside the memory, which nothing else uses yet.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), memory.cast::<u8>().add(at), bytes.len())
        };
    };
    load(PROGRAM.into(), &[0xba, low, high, 0xee, 0xfb, 0xf4]); // mov dx, port; out dx, al; sti; hlt
    load(HANDLER.into(), &[0xe6, 0xf1]); // out 0xf1, al
    load(4 * usize::from(vector), &[handler_low, handler_high, 0, 0]);
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: memory as u64,
        ..Default::default()
    };
    // SAFETY: the memory stays mapped.
    unsafe { vm.set_user_memory_region(region)? };

    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: PROGRAM.into(),
        rsp: MEMORY as u64,
        rflags: 2,
        ..Default::default()
    })?;
    let mut lapic = vcpu.get_lapic()?;
    lapic.regs[0xf1] |= 1; // the guest's local APIC is on
    vcpu.set_lapic(&lapic)?;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0xf1, _) => return Ok(()),
            VcpuExit::IoOut(port, data) if space.write(Bus::Pio, port.into(), data) => {}
            VcpuExit::MmioWrite(address, data) if space.write(Bus::Mmio, address, data) => {}
            exit => return Err(format!("{exit:?}").into()),
        }
    }
}
