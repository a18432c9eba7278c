//! KVM's rules, by the numbers of the conformance cases (`R1` to `R49`, a part of a reference of the kernel's observed
//! behaviour). `tests/kvm/irqfd` runs those that involve an interrupt controller on KVM itself.
//!
//! | case | here |
//! |---|---|
//! | R7 one irqfd for an event, in any VM | [`one_irqfd_for_an_event`] |
//! | R8 several events on a GSI | [`several_events_on_a_line`] |
//! | R9, R10, R11 deassign, match or not | [`deassign_matches_event_and_gsi`] |
//! | R13 races of assign and deassign | `threads.rs` |
//! | R14, R15, R16, R19 consumption | [`the_count_is_consumed`], [`a_write_of_0_interrupts`], [`semaphore`], [`deassign_drains`] |
//! | R17 count at assign | [`count_at_assign`] |
//! | R20 pollers and readers | [`a_reader_asleep_finds_nothing`] |
//! | R21 coalescing | `threads.rs`; alone, a signal is one pulse: [`the_count_is_consumed`] |
//! | R22 pulse on a level pin | decided by the interrupt controller |
//! | R23 ioeventfd and irqfd on one event | [`a_doorbell_that_interrupts`] |
//! | R25, R26, R27 routes | [`without_a_route`], [`rerouted`] |
//! | R28 invalid routes | [`invalid_routes`] |
//! | R31, R32, R33 resample | [`resample`], [`a_signal_before_the_ack_is_swallowed`] |
//! | R34, R38, R39 several resamplers, and their end | [`all_resamplers_are_told`], [`the_last_resampler_lowers`] |
//! | R35, R37 other sources | [`ack_of_somebody_elses_interrupt`], [`a_pulse_while_the_line_is_up`] |
//! | R41 event = resample event | refused: [`its_own_resample_event`] |
//! | R43, R44 unmask of a level | [`unmask_asks_the_resamplers`], [`unmask_without_resamplers`] |
//! | R46 the VM goes | [`the_router_goes`] |
//! | R47 deassign is a barrier | `threads.rs` |
//!
//! Cases without a counterpart: R1, R5, R29 (no interrupt controller: there is no router without a sink, which may
//! refuse: [`the_sink_refuses`]), R2 to R4 (invalid flags and descriptors), R40, R45 (closing a descriptor: an irqfd
//! keeps its events). R49, the brake on interrupt storms, is the interrupt controller's.

use super::errors::assert_becomes;
use super::sink::{Call, Log, down, message, up};
use super::watchdog;
use doorbell::event::{Batch, Change, Interest, Observation};
use doorbell::ioeventfd::{Bus, Key, Table};
use doorbell::irqfd::{
    AssignError, Eoi, InterruptSink, MsiMessage, Route, RouteChange, RouteError, Router, Routes,
    RoutingError,
};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Mode};
use std::error::Error;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

const PIN: u32 = 5;
const MSI: u32 = 24;

/// Pins 0 to 23 of the same GSIs, and a message on GSI 24.
fn router() -> (Router, Arc<Log>) {
    let log = Arc::new(Log::default());
    let router = Router::new(Arc::clone(&log));
    let mut routes = Routes::identity(24);
    routes.set(MSI, Some(message(0x41))).unwrap();
    router.set_routes(routes).unwrap();
    (router, log)
}

/// The calls by which the pin goes up and down again.
fn pulse(gsi: u32, pin: u32) -> [Call; 2] {
    [up(gsi, pin), down(gsi, pin)]
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

fn sent(data: u32) -> Call {
    Call::Msi { gsi: MSI, data }
}

#[test]
fn one_irqfd_for_an_event() {
    let (router, _) = router();
    let (other_vm, _) = self::router();
    let a = event();
    let irqfd = router.assign(&a, PIN).unwrap();
    for result in [
        router.assign(&a, PIN),
        router.assign(&a, PIN + 1),
        router.assign(Arc::clone(&a), PIN + 1),
        router.assign_with_resample(&a, PIN, event()),
        other_vm.assign(&a, PIN),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, AssignError::Busy));
        assert_becomes(error, ErrorKind::ResourceBusy);
    }
    drop(irqfd);
    drop(other_vm.assign(&a, PIN).unwrap());
    drop(router.assign(&a, PIN).unwrap());
}

#[test]
fn several_events_on_a_line() {
    let (router, log) = router();
    let events = [event(), event()];
    let irqfds = events
        .each_ref()
        .map(|event| router.assign(event, PIN).unwrap());
    for event in &events {
        event.signal();
        assert_eq!(log.take(), pulse(PIN, PIN));
    }
    let [a, b] = irqfds;
    drop(a);
    events[0].signal();
    assert_eq!(log.take(), []);
    events[1].signal();
    assert_eq!(log.take(), pulse(PIN, PIN));
    assert_eq!(b.counters().signals, 2);
}

#[test]
fn deassign_matches_event_and_gsi() {
    let (router, log) = router();
    let a = event();
    router.deassign(&a, PIN);
    let irqfd = router.assign(&a, PIN).unwrap();
    assert!(irqfd.event().ptr_eq(&a));
    assert_eq!(irqfd.gsi(), PIN);
    router.deassign(&a, PIN + 2);
    router.deassign(&event(), PIN);
    assert!(router.assign(&a, PIN + 1).is_err());
    a.signal();
    assert_eq!(log.take(), pulse(PIN, PIN));
    router.deassign(&a, PIN);
    router.deassign(&a, PIN);
    // Dropping the old handle does not affect the new irqfd.
    router.assign(&a, PIN + 1).unwrap().keep();
    drop(irqfd);
    a.signal();
    assert_eq!(log.take(), pulse(PIN + 1, PIN + 1));
    // The resample event does not matter either.
    router.deassign(&a, PIN + 1);
    router
        .assign_with_resample(&a, PIN, event())
        .unwrap()
        .keep();
    router.deassign(&a, PIN);
    a.signal();
    assert_eq!(log.take(), []);
}

