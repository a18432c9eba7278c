//! What the sink guarantees to the router where KVM's own irqfds are imprecise. The tests look at the levels of KVM's
//! interrupt controllers.

use crate::guest::MESSAGE_VECTORS;
use crate::refusals::{enable_apic, is_requested, machine};
use crate::script::{Act, assign};
use crate::sides::OursInKvm;
use crate::vm::{VECTORS, descriptor};
use crate::{EDGE, LEVEL_GSI, stay, take};
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{InterruptSink, Irqfd, MsiMessage, Route, Router, Routes};
use doorbell::kvm::{Injection, KvmSink};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_msi, kvm_irqchip, kvm_msi,
};
use kvm_ioctls::{Kvm, VmFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

const BOTH: [Injection; 2] = [Injection::Userspace, Injection::Kernel];

/// The level of a pin of KVM's IOAPIC, from all of its sources.
pub fn level(vm: &VmFd, pin: u32) -> bool {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..kvm_irqchip::default()
    };
    vm.get_irqchip(&mut chip).expect("KVM_GET_IRQCHIP");
    // SAFETY: the state of the IOAPIC is what KVM_GET_IRQCHIP gives for this chip.
    let up = unsafe { chip.chip.ioapic.irr };
    up & 1 << pin != 0
}

/// The falling edge of an earlier pulse does not end a level that the VMM holds.
#[test]
fn a_level_after_an_edge_stays_up() {
    stay();
    for injection in BOTH {
        let Some(mut ours) = OursInKvm::new(injection) else {
            return;
        };
        ours.act(&assign(0, EDGE));
        let (router, edge) = (ours.router().clone(), ours.signal(0));
        for round in 0..300 {
            edge();
            router.set_level(EDGE, true);
            ours.pass_fence();
            assert!(level(ours.vm(), EDGE), "{injection:?}, round {round}");
            router.set_level(EDGE, false);
            assert!(!level(ours.vm(), EDGE), "{injection:?}, round {round}");
        }
    }
}

/// A signalled edge goes by the route at that time, before the irqfd, the route or the mask changes.
#[test]
fn an_edge_has_happened_when_the_signal_returns() {
    for injection in BOTH {
        let Some(mut ours) = OursInKvm::new(injection) else {
            return;
        };
        let (router, edge) = (ours.router().clone(), ours.signal(0));
        let event = Arc::clone(ours.event(0));
        let changes: [&dyn Fn(); 3] = [
            &|| router.set_route(EDGE, None).unwrap(),
            &|| router.deassign(&event, EDGE),
            &|| router.mask(EDGE),
        ];
        for change in changes {
            for _ in 0..100 {
                router.set_route(EDGE, Some(Route::Pin(EDGE))).unwrap();
                router.unmask(EDGE);
                let _irqfd = router.assign(&event, EDGE).unwrap();
                edge();
                change();
                assert_eq!(take(&mut ours, VECTORS + EDGE as u8), 1, "{injection:?}");
                assert_eq!(take(&mut ours, VECTORS + EDGE as u8), 0, "{injection:?}");
                router.deassign(&event, EDGE);
            }
        }
    }
}

/// Messages that are under way while their GSI becomes a pin do not end a level either, though KVM would pulse the pin
/// for them.
#[test]
fn a_level_after_messages_stays_up() {
    for injection in BOTH {
        let Some(mut ours) = OursInKvm::new(injection) else {
            return;
        };
        ours.act(&assign(0, EDGE));
        let (router, signal) = (ours.router().clone(), ours.signal(0));
        let message = Route::Msi(MsiMessage::new(0xfee0_0000, MESSAGE_VECTORS[0].into()));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    signal();
                    // Lets the other thread run if there is only one CPU.
                    thread::yield_now();
                }
            });
            let mut low = 0;
            for _ in 0..200 {
                router.set_route(EDGE, Some(message)).unwrap();
                router.set_route(EDGE, Some(Route::Pin(EDGE))).unwrap();
                router.set_level(EDGE, true);
                // If the other thread drives the line at the moment, it carries this out, too.
                router.synchronize();
                ours.pass_fence();
                low += u32::from(!level(ours.vm(), EDGE));
                router.set_level(EDGE, false);
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(low, 0, "{injection:?}");
        });
        // If the GSI has become a message again, the signal is sent as a message.
        router.set_route(EDGE, Some(message)).unwrap();
        while take(&mut ours, MESSAGE_VECTORS[0]) != 0 {}
        signal();
        assert_eq!(take(&mut ours, MESSAGE_VECTORS[0]), 1, "{injection:?}");
    }
}

