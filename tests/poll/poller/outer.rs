//! A poller in another loop: an epoll, tokio, event-manager, mio's, another poller.

use crate::common::caller::call_at;
use crate::common::counter::Place;
use crate::common::watchdog;
use doorbell::event::Signaller;
use doorbell::poll::{Events, PollError, Poller, PollerFd, Probe, Watch};
use doorbell::{Event, Spin};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

fn one(watch: Watch) -> (PollerFd, Arc<Event>) {
    let poller = Poller::with_spin(Spin::Never);
    let event = Arc::new(Event::new(0));
    poller.add(&event, 1, watch).unwrap();
    (PollerFd::new(poller).unwrap(), event)
}

/// The keys that an attempt to arm finds; `None` if it has armed the poller.
fn arm(fd: &PollerFd) -> Option<Vec<usize>> {
    let mut events = Events::with_capacity(4);
    let armed = fd.arm(&mut events).unwrap();
    let keys: Vec<_> = events.iter().map(|ready| ready.key()).collect();
    assert!(!armed || keys.is_empty());
    (!armed).then_some(keys)
}

fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}

/// An epoll that watches a descriptor.
struct Outer(OwnedFd);

impl Outer {
    fn new(fd: impl AsFd, flags: EventFlags) -> Self {
        let outer = epoll::create(CreateFlags::CLOEXEC).unwrap();
        epoll::add(&outer, fd, EventData::new_u64(7), flags).unwrap();
        Outer(outer)
    }

    /// Whether the epoll returns with a report within `timeout`.
    fn wait(&self, timeout: Option<Duration>) -> bool {
        let timeout = timeout.map(|timeout| timeout.try_into().unwrap());
        let mut found = Vec::with_capacity(4);
        let spare = rustix::buffer::spare_capacity(&mut found);
        let number = epoll::wait(&self.0, spare, timeout.as_ref()).unwrap();
        assert!(
            found
                .iter()
                .all(|&epoll::Event { flags, .. }| flags == EventFlags::IN)
        );
        number != 0
    }
}

const LEVELS_AND_EDGES: [EventFlags; 2] = [EventFlags::IN, EventFlags::IN.union(EventFlags::ET)];

/// The descriptor is readable after a signal to an armed poller, and after no other signal.
#[test]
fn readable_after_a_signal_if_armed() {
    for flags in LEVELS_AND_EDGES {
        for watch in [Watch::READABLE, Watch::READABLE.edge()] {
            let (fd, event) = one(watch);
            let outer = Outer::new(&fd, flags);
            for _ in 0..10 {
                event.signal();
                assert!(!outer.wait(AT_ONCE), "not armed");
                assert_eq!(arm(&fd), Some(vec![1]));
                event.read();
                assert_eq!(arm(&fd), None);
                assert!(!outer.wait(AT_ONCE), "no signal has come");
                event.signal();
                assert!(outer.wait(None));
                fd.disarm();
                assert_eq!(arm(&fd), Some(vec![1]));
                event.read();
                assert_eq!(arm(&fd), None);
                assert!(!outer.wait(AT_ONCE), "the signal has been heard");
                fd.disarm();
            }
        }
    }
}

#[test]
fn armed_and_disarmed_in_any_order() {
    let (fd, event) = one(Watch::READABLE.edge());
    let waiting = || {
        let text = format!("{:?}", fd.poller());
        let (_, text) = text.split_once("waiting: ").unwrap();
        text.split(',').next().unwrap().parse::<u32>().unwrap()
    };
    fd.disarm();
    for _ in 0..3 {
        assert_eq!(arm(&fd), None);
        assert_eq!(waiting(), 1);
    }
    assert!(format!("{fd:?}").contains("armed: true"));
    event.signal();
    assert_eq!(arm(&fd), Some(vec![1]));
    assert_eq!(waiting(), 0);
    assert!(format!("{fd:?}").contains("armed: false"));
    assert_eq!(arm(&fd), None);
    fd.disarm();
    fd.disarm();
    assert_eq!(waiting(), 0);
    assert_eq!(arm(&fd), None);
    let poller = Arc::clone(fd.poller());
    drop(fd);
    assert!(format!("{poller:?}").contains("waiting: 0"));
    let fd = PollerFd::new(Arc::clone(&poller)).unwrap();
    assert_eq!(fd.as_raw_fd(), PollerFd::new(poller).unwrap().as_raw_fd());
}

