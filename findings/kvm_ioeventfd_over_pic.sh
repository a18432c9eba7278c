#!/bin/sh
# KVM: an ioeventfd over a device of KVM's own is registered without an error. Whether it then takes the device's writes
# or is never rung depends on its length alone:
#
# * at the device's first address, with a length shorter than the device: it takes the writes, and the device loses
#     them;
#   * at the same address with length 0, "of any length": never rung, the device takes the writes;
#   * further in, whatever the length: never rung (not shown here).
#
# Why: kvm_io_bus_cmp() sorts by the end of the range where the beginnings are the same, so the shorter one stands
# first; a range of length 0 matches as one address, and stands behind.
#
# Here: the first PIC, ports 0x20 and 0x21, registered as one device of two bytes. The guest writes OCW3 0x0b to port
# 0x20, "read the in-service register", which shows in the PIC's state as read_reg_select = 1.
#
# Seen on Linux 6.18.44 (x86-64), with kvm-ioctls 0.25.1, kvm-bindings 0.14.2, vmm-sys-util 0.15.0:
#
#   no ioeventfd:        rung 0, read_reg_select 1, exits 0
#   length 1, value 0xb: rung 1, read_reg_select 0, exits 0
#   length 0:            rung 0, read_reg_select 1, exits 0
#
# The script fails if this changes. It needs cargo, crates.io and /dev/kvm.
set -eu
[ -w /dev/kvm ] || { echo "skipped: no usable /dev/kvm"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/Cargo.toml" <<'TOML'
[package]
name = "scratch"
version = "0.0.0"
edition = "2021"

[dependencies]
kvm-bindings = "=0.14.2"
kvm-ioctls = "=0.25.1"
libc = "0.2"
vmm-sys-util = "=0.15.0"

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use kvm_bindings::*;
use kvm_ioctls::*;
use vmm_sys_util::eventfd::EventFd;

/// How often the ioeventfd was rung, what the PIC has made of the write, and how many exits there were.
fn run(register: impl FnOnce(&VmFd, &EventFd)) -> (u64, u8, u32) {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.set_tss_address(0xfffb_d000).unwrap();
    vm.create_irq_chip().unwrap();
    let size = 0x10000;
    let memory = unsafe {
        libc::mmap(std::ptr::null_mut(), size, 3, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)
    } as *mut u8;
    let region = kvm_userspace_memory_region {
        memory_size: size as u64,
        userspace_addr: memory as u64,
        ..Default::default()
    };
    unsafe { vm.set_user_memory_region(region).unwrap() };
    // out 0x20, al; out 0xf5, al; hlt
    let code = [0xe6, 0x20, 0xe6, 0xf5, 0xf4];
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), memory.add(0x1000), code.len()) };
    let mut cpu = vm.create_vcpu(0).unwrap();
    let mut sregs = cpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    cpu.set_sregs(&sregs).unwrap();
    let regs = kvm_regs { rip: 0x1000, rflags: 2, rax: 0x0b, ..Default::default() };
    cpu.set_regs(&regs).unwrap();
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    register(&vm, &event);
    let mut exits = 0;
    loop {
        match cpu.run().unwrap() {
            VcpuExit::IoOut(0xf5, _) => break,
            _ => exits += 1,
        }
    }
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, ..Default::default() };
    vm.get_irqchip(&mut chip).unwrap();
    let selected = unsafe { chip.chip.pic.read_reg_select };
    (event.read().unwrap_or(0), selected, exits)
}

fn main() {
    let port = IoEventAddress::Pio(0x20);
    let say = |name: &str, seen: (u64, u8, u32)| {
        println!("{name:20} rung {}, read_reg_select {}, exits {}", seen.0, seen.1, seen.2);
        seen
    };
    let none = say("no ioeventfd:", run(|_, _| ()));
    let short = say("length 1, value 0xb:", run(|vm, event| vm.register_ioevent(event, &port, 0x0b_u8).unwrap()));
    let any = say("length 0:", run(|vm, event| vm.register_ioevent(event, &port, NoDatamatch).unwrap()));
    assert_eq!((none, short, any), ((0, 1, 0), (1, 0, 0), (0, 1, 0)), "it has changed");
}
RUST
uname -sr
cargo run --quiet --manifest-path "$folder/Cargo.toml"
