//! `wait_any` beside poll(2) over real eventfds, and beside readers that block.
//!
//! Each body that both can run becomes a test of each, as in `conformance.rs`. The whole file runs twice more in
//! processes in which a seccomp filter refuses `futex_waitv(2)`, see `refused`.
//!
//! The cases of the poll reference (P1 to P45) that are about waiting without a set of interests:
//!
//! | case | test |
//! |---|---|
//! | P8 | `p08_…` |
//! | P10, P13, P14 | `p10_…`, `p13_…`, `p14_…` |
//! | P15 | `p15_…`: ours goes on |
//! | P38 | `p38_…` |
//! | P45 | `loom-tests/tests/wait_any.rs` |
//! | P7, P11, P39 | about writability, which `wait_any` does not wait for |

#![cfg(target_os = "linux")]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

use ::doorbell::poll::{wait_any, wait_any_deadline};
use ::doorbell::{Event, Mode, Spin};
use common::caller::{Caller, call, call_at, wait_until};
use common::counter::{Counter, EDGES, Place};
use common::kernel::{Handle, Kernel, can_signal};
use common::ours::{NeverSpin, Ours};
use common::signalled::Signalled;
use common::watchdog::{self, Watchdog};
use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

implementations! {
    p08_the_same_twice,
    p10_all_are_told,
    p13_what_came_and_went,
    p14_a_timeout_is_waited_for,
    p38_beside_a_reader,
    none_at_all,
    any_count_but_zero_is_ready,
    a_write_of_nothing_ends_no_wait,
    each_of_many,
    beside_a_reader_of_each,
    every_reader_gets_on,
}

/// Numbers of events around the numbers at which the way of waiting changes.
const SIZES: [usize; 6] = [1, 2, 64, 128, 129, 600];

/// Waiting for several counters.
trait Any: Counter + Sync {
    /// The indices of the counters that are ready; empty after a timeout.
    fn wait_any(counters: &[Self], timeout: Option<Duration>) -> Vec<usize>;
}

impl<const SPINS: bool> Any for Ours<SPINS> {
    fn wait_any(counters: &[Self], timeout: Option<Duration>) -> Vec<usize> {
        wait_any(counters, timeout).map_or(Vec::new(), |ready| ready.collect())
    }
}

impl Any for Signalled {
    fn wait_any(counters: &[Self], timeout: Option<Duration>) -> Vec<usize> {
        wait_any(counters, timeout).map_or(Vec::new(), |ready| ready.collect())
    }
}

impl<F: Handle + Sync> Any for Kernel<F> {
    fn wait_any(counters: &[Self], timeout: Option<Duration>) -> Vec<usize> {
        let mut fds: Vec<_> = counters
            .iter()
            .map(|counter| PollFd::new(counter, PollFlags::IN))
            .collect();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        poll(&mut fds, timeout.as_ref()).unwrap();
        let ready = |fd: &PollFd| fd.revents().contains(PollFlags::IN);
        let indices = fds.iter().enumerate().filter(|(_, fd)| ready(fd));
        indices.map(|(index, _)| index).collect()
    }
}

fn counters<C: Counter>(number: usize) -> Vec<C> {
    // The usual limit is 1024 descriptors, for all tests that run at the same time.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    (0..number).map(|_| C::new(0, Mode::Counter)).collect()
}

fn now<C: Any>(counters: &[C]) -> Vec<usize> {
    C::wait_any(counters, Some(Duration::ZERO))
}

/// A thread that waits for any of the counters, and sleeps.
fn asleep<C: Any>(counters: &[C]) -> Caller<Vec<usize>> {
    let counters = counters.to_vec();
    let waiter = call_at(Place::Several, move || C::wait_any(&counters, None));
    waiter.wait_asleep();
    waiter
}

/// A thread that reads, and sleeps.
fn reader<C: Counter>(counter: &C) -> Caller<Result<u64, Errno>> {
    let reader = call(counter, C::read);
    reader.wait_asleep();
    reader
}

