//! Inside a callback no call waits, not even for a router's worker, which may be in the sink and wait for the callback.

use super::watchdog;
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{InterruptSink, MsiMessage, Router, Routes};
use std::any::Any;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;

const PIN: u32 = 5;

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

/// A sink that calls its closure when a line goes up.
struct Up<F>(F);

impl<F: Fn() + Send + Sync> InterruptSink for Up<F> {
    fn set_level(&self, _: u32, _: u32, level: bool) {
        if level {
            (self.0)();
        }
    }

    fn signal_msi(&self, _: u32, _: MsiMessage) {}
}

fn with_worker(up: impl Fn() + Send + Sync + 'static) -> Router {
    let router = Router::with_worker(Arc::new(Up(up))).unwrap();
    router.set_routes(Routes::identity(24)).unwrap();
    router
}

/// A callback drops all handles of a router whose worker is in the sink, which waits for the callback's end.
fn drop_in_a_callback(name: &'static str, raise: fn(&Router) -> Box<dyn Any + Send>) {
    watchdog::limit(name, || {
        let (entered, is_inside): (Sender<()>, Receiver<()>) = channel();
        let (ended, has_ended) = channel();
        let (left, has_left) = channel();
        let has_ended: Mutex<Receiver<()>> = Mutex::new(has_ended);
        let router = with_worker(move || {
            entered.send(()).unwrap();
            has_ended.lock().unwrap().recv().unwrap();
            left.send(()).unwrap();
        });
        let rest = raise(&router);
        is_inside.recv().unwrap();
        let last = Mutex::new(Some((router, rest)));
        let trigger = event();
        let _observation = Observation::new(Arc::clone(&trigger), Interest::Signals, {
            Arc::new(move |_: Change| drop(last.lock().unwrap().take()))
        });
        trigger.signal();
        ended.send(()).unwrap();
        has_left.recv().unwrap();
    });
}

#[test]
fn the_last_irqfd_goes_in_a_callback() {
    drop_in_a_callback("the_last_irqfd_goes_in_a_callback", |router| {
        let event = event();
        let irqfd = router.assign(&event, PIN).unwrap();
        event.signal();
        Box::new(irqfd)
    });
}

#[test]
fn the_last_level_source_goes_in_a_callback() {
    drop_in_a_callback("the_last_level_source_goes_in_a_callback", |router| {
        let level = router.level_source(PIN);
        level.set_level(true);
        Box::new(level)
    });
}

/// The workers of two routers, each in a call of its sink that deals with the other router.
fn two_workers(name: &'static str, call: fn(&Router)) {
    watchdog::limit(name, || {
        let others: [Arc<OnceLock<Router>>; 2] = Default::default();
        let met = Arc::new(Barrier::new(2));
        let (done, both) = channel();
        let routers = others.each_ref().map(|other| {
            let (other, met, done) = (Arc::clone(other), Arc::clone(&met), done.clone());
            with_worker(move || {
                met.wait();
                call(other.get().expect("the test has begun"));
                done.send(()).unwrap();
            })
        });
        for (other, router) in others.iter().zip(routers.iter().rev()) {
            assert!(other.set(router.clone()).is_ok());
        }
        let levels = routers.each_ref().map(|router| router.level_source(PIN));
        levels.iter().for_each(|level| level.set_level(true));
        for _ in 0..2 {
            both.recv().unwrap();
        }
        // The sinks hold the routers.
        std::mem::forget(levels);
    });
}

#[test]
fn two_workers_synchronize() {
    two_workers("two_workers_synchronize", Router::synchronize);
}

#[test]
fn two_workers_save() {
    two_workers("two_workers_save", |other| drop(other.save(|_| 0)));
}

#[test]
fn two_workers_deassign() {
    two_workers("two_workers_deassign", |other| {
        let (event, resample) = (event(), event());
        let irqfd = other.assign_with_resample(&event, PIN, &resample);
        drop(irqfd.unwrap());
    });
}

/// If the sink detaches an observer in the worker's call, the detach does not wait there, and is complete soon after.
#[test]
fn a_worker_waits_after_the_call() {
    watchdog::limit("a_worker_waits_after_the_call", || {
        let held = Arc::new(());
        let observer = {
            let held = Arc::clone(&held);
            move |_: Change| _ = &held
        };
        let detached = Observation::new(event(), Interest::Signals, Arc::new(observer));
        let detached = Mutex::new(Some(detached));
        let (done, is_done) = channel();
        let router = with_worker(move || {
            drop(detached.lock().unwrap().take());
            done.send(()).unwrap();
        });
        // The routes have been set. From here on, calls that wait for callbacks wait for this one.
        let trigger = event();
        let (entered, is_inside) = channel();
        let (leave, left) = channel::<()>();
        let left = Mutex::new(left);
        let inside = Observation::new(Arc::clone(&trigger), Interest::Signals, {
            Arc::new(move |_: Change| {
                entered.send(()).unwrap();
                left.lock().unwrap().recv().unwrap();
            })
        });
        let thread = thread::spawn(move || trigger.signal());
        is_inside.recv().unwrap();
        router.set_level(PIN, true);
        is_done.recv().unwrap();
        assert_eq!(Arc::strong_count(&held), 2);
        leave.send(()).unwrap();
        thread.join().unwrap();
        while Arc::strong_count(&held) != 1 {
            thread::yield_now();
        }
        drop((router, inside));
    });
}