#[test]
fn the_count_is_consumed() {
    let (router, log) = router();
    let a = event();
    let irqfd = router.assign(&a, PIN).unwrap();
    a.write(5).unwrap();
    assert_eq!(log.take(), pulse(PIN, PIN));
    assert_eq!(a.try_read(), None);
    assert!(!a.readiness().is_readable() && a.readiness().is_writable());
    drop(irqfd);

    let _irqfd = router.assign(&a, MSI).unwrap();
    a.signal_n(u64::MAX);
    assert_eq!(log.take(), [sent(0x41)]);
    assert_eq!(a.count(), 0);
}

#[test]
fn a_write_of_0_interrupts() {
    let (router, log) = router();
    let a = event();
    let irqfd = router.assign(&a, PIN).unwrap();
    a.write(0).unwrap();
    assert_eq!(log.take(), pulse(PIN, PIN));
    assert_eq!(irqfd.counters().signals, 1);
}

#[test]
fn semaphore() {
    let (router, log) = router();
    let a = Arc::new(Event::with_mode(0, Mode::Semaphore));
    let irqfd = router.assign(&a, PIN).unwrap();
    a.write(5).unwrap();
    assert_eq!(log.take(), pulse(PIN, PIN));
    assert_eq!(a.count(), 4);
    drop(irqfd);
    assert_eq!(a.count(), 3);
}

#[test]
fn count_at_assign() {
    for gsi in [PIN, MSI] {
        let (router, log) = router();
        let a = Arc::new(Event::new(3));
        let irqfd = router.assign(&a, gsi).unwrap();
        assert_eq!(log.take().len(), if gsi == MSI { 1 } else { 2 });
        assert_eq!(a.count(), 3);
        a.write(1).unwrap();
        assert_eq!(a.count(), 0);
        assert_eq!(log.take().len(), if gsi == MSI { 1 } else { 2 });
        assert_eq!(irqfd.counters().injections, 2);
    }
}

#[test]
fn deassign_drains() {
    let (router, log) = router();
    let a = Arc::new(Event::new(4));
    let irqfd = router.assign(&a, PIN).unwrap();
    assert_eq!(log.take(), pulse(PIN, PIN));
    drop(irqfd);
    assert_eq!(a.count(), 0);
    a.write(2).unwrap();
    assert_eq!(log.take(), []);
    assert_eq!(a.try_read(), Some(2));
}

/// An irqfd takes a signal before a thread or a poller that waits for the same event is woken, however long an observer
/// takes that is called before the irqfd.
#[test]
fn a_reader_asleep_finds_nothing() {
    watchdog::limit("a_reader_asleep_finds_nothing", || {
        for (in_poller, in_a_batch) in [(false, false), (false, true), (true, false), (true, true)]
        {
            let (router, log) = router();
            let a = event();
            let irqfd = router.assign(&a, PIN).unwrap();
            // A thread that was woken before the irqfd would take the count during this call.
            let slow = Arc::new(|_: Change| thread::sleep(Duration::from_millis(20)));
            let _slow = Observation::new(Arc::clone(&a), Interest::Signals, slow);
            let poller = Poller::new();
            poller.add(&a, 0, Watch::READABLE).unwrap();
            let read = || {
                if !in_poller {
                    return Some(a.read());
                }
                let mut found = Events::with_capacity(1);
                while poller.wait(&mut found, None).unwrap() == 0 {}
                a.try_read()
            };
            let asleep = match in_poller {
                true => "waiting: 1",
                false => "waiting_readers: 1",
            };
            thread::scope(|scope| {
                let reader = scope.spawn(read);
                while !format!("{a:?} {poller:?}").contains(asleep) {
                    thread::yield_now();
                }
                if in_a_batch {
                    let mut batch = Batch::new();
                    let index = batch.add(Arc::clone(&a));
                    batch.signal(index);
                    batch.commit().unwrap();
                } else {
                    a.signal();
                }
                assert_eq!(log.take(), pulse(PIN, PIN));
                // The reader sleeps on, and gets what comes after the irqfd.
                drop(irqfd);
                a.write(7).unwrap();
                assert_eq!(reader.join().unwrap(), Some(7), "{asleep}, {in_a_batch}");
            });
        }
    });
}

/// An irqfd takes one unit of a semaphore. A thread that sleeps is woken for the rest, even if the sink panics.
#[test]
fn a_reader_asleep_gets_what_is_left() {
    struct Panics;
    impl InterruptSink for Panics {
        fn set_level(&self, _: u32, _: u32, _: bool) {}
        fn signal_msi(&self, _: u32, _: MsiMessage) {
            panic!("for the test");
        }
    }
    let log = Arc::new(Log::default());
    let routers = [Router::new(log), Router::new(Arc::new(Panics))];
    for (router, panics) in routers.iter().zip([false, true]) {
        router.set_route(MSI, Some(message(0x41))).unwrap();
        for in_a_batch in [false, true] {
            let a = Arc::new(Event::semaphore(0));
            let _irqfd = router.assign(&a, MSI).unwrap();
            thread::scope(|scope| {
                let reader = scope.spawn(|| a.read_timeout(Duration::from_secs(60)));
                while !format!("{a:?}").contains("waiting_readers: 1") {
                    thread::yield_now();
                }
                let signal = AssertUnwindSafe(|| {
                    if in_a_batch {
                        let mut batch = Batch::new();
                        let index = batch.add(Arc::clone(&a));
                        batch.signal_n(index, 3);
                        batch.commit().unwrap();
                    } else {
                        a.signal_n(3);
                    }
                });
                assert_eq!(catch_unwind(signal).is_err(), panics);
                assert_eq!(reader.join().unwrap(), Some(1), "{panics}, {in_a_batch}");
            });
            assert_eq!(a.count(), 1);
        }
    }
}

