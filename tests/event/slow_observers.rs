//! Observers that take their time: all other threads that the same signal, read or batch wakes are woken before.

#[path = "../common/watchdog.rs"]
mod watchdog;

use doorbell::event::{Batch, Change, Interest, Observation};
use doorbell::poll::{Events, Poller, Watch, wait_any};
use doorbell::{Event, Spin};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use watchdog::limit;

/// How long an observer waits for a thread that it must not keep asleep.
const PATIENCE: Duration = Duration::from_secs(20);

fn event(count: u64) -> Arc<Event> {
    Arc::new(Event::new(count).with_spin(Spin::Never))
}

/// The ways in which a thread waits until the event can be read.
#[derive(Clone, Copy, Debug)]
enum Sleeper {
    Reader,
    SemaphoreReader,
    Visitor,
    VisitorInLine,
    Poller,
    #[cfg(target_os = "linux")]
    PollerWithDescriptor,
    Task,
}

const SLEEPERS: &[Sleeper] = &[
    Sleeper::Reader,
    Sleeper::SemaphoreReader,
    Sleeper::Visitor,
    Sleeper::VisitorInLine,
    Sleeper::Poller,
    #[cfg(target_os = "linux")]
    Sleeper::PollerWithDescriptor,
    Sleeper::Task,
];

impl Sleeper {
    fn event(self) -> Arc<Event> {
        match self {
            Sleeper::SemaphoreReader => Arc::new(Event::semaphore(0).with_spin(Spin::Never)),
            _ => event(0),
        }
    }

    /// Falls asleep on a thread of its own, which sends something when it has been woken.
    fn fall_asleep(self, event: &Arc<Event>, tell: &Sender<()>) -> JoinHandle<Arc<Poller>> {
        self.fall_asleep_in(poller(event), event, tell)
    }

    /// The poller has the event registered, and outlives the thread, because registering and deregistering wait for
    /// observers.
    fn fall_asleep_in(
        self,
        poller: Arc<Poller>,
        event: &Arc<Event>,
        tell: &Sender<()>,
    ) -> JoinHandle<Arc<Poller>> {
        let (event, tell) = (Arc::clone(event), tell.clone());
        let thread = thread::spawn(move || {
            match self {
                Sleeper::Reader | Sleeper::SemaphoreReader => _ = event.read(),
                Sleeper::Visitor => _ = wait_any(&[&*event, &Event::new(0)], None),
                Sleeper::VisitorInLine => {
                    let others = [const { Event::new(0) }; 200];
                    let events: Vec<_> = others.iter().chain([&*event]).collect();
                    _ = wait_any(&events, None);
                }
                Sleeper::Poller => wait_at(&poller),
                #[cfg(target_os = "linux")]
                Sleeper::PollerWithDescriptor => {
                    let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty());
                    let fd = fd.unwrap();
                    poller.add_fd(&fd, 1, Watch::READABLE).unwrap();
                    wait_at(&poller);
                }
                Sleeper::Task => _ = pollster::block_on(event.read_async()),
            }
            tell.send(()).unwrap();
            poller
        });
        nap();
        thread
    }
}

fn poller(event: &Arc<Event>) -> Arc<Poller> {
    let poller = Arc::new(Poller::with_spin(Spin::Never));
    poller.add(event, 0, Watch::READABLE).unwrap();
    poller
}

/// Whether the system has a wait at several words. If not, all visitors are in line.
fn waits_at_several() -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{ClockId, futex};
        let none = futex::waitv(&[], futex::WaitvFlags::empty(), None, ClockId::Monotonic);
        none == Err(rustix::io::Errno::INVAL)
    }
    #[cfg(not(target_os = "linux"))]
    false
}

fn wait_at(poller: &Poller) {
    let mut found = Events::with_capacity(1);
    while poller.wait(&mut found, None).unwrap() == 0 {}
}

