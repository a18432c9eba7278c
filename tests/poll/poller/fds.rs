//! Real file descriptors in the same wait as events.

use crate::NOTHING;
use crate::common::caller::call_at;
use crate::common::counter::Place;
use crate::common::watchdog;
use crate::set::errno;
use doorbell::poll::{Events, PollError, Poller, Watch};
use doorbell::{Event, Spin};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

fn keys(poller: &Poller, room: usize, timeout: Option<Duration>) -> Vec<usize> {
    let mut events = Events::with_capacity(room);
    poller.wait(&mut events, timeout).unwrap();
    events.iter().map(|ready| ready.key()).collect()
}

/// A poller that watches an event under key 1 and one end of a pair of sockets under key 2; and the other end.
fn mixed(watch: Watch) -> (Arc<Poller>, Arc<Event>, UnixStream, UnixStream) {
    let poller = Arc::new(Poller::with_spin(Spin::Never));
    let event = Arc::new(Event::new(0));
    let (near, far) = UnixStream::pair().unwrap();
    poller.add(&event, 1, watch).unwrap();
    poller.add_fd(&near, 2, watch).unwrap();
    (poller, event, near, far)
}

#[test]
fn both_kinds_are_reported() {
    let (poller, event, mut near, mut far) = mixed(Watch::READABLE);
    assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
    far.write_all(b"x").unwrap();
    assert_eq!(keys(&poller, 4, AT_ONCE), [2]);
    // If both are ready, a busy poller may leave the descriptor for a later wait, but not for ever.
    event.signal();
    let mut seen = Vec::new();
    while !seen.contains(&2) {
        seen.extend(keys(&poller, 4, AT_ONCE));
        assert!(seen.contains(&1));
        assert!(seen.len() <= 100);
    }
    event.read();
    near.read_exact(&mut [0]).unwrap();
    assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
}

#[test]
fn neither_kind_starves_the_other() {
    let (poller, event, _near, mut far) = mixed(Watch::READABLE);
    far.write_all(b"x").unwrap();
    event.signal();
    // Both are ready all the time, and there is room for one of them.
    let mut seen = [0; 3];
    for _ in 0..1_000 {
        for key in keys(&poller, 1, AT_ONCE) {
            seen[key] += 1;
        }
    }
    assert!(seen[1] >= 10 && seen[2] >= 10, "{seen:?}");
}

#[test]
fn the_triggers_are_epolls() {
    for (watch, expected) in [
        (Watch::READABLE, [vec![2], vec![2], vec![2]]),
        (Watch::READABLE.edge(), [vec![2], vec![], vec![2]]),
        (Watch::READABLE.one_shot(), [vec![2], vec![], vec![]]),
    ] {
        let (poller, _event, _near, mut far) = mixed(watch);
        far.write_all(b"x").unwrap();
        let mut seen = vec![keys(&poller, 4, AT_ONCE), keys(&poller, 4, AT_ONCE)];
        far.write_all(b"x").unwrap();
        seen.push(keys(&poller, 4, AT_ONCE));
        assert_eq!(seen, expected, "{watch:?}");
        poller.modify(2, watch).unwrap();
        assert_eq!(keys(&poller, 4, AT_ONCE), [2], "{watch:?}");
        poller.modify(2, Watch::ERRORS).unwrap();
        assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING, "{watch:?}");
        poller.delete(2).unwrap();
        assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
    }
}

#[test]
fn what_is_reported() {
    let (poller, _event, _near, far) = mixed(Watch::BOTH);
    let look = || {
        let mut events = Events::with_capacity(4);
        poller.wait(&mut events, AT_ONCE).unwrap();
        let ready = events.iter().find(|ready| ready.key() == 2).unwrap();
        (ready.is_readable(), ready.is_writable(), ready.is_hang_up())
    };
    // The event would be ready too, and come first.
    poller.delete(1).unwrap();
    assert_eq!(look(), (false, true, false));
    drop(far);
    assert_eq!(look(), (true, true, true));
}

/// A thread in `wait`, asleep in epoll.
fn sleeper(
    poller: &Arc<Poller>,
    timeout: Option<Duration>,
) -> crate::common::caller::Caller<Vec<usize>> {
    let poller = Arc::clone(poller);
    let caller = call_at(Place::Descriptor(0), move || keys(&poller, 4, timeout));
    caller.wait_asleep();
    caller
}

