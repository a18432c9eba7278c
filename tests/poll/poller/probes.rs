//! Probes: what the poller finds without being notified, and when notifications are on.

use crate::NOTHING;
use crate::calls::is_held_by_fewer_than;
use crate::common::caller::{call_at, wait_until};
use crate::common::counter::Place;
use crate::common::watchdog::{self, Watchdog};
use doorbell::poll::{Events, PollError, Poller, Probe, Watch};
use doorbell::{Event, Spin};
use rustix::event::{EventfdFlags, eventfd};
use std::iter;
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

pub const AT_ONCE: Option<Duration> = Some(Duration::ZERO);
pub const SOON: Option<Duration> = Some(Duration::from_millis(1));

/// A source that records what its probe is asked, and gives its answers.
#[derive(Default)]
pub struct Source {
    ready: AtomicBool,
    /// Whether notifications are turned off.
    begun: AtomicBool,
    asked: AtomicU64,
    begins: AtomicU32,
    ends: AtomicU32,
}

pub struct OfSource(Arc<Source>);

impl Probe for OfSource {
    fn ready(&mut self) -> bool {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        self.0.ready.load(Ordering::Acquire)
    }

    fn begin(&mut self) {
        assert!(!self.0.begun.swap(true, Ordering::Relaxed), "begun twice");
        self.0.begins.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&mut self) -> bool {
        assert!(self.0.begun.swap(false, Ordering::Relaxed), "ended twice");
        self.0.ends.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.ready()
    }
}

