//! Signallers: a count that is split into a base and lanes, and no thread sees a count that the event never had.
//!
//! The barrier that a sleeper has its signallers execute is not in these models. All looks for announcements in them
//! are read-modify-writes: see `tests/signaller_light.rs`.
//!
//! `../breakages/signaller.toml` lists the ways in which the code was broken on purpose, and which of these models
//! noticed.

use doorbell::event::{Change, EventHandle, Interest, Observation, Signaller};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Mode, Spin, WriteError};
use loom::sync::Arc as Shared;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;
use loom_tests::{Cargo, check, event, handle, spawn};
use std::sync::Arc;

/// A signaller that has a lane.
fn signaller(event: impl Into<EventHandle>) -> Signaller {
    let signaller = Signaller::new(event);
    assert!(signaller.has_lane());
    signaller
}

/// Reads until the sum is `sum`, and returns what each read took.
fn readings(event: &Event, sum: u64) -> Vec<u64> {
    let mut values = Vec::new();
    while values.iter().sum::<u64>() < sum {
        values.push(event.read());
    }
    assert_eq!(event.try_read(), None);
    values
}

/// A signal by a lane, which hands data over, races a reader that goes to sleep.
#[test]
fn signal_and_reader() {
    check("signaller::signal_and_reader", None, || {
        let event = event(0, Mode::Counter);
        let signaller = signaller(handle(&event));
        let cargo = Shared::new(Cargo::default());
        let device = {
            let cargo = Shared::clone(&cargo);
            spawn(&event, move |event| {
                assert_eq!(event.read(), 1);
                assert_eq!(cargo.get(), 7);
            })
        };
        cargo.put(7);
        signaller.signal();
        device.join().unwrap();
    });
}

/// A signal by a lane ends the wait of a thread that takes nothing, and hands data over.
#[test]
fn signal_and_wait() {
    check("signaller::signal_and_wait", None, || {
        let event = event(0, Mode::Counter);
        let signaller = signaller(handle(&event));
        let cargo = Shared::new(Cargo::default());
        let device = {
            let cargo = Shared::clone(&cargo);
            spawn(&event, move |event| {
                event.wait_readable();
                assert_eq!(cargo.get(), 7);
            })
        };
        cargo.put(7);
        signaller.signal();
        device.join().unwrap();
        assert_eq!(event.try_read(), Some(1));
    });
}

/// All units are taken at once, those of a lane and of the base, while another signal comes.
#[test]
fn units_read_as_a_whole() {
    check("units_read_as_a_whole", None, || {
        let event = event(1, Mode::Semaphore);
        let signaller = signaller(handle(&event));
        let other = spawn(&event, |event| event.try_read_all());
        signaller.signal();
        let values = [
            event.try_read_all(),
            other.join().unwrap(),
            event.try_read_all(),
        ];
        assert_eq!(values.into_iter().flatten().sum::<u64>(), 2);
        assert_eq!(event.count(), 0);
    });
}

/// Changes that came in one order are not read in another order.
#[test]
fn a_write_and_then_a_signal() {
    check("a_write_and_then_a_signal", Some(3), || {
        let event = event(0, Mode::Counter);
        let signaller = signaller(handle(&event));
        let device = spawn(&event, |event| readings(event, 11));
        event.write(10).unwrap();
        signaller.signal();
        assert_ne!(device.join().unwrap(), [1, 10]);
    });
}

#[test]
fn a_signal_and_then_a_write() {
    check("a_signal_and_then_a_write", Some(3), || {
        let event = event(0, Mode::Counter);
        let signaller = signaller(handle(&event));
        let device = spawn(&event, |event| readings(event, 11));
        signaller.signal();
        event.write(10).unwrap();
        assert_ne!(device.join().unwrap(), [10, 1]);
    });
}

/// The base has its old value, though it has changed: a read and a write have taken it there and back.
#[test]
fn a_base_that_comes_back() {
    check("a_base_that_comes_back", None, || {
        let event = event(0, Mode::Counter);
        let signaller = signaller(handle(&event));
        signaller.signal();
        signaller.signal();
        let other = spawn(&event, |event| event.try_read());
        let first = event.try_read();
        signaller.signal();
        event.write(2).unwrap();
        let second = other.join().unwrap();
        let rest = event.try_read();
        // The other thread read before the first read, after it, after the signal, or after the write.
        let seen = [first, second, rest];
        let fine = [
            [None, Some(2), Some(3)],
            [Some(2), None, Some(3)],
            [Some(2), Some(1), Some(2)],
            [Some(2), Some(3), None],
        ];
        assert!(fine.contains(&seen), "{seen:?}");
    });
}

