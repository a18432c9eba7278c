//! Many threads. A `Controller` stands for the interrupt controller and the guest: it notices edges, and two threads
//! that call it for one line at a time.

use super::sink::message;
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{InterruptSink, Irqfd, IrqfdCounters, MsiMessage, Router, Routes};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

const PIN: u32 = 5;
const MSI: u32 = 24;

#[derive(Default)]
struct Controller {
    level: AtomicBool,
    telling: AtomicBool,
    edges: AtomicU64,
    messages: AtomicU64,
    /// The data of the last message.
    data: AtomicU32,
    sleeps: bool,
}

impl InterruptSink for Controller {
    fn set_level(&self, _: u32, _: u32, level: bool) {
        assert!(
            !self.telling.swap(true, Ordering::Acquire),
            "two calls at a time"
        );
        if self.sleeps {
            thread::sleep(Duration::from_micros(50));
        }
        let before = self.level.swap(level, Ordering::Relaxed);
        if level && !before {
            self.edges.fetch_add(1, Ordering::Relaxed);
        }
        self.telling.store(false, Ordering::Release);
    }

    fn signal_msi(&self, _: u32, message: MsiMessage) {
        self.data.store(message.data, Ordering::Relaxed);
        // Release: a thread that sees the number sees the message.
        self.messages.fetch_add(1, Ordering::Release);
    }
}

impl Controller {
    fn edges(&self) -> u64 {
        self.edges.load(Ordering::Relaxed)
    }

    fn messages(&self) -> u64 {
        self.messages.load(Ordering::Acquire)
    }
}

fn routes(data: u32) -> Routes {
    let mut routes = Routes::identity(24);
    routes.set(MSI, Some(message(data))).unwrap();
    routes
}

/// Two routers: one calls the sink on the threads that signal, the other on a thread of its own.
fn routers() -> [(Router, Arc<Controller>); 2] {
    let (direct, handed_over) = (Arc::new(Controller::default()), Arc::default());
    let routers = [
        (Router::new(Arc::clone(&direct)), direct),
        (
            Router::with_worker(Arc::clone(&handed_over)).unwrap(),
            handed_over,
        ),
    ];
    for (router, _) in &routers {
        router.set_routes(routes(0x41)).unwrap();
    }
    routers
}

/// Sets the flag at the end of a scope, even if that panics, so that the threads in the scope end.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

/// Two irqfds on a pin and two on a vector: after the last signal there is an edge, and the counters agree.
#[test]
fn nothing_is_lost() {
    const ROUNDS: u64 = 2_000;
    for (router, controller) in routers() {
        for gsi in [PIN, MSI] {
            let events = [event(), event()];
            let irqfds = events
                .each_ref()
                .map(|event| router.assign(event, gsi).unwrap());
            let seen = || controller.edges() + controller.messages();
            let start = Barrier::new(2);
            let before = seen();
            let lines_before = router.line_counters(gsi).edges;
            thread::scope(|scope| {
                for event in &events {
                    scope.spawn(|| {
                        start.wait();
                        for round in 0..ROUNDS {
                            event.signal();
                            if round % 64 == 0 {
                                thread::yield_now();
                            }
                        }
                    });
                }
            });
            // The last signal.
            router.synchronize();
            let before_last = seen();
            events[0].signal();
            router.synchronize();
            assert_eq!(seen(), before_last + 1);

            let injections: u64 = irqfds.iter().map(|irqfd| irqfd.counters().injections).sum();
            let signals: u64 = irqfds.iter().map(|irqfd| irqfd.counters().signals).sum();
            assert_eq!(signals, 2 * ROUNDS + 1);
            assert_eq!(seen() - before, injections);
            assert_eq!(router.line_counters(gsi).edges - lines_before, injections);
            assert!(!controller.level.load(Ordering::Relaxed));
        }
    }
}

