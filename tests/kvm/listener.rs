//! The KVM listener, with a real guest that kicks.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "../common/vm.rs"]
mod vm;
#[path = "../common/watchdog.rs"]
mod watchdog;

use doorbell::Event;
use doorbell::event::{self, Interest, Observation};
use doorbell::fd::Forward;
use doorbell::ioeventfd::space::{
    AddressSpace, AddressSpaceState, CommitReport, Listener, ListenerCall, Region,
};
use doorbell::ioeventfd::{Bus, Doorbell, DoorbellArray, Key, Latest, Target};
use doorbell::kvm::{Error, InKernel, KernelCount, KvmListener, Occupied, Unsupported};
use doorbell::poll::{Events, Poller};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{kvm_pit_config, kvm_regs};
use kvm_ioctls::VmFd;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use vm::{Exit, Memory, Vm};
use vmm_sys_util::eventfd::EventFd;

const ENTRY: u64 = 0x1000;
const MEMORY: u64 = 0x1_0000;
/// 64-bit cells in guest memory, past the program: where the guest is to kick, and how often it has kicked.
const PLACE: u64 = 0x8000;
const SENT: u64 = 0x8008;

/// The guest writes the number of a place here, and the VMM moves the doorbells there.
const CONFIG: u16 = 0x0cf8;
/// Where the doorbells can be; each place has a memory address and a port.
const PLACES: u64 = 4;
/// The value that the guest writes to the doorbells.
const KICK: u16 = 7;

fn address(place: u64) -> u64 {
    0xd_0000 + 0x1000 * place
}

fn port(place: u64) -> u64 {
    0xc000 + 0x100 * place
}

/// A VM that is to run `program`, if there is KVM.
fn machine(program: &[u8]) -> Option<Vm> {
    let mut vm = Vm::new(MEMORY)?;
    vm.memory().load(ENTRY, program);
    let regs = kvm_regs {
        rip: ENTRY,
        ..kvm_regs::default()
    };
    vm.set(regs, 0);
    Some(vm)
}

fn sent(memory: &Memory) -> u64 {
    memory.cell(SENT).load(Ordering::Relaxed)
}

/// How many of the writes that reached the VMM were taken or refused.
#[derive(Debug, Default, PartialEq)]
struct Exits {
    taken: u64,
    refused: u64,
}

/// Runs the guest until it has finished.
fn run(vm: &mut Vm, space: &AddressSpace, mut configure: impl FnMut(u64)) -> Exits {
    let mut exits = Exits::default();
    loop {
        match vm.run() {
            Exit::Halt => return exits,
            Exit::Write { address, data, .. } if address == u64::from(CONFIG) => {
                configure(data[0].into());
            }
            Exit::Write { bus, address, data } => match space.write(bus, address, &data) {
                true => exits.taken += 1,
                false => exits.refused += 1,
            },
            read => panic!("{read:?}"),
        }
    }
}

/// Repeats `rounds` times: chooses a place, which `choose` puts into BX, and kicks there `kicks` times, in memory and
/// by port.
fn program(
    rounds: u32,
    kicks: u32,
    choose: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    vm::assemble(ENTRY, |a| {
        let (mut round, mut again) = (a.create_label(), a.create_label());
        a.xor(bx, bx)?;
        a.mov(ebp, rounds)?;
        a.set_label(&mut round)?;
        choose(a)?;
        a.mov(ax, bx)?;
        a.shl(ax, 8)?;
        a.add(ax, (address(0) >> 4) as i32)?;
        a.mov(es, ax)?;
        a.mov(dx, bx)?;
        a.shl(dx, 8)?;
        a.add(dx, port(0) as i32)?;
        a.mov(ax, u32::from(KICK))?;
        a.mov(cx, kicks)?;
        a.set_label(&mut again)?;
        a.mov(word_ptr(0).es(), ax)?;
        a.out(dx, ax)?;
        a.add(dword_ptr(SENT), 2)?;
        a.dec(cx)?;
        a.jnz(again)?;
        a.dec(ebp)?;
        a.jnz(round)
    })
}

/// The guest takes one place after the other, and tells the VMM to move the doorbells there.
fn next_place(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(bx)?;
    a.and(bx, PLACES as i32 - 1)?;
    a.mov(ax, bx)?;
    a.mov(dx, u32::from(CONFIG))?;
    a.out(dx, ax)
}

/// The guest looks where the VMM has put the doorbells.
fn current_place(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(bx, word_ptr(PLACE))
}