#[test]
fn a_sleeper_is_woken_by_either() {
    watchdog::limit("a_sleeper_is_woken_by_either", || {
        for watch in [Watch::READABLE, Watch::READABLE.edge()] {
            let (poller, event, _near, mut far) = mixed(watch);
            let waiting = sleeper(&poller, None);
            event.signal();
            assert_eq!(waiting.finish(), [1]);
            event.read();
            let waiting = sleeper(&poller, Some(Duration::MAX));
            far.write_all(b"x").unwrap();
            assert_eq!(waiting.finish(), [2]);
        }
    });
}

/// The first descriptor is added while threads are asleep, which had no reason yet to sleep in epoll.
#[test]
fn sleepers_learn_of_the_first_descriptor() {
    watchdog::limit("sleepers_learn_of_the_first_descriptor", || {
        for bound in [false, true] {
            let (poller, event) = (
                Arc::new(Poller::with_spin(Spin::Never)),
                Arc::new(Event::new(0)),
            );
            poller.add(&event, 1, Watch::READABLE).unwrap();
            let sleepers = [(); 2].map(|()| {
                let poller = Arc::clone(&poller);
                call_at(Place::Futex, move || keys(&poller, 4, None))
            });
            sleepers.iter().for_each(|sleeper| sleeper.wait_asleep());
            let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            match bound {
                false => poller.add_fd(&fd, 2, Watch::READABLE).unwrap(),
                true => poller.bind(&fd, &event, 2).unwrap(),
            }
            rustix::io::write(&fd, &1_u64.to_ne_bytes()).unwrap();
            for sleeper in sleepers {
                assert_eq!(sleeper.finish(), [if bound { 1 } else { 2 }]);
            }
        }
    });
}

#[test]
fn a_timer_ends_a_wait() {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).unwrap();
    let zero = Timespec::default();
    let soon = Timespec::try_from(Duration::from_millis(10)).unwrap();
    let once = Itimerspec {
        it_interval: zero,
        it_value: soon,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once).unwrap();
    let poller = Poller::new();
    poller.add_fd(&timer, 9, Watch::READABLE).unwrap();
    assert_eq!(keys(&poller, 1, None), [9]);
}

#[test]
fn a_timeout_in_epoll() {
    let (poller, ..) = mixed(Watch::READABLE);
    for timeout in [Duration::from_millis(20), Duration::from_micros(1)] {
        let start = Instant::now();
        assert_eq!(keys(&poller, 4, Some(timeout)), NOTHING);
        assert!(start.elapsed() >= timeout);
    }
}

/// The thread also sees descriptors that are added while it spins.
#[test]
fn a_spinning_thread_sees_descriptors() {
    watchdog::limit("a_spinning_thread_sees_descriptors", || {
        for before in [true, false] {
            let poller = Arc::new(Poller::with_spin(Spin::Always));
            let (near, mut far) = UnixStream::pair().unwrap();
            let add = || poller.add_fd(&near, 2, Watch::READABLE).unwrap();
            if before {
                add();
            }
            let waiting = std::thread::spawn({
                let poller = Arc::clone(&poller);
                move || keys(&poller, 1, None)
            });
            std::thread::sleep(Duration::from_millis(5));
            if !before {
                add();
            }
            far.write_all(b"x").unwrap();
            assert_eq!(waiting.join().unwrap(), [2]);
        }
    });
}

/// The poller that a signal handler notifies.
static NOTIFIED: AtomicPtr<Poller> = AtomicPtr::new(std::ptr::null_mut());

#[test]
fn a_signal_handler_may_notify() {
    extern "C" fn handler(_: libc::c_int) {
        // SAFETY: the pointer is to a poller that is never dropped.
        unsafe { &*NOTIFIED.load(Ordering::Acquire) }.notify();
    }
    static POLLER: LazyLock<Arc<Poller>> =
        LazyLock::new(|| Arc::new(Poller::with_spin(Spin::Never)));
    NOTIFIED.store(Arc::as_ptr(&POLLER).cast_mut(), Ordering::Release);
    // SAFETY: `notify` takes no lock, and nothing else uses the signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let on_futex = call_at(Place::Futex, || keys(&POLLER, 1, None));
    on_futex.wait_asleep();
    on_futex.interrupt(libc::SIGUSR1);
    assert_eq!(on_futex.finish(), NOTHING);
    let quiet = eventfd(0, EventfdFlags::empty()).unwrap();
    POLLER.add_fd(&quiet, 1, Watch::READABLE).unwrap();
    let in_epoll = sleeper(&POLLER, None);
    in_epoll.interrupt(libc::SIGUSR1);
    assert_eq!(in_epoll.finish(), NOTHING);
}

