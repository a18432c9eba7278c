//! The system calls that events and pollers make: none while no thread sleeps, one wake-up per sleep however many
//! signals come, and with descriptors those that the docs of `doorbell::fd` and `doorbell::poll` list.
//!
//! The observed process is this test binary again, started for one test, and told by a variable to make the calls
//! rather than to watch. There seccomp kills the process at any system call, or strace records the calls.

// These are the architectures that seccompiler writes filters for.
#![cfg(all(
    target_os = "linux",
    any(
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "x86_64"
    )
))]

#[path = "../../common/mod.rs"]
mod common;
#[cfg(target_arch = "x86_64")]
mod kvm;
mod threads;
#[cfg(target_arch = "x86_64")]
#[path = "../../common/vm.rs"]
mod vm;

use common::caller::{Caller, call, call_at, wait_until};
use common::counter::{Counter, Place};
use common::ours::{DefaultSpin, NeverSpin};
use common::shared::Shared;
use common::watchdog::Watchdog;
use doorbell::event::{Batch, Change, Interest, Observation, Signaller};
use doorbell::fd::{
    EFD_NONBLOCK, EFD_SEMAPHORE, EventFd, EventFlag, Forward, Mirror,
    new_event_consumer_and_notifier,
};
use doorbell::ioeventfd::space::AddressSpace;
use doorbell::ioeventfd::{Bus, Doorbell, Key, Table};
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router, Routes};
#[cfg(target_arch = "x86_64")]
use doorbell::kvm::{Injection, KvmSink};
use doorbell::poll::{Events, Poller, PollerFd, Probe, Watch, wait_any, wait_any_deadline};
use doorbell::{Event, Mode, SharedEvent, Spin, WriteError};
use rustix::event::{EventfdFlags, epoll};
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::pin::pin;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// Set in the observed process.
const OBSERVED: &str = "DOORBELL_TEST_OBSERVED";

/// The exit code of an observed process that has come to its end. libtest has no such code.
const DONE: i32 = 42;

const NAP: Duration = Duration::from_millis(1);
const FULL: u64 = u64::MAX - 1;
const BURST: u64 = 10_000;

/// Whether this is the observed process, which then has a time limit.
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

/// Ends an observed process at once, with the one system call that is always allowed.
fn done() -> ! {
    // SAFETY: nothing needs to be cleaned up.
    unsafe { libc::_exit(DONE) }
}

/// The operations of `fcntl` that duplicate a descriptor.
#[cfg(not(target_env = "musl"))]
const DUPLICATE: &[i32] = &[libc::F_DUPFD_CLOEXEC];
/// musl sets the flag once more.
#[cfg(target_env = "musl")]
const DUPLICATE: &[i32] = &[libc::F_DUPFD_CLOEXEC, libc::F_SETFD];

// No thread asleep

/// From here on a system call of this thread kills the process with SIGSYS, unless the call ends the process. Without a
/// vDSO, reading the clock is a system call, and is allowed.
fn forbid_system_calls() {
    allow_system_calls(BTreeMap::new());
}

