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

/// A sink that is chosen at run time gets all calls, including those with a default, through any kind of pointer.
#[test]
fn a_sink_behind_a_dyn() {
    #[derive(Default)]
    struct All(Mutex<Vec<&'static str>>);

    impl All {
        fn note(&self, call: &'static str) {
            self.0.lock().unwrap().push(call);
        }
    }

    impl InterruptSink for All {
        fn set_level(&self, _: u32, _: u32, _: bool) {
            self.note("set_level");
        }

        fn signal_msi(&self, _: u32, _: MsiMessage) {
            self.note("signal_msi");
        }

        fn pulse(&self, _: u32, _: u32) {
            self.note("pulse");
        }

        fn set_routes(&self, _: &Routes, _: &[RouteChange]) -> io::Result<()> {
            self.note("set_routes");
            Ok(())
        }

        fn connect(&self, _: Eoi, _: bool) -> io::Result<()> {
            self.note("connect");
            Ok(())
        }

        fn disconnect(&self, _: u32, _: bool) {
            self.note("disconnect");
        }
    }

    let all = Arc::new(All::default());
    let leaked: &'static All = Box::leak(Box::default());
    let calls = |router: Router, all: &All| {
        router.set_route(5, Some(Route::Pin(5))).unwrap();
        router.set_route(24, Some(message(0x41))).unwrap();
        let event = Arc::new(Event::new(0));
        let irqfd = router.assign(&event, 5).unwrap();
        event.signal();
        drop(irqfd);
        router.set_level(5, true);
        let irqfd = router.assign(&event, 24).unwrap();
        event.signal();
        drop(irqfd);
        std::mem::take(&mut *all.0.lock().unwrap())
    };
    let in_an_arc: Arc<dyn InterruptSink> = all.clone();
    let in_a_box: Box<dyn InterruptSink> = Box::new(all.clone());
    let by_reference: &'static dyn InterruptSink = leaked;
    for calls in [
        calls(Router::new(in_an_arc), &all),
        calls(Router::new(in_a_box), &all),
        calls(Router::new(by_reference), leaked),
    ] {
        assert_eq!(
            calls,
            [
                "set_routes",
                "set_routes",
                "connect",
                "pulse",
                "disconnect",
                "set_level",
                "connect",
                "signal_msi",
                "disconnect"
            ]
        );
    }
}
