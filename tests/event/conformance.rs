//! What eventfd does, shown to hold for a real eventfd, for `doorbell::Event`, for `doorbell::fd::EventFd`, and for
//! `doorbell::SharedEvent` in one process and in two, by the same test bodies.
//!
//! Each case is a generic function; `all_implementations!` makes a test of it for each [`Counter`], so a failure reads
//! `kernel::e37_…` (the case is wrong) or `doorbell::e37_…` (we are). Where we differ on purpose, the body asks the
//! implementation how it behaves, and a comment says why.
//!
//! The cases of the eventfd reference (E1 to E65), and where they are:
//!
//! | case | test |
//! |---|---|
//! | E4, E22, E23, E62 | `e22_semaphore_gives_single_units`, `e62_semaphore_leaves_the_overflow_state` |
//! | E7, E8, E10, E9 but for its call | `e07_what_is_in_it_is_read_once` |
//! | E20, E21 | `e20_writes_add_up`, `e21_writes_to_a_semaphore_add_up` |
//! | E25, E26, E29, E31 | `e25_…`, `e26_…`, `e29_…`, `e31_…`, `edges_of_…` |
//! | E32, E37 to E41, E43 to E46 | `e32_…`, `e37_…` to `e46_…` |
//! | E47, E50 | `e47_…`, `e50_…` |
//! | E51, E52, E53 | `tests/event/stress.rs` |
//! | E55, E56 | `e55_…` |
//! | E59, E61, E62, E65 | `e59_…`, `e61_…`, `e62_…`, `e65_…`, `edges_of_…` |
//! | E64 | as far as an event has it: `e22_…` reads a semaphore at 0, which stays 0 |
//! | P1 | `p01_…`, and after each call in `edges_of_…` |
//! | `poll(2)` that blocks, for `POLLIN` | `waiting_…`, `one_signal_…`, `a_write_of_zero_…`, `a_wait_…`, `waits_…` |
//! | E1, E2, E3, E5, E9 (flags, the legacy call) | only file descriptors have flags |
//! | E11, E13 to E17, E27, E28, E33 to E35 | a `u64` has no wrong size, bad address or second segment |
//! | E19 | only files have an offset |
//! | E49 | needs a flag to be changed under a call |
//! | E57 | `shared_by_two_processes::…`, all of them |
//! | E58 | a handle cannot be used once dropped |
//! | E63 | `select(2)`; its sets follow from P1 |

#![cfg(target_os = "linux")]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

use ::doorbell::Mode;
use common::caller::{Caller, call, wait_until};
use common::counter::{Counter, EDGES, Readable, rules};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::fmt::Debug;
use std::time::{Duration, Instant};

all_implementations! {
    e07_what_is_in_it_is_read_once,
    e20_writes_add_up,
    e21_writes_to_a_semaphore_add_up,
    e22_semaphore_gives_single_units,
    e25_full_is_one_less_than_max,
    e26_max_is_never_written,
    e29_zero_is_written_but_not_readable,
    e31_half_and_half_do_not_fit,
    edges_of_write,
    edges_of_signal,
    edges_of_read,
    p01_readiness,
    e32_small_write_passes_a_blocked_large_one,
    e37_blocked_reader_is_released_by_a_write,
    e37_blocked_reader_is_released_by_a_signal,
    e38_blocked_writer_is_released_by_a_read,
    e38_released_writer_wakes_a_reader,
    e39_writer_waits_for_all_the_room_it_needs,
    e40_the_write_that_fits_is_released_first,
    e40_a_read_releases_all_writes_that_fit,
    e41_one_of_four_readers_gets_it,
    e41_a_semaphore_releases_a_reader_per_unit,
    e41_units_signalled_one_by_one_release_as_many,
    e43_three_units_for_one_reader,
    e44_zero_releases_no_reader,
    e45_nonblocking_calls_leave_a_blocked_one_alone,
    e46_handle_dropped_while_another_blocks,
    e47_signal_handlers_and_blocked_readers,
    e47_signal_handlers_and_blocked_writers,
    e47_signal_handlers_lose_nothing,
    e47_signal_handlers_do_not_stretch_or_cut_a_timeout,
    e50_nothing_interrupts_a_call_that_need_not_wait,
    e55_handles_share_one_count,
    e59_signal_reaches_the_overflow_state,
    e61_overflow_state_blocks_every_write,
    e62_semaphore_leaves_the_overflow_state,
    e65_signals_saturate,
    timeout_is_not_early,
    timeout_races_a_write,
    timeout_races_a_read,
    timeout_hands_its_wake_up_on,
    waiting_takes_nothing,
    one_signal_ends_every_wait,
    a_write_of_zero_ends_no_wait,
    a_wait_beside_a_reader,
    waits_beside_readers_of_a_semaphore,
    a_wait_that_times_out_beside_a_reader,
    a_wait_is_not_cut_short,
}

// An `EventFd` has no count of u64::MAX, no look at the count from outside, and no time limits.
before_the_move! {
    e07_what_is_in_it_is_read_once,
    e20_writes_add_up,
    e21_writes_to_a_semaphore_add_up,
    e22_semaphore_gives_single_units,
    e25_full_is_one_less_than_max,
    e26_max_is_never_written,
    e29_zero_is_written_but_not_readable,
    e31_half_and_half_do_not_fit,
    edges_of_write,
    edges_of_read,
    e32_small_write_passes_a_blocked_large_one,
    e37_blocked_reader_is_released_by_a_write,
    e38_blocked_writer_is_released_by_a_read,
    e38_released_writer_wakes_a_reader,
    e39_writer_waits_for_all_the_room_it_needs,
    e40_the_write_that_fits_is_released_first,
    e40_a_read_releases_all_writes_that_fit,
    e41_one_of_four_readers_gets_it,
    e41_a_semaphore_releases_a_reader_per_unit,
    e41_units_signalled_one_by_one_release_as_many,
    e43_three_units_for_one_reader,
    e44_zero_releases_no_reader,
    e45_nonblocking_calls_leave_a_blocked_one_alone,
    e46_handle_dropped_while_another_blocks,
    e47_signal_handlers_and_blocked_readers,
    e47_signal_handlers_and_blocked_writers,
    e47_signal_handlers_lose_nothing,
    e50_nothing_interrupts_a_call_that_need_not_wait,
    e55_handles_share_one_count,
}

