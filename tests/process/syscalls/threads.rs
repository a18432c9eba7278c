//! The lists that the page `guide::system_calls` gives for a vCPU thread, each run under a filter of exactly that list,
//! while a device thread sleeps where the list is for.

use crate::common::caller::{Caller, call_at};
use crate::common::counter::Place;
use crate::{
    DONE, NAP, WAIT_BITSET, WAKE, done, filtered, is_observed, listed, observe, poller, sleep_in,
    under_filters, wait,
};
use doorbell::Event;
use doorbell::event::EventHandle;
use doorbell::fd::{EventFd, Forward, Mirror};
use doorbell::ioeventfd::{Bus, Key, Table};
use doorbell::poll::{Events, PollerFd, Watch, wait_any};
use rustix::event::epoll;
use std::hint;
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Instant;

/// How often the vCPU rings.
const KICKS: u64 = 100;

/// Rings a doorbell on a thread that may make these calls only. The device thread falls asleep again in between.
fn ring(calls: &[libc::c_long], futex: &[i32], event: impl Into<EventHandle>) {
    let key = Key::mmio(0x1000, 2);
    let table = Table::new();
    table.assign(key, event.into()).unwrap().keep();
    let doorbells = table.reader();
    under_filters([filtered(listed(calls, futex), move || {
        for _ in 0..KICKS {
            assert!(doorbells.write(Bus::Mmio, key.address, &[0, 0]));
            let rung = Instant::now();
            while rung.elapsed() < NAP / 10 {
                hint::spin_loop();
            }
        }
        // What is dropped makes calls that ringing does not make.
        mem::forget(doorbells);
    })]);
}

/// Rings the doorbell of an event that the device thread sleeps for, until the thread has got all kicks.
fn ring_for(calls: &[libc::c_long], futex: &[i32], event: &Arc<Event>, device: Caller<()>) {
    device.wait_asleep();
    ring(calls, futex, event);
    device.finish();
}

/// Takes what is there until all kicks have come. `sleep` returns when there may be more.
fn serve(mut take: impl FnMut() -> Option<u64>, mut sleep: impl FnMut()) {
    let mut served = 0;
    while served < KICKS {
        sleep();
        served += take().unwrap_or(0);
    }
}

/// The first row: threads in blocking calls, in `wait_any`, and in pollers without descriptors.
fn nothing_is_attached() {
    let events = [(); 3].map(|()| Arc::new(Event::new(0)));
    let [read, any, polled] = &events;
    let event = Arc::clone(read);
    let device = call_at(Place::Futex, move || serve(|| Some(event.read()), || ()));
    ring_for(&[], &[WAKE], read, device);

    let event = Arc::clone(any);
    let device = call_at(Place::Several, move || {
        let events = [Arc::clone(&event), Arc::new(Event::new(0))];
        serve(|| event.try_read(), || _ = wait_any(&events, None));
    });
    ring_for(&[], &[WAKE], any, device);

    ring_for(&[], &[WAKE], polled, in_a_poller(polled, false));
}

/// A device thread that sleeps in a poller, which may have a descriptor.
fn in_a_poller(event: &Arc<Event>, with_fd: bool) -> Caller<()> {
    let poller = poller(&[Arc::clone(event)], Watch::READABLE);
    let event = Arc::clone(event);
    sleep_in(poller, with_fd, move |poller| {
        let mut found = Events::with_capacity(1);
        serve(|| event.try_read(), || _ = wait(poller, &mut found, None));
    })
}

fn a_task() {
    let event = Arc::new(Event::new(0));
    let task = Arc::clone(&event);
    let device = call_at(Place::Futex, move || {
        serve(|| Some(pollster::block_on(task.read_async())), || ());
    });
    let calls = [libc::SYS_sched_yield, libc::SYS_clock_nanosleep];
    ring_for(&calls, &[WAKE], &event, device);
}

fn a_poller_with_a_descriptor() {
    let event = Arc::new(Event::new(0));
    let device = in_a_poller(&event, true);
    ring_for(&[libc::SYS_write], &[WAKE], &event, device);
}

