//! The P cases of the reference, each run over a poller and over epoll.
//!
//! | cases | |
//! |---|---|
//! | P1, P7, P11, P14, P16, P17, P19–P23, P25–P29, P31, P32, P34, P35, P40, P41, P43 | here, the same for both |
//! | P10 | as P35: a poller for each waiting thread |
//! | P13 | as P17: a pulse that is over is not seen |
//! | P45 | `loom-tests/tests/poll.rs` |
//! | P15 | differs: a signal handler does not end a wait (`p15_a_signal_handler`) |
//! | P33 | differs: an overflow is reported to a poller that watches for errors only (`p33_errors_alone`) |
//! | P38, P39 | differ: a thread that sleeps in the event is woken beside any number of pollers (`p38…`, `p39…`) |
//! | P2 | has no counterpart: there is no such flag |
//! | P3–P5, P8, P9 | about `select` and `poll` rather than epoll: see the tests of `wait_any` |
//! | P37 | has no counterpart: there is no exclusive watching. Instead, several threads wait on one poller |
//! | P40, closing | an event is not closed: the poller keeps it until it is deleted |
//! | P44 | has no counterpart: a poller is not an event |

use crate::common::caller::{Caller, call, call_at, wait_until};
use crate::common::counter::Counter;
use crate::common::kernel::can_signal;
use crate::common::watchdog;
use crate::set::{Epoll, Ours, Ready, Set};
use ::doorbell::Mode;
use ::doorbell::poll::Watch;
use rustix::io::Errno;
use std::thread;
use std::time::{Duration, Instant};

macro_rules! cases {
    ($($case:ident,)*) => {
        mod kernel {
            $(#[test] fn $case() {
                if super::can_signal() {
                    super::watchdog::limit(stringify!($case), super::$case::<super::Epoll>)
                }
            })*
        }
        mod doorbell {
            $(#[test] fn $case() {
                super::watchdog::limit(stringify!($case), super::$case::<super::Ours>)
            })*
        }
    };
}

cases! {
    p1_levels,
    p7_nothing_asked_for,
    p11_writable_after_a_read,
    p14_a_timeout,
    p16_level_repeats,
    p17_level_of_a_pulse,
    p19_an_edge_is_reported_once,
    p20_an_edge_for_each_write,
    p21_an_edge_for_a_write_of_nothing,
    p22_edges_add_up,
    p23_edge_of_a_pulse,
    p25_adding_is_an_edge,
    p26_an_edge_while_some_is_left,
    p27_what_is_left_is_no_edge,
    p28_reads_are_edges,
    p29_from_full,
    p31_one_shot,
    p32_modified_to_writable,
    p34_level_for_all_threads,
    p34_edge_for_one_thread,
    p35_a_set_for_each_thread,
    p40_one_counter_under_two_keys,
    p41_added_twice,
    p43_round_robin,
    both_levels_are_reported_after_either_operation,
    order_is_that_of_the_first_wake,
    overflow_is_reported_with_readable,
    deleted_while_ready,
    added_anew_it_is_last,
}

const FULL: u64 = u64::MAX - 1;
const SOON: Duration = Duration::from_millis(50);

fn counter<S: Set>(initial: u64) -> S::Counter {
    S::Counter::new(initial, Mode::Counter)
}

fn now<S: Set>(set: &S) -> Vec<Ready> {
    set.wait(16, Some(Duration::ZERO)).unwrap()
}

fn readable(key: usize) -> Ready {
    (key, true, false, false)
}

fn writable(key: usize) -> Ready {
    (key, false, true, false)
}

/// One counter in one set, watched under key 1.
fn one<S: Set>(initial: u64, mode: Mode, watch: Watch) -> (S, S::Counter) {
    let (set, counter) = (S::new(), S::Counter::new(initial, mode));
    set.add(&counter, 1, watch).unwrap();
    (set, counter)
}

fn p1_levels<S: Set>() {
    for (count, readable, writable, error) in [
        (0, false, true, false),
        (1, true, true, false),
        (2, true, true, false),
        (1 << 63, true, true, false),
        (u64::MAX - 3, true, true, false),
        (u64::MAX - 2, true, true, false),
        (u64::MAX - 1, true, false, false),
        (u64::MAX, true, false, true),
    ] {
        let (set, _counter) = one::<S>(count, Mode::Counter, Watch::BOTH);
        assert_eq!(now(&set), [(1, readable, writable, error)], "{count:#x}");
    }
}