#[test]
fn a_doorbell_that_interrupts() {
    let (router, log) = router();
    let table = Table::new();
    let a = event();
    let _irqfd = router.assign(&a, MSI).unwrap();
    let _doorbell = table.assign(Key::mmio(0xd000_0000, 4), &a).unwrap();
    assert!(table.write(Bus::Mmio, 0xd000_0000, &[0; 4]));
    assert_eq!(log.take(), [sent(0x41)]);
    assert_eq!(a.count(), 0);
}

#[test]
fn without_a_route() {
    let (router, log) = router();
    for gsi in [40, 4095, 4096, u32::MAX] {
        let (a, b) = (event(), event());
        let _plain = router.assign(&a, gsi).unwrap();
        let _level = router.assign_with_resample(&b, gsi, event()).unwrap();
        a.signal();
        b.signal();
        assert_eq!((a.count(), b.count()), (0, 0));
        let set = router.set_route(gsi, Some(Route::Pin(40)));
        assert_eq!(set.is_ok(), gsi < 4096);
        assert_eq!(log.take(), []);
        assert_eq!(router.line_counters(gsi).lost, 2);
        if set.is_ok() {
            a.signal();
            assert_eq!(log.take(), pulse(gsi, 40));
            router.set_route(gsi, None).unwrap();
        }
    }
}

#[test]
fn rerouted() {
    let (router, log) = router();
    let (a, b) = (event(), event());
    let _a = router.assign(&a, MSI).unwrap();
    let _b = router.assign(&b, PIN).unwrap();
    router.set_route(MSI, Some(message(0x62))).unwrap();
    a.signal();
    assert_eq!(log.take(), [sent(0x62)]);
    // A GSI changes from a pin to a message, and back.
    router
        .set_routes(Routes::from_entries([(PIN, message(0x63)), (MSI, Route::Pin(1))]).unwrap())
        .unwrap();
    a.signal();
    b.signal();
    let as_message = Call::Msi {
        gsi: PIN,
        data: 0x63,
    };
    let [up, down] = pulse(MSI, 1);
    assert_eq!(log.take(), [up, down, as_message]);
    router.set_routes(Routes::new()).unwrap();
    a.signal();
    b.signal();
    assert_eq!(log.take(), []);
    assert_eq!((a.count(), b.count()), (0, 0));
}

/// A line that is up moves to its new pin. (KVM leaves the old pin up.)
#[test]
fn rerouted_while_up() {
    let (router, log) = router();
    let a = event();
    let _a = router.assign_with_resample(&a, PIN, event()).unwrap();
    a.signal();
    assert_eq!(log.take(), [up(PIN, PIN)]);
    router.set_route(PIN, Some(Route::Pin(30))).unwrap();
    assert_eq!(log.take(), [down(PIN, PIN), up(PIN, 30)]);
    router.set_route(40, Some(Route::Pin(40))).unwrap();
    assert_eq!(log.take(), []);
    router.set_route(PIN, None).unwrap();
    assert_eq!(log.take(), [down(PIN, 30)]);
    router.set_route(PIN, Some(Route::Pin(31))).unwrap();
    assert_eq!(log.take(), [up(PIN, 31)]);
    router.ack(PIN);
    assert_eq!(log.take(), [down(PIN, 31)]);
}

#[test]
fn invalid_routes() {
    fn entries<const N: usize>(entries: [(u32, Route); N]) -> Result<Routes, RouteError> {
        Routes::from_entries(entries)
    }
    assert_eq!(
        entries([(1, message(1)), (1, message(2))]),
        Err(RouteError::GsiTwice)
    );
    assert_eq!(entries([(4096, message(1))]), Err(RouteError::Gsi));
    assert_eq!(
        entries([(1, Route::Pin(7)), (2, Route::Pin(7))]),
        Err(RouteError::PinTwice)
    );
    let mut routes = entries([(4095, message(1)), (3, Route::Pin(7))]).unwrap();
    assert_eq!(routes.gsi_of(7), Some(3));
    assert_eq!(routes.set(3, Some(Route::Pin(7))), Ok(()));
    routes.set(4095, None).unwrap();
    assert_eq!(routes, entries([(3, Route::Pin(7))]).unwrap());

    let (router, _) = router();
    let before = router.routes();
    let error = router.set_route(PIN, Some(Route::Pin(6))).unwrap_err();
    assert!(matches!(error, RoutingError::Invalid(RouteError::PinTwice)));
    assert_becomes(error, ErrorKind::InvalidInput);
    assert_eq!(router.routes(), before);
}

#[test]
fn resample() {
    let (router, log) = router();
    let (a, rs) = (event(), event());
    let irqfd = router.assign_with_resample(&a, PIN, &rs).unwrap();
    for _ in 0..2 {
        a.signal();
        assert_eq!(log.take(), [up(PIN, PIN)]);
        assert_eq!((a.count(), rs.count()), (0, 0));
        router.ack(PIN);
        assert_eq!(log.take(), [down(PIN, PIN)]);
        assert_eq!(rs.try_read(), Some(1));
    }
    assert_eq!(irqfd.counters().injections, 2);
    let line = router.line_counters(PIN);
    assert_eq!((line.raises, line.resamples, line.edges), (2, 2, 0));
}

/// The line is low by the time the resample events are signalled, and signals that come then count.
#[test]
fn down_first_then_resample() {
    let (router, log) = router();
    let (a, rs) = (event(), event());
    let _irqfd = router.assign_with_resample(&a, PIN, &rs).unwrap();
    let observation = {
        let (a, log) = (Arc::clone(&a), Arc::clone(&log));
        let seen = Mutex::new(Vec::new());
        let again = AtomicU32::new(1);
        let observer = move |_: Change| {
            seen.lock().unwrap().push(log.take());
            if again.swap(0, Ordering::Relaxed) == 1 {
                a.signal();
            }
            assert_eq!(seen.lock().unwrap()[0], [up(PIN, PIN), down(PIN, PIN)]);
        };
        Observation::new(rs, Interest::Signals, Arc::new(observer))
    };
    a.signal();
    router.ack(PIN);
    assert_eq!(log.take(), [up(PIN, PIN)]);
    router.ack(PIN);
    assert_eq!(log.take(), []);
    drop(observation);
}