/// Several threads sleep in epoll; each signal is for one of them, and each level for all.
#[test]
fn threads_asleep_in_epoll() {
    watchdog::limit("threads_asleep_in_epoll", || {
        let (poller, event, ..) = mixed(Watch::READABLE.edge());
        let mut sleepers: Vec<_> = (0..4).map(|_| sleeper(&poller, None)).collect();
        while !sleepers.is_empty() {
            event.signal();
            let gone = loop {
                if let Some(index) = sleepers.iter().position(|s| s.has_returned()) {
                    break sleepers.swap_remove(index);
                }
            };
            assert_eq!(gone.finish(), [1]);
            sleepers.iter().for_each(|sleeper| sleeper.wait_asleep());
        }
        poller.modify(1, Watch::READABLE).unwrap();
        for sleeper in [(); 4].map(|()| {
            let poller = Arc::clone(&poller);
            call_at(Place::Futex, move || keys(&poller, 4, None))
        }) {
            assert_eq!(sleeper.finish(), [1]);
        }
    });
}

// Bad input

/// A number that is not open, and stays so while the test runs, since no test opens so many descriptors.
pub fn not_open() -> BorrowedFd<'static> {
    // SAFETY: the number is not open, which is what the test is about; it is only passed to calls.
    unsafe { BorrowedFd::borrow_raw(900_000) }
}

#[test]
fn descriptors_that_epoll_does_not_take() {
    let (poller, event, near, _far) = mixed(Watch::READABLE);
    let file = File::open("/proc/self/exe").unwrap();
    let refused = [
        (
            poller.add_fd(&near, 2, Watch::READABLE),
            PollError::KeyExists,
            Errno::EXIST,
        ),
        (
            poller.add_fd(&near, 3, Watch::READABLE),
            PollError::FdExists,
            Errno::EXIST,
        ),
        (
            poller.add_fd(not_open(), 3, Watch::READABLE),
            PollError::BadFd,
            Errno::BADF,
        ),
        (
            poller.add_fd(&file, 3, Watch::READABLE),
            PollError::NotPollable,
            Errno::PERM,
        ),
        (
            poller.add(&event, 2, Watch::READABLE),
            PollError::KeyExists,
            Errno::EXIST,
        ),
    ];
    for (result, error, number) in refused {
        assert_eq!(result, Err(error));
        assert_eq!(errno(error), number);
    }
    // None of these calls has used the key up or harmed other registrations.
    poller
        .add_fd(near.try_clone().unwrap(), 3, Watch::READABLE)
        .unwrap();
    event.signal();
    assert_eq!(keys(&poller, 4, AT_ONCE), [1]);
    for key in [1, 2, 3] {
        poller.delete(key).unwrap();
        assert_eq!(poller.delete(key), Err(PollError::NoEntry));
        assert_eq!(poller.modify(key, Watch::BOTH), Err(PollError::NoEntry));
    }
}

/// A descriptor is closed without a delete, and its number is given to another one.
#[test]
fn a_number_that_is_given_again() {
    // The number is so high that it is given only to code that asks for it.
    let high = |fd: &dyn AsFd| rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 700).unwrap();
    let poller = Poller::new();
    let first = high(&eventfd(0, EventfdFlags::empty()).unwrap());
    let number = first.as_raw_fd();
    poller.add_fd(&first, 2, Watch::READABLE).unwrap();
    drop(first);
    assert_eq!(poller.modify(2, Watch::BOTH), Err(PollError::NoEntry));
    let second: OwnedFd = high(&eventfd(1, EventfdFlags::empty()).unwrap());
    assert_eq!(second.as_raw_fd(), number);
    poller.add_fd(&second, 3, Watch::READABLE).unwrap();
    // The old key does not stand for the new descriptor.
    assert_eq!(poller.modify(2, Watch::ERRORS), Err(PollError::NoEntry));
    poller.delete(2).unwrap();
    assert_eq!(keys(&poller, 4, AT_ONCE), [3]);
    poller.delete(3).unwrap();
    assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
}