fn p7_nothing_asked_for<S: Set>() {
    let (set, _counter) = one::<S>(1, Mode::Counter, Watch::ERRORS);
    assert_eq!(now(&set), []);
    let (set, _counter) = one::<S>(u64::MAX, Mode::Counter, Watch::ERRORS);
    assert_eq!(now(&set), [(1, false, false, true)]);
}

fn p11_writable_after_a_read<S: Set>() {
    let (set, counter) = one::<S>(FULL, Mode::Counter, Watch::WRITABLE);
    let waiting = wait(&set);
    waiting.wait_asleep();
    counter.write(0).unwrap();
    waiting.wait_asleep();
    counter.try_read().unwrap();
    assert_eq!(waiting.finish().unwrap(), [writable(1)]);
}

fn p14_a_timeout<S: Set>() {
    let (set, _counter) = one::<S>(0, Mode::Counter, Watch::READABLE);
    let start = Instant::now();
    assert_eq!(set.wait(1, Some(SOON)).unwrap(), []);
    assert!(start.elapsed() >= SOON);
}

fn p16_level_repeats<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, Watch::READABLE);
    counter.write(1).unwrap();
    assert_eq!(now(&set), [readable(1)]);
    assert_eq!(now(&set), [readable(1)]);
    counter.try_read().unwrap();
    assert_eq!(now(&set), []);
}

fn p17_level_of_a_pulse<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, Watch::READABLE);
    counter.write(1).unwrap();
    counter.try_read().unwrap();
    assert_eq!(now(&set), []);
    counter.write(0).unwrap();
    assert_eq!(now(&set), []);
}

const EDGE: Watch = Watch::READABLE.edge();

fn p19_an_edge_is_reported_once<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, EDGE);
    counter.write(3).unwrap();
    assert_eq!(now(&set), [readable(1)]);
    assert_eq!(now(&set), []);
    assert_eq!(counter.try_read(), Ok(3));
    assert_eq!(now(&set), []);
}

fn p20_an_edge_for_each_write<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, EDGE);
    for _ in 0..3 {
        counter.write(1).unwrap();
        assert_eq!(now(&set), [readable(1)]);
    }
}

fn p21_an_edge_for_a_write_of_nothing<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, EDGE);
    counter.write(0).unwrap();
    assert_eq!(now(&set), []);
    counter.write(1).unwrap();
    assert_eq!(now(&set), [readable(1)]);
    counter.write(0).unwrap();
    assert_eq!(now(&set), [readable(1)]);
}

fn p22_edges_add_up<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, EDGE);
    (0..3).for_each(|_| counter.write(1).unwrap());
    assert_eq!(now(&set), [readable(1)]);
    assert_eq!(now(&set), []);
}

fn p23_edge_of_a_pulse<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, EDGE);
    counter.write(1).unwrap();
    counter.try_read().unwrap();
    assert_eq!(now(&set), []);
}

fn p25_adding_is_an_edge<S: Set>() {
    let (set, _counter) = one::<S>(1, Mode::Counter, EDGE);
    assert_eq!(now(&set), [readable(1)]);
    assert_eq!(now(&set), []);
}

fn p26_an_edge_while_some_is_left<S: Set>() {
    let (set, counter) = one::<S>(7, Mode::Semaphore, EDGE);
    assert_eq!(now(&set), [readable(1)]);
    assert_eq!(counter.try_read(), Ok(1));
    let waiting = wait(&set);
    waiting.wait_asleep();
    counter.write(1).unwrap();
    assert_eq!(waiting.finish().unwrap(), [readable(1)]);
}

fn p27_what_is_left_is_no_edge<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Semaphore, EDGE);
    counter.write(3).unwrap();
    assert_eq!(now(&set), [readable(1)]);
    assert_eq!(counter.try_read(), Ok(1));
    assert_eq!(now(&set), []);
    assert_eq!(counter.count(), 2);
}

fn p28_reads_are_edges<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, Watch::WRITABLE.edge());
    assert_eq!(now(&set), [writable(1)]);
    assert_eq!(now(&set), []);
    counter.write(1).unwrap();
    assert_eq!(now(&set), []);
    counter.try_read().unwrap();
    assert_eq!(now(&set), [writable(1)]);
}

fn p29_from_full<S: Set>() {
    let (set, counter) = one::<S>(FULL, Mode::Counter, Watch::WRITABLE.edge());
    assert_eq!(now(&set), []);
    counter.try_read().unwrap();
    assert_eq!(now(&set), [writable(1)]);
    assert_eq!(counter.try_read(), Err(Errno::AGAIN));
    assert_eq!(now(&set), []);
}