const MODES: [Mode; 2] = [Mode::Counter, Mode::Semaphore];
const FULL: u64 = u64::MAX - 1;
const PAST: fn() -> Instant = || Instant::now() - Duration::from_millis(1);
const LATER: fn() -> Instant = || Instant::now() + Duration::from_secs(3600);

type Read<C> = fn(&C) -> Result<u64, Errno>;
type Write<C> = fn(&C, u64) -> Result<(), Errno>;

/// The ways to read that give up at once, and the errors that they return then.
fn impatient_reads<C: Counter>() -> [(Read<C>, Errno); 3] {
    [
        (C::try_read, Errno::AGAIN),
        (|c| c.read_timeout(Duration::ZERO), Errno::TIMEDOUT),
        (|c| c.read_deadline(PAST()), Errno::TIMEDOUT),
    ]
}

fn impatient_writes<C: Counter>() -> [(Write<C>, Errno); 3] {
    [
        (C::try_write, Errno::AGAIN),
        (|c, n| c.write_timeout(n, Duration::ZERO), Errno::TIMEDOUT),
        (|c, n| c.write_deadline(n, PAST()), Errno::TIMEDOUT),
    ]
}

/// The ways to read that block. The first has no time limit.
fn patient_reads<C: Counter>() -> [Read<C>; 3] {
    [
        C::read,
        |c| c.read_timeout(Duration::MAX),
        |c| c.read_deadline(LATER()),
    ]
}

fn patient_writes<C: Counter>() -> [Write<C>; 3] {
    [
        C::write,
        |c, n| c.write_timeout(n, Duration::MAX),
        |c, n| c.write_deadline(n, LATER()),
    ]
}

/// Fails unless the count is as given, and poll and a read see the same.
#[track_caller]
fn assert_count<C: Counter>(counter: &C, count: u64) {
    assert_eq!(counter.count(), count);
    assert_eq!(counter.poll(), rules::polled(count), "poll at {count}");
}

/// A number that is not one of the edges, and that a lost or doubled bit changes.
const ODD: u64 = 0x0123_4567_89ab_cdef;

// Without waiting

fn e07_what_is_in_it_is_read_once<C: Counter>() {
    for &initial in C::edges() {
        let counter = C::new(initial, Mode::Counter);
        assert_count(&counter, initial);
        let read = counter.try_read();
        assert_eq!(read, rules::taken(initial, Mode::Counter).map(|(n, _)| n));
        assert_eq!(counter.try_read(), Err(Errno::AGAIN));
        assert_count(&counter, 0);
    }
}

fn e20_writes_add_up<C: Counter>() {
    let counter = C::new(0, Mode::Counter);
    for _ in 0..C::MANY {
        counter.write(1).unwrap();
    }
    assert_eq!(counter.try_read(), Ok(C::MANY));
    assert_eq!(counter.try_read(), Err(Errno::AGAIN));
}

fn e21_writes_to_a_semaphore_add_up<C: Counter>() {
    let counter = C::new(0, Mode::Semaphore);
    for _ in 0..C::MANY {
        counter.write(1).unwrap();
    }
    for _ in 0..C::MANY {
        assert_eq!(counter.read(), Ok(1));
    }
    assert_eq!(counter.try_read(), Err(Errno::AGAIN));
}

fn e22_semaphore_gives_single_units<C: Counter>() {
    let counter = C::new(3, Mode::Semaphore);
    counter.try_write(2).unwrap();
    for left in (0..5).rev() {
        assert_eq!(counter.try_read(), Ok(1));
        assert_count(&counter, left);
    }
    for _ in 0..2 {
        assert_eq!(counter.try_read(), Err(Errno::AGAIN));
        assert_count(&counter, 0);
    }
}

fn e25_full_is_one_less_than_max<C: Counter>() {
    let counter = C::new(0, Mode::Counter);
    assert_eq!(counter.try_write(FULL), Ok(()));
    assert_eq!(counter.try_write(1), Err(Errno::AGAIN));
    assert_eq!(counter.try_write(FULL), Err(Errno::AGAIN));
    assert_eq!(counter.try_write(0), Ok(()));
    assert_count(&counter, FULL);
    assert_eq!(counter.try_read(), Ok(FULL));
}

/// The write is refused whether it may block or not, and also when nothing else can be written.
fn e26_max_is_never_written<C: Counter>() {
    for &count in C::edges() {
        let counter = C::new(count, Mode::Counter);
        let writes = patient_writes()
            .into_iter()
            .chain(impatient_writes().map(|(write, _)| write));
        for write in writes {
            assert_eq!(write(&counter, u64::MAX), Err(Errno::INVAL));
            assert_count(&counter, count);
        }
    }
}

fn e29_zero_is_written_but_not_readable<C: Counter>() {
    let counter = C::new(0, Mode::Counter);
    assert_eq!(counter.write(0), Ok(()));
    assert_count(&counter, 0);
    assert_eq!(counter.try_read(), Err(Errno::AGAIN));
}