/// Routes that KVM refuses do not end a level either.
#[test]
fn a_level_stays_up_when_routes_are_refused() {
    let Some(ours) = OursInKvm::new(Injection::Kernel) else {
        return;
    };
    let router = ours.router();
    let device = Device::new(router, LEVEL_GSI);
    router.set_level(EDGE, true);
    device.interrupt.signal();
    ours.pass_fence();
    let message = Route::Msi(MsiMessage::new(0xfee0_0000, MESSAGE_VECTORS[0].into()));
    // These are too many routes, without one for the two GSIs.
    let full = (0..16)
        .filter(|gsi| ![EDGE, LEVEL_GSI].contains(gsi))
        .map(|gsi| (gsi, Route::Pin(gsi)))
        .chain((16..4096).map(|gsi| (gsi, message)));
    router
        .set_routes(Routes::from_entries(full).unwrap())
        .unwrap_err();
    ours.pass_fence();
    assert!(level(ours.vm(), EDGE));
    assert!(level(ours.vm(), LEVEL_GSI));
}

/// The end of the last resampling irqfd, which has asserted the line, does not end a level that the VMM holds.
#[test]
fn a_level_outlives_resampling_irqfds() {
    for injection in BOTH {
        let Some(mut ours) = OursInKvm::new(injection) else {
            return;
        };
        let router = ours.router().clone();
        let up = |ours: &OursInKvm| {
            ours.pass_fence();
            level(ours.vm(), LEVEL_GSI)
        };
        for asserted in [false, true] {
            let device = Device::new(&router, LEVEL_GSI);
            router.set_level(LEVEL_GSI, true);
            if asserted {
                device.interrupt.signal();
            }
            assert!(up(&ours));
            drop(device);
            assert!(up(&ours), "{injection:?}");
            // The line is up by KVM_IRQ_LINE. Now there is a resampling irqfd again.
            let device = Device::new(&router, LEVEL_GSI);
            assert!(up(&ours));
            router.set_level(LEVEL_GSI, false);
            assert!(!up(&ours), "{injection:?}");
            device.interrupt.signal();
            assert!(up(&ours));
            drop(device);
            assert!(!up(&ours));
        }
        assert_eq!(ours.take_some(), 0);
    }
}

/// When the call returns that ends the last resampling irqfd, the line that it has asserted is down. The line goes down
/// when the router says so, because another holder may keep it up.
#[test]
fn the_end_of_the_last_resampling_irqfd() {
    for injection in BOTH {
        let Some(ours) = OursInKvm::new(injection) else {
            return;
        };
        for _ in 0..50 {
            let device = Device::new(ours.router(), LEVEL_GSI);
            device.interrupt.signal();
            await_that(|| level(ours.vm(), LEVEL_GSI));
            drop(device);
            assert!(!level(ours.vm(), LEVEL_GSI), "{injection:?}");
        }
    }
    for injection in BOTH {
        let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let sink = Arc::new(KvmSink::new(descriptor(&vm), injection).unwrap());
        let router = Router::new(Arc::clone(&sink));
        router.set_routes(Routes::identity(24)).unwrap();
        let device = Device::new(&router, LEVEL_GSI);
        router.set_level(LEVEL_GSI, true);
        await_that(|| level(&vm, LEVEL_GSI));
        // The test plays the router's part, because the router would make more calls at the same time.
        sink.disconnect(LEVEL_GSI, true);
        assert!(level(&vm, LEVEL_GSI), "{injection:?}");
        sink.set_level(LEVEL_GSI, LEVEL_GSI, false);
        assert!(!level(&vm, LEVEL_GSI), "{injection:?}");
        drop(device);
    }
}

