//! Drivers of a line: the thread that makes a request first drives, until another thread relieves it or nothing is due.

use super::watchdog::limit;
use doorbell::irqfd::{Eoi, InterruptSink, MsiMessage, Router, Routes};
use doorbell::{Event, irqfd::Irqfd};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread::{self, ThreadId};

const PIN: u32 = 5;

/// A sink whose guest ends each interrupt inside the call for it. A line that is held up is then raised once in each
/// turn.
#[derive(Default)]
struct Sink {
    line: OnceLock<Eoi>,
    /// Which threads have raised the line.
    raised_by: Mutex<Vec<ThreadId>>,
    /// The guest no longer ends interrupts.
    over: AtomicBool,
    level: AtomicBool,
    /// Called inside each call for the line, with the number of times that the line has been raised.
    inside: OnceLock<Box<dyn Fn(usize) + Send + Sync>>,
}

impl Sink {
    fn hear(&self) -> usize {
        let mut raised_by = self.raised_by.lock().unwrap();
        raised_by.push(thread::current().id());
        raised_by.len()
    }

    fn times(&self) -> usize {
        self.raised_by.lock().unwrap().len()
    }

    fn raised_by(&self) -> Vec<ThreadId> {
        self.raised_by.lock().unwrap().clone()
    }

    fn ack(&self) {
        self.line.get().expect("the sink is connected").ack();
    }
}

impl InterruptSink for Sink {
    fn set_level(&self, _: u32, _: u32, level: bool) {
        self.level.store(level, SeqCst);
        if level {
            let times = self.hear();
            if let Some(inside) = self.inside.get() {
                inside(times);
            }
            if !self.over.load(SeqCst) {
                self.ack();
            }
        }
    }

    fn signal_msi(&self, _: u32, _: MsiMessage) {}

    fn connect(&self, line: Eoi, _: bool) -> io::Result<()> {
        let _ = self.line.set(line);
        Ok(())
    }
}

fn router() -> (Router, Arc<Sink>, Irqfd) {
    let sink = Arc::new(Sink::default());
    let router = Router::new(Arc::clone(&sink));
    router.set_routes(Routes::identity(24)).unwrap();
    let irqfd = router.assign(Arc::new(Event::new(0)), PIN).unwrap();
    (router, sink, irqfd)
}

/// The line can be used, and no thread drives it.
fn assert_usable(router: &Router, sink: &Sink) {
    sink.over.store(true, SeqCst);
    for level in [false, true, false] {
        router.set_level(PIN, level);
        assert_eq!(sink.level.load(SeqCst), level);
    }
    assert_eq!(sink.raised_by().pop(), Some(thread::current().id()));
}

/// A request that is made while a call is under way is carried out by the thread that is in the call. The thread that
/// makes the request waits for a moment at most, even if the driver asks to be relieved.
#[test]
fn requests_are_left_to_the_driver() {
    for at in [1, 10, 17, 18, 30] {
        limit("requests_are_left_to_the_driver", || {
            let (router, sink, _irqfd) = router();
            let gate = Arc::new(Barrier::new(2));
            let inside = {
                let (gate, sink) = (Arc::clone(&gate), Arc::downgrade(&sink));
                move |times| {
                    if times == at {
                        gate.wait();
                        gate.wait();
                    }
                    let sink = sink.upgrade().expect("the driver makes the call");
                    sink.over.store(times >= at + 40, SeqCst);
                }
            };
            assert!(sink.inside.set(Box::new(inside)).is_ok());
            let driver = thread::scope(|scope| {
                let driver = scope.spawn(|| router.set_level(PIN, true));
                let id = driver.thread().id();
                gate.wait();
                for _ in 0..3 {
                    sink.ack();
                }
                assert_eq!(sink.times(), at);
                gate.wait();
                driver.join().unwrap();
                id
            });
            let raised_by = sink.raised_by();
            assert_eq!(raised_by.len(), at + 40);
            assert!(raised_by.iter().all(|&by| by == driver), "{at}");
            assert_usable(&router, &sink);
        });
    }
}

/// On a line that is never at rest, a driver makes sixteen turns, and then another thread that makes a request takes
/// over.
#[test]
fn a_driver_is_relieved_after_sixteen_turns() {
    const CHANGES: usize = 20;
    limit("a_driver_is_relieved_after_sixteen_turns", || {
        let (router, sink, _irqfd) = router();
        let inside = {
            let sink = Arc::downgrade(&sink);
            let changes = Mutex::new(0);
            move |_| {
                let sink = sink.upgrade().expect("the driver makes the call");
                let raised_by = sink.raised_by.lock().unwrap();
                let mut changes = changes.lock().unwrap();
                if let [.., before, now] = raised_by[..] {
                    *changes += usize::from(before != now);
                }
                sink.over.store(*changes > CHANGES, SeqCst);
            }
        };
        assert!(sink.inside.set(Box::new(inside)).is_ok());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    router.set_level(PIN, true);
                    while !sink.over.load(SeqCst) {
                        sink.ack();
                        // The request, or the relief of the driver, has left the line to another thread.
                        let before = sink.times();
                        while sink.times() == before && !sink.over.load(SeqCst) {
                            thread::yield_now();
                        }
                    }
                });
            }
        });
        let raised_by = sink.raised_by();
        let turns: Vec<usize> = raised_by
            .chunk_by(|before, now| before == now)
            .map(<[_]>::len)
            .collect();
        // After these, the thread that has not seen the end yet may make one more request.
        assert!(turns.len() > CHANGES, "{turns:?}");
        assert!(
            turns[..CHANGES].iter().all(|&turns| turns > 16),
            "{turns:?}"
        );
        assert_usable(&router, &sink);
    });
}
