//! What KVM does with a doorbell at an address that is occupied already. The tables in the docs of `doorbell::kvm` and
//! `doorbell::ioeventfd::space` are measured here, cell by cell, with a guest in real mode, and compared with the docs.

use crate::vm::{self, Exit, Vm};
use doorbell::ioeventfd::{Bus, Key};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_MEM_READONLY, kvm_pit_config, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

const MEMORY: u64 = 0x1_0000;
const CODE: u64 = 0x1000;
/// The guest writes here when it has done its work.
const DONE: i32 = 0xf5;
/// An address in guest memory.
const RAM: u64 = 0x9000;
/// Only what a case puts here is at this address.
const FREE: u64 = 0xd000_0000;
const ZONE_SIZE: u32 = 0x100;

/// A guest's write of `size` bytes; 16 are written by one SSE store.
fn program(bus: Bus, size: usize) -> Vec<u8> {
    let write = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        match (bus, size) {
            (Bus::Mmio, 1) => a.mov(byte_ptr(bx), al)?,
            (Bus::Mmio, 2) => a.mov(word_ptr(bx), ax)?,
            (Bus::Mmio, 4) => a.mov(dword_ptr(bx), eax)?,
            (Bus::Mmio, 8) => a.movq(qword_ptr(bx), mm0)?,
            (Bus::Mmio, 16) => a.movups(xmmword_ptr(bx), xmm0)?,
            (Bus::Pio, 1) => a.out(dx, al)?,
            (Bus::Pio, 2) => a.out(dx, ax)?,
            (Bus::Pio, 4) => a.out(dx, eax)?,
            other => unreachable!("{other:?}"),
        }
        a.out(DONE, al)
    };
    vm::assemble(CODE, write)
}

/// Has the guest write, and returns the exits that this causes.
fn write(vm: &mut Vm, bus: Bus, address: u64, size: usize) -> Vec<(u64, usize)> {
    vm.memory().load(CODE, &program(bus, size));
    let (in_page, page) = match bus {
        Bus::Mmio => (address % 0x1000, address - address % 0x1000),
        Bus::Pio => (0, 0),
    };
    let regs = kvm_regs {
        rip: CODE,
        rax: 0x0101_0101,
        rbx: in_page,
        rdx: address,
        ..kvm_regs::default()
    };
    vm.set(regs, page);
    let mut exits = Vec::new();
    loop {
        match vm.run() {
            Exit::Write {
                bus: Bus::Pio,
                address,
                ..
            } if address == DONE as u64 => return exits,
            Exit::Write { address, data, .. } => exits.push((address, data.len())),
            // None of our accesses is a read.
            other => panic!("{other:?}"),
        }
    }
}

/// The outcome of a write.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Rings,
    /// The doorbell rings, with a write that the occupant would have taken.
    Instead,
    Exits,
    /// Neither: the occupant has taken the write.
    Taken,
    /// There is no such write, or no such doorbell.
    None,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Rings => "rings",
            Outcome::Instead => "**instead**",
            Outcome::Exits => "exits",
            Outcome::Taken => "taken",
            Outcome::None => "–",
        }
    }
}

/// Measures a doorbell of `length` at an address that may be occupied, and a write of `size` to it.
fn outcome(row: &Row, vm: &mut Vm, length: u32, size: usize) -> Outcome {
    let Row { bus, address, .. } = *row;
    if bus == Bus::Pio && size > 4 {
        return Outcome::None;
    }
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let key = Key::new(bus, address, length);
    let place = |vm: &Vm| (row.place)(vm.fd());
    if !row.later {
        place(vm);
    }
    vm::assign(vm.fd(), &key, &event).unwrap();
    if row.later {
        place(vm);
    }
    let exits = write(vm, bus, address, size);
    vm::deassign(vm.fd(), &key, &event).unwrap();
    (row.remove)(vm.fd());
    match (event.read(), exits.as_slice()) {
        (Ok(1), []) if size as u64 <= row.left => Outcome::Instead,
        (Ok(1), []) => Outcome::Rings,
        (Err(_), []) => Outcome::Taken,
        (Err(_), &[exit]) if exit == (address, size) => Outcome::Exits,
        other => panic!("{}: {other:?}", row.name),
    }
}

