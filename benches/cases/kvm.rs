//! A guest's kick, from its instruction to the next one: if KVM took the doorbell from our listener, if it was
//! registered by hand, and if the kick exits to the table. A run is a batch of kicks in one KVM_RUN, if none exits.
//!
//! Each has a VM of its own. Without /dev/kvm there are no cases, and a message says so.

#[path = "../../tests/common/vm.rs"]
pub mod vm;

use super::{Case, Ratio, Run};
use doorbell::Event;
use doorbell::ioeventfd::space::{AddressSpace, Region};
use doorbell::ioeventfd::{Bus, Key};
use doorbell::kvm::KvmListener;
use kvm_bindings::kvm_regs;
use std::sync::Arc;
use std::time::Instant;
use vm::{Exit, Vm};
use vmm_sys_util::eventfd::EventFd;

const LISTENER: &str = "KVM listener";
const BY_HAND: &str = "KVM_IOEVENTFD by hand";
const TABLE: &str = "the table";

/// The keys of kicks: by port, the value is the queue's number; in memory, each queue has an address.
const KEYS: [(&str, Key); 2] = [
    (
        "kvm: guest kick by port",
        Key::pio(0xc000, 2).with_datamatch(KICK),
    ),
    ("kvm: guest kick by MMIO", Key::mmio(0xd_0000, 0)),
];
pub const KICK: u64 = 1;

pub const MEMORY: u64 = 0x4000;
pub const ENTRY: u64 = 0x1000;

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let cases = KEYS.iter().map(|(group, key)| {
        let case = |who, run| Case {
            group: (*group).to_owned(),
            who,
            run,
        };
        Some([
            case(LISTENER, in_space(key, true)?),
            case(BY_HAND, by_hand(key)?),
            case(TABLE, in_space(key, false)?),
        ])
    });
    let cases: Option<Vec<_>> = cases.collect();
    cases.into_iter().flatten().flatten().collect()
}

/// What to compare.
pub fn ratios() -> Vec<Ratio> {
    let ratios = KEYS.iter().flat_map(|(group, _)| {
        [(LISTENER, "<= 1.05"), (TABLE, "")]
            .map(|(over, target)| Ratio::from((*group, over, BY_HAND, target)))
    });
    ratios.collect()
}

/// The doorbell is in an address space, which may have a listener.
fn in_space(key: &Key, listener: bool) -> Option<Run> {
    let vm = guest(key.bus)?;
    let space = AddressSpace::new();
    if listener {
        let kvm = KvmListener::new(vm::descriptor(vm.fd())).expect("a descriptor");
        assert!(space.add_listener(Arc::new(kvm)).is_clean());
    }
    let region = assign(&space, key, &Arc::new(Event::new(0)));
    Some(kicks(vm, *key, move |bus, address, data| {
        // The region exists as long as the guest may kick.
        let _region = &region;
        !listener && space.write(bus, address, data)
    }))
}

/// The doorbell exists as long as its region.
pub fn assign(space: &AddressSpace, key: &Key, event: &Arc<Event>) -> Region {
    let region = space.region(key.bus, 0x1000);
    assert!(region.map(key.address).expect("an address").is_clean());
    let added = region.add_eventfd(0, key.length, key.datamatch, event);
    assert!(added.expect("a valid doorbell").is_clean());
    region
}

fn by_hand(key: &Key) -> Option<Run> {
    let vm = guest(key.bus)?;
    let fd = EventFd::new(libc::EFD_NONBLOCK).expect("a descriptor");
    vm::assign(vm.fd(), key, &fd).expect("an ioeventfd");
    Some(kicks(vm, *key, |_, _, _| false))
}

/// A guest that kicks as many times as ECX says.
fn guest(bus: Bus) -> Option<Vm> {
    use iced_x86::code_asm::*;
    let vm = Vm::new(MEMORY)?;
    let program = vm::assemble(ENTRY, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        match bus {
            Bus::Pio => a.out(dx, ax)?,
            Bus::Mmio => a.mov(word_ptr(bx), ax)?,
        }
        a.dec(ecx)?;
        a.jnz(again)
    });
    vm.memory().load(ENTRY, &program);
    Some(vm)
}

/// Runs the batches. `taken` says whether a kick that exits is served as it should be.
fn kicks(mut vm: Vm, key: Key, mut taken: impl FnMut(Bus, u64, &[u8]) -> bool + 'static) -> Run {
    Box::new(move |times| {
        let regs = kvm_regs {
            rip: ENTRY,
            rax: KICK,
            rcx: times,
            rdx: key.address,
            ..kvm_regs::default()
        };
        vm.set(regs, key.address);
        let start = Instant::now();
        loop {
            match vm.run() {
                Exit::Halt => return start.elapsed(),
                Exit::Write { bus, address, data } if taken(bus, address, &data) => {}
                exit => panic!("{exit:?}"),
            }
        }
    })
}
