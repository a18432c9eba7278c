//! Virtual machines that are saved and restored, with interrupts that are on their way.

use crate::exact::{await_that, level};
use crate::guest::{self, MESSAGE_VECTORS, Machine, MachineState};
use crate::stay;
use crate::vm::{VECTORS, descriptor};
use doorbell::Event;
use doorbell::event::{Change, EventHandle, EventState, Interest, Observation};
use doorbell::irqfd::{InterruptSink, MsiMessage, Restored, Router, RouterState, Routes};
use doorbell::kvm::{Injection, KvmSink};
use serde::{Deserialize, Serialize};
use std::array;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const BOTH: [Injection; 2] = [Injection::Userspace, Injection::Kernel];

/// Pins that only the IOAPIC has.
const IOAPIC_PIN: u32 = 20;
const HELD_PIN: u32 = 21;
/// A pin of the first PIC and of the IOAPIC; the guest has masked it in the IOAPIC.
const PIC_PIN: u32 = guest::LEVEL as u32;
const MASKED_MSI: u32 = 24;
const MSI: u32 = 25;
const MESSAGE: u8 = MESSAGE_VECTORS[0];
/// The vector of the IOAPIC's pin.
const LEVEL: u8 = MESSAGE_VECTORS[1];

#[derive(Serialize, Deserialize)]
struct Snapshot {
    router: RouterState,
    events: Vec<EventState>,
    machine: MachineState,
}

/// The events of the devices.
struct Devices {
    router: Router,
    restored: Restored,
    /// An event that interrupts by a message, which the guest has masked.
    masked: Arc<Event>,
    /// An event that interrupts by a level, until `resample`.
    level: Arc<Event>,
    resample: Arc<Event>,
    /// An event that interrupted by a message when it was assigned, and still has the count.
    counted: Arc<Event>,
    /// An event without an irqfd.
    kicks: Arc<Event>,
}

impl Devices {
    fn of(router: Router, restored: Restored, events: [Arc<Event>; 5]) -> Self {
        let [masked, level, resample, counted, kicks] = events;
        Devices {
            router,
            restored,
            masked,
            level,
            resample,
            counted,
            kicks,
        }
    }

    fn events(&self) -> [&Arc<Event>; 5] {
        let Devices {
            masked,
            level,
            resample,
            counted,
            kicks,
            ..
        } = self;
        [masked, level, resample, counted, kicks]
    }

    fn new(machine: &Machine, injection: Injection, level_pin: u32) -> Self {
        let router = Router::new(KvmSink::new(descriptor(machine.vm()), injection).unwrap());
        let mut routes = Routes::identity(24);
        for gsi in [MASKED_MSI, MSI] {
            let message = MsiMessage::new(0xfee0_0000, MESSAGE.into());
            routes.set(gsi, Some(message.into())).unwrap();
        }
        router.set_routes(routes).unwrap();
        let events = array::from_fn(|_| Arc::new(Event::new(0)));
        let mut devices = Self::of(router, Restored::default(), events);
        devices.counted.signal_n(2);
        let router = &devices.router;
        devices.restored.irqfds = vec![
            router.assign(&devices.masked, MASKED_MSI).unwrap(),
            router.assign(&devices.counted, MSI).unwrap(),
            router
                .assign_with_resample(&devices.level, level_pin, &devices.resample)
                .unwrap(),
        ];
        devices.restored.sources = vec![router.level_source(HELD_PIN)];
        devices
    }

    /// Saves in the order that the docs of the module give.
    fn save(&self, machine: &mut Machine) -> String {
        let events = self.events();
        let id = |event: &Event| {
            let is = |other: &&Arc<Event>| std::ptr::eq(&***other, event);
            events.iter().position(is).expect("a known event") as u64
        };
        let snapshot = Snapshot {
            router: self.router.save(id),
            events: events.map(|event| event.save()).into(),
            machine: machine.save(),
        };
        serde_json::to_string(&snapshot).unwrap()
    }

