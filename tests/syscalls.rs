//! The system calls an event makes: none while nobody sleeps, and one wake-up per sleep however many signals come.
//!
//! What is observed is a process of its own: this test binary again, for one test, told by a variable to do rather than
//! to watch. There seccomp kills the process at any system call, or strace writes down every call on a futex.

#![cfg(target_os = "linux")]

mod common;

use common::caller::{Caller, call, wait_until};
use common::counter::{Counter, Place};
use common::ours::{DefaultSpin, NeverSpin};
use common::shared::Shared;
use common::watchdog::Watchdog;
use doorbell::event::{Batch, Change, Interest, Observation};
use doorbell::{Event, Mode, Spin};
use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::env;
use std::fs;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Set in the process that is observed.
const OBSERVED: &str = "DOORBELL_TEST_OBSERVED";

/// The exit code of an observed process that has come to its end. libtest has no such code.
const DONE: i32 = 42;

const NAP: Duration = Duration::from_millis(1);
const FULL: u64 = u64::MAX - 1;
const BURST: u64 = 10_000;

/// Whether this is the process to be observed, which then has a time limit.
fn is_observed() -> bool {
    let observed = env::var_os(OBSERVED).is_some();
    if observed {
        let limit = Duration::from_secs(30);
        std::mem::forget(Watchdog::new(limit, || "an observed process".to_owned()));
    }
    observed
}

/// Runs one test of this binary in a process to be observed, with the words of `wrapper` before it.
fn observe(wrapper: &[&str], test: &str) -> Output {
    let binary = env::current_exe().unwrap();
    let mut words = wrapper.to_vec();
    words.extend([binary.to_str().unwrap(), "--exact", test, "--nocapture"]);
    Command::new(words[0])
        .args(&words[1..])
        .env(OBSERVED, "")
        .output()
        .unwrap()
}

/// Ends an observed process at once, with the one system call that is allowed to the last.
fn done() -> ! {
    // SAFETY: nothing is to be cleaned up.
    unsafe { libc::_exit(DONE) }
}

// Nobody asleep

