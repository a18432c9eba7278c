//! The descriptor of a mirror follows the event.

use crate::common::counter::rules;
use crate::common::freed::wait_until_alone;
use crate::common::watchdog::{self, Watchdog};
use crate::{Watch, child, is_readable};
use doorbell::event::{Change, Interest, Observation};
#[cfg(not(doorbell_no_eventfd))]
use doorbell::fd::EventFd;
use doorbell::fd::Mirror;
use doorbell::{Event, Mode};
use proptest::prelude::*;
use rustix::event::PollFlags;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_getfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

fn mirrored(initial: u64, mode: Mode) -> (Arc<Event>, Mirror) {
    let event = Arc::new(Event::with_mode(initial, mode));
    let mirror = Mirror::new(Arc::clone(&event)).unwrap();
    (event, mirror)
}

#[test]
fn it_is_nonblocking_and_closed_on_exec() {
    let (_, mirror) = mirrored(0, Mode::Counter);
    assert!(fcntl_getfl(&mirror).unwrap().contains(OFlags::NONBLOCK));
    assert!(fcntl_getfd(&mirror).unwrap().contains(FdFlags::CLOEXEC));
}

#[test]
fn it_shows_what_was_there_before() {
    for mode in [Mode::Counter, Mode::Semaphore] {
        for count in [0, 1, 7, u64::MAX - 1, u64::MAX] {
            let (_, mirror) = mirrored(count, mode);
            assert_eq!(is_readable(&mirror), count != 0, "{count}");
        }
    }
}

#[test]
fn debug_shows_the_event_and_the_descriptor() {
    let (_, mirror) = mirrored(7, Mode::Counter);
    let shown = format!("{mirror:?}");
    let fd = format!("fd: {}", mirror.as_raw_fd());
    assert!(shown.contains("count: 7"), "{shown}");
    assert!(shown.contains(&fd), "{shown}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Signal(u64),
    Write(u64),
    Read,
    ReadTimeout,
}

fn step() -> impl Strategy<Value = Step> {
    let n = || prop_oneof![Just(0), Just(1), Just(2), Just(u64::MAX - 2), any::<u64>()];
    prop_oneof![
        n().prop_map(Step::Signal),
        n().prop_map(Step::Write),
        Just(Step::Read),
        Just(Step::ReadTimeout),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// After every call the descriptor is readable if the event is, and there was an edge if the count has left 0; or,
    /// for a semaphore, if a read has left something. A peer that watches for output too sees the count return to 0.
    /// The descriptor for polling only behaves as this one does for input.
    #[test]
    fn it_follows_every_call(
        semaphore in any::<bool>(),
        initial in 0_u64..3,
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let mode = if semaphore { Mode::Semaphore } else { Mode::Counter };
        let (event, mirror) = mirrored(initial, mode);
        let edges = Watch::edges(&mirror);
        let level = Watch::level(&mirror);
        let both = Watch::new(&mirror, EventFlags::IN | EventFlags::OUT | EventFlags::ET);
        let poll_only = mirror.poll_only().unwrap();
        let poll_only_edges = Watch::edges(&poll_only);
        let poll_only_level = Watch::level(&poll_only);
        prop_assert_eq!(edges.now(), initial != 0);
        prop_assert_eq!(poll_only_edges.now(), initial != 0);
        // A pipe's end for reading is never writable.
        let writable = cfg!(not(doorbell_no_eventfd));
        prop_assert_eq!(both.now(), writable || initial != 0);
        for step in steps {
            let before = event.count();
            let left = match step {
                Step::Signal(n) => {
                    event.signal_n(n);
                    false
                }
                Step::Write(n) => {
                    let _ = event.try_write(n);
                    false
                }
                Step::Read => event.try_read().is_some(),
                Step::ReadTimeout => event.read_timeout(Duration::ZERO).is_some(),
            };
            let count = event.count();
            let readable = rules::polled(count).contains(PollFlags::IN);
            prop_assert_eq!(is_readable(&mirror), readable, "{:?} at {}", step, before);
            prop_assert_eq!(level.now(), readable);
            prop_assert_eq!(is_readable(&poll_only), readable);
            prop_assert_eq!(poll_only_level.now(), readable);
            let edge = count != 0 && (before == 0 || left);
            prop_assert_eq!(edges.now(), edge, "{:?} at {}", step, before);
            prop_assert_eq!(poll_only_edges.now(), edge, "{:?} at {}", step, before);
            let returned = writable && count == 0 && before != 0;
            prop_assert_eq!(both.now(), edge || returned, "{:?} at {}", step, before);
        }
    }
}

/// Two concurrent signals: when either returns, the descriptor is readable. After a read, it is not.
#[test]
fn it_is_right_when_a_call_returns() {
    const ROUNDS: usize = 5_000;
    let (event, mirror) = mirrored(0, Mode::Counter);
    let barrier = Barrier::new(3);
    let _watchdog = Watchdog::new(Duration::from_secs(30), || "two signallers".to_owned());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    event.signal();
                    assert!(is_readable(&mirror));
                    barrier.wait();
                    barrier.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            barrier.wait();
            barrier.wait();
            assert_eq!(event.read(), 2);
            assert!(!is_readable(&mirror));
            barrier.wait();
        }
    });
}