fn e31_half_and_half_do_not_fit<C: Counter>() {
    const HALF: u64 = 1 << 63;
    let counter = C::new(HALF, Mode::Counter);
    assert_eq!(counter.try_write(HALF), Err(Errno::AGAIN));
    assert_eq!(counter.try_write(HALF - 1), Err(Errno::AGAIN));
    assert_count(&counter, HALF);
    assert_eq!(counter.try_write(HALF - 2), Ok(()));
    assert_count(&counter, FULL);
}

/// Calls `body` for each mode and each count at the edge.
fn at_each_edge<C: Counter>(body: impl Fn(Mode, u64)) {
    for mode in MODES {
        for &count in C::edges() {
            body(mode, count);
        }
    }
}

fn edges_of_write<C: Counter>() {
    at_each_edge::<C>(|mode, count| {
        for n in EDGES {
            for (write, would_block) in impatient_writes::<C>() {
                let counter = C::new(count, mode);
                let expected = rules::written(count, n);
                let result = write(&counter, n);
                let expected_result = expected.map(drop).map_err(|error| match error {
                    Errno::AGAIN => would_block,
                    error => error,
                });
                assert_eq!(result, expected_result, "{n} to {mode:?} at {count}");
                assert_count(&counter, expected.unwrap_or(count));
            }
        }
    });
}

/// The kernel's program-side interface has no `eventfd_signal(n)` any more; the test takes the kernel's counter there
/// in two steps.
fn edges_of_signal<C: Counter>() {
    at_each_edge::<C>(|mode, count| {
        for n in EDGES {
            let counter = C::new(count, mode);
            counter.signal_n(n);
            assert_count(&counter, rules::signalled(count, n));
        }
        let counter = C::new(count, mode);
        counter.signal();
        assert_count(&counter, rules::signalled(count, 1));
    });
}

fn edges_of_read<C: Counter>() {
    at_each_edge::<C>(|mode, count| {
        for (read, would_block) in impatient_reads::<C>() {
            let counter = C::new(count, mode);
            match rules::taken(count, mode) {
                Ok((taken, left)) => {
                    assert_eq!(read(&counter), Ok(taken), "{mode:?} at {count}");
                    assert_count(&counter, left);
                }
                Err(_) => {
                    assert_eq!(read(&counter), Err(would_block));
                    assert_count(&counter, count);
                }
            }
        }
        if let Ok((taken, left)) = rules::taken(count, mode) {
            for read in patient_reads::<C>() {
                let counter = C::new(count, mode);
                assert_eq!(read(&counter), Ok(taken));
                assert_count(&counter, left);
            }
        }
    });
}

fn p01_readiness<C: Counter>() {
    const IN: PollFlags = PollFlags::IN;
    const OUT: PollFlags = PollFlags::OUT;
    const ERR: PollFlags = PollFlags::ERR;
    for (count, ready) in [
        (0, OUT),
        (1, IN | OUT),
        (2, IN | OUT),
        (1 << 63, IN | OUT),
        (u64::MAX - 3, IN | OUT),
        (u64::MAX - 2, IN | OUT),
        (u64::MAX - 1, IN),
        (u64::MAX, IN | ERR),
    ] {
        for mode in MODES {
            assert_eq!(C::new(count, mode).poll(), ready, "{mode:?} at {count}");
        }
    }
}

// Overflow

fn e59_signal_reaches_the_overflow_state<C: Counter>() {
    let counter = C::new(FULL, Mode::Counter);
    counter.signal();
    assert_count(&counter, u64::MAX);
    counter.signal();
    assert_count(&counter, u64::MAX);
    assert_eq!(counter.read(), Ok(u64::MAX));
    assert_count(&counter, 0);
}

fn e61_overflow_state_blocks_every_write<C: Counter>() {
    let counter = C::new(u64::MAX, Mode::Counter);
    for n in [0, 1] {
        assert_eq!(counter.try_write(n), Err(Errno::AGAIN));
        let writer = call(&counter, move |c| c.write(n));
        writer.wait_asleep();
        assert_eq!(counter.try_read(), Ok(u64::MAX));
        assert_eq!(writer.finish(), Ok(()));
        assert_count(&counter, n);
        counter.signal_n(u64::MAX);
    }
}

fn e62_semaphore_leaves_the_overflow_state<C: Counter>() {
    let counter = C::new(u64::MAX, Mode::Semaphore);
    let writer = call(&counter, |c| c.write(0));
    writer.wait_asleep();
    assert_eq!(counter.try_read(), Ok(1));
    assert_count(&counter, FULL);
    assert_eq!(writer.finish(), Ok(()));
    assert_count(&counter, FULL);
}

fn e65_signals_saturate<C: Counter>() {
    for (room, n) in [
        (5, 4),
        (5, 5),
        (5, 6),
        (1, 0),
        (0, 0),
        (0, 1),
        (5, u64::MAX),
    ] {
        let counter = C::new(u64::MAX - room, Mode::Counter);
        counter.signal_n(n);
        assert_count(&counter, u64::MAX - room.saturating_sub(n));
    }
}

// Blocked callers

/// Fails unless an operation that had nothing for this sleeping caller left it asleep. The kernel wakes the caller,
/// which finds nothing and sleeps again.
#[track_caller]
fn assert_passed_over<C: Counter, T>(caller: &Caller<T>) {
    if C::WAKES_ALL {
        caller.wait_asleep_again();
    } else {
        caller.assert_undisturbed();
    }
}

fn e32_small_write_passes_a_blocked_large_one<C: Counter>() {
    for write in patient_writes::<C>() {
        let counter = C::new(u64::MAX - 11, Mode::Counter);
        let large = call(&counter, move |c| write(c, 100));
        large.wait_asleep();
        assert_eq!(write(&counter, 5), Ok(()));
        assert_passed_over::<C, _>(&large);
        assert_count(&counter, u64::MAX - 6);
        assert_eq!(counter.try_read(), Ok(u64::MAX - 6));
        assert_eq!(large.finish(), Ok(()));
        assert_count(&counter, 100);
    }
}

