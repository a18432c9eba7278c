//! What a sink is told of existing irqfds.

use crate::sink::message;
use doorbell::Event;
use doorbell::irqfd::{Eoi, InterruptSink, MsiMessage, Route, RouteChange, Router, Routes};
use std::io;
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Connected(u32, bool),
    Disconnected(u32, bool),
    Message,
}
use Told::{Connected, Disconnected, Message};

/// A sink that refuses one GSI.
#[derive(Default)]
struct Sink(Mutex<Vec<Told>>);

const REFUSED: u32 = 9;

impl Sink {
    fn hear(&self, told: Told) {
        self.0.lock().unwrap().push(told);
    }

    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl InterruptSink for Sink {
    fn set_level(&self, _: u32, _: u32, _: bool) {}

    fn signal_msi(&self, _: u32, _: MsiMessage) {
        self.hear(Message);
    }

    fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
        if line.gsi() == REFUSED {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.hear(Connected(line.gsi(), resample));
        Ok(())
    }

    fn disconnect(&self, gsi: u32, resample: bool) {
        self.hear(Disconnected(gsi, resample));
    }
}

#[test]
fn each_connection_ends_once_and_after_its_interrupts() {
    let sink = Arc::new(Sink::default());
    let router = Router::new(Arc::clone(&sink));
    let message = MsiMessage::new(0xfee0_0000, 0x41);
    router.set_route(5, Some(Route::Msi(message))).unwrap();
    let [first, second, resample] = [(); 3].map(|()| Arc::new(Event::new(0)));

    router.assign(&first, REFUSED).unwrap_err();
    assert_eq!(sink.take(), []);
    // This is refused before the sink is asked, because the event has an irqfd.
    let irqfd = router.assign(&first, 5).unwrap();
    router.assign(&first, 6).unwrap_err();
    assert_eq!(sink.take(), [Connected(5, false)]);
    first.signal();
    drop(irqfd);
    first.signal();
    assert_eq!(sink.take(), [Message, Disconnected(5, false)]);

    let irqfd = router.assign_with_resample(&second, 5, &resample).unwrap();
    router.deassign(&second, 5);
    drop(irqfd);
    router.deassign(&second, 5);
    assert_eq!(sink.take(), [Connected(5, true), Disconnected(5, true)]);

    // The connection ends with the router.
    first.try_read();
    router.assign(&first, 5).unwrap().keep();
    router
        .assign_with_resample(&second, 6, &resample)
        .unwrap()
        .keep();
    sink.take();
    drop(router);
    let told = sink.take();
    assert_eq!(told.len(), 2);
    assert!(told.contains(&Disconnected(5, false)) && told.contains(&Disconnected(6, true)));
}

/// A sink with all methods, which records their calls. It routes no GSI 9.
#[derive(Default)]
struct All(Mutex<Vec<String>>);

impl All {
    fn note(&self, call: &str) {
        self.0.lock().unwrap().push(call.to_owned());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl InterruptSink for All {
    fn set_level(&self, _: u32, _: u32, level: bool) {
        self.note(&format!("set_level {level}"));
    }

    fn signal_msi(&self, _: u32, _: MsiMessage) {
        self.note("signal_msi");
    }

    fn pulse(&self, _: u32, _: u32) {
        self.note("pulse");
    }

    fn set_routes(&self, routes: &Routes, changes: &[RouteChange]) -> io::Result<()> {
        self.note(&format!("set_routes {}", changes[0].gsi));
        match routes.get(REFUSED) {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
        self.note(&format!("connect {} {resample}", line.gsi()));
        match line.gsi() {
            REFUSED => Err(io::ErrorKind::Unsupported.into()),
            _ => Ok(()),
        }
    }

    fn disconnect(&self, gsi: u32, resample: bool) {
        self.note(&format!("disconnect {gsi} {resample}"));
    }

    fn flush(&self) {
        self.note("flush");
    }
}

/// What the sink is told of a router that is used for everything; an edge is told by the calls in `edge`.
fn is_told_everything(router: &Router, all: &All, edge: &[&str]) {
    router.set_route(5, Some(Route::Pin(5))).unwrap();
    router.set_route(24, Some(message(0x41))).unwrap();
    assert!(router.set_route(REFUSED, Some(Route::Pin(9))).is_err());
    let event = Arc::new(Event::new(0));
    router.assign(&event, REFUSED).unwrap_err();
    let irqfd = router.assign(&event, 5).unwrap();
    event.signal();
    drop(irqfd);
    router.set_level(5, true);
    let resample = Arc::new(Event::new(0));
    let irqfd = router.assign_with_resample(&event, 24, &resample).unwrap();
    event.signal();
    drop(irqfd);
    let _ = router.save(|_| 0);
    let before = ["set_routes 5", "set_routes 24", "set_routes 9"];
    let after = [
        "disconnect 5 false",
        "set_level true",
        "connect 24 true",
        "signal_msi",
        "disconnect 24 true",
        "flush",
    ];
    let connected = ["connect 9 false", "connect 5 false"];
    assert_eq!(all.take(), [&before[..], &connected, edge, &after].concat());
}

/// A sink that is chosen at run time gets all calls, including those with a default, through any kind of pointer.
#[test]
fn a_sink_behind_a_dyn() {
    let all = Arc::new(All::default());
    let leaked: &'static All = Box::leak(Box::default());
    let in_an_arc: Arc<dyn InterruptSink> = all.clone();
    let in_a_box: Box<dyn InterruptSink> = Box::new(all.clone());
    let by_reference: &'static dyn InterruptSink = leaked;
    is_told_everything(&Router::new(in_an_arc), &all, &["pulse"]);
    is_told_everything(&Router::new(in_a_box), &all, &["pulse"]);
    is_told_everything(&Router::new(by_reference), leaked, &["pulse"]);
}

/// A wrapper that has nothing but what it must have, and says what is inside.
struct Wrapper<S>(S);

impl<S: InterruptSink> InterruptSink for Wrapper<S> {
    fn set_level(&self, gsi: u32, pin: u32, level: bool) {
        self.0.set_level(gsi, pin, level);
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        self.0.signal_msi(gsi, message);
    }

    fn inner(&self) -> Option<&dyn InterruptSink> {
        Some(&self.0)
    }
}

/// A sink around another hands all calls on, also where pointers and further wrappers are in between. An edge goes
/// through the wrapper's own `set_level`.
#[test]
fn a_sink_around_another() {
    const EDGE: [&str; 2] = ["set_level true", "set_level false"];
    let all = Arc::new(All::default());
    is_told_everything(&Router::new(Wrapper(all.clone())), &all, &EDGE);
    let boxed: Box<dyn InterruptSink> = Box::new(Wrapper(all.clone()));
    is_told_everything(&Router::new(Wrapper(Arc::new(boxed))), &all, &EDGE);
    let leaked: &'static Wrapper<Arc<All>> = Box::leak(Box::new(Wrapper(all.clone())));
    assert!(leaked.inner().is_some() && all.inner().is_none());
    is_told_everything(&Router::new(leaked), &all, &EDGE);
}