/// One kind of occupant, and one of its addresses.
struct Row {
    name: &'static str,
    bus: Bus,
    address: u64,
    /// How many bytes the occupant has from this address on, if a write that fits into them would be the occupant's.
    left: u64,
    /// Puts the occupant at the address, if it is not part of the machine.
    place: fn(&VmFd),
    remove: fn(&VmFd),
    /// Whether the occupant comes after the doorbell.
    later: bool,
}

fn nothing(_: &VmFd) {}

impl Row {
    fn new(name: &'static str, bus: Bus, address: u64, left: u64) -> Self {
        Row {
            name,
            bus,
            address,
            left,
            place: nothing,
            remove: nothing,
            later: false,
        }
    }

    fn zone(name: &'static str, offset: u64, later: bool) -> Self {
        const ZONE: IoEventAddress = IoEventAddress::Mmio(FREE);
        Row {
            place: |vm| vm.register_coalesced_mmio(ZONE, ZONE_SIZE).unwrap(),
            remove: |vm| vm.unregister_coalesced_mmio(ZONE, ZONE_SIZE).unwrap(),
            later,
            ..Row::new(
                name,
                Bus::Mmio,
                FREE + offset,
                u64::from(ZONE_SIZE) - offset,
            )
        }
    }

    /// Measures the cells: a doorbell of any length, and doorbells of each length, with writes of the same lengths.
    fn measure(&self, vm: &mut Vm) -> String {
        let mut any = Vec::<(usize, usize, Outcome)>::new();
        for size in [1, 2, 4, 8] {
            match (outcome(self, vm, 0, size), any.last_mut()) {
                (Outcome::None, _) => {}
                (outcome, Some((_, to, last))) if *last == outcome => *to = size,
                (outcome, _) => any.push((size, size, outcome)),
            }
        }
        let any: Vec<_> = any
            .iter()
            .map(|&(from, to, outcome)| match any.len() {
                1 => outcome.name().to_owned(),
                _ if from == to => format!("{from}: {}", outcome.name()),
                _ => format!("{from} to {to}: {}", outcome.name()),
            })
            .collect();
        let each = [1, 2, 4, 8].map(|size| outcome(self, vm, size as u32, size).name());
        let name = self.name;
        format!("| {name} | {} | {} |", any.join(", "), each.join(" | "))
    }
}

const READ_ONLY: kvm_userspace_memory_region = kvm_userspace_memory_region {
    slot: 1,
    flags: KVM_MEM_READONLY,
    guest_phys_addr: FREE,
    memory_size: 0x1000,
    userspace_addr: 0,
};