/// Lets each kind of blocked reader be released by `release`, which adds some number to a counter of either mode.
fn released_readers<C: Counter>(release: fn(&C, u64)) {
    for mode in MODES {
        for read in patient_reads::<C>() {
            for n in [1, (1 << 32) - 1, 1 << 32, 1 << 63, FULL, ODD] {
                let counter = C::new(0, mode);
                let reader = call(&counter, read);
                reader.wait_asleep();
                release(&counter, n);
                let (taken, left) = rules::taken(n, mode).unwrap();
                assert_eq!(reader.finish(), Ok(taken));
                assert_count(&counter, left);
            }
        }
    }
}

fn e37_blocked_reader_is_released_by_a_write<C: Counter>() {
    released_readers::<C>(|counter, n| counter.write(n).unwrap());
}

/// There is one signal, because several need not reach the kernel's reader as one.
fn e37_blocked_reader_is_released_by_a_signal<C: Counter>() {
    for mode in MODES {
        for read in patient_reads::<C>() {
            let counter = C::new(0, mode);
            let reader = call(&counter, read);
            reader.wait_asleep();
            counter.signal();
            assert_eq!(reader.finish(), Ok(1));
            assert_count(&counter, 0);
        }
    }
}

fn e38_blocked_writer_is_released_by_a_read<C: Counter>() {
    for &count in C::edges() {
        for n in EDGES {
            if rules::written(count, n) != Err(Errno::AGAIN) {
                continue;
            }
            for write in patient_writes::<C>() {
                let counter = C::new(count, Mode::Counter);
                let writer = call(&counter, move |c| write(c, n));
                writer.wait_asleep();
                assert_count(&counter, count);
                assert_eq!(counter.read(), Ok(count));
                assert_eq!(writer.finish(), Ok(()), "{n} to {count}");
                assert_count(&counter, n);
            }
        }
    }
}

fn e38_released_writer_wakes_a_reader<C: Counter>() {
    for _ in 0..50 {
        let counter = C::new(FULL, Mode::Counter);
        let writer = call(&counter, |c| c.write(7));
        writer.wait_asleep();
        // The second read most often sleeps before the writer has run.
        let reader = call(&counter, |c| (c.read(), c.read()));
        assert_eq!(reader.finish(), (Ok(FULL), Ok(7)));
        assert_eq!(writer.finish(), Ok(()));
    }
}

fn e39_writer_waits_for_all_the_room_it_needs<C: Counter>() {
    for write in patient_writes::<C>() {
        let counter = C::new(FULL, Mode::Semaphore);
        let writer = call(&counter, move |c| write(c, 3));
        writer.wait_asleep();
        for taken in 1..=2 {
            assert_eq!(counter.try_read(), Ok(1));
            writer.wait_asleep_again();
            assert_count(&counter, FULL - taken);
        }
        assert_eq!(counter.try_read(), Ok(1));
        assert_eq!(writer.finish(), Ok(()));
        assert_count(&counter, FULL);
    }
}

fn e40_the_write_that_fits_is_released_first<C: Counter>() {
    let counter = C::new(FULL, Mode::Semaphore);
    let large = call(&counter, |c| c.write(10));
    large.wait_asleep();
    let small = call(&counter, |c| c.write(1));
    small.wait_asleep();

    assert_eq!(counter.try_read(), Ok(1));
    assert_eq!(small.finish(), Ok(()));
    large.wait_asleep_again();
    assert_count(&counter, FULL);

    for taken in 1..10 {
        assert_eq!(counter.try_read(), Ok(1));
        large.wait_asleep_again();
        assert_count(&counter, FULL - taken);
    }
    assert_eq!(counter.try_read(), Ok(1));
    assert_eq!(large.finish(), Ok(()));
    assert_count(&counter, FULL);
}

fn e40_a_read_releases_all_writes_that_fit<C: Counter>() {
    let counter = C::new(FULL, Mode::Counter);
    let writers: Vec<_> = (1..=4)
        .map(|n| call(&counter, move |c| c.write(n)))
        .collect();
    writers.iter().for_each(Caller::wait_asleep);
    assert_eq!(counter.try_read(), Ok(FULL));
    for writer in writers {
        assert_eq!(writer.finish(), Ok(()));
    }
    assert_count(&counter, 1 + 2 + 3 + 4);
}

/// Readers that sleep, each in a call of its own, and fell asleep in this order.
fn sleeping_readers<C: Counter>(counter: &C, number: usize) -> Vec<Caller<Result<u64, Errno>>> {
    (0..number)
        .map(|index| {
            let reads = patient_reads::<C>();
            let reader = call(counter, reads[index % reads.len()]);
            reader.wait_asleep();
            reader
        })
        .collect()
}

/// Takes out the callers whose calls return, which must be `number`, and returns their results.
fn take_returned<T: Debug>(callers: &mut Vec<Caller<T>>, number: usize) -> Vec<T> {
    wait_until("callers to return", || {
        callers
            .iter()
            .filter(|caller| caller.has_returned())
            .count()
            >= number
    });
    let (returned, blocked) = callers.drain(..).partition(|caller| caller.has_returned());
    *callers = blocked;
    let results: Vec<_> = returned.into_iter().map(Caller::finish).collect();
    assert_eq!(results.len(), number, "more returned: {results:?}");
    results
}