impl Source {
    pub fn probe(self: &Arc<Self>) -> OfSource {
        OfSource(Arc::clone(self))
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

/// A kick watched for edges under key 1, with a probe.
fn probed(spin: Spin) -> (Poller, Arc<Event>, Arc<Source>) {
    let poller = Poller::with_spin(spin);
    let (kick, source) = (Arc::new(Event::new(0)), Arc::new(Source::default()));
    poller.add(&kick, 1, Watch::READABLE.edge()).unwrap();
    poller.attach_probe(1, source.probe()).unwrap();
    (poller, kick, source)
}

pub fn keys(poller: &Poller, room: usize, timeout: Option<Duration>) -> Vec<usize> {
    let mut events = Events::with_capacity(room);
    let number = poller.wait(&mut events, timeout).unwrap();
    assert_eq!(number, events.len());
    assert!(events.iter().all(|ready| ready.is_readable()));
    events.iter().map(|ready| ready.key()).collect()
}

pub const SPINS: [Spin; 3] = [
    Spin::Never,
    Spin::DEFAULT,
    Spin::Adaptive {
        max: Duration::from_millis(2),
    },
];

#[test]
fn found_by_a_kick_then_by_the_probe_then_by_a_kick() {
    for spin in SPINS {
        let (poller, kick, source) = probed(spin);
        assert!(!source.is_begun());
        kick.signal();
        assert_eq!(keys(&poller, 4, None), [1]);
        // From here on the driver need not notify.
        assert!(source.is_begun());
        source.set_ready(true);
        assert_eq!(keys(&poller, 4, None), [1]);
        // The source is reported as long as it is ready.
        assert_eq!(keys(&poller, 4, None), [1]);
        source.set_ready(false);
        assert!(source.is_begun());
        assert_eq!(keys(&poller, 4, SOON), NOTHING);
        // A thread has slept, with notifications turned on.
        assert!(!source.is_begun());
        let asked = source.asked();
        source.set_ready(true);
        assert_eq!(keys(&poller, 4, SOON), NOTHING);
        assert_eq!(source.asked(), asked, "a cold source was asked");
        kick.signal();
        assert_eq!(keys(&poller, 4, None), [1]);
    }
}

/// The queues of a device that are used in turn: after a sleep, the kick of one makes the poller ask the others too,
/// whose drivers then need not kick. A queue that has had nothing for long is not asked.
#[test]
fn a_kick_of_one_warms_the_others() {
    for spin in SPINS {
        let (poller, kick, source) = probed(spin);
        let (other_kick, other) = (Arc::new(Event::new(1)), Arc::new(Source::default()));
        poller.add(&other_kick, 2, Watch::READABLE.edge()).unwrap();
        poller.attach_probe(2, other.probe()).unwrap();
        assert_eq!(keys(&poller, 4, None), [2]);
        assert!(other.is_begun());
        let sleep_and_kick = || {
            assert!(keys(&poller, 4, SOON).is_empty());
            assert!(!source.is_begun() && !other.is_begun());
            kick.signal();
            assert_eq!(keys(&poller, 4, None), [1]);
            assert!(source.is_begun());
            other.is_begun()
        };
        assert!(sleep_and_kick());
        other.set_ready(true);
        assert_eq!(keys(&poller, 4, None), [2]);
        other.set_ready(false);
        let warmed = (0..100).take_while(|_| sleep_and_kick()).count();
        assert!((1..100).contains(&warmed), "{warmed}");
        let asked = other.asked();
        assert!(!sleep_and_kick());
        assert_eq!(other.asked(), asked, "a cold source was asked");
        // The queue is asked again once it has something.
        other_kick.signal();
        assert_eq!(keys(&poller, 4, None), [2]);
        assert!(sleep_and_kick());
    }
}

#[test]
fn what_is_there_before_the_probe_is_found() {
    for spin in SPINS {
        let poller = Poller::with_spin(spin);
        let (kick, source) = (Arc::new(Event::new(0)), Arc::new(Source::default()));
        source.set_ready(true);
        poller.add(&kick, 1, Watch::READABLE.edge()).unwrap();
        poller.attach_probe(1, source.probe()).unwrap();
        assert_eq!(keys(&poller, 4, None), [1]);
    }
}

/// A source that is idle when its probe is added costs nothing before its first kick, however many such sources there
/// are: it is not asked, and goes on notifying.
#[test]
fn idle_sources_are_cold_from_the_start() {
    for spin in SPINS {
        let (poller, kick, busy) = probed(spin);
        let idle: Vec<_> = (2..100)
            .map(|key| {
                let (kick, source) = (Arc::new(Event::new(0)), Arc::new(Source::default()));
                poller.add(&kick, key, Watch::READABLE.edge()).unwrap();
                poller.attach_probe(key, source.probe()).unwrap();
                (kick, source)
            })
            .collect();
        kick.signal();
        busy.set_ready(true);
        for _ in 0..100 {
            assert_eq!(keys(&poller, 200, None), [1]);
        }
        busy.set_ready(false);
        assert_eq!(keys(&poller, 200, SOON), NOTHING);
        kick.signal();
        assert_eq!(keys(&poller, 200, None), [1]);
        for (_, source) in &idle {
            assert_eq!((source.asked(), source.is_begun()), (1, false));
        }
        idle[7].0.signal();
        assert_eq!(keys(&poller, 200, None), [9]);
        assert!(idle[7].1.is_begun());
    }
}

/// A request that the last look before a sleep finds keeps the thread awake.
#[test]
fn found_at_the_end() {
    struct AtTheEnd(u32);
    impl Probe for AtTheEnd {
        fn ready(&mut self) -> bool {
            false
        }

        fn begin(&mut self) {
            self.0 += 1;
        }

        fn end(&mut self) -> bool {
            self.0 == 1
        }
    }
    watchdog::limit("found_at_the_end", || {
        for spin in SPINS {
            let poller = Poller::with_spin(spin);
            let kick = Arc::new(Event::new(1));
            poller.add(&kick, 1, Watch::READABLE.edge()).unwrap();
            poller.attach_probe(1, AtTheEnd(0)).unwrap();
            assert_eq!(keys(&poller, 4, None), [1]);
            assert_eq!(keys(&poller, 4, None), [1]);
            assert_eq!(keys(&poller, 4, SOON), NOTHING);
        }
    });
}

/// A kick and the probe together cause one report.
#[test]
fn one_report() {
    let (poller, kick, source) = probed(Spin::Never);
    let fd = eventfd(1, EventfdFlags::empty()).unwrap();
    let other = Arc::new(Source::default());
    poller.add_fd(&fd, 2, Watch::READABLE).unwrap();
    other.set_ready(true);
    poller.attach_probe(2, other.probe()).unwrap();
    source.set_ready(true);
    for _ in 0..100 {
        kick.signal();
        let mut found = keys(&poller, 8, None);
        found.sort();
        assert_eq!(found, [1, 2]);
    }
}

/// Neither a probe nor an event hides the other, or anything else that is ready, however small the buffer is and
/// however often one of them is ready.
#[test]
fn none_starves() {
    let (poller, kick, source) = probed(Spin::Never);
    let (second, event) = (Arc::new(Source::default()), Arc::new(Event::new(1)));
    let fd = eventfd(1, EventfdFlags::empty()).unwrap();
    let other_kick = Arc::new(Event::new(1));
    poller.add(&other_kick, 2, Watch::READABLE.edge()).unwrap();
    poller.attach_probe(2, second.probe()).unwrap();
    kick.signal();
    assert_eq!(keys(&poller, 4, None), [2, 1]);
    poller.add(&event, 3, Watch::READABLE).unwrap();
    poller.add_fd(&fd, 4, Watch::READABLE).unwrap();
    source.set_ready(true);
    second.set_ready(true);
    // The bound that the docs state: descriptors are looked at in one wait of 32.
    for room in [1, 2, 8] {
        let mut found = [0_u32; 5];
        for _ in 0..33 {
            keys(&poller, room, None)
                .into_iter()
                .for_each(|key| found[key] += 1);
        }
        for (key, least) in [(1, 7), (2, 7), (3, 14), (4, 1)] {
            assert!(found[key] >= least, "with room for {room}: {found:?}");
        }
    }
}

/// A source that has not been ready for long is no longer asked, though others keep the thread awake.
#[test]
fn an_idle_source_gets_cold() {
    let (poller, kick, busy) = probed(Spin::Never);
    let idle: Vec<_> = (2..100)
        .map(|key| {
            let (kick, source) = (Arc::new(Event::new(1)), Arc::new(Source::default()));
            poller.add(&kick, key, Watch::READABLE.edge()).unwrap();
            poller.attach_probe(key, source.probe()).unwrap();
            source
        })
        .collect();
    kick.signal();
    assert_eq!(keys(&poller, 200, None).len(), 99);
    assert!(idle.iter().all(|source| source.is_begun()));
    busy.set_ready(true);
    for _ in 0..3_000 {
        assert_eq!(keys(&poller, 200, None), [1]);
    }
    assert!(!idle.iter().any(|source| source.is_begun()));
    let asked: u64 = idle.iter().map(|source| source.asked()).sum();
    assert_eq!(keys(&poller, 200, None), [1]);
    assert_eq!(asked, idle.iter().map(|source| source.asked()).sum::<u64>());
    // Notifications of the busy source stay off meanwhile.
    assert!(busy.is_begun());
    assert_eq!(busy.ends.load(Ordering::Relaxed), 0);
}

/// A source that is reported now and then is not idle, even if it has never been found by asking.
#[test]
fn a_source_that_is_kicked_stays_hot() {
    let (poller, kick, source) = probed(Spin::Never);
    let busy = Arc::new(Source::default());
    busy.set_ready(true);
    poller.add_probe(2, busy.probe()).unwrap();
    for _ in 0..8 {
        kick.signal();
        let mut found = keys(&poller, 8, None);
        found.sort();
        assert_eq!(found, [1, 2]);
        for _ in 0..600 {
            assert_eq!(keys(&poller, 8, None), [2]);
        }
    }
    assert!(source.is_begun());
    assert_eq!(source.ends.load(Ordering::Relaxed), 0);
}

/// A source that has got cold and is deleted does not get hot again with the others.
#[test]
fn deleted_after_a_sleep() {
    let (poller, kick, _source) = probed(Spin::Never);
    let kicks = [2, 3].map(|key| {
        let (kick, source) = (Arc::new(Event::new(1)), Arc::new(Source::default()));
        poller.add(&kick, key, Watch::READABLE.edge()).unwrap();
        poller.attach_probe(key, source.probe()).unwrap();
        (kick, source)
    });
    assert_eq!(keys(&poller, 4, None), [2, 3]);
    assert_eq!(keys(&poller, 4, SOON), NOTHING);
    poller.delete(2).unwrap();
    kick.signal();
    assert_eq!(keys(&poller, 4, None), [1]);
    assert!(!kicks[0].1.is_begun() && kicks[1].1.is_begun());
}

/// While a thread asks, drivers need not notify, and another thread sleeps, whatever the policy.
#[test]
fn one_thread_asks_and_the_others_sleep() {
    watchdog::limit("one_thread_asks_and_the_others_sleep", || {
        let poller = Poller::with_spin(Spin::Always);
        let source = Arc::new(Source::default());
        poller.add_probe(7, source.probe()).unwrap();
        let wait = || keys(&poller, 4, None);
        thread::scope(|scope| {
            let asking = scope.spawn(wait);
            wait_until("polling to begin", || {
                source.begins.load(Ordering::Relaxed) != 0
            });
            // This thread may hear the notification between its looks.
            let other = scope.spawn(|| iter::repeat_with(wait).find(|found| !found.is_empty()));
            wait_until("the other to sleep", || poller.stats().sleeps == 1);
            let asked = source.asked();
            wait_until("questions", || source.asked() > asked + 100);
            source.set_ready(true);
            assert_eq!(asking.join().unwrap(), [7]);
            poller.notify();
            assert_eq!(other.join().unwrap().unwrap(), [7]);
            let stats = poller.stats();
            assert_eq!((stats.windows, stats.hits, stats.sleeps), (1, 1, 1));
        });
    });
}

/// A thread with an unlimited window does not sleep for lack of sources to ask.
#[test]
fn without_a_hot_source_threads_look_on() {
    for with_a_probe in [false, true] {
        let poller = Poller::with_spin(Spin::Always);
        let (event, source) = (Arc::new(Event::new(0)), Arc::new(Source::default()));
        poller.add(&event, 1, Watch::READABLE.edge()).unwrap();
        if with_a_probe {
            poller.attach_probe(1, source.probe()).unwrap();
        }
        // The window ends with the time. The hot source gets cold.
        assert_eq!(keys(&poller, 4, SOON), NOTHING);
        assert!(!source.is_begun());
        let before = poller.stats();
        assert_eq!(keys(&poller, 4, SOON), NOTHING);
        let after = poller.stats();
        assert_eq!(after.windows, before.windows + 1);
        assert!(after.looks > before.looks);
        assert_eq!(after.hits, 0);
    }
    // A thread does not sleep because another one does the same either.
    watchdog::limit("without_a_hot_source_threads_look_on", || {
        let poller = probed(Spin::Always).0;
        let both = Barrier::new(2);
        thread::scope(|scope| {
            let waiters = [(); 2].map(|()| {
                scope.spawn(|| {
                    both.wait();
                    keys(&poller, 4, None)
                })
            });
            // A thread that sleeps is asleep by then, most likely.
            thread::sleep(Duration::from_millis(20));
            while !waiters.iter().all(|waiter| waiter.is_finished()) {
                poller.notify();
            }
        });
        assert_eq!(poller.stats().sleeps, 0);
    });
}

/// Whatever is asked first, a notification ends a wait that finds nothing else.
#[test]
fn notified() {
    watchdog::limit("notified", || {
        for spin in SPINS {
            let (poller, _kick, _source) = probed(spin);
            for _ in 0..4 {
                poller.notify();
                assert_eq!(keys(&poller, 4, None), NOTHING);
            }
        }
    });
}

/// A sleeping thread asks a probe that is added.
#[test]
fn added_while_a_thread_sleeps() {
    watchdog::limit("added_while_a_thread_sleeps", || {
        for alone in [false, true] {
            let poller = Arc::new(Poller::with_spin(Spin::Never));
            let (event, source) = (Arc::new(Event::new(0)), Arc::new(Source::default()));
            poller.add(&event, 1, Watch::READABLE.edge()).unwrap();
            source.set_ready(true);
            let waiter = call_at(Place::Futex, {
                let poller = Arc::clone(&poller);
                move || keys(&poller, 4, None)
            });
            waiter.wait_asleep();
            let key = if alone {
                poller.add_probe(2, source.probe()).unwrap();
                2
            } else {
                poller.attach_probe(1, source.probe()).unwrap();
                1
            };
            assert_eq!(waiter.finish(), [key]);
        }
    });
}

/// An event that has room in a thread's report wakes no other thread; an event that has no room does.
#[test]
fn what_has_no_room_is_for_another_thread() {
    watchdog::limit("what_has_no_room_is_for_another_thread", || {
        let poller = Arc::new(Poller::with_spin(Spin::Never));
        let source = Arc::new(Source::default());
        poller.add_probe(7, source.probe()).unwrap();
        let asleep = call_at(Place::Futex, {
            let poller = Arc::clone(&poller);
            move || keys(&poller, 4, None)
        });
        asleep.wait_asleep();
        source.set_ready(true);
        assert_eq!(keys(&poller, 4, AT_ONCE), [7]);
        asleep.assert_undisturbed();
        assert_eq!(keys(&poller, 1, AT_ONCE), [7]);
        assert_eq!(asleep.finish(), [7]);
    });
}

#[test]
fn a_thread_asleep_is_woken_by_the_kick() {
    watchdog::limit("a_thread_asleep_is_woken_by_the_kick", || {
        for _ in 0..10 {
            let (poller, kick, source) = probed(Spin::Never);
            kick.signal();
            assert_eq!(keys(&poller, 4, None), [1]);
            let poller = Arc::new(poller);
            let waiter = call_at(Place::Futex, {
                let poller = Arc::clone(&poller);
                move || keys(&poller, 4, None)
            });
            waiter.wait_asleep();
            assert!(!source.is_begun());
            kick.signal();
            assert_eq!(waiter.finish(), [1]);
            assert!(source.is_begun());
        }
    });
}

/// While one thread sleeps, another that reports leaves notifications turned on, so that the sleeping thread learns of
/// what comes while the other works.
#[test]
fn no_thread_sleeps_while_notifications_are_off() {
    watchdog::limit("no_thread_sleeps_while_notifications_are_off", || {
        let (poller, kick, source) = probed(Spin::Never);
        let poller = Arc::new(poller);
        kick.signal();
        assert_eq!(keys(&poller, 4, None), [1]);
        assert!(source.is_begun());
        // The thread that got the report works, and another thread comes.
        let waiter = call_at(Place::Futex, {
            let poller = Arc::clone(&poller);
            move || keys(&poller, 4, None)
        });
        waiter.wait_asleep();
        assert!(!source.is_begun());
        // The first thread comes back, and gets a report of another event.
        let other = Arc::new(Event::new(0));
        poller.add(&other, 2, Watch::READABLE.edge()).unwrap();
        poller.notify();
        waiter.finish();
        let waiter = call_at(Place::Futex, {
            let poller = Arc::clone(&poller);
            move || keys(&poller, 4, None)
        });
        waiter.wait_asleep();
        source.set_ready(true);
        assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
        kick.signal();
        assert_eq!(waiter.finish(), [1]);
    });
}

#[test]
fn nothing_but_a_probe() {
    watchdog::limit("nothing_but_a_probe", || {
        for spin in SPINS {
            let poller = Arc::new(Poller::with_spin(spin));
            let source = Arc::new(Source::default());
            poller.add_probe(7, source.probe()).unwrap();
            assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
            source.set_ready(true);
            for _ in 0..3 {
                assert_eq!(keys(&poller, 4, AT_ONCE), [7]);
            }
            source.set_ready(false);
            // The thread is past its last look at the probe. A thread that is about to look only at the notification
            // would find only that.
            let waiter = call_at(Place::Futex, {
                let poller = Arc::clone(&poller);
                move || keys(&poller, 4, None)
            });
            waiter.wait_asleep();
            assert!(!source.is_begun());
            source.set_ready(true);
            poller.notify();
            assert_eq!(waiter.finish(), [7]);
        }
    });
}

#[test]
fn errors() {
    let (poller, kick, source) = probed(Spin::Never);
    let attach = |key| poller.attach_probe(key, source.probe());
    assert_eq!(attach(1), Err(PollError::KeyExists));
    assert_eq!(attach(2), Err(PollError::NoEntry));
    assert_eq!(
        poller.add_probe(1, source.probe()),
        Err(PollError::KeyExists)
    );
    assert_eq!(
        poller.modify(1, Watch::READABLE.one_shot()),
        Err(PollError::OneShot)
    );
    assert_eq!(poller.modify(1, Watch::READABLE), Ok(()));
    poller.add(&kick, 2, Watch::READABLE.one_shot()).unwrap();
    assert_eq!(attach(2), Err(PollError::OneShot));
    let fd = eventfd(0, EventfdFlags::empty()).unwrap();
    poller.add_fd(&fd, 3, Watch::READABLE.one_shot()).unwrap();
    assert_eq!(attach(3), Err(PollError::OneShot));
    poller.modify(3, Watch::READABLE).unwrap();
    assert_eq!(attach(3), Ok(()));
    assert_eq!(
        poller.modify(3, Watch::READABLE.one_shot()),
        Err(PollError::OneShot)
    );
    let bound = eventfd(0, EventfdFlags::empty()).unwrap();
    poller.bind(&bound, &kick, 4).unwrap();
    assert_eq!(attach(4), Err(PollError::Bound));
    poller.add_probe(5, source.probe()).unwrap();
    assert_eq!(attach(5), Err(PollError::KeyExists));
    assert_eq!(poller.modify(5, Watch::READABLE), Err(PollError::Bound));
}

/// After a deletion, and after the drop of the poller, the other side notifies, and the probe is gone.
#[test]
fn deleted_and_dropped() {
    for by_drop in [false, true] {
        let (poller, kick, source) = probed(Spin::Never);
        let alone = Arc::new(Source::default());
        poller.add_probe(2, alone.probe()).unwrap();
        kick.signal();
        assert_eq!(keys(&poller, 4, None), [1]);
        assert!(source.is_begun() && alone.is_begun());
        if by_drop {
            drop(poller);
        } else {
            poller.delete(1).unwrap();
            poller.delete(2).unwrap();
            source.set_ready(true);
            assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
            // The keys are vacant, and so are the probes' places.
            poller.add_probe(1, source.probe()).unwrap();
            assert_eq!(keys(&poller, 4, AT_ONCE), [1]);
            poller.delete(1).unwrap();
        }
        assert!(!source.is_begun() && !alone.is_begun());
        assert_eq!(
            (Arc::strong_count(&source), Arc::strong_count(&alone)),
            (1, 1)
        );
        is_held_by_fewer_than(2, &kick);
    }
}

/// A probe may be deleted, and others added, while another thread asks all the time.
#[test]
fn deleted_while_another_thread_asks() {
    watchdog::limit("deleted_while_another_thread_asks", || {
        let (poller, kick, source) = probed(Spin::Always);
        kick.signal();
        assert_eq!(keys(&poller, 4, None), [1]);
        thread::scope(|scope| {
            // This stands before the thread, which asks in vain 1,024 times at most.
            let before = source.asked();
            let waiter = scope.spawn(|| keys(&poller, 4, None));
            wait_until("questions", || source.asked() > before + 100);
            poller.delete(1).unwrap();
            assert_eq!(Arc::strong_count(&source), 1);
            assert!(!source.is_begun());
            source.set_ready(true);
            poller.add_probe(2, source.probe()).unwrap();
            assert_eq!(waiter.join().unwrap(), [2]);
        });
    });
}

/// A probe that calls its own poller panics. It may call another poller.
#[test]
fn a_probe_that_calls_a_poller() {
    struct Calls(Arc<Poller>);
    impl Probe for Calls {
        fn ready(&mut self) -> bool {
            keys(&self.0, 4, AT_ONCE);
            _ = self.0.delete(99);
            false
        }

        fn end(&mut self) -> bool {
            false
        }
    }
    let other = Arc::new(probed(Spin::Never).0);
    let poller = Arc::new(Poller::with_spin(Spin::Never));
    poller.add_probe(1, Calls(Arc::clone(&other))).unwrap();
    assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
    poller.add_probe(2, Calls(Arc::clone(&poller))).unwrap();
    let panic = panic::catch_unwind(AssertUnwindSafe(|| keys(&poller, 4, AT_ONCE))).unwrap_err();
    let says = panic.downcast_ref::<&str>().unwrap();
    assert!(says.contains("a probe calls its own poller"), "{says}");
    // The poller is as it was.
    poller.delete(2).unwrap();
    assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
    assert_eq!(keys(&other, 4, AT_ONCE), NOTHING);
}

/// A probe of an eventfd that is bound and watched under one key, and a probe of a socket.
#[test]
fn of_descriptors() {
    for spin in SPINS {
        let poller = Poller::with_spin(spin);
        let [first, second] = [(); 2].map(|()| Arc::new(Source::default()));
        let (event, fd) = (
            Arc::new(Event::new(0)),
            eventfd(0, EventfdFlags::empty()).unwrap(),
        );
        let (ours, theirs) = UnixStream::pair().unwrap();
        poller.add_bound(&fd, &event, 1, Watch::READABLE).unwrap();
        poller.attach_probe(1, first.probe()).unwrap();
        poller.add_fd(&ours, 2, Watch::READABLE).unwrap();
        second.set_ready(true);
        poller.attach_probe(2, second.probe()).unwrap();
        assert_eq!(keys(&poller, 4, None), [2]);
        second.set_ready(false);
        // After a sleep, both are cold.
        assert_eq!(keys(&poller, 4, SOON), NOTHING);
        rustix::io::write(&fd, &5_u64.to_ne_bytes()).unwrap();
        assert_eq!(keys(&poller, 4, None), [1]);
        assert_eq!(event.try_read(), Some(5));
        // The report of one warms the other.
        assert!(first.is_begun() && second.is_begun());
        second.set_ready(true);
        assert_eq!(keys(&poller, 4, SOON), [2]);
        second.set_ready(false);
        drop(theirs);
        // A hang-up of the socket is reported.
        let mut events = Events::with_capacity(4);
        poller.wait(&mut events, None).unwrap();
        assert!(
            events
                .iter()
                .any(|ready| ready.key() == 2 && ready.is_hang_up())
        );
    }
}

#[test]
fn nothing_is_lost() {
    for (threads, descriptors) in [(1, false), (1, true), (2, false), (3, true)] {
        serve_all(50_000, threads, descriptors);
    }
}

#[test]
#[ignore = "long: `.ci/run --long` runs it"]
fn nothing_is_lost_of_ten_million() {
    for (threads, descriptors) in [(1, true), (2, false)] {
        serve_all(10_000_000, threads, descriptors);
    }
}

/// The index and the flag that driver and device share, and the device's own index.
#[derive(Default)]
pub struct Ring {
    available: AtomicU64,
    taken: AtomicU64,
    no_notify: AtomicBool,
    begins: AtomicU64,
}

pub struct OfRing(pub Arc<Ring>);

impl Probe for OfRing {
    fn ready(&mut self) -> bool {
        self.0.available.load(Ordering::Acquire) != self.0.taken.load(Ordering::Relaxed)
    }

    fn begin(&mut self) {
        self.0.begins.fetch_add(1, Ordering::Relaxed);
        self.0.no_notify.store(true, Ordering::Relaxed);
    }

    fn end(&mut self) -> bool {
        self.0.no_notify.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.ready()
    }
}

impl Ring {
    /// Publishes a request. Returns whether the driver is to notify.
    pub fn publish(&self) -> bool {
        self.available.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        !self.no_notify.load(Ordering::Relaxed)
    }

    /// Takes all requests. Returns how many there were.
    pub fn take_all(&self) -> u64 {
        let one_more = |taken| {
            let available = self.available.load(Ordering::Acquire);
            (taken != available).then_some(taken + 1)
        };
        let take = || {
            self.taken
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
        };
        iter::repeat_with(take).take_while(Result::is_ok).count() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.taken() == self.available.load(Ordering::Relaxed)
    }

    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// How often polling has begun.
    pub fn begins(&self) -> u64 {
        self.begins.load(Ordering::Relaxed)
    }
}

/// A driver that notifies only if it is asked to, and a number of threads that serve: every request is served.
fn serve_all(requests: u64, threads: usize, descriptors: bool) {
    let limit = Duration::from_secs(60 + requests / 50_000);
    let _watchdog = Watchdog::new(limit, || "requests".to_owned());
    // The window grows and shrinks, because the driver pauses now and then.
    let poller = Poller::with_spin(Spin::DEFAULT);
    let (ring, kick) = (Arc::new(Ring::default()), Arc::new(Event::new(0)));
    let fd = eventfd(0, EventfdFlags::empty()).unwrap();
    if descriptors {
        poller
            .add_bound(&fd, &kick, 1, Watch::READABLE.edge())
            .unwrap();
    } else {
        poller.add(&kick, 1, Watch::READABLE.edge()).unwrap();
    }
    poller.attach_probe(1, OfRing(Arc::clone(&ring))).unwrap();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while ring.taken() < requests {
                    keys(&poller, 2, None);
                    ring.take_all();
                }
                poller.notify();
            });
        }
        for request in 0..requests {
            if ring.publish() {
                if descriptors {
                    rustix::io::write(&fd, &1_u64.to_ne_bytes()).unwrap();
                } else {
                    kick.signal();
                }
            }
            if request % 4_096 == 0 {
                thread::sleep(Duration::from_micros(500));
            } else if request % 64 == 0 {
                while ring.taken() <= request {
                    std::hint::spin_loop();
                }
            }
        }
    });
    assert_eq!(ring.taken(), requests);
}
