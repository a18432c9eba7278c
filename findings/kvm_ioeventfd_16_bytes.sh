#!/bin/sh
# KVM: a guest's 16-byte store (SSE) to MMIO is two writes of 8 bytes, but an ioeventfd at the second is looked for only
# if something in the kernel has taken the first. So the same ioeventfd, hit by the same store in its second half, is
# not rung: the store exits, twice, and userspace sees a write to an address that has an ioeventfd. In the first half it
# is rung, and the second half exits.
#
# Why: vcpu_mmio_write() goes through the store in pieces of 8 bytes and stops at the first that nobody in the kernel
# takes. All from there on becomes exits, in pieces of 8 bytes again.
#
# A VMM that never looks for an ioeventfd's address among its exits loses such a kick.
#
# Seen on Linux 6.18.44 (x86-64), with kvm-ioctls 0.25.1, kvm-bindings 0.14.2, vmm-sys-util 0.15.0:
#
#   ioeventfd at the first half:  rung 1, exits [(d0000048, 8)]
#   ioeventfd at the second half: rung 0, exits [(d0000040, 8), (d0000048, 8)]
#   ioeventfds at both:           rung 2, exits []
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

/// Where the guest stores 16 bytes: above its memory.
const STORE: u64 = 0xd000_0040;

/// How often an ioeventfd was rung, and the writes that exited.
fn run(doorbells: &[u64]) -> (u64, Vec<(u64, usize)>) {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.set_tss_address(0xfffb_d000).unwrap();
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
    // movups [di], xmm0; hlt
    let code = [0x0f, 0x11, 0x05, 0xf4];
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), memory.add(0x1000), code.len()) };
    let mut cpu = vm.create_vcpu(0).unwrap();
    let mut sregs = cpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    // A base that no selector of real mode has: so it reaches the first 4 GiB.
    sregs.ds.base = STORE & !0xfff;
    sregs.cr4 |= 0x600; // OSFXSR, OSXMMEXCPT
    cpu.set_sregs(&sregs).unwrap();
    let regs = kvm_regs { rip: 0x1000, rflags: 2, rdi: STORE & 0xfff, ..Default::default() };
    cpu.set_regs(&regs).unwrap();
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    for &address in doorbells {
        vm.register_ioevent(&event, &IoEventAddress::Mmio(address), NoDatamatch).unwrap();
    }
    let mut exits = Vec::new();
    loop {
        match cpu.run().unwrap() {
            VcpuExit::Hlt => return (event.read().unwrap_or(0), exits),
            VcpuExit::MmioWrite(address, data) => exits.push((address, data.len())),
            other => panic!("{other:?}"),
        }
    }
}

fn main() {
    let say = |name: &str, seen: (u64, Vec<(u64, usize)>)| {
        println!("{name:29} rung {}, exits {:x?}", seen.0, seen.1);
        seen
    };
    let first = say("ioeventfd at the first half:", run(&[STORE]));
    let second = say("ioeventfd at the second half:", run(&[STORE + 8]));
    let both = say("ioeventfds at both:", run(&[STORE, STORE + 8]));
    let (a, b) = ((STORE, 8), (STORE + 8, 8));
    assert_eq!(first, (1, vec![b]), "it has changed");
    assert_eq!(second, (0, vec![a, b]), "it has changed");
    assert_eq!(both, (2, vec![]), "it has changed");
}
RUST
uname -sr
cargo run --quiet --manifest-path "$folder/Cargo.toml"