fn p31_one_shot<S: Set>() {
    let watch = Watch::READABLE.one_shot();
    let (set, counter) = one::<S>(0, Mode::Counter, watch);
    counter.write(1).unwrap();
    assert_eq!(now(&set), [readable(1)]);
    counter.write(1).unwrap();
    assert_eq!(now(&set), []);
    set.modify(1, watch).unwrap();
    assert_eq!(now(&set), [readable(1)]);
    assert_eq!(now(&set), []);
}

fn p32_modified_to_writable<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, Watch::READABLE);
    set.modify(1, Watch::WRITABLE).unwrap();
    assert_eq!(now(&set), [writable(1)]);
    counter.write(u64::MAX - 2).unwrap();
    assert_eq!(now(&set), [writable(1)]);
    counter.write(1).unwrap();
    assert_eq!(now(&set), []);
}

/// A thread that waits without a time limit.
fn wait<S: Set>(set: &S) -> Caller<Result<Vec<Ready>, Errno>> {
    let place = set.place();
    let set = set.clone();
    call_at(place, move || set.wait(16, None))
}

fn p34_level_for_all_threads<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, Watch::READABLE);
    let threads = [(); 4].map(|()| wait(&set));
    threads.iter().for_each(Caller::wait_asleep);
    counter.write(1).unwrap();
    for thread in threads {
        assert_eq!(thread.finish().unwrap(), [readable(1)]);
    }
}

fn p34_edge_for_one_thread<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, EDGE);
    let mut threads = Vec::from([(); 4].map(|()| wait(&set)));
    threads.iter().for_each(Caller::wait_asleep);
    while !threads.is_empty() {
        counter.write(1).unwrap();
        wait_until("a thread to return", || {
            threads.iter().any(Caller::has_returned)
        });
        thread::sleep(Duration::from_millis(5));
        let (returned, asleep): (Vec<_>, _) = threads.into_iter().partition(Caller::has_returned);
        assert_eq!(returned.len(), 1);
        for thread in returned {
            assert_eq!(thread.finish().unwrap(), [readable(1)]);
        }
        threads = asleep;
    }
}

fn p35_a_set_for_each_thread<S: Set>() {
    for watch in [Watch::READABLE, EDGE] {
        let counter = counter::<S>(0);
        let threads = [(); 4].map(|()| {
            let set = S::new();
            set.add(&counter, 1, watch).unwrap();
            wait(&set)
        });
        threads.iter().for_each(Caller::wait_asleep);
        counter.write(1).unwrap();
        for thread in threads {
            assert_eq!(thread.finish().unwrap(), [readable(1)]);
        }
    }
}

fn p40_one_counter_under_two_keys<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Counter, Watch::READABLE);
    set.add(&counter, 2, Watch::READABLE).unwrap();
    counter.write(1).unwrap();
    assert_eq!(now(&set), [readable(2), readable(1)]);
    set.delete(2).unwrap();
    assert_eq!(now(&set), [readable(1)]);
}

fn p41_added_twice<S: Set>() {
    let (set, counter) = one::<S>(1, Mode::Counter, Watch::READABLE);
    assert_eq!(set.add(&counter, 1, Watch::WRITABLE), Err(Errno::EXIST));
    assert_eq!(now(&set), [readable(1)]);
    set.delete(1).unwrap();
    assert_eq!(set.delete(1), Err(Errno::NOENT));
    assert_eq!(set.modify(1, Watch::READABLE), Err(Errno::NOENT));
    set.add(&counter, 1, Watch::READABLE).unwrap();
    assert_eq!(now(&set), [readable(1)]);
}

fn p43_round_robin<S: Set>() {
    let set = S::new();
    for key in [0, 1, 2] {
        set.add(&counter::<S>(1), key, Watch::READABLE).unwrap();
    }
    // The kernel's counters would be closed here, but for the duplicates.
    for key in [0, 1, 2, 0, 1] {
        let found = set.wait(1, Some(Duration::ZERO)).unwrap();
        assert_eq!(found, [readable(key)]);
    }
}

fn both_levels_are_reported_after_either_operation<S: Set>() {
    let (set, counter) = one::<S>(0, Mode::Semaphore, Watch::BOTH.edge());
    assert_eq!(now(&set), [writable(1)]);
    counter.write(2).unwrap();
    assert_eq!(now(&set), [(1, true, true, false)]);
    counter.try_read().unwrap();
    assert_eq!(now(&set), [(1, true, true, false)]);
    counter.try_read().unwrap();
    assert_eq!(now(&set), [writable(1)]);
}