/// Two regions with a doorbell each.
struct Device {
    memory: Region,
    ports: Region,
    /// The events of the two doorbells.
    events: [Arc<Event>; 2],
}

impl Device {
    fn new(space: &AddressSpace) -> Self {
        let device = Device {
            memory: space.region(Bus::Mmio, 0x1000),
            ports: space.region(Bus::Pio, 0x10),
            events: [0; 2].map(|initial| Arc::new(Event::new(initial))),
        };
        clean(device.memory.add_eventfd(0, 2, None, &device.events[0]));
        let ports = &device.ports;
        clean(ports.add_eventfd(0, 2, Some(KICK.into()), &device.events[1]));
        device
    }

    fn place(&self, space: &AddressSpace, place: u64) -> CommitReport {
        let transaction = space.begin();
        clean(self.memory.map(address(place)));
        clean(self.ports.map(port(place)));
        transaction.commit()
    }

    fn unmap(&self, space: &AddressSpace) {
        let transaction = space.begin();
        assert!(self.memory.unmap().is_clean() && self.ports.unmap().is_clean());
        assert!(transaction.commit().is_clean());
    }

    /// The kicks since this was last called, without those that are still in the kernel.
    fn received(&self) -> [u64; 2] {
        [0, 1].map(|index| self.events[index].try_read().unwrap_or(0))
    }
}

fn clean(report: Result<CommitReport, impl std::error::Error>) {
    let report = report.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn listening(vm: &VmFd) -> (AddressSpace, Arc<KvmListener>) {
    let space = AddressSpace::new();
    let kvm = Arc::new(KvmListener::new(vm::descriptor(vm)).unwrap());
    assert!(space.add_listener(&kvm).is_clean());
    (space, kvm)
}

/// KVM has the doorbells wherever the guest puts them: no kick reaches the VMM, and none is lost.
#[test]
fn a_guest_moves_its_bar() {
    const ROUNDS: u32 = 100;
    const KICKS: u32 = 10;
    let program = program(ROUNDS, KICKS, next_place);
    let Some(mut machine) = machine(&program) else {
        return;
    };
    let (space, _kvm) = listening(machine.fd());
    let device = Device::new(&space);
    let exits = run(&mut machine, &space, |place| {
        assert!(device.place(&space, place).is_clean());
    });
    assert_eq!(exits, Exits::default());
    device.unmap(&space);
    let kicks = u64::from(ROUNDS * KICKS);
    assert_eq!(device.received(), [kicks, kicks]);
}

/// The guest kicks all the time, and the VMM moves the doorbells from another thread. A kick is taken by KVM or by the
/// table, or reaches an address that has no doorbell any more or yet; the sums add up. When a commit has taken the
/// doorbells from KVM, no kick is left in the kernel.
#[test]
fn a_bar_is_moved_under_a_kicking_guest() {
    let program = program(6000, 1, current_place);
    let Some(mut machine) = machine(&program) else {
        return;
    };
    let (space, kvm) = listening(machine.fd());
    let device = Device::new(&space);
    let in_kernel = device
        .events
        .each_ref()
        .map(|event| kvm.count_of(event).unwrap());
    assert!(device.place(&space, 0).is_clean());
    let stop = AtomicBool::new(false);
    let memory = machine.memory().clone();
    let (exits, moves) = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut moves = 0;
            while !stop.load(Ordering::Relaxed) {
                moves += 1;
                let place = moves % PLACES;
                assert!(device.place(&space, place).is_clean());
                memory.cell(PLACE).store(place, Ordering::Relaxed);
                if moves % 3 == 0 {
                    device.unmap(&space);
                    assert_eq!(in_kernel.each_ref().map(|count| count.drain()), [0, 0]);
                }
            }
            moves
        });
        let exits = run(&mut machine, &space, |place| panic!("{place}"));
        stop.store(true, Ordering::Relaxed);
        (exits, mover.join().unwrap())
    });
    device.unmap(&space);
    let received: u64 = device.received().iter().sum();
    eprintln!("{moves} moves; {received} kicks received; {exits:?}");
    assert_eq!(received + exits.refused, sent(machine.memory()));
    assert!(received > exits.taken, "KVM took none");
    assert!(moves > 0);
}

