//! Many threads on one counter: nothing is lost or doubled, and no thread hangs.
//!
//! Every test adds up what was written and what was read, and has a watchdog, which shows the event and aborts the
//! process: a lost wake-up is a hang. The bodies run over a real eventfd too, which shows that they ask for no more
//! than eventfd does.

#![cfg(target_os = "linux")]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

use ::doorbell::Mode;
use common::counter::{Counter, Readable};
use common::watchdog::Watchdog;
use fastrand::Rng;
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

all_implementations! {
    e51_random_writes,
    e51_random_writes_to_a_semaphore,
    e52_a_prime_for_each_of_168_writers,
    e53_four_readers_of_a_semaphore_with_feedback,
    every_way_to_call_while_readers_block,
    every_way_to_call_a_semaphore_while_readers_block,
    every_way_to_call_while_writers_block,
    every_way_to_call_a_semaphore_while_writers_block,
    waiting_beside_readers,
    waiting_beside_readers_of_a_semaphore,
}

before_the_move! {
    e51_random_writes,
    e51_random_writes_to_a_semaphore,
    e52_a_prime_for_each_of_168_writers,
}

/// The most that a count may hold without overflow.
const FULL: u64 = u64::MAX - 1;

/// The number of readers, and of writers.
const THREADS: u64 = 4;

fn watch<C: Counter>(counter: &C) -> Watchdog {
    let counter = counter.clone();
    Watchdog::new(Duration::from_secs(30), move || format!("{counter:?}"))
}

/// Runs `body` in a thread with a handle of its own.
fn spawn<C: Counter, T: Send + 'static>(
    counter: &C,
    body: impl FnOnce(&C) -> T + Send + 'static,
) -> JoinHandle<T> {
    let counter = counter.clone();
    thread::spawn(move || body(&counter))
}

fn sum(threads: Vec<JoinHandle<u128>>) -> u128 {
    threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum()
}

/// Readers that go on until they are told to stop, and the sum of what they took.
struct Readers {
    threads: Vec<JoinHandle<u128>>,
    stop: Arc<AtomicBool>,
}

impl Readers {
    /// `body` makes a call, and returns what it took.
    fn start<C: Counter>(
        counter: &C,
        body: impl Fn(&C, &mut Rng) -> u64 + Clone + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS)
            .map(|index| {
                let (stop, body) = (Arc::clone(&stop), body.clone());
                spawn(counter, move |c| {
                    let mut random = Rng::with_seed(index);
                    let mut taken = 0;
                    while !stop.load(Ordering::Relaxed) {
                        taken += u128::from(body(c, &mut random));
                    }
                    taken
                })
            })
            .collect();
        Readers { threads, stop }
    }

    /// Stops the readers, and checks the sum of everything that was written: `written` by others, and some here to
    /// release readers that block.
    fn settle<C: Counter>(self, counter: &C, mut written: u128) {
        self.stop.store(true, Ordering::Relaxed);
        while !self.threads.iter().all(JoinHandle::is_finished) {
            written += counter.try_write(1).map_or(0, |()| 1);
            thread::sleep(Duration::from_micros(100));
        }
        let taken = sum(self.threads);
        assert_eq!(taken + u128::from(counter.count()), written);
    }
}

/// Writers that make some calls each; their results are the sums that they have added.
fn start_writers<C: Counter>(
    counter: &C,
    calls: u64,
    body: impl Fn(&C, &mut Rng) -> u64 + Clone + Send + 'static,
) -> Vec<JoinHandle<u128>> {
    (0..THREADS)
        .map(|index| {
            let body = body.clone();
            spawn(counter, move |c| {
                let mut random = Rng::with_seed(index);
                (0..calls).map(|_| u128::from(body(c, &mut random))).sum()
            })
        })
        .collect()
}

fn random_writes<C: Counter>(mode: Mode) {
    let counter = C::new(0, mode);
    let _watchdog = watch(&counter);
    let readers = Readers::start(&counter, |c, _| c.read().unwrap());
    let writers = start_writers(&counter, C::MANY, |c, random| {
        let n = random.u64(0..4);
        c.write(n).unwrap();
        n
    });
    readers.settle(&counter, sum(writers));
}

fn e51_random_writes<C: Counter>() {
    random_writes::<C>(Mode::Counter);
}

/// A read of a semaphore takes one unit, so there are as many reads as the sum of the writes.
fn e51_random_writes_to_a_semaphore<C: Counter>() {
    random_writes::<C>(Mode::Semaphore);
}