/// A thread signals without pause, and an irqfd comes and goes: when it has gone, nothing more comes through it.
#[test]
fn deassign_is_a_barrier() {
    for (router, controller) in routers() {
        for gsi in [PIN, MSI] {
            for resample in [None, Some(event())] {
                let (a, stop) = (event(), AtomicBool::new(false));
                thread::scope(|scope| {
                    let _stop = SetAtEnd(&stop);
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            a.signal();
                        }
                    });
                    for _ in 0..100 {
                        let irqfd: Irqfd = match &resample {
                            None => router.assign(&a, gsi).unwrap(),
                            Some(event) => router.assign_with_resample(&a, gsi, event).unwrap(),
                        };
                        thread::yield_now();
                        drop(irqfd);
                        let seen = (controller.edges(), controller.messages());
                        assert!(!controller.level.load(Ordering::Relaxed));
                        thread::yield_now();
                        assert_eq!(seen, (controller.edges(), controller.messages()));
                    }
                });
                // The event counts again.
                let count = a.count();
                a.signal();
                assert_eq!(a.count(), count + 1);
            }
        }
    }
}

/// When a mask and a `synchronize` have returned, nothing is injected. When a route has changed, nothing goes by the
/// old one. Signals that came while the line was masked are injected after the unmask.
#[test]
fn masks_and_routes_are_barriers() {
    for (router, controller) in routers() {
        let (a, stop) = (event(), AtomicBool::new(false));
        let irqfd = router.assign(&a, MSI).unwrap();
        thread::scope(|scope| {
            let _stop = SetAtEnd(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    a.signal();
                }
            });
            for data in 1..200 {
                router.mask(MSI);
                router.synchronize();
                let messages = controller.messages();
                thread::yield_now();
                assert_eq!(controller.messages(), messages);
                let (old, new) = (message(2 * data), message(2 * data + 1));
                match data % 2 {
                    0 => router.unmask_with_route(MSI, old).unwrap(),
                    _ => router.unmask_with_routes([(MSI, old), (40, old)]).unwrap(),
                }
                await_message(&router, &controller, messages, 2 * data);
                // The change of routes waits: every message from now on goes by the new route.
                router
                    .change_routes([(MSI, Some(new)), (40, None)])
                    .unwrap();
                let messages = controller.messages();
                await_message(&router, &controller, messages, 2 * data + 1);
            }
        });
        router.mask(MSI);
        router.synchronize();
        let pending = router.is_pending(MSI);
        let counters = irqfd.counters();
        assert_eq!(
            controller.messages(),
            counters.injections - u64::from(pending)
        );
    }
}

/// Waits for the next message, and returns its data.
fn await_message(router: &Router, controller: &Controller, messages: u64, data: u32) {
    let start = Instant::now();
    while controller.messages() == messages {
        assert!(start.elapsed() < Duration::from_secs(60), "{router:?}");
        thread::yield_now();
    }
    assert_eq!(controller.data.load(Ordering::Relaxed), data);
}

/// A signal that is made after the mask is kept back, though no thread waits.
#[test]
fn a_mask_holds_for_later_signals() {
    for (router, controller) in routers() {
        let a = event();
        let _irqfd = router.assign(&a, MSI).unwrap();
        let (asked, masked) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..500 {
                    asked.wait();
                    a.signal();
                    masked.wait();
                }
            });
            for round in 0..500 {
                router.mask(MSI);
                asked.wait();
                masked.wait();
                assert_eq!(controller.messages(), round);
                assert!(router.is_pending(MSI));
                router.unmask(MSI);
                router.synchronize();
                assert_eq!(controller.messages(), round + 1);
            }
        });
    }
}