/// A descriptor is closed here without a delete, and stays open at the peer: it reports nothing, even under a key that
/// is used again.
#[test]
fn what_the_kernel_still_knows_is_not_reported() {
    // The number is so high that it is given only to code that asks for it.
    let high = |fd: &dyn AsFd| rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 800).unwrap();
    let [first, second, third] = [(); 3].map(|()| eventfd(0, EventfdFlags::empty()).unwrap());
    let poller = Poller::new();
    let ours = high(&first);
    let number = ours.as_raw_fd();
    poller.add_fd(&ours, 1, Watch::READABLE).unwrap();
    drop(ours);
    let ours = high(&second);
    assert_eq!(ours.as_raw_fd(), number);
    poller.add_fd(&ours, 2, Watch::READABLE).unwrap();
    poller.delete(1).unwrap();
    poller.add_fd(&third, 1, Watch::READABLE).unwrap();
    rustix::io::write(&first, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(keys(&poller, 4, AT_ONCE), NOTHING);
}

/// Other code has put another descriptor in place of the poller's own. Each wait that needs the descriptor fails.
#[test]
fn an_epoll_that_is_gone() {
    watchdog::limit("an_epoll_that_is_gone", || {
        let poller = Poller::with_spin(Spin::Never);
        let quiet = eventfd(0, EventfdFlags::empty()).unwrap();
        let quiet = rustix::io::fcntl_dupfd_cloexec(&quiet, 900).unwrap();
        poller.add_fd(&quiet, 1, Watch::READABLE).unwrap();
        // This finds the epoll that watches this number.
        let watches = |info: &str| {
            info.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some("tfd:") && words.next() == Some(&quiet.as_raw_fd().to_string())
            })
        };
        let epoll = std::fs::read_dir("/proc/self/fdinfo")
            .unwrap()
            .find_map(|entry| {
                let path = entry.unwrap().path();
                // Other tests may close theirs meanwhile.
                let info = std::fs::read_to_string(&path).unwrap_or_default();
                watches(&info).then(|| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
            });
        let epoll: i32 = epoll.expect("the poller's epoll");
        // SAFETY: both descriptors are open, and the second is the poller's.
        assert_eq!(unsafe { libc::dup2(quiet.as_raw_fd(), epoll) }, epoll);
        let invalid = Err(PollError::Os(libc::EINVAL));
        let mut events = Events::with_capacity(4);
        assert_eq!(poller.wait(&mut events, AT_ONCE), invalid);
        assert_eq!(poller.wait(&mut events, None), invalid);
        // A wait that finds something needs the descriptor only now and then. Nothing is lost.
        let event = Arc::new(Event::new(1));
        poller.add(&event, 2, Watch::READABLE).unwrap();
        let results: Vec<_> = (0..32).map(|_| poller.wait(&mut events, None)).collect();
        assert_eq!(
            results.iter().filter(|result| **result == invalid).count(),
            1
        );
        assert_eq!(
            results.iter().filter(|result| **result == Ok(1)).count(),
            31
        );
    });
}

/// The drop of a poller ends its registrations, whether their descriptors are closed before it or after it.
#[test]
fn dropped_with_descriptors_in_any_order() {
    for closed_first in [true, false] {
        let (poller, event, near, mut far) = mixed(Watch::READABLE);
        let duplicate = near.try_clone().unwrap();
        event.signal();
        far.write_all(&[0]).unwrap();
        if closed_first {
            drop(near);
            drop(poller);
        } else {
            drop(poller);
            drop(near);
        }
        let poller = Poller::new();
        poller.add_fd(&duplicate, 7, Watch::READABLE).unwrap();
        poller.add(&event, 8, Watch::READABLE).unwrap();
        let mut found = keys(&poller, 4, None);
        found.extend(keys(&poller, 4, Some(Duration::ZERO)));
        found.sort_unstable();
        found.dedup();
        assert!(found.iter().all(|key| [7, 8].contains(key)), "{found:?}");
        assert_eq!(event.try_read(), Some(1));
        assert_eq!(keys(&poller, 4, None), [7]);
    }
}
