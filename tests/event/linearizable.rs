//! Histories of real threads on one event, small and many: whether each is one that a counter could have, whose
//! operations take place one at a time.
//!
//! In most of them the threads read a clock before and after each operation, which shows that an operation that has
//! returned comes before one that begins later. The clock is a locked instruction, though, which keeps the processor
//! from carrying out loads before stores. So there are histories without a clock too, of which no more is asked than
//! that each thread's operations come in their order.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

use common::counter::rules;
use common::watchdog;
use doorbell::event::Signaller;
use doorbell::{Event, Mode, use_membarrier};
use fastrand::Rng;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const FULL: u64 = u64::MAX - 1;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    /// Makes a signaller, with which it signals from then on, and which may split the count.
    Sign,
    /// Drops its signaller.
    Resign,
    Signal,
    SignalMany(u64),
    TryWrite(u64),
    TryRead,
    TryReadAll,
    Count,
}

/// The result: what was read or counted, or whether the write was made.
type Outcome = Option<u64>;

#[derive(Clone, Copy, Debug)]
struct Operation {
    call: Call,
    outcome: Outcome,
    /// The time before and after the operation.
    span: (u64, u64),
}

/// What each thread did, in order.
type History = Vec<Vec<Operation>>;

/// The count after the call, if the call can have this outcome at `count`.
fn after(count: u64, mode: Mode, operation: &Operation) -> Option<u64> {
    let (after, outcome) = match operation.call {
        Call::Sign | Call::Resign => (count, None),
        Call::Signal => (rules::signalled(count, 1), None),
        Call::SignalMany(n) => (rules::signalled(count, n), None),
        Call::TryWrite(n) => match rules::written(count, n) {
            Ok(after) => (after, Some(n)),
            Err(_) => (count, None),
        },
        Call::TryRead => match rules::taken(count, mode) {
            Ok((value, after)) => (after, Some(value)),
            Err(_) => (count, None),
        },
        Call::TryReadAll => match rules::taken(count, Mode::Counter) {
            Ok((value, after)) => (after, Some(value)),
            Err(_) => (count, None),
        },
        Call::Count => (count, Some(count)),
    };
    (outcome == operation.outcome).then_some(after)
}

/// Whether there is an order of all operations in which a counter, doing one after the other, has these outcomes.
fn has_an_order(history: &History, initial: u64, mode: Mode) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![(vec![0; history.len()], initial)];
    while let Some((done, count)) = open.pop() {
        let next = |thread: usize| history[thread].get(done[thread]);
        let threads = 0..history.len();
        let Some(first_end) = threads.clone().filter_map(next).map(|it| it.span.1).min() else {
            return true;
        };
        for thread in threads {
            let operation = next(thread).filter(|operation| operation.span.0 <= first_end);
            let Some(count) = operation.and_then(|operation| after(count, mode, operation)) else {
                continue;
            };
            let mut done = done.clone();
            done[thread] += 1;
            if seen.insert((done.clone(), count)) {
                open.push((done, count));
            }
        }
    }
    false
}

/// One event, and what each thread is to do to it.
struct Round {
    event: Arc<Event>,
    initial: u64,
    calls: Vec<Vec<Call>>,
}

impl Round {
    fn new(rng: &mut Rng, threads: usize, calls: usize, clocked: bool) -> Self {
        let mode = [Mode::Counter, Mode::Semaphore][rng.usize(..2)];
        let near = [0, 0, 0, 1, 2, 1 << 63, FULL - 3, FULL - 1, FULL, u64::MAX];
        let initial = near[rng.usize(..near.len())];
        let mut call = |index: usize| match rng.u32(..16) {
            0..4 if index == 0 => Call::Sign,
            0 => Call::Sign,
            1 => Call::Resign,
            2..7 => Call::Signal,
            7 => Call::SignalMany([0, 2, 10, 1 << 63, u64::MAX][rng.usize(..5)]),
            8..10 => Call::TryWrite([0, 1, 2, 10, 1 << 63, FULL][rng.usize(..6)]),
            // Without a clock, two threads may each count only their own signal.
            10 if clocked => Call::Count,
            11 => Call::TryReadAll,
            _ => Call::TryRead,
        };
        Round {
            event: Arc::new(Event::with_mode(initial, mode)),
            initial,
            calls: (0..threads)
                .map(|_| (0..calls).map(&mut call).collect())
                .collect(),
        }
    }