fn e52_a_prime_for_each_of_168_writers<C: Counter>() {
    let writes = C::MANY / 100;
    let primes: Vec<u64> = (2..1000)
        .filter(|n| (2..*n).all(|divisor| n % divisor != 0))
        .collect();
    assert_eq!(primes.len(), 168);
    let goal = primes.iter().sum::<u64>() * writes;

    let counter = C::new(0, Mode::Counter);
    let _watchdog = watch(&counter);
    let reader = spawn(&counter, move |c| {
        let mut taken = 0;
        while taken < goal {
            taken += c.read().unwrap();
        }
        taken
    });
    let writers: Vec<_> = primes
        .into_iter()
        .map(|prime| {
            spawn(&counter, move |c| {
                (0..writes).for_each(|_| c.write(prime).unwrap())
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(reader.join().unwrap(), goal);
    assert_eq!(counter.count(), 0);
}

/// A few units circulate: each reader that took a unit requests another one, until all readers have had their share.
fn e53_four_readers_of_a_semaphore_with_feedback<C: Counter>() {
    let share_of_each = C::MANY / 20;
    let units = C::new(2, Mode::Semaphore);
    let _watchdog = watch(&units);
    let feedback = C::new(0, Mode::Counter);
    let readers: Vec<_> = (0..THREADS)
        .map(|_| {
            let feedback = feedback.clone();
            spawn(&units, move |units| {
                let mut share = 0;
                while share < share_of_each {
                    let unit = match units.try_read() {
                        Err(Errno::AGAIN) => units.read_timeout(Duration::from_millis(1)),
                        done => done,
                    };
                    if unit != Err(Errno::TIMEDOUT) {
                        share += unit.unwrap();
                        feedback.write(1).unwrap();
                    }
                }
            })
        })
        .collect();
    let mut given = 2;
    while given < share_of_each * THREADS {
        let more = feedback
            .read()
            .unwrap()
            .min(share_of_each * THREADS - given);
        units.write(more).unwrap();
        given += more;
    }
    for reader in readers {
        reader.join().unwrap();
    }
    assert_eq!(units.count(), 0);
}

/// A short time; some of these are over before the call is made.
fn moment(random: &mut Rng) -> Duration {
    Duration::from_micros(random.u64(0..200))
}

/// Now and then lets the other side get ahead, so that it has to block.
fn falter(random: &mut Rng) {
    if random.u8(0..8) == 0 {
        thread::sleep(Duration::from_nanos(1));
    }
}

fn read_somehow<C: Counter>(counter: &C, random: &mut Rng) -> u64 {
    let result = match random.u8(0..4) {
        0 => counter.try_read(),
        1 => counter.read_timeout(moment(random)),
        _ => counter.read(),
    };
    match result {
        Err(Errno::AGAIN | Errno::TIMEDOUT) => 0,
        result => result.unwrap(),
    }
}

/// Adds a number in the range, and returns what was added.
fn write_somehow<C: Counter>(counter: &C, random: &mut Rng, range: Range<u64>) -> u64 {
    let n = random.u64(range);
    let result = match random.u8(0..4) {
        0 => counter.try_write(n),
        1 => counter.write_timeout(n, moment(random)),
        _ => counter.write(n),
    };
    match result {
        Err(Errno::AGAIN | Errno::TIMEDOUT) => 0,
        result => {
            result.unwrap();
            n
        }
    }
}

fn while_readers_block<C: Counter>(mode: Mode) {
    let counter = C::new(0, mode);
    let _watchdog = watch(&counter);
    let readers = Readers::start(&counter, read_somehow);
    let writers = start_writers(&counter, C::MANY / 5, |c, random| {
        falter(random);
        if random.bool() {
            c.signal();
            1
        } else {
            write_somehow(c, random, 0..4)
        }
    });
    readers.settle(&counter, sum(writers));
}

fn every_way_to_call_while_readers_block<C: Counter>() {
    while_readers_block::<C>(Mode::Counter);
}

fn every_way_to_call_a_semaphore_while_readers_block<C: Counter>() {
    while_readers_block::<C>(Mode::Semaphore);
}

/// The count has room for three writes at most.
fn every_way_to_call_while_writers_block<C: Counter>() {
    let counter = C::new(0, Mode::Counter);
    let _watchdog = watch(&counter);
    let readers = Readers::start(&counter, read_somehow);
    let writers = start_writers(&counter, C::MANY / 5, |c, random| {
        write_somehow(c, random, 1 << 62..1 << 63)
    });
    readers.settle(&counter, sum(writers));
}

/// The count has room for a few units. Signals would overflow here.
fn every_way_to_call_a_semaphore_while_writers_block<C: Counter>() {
    const ROOM: u64 = 3;
    let counter = C::new(FULL - ROOM, Mode::Semaphore);
    let _watchdog = watch(&counter);
    let readers = Readers::start(&counter, |c, random| {
        falter(random);
        read_somehow(c, random)
    });
    let writers = start_writers(&counter, C::MANY / 5, |c, random| {
        write_somehow(c, random, 0..ROOM + 1)
    });
    readers.settle(&counter, u128::from(FULL - ROOM) + sum(writers));
}

/// Threads that take nothing wait beside readers, for longer and shorter times, and the readers read every unit. In the
/// end one signal that is not read ends all waits.
fn waits_beside_readers<C: Readable>(mode: Mode) {
    let counter = C::new(0, mode);
    let _watchdog = watch(&counter);
    let stop = Arc::new(AtomicBool::new(false));
    let waiters: Vec<_> = (0..THREADS)
        .map(|index| {
            let stop = Arc::clone(&stop);
            spawn(&counter, move |c| {
                let mut random = Rng::with_seed(index);
                while !stop.load(Ordering::Relaxed) {
                    if random.bool() {
                        c.wait_readable();
                    } else {
                        c.wait_readable_timeout(moment(&mut random));
                    }
                }
                c.wait_readable();
            })
        })
        .collect();
    // Everything that is written is read before there is more, so that all threads fall asleep again and again, and a
    // reader that is not woken is noticed.
    let readers = Readers::start(&counter, |c, _| c.read().unwrap());
    let mut random = Rng::with_seed(0);
    let mut written = 0;
    for _ in 0..C::MANY / 20 {
        let n = random.u64(1..THREADS);
        counter.write(n).unwrap();
        written += u128::from(n);
        while counter.count() != 0 {
            thread::yield_now();
        }
    }
    readers.settle(&counter, written);
    stop.store(true, Ordering::Relaxed);
    counter.signal();
    for waiter in waiters {
        waiter.join().unwrap();
    }
}

fn waiting_beside_readers<C: Readable>() {
    waits_beside_readers::<C>(Mode::Counter);
}

fn waiting_beside_readers_of_a_semaphore<C: Readable>() {
    waits_beside_readers::<C>(Mode::Semaphore);
}