fn e41_one_of_four_readers_gets_it<C: Counter>() {
    let counter = C::new(0, Mode::Counter);
    let mut readers = sleeping_readers(&counter, 4);
    while !readers.is_empty() {
        counter.write(5).unwrap();
        assert_eq!(take_returned(&mut readers, 1), [Ok(5)]);
        readers.iter().for_each(assert_passed_over::<C, _>);
        assert_count(&counter, 0);
    }
}

fn e41_a_semaphore_releases_a_reader_per_unit<C: Counter>() {
    let counter = C::new(0, Mode::Semaphore);
    let mut readers = sleeping_readers(&counter, 4);
    counter.write(3).unwrap();
    assert_eq!(take_returned(&mut readers, 3), [Ok(1); 3]);
    readers[0].wait_asleep();
    assert_count(&counter, 0);
    counter.write(3).unwrap();
    assert_eq!(take_returned(&mut readers, 1), [Ok(1)]);
    assert_count(&counter, 2);
}

/// The second unit comes while the first has woken a reader that has not yet run.
fn e41_units_signalled_one_by_one_release_as_many<C: Counter>() {
    for _ in 0..50 {
        let counter = C::new(0, Mode::Semaphore);
        let mut readers = sleeping_readers(&counter, 3);
        counter.signal();
        counter.signal();
        assert_eq!(take_returned(&mut readers, 2), [Ok(1); 2]);
        readers[0].wait_asleep();
        counter.signal();
        assert_eq!(take_returned(&mut readers, 1), [Ok(1)]);
        assert_count(&counter, 0);
    }
}

fn e43_three_units_for_one_reader<C: Counter>() {
    let counter = C::new(0, Mode::Semaphore);
    let reader = call(&counter, |c| [c.read(), c.read(), c.read()]);
    for _ in 0..3 {
        reader.wait_asleep();
        counter.write(1).unwrap();
    }
    assert_eq!(reader.finish(), [Ok(1); 3]);
}

fn e44_zero_releases_no_reader<C: Counter>() {
    for mode in MODES {
        let counter = C::new(0, mode);
        let reader = call(&counter, C::read);
        reader.wait_asleep();
        for _ in 0..10 {
            counter.write(0).unwrap();
            assert_passed_over::<C, _>(&reader);
            counter.signal_n(0);
            reader.assert_undisturbed();
        }
        assert_count(&counter, 0);
        // The zeros have not used up the reader's announcement either.
        counter.write(1).unwrap();
        assert_eq!(reader.finish(), Ok(1));
    }
}

fn e45_nonblocking_calls_leave_a_blocked_one_alone<C: Counter>() {
    let counter = C::new(0, Mode::Counter);
    let reader = call(&counter, C::read);
    reader.wait_asleep();
    for (read, would_block) in impatient_reads() {
        assert_eq!(read(&counter), Err(would_block));
        assert_eq!(counter.try_write(0), Ok(()));
        reader.wait_asleep();
    }
    assert_eq!(counter.try_write(1), Ok(()));
    assert_eq!(reader.finish(), Ok(1));

    let counter = C::new(FULL, Mode::Counter);
    let writer = call(&counter, |c| c.write(1));
    writer.wait_asleep();
    for (write, would_block) in impatient_writes() {
        assert_eq!(write(&counter, 1), Err(would_block));
        writer.wait_asleep();
    }
    assert_eq!(counter.try_read(), Ok(FULL));
    assert_eq!(writer.finish(), Ok(()));
    assert_count(&counter, 1);
}

fn e46_handle_dropped_while_another_blocks<C: Counter>() {
    let counter = C::new(0, Mode::Counter);
    let reader = call(&counter, C::read);
    reader.wait_asleep();
    let other = counter.clone();
    drop(counter);
    reader.wait_asleep();
    other.write(4).unwrap();
    drop(other);
    assert_eq!(reader.finish(), Ok(4));
}

fn e55_handles_share_one_count<C: Counter>() {
    let counter = C::new(0, Mode::Counter);
    let other = counter.clone();
    counter.write(6).unwrap();
    assert_eq!(other.read(), Ok(6));
    other.write(7).unwrap();
    drop(counter);
    assert_eq!(other.read(), Ok(7));
}

// Signal handlers. The kernel's calls end with EINTR, and a program makes them again. Ours go on by themselves: a sleep
// in them that ends spuriously causes only one more look at the count.

extern "C" fn do_nothing(_: libc::c_int) {}

/// A signal with a handler, after which the kernel makes a call again if `restart`.
fn handled_signal(restart: bool) -> libc::c_int {
    let (signal, flags) = if restart {
        (libc::SIGUSR2, libc::SA_RESTART)
    } else {
        (libc::SIGUSR1, 0)
    };
    // SAFETY: all zero is a valid sigaction, with an empty mask; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
    signal
}

/// Interrupts a call that blocks on `counter`. If the call ends with `EINTR`, as a call without a time limit does in
/// the kernel unless it is to be restarted, the count must be as before. Otherwise it must still sleep, and `release`
/// ends it.
fn interrupt_blocked<C: Counter, T: Debug + PartialEq + Send + 'static>(
    counter: &C,
    timed: bool,
    restart: bool,
    body: impl FnOnce(&C) -> Result<T, Errno> + Send + 'static,
    release: impl FnOnce() -> T,
) {
    let count = counter.count();
    let signal = handled_signal(restart);
    let caller = call(counter, body);
    if C::INTERRUPTIBLE && !restart && !timed {
        caller.wait_asleep();
        caller.interrupt(signal);
        assert_eq!(caller.finish(), Err(Errno::INTR));
        assert_count(counter, count);
        return;
    }
    caller.wait_asleep();
    for _ in 0..5 {
        caller.interrupt(signal);
        caller.wait_asleep_again();
        assert_count(counter, count);
    }
    let expected = release();
    assert_eq!(caller.finish(), Ok(expected));
}