/// A consumer that reads once for each edge gets everything: there is an edge for each signal that finds the event
/// empty.
#[test]
fn no_edge_is_missed_under_load() {
    const SIGNALS: u64 = 100_000;
    const THREADS: u64 = 3;
    let (event, mirror) = mirrored(0, Mode::Counter);
    let taken = Arc::new(AtomicU64::new(0));
    let report = {
        let (event, taken) = (Arc::clone(&event), Arc::clone(&taken));
        move || format!("{event:?}, taken: {taken:?}")
    };
    let _watchdog = Watchdog::new(Duration::from_secs(50), report);
    let edges = Watch::edges(&mirror);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..SIGNALS).for_each(|_| event.signal()));
        }
        while taken.load(Ordering::Relaxed) < THREADS * SIGNALS {
            if edges.wait(Duration::from_secs(60)) {
                taken.fetch_add(event.try_read().unwrap_or(0), Ordering::Relaxed);
            }
        }
    });
    assert_eq!(taken.load(Ordering::Relaxed), THREADS * SIGNALS);
    assert!(!is_readable(&mirror));
}

/// Many threads signal and read a counter or a semaphore. When they are done, the mirror agrees with the event.
#[test]
fn it_agrees_after_a_storm() {
    for mode in [Mode::Counter, Mode::Semaphore] {
        for round in 0..200 {
            let (event, mirror) = mirrored(0, mode);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..50).for_each(|_| event.signal()));
                    scope.spawn(|| {
                        (0..50 + round % 20).for_each(|_| {
                            event.try_read();
                        })
                    });
                }
            });
            assert_eq!(is_readable(&mirror), event.count() != 0);
            while event.try_read().is_some() {}
            assert!(!is_readable(&mirror));
        }
    }
}

#[test]
fn exported_twice() {
    let (event, first) = mirrored(0, Mode::Counter);
    event.signal();
    let second = Mirror::new(Arc::clone(&event)).unwrap();
    let readable = || (is_readable(&first), is_readable(&second));
    assert_eq!(readable(), (true, true));
    event.read();
    assert_eq!(readable(), (false, false));
    event.signal();
    assert_eq!(readable(), (true, true));
    drop(first);
    event.read();
    assert!(!is_readable(&second));
    event.signal();
    assert!(is_readable(&second));
}

/// A copy of the descriptor stays as it was when the mirror was dropped, and a mirror keeps its event.
#[test]
fn dropped_in_any_order() {
    for count in [0, 1] {
        let (event, mirror) = mirrored(count, Mode::Counter);
        let copy = mirror.as_fd().try_clone_to_owned().unwrap();
        drop(mirror);
        event.signal();
        event.read();
        event.signal_n(1 - count);
        assert_eq!(is_readable(&copy), count != 0);
        // There is no other handle.
        assert_eq!(Arc::strong_count(&event), 1);

        let (event, mirror) = mirrored(count, Mode::Counter);
        drop(event);
        let event = mirror.event().clone();
        event.signal();
        assert!(is_readable(&mirror));
        drop(event);
        drop(mirror);
    }
}

#[test]
fn of_a_static() {
    static KICK: Event = Event::new(0);
    let mirror = Mirror::new(&KICK).unwrap();
    KICK.signal();
    assert!(is_readable(&mirror));
    drop(mirror);
    let mirror = Mirror::new(&KICK).unwrap();
    assert_eq!(KICK.read(), 1);
    assert!(!is_readable(&mirror));
}

