//! irqfds: signals against acks, masks, routes and deassigns, and one another.
//!
//! `../breakages/irqfd.toml` lists the ways in which the code was broken on purpose, and which of these models noticed.
//! `event.rs` models how an event calls its observers, and `srcu.rs` when a snapshot may be freed.

use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router, model};
use doorbell::sync::srcu::with_section;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use loom_tests::check;
use std::sync::Arc;

const GSI: u32 = 1;
const PIN: u32 = 2;
const OTHER_PIN: u32 = 3;

/// What the sink was told, and what the guest could see at that time. Relaxed: what orders these accesses is under
/// test.
struct Sink {
    level: [AtomicU32; 4],
    /// Calls under way for the line.
    calls: AtomicU32,
    pulses: AtomicU32,
    messages: AtomicU32,
    /// The data of the last message.
    data: AtomicU32,
    /// What devices wrote to guest memory before they signalled, a bit for each.
    memory: AtomicU32,
    /// The part of `memory` that the handler of the last interrupt sees.
    seen: AtomicU32,
}

impl Sink {
    fn told(&self, f: impl FnOnce()) {
        assert_eq!(
            self.calls.fetch_add(1, Ordering::Relaxed),
            0,
            "two calls at a time"
        );
        f();
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }

    fn interrupt(&self) {
        self.seen.store(load(&self.memory), Ordering::Relaxed);
    }

    fn level(&self, pin: u32) -> u32 {
        load(&self.level[pin as usize])
    }
}

impl InterruptSink for Sink {
    fn set_level(&self, _: u32, pin: u32, level: bool) {
        self.told(|| {
            self.level[pin as usize].store(level.into(), Ordering::Relaxed);
            if level {
                self.interrupt();
            }
        });
    }