fn e47_signal_handlers_and_blocked_readers<C: Counter>() {
    for restart in [false, true] {
        for (index, read) in patient_reads::<C>().into_iter().enumerate() {
            let counter = C::new(0, Mode::Counter);
            interrupt_blocked(&counter, index > 0, restart, read, || {
                counter.write(3).unwrap();
                3
            });
        }
    }
}

fn e47_signal_handlers_and_blocked_writers<C: Counter>() {
    for restart in [false, true] {
        for (index, write) in patient_writes::<C>().into_iter().enumerate() {
            let counter = C::new(FULL, Mode::Counter);
            let body = move |c: &C| write(c, 3);
            interrupt_blocked(&counter, index > 0, restart, body, || {
                assert_eq!(counter.try_read(), Ok(FULL));
            });
        }
    }
}

/// Makes the call again while it is interrupted, as a program does.
fn retrying<T>(call: impl Fn() -> Result<T, Errno>) -> T {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done.unwrap(),
        }
    }
}

fn e47_signal_handlers_lose_nothing<C: Counter>() {
    const WRITES: u64 = 2_000;
    let signal = handled_signal(false);
    // The counter is empty, so that the reader blocks, or has room for three, so that the writer blocks.
    for (mode, initial) in MODES
        .into_iter()
        .flat_map(|mode| [(mode, 0), (mode, FULL - 3)])
    {
        let total = u128::from(initial) + u128::from(WRITES);
        let goal = match mode {
            Mode::Counter => total,
            Mode::Semaphore => WRITES.into(),
        };
        let counter = C::new(initial, mode);
        let reader = call(&counter, move |c| {
            let mut sum = 0;
            while sum < goal {
                sum += u128::from(retrying(|| c.read()));
            }
            sum
        });
        let writer = call(&counter, |c| {
            for _ in 0..WRITES {
                retrying(|| c.write(1));
            }
        });
        while !(reader.has_returned() && writer.has_returned()) {
            reader.interrupt(signal);
            writer.interrupt(signal);
        }
        writer.finish();
        assert_eq!(reader.finish() + u128::from(counter.count()), total);
    }
}

/// A call with a time limit that is interrupted again and again ends at its time, not earlier, and not never.
fn e47_signal_handlers_do_not_stretch_or_cut_a_timeout<C: Counter>() {
    let signal = handled_signal(false);
    let limit = Duration::from_millis(30);
    let empty = C::new(0, Mode::Counter);
    let full = C::new(FULL, Mode::Counter);
    let start = Instant::now();
    let callers = [
        call(&empty, move |c| c.read_timeout(limit).map(drop)),
        call(&full, move |c| c.write_timeout(1, limit)),
    ];
    while !callers.iter().all(Caller::has_returned) {
        callers.iter().for_each(|caller| caller.interrupt(signal));
    }
    assert!(start.elapsed() >= limit);
    for caller in callers {
        assert_eq!(caller.finish(), Err(Errno::TIMEDOUT));
    }
}

fn e50_nothing_interrupts_a_call_that_need_not_wait<C: Counter>() {
    let signal = handled_signal(false);
    let counter = C::new(0, Mode::Counter);
    let caller = call(&counter, |c| {
        for n in 1..=C::MANY / 5 {
            assert_eq!(c.write(n), Ok(()));
            assert_eq!(c.read(), Ok(n));
        }
    });
    while !caller.has_returned() {
        caller.interrupt(signal);
    }
    caller.finish();
}

// Time limits

fn timeout_is_not_early<C: Counter>() {
    let limit = Duration::from_millis(5);
    let empty = C::new(0, Mode::Counter);
    let full = C::new(FULL, Mode::Counter);
    let timed = |wait: &dyn Fn(Instant) -> Result<(), Errno>| {
        let deadline = Instant::now() + limit;
        assert_eq!(wait(deadline), Err(Errno::TIMEDOUT));
        assert!(Instant::now() >= deadline, "early");
    };
    timed(&|_| empty.read_timeout(limit).map(drop));
    timed(&|deadline| empty.read_deadline(deadline).map(drop));
    timed(&|_| full.write_timeout(1, limit));
    timed(&|deadline| full.write_deadline(1, deadline));
    assert_count(&empty, 0);
    assert_count(&full, FULL);
}

/// When to act so as to meet another thread's deadline: a little earlier after it was missed, a little later after it
/// was made.
struct Aim {
    before: Duration,
}

impl Aim {
    const STEP: Duration = Duration::from_micros(3);

    fn new() -> Self {
        Aim {
            before: Duration::from_micros(50),
        }
    }

    fn wait(&self, deadline: Instant) {
        while Instant::now() + self.before < deadline {
            std::hint::spin_loop();
        }
    }

    fn learn(&mut self, made_it: bool) {
        self.before = if made_it {
            self.before.saturating_sub(Self::STEP)
        } else {
            self.before + Self::STEP
        };
    }
}

const RACES: u64 = 300;

/// A value that comes as the time runs out is returned, or is still in the counter.
fn timeout_races_a_write<C: Counter>() {
    for mode in MODES {
        let counter = C::new(0, mode);
        let mut aim = Aim::new();
        for round in 1..=RACES {
            let n = if mode == Mode::Semaphore { 1 } else { round };
            let deadline = Instant::now() + Duration::from_micros(300);
            let reader = call(&counter, move |c| c.read_deadline(deadline));
            aim.wait(deadline);
            counter.write(n).unwrap();
            let result = reader.finish();
            match result {
                Ok(value) => assert_eq!((value, counter.count()), (n, 0)),
                Err(Errno::TIMEDOUT) => assert_eq!(counter.try_read(), Ok(n)),
                Err(error) => panic!("{error}"),
            }
            aim.learn(result.is_ok());
        }
    }
}