/// KVM refuses a doorbell that collides with another owner's ioeventfd. The table serves it.
#[test]
fn what_kvm_refuses_is_served() {
    let program = program(1, 5, next_place);
    let Some(mut machine) = machine(&program) else {
        return;
    };
    let (space, _kvm) = listening(machine.fd());
    let other = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    // It has another value, so it collides with our doorbell, and does not take the guest's writes.
    let key = Key::mmio(address(1), 2).with_datamatch((!KICK).into());
    vm::assign(machine.fd(), &key, &other).unwrap();
    let device = Device::new(&space);
    let exits = run(&mut machine, &space, |place| {
        let mut report = device.place(&space, place);
        let refusal = report.refusals.pop().unwrap();
        assert!(report.is_clean());
        assert_eq!((refusal.listener, refusal.call), ("KVM", ListenerCall::Add));
        assert_eq!(refusal.doorbell, space.doorbells()[0]);
        assert!(!refusal.is_unreachable());
        let error = refusal.error.downcast::<Error>().unwrap();
        assert_eq!(error.call(), "KVM_IOEVENTFD");
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        let errno = io::Error::from(*error).raw_os_error();
        assert_eq!(errno, Some(libc::EEXIST));
    });
    assert_eq!(
        exits,
        Exits {
            taken: 5,
            refused: 0
        }
    );
    device.unmap(&space);
    assert_eq!(device.received(), [5, 5]);
    assert!(other.read().is_err(), "the other one was signalled");
}

/// KVM takes a doorbell that it refused because of another owner's ioeventfd when it is asked again after that
/// ioeventfd has gone; before, the report says that KVM still refuses.
#[test]
fn what_kvm_refused_is_asked_for_again() {
    let Some(machine) = machine(&[]) else {
        return;
    };
    let (space, _kvm) = listening(machine.fd());
    let other = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let key = Key::mmio(address(0), 2);
    vm::assign(machine.fd(), &key, &other).unwrap();
    let device = Device::new(&space);
    let errno = |mut report: CommitReport| {
        let refusal = report.refusals.pop().unwrap();
        assert!(report.is_clean());
        assert_eq!(refusal.doorbell.address(), address(0));
        let error = refusal.error.downcast::<Error>().unwrap();
        io::Error::from(*error).raw_os_error().unwrap()
    };
    assert_eq!(errno(device.place(&space, 0)), libc::EEXIST);
    assert_eq!(errno(space.retry_refused()), libc::EEXIST);
    assert!(space.write(Bus::Mmio, address(0), &[0; 2]));

    vm::deassign(machine.fd(), &key, &other).unwrap();
    assert!(!collides(machine.fd(), &key));
    let transaction = space.begin();
    assert!(space.retry_refused().is_clean());
    assert!(!collides(machine.fd(), &key), "before the commit");
    assert!(transaction.commit().is_clean());
    assert!(collides(machine.fd(), &key));
    // There is nothing left to ask for.
    assert!(space.retry_refused().is_clean());
    device.unmap(&space);
    assert!(!collides(machine.fd(), &key));
    assert_eq!(device.received(), [1, 0]);
}

