//! Routers that have a thread of their own.

use super::sink::message;
use super::watchdog::limit;
use doorbell::Event;
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

const MSI: u32 = 24;

type Call = Box<dyn FnOnce() + Send>;

/// A sink that runs its closure inside its next call, and records which thread made the call.
#[derive(Default)]
struct Sink {
    next: Mutex<Option<Call>>,
    threads: Mutex<Vec<ThreadId>>,
}

impl InterruptSink for Sink {
    fn set_level(&self, _: u32, _: u32, _: bool) {}

    fn signal_msi(&self, _: u32, _: MsiMessage) {
        let call = self.next.lock().unwrap().take();
        if let Some(call) = call {
            call();
        }
        self.threads.lock().unwrap().push(thread::current().id());
    }
}

fn router() -> (Router, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    let router = Router::with_worker(Arc::clone(&sink)).unwrap();
    router.set_route(MSI, Some(message(0x41))).unwrap();
    (router, sink)
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

/// A sink that may sleep is not called on the thread that signals, not even for a message.
#[test]
fn messages_are_handed_over() {
    let (router, sink) = router();
    let a = event();
    let _irqfd = router.assign(&a, MSI).unwrap();
    for round in 1..=3 {
        a.signal();
        router.synchronize();
        let threads = sink.threads.lock().unwrap();
        assert_eq!(threads.len(), round);
        assert!(threads.iter().all(|&thread| thread == threads[0]));
        assert_ne!(threads[0], thread::current().id());
    }
}

/// A raised level on a message GSI swallows no messages.
#[test]
fn messages_beside_a_level() {
    let (router, sink) = router();
    let a = event();
    let irqfd = router.assign(&a, MSI).unwrap();
    router.set_level(MSI, true);
    for round in 1..=3 {
        router.synchronize();
        assert_eq!(sink.threads.lock().unwrap().len(), round);
        a.signal();
    }
    assert_eq!(irqfd.counters().coalesced, 0);
}

/// A deassign returns when the worker has returned from the call that was requested before, of whatever kind it was.
#[test]
fn a_deassign_waits_for_the_worker() {
    const PIN: u32 = 5;
    struct Gate(Barrier, AtomicBool);
    impl InterruptSink for Gate {
        fn set_level(&self, _: u32, _: u32, level: bool) {
            if !level {
                self.0.wait();
                // The deassign comes in this time; otherwise the test checks nothing.
                thread::sleep(Duration::from_millis(20));
                self.1.store(true, SeqCst);
            }
        }
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
    }
    for pulse in [false, true] {
        let gate = Arc::new(Gate(Barrier::new(2), AtomicBool::new(false)));
        let router = Router::with_worker(Arc::clone(&gate)).unwrap();
        router.set_route(PIN, Some(Route::Pin(PIN))).unwrap();
        let a = event();
        let irqfd = router.assign(&a, PIN).unwrap();
        match pulse {
            true => a.signal(),
            false => {
                router.set_level(PIN, true);
                router.synchronize();
                router.set_level(PIN, false);
            }
        }
        gate.0.wait();
        drop(irqfd);
        assert!(gate.1.load(SeqCst), "pulse: {pulse}");
    }
}

/// Requests are done when the last handle has been dropped, even if there is no irqfd.
#[test]
fn nothing_is_left_undone() {
    struct Slow(AtomicBool);
    impl InterruptSink for Slow {
        fn set_level(&self, _: u32, _: u32, level: bool) {
            // A call that does not wait has returned by then.
            thread::sleep(Duration::from_millis(20));
            self.0.store(level, SeqCst);
        }
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
    }
    let sink = Arc::new(Slow(AtomicBool::new(false)));
    let router = Router::with_worker(Arc::clone(&sink)).unwrap();
    router.set_route(5, Some(Route::Pin(5))).unwrap();
    router.set_level(5, true);
    drop(router);
    assert!(sink.0.load(SeqCst));
    assert_eq!(Arc::strong_count(&sink), 1);
}

/// Inside a call of the worker's, calls that otherwise wait for the worker do not.
#[test]
fn the_worker_does_not_wait_for_itself() {
    limit("the_worker_does_not_wait_for_itself", || {
        let (router, sink) = router();
        let (a, b) = (event(), event());
        let irqfds = [&a, &b].map(|event| router.assign(event, MSI).unwrap());
        let call = {
            let router = router.clone();
            move || {
                router.synchronize();
                router.set_route(MSI, Some(message(0x42))).unwrap();
                drop(irqfds);
            }
        };
        *sink.next.lock().unwrap() = Some(Box::new(call));
        a.signal();
        router.synchronize();
        assert_eq!(sink.threads.lock().unwrap().len(), 1);
        a.signal();
        b.signal();
        assert_eq!((a.count(), b.count()), (1, 1));
    });
}

/// The last handle is dropped inside a call of the worker's: the drop returns, and the worker ends.
#[test]
fn the_last_handle_goes_in_the_worker() {
    limit("the_last_handle_goes_in_the_worker", || {
        let (router, sink) = router();
        let a = event();
        router.assign(&a, MSI).unwrap().keep();
        let dropped = event();
        let call = {
            let dropped = Arc::clone(&dropped);
            move || {
                drop(router);
                dropped.signal();
            }
        };
        *sink.next.lock().unwrap() = Some(Box::new(call));
        a.signal();
        dropped.read();
        // The worker has the board, which has the sink.
        while Arc::strong_count(&sink) != 1 {
            thread::yield_now();
        }
        assert_eq!(sink.threads.lock().unwrap().len(), 1);
        a.signal();
        assert_eq!(a.count(), 1);
    });
}
