//! Signallers: no signal is lost to a waiter, in whatever way it waits; which signallers have lanes, and what becomes
//! of a lane.
//!
//! `conformance.rs`, `differential.rs` and `linearizable.rs` test counters with signallers.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../ioeventfd/script.rs"]
mod script;

use arbitrary::{Arbitrary, Unstructured};
use common::signalled::HAS_WIDE_WORDS;
use common::watchdog::Watchdog;
use doorbell::event::{Batch, Change, EventHandle, Interest, Observation, Signaller};
use doorbell::fd::Mirror;
use doorbell::ioeventfd::{Bus, Key, Latest, Table, ValueQueue};
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router};
use doorbell::poll::{Events, Poller, Watch, wait_any};
use doorbell::{Event, Mode, Spin, WriteError, use_membarrier};
use fastrand::Rng;
use pollster::block_on;
use proptest::prelude::*;
use script::Script;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const FULL: u64 = u64::MAX - 1;

/// Whether signallers have lanes in this process. Prints a message if not.
fn have_lanes() -> bool {
    match use_membarrier() {
        Ok(()) if HAS_WIDE_WORDS => true,
        Ok(()) => {
            println!("signallers are tested without lanes: no words of 128 bits");
            false
        }
        Err(error) => {
            println!("signallers are tested without lanes: {error}");
            false
        }
    }
}

fn event(mode: Mode) -> Arc<Event> {
    have_lanes();
    Arc::new(Event::with_mode(0, mode).with_spin(Spin::Never))
}

/// Signals each event from a thread with a signaller of its own, now and then after a pause in which the other side
/// falls asleep. Meanwhile `consume` takes the signals, and returns how many there were.
fn nothing_is_lost(events: &[Arc<Event>], consume: impl FnOnce(u64) -> u64 + Send) {
    nothing_is_lost_in(20_000, events, consume);
}

/// The same with this many signals to each event.
fn nothing_is_lost_in(
    signals: u64,
    events: &[Arc<Event>],
    consume: impl FnOnce(u64) -> u64 + Send,
) {
    let shown = events.to_vec();
    let _watchdog = Watchdog::new(Duration::from_secs(60), move || format!("{shown:?}"));
    let total = signals * events.len() as u64;
    thread::scope(|scope| {
        let consumer = scope.spawn(|| consume(total));
        for (seed, event) in (1..).zip(events) {
            scope.spawn(move || {
                let signaller = Signaller::new(event);
                let mut rng = Rng::with_seed(seed);
                for number in 0..signals {
                    if number % 8 == 0 {
                        (0..rng.u32(..2_000)).for_each(|_| std::hint::spin_loop());
                    }
                    if rng.u32(..200) == 0 {
                        thread::sleep(Duration::from_micros(50));
                    }
                    // Another thread signals too, as when a device's other thread helps out.
                    if rng.u32(..100) == 0 {
                        event.signal();
                    } else {
                        signaller.signal();
                    }
                }
            });
        }
        assert_eq!(consumer.join().unwrap(), total);
    });
    assert!(events.iter().all(|event| event.try_read().is_none()));
}

fn read_until(event: &Event, total: u64) -> u64 {
    let mut sum = 0;
    while sum < total {
        sum += event.read();
    }
    sum
}

#[test]
fn to_a_reader() {
    let event = event(Mode::Counter);
    nothing_is_lost(&[Arc::clone(&event)], |total| read_until(&event, total));
}

#[test]
fn of_two_to_one_reader() {
    let event = event(Mode::Counter);
    nothing_is_lost(&[Arc::clone(&event), Arc::clone(&event)], |total| {
        read_until(&event, total)
    });
}

#[test]
fn to_readers_of_a_semaphore() {
    let event = event(Mode::Semaphore);
    nothing_is_lost(&[Arc::clone(&event)], |total| {
        let half = || read_until(&event, total / 2);
        thread::scope(|scope| {
            let other = scope.spawn(half);
            half() + other.join().unwrap()
        })
    });
}

#[test]
fn to_a_poller() {
    for watch in [Watch::READABLE, Watch::READABLE.edge()] {
        let events = [event(Mode::Counter), event(Mode::Counter)];
        nothing_is_lost(&events, |total| {
            let poller = Poller::new();
            for (key, event) in events.iter().enumerate() {
                poller.add(event, key, watch).unwrap();
            }
            let mut buffer = Events::with_capacity(2);
            let mut sum = 0;
            while sum < total {
                poller.wait(&mut buffer, None).unwrap();
                for ready in &buffer {
                    sum += events[ready.key()].try_read().unwrap_or(0);
                }
            }
            sum
        });
    }
}