/// Long enough for a thread to fall asleep, most likely.
fn nap() {
    thread::sleep(Duration::from_millis(20));
}

/// An observer that returns when it has been told to, and a flag that says whether it was told.
fn waits_for(told: Receiver<()>) -> (Arc<AtomicBool>, Arc<impl Fn(Change) + Send + Sync>) {
    let told = Mutex::new(told);
    let satisfied = Arc::new(AtomicBool::new(false));
    let observer = {
        let satisfied = Arc::clone(&satisfied);
        move |_: Change| {
            let result = told.lock().unwrap().recv_timeout(PATIENCE);
            satisfied.store(result.is_ok(), SeqCst);
        }
    };
    (satisfied, Arc::new(observer))
}

fn observe(event: &Arc<Event>, f: impl Fn(Change) + Send + Sync + 'static) -> Observation {
    Observation::new(Arc::clone(event), Interest::Signals, Arc::new(f))
}

/// The slow observer is of the same event, and is called each time or on demand.
#[test]
fn at_the_same_event() {
    limit("at_the_same_event", || {
        for &sleeper in SLEEPERS {
            for on_demand in [false, true] {
                let event = sleeper.event();
                let (tell, told) = mpsc::channel();
                let thread = sleeper.fall_asleep(&event, &tell);
                let (satisfied, observer) = waits_for(told);
                // This is the newest observer.
                let _observation = if on_demand {
                    let observation =
                        Observation::on_demand(Arc::clone(&event), Interest::Signals, observer);
                    observation.arm(Interest::Signals);
                    observation
                } else {
                    Observation::new(Arc::clone(&event), Interest::Signals, observer)
                };
                event.signal();
                thread.join().unwrap();
                assert!(satisfied.load(SeqCst), "{sleeper:?}, {on_demand}");
            }
        }
    });
}

/// The slow observer is of another event of the same batch, before or after the sleeper's.
#[test]
fn in_the_same_batch() {
    limit("in_the_same_batch", || {
        for &sleeper in SLEEPERS {
            for first in [false, true] {
                let (event, slow) = (sleeper.event(), self::event(0));
                let (tell, told) = mpsc::channel();
                let thread = sleeper.fall_asleep(&event, &tell);
                let (satisfied, observer) = waits_for(told);
                let _observation = Observation::new(Arc::clone(&slow), Interest::Signals, observer);
                let mut batch = Batch::new();
                let mut events = [event, slow];
                if first {
                    events.reverse();
                }
                for event in events {
                    let index = batch.add(event);
                    batch.signal(index);
                }
                batch.commit().unwrap();
                thread.join().unwrap();
                assert!(satisfied.load(SeqCst), "{sleeper:?}, {first}");
            }
        }
    });
}

/// A sleeper that one observer has signalled is woken before the next observer is called.
#[test]
fn signalled_by_an_observer_before() {
    limit("signalled_by_an_observer_before", || {
        for &sleeper in SLEEPERS {
            for batch in [false, true] {
                let (event, slow, outer) = (sleeper.event(), self::event(0), self::event(0));
                let (tell, told) = mpsc::channel();
                let thread = sleeper.fall_asleep(&event, &tell);
                let (satisfied, observer) = waits_for(told);
                let _slow = Observation::new(Arc::clone(&slow), Interest::Signals, observer);
                let _outer = observe(&outer, move |_| {
                    if batch {
                        let mut batch = Batch::new();
                        for event in [&slow, &event] {
                            let index = batch.add(Arc::clone(event));
                            batch.signal(index);
                        }
                        batch.commit().unwrap();
                    } else {
                        slow.signal();
                        event.signal();
                    }
                });
                outer.signal();
                thread.join().unwrap();
                assert!(satisfied.load(SeqCst), "{sleeper:?}, {batch}");
            }
        }
    });
}

