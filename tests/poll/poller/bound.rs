//! Kernel eventfds bound to events.

use crate::NOTHING;
use crate::calls::is_held_by_fewer_than;
use crate::common::caller::{Caller, call_at, wait_until};
use crate::common::counter::Place;
use crate::common::watchdog::{self, Watchdog};
use crate::fds::not_open;
use crate::limits::on_signal;
use crate::set::errno;
use doorbell::event::{Change, Interest, Observation};
use doorbell::poll::{Events, PollError, Poller, Watch};
use doorbell::{Event, Spin};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

const FULL: u64 = u64::MAX - 1;

fn write(fd: &OwnedFd, n: u64) {
    assert_eq!(rustix::io::write(fd, &n.to_ne_bytes()), Ok(8));
}

/// Reads the count. This blocks if the count is 0, unless the descriptor is non-blocking.
fn read(fd: &OwnedFd) -> Result<u64, Errno> {
    let mut value = [0; 8];
    rustix::io::read(fd, &mut value).map(|_| u64::from_ne_bytes(value))
}

/// An event with an eventfd bound to it under key 1, in a poller that also watches the event under key 2.
fn bound(flags: EventfdFlags, initial: u64) -> (Poller, Arc<Event>, OwnedFd) {
    let poller = Poller::new();
    let event = Arc::new(Event::new(initial));
    let fd = eventfd(0, flags).unwrap();
    poller.bind(&fd, &event, 1).unwrap();
    poller.add(&event, 2, Watch::READABLE).unwrap();
    (poller, event, fd)
}

/// What a look reports.
fn look(poller: &Poller) -> Vec<usize> {
    let mut events = Events::with_capacity(4);
    poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
    events.iter().map(|ready| ready.key()).collect()
}

/// Looks so often that the eventfd has been looked at, though the event is ready all the time.
fn carry(poller: &Poller) {
    (0..40).for_each(|_| _ = look(poller));
}

#[test]
fn a_count_is_carried_over() {
    for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
        let (poller, event, fd) = bound(flags, 0);
        assert_eq!(look(&poller), NOTHING);
        write(&fd, 5);
        assert_eq!(event.count(), 0);
        assert_eq!(look(&poller), [2]);
        assert_eq!(event.read(), 5);
        assert_eq!(look(&poller), NOTHING);
        // The count from before is carried over, too.
        write(&fd, 3);
        poller.delete(1).unwrap();
        poller.bind(&fd, &event, 1).unwrap();
        assert_eq!(look(&poller), [2]);
        assert_eq!(event.read(), 3);
        // Other handles of the eventfd see its flags unchanged.
        let nonblocking = fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK);
        assert_eq!(nonblocking, flags.contains(EventfdFlags::NONBLOCK));
    }
}

/// An event that is ready already is reported once in a wait that also carries over.
#[test]
fn one_report_beside_a_binding() {
    let poller = Poller::with_spin(Spin::Never);
    let [event, ready] = [0, 1].map(|initial| Arc::new(Event::new(initial)));
    let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    poller.bind(&fd, &event, 1).unwrap();
    poller.add(&ready, 2, Watch::READABLE).unwrap();
    write(&fd, 1);
    for _ in 0..40 {
        assert_eq!(look(&poller), [2]);
    }
    assert_eq!(event.count(), 1);
}

#[test]
fn a_semaphore_is_emptied() {
    let (poller, event, fd) = bound(EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK, 0);
    write(&fd, 1_000);
    let mut looks = 0;
    while event.count() < 1_000 {
        look(&poller);
        looks += 1;
        assert!(looks < 100, "{event:?}");
    }
    assert_eq!(read(&fd), Err(Errno::AGAIN));
    look(&poller);
    assert_eq!(event.count(), 1_000);
}

#[test]
fn what_does_not_fit_waits() {
    let (poller, event, fd) = bound(EventfdFlags::NONBLOCK, FULL - 3);
    write(&fd, 10);
    carry(&poller);
    assert_eq!(event.count(), FULL);
    // The eventfd is not even looked at while some of its count is left over.
    write(&fd, 100);
    carry(&poller);
    assert_eq!(event.count(), FULL);
    assert_eq!(event.read(), FULL);
    carry(&poller);
    assert_eq!(event.read(), 107);
    assert_eq!(read(&fd), Err(Errno::AGAIN));
}