/// A level-triggered device with requests, and a guest that serves and acks them, on two threads: the guest is
/// interrupted as long as there are requests, though half of the signals are swallowed.
#[test]
fn no_request_is_forgotten() {
    const REQUESTS: u64 = 20_000;
    for (router, controller) in routers() {
        let (a, resample) = (event(), event());
        let irqfd = router.assign_with_resample(&a, PIN, &resample).unwrap();
        let outstanding = Arc::new(AtomicU64::new(0));
        let device = {
            let (a, outstanding) = (Arc::clone(&a), Arc::clone(&outstanding));
            let observer = move |_: Change| {
                if outstanding.load(Ordering::SeqCst) != 0 {
                    a.signal();
                }
            };
            Observation::new(resample, Interest::Signals, Arc::new(observer))
        };
        let (mut served, mut interrupts) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for request in 0..REQUESTS {
                    outstanding.fetch_add(1, Ordering::SeqCst);
                    a.signal();
                    if request % 16 == 0 {
                        thread::yield_now();
                    }
                }
            });
            let mut start = Instant::now();
            while served < REQUESTS {
                if controller.level.load(Ordering::SeqCst) {
                    served += outstanding.swap(0, Ordering::SeqCst);
                    interrupts += 1;
                    router.ack(PIN);
                    start = Instant::now();
                }
                assert!(start.elapsed() < Duration::from_secs(60), "{served} served");
            }
        });
        // The last signals may have been for requests that were served already.
        while controller.level.load(Ordering::SeqCst) {
            interrupts += 1;
            router.ack(PIN);
        }
        drop(device);
        drop(irqfd);
        assert!(!controller.level.load(Ordering::SeqCst));
        let line = router.line_counters(PIN);
        eprintln!("{REQUESTS} requests, {interrupts} interrupts; {line:?}");
        assert!(line.raises <= line.resamples);
    }
}

/// Two virtual machines race for one event: the event has one owner at a time. (R13)
#[test]
fn two_routers_race_for_an_event() {
    let routers = routers();
    let a = event();
    let owners = AtomicU32::new(0);
    let both = Barrier::new(2);
    let assigned: [u32; 2] = thread::scope(|scope| {
        let threads = routers.each_ref().map(|(router, _)| {
            let (a, owners, both) = (&a, &owners, &both);
            scope.spawn(move || {
                both.wait();
                let mut assigned = 0;
                for _ in 0..2_000 {
                    if let Ok(irqfd) = router.assign(a, MSI) {
                        assert_eq!(owners.fetch_add(1, Ordering::Relaxed), 0);
                        assigned += 1;
                        owners.fetch_sub(1, Ordering::Relaxed);
                        drop(irqfd);
                    }
                }
                assigned
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(assigned.iter().sum::<u32>() > 0, "{assigned:?}");
    drop(routers[0].0.assign(&a, MSI).unwrap());
}

/// A slow sink, which is called on the router's thread: the signaller does not wait, many signals are one edge, and a
/// dropped router leaves nothing undone.
#[test]
fn handed_over() {
    let controller = Arc::new(Controller {
        sleeps: true,
        ..Controller::default()
    });
    let router = Router::with_worker(Arc::clone(&controller)).unwrap();
    router.set_routes(routes(0x41)).unwrap();
    let a = event();
    let irqfd = router.assign(&a, PIN).unwrap();
    for _ in 0..1_000 {
        a.signal();
    }
    let counters = irqfd.counters();
    assert_eq!(counters.signals, 1_000);
    irqfd.keep();
    drop(router);
    assert_eq!(controller.edges(), counters.injections);
    assert!(counters.coalesced > 0);
    assert_eq!(Arc::strong_count(&controller), 1);
}

/// Signals while the irqfd is taken away: each has caused an interrupt, or is in the count.
#[test]
fn a_deassign_loses_nothing() {
    const SIGNALS: u64 = 20;
    for (router, controller) in routers() {
        let (a, both) = (event(), Barrier::new(2));
        let seen = || controller.messages() + u64::from(router.is_pending(MSI));
        let (mut late, mut coalesced, mut wrong) = (0, 0, Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3_000 {
                    both.wait();
                    for _ in 0..SIGNALS {
                        a.signal();
                    }
                    both.wait();
                }
            });
            for round in 0..3_000_u32 {
                let irqfd = router.assign(&a, MSI).unwrap();
                let before = seen();
                both.wait();
                for _ in 0..round % 64 {
                    std::hint::spin_loop();
                }
                // Coalesced signals are among those that the worker has not come to yet.
                let counters = deassigned(&router, irqfd);
                coalesced += counters.coalesced;
                let injected = seen() - before;
                both.wait();
                let left = a.try_read().unwrap_or(0);
                late += left;
                if (injected, injected + counters.coalesced + left)
                    != (counters.injections, SIGNALS)
                {
                    wrong.push((injected, left, counters));
                }
            }
        });
        // This comes last, because the other thread waits for this one.
        assert_eq!(wrong.first(), None);
        eprintln!("{late} signals were late, {coalesced} coalesced");
    }
}

/// The same behind a mask: each signal is in the count in the end, or was coalesced with a signal that is.
#[test]
fn a_deassign_of_a_masked_one_loses_nothing() {
    for (router, controller) in routers() {
        let (a, both, mut wrong) = (event(), Barrier::new(2), Vec::new());
        router.mask(MSI);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3_000 {
                    both.wait();
                    a.signal();
                    a.signal();
                    both.wait();
                }
            });
            for round in 0..3_000_u32 {
                let irqfd = router.assign(&a, MSI).unwrap();
                both.wait();
                for _ in 0..round % 64 {
                    std::hint::spin_loop();
                }
                let counters = deassigned(&router, irqfd);
                both.wait();
                let left = a.try_read().unwrap_or(0);
                if router.is_pending(MSI) || left + counters.coalesced != 2 {
                    wrong.push((left, counters));
                }
            }
        });
        assert_eq!(wrong.first(), None);
        assert_eq!(controller.messages(), 0);
    }
}