fn p08_the_same_twice<C: Any>() {
    let counter = C::new(1, Mode::Counter);
    let twice = [counter.clone(), C::new(0, Mode::Counter), counter.clone()];
    assert_eq!(now(&twice), [0, 2]);
    counter.read().unwrap();
    let waiter = asleep(&twice);
    counter.signal();
    assert_eq!(waiter.finish().last(), Some(&2));
}

fn p10_all_are_told<C: Any>() {
    for number in SIZES {
        let counters = counters::<C>(number);
        let waiters = [(); 4].map(|()| asleep(&counters));
        counters[number - 1].write(1).unwrap();
        for waiter in waiters {
            assert_eq!(waiter.finish(), [number - 1]);
        }
    }
}

fn p13_what_came_and_went<C: Any>() {
    let counters = counters::<C>(3);
    let waiter = {
        let counters = counters.clone();
        call_at(Place::Several, move || C::wait_any(&counters, None))
    };
    waiter.wait_asleep();
    for _ in 0..1_000 {
        counters[1].write(1).unwrap();
        assert_eq!(counters[1].try_read(), Ok(1));
    }
    // The waiter sleeps on, or returned while the event was ready; in neither case is it stuck.
    counters[2].signal();
    waiter.finish();
}

fn p14_a_timeout_is_waited_for<C: Any>() {
    for number in SIZES {
        let counters = counters::<C>(number);
        let timeout = Duration::from_millis(5);
        let start = Instant::now();
        assert!(C::wait_any(&counters, Some(timeout)).is_empty());
        assert!(start.elapsed() >= timeout);
    }
}

/// Waiters that take nothing stand before and behind a reader.
fn p38_beside_a_reader<C: Any>() {
    for number in SIZES {
        let counters = counters::<C>(number);
        let counter = &counters[number / 2];
        let before = asleep(&counters);
        let reader = reader(counter);
        let behind = asleep(&counters);
        counter.write(1).unwrap();
        assert_eq!(reader.finish(), Ok(1));
        counter.write(1).unwrap();
        before.finish();
        behind.finish();
        assert_eq!(counter.count(), 1);
    }
}

fn none_at_all<C: Any>() {
    let start = Instant::now();
    let timeout = Duration::from_millis(5);
    assert!(C::wait_any(&[], Some(timeout)).is_empty());
    assert!(start.elapsed() >= timeout);
    assert!(now::<C>(&[]).is_empty());
}

fn any_count_but_zero_is_ready<C: Any>() {
    for mode in [Mode::Counter, Mode::Semaphore] {
        let counters = EDGES.map(|count| C::new(count, mode));
        assert_eq!(now(&counters), [1, 2, 3, 4, 5, 6]);
        assert_eq!(C::wait_any(&counters, None), [1, 2, 3, 4, 5, 6]);
        assert_eq!(counters.map(|counter| counter.count()), EDGES);
    }
}

fn a_write_of_nothing_ends_no_wait<C: Any>() {
    let counters = counters::<C>(2);
    let waiter = asleep(&counters);
    counters[0].write(0).unwrap();
    thread::sleep(Duration::from_millis(5));
    assert!(!waiter.has_returned());
    counters[1].write(1).unwrap();
    assert_eq!(waiter.finish(), [1]);
}

fn each_of_many<C: Any>() {
    for number in SIZES {
        let counters = counters::<C>(number);
        for index in [0, number / 2, number - 1] {
            let waiter = asleep(&counters);
            counters[index].signal();
            assert_eq!(waiter.finish(), [index]);
            assert_eq!(counters[index].try_read(), Ok(1));
        }
        counters.iter().for_each(C::signal);
        assert_eq!(now(&counters), (0..number).collect::<Vec<_>>());
    }
}