fn order_is_that_of_the_first_wake<S: Set>() {
    let set = S::new();
    let counters = [0, 1, 2].map(|key| {
        let counter = counter::<S>(0);
        set.add(&counter, key, EDGE).unwrap();
        counter
    });
    for key in [2, 0, 1, 2, 0] {
        counters[key].write(1).unwrap();
    }
    assert_eq!(now(&set), [readable(2), readable(0), readable(1)]);
}

fn overflow_is_reported_with_readable<S: Set>() {
    let (set, counter) = one::<S>(FULL, Mode::Counter, EDGE);
    assert_eq!(now(&set), [readable(1)]);
    counter.signal();
    assert_eq!(now(&set), [(1, true, false, true)]);
    counter.try_read().unwrap();
    assert_eq!(now(&set), []);
}

fn deleted_while_ready<S: Set>() {
    let set = S::new();
    let counters = [0, 1, 2].map(|key| {
        let counter = counter::<S>(0);
        set.add(&counter, key, Watch::READABLE).unwrap();
        counter.write(1).unwrap();
        counter
    });
    set.delete(1).unwrap();
    assert_eq!(now(&set), [readable(0), readable(2)]);
    counters[1].write(1).unwrap();
    assert_eq!(now(&set), [readable(0), readable(2)]);
}

fn added_anew_it_is_last<S: Set>() {
    let set = S::new();
    let counters = [0, 1].map(|key| {
        let counter = counter::<S>(1);
        set.add(&counter, key, EDGE).unwrap();
        counter
    });
    set.delete(0).unwrap();
    set.add(&counters[0], 0, EDGE).unwrap();
    assert_eq!(now(&set), [readable(1), readable(0)]);
}

// Where a poller differs from epoll

#[test]
fn p15_a_signal_handler() {
    extern "C" fn handler(_: libc::c_int) {}
    // SAFETY: the handler does nothing, and nothing else uses the signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut());
    }
    let (set, counter) = one::<Epoll>(0, Mode::Counter, Watch::READABLE);
    let waiting = wait(&set);
    waiting.wait_asleep();
    waiting.interrupt(libc::SIGUSR2);
    assert_eq!(waiting.finish(), Err(Errno::INTR));
    drop(counter);

    let (set, counter) = one::<Ours>(0, Mode::Counter, Watch::READABLE);
    let waiting = wait(&set);
    waiting.wait_asleep();
    waiting.interrupt(libc::SIGUSR2);
    waiting.wait_asleep();
    counter.write(1).unwrap();
    assert_eq!(waiting.finish().unwrap(), [readable(1)]);
}

#[test]
fn p33_errors_alone() {
    if !can_signal() {
        return;
    }
    for watch in [Watch::ERRORS, Watch::ERRORS.edge(), Watch::WRITABLE.edge()] {
        let (set, counter) = one::<Epoll>(u64::MAX - 2, Mode::Counter, watch);
        now(&set);
        counter.write(1).unwrap();
        counter.signal();
        assert_eq!(now(&set), [], "{watch:?}: the kernel reports it now");

        let (set, counter) = one::<Ours>(u64::MAX - 2, Mode::Counter, watch);
        now(&set);
        counter.write(1).unwrap();
        assert_eq!(now(&set), [], "{watch:?}");
        counter.signal();
        assert_eq!(now(&set), [(1, false, false, true)], "{watch:?}");
        // The overflow is reported again after it was over.
        counter.try_read().unwrap();
        now(&set);
        counter.signal_n(u64::MAX);
        assert_eq!(now(&set), [(1, false, false, true)], "{watch:?}");
    }
}

#[test]
fn p38_a_reader_beside_pollers() {
    let (set, counter) = one::<Ours>(0, Mode::Counter, Watch::READABLE);
    let poller = wait(&set);
    poller.wait_asleep();
    let reader = call(&counter, |c| c.read());
    reader.wait_asleep();
    counter.write(1).unwrap();
    assert_eq!(reader.finish(), Ok(1));
    // The thread may have looked before the reader took the count, or after.
    counter.write(1).unwrap();
    assert_eq!(poller.finish().unwrap(), [readable(1)]);
}

#[test]
fn p39_a_writer_beside_pollers() {
    let (set, counter) = one::<Ours>(FULL, Mode::Counter, Watch::WRITABLE);
    let poller = wait(&set);
    poller.wait_asleep();
    let writer = call(&counter, |c| c.write(1));
    writer.wait_asleep();
    counter.try_read().unwrap();
    writer.finish().unwrap();
    assert_eq!(poller.finish().unwrap(), [writable(1)]);
}