fn read_any_until(events: &[Arc<Event>], total: u64) -> u64 {
    let mut sum = 0;
    while sum < total {
        let ready = wait_any(events, None).expect("there is no limit");
        sum += ready
            .map(|index| events[index].try_read().unwrap_or(0))
            .sum::<u64>();
    }
    sum
}

#[test]
fn to_wait_any() {
    let events = [event(Mode::Counter), event(Mode::Counter)];
    nothing_is_lost(&events, |total| read_any_until(&events, total));
}

/// With more events than `wait_any` can sleep at, the thread stands in line at each.
#[test]
fn to_wait_any_of_many() {
    let events: Vec<_> = (0..150).map(|_| event(Mode::Counter)).collect();
    let _owner = Signaller::new(&events[0]);
    nothing_is_lost_in(1_000, &events[148..], |total| {
        read_any_until(&events, total)
    });
}

#[test]
fn to_a_task() {
    for mode in [Mode::Counter, Mode::Semaphore] {
        let event = event(mode);
        nothing_is_lost(&[Arc::clone(&event)], |total| {
            block_on(async {
                let mut sum = 0;
                while sum < total {
                    sum += event.read_async().await;
                }
                sum
            })
        });
    }
}

#[test]
fn to_a_mirror() {
    let event = event(Mode::Counter);
    let mirror = Mirror::new(Arc::clone(&event)).unwrap();
    nothing_is_lost(&[Arc::clone(&event)], |total| {
        let mut sum = 0;
        while sum < total {
            let mut poll = [rustix::event::PollFd::new(
                &mirror,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut poll, None).unwrap();
            sum += event.try_read().unwrap_or(0);
        }
        sum
    });
}

/// An observer is called for each signal.
#[test]
fn to_an_observer() {
    let event = event(Mode::Counter);
    let calls = Arc::new(AtomicU64::new(0));
    let observer = {
        let calls = Arc::clone(&calls);
        move |_: Change| _ = calls.fetch_add(1, Ordering::Relaxed)
    };
    let _observation = Observation::new(Arc::clone(&event), Interest::Signals, Arc::new(observer));
    nothing_is_lost(&[Arc::clone(&event)], |total| read_until(&event, total));
    assert_eq!(calls.load(Ordering::Relaxed), 20_000);
}

/// An observer that arms and then looks sees the signal, or is called for it: the handshake itself, over and over, with
/// no sleep in it. (Without the barrier, some 30 of the rounds missed the signal here, and hardly any in unoptimised
/// code, so `.ci/run` runs this optimised too.)
#[test]
fn to_one_who_arms_and_looks() {
    const ROUNDS: u64 = 100_000;
    let event = event(Mode::Counter);
    let calls = Arc::new(AtomicU64::new(0));
    let observer = {
        let calls = Arc::clone(&calls);
        move |_: Change| _ = calls.fetch_add(1, Ordering::Relaxed)
    };
    let observation =
        Observation::on_demand(Arc::clone(&event), Interest::Signals, Arc::new(observer));
    let (round, signalled) = (AtomicU64::new(0), AtomicU64::new(0));
    let await_number = |word: &AtomicU64, number| {
        let mut looks = 0_u32;
        while word.load(Ordering::Acquire) < number {
            looks += 1;
            match looks % 1_000 {
                0 => thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    };
    let _watchdog = Watchdog::new(Duration::from_secs(60), || "arms and looks".to_owned());
    thread::scope(|scope| {
        scope.spawn(|| {
            let signaller = Signaller::new(&event);
            // Stores to cache lines that no cache has delay the visibility of later stores.
            let far: Vec<AtomicU64> = (0..1 << 20).map(AtomicU64::new).collect();
            for number in 1..=ROUNDS {
                await_number(&round, number);
                for line in 0..4 {
                    let place = (number * 32 + line) * 521 % far.len() as u64;
                    far[place as usize].store(number, Ordering::Relaxed);
                }
                signaller.signal();
                signalled.store(number, Ordering::Release);
            }
        });
        let mut rng = Rng::with_seed(1);
        for number in 1..=ROUNDS {
            let before = calls.load(Ordering::Relaxed);
            let pauses = rng.u32(..300);
            round.store(number, Ordering::Release);
            (0..pauses).for_each(|_| std::hint::black_box(()));
            observation.arm(Interest::Signals);
            let seen = event.count();
            await_number(&signalled, number);
            let called = calls.load(Ordering::Relaxed) - before;
            assert!(seen + called != 0, "round {number}");
            assert_eq!(event.read(), 1);
        }
    });
}

/// An irqfd injects for each signal of a signaller as for any other signal, and its event is empty then.
#[test]
fn to_an_irqfd() {
    struct Sink(AtomicU64);

    impl InterruptSink for Sink {
        fn set_level(&self, _: u32, _: u32, _: bool) {
            unreachable!("an MSI has no level")
        }

        fn signal_msi(&self, _: u32, _: MsiMessage) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let event = event(Mode::Counter);
    let sink = Arc::new(Sink(AtomicU64::new(0)));
    let router = Router::new(Arc::clone(&sink));
    let message = MsiMessage::new(0xfee0_0000, 0x41);
    router.set_route(24, Some(Route::Msi(message))).unwrap();
    let irqfd = router.assign(&event, 24).unwrap();
    let signaller = Signaller::new(Arc::clone(&event));
    for number in 1..=100 {
        signaller.signal();
        assert_eq!(sink.0.load(Ordering::Relaxed), number);
        assert_eq!(event.count(), 0);
    }
    drop(irqfd);
}

/// A batch delivers the same to an event that has signallers as to any other.
#[test]
fn beside_a_batch() {
    let event = event(Mode::Counter);
    let signaller = Signaller::new(Arc::clone(&event));
    let mut batch = Batch::new();
    let index = batch.add(Arc::clone(&event));
    batch.signal_n(index, 5);
    batch.write(index, 3).unwrap();
    signaller.signal();
    assert_eq!(event.count(), 1);
    batch.commit().unwrap();
    assert_eq!(event.read(), 9);
    event.write(FULL - 1).unwrap();
    signaller.signal();
    batch.write(index, 1).unwrap();
    assert_eq!(batch.commit().unwrap_err().events(), 1);
    signaller.signal();
    assert!(event.readiness().is_error());
    assert_eq!(event.read(), u64::MAX);
    batch.commit().unwrap();
    assert_eq!(event.read(), 1);
}

/// A batch with signallers delivers the same as other batches: single signals, several, and writes, to all kinds of
/// waiters.
#[test]
fn of_a_batch() {
    let lanes = have_lanes();
    let events = [Mode::Counter, Mode::Semaphore].map(event);
    nothing_is_lost_of_a_batch(&events);
    let mut batch = Batch::with_signallers();
    let [first, second] = events.each_ref().map(|event| batch.add(Arc::clone(event)));
    batch.signal(first);
    batch.signal_n(second, 3);
    batch.write(first, 5).unwrap();
    batch.commit().unwrap();
    assert_eq!((events[0].read(), events[1].count()), (6, 3));
    (0..3).for_each(|_| assert_eq!(events[1].try_read(), Some(1)));
    // A signal that also stands for a write is not made by a lane, whose steps are 1.
    batch.write(first, 1).unwrap();
    batch.commit().unwrap();
    assert_eq!(events[0].read(), 1);
    let removed = batch.remove(first).unwrap();
    drop(batch);
    assert_eq!(is_split(&removed.event), lanes);
    assert!(!is_split(&Arc::new(Event::new(0)).into()));
}

fn nothing_is_lost_of_a_batch(events: &[Arc<Event>]) {
    const COMMITS: u64 = 5_000;
    let shown = events.to_vec();
    let _watchdog = Watchdog::new(Duration::from_secs(60), move || format!("{shown:?}"));
    thread::scope(|scope| {
        for event in events {
            scope.spawn(|| assert_eq!(read_until(event, COMMITS), COMMITS));
        }
        scope.spawn(|| {
            let mut rng = Rng::with_seed(1);
            let mut batch = Batch::with_signallers();
            for _ in 0..COMMITS {
                for event in events {
                    let index = batch.add(Arc::clone(event));
                    batch.signal(index);
                }
                batch.commit().unwrap();
                (0..rng.u32(..1_000)).for_each(|_| std::hint::spin_loop());
            }
        });
    });
}

/// The limits are those of any event, and signals beyond them are absorbed.
#[test]
fn at_the_limits() {
    for mode in [Mode::Counter, Mode::Semaphore] {
        let event = event(mode);
        let signallers = [(); 3].map(|()| Signaller::new(Arc::clone(&event)));
        event.write(FULL - 1).unwrap();
        signallers[0].signal();
        assert_eq!(event.count(), FULL);
        assert_eq!(event.try_write(1), Err(WriteError::WouldBlock));
        assert_eq!(event.try_write(0), Ok(()));
        signallers.iter().for_each(Signaller::signal);
        signallers[1].signal_n(u64::MAX);
        assert_eq!(event.count(), u64::MAX);
        assert_eq!(event.try_write(0), Err(WriteError::WouldBlock));
        let (value, rest) = match mode {
            Mode::Counter => (u64::MAX, 0),
            Mode::Semaphore => (1, FULL),
        };
        assert_eq!((event.try_read(), event.count()), (Some(value), rest));
        signallers[2].signal();
        assert_eq!(event.count(), rest + 1);
    }
}

/// The number of lanes is limited, and each lane is free again when its signaller has gone.
#[test]
fn who_has_a_lane() {
    let lanes = have_lanes();
    let event = event(Mode::Counter);
    let mut signallers: Vec<_> = (0..64).map(|_| Signaller::new(&event)).collect();
    assert!(
        signallers
            .iter()
            .all(|signaller| signaller.has_lane() == lanes)
    );
    let late = Signaller::new(&event);
    assert!(!late.has_lane());
    late.signal();
    signallers.iter().for_each(Signaller::signal);
    signallers.remove(7);
    let next = Signaller::new(&event);
    assert_eq!(next.has_lane(), lanes);
    next.signal();
    // A forgotten signaller keeps its lane.
    std::mem::forget(signallers.remove(9));
    assert!(!Signaller::new(&event).has_lane());
    drop(signallers);
    assert_eq!(event.read(), 66);
    assert!(format!("{next:?}").contains(&format!("has_lane: {lanes}")));
}

/// A count that has ever overflowed is not split: its word says that it has, and must not say anything else.
#[test]
fn not_after_an_overflow() {
    let lanes = have_lanes();
    let overflown = Event::new(0);
    overflown.signal_n(u64::MAX);
    assert_eq!(overflown.read(), u64::MAX);
    for event in [overflown, Event::new(u64::MAX)].map(Arc::new) {
        let before = event.count();
        let signaller = Signaller::new(&event);
        assert!(!signaller.has_lane());
        assert_eq!(event.count(), before);
        event.try_read();
        signaller.signal();
        assert_eq!(event.try_read(), Some(1));
    }
    let event = Arc::new(Event::new(FULL));
    assert_eq!(Signaller::new(&event).has_lane(), lanes);
    assert_eq!(event.try_read(), Some(FULL));
}

/// A signaller moves to another thread, with what it has signalled, and may outlive that thread.
#[test]
fn on_another_thread() {
    let event = event(Mode::Counter);
    let signaller = Signaller::new(Arc::clone(&event));
    signaller.signal();
    let signaller = thread::spawn(move || {
        signaller.signal();
        signaller
    })
    .join()
    .unwrap();
    signaller.signal();
    assert_eq!(signaller.event().read(), 3);
    signaller.signal_n(5);
    signaller.signal_n(1);
    signaller.signal_n(0);
    assert_eq!(signaller.event().read(), 6);
}

/// A child has a copy of the event and of the signaller, and its own registration for barriers.
#[test]
fn in_a_child() {
    let event = event(Mode::Counter);
    let signaller = Signaller::new(Arc::clone(&event));
    signaller.signal();
    // SAFETY: the child never leaves this block.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a plain system call.
        unsafe { libc::alarm(20) };
        signaller.signal();
        let right = event.try_read() == Some(2);
        // The reader announces itself, hears the signallers, and sleeps.
        let slept = event.read_timeout(Duration::from_millis(1)).is_none();
        signaller.signal();
        let right = right && slept && event.try_read() == Some(1);
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    let mut status = 0;
    // SAFETY: the status is there during the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child");
    assert_eq!(event.read(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// A table whose reader has signallers gives the same results as a list that is scanned.
    #[test]
    fn scripts_of_a_table(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        have_lanes();
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).expect("any bytes are a script");
        script.compare();
    }
}

const A: u64 = 0xe000_3000;

/// Whether an event has been split, which only signallers with a lane do. A split event gives out lanes even after the
/// overflow state.
fn is_split(event: &EventHandle) -> bool {
    event.signal_n(u64::MAX);
    event.try_read();
    Signaller::new(event).has_lane()
}

/// A reader rings its doorbells by lanes, up to the given number, whatever they keep in addition to the count.
#[test]
fn doorbells_of_a_reader() {
    let lanes = have_lanes();
    let table = Table::new();
    let events = [(); 3].map(|()| event(Mode::Counter));
    let latest = Arc::new(Latest::new(&events[1], 0));
    let queue = Arc::new(ValueQueue::new(&events[2], 4));
    table.assign(Key::mmio(A, 4), &events[0]).unwrap().keep();
    table.assign(Key::mmio(A + 4, 4), &latest).unwrap().keep();
    table.assign(Key::mmio(A + 8, 4), &queue).unwrap().keep();
    let reader = table.reader().with_signallers(3);
    for value in 1..=3_u32 {
        for offset in [0, 4, 8] {
            assert!(reader.write(Bus::Mmio, A + offset, &value.to_ne_bytes()));
        }
    }
    assert_eq!((latest.value(), queue.len()), (3, 3));
    for event in &events {
        assert_eq!(event.read(), 3);
        assert_eq!(is_split(&event.into()), lanes);
    }
}

/// Events beyond the number of a reader's signallers are rung the usual way, and so are the events of a reader without
/// signallers.
#[test]
fn more_doorbells_than_signallers() {
    let lanes = have_lanes();
    let table = Table::new();
    let events = [(); 100].map(|()| event(Mode::Counter));
    for (event, address) in events.iter().zip((A..).step_by(4)) {
        table.assign(Key::mmio(address, 4), event).unwrap().keep();
    }
    let ring = |reader: &doorbell::ioeventfd::Reader| {
        for address in (A..).step_by(4).take(events.len()) {
            assert!(reader.write(Bus::Mmio, address, &[0; 4]));
        }
    };
    ring(&table.reader());
    ring(&table.reader().with_signallers(0));
    let few = table.reader().with_signallers(8);
    (0..3).for_each(|_| ring(&few));
    let split = events
        .iter()
        .filter(|event| {
            assert_eq!(event.read(), 5);
            is_split(&(*event).into())
        })
        .count();
    // The reader has as many signallers as places, of which there are twice as many.
    assert!(
        if lanes {
            (8..=16).contains(&split)
        } else {
            split == 0
        },
        "{split}"
    );
}

/// A reader with signallers without a limit gets as many as there are doorbells.
#[test]
fn signallers_without_a_limit() {
    let lanes = have_lanes();
    let table = Table::new();
    let events = [(); 100].map(|()| event(Mode::Counter));
    let reader = table.reader().with_signallers(usize::MAX);
    for (event, address) in events.iter().zip((A..).step_by(4)) {
        table.assign(Key::mmio(address, 4), event).unwrap().keep();
        assert!(reader.write(Bus::Mmio, address, &[0; 4]));
        assert_eq!(event.read(), 1);
        assert_eq!(is_split(&event.into()), lanes);
    }
}

/// An event that has left the table is freed, though a reader has rung it; and another event at the same address is not
/// mistaken for it.
#[test]
fn events_that_come_and_go() {
    have_lanes();
    let table = Table::new();
    let reader = table.reader().with_signallers(2);
    for round in 0..1_000 {
        let event = event(Mode::Counter);
        let registration = table.assign(Key::mmio(A, 4), &event).unwrap();
        for _ in 0..3 {
            assert!(reader.write(Bus::Mmio, A, &[0; 4]));
        }
        drop(registration);
        assert_eq!(Arc::strong_count(&event), 1);
        assert_eq!(event.try_read(), Some(3), "in round {round}");
    }
}

/// An observer that is called by a reader's signal may use the same reader.
#[test]
fn a_reader_used_in_an_observer() {
    thread_local! {
        static READER: std::cell::OnceCell<doorbell::ioeventfd::Reader> =
            const { std::cell::OnceCell::new() };
    }
    have_lanes();
    let table = Table::new();
    let [first, second] = [(); 2].map(|()| event(Mode::Counter));
    table.assign(Key::mmio(A, 4), &first).unwrap().keep();
    table.assign(Key::mmio(A + 4, 4), &second).unwrap().keep();
    let ring = |address| {
        READER.with(|reader| {
            let reader = reader.get().expect("it was made by this thread");
            assert!(reader.write(Bus::Mmio, address, &[0; 4]));
        });
    };
    READER.with(|reader| {
        assert!(reader.set(table.reader().with_signallers(2)).is_ok());
    });
    let observer = move |_: Change| ring(A + 4);
    let _observation = Observation::new(Arc::clone(&first), Interest::Signals, Arc::new(observer));
    (0..3).for_each(|_| ring(A));
    assert_eq!((first.read(), second.read()), (3, 3));
}