/// All signals come while one waiter is on its way: signals that wake it although it is awake still reach the readers.
fn beside_a_reader_of_each<C: Any>() {
    for _ in 0..20 {
        let counters = counters::<C>(3);
        let waiter = asleep(&counters);
        let readers: Vec<_> = counters.iter().map(reader).collect();
        counters.iter().for_each(C::signal);
        for reader in readers {
            assert_eq!(reader.finish(), Ok(1));
        }
        counters[0].signal();
        waiter.finish();
    }
}

/// Waiters that take nothing come and go, with timeouts and without, beside readers: everything that is written is
/// read.
fn every_reader_gets_on<C: Any>() {
    const WRITES: u64 = 3_000;
    for mode in [Mode::Counter, Mode::Semaphore] {
        for number in [3, 130] {
            let counters: Arc<Vec<C>> = Arc::new((0..number).map(|_| C::new(0, mode)).collect());
            let _watchdog = {
                let counters = Arc::clone(&counters);
                Watchdog::new(Duration::from_secs(60), move || format!("{counters:?}"))
            };
            let taken = Arc::new(AtomicU64::new(0));
            let stop = Arc::new(AtomicBool::new(false));
            let spawn = |seed: u64, once: fn(&[C], &mut Rng, &AtomicU64)| {
                let (counters, taken, stop) =
                    (Arc::clone(&counters), Arc::clone(&taken), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut random = Rng::with_seed(seed);
                    while !stop.load(Ordering::Relaxed) {
                        once(&counters, &mut random, &taken);
                    }
                })
            };
            let threads = [
                // Two threads block in reads of the first counter.
                spawn(0, |counters, _, taken| {
                    _ = taken.fetch_add(counters[0].read().unwrap(), Ordering::Relaxed);
                }),
                spawn(1, |counters, _, taken| {
                    _ = taken.fetch_add(counters[0].read().unwrap(), Ordering::Relaxed);
                }),
                // One thread takes what it finds in the other counters.
                spawn(2, |counters, _, taken| {
                    for index in C::wait_any(&counters[1..], None) {
                        let value = counters[1 + index].try_read().unwrap_or(0);
                        taken.fetch_add(value, Ordering::Relaxed);
                    }
                }),
                // One thread only looks, with short timeouts.
                spawn(3, |counters, random, _| {
                    let timeout = Duration::from_micros(random.u64(0..200));
                    C::wait_any(counters, Some(timeout));
                }),
                spawn(4, |counters, _, _| {
                    C::wait_any(counters, None);
                }),
            ];
            let mut random = Rng::with_seed(5);
            for _ in 0..WRITES {
                counters[random.usize(0..3)].write(1).unwrap();
                if random.u32(0..8) == 0 {
                    thread::yield_now();
                }
            }
            wait_until("all to be read", || taken.load(Ordering::Relaxed) == WRITES);
            stop.store(true, Ordering::Relaxed);
            for thread in threads {
                while !thread.is_finished() {
                    counters.iter().for_each(C::signal);
                    thread::sleep(Duration::from_micros(100));
                }
                thread.join().unwrap();
            }
        }
    }
}

/// Random operations on a few counters, the kernel's beside ours: the same are ready each time.
#[test]
fn differential() {
    if !can_signal() {
        return;
    }
    watchdog::limit("differential", || {
        let mut random = Rng::with_seed(1);
        for _ in 0..40 {
            let number = random.usize(1..200);
            let mode = [Mode::Counter, Mode::Semaphore][random.usize(0..2)];
            let ours: Vec<_> = (0..number).map(|_| NeverSpin::new(0, mode)).collect();
            let theirs: Vec<Kernel> = (0..number).map(|_| Kernel::new(0, mode)).collect();
            for _ in 0..200 {
                let index = random.usize(0..number);
                let (our, their) = (&ours[index], &theirs[index]);
                match random.u32(0..6) {
                    0 | 1 => assert_eq!(our.try_read(), their.try_read()),
                    2 => {
                        let n = EDGES[random.usize(0..EDGES.len())];
                        assert_eq!(our.try_write(n), their.try_write(n));
                    }
                    3 => {
                        our.signal();
                        their.signal();
                    }
                    _ => assert_eq!(our.try_write(1), their.try_write(1)),
                }
                assert_eq!(now(&ours), now(&theirs));
            }
        }
    });
}