/// A peer that reads a count's eventfd, as vhost does, gets all kicks from it if the event is forwarded there: those
/// that KVM took, those that the table took, and those that were pending when the doorbell moved. A drain leaves them
/// in the eventfd. The test writes to the eventfd in KVM's place.
#[test]
fn a_peer_reads_all_kicks_from_one_descriptor() {
    let Some(machine) = machine(&[]) else {
        return;
    };
    let (space, kvm) = listening(machine.fd());
    let device = Device::new(&space);
    assert!(device.place(&space, 0).is_clean());
    let event = &device.events[0];
    event.signal(); // before anything else
    let count = kvm.count_of(event).unwrap();
    let peer = doorbell::fd::EventFd::from(count.as_fd().try_clone_to_owned().unwrap());
    let forward = Forward::with_fd(event, count.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(peer.read().unwrap(), 1);
    let kick = || {
        rustix::io::write(&count, &1_u64.to_ne_bytes()).unwrap();
    };

    kick();
    assert!(space.write(Bus::Mmio, address(0), &KICK.to_ne_bytes()));
    assert_eq!(peer.read().unwrap(), 2);
    kick();
    assert!(device.place(&space, 1).is_clean());
    assert_eq!(peer.read().unwrap(), 1);
    kick();
    space.drain();
    device.unmap(&space);
    assert_eq!(peer.read().unwrap(), 1);
    assert_eq!((event.count(), forward.pending()), (0, 0));
    assert_eq!(peer.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

/// mio watches a count, and so can other code that wants a raw descriptor.
#[cfg(feature = "mio")]
#[test]
fn a_count_is_a_source_of_mio() {
    let Some(machine) = machine(&[]) else {
        return;
    };
    let (_space, kvm) = listening(machine.fd());
    let mut count = kvm.count_of(Arc::new(Event::new(0))).unwrap();
    assert_eq!(count.as_raw_fd(), count.as_fd().as_raw_fd());
    let mut poll = mio::Poll::new().unwrap();
    let mut events = mio::Events::with_capacity(4);
    let token = mio::Token(7);
    let registry = poll.registry();
    registry
        .register(&mut count, token, mio::Interest::READABLE)
        .unwrap();
    rustix::io::write(&count, &1_u64.to_ne_bytes()).unwrap();
    poll.poll(&mut events, None).unwrap();
    assert_eq!(
        events.iter().map(|event| event.token()).collect::<Vec<_>>(),
        [token]
    );
    assert_eq!(count.drain(), 1);
    poll.registry().deregister(&mut count).unwrap();
    assert_eq!(count.event().count(), 1);
}

/// Any descriptor of the VM will do. With a descriptor of something else, KVM refuses each doorbell.
#[test]
fn a_listener_takes_any_descriptor() {
    let Some(machine) = machine(&[]) else {
        return;
    };
    let owned = vm::descriptor(machine.fd()).try_clone_to_owned().unwrap();
    let key = Key::mmio(0x1000, 2);
    let doorbell = Doorbell::new(key, Arc::new(Event::new(0)));
    for kvm in [
        KvmListener::new(&owned),
        KvmListener::new(std::fs::File::from(owned.try_clone().unwrap())),
    ] {
        let kvm = kvm.unwrap();
        kvm.eventfd_add(&doorbell).unwrap();
        assert!(collides(machine.fd(), &key));
        kvm.eventfd_del(&doorbell).unwrap();
    }
    let other = KvmListener::new(std::fs::File::open("/dev/null").unwrap()).unwrap();
    let error = other.eventfd_add(&doorbell).unwrap_err();
    let error = error.downcast::<Error>().unwrap();
    assert_eq!(error.call(), "KVM_IOEVENTFD");
    assert_eq!(io::Error::from(*error).raw_os_error(), Some(libc::ENOTTY));
}

/// A dropped listener has taken its doorbells out of KVM, and moved what was pending to the events.
#[test]
fn dropping_the_listener_unregisters() {
    let program = program(2, 5, next_place);
    let Some(mut machine) = machine(&program) else {
        return;
    };
    let kvm = KvmListener::new(vm::descriptor(machine.fd())).unwrap();
    let space = AddressSpace::new();
    let device = Device::new(&space);
    // The listener is called by hand, so that it can be dropped while there are doorbells.
    let mut kvm = Some(kvm);
    let exits = run(&mut machine, &space, |place| {
        assert!(device.place(&space, place).is_clean());
        if place == 1 {
            for doorbell in space.doorbells() {
                kvm.as_ref().unwrap().eventfd_add(&doorbell).unwrap();
            }
        } else {
            assert_eq!(device.received(), [0, 0]);
            kvm = None;
            assert_eq!(device.received(), [5, 5]);
            assert!(device.place(&space, 1).is_clean());
            assert!(device.place(&space, place).is_clean());
        }
    });
    assert_eq!(
        exits,
        Exits {
            taken: 10,
            refused: 0
        }
    );
    assert_eq!(device.received(), [5, 5]);
    // No ioeventfd is left at the first place.
    let (space, _kvm) = listening(machine.fd());
    assert!(Device::new(&space).place(&space, 1).is_clean());
}

/// Whether KVM has something that collides with a key.
fn collides(vm: &VmFd, key: &Key) -> bool {
    let fd = EventFd::new(0).unwrap();
    match vm::assign(vm, key, &fd) {
        Ok(()) => {
            vm::deassign(vm, key, &fd).unwrap();
            false
        }
        Err(errno) => {
            assert_eq!(errno, libc::EEXIST);
            true
        }
    }
}

/// All forms of key. What collides with a doorbell shows how KVM understood its key; and nothing is left of the
/// doorbell when it has been deleted.
#[test]
fn every_key_reaches_kvm_as_it_is() {
    let Some(machine) = machine(&[]) else {
        return;
    };
    let (space, _kvm) = listening(machine.fd());
    let collides = |bus, address, length, value| {
        let key = Key::new(bus, address, length).with_datamatch(value);
        collides(machine.fd(), &key)
    };
    let event = Arc::new(Event::new(0));
    for (bus, other) in [(Bus::Mmio, Bus::Pio), (Bus::Pio, Bus::Mmio)] {
        let region = space.region(bus, 0x10);
        clean(region.map(0x1000));
        for (length, datamatch) in [
            (0, None),
            (1, None),
            (2, None),
            (4, None),
            (8, None),
            (1, Some(0xff)),
            (2, Some(0xffff)),
            (4, Some(0xffff_ffff)),
            (8, Some(u64::MAX)),
        ] {
            clean(region.add_eventfd(8, length, datamatch, &event));
            for probed in [1, 2, 4, 8] {
                let here = length == 0 || length == probed;
                let value = datamatch.unwrap_or(1);
                assert_eq!(collides(bus, 0x1008, probed, value), here);
                let any_value = here && datamatch.is_none();
                assert_eq!(collides(bus, 0x1008, probed, 0), any_value);
                assert!(!collides(other, 0x1008, probed, value));
                assert!(!collides(bus, 0x1000, probed, value));
            }
            clean(region.del_eventfd(8, length, datamatch, &event));
            for probed in [1, 2, 4, 8] {
                assert!(!collides(bus, 0x1008, probed, datamatch.unwrap_or(1)));
            }
        }
    }
}

/// An array of events becomes an ioeventfd for each slot, or none if KVM refuses one of them. A doorbell that keeps the
/// values is refused, with the reason.
#[test]
fn arrays_reach_kvm_and_payloads_do_not() {
    let Some(machine) = machine(&[]) else {
        return;
    };
    let (space, kvm) = listening(machine.fd());
    let region = space.region(Bus::Mmio, 0x100);
    clean(region.map(0x1000));
    let event = Arc::new(Event::new(0));
    let taken = || (0..5).map(|slot| collides(machine.fd(), &Key::mmio(0x1010 + 8 * slot, 2)));
    let array = DoorbellArray::mmio(0x10, 8, 4).with_length(2);

    let events = Doorbell::array(array, [&event; 4]);
    clean(region.add(events.clone()));
    assert!(taken().eq([true, true, true, true, false]));
    let shown = format!("{kvm:?}");
    assert_eq!(shown.matches("KernelCount").count(), 4, "{shown}");
    clean(region.del(&events));
    assert!(taken().eq([false; 5]));

    let other = EventFd::new(0).unwrap();
    let third = Key::mmio(0x1020, 2);
    vm::assign(machine.fd(), &third, &other).unwrap();
    let report = region.add(events.clone()).unwrap();
    assert!(report.refusals[0].error.is::<Error>());
    assert!(taken().eq([false, false, true, false, false]));
    assert!(space.write(Bus::Mmio, 0x1020, &[0, 0]));
    vm::deassign(machine.fd(), &third, &other).unwrap();
    clean(region.del(&events));

    let latest = Target::from(Arc::new(Latest::new(&event, 0)));
    let event = Target::from(event);
    for doorbell in [
        Doorbell::new(Key::mmio(0x10, 2), &latest),
        Doorbell::array(array, [&event, &event, &event, &latest]),
    ] {
        let mut report = region.add(doorbell.clone()).unwrap();
        assert_eq!(report.unreachable().count(), 0);
        let refusal = report.refusals.pop().unwrap();
        let error = *refusal.error.downcast::<Unsupported>().unwrap();
        let errno = io::Error::from(error).raw_os_error();
        assert_eq!(errno, Some(libc::EOPNOTSUPP));
        assert!(taken().eq([false; 5]));
        assert!(space.write(Bus::Mmio, 0x1010, &[0, 0]));
        // KVM is not asked to remove what it does not have.
        clean(region.del(&doorbell));
    }
}

/// The queues of a virtio-pci device whose `notify_off_multiplier` is 0 have one address: KVM gets a datamatch for
/// each, and a guest's kick of the last one does not exit.
#[test]
fn an_array_without_a_stride_is_a_datamatch_for_each_slot() {
    let Some(mut machine) = machine(&program(1, 5, next_place)) else {
        return;
    };
    let (space, _kvm) = listening(machine.fd());
    let region = space.region(Bus::Mmio, 0x1000);
    let queues = [0; KICK as usize + 1].map(|count| Arc::new(Event::new(count)));
    let array = DoorbellArray::virtio_pci(0, 0, queues.len() as u32);
    let doorbell = Doorbell::array(array, &queues);
    clean(region.add(doorbell.clone()));
    let exits = run(&mut machine, &space, |place| {
        clean(region.map(address(place)))
    });
    for queue in 0..=u64::from(KICK) {
        let key = Key::mmio(address(1), 2).with_datamatch(queue);
        assert!(collides(machine.fd(), &key), "{queue}");
    }
    // No doorbell takes the kicks by port.
    assert_eq!((exits.taken, exits.refused), (0, 5));
    clean(region.del(&doorbell));
    let kicks = queues.each_ref().map(|queue| queue.count());
    assert_eq!(kicks, [0, 0, 0, 0, 0, 0, 0, 5]);
    assert!(!collides(machine.fd(), &Key::mmio(address(1), 2)));
}

/// An event keeps its eventfd wherever its doorbells go; the eventfd is closed some time after the event has gone.
#[test]
fn an_event_keeps_its_eventfd() {
    let Some(machine) = machine(&[]) else {
        return;
    };
    let (space, kvm) = listening(machine.fd());
    let device = Device::new(&space);
    let event = &device.events[0];
    let before = kvm.count_of(event).unwrap();
    for place in 0..PLACES {
        assert!(device.place(&space, place).is_clean());
    }
    device.unmap(&space);
    let after = kvm.count_of(event).unwrap();
    assert_eq!(before.as_fd().as_raw_fd(), after.as_fd().as_raw_fd());
    assert!(after.event().ptr_eq(event));

    let highest = (0..1000)
        .map(|_| {
            let event = Arc::new(Event::new(0));
            let count = kvm.count_of(&event).unwrap();
            count.as_fd().as_raw_fd()
        })
        .max();
    // Other tests of this process have descriptors open at the same time.
    assert!(highest < Some(500), "{highest:?}");
}

/// When a commit has taken the doorbell from KVM, or a drain returns, the event has all kicks that came before, also
/// those that other threads were moving at the time. The test writes to the eventfd in KVM's place.
fn nothing_is_on_its_way(name: &'static str, carry: impl Fn(&KernelCount, &AtomicBool) + Sync) {
    watchdog::limit(name, || {
        const ROUNDS: u64 = 20_000;
        // On a busy machine, fewer rounds must do.
        const LONG_ENOUGH: Duration = Duration::from_secs(5);
        let Some(machine) = machine(&[]) else {
            return;
        };
        let (space, kvm) = listening(machine.fd());
        let region = space.region(Bus::Mmio, 0x10);
        clean(region.map(address(0)));
        let event = Arc::new(Event::new(0));
        let count = kvm.count_of(&event).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| carry(&count, &done));
            }
            let last = Done(&done);
            let start = Instant::now();
            for round in 1..=ROUNDS {
                if start.elapsed() > LONG_ENOUGH {
                    break;
                }
                // The commit waits for the kernel, so most rounds only do what it does after that.
                let by_commit = round % 64 == 0;
                if by_commit {
                    clean(region.add_eventfd(0, 0, None, &event));
                }
                rustix::io::write(&count, &1_u64.to_ne_bytes()).unwrap();
                if by_commit {
                    clean(region.del_eventfd(0, 0, None, &event));
                } else {
                    count.drain();
                }
                assert_eq!(event.count(), round, "a kick is still on its way");
            }
            drop(last);
        });
    });
}