#[test]
fn a_signal_before_the_ack_is_swallowed() {
    let (router, log) = router();
    let (a, rs) = (event(), event());
    let irqfd = router.assign_with_resample(&a, PIN, &rs).unwrap();
    a.signal();
    a.signal();
    assert_eq!(irqfd.counters().coalesced, 1);
    router.ack(PIN);
    assert_eq!(log.take(), [up(PIN, PIN), down(PIN, PIN)]);
    assert_eq!(rs.try_read(), Some(1));
    a.signal();
    assert_eq!(log.take(), [up(PIN, PIN)]);
}

#[test]
fn all_resamplers_are_told() {
    let (router, log) = router();
    let (a, b, c) = (event(), event(), event());
    let (rs, rs2) = (event(), event());
    let irqfd = router.assign_with_resample(&a, PIN, &rs).unwrap();
    let _b = router.assign_with_resample(&b, PIN, &rs2).unwrap();
    // One resample event may serve several irqfds.
    let _c = router.assign_with_resample(&c, PIN, &rs2).unwrap();
    a.signal();
    router.ack(PIN);
    assert_eq!((rs.try_read(), rs2.try_read()), (Some(1), Some(2)));
    log.take();

    a.signal();
    drop(irqfd);
    assert_eq!(log.take(), [up(PIN, PIN)]); // and it stays up
    router.ack(PIN);
    assert_eq!((rs.try_read(), rs2.try_read()), (None, Some(2)));
    assert_eq!(log.take(), [down(PIN, PIN)]);
}

#[test]
fn the_last_resampler_lowers() {
    let (router, log) = router();
    let (a, rs) = (event(), event());
    let irqfd = router.assign_with_resample(&a, PIN, &rs).unwrap();
    a.signal();
    drop(irqfd);
    assert_eq!(log.take(), [up(PIN, PIN), down(PIN, PIN)]);
    assert_eq!(rs.count(), 0);
    router.ack(PIN);
    assert_eq!((log.take(), rs.count()), (vec![], 0));
}

#[test]
fn ack_of_somebody_elses_interrupt() {
    let (router, log) = router();
    let (a, b, rs) = (event(), event(), event());
    let _a = router.assign_with_resample(&a, PIN, &rs).unwrap();
    let _b = router.assign_with_resample(&b, PIN, &rs).unwrap();
    router.set_level(PIN, true);
    assert_eq!(log.take(), [up(PIN, PIN)]);
    for _ in 0..2 {
        router.ack(PIN);
        // The line is still up; a controller that looks for edges sees one.
        assert_eq!(log.take(), [down(PIN, PIN), up(PIN, PIN)]);
        assert_eq!(rs.try_read(), Some(2));
    }
    // Two sources, one level.
    a.signal();
    router.set_level(PIN, false);
    assert_eq!(log.take(), []);
    router.ack(PIN);
    assert_eq!(log.take(), [down(PIN, PIN)]);
}

#[test]
fn a_pulse_while_the_line_is_up() {
    let (router, log) = router();
    let (a, b) = (event(), event());
    let level = router.assign_with_resample(&a, PIN, event()).unwrap();
    let edge = router.assign(&b, PIN).unwrap();
    a.signal();
    b.signal();
    assert_eq!(log.take(), [up(PIN, PIN)]);
    assert_eq!(edge.counters().coalesced, 1);
    drop(level);
    assert_eq!(log.take(), [down(PIN, PIN)]);
    b.signal();
    assert_eq!(log.take(), pulse(PIN, PIN));
}

#[test]
fn its_own_resample_event() {
    let (router, _) = router();
    let a = event();
    let error = router.assign_with_resample(&a, PIN, &a).unwrap_err();
    assert!(matches!(error, AssignError::SameEvent));
    assert_becomes(error, ErrorKind::InvalidInput);
    drop(router.assign(&a, PIN).unwrap());
}

/// A ring of two lines: the ack of each raises the other. It goes on as long as the guest acks, and the stack does not
/// grow.
#[test]
fn resample_events_that_have_irqfds() {
    let (router, log) = router();
    let (a, b) = (event(), event());
    let _a = router.assign_with_resample(&a, 1, &b).unwrap();
    let _b = router.assign_with_resample(&b, 2, &a).unwrap();
    a.signal();
    for _ in 0..3 {
        router.ack(1);
        router.ack(2);
    }
    let round = [up(1, 1), down(1, 1), up(2, 2), down(2, 2)];
    let mut all = round.repeat(3);
    all.push(up(1, 1));
    assert_eq!(log.take(), all);
}

#[test]
fn mask_keeps_one_pending() {
    for gsi in [PIN, MSI] {
        let (router, log) = router();
        let (a, b) = (event(), event());
        let irqfds = [&a, &b].map(|event| router.assign(event, gsi).unwrap());
        router.mask(gsi);
        router.mask(gsi);
        assert!(!router.is_pending(gsi));
        a.signal();
        b.signal();
        a.signal();
        assert_eq!((log.take(), a.count()), (vec![], 0));
        assert!(router.is_pending(gsi));
        assert_eq!(
            irqfds.each_ref().map(|irqfd| irqfd.counters().coalesced),
            [1, 1]
        );
        router.unmask(gsi);
        assert_eq!(log.take().len(), if gsi == MSI { 1 } else { 2 });
        assert!(!router.is_pending(gsi));
        router.unmask(gsi);
        assert_eq!(log.take(), []);
        a.signal();
        assert_eq!(log.take().len(), if gsi == MSI { 1 } else { 2 });
        assert_eq!(router.line_counters(gsi).edges, 2);
    }
}