/// There is nothing to do for a binding whose event is full: a thread in `wait` sleeps until the event is read.
#[test]
fn a_thread_sleeps_while_the_event_is_full() {
    watchdog::limit("a_thread_sleeps_while_the_event_is_full", || {
        let poller = Arc::new(Poller::with_spin(Spin::Never));
        let event = Arc::new(Event::new(FULL));
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        poller.bind(&fd, &event, 1).unwrap();
        write(&fd, 7);
        let waiter = call_at(Place::Descriptor(0), {
            let poller = Arc::clone(&poller);
            move || poller.wait(&mut Events::with_capacity(1), None)
        });
        waiter.wait_asleep();
        thread::sleep(Duration::from_millis(20));
        waiter.assert_undisturbed();
        assert_eq!(event.read(), FULL);
        wait_until("the rest to be carried over", || event.count() == 7);
        poller.notify();
        assert_eq!(waiter.finish(), Ok(0));
    });
}

#[test]
fn nothing_goes_into_an_overflow() {
    let (poller, event, fd) = bound(EventfdFlags::NONBLOCK, u64::MAX);
    write(&fd, FULL);
    carry(&poller);
    assert_eq!(event.read(), u64::MAX);
    carry(&poller);
    assert_eq!(event.read(), FULL);
}

#[test]
fn a_binding_that_ends() {
    let (poller, event, fd) = bound(EventfdFlags::NONBLOCK, 0);
    write(&fd, 5);
    poller.delete(1).unwrap();
    assert_eq!(look(&poller), NOTHING);
    assert_eq!(event.count(), 0);
    assert_eq!(read(&fd), Ok(5));

    // What was read already and has no room is signalled.
    let (poller, event, fd) = bound(EventfdFlags::NONBLOCK, FULL - 1);
    write(&fd, 2);
    carry(&poller);
    assert_eq!(event.count(), FULL);
    poller.delete(1).unwrap();
    assert!(event.readiness().is_error());
    drop(poller);

    // Only as much as there is room for is carried over.
    let (poller, event, fd) = bound(EventfdFlags::NONBLOCK, FULL - 1);
    write(&fd, 2);
    carry(&poller);
    assert_eq!(event.read(), FULL);
    drop(poller);
    assert_eq!(event.count(), 1);
    is_held_by_fewer_than(2, &event);
}

/// The thread that carries runs the event's observers. What it carries arrives exactly once, even if an observer
/// panics.
#[test]
fn an_observer_that_panics() {
    let (poller, event, fd) = bound(EventfdFlags::NONBLOCK, 0);
    let other = Arc::new(Event::new(0));
    let other_fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    poller.bind(&other_fd, &other, 3).unwrap();
    let panics = Observation::new(
        Arc::clone(&event),
        Interest::Signals,
        Arc::new(|_: Change| panic!("as expected")),
    );
    write(&fd, 5);
    write(&other_fd, 7);
    let mut panicked = 0;
    for _ in 0..40 {
        panicked += u32::from(panic::catch_unwind(AssertUnwindSafe(|| look(&poller))).is_err());
    }
    assert_eq!(panicked, 1);
    assert_eq!((event.count(), other.count()), (5, 7));
    drop(panics);
    write(&fd, 1);
    carry(&poller);
    assert_eq!(event.count(), 6);
}

/// Two threads sleep in wait; the one that carries panics, and the other thread is woken by the next count.
#[test]
fn an_observer_that_panics_beside_a_sleeper() {
    watchdog::limit("an_observer_that_panics_beside_a_sleeper", || {
        let poller = Arc::new(Poller::with_spin(Spin::Never));
        let (event, other) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        poller.bind(&fd, &event, 1).unwrap();
        poller.add(&other, 2, Watch::READABLE).unwrap();
        let _panics = Observation::new(
            Arc::clone(&event),
            Interest::Signals,
            Arc::new(|_: Change| panic!("as expected")),
        );
        let mut sleepers = Vec::from([(); 2].map(|()| {
            let poller = Arc::clone(&poller);
            call_at(Place::Descriptor(0), move || {
                let mut events = Events::with_capacity(4);
                let wait = || poller.wait(&mut events, None);
                panic::catch_unwind(AssertUnwindSafe(wait)).is_err()
            })
        }));
        sleepers.iter().for_each(Caller::wait_asleep);
        write(&fd, 1);
        wait_until("one thread to panic", || {
            sleepers.iter().any(Caller::has_returned)
        });
        let first = sleepers.iter().position(Caller::has_returned).unwrap();
        assert!(sleepers.remove(first).finish());
        sleepers[0].wait_asleep();
        other.signal();
        assert!(!sleepers.remove(0).finish());
        assert!(format!("{poller:?}").contains("waiting: 0"), "{poller:?}");
    });
}