/// Deassigns the irqfd, and returns its final counters.
fn deassigned(router: &Router, irqfd: Irqfd) -> IrqfdCounters {
    router.deassign(irqfd.event(), irqfd.gsi());
    irqfd.counters()
}

thread_local! {
    static PULSES: Cell<u32> = const { Cell::new(0) };
}

/// A sink that takes about a microsecond for a pulse, and counts the pulses of each thread.
struct Slowish;

impl InterruptSink for Slowish {
    fn set_level(&self, _: u32, _: u32, _: bool) {}

    fn signal_msi(&self, _: u32, _: MsiMessage) {}

    fn pulse(&self, _: u32, _: u32) {
        PULSES.set(PULSES.get() + 1);
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(1) {
            std::hint::spin_loop();
        }
    }
}

/// Threads that signal one line all the time pulse for one another, but none does so for long.
#[test]
fn a_driver_is_relieved() {
    const SIGNALS: u32 = 60_000;
    for threads in [2, 3] {
        let router = Router::new(Arc::new(Slowish));
        router.set_routes(routes(0x41)).unwrap();
        let most: Vec<u32> = thread::scope(|scope| {
            let thread = || {
                let a = event();
                let _irqfd = router.assign(&a, PIN).unwrap();
                let pulses_of = |_| {
                    let before = PULSES.get();
                    a.signal();
                    PULSES.get() - before
                };
                (0..SIGNALS).map(pulses_of).max().unwrap()
            };
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(thread)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        eprintln!("most pulses of one signal, of {threads} threads: {most:?}");
        // 16 before the driver wants to be relieved, then a few; and some more for each time that it loses the CPU.
        assert!(most.iter().all(|&most| most < 100), "{most:?}");
    }
}

/// A sink that requests the next pulse of one line in each pulse, until it is stopped, and once a pulse of another
/// line.
struct Busy {
    busy: Arc<Event>,
    other: Arc<Event>,
    stop: AtomicBool,
    pulses: AtomicU64,
    /// The pulses before the other line's pulse.
    pulses_before: AtomicU64,
}

impl Busy {
    const LIMIT: u64 = 5_000_000;
    /// The number of pulses after which the other line is signalled.
    const THEN: u64 = 100;
}

impl InterruptSink for Busy {
    fn set_level(&self, _: u32, _: u32, _: bool) {}

    fn signal_msi(&self, _: u32, _: MsiMessage) {}

    fn pulse(&self, gsi: u32, _: u32) {
        let pulses = self.pulses.load(Ordering::Relaxed);
        if gsi != PIN {
            return self.pulses_before.store(pulses, Ordering::Relaxed);
        }
        self.pulses.store(pulses + 1, Ordering::Relaxed);
        if pulses == Self::THEN {
            self.other.signal();
        }
        if pulses < Self::LIMIT && !self.stop.load(Ordering::Relaxed) {
            self.busy.signal();
        }
    }
}

/// The worker pulses a busy line once, and then the other lines. A thread that waits for the worker does not wait for
/// the line to be quiet.
#[test]
fn a_busy_line_does_not_starve_the_worker() {
    let sink = Arc::new(Busy {
        busy: event(),
        other: event(),
        stop: AtomicBool::new(false),
        pulses: AtomicU64::new(0),
        pulses_before: AtomicU64::new(0),
    });
    let router = Router::with_worker(Arc::clone(&sink)).unwrap();
    router.set_routes(Routes::identity(24)).unwrap();
    let irqfds = [(&sink.busy, PIN), (&sink.other, PIN + 1)]
        .map(|(event, gsi)| router.assign(event, gsi).unwrap());
    sink.busy.signal();
    let start = Instant::now();
    while sink.pulses_before.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::yield_now();
    }
    assert_eq!(sink.pulses_before.load(Ordering::Relaxed), Busy::THEN + 1);
    router.synchronize();
    drop(irqfds);
    assert!(sink.pulses.load(Ordering::Relaxed) < Busy::LIMIT);
    sink.stop.store(true, Ordering::Relaxed);
}

/// When a `synchronize` returns, earlier requests are done, even if the worker was in the middle of a turn of that
/// line.
#[test]
fn the_worker_is_waited_for_in_the_midst_of_a_turn() {
    struct Gate {
        entered: Barrier,
        levels: [AtomicU32; 2],
    }
    impl InterruptSink for Gate {
        fn set_level(&self, _: u32, _: u32, level: bool) {
            self.levels[usize::from(level)].fetch_add(1, Ordering::Relaxed);
        }
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
        fn pulse(&self, _: u32, _: u32) {
            self.entered.wait();
            // The request and the `synchronize` come in this time; otherwise the test checks nothing.
            self.entered.wait();
            thread::sleep(Duration::from_millis(20));
        }
    }
    let gate = Arc::new(Gate {
        entered: Barrier::new(2),
        levels: Default::default(),
    });
    let router = Router::with_worker(Arc::clone(&gate)).unwrap();
    router.set_routes(Routes::identity(24)).unwrap();
    let (a, b) = (event(), event());
    let _irqfds = [
        router.assign(&a, PIN).unwrap(),
        router.assign_with_resample(&b, PIN, event()).unwrap(),
    ];
    for round in 1..=3 {
        a.signal();
        gate.entered.wait();
        // In the order of a turn, each of these requests comes before the pulse that is under way.
        router.set_level(PIN, true);
        router.ack(PIN);
        gate.entered.wait();
        router.synchronize();
        let raised = gate.levels[1].load(Ordering::Relaxed);
        assert_eq!(
            (raised, router.line_counters(PIN).resamples),
            (round, round.into())
        );
        router.set_level(PIN, false);
        router.synchronize();
        assert_eq!(gate.levels[0].load(Ordering::Relaxed), round);
    }
}