    fn restore(snapshot: &str, injection: Injection) -> (Machine, Self) {
        let snapshot: Snapshot = serde_json::from_str(snapshot).unwrap();
        let machine = Machine::restore(&snapshot.machine);
        let events: Vec<Arc<Event>> = snapshot
            .events
            .iter()
            .map(|event| Arc::new(Event::restore(event).unwrap()))
            .collect();
        let router = Router::new(KvmSink::new(descriptor(machine.vm()), injection).unwrap());
        let find = |id| events.get(id as usize).map(EventHandle::from);
        let restored = router.restore(&snapshot.router, find).unwrap();
        let events = events.try_into().expect("as many as were saved");
        (machine, Self::of(router, restored, events))
    }
}

/// The vectors that the guest takes.
fn taken(machine: &mut Machine, run: fn(&mut Machine, &mut dyn FnMut(Option<u8>))) -> Vec<u8> {
    let mut vectors = Vec::new();
    run(machine, &mut |vector| vectors.extend(vector));
    vectors
}

/// Each interrupt that was on its way comes once, the guest's end of interrupt reaches the device, and reads after the
/// restore return what was signalled before the save.
///
/// The interrupt in service is one of the PIC's, because the KVM that this was written on, `kvm_pvm` of Linux 6.18,
/// ends an interrupt of a local APIC when a guest in real mode takes it.
#[test]
fn a_round_trip() {
    stay();
    let levels = [
        (IOAPIC_PIN, LEVEL, false),
        (PIC_PIN, VECTORS + guest::LEVEL, false),
        (PIC_PIN, VECTORS + guest::LEVEL, true),
    ];
    for (from, to) in BOTH.into_iter().flat_map(|from| BOTH.map(|to| (from, to))) {
        for (pin, vector, in_service) in levels {
            round_trip(from, to, pin, vector, in_service);
        }
    }
}

fn round_trip(from: Injection, to: Injection, pin: u32, vector: u8, in_service: bool) {
    let what = format!("{from:?}, {to:?}, pin {pin}, in service: {in_service}");
    let Some(mut machine) = Machine::new() else {
        return;
    };
    machine.open_ioapic_pin(IOAPIC_PIN as usize, LEVEL);
    let devices = Devices::new(&machine, from, pin);
    // This is the interrupt for the count that was there.
    assert_eq!(taken(&mut machine, Machine::run), [MESSAGE], "{what}");
    devices.router.mask(MASKED_MSI);
    devices.masked.signal();
    devices.masked.signal();
    devices.kicks.signal_n(3);
    devices.restored.sources[0].set_level(true);
    devices.level.signal();
    if in_service {
        await_that(|| level(machine.vm(), pin));
        assert_eq!(machine.run_into_service(), vector, "{what}");
    }
    let snapshot = devices.save(&mut machine);
    drop((devices, machine));

    let (mut machine, devices) = Devices::restore(&snapshot, to);
    let Devices {
        router, restored, ..
    } = &devices;
    let levels = [pin, HELD_PIN].map(|pin| (router.level(pin), level(machine.vm(), pin)));
    assert_eq!(levels, [(true, true); 2], "{what}");
    let run = match in_service {
        // The interrupt was taken before. No other one comes until the guest ends it, or after that.
        true => taken(&mut machine, Machine::go_on),
        false => taken(&mut machine, Machine::run),
    };
    assert_eq!(
        run,
        if in_service { vec![] } else { vec![vector] },
        "{what}"
    );
    await_that(|| devices.resample.count() == 1);
    await_that(|| !router.is_asserted(pin));
    assert!(!level(machine.vm(), pin), "{what}");

    // The masked message.
    assert!(router.is_masked(MASKED_MSI) && router.is_pending(MASKED_MSI));
    router.unmask(MASKED_MSI);
    assert_eq!(taken(&mut machine, Machine::run), [MESSAGE], "{what}");

    // All events interrupt as before.
    devices.level.signal();
    await_that(|| level(machine.vm(), pin));
    assert_eq!(taken(&mut machine, Machine::run), [vector], "{what}");
    await_that(|| devices.resample.count() == 2);
    devices.counted.signal();
    assert_eq!(taken(&mut machine, Machine::run), [MESSAGE], "{what}");
    devices.masked.signal();
    assert_eq!(taken(&mut machine, Machine::run), [MESSAGE], "{what}");
    assert!(taken(&mut machine, Machine::run).is_empty(), "{what}");

    assert_eq!(devices.kicks.try_read(), Some(3), "{what}");
    assert!(level(machine.vm(), HELD_PIN), "{what}");
    restored.sources[0].set_level(false);
    assert!(!level(machine.vm(), HELD_PIN), "{what}");
}

