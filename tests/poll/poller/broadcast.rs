//! Broadcasts: notifications of all threads, and an event that is not read. Also waits with a deadline.

use crate::NOTHING;
use crate::common::caller::{Caller, call_at, wait_until};
use crate::common::counter::Place;
use crate::common::watchdog;
use doorbell::poll::{Events, PollError, Poller, PollerFd, Watch};
use doorbell::{Event, Spin};
use rustix::event::{EventfdFlags, eventfd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

fn keys(poller: &Poller) -> Vec<usize> {
    let mut events = Events::with_capacity(4);
    poller.wait(&mut events, None).unwrap();
    events.iter().map(|ready| ready.key()).collect()
}

/// Every thread returns, wherever it sleeps, and each once.
#[test]
fn all_are_notified() {
    watchdog::limit("all_are_notified", || {
        const THREADS: usize = 6;
        for with_fd in [false, true] {
            let poller = Arc::new(Poller::with_spin(Spin::Never));
            let fd = with_fd.then(|| PollerFd::new(Arc::clone(&poller)).unwrap());
            let place = || match with_fd {
                false => Place::Futex,
                true => Place::Descriptor(0),
            };
            for _ in 0..50 {
                let waiters: Vec<_> = (0..THREADS)
                    .map(|_| {
                        let poller = Arc::clone(&poller);
                        call_at(place(), move || {
                            let mut events = Events::with_capacity(1);
                            // The thread is told of a notification from before it came.
                            if poller.wait(&mut events, AT_ONCE) != Ok(0) {
                                return Err(PollError::NoEntry);
                            }
                            poller.wait(&mut events, None)
                        })
                    })
                    .collect();
                wait_until("all to sleep", || {
                    format!("{poller:?}").contains(&format!("waiting: {THREADS}"))
                });
                poller.notify_all();
                for waiter in waiters {
                    assert_eq!(waiter.finish(), Ok(0));
                }
            }
            drop(fd);
        }
    });
}

/// A notification that comes between a look at a flag and the wait is kept.
#[test]
fn a_notification_of_all_is_kept_for_each_buffer() {
    let poller = Poller::new();
    let event = Arc::new(Event::new(0));
    poller.add(&event, 1, Watch::READABLE).unwrap();
    let mut buffers = [(); 3].map(|()| Events::with_capacity(1));
    assert_eq!(poller.wait(&mut buffers[0], AT_ONCE), Ok(0));
    poller.notify_all();
    poller.notify_all();
    for events in &mut buffers {
        assert_eq!(poller.wait(events, None), Ok(0));
    }
    for events in &mut buffers {
        // The notification does not come again, and does not hide a ready event.
        event.signal();
        assert_eq!(poller.wait(events, None), Ok(1));
        poller.notify_all();
        assert_eq!(poller.wait(events, None), Ok(1));
        event.read();
        let start = Instant::now();
        let timeout = Duration::from_millis(5);
        assert_eq!(poller.wait(events, Some(timeout)), Ok(0));
        assert!(start.elapsed() >= timeout);
    }
}

/// A buffer that is used with two pollers is told while it waits, and not again and again.
#[test]
fn a_notification_of_all_and_a_buffer_of_two_pollers() {
    watchdog::limit("a_notification_of_all_and_a_buffer_of_two_pollers", || {
        let pollers = [(); 2].map(|()| Arc::new(Poller::with_spin(Spin::Never)));
        let mut events = Events::with_capacity(1);
        for _ in 0..5 {
            for poller in &pollers {
                let waiter = call_at(Place::Futex, {
                    let poller = Arc::clone(poller);
                    let mut events = std::mem::replace(&mut events, Events::with_capacity(1));
                    move || {
                        assert_eq!(poller.wait(&mut events, None), Ok(0));
                        events
                    }
                });
                waiter.wait_asleep();
                poller.notify_all();
                events = waiter.finish();
            }
            pollers[0].notify_all();
        }
    });
}

/// Threads that come and go while all are notified again and again.
#[test]
fn notified_again_and_again() {
    watchdog::limit("notified_again_and_again", || {
        const THREADS: usize = 4;
        const TIMES: usize = 500;
        for with_fd in [false, true] {
            for spin in [Spin::Never, Spin::DEFAULT] {
                let poller = Arc::new(Poller::with_spin(spin));
                let fd = with_fd.then(|| PollerFd::new(Arc::clone(&poller)).unwrap());
                let turns = Barrier::new(THREADS + 1);
                let epoch = AtomicU64::new(0);
                thread::scope(|scope| {
                    for _ in 0..THREADS {
                        scope.spawn(|| {
                            let mut events = Events::with_capacity(1);
                            for turn in 1..=TIMES as u64 {
                                while epoch.load(Ordering::Acquire) < turn {
                                    assert_eq!(poller.wait(&mut events, None), Ok(0));
                                }
                                turns.wait();
                            }
                        });
                    }
                    for turn in 1..=TIMES as u64 {
                        epoch.store(turn, Ordering::Release);
                        poller.notify_all();
                        turns.wait();
                    }
                });
                drop(fd);
                assert!(format!("{poller:?}").contains("waiting: 0"));
            }
        }
    });
}

/// An event that is watched for levels and is not read ends the waits of all threads in one poller or in several,
/// including later waits.
#[test]
fn one_signal_that_is_not_read_stops_all() {
    watchdog::limit("one_signal_that_is_not_read_stops_all", || {
        for with_fd in [false, true] {
            let stop = Arc::new(Event::new(0));
            let fd = eventfd(0, EventfdFlags::empty()).unwrap();
            let pollers = [(); 2].map(|()| {
                let poller = Poller::with_spin(Spin::Never);
                poller.add(&stop, 9, Watch::READABLE).unwrap();
                if with_fd {
                    poller.add_fd(&fd, 1, Watch::READABLE).unwrap();
                }
                Arc::new(poller)
            });
            let place = || match with_fd {
                false => Place::Futex,
                true => Place::Descriptor(0),
            };
            let waiters: Vec<_> = (0..6)
                .map(|number| {
                    let poller = Arc::clone(&pollers[number % 2]);
                    call_at(place(), move || keys(&poller))
                })
                .collect();
            waiters.iter().for_each(Caller::wait_asleep);
            stop.signal();
            for waiter in waiters {
                assert_eq!(waiter.finish(), [9]);
            }
            assert_eq!(keys(&pollers[0]), [9]);
        }
    });
}

// Deadlines

#[test]
fn deadlines() {
    let poller = Poller::new();
    let event = Arc::new(Event::new(0));
    let fd = eventfd(0, EventfdFlags::empty()).unwrap();
    poller.add(&event, 1, Watch::READABLE).unwrap();
    let keys = |deadline| {
        let mut events = Events::with_capacity(4);
        let number = poller.wait_deadline(&mut events, deadline).unwrap();
        assert_eq!(number, events.len());
        events.iter().map(|ready| ready.key()).collect::<Vec<_>>()
    };
    let far = || Instant::now() + Duration::from_secs(3600);
    for with_fd in [false, true] {
        if with_fd {
            poller.add_fd(&fd, 2, Watch::READABLE).unwrap();
        }
        let past = Instant::now();
        assert_eq!(keys(past), NOTHING);
        let deadline = Instant::now() + Duration::from_millis(10);
        assert_eq!(keys(deadline), NOTHING);
        assert!(Instant::now() >= deadline);
        event.signal();
        assert_eq!(keys(past), [1]);
        assert_eq!(keys(far()), [1]);
        event.read();
    }
    rustix::io::write(&fd, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(keys(Instant::now()), [2], "a deadline that is over");
    assert_eq!(keys(far()), [2]);
}
