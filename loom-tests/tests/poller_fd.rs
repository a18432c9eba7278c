//! A poller in an outer loop: a loop that has armed the poller and sleeps is woken when there is something to report.
//!
//! `../breakages/poller_fd.toml` lists the ways in which the code was broken on purpose, and which of these models
//! noticed.

use doorbell::event::Signaller;
use doorbell::poll::{Events, Poller, PollerFd, Probe, Watch};
use doorbell::{Event, Spin};
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;
use loom_tests::check;
use std::sync::Arc;
use std::time::Duration;

const EDGE: Watch = Watch::READABLE.edge();

/// One event in one poller, under key 1, and the poller as a descriptor.
fn one(watch: Watch) -> (Arc<PollerFd>, Arc<Event>) {
    let poller = Poller::with_spin(Spin::Never);
    let event = Arc::new(Event::new(0).with_spin(Spin::Never));
    poller.add(&event, 1, watch).unwrap();
    (Arc::new(PollerFd::new(poller).unwrap()), event)
}

/// The reports that an outer loop gets; it sleeps until there are some.
fn outer(fd: &PollerFd) -> Vec<usize> {
    let mut events = Events::with_capacity(1);
    while fd.arm(&mut events).unwrap() {
        fd.fd().wait_readable();
        fd.disarm();
    }
    events.iter().map(|ready| ready.key()).collect()
}

/// The reports that a thread gets which waits for the poller itself.
fn wait(poller: &Poller) -> Vec<usize> {
    let mut events = Events::with_capacity(1);
    poller.wait(&mut events, None).unwrap();
    events.iter().map(|ready| ready.key()).collect()
}

fn signal(event: &Arc<Event>) -> thread::JoinHandle<()> {
    let event = Arc::clone(event);
    thread::spawn(move || event.signal())
}

/// A signal races a loop that arms the poller and sleeps. The bell rings once for each time that the loop armed the
/// poller.
#[test]
fn signal_and_outer_loop() {
    for watch in [Watch::READABLE, EDGE] {
        check("signal_and_outer_loop", None, move || {
            let (fd, event) = one(watch);
            let signaller = signal(&event);
            assert_eq!(outer(&fd), [1]);
            assert_eq!(event.try_read(), Some(1));
            signaller.join().unwrap();
            assert!(fd.fd().writes() <= 1);
        });
    }
}

/// While the loop is awake, the descriptor is not written to, however the poller has been armed and disarmed before.
#[test]
fn nothing_is_written_while_the_loop_is_awake() {
    check("nothing_is_written_while_the_loop_is_awake", None, || {
        let (fd, event) = one(Watch::READABLE);
        let signaller = signal(&event);
        let mut events = Events::with_capacity(1);
        let _ = fd.arm(&mut events).unwrap();
        fd.disarm();
        signaller.join().unwrap();
        // The signaller may have seen the poller armed, and be late.
        assert!(fd.fd().writes() <= 1);
        assert_eq!(outer(&fd), [1]);
        event.try_read();
        let before = fd.fd().writes();
        for _ in 0..2 {
            // The event leaves the queue, and its next signal puts it there.
            assert_eq!(fd.poller().look(&mut events), Ok(0));
            event.signal();
            assert_eq!(fd.poller().look(&mut events), Ok(1));
            event.try_read();
        }
        assert_eq!(fd.fd().writes(), before);
    });
}

/// Two signals, of which the second may come while the loop reports the first.
#[test]
fn an_outer_loop_comes_back() {
    for watch in [Watch::READABLE, EDGE] {
        check("an_outer_loop_comes_back", Some(3), move || {
            let (fd, event) = one(watch);
            let signaller = thread::spawn({
                let event = Arc::clone(&event);
                move || {
                    event.signal();
                    event.signal();
                }
            });
            let mut sum = 0;
            while sum < 2 {
                assert_eq!(outer(&fd), [1]);
                sum += event.try_read().unwrap_or(0);
            }
            signaller.join().unwrap();
        });
    }
}

/// An outer loop and a thread that waits for the poller itself take one event each.
#[test]
fn an_outer_loop_beside_a_thread() {
    check("an_outer_loop_beside_a_thread", Some(2), || {
        let (fd, event) = one(EDGE);
        let other = Arc::new(Event::new(0));
        fd.poller().add(&other, 2, EDGE).unwrap();
        let waiter = thread::spawn({
            let poller = Arc::clone(fd.poller());
            move || wait(&poller)
        });
        let signaller = thread::spawn(move || {
            event.signal();
            other.signal();
        });
        let mut found = outer(&fd);
        found.extend(waiter.join().unwrap());
        found.sort();
        assert_eq!(found, [1, 2]);
        signaller.join().unwrap();
    });
}

