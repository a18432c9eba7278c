//! Many threads at one poller: nothing is lost, and no thread hangs.
//!
//! Each test adds up what was written and what was read, and has a watchdog: a lost wake-up is a hang.

use crate::common::watchdog::Watchdog;
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Spin};
use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The number of signals of each signaller.
const SIGNALS: u64 = 50_000;
const SIGNALLERS: usize = 2;
const WAITERS: usize = 3;
const EVENTS: usize = 8;

/// What the threads share.
struct Scene {
    poller: Poller,
    events: Vec<Arc<Event>>,
    watch: Watch,
    taken: AtomicU64,
    stop: AtomicBool,
}

impl Scene {
    /// With a descriptor, threads sleep in epoll.
    fn new(watch: Watch, spin: Spin, with_fd: bool) -> Arc<Self> {
        let poller = Poller::with_spin(spin);
        let events: Vec<_> = (0..EVENTS).map(|_| Arc::new(Event::new(0))).collect();
        for (key, event) in events.iter().enumerate() {
            poller.add(event, key, watch).unwrap();
        }
        if with_fd {
            // This descriptor is never ready.
            let quiet = eventfd(0, EventfdFlags::empty()).unwrap();
            poller.add_fd(&quiet, EVENTS, Watch::READABLE).unwrap();
            std::mem::forget(quiet);
        }
        Arc::new(Scene {
            poller,
            events,
            watch,
            taken: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Waits and reads until it is told to stop.
    fn serve(&self, room: usize, seed: u64) {
        let mut random = Rng::with_seed(seed);
        let mut ready = Events::with_capacity(room);
        while !self.stop.load(Ordering::Relaxed) {
            let timeout = match random.u8(0..4) {
                0 => Some(Duration::from_micros(random.u64(0..300))),
                _ => None,
            };
            self.poller.wait(&mut ready, timeout).unwrap();
            for ready in &ready {
                if let Some(event) = self.events.get(ready.key()) {
                    self.taken
                        .fetch_add(event.try_read().unwrap_or(0), Ordering::Relaxed);
                    if self.watch == self.watch.one_shot() {
                        self.poller.modify(ready.key(), self.watch).unwrap();
                    }
                }
            }
        }
    }

    fn signal_all(&self, seed: u64) {
        let mut random = Rng::with_seed(seed);
        for _ in 0..SIGNALS {
            self.events[random.usize(0..EVENTS)].signal();
            if random.u8(0..32) == 0 {
                // The other threads fall asleep meanwhile.
                thread::sleep(Duration::from_nanos(1));
            }
        }
    }

    /// Runs signallers and waiters until everything has been read by waiters that only the signallers have woken.
    fn run(self: Arc<Self>, name: &'static str) {
        let shown = Arc::clone(&self);
        let _watchdog = Watchdog::new(Duration::from_secs(50), move || {
            let taken = shown.taken.load(Ordering::Relaxed);
            format!(
                "{name}: {taken} taken, {:?}, {:?}",
                shown.poller, shown.events
            )
        });
        let total = SIGNALS * SIGNALLERS as u64;
        thread::scope(|scope| {
            let scene = &*self;
            let waiters: Vec<_> = (0..WAITERS)
                .map(|index| scope.spawn(move || scene.serve(1 + index, index as u64)))
                .collect();
            let signallers = [1, 2].map(|seed| scope.spawn(move || scene.signal_all(seed)));
            signallers
                .into_iter()
                .for_each(|signaller| signaller.join().unwrap());
            // Nothing else wakes the waiters.
            while self.taken.load(Ordering::Relaxed) < total {
                thread::sleep(Duration::from_micros(100));
            }
            self.stop.store(true, Ordering::Relaxed);
            while !waiters.iter().all(|waiter| waiter.is_finished()) {
                self.poller.notify();
                thread::sleep(Duration::from_micros(100));
            }
        });
        assert_eq!(self.taken.load(Ordering::Relaxed), total);
        assert!(self.events.iter().all(|event| event.count() == 0));
    }
}

fn run(name: &'static str, watch: Watch) {
    for (spin, with_fd) in [
        (Spin::DEFAULT, false),
        (Spin::Never, false),
        (Spin::DEFAULT, true),
        (Spin::Never, true),
    ] {
        Scene::new(watch, spin, with_fd).run(name);
    }
}

#[test]
fn level() {
    run("level", Watch::READABLE);
}

#[test]
fn edge() {
    run("edge", Watch::READABLE.edge());
}

#[test]
fn one_shot() {
    run("one_shot", Watch::READABLE.one_shot());
}

/// Events are added, modified and deleted while other threads signal and wait; a signal that comes while its event is
/// not registered is found when the event is.
#[test]
fn registrations_come_and_go() {
    let scene = Scene::new(Watch::READABLE.edge(), Spin::DEFAULT, false);
    let stop = Arc::new(AtomicBool::new(false));
    let churn = thread::spawn({
        let (scene, stop) = (Arc::clone(&scene), Arc::clone(&stop));
        move || {
            let mut random = Rng::with_seed(7);
            while !stop.load(Ordering::Relaxed) {
                let key = random.usize(0..EVENTS);
                if random.bool() {
                    scene.poller.modify(key, scene.watch).unwrap();
                } else {
                    scene.poller.delete(key).unwrap();
                    thread::sleep(Duration::from_micros(random.u64(0..50)));
                    let event = &scene.events[key];
                    scene.poller.add(event, key, scene.watch).unwrap();
                }
            }
        }
    });
    scene.run("registrations_come_and_go");
    stop.store(true, Ordering::Relaxed);
    churn.join().unwrap();
}

/// The first descriptor is added while threads sleep, and they are woken where they sleep.
#[test]
fn sleepers_move_to_epoll() {
    let _watchdog = Watchdog::new(Duration::from_secs(50), || "sleepers_move".to_owned());
    for round in 0..200 {
        let poller = Arc::new(Poller::with_spin(Spin::Never));
        let event = Arc::new(Event::new(0));
        poller.add(&event, 1, Watch::READABLE.one_shot()).unwrap();
        let waiter = thread::spawn({
            let poller = Arc::clone(&poller);
            move || {
                let mut ready = Events::with_capacity(1);
                poller.wait(&mut ready, None).unwrap();
                ready.iter().next().map(|ready| ready.key())
            }
        });
        let (quiet, _other) = UnixStream::pair().unwrap();
        let pause = Duration::from_micros(round % 20 * 10);
        let adder = thread::spawn({
            let (poller, event) = (Arc::clone(&poller), Arc::clone(&event));
            move || {
                thread::sleep(pause);
                poller.add_fd(&quiet, 2, Watch::READABLE).unwrap();
                if round % 2 == 0 {
                    event.signal();
                }
                quiet
            }
        });
        thread::sleep(Duration::from_micros(round % 30 * 5));
        if round % 2 != 0 {
            event.signal();
        }
        assert_eq!(waiter.join().unwrap(), Some(1));
        drop(adder.join().unwrap());
    }
}

/// A thread that looks and does not sleep takes the event that another thread was woken for, and uses its wake-up up.
/// The next event wakes the other thread again.
#[test]
fn a_wake_up_that_another_used_up() {
    let scene = Scene::new(Watch::READABLE.edge(), Spin::Never, true);
    let _watchdog = Watchdog::new(Duration::from_secs(50), {
        let scene = Arc::clone(&scene);
        move || format!("a_wake_up_that_another_used_up: {:?}", scene.poller)
    });
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let mut ready = Events::with_capacity(EVENTS);
            while !scene.stop.load(Ordering::Relaxed) {
                scene.poller.wait(&mut ready, None).unwrap();
                for ready in ready.iter().filter(|ready| ready.key() == 1) {
                    let taken = scene.events[ready.key()].read();
                    scene.taken.fetch_add(taken, Ordering::Relaxed);
                }
            }
        });
        let mut ready = Events::with_capacity(EVENTS);
        for round in 0..500 {
            // Most likely the thread sleeps by now.
            thread::sleep(Duration::from_micros(200));
            scene.events[0].signal();
            for _ in 0..2 {
                let at_once = Some(Duration::ZERO);
                scene.poller.wait(&mut ready, at_once).unwrap();
            }
            scene.events[1].signal();
            while scene.taken.load(Ordering::Relaxed) == round {
                thread::yield_now();
            }
        }
        scene.stop.store(true, Ordering::Relaxed);
        while !sleeper.is_finished() {
            scene.poller.notify();
        }
    });
}