/// The slow observer is the second of one event, the first of which has signalled the sleeper.
#[test]
fn signalled_by_an_observer_of_the_same_event() {
    limit("signalled_by_an_observer_of_the_same_event", || {
        for &sleeper in SLEEPERS {
            let (event, outer) = (sleeper.event(), self::event(0));
            let (tell, told) = mpsc::channel();
            let thread = sleeper.fall_asleep(&event, &tell);
            let (satisfied, observer) = waits_for(told);
            let _second = Observation::new(Arc::clone(&outer), Interest::Signals, observer);
            let _first = observe(&outer, move |_| event.signal());
            outer.signal();
            thread.join().unwrap();
            assert!(satisfied.load(SeqCst), "{sleeper:?}");
        }
    });
}

/// Threads that an observer signals itself are woken at once; threads in pollers are if the observer waits in a call of
/// this crate.
#[test]
fn signalled_by_the_observer_itself() {
    limit("signalled_by_the_observer_itself", || {
        for &sleeper in SLEEPERS {
            let (waits_here, promised) = match sleeper {
                Sleeper::Reader | Sleeper::SemaphoreReader => (false, true),
                Sleeper::Visitor => (false, waits_at_several()),
                Sleeper::Poller => (true, true),
                #[cfg(target_os = "linux")]
                Sleeper::PollerWithDescriptor => (true, true),
                Sleeper::VisitorInLine | Sleeper::Task => (true, false),
            };
            if !promised {
                continue;
            }
            let (event, outer, answer) = (sleeper.event(), self::event(0), self::event(0));
            let (tell, told) = mpsc::channel();
            let thread = sleeper.fall_asleep(&event, &tell);
            let (satisfied, wait) = waits_for(told);
            let answers = {
                let (answer, satisfied) = (Arc::clone(&answer), Arc::clone(&satisfied));
                move || satisfied.store(answer.read_timeout(PATIENCE).is_some(), SeqCst)
            };
            let _observation = observe(&outer, move |change| {
                event.signal();
                if waits_here {
                    answers();
                } else {
                    wait(change);
                }
            });
            let messenger = thread::spawn(move || {
                let poller = thread.join().unwrap();
                answer.signal();
                poller
            });
            outer.signal();
            messenger.join().unwrap();
            assert!(satisfied.load(SeqCst), "{sleeper:?}");
        }
    });
}

/// A blocked writer, and one that waits as a task, are woken before an observer of reads is called.
#[test]
fn writers() {
    limit("writers", || {
        for (task, nested) in [(false, false), (false, true), (true, false), (true, true)] {
            let event = event(u64::MAX - 1);
            let (tell, told) = mpsc::channel();
            let thread = thread::spawn({
                let event = Arc::clone(&event);
                move || {
                    if task {
                        pollster::block_on(event.write_async(1)).unwrap();
                    } else {
                        event.write(1).unwrap();
                    }
                    tell.send(()).unwrap();
                }
            });
            nap();
            let (satisfied, observer) = waits_for(told);
            let _observation = Observation::new(Arc::clone(&event), Interest::Reads, observer);
            let outer = self::event(0);
            let _outer = observe(&outer, {
                let event = Arc::clone(&event);
                move |_| _ = event.try_read()
            });
            if nested {
                outer.signal();
            } else {
                event.try_read();
            }
            thread.join().unwrap();
            assert!(satisfied.load(SeqCst), "{task} {nested}");
        }
    });
}

