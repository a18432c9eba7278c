//! A poller with probes, and a driver that notifies only if it is asked to: every request is found.
//!
//! `../breakages/probe.toml` lists the ways in which the code was broken on purpose, and which of these models noticed.

use doorbell::poll::{Events, Poller, Probe, Watch};
use doorbell::{Event, Spin};
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;
use loom_tests::check;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

/// What driver and device share: the split ring's available index and `VRING_USED_F_NO_NOTIFY`.
struct Ring {
    available: AtomicU32,
    no_notify: AtomicBool,
    /// The device's own index.
    taken: AtomicU32,
}

/// The device's side.
struct OfRing(Arc<Ring>);

impl Probe for OfRing {
    fn ready(&mut self) -> bool {
        // A read-modify-write never reads a stale index: a device's threads keep their index under a lock.
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

/// Panics in one call of one kind, once it is armed.
struct Fragile {
    of: OfRing,
    at: Call,
    armed: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Call {
    Ready,
    End,
}

impl Fragile {
    fn call(&self, call: Call) {
        if self.at == call && self.armed.swap(false, Ordering::Relaxed) {
            // This bypasses the hook, which would print the panic.
            panic::resume_unwind(Box::new("armed"));
        }
    }
}

impl Probe for Fragile {
    fn ready(&mut self) -> bool {
        self.call(Call::Ready);
        self.of.ready()
    }

    fn begin(&mut self) {
        self.of.begin();
    }

    fn end(&mut self) -> bool {
        self.call(Call::End);
        self.of.end()
    }
}

const KEY: usize = 1;

struct Device {
    poller: Poller,
    ring: Arc<Ring>,
    kick: Arc<Event>,
}

impl Device {
    /// A queue with a kick and a probe.
    fn new(spin: Spin) -> Arc<Self> {
        let device = Self::without_probe(spin);
        let watch = Watch::READABLE.edge();
        device.poller.add(&device.kick, KEY, watch).unwrap();
        device.attach();
        device
    }

    fn without_probe(spin: Spin) -> Arc<Self> {
        Arc::new(Device {
            poller: Poller::with_spin(spin),
            ring: Arc::new(Ring {
                available: AtomicU32::new(0),
                no_notify: AtomicBool::new(false),
                taken: AtomicU32::new(0),
            }),
            kick: Arc::new(Event::new(0).with_spin(Spin::Never)),
        })
    }

    fn attach(&self) {
        let probe = OfRing(Arc::clone(&self.ring));
        self.poller.attach_probe(KEY, probe).unwrap();
    }

    /// The driver's side: publishes a request and notifies if it is asked to.
    fn publish(&self, notify: impl FnOnce()) {
        self.ring.available.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if !self.ring.no_notify.load(Ordering::Relaxed) {
            notify();
        }
    }

    fn kick(&self) {
        self.publish(|| self.kick.signal());
    }

    /// Waits until there is a report, once.
    fn wait(&self) -> bool {
        let mut events = Events::with_capacity(2);
        self.poller.wait(&mut events, None).unwrap();
        !events.is_empty()
    }

    /// Waits until two requests have been taken.
    fn serve_two(&self) {
        let mut taken = 0;
        while taken < 2 {
            self.wait();
            taken += self.take(2);
        }
    }

    /// Takes up to `most` requests.
    fn take(&self, most: u32) -> u32 {
        let Ring {
            available, taken, ..
        } = &*self.ring;
        let one_more = |before| (before < available.load(Ordering::Acquire)).then_some(before + 1);
        let mut count = 0;
        while count < most
            && taken
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
                .is_ok()
        {
            count += 1;
        }
        count
    }
}

fn spawn(device: &Arc<Device>, f: impl FnOnce(&Device) + 'static) -> thread::JoinHandle<()> {
    let device = Arc::clone(device);
    thread::spawn(move || f(&device))
}

/// A driver publishes two requests while a thread polls, sleeps and polls again.
#[test]
fn requests_and_a_waiter() {
    for spin in [Spin::Never, Spin::Always] {
        check("requests_and_a_waiter", Some(3), move || {
            let device = Device::new(spin);
            let driver = spawn(&device, |device| {
                device.kick();
                device.kick();
            });
            device.serve_two();
            driver.join().unwrap();
        });
    }
}

/// Of two threads that wait, one takes a request and does not come back. The other thread finds the next request.
#[test]
fn one_that_does_not_come_back() {
    check("one_that_does_not_come_back", Some(2), || {
        let device = Device::new(Spin::Always);
        let serve = |device: &Device| {
            while device.take(1) == 0 {
                device.wait();
            }
        };
        // There is a request, and the thread to which it is reported leaves.
        device.kick();
        assert!(device.wait());
        assert_eq!(device.take(1), 1);
        let other = spawn(&device, serve);
        device.kick();
        other.join().unwrap();
    });
}

/// A thread polls, reports and does not come back, while another thread, which relied on the first, falls asleep.
#[test]
fn one_relies_on_the_other() {
    check("one_relies_on_the_other", Some(1), || {
        let device = Device::new(Spin::Always);
        // The queue is hot from here on.
        device.kick();
        assert!(device.wait());
        assert_eq!(device.take(2), 1);
        let serve = |device: &Device| {
            device.wait();
            device.take(2);
            let done = device.ring.taken.load(Ordering::Relaxed) == 3;
            if done {
                // There is no request for the other thread.
                device.poller.notify();
            }
            done
        };
        let leaver = spawn(&device, move |device| _ = serve(device));
        let stayer = spawn(&device, move |device| while !serve(device) {});
        device.kick();
        device.kick();
        stayer.join().unwrap();
        leaver.join().unwrap();
    });
}

/// A probe is attached to a queue that has a request already, while a thread sleeps.
#[test]
fn attached_beside_a_waiter() {
    check("attached_beside_a_waiter", Some(3), || {
        let device = Device::without_probe(Spin::Never);
        device.poller.add(&device.kick, KEY, Watch::ERRORS).unwrap();
        let waiter = spawn(&device, |device| assert!(device.wait()));
        device.ring.available.store(1, Ordering::Release);
        device.attach();
        waiter.join().unwrap();
    });
}

/// A probe is attached while its source is deleted: it goes with the source.
#[test]
fn attached_beside_a_delete() {
    check("attached_beside_a_delete", None, || {
        let device = Device::without_probe(Spin::Never);
        let watch = Watch::READABLE.edge();
        device.poller.add(&device.kick, KEY, watch).unwrap();
        let attacher = spawn(&device, |device| {
            let probe = OfRing(Arc::clone(&device.ring));
            let _ = device.poller.attach_probe(KEY, probe);
        });
        device.poller.delete(KEY).unwrap();
        attacher.join().unwrap();
        assert_eq!(Arc::strong_count(&device.ring), 1);
    });
}

/// A probe panics in one of two threads, which does not come back. The other thread may sleep and rely on the first.
#[test]
fn one_panics() {
    for at in [Call::Ready, Call::End] {
        check("one_panics", Some(2), move || {
            let device = Device::without_probe(Spin::Always);
            let watch = Watch::READABLE.edge();
            device.poller.add(&device.kick, KEY, watch).unwrap();
            let armed = Arc::new(AtomicBool::new(false));
            let probe = Fragile {
                of: OfRing(Arc::clone(&device.ring)),
                at,
                armed: Arc::clone(&armed),
            };
            device.poller.attach_probe(KEY, probe).unwrap();
            // The queue is hot from here on.
            device.kick();
            assert!(device.wait());
            assert_eq!(device.take(1), 1);
            armed.store(true, Ordering::Relaxed);
            let serve = |device: &Device| {
                while panic::catch_unwind(AssertUnwindSafe(|| device.wait())).is_ok() {
                    device.take(1);
                    if device.ring.taken.load(Ordering::Relaxed) == 2 {
                        // There is no request for the other thread.
                        device.poller.notify();
                        break;
                    }
                }
            };
            let other = spawn(&device, serve);
            let third = spawn(&device, serve);
            device.kick();
            other.join().unwrap();
            third.join().unwrap();
            // The probe is not to panic when the poller is dropped.
            armed.store(false, Ordering::Relaxed);
        });
    }
}

/// A source that has nothing but a probe, whose driver notifies the poller.
#[test]
fn nothing_but_a_probe() {
    check("nothing_but_a_probe", Some(2), || {
        let device = Device::without_probe(Spin::Always);
        let probe = OfRing(Arc::clone(&device.ring));
        device.poller.add_probe(KEY, probe).unwrap();
        let driver = spawn(&device, |device| {
            device.publish(|| device.poller.notify());
            device.publish(|| device.poller.notify());
        });
        device.serve_two();
        driver.join().unwrap();
    });
}

/// After the deletion the driver notifies, and the probe is gone.
#[test]
fn deleted_beside_a_waiter() {
    check("deleted_beside_a_waiter", Some(2), || {
        let device = Device::new(Spin::Always);
        let probes = Arc::strong_count(&device.ring) - 1;
        assert_eq!(probes, 1);
        let waiter = spawn(&device, |device| {
            device.wait();
        });
        device.kick();
        device.poller.delete(KEY).unwrap();
        assert_eq!(Arc::strong_count(&device.ring), 1);
        assert!(!device.ring.no_notify.load(Ordering::Relaxed));
        device.poller.notify();
        waiter.join().unwrap();
    });
}