#[test]
fn errors() {
    let (fd, event) = one(Watch::READABLE);
    event.signal();
    let mut none = Events::with_capacity(0);
    assert_eq!(fd.arm(&mut none), Err(PollError::NoCapacity));
    assert_eq!(arm(&fd), Some(vec![1]));
    // This would be a circle.
    let outer = fd.poller();
    assert!(matches!(
        outer.add_fd(&fd, 2, Watch::READABLE),
        Err(PollError::Os(_))
    ));
}

#[test]
fn notifications() {
    let (fd, _event) = one(Watch::READABLE);
    for notify in [Poller::notify, Poller::notify_all] {
        notify(fd.poller());
        assert!(!is_readable(&fd), "not armed");
        assert_eq!(arm(&fd), Some(vec![]));
        // The buffer is a new one each time, and each new buffer is told of a notification of all.
        let mut events = Events::with_capacity(1);
        while !fd.arm(&mut events).unwrap() {}
        notify(fd.poller());
        assert!(is_readable(&fd));
        assert!(!fd.arm(&mut events).unwrap());
        assert!(fd.arm(&mut events).unwrap());
        fd.disarm();
    }
}

/// Real descriptors make it readable by themselves, armed or not.
#[test]
fn descriptors() {
    for flags in LEVELS_AND_EDGES {
        let (fd, event) = one(Watch::READABLE);
        let outer = Outer::new(&fd, flags);
        let other = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        fd.poller().add_fd(&other, 2, Watch::READABLE).unwrap();
        for _ in 0..10 {
            assert_eq!(arm(&fd), None);
            rustix::io::write(&other, &1_u64.to_ne_bytes()).unwrap();
            assert!(outer.wait(None));
            fd.disarm();
            event.signal();
            let mut found = Vec::new();
            while let Some(keys) = arm(&fd) {
                found.extend(keys);
                let _ = event.try_read();
                if found.contains(&2) {
                    let _ = rustix::io::read(&other, &mut [0; 8]);
                }
            }
            found.sort();
            found.dedup();
            assert_eq!(found, [1, 2]);
            assert!(!outer.wait(AT_ONCE));
        }
    }
}

/// What arrives at a bound eventfd is carried over by `arm`.
#[test]
fn bindings() {
    let poller = Poller::new();
    let event = Arc::new(Event::new(0));
    let bound = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    poller
        .add_bound(&bound, &event, 1, Watch::READABLE)
        .unwrap();
    let fd = PollerFd::new(poller).unwrap();
    let outer = Outer::new(&fd, EventFlags::IN);
    for count in 1..10_u64 {
        while arm(&fd).is_some() {}
        rustix::io::write(&bound, &count.to_ne_bytes()).unwrap();
        assert!(outer.wait(None));
        fd.disarm();
        let mut found = Vec::new();
        while found.is_empty() {
            found = arm(&fd).expect("there is a report");
        }
        assert_eq!(found, [1]);
        assert_eq!(event.read(), count);
    }
}

/// A minimal virtqueue.
#[derive(Default)]
struct Ring {
    available: AtomicU32,
    taken: AtomicU32,
    no_notify: AtomicBool,
}

struct OfRing(Arc<Ring>);