/// A resampling irqfd and its device, which signals again when it is asked while it has requests.
struct Device {
    interrupt: Arc<Event>,
    /// How many requests the device has.
    requests: Arc<AtomicU32>,
    _irqfd: Irqfd,
    _observation: Observation,
}

impl Device {
    fn new(router: &Router, gsi: u32) -> Self {
        let [interrupt, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
        let irqfd = router.assign_with_resample(&interrupt, gsi, &resample);
        let requests = Arc::new(AtomicU32::new(0));
        let observer = {
            let (interrupt, requests) = (Arc::clone(&interrupt), Arc::clone(&requests));
            move |_: Change| {
                if requests.load(Ordering::SeqCst) != 0 {
                    requests.fetch_sub(1, Ordering::SeqCst);
                    interrupt.signal();
                }
            }
        };
        Device {
            interrupt,
            requests,
            _irqfd: irqfd.unwrap(),
            _observation: Observation::new(resample, Interest::Signals, Arc::new(observer)),
        }
    }
}

/// If the sink learns of the end of an interrupt after a mask, it does not take it for the end of the next one: after
/// the device has been asked and has no request, the line is down.
#[test]
fn an_end_from_before_a_mask() {
    let Some(mut ours) = OursInKvm::new(Injection::Userspace) else {
        return;
    };
    let router = ours.router().clone();
    let device = Device::new(&router, LEVEL_GSI);

    // The device of another line keeps the sink's thread busy.
    let [other, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
    let _irqfd = router
        .assign_with_resample(&other, EDGE, &resample)
        .unwrap();
    let (go_on, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let _slow = Observation::new(
        resample,
        Interest::Signals,
        Arc::new(move |_: Change| {
            let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
        }),
    );
    let here = Arc::new(Event::new(0));
    let change = {
        let router = router.clone();
        move |_: Change| {
            router.mask(LEVEL_GSI);
            router.unmask(LEVEL_GSI);
        }
    };
    let _change = Observation::new(Arc::clone(&here), Interest::Signals, Arc::new(change));

    other.signal();
    ours.pass_fence();
    assert_eq!(ours.take_some(), 1);
    await_that(|| router.line_counters(EDGE).resamples == 1);

    device.interrupt.signal();
    ours.pass_fence();
    assert_eq!(ours.take_some(), 1);
    assert!(!level(ours.vm(), LEVEL_GSI));
    let line = || router.line_counters(LEVEL_GSI);
    // This request is for the question after the mask. The device has none when it is asked for the guest's end of
    // interrupt.
    device.requests.store(1, Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| {
            await_that(|| line().raises == 2);
            // The end is counted just before.
            thread::sleep(Duration::from_millis(20));
            go_on.send(()).unwrap();
        });
        // Inside a call, a mask does not wait for the thread.
        here.signal();
    });
    await_that(|| line().resamples == 2);
    // This returns when the thread has done what follows from that.
    router.synchronize();
    ours.pass_fence();
    assert_eq!(line().raises, 2);
    assert!(!level(ours.vm(), LEVEL_GSI));
    assert_eq!(ours.take_some(), 0);
}

/// The last resampling irqfd goes while the sink has yet to report an end of interrupt: the line is down, unless the
/// VMM holds it up.
#[test]
fn an_end_from_before_the_last_resampling_irqfd_goes() {
    for held in [false, true] {
        let Some(mut ours) = OursInKvm::new(Injection::Userspace) else {
            return;
        };
        let router = ours.router().clone();
        for _ in 0..50 {
            let device = Device::new(&router, LEVEL_GSI);
            device.interrupt.signal();
            ours.pass_fence();
            assert_eq!(ours.take_some(), 1);
            router.set_level(LEVEL_GSI, held);
            drop(device);
            router.synchronize();
            ours.pass_fence();
            assert_eq!(level(ours.vm(), LEVEL_GSI), held);
            router.set_level(LEVEL_GSI, false);
        }
    }
}

/// Gives this thread priority over all others of its CPU, including KVM's workers, until it sleeps. Prints a message if
/// that is not allowed.
fn go_first() {
    stay();
    // The kernel's sched_param, which is this number alone. musl has the function, which refuses.
    let priority: libc::c_int = 1;
    // SAFETY: the number is read, and not kept.
    if unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &priority) } != 0 {
        let error = std::io::Error::last_os_error();
        eprintln!("not real-time ({error}): a worker of KVM's may have come first");
    }
}