#[test]
fn the_tables_in_the_docs_are_what_kvm_does() {
    let chips = |vm: &VmFd| {
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())
    };
    let (Some(mut plain), Some(mut pc)) = (Vm::new(MEMORY), Vm::with(MEMORY, chips)) else {
        return;
    };
    // Read-only memory of the guest's: a page of its own.
    let page = vec![0_u64; 0x400].into_boxed_slice();
    let read_only = |vm: &VmFd| {
        let region = kvm_userspace_memory_region {
            userspace_addr: (page.as_ptr() as u64).next_multiple_of(0x1000),
            ..READ_ONLY
        };
        // SAFETY: the guest reads from `page` and does not write to it, and `page` lives longer than the machine.
        unsafe { vm.set_user_memory_region(region) }
    };
    let Some(mut rom) = Vm::with(MEMORY, read_only) else {
        return;
    };
    // This enables the local APIC: bit 8 of its spurious interrupt vector register.
    let mut apic = pc.vcpu().get_lapic().unwrap();
    apic.regs[0xf1] = 1;
    pc.vcpu().set_lapic(&apic).unwrap();

    let mmio = Bus::Mmio;
    let pio = Bus::Pio;
    let mut rows = Vec::new();
    for row in [
        Row::new("nothing, in memory", mmio, FREE, 0),
        Row::new("nothing, at a port", pio, 0xc050, 0),
        Row::new("RAM", mmio, RAM, 0x1000),
        Row::zone(
            "a coalesced zone that was first, its first address",
            0,
            false,
        ),
        Row::zone("a coalesced zone that was first, further in", 0x40, false),
        Row::zone(
            "a coalesced zone that came later, its first address",
            0,
            true,
        ),
        Row::zone("a coalesced zone that came later, further in", 0x40, true),
    ] {
        rows.push(row.measure(&mut plain));
    }
    // A write to this memory exits, if nothing else takes it.
    rows.push(Row::new("read-only memory (`KVM_MEM_READONLY`)", mmio, FREE, 0).measure(&mut rom));
    for row in [
        Row::new("PIC, port 0x20 (of 0x20, 0x21)", pio, 0x20, 2),
        Row::new("PIC, port 0x21", pio, 0x21, 1),
        Row::new("PIT, port 0x40 (of 0x40 to 0x43)", pio, 0x40, 4),
        Row::new("PIT, port 0x42", pio, 0x42, 2),
        Row::new(
            "I/O APIC, 0xfec0_0000 (256 bytes)",
            mmio,
            0xfec0_0000,
            0x100,
        ),
        Row::new("I/O APIC, 0xfec0_0010", mmio, 0xfec0_0010, 0xf0),
        Row::new(
            "local APIC, 0xfee0_0000 (a page)",
            mmio,
            0xfee0_0000,
            0x1000,
        ),
        Row::new("local APIC, 0xfee0_00f0", mmio, 0xfee0_00f0, 0xf10),
    ] {
        rows.push(row.measure(&mut pc));
    }
    rows.extend(halves(&mut plain));

    let docs = include_str!("../../../src/ioeventfd/space/occupied.md");
    let cells = docs.lines().filter(|line| line.starts_with("| "));
    let (headers, documented): (Vec<_>, Vec<_>) =
        cells.partition(|line| line.contains("| length 0 |"));
    assert_eq!(headers.len(), 2);
    let missing: Vec<_> = rows
        .iter()
        .filter(|row| !documented.contains(&row.as_str()))
        .collect();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    assert!(
        missing.is_empty(),
        "measured on Linux {release}, and not in the docs:\n{missing:#?}"
    );
    assert_eq!(
        documented.len(),
        rows.len(),
        "the docs have rows that this test does not measure"
    );
}

/// A store of 16 bytes, or one that crosses a page's end, is two writes: which doorbells ring, and what exits.
fn halves(vm: &mut Vm) -> Vec<String> {
    let mut rows = Vec::new();
    let a = FREE + 0x40;
    let end = FREE + 0x1000;
    for (name, at, size, doorbell) in [
        ("16 bytes, at the first half", a, 16, a),
        ("16 bytes, at the second half", a, 16, a + 8),
        (
            "4 bytes across the end of a page, at the first part",
            end - 2,
            4,
            end - 2,
        ),
        (
            "4 bytes across the end of a page, at the second part",
            end - 2,
            4,
            end,
        ),
    ] {
        let half = size as u32 / 2;
        let cells = [0, half].map(|length| {
            let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let key = Key::mmio(doorbell, length);
            vm::assign(vm.fd(), &key, &event).unwrap();
            let exits = write(vm, Bus::Mmio, at, size);
            vm::deassign(vm.fd(), &key, &event).unwrap();
            let mut cell = match event.read() {
                Ok(_) => "rings".to_owned(),
                Err(_) => "does not ring".to_owned(),
            };
            for (address, size) in exits {
                let part = if address == at { "first" } else { "second" };
                cell += &format!("; exit for the {part}, {size} bytes");
            }
            cell
        });
        let [any, half] = cells;
        rows.push(format!("| {name} | {any} | {half} |"));
    }
    rows
}
