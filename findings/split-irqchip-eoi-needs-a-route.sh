#!/bin/sh
# KVM (x86), split interrupt controller: whether KVM_RUN returns with KVM_EXIT_IOAPIC_EOI depends on KVM's routing
# table, and not on the interrupt that the guest ends.
#
# Seen on Linux 6.18.44 with kvm-ioctls 0.25.0.
#
# A VMM that has the IOAPIC itself (KVM_CAP_SPLIT_IRQCHIP) sends a pin's level-triggered message by KVM_SIGNAL_MSI,
# which takes any message without a route. The guest gets the interrupt and ends it; the VMM is told only if
# KVM_SET_GSI_ROUTING has a message with the same vector, with bit 15 of the data (level), on a GSI below the number of
# pins that KVM_CAP_SPLIT_IRQCHIP was given. Otherwise there is no exit and no error: the line is never lowered or
# resampled, and the first interrupt of the device is its last. The other way round, an edge-triggered message whose
# vector is in the table as a level-triggered one does exit.
#
# Needs: cargo, the crates below, /dev/kvm. Ends with 0 if KVM still behaves so, with 1 if not, with 77 without
# /dev/kvm.
set -eu
[ -w /dev/kvm ] || { echo "skipped: no /dev/kvm"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat > "$dir/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
kvm-bindings = "=0.14.2"
kvm-ioctls = "=0.25.0"
libc = "=0.2.191"
vmm-sys-util = "=0.15.0"
TOML
cat > "$dir/src/main.rs" <<'RUST'
use kvm_bindings::*;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::ptr;

const VECTOR: u32 = 0x55;
const LEVEL: u32 = 0xc000 | VECTOR;
const EDGE: u32 = VECTOR;
const APIC: u32 = 0xfee0_0000;

struct Machine {
    cpu: VcpuFd,
    vm: VmFd,
    memory: *mut u8,
}

impl Machine {
    fn new() -> Self {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&split).unwrap();
        let (size, protection, flags) = (0x10000, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let memory = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) } as *mut u8;
        let region = kvm_userspace_memory_region { memory_size: size as u64, userspace_addr: memory as u64, ..Default::default() };
        unsafe { vm.set_user_memory_region(region).unwrap() };
        let cpu = vm.create_vcpu(0).unwrap();
        let machine = Machine { cpu, vm, memory };
        // mov dword [0xf0], 0x1ff (the APIC on); sti; again: out 0xf4, al; jmp again
        machine.load(0x1000, &[0x66, 0xc7, 0x06, 0xf0, 0, 0xff, 1, 0, 0, 0xfb, 0xe6, 0xf4, 0xeb, 0xfc]);
        // out 0xf5, al; mov dword [0xb0], 0 (the end of the interrupt); iret
        machine.load(0x2000, &[0xe6, 0xf5, 0x66, 0xc7, 0x06, 0xb0, 0, 0, 0, 0, 0, 0xcf]);
        machine.load(4 * VECTOR as usize, &[0x00, 0x20, 0, 0]);
        let mut sregs = machine.cpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector, sregs.ds.base) = (0, 0, APIC.into());
        machine.cpu.set_sregs(&sregs).unwrap();
        machine.cpu.set_regs(&kvm_regs { rip: 0x1000, rsp: 0x8000, rflags: 2, ..Default::default() }).unwrap();
        machine
    }

    fn load(&self, at: usize, bytes: &[u8]) {
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.add(at), bytes.len()) }
    }

    fn route(&self, route: Option<(u32, u32)>) {
        let entries = route.map(|(gsi, data)| {
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi.address_lo = APIC;
            entry.u.msi.data = data;
            entry
        });
        self.vm.set_gsi_routing(&KvmIrqRouting::from_entries(entries.as_slice()).unwrap()).unwrap();
    }

    /// How many interrupts the guest takes, and how many of their ends KVM_RUN tells of.
    fn run(&mut self) -> (u32, u32) {
        let (mut taken, mut told, mut idle) = (0, 0, 0);
        while idle < 10 {
            match self.cpu.run().unwrap() {
                VcpuExit::IoOut(0xf4, _) => idle += 1,
                VcpuExit::IoOut(0xf5, _) => taken += 1,
                VcpuExit::IoapicEoi(vector) => { assert_eq!(u32::from(vector), VECTOR); told += 1 }
                exit => panic!("{exit:?}"),
            }
        }
        (taken, told)
    }
}

fn main() {
    let mut machine = Machine::new();
    machine.run();
    let cases = [
        ("level", LEVEL, "no route", None, 0),
        ("level", LEVEL, "a level message on GSI 24", Some((24, LEVEL)), 0),
        ("level", LEVEL, "an edge message on GSI 5", Some((5, EDGE)), 0),
        ("level", LEVEL, "another vector's level message on GSI 5", Some((5, LEVEL + 1)), 0),
        ("level", LEVEL, "a level message on GSI 5", Some((5, LEVEL)), 1),
        ("edge", EDGE, "a level message on GSI 5", Some((5, LEVEL)), 1),
    ];
    let mut as_ever = true;
    for (sent, data, table, route, expected) in cases {
        machine.route(route);
        machine.vm.signal_msi(kvm_msi { address_lo: APIC, data, ..Default::default() }).unwrap();
        let (taken, told) = machine.run();
        println!("sent: {sent:<5}  table: {table:<40} interrupts taken: {taken}  KVM_EXIT_IOAPIC_EOI: {told}");
        as_ever &= (taken, told) == (1, expected);
    }
    assert!(as_ever, "KVM behaves otherwise now");
}
RUST
echo "Linux $(uname -r)"
CARGO_TARGET_DIR="$dir/target" cargo run --quiet --manifest-path "$dir/Cargo.toml" || exit 1