/// Likewise, with some more calls that are allowed, and their arguments.
fn allow_system_calls(mut allowed: BTreeMap<libc::c_long, Vec<SeccompRule>>) {
    allowed.extend([libc::SYS_exit_group, libc::SYS_clock_gettime].map(|call| (call, Vec::new())));
    let filter = SeccompFilter::new(
        allowed,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        env::consts::ARCH.try_into().unwrap(),
    );
    let program = BpfProgram::try_from(filter.unwrap()).unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Rules for a call one of whose arguments must be one of `values`.
fn with(argument: u8, values: &[i32]) -> Vec<SeccompRule> {
    let rule = |&value: &i32| {
        let (length, operator) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        let condition = SeccompCondition::new(argument, length, operator, value as u32 as u64);
        SeccompRule::new(vec![condition.unwrap()]).unwrap()
    };
    values.iter().map(rule).collect()
}

/// What a thread does, and the system calls that it may make for that.
type Filtered = (
    BTreeMap<libc::c_long, Vec<SeccompRule>>,
    Box<dyn FnOnce() + Send>,
);

fn filtered(
    allowed: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    body: impl FnOnce() + Send + 'static,
) -> Filtered {
    (allowed, Box::new(body))
}

// The operations of `futex` that are used, all of them private.
const WAIT: i32 = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
const WAKE: i32 = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
/// How the standard library's locks wait.
const WAIT_BITSET: i32 = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG;

/// What a list in the documentation lets through: calls whatever their arguments, and operations of `futex`; and what
/// the memory allocator calls.
fn listed(calls: &[libc::c_long], futex: &[i32]) -> BTreeMap<libc::c_long, Vec<SeccompRule>> {
    let mut allowed = whatever_the_arguments(MEMORY.iter().chain(calls).copied());
    let mut futex = futex.to_vec();
    if cfg!(target_env = "musl") {
        // The locks of its memory allocator, and of its list of threads, from which a thread that ends takes itself.
        futex.extend([WAIT, WAKE, libc::FUTEX_WAIT, libc::FUTEX_WAKE]);
    }
    // No rule would mean any operation.
    if !futex.is_empty() {
        allowed.insert(libc::SYS_futex, with(1, &futex));
    }
    allowed
}

/// The threads that are to meet, each with the list.
fn meet_under(
    allowed: &BTreeMap<libc::c_long, Vec<SeccompRule>>,
    body: impl Fn(usize) + Send + Sync + 'static,
) {
    doorbell::prepare_for_seccomp();
    let body = Arc::new(body);
    under_filters((0..4).map(|number| {
        let body = Arc::clone(&body);
        filtered(allowed.clone(), move || {
            body(number);
            // The thread that drops it last makes calls for that.
            std::mem::forget(body);
        })
    }));
    done()
}

/// Runs each body on a thread of its own with a filter of its own, all together, so that they meet. Returns when all
/// are done.
fn under_filters(threads: impl IntoIterator<Item = Filtered>) {
    let threads: Vec<_> = threads.into_iter().collect();
    let number = threads.len();
    let counters = Arc::new([const { AtomicUsize::new(0) }; 2]);
    for (mut allowed, body) in threads {
        let counters = Arc::clone(&counters);
        thread::spawn(move || {
            let [ready, finished] = &*counters;
            allowed.insert(libc::SYS_exit, vec![]);
            allow_system_calls(allowed);
            ready.fetch_add(1, Ordering::Relaxed);
            while ready.load(Ordering::Relaxed) < number {}
            body();
            finished.fetch_add(1, Ordering::Release);
            // SAFETY: the thread ends without its destructors, which have calls of their own; no other thread needs
            // what it has.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
    }
    while counters[1].load(Ordering::Acquire) < number {
        thread::sleep(NAP);
    }
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
    // A thread waits here, but does not sleep.
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

/// Looks for ready events, and futures that wait while no thread sleeps behind their wakers.
#[test]
fn none_to_find_what_is_ready() {
    if !is_observed() {
        let output = observe(&[], "none_to_find_what_is_ready");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let events: Vec<_> = (0..600).map(|_| Event::new(0)).collect();
    let event = Event::new(0);
    let mut context = Context::from_waker(Waker::noop());
    // The first future that waits attaches the line of wakers, and the first call of an observer registers the thread.
    let mut first = pin!(event.read_async());
    assert!(first.as_mut().poll(&mut context).is_pending());
    event.signal();
    assert_eq!(first.poll(&mut context), Poll::Ready(1));

    forbid_system_calls();
    for number in [1, 128, 129, 600] {
        let events = &events[..number];
        assert!(wait_any(events, Some(Duration::ZERO)).is_none());
        assert!(wait_any_deadline(events, Instant::now()).is_none());
        events[number - 1].signal();
        for timeout in [None, Some(NAP)] {
            let mut ready = wait_any(events, timeout).unwrap();
            assert_eq!((ready.next(), ready.next()), (Some(number - 1), None));
        }
        events[number - 1].read();
    }
    for _ in 0..1_000 {
        let mut read = pin!(event.read_async());
        assert!(read.as_mut().poll(&mut context).is_pending());
        {
            let gone = pin!(event.read_async());
            assert!(gone.poll(&mut context).is_pending());
        }
        event.write(FULL).unwrap();
        let mut write = pin!(event.write_async(5));
        assert!(write.as_mut().poll(&mut context).is_pending());
        assert_eq!(read.poll(&mut context), Poll::Ready(FULL));
        assert_eq!(write.poll(&mut context), Poll::Ready(Ok(())));
        event.read();
    }
    done()
}

// A thread asleep

/// Calls on the futexes of one event.
#[derive(Debug)]
struct Calls {
    waits: usize,
    /// How many threads each call was to wake.
    wakes: Vec<u32>,
    /// Calls of `futex_waitv(2)`, which may be on other futexes too.
    vectors: usize,
}

impl Calls {
    /// Counts the calls in strace's record of a process.
    fn of(place: Range<usize>, trace: &str) -> Self {
        // 1234 futex(0x7f0123456780, FUTEX_WAKE_PRIVATE, 1) = 1
        let mut calls = Calls {
            waits: 0,
            wakes: Vec::new(),
            vectors: 0,
        };
        for line in trace.lines() {
            calls.vectors += usize::from(line.contains(" futex_waitv("));
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

/// Runs `scene` on a counter in a process under strace, and counts its calls. `None` if strace cannot be used here.
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
    let (calls, printed) = trace(test, "futex,?futex_waitv")?;
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

/// strace's record of certain calls in an observed process, and what that process prints. `None` if strace cannot be
/// used here.
fn trace(test: &str, calls: &str) -> Option<(String, String)> {
    if !Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("skipped: {test}: no strace that works");
        return None;
    }
    let file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.{}.trace", std::process::id()));
    let calls = format!("trace={calls}");
    let wrapper = ["strace", "-f", "-e", &calls, "-o", file.to_str().unwrap()];
    let output = observe(&wrapper, test);
    assert_eq!(output.status.code(), Some(DONE), "{output:?}");
    let trace = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    Some((trace, String::from_utf8(output.stdout).unwrap()))
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
        // The reader does not sleep any more.
        burst(event);
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

/// Each reader may have to wake the next one for the units that it leaves, so there may be more than one wake-up in
/// all.
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

// With a descriptor

/// Writes and reads of an `EventFd` make none as long as no code asks for a descriptor.
#[test]
fn none_of_an_eventfd_that_nobody_has_asked() {
    if !is_observed() {
        let output = observe(&[], "none_of_an_eventfd_that_nobody_has_asked");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let events = [0, EFD_SEMAPHORE].map(|mode| {
        let event = EventFd::new(EFD_NONBLOCK | mode).unwrap();
        (event.try_clone().unwrap(), event)
    });
    forbid_system_calls();
    for (clone, event) in &events {
        event.write(3).unwrap();
        while clone.read().is_ok() {}
        event.write(FULL).unwrap();
        clone.write(1).unwrap_err();
    }
    done()
}

/// `new` and `try_clone` make the calls that vmm-sys-util's make, and no others, whether there is a count or not.
#[test]
fn an_eventfd_is_made_when_the_original_is() {
    if !is_observed() {
        let output = observe(&[], "an_eventfd_is_made_when_the_original_is");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let mut allowed = whatever_the_arguments(MEMORY.into_iter().chain([libc::SYS_eventfd2]));
    allowed.insert(libc::SYS_fcntl, with(1, DUPLICATE));
    allow_system_calls(allowed);
    for flags in [0, EFD_SEMAPHORE].map(|mode| EFD_NONBLOCK | mode) {
        let event = EventFd::new(flags).unwrap();
        event.write(1).unwrap();
        let handles = (event.try_clone().unwrap(), event);
        // Dropping the handles makes other calls.
        std::mem::forget(handles);
    }
    let pair = new_event_consumer_and_notifier(EventFlag::all()).unwrap();
    pair.1.notify().unwrap();
    std::mem::forget(pair);
    done()
}

/// Eventfds are made and cloned on one thread, and given out on three others, each with a filter of its own that
/// forbids calls that make a descriptor. Such filters are on a VMM's vCPU threads, which register eventfds with KVM,
/// and on its API thread, which shuts the VM down.
#[test]
fn eventfds_given_out_behind_filters() {
    if !is_observed() {
        let output = observe(&[], "eventfds_given_out_behind_filters");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let eventfd = |flags: i32| {
        let event = EventFd::new(flags | EFD_NONBLOCK).unwrap();
        event.write(3).unwrap();
        event
    };
    let handles = |event: &EventFd| [(); 3].map(|()| event.try_clone().unwrap());
    let all = eventfd(0);
    let [first, second, third] = handles(&all);
    let alone = [eventfd(0), eventfd(EFD_SEMAPHORE), eventfd(0)];
    let [one, two, three] = alone.each_ref().map(|event| event.try_clone().unwrap());
    let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::empty()).unwrap();
    notifier.notify().unwrap();
    // An eventfd in which a thread sleeps.
    let doorbell = EventFd::new(0).unwrap();
    let (read_here, given_out) = (doorbell.try_clone().unwrap(), doorbell.try_clone().unwrap());

    let write = [(libc::SYS_write, vec![])];
    let futex = (libc::SYS_futex, with(1, &[WAIT, WAKE]));
    let all_three = || write.clone().into_iter().chain([futex.clone()]).collect();
    // The process's first blocking call counts the CPUs.
    let _ = Event::new(0).read_timeout(NAP);
    under_filters([
        // No other thread uses these or sleeps in them: only `write` is needed.
        filtered(write.clone().into_iter().collect(), move || {
            assert!(one.as_raw_fd() >= 0 && one.as_raw_fd() >= 0);
            assert!(two.into_raw_fd() >= 0);
            std::mem::forget([OwnedFd::from(consumer), OwnedFd::from(notifier)]);
            std::mem::forget(one);
        }),
        // These threads meet each other, and a sleeper.
        filtered(all_three(), move || {
            assert!(first.as_fd().as_raw_fd() >= 0);
            assert!(three.as_raw_fd() >= 0);
            std::mem::forget((first, three));
        }),
        filtered(all_three(), move || {
            std::mem::forget((OwnedFd::from(second), third.into_raw_fd()));
            assert!(given_out.as_raw_fd() >= 0);
            rustix::io::write(&given_out, &7_u64.to_ne_bytes()).unwrap();
            std::mem::forget(given_out);
        }),
        filtered(
            [(libc::SYS_read, vec![]), futex.clone()]
                .into_iter()
                .collect(),
            move || {
                assert_eq!(read_here.read().unwrap(), 7);
                std::mem::forget(read_here);
            },
        ),
    ]);
    for event in [&all, &alone[0], &alone[2]] {
        assert_eq!(event.read().unwrap(), 3);
    }
    assert_eq!(alone[1].read().unwrap(), 1);
    done()
}

/// A mirrored event makes none while its count stays above 0, or at 0.
#[test]
fn none_while_a_mirror_need_not_change() {
    if !is_observed() {
        let output = observe(&[], "none_while_a_mirror_need_not_change");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let [empty, full] = [0, 1].map(|count| {
        let event = Arc::new(Event::new(count));
        (mirror(Arc::clone(&event)), event)
    });
    // A thread's first call of an observer registers the thread with those that detach observers.
    full.1.signal();
    forbid_system_calls();
    for _ in 0..BURST {
        full.1.signal();
        full.1.write(2).unwrap();
        full.1.write(0).unwrap();
        empty.1.write(0).unwrap();
        assert_eq!(empty.1.try_read(), None);
    }
    done()
}

/// The reads and writes of one descriptor in `scene`, which gets the descriptor and the event. `None` if strace cannot
/// be used.
fn calls_on<F: AsFd>(
    test: &str,
    mode: Mode,
    make: impl FnOnce(Arc<Event>) -> F,
    scene: impl FnOnce(&Event),
) -> Option<(usize, usize)> {
    const MARK: &str = "descriptor ";
    if is_observed() {
        let event = Arc::new(Event::with_mode(0, mode));
        let fd = make(Arc::clone(&event));
        println!("\n{MARK}{}", fd.as_fd().as_raw_fd());
        scene(&event);
        done();
    }
    let (calls, printed) = trace(test, "read,write")?;
    let fd = printed.lines().find_map(|line| line.strip_prefix(MARK));
    let fd = fd.unwrap();
    // 1234 write(7, "\\1\\0\\0\\0\\0\\0\\0\\0", 8) = 8
    let (_, calls) = calls.split_once(MARK).unwrap();
    let count = |call: &str| calls.matches(&format!(" {call}({fd}, ")).count();
    Some((count("read"), count("write")))
}

fn mirror(event: Arc<Event>) -> Mirror {
    Mirror::new(event).unwrap()
}

#[test]
fn two_for_a_mirror_that_changes_and_changes_back() {
    let test = "two_for_a_mirror_that_changes_and_changes_back";
    let calls = calls_on(test, Mode::Counter, mirror, |event| {
        for _ in 0..10 {
            (0..100).for_each(|_| event.signal());
            event.read();
            assert_eq!(event.try_read(), None);
        }
    });
    if let Some(calls) = calls {
        assert_eq!(calls, (10, 10));
    }
}

/// A read that leaves units costs one call, for an edge.
#[test]
fn one_for_each_read_of_a_mirrored_semaphore() {
    let test = "one_for_each_read_of_a_mirrored_semaphore";
    let calls = calls_on(test, Mode::Semaphore, mirror, |event| {
        event.signal_n(10);
        event.signal();
        for _ in 0..11 {
            event.read();
        }
    });
    if let Some(calls) = calls {
        assert_eq!(calls, (1, 1 + 10));
    }
}

#[test]
fn one_for_each_signal_that_is_forwarded() {
    let test = "one_for_each_signal_that_is_forwarded";
    let forward = |event| Forward::new(event).unwrap();
    let calls = calls_on(test, Mode::Counter, forward, |event| {
        (0..100).for_each(|_| event.signal());
        event.write(0).unwrap();
        event.write(7).unwrap();
        assert_eq!(event.try_read(), None);
    });
    if let Some(calls) = calls {
        assert_eq!(calls, (0, 102));
    }
}

/// The calls that the documentation of `fd` lists.
fn list_of_fd() -> BTreeMap<libc::c_long, Vec<SeccompRule>> {
    let calls = [
        libc::SYS_eventfd2,
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_sched_yield,
        libc::SYS_clock_nanosleep,
    ];
    let mut allowed = listed(&calls, &[WAIT, WAKE, WAIT_BITSET]);
    let mut fcntl = [DUPLICATE, &[libc::F_GETFL, libc::F_SETFL]].concat();
    if cfg!(debug_assertions) {
        // The standard library calls this before it closes a descriptor.
        fcntl.push(libc::F_GETFD);
    }
    allowed.insert(libc::SYS_fcntl, with(1, &fcntl));
    allowed
}

/// All that `doorbell::fd` does, by threads that meet in it.
#[test]
fn the_list_of_fd_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_fd_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let event = Arc::new(Event::new(0).with_spin(Spin::Never));
    let asked = EventFd::new(EFD_NONBLOCK).unwrap();
    let _mirror = mirror(Arc::clone(&event));
    meet_under(&list_of_fd(), move |number| {
        let own = Arc::new(Event::new(0));
        for round in 0..100 {
            let seen = mirror(Arc::clone(&event));
            event.signal();
            event.try_read();
            // The threads sleep, and wake each other.
            let _ = event.read_timeout(NAP / 10);
            let poll_only = seen.poll_only().unwrap();
            assert!(poll_only.as_raw_fd() >= 0);

            let forward = Forward::new(Arc::clone(&own)).unwrap();
            own.signal();
            forward.flush().unwrap();
            drop(forward);

            let moved = EventFd::new(EFD_NONBLOCK).unwrap();
            let clone = moved.try_clone().unwrap();
            moved.write(1).unwrap();
            assert!(moved.as_raw_fd() >= 0);
            assert_eq!(clone.read().unwrap(), 1);
            let forward = Forward::with_fd(Arc::clone(&own), clone.into());
            own.signal();
            assert_eq!((forward.pending(), moved.read().unwrap()), (0, 1));
            drop(forward);
            let blocking = EventFd::new(0).unwrap().into();
            let forward = Forward::with_fd_nonblocking(Arc::clone(&own), blocking).unwrap();
            own.signal();
            assert_eq!(forward.pending(), 0);
            drop(forward);
            // One eventfd is asked for its descriptor while others use it.
            asked.write(1).unwrap();
            let _ = asked.read();
            if (number, round) == (0, 50) {
                assert!(asked.as_raw_fd() >= 0);
            }
        }
    });
}

/// The test above would notice a lock that waits with an operation that is not listed.
#[test]
fn a_lock_is_noticed() {
    if !is_observed() {
        let output = observe(&[], "a_lock_is_noticed");
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
        return;
    }
    let mut allowed = list_of_fd();
    allowed.insert(libc::SYS_futex, with(1, &[WAIT, WAKE]));
    let event = Arc::new(Event::new(0).with_spin(Spin::Never));
    let _mirror = mirror(Arc::clone(&event));
    meet_under(&allowed, move |_| {
        loop {
            event.signal();
            event.try_read();
        }
    });
}

// Lists of calls without descriptors

/// The calls of an `Event` without observers: to sleep and to wake sleepers.
#[test]
fn the_list_of_an_event_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_an_event_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let mut calls = vec![];
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        // A thread that spins on one CPU lets others run.
        calls.push(libc::SYS_sched_yield);
    }
    let events = [Spin::Never, Spin::DEFAULT].map(|spin| {
        [Mode::Counter, Mode::Semaphore].map(|mode| Event::with_mode(0, mode).with_spin(spin))
    });
    meet_under(&listed(&calls, &[WAIT, WAKE]), move |number| {
        for event in events.iter().flatten() {
            for _ in 0..100 {
                // Two threads sleep until there is a count, and two until there is room.
                match number {
                    0 => _ = event.read_timeout(NAP),
                    1 => _ = event.read_deadline(Instant::now() + NAP),
                    2 => _ = event.write_timeout(FULL, NAP),
                    _ => event
                        .write_timeout(FULL, NAP)
                        .map_or((), |()| event.signal_n(3)),
                }
            }
        }
    });
}

/// Threads that wait for an event with signallers add one call: `membarrier`.
#[test]
fn the_list_of_an_event_with_signallers_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_an_event_with_signallers_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    if let Err(error) = doorbell::use_membarrier() {
        println!("signallers are tested without lanes: {error}");
    }
    let events = [Mode::Counter, Mode::Semaphore]
        .map(|mode| Arc::new(Event::with_mode(0, mode).with_spin(Spin::Never)));
    // Threads that make the first signaller at once wait for one another.
    let calls = listed(
        &[libc::SYS_membarrier, libc::SYS_sched_yield],
        &[WAIT, WAKE],
    );
    meet_under(&calls, move |number| {
        for event in &events {
            let signaller = Signaller::new(event);
            for _ in 0..100 {
                match number {
                    0 => _ = event.read_timeout(NAP),
                    1 => _ = event.read_deadline(Instant::now() + NAP),
                    _ => signaller.signal(),
                }
            }
        }
    });
}

/// A table, an address space and a router that threads change while others make lookups.
#[test]
fn the_list_of_tables_and_routers_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_tables_and_routers_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let calls = [libc::SYS_sched_yield, libc::SYS_clock_nanosleep];
    let (table, space) = (Table::new(), AddressSpace::new());
    let router = Router::new(Arc::new(Nowhere));
    router.set_routes(Routes::identity(24)).unwrap();
    let region = space.region(Bus::Mmio, 0x1000);
    assert!(region.map(0x1000).unwrap().is_clean());
    meet_under(&listed(&calls, &[WAIT, WAKE, WAIT_BITSET]), move |number| {
        let event = Arc::new(Event::new(0));
        let address = 0x1000 + 8 * number as u64;
        for _ in 0..200 {
            let doorbell = table.assign(Key::mmio(address, 4), &event).unwrap();
            assert!(table.write(Bus::Mmio, address, &[0; 4]));
            drop(doorbell);
            let offset = address - 0x1000;
            let _ = region.add_eventfd(offset, 4, None, &event).unwrap();
            assert!(space.write(Bus::Mmio, address, &[0; 4]));
            let _ = region.del_eventfd(offset, 4, None, &event).unwrap();
            let irqfd = router.assign(&event, number as u32).unwrap();
            event.signal();
            router.mask(number as u32);
            event.signal();
            router.unmask(number as u32);
            drop(irqfd);
        }
    });
}

/// A `SharedEvent` from its creation to its end, with sleepers and peers that are woken by a socket.
#[test]
fn the_list_of_a_shared_event_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_a_shared_event_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let mut calls = vec![
        libc::SYS_sendto,
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_getsockopt,
        libc::SYS_getpeername,
        libc::SYS_mmap,
        libc::SYS_munmap,
        // This closes the descriptor of the memory, which is the caller's.
        libc::SYS_close,
    ];
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        calls.push(libc::SYS_sched_yield);
    }
    let (event, memory) = SharedEvent::create(0, Mode::Counter).unwrap();
    let event = event.with_spin(Spin::Never);
    let (socket, _peer) = UnixStream::pair().unwrap();
    let allowed = listed(&calls, &[libc::FUTEX_WAIT, libc::FUTEX_WAKE]);
    meet_under(&allowed, move |number| {
        for round in 0..100 {
            match (number, round % 10) {
                (0, 0) => {
                    let (own, fd) = SharedEvent::create(1, Mode::Semaphore).unwrap();
                    assert_eq!(own.read(), 1);
                    drop((own, fd));
                    let mut own = SharedEvent::attach(&memory, 0).unwrap();
                    own.add_waker(socket.try_clone().unwrap()).unwrap();
                    own.arm(Interest::Signals);
                    own.signal();
                }
                (0 | 1, _) => event.signal(),
                _ => _ = event.read_timeout(NAP / 4),
            }
        }
    });
}

/// A waiter for several events, and then, if asked for, a reader of one of them, which stays when the waiter leaves.
fn several_wait(beside_a_reader: bool) -> impl FnOnce(&NeverSpin) {
    move |event| {
        let events = [event.clone(), NeverSpin::new(0, Mode::Counter)];
        let waiter = call_at(Place::Several, move || wait_any(&events, None).is_some());
        waiter.wait_asleep();
        let readers = asleep(event, usize::from(beside_a_reader));
        burst(event);
        assert!(waiter.finish());
        readers.into_iter().for_each(|reader| _ = reader.finish());
        burst(event);
    }
}

#[test]
fn one_wake_up_for_who_waits_for_several() {
    let test = "one_wake_up_for_who_waits_for_several";
    if let Some(calls) = futex_calls(test, 0, Mode::Counter, several_wait(false)) {
        let Calls {
            waits,
            wakes,
            vectors,
        } = &calls;
        assert_eq!((*waits, wakes.len(), *vectors), (0, 1, 1), "{calls:?}");
    }
}

/// The waiter takes nothing, so it wakes the reader.
#[test]
fn one_more_for_the_reader_beside() {
    let test = "one_more_for_the_reader_beside";
    if let Some(calls) = futex_calls(test, 0, Mode::Counter, several_wait(true)) {
        assert_eq!((calls.waits, calls.wakes.len()), (1, 2), "{calls:?}");
    }
}

// Interrupts

struct Nowhere;

impl InterruptSink for Nowhere {
    fn set_level(&self, _: u32, _: u32, _: bool) {}
    fn signal_msi(&self, _: u32, _: MsiMessage) {}
}

fn msi(data: u32) -> Route {
    let address = 0xfee0_0000;
    Route::Msi(MsiMessage::new(address, data))
}

/// A signal to a sink in the process makes no call, whether it is injected at once or when it is unmasked; nor does an
/// ack or a mask.
#[test]
fn none_for_an_interrupt() {
    if !is_observed() {
        let output = observe(&[], "none_for_an_interrupt");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let router = Router::new(Arc::new(Nowhere));
    let mut routes = Routes::identity(24);
    routes.set(24, Some(msi(0x41))).unwrap();
    router.set_routes(routes).unwrap();
    let events = [(); 4].map(|()| Arc::new(Event::new(0)));
    let [message, pulse, level, resample] = &events;
    let _irqfds = [
        router.assign(message, 24).unwrap(),
        router.assign(pulse, 5).unwrap(),
        router.assign_with_resample(level, 6, resample).unwrap(),
    ];
    let source = router.level_source(7);
    // The first section of a thread allocates memory.
    router.ack(6);
    forbid_system_calls();
    for _ in 0..BURST {
        message.signal();
        pulse.signal();
        level.signal();
        router.ack(6);
        router.mask(24);
        message.signal();
        assert!(router.is_pending(24));
        router.unmask(24);
        source.set_level(true);
        source.set_level(false);
    }
    done()
}

/// A guest that masks and unmasks its vectors causes no call in a process that has opted in to membarrier, whether for
/// the first time or with another message. Memory may be allocated for that.
#[test]
fn none_for_a_guest_that_masks() {
    if !is_observed() {
        let output = observe(&[], "none_for_a_guest_that_masks");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    if let Err(reason) = doorbell::use_membarrier() {
        eprintln!("with fences: {reason}");
    }
    let router = Router::new(Arc::new(Nowhere));
    router.set_route(24, Some(msi(0))).unwrap();
    let memory = [
        libc::SYS_mprotect,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_madvise,
    ];
    allow_system_calls(memory.map(|call| (call, Vec::new())).into());
    for round in 0..1_000 {
        router.mask(24);
        router.unmask_with_route(24, msi(round / 2)).unwrap();
        router.mask(25 + round);
        router.unmask(25 + round);
    }
    router
        .unmask_with_routes((24..1_000).map(|gsi| (gsi, msi(gsi))))
        .unwrap();
    done()
}

/// How often KVM is told of routes while a guest sets up and moves 1,000 vectors, one pin and, in one step, all
/// vectors.
#[cfg(target_arch = "x86_64")]
fn tables_for_many_changes(test: &str, injection: Injection) -> Option<usize> {
    if kvm_ioctls::Kvm::new().is_err() {
        eprintln!("skipped: no KVM");
        return None;
    }
    calls_with(test, "KVM_SET_GSI_ROUTING", || {
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let router = Router::new(KvmSink::new(vm::descriptor(&vm), injection).unwrap());
        mark();
        for round in [0, 0, 1] {
            for gsi in 24..1_024 {
                router.unmask_with_route(gsi, msi(round)).unwrap();
                router.mask(gsi);
            }
        }
        router.set_route(5, Some(Route::Pin(5))).unwrap();
        router
            .unmask_with_routes((24..1_024).map(|gsi| (gsi, msi(2))))
            .unwrap();
        router.set_routes(router.routes()).unwrap();
        mark();
    })
}

/// Messages that the VMM sends itself are not in KVM's table.
#[cfg(target_arch = "x86_64")]
#[test]
fn no_table_for_messages_of_the_vmm() {
    let test = "no_table_for_messages_of_the_vmm";
    let tables = tables_for_many_changes(test, Injection::Userspace);
    assert!(matches!(tables, None | Some(1)), "{tables:?}");
}

/// If the kernel sends the messages, KVM is told of each change, and only of changes.
#[cfg(target_arch = "x86_64")]
#[test]
fn one_table_for_a_change_of_messages_of_the_kernel() {
    let test = "one_table_for_a_change_of_messages_of_the_kernel";
    let tables = tables_for_many_changes(test, Injection::Kernel);
    assert!(matches!(tables, None | Some(2_002)), "{tables:?}");
}

// Pollers

/// Marks a place in a trace, by a call that has no other use here.
fn mark() {
    let _ = rustix::process::getppid();
}

/// The calls that a scene makes between two marks, on the thread that makes the marks.
fn calls_between_marks(test: &str, scene: impl FnOnce()) -> Option<Vec<String>> {
    if is_observed() {
        scene();
        done();
    }
    let (trace, _) = trace(test, "all")?;
    // 1234 getppid() = 1
    let lines = trace.lines().filter_map(|line| line.split_once(' '));
    let lines: Vec<_> = lines.map(|(id, call)| (id, call.trim_start())).collect();
    let is_mark = |(_, call): &&(&str, &str)| call.starts_with("getppid(");
    let (marker, _) = lines.iter().find(is_mark).unwrap();
    let calls = lines
        .iter()
        .filter(|(id, _)| id == marker)
        .skip_while(|line| !is_mark(line))
        .skip(1)
        .take_while(|line| !is_mark(line))
        // This is the end of a call that strace has recorded in two parts.
        .filter(|(_, call)| !call.starts_with("<... "))
        .map(|(_, call)| (*call).to_owned());
    Some(calls.collect())
}

fn poller(events: &[Arc<Event>], watch: Watch) -> Arc<Poller> {
    let poller = Arc::new(Poller::with_spin(Spin::Never));
    for (key, event) in events.iter().enumerate() {
        poller.add(event, key, watch).unwrap();
    }
    poller
}

fn wait(poller: &Poller, events: &mut Events, timeout: Option<Duration>) -> usize {
    poller.wait(events, timeout).unwrap()
}

/// A busy poller: signals, and waits that find something, with edges or levels, with descriptors or without.
#[test]
fn none_of_a_busy_poller() {
    if !is_observed() {
        let output = observe(&[], "none_of_a_busy_poller");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let events: Vec<_> = (0..8).map(|_| Arc::new(Event::new(0))).collect();
    let edges = poller(&events, Watch::BOTH.edge());
    let levels = poller(&events, Watch::READABLE);
    let with_fd = poller(&events, Watch::READABLE);
    let fd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    with_fd.add_fd(&fd, 8, Watch::READABLE).unwrap();
    let mut found = Events::with_capacity(8);
    let signal_all = || events.iter().for_each(|event| event.signal());
    let mut round = || {
        signal_all();
        for _ in 0..2 {
            assert_ne!(wait(&edges, &mut found, None), 0);
            assert_eq!(wait(&levels, &mut found, None), 8);
            assert_eq!(wait(&with_fd, &mut found, None), 8);
            signal_all();
        }
        assert_ne!(wait(&edges, &mut found, Some(Duration::ZERO)), 0);
        events.iter().for_each(|event| _ = event.read());
    };
    // This allocates what is needed, and ends with the last look at the descriptors for a while, however many looks
    // there were before.
    (0..20).for_each(|_| round());
    assert_eq!(
        wait(
            &with_fd,
            &mut Events::with_capacity(8),
            Some(Duration::ZERO)
        ),
        0
    );
    forbid_system_calls();
    (0..10).for_each(|_| round());
    done()
}

/// A poller with descriptors looks at them now and then, which the test above would notice.
#[test]
fn a_look_at_descriptors_is_noticed() {
    if !is_observed() {
        let output = observe(&[], "a_look_at_descriptors_is_noticed");
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
        return;
    }
    let events = [Arc::new(Event::new(1))];
    let poller = poller(&events, Watch::READABLE);
    let fd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    poller.add_fd(&fd, 8, Watch::READABLE).unwrap();
    let mut found = Events::with_capacity(8);
    forbid_system_calls();
    for _ in 0..32 {
        wait(&poller, &mut found, None);
    }
    done()
}

/// A thread that sleeps in a poller, in a futex or, if there is a descriptor in it, in epoll.
fn sleep_in<T: Send + 'static>(
    poller: Arc<Poller>,
    with_fd: bool,
    body: impl FnOnce(&Poller) -> T + Send + 'static,
) -> Caller<T> {
    if !with_fd {
        return call_at(Place::Futex, move || body(&poller));
    }
    let fd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    poller.add_fd(&fd, usize::MAX, Watch::READABLE).unwrap();
    call_at(Place::Descriptor(0), move || {
        let result = body(&poller);
        drop(fd);
        result
    })
}

/// Signals to 64 events, and as many again, of a poller in which a thread sleeps.
fn burst_to_a_poller(with_fd: bool, ring: impl FnOnce(&[Arc<Event>])) {
    let events: Vec<_> = (0..64).map(|_| Arc::new(Event::new(0))).collect();
    let poller = poller(&events, Watch::READABLE);
    let sleeper = sleep_in(poller, with_fd, |poller| {
        let mut found = Events::with_capacity(64);
        wait(poller, &mut found, None)
    });
    sleeper.wait_asleep();
    // The thread may have slept in another futex than the poller's before.
    thread::sleep(20 * NAP);
    sleeper.wait_asleep();
    // A thread's first signal of an event that is observed may make calls of its own.
    let other = [Arc::new(Event::new(0))];
    let _other_poller = self::poller(&other, Watch::READABLE);
    other[0].signal();
    mark();
    ring(&events);
    mark();
    assert_ne!(sleeper.finish(), 0);
    assert!(events.iter().all(|event| event.count() == 2));
}

fn twice_each(events: &[Arc<Event>]) {
    for event in events.iter().chain(events) {
        event.signal();
    }
}

fn twice_each_in_a_batch(events: &[Arc<Event>]) {
    let mut batch = Batch::new();
    for event in events {
        let index = batch.add(event);
        batch.signal(index);
        batch.signal(index);
    }
    batch.commit().unwrap();
}

/// A burst to a poller in which a thread sleeps in a futex makes one call, to wake the thread, apart from calls for
/// memory.
fn one_wake_up(test: &str, ring: fn(&[Arc<Event>])) {
    if let Some(calls) = calls_between_marks(test, || burst_to_a_poller(false, ring)) {
        let wakes = calls
            .iter()
            .filter(|call| call.contains("FUTEX_WAKE_PRIVATE"));
        assert_eq!(wakes.count(), 1, "{calls:?}");
        let memory = |call: &String| {
            ["brk(", "mmap(", "munmap("]
                .iter()
                .any(|name| call.starts_with(name))
        };
        assert!(
            calls
                .iter()
                .all(|call| call.contains("futex") || memory(call)),
            "{calls:?}"
        );
    }
}

#[test]
fn one_wake_up_for_64_signals_to_a_poller() {
    one_wake_up("one_wake_up_for_64_signals_to_a_poller", twice_each);
}

#[test]
fn one_wake_up_for_a_batch_of_64_events_of_a_poller() {
    one_wake_up(
        "one_wake_up_for_a_batch_of_64_events_of_a_poller",
        twice_each_in_a_batch,
    );
}

/// Signals two events of a poller in which a thread sleeps. Between the two it signals an event whose observer takes
/// long: if the thread were woken for the first event, it would take it and sleep again in that time.
fn ring_slowly(with_fd: bool, ring: impl FnOnce(&[Arc<Event>; 3])) {
    let events = [(); 3].map(|()| Arc::new(Event::new(0)));
    let [first, slow, second] = &events;
    let poller = poller(
        &[Arc::clone(first), Arc::clone(second)],
        Watch::READABLE.edge(),
    );
    let sleeper = sleep_in(poller, with_fd, |poller| {
        let mut found = Events::with_capacity(2);
        let mut seen = 0;
        while seen < 2 {
            seen += wait(poller, &mut found, None);
        }
    });
    let _slow = Observation::new(
        Arc::clone(slow),
        Interest::Signals,
        Arc::new(|_: Change| thread::sleep(50 * NAP)),
    );
    sleeper.wait_asleep();
    // The thread may have slept in another futex than the poller's before.
    thread::sleep(20 * NAP);
    sleeper.wait_asleep();
    mark();
    ring(&events);
    mark();
    sleeper.finish();
}

fn in_a_batch(events: &[Arc<Event>; 3]) {
    let mut batch = Batch::new();
    for event in events {
        let index = batch.add(Arc::clone(event));
        batch.signal(index);
    }
    batch.commit().unwrap();
}

/// The signals are made in one call of an observer.
fn nested(events: &[Arc<Event>; 3]) {
    let first = Arc::new(Event::new(0));
    let events = events.clone();
    let observation = Observation::new(
        first,
        Interest::Signals,
        Arc::new(move |_: Change| events.iter().for_each(|event| event.signal())),
    );
    observation.event().signal();
}

/// How many calls with `name` in them a scene makes between two marks.
fn calls_with(test: &str, name: &str, scene: impl FnOnce()) -> Option<usize> {
    let calls = calls_between_marks(test, scene)?;
    Some(calls.iter().filter(|call| call.contains(name)).count())
}

#[test]
fn one_wake_up_for_a_batch_however_long_it_takes() {
    let test = "one_wake_up_for_a_batch_however_long_it_takes";
    let wakes = calls_with(test, "FUTEX_WAKE", || ring_slowly(false, in_a_batch));
    assert!(matches!(wakes, None | Some(1)), "{wakes:?}");
}

#[test]
fn one_write_for_a_batch_however_long_it_takes() {
    let test = "one_write_for_a_batch_however_long_it_takes";
    let writes = calls_with(test, "write(", || ring_slowly(true, in_a_batch));
    assert!(matches!(writes, None | Some(1)), "{writes:?}");
}

#[test]
fn one_wake_up_for_what_an_observer_rings() {
    let test = "one_wake_up_for_what_an_observer_rings";
    let wakes = calls_with(test, "FUTEX_WAKE", || ring_slowly(false, nested));
    assert!(matches!(wakes, None | Some(1)), "{wakes:?}");
}

/// A thread that falls asleep in epoll at once looks at the descriptors by the same call.
#[test]
fn one_call_to_look_and_to_sleep() {
    let test = "one_call_to_look_and_to_sleep";
    let looks = calls_with(test, "epoll_pwait(", || {
        let poller = Poller::with_spin(Spin::Never);
        let fd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
        poller.add_fd(&fd, 0, Watch::READABLE).unwrap();
        mark();
        assert_eq!(wait(&poller, &mut Events::with_capacity(4), Some(NAP)), 0);
        mark();
    });
    assert!(matches!(looks, None | Some(1)), "{looks:?}");
}

/// A kick through an eventfd costs no more calls than with epoll: one to learn of the kick and, where the eventfd is
/// read, one to read it. The remaining call is the kick itself.
#[test]
fn as_many_calls_for_a_kick_as_with_epoll() {
    const KICKS: usize = 8;
    let test = "as_many_calls_for_a_kick_as_with_epoll";
    let calls = calls_between_marks(test, || {
        let poller = Poller::with_spin(Spin::Never);
        let event = Arc::new(Event::new(0));
        let bound = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
        let watched = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
        poller
            .add_bound(&bound, &event, 1, Watch::READABLE)
            .unwrap();
        poller.add_fd(&watched, 2, Watch::READABLE.edge()).unwrap();
        let mut found = Events::with_capacity(4);
        assert_eq!(wait(&poller, &mut found, Some(NAP)), 0);
        mark();
        for _ in 0..KICKS {
            rustix::io::write(&bound, &1_u64.to_ne_bytes()).unwrap();
            assert_eq!(wait(&poller, &mut found, None), 1);
            assert_eq!(event.try_read(), Some(1));
        }
        for _ in 0..KICKS {
            rustix::io::write(&watched, &1_u64.to_ne_bytes()).unwrap();
            assert_eq!(wait(&poller, &mut found, None), 1);
        }
        mark();
    });
    let Some(calls) = calls else {
        return;
    };
    let count = |name| calls.iter().filter(|call| call.starts_with(name)).count();
    assert_eq!(count("write("), 2 * KICKS, "{calls:?}");
    assert_eq!(count("epoll_pwait("), 2 * KICKS, "{calls:?}");
    // Without the line in `/proc` that Linux 6.5 added, the eventfd is read until it is empty.
    let eventfd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", eventfd.as_raw_fd()));
    let is_told = info.is_ok_and(|info| info.contains("eventfd-semaphore: 0"));
    let reads = if is_told { KICKS } else { 2 * KICKS };
    assert_eq!(count("preadv2("), reads, "{calls:?}");
    assert_eq!(calls.len(), 4 * KICKS + reads, "{calls:?}");
}

/// Only one look in 32 looks at descriptors.
#[test]
fn one_call_for_32_looks() {
    let test = "one_call_for_32_looks";
    let calls = calls_between_marks(test, || {
        let poller = Poller::new();
        let event = Arc::new(Event::new(0));
        let fd = rustix::event::eventfd(1, EventfdFlags::empty()).unwrap();
        poller.add(&event, 1, Watch::READABLE.edge()).unwrap();
        poller.add_fd(&fd, 2, Watch::READABLE).unwrap();
        let mut found = Events::with_capacity(4);
        let mut looks = move || (poller.look(&mut found).unwrap(), found.iter().next());
        mark();
        for look in 1..=320 {
            let signalled = look % 10 == 1;
            if signalled {
                event.signal();
            }
            let (number, first) = looks();
            let descriptors = look % 32 == 0;
            assert_eq!(
                number,
                usize::from(signalled) + usize::from(descriptors),
                "{look}"
            );
            assert!(number == 0 || first.is_some());
        }
        mark();
    });
    if let Some(calls) = calls {
        assert_eq!(calls.len(), 10, "{calls:?}");
        assert!(
            calls.iter().all(|call| call.starts_with("epoll_pwait(")),
            "{calls:?}"
        );
    }
}

/// A thread that waits alone carries over for several bindings, and wakes no thread for bindings whose turn is yet to
/// come.
#[test]
fn no_write_to_carry_over_alone() {
    let test = "no_write_to_carry_over_alone";
    let writes = calls_with(test, "write(", || {
        let poller = Poller::with_spin(Spin::Never);
        let event = Arc::new(Event::new(0));
        let fds = [0, 1, 2].map(|key| {
            let fd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
            poller.bind(&fd, &event, key).unwrap();
            fd
        });
        let mut found = Events::with_capacity(4);
        assert_eq!(wait(&poller, &mut found, Some(NAP)), 0);
        for fd in &fds {
            rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
        }
        mark();
        assert_eq!(wait(&poller, &mut found, Some(NAP)), 0);
        mark();
        assert_eq!(event.count(), 3);
    });
    assert!(matches!(writes, None | Some(0)), "{writes:?}");
}

/// A batch to eight events for which one thread waits. A signal handler keeps the thread from leaving the events
/// meanwhile, which would save calls.
fn batch_to_a_visitor() {
    static GO: AtomicBool = AtomicBool::new(false);
    extern "C" fn handler(_: libc::c_int) {
        while !GO.load(Ordering::Relaxed) {
            thread::sleep(NAP);
        }
    }
    // SAFETY: the handler sleeps, and allocates nothing; the action is complete.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let event = || Arc::new(Event::new(0).with_spin(Spin::Never));
    let events: Vec<_> = (0..8).map(|_| event()).collect();
    let visitor = {
        let events = events.clone();
        call_at(Place::Several, move || wait_any(&events, None).is_some())
    };
    let mut batch = Batch::new();
    for event in &events {
        let index = batch.add(event);
        batch.signal(index);
    }
    visitor.wait_asleep();
    // The thread may have slept in another futex before.
    thread::sleep(20 * NAP);
    visitor.wait_asleep();
    visitor.interrupt(libc::SIGUSR1);
    mark();
    batch.commit().unwrap();
    mark();
    GO.store(true, Ordering::Relaxed);
    assert!(visitor.finish());
}

#[test]
fn one_wake_up_for_a_batch_to_who_waits_for_several() {
    let test = "one_wake_up_for_a_batch_to_who_waits_for_several";
    let wakes = calls_with(test, "FUTEX_WAKE", batch_to_a_visitor);
    assert!(matches!(wakes, None | Some(1)), "{wakes:?}");
}

#[test]
fn one_write_for_64_signals_to_a_poller_with_descriptors() {
    let test = "one_write_for_64_signals_to_a_poller_with_descriptors";
    if let Some(calls) = calls_between_marks(test, || burst_to_a_poller(true, twice_each)) {
        let writes = calls.iter().filter(|call| call.starts_with("write("));
        assert_eq!(writes.count(), 1, "{calls:?}");
        assert!(calls.iter().all(|call| call.contains("write")), "{calls:?}");
    }
}

/// The descriptor of a poller in an outer loop is written to once for each time that the poller was armed, and never
/// while that loop is awake.
#[test]
fn one_write_for_each_sleep_of_an_outer_loop() {
    const SLEEPS: usize = 64;
    let test = "one_write_for_each_sleep_of_an_outer_loop";
    let calls = calls_between_marks(test, || {
        let events = [(); 2].map(|()| Arc::new(Event::new(0)));
        let poller = poller(&events, Watch::READABLE);
        let fd = PollerFd::new(poller).unwrap();
        let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&outer, &fd, data, epoll::EventFlags::IN).unwrap();
        let mut found = Events::with_capacity(4);
        let mut buffer = Vec::with_capacity(4);
        let signals = || (0..32).for_each(|number| events[number % 2].signal());
        signals();
        assert!(!fd.arm(&mut found).unwrap());
        mark();
        for _ in 0..SLEEPS {
            events.iter().for_each(|event| _ = event.try_read());
            assert!(fd.arm(&mut found).unwrap());
            signals();
            buffer.clear();
            let spare = rustix::buffer::spare_capacity(&mut buffer);
            assert_eq!(epoll::wait(&outer, spare, None).unwrap(), 1);
            fd.disarm();
            for _ in 0..3 {
                signals();
                assert!(!fd.arm(&mut found).unwrap());
                assert_eq!(found.len(), 2);
                fd.disarm();
            }
        }
        mark();
    });
    let Some(calls) = calls else {
        return;
    };
    let is_epoll = |call: &&String| call.starts_with("epoll_");
    assert_eq!(
        calls.iter().filter(is_epoll).count(),
        2 * SLEEPS,
        "{calls:?}"
    );
    let is_write = |call: &&String| call.starts_with("write(");
    assert_eq!(calls.iter().filter(is_write).count(), SLEEPS, "{calls:?}");
    assert_eq!(calls.len(), 3 * SLEEPS, "{calls:?}");
}

/// How often a poller calls membarrier for an event with a signaller, in a number of rounds, each of a signal by the
/// signaller, a wait and a read. `None` if that cannot be found out.
fn barriers(test: &str, watch: Watch) -> Option<usize> {
    let calls = calls_between_marks(test, || {
        let opted_in = doorbell::use_membarrier();
        let event = Arc::new(Event::new(0));
        let signaller = Signaller::new(&event);
        assert_eq!(signaller.has_lane(), opted_in.is_ok());
        let poller = poller(&[Arc::clone(&event)], watch);
        let mut found = Events::with_capacity(4);
        let mut round = || {
            signaller.signal();
            wait(&poller, &mut found, Some(Duration::ZERO));
            event.try_read();
            if watch == watch.one_shot() {
                poller.modify(0, watch).unwrap();
            }
        };
        round();
        mark();
        (0..ROUNDS).for_each(|_| round());
        mark();
    })?;
    if doorbell::use_membarrier().is_err() {
        eprintln!("skipped: {test}: no membarrier");
        return None;
    }
    let barriers = calls.iter().filter(|call| call.starts_with("membarrier("));
    Some(barriers.count())
}

const ROUNDS: usize = 32;

/// While a thread stays awake, the poller does not call membarrier for an event that it watches for levels.
#[test]
fn no_barrier_for_levels() {
    let calls = barriers("no_barrier_for_levels", Watch::READABLE);
    assert!(matches!(calls, None | Some(0)), "{calls:?}");
}

#[test]
fn a_barrier_for_each_edge() {
    let calls = barriers("a_barrier_for_each_edge", Watch::READABLE.edge());
    assert!(matches!(calls, None | Some(ROUNDS)), "{calls:?}");
}

#[test]
fn two_barriers_for_each_one_shot() {
    const TWICE: usize = 2 * ROUNDS;
    let watch = Watch::READABLE.one_shot();
    let calls = barriers("two_barriers_for_each_one_shot", watch);
    assert!(matches!(calls, None | Some(TWICE)), "{calls:?}");
}

/// However many hot events there are, an outer loop that falls asleep arms them with one barrier.
#[test]
fn one_barrier_for_each_sleep_of_an_outer_loop() {
    let test = "one_barrier_for_each_sleep_of_an_outer_loop";
    let calls = calls_between_marks(test, || {
        let _ = doorbell::use_membarrier();
        let events = [(); 8].map(|()| Arc::new(Event::new(0)));
        let signallers = events.each_ref().map(Signaller::new);
        let fd = PollerFd::new(poller(&events, Watch::READABLE)).unwrap();
        let mut found = Events::with_capacity(8);
        let mut round = || {
            signallers.iter().for_each(Signaller::signal);
            fd.disarm();
            assert!(!fd.arm(&mut found).unwrap());
            assert_eq!(found.len(), 8);
            events.iter().for_each(|event| _ = event.try_read());
            assert!(fd.arm(&mut found).unwrap());
        };
        round();
        mark();
        (0..ROUNDS).for_each(|_| round());
        mark();
    });
    if doorbell::use_membarrier().is_err() {
        return eprintln!("skipped: {test}: no membarrier");
    }
    if let Some(calls) = calls {
        let barriers = calls.iter().filter(|call| call.starts_with("membarrier("));
        assert_eq!(barriers.count(), ROUNDS, "{calls:?}");
    }
}

/// A change of a table calls membarrier once, however many doorbells come, go or move in it; a change that fails and
/// one inside a callback do not call it.
#[test]
fn one_barrier_for_each_change_of_a_table() {
    let test = "one_barrier_for_each_change_of_a_table";
    let calls = calls_between_marks(test, || {
        let _ = doorbell::use_membarrier();
        let table = Table::new();
        let event = Arc::new(Event::new(0));
        let doorbells = |base: u64| {
            let event = &event;
            (0..16).map(move |number| Doorbell::new(Key::mmio(base + 4 * number, 4), event))
        };
        let inside = Arc::new(Event::new(0));
        let _observation = Observation::new(Arc::clone(&inside), Interest::Signals, {
            let (table, event) = (table.clone(), Arc::clone(&event));
            Arc::new(move |_: Change| drop(table.assign(Key::pio(0x20, 1), &event).unwrap()))
        });
        mark();
        // Four changes:
        let mut registrations = table.assign_all(doorbells(0x1000)).unwrap();
        table
            .replace(&mut registrations, doorbells(0x1020))
            .unwrap();
        drop(table.assign(Key::pio(0x10, 1), &event).unwrap());
        // None:
        assert!(table.assign_all(doorbells(0x1000)).is_err());
        assert!(table.write(Bus::Mmio, 0x1020, &[0; 4]));
        inside.signal();
        mark();
    });
    if doorbell::use_membarrier().is_err() {
        return eprintln!("skipped: {test}: no membarrier");
    }
    if let Some(calls) = calls {
        let barriers = calls.iter().filter(|call| call.starts_with("membarrier("));
        assert_eq!(barriers.count(), 4, "{calls:?}");
    }
}

/// The signaller makes the call, to learn of an overflow.
#[test]
fn a_barrier_for_each_signal_that_is_not_watched_for() {
    let test = "a_barrier_for_each_signal_that_is_not_watched_for";
    let calls = barriers(test, Watch::ERRORS);
    assert!(matches!(calls, None | Some(ROUNDS)), "{calls:?}");
}

/// The calls of an allocator in a thread that may be new.
const MEMORY: [libc::c_long; 6] = [
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
];

fn whatever_the_arguments(
    calls: impl Iterator<Item = libc::c_long>,
) -> BTreeMap<libc::c_long, Vec<SeccompRule>> {
    calls.map(|number| (number, Vec::new())).collect()
}

/// The calls that the documentation of `poll` lists for a poller.
fn list_of_a_poller() -> BTreeMap<libc::c_long, Vec<SeccompRule>> {
    let calls = [
        libc::SYS_epoll_create1,
        libc::SYS_eventfd2,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_write,
        libc::SYS_fcntl,
        libc::SYS_preadv2,
        libc::SYS_openat,
        libc::SYS_read,
        libc::SYS_close,
        libc::SYS_sched_yield,
        libc::SYS_clock_nanosleep,
    ];
    listed(&calls, &[WAIT, WAKE, WAIT_BITSET])
}

/// All calls that a poller makes.
#[test]
fn the_list_of_calls_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_calls_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let allowed = list_of_a_poller();
    let fd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    let (to_sleeper, sleepers) = mpsc::channel::<Arc<Poller>>();
    // The filters are on the two threads of this test only, since others may still be starting.
    thread::spawn({
        let allowed = allowed.clone();
        move || {
            allow_system_calls(allowed);
            for poller in sleepers {
                wait(&poller, &mut Events::with_capacity(1), None);
            }
        }
    });
    allow_system_calls(allowed);

    let event = Arc::new(Event::new(0));
    for with_fd in [false, true] {
        let mut found = Events::with_capacity(4);
        let poller = poller(&[Arc::clone(&event)], Watch::READABLE);
        if with_fd {
            poller.add_fd(&fd, 1, Watch::READABLE).unwrap();
            poller.modify(1, Watch::READABLE.edge()).unwrap();
            poller.delete(1).unwrap();
            poller.bind(&fd, &event, 1).unwrap();
            rustix::io::write(&fd, &7_u64.to_ne_bytes()).unwrap();
            assert_eq!(wait(&poller, &mut found, None), 1);
            assert_eq!(event.read(), 7);
        }
        wait(&poller, &mut found, Some(NAP));
        to_sleeper.send(Arc::clone(&poller)).unwrap();
        if with_fd {
            let fd = PollerFd::new(Arc::clone(&poller)).unwrap();
            while !fd.arm(&mut found).unwrap() {}
            event.signal();
            fd.disarm();
            event.read();
        }
        // The thread sleeps in one of these calls, or is still on its way.
        for _ in 0..100 {
            poller.notify();
            poller.notify_all();
            event.signal();
            wait(&poller, &mut found, None);
            event.read();
            wait(&poller, &mut found, Some(NAP));
        }
        poller.notify();
    }
    done()
}

struct SometimesReady(usize);

impl Probe for SometimesReady {
    fn ready(&mut self) -> bool {
        self.0 = self.0.wrapping_mul(5).wrapping_add(1);
        self.0 % 16 == 0
    }

    fn end(&mut self) -> bool {
        self.ready()
    }
}

/// The same where threads meet in one poller.
#[test]
fn the_list_of_a_poller_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_a_poller_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let fd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    let pollers = [false, true].map(|with_fd| {
        let poller = poller(&[], Watch::READABLE);
        if with_fd {
            poller.add_fd(&fd, 100, Watch::READABLE).unwrap();
        }
        poller
    });
    meet_under(&list_of_a_poller(), move |number| {
        let event = Arc::new(Event::new(0));
        let mut found = Events::with_capacity(4);
        for poller in &pollers {
            for _ in 0..50 {
                poller.add(&event, number, Watch::READABLE).unwrap();
                poller.attach_probe(number, SometimesReady(number)).unwrap();
                event.signal();
                wait(poller, &mut found, Some(NAP / 10));
                poller.modify(number, Watch::READABLE.edge()).unwrap();
                event.read();
                wait(poller, &mut found, Some(NAP / 10));
                poller.delete(number).unwrap();
            }
        }
    });
}

/// The calls that the documentation of `poll` lists for `wait_any` and futures.
fn list_of_wait_any_and_futures() -> BTreeMap<libc::c_long, Vec<SeccompRule>> {
    let calls = [
        libc::SYS_futex_waitv,
        libc::SYS_sched_yield,
        libc::SYS_clock_nanosleep,
    ];
    listed(&calls, &[WAIT, WAKE, WAIT_BITSET])
}

/// The same for `wait_any` and for futures, on a thread that waits and on a thread that wakes it.
#[test]
fn the_list_of_calls_of_wait_any_and_futures_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_calls_of_wait_any_and_futures_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let allowed = list_of_wait_any_and_futures();
    const ROUNDS: usize = 20;
    // More than fit into one futex_waitv, and an answer to each.
    let bells: Arc<[Event; 129]> = Arc::new([const { Event::new(0) }; 129]);
    let answers = Arc::new(Event::new(0));
    // The process's first blocking call counts the CPUs.
    let _ = answers.read_timeout(NAP);
    thread::spawn({
        let (bells, answers, allowed) = (Arc::clone(&bells), Arc::clone(&answers), allowed.clone());
        move || {
            allow_system_calls(allowed);
            for number in [1, 2, bells.len()] {
                for _ in 0..ROUNDS {
                    wait_any(&bells[..number], None).unwrap();
                    bells[number - 1].read();
                    answers.signal();
                }
            }
            for _ in 0..ROUNDS {
                pollster::block_on(bells[0].read_async());
                answers.signal();
            }
            // The end of a thread makes calls of its own.
            bells[0].read();
        }
    });
    allow_system_calls(allowed);
    // This call reads the clock that `futex_waitv` uses for the first time.
    assert!(wait_any(&bells[..2], Some(NAP)).is_none());
    for number in [1, 2, bells.len(), 1] {
        for _ in 0..ROUNDS {
            // This is long enough for the other thread to fall asleep.
            assert!(wait_any(&[&*answers], Some(NAP)).is_none());
            bells[number - 1].signal();
            assert_eq!(pollster::block_on(answers.read_async()), 1);
        }
    }
    done()
}

// The first blocking call

/// The first blocking calls of the process, on a thread that may wait, wake and yield, and nothing else.
fn block_behind_a_filter() -> ! {
    let (event, full) = (Event::new(0), Event::new(FULL));
    let shared = SharedEvent::create(0, Mode::Counter).unwrap().0;
    let poller = Poller::new();
    let watched = Arc::new(Event::new(0));
    poller.add(&watched, 0, Watch::READABLE).unwrap();
    let mut found = Events::with_capacity(1);
    thread::spawn(move || {
        let calls = [
            libc::SYS_futex,
            libc::SYS_futex_waitv,
            libc::SYS_sched_yield,
        ];
        allow_system_calls(whatever_the_arguments(calls.into_iter()));
        assert_eq!(event.read_timeout(NAP), None);
        assert_eq!(full.write_timeout(1, NAP), Err(WriteError::TimedOut));
        assert_eq!(shared.read_timeout(NAP), None);
        assert!(wait_any(&[&event, &*watched], Some(NAP)).is_none());
        assert_eq!(wait(&poller, &mut found, Some(NAP)), 0);
        done()
    })
    .join()
    .unwrap();
    unreachable!("the call ends the process")
}

#[test]
fn a_prepared_process_opens_nothing_when_it_blocks() {
    let test = "a_prepared_process_opens_nothing_when_it_blocks";
    if !is_observed() {
        let output = observe(&[], test);
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    doorbell::prepare_for_seccomp();
    block_behind_a_filter()
}

/// The test above would notice a call that is not allowed.
#[test]
fn a_process_that_is_not_prepared_opens_a_file() {
    let test = "a_process_that_is_not_prepared_opens_a_file";
    if !is_observed() {
        let output = observe(&[], test);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
        return;
    }
    block_behind_a_filter()
}

/// The same where threads meet in the line of one event.
#[test]
fn the_list_of_a_line_of_futures_is_complete() {
    if !is_observed() {
        let output = observe(&[], "the_list_of_a_line_of_futures_is_complete");
        assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        return;
    }
    let shared = Arc::new(Event::semaphore(4));
    meet_under(&list_of_wait_any_and_futures(), move |_| {
        for _ in 0..3_000 {
            pollster::block_on(shared.read_async());
            shared.signal();
        }
    });
}

// Spinning

/// A reader that spins for long lets other threads run every 50 µs.
#[test]
fn a_yield_now_and_then_while_spinning() {
    let test = "a_yield_now_and_then_while_spinning";
    let yields = calls_with(test, "sched_yield(", || {
        let event = Event::new(0).with_spin(Spin::Always);
        mark();
        assert_eq!(event.read_timeout(Duration::from_millis(10)), None);
        mark();
    });
    // With one CPU, the reader yields at each look.
    let several = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    let most = if several { 200 } else { usize::MAX };
    if let Some(yields) = yields {
        assert!((1..=most).contains(&yields), "{yields} calls");
    }
}