/// A thread that only looks may hear the bell that was for the outer loop. The thread takes one of two events, and the
/// loop is woken for the other event.
#[test]
fn a_look_beside_an_outer_loop() {
    check("a_look_beside_an_outer_loop", Some(2), || {
        let (fd, event) = one(EDGE);
        let other = Arc::new(Event::new(0));
        fd.poller().add(&other, 2, EDGE).unwrap();
        let looker = thread::spawn({
            let poller = Arc::clone(fd.poller());
            move || {
                let mut events = Events::with_capacity(1);
                poller.wait(&mut events, Some(Duration::ZERO)).unwrap()
            }
        });
        let signaller = thread::spawn(move || {
            event.signal();
            other.signal();
        });
        assert_eq!(outer(&fd).len(), 1);
        signaller.join().unwrap();
        looker.join().unwrap();
    });
}

/// A thread that looks takes what the outer loop was woken for, and signals again.
#[test]
fn a_look_that_takes_it_away() {
    check("a_look_that_takes_it_away", Some(2), || {
        let (fd, event) = one(EDGE);
        let looker = thread::spawn({
            let (poller, event) = (Arc::clone(fd.poller()), Arc::clone(&event));
            move || {
                let mut events = Events::with_capacity(1);
                if poller.look(&mut events).unwrap() == 1 {
                    event.signal();
                }
            }
        });
        let signaller = signal(&event);
        assert_eq!(outer(&fd), [1]);
        signaller.join().unwrap();
        looker.join().unwrap();
    });
}

/// A notification ends the sleep of the outer loop.
#[test]
fn notify_and_outer_loop() {
    check("notify_and_outer_loop", None, || {
        let (fd, _event) = one(Watch::READABLE);
        let notifier = thread::spawn({
            let fd = Arc::clone(&fd);
            move || fd.poller().notify()
        });
        assert!(outer(&fd).is_empty());
        notifier.join().unwrap();
    });
}

/// An event with signallers is heard before the loop sleeps.
#[test]
fn a_signaller_and_an_outer_loop() {
    for watch in [Watch::READABLE, EDGE] {
        check("a_signaller_and_an_outer_loop", Some(3), move || {
            let (fd, event) = one(watch);
            let signaller = Signaller::new(&event);
            signaller.signal();
            assert_eq!(outer(&fd), [1]);
            assert_eq!(event.try_read(), Some(1));
            let other = thread::spawn(move || signaller.signal());
            assert_eq!(outer(&fd), [1]);
            assert_eq!(event.try_read(), Some(1));
            other.join().unwrap();
        });
    }
}

/// What a driver and a device share.
#[derive(Default)]
struct Ring {
    available: AtomicU32,
    no_notify: AtomicBool,
    taken: AtomicU32,
}

struct OfRing(Arc<Ring>);

impl Probe for OfRing {
    fn ready(&mut self) -> bool {
        let taken = self.0.taken.fetch_add(0, Ordering::Relaxed);
        self.0.available.load(Ordering::Acquire) > taken
    }

    fn begin(&mut self) {
        self.0.no_notify.store(true, Ordering::Relaxed);
    }

    fn end(&mut self) -> bool {
        self.0.no_notify.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.ready()
    }
}

/// An outer loop whose driver notifies only if it is asked to.
#[test]
fn requests_and_an_outer_loop() {
    check("requests_and_an_outer_loop", Some(2), || {
        let (fd, kick) = one(EDGE);
        let ring = Arc::new(Ring::default());
        let probe = OfRing(Arc::clone(&ring));
        fd.poller().attach_probe(1, probe).unwrap();
        let driver = thread::spawn({
            let (ring, kick) = (Arc::clone(&ring), Arc::clone(&kick));
            move || {
                for _ in 0..2 {
                    ring.available.fetch_add(1, Ordering::Release);
                    fence(Ordering::SeqCst);
                    if !ring.no_notify.load(Ordering::Relaxed) {
                        kick.signal();
                    }
                }
            }
        });
        let mut taken = 0;
        while taken < 2 {
            outer(&fd);
            taken = ring.available.load(Ordering::Acquire);
            ring.taken.store(taken, Ordering::Relaxed);
        }
        driver.join().unwrap();
    });
}
