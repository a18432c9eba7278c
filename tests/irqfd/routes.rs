//! Routes: as values, and what a sink is told when they change.

use super::sink::{Call, message};
use doorbell::Event;
use doorbell::irqfd::{
    InterruptSink, MsiMessage, Route, RouteChange, RouteError, Router, Routes, RoutingError,
};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A sink that records how the routes change.
#[derive(Default)]
struct Told {
    changes: Mutex<Vec<RouteChange>>,
    messages: Mutex<Vec<Call>>,
    refuses: AtomicBool,
}

impl InterruptSink for Told {
    fn set_level(&self, _: u32, _: u32, _: bool) {}

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        let data = message.data;
        self.messages.lock().unwrap().push(Call::Msi { gsi, data });
    }

    fn set_routes(&self, routes: &Routes, changes: &[RouteChange]) -> io::Result<()> {
        assert!(!changes.is_empty(), "nothing changes");
        for change in changes {
            assert_ne!(change.old, change.new);
            assert_eq!(routes.get(change.gsi), change.new);
        }
        if self.refuses.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.changes.lock().unwrap().extend(changes);
        Ok(())
    }
}

impl Told {
    fn take(&self) -> Vec<(u32, Option<Route>, Option<Route>)> {
        let changes = std::mem::take(&mut *self.changes.lock().unwrap());
        let parts = |change: RouteChange| (change.gsi, change.old, change.new);
        changes.into_iter().map(parts).collect()
    }
}

fn router() -> (Router, Arc<Told>) {
    let told = Arc::new(Told::default());
    (Router::new(Arc::clone(&told)), told)
}

const A: Option<Route> = Some(Route::Pin(1));
const B: Option<Route> = Some(Route::Pin(2));

/// A sink is told what changes, and is not called when nothing changes.
#[test]
fn a_sink_is_told_what_changes() {
    let (router, told) = router();
    let far = [0, 63, 64, 4095];
    let routes = Routes::from_entries(far.map(|gsi| (gsi, message(gsi)))).unwrap();
    router.set_routes(routes.clone()).unwrap();
    assert_eq!(told.take(), far.map(|gsi| (gsi, None, Some(message(gsi)))));

    // These are the same routes, put together in another way.
    router.set_routes(routes).unwrap();
    let mut again = Routes::identity(70);
    for gsi in 0..70 {
        again.set(gsi, None).unwrap();
    }
    again
        .set_all(far.map(|gsi| (gsi, Some(message(gsi)))))
        .unwrap();
    assert_eq!(again, router.routes());
    router.set_routes(again).unwrap();
    router.set_route(64, Some(message(64))).unwrap();
    router.set_route(65, None).unwrap();
    router.unmask_with_route(63, message(63)).unwrap();
    router
        .change_routes([(0, Some(message(0))), (1, None)])
        .unwrap();
    router.unmask_with_routes([(0, message(0))]).unwrap();
    router.change_routes([]).unwrap();
    assert_eq!(told.take(), []);

    router.set_route(64, A).unwrap();
    router.unmask_with_route(63, message(1)).unwrap();
    router
        .set_routes(Routes::from_entries([(64, message(2))]).unwrap())
        .unwrap();
    assert_eq!(
        told.take(),
        [
            (64, Some(message(64)), A),
            (63, Some(message(63)), Some(message(1))),
            (0, Some(message(0)), None),
            (63, Some(message(1)), None),
            (64, A, Some(message(2))),
            (4095, Some(message(4095)), None),
        ]
    );
}