// Where `wait_any` differs from poll(2)

/// Signal handlers end a poll(2). Ours goes on.
#[test]
fn p15_signal_handlers() {
    // SAFETY: all zero is a valid sigaction, with an empty mask; the handler does nothing.
    unsafe {
        extern "C" fn ignore(_: libc::c_int) {}
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()),
            0
        );
    }
    watchdog::limit("p15_signal_handlers", || {
        for number in SIZES {
            let counters = counters::<NeverSpin>(number);
            let waiter = asleep(&counters);
            for _ in 0..3 {
                waiter.interrupt(libc::SIGUSR1);
                waiter.wait_asleep();
            }
            counters[0].signal();
            assert_eq!(waiter.finish(), [0]);
        }
    });
}

#[test]
fn without_events_and_timeout_there_is_no_waiting() {
    watchdog::limit("without_events_and_timeout_there_is_no_waiting", || {
        assert!(wait_any::<Event>(&[], None).is_none());
        assert!(wait_any::<Event>(&[], Some(Duration::MAX)).is_none());
    });
}

#[test]
fn timeouts_at_the_ends_of_their_range() {
    watchdog::limit("timeouts_at_the_ends_of_their_range", || {
        for number in SIZES {
            let events = Arc::new(counters::<NeverSpin>(number));
            assert!(wait_any(&events, Some(Duration::ZERO)).is_none());
            assert!(wait_any_deadline(&events, Instant::now()).is_none());
            for timeout in [Duration::MAX, Duration::from_secs(u64::MAX / 4)] {
                let waiter = {
                    let events = Arc::clone(&events);
                    call_at(Place::Several, move || {
                        NeverSpin::wait_any(&events, Some(timeout))
                    })
                };
                waiter.wait_asleep();
                events[0].signal();
                assert_eq!(waiter.finish(), [0]);
                assert_eq!(events[0].try_read(), Ok(1));
            }
        }
    });
}

#[test]
fn a_deadline_is_one() {
    for number in SIZES {
        let events = counters::<NeverSpin>(number);
        let deadline = Instant::now() + Duration::from_millis(5);
        assert!(wait_any_deadline(&events, deadline).is_none());
        assert!(Instant::now() >= deadline);
        events[number - 1].signal();
        let found = wait_any_deadline(&events, deadline).map(Iterator::collect::<Vec<_>>);
        assert_eq!(found, Some(vec![number - 1]));
    }
}

#[test]
fn who_always_spins_never_sleeps() {
    watchdog::limit("who_always_spins_never_sleeps", || {
        let events = [(); 3].map(|()| Event::new(0).with_spin(Spin::Always));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_any(&events, None).map(|mut ready| ready.next()));
            thread::sleep(Duration::from_millis(5));
            assert!(!format!("{:?}", events[2]).contains("waiting_readers: 1"));
            events[2].signal();
            assert_eq!(waiter.join().unwrap(), Some(Some(2)));
        });
        assert!(wait_any(&events[..2], Some(Duration::from_millis(1))).is_none());
    });
}

/// The list may hold events, references or handles.
#[test]
fn lists_of_anything() {
    let event = Arc::new(Event::new(1));
    assert!(wait_any(&[Arc::clone(&event)], None).is_some());
    assert!(wait_any(&[&*event], None).is_some());
    assert!(wait_any(std::slice::from_ref(&*event), None).is_some());
}

