//! A wait ends when its time is up, however much there is to carry over.

use crate::common::caller::{Caller, call_at, wait_until};
use crate::common::counter::Place;
use crate::common::watchdog;
use doorbell::event::{Change, Interest, Observation};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Spin};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const SPINS: [Spin; 3] = [Spin::Never, Spin::DEFAULT, Spin::Always];
const SHORT: Duration = Duration::from_millis(5);

fn write_one(fd: &OwnedFd) {
    assert_eq!(rustix::io::write(fd, &1_u64.to_ne_bytes()), Ok(8));
}

fn wait(poller: &Poller, timeout: Duration) -> usize {
    poller
        .wait(&mut Events::with_capacity(8), Some(timeout))
        .unwrap()
}

/// A bound eventfd, and its event, which is not watched.
fn bind(poller: &Poller, key: usize) -> (Arc<OwnedFd>, Arc<Event>) {
    bind_with(poller, key, EventfdFlags::NONBLOCK)
}

fn bind_with(poller: &Poller, key: usize, flags: EventfdFlags) -> (Arc<OwnedFd>, Arc<Event>) {
    let fd = Arc::new(eventfd(0, flags).unwrap());
    let event = Arc::new(Event::new(0));
    poller.bind(&fd, &event, key).unwrap();
    (fd, event)
}

/// Calls `f` whenever the event is signalled.
pub fn on_signal(event: &Arc<Event>, f: impl Fn() + Send + Sync + 'static) -> Observation {
    Observation::new(
        Arc::clone(event),
        Interest::Signals,
        Arc::new(move |_: Change| f()),
    )
}

/// Each count that is carried over is answered with the next write, by the thread that carries.
fn answered_at_once(poller: &Poller, flags: EventfdFlags) -> (Arc<Event>, Observation) {
    let (fd, event) = bind_with(poller, 1, flags);
    write_one(&fd);
    let answer = on_signal(&event, move || write_one(&fd));
    (event, answer)
}

#[test]
fn while_an_eventfd_is_answered_at_once() {
    watchdog::limit("while_an_eventfd_is_answered_at_once", || {
        for spin in SPINS {
            let poller = Poller::with_spin(spin);
            let (event, _answer) = answered_at_once(&poller, EventfdFlags::NONBLOCK);
            for _ in 0..3 {
                let before = event.count();
                assert_eq!(wait(&poller, SHORT), 0);
                assert!(event.count() > before);
            }
        }
    });
}

#[test]
fn while_a_peer_answers() {
    watchdog::limit("while_a_peer_answers", || {
        for spin in SPINS {
            let poller = Poller::with_spin(spin);
            let (fd, event) = bind(&poller, 1);
            let (carried, answers) = mpsc::channel();
            let peer = thread::spawn({
                let fd = Arc::clone(&fd);
                move || answers.iter().for_each(|()| write_one(&fd))
            });
            let tell = on_signal(&event, move || _ = carried.send(()));
            write_one(&fd);
            for _ in 0..3 {
                assert_eq!(wait(&poller, SHORT), 0);
            }
            assert!(event.count() > 0);
            drop((tell, poller));
            peer.join().unwrap();
        }
    });
}

/// Two threads wait, and each finds the binding that the other is carrying for.
#[test]
fn while_a_peer_writes_without_pause() {
    watchdog::limit("while_a_peer_writes_without_pause", || {
        for spin in SPINS {
            let poller = Poller::with_spin(spin);
            let (fd, event) = bind(&poller, 1);
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        // The eventfd is full once in a long while.
                        let _ = rustix::io::write(&fd, &1_u64.to_ne_bytes());
                    }
                });
                let waits = || (0..20).for_each(|_| assert_eq!(wait(&poller, SHORT), 0));
                let other = scope.spawn(waits);
                waits();
                other.join().unwrap();
                done.store(true, Ordering::Relaxed);
            });
            assert!(event.count() > 0);
        }
    });
}

/// A wait with a timeout of 0 carries over, but not without end, though a semaphore always has more to read.
#[test]
fn without_any_time() {
    watchdog::limit("without_any_time", || {
        for kind in [EventfdFlags::empty(), EventfdFlags::SEMAPHORE] {
            let poller = Poller::new();
            let (event, _answer) = answered_at_once(&poller, kind | EventfdFlags::NONBLOCK);
            for _ in 0..100 {
                let before = event.count();
                assert_eq!(wait(&poller, Duration::ZERO), 0);
                let carried = event.count() - before;
                assert!((1..=1_000).contains(&carried), "{carried} at once");
            }
        }
    });
}