/// A callback may drop and make mirrors, even of its own event.
#[test]
fn dropped_and_made_in_a_callback() {
    watchdog::limit("a callback", || {
        let event = Arc::new(Event::new(0));
        let slot = Arc::new(Mutex::new(None));
        let observation = {
            let (slot, weak) = (Arc::clone(&slot), Arc::downgrade(&event));
            let replace = move |_: Change| {
                let event = weak.upgrade().unwrap();
                let old = slot.lock().unwrap().replace(Mirror::new(event).unwrap());
                drop(old);
            };
            Observation::new(Arc::clone(&event), Interest::Signals, Arc::new(replace))
        };
        let mirror = Mirror::new(Arc::clone(&event)).unwrap();
        let copy = mirror.as_fd().try_clone_to_owned().unwrap();
        *slot.lock().unwrap() = Some(mirror);
        for _ in 0..3 {
            event.signal();
            let mirror = slot.lock().unwrap();
            assert!(is_readable(mirror.as_ref().unwrap()));
        }
        // The first mirror was called before the callback, which is older, dropped it.
        assert!(is_readable(&copy));
        drop(observation);
        event.read();
        assert!(!is_readable(slot.lock().unwrap().as_ref().unwrap()));
        assert!(is_readable(&copy), "the mirror is gone");
        *slot.lock().unwrap() = None;
        wait_until_alone(&event);
    });
}

#[test]
fn made_and_dropped_under_load() {
    watchdog::limit("mirrors under load", || {
        let event = Arc::new(Event::new(0));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    event.signal();
                    event.try_read();
                }
            });
            for _ in 0..500 {
                drop(Mirror::new(&event).unwrap());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(Arc::strong_count(&event), 1);
    });
}

/// A peer that reads the descriptor puts it out for the others until the count has been 0 again; the event's count does
/// not change.
#[cfg(not(doorbell_no_eventfd))]
#[test]
fn peers_that_do_more_than_poll() {
    let (event, mirror) = mirrored(0, Mode::Counter);
    let peer = EventFd::from(mirror.as_fd().try_clone_to_owned().unwrap());
    event.signal_n(5);
    peer.read().unwrap();
    assert!(!is_readable(&mirror));
    event.signal();
    assert!(!is_readable(&mirror));
    assert_eq!(event.read(), 6);
    event.signal();
    assert!(is_readable(&mirror));

    event.read();
    peer.write(u64::MAX - 1).unwrap();
    assert!(is_readable(&mirror));
    assert_eq!(event.try_read(), None);
    event.signal();
    assert!(is_readable(&mirror));
    assert_eq!(event.read(), 1);
    assert!(!is_readable(&mirror));
}

/// The descriptor for polling cannot be read or written, its flags have no effect, and it is dark when the mirror has
/// been dropped.
#[test]
fn a_peer_that_can_only_poll() {
    watchdog::limit("a peer that can only poll", || {
        let (event, mirror) = mirrored(0, Mode::Counter);
        let peer = mirror.poll_only().unwrap();
        assert!(fcntl_getfd(&peer).unwrap().contains(FdFlags::CLOEXEC));
        fcntl_setfl(&peer, OFlags::empty()).unwrap();
        for _ in 0..3 {
            event.signal();
            assert_eq!(rustix::io::read(&peer, &mut [0; 8]), Err(Errno::INVAL));
            assert_eq!(rustix::io::write(&peer, &[0xff; 8]), Err(Errno::INVAL));
            assert!(is_readable(&peer) && is_readable(&mirror));
            event.read();
            assert!(!is_readable(&peer) && !is_readable(&mirror));
        }
        event.signal();
        drop(mirror);
        assert!(!is_readable(&peer));
        event.signal();
        assert_eq!(event.read(), 2);
    });
}

/// The call fails with `EMFILE`, and the event is as before.
#[test]
fn too_many_descriptors() {
    child::alone("mirror::too_many_descriptors", || {
        let event = Arc::new(Event::new(3));
        let limit = Rlimit {
            current: Some(3),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        let error = Mirror::new(Arc::clone(&event)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(Arc::strong_count(&event), 1);
        assert_eq!(event.read(), 3);
    });
}