/// A unit is always in the count or taken: of two units, a reader that finds none has come too late.
#[test]
fn two_readers_of_what_is_there() {
    check("two_readers_of_what_is_there", None, || {
        let event = event(0, Mode::Semaphore);
        let signaller = signaller(handle(&event));
        signaller.signal();
        event.signal();
        let other = spawn(&event, |event| event.try_read());
        assert_eq!(event.try_read(), Some(1));
        assert_eq!(other.join().unwrap(), Some(1));
        assert_eq!(event.try_read(), None);
    });
}

/// Each unit wakes a thread of its own.
#[test]
fn two_sleepers_and_a_signaller() {
    check("two_sleepers_and_a_signaller", Some(2), || {
        let event = event(0, Mode::Semaphore);
        let signaller = signaller(handle(&event));
        let sleeper = spawn(&event, |event| event.read());
        let other = spawn(&event, |event| event.read());
        signaller.signal();
        signaller.signal();
        assert_eq!(sleeper.join().unwrap() + other.join().unwrap(), 2);
        assert_eq!(event.try_read(), None);
    });
}

/// A read that takes everything acquires from all signallers.
#[test]
fn two_signallers() {
    check("two_signallers", Some(2), || {
        let event = event(0, Mode::Counter);
        let cargo = Shared::new([Cargo::default(), Cargo::default()]);
        let first = signaller(handle(&event));
        let second = {
            let (cargo, event) = (Shared::clone(&cargo), handle(&event));
            thread::spawn(move || {
                let signaller = Signaller::new(event);
                cargo[1].put(2);
                signaller.signal();
            })
        };
        cargo[0].put(1);
        first.signal();
        assert_eq!(readings(&event, 2).iter().sum::<u64>(), 2);
        assert_eq!((cargo[0].get(), cargo[1].get()), (1, 2));
        second.join().unwrap();
    });
}

/// A lane goes to the next owner with all that is in it.
#[test]
fn a_lane_changes_hands() {
    check("a_lane_changes_hands", None, || {
        let event = event(0, Mode::Counter);
        let first = signaller(handle(&event));
        let _second = signaller(handle(&event));
        let other = thread::spawn(move || {
            first.signal();
            drop(first);
        });
        let next = Signaller::new(handle(&event));
        next.signal();
        other.join().unwrap();
        assert_eq!(event.try_read(), Some(2));
        // There were two lanes, both of which were taken or not by then.
        drop(next);
        assert!(Signaller::new(handle(&event)).has_lane());
    });
}

/// The count is split while other threads change it.
#[test]
fn split_while_others_read_and_write() {
    check("split_while_others_read_and_write", Some(3), || {
        let event = event(5, Mode::Counter);
        let reader = spawn(&event, |event| event.try_read().unwrap());
        let writer = spawn(&event, |event| event.write(10).unwrap());
        let signaller = signaller(handle(&event));
        signaller.signal();
        let taken = reader.join().unwrap();
        writer.join().unwrap();
        assert!([5, 6, 15, 16].contains(&taken), "{taken}");
        assert_eq!(event.try_read().unwrap_or(0), 16 - taken);
        assert_eq!(event.try_read(), None);
    });
}

/// Two threads make the first signaller at once.
#[test]
fn split_by_two() {
    check("split_by_two", None, || {
        let event = event(3, Mode::Counter);
        let second = handle(&event);
        let other = thread::spawn(move || signaller(second).signal());
        signaller(handle(&event)).signal();
        other.join().unwrap();
        assert_eq!(event.try_read(), Some(5));
    });
}

/// A count that overflows while it is split overflows either before the split or after it, exactly.
#[test]
fn split_while_it_overflows() {
    // The counts reach the overflow state exactly, or go beyond it.
    overflows("split_while_it_overflows", u64::MAX - 5);
    overflows("split_while_it_saturates", u64::MAX - 2);
}

fn overflows(name: &str, n: u64) {
    check(name, None, move || {
        let event = event(5, Mode::Semaphore);
        let other = spawn(&event, move |event| {
            event.signal_n(n);
            assert_eq!(event.count(), u64::MAX);
        });
        let signaller = Signaller::new(handle(&event));
        let before = event.count();
        assert!(before == 5 || before == u64::MAX, "{before}");
        other.join().unwrap();
        assert_eq!(event.count(), u64::MAX);
        signaller.signal();
        assert_eq!(event.count(), u64::MAX);
        assert_eq!(event.try_write(0), Err(WriteError::WouldBlock));
        assert_eq!(event.try_read(), Some(1));
        assert_eq!(event.count(), u64::MAX - 1);
    });
}