/// KVM leaves a message to all APICs to a worker, which without a wait would find no route any more, or another one.
#[test]
fn a_deassign_waits_for_kvms_worker() {
    // The test needs a thread of its own, because the priority stays with the thread.
    let test = thread::spawn(|| {
        for injection in BOTH {
            let Some(vm) = machine() else { return };
            vm.create_irq_chip().unwrap();
            let vcpu = vm.create_vcpu(0).unwrap();
            enable_apic(&vcpu);
            let router = Router::new(KvmSink::new(descriptor(&vm), injection).unwrap());
            let event = Arc::new(Event::new(0));
            go_first();
            for vector in 0x20..0x60 {
                let address = 0xfee0_0000 | 0xff << 12;
                let data = vector.into();
                let route = Route::Msi(MsiMessage::new(address, data));
                router.set_route(24, Some(route)).unwrap();
                let irqfd = router.assign(&event, 24).unwrap();
                event.signal();
                drop(irqfd);
                assert!(is_requested(&vcpu, vector), "{injection:?}: {vector:#x}");
            }
        }
    });
    test.join().unwrap();
}

/// A vector that the guest has not programmed yet, or has programmed wrongly, is sent as KVM sends it. Only messages
/// that KVM drops are dropped.
#[test]
fn odd_messages_are_sent_as_kvm_sends_them() {
    let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
    let fresh = || {
        let vm = machine()?;
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        enable_apic(&vcpu);
        Some((Arc::new(vm), vcpu))
    };
    let messages = [
        (0, 0, true),
        (0, 0x31, true),
        (0xfee0_0000, 5, true),
        (0xd000_0000, 0x41, true),
        // There is no such APIC.
        (0xfee0_7000, 0x41, false),
    ];
    for (address, data, sent) in messages {
        let vector = data as u8;
        let Some((vm, vcpu)) = fresh() else { return };
        let by_hand = kvm_msi {
            address_lo: address,
            data,
            ..kvm_msi::default()
        };
        assert_eq!(vm.signal_msi(by_hand).unwrap() > 0, sent);
        assert_eq!(is_requested(&vcpu, vector), sent);

        let (vm, vcpu) = fresh().unwrap();
        let mut entry = kvm_irq_routing_entry {
            gsi: 24,
            type_: KVM_IRQ_ROUTING_MSI,
            ..kvm_irq_routing_entry::default()
        };
        entry.u.msi = kvm_irq_routing_msi {
            address_lo: address,
            data,
            ..kvm_irq_routing_msi::default()
        };
        vm.set_gsi_routing(&KvmIrqRouting::from_entries(&[entry]).unwrap())
            .unwrap();
        let irqfd = eventfd();
        vm.register_irqfd(&irqfd, 24).unwrap();
        irqfd.write(1).unwrap();
        assert_eq!(is_requested(&vcpu, vector), sent);

        for injection in BOTH {
            let (vm, vcpu) = fresh().unwrap();
            let sink = Arc::new(KvmSink::new(descriptor(&vm), injection).unwrap());
            let router = Router::new(Arc::clone(&sink));
            let address = address.into();
            let route = Route::Msi(MsiMessage::new(address, data));
            router.set_route(24, Some(route)).unwrap();
            let event = Arc::new(Event::new(0));
            let _irqfd = router.assign(&event, 24).unwrap();
            event.signal();
            assert_eq!(is_requested(&vcpu, vector), sent, "{injection:?}");
            assert_eq!(sink.refused(), 0, "{injection:?}");
        }
    }
}

pub fn await_that(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "in vain");
        thread::yield_now();
    }
}