/// Two bindings have something to carry, and the observer of each waits for the other binding. Whichever thread finds
/// both, and wherever it does, another thread carries for one of them.
#[test]
fn an_observer_that_takes_its_time_holds_up_no_other_binding() {
    const ROUNDS: u32 = 300;
    const NAME: &str = "an_observer_that_takes_its_time_holds_up_no_other_binding";
    let _watchdog = Watchdog::new(Duration::from_secs(60), || NAME.to_owned());
    for by_room in [false, true] {
        let poller = Poller::with_spin(Spin::Never);
        let events = [(); 2].map(|()| Arc::new(Event::new(0)));
        let fds = [(); 2].map(|()| eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let carried: Arc<[AtomicU32; 2]> = Arc::default();
        let round = Arc::new(AtomicU32::new(0));
        let _observations = [0, 1].map(|index: usize| {
            poller.bind(&fds[index], &events[index], index).unwrap();
            let (carried, round) = (Arc::clone(&carried), Arc::clone(&round));
            let meets_the_other = move |_: Change| {
                let now = round.load(Ordering::Relaxed);
                if now != 0 {
                    carried[index].store(now, Ordering::Relaxed);
                    wait_until("the other binding", || {
                        carried[1 - index].load(Ordering::Relaxed) >= now
                    });
                }
            };
            let event = Arc::clone(&events[index]);
            Observation::new(event, Interest::Signals, Arc::new(meets_the_other))
        });
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        poller.wait(&mut Events::with_capacity(4), None).unwrap();
                    }
                    poller.notify();
                });
            }
            for now in 1..=ROUNDS {
                if by_room {
                    // The counts in the eventfds cannot be carried before the events are read.
                    round.store(0, Ordering::Relaxed);
                    events.iter().for_each(|event| event.write(FULL).unwrap());
                    fds.iter().for_each(|fd| write(fd, 1));
                    carry(&poller);
                    round.store(now, Ordering::Relaxed);
                    events.iter().for_each(|event| _ = event.read());
                } else {
                    round.store(now, Ordering::Relaxed);
                    fds.iter().for_each(|fd| write(fd, 1));
                }
                // This thread finds the eventfds too, in one look of 32.
                while carried.iter().any(|it| it.load(Ordering::Relaxed) != now) {
                    look(&poller);
                }
                wait_until("the counts", || events.iter().all(|it| it.count() == 1));
                round.store(0, Ordering::Relaxed);
                events.iter().for_each(|event| _ = event.read());
            }
            done.store(true, Ordering::Relaxed);
            poller.notify();
        });
    }
}

#[test]
fn what_cannot_be_bound() {
    let (poller, event, fd) = bound(EventfdFlags::NONBLOCK, 0);
    let (socket, _other) = UnixStream::pair().unwrap();
    let other = eventfd(0, EventfdFlags::empty()).unwrap();
    assert_eq!(poller.bind(&socket, &event, 3), Err(PollError::NotEventfd));
    assert_eq!(errno(PollError::NotEventfd), Errno::INVAL);
    assert_eq!(poller.bind(&other, &event, 2), Err(PollError::KeyExists));
    assert_eq!(poller.bind(not_open(), &event, 3), Err(PollError::BadFd));
    assert_eq!(poller.modify(1, Watch::BOTH), Err(PollError::Bound));
    assert_eq!(errno(PollError::Bound), Errno::INVAL);
    poller.delete(1).unwrap();
    assert_eq!(poller.delete(1), Err(PollError::NoEntry));
    poller.bind(&fd, &event, 1).unwrap();
}

/// If the kernel cannot read an eventfd without waiting (Linux before 5.8), or a filter refuses that, nothing can be
/// bound.
#[cfg(any(
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "x86_64"
))]
#[test]
fn where_eventfds_cannot_be_read_at_once() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let unsupported = Errno::OPNOTSUPP.raw_os_error();
    // This needs a thread of its own, because a filter is for ever.
    let refused = thread::spawn(move || {
        let filter = SeccompFilter::new(
            [(libc::SYS_preadv2, Vec::new())].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(unsupported as u32),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program = BpfProgram::try_from(filter.unwrap()).unwrap();
        seccompiler::apply_filter(&program).unwrap();
        let (event, fd) = (
            Arc::new(Event::new(0)),
            eventfd(0, EventfdFlags::empty()).unwrap(),
        );
        Poller::new().bind(&fd, &event, 1)
    });
    assert_eq!(refused.join().unwrap(), Err(PollError::Os(unsupported)));
}