/// From here on a system call of this thread kills the process with SIGSYS, unless it ends it. A look at the clock is
/// one where there is no vDSO, and allowed.
fn forbid_system_calls() {
    let allowed = [libc::SYS_exit_group, libc::SYS_clock_gettime];
    let filter = SeccompFilter::new(
        allowed.map(|number| (number, Vec::new())).into(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        env::consts::ARCH.try_into().unwrap(),
    );
    let program = BpfProgram::try_from(filter.unwrap()).unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// An empty counter at which readers have slept, one in vain.
fn left_by_readers<C: Counter>(mode: Mode) -> C {
    let counter = C::new(0, mode);
    let reader = call(&counter, C::read);
    reader.wait_asleep();
    assert_eq!(counter.read_timeout(NAP), Err(Errno::TIMEDOUT));
    counter.signal();
    assert_eq!(reader.finish(), Ok(1));
    counter
}

/// A full counter at which writers have slept, one in vain.
fn left_by_writers<C: Counter>(mode: Mode) -> C {
    let counter = C::new(FULL, mode);
    let writer = call(&counter, |c| c.write(1));
    writer.wait_asleep();
    assert_eq!(counter.write_timeout(1, NAP), Err(Errno::TIMEDOUT));
    counter.try_read().unwrap();
    writer.finish().unwrap();
    counter.write(FULL - counter.count()).unwrap();
    counter
}

/// Makes every call that can return at once.
fn call_without_waiting<C: Counter>(empty: &C, full: &C) {
    for _ in 0..1_000 {
        assert_eq!(empty.try_read(), Err(Errno::AGAIN));
        assert_eq!(empty.read_timeout(Duration::ZERO), Err(Errno::TIMEDOUT));
        assert_eq!(empty.read_deadline(Instant::now()), Err(Errno::TIMEDOUT));
        empty.signal();
        empty.read().unwrap();
        empty.signal_n(1);
        empty.read_timeout(NAP).unwrap();
        empty.write(1).unwrap();
        empty.try_read().unwrap();
        empty.try_write(1).unwrap();
        empty.read_deadline(Instant::now()).unwrap();

        assert_eq!(full.try_write(1), Err(Errno::AGAIN));
        assert_eq!(full.write_timeout(1, Duration::ZERO), Err(Errno::TIMEDOUT));
        assert_eq!(full.write_deadline(1, Instant::now()), Err(Errno::TIMEDOUT));
        full.write(0).unwrap();
        full.signal();
        full.read().unwrap();
        full.write_timeout(FULL - full.count(), NAP).unwrap();
    }
}

#[test]
fn none_while_nobody_sleeps() {
    if !is_observed() {
        let output = observe(&[], "none_while_nobody_sleeps");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let spinning = [Mode::Counter, Mode::Semaphore]
        .map(|mode| (left_by_readers::<DefaultSpin>(mode), left_by_writers(mode)));
    let sleeping = [Mode::Counter, Mode::Semaphore]
        .map(|mode| (left_by_readers::<NeverSpin>(mode), left_by_writers(mode)));
    let shared = [Mode::Counter, Mode::Semaphore]
        .map(|mode| (left_by_readers::<Shared>(mode), left_by_writers(mode)));
    // Somebody waits here, but awake.
    static WATCHED: Event = Event::new(0).with_spin(Spin::Always);
    thread::spawn(|| {
        loop {
            WATCHED.read();
        }
    });

    forbid_system_calls();
    spinning
        .iter()
        .for_each(|(empty, full)| call_without_waiting(empty, full));
    sleeping
        .iter()
        .for_each(|(empty, full)| call_without_waiting(empty, full));
    shared
        .iter()
        .for_each(|(empty, full)| call_without_waiting(empty, full));
    for _ in 0..BURST {
        WATCHED.signal();
    }
    done()
}

/// The test above would notice a call.
#[test]
fn a_forbidden_wake_up_is_noticed() {
    if !is_observed() {
        let output = observe(&[], "a_forbidden_wake_up_is_noticed");
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
        return;
    }
    let event = NeverSpin::new(0, Mode::Counter);
    call(&event, |c| c.read()).wait_asleep();
    forbid_system_calls();
    event.signal();
    done()
}

// Somebody asleep

/// Calls on the futexes of one event.
#[derive(Debug)]
struct Calls {
    waits: usize,
    /// How many threads each call was to wake.
    wakes: Vec<u32>,
}

impl Calls {
    /// Counts in what strace wrote of a process.
    fn of(place: Range<usize>, trace: &str) -> Self {
        // 1234 futex(0x7f0123456780, FUTEX_WAKE_PRIVATE, 1) = 1
        let mut calls = Calls {
            waits: 0,
            wakes: Vec::new(),
        };
        for line in trace.lines() {
            let Some((_, arguments)) = line.split_once("futex(0x") else {
                continue;
            };
            let mut arguments = arguments.split([',', ')', '<']).map(str::trim);
            let address = usize::from_str_radix(arguments.next().unwrap(), 16).unwrap();
            let operation = arguments.next().unwrap();
            if !place.contains(&address) {
                continue;
            }
            if operation.starts_with("FUTEX_WAKE") {
                calls.wakes.push(arguments.next().unwrap().parse().unwrap());
            } else {
                calls.waits += 1;
            }
        }
        calls
    }
}

/// Runs `scene` on a counter in a process under strace, and counts there. Nothing if strace cannot be used here.
fn futex_calls(
    test: &str,
    initial: u64,
    mode: Mode,
    scene: impl FnOnce(&NeverSpin),
) -> Option<Calls> {
    const MARK: &str = "event at ";
    if is_observed() {
        let event = NeverSpin::new(initial, mode);
        let Place::Memory(place) = event.place() else {
            panic!("an event is memory");
        };
        // Libtest has written part of this line.
        println!("\n{MARK}{} {}", place.start, place.end);
        scene(&event);
        done();
    }
    if !Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("skipped: {test}: no strace that works");
        return None;
    }
    let trace =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.{}.trace", std::process::id()));
    let wrapper = [
        "strace",
        "-f",
        "-e",
        "trace=futex",
        "-o",
        trace.to_str().unwrap(),
    ];
    let output = observe(&wrapper, test);
    assert_eq!(output.status.code(), Some(DONE), "{output:?}");
    let calls = fs::read_to_string(&trace).unwrap();
    fs::remove_file(&trace).unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let place = printed
        .lines()
        .find_map(|line| line.strip_prefix(MARK))
        .unwrap();
    let (start, end) = place.split_once(' ').unwrap();
    Some(Calls::of(
        start.parse().unwrap()..end.parse().unwrap(),
        &calls,
    ))
}

/// Readers that are asleep.
fn asleep(event: &NeverSpin, number: usize) -> Vec<Caller<Result<u64, Errno>>> {
    let readers: Vec<_> = (0..number).map(|_| call(event, |c| c.read())).collect();
    readers.iter().for_each(Caller::wait_asleep);
    readers
}

fn burst(event: &NeverSpin) {
    (0..BURST).for_each(|_| event.signal());
}

#[test]
fn one_wake_up_for_a_burst_of_signals() {
    let test = "one_wake_up_for_a_burst_of_signals";
    let calls = futex_calls(test, 0, Mode::Counter, |event| {
        let readers = asleep(event, 1);
        burst(event);
        readers.into_iter().for_each(|reader| _ = reader.finish());
        // It does not sleep any more.
        burst(event);
    });
    if let Some(calls) = calls {
        assert_eq!((calls.waits, calls.wakes.len()), (1, 1), "{calls:?}");
    }
}

/// 64 events that one poller waits for, here one that does no more than count and sleep: rung together, they wake it once.
#[test]
fn one_wake_up_for_a_batch_of_64_events() {
    let test = "one_wake_up_for_a_batch_of_64_events";
    let calls = futex_calls(test, 0, Mode::Counter, |poller| {
        let events = [const { Event::new(0) }; 64];
        let observations = events.each_ref().map(|event| {
            let poller = poller.clone();
            let observer = Arc::new(move |_: Change| poller.signal_n(1));
            let observation = Observation::on_demand(event, Interest::Signals, observer);
            observation.arm(Interest::Signals);
            observation
        });
        let mut batch = Batch::new();
        for event in &events {
            let index = batch.add(event);
            batch.signal(index);
            batch.signal(index);
        }
        let readers = asleep(poller, 1);
        batch.commit().unwrap();
        let seen = readers.into_iter().map(|reader| reader.finish().unwrap());
        assert_eq!(seen.sum::<u64>() + Counter::count(poller), 64);
        drop(observations);
    });
    if let Some(calls) = calls {
        assert_eq!((calls.waits, calls.wakes.len()), (1, 1), "{calls:?}");
    }
}

#[test]
fn none_for_who_has_gone() {
    let calls = futex_calls("none_for_who_has_gone", 0, Mode::Counter, |event| {
        event.read_timeout(NAP).unwrap_err();
        burst(event);
    });
    if let Some(calls) = calls {
        assert_eq!((calls.waits, calls.wakes.len()), (1, 0), "{calls:?}");
    }
}

#[test]
fn one_wake_up_per_value_while_several_sleep() {
    let test = "one_wake_up_per_value_while_several_sleep";
    let calls = futex_calls(test, 0, Mode::Counter, |event| {
        let mut readers = asleep(event, 3);
        while !readers.is_empty() {
            event.write(5).unwrap();
            wait_until("a reader to return", || {
                readers.iter().any(Caller::has_returned)
            });
            readers.retain(|reader| !reader.has_returned());
        }
    });
    if let Some(calls) = calls {
        assert_eq!((calls.waits, calls.wakes.len()), (3, 3), "{calls:?}");
    }
}

/// Each reader may have to wake the next for what it leaves, so it is not one in all.
#[test]
fn no_more_wake_ups_than_sleepers_of_a_semaphore() {
    let test = "no_more_wake_ups_than_sleepers_of_a_semaphore";
    let calls = futex_calls(test, 0, Mode::Semaphore, |event| {
        let readers = asleep(event, 3);
        burst(event);
        readers.into_iter().for_each(|reader| _ = reader.finish());
        burst(event);
    });
    if let Some(calls) = calls {
        assert_eq!(calls.waits, 3);
        assert!((1..=3).contains(&calls.wakes.len()), "{calls:?}");
    }
}

#[test]
fn as_many_woken_as_there_are_units() {
    let test = "as_many_woken_as_there_are_units";
    let calls = futex_calls(test, 0, Mode::Semaphore, |event| {
        let mut readers = asleep(event, 4);
        event.signal_n(2);
        wait_until("two readers to return", || {
            readers.retain(|reader| !reader.has_returned());
            readers.len() == 2
        });
    });
    if let Some(calls) = calls {
        assert_eq!(calls.wakes.first(), Some(&2), "{calls:?}");
    }
}

#[test]
fn one_wake_up_for_all_writers() {
    let calls = futex_calls(
        "one_wake_up_for_all_writers",
        FULL,
        Mode::Counter,
        |event| {
            let writers = [1, 2, 3].map(|n| call(event, move |c| c.write(n)));
            writers.iter().for_each(Caller::wait_asleep);
            event.read().unwrap();
            writers
                .into_iter()
                .for_each(|writer| writer.finish().unwrap());
            burst(event);
            event.read().unwrap();
        },
    );
    if let Some(calls) = calls {
        assert_eq!((calls.waits, calls.wakes.len()), (3, 1), "{calls:?}");
    }
}