/// A save waits for what KVM, and the sink's thread, have yet to carry out: the rise of a line, and an end of
/// interrupt.
#[test]
fn a_save_waits_for_what_is_under_way() {
    for injection in BOTH {
        let Some(mut machine) = Machine::new() else {
            return;
        };
        machine.open_ioapic_pin(IOAPIC_PIN as usize, LEVEL);
        let devices = Devices::new(&machine, injection, IOAPIC_PIN);
        assert_eq!(taken(&mut machine, Machine::run), [MESSAGE]);
        for round in 1..100 {
            devices.level.signal();
            let state = devices.router.save(|_| 0);
            assert!(
                level(machine.vm(), IOAPIC_PIN),
                "{injection:?}, round {round}"
            );
            assert!(state.lines[0].asserted, "{injection:?}, round {round}");

            assert_eq!(taken(&mut machine, Machine::run), [LEVEL]);
            let state = devices.router.save(|_| 0);
            assert_eq!(state.lines, [], "{injection:?}, round {round}");
            assert_eq!(devices.resample.count(), round, "{injection:?}");
        }
    }
}

/// A flush also waits for an end of interrupt that the sink's thread is reporting to the router. (In a call that the
/// thread makes itself, it does not wait.)
#[test]
fn a_flush_waits_for_the_thread() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    machine.open_ioapic_pin(IOAPIC_PIN as usize, LEVEL);
    let sink = Arc::new(KvmSink::new(descriptor(machine.vm()), Injection::Userspace).unwrap());
    let router = Router::new(Arc::clone(&sink));
    router.set_routes(Routes::identity(24)).unwrap();
    let [event, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
    let _irqfd = router
        .assign_with_resample(&event, IOAPIC_PIN, &resample)
        .unwrap();
    let (entered, told) = (Arc::new(Event::new(0)), Arc::new(AtomicBool::new(false)));
    let gate = Arc::new(Event::new(0));
    let _device = Observation::new(&resample, Interest::Signals, {
        let (entered, told, gate) = (Arc::clone(&entered), Arc::clone(&told), Arc::clone(&gate));
        let sink = Arc::clone(&sink);
        Arc::new(move |_: Change| {
            sink.flush();
            entered.signal();
            gate.read();
            told.store(true, Ordering::Relaxed);
        })
    });
    event.signal();
    router.save(|_| 0).lines.first().expect("the line is up");
    assert_eq!(taken(&mut machine, Machine::run), [LEVEL]);
    entered.read();
    thread::scope(|scope| {
        let flush = scope.spawn(|| {
            sink.flush();
            told.load(Ordering::Relaxed)
        });
        // This gives a flush that does not wait the time to return.
        thread::sleep(Duration::from_millis(50));
        gate.signal();
        assert!(flush.join().unwrap(), "the device has not been told");
    });
}

/// A save also waits for a message that the kernel sends by a worker, as it sends a message for all APICs.
#[test]
fn a_save_waits_for_messages_of_a_worker() {
    for injection in BOTH {
        let Some(mut machine) = Machine::new() else {
            return;
        };
        let sink = KvmSink::new(descriptor(machine.vm()), injection).unwrap();
        let router = Router::new(sink);
        let all = MsiMessage::new(0xfee0_0000 | 0xff << 12, MESSAGE.into());
        router.set_route(MSI, Some(all.into())).unwrap();
        let event = Arc::new(Event::new(0));
        let _irqfd = router.assign(&event, MSI).unwrap();
        for round in 0..100 {
            event.signal();
            let _ = router.save(|_| 0);
            assert!(machine.is_requested(MESSAGE), "{injection:?}, {round}");
            assert_eq!(taken(&mut machine, Machine::run), [MESSAGE]);
        }
    }
}