#[test]
fn the_rest_is_looked_up_as_it_is_asked_for() {
    let events = [Event::new(1), Event::new(1), Event::new(0)];
    let mut ready = wait_any(&events, None).unwrap();
    events[0].read();
    assert_eq!(ready.next(), Some(0));
    events[1].read();
    events[2].signal();
    assert_eq!(ready.next(), Some(2));
    events[2].signal();
    assert_eq!((ready.next(), ready.next()), (None, None));
}

#[test]
fn debug_shows_what_was_found() {
    let events = [Event::new(0), Event::new(1)];
    let mut ready = wait_any(&events, None).unwrap();
    assert_eq!(
        format!("{ready:?}"),
        "Ready { found: Some(1), next: 0, .. }"
    );
    ready.next();
    assert_eq!(format!("{ready:?}"), "Ready { found: None, next: 2, .. }");
}

/// No waiter is left at an event after a wait.
#[test]
fn nothing_is_left_behind() {
    let events = counters::<NeverSpin>(3);
    assert!(wait_any(&events, Some(Duration::from_millis(1))).is_none());
    for event in &events {
        assert!(format!("{event:?}").contains("waiting_readers: 0"));
    }
}

/// These are the architectures that seccompiler writes filters for.
#[cfg(any(
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "x86_64"
))]
mod refused {
    use rustix::io::Errno;
    use rustix::thread::futex::{Wait, WaitvFlags, waitv};
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    use std::env;
    use std::process::Command;
    use std::thread;

    /// Set to an errno in a process in which `futex_waitv(2)` fails with that errno.
    const REFUSED: &str = "DOORBELL_TEST_WAITV_REFUSED";

    /// Runs the other tests of this file in processes in which a seccomp filter refuses `futex_waitv(2)`, as an older
    /// kernel or a container does.
    #[test]
    fn again_without_futex_waitv() {
        if let Some(errno) = env::var_os(REFUSED) {
            let error = waitv(
                &[Wait::new(); 2],
                WaitvFlags::empty(),
                None,
                rustix::thread::ClockId::Monotonic,
            )
            .unwrap_err();
            assert_eq!(error.raw_os_error().to_string(), errno.to_str().unwrap());
            return;
        }
        for errno in [Errno::NOSYS, Errno::PERM] {
            let errno = errno.raw_os_error();
            // This needs a thread of its own, because a filter is for ever; the process that it starts inherits the
            // filter.
            let again = thread::spawn(move || {
                let filter = SeccompFilter::new(
                    [(libc::SYS_futex_waitv, Vec::new())].into(),
                    SeccompAction::Allow,
                    SeccompAction::Errno(errno as u32),
                    env::consts::ARCH.try_into().unwrap(),
                );
                let program = BpfProgram::try_from(filter.unwrap()).unwrap();
                seccompiler::apply_filter(&program).unwrap();
                Command::new(env::current_exe().unwrap())
                    .args(["--skip", "kernel::"])
                    .env(REFUSED, errno.to_string())
                    .output()
                    .unwrap()
            });
            let output = again.join().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    }
}

/// An event that is not read ends the waits of all threads, including later waits, in whatever way they sleep.
#[test]
fn one_signal_that_is_not_read_stops_all() {
    watchdog::limit("one_signal_that_is_not_read_stops_all", || {
        for number in [1, 8, 200] {
            let events: Arc<[Event]> = (0..number)
                .map(|_| Event::new(0).with_spin(Spin::Never))
                .collect();
            let waiters: Vec<_> = (0..6)
                .map(|_| {
                    let events = Arc::clone(&events);
                    call_at(Place::Several, move || {
                        wait_any(&events, None).unwrap().collect::<Vec<_>>()
                    })
                })
                .collect();
            waiters.iter().for_each(Caller::wait_asleep);
            let stop = number - 1;
            events[stop].signal();
            for waiter in waiters {
                assert_eq!(waiter.finish(), [stop]);
            }
            assert_eq!(wait_any(&events, None).unwrap().next(), Some(stop));
        }
    });
}