    fn signal_msi(&self, _: u32, message: MsiMessage) {
        self.data.store(message.data, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    fn pulse(&self, _: u32, pin: u32) {
        self.told(|| {
            assert_eq!(self.level(pin), 0, "no edge");
            self.pulses.fetch_add(1, Ordering::Relaxed);
            self.interrupt();
        });
    }
}

fn load(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

fn message(data: u32) -> Route {
    Route::Msi(MsiMessage::new(0, data))
}

/// A router with one route, and the line, made before there are threads.
fn router(route: Route) -> (Router, Arc<Sink>) {
    let (router, sink) = router_without_lines(route);
    router.set_level(GSI, false);
    (router, sink)
}

fn router_without_lines(route: Route) -> (Router, Arc<Sink>) {
    let zero = || AtomicU32::new(0);
    let sink = Arc::new(Sink {
        level: std::array::from_fn(|_| zero()),
        calls: zero(),
        pulses: zero(),
        messages: zero(),
        data: zero(),
        memory: zero(),
        seen: zero(),
    });
    let router = Router::new(Arc::clone(&sink));
    router.set_route(GSI, Some(route)).unwrap();
    (router, sink)
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

/// Writes to guest memory and signals, on a thread of the model.
fn device(sink: &Arc<Sink>, bit: u32, event: &Arc<Event>) -> thread::JoinHandle<()> {
    let (sink, event) = (Arc::clone(sink), Arc::clone(event));
    thread::spawn(move || {
        sink.memory.fetch_or(bit, Ordering::Relaxed);
        event.signal();
    })
}

/// Two irqfds pulse one line: the pulses come one at a time, and the last one after both signals.
#[test]
fn two_irqfds_on_one_line() {
    check("two_irqfds_on_one_line", None, || {
        let (router, sink) = router(Route::Pin(PIN));
        let events = [event(), event()];
        let _irqfds = events
            .each_ref()
            .map(|event| router.assign(event, GSI).unwrap());
        let other = device(&sink, 2, &events[1]);
        sink.memory.fetch_or(1, Ordering::Relaxed);
        events[0].signal();
        other.join().unwrap();
        assert_eq!(load(&sink.seen), 3);
        assert!((1..=2).contains(&load(&sink.pulses)));
    });
}

/// A driver whose work does not end is relieved by another thread that signals. No requests of either are lost, and
/// they are carried out one at a time.
#[test]
fn a_driver_is_relieved() {
    let relieved = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&relieved);
    check("a_driver_is_relieved", Some(3), move || {
        model::relieve_after(0);
        let (router, sink) = router(Route::Pin(PIN));
        let resample = event();
        let _busy = router.assign_with_resample(event(), GSI, &resample);
        // The line is acked again each time its resample event is signalled.
        let drivers = Arc::new(std::sync::Mutex::new(Vec::new()));
        let observer = {
            let (router, drivers) = (router.clone(), Arc::clone(&drivers));
            move |_: Change| {
                let mut drivers = drivers.lock().unwrap();
                drivers.push(thread::current().id());
                let acks = drivers.len();
                drop(drivers);
                if acks < 3 {
                    router.ack(GSI);
                }
            }
        };
        let _observation = Observation::new(resample, Interest::Signals, Arc::new(observer));
        let event = event();
        let _irqfd = router.assign(&event, GSI).unwrap();
        let device = device(&sink, 1, &event);
        router.ack(GSI);
        device.join().unwrap();
        let drivers = drivers.lock().unwrap();
        assert_eq!(drivers.len(), 3);
        if drivers[0] != drivers[2] {
            seen.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        assert_eq!((load(&sink.pulses), load(&sink.seen)), (1, 1));
    });
    assert!(relieved.load(std::sync::atomic::Ordering::Relaxed));
}

/// A signal causes one interrupt before the deassign has returned; or it causes none, and is in the count.
#[test]
fn signal_and_deassign() {
    for route in [Route::Pin(PIN), message(7)] {
        check("signal_and_deassign", Some(3), move || {
            let (router, sink) = router(route);
            let event = event();
            let irqfd = router.assign(&event, GSI).unwrap();
            let device = device(&sink, 1, &event);
            drop(irqfd);
            let injected = load(&sink.pulses) + load(&sink.messages);
            device.join().unwrap();
            let after = load(&sink.pulses) + load(&sink.messages);
            assert_eq!(after, injected);
            assert_eq!(u64::from(injected) + event.count(), 1);
        });
    }
}

/// A count that was there when an irqfd was assigned has caused its interrupt, and goes with the irqfd. A signal during
/// the deassign is injected or stays in the event.
#[test]
fn signal_and_deassign_with_a_count() {
    check("signal_and_deassign_with_a_count", Some(2), || {
        let (router, sink) = router(Route::Pin(PIN));
        let event = Arc::new(Event::new(1));
        let device = {
            let (event, sink) = (Arc::clone(&event), Arc::clone(&sink));
            thread::spawn(move || {
                for bit in [1, 2] {
                    sink.memory.fetch_or(bit, Ordering::Relaxed);
                    event.signal();
                }
            })
        };
        drop(router.assign(&event, GSI).unwrap());
        device.join().unwrap();
        assert!(event.count() <= 2);
        assert!(event.count() != 0 || load(&sink.seen) == 3);
        // The count consists of signals alone, so an assign takes all of it.
        drop(router.assign(&event, GSI).unwrap());
        assert_eq!(event.count(), 0);
    });
}

/// A signal that a mask keeps back is given back to the event whose irqfd goes. The signal is not pending for the next
/// user of the GSI. The next user may come at the same time, and its own signal stays pending.
#[test]
fn deassign_of_a_masked_one() {
    check("deassign_of_a_masked_one", Some(2), || {
        let (router, sink) = router(message(7));
        router.mask(GSI);
        let old = event();
        let irqfd = router.assign(&old, GSI).unwrap();
        old.signal();
        let next = {
            let router = router.clone();
            thread::spawn(move || {
                let event = event();
                let irqfd = router.assign(&event, GSI).unwrap();
                event.signal();
                (irqfd, event)
            })
        };
        drop(irqfd);
        assert_eq!(old.count(), 1);
        let (irqfd, event) = next.join().unwrap();
        assert!(router.is_pending(GSI));
        drop(irqfd);
        assert_eq!((event.count(), router.is_pending(GSI)), (1, false));
        router.unmask(GSI);
        assert_eq!(load(&sink.messages), 0);
    });
}

/// The same while the signal comes: if it is pending, it is given back.
#[test]
fn signal_and_deassign_of_a_masked_one() {
    check("signal_and_deassign_of_a_masked_one", Some(3), || {
        let (router, sink) = router(message(7));
        router.mask(GSI);
        let event = event();
        let irqfd = router.assign(&event, GSI).unwrap();
        let device = device(&sink, 1, &event);
        drop(irqfd);
        device.join().unwrap();
        assert_eq!((event.count(), router.is_pending(GSI)), (1, false));
    });
}

/// Lowers the line when the signaller is done, so that there are fewer interleavings.
struct Slow {
    signalled: Notify,
    pulses: AtomicU32,
}

impl InterruptSink for Slow {
    fn set_level(&self, _: u32, _: u32, level: bool) {
        if !level {
            self.signalled.wait();
        }
    }

    fn signal_msi(&self, _: u32, _: MsiMessage) {}

    fn pulse(&self, _: u32, _: u32) {
        self.pulses.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pulse that another thread makes on behalf of the irqfd does not come after the deassign either.
#[test]
fn signal_left_to_a_driver_and_deassign() {
    check("signal_left_to_a_driver_and_deassign", Some(3), || {
        let sink = Arc::new(Slow {
            signalled: Notify::new(),
            pulses: AtomicU32::new(0),
        });
        let router = Router::new(Arc::clone(&sink));
        router.set_route(GSI, Some(Route::Pin(PIN))).unwrap();
        router.set_level(GSI, true);
        let event = event();
        let irqfd = router.assign(&event, GSI).unwrap();
        let device = {
            let (event, sink) = (Arc::clone(&event), Arc::clone(&sink));
            thread::spawn(move || {
                event.signal();
                sink.signalled.notify();
            })
        };
        let driver = {
            let router = router.clone();
            thread::spawn(move || router.set_level(GSI, false))
        };
        drop(irqfd);
        let pulses = load(&sink.pulses);
        driver.join().unwrap();
        device.join().unwrap();
        assert_eq!(load(&sink.pulses), pulses);
    });
}

/// A signal that comes while an irqfd is assigned is injected: by the signaller, or as a count that was there before.
#[test]
fn signal_and_assign() {
    check("signal_and_assign", Some(3), || {
        let (router, sink) = router(message(7));
        let event = event();
        let device = device(&sink, 1, &event);
        let irqfd = router.assign(&event, GSI).unwrap();
        device.join().unwrap();
        let messages = load(&sink.messages);
        assert!((1..=2).contains(&messages));
        assert_eq!(irqfd.counters().injections, u64::from(messages));
    });
}

/// A device with a request, which signals again when its resample event is signalled.
fn resampling(event: &Arc<Event>, resample: &Arc<Event>, wants: &Arc<AtomicU32>) -> Observation {
    let (event, wants) = (Arc::clone(event), Arc::clone(wants));
    let observer = move |_: Change| {
        if load(&wants) != 0 {
            event.signal();
        }
    };
    Observation::new(Arc::clone(resample), Interest::Signals, Arc::new(observer))
}

/// Whatever an ack swallows, the device is asked afterwards: the line is up if the device has a request, and an ack
/// lowers it if the device has none.
#[test]
fn signal_and_ack() {
    check("signal_and_ack", Some(3), || {
        let (router, sink) = router(Route::Pin(PIN));
        let (event, resample, wants) = (event(), event(), Arc::new(AtomicU32::new(0)));
        let _irqfd = router.assign_with_resample(&event, GSI, &resample).unwrap();
        let _device = resampling(&event, &resample, &wants);
        // A spurious interrupt is in service.
        event.signal();
        let device = {
            let (event, wants) = (Arc::clone(&event), Arc::clone(&wants));
            thread::spawn(move || {
                wants.store(1, Ordering::Relaxed);
                event.signal();
            })
        };
        router.ack(GSI);
        device.join().unwrap();
        assert_eq!(sink.level(PIN), 1);
        wants.store(0, Ordering::Relaxed);
        router.ack(GSI);
        assert_eq!(sink.level(PIN), 0);
    });
}

/// Two acks at a time, of a line that two devices share.
#[test]
fn ack_and_ack() {
    check("ack_and_ack", Some(2), || {
        let (router, sink) = router(Route::Pin(PIN));
        let wants = Arc::new(AtomicU32::new(0));
        let devices = [event(), event()].map(|event| {
            let resample = self::event();
            let irqfd = router.assign_with_resample(&event, GSI, &resample).unwrap();
            (irqfd, resampling(&event, &resample, &wants))
        });
        devices[0].0.event().signal();
        let other = {
            let (router, wants) = (router.clone(), Arc::clone(&wants));
            let event = devices[1].0.event().clone();
            thread::spawn(move || {
                wants.store(1, Ordering::Relaxed);
                event.signal();
                router.ack(GSI);
            })
        };
        router.ack(GSI);
        other.join().unwrap();
        assert_eq!(sink.level(PIN), 1);
    });
}

/// The last resampling irqfd goes, and lowers the line, while another comes, and raises it.
#[test]
fn deassign_and_assign_on_one_line() {
    check("deassign_and_assign_on_one_line", Some(2), || {
        let (router, sink) = router(Route::Pin(PIN));
        let old = event();
        let irqfd = router.assign_with_resample(&old, GSI, event()).unwrap();
        old.signal();
        let other = {
            let router = router.clone();
            thread::spawn(move || {
                let (event, resample) = (event(), event());
                let wants = Arc::new(AtomicU32::new(1));
                let device = resampling(&event, &resample, &wants);
                let irqfd = router.assign_with_resample(&event, GSI, &resample).unwrap();
                event.signal();
                (device, irqfd)
            })
        };
        drop(irqfd);
        let other = other.join().unwrap();
        assert_eq!(sink.level(PIN), 1);
        drop(other);
        assert_eq!(sink.level(PIN), 0);
    });
}

/// Once the change of routes has returned, nothing is injected by the old route.
#[test]
fn signal_and_route() {
    check("signal_and_route", Some(3), || {
        let (router, sink) = router(message(7));
        let event = event();
        let _irqfd = router.assign(&event, GSI).unwrap();
        let device = device(&sink, 1, &event);
        router.set_route(GSI, Some(message(8))).unwrap();
        let sent = load(&sink.messages) != 0;
        device.join().unwrap();
        assert_eq!(load(&sink.messages), 1);
        assert!(sent || load(&sink.data) == 8);
    });
}

/// A line that goes up while its route changes is up at the new pin only.
#[test]
fn level_and_route() {
    check("level_and_route", Some(3), || {
        let (router, sink) = router(Route::Pin(PIN));
        let event = event();
        let _irqfd = router
            .assign_with_resample(&event, GSI, self::event())
            .unwrap();
        let device = device(&sink, 1, &event);
        router.set_route(GSI, Some(Route::Pin(OTHER_PIN))).unwrap();
        assert_eq!(sink.level(PIN), 0);
        device.join().unwrap();
        assert_eq!((sink.level(PIN), sink.level(OTHER_PIN)), (0, 1));
    });
}

/// Once a mask and the wait for injections under way have returned, there is no injection. A signal meanwhile is
/// injected after the unmask, once, by the new route.
#[test]
fn signal_and_mask() {
    check("signal_and_mask", Some(3), || {
        let (router, sink) = router(message(7));
        let event = event();
        let irqfd = router.assign(&event, GSI).unwrap();
        let device = device(&sink, 1, &event);
        router.mask(GSI);
        router.synchronize();
        let sent = load(&sink.messages);
        // The guest writes the vector's message.
        router.set_route(GSI, Some(message(8))).unwrap();
        assert_eq!(load(&sink.messages), sent);
        router.unmask(GSI);
        device.join().unwrap();
        assert_eq!(load(&sink.messages), 1);
        assert_eq!(load(&sink.data), if sent == 0 { 8 } else { 7 });
        assert_eq!(irqfd.counters().injections, 1);
        assert!(!router.is_pending(GSI));
    });
}

/// The same for a vector that has no message before it is unmasked: no signal is lost.
#[test]
fn signal_and_first_unmask() {
    check("signal_and_first_unmask", Some(3), || {
        let (router, sink) = router(message(7));
        router.set_route(GSI, None).unwrap();
        router.mask(GSI);
        let event = event();
        let _irqfd = router.assign(&event, GSI).unwrap();
        let device = device(&sink, 1, &event);
        router.unmask_with_route(GSI, message(8)).unwrap();
        device.join().unwrap();
        assert_eq!((load(&sink.messages), load(&sink.data)), (1, 8));
    });
}

/// The same inside an observer's call, where a change of routes does not wait.
#[test]
fn signal_and_unmask_inside_a_call() {
    check("signal_and_unmask_inside_a_call", Some(3), || {
        let (router, sink) = router(message(7));
        router.set_route(GSI, None).unwrap();
        router.mask(GSI);
        let event = event();
        let _irqfd = router.assign(&event, GSI).unwrap();
        let device = device(&sink, 1, &event);
        with_section(|_| router.unmask_with_route(GSI, message(8)).unwrap());
        device.join().unwrap();
        assert_eq!((load(&sink.messages), load(&sink.data)), (1, 8));
    });
}

/// A mask lowers the line; if a thread is raising it, that thread lowers it. The level that the guest sees after the
/// unmask is not stale.
#[test]
fn level_and_mask() {
    check("level_and_mask", Some(3), || {
        let (router, sink) = router(Route::Pin(PIN));
        let (event, resample, wants) = (event(), event(), Arc::new(AtomicU32::new(1)));
        let _irqfd = router.assign_with_resample(&event, GSI, &resample).unwrap();
        let _observation = resampling(&event, &resample, &wants);
        let device = device(&sink, 1, &event);
        router.mask(GSI);
        router.synchronize();
        assert_eq!(sink.level(PIN), 0);
        router.unmask(GSI);
        device.join().unwrap();
        assert_eq!(sink.level(PIN), 1);
    });
}

/// Two devices use a line for the first time, and share it: it is up as long as either device holds it up.
#[test]
fn two_level_sources() {
    check("two_level_sources", Some(3), || {
        let (router, sink) = router_without_lines(Route::Pin(PIN));
        let other = {
            let router = router.clone();
            thread::spawn(move || {
                let source = router.level_source(GSI);
                source.set_level(true);
                source
            })
        };
        let source = router.level_source(GSI);
        source.set_level(true);
        source.set_level(false);
        let other = other.join().unwrap();
        assert_eq!(sink.level(PIN), 1);
        drop(other);
        assert_eq!(sink.level(PIN), 0);
    });
}

/// Two threads change one source. In the end the line has the source's level.
#[test]
fn one_level_source_of_two_threads() {
    check("one_level_source_of_two_threads", Some(3), || {
        let (router, sink) = router(Route::Pin(PIN));
        let source = Arc::new(router.level_source(GSI));
        let other = {
            let source = Arc::clone(&source);
            thread::spawn(move || source.set_level(true))
        };
        source.set_level(false);
        other.join().unwrap();
        assert_eq!(sink.level(PIN), u32::from(source.level()));
        source.set_level(false);
        assert_eq!(sink.level(PIN), 0);
    });
}

/// A deassign inside an observer's call, while another thread signals: the line does not stay up, and the event is free
/// in the end.
#[test]
fn deassign_inside_a_call() {
    check("deassign_inside_a_call", Some(2), || {
        let (router, sink) = router(Route::Pin(PIN));
        let event = event();
        let irqfd = router
            .assign_with_resample(&event, GSI, self::event())
            .unwrap();
        let device = device(&sink, 1, &event);
        // Stands for the call.
        with_section(|_| drop(irqfd));
        device.join().unwrap();
        // The device's thread may have been inside a section when the call ended.
        doorbell::reclaim();
        assert_eq!(sink.level(PIN), 0);
        drop(router.assign(&event, GSI).unwrap());
    });
}