/// Writers at the eventfd, as KVM or another process; threads in `wait`; readers at the event. The event has little
/// room, so that much has to wait.
#[test]
fn nothing_is_lost_and_nothing_doubled() {
    const WRITES: u64 = 20_000;
    for (flags, initial) in [
        (EventfdFlags::empty(), 0),
        (EventfdFlags::empty(), FULL - 2),
        (EventfdFlags::SEMAPHORE, 0),
    ] {
        let poller = Poller::with_spin(Spin::Never);
        let event = Arc::new(Event::new(initial));
        let fd = eventfd(0, flags).unwrap();
        poller.bind(&fd, &event, 1).unwrap();
        let shown = Arc::clone(&event);
        let _watchdog = Watchdog::new(Duration::from_secs(50), move || {
            format!("nothing_is_lost, {flags:?} {initial}: {shown:?}")
        });
        let done = AtomicBool::new(false);
        let expected = u128::from(initial) + u128::from(2 * WRITES);
        thread::scope(|scope| {
            let waiters = [(); 2].map(|()| {
                scope.spawn(|| {
                    let mut events = Events::with_capacity(1);
                    while !done.load(Ordering::Relaxed) {
                        poller.wait(&mut events, None).unwrap();
                    }
                })
            });
            for _ in 0..2 {
                scope.spawn(|| (0..WRITES).for_each(|_| write(&fd, 1)));
            }
            let mut sum = 0;
            while sum < expected {
                sum += u128::from(event.read());
            }
            assert_eq!(sum, expected);
            done.store(true, Ordering::Relaxed);
            while !waiters.iter().all(|waiter| waiter.is_finished()) {
                poller.notify();
                thread::sleep(Duration::from_micros(100));
            }
        });
        assert_eq!(event.count(), 0);
    }
}

/// Bindings are made and ended while the eventfd is written to; each count is in the event or in the eventfd.
#[test]
fn bindings_come_and_go() {
    watchdog::limit("bindings_come_and_go", || {
        const WRITES: u64 = 20_000;
        let poller = Poller::new();
        let event = Arc::new(Event::new(0));
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let mut events = Events::with_capacity(1);
                while !done.load(Ordering::Relaxed) {
                    poller.wait(&mut events, None).unwrap();
                }
            });
            let writer = scope.spawn(|| (0..WRITES).for_each(|_| write(&fd, 1)));
            while !writer.is_finished() {
                poller.bind(&fd, &event, 1).unwrap();
                thread::sleep(Duration::from_micros(50));
                poller.delete(1).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            while !waiter.is_finished() {
                poller.notify();
                thread::sleep(Duration::from_micros(100));
            }
        });
        assert_eq!(event.count() + read(&fd).unwrap_or(0), WRITES);
    });
}

/// What was written before the deletion is in the event or still in the eventfd when the deletion returns, even if
/// another thread is carrying it over at the time.
#[test]
fn nothing_is_on_its_way_after_the_deletion() {
    watchdog::limit("nothing_is_on_its_way_after_the_deletion", || {
        const ROUNDS: u64 = 5_000;
        let poller = Poller::new();
        let event = Arc::new(Event::new(0));
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut events = Events::with_capacity(4);
                    while !done.load(Ordering::Relaxed) {
                        let some_time = Duration::from_millis(1);
                        poller.wait(&mut events, Some(some_time)).unwrap();
                    }
                });
            }
            for round in 1..=ROUNDS {
                poller.bind(&fd, &event, 1).unwrap();
                write(&fd, 1);
                if round % 2 == 0 {
                    // A thread is likely to be carrying.
                    thread::yield_now();
                }
                poller.delete(1).unwrap();
                let now = event.count() + read(&fd).unwrap_or(0);
                if now != round {
                    done.store(true, Ordering::Relaxed);
                }
                assert_eq!(now, round, "a count is on its way");
                event.try_read();
                event.signal_n(round);
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

/// What has been read and had no room is signalled when the poller is dropped. If an observer panics then, the other
/// events still get their counts.
#[test]
fn an_observer_that_panics_at_the_end() {
    for unwinding in [false, true] {
        let poller = Poller::with_spin(Spin::Never);
        let bindings = [1, 2, 3].map(|key| {
            let (event, fd) = (
                Arc::new(Event::new(FULL)),
                eventfd(0, EventfdFlags::empty()).unwrap(),
            );
            poller.bind(&fd, &event, key).unwrap();
            write(&fd, 5);
            (event, fd)
        });
        assert_eq!(look(&poller), NOTHING);
        let _observations = bindings
            .each_ref()
            .map(|(event, _)| on_signal(event, || panic!("on purpose")));
        let end = AssertUnwindSafe(|| {
            let _poller = poller;
            if unwinding {
                panic!("something else");
            }
        });
        let panic = panic::catch_unwind(end).unwrap_err();
        let says = *panic.downcast_ref::<&str>().unwrap();
        assert_eq!(
            says,
            if unwinding {
                "something else"
            } else {
                "on purpose"
            }
        );
        for (event, fd) in &bindings {
            assert_eq!(event.count(), u64::MAX);
            assert!(not_readable(fd));
        }
    }
}

fn not_readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() == 0
}