#[test]
fn pending_goes_the_new_way() {
    let (router, log) = router();
    let a = event();
    let _a = router.assign(&a, 40).unwrap();
    // The vector has no message yet, as when a guest's driver unmasks it for the first time.
    router.mask(40);
    a.signal();
    router.unmask_with_route(40, message(0x70)).unwrap();
    let gsi = 40;
    assert_eq!(log.take(), [Call::Msi { gsi, data: 0x70 }]);
    // A refused route leaves the mask.
    router.mask(40);
    a.signal();
    assert!(router.unmask_with_route(40, Route::Pin(PIN)).is_err());
    assert_eq!(log.take(), []);
    // Or the VMM takes the pending signal.
    assert!(router.take_pending(40));
    assert!(!router.take_pending(40));
    router.unmask(40);
    assert_eq!(log.take(), []);
    assert!(!router.take_pending(41));
}

#[test]
fn unmask_asks_the_resamplers() {
    let (router, log) = router();
    let (a, rs) = (event(), event());
    let _irqfd = router.assign_with_resample(&a, PIN, &rs).unwrap();
    router.mask(PIN);
    a.signal();
    assert_eq!(log.take(), []);
    router.unmask(PIN);
    assert_eq!((log.take(), rs.try_read()), (vec![], Some(1)));
    // The device raises the line.
    a.signal();
    assert_eq!(log.take(), [up(PIN, PIN)]);
    // There is no mask to end.
    router.unmask(PIN);
    assert_eq!((log.take(), rs.try_read()), (vec![], None));
    // The line is masked while it is up.
    router.mask(PIN);
    assert_eq!(log.take(), [down(PIN, PIN)]);
    router.ack(PIN);
    assert_eq!((log.take(), rs.try_read()), (vec![], Some(1)));
    router.unmask(PIN);
    assert_eq!((log.take(), rs.try_read()), (vec![], None));
}

#[test]
fn unmask_without_resamplers() {
    let (router, log) = router();
    router.mask(PIN);
    router.set_level(PIN, true);
    assert_eq!(log.take(), []);
    router.unmask(PIN);
    assert_eq!(log.take(), [up(PIN, PIN)]);
    router.mask(PIN);
    router.set_level(PIN, false);
    router.unmask(PIN);
    assert_eq!(log.take(), [down(PIN, PIN)]);
    // A level on a message GSI sends a message each time it rises.
    router.set_level(MSI, true);
    router.set_level(MSI, true);
    assert_eq!(log.take(), [sent(0x41)]);
    router.set_route(40, None).unwrap();
    assert_eq!(log.take(), []);
    router.set_level(MSI, false);
    router.set_level(MSI, true);
    assert_eq!(log.take(), [sent(0x41)]);
}

#[test]
fn a_resampling_irqfd_on_a_message() {
    let (router, log) = router();
    let (a, rs) = (event(), event());
    let _irqfd = router.assign_with_resample(&a, MSI, &rs).unwrap();
    a.signal();
    a.signal();
    assert_eq!(log.take(), [sent(0x41), sent(0x41)]);
}

/// Each signal sends a message of its own before it returns, while another thread is in the call for one of the same
/// line.
#[test]
fn a_message_beside_a_message() {
    struct Gate(AtomicU32, Barrier);
    impl InterruptSink for Gate {
        fn set_level(&self, _: u32, _: u32, _: bool) {}
        fn signal_msi(&self, _: u32, _: MsiMessage) {
            if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
                // The two waits are for the start and the end of the call.
                self.1.wait();
                self.1.wait();
            }
        }
    }
    let gate = Arc::new(Gate(AtomicU32::new(0), Barrier::new(2)));
    let router = Router::new(Arc::clone(&gate));
    router.set_route(MSI, Some(message(0x41))).unwrap();
    let a = event();
    let irqfd = router.assign(&a, MSI).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| a.signal());
        gate.1.wait();
        a.signal();
        let sent = gate.0.load(Ordering::Relaxed);
        gate.1.wait();
        assert_eq!(sent, 2);
    });
    let counters = irqfd.counters();
    assert_eq!((counters.injections, counters.coalesced), (2, 0));
}

#[test]
fn the_router_goes() {
    let (router, log) = router();
    let (other_vm, _) = self::router();
    let (a, b, c) = (event(), event(), event());
    router.assign(&a, PIN).unwrap().keep();
    router
        .assign_with_resample(&b, PIN, event())
        .unwrap()
        .keep();
    // An irqfd keeps the router.
    let irqfd = router.assign(&c, PIN).unwrap();
    drop(router);
    c.signal();
    assert_eq!(log.take(), pulse(PIN, PIN));
    b.signal();
    drop(irqfd);
    assert_eq!(log.take(), [up(PIN, PIN), down(PIN, PIN)]);
    a.write(3).unwrap();
    assert_eq!(log.take(), []);
    assert_eq!(a.read(), 3);
    drop(other_vm.assign(&a, PIN).unwrap());
    assert_eq!(Arc::strong_count(&log), 1);
}

/// Deassigned inside an observer's call: the rest of the deassign is done when the call ends, or by `reclaim`.
#[test]
fn deassigned_inside_a_call() {
    let (router, log) = router();
    let (a, b) = (event(), event());
    router
        .assign_with_resample(&a, PIN, event())
        .unwrap()
        .keep();
    router.assign(&b, MSI).unwrap().keep();
    a.signal();
    let unplug = event();
    let observation = {
        let (router, a, b) = (router.clone(), Arc::clone(&a), Arc::clone(&b));
        let observer = move |_: Change| {
            router.deassign(&a, PIN);
            router.deassign(&b, MSI);
            b.signal();
            // The event is not free yet.
            assert!(router.assign(&a, PIN).is_err());
        };
        Observation::new(Arc::clone(&unplug), Interest::Signals, Arc::new(observer))
    };
    unplug.signal();
    // The second event was signalled when its irqfd was being taken away.
    assert_eq!((a.count(), b.count()), (0, 1));
    // The events are free, or later if another test's thread is inside a call just then.
    for (event, gsi) in [(&a, PIN), (&b, MSI)] {
        while router.assign(event, gsi).is_err() {
            doorbell::reclaim();
            thread::yield_now();
        }
    }
    assert_eq!(log.take(), [up(PIN, PIN), down(PIN, PIN), sent(0x41)]);
    drop(observation);
}

