//! Level sources: devices that share a line without irqfds.

use super::sink::{Call, Log, down, message, up};
use doorbell::Event;
use doorbell::irqfd::{InterruptSink, LevelSource, MsiMessage, Route, Router, Routes};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

const PIN: u32 = 10;

fn router() -> (Router, Arc<Log>) {
    let log = Arc::new(Log::default());
    let router = Router::new(Arc::clone(&log));
    router.set_routes(Routes::identity(24)).unwrap();
    (router, log)
}

/// Two devices on one INTx: the line is up as long as either device holds it up.
#[test]
fn devices_that_share_a_line() {
    let (router, log) = router();
    let [a, b] = [(); 2].map(|()| router.level_source(PIN));
    assert_eq!((a.gsi(), a.level()), (PIN, false));
    a.set_level(true);
    a.set_level(true);
    b.set_level(true);
    assert_eq!(log.take(), [up(PIN, PIN)]);
    a.set_level(false);
    a.set_level(false);
    assert_eq!((a.level(), b.level()), (false, true));
    assert_eq!(log.take(), []);
    b.set_level(false);
    assert_eq!(log.take(), [down(PIN, PIN)]);
}

/// The VMM's own level holds the line up, too, as does a resampling irqfd.
#[test]
fn beside_others() {
    let (router, log) = router();
    let source = router.level_source(PIN);
    let (event, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
    let irqfd = router.assign_with_resample(&event, PIN, &resample).unwrap();
    router.set_level(PIN, true);
    source.set_level(true);
    event.signal();
    assert_eq!(log.take(), [up(PIN, PIN)]);
    router.set_level(PIN, false);
    drop(irqfd);
    // The end of the last resampling irqfd lowers the line, and raises it again if a level source holds it up.
    assert_eq!(log.take(), [down(PIN, PIN), up(PIN, PIN)]);
    // A holder lets go only of its own hold.
    router.set_level(PIN, false);
    assert_eq!(log.take(), []);
    source.set_level(false);
    assert_eq!(log.take(), [down(PIN, PIN)]);
}

#[test]
fn across_masks_routes_and_acks() {
    let (router, log) = router();
    let source = router.level_source(PIN);
    source.set_level(true);
    assert_eq!(log.take(), [up(PIN, PIN)]);
    router.mask(PIN);
    assert_eq!(log.take(), [down(PIN, PIN)]);
    router.unmask(PIN);
    assert_eq!(log.take(), [up(PIN, PIN)]);
    router.set_route(PIN, Some(Route::Pin(30))).unwrap();
    assert_eq!(log.take(), [down(PIN, PIN), up(PIN, 30)]);
    // Without a resampling irqfd, an ack does nothing.
    router.ack(PIN);
    assert_eq!(log.take(), []);
    let (event, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
    let _irqfd = router.assign_with_resample(&event, PIN, &resample).unwrap();
    router.ack(PIN);
    assert_eq!(
        (log.take(), resample.count()),
        (vec![down(PIN, 30), up(PIN, 30)], 1)
    );
    // A message each time the level rises.
    router.set_route(PIN, Some(message(7))).unwrap();
    let sent = Call::Msi { gsi: PIN, data: 7 };
    assert_eq!(log.take(), [down(PIN, 30), sent]);
    router.set_route(PIN, Some(message(8))).unwrap();
    router.set_route(PIN, Some(message(7))).unwrap();
    assert_eq!(log.take(), []);
    source.set_level(false);
    source.set_level(true);
    assert_eq!(log.take(), [sent]);
    // The level is set while there is no route, and while the line is masked.
    router.set_route(PIN, None).unwrap();
    router.mask(PIN);
    source.set_level(false);
    source.set_level(true);
    router.unmask_with_route(PIN, Route::Pin(PIN)).unwrap();
    assert_eq!(log.take(), [up(PIN, PIN)]);
}

/// A device that is unplugged lets go only of its own hold on the line. A level source keeps the line when the router
/// goes.
#[test]
fn a_drop_lets_go() {
    let (router, log) = router();
    let [a, b, idle] = [(); 3].map(|()| router.level_source(PIN));
    a.set_level(true);
    b.set_level(true);
    drop(idle);
    drop(a);
    assert_eq!(log.take(), [up(PIN, PIN)]);
    router.mask(PIN);
    drop(router);
    assert_eq!(log.take(), [down(PIN, PIN)]);
    assert_eq!(format!("{b:?}"), "LevelSource { gsi: 10, level: true }");
    drop(b);
    assert_eq!(log.take(), []);
    assert_eq!(Arc::strong_count(&log), 1);
}

/// Each thread that has set its own level checks whether any source holds the line up while it is down.
#[derive(Default)]
struct Pin {
    level: AtomicBool,
    falls: AtomicU32,
}

impl InterruptSink for Pin {
    fn set_level(&self, _: u32, _: u32, level: bool) {
        self.level.store(level, Ordering::SeqCst);
        self.falls.fetch_add(u32::from(!level), Ordering::Relaxed);
    }

    fn signal_msi(&self, _: u32, _: MsiMessage) {}
}

/// Sources that change at the same time, two threads to each: a line that one source holds up all the while stays up,
/// and the last level follows from the sources.
#[test]
fn sources_at_the_same_time() {
    for hand_over in [false, true] {
        let pin = Arc::new(Pin::default());
        let router = match hand_over {
            false => Router::new(Arc::clone(&pin)),
            true => Router::with_worker(Arc::clone(&pin)).unwrap(),
        };
        router.set_routes(Routes::identity(24)).unwrap();
        let sources: [LevelSource; 2] = [(); 2].map(|()| router.level_source(PIN));
        for held in [false, true] {
            let holder = router.level_source(PIN);
            holder.set_level(held);
            router.synchronize();
            let falls = pin.falls.load(Ordering::Relaxed);
            let start = Barrier::new(4);
            thread::scope(|scope| {
                for thread in 0..4_usize {
                    let (source, start) = (&sources[thread % 2], &start);
                    scope.spawn(move || {
                        start.wait();
                        for round in 0..2_000_u32 {
                            source.set_level(round.count_ones() % 2 == 0);
                        }
                    });
                }
            });
            router.synchronize();
            let up = sources.iter().any(LevelSource::level) || held;
            assert_eq!(pin.level.load(Ordering::SeqCst), up);
            if held {
                assert_eq!(pin.falls.load(Ordering::Relaxed), falls);
            }
            for source in &sources {
                source.set_level(false);
            }
            drop(holder);
            router.synchronize();
            assert!(!pin.level.load(Ordering::SeqCst));
        }
    }
}