fn a_poller_in_another_loop() {
    let event = Arc::new(Event::new(0));
    let fd = PollerFd::new(poller(&[Arc::clone(&event)], Watch::READABLE)).unwrap();
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let data = epoll::EventData::new_u64(0);
    epoll::add(&outer, &fd, data, epoll::EventFlags::IN).unwrap();
    let kick = Arc::clone(&event);
    let device = call_at(Place::Descriptor(0), move || {
        let mut found = Events::with_capacity(1);
        let mut buffer = Vec::with_capacity(1);
        let sleep = || {
            if fd.arm(&mut found).unwrap() {
                let spare = rustix::buffer::spare_capacity(&mut buffer);
                epoll::wait(&outer, spare, None).unwrap();
                buffer.clear();
            }
            fd.disarm();
        };
        serve(|| kick.try_read(), sleep);
    });
    ring_for(&[libc::SYS_write], &[WAKE], &event, device);
}

fn a_forward() {
    let event = Arc::new(Event::new(0));
    let peer = EventFd::new(0).unwrap();
    let forward = Forward::with_fd(&event, peer.as_fd().try_clone_to_owned().unwrap());
    let device = call_at(Place::Descriptor(0), move || {
        serve(|| peer.read().ok(), || ());
    });
    ring(&[libc::SYS_write], &[WAKE], &event);
    device.finish();
    drop(forward);
}

fn a_mirror() {
    let event = Arc::new(Event::new(0));
    let mirror = Mirror::new(&event).unwrap();
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let data = epoll::EventData::new_u64(0);
    epoll::add(&outer, &mirror, data, epoll::EventFlags::IN).unwrap();
    let kick = Arc::clone(&event);
    let device = call_at(Place::Descriptor(0), move || {
        let mut buffer = Vec::with_capacity(1);
        let sleep = || {
            let spare = rustix::buffer::spare_capacity(&mut buffer);
            epoll::wait(&outer, spare, None).unwrap();
            buffer.clear();
        };
        serve(|| kick.try_read(), sleep);
    });
    let calls = [libc::SYS_write, libc::SYS_read];
    ring_for(&calls, &[WAIT_BITSET, WAKE], &event, device);
    drop(mirror);
}

/// A device on the vCPU's thread that interrupts the guest, by a message and by a pin.
#[cfg(target_arch = "x86_64")]
fn an_irqfd_of_kvm() {
    use crate::msi;
    use doorbell::irqfd::{Route, Router};
    use doorbell::kvm::{Injection, KvmSink};

    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        return println!("without an irqfd: there is no KVM");
    };
    for injection in [Injection::Userspace, Injection::Kernel] {
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let sink = KvmSink::new(crate::vm::descriptor(&vm), injection).unwrap();
        let router = Router::new(sink);
        for (gsi, route) in [(24, msi(0x41)), (5, Route::Pin(5))] {
            router.set_route(gsi, Some(route)).unwrap();
            let event = Arc::new(Event::new(0));
            let irqfd = router.assign(&event, gsi).unwrap();
            let calls = [libc::SYS_ioctl, libc::SYS_write, libc::SYS_read];
            ring(&calls, &[WAIT_BITSET, WAKE], &event);
            assert_eq!(irqfd.counters().signals, KICKS);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn an_irqfd_of_kvm() {}

#[test]
fn the_lists_for_a_vcpu_thread() {
    if !is_observed() {
        let output = observe(&[], "threads::the_lists_for_a_vcpu_thread");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    nothing_is_attached();
    a_task();
    a_poller_with_a_descriptor();
    a_poller_in_another_loop();
    a_forward();
    a_mirror();
    an_irqfd_of_kvm();
    done()
}

/// The test above would notice a list that is too short: a thread in a poller with a descriptor is woken by a write.
#[test]
fn a_vcpu_thread_needs_more_than_futex() {
    if !is_observed() {
        let output = observe(&[], "threads::a_vcpu_thread_needs_more_than_futex");
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
        return;
    }
    let event = Arc::new(Event::new(0));
    ring_for(&[], &[WAKE], &event, in_a_poller(&event, true));
    done()
}