/// The guest gives a queue another vector, and in the same moment a request completes: the interrupt goes by the new
/// route.
#[test]
fn signalled_while_it_is_deassigned() {
    let (router, log) = router();
    router.set_route(MSI + 1, Some(message(0x42))).unwrap();
    for (count, signals) in [(0, 0), (3, 0), (3, 1)] {
        let done = Arc::new(Event::new(count));
        let irqfd = Mutex::new(Some(router.assign(&done, MSI).unwrap()));
        // One read takes away the count of the assignment, which must not be taken again.
        (0..signals).for_each(|_| done.signal());
        log.take();
        let config_write = event();
        let observation = {
            let done = Arc::clone(&done);
            let observer = move |_: Change| {
                drop(irqfd.lock().unwrap().take());
                done.signal_n(5);
            };
            Observation::new(
                Arc::clone(&config_write),
                Interest::Signals,
                Arc::new(observer),
            )
        };
        config_write.signal();
        // Or later, if another test's thread is inside a call just then.
        let irqfd = loop {
            match router.assign(&done, MSI + 1) {
                Ok(irqfd) => break irqfd,
                Err(_) => _ = doorbell::reclaim(),
            }
            thread::yield_now();
        };
        // The count at the first assignment caused an interrupt then.
        assert_eq!(done.count(), 5);
        let (gsi, data) = (MSI + 1, 0x42);
        assert_eq!(log.take(), [Call::Msi { gsi, data }]);
        drop((observation, irqfd));
        assert_eq!(done.count(), 0);
    }
}

/// A signal that is made inside an observer's call interrupts when that call has returned. Until then the count is
/// there, and what is read interrupts nevertheless.
#[test]
fn signalled_inside_a_call() {
    let (router, log) = router();
    let (outer, a) = (event(), event());
    let _irqfd = router.assign(&a, MSI).unwrap();
    let read = Arc::new(Mutex::new(None));
    let _observation = Observation::new(Arc::clone(&outer), Interest::Signals, {
        let (a, log, read) = (Arc::clone(&a), Arc::clone(&log), Arc::clone(&read));
        Arc::new(move |_: Change| {
            a.signal_n(3);
            assert_eq!(log.take(), []);
            *read.lock().unwrap() = a.try_read();
            a.signal();
            assert_eq!((log.take(), a.count()), (vec![], 1));
        })
    });
    outer.signal();
    assert_eq!(*read.lock().unwrap(), Some(3));
    assert_eq!((log.take(), a.count()), (vec![sent(0x41); 2], 0));
}

/// A signal that a mask has kept back is given back to the event, and is not pending for the next user of the GSI.
#[test]
fn deassigned_while_pending() {
    for gsi in [PIN, MSI] {
        let (router, log) = router();
        let (a, b) = (Arc::new(Event::new(2)), event());
        let irqfd = router.assign(&a, gsi).unwrap();
        router.mask(gsi);
        a.signal_n(5);
        a.signal();
        assert!(router.is_pending(gsi));
        log.take();
        // Other changes of the line do not matter.
        router.set_level(gsi, true);
        drop(irqfd);
        assert_eq!((a.count(), router.is_pending(gsi)), (1, false));
        router.set_level(gsi, false);
        // Another device is plugged in.
        let next = router.assign(&b, gsi).unwrap();
        router.unmask(gsi);
        assert_eq!(log.take(), []);
        drop(next);
        assert_eq!(b.count(), 0);
        // The first device comes back.
        let irqfd = router.assign(&a, gsi).unwrap();
        assert_eq!(log.take().len(), if gsi == MSI { 1 } else { 2 });
        drop(irqfd);
        assert_eq!(a.count(), 0);
    }
}

/// On a vector that several irqfds share, the pending bit stays until the last irqfd has gone, and each event gets its
/// own signal back.
#[test]
fn one_of_several_is_deassigned_while_pending() {
    let (router, log) = router();
    let events = [event(), event(), event()];
    let assign = |event| router.assign(event, MSI).unwrap();
    let [a, b, c] = events.each_ref().map(assign);
    let counts = || events.each_ref().map(|event| event.count());
    // These signals were in a pending bit that was injected long ago.
    router.mask(MSI);
    events[2].signal();
    router.unmask(MSI);
    router.mask(MSI);
    events[2].signal();
    assert!(router.take_pending(MSI));
    log.take();

    events[0].signal();
    events[1].signal();
    drop(a);
    assert_eq!((counts(), router.is_pending(MSI)), ([1, 0, 0], true));
    drop(c);
    assert_eq!((counts(), router.is_pending(MSI)), ([1, 0, 0], true));
    drop(b);
    assert_eq!((counts(), router.is_pending(MSI)), ([1, 1, 0], false));
    // The line is still masked: only the VMM unmasks it.
    let a = assign(&events[0]);
    assert!(router.is_pending(MSI));
    router.unmask(MSI);
    assert_eq!(log.take(), [sent(0x41)]);
    drop(a);
    assert_eq!(counts(), [0, 1, 0]);
}

/// An assertion that a mask keeps back ends with its irqfd: the line is not up for the next user of the GSI.
#[test]
fn deassigned_while_asserted_and_masked() {
    let (router, log) = router();
    let a = event();
    let irqfd = router.assign_with_resample(&a, PIN, event()).unwrap();
    router.mask(PIN);
    a.signal();
    drop(irqfd);
    let rs = event();
    let _next = router.assign_with_resample(event(), PIN, &rs).unwrap();
    router.unmask(PIN);
    assert_eq!((log.take(), rs.count()), (vec![], 0));
}

/// A sink that acks inside its calls, as one does that delivers at once to a fast guest.
#[derive(Default)]
struct Eager {
    eoi: OnceLock<Eoi>,
    log: Log,
}