/// A writer that waits for room is released by a reader, and takes into account what signallers add.
#[test]
fn a_writer_waits_for_room() {
    check("a_writer_waits_for_room", None, || {
        let event = event(u64::MAX - 2, Mode::Counter);
        let signaller = signaller(handle(&event));
        let writer = spawn(&event, |event| event.write(1).unwrap());
        signaller.signal();
        let mut sum = u128::from(event.read());
        writer.join().unwrap();
        sum += u128::from(event.try_read().unwrap_or(0));
        // If the write came first, the signal led to the overflow state. If it came second, it waited for the read.
        assert_eq!(sum, u128::from(u64::MAX));
    });
}

/// A thread that attaches an observer and then looks misses no signal.
#[test]
fn an_observer_is_attached() {
    check("signaller::an_observer_is_attached", None, || {
        let event = event(0, Mode::Counter);
        let signaller = signaller(handle(&event));
        let calls = Arc::new(AtomicU64::new(0));
        let other = thread::spawn(move || signaller.signal());
        let observation = {
            let calls = Arc::clone(&calls);
            let observer = move |_: Change| {
                calls.fetch_add(1, Ordering::Relaxed);
            };
            Observation::new(handle(&event), Interest::Signals, Arc::new(observer))
        };
        let seen = event.count();
        other.join().unwrap();
        assert_eq!(event.count(), 1);
        assert!(seen == 1 || calls.load(Ordering::Relaxed) == 1);
        drop(observation);
    });
}

/// A flag, apart from the event, tells of the signal: a thread that sees the flag sees the signal.
#[test]
fn a_flag_after_a_signal() {
    check("a_flag_after_a_signal", None, || {
        let event = event(0, Mode::Counter);
        let signaller = signaller(handle(&event));
        let told = Shared::new(AtomicBool::new(false));
        let device = {
            let told = Shared::clone(&told);
            spawn(&event, move |event| {
                let told = told.load(Ordering::Acquire);
                let value = event.try_read();
                assert!(!told || value == Some(1));
                value
            })
        };
        signaller.signal();
        told.store(true, Ordering::Release);
        let value = device.join().unwrap();
        assert_eq!(value.or_else(|| event.try_read()), Some(1));
    });
}

/// A write that fits at all times is not refused for a sum that the count never had: the count before a read, plus a
/// signal after that read.
#[test]
fn room_is_made_and_used_up() {
    check("room_is_made_and_used_up", None, || {
        let event = event(u64::MAX - 2, Mode::Counter);
        let signaller = signaller(handle(&event));
        let other = spawn(&event, move |event| {
            let value = event.read();
            signaller.signal();
            value
        });
        assert_eq!(event.try_write(1), Ok(()));
        let taken = u128::from(other.join().unwrap());
        assert_eq!(taken + u128::from(event.read()), u128::from(u64::MAX));
    });
}

/// One event in a poller, under key 1, which has been reported, read and then found empty; and a signaller of the
/// event.
fn polled(watch: Watch) -> (Arc<Poller>, Signaller) {
    let poller = Arc::new(Poller::with_spin(Spin::Never));
    let event = Arc::new(Event::new(0).with_spin(Spin::Never));
    let signaller = signaller(Arc::clone(&event));
    poller.add(&event, 1, watch).unwrap();
    signaller.signal();
    assert_eq!(look(&poller), [1]);
    assert_eq!(event.try_read(), Some(1));
    assert!(look(&poller).is_empty());
    (poller, signaller)
}

fn look(poller: &Poller) -> Vec<usize> {
    let mut events = Events::with_capacity(2);
    poller.look(&mut events).unwrap();
    events.iter().map(|ready| ready.key()).collect()
}

fn wait(poller: &Poller) -> Vec<usize> {
    let mut events = Events::with_capacity(2);
    poller.wait(&mut events, None).unwrap();
    events.iter().map(|ready| ready.key()).collect()
}

/// A hot event is armed before the thread sleeps.
#[test]
fn a_thread_that_falls_asleep_in_a_poller() {
    for watch in [Watch::READABLE, Watch::READABLE.edge()] {
        check("a_thread_that_falls_asleep_in_a_poller", None, move || {
            let (poller, signaller) = polled(watch);
            let event = signaller.event().clone();
            let other = thread::spawn(move || signaller.signal());
            assert_eq!(wait(&poller), [1]);
            assert_eq!(event.try_read(), Some(1));
            other.join().unwrap();
        });
    }
}

/// A thread that looks while another one sleeps leaves no event hot, and if a thread left an event hot, a thread that
/// falls asleep sees that.
#[test]
fn a_look_beside_a_sleeper_in_a_poller() {
    check("a_look_beside_a_sleeper_in_a_poller", Some(3), || {
        let (poller, signaller) = polled(Watch::READABLE);
        let sleeper = {
            let poller = Arc::clone(&poller);
            thread::spawn(move || wait(&poller))
        };
        look(&poller);
        signaller.signal();
        assert_eq!(sleeper.join().unwrap(), [1]);
    });
}