/// What is carried over hides neither a ready event nor a notification.
#[test]
fn what_is_ready_beside_it_is_reported() {
    watchdog::limit("what_is_ready_beside_it_is_reported", || {
        for spin in SPINS {
            let poller = Poller::with_spin(spin);
            let (_event, _answer) = answered_at_once(&poller, EventfdFlags::NONBLOCK);
            let quiet = Arc::new(Event::new(0));
            poller.add(&quiet, 2, Watch::READABLE).unwrap();
            thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    let mut events = Events::with_capacity(8);
                    poller.wait(&mut events, None).unwrap();
                    let ready = events.iter().map(|ready| ready.key()).collect::<Vec<_>>();
                    let notified = poller.wait(&mut events, None).unwrap();
                    (ready, notified)
                });
                thread::sleep(SHORT);
                quiet.signal();
                poller.notify();
                let (ready, notified) = waiter.join().unwrap();
                assert!(ready == [2] || ready.is_empty(), "{ready:?}");
                assert!(notified <= 1);
            });
        }
    });
}

/// An observer of an event that is carried into may take its time. Other threads carry for other bindings meanwhile.
#[test]
fn an_observer_holds_up_no_other_binding() {
    watchdog::limit("an_observer_holds_up_no_other_binding", || {
        for asleep in [false, true] {
            for _ in 0..20 {
                let poller = Arc::new(Poller::with_spin(Spin::Never));
                let bindings = [1, 2].map(|key| bind(&poller, key));
                let both = Arc::new(Barrier::new(2));
                let _observations = bindings.each_ref().map(|(_, event)| {
                    let both = Arc::clone(&both);
                    on_signal(event, move || _ = both.wait())
                });
                let write = || bindings.iter().for_each(|(fd, _)| write_one(fd));
                if !asleep {
                    write();
                }
                let waiters = [(); 2].map(|()| {
                    let poller = Arc::clone(&poller);
                    call_at(Place::Descriptor(0), move || {
                        poller.wait(&mut Events::with_capacity(4), None)
                    })
                });
                if asleep {
                    waiters.iter().for_each(Caller::wait_asleep);
                    write();
                }
                wait_until("both to be carried over", || {
                    bindings.iter().all(|(_, event)| event.count() == 1)
                });
                for waiter in waiters {
                    wait_until("one to be notified", || {
                        poller.notify();
                        waiter.has_returned()
                    });
                    assert_eq!(waiter.finish(), Ok(0));
                }
            }
        }
    });
}

/// When the time is up, what is not carried over yet stays for the next wait. Each binding gets its turn.
#[test]
fn the_time_is_up_in_the_middle() {
    watchdog::limit("the_time_is_up_in_the_middle", || {
        const MANY: usize = 12;
        let poller = Poller::with_spin(Spin::Never);
        let turns = Arc::new(AtomicUsize::new(0));
        let bindings: Vec<_> = (0..MANY).map(|key| bind(&poller, key)).collect();
        // The waiting thread is held up until its time is up.
        let over = Instant::now() + 20 * SHORT;
        let observations: Vec<_> = bindings
            .iter()
            .map(|(_, event)| {
                let turns = Arc::clone(&turns);
                on_signal(event, move || {
                    turns.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(over.saturating_duration_since(Instant::now()));
                })
            })
            .collect();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&poller, 10 * SHORT));
            // A first look, before the thread knows how late it is, takes everything.
            wait_until("the thread to wait", || {
                format!("{poller:?}").contains("waiting: 1") || waiter.is_finished()
            });
            bindings.iter().for_each(|(fd, _)| write_one(fd));
            assert_eq!(waiter.join().unwrap(), 0);
        });
        let in_time = turns.load(Ordering::Relaxed);
        assert!(in_time < MANY, "{in_time} turns");
        // This many looks include looks at descriptors.
        for _ in 0..40 {
            assert_eq!(wait(&poller, Duration::ZERO), 0);
        }
        assert_eq!(turns.load(Ordering::Relaxed), MANY);
        drop(observations);
    });
}