    fn play(&self, thread: usize, clock: Option<&AtomicU64>) -> Vec<Operation> {
        let now = || clock.map(|clock| clock.fetch_add(1, Ordering::SeqCst));
        let mut signaller = None;
        let operation = |&call: &Call| {
            let before = now().unwrap_or(0);
            let event = &self.event;
            let outcome = match (call, &signaller) {
                (Call::Sign, _) => {
                    signaller = Some(Signaller::new(event));
                    None
                }
                (Call::Resign, _) => {
                    signaller = None;
                    None
                }
                (Call::Signal, Some(signaller)) => {
                    signaller.signal();
                    None
                }
                (Call::Signal, None) => {
                    event.signal();
                    None
                }
                (Call::SignalMany(n), _) => {
                    event.signal_n(n);
                    None
                }
                (Call::TryWrite(n), _) => event.try_write(n).is_ok().then_some(n),
                (Call::TryRead, _) => event.try_read(),
                (Call::TryReadAll, _) => event.try_read_all(),
                (Call::Count, _) => Some(event.count()),
            };
            let span = (before, now().unwrap_or(u64::MAX));
            Operation {
                call,
                outcome,
                span,
            }
        };
        self.calls[thread].iter().map(operation).collect()
    }
}

/// Plays rounds for a while, and looks for an order of each.
fn histories(seed: u64, threads: usize, calls: usize, clocked: bool) {
    const ROUNDS: usize = 200;
    let mut rng = Rng::with_seed(seed);
    let clock = AtomicU64::new(0);
    let (mut played, mut overlapping) = (0, 0);
    let start = Instant::now();
    while played < 100 * ROUNDS && start.elapsed() < Duration::from_secs(4) {
        let rounds: Vec<Round> = (0..ROUNDS)
            .map(|_| Round::new(&mut rng, threads, calls, clocked))
            .collect();
        let arrived = AtomicUsize::new(0);
        let play = |thread: usize| -> Vec<Vec<Operation>> {
            let one = |(index, round): (usize, &Round)| {
                // All threads begin at once, if there are as many processors.
                arrived.fetch_add(1, Ordering::SeqCst);
                let mut looks = 0;
                while arrived.load(Ordering::SeqCst) < threads * (index + 1) {
                    looks += 1;
                    if looks % 1_000 == 0 {
                        thread::yield_now();
                    }
                }
                round.play(thread, clocked.then_some(&clock))
            };
            rounds.iter().enumerate().map(one).collect()
        };
        let mut played_by: Vec<_> = thread::scope(|scope| {
            let play = &play;
            let others: Vec<_> = (1..threads)
                .map(|thread| scope.spawn(move || play(thread)))
                .collect();
            let own = play(0);
            let others = others.into_iter().map(|other| other.join().unwrap());
            std::iter::once(own)
                .chain(others)
                .map(Vec::into_iter)
                .collect()
        });
        for round in &rounds {
            let history: History = played_by.iter_mut().filter_map(Iterator::next).collect();
            assert!(
                has_an_order(&history, round.initial, round.event.mode()),
                "seed {seed}, from {} in {:?}: {history:#?}",
                round.initial,
                round.event.mode()
            );
            let ends = history
                .iter()
                .map(|calls| calls[calls.len() - 1].span.1)
                .min();
            let begins = history.iter().map(|calls| calls[0].span.0).max();
            overlapping += usize::from(begins < ends);
        }
        played += ROUNDS;
    }
    let overlapping = if clocked {
        format!(", {overlapping} of which overlap")
    } else {
        String::new()
    };
    println!("{played} histories of {threads} threads{overlapping}");
}

/// The search is right about histories of which it is known whether they have an order.
#[test]
fn the_search_knows_what_it_does() {
    let at = |call, outcome, span| Operation {
        call,
        outcome,
        span,
    };
    let history = |first: u64, second: u64, end| {
        vec![
            vec![
                at(Call::TryWrite(10), Some(10), (0, 1)),
                at(Call::Signal, None, (2, 3)),
            ],
            vec![
                at(Call::TryRead, Some(first), (0, 4)),
                at(Call::TryRead, Some(second), (5, end)),
            ],
        ]
    };
    let has_an_order = |history: &History| has_an_order(history, 0, Mode::Counter);
    assert!(has_an_order(&history(10, 1, 6)));
    assert!(!has_an_order(&history(1, 10, 6)));
    let mut late = history(10, 1, 6);
    late[0][1].span = (7, 8);
    assert!(!has_an_order(&late));
    let alone = |call, outcome| vec![vec![at(call, outcome, (0, 1))]];
    assert!(has_an_order(&alone(Call::TryRead, None)));
    assert!(!has_an_order(&alone(Call::TryRead, Some(1))));
    assert!(!has_an_order(&alone(Call::Count, Some(1))));
}

fn with_signallers(test: impl FnOnce()) {
    if let Err(error) = use_membarrier() {
        println!("signallers are tested without lanes: {error}");
    }
    watchdog::limit("histories", test);
}

#[test]
fn two_threads() {
    with_signallers(|| histories(1, 2, 5, true));
}

#[test]
fn three_threads() {
    with_signallers(|| histories(2, 3, 4, true));
}

#[test]
fn two_threads_without_a_clock() {
    with_signallers(|| histories(3, 2, 6, false));
}

#[test]
fn three_threads_without_a_clock() {
    with_signallers(|| histories(4, 3, 4, false));
}