impl Probe for OfRing {
    fn ready(&mut self) -> bool {
        self.0.available.load(Ordering::Acquire) != self.0.taken.load(Ordering::Relaxed)
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

/// Notifications are on while the poller is armed, and off while the loop works.
#[test]
fn probes() {
    let (fd, kick) = one(Watch::READABLE.edge());
    let ring = Arc::new(Ring::default());
    fd.poller()
        .attach_probe(1, OfRing(Arc::clone(&ring)))
        .unwrap();
    let no_notify = || ring.no_notify.load(Ordering::Relaxed);
    let take = || {
        let available = ring.available.load(Ordering::Relaxed);
        ring.taken.store(available, Ordering::Relaxed);
    };
    let outer = Outer::new(&fd, EventFlags::IN);
    for _ in 0..10 {
        assert_eq!(arm(&fd), None);
        assert!(!no_notify());
        ring.available.fetch_add(1, Ordering::Release);
        kick.signal();
        assert!(outer.wait(None));
        fd.disarm();
        assert_eq!(arm(&fd), Some(vec![1]));
        assert!(no_notify());
        take();
        // The request comes without a kick.
        ring.available.fetch_add(1, Ordering::Release);
        assert_eq!(arm(&fd), Some(vec![1]));
        assert!(no_notify());
        take();
        assert_eq!(arm(&fd), None);
        assert!(!no_notify());
        fd.disarm();
    }
}

/// A probe that panics when it is told that polling is over.
struct Fragile;

impl Probe for Fragile {
    fn ready(&mut self) -> bool {
        false
    }

    fn end(&mut self) -> bool {
        panic::resume_unwind(Box::new("fragile"))
    }
}

/// A probe that panics leaves the poller disarmed, and the next look finds what is ready.
#[test]
fn a_probe_that_panics() {
    let (fd, event) = one(Watch::READABLE);
    fd.poller().add_probe(2, Fragile).unwrap();
    let try_arm = || panic::catch_unwind(AssertUnwindSafe(|| arm(&fd)));
    // Polling has begun with the report.
    event.signal();
    assert_eq!(try_arm().ok(), Some(Some(vec![1])));
    event.read();
    assert!(try_arm().is_err());
    assert!(format!("{:?}", fd.poller()).contains("waiting: 0"));
    event.signal();
    assert_eq!(try_arm().ok(), Some(Some(vec![1])));
    event.read();
    let _ = panic::catch_unwind(AssertUnwindSafe(|| fd.poller().delete(2)));
    assert_eq!(arm(&fd), None);
}

/// Events with signallers are armed, and a signal by a lane is heard.
#[test]
fn signallers() {
    for watch in [Watch::READABLE, Watch::READABLE.edge()] {
        let poller = Poller::new();
        let events = [(); 8].map(|()| Arc::new(Event::new(0)));
        let signallers = events.each_ref().map(Signaller::new);
        for (key, event) in events.iter().enumerate() {
            poller.add(event, key, watch).unwrap();
        }
        let fd = PollerFd::new(poller).unwrap();
        let outer = Outer::new(&fd, EventFlags::IN);
        for turn in 0..100 {
            let key = turn % 8;
            assert_eq!(arm(&fd), None);
            signallers[key].signal();
            assert!(outer.wait(None));
            fd.disarm();
            assert_eq!(arm(&fd), Some(vec![key]));
            assert_eq!(events[key].try_read(), Some(1));
        }
    }
}

/// Signals from several threads, with the outer loop beside threads that wait in the poller itself: no signal is lost,
/// and the loop sleeps in between.
#[test]
fn many_threads() {
    watchdog::limit("many_threads", || {
        const SIGNALS: u64 = 20_000;
        for flags in LEVELS_AND_EDGES {
            for inner in [0, 1] {
                let (fd, event) = one(Watch::READABLE);
                let (fd, read) = (Arc::new(fd), AtomicU64::new(0));
                let stop = Arc::new(Event::new(0));
                fd.poller().add(&stop, 2, Watch::READABLE).unwrap();
                let outer = Outer::new(&*fd, flags);
                let take = |events: &Events| {
                    for _ in events {
                        read.fetch_add(event.try_read().unwrap_or(0), Ordering::Relaxed);
                    }
                    if read.load(Ordering::Relaxed) == 2 * SIGNALS {
                        stop.signal();
                    }
                };
                thread::scope(|scope| {
                    for _ in 0..2 {
                        scope.spawn(|| {
                            for number in 0..SIGNALS {
                                event.signal();
                                if number % 64 == 0 {
                                    thread::yield_now();
                                }
                            }
                        });
                    }
                    for _ in 0..inner {
                        scope.spawn(|| {
                            let mut events = Events::with_capacity(1);
                            while stop.count() == 0 {
                                fd.poller().wait(&mut events, None).unwrap();
                                take(&events);
                            }
                        });
                    }
                    let mut events = Events::with_capacity(1);
                    while stop.count() == 0 {
                        if !fd.arm(&mut events).unwrap() {
                            take(&events);
                        } else {
                            outer.wait(None);
                            fd.disarm();
                        }
                    }
                });
                assert_eq!(read.load(Ordering::Relaxed), 2 * SIGNALS);
            }
        }
    });
}

/// A poller in a poller.
#[test]
fn in_a_poller() {
    watchdog::limit("in_a_poller", || {
        let (fd, event) = one(Watch::READABLE);
        let fd = Arc::new(fd);
        let outer = Arc::new(Poller::with_spin(Spin::Never));
        outer.add_fd(&*fd, 9, Watch::READABLE).unwrap();
        for _ in 0..10 {
            assert_eq!(arm(&fd), None);
            let waiter = call_at(Place::Descriptor(0), {
                let outer = Arc::clone(&outer);
                move || {
                    let mut events = Events::with_capacity(4);
                    outer.wait(&mut events, None).unwrap();
                    events.iter().map(|ready| ready.key()).collect::<Vec<_>>()
                }
            });
            waiter.wait_asleep();
            event.signal();
            assert_eq!(waiter.finish(), [9]);
            fd.disarm();
            assert_eq!(arm(&fd), Some(vec![1]));
            event.read();
        }
    });
}

/// A poller in tokio, on its threads, with a timeout.
#[test]
fn in_tokio() {
    use tokio::io::{Interest, unix::AsyncFd};

    watchdog::limit("in_tokio", || {
        let (fd, event) = one(Watch::READABLE.edge());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (to_guest, kicks) = mpsc::channel();
        let guest = thread::spawn({
            let event = Arc::clone(&event);
            move || kicks.into_iter().for_each(|()| event.signal())
        });
        const KICKS: u64 = 1_000;
        let device = async move {
            // SAFETY: the `PollerFd` keeps its descriptor open.
            let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.unwrap();
            let (mut taken, mut timeouts) = (0, 0);
            let mut events = Events::with_capacity(4);
            while taken < KICKS {
                while !fd.get_ref().arm(&mut events).unwrap() {
                    for ready in &events {
                        assert_eq!(ready.key(), 1);
                        taken += event.try_read().unwrap_or(0);
                    }
                }
                if timeouts <= taken / 100 {
                    // Nothing comes unless the poller is armed.
                    let nothing = tokio::time::timeout(Duration::from_millis(1), fd.readable());
                    assert!(nothing.await.is_err());
                    timeouts += 1;
                }
                to_guest.send(()).unwrap();
                let mut guard = fd.readable().await.unwrap();
                fd.get_ref().disarm();
                guard.clear_ready();
            }
            taken
        };
        let taken = runtime.block_on(async { tokio::spawn(device).await.unwrap() });
        assert!(taken >= KICKS);
        guest.join().unwrap();
    });
}

/// A poller in event-manager, beside another subscriber.
#[test]
fn in_event_manager() {
    use event_manager::{
        EventManager, EventOps, EventSet, Events as Input, MutEventSubscriber, SubscriberOps,
    };

    struct Device {
        poller: PollerFd,
        event: Arc<Event>,
        taken: Arc<AtomicU64>,
    }

    impl Device {
        fn work_off(&mut self) {
            self.poller.disarm();
            while let Some(keys) = arm(&self.poller) {
                assert_eq!(keys, [1]);
                let read = self.event.try_read().unwrap();
                self.taken.fetch_add(read, Ordering::Relaxed);
            }
        }
    }

    impl MutEventSubscriber for Device {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Input::new(&self.poller, EventSet::IN)).unwrap();
            self.work_off();
        }

        fn process(&mut self, _: Input, _: &mut EventOps) {
            self.work_off();
        }
    }