#[test]
fn several_at_once() {
    let (router, told) = router();
    router
        .set_routes(Routes::from_entries([(1, A.unwrap()), (2, B.unwrap())]).unwrap())
        .unwrap();
    told.take();
    // The GSIs exchange pins.
    router.change_routes([(1, B), (2, A)]).unwrap();
    assert_eq!(told.take(), [(1, A, B), (2, B, A)]);
    assert_eq!(router.routes().gsi_of(1), Some(2));
    let before = router.routes();
    for (changes, error) in [
        ([(1, None), (1, None)], RouteError::GsiTwice),
        ([(3, A), (4, None)], RouteError::PinTwice),
        (
            [(3, Some(Route::Pin(9))), (4, Some(Route::Pin(9)))],
            RouteError::PinTwice,
        ),
        ([(3, None), (4096, None)], RouteError::Gsi),
    ] {
        let result = router.change_routes(changes);
        assert!(matches!(result, Err(RoutingError::Invalid(other)) if other == error));
        let mut routes = before.clone();
        assert_eq!(routes.set_all(changes), Err(error));
        assert_eq!((&routes, router.routes()), (&before, before.clone()));
    }
    // A pin that another GSI gives up can be taken.
    router.change_routes([(2, None), (3, A)]).unwrap();
    assert_eq!(router.routes().gsi_of(1), Some(3));
}

/// A guest enables the vectors of a device: what is pending goes by the new route.
#[test]
fn unmask_several() {
    let (router, told) = router();
    let event = Arc::new(Event::new(0));
    let _irqfd = router.assign(&event, 25).unwrap();
    for gsi in 24..28 {
        router.mask(gsi);
    }
    event.signal();
    told.refuses.store(true, Ordering::Relaxed);
    let routes = || (24..28).map(|gsi| (gsi, message(gsi)));
    let result = router.unmask_with_routes(routes());
    assert!(matches!(result, Err(RoutingError::Refused(_))));
    assert!(
        router
            .unmask_with_routes([(25, message(1)), (4096, message(1))])
            .is_err()
    );
    assert!(router.is_pending(25));
    told.refuses.store(false, Ordering::Relaxed);
    router.unmask_with_routes(routes()).unwrap();
    assert_eq!(told.take().len(), 4);
    event.signal();
    let sent = Call::Msi { gsi: 25, data: 25 };
    assert_eq!(*told.messages.lock().unwrap(), [sent, sent]);
    assert!(router.routes().iter().eq(routes()));
}

/// Routes behave as a map does, and changes of one do not affect its clone.
#[test]
fn routes_are_a_map() {
    let mut random = 1_u32;
    let mut next = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % below
    };
    let (mut routes, mut model) = (Routes::identity(100), BTreeMap::new());
    model.extend((0..100).map(|pin| (pin, Route::Pin(pin))));
    let mut kept = Vec::new();
    for step in 0..5_000 {
        let gsi = next(300) * 17 % 4100;
        let route = match next(3) {
            0 => None,
            1 => Some(Route::Pin(next(300) * 23)),
            _ => Some(message(next(3))),
        };
        let taken = |(&other, &at): (&u32, &Route)| {
            other != gsi && matches!(at, Route::Pin(_)) && Some(at) == route
        };
        let expected = if gsi > Routes::MAX_GSI {
            Err(RouteError::Gsi)
        } else if model.iter().any(taken) {
            Err(RouteError::PinTwice)
        } else {
            Ok(())
        };
        assert_eq!(routes.set(gsi, route), expected);
        if expected.is_ok() {
            match route {
                Some(route) => model.insert(gsi, route),
                None => model.remove(&gsi),
            };
        }
        if step % 500 == 0 {
            kept.push((routes.clone(), model.clone()));
        }
    }
    kept.push((routes, model));
    for (routes, model) in &kept {
        assert!(
            routes
                .iter()
                .eq(model.iter().map(|(&gsi, &route)| (gsi, route)))
        );
        assert_eq!(*routes, Routes::from_entries(model.clone()).unwrap());
        assert!((0..4100).all(|gsi| routes.get(gsi) == model.get(&gsi).copied()));
        let owners = model.iter().filter_map(|(&gsi, at)| match *at {
            Route::Pin(pin) => Some((pin, gsi)),
            _ => None,
        });
        let owners: BTreeMap<u32, u32> = owners.collect();
        assert!((0..7_000).all(|pin| routes.gsi_of(pin) == owners.get(&pin).copied()));
    }
    assert_ne!(kept[0].0, kept[1].0);
    assert_eq!(Routes::identity(4096).iter().count(), 4096);
    assert_eq!(format!("{:?}", Routes::identity(1)), "{0: Pin(0)}");
}