impl InterruptSink for Eager {
    fn set_level(&self, gsi: u32, pin: u32, level: bool) {
        self.log.set_level(gsi, pin, level);
        if level {
            self.eoi.get().expect("the sink was connected").ack();
        }
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        self.log.signal_msi(gsi, message);
    }

    fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
        if !resample || line.gsi() != PIN {
            return Err(ErrorKind::Unsupported.into());
        }
        self.eoi.set(line).expect("one line");
        Ok(())
    }
}

#[test]
fn a_sink_that_calls_back() {
    let eager = Arc::new(Eager::default());
    let router = Router::new(Arc::clone(&eager));
    router.set_routes(Routes::identity(24)).unwrap();
    let (a, rs) = (event(), event());
    let irqfd = router.assign_with_resample(&a, PIN, &rs).unwrap();
    let device = {
        let (a, left) = (Arc::clone(&a), AtomicU32::new(10_000));
        let observer = move |_: Change| {
            if left.fetch_sub(1, Ordering::Relaxed) > 1 {
                a.signal();
            }
        };
        Observation::new(Arc::clone(&rs), Interest::Signals, Arc::new(observer))
    };
    let mut signals = 0;
    let mut acks = 0;
    // Each signal from inside is coalesced with the assertion whose ack is under way, or raises the line again.
    for _ in 0..2 {
        a.signal();
        signals = irqfd.counters().signals;
        acks = router.line_counters(PIN).resamples;
    }
    assert!(signals >= 2 && acks >= 2, "{signals} {acks}");
    let calls = eager.log.take();
    assert_eq!(calls, pulse(PIN, PIN).repeat(calls.len() / 2));
    drop(device);
    drop(irqfd);
    drop(router);
    // The handle for ends of interrupts has no router any more.
    let eoi = eager.eoi.get().unwrap();
    assert_eq!(format!("{eoi:?}"), "Eoi { gsi: 5 }");
    eoi.ack();
}

/// A sink that runs its closure inside the first call for a level.
#[derive(Default)]
struct Inside(Mutex<Option<Box<dyn FnOnce() + Send>>>, Log);

impl InterruptSink for Inside {
    fn set_level(&self, gsi: u32, pin: u32, level: bool) {
        self.1.set_level(gsi, pin, level);
        let inside = self.0.lock().unwrap().take();
        if let Some(inside) = inside {
            inside();
        }
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        self.1.signal_msi(gsi, message);
    }
}

/// A request that is made twice before the driver of the line gets to it has the same effect as one.
#[test]
fn twice_inside_a_call() {
    type Ask = fn(&Router);
    let (mask, unmask): (Ask, Ask) = (|router| router.mask(PIN), |router| router.unmask(PIN));
    let (ack, lower): (Ask, Ask) = (
        |router| router.ack(PIN),
        |router| router.set_level(PIN, false),
    );
    let to_30: Ask = |router| router.set_route(PIN, Some(Route::Pin(30))).unwrap();
    let back: Ask = |router| router.set_route(PIN, Some(Route::Pin(PIN))).unwrap();
    let to_31: Ask = |router| router.set_route(PIN, Some(Route::Pin(31))).unwrap();
    let cases: [(Vec<Ask>, Vec<Call>, u64); 7] = [
        (vec![ack, ack], vec![down(PIN, PIN)], 1),
        // An unmask acks what is asserted.
        (vec![mask, ack, unmask], vec![down(PIN, PIN)], 1),
        (vec![mask, unmask, ack], vec![down(PIN, PIN)], 1),
        (vec![mask, mask], vec![down(PIN, PIN)], 0),
        (vec![to_30, to_31], vec![down(PIN, PIN), up(PIN, 31)], 0),
        (vec![to_30, back], vec![], 0),
        (vec![lower, lower], vec![], 0),
    ];
    for (asked, calls, resamples) in cases {
        let sink = Arc::new(Inside::default());
        let router = Router::new(Arc::clone(&sink));
        router.set_routes(Routes::identity(24)).unwrap();
        let (a, rs) = (event(), event());
        let _irqfd = router.assign_with_resample(&a, PIN, &rs).unwrap();
        let inside = {
            let router = router.clone();
            move || asked.iter().for_each(|ask| ask(&router))
        };
        *sink.0.lock().unwrap() = Some(Box::new(inside));
        a.signal();
        let mut told = sink.1.take();
        assert_eq!(told.remove(0), up(PIN, PIN));
        assert_eq!((told, rs.count()), (calls, resamples));
    }
}

#[test]
fn the_sink_refuses() {
    let router = Router::new(Arc::new(Eager::default()));
    let a = event();
    let error = router.assign(&a, PIN).unwrap_err();
    assert!(matches!(error, AssignError::Refused(_)));
    assert_eq!(io::Error::from(error).kind(), ErrorKind::Unsupported);
    // The event is free then.
    drop(router.assign_with_resample(&a, PIN, event()).unwrap());

    struct OneRoute(AtomicU32);
    impl InterruptSink for OneRoute {
        fn set_level(&self, _: u32, _: u32, _: bool) {}
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
        fn set_routes(&self, routes: &Routes, _: &[RouteChange]) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match routes.iter().count() {
                0 | 1 => Ok(()),
                _ => Err(ErrorKind::OutOfMemory.into()),
            }
        }
    }
    let sink = Arc::new(OneRoute(AtomicU32::new(0)));
    let router = Router::new(Arc::clone(&sink));
    router.set_route(0, Some(message(1))).unwrap();
    let error = router.set_route(1, Some(message(1))).unwrap_err();
    assert_eq!(io::Error::from(error).kind(), ErrorKind::OutOfMemory);
    assert_eq!(
        router.routes().iter().collect::<Vec<_>>(),
        [(0, message(1))]
    );
    assert_eq!(sink.0.load(Ordering::Relaxed), 2);
}