    watchdog::limit("in_event_manager", || {
        let (poller, event) = one(Watch::READABLE);
        let taken = Arc::default();
        event.signal_n(5);
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(Device {
            poller,
            event: Arc::clone(&event),
            taken: Arc::clone(&taken),
        });
        assert_eq!(taken.load(Ordering::Relaxed), 5);
        let mut turn = |calls: usize, so_far: u64| {
            assert_eq!(manager.run_with_timeout(0).unwrap(), calls);
            assert_eq!(taken.load(Ordering::Relaxed), so_far);
        };
        turn(0, 5);
        event.signal();
        event.signal();
        turn(1, 7);
        turn(0, 7);
        let guest = thread::spawn(move || event.signal());
        assert_eq!(manager.run().unwrap(), 1);
        assert_eq!(taken.load(Ordering::Relaxed), 8);
        guest.join().unwrap();
    });
}

#[cfg(feature = "mio")]
#[test]
fn in_mio() {
    use mio::{Interest, Poll, Token};

    let (mut fd, event) = one(Watch::READABLE);
    let mut poll = Poll::new().unwrap();
    let mut found = mio::Events::with_capacity(4);
    poll.registry()
        .register(&mut fd, Token(3), Interest::READABLE)
        .unwrap();
    for _ in 0..10 {
        assert_eq!(arm(&fd), None);
        event.signal();
        poll.poll(&mut found, None).unwrap();
        let tokens: Vec<_> = found.iter().map(|event| event.token()).collect();
        assert_eq!(tokens, [Token(3)]);
        fd.disarm();
        assert_eq!(arm(&fd), Some(vec![1]));
        event.read();
    }
    poll.registry().deregister(&mut fd).unwrap();
}