/// Tells the other threads that the test is over, at the latest when the caller panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nothing_is_on_its_way_from_a_drain() {
    nothing_is_on_its_way("nothing_is_on_its_way_from_a_drain", |count, done| {
        while !done.load(Ordering::Relaxed) {
            count.drain();
        }
    });
}

#[test]
fn nothing_is_on_its_way_from_a_poller() {
    nothing_is_on_its_way("nothing_is_on_its_way_from_a_poller", |count, done| {
        let poller = Poller::new();
        poller.bind(count, count.event(), 0).unwrap();
        let mut events = Events::with_capacity(4);
        while !done.load(Ordering::Relaxed) {
            let some_time = Duration::from_millis(1);
            poller.wait(&mut events, Some(some_time)).unwrap();
        }
    });
}

/// The same with a guest that kicks: after a commit that has taken the doorbells from KVM, no kick comes any more.
#[test]
fn nothing_comes_from_a_guest_after_the_commit() {
    watchdog::limit("nothing_comes_from_a_guest_after_the_commit", || {
        let program = program(6_000, 1, current_place);
        let Some(mut machine) = machine(&program) else {
            return;
        };
        let (space, kvm) = listening(machine.fd());
        let device = Device::new(&space);
        let counts = device.events.each_ref();
        let counts = counts.map(|event| kvm.count_of(event).unwrap());
        let done = AtomicBool::new(false);
        let exits = thread::scope(|scope| {
            let last = Done(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    counts.iter().for_each(|count| _ = count.drain());
                }
            });
            scope.spawn(|| {
                let counts = || device.events.each_ref().map(|event| event.count());
                while !done.load(Ordering::Relaxed) {
                    assert!(device.place(&space, 0).is_clean());
                    device.unmap(&space);
                    let at_once = counts();
                    let begin = Instant::now();
                    while begin.elapsed() < Duration::from_micros(100) {
                        assert_eq!(counts(), at_once, "a kick came after the doorbell had gone");
                    }
                }
            });
            let exits = run(&mut machine, &space, |place| panic!("{place}"));
            drop(last);
            exits
        });
        let received: u64 = device.received().iter().sum();
        assert_eq!(received + exits.refused, sent(machine.memory()));
        assert!(received > exits.taken, "KVM took none");
    });
}