/// A write that is given room as its time runs out adds all of its number, or nothing.
fn timeout_races_a_read<C: Counter>() {
    let mut aim = Aim::new();
    for _ in 0..RACES {
        let counter = C::new(FULL, Mode::Counter);
        let deadline = Instant::now() + Duration::from_micros(300);
        let writer = call(&counter, move |c| c.write_deadline(ODD, deadline));
        aim.wait(deadline);
        assert_eq!(counter.read(), Ok(FULL));
        let result = writer.finish();
        match result {
            Ok(()) => assert_count(&counter, ODD),
            Err(Errno::TIMEDOUT) => assert_count(&counter, 0),
            Err(error) => panic!("{error}"),
        }
        aim.learn(result.is_ok());
    }
}

/// If the thread that a write wakes runs out of time just then, another thread gets the value.
fn timeout_hands_its_wake_up_on<C: Counter>() {
    for mode in MODES {
        let counter = C::new(0, mode);
        let mut aim = Aim::new();
        for _ in 0..RACES / 3 {
            let deadline = Instant::now() + Duration::from_millis(2);
            let timed = call(&counter, move |c| c.read_deadline(deadline));
            // On a busy machine the time may be up already.
            wait_until("the first reader to be first", || {
                timed.is_asleep() || timed.has_returned()
            });
            let patient = call(&counter, C::read);
            patient.wait_asleep();
            aim.wait(deadline);
            counter.write(1).unwrap();
            let result = timed.finish();
            if result.is_ok() {
                patient.wait_asleep();
                counter.write(1).unwrap();
            }
            assert_eq!(patient.finish(), Ok(1));
            assert_count(&counter, 0);
            aim.learn(result.is_ok());
        }
    }
}

/// The ways to wait without taking, none of which times out in practice.
fn patient_waits<C: Readable>() -> [fn(&C) -> bool; 3] {
    [
        |c| {
            c.wait_readable();
            true
        },
        |c| c.wait_readable_timeout(Duration::MAX),
        |c| c.wait_readable_deadline(LATER()),
    ]
}

/// Callers asleep in such calls, each in another way.
fn sleeping_waiters<C: Readable>(counter: &C, number: usize) -> Vec<Caller<bool>> {
    let waits = patient_waits::<C>();
    let waiters: Vec<_> = (0..number)
        .map(|index| call(counter, waits[index % waits.len()]))
        .collect();
    waiters.iter().for_each(Caller::wait_asleep);
    waiters
}

fn waiting_takes_nothing<C: Readable>() {
    for mode in MODES {
        for &count in C::edges() {
            let counter = C::new(count, mode);
            assert_eq!(counter.wait_readable_timeout(Duration::ZERO), count != 0);
            assert_eq!(counter.wait_readable_deadline(PAST()), count != 0);
            if count != 0 {
                assert!(patient_waits::<C>().iter().all(|wait| wait(&counter)));
            }
            assert_count(&counter, count);
        }
    }
}

/// A broadcast: a signal of any number, which no thread reads.
fn one_signal_ends_every_wait<C: Readable>() {
    type Cause<C> = (fn(&C), u64);
    let causes: [Cause<C>; 4] = [
        (C::signal, 1),
        (|c| c.signal_n(2), 2),
        (|c| c.write(FULL).unwrap(), FULL),
        (|c| c.signal_n(u64::MAX), u64::MAX),
    ];
    for mode in MODES {
        for (cause, count) in causes {
            let counter = C::new(0, mode);
            let waiters = sleeping_waiters(&counter, 5);
            cause(&counter);
            for waiter in waiters {
                assert!(waiter.finish());
            }
            assert_count(&counter, count);
            // A caller that comes later does not wait.
            assert!(patient_waits::<C>().iter().all(|wait| wait(&counter)));
        }
    }
}

fn a_write_of_zero_ends_no_wait<C: Readable>() {
    for mode in MODES {
        let counter = C::new(0, mode);
        let waiters = sleeping_waiters(&counter, 2);
        counter.write(0).unwrap();
        waiters.iter().for_each(assert_passed_over::<C, _>);
        counter.signal();
        for waiter in waiters {
            assert!(waiter.finish());
        }
    }
}

/// Whichever of the two sleeps first, the reader gets the value that is written. The wait may see the value, or sleep
/// through it.
fn a_wait_beside_a_reader<C: Readable>() {
    for mode in MODES {
        for round in 0..20 {
            let counter = C::new(0, mode);
            let wait = patient_waits::<C>()[round / 2 % 3];
            let sleeping = |body: fn(&C) -> u64| {
                let caller = call(&counter, body);
                caller.wait_asleep();
                caller
            };
            let read: fn(&C) -> u64 = |c| c.read().unwrap();
            let waiting = || {
                let caller = call(&counter, wait);
                caller.wait_asleep();
                caller
            };
            let (reader, waiter) = if round % 2 == 0 {
                let waiter = waiting();
                (sleeping(read), waiter)
            } else {
                (sleeping(read), waiting())
            };
            counter.signal();
            assert_eq!(reader.finish(), 1);
            assert_count(&counter, 0);
            counter.signal();
            assert!(waiter.finish());
            assert_count(&counter, 1);
        }
    }
}

/// There is a unit for each reader, however many callers wait beside them without taking.
fn waits_beside_readers_of_a_semaphore<C: Readable>() {
    for _ in 0..20 {
        let counter = C::new(0, Mode::Semaphore);
        let mut waiters = sleeping_waiters(&counter, 2);
        let readers = sleeping_readers(&counter, 2);
        waiters.extend(sleeping_waiters(&counter, 1));
        counter.signal();
        counter.signal();
        for reader in readers {
            assert_eq!(reader.finish(), Ok(1));
        }
        counter.write(3).unwrap();
        for waiter in waiters {
            assert!(waiter.finish());
        }
        assert_count(&counter, 3);
    }
}

