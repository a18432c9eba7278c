//! Observers: an observer that attaches or arms and then looks misses nothing, and no call comes after a detach.
//!
//! `../breakages/observers.toml` lists the ways in which the code was broken on purpose, and which of these models
//! noticed.

use doorbell::event::{Change, EventHandle, Interest, Observation, Observer};
use doorbell::{Event, Spin};
use loom::cell::UnsafeCell;
use loom::sync::Arc as Shared;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use loom_tests::{check, spawn};
use std::ops::Deref;
use std::sync::Arc;

/// An event behind loom's `Arc`, whose count of handles loom tracks.
#[derive(Clone)]
struct Handle(Shared<Event>);

impl Deref for Handle {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.0
    }
}

impl From<Handle> for EventHandle {
    fn from(handle: Handle) -> Self {
        EventHandle::of_field(&Arc::new(handle), |handle| handle)
    }
}

fn event() -> Handle {
    Handle(Shared::new(Event::new(0).with_spin(Spin::Never)))
}

/// Counts its calls, and has loom check that none comes after its end.
struct Watched {
    calls: AtomicU32,
    alive: UnsafeCell<bool>,
}

// SAFETY: loom checks each access to the cell.
unsafe impl Sync for Watched {}
// SAFETY: a number and a flag.
unsafe impl Send for Watched {}

impl Watched {
    fn new() -> Arc<Self> {
        Arc::new(Watched {
            calls: AtomicU32::new(0),
            alive: UnsafeCell::new(true),
        })
    }

    fn calls(&self) -> u32 {
        // A read-modify-write sees the newest value: the number of calls is wanted, even if nothing orders them before
        // this.
        self.calls.fetch_add(0, Ordering::Relaxed)
    }

    /// To be called when no call is under way and none can come.
    fn end(&self) {
        // SAFETY: checked by loom.
        self.alive.with_mut(|alive| unsafe { *alive = false });
    }
}

impl Observer for Watched {
    fn notified(&self, _: Change) {
        // SAFETY: checked by loom.
        assert!(self.alive.with(|alive| unsafe { *alive }));
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// An observer that is attached before a look at the count sees the signal or is called for it.
#[test]
fn attach_and_signal() {
    check("attach_and_signal", Some(3), || {
        let event = event();
        let signaller = spawn(&event, |event| event.signal());
        let watched = Watched::new();
        let observation = Observation::new(event.clone(), Interest::Signals, watched.clone());
        let seen = event.try_read().is_some();
        signaller.join().unwrap();
        assert!(seen || watched.calls() == 1);
        drop(observation);
    });
}

/// When an observer is detached, no call of it is under way and none comes.
#[test]
fn detach_and_signal() {
    check("detach_and_signal", Some(3), || {
        let event = event();
        let watched = Watched::new();
        let observation = Observation::new(event.clone(), Interest::Signals, watched.clone());
        let signaller = spawn(&event, |event| event.signal());
        drop(observation);
        watched.end();
        signaller.join().unwrap();
        assert_eq!(event.count(), 1);
    });
}

/// An observer that is armed before a look at the count sees the signal or is called for it, once.
#[test]
fn arm_and_signal() {
    check("arm_and_signal", None, || {
        let event = event();
        let watched = Watched::new();
        let observation = Observation::on_demand(event.clone(), Interest::Signals, watched.clone());
        let signaller = spawn(&event, |event| event.signal());
        observation.arm(Interest::Signals);
        let seen = event.try_read().is_some();
        signaller.join().unwrap();
        assert!(seen || watched.calls() == 1);
        assert!(watched.calls() <= 1);
        drop(observation);
    });
}

/// Of two signals to an armed observer, one calls it; the call finds at least the count of the signal that calls.
#[test]
fn two_signals_to_one_that_armed() {
    check("two_signals_to_one_that_armed", Some(3), || {
        let event = event();
        let watched = Watched::new();
        let observation = Observation::on_demand(event.clone(), Interest::Signals, watched.clone());
        observation.arm(Interest::Signals);
        let signallers = [
            spawn(&event, |event| event.signal()),
            spawn(&event, |event| event.signal()),
        ];
        for signaller in signallers {
            signaller.join().unwrap();
        }
        assert_eq!(watched.calls(), 1);
        drop(observation);
    });
}

/// An observer that is armed while another one's arming is being claimed is not left out.
#[test]
fn two_that_arm() {
    check("two_that_arm", Some(2), || {
        let event = event();
        let first = Watched::new();
        let second = Watched::new();
        let one = Observation::on_demand(event.clone(), Interest::Signals, first.clone());
        let other = Observation::on_demand(event.clone(), Interest::Signals, second.clone());
        one.arm(Interest::Signals);
        let signaller = spawn(&event, |event| event.signal());
        other.arm(Interest::Signals);
        let seen = event.try_read().is_some();
        signaller.join().unwrap();
        assert_eq!(first.calls(), 1);
        assert!(seen || second.calls() == 1);
        drop((one, other));
    });
}

/// One signal wakes a sleeping reader and calls an observer.
#[test]
fn a_reader_and_an_observer() {
    check("a_reader_and_an_observer", Some(2), || {
        let event = event();
        let watched = Watched::new();
        let each = Observation::new(event.clone(), Interest::Signals, watched.clone());
        let reader = spawn(&event, |event| event.read());
        event.signal();
        assert_eq!(reader.join().unwrap(), 1);
        assert_eq!(watched.calls(), 1);
        drop(each);
    });
}

/// A reader that leaves clears its announcement and no observer's arming.
#[test]
fn a_reader_leaves_while_an_observer_is_armed() {
    check(
        "a_reader_leaves_while_an_observer_is_armed",
        Some(3),
        || {
            let event = event();
            let watched = Watched::new();
            let armed = Observation::on_demand(event.clone(), Interest::Signals, watched.clone());
            let reader = spawn(&event, |event| event.read());
            event.signal();
            armed.arm(Interest::Signals);
            reader.join().unwrap();
            event.signal();
            assert_eq!(watched.calls(), 1);
            drop(armed);
        },
    );
}

/// Two observers attach at once to an event that had no list of observers. Both are in the list, and the list is freed
/// with the event.
#[test]
fn two_attach_at_once() {
    check("two_attach_at_once", Some(2), || {
        let event = event();
        let second = event.clone();
        let other = thread::spawn(move || {
            let event = second;
            let watched = Watched::new();
            let observation = Observation::new(event.clone(), Interest::Signals, watched.clone());
            event.signal();
            assert_ne!(watched.calls(), 0);
            drop(observation);
            watched.end();
        });
        let watched = Watched::new();
        let observation = Observation::new(event.clone(), Interest::Signals, watched.clone());
        event.signal();
        assert_ne!(watched.calls(), 0);
        other.join().unwrap();
        let before = watched.calls();
        event.signal();
        assert_eq!(watched.calls(), before + 1);
        drop(observation);
        watched.end();
    });
}

/// An observer that waits for the thread that the same signal wakes.
#[test]
fn an_observer_waits_for_a_reader() {
    check("an_observer_waits_for_a_reader", Some(3), || {
        let event = event();
        let done = Arc::new(loom::sync::Notify::new());
        let observer = {
            let done = Arc::clone(&done);
            Arc::new(move |_: Change| done.wait())
        };
        let observation = Observation::new(event.clone(), Interest::Signals, observer);
        let reader = spawn(&event, move |event| {
            event.read();
            done.notify();
        });
        event.signal();
        reader.join().unwrap();
        drop(observation);
    });
}