/// While the vCPUs are paused, one call moves all that KVM has taken to the events. Another VM goes on from the saved
/// address space: KVM has its doorbells, and the events have the pending kicks.
#[test]
fn a_snapshot_has_what_kvm_took() {
    const KICKS: u32 = 10;
    let program = program(1, KICKS, current_place);
    let Some(mut machine) = machine(&program) else {
        return;
    };
    let (space, _kvm) = listening(machine.fd());
    let device = Device::new(&space);
    assert!(device.place(&space, 0).is_clean());
    let pending = || {
        let doorbells = space.doorbells();
        doorbells
            .iter()
            .map(|doorbell| doorbell.targets()[0].event().count())
            .collect::<Vec<_>>()
    };
    // The guest has ended: no vCPU runs.
    let exits = run(&mut machine, &space, |place| panic!("{place}"));
    assert_eq!(exits, Exits::default());
    assert_eq!(pending(), [0, 0], "the kernel has them");
    assert_eq!(space.drain(), 2 * u64::from(KICKS));
    assert_eq!(pending(), [u64::from(KICKS); 2]);
    assert_eq!(space.drain(), 0);

    let numbers = |event: &Event| u64::from(!std::ptr::eq(event, &*device.events[0]));
    let saved = serde_json::to_string(&(
        space.save(numbers),
        device.events.each_ref().map(|e| e.count()),
    ));
    drop((device, space, machine));

    let (state, counts): (AddressSpaceState, [u64; 2]) =
        serde_json::from_str(&saved.unwrap()).unwrap();
    let mut machine = self::machine(&program).unwrap();
    let (space, _kvm) = listening(machine.fd());
    let events = counts.map(|count| Arc::new(Event::new(count)));
    let find = |number: u64| Some((&events[number as usize]).into());
    let (_regions, report) = space.restore(&state, find).unwrap();
    assert!(report.is_clean());
    let exits = run(&mut machine, &space, |place| panic!("{place}"));
    assert_eq!(exits, Exits::default(), "KVM has the doorbells");
    assert_eq!(space.drain(), 2 * u64::from(KICKS));
    assert_eq!(events.map(|event| event.read()), [2 * u64::from(KICKS); 2]);
}