/// If the thread that a signal wakes runs out of time just then, the reader gets the value all the same.
fn a_wait_that_times_out_beside_a_reader<C: Readable>() {
    for mode in MODES {
        let counter = C::new(0, mode);
        let mut aim = Aim::new();
        for _ in 0..RACES / 3 {
            let deadline = Instant::now() + Duration::from_millis(2);
            let timed = call(&counter, move |c| c.wait_readable_deadline(deadline));
            // On a busy machine the time may be up already.
            wait_until("the wait to be first", || {
                timed.is_asleep() || timed.has_returned()
            });
            let patient = call(&counter, C::read);
            patient.wait_asleep();
            aim.wait(deadline);
            counter.write(1).unwrap();
            assert_eq!(patient.finish(), Ok(1));
            let made_it = timed.finish();
            assert_count(&counter, 0);
            aim.learn(made_it);
        }
    }
}

fn a_wait_is_not_cut_short<C: Readable>() {
    let limit = Duration::from_millis(5);
    let counter = C::new(0, Mode::Counter);
    let deadline = Instant::now() + limit;
    assert!(!counter.wait_readable_timeout(limit));
    assert!(Instant::now() >= deadline, "early");
    let deadline = Instant::now() + limit;
    assert!(!counter.wait_readable_deadline(deadline));
    assert!(Instant::now() >= deadline, "early");
}

/// What has no counterpart in the kernel.
mod only_ours {
    use super::{Caller, FULL, call, wait_until};
    use crate::common::caller::call_at;
    use crate::common::counter::{Counter, Place};
    use crate::common::ours::NeverSpin;
    use crate::common::signalled::Signalled;
    use ::doorbell::{Event, Mode, SharedEvent, Spin, WriteError};
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn debug_shows_who_waits() {
        let event = NeverSpin::new(0, Mode::Counter);
        let shows = |text: &str| format!("{event:?}").contains(text);
        assert!(shows(
            "count: 0, mode: Counter, waiting_readers: 0, waiting_writers: 0, spin: Never"
        ));
        let readers = [
            call(&event, |c| Event::read(c)),
            call(&event, |c| Event::read(c)),
        ];
        readers.iter().for_each(Caller::wait_asleep);
        assert!(shows("waiting_readers: 2, waiting_writers: 0"));
        event.signal();
        wait_until("a reader to leave", || shows("waiting_readers: 1"));
        event.signal();
        for reader in readers {
            assert_eq!(reader.finish(), 1);
        }
        assert!(shows("waiting_readers: 0"));

        event.write(FULL).unwrap();
        let writer = call(&event, |c| c.write(1));
        writer.wait_asleep();
        assert!(shows("waiting_readers: 0, waiting_writers: 1"));
        assert_eq!(event.read(), Ok(FULL));
        writer.finish().unwrap();
        assert!(shows(
            "count: 1, mode: Counter, waiting_readers: 0, waiting_writers: 0"
        ));
    }

    /// All units at once, and room for the writers that wait.
    #[test]
    fn all_of_a_semaphore_is_read_at_once() {
        for mode in [Mode::Counter, Mode::Semaphore] {
            for count in [1, 5, 1 << 63, FULL, u64::MAX] {
                let whole = Event::with_mode(count, mode);
                let read = [whole.try_read_all(), whole.try_read_all()];
                assert_eq!((read, whole.count()), ([Some(count), None], 0));

                let split = Signalled::new(0, mode);
                Counter::signal_n(&split, count - 1);
                Counter::signal(&split);
                let read = [split.try_read_all(), split.try_read_all()];
                assert_eq!((read, Counter::count(&split)), ([Some(count), None], 0));

                let (shared, _) = SharedEvent::create(count, mode).unwrap();
                let read = [shared.try_read_all(), shared.try_read_all()];
                assert_eq!((read, shared.count()), ([Some(count), None], 0));
            }
        }
        let event = NeverSpin::new(FULL, Mode::Semaphore);
        let writer = call(&event, |c| c.write(7));
        writer.wait_asleep();
        assert_eq!(event.try_read_all(), Some(FULL));
        assert_eq!(writer.finish(), Ok(()));
        assert_eq!(event.try_read_all(), Some(7));
    }

    /// Such an event differs only in how it waits.
    #[test]
    fn an_event_that_never_sleeps() {
        let limit = Duration::from_millis(5);
        let event = Arc::new(Event::new(0).with_spin(Spin::Always));
        // A call that has had time to begin to spin.
        fn spinning<T: Send + 'static>(
            event: &Arc<Event>,
            body: impl FnOnce(&Event) -> T + Send + 'static,
        ) -> Caller<T> {
            let event = Arc::clone(event);
            let caller = call_at(Place::Futex, move || body(&event));
            thread::sleep(Duration::from_millis(5));
            assert!(!caller.has_returned() && !caller.is_asleep());
            caller
        }
        assert_eq!(event.read_timeout(limit), None);
        let reader = spinning(&event, Event::read);
        event.write(FULL).unwrap();
        assert_eq!(reader.finish(), FULL);
        event.write(FULL).unwrap();
        assert_eq!(event.write_timeout(1, limit), Err(WriteError::TimedOut));
        assert_eq!(event.count(), FULL);
        let writer = spinning(&event, |event| event.write(3));
        assert_eq!(event.read(), FULL);
        assert_eq!(writer.finish(), Ok(()));
        assert_eq!(event.count(), 3);
    }
}