/// Two threads that spin and never sleep notice what comes: a signal, a notification, or an event that another thread
/// has taken over already, which at times neither of the two has.
#[test]
fn two_that_never_sleep() {
    let _watchdog = Watchdog::new(Duration::from_secs(50), || {
        "two_that_never_sleep".to_owned()
    });
    let poller = Poller::with_spin(Spin::Always);
    let event = Arc::new(Event::new(0));
    poller.add(&event, 0, Watch::READABLE).unwrap();
    let wait = |timeout| poller.wait(&mut Events::with_capacity(1), timeout).unwrap();
    for round in 0..100 {
        let spinning = AtomicU64::new(0);
        thread::scope(|scope| {
            let waiters = [(); 2].map(|()| {
                scope.spawn(|| {
                    spinning.fetch_add(1, Ordering::Relaxed);
                    wait(None)
                })
            });
            while spinning.load(Ordering::Relaxed) < 2 {
                thread::yield_now();
            }
            // Most of the time the threads spin by then.
            thread::sleep(Duration::from_micros(200));
            if round % 2 == 0 {
                event.signal();
                // A level is reported to each thread, however often it has been reported.
                if round % 4 == 0 {
                    assert_eq!(wait(Some(Duration::ZERO)), 1);
                }
                for waiter in waiters {
                    assert_eq!(waiter.join().unwrap(), 1);
                }
            } else {
                while !waiters.iter().all(|waiter| waiter.is_finished()) {
                    poller.notify();
                    thread::yield_now();
                }
            }
        });
        event.try_read();
        wait(Some(Duration::ZERO));
    }
}
