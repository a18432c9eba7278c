//! Observers: which are called, when, how often, and what may be done in a call.

#[path = "../common/freed.rs"]
mod freed;
#[path = "../common/watchdog.rs"]
mod watchdog;

use doorbell::event::{Change, Interest, Observation, Observer};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Mode};
use freed::wait_until_alone;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;
use watchdog::limit;

/// Counts its calls.
#[derive(Default)]
struct Calls {
    signalled: AtomicU64,
    read: AtomicU64,
}

impl Observer for Calls {
    fn notified(&self, change: Change) {
        match change {
            Change::Signalled => self.signalled.fetch_add(1, SeqCst),
            Change::Read => self.read.fetch_add(1, SeqCst),
        };
    }
}

impl Calls {
    /// How many calls there were since this was last called: for signals, for reads.
    fn take(&self) -> (u64, u64) {
        (self.signalled.swap(0, SeqCst), self.read.swap(0, SeqCst))
    }
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

fn observe(event: &Arc<Event>, f: impl Fn(Change) + Send + Sync + 'static) -> Observation {
    Observation::new(Arc::clone(event), Interest::Signals, Arc::new(f))
}

fn counted(event: &Arc<Event>, interest: Interest) -> (Arc<Calls>, Observation) {
    let calls = Arc::new(Calls::default());
    let observation = Observation::new(event, interest, calls.clone());
    (calls, observation)
}

#[test]
fn every_successful_operation_is_a_call() {
    let event = Arc::new(Event::semaphore(0));
    let (calls, _observation) = counted(&event, Interest::Both);
    event.signal();
    event.signal_n(3);
    event.write(2).unwrap();
    event.try_write(2).unwrap();
    event.write_timeout(2, Duration::ZERO).unwrap();
    // A write of 0 is an edge for epoll, and an injection for an irqfd.
    event.write(0).unwrap();
    assert_eq!(calls.take(), (6, 0));
    event.read();
    event.try_read().unwrap();
    event.read_timeout(Duration::ZERO).unwrap();
    assert_eq!(calls.take(), (0, 3));
}

#[test]
fn a_failed_operation_is_no_call() {
    let event = Arc::new(Event::new(0));
    let (calls, _observation) = counted(&event, Interest::Both);
    assert_eq!(event.try_read(), None);
    assert_eq!(event.read_timeout(Duration::from_millis(1)), None);
    event.write(u64::MAX).unwrap_err();
    assert_eq!(calls.take(), (0, 0));
    event.write(u64::MAX - 1).unwrap();
    event.try_write(1).unwrap_err();
    event
        .write_timeout(1, Duration::from_millis(1))
        .unwrap_err();
    assert_eq!(calls.take(), (1, 0));
}

#[test]
fn a_saturated_signal_is_a_call() {
    let event = Arc::new(Event::new(u64::MAX));
    let (calls, _observation) = counted(&event, Interest::Signals);
    event.signal();
    assert_eq!(calls.take(), (1, 0));
}

#[test]
fn each_is_called_for_what_it_is_interested_in() {
    let event = Arc::new(Event::new(0));
    let (signals, _first) = counted(&event, Interest::Signals);
    let (reads, second) = counted(&event, Interest::Reads);
    event.signal();
    event.read();
    assert_eq!((signals.take(), reads.take()), ((1, 0), (0, 1)));
    drop(second);
    event.signal();
    event.read();
    assert_eq!((signals.take(), reads.take()), ((1, 0), (0, 0)));
}

#[test]
fn the_count_has_changed_when_the_call_comes() {
    let event = event();
    let (sender, seen) = mpsc::channel();
    let _observation = Observation::new(Arc::clone(&event), Interest::Both, {
        let event = Arc::clone(&event);
        Arc::new(move |change| sender.send((change, event.count())).unwrap())
    });
    event.signal_n(7);
    event.read();
    assert_eq!(
        seen.try_iter().collect::<Vec<_>>(),
        [(Change::Signalled, 7), (Change::Read, 0)]
    );
}

#[test]
fn an_observer_that_is_armed_is_called_once() {
    let event = Arc::new(Event::new(0));
    let calls = Arc::new(Calls::default());
    let observation = Observation::on_demand(&event, Interest::Both, calls.clone());
    event.signal();
    assert_eq!(calls.take(), (0, 0), "not before it is armed");
    observation.arm(Interest::Signals);
    observation.arm(Interest::Signals);
    event.try_read().unwrap();
    assert_eq!(
        calls.take(),
        (0, 0),
        "not for a change it was not armed for"
    );
    event.write(0).unwrap();
    event.signal();
    assert_eq!(calls.take(), (1, 0));
    observation.arm(Interest::Both);
    event.signal();
    event.read();
    event.signal();
    event.read();
    assert_eq!(calls.take(), (1, 1));
}

#[test]
fn arming_more_than_it_is_attached_for_asks_for_nothing() {
    let event = Arc::new(Event::new(0));
    let calls = Arc::new(Calls::default());
    let observation = Observation::on_demand(&event, Interest::Reads, calls.clone());
    observation.arm(Interest::Both);
    event.signal();
    assert_eq!(calls.take(), (0, 0));
    event.read();
    assert_eq!(calls.take(), (0, 1));
}

#[test]
fn one_that_is_called_each_time_outlives_one_that_is_armed() {
    let event = Arc::new(Event::new(0));
    let (each, _each) = counted(&event, Interest::Signals);
    let once = Arc::new(Calls::default());
    let armed = Observation::on_demand(&event, Interest::Signals, once.clone());
    armed.arm(Interest::Signals);
    event.signal();
    event.signal();
    assert_eq!((each.take(), once.take()), ((2, 0), (1, 0)));
    drop(armed);
    event.signal();
    assert_eq!((each.take(), once.take()), ((1, 0), (0, 0)));
}

/// A signal releases a sleeping reader and calls the observers, of either kind.
#[test]
fn sleepers_are_woken_too() {
    limit("sleepers_are_woken_too", || {
        for mode in [Mode::Counter, Mode::Semaphore] {
            let event = Arc::new(Event::with_mode(0, mode));
            let calls = Arc::new(Calls::default());
            let armed =
                Observation::on_demand(Arc::clone(&event), Interest::Signals, calls.clone());
            let _each = Observation::new(Arc::clone(&event), Interest::Signals, calls.clone());
            armed.arm(Interest::Signals);
            let reader = {
                let event = Arc::clone(&event);
                thread::spawn(move || event.read())
            };
            thread::sleep(Duration::from_millis(20));
            event.write(0).unwrap();
            assert_eq!(calls.take(), (2, 0));
            armed.arm(Interest::Signals);
            event.signal();
            assert_eq!(reader.join().unwrap(), 1);
            assert_eq!(calls.take(), (2, 0));
        }
    });
}

/// A reader does not get what a call consumes, and goes on sleeping; unless the reader, which has been woken before the
/// call, is faster.
#[test]
fn an_observer_may_consume() {
    limit("an_observer_may_consume", || {
        let event = event();
        let sum = Arc::new(AtomicU64::new(0));
        let observation = {
            let (inside, sum) = (Arc::clone(&event), Arc::clone(&sum));
            observe(&event, move |_| {
                sum.fetch_add(inside.try_read().unwrap_or(0), SeqCst);
            })
        };
        let reader = {
            let event = Arc::clone(&event);
            thread::spawn(move || event.read())
        };
        thread::sleep(Duration::from_millis(20));
        event.signal_n(5);
        drop(observation);
        event.signal_n(9);
        let read = reader.join().unwrap();
        let left = event.try_read().unwrap_or(0);
        assert_eq!(sum.load(SeqCst) + read + left, 14);
    });
}

/// A detach waits for a call on another thread.
#[test]
fn detaching_is_a_barrier() {
    limit("detaching_is_a_barrier", || {
        let event = event();
        let (entered, is_inside) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        let may_leave = Mutex::new(may_leave);
        let left = Arc::new(AtomicBool::new(false));
        let observation = observe(&event, {
            let left = Arc::clone(&left);
            move |_| {
                entered.send(()).unwrap();
                may_leave.lock().unwrap().recv().unwrap();
                left.store(true, SeqCst);
            }
        });
        let signaller = thread::spawn(move || event.signal());
        is_inside.recv().unwrap();
        let remover = thread::spawn(move || {
            drop(observation);
            left.load(SeqCst)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!remover.is_finished());
        leave.send(()).unwrap();
        assert!(remover.join().unwrap(), "it returned during a call");
        signaller.join().unwrap();
    });
}

/// An observer that detaches itself in its first call gets no second call, even if the first signals the event again.
#[test]
fn detaching_in_its_own_call() {
    limit("detaching_in_its_own_call", || {
        let event = event();
        let observation = Arc::new(Mutex::new(None));
        let calls = Arc::new(Calls::default());
        *observation.lock().unwrap() = Some(observe(&event, {
            let (event, observation, calls) = (
                Arc::downgrade(&event),
                Arc::clone(&observation),
                calls.clone(),
            );
            move |change| {
                calls.notified(change);
                event.upgrade().unwrap().signal();
                drop(observation.lock().unwrap().take());
            }
        }));
        event.signal();
        event.signal();
        assert_eq!(calls.take(), (1, 0));
        assert_eq!(event.count(), 3);
    });
}

/// What a detached observer holds is freed at the latest soon after the call that detached it has ended.
#[test]
fn nothing_is_left_of_a_detached_observer() {
    limit("nothing_is_left_of_a_detached_observer", || {
        let event = event();
        let held = Arc::new(());
        let plain = observe(&event, {
            let held = Arc::clone(&held);
            move |_| assert!(Arc::strong_count(&held) > 0)
        });
        drop(plain);
        assert_eq!(Arc::strong_count(&held), 1);

        let slot = Arc::new(Mutex::new(None));
        *slot.lock().unwrap() = Some(observe(&event, {
            let (held, slot) = (Arc::clone(&held), Arc::downgrade(&slot));
            move |_| {
                let slot: Arc<Mutex<Option<Observation>>> = Weak::upgrade(&slot).unwrap();
                drop(slot.lock().unwrap().take());
                assert!(Arc::strong_count(&held) > 1, "freed while it was called");
            }
        }));
        event.signal();
        wait_until_alone(&held);
    });
}

/// A call may attach an observer, to its own event too; it is called from the next signal on.
#[test]
fn attaching_in_a_call() {
    limit("attaching_in_a_call", || {
        let event = event();
        let calls = Arc::new(Calls::default());
        let second = Arc::new(OnceLock::new());
        let _first = observe(&event, {
            let (event, calls, second) =
                (Arc::downgrade(&event), calls.clone(), Arc::clone(&second));
            move |_| {
                let event = event.upgrade().unwrap();
                let observer: Arc<dyn Observer> = calls.clone();
                second.get_or_init(|| Observation::new(event, Interest::Signals, observer));
            }
        });
        event.signal();
        assert_eq!(calls.take(), (0, 0));
        event.signal();
        assert_eq!(calls.take(), (1, 0));
    });
}

/// A call may drop the last handle of an event, and of other observers.
#[test]
fn dropping_another_event_in_a_call() {
    limit("dropping_another_event_in_a_call", || {
        let event = event();
        let held = Arc::new(());
        let other = Arc::new(Event::new(0));
        let observation = observe(&other, {
            let held = Arc::clone(&held);
            move |_| assert!(Arc::strong_count(&held) > 0)
        });
        let others = Mutex::new(Some((other, observation)));
        let _first = observe(&event, move |_| {
            if let Some((other, observation)) = others.lock().unwrap().take() {
                // The other observer is due when this call has returned, and is gone by then.
                other.signal();
                drop(observation);
                drop(other);
            }
        });
        event.signal();
        wait_until_alone(&held);
    });
}

/// A call that signals its own event: the count changes at once, and the next call comes when this one has returned.
#[test]
fn a_call_is_not_entered_again_by_its_own_thread() {
    limit("a_call_is_not_entered_again_by_its_own_thread", || {
        let event = event();
        let inside = AtomicBool::new(false);
        let calls = Arc::new(AtomicU64::new(0));
        let _observation = observe(&event, {
            let (event, calls) = (Arc::downgrade(&event), Arc::clone(&calls));
            move |_| {
                assert!(!inside.swap(true, SeqCst));
                if calls.fetch_add(1, SeqCst) < 9 {
                    let event = event.upgrade().unwrap();
                    let before = event.count();
                    event.signal();
                    assert_eq!(event.count(), before + 1);
                }
                inside.store(false, SeqCst);
            }
        });
        event.signal();
        assert_eq!((calls.load(SeqCst), event.count()), (10, 10));
    });
}

/// Each event of the chain is observed by an observer that signals the next one. The chain is far longer than any stack
/// could nest.
#[test]
fn a_chain_of_a_hundred_thousand() {
    limit("a_chain_of_a_hundred_thousand", || {
        let events: Vec<_> = (0..100_000).map(|_| event()).collect();
        let _observations: Vec<_> = events
            .windows(2)
            .map(|pair| {
                let next = Arc::clone(&pair[1]);
                observe(&pair[0], move |_| next.signal())
            })
            .collect();
        events[0].signal();
        assert!(events.iter().all(|event| event.count() == 1));
    });
}

/// A ring of events that would signal itself for ever: the signal returns, and the counts hold every signal that was
/// made.
#[test]
fn a_ring_is_cut() {
    limit("a_ring_is_cut", || {
        let events: Vec<_> = (0..3).map(|_| event()).collect();
        let calls = Arc::new(AtomicU64::new(0));
        let _observations: Vec<_> = (0..3)
            .map(|place| {
                let (next, calls) = (Arc::downgrade(&events[(place + 1) % 3]), calls.clone());
                observe(&events[place], move |_| {
                    calls.fetch_add(1, SeqCst);
                    next.upgrade().unwrap().signal();
                })
            })
            .collect();
        for round in 1..=2 {
            events[0].signal();
            let sum: u64 = events.iter().map(|event| event.count()).sum();
            assert_eq!(calls.load(SeqCst), round * (1 + (1 << 20)));
            assert_eq!(sum, round + calls.load(SeqCst));
        }
    });
}

/// An armed observer is called even while a ring is being cut off: otherwise it would wait for ever.
#[test]
fn a_ring_does_not_cut_off_who_armed() {
    limit("a_ring_does_not_cut_off_who_armed", || {
        let (ring, other) = (event(), event());
        let calls = Arc::new(Calls::default());
        let armed = Observation::on_demand(&other, Interest::Signals, calls.clone());
        armed.arm(Interest::Signals);
        let rounds = AtomicU64::new(0);
        let _observation = observe(&ring, {
            let (ring, other) = (Arc::downgrade(&ring), Arc::clone(&other));
            move |_| {
                ring.upgrade().unwrap().signal();
                if rounds.fetch_add(1, SeqCst) == 1 << 20 {
                    other.signal();
                }
            }
        });
        ring.signal();
        assert_eq!((other.count(), calls.take()), (1, (1, 0)));
    });
}

/// A panic reaches the signaller after all other threads have been woken and all other observers called.
#[test]
fn a_panic_harms_nobody_else() {
    limit("a_panic_harms_nobody_else", || {
        let event = event();
        let (before, _before) = counted(&event, Interest::Signals);
        let panics = Observation::new(
            &event,
            Interest::Signals,
            Arc::new(|_: Change| panic!("in a callback")),
        );
        let (after, _after) = counted(&event, Interest::Signals);
        let reader = {
            let event = Arc::clone(&event);
            thread::spawn(move || event.read())
        };
        thread::sleep(Duration::from_millis(20));
        let payload = panic::catch_unwind(AssertUnwindSafe(|| event.signal())).unwrap_err();
        assert_eq!(*payload.downcast::<&str>().unwrap(), "in a callback");
        assert_eq!(reader.join().unwrap(), 1);
        assert_eq!((before.take(), after.take()), ((1, 0), (1, 0)));

        drop(panics);
        event.signal();
        assert_eq!(
            (event.read(), before.take(), after.take()),
            (1, (1, 0), (1, 0))
        );
    });
}

/// A panic in a nested call prevents neither the calls that are due nor later nested calls.
#[test]
fn a_panic_in_a_nested_call() {
    limit("a_panic_in_a_nested_call", || {
        let (outer, inner, last) = (event(), event(), event());
        let (calls, _last) = counted(&last, Interest::Signals);
        let panics = AtomicBool::new(true);
        let _outer = observe(&outer, {
            let (inner, last) = (Arc::clone(&inner), Arc::clone(&last));
            move |_| {
                inner.signal();
                last.signal();
            }
        });
        let _inner = observe(&inner, move |_| {
            if panics.swap(false, SeqCst) {
                panic!("in a nested callback");
            }
        });
        panic::catch_unwind(AssertUnwindSafe(|| outer.signal())).unwrap_err();
        assert_eq!(calls.take(), (1, 0));
        outer.signal();
        assert_eq!(calls.take(), (1, 0));
        assert_eq!([&outer, &inner, &last].map(|event| event.count()), [2; 3]);
    });
}

/// An observation keeps its event alive, and keeps it alive for good if the observation is forgotten.
#[test]
fn a_forgotten_observation() {
    let event = Arc::new(Event::new(0));
    let (calls, observation) = counted(&event, Interest::Signals);
    let weak = Arc::downgrade(&event);
    drop(event);
    std::mem::forget(observation);
    let event = weak.upgrade().unwrap();
    event.signal();
    assert_eq!(calls.take(), (1, 0));
}

#[test]
fn debug_shows_the_event_and_the_interest() {
    let event = Arc::new(Event::new(7));
    let (_calls, observation) = counted(&event, Interest::Reads);
    let text = format!("{observation:?}");
    assert!(text.contains("count: 7"), "{text}");
    assert!(text.contains("interest: Reads"), "{text}");
}

/// Signals of a thread whose thread-local values are being destroyed.
#[test]
fn signals_of_an_ending_thread() {
    limit("signals_of_an_ending_thread", || {
        struct Last(Arc<Event>);
        impl Drop for Last {
            fn drop(&mut self) {
                self.0.signal();
            }
        }
        thread_local! {
            static LAST: OnceLock<Last> = const { OnceLock::new() };
        }
        for signals_before in [false, true] {
            let (first, second) = (event(), event());
            let _observation = observe(&first, {
                let second = Arc::clone(&second);
                move |_| second.signal()
            });
            let (calls, _second) = counted(&second, Interest::Signals);
            let last = Arc::clone(&first);
            thread::spawn(move || {
                if signals_before {
                    last.signal();
                }
                LAST.with(|cell| assert!(cell.set(Last(Arc::clone(&last))).is_ok()));
                last.signal();
            })
            .join()
            .unwrap();
            assert_eq!(calls.take(), (if signals_before { 3 } else { 2 }, 0));
        }
    });
}

/// Signallers at full speed while observers come and go: an observer misses no signal that began after it was attached,
/// and gets none after it was detached.
#[test]
fn observers_come_and_go() {
    limit("observers_come_and_go", || {
        const SIGNALS: usize = 50_000;
        struct Watched {
            calls: AtomicUsize,
            detached: AtomicBool,
        }
        let event = event();
        let (permanent, _permanent) = counted(&event, Interest::Signals);
        let start = Arc::new(Barrier::new(3));
        let done = Arc::new(AtomicUsize::new(0));
        let signallers: Vec<_> = (0..2)
            .map(|_| {
                let (event, start, done) =
                    (Arc::clone(&event), Arc::clone(&start), Arc::clone(&done));
                thread::spawn(move || {
                    start.wait();
                    for _ in 0..SIGNALS {
                        event.signal();
                    }
                    done.fetch_add(1, SeqCst);
                })
            })
            .collect();
        start.wait();
        let mut rounds = 0;
        while done.load(SeqCst) < 2 || rounds == 0 {
            let watched = Arc::new(Watched {
                calls: AtomicUsize::new(0),
                detached: AtomicBool::new(false),
            });
            let observation = observe(&event, {
                let watched = Arc::clone(&watched);
                move |_| {
                    assert!(!watched.detached.load(SeqCst));
                    watched.calls.fetch_add(1, SeqCst);
                }
            });
            event.signal();
            drop(observation);
            watched.detached.store(true, SeqCst);
            assert_ne!(watched.calls.load(SeqCst), 0);
            rounds += 1;
        }
        for signaller in signallers {
            signaller.join().unwrap();
        }
        let signals = (2 * SIGNALS + rounds) as u64;
        assert_eq!(event.read(), signals);
        assert_eq!(permanent.take(), (signals, 0));
    });
}

/// A poller is woken before a long chain of nested signals has ended.
#[test]
fn a_poller_beside_a_long_chain() {
    limit("a_poller_beside_a_long_chain", || {
        let (watched, first, last) = (event(), event(), event());
        let poller = Arc::new(Poller::new());
        poller.add(&watched, 0, Watch::READABLE).unwrap();
        let (tell, told) = mpsc::channel();
        let waiter = thread::spawn({
            let poller = Arc::clone(&poller);
            move || {
                poller.wait(&mut Events::with_capacity(1), None).unwrap();
                tell.send(()).unwrap();
            }
        });
        while !format!("{poller:?}").contains("waiting: 1") {
            thread::yield_now();
        }
        // The test holds whether the thread is asleep or about to be.
        thread::sleep(Duration::from_millis(20));
        let told = Mutex::new(told);
        let _at_the_end = observe(&last, move |_| {
            let patience = Duration::from_secs(20);
            told.lock().unwrap().recv_timeout(patience).unwrap();
        });
        let links: Vec<_> = (0..600).map(|_| event()).collect();
        let _links: Vec<_> = links.iter().map(|link| observe(link, |_| ())).collect();
        let _first = observe(&first, move |_| {
            watched.signal();
            links.iter().for_each(|link| link.signal());
            last.signal();
        });
        first.signal();
        waiter.join().unwrap();
    });
}
