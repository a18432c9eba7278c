//! Handles of events: code that keeps an event drops its handle where foreign code may run. If the event is part of a
//! device, the last handle runs a destructor of the VMM.

#[path = "../common/watchdog.rs"]
mod watchdog;

use doorbell::Event;
use doorbell::event::{Batch, Change, EventHandle, Interest, Observation, Signaller};
use doorbell::ioeventfd::space::AddressSpace;
use doorbell::ioeventfd::{Bus, Key, Latest, Table};
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router};
use doorbell::poll::{Events, Poller, Watch};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A device with an event inside, whose destructor calls back into the crate.
struct Device<F: Fn() + Send + Sync + 'static> {
    event: Event,
    destructor: F,
}

impl<F: Fn() + Send + Sync + 'static> Drop for Device<F> {
    fn drop(&mut self) {
        (self.destructor)();
    }
}

/// The only handle of a device, and how often its destructor has run.
fn only_handle(destructor: impl Fn() + Send + Sync + 'static) -> (EventHandle, Arc<AtomicU32>) {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let device = Arc::new(Device {
        event: Event::new(0),
        destructor: move || {
            destructor();
            counted.fetch_add(1, Ordering::Relaxed);
        },
    });
    let handle = EventHandle::of_field(&device, |device| &device.event);
    (handle, runs)
}

fn assert_ran(runs: &AtomicU32) {
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

struct NoSink;

impl InterruptSink for NoSink {
    fn set_level(&self, _: u32, _: u32, _: bool) {}
    fn signal_msi(&self, _: u32, _: MsiMessage) {}
}

#[test]
fn a_poller() {
    watchdog::limit("a_poller", || {
        let poller = Arc::new(Poller::new());
        let other = Arc::new(Event::new(0));
        let back = || {
            let (poller, other) = (Arc::clone(&poller), Arc::clone(&other));
            move || {
                poller.add(&other, 2, Watch::READABLE).unwrap();
                poller.modify(2, Watch::READABLE.edge()).unwrap();
                poller.notify();
                poller.delete(2).unwrap();
            }
        };
        // The event is idle, or in the queue of ready events, from which a thread may take it.
        for signals in [0, 1] {
            let (handle, runs) = only_handle(back());
            poller.add(&handle, 1, Watch::READABLE).unwrap();
            handle.signal_n(signals);
            drop(handle);
            poller.delete(1).unwrap();
            let mut events = Events::with_capacity(1);
            poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            assert_ran(&runs);
        }
        // The key is taken, so the handle is dropped at once.
        poller.add(&other, 1, Watch::READABLE).unwrap();
        let (handle, runs) = only_handle(back());
        poller.add(handle, 1, Watch::READABLE).unwrap_err();
        assert_ran(&runs);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_poller_that_has_a_binding() {
    use rustix::event::{EventfdFlags, eventfd};

    watchdog::limit("a_poller_that_has_a_binding", || {
        let poller = Arc::new(Poller::new());
        let kick = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        for kicks in [0, 1_u64] {
            let (handle, runs) = only_handle({
                let poller = Arc::clone(&poller);
                move || {
                    poller
                        .add(Arc::new(Event::new(0)), 2, Watch::READABLE)
                        .unwrap();
                    poller.delete(2).unwrap();
                }
            });
            poller
                .add_bound(&kick, &handle, 1, Watch::READABLE)
                .unwrap();
            rustix::io::write(&kick, &kicks.to_ne_bytes()).unwrap();
            let mut events = Events::with_capacity(1);
            poller
                .wait(&mut events, Some(Duration::from_millis(1)))
                .unwrap();
            assert_eq!(handle.count(), kicks);
            drop(handle);
            poller.delete(1).unwrap();
            poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            assert_ran(&runs);
        }
    });
}

#[test]
fn a_router() {
    watchdog::limit("a_router", || {
        let router = Router::new(NoSink);
        let back = || {
            let router = router.clone();
            move || {
                let event = Arc::new(Event::new(0));
                router.set_route(9, Some(Route::Pin(9))).unwrap();
                drop(router.assign(&event, 9).unwrap());
                router.set_route(9, None).unwrap();
            }
        };
        router.set_route(5, Some(Route::Pin(5))).unwrap();
        let (event, of_event) = only_handle(back());
        let (resample, of_resample) = only_handle(back());
        let irqfd = router.assign_with_resample(&event, 5, &resample).unwrap();
        event.signal();
        drop((event, resample));
        router.ack(5);
        drop(irqfd);
        doorbell::reclaim();
        assert_ran(&of_event);
        assert_ran(&of_resample);
        // The last handle of a resample event is dropped in the injection.
        let (resample, of_resample) = only_handle(back());
        let event = Arc::new(Event::new(0));
        let irqfd = router.assign_with_resample(&event, 5, &resample).unwrap();
        let weak = resample.downgrade();
        drop(resample);
        event.signal();
        router.deassign(&event, 5);
        drop(irqfd);
        router.ack(5);
        doorbell::reclaim();
        assert!(weak.is_gone());
        assert_ran(&of_resample);
    });
}

#[test]
fn a_table_and_a_space() {
    watchdog::limit("a_table_and_a_space", || {
        let table = Table::new();
        let key = Key::mmio(0x1000, 4);
        let back = || {
            let table = table.clone();
            move || {
                let event = Arc::new(Event::new(0));
                drop(table.assign(Key::mmio(0x2000, 4), &event).unwrap());
                let _ = table.write(Bus::Mmio, 0x1000, &[0; 4]);
            }
        };
        let (handle, runs) = only_handle(back());
        let registration = table.assign(key, handle).unwrap();
        assert!(table.write(Bus::Mmio, 0x1000, &[0; 4]));
        drop(registration);
        doorbell::reclaim();
        assert_ran(&runs);
        let (handle, runs) = only_handle(back());
        let latest = Arc::new(Latest::new(handle, 0));
        drop(table.assign(key, latest).unwrap());
        doorbell::reclaim();
        assert_ran(&runs);

        let space = AddressSpace::new();
        let region = space.region(Bus::Mmio, 0x1000);
        region.map(0x1_0000).unwrap();
        let (handle, runs) = only_handle({
            let space = space.clone();
            move || {
                let other = space.region(Bus::Mmio, 0x10);
                other.map(0x9_0000).unwrap();
                let _ = space.write(Bus::Mmio, 0x1_0000, &[0; 4]);
            }
        });
        let report = region.add_eventfd(0, 4, None, &handle).unwrap();
        assert!(report.is_clean());
        drop(handle);
        drop(region);
        doorbell::reclaim();
        assert_ran(&runs);
    });
}

#[test]
fn batches_signallers_and_observations() {
    watchdog::limit("batches_signallers_and_observations", || {
        let (handle, runs) = only_handle(|| {});
        let mut batch = Batch::with_signallers();
        let index = batch.add(&handle);
        batch.signal(index);
        drop(handle);
        batch.commit().unwrap();
        drop(batch);
        assert_ran(&runs);

        let (handle, runs) = only_handle(|| {});
        let signaller = Signaller::new(handle);
        signaller.signal();
        drop(signaller);
        assert_ran(&runs);

        // The observation keeps the event that its observer is part of.
        let (handle, runs) = only_handle(|| {
            let event = Arc::new(Event::new(0));
            let nothing = Arc::new(|_: Change| {});
            drop(Observation::new(&event, Interest::Both, nothing));
        });
        let observation = Observation::new(handle, Interest::Both, Arc::new(|_: Change| {}));
        observation.event().signal();
        drop(observation);
        doorbell::reclaim();
        assert_ran(&runs);
    });
}