/// A doorbell that lies inside a device of KVM's is refused; one that only begins or ends in the device is not.
#[test]
fn a_doorbell_in_a_device_of_kvms_is_refused() {
    let pit = |vm: &VmFd| {
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())
    };
    let machines = [
        (Vm::new(MEMORY), [false; 4]),
        (Vm::with_interrupts(MEMORY), [true, false, true, true]),
        (Vm::with(MEMORY, pit), [true; 4]),
    ];
    for (machine, [pic, has_pit, ioapic, lapic]) in machines {
        let Some(machine) = machine else {
            return;
        };
        let (space, _kvm) = listening(machine.fd());
        let event = Arc::new(Event::new(0));
        for (bus, address, length, there, device) in [
            (Bus::Pio, 0x20, 1, pic, InKernel::Pic),
            (Bus::Pio, 0x20, 0, pic, InKernel::Pic),
            (Bus::Pio, 0x20, 2, pic, InKernel::Pic),
            (Bus::Pio, 0x20, 4, false, InKernel::Pic),
            (Bus::Pio, 0x21, 1, pic, InKernel::Pic),
            (Bus::Pio, 0x21, 2, false, InKernel::Pic),
            (Bus::Pio, 0x22, 1, false, InKernel::Pic),
            (Bus::Pio, 0x1f, 1, false, InKernel::Pic),
            (Bus::Pio, 0x1f, 4, false, InKernel::Pic),
            (Bus::Pio, 0xa1, 0, pic, InKernel::Pic),
            (Bus::Pio, 0x4d0, 2, pic, InKernel::Pic),
            (Bus::Mmio, 0x20, 1, false, InKernel::Pic),
            (Bus::Pio, 0x40, 4, has_pit, InKernel::Pit),
            (Bus::Pio, 0x43, 0, has_pit, InKernel::Pit),
            (Bus::Pio, 0x44, 0, false, InKernel::Pit),
            (Bus::Mmio, 0xfec0_0000, 4, ioapic, InKernel::IoApic),
            (Bus::Mmio, 0xfec0_00f8, 8, ioapic, InKernel::IoApic),
            (Bus::Mmio, 0xfec0_00fc, 8, false, InKernel::IoApic),
            (Bus::Mmio, 0xfec0_0100, 0, false, InKernel::IoApic),
            (Bus::Mmio, 0xfee0_0000, 0, lapic, InKernel::LocalApic),
            (Bus::Mmio, 0xfee0_0fff, 1, lapic, InKernel::LocalApic),
            (Bus::Mmio, 0xfee0_1000, 1, false, InKernel::LocalApic),
        ] {
            let region = space.region(bus, 0x10);
            clean(region.map(address));
            let mut report = region.add_eventfd(0, length, None, &event).unwrap();
            assert_eq!(
                !report.is_clean(),
                there,
                "{address:#x} {length}: {report:?}"
            );
            assert_eq!(report.unreachable().count(), usize::from(there));
            let key = Key::new(bus, address, length);
            assert_eq!(
                collides(machine.fd(), &key),
                !there,
                "{address:#x} {length}"
            );
            if let Some(refusal) = report.refusals.pop() {
                let error = *refusal.error.downcast::<Occupied>().unwrap();
                assert_eq!(error.device, device);
                let errno = io::Error::from(error).raw_os_error();
                assert_eq!(errno, Some(libc::EBUSY));
            }
        }
        // One slot of an array is enough for a refusal.
        let ports = space.region(Bus::Pio, 0x100);
        clean(ports.map(0));
        let array = Doorbell::array(DoorbellArray::pio(0x10, 0x10, 2), [&event; 2]);
        assert_eq!(ports.add(array).unwrap().is_clean(), !pic);
        assert_eq!(collides(machine.fd(), &Key::pio(0x10, 0)), !pic);
    }
}

