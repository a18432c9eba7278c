//! Calls with a time limit look at the clock only when they have to wait, and calls without one do not look at it.
//!
//! The clock is counted: this binary has a `clock_gettime` of its own, which std finds in place of libc's.

// Only on these platforms does std call `clock_gettime` by that name.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

use common::caller::call_at;
use common::counter::Place;
use doorbell::poll::{Events, Poller, Watch, wait_any, wait_any_deadline};
use doorbell::{Event, Mode, SharedEvent, Spin, WriteError};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[path = "../common/mod.rs"]
mod common;

thread_local! {
    static LOOKS: Cell<u64> = const { Cell::new(0) };
}

/// # Safety
///
/// As for libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    LOOKS.with(|looks| looks.set(looks.get() + 1));
    // SAFETY: as the caller promises.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int }
}

/// How often this thread reads the clock in `call`.
fn looks(call: impl FnOnce()) -> u64 {
    let before = LOOKS.with(Cell::get);
    call();
    LOOKS.with(Cell::get) - before
}

const LONG: Duration = Duration::from_secs(60);
const NAP: Duration = Duration::from_millis(1);
const FULL: u64 = u64::MAX - 1;

macro_rules! calls_of_an_event {
    ($new:expr) => {
        let deadline = Instant::now() + LONG;
        for mode in [Mode::Counter, Mode::Semaphore] {
            let event = $new(2, mode);
            let at_once = looks(|| {
                assert!(event.read_timeout(LONG).is_some());
                event.signal();
                assert!(event.read_deadline(deadline).is_some());
                event.write_timeout(1, LONG).unwrap();
                event.write_deadline(1, deadline).unwrap();
                assert_eq!(
                    event.write_timeout(u64::MAX, LONG),
                    Err(WriteError::Invalid)
                );
                assert_eq!(
                    event.write_deadline(u64::MAX, deadline),
                    Err(WriteError::Invalid)
                );
            });
            assert_eq!(at_once, 0, "{mode:?}");

            let (empty, full) = ($new(0, mode), $new(FULL, mode));
            let no_time = looks(|| {
                assert_eq!(empty.read_timeout(Duration::ZERO), None);
                assert_eq!(
                    full.write_timeout(1, Duration::ZERO),
                    Err(WriteError::TimedOut)
                );
            });
            assert_eq!(no_time, 0, "{mode:?}");
            // One reading of the clock shows that the time is over.
            let past = Instant::now();
            assert_eq!(looks(|| assert_eq!(empty.read_deadline(past), None)), 1);
            assert_eq!(looks(|| assert!(full.write_deadline(1, past).is_err())), 1);
            // This shows that readings of the clock are counted.
            assert!(looks(|| assert_eq!(empty.read_timeout(NAP), None)) > 0);
            assert!(looks(|| assert!(full.write_timeout(1, NAP).is_err())) > 0);
        }
    };
}

#[test]
fn of_an_event() {
    for spin in [Spin::Never, Spin::DEFAULT, Spin::Always] {
        calls_of_an_event!(|initial, mode| Event::with_mode(initial, mode).with_spin(spin));
    }
}

#[test]
fn of_a_shared_event() {
    for spin in [Spin::Never, Spin::DEFAULT, Spin::Always] {
        calls_of_an_event!(|initial, mode| {
            SharedEvent::create(initial, mode)
                .unwrap()
                .0
                .with_spin(spin)
        });
    }
}

#[test]
fn of_wait_any() {
    let deadline = Instant::now() + LONG;
    let events = [(); 200].map(|()| Event::new(0));
    for number in [1, 2, 200] {
        let events = &events[..number];
        events[number - 1].signal();
        let at_once = looks(|| {
            assert!(wait_any(events, Some(LONG)).is_some());
            assert!(wait_any_deadline(events, deadline).is_some());
            events[number - 1].read();
            assert!(wait_any(events, Some(Duration::ZERO)).is_none());
        });
        assert_eq!(at_once, 0, "{number} events");
        let past = Instant::now();
        let over = looks(|| assert!(wait_any_deadline(events, past).is_none()));
        assert_eq!(over, 1, "{number} events");
        assert!(looks(|| assert!(wait_any(events, Some(NAP)).is_none())) > 0);
    }
}

#[test]
fn of_a_poller() {
    for spin in [Spin::Never, Spin::DEFAULT, Spin::Always] {
        let poller = Poller::with_spin(spin);
        let event = Arc::new(Event::new(1));
        poller.add(&event, 0, Watch::READABLE).unwrap();
        let mut events = Events::with_capacity(8);
        let at_once = looks(|| {
            assert_eq!(poller.wait(&mut events, Some(LONG)), Ok(1));
            event.read();
            assert_eq!(poller.wait(&mut events, Some(Duration::ZERO)), Ok(0));
        });
        assert_eq!(at_once, 0, "{spin:?}");
        assert!(looks(|| assert_eq!(poller.wait(&mut events, Some(NAP)), Ok(0))) > 0);
    }
}

/// Waits in a thread of its own for what `end` brings about once the thread sleeps, and does not look at the clock.
fn without_a_look(place: Place, wait: impl FnOnce() + Send + 'static, end: impl FnOnce()) {
    let waiter = call_at(place, || looks(wait));
    waiter.wait_asleep();
    end();
    assert_eq!(waiter.finish(), 0);
}

/// Sleeps in each of the calls of an event.
macro_rules! calls_without_a_limit {
    ($new:expr, $place:expr) => {
        let (empty, full) = ($new(0), $new(FULL));
        let there = Arc::clone(&empty);
        let wait = move || assert!(there.wait_readable_timeout(Duration::MAX));
        without_a_look($place, wait, || empty.signal());
        assert_eq!(empty.read(), 1);
        let there = Arc::clone(&empty);
        let read = move || assert_eq!(there.read_timeout(Duration::MAX), Some(1));
        without_a_look($place, read, || empty.signal());
        let there = Arc::clone(&full);
        let write = move || there.write_timeout(1, Duration::MAX).unwrap();
        without_a_look($place, write, || assert_eq!(full.read(), FULL));
    };
}

#[test]
fn of_calls_without_a_limit() {
    calls_without_a_limit!(
        |count| Arc::new(Event::new(count).with_spin(Spin::Never)),
        Place::Futex
    );
    calls_without_a_limit!(
        |count| {
            let (event, _) = SharedEvent::create(count, Mode::Counter).unwrap();
            Arc::new(event.with_spin(Spin::Never))
        },
        Place::SharedMemory
    );
    let event = Arc::new(Event::new(0));
    let poller = Poller::with_spin(Spin::Never);
    poller.add(&event, 0, Watch::READABLE).unwrap();
    let wait = move || {
        let found = poller.wait(&mut Events::with_capacity(1), Some(Duration::MAX));
        assert_eq!(found, Ok(1));
    };
    without_a_look(Place::Futex, wait, || event.signal());
}