/// While an observer holds up one signaller, another one's signal wakes threads that have come since.
#[test]
fn another_signaller() {
    limit("another_signaller", || {
        for &sleeper in SLEEPERS {
            for batch in [false, true] {
                let event = sleeper.event();
                let poller = self::poller(&event);
                let (enter, entered) = mpsc::channel();
                let (leave, may_leave) = mpsc::channel();
                let may_leave = Mutex::new(may_leave);
                let first = AtomicBool::new(true);
                let _observation = observe(&event, move |_| {
                    if first.swap(false, SeqCst) {
                        enter.send(()).unwrap();
                        may_leave.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                    }
                });
                let signaller = thread::spawn({
                    let event = Arc::clone(&event);
                    move || {
                        if batch {
                            let mut batch = Batch::new();
                            let index = batch.add(event);
                            batch.signal(index);
                            batch.commit().unwrap();
                        } else {
                            event.signal();
                        }
                    }
                });
                entered.recv_timeout(PATIENCE).unwrap();
                event.read();
                let (tell, told) = mpsc::channel();
                let thread = sleeper.fall_asleep_in(poller, &event, &tell);
                event.signal();
                let woken = told.recv_timeout(PATIENCE);
                leave.send(()).unwrap();
                signaller.join().unwrap();
                thread.join().unwrap();
                assert!(woken.is_ok(), "{sleeper:?}, {batch}");
            }
        }
    });
}

/// All waiters of a batch are woken before the first observer is called: threads, pollers and tasks, each once.
#[test]
fn all_of_a_batch() {
    limit("all_of_a_batch", || {
        let (tell, told) = mpsc::channel();
        let events: Vec<_> = SLEEPERS.iter().map(|sleeper| sleeper.event()).collect();
        let threads: Vec<_> = SLEEPERS
            .iter()
            .zip(&events)
            .map(|(sleeper, event)| sleeper.fall_asleep(event, &tell))
            .collect();
        let told = Mutex::new(told);
        let all = SLEEPERS.len() as u64;
        let woken = Arc::new(AtomicU64::new(0));
        let _observations: Vec<_> = events.iter().map(|it| observe(it, |_| ())).collect();
        let slow = event(0);
        let _slow = observe(&slow, {
            let woken = Arc::clone(&woken);
            move |_| {
                let told = told.lock().unwrap();
                while woken.load(SeqCst) < all && told.recv_timeout(PATIENCE).is_ok() {
                    woken.fetch_add(1, SeqCst);
                }
            }
        });
        let mut batch = Batch::new();
        for event in [slow].into_iter().chain(events) {
            let index = batch.add(event);
            batch.signal(index);
        }
        batch.commit().unwrap();
        assert_eq!(woken.load(SeqCst), all);
        threads
            .into_iter()
            .for_each(|thread| drop(thread.join().unwrap()));
    });
}

/// Observers are called newest first, and after pollers whatever the age of those; a panic among them changes nothing.
#[test]
fn the_order_of_observers() {
    let event = event(0);
    let poller = Arc::new(Poller::new());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let ready = Arc::new(AtomicBool::new(true));
    let note = |name: u32| {
        let (seen, poller, ready) = (Arc::clone(&seen), Arc::clone(&poller), Arc::clone(&ready));
        move |_: Change| {
            seen.lock().unwrap().push(name);
            let found = poller.wait(&mut Events::with_capacity(1), Some(Duration::ZERO));
            ready.fetch_and(found.unwrap() == 1, SeqCst);
            if name == 2 {
                panic::resume_unwind(Box::new(()));
            }
        }
    };
    let _first = observe(&event, note(1));
    let second = Observation::on_demand(&event, Interest::Signals, Arc::new(note(2)));
    poller.add(&event, 0, Watch::READABLE).unwrap();
    let _third = observe(&event, note(3));
    second.arm(Interest::Signals);
    panic::catch_unwind(AssertUnwindSafe(|| event.signal())).unwrap_err();
    assert_eq!(*seen.lock().unwrap(), [3, 2, 1]);
    assert!(ready.load(SeqCst), "called before the poller");
    let mut batch = Batch::new();
    let index = batch.add(&event);
    batch.signal(index);
    second.arm(Interest::Signals);
    panic::catch_unwind(AssertUnwindSafe(|| batch.commit())).unwrap_err();
    assert_eq!(*seen.lock().unwrap(), [3, 2, 1, 3, 2, 1]);
}