#[test]
fn errors_say_what_is_wrong() {
    let refusal = || io::Error::other("as told");
    for (text, error) in [
        ("has an irqfd", AssignError::Busy),
        ("resample", AssignError::SameEvent),
        ("as told", AssignError::Refused(refusal())),
    ] {
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(error.source().is_some(), text == "as told");
    }
    for (text, error) in [
        ("out of range", RoutingError::Invalid(RouteError::Gsi)),
        ("GSI", RoutingError::Invalid(RouteError::GsiTwice)),
        ("pin", RoutingError::Invalid(RouteError::PinTwice)),
        ("as told", RoutingError::Refused(refusal())),
    ] {
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(error.source().is_some(), text == "as told");
    }
}

#[test]
fn debug_shows_who_interrupts_and_where() {
    let (router, _) = router();
    router
        .set_routes(Routes::from_entries([(MSI, Route::Pin(7))]).unwrap())
        .unwrap();
    let (a, b) = (event(), event());
    let irqfds = [
        router.assign(&a, MSI).unwrap(),
        router.assign(&b, 3).unwrap(),
    ];
    assert_eq!(
        format!("{router:?}"),
        "Router { irqfds: [3, 24], routes: {24: Pin(7)} }"
    );
    let text = format!("{:?}", irqfds[0]);
    assert!(text.contains("count: 0"), "{text}");
    assert!(text.contains("gsi: 24, counters: IrqfdCounters"), "{text}");
}

/// A sink that panics fails the signal, and the line can be used again.
#[test]
fn a_sink_that_panics() {
    struct Fails(AtomicU32, Log);
    impl InterruptSink for Fails {
        fn set_level(&self, gsi: u32, pin: u32, level: bool) {
            if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
                panic!("for the test");
            }
            self.1.set_level(gsi, pin, level);
        }
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
    }
    for hand_over in [false, true] {
        let sink = Arc::new(Fails(AtomicU32::new(0), Log::default()));
        let router = match hand_over {
            false => Router::new(Arc::clone(&sink)),
            true => Router::with_worker(Arc::clone(&sink)).unwrap(),
        };
        router.set_routes(Routes::identity(24)).unwrap();
        let a = event();
        let irqfd = router.assign(&a, PIN).unwrap();
        let signal = AssertUnwindSafe(|| a.signal());
        assert_eq!(catch_unwind(signal).is_err(), !hand_over);
        router.synchronize(); // the worker has tried
        a.signal();
        drop(irqfd);
        assert_eq!(sink.1.take(), pulse(PIN, PIN));
    }
}

/// Requests that other threads make while a sink panics are carried out.
#[test]
fn requests_to_a_sink_that_panics() {
    struct Fails {
        router: OnceLock<Router>,
        log: Log,
    }
    impl InterruptSink for Fails {
        fn set_level(&self, gsi: u32, pin: u32, level: bool) {
            self.log.set_level(gsi, pin, level);
        }
        fn pulse(&self, gsi: u32, pin: u32) {
            self.log.set_level(gsi, pin, true);
            if let Some(router) = self.router.get() {
                // As another thread might.
                router.set_level(gsi, true);
                panic!("for the test");
            }
        }
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
    }
    for hand_over in [false, true] {
        let sink = Arc::new(Fails {
            router: OnceLock::new(),
            log: Log::default(),
        });
        let router = match hand_over {
            false => Router::new(Arc::clone(&sink)),
            true => Router::with_worker(Arc::clone(&sink)).unwrap(),
        };
        router.set_routes(Routes::identity(24)).unwrap();
        let a = event();
        let irqfd = router.assign(&a, PIN).unwrap();
        assert!(sink.router.set(router.clone()).is_ok());
        let signal = AssertUnwindSafe(|| a.signal());
        assert_eq!(catch_unwind(signal).is_err(), !hand_over);
        router.synchronize();
        assert_eq!(sink.log.take(), [up(PIN, PIN), up(PIN, PIN)]);
        router.set_level(PIN, false);
        router.synchronize();
        assert_eq!(sink.log.take(), [down(PIN, PIN)]);
        drop(irqfd);
    }
}

/// A sink that panics when an irqfd goes fails the deassign. The irqfd has gone nevertheless, with its hold on the
/// line: the event can be assigned again.
#[test]
fn a_sink_that_panics_when_an_irqfd_goes() {
    struct Panics {
        log: Log,
        in_disconnect: bool,
        calls: AtomicU32,
    }
    impl Panics {
        fn once(&self) {
            assert_ne!(
                self.calls.fetch_add(1, Ordering::Relaxed),
                0,
                "for the test"
            );
        }
    }
    impl InterruptSink for Panics {
        fn set_level(&self, gsi: u32, pin: u32, level: bool) {
            self.log.set_level(gsi, pin, level);
            if !level && !self.in_disconnect {
                self.once();
            }
        }
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
        fn disconnect(&self, _: u32, _: bool) {
            if self.in_disconnect {
                self.once();
            }
        }
    }
    for in_disconnect in [true, false] {
        let sink = Arc::new(Panics {
            log: Log::default(),
            in_disconnect,
            calls: AtomicU32::new(0),
        });
        let router = Router::new(Arc::clone(&sink));
        router.set_routes(Routes::identity(24)).unwrap();
        let [interrupt, resample] = [0; 2].map(|initial| Arc::new(Event::new(initial)));
        let irqfd = router.assign_with_resample(&interrupt, 5, &resample);
        irqfd.unwrap().keep();
        interrupt.signal();
        let deassign = std::panic::AssertUnwindSafe(|| router.deassign(&interrupt, 5));
        assert!(std::panic::catch_unwind(deassign).is_err());
        assert_eq!(sink.log.take(), [up(5, 5), down(5, 5)], "{in_disconnect}");
        let again = router.assign(&interrupt, 5).expect("the irqfd has gone");
        interrupt.signal();
        assert_eq!(sink.log.take(), [up(5, 5), down(5, 5)]);
        drop(again);
        assert!(sink.calls.load(Ordering::Relaxed) > 0);
    }
}