/// An observer that panics when the kicks of one event are moved holds back no kicks of other events, and keeps no
/// doorbell in KVM. The test writes to the eventfd in KVM's place.
#[test]
fn an_observer_that_panics() {
    let Some(machine) = machine(&[]) else {
        return;
    };
    const SLOTS: u64 = 3;
    let taken = || (0..SLOTS).map(|slot| collides(machine.fd(), &Key::mmio(0x1010 + 8 * slot, 2)));
    let ways: [fn(&AddressSpace, &Region, KvmListener); 3] = [
        |_, region, kvm| {
            for doorbell in region.doorbells() {
                let doorbell = Doorbell::array(
                    DoorbellArray::mmio(0x1010, 8, SLOTS as u32).with_length(2),
                    doorbell.targets(),
                );
                kvm.eventfd_del(&doorbell).unwrap();
            }
        },
        |_, _, kvm| drop(kvm),
        |_, _, kvm| _ = kvm.drain(),
    ];
    for (number, way) in ways.into_iter().enumerate() {
        let kvm = KvmListener::new(vm::descriptor(machine.fd())).unwrap();
        let space = AddressSpace::new();
        let region = space.region(Bus::Mmio, 0x100);
        clean(region.map(0x1000));
        let events = [(); SLOTS as usize].map(|()| Arc::new(Event::new(0)));
        let array = DoorbellArray::mmio(0x10, 8, SLOTS as u32).with_length(2);
        clean(region.add(Doorbell::array(array, &events)));
        kvm.eventfd_add(&space.doorbells()[0]).unwrap();
        assert!(taken().eq([true; SLOTS as usize]));
        let counts = events.each_ref().map(|event| kvm.count_of(event).unwrap());
        for count in &counts {
            rustix::io::write(count, &1_u64.to_ne_bytes()).unwrap();
        }
        let observations = events.each_ref().map(|event| {
            let observer = |_: event::Change| panic!("for the test");
            Observation::new(Arc::clone(event), Interest::Signals, Arc::new(observer))
        });
        let call = AssertUnwindSafe(|| way(&space, &region, kvm));
        assert!(panic::catch_unwind(call).is_err());
        assert!(taken().eq([false; SLOTS as usize]), "{number}");
        let received = events.each_ref().map(|event| event.count());
        assert_eq!(received, [1; SLOTS as usize], "{number}");
        drop(observations);
    }
}
