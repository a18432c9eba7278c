//! Signallers and sleeping threads, with `membarrier` in place of the signaller's fence: no signal is slept through.
//!
//! loom cannot run these, so the steps are written down here. Each is an access of `src/event/split.rs`,
//! `src/event/signaller.rs`, `src/event/counter.rs` or `src/sync/waiters.rs`, and a comment says of which function. The
//! breakages are protocols of this file with steps left out or exchanged. What the code itself does is compared with
//! the steps, script by script, in `the_steps_do_what_the_code_does`.

use doorbell::event::Signaller;
use doorbell::{Event, Spin};
use loom_tests::store_buffers::Step::{
    Await, Back, Fence, HeavyBarrier, Load, Set, SkipIf, Store, Update,
};
use loom_tests::store_buffers::{DEADLOCK, END, Protocol, Step, assert_has_steps};
use std::sync::Arc;

/// `Lanes::base`. It may be less than 0.
const BASE: usize = 0;
/// `Lane::added` of two signallers.
const LANES: [usize; 2] = [1, 2];
/// `Lane::owned` of the first.
const OWNED: usize = 3;
/// `Waiters::state`: 0, or `ANNOUNCED` or `ARMED`; of two events.
const STATES: [usize; 2] = [4, 5];
/// `Waiters::generation`, or the futex of a thread that has armed.
const GENERATION: usize = 6;
/// Another word by which threads tell one another something.
const FLAG: usize = 7;
const WORDS: usize = 8;

/// Registers: the base, the lanes' sum, what a step has found, the count, and the generation.
const B: usize = 0;
const L: usize = 1;
const R: usize = 2;
const V: usize = 3;
const K: usize = 4;
/// The sum of the second event's lane.
const M: usize = 5;

/// First half of `Signaller::signal`: `Lane::add_one`.
const fn add_one(lane: usize) -> [Step; 2] {
    [Load(lane, L), Store(lane, |r| r[L] + 1)]
}

/// Second half: `Event::signalled_by_lane` and `wake_after_lane`, `Waiters::claim` and the wake-up.
const fn wake(state: usize) -> [Step; 6] {
    [
        Load(state, R),
        SkipIf(4, |r| r[R] == 0),
        Fence,
        Update(state, R, |_| 0),
        SkipIf(1, |r| r[R] == 0),
        Update(GENERATION, R, |r| r[R] + 1),
    ]
}

fn signal() -> Vec<Step> {
    [&add_one(LANES[0])[..], &wake(STATES[0])].concat()
}

/// `Event::write` of 10 while the count is split: `Lanes::update` and `Counter::wake_readers`.
fn write() -> Vec<Step> {
    [
        &[Update(BASE, R, |r| r[R].wrapping_add(10))][..],
        &wake(STATES[0]),
    ]
    .concat()
}

/// `Lanes::update` of a read: the count, or 0, gets into `V`.
const READ: [Step; 7] = [
    Load(BASE, B),
    Load(LANES[0], L),
    Set(V, |r| r[B].wrapping_add(r[L])),
    SkipIf(3, |r| r[V] == 0),
    // The compare-exchange.
    Update(BASE, R, |r| {
        if r[R] == r[B] {
            0_u64.wrapping_sub(r[L])
        } else {
            r[R]
        }
    }),
    SkipIf(1, |r| r[R] == r[B]),
    Back(6),
];

/// `Waiters::announce`, after a load of the generation.
const ANNOUNCE: [Step; 2] = [Load(GENERATION, K), Update(STATES[0], R, |_| 1)];

/// `Event::read`: `announce`, then the steps `between`, then looks, and a sleep until there is a count.
fn sleeper(between: &[Step]) -> Vec<Step> {
    let steps = [
        &ANNOUNCE,
        between,
        &READ,
        &[SkipIf(2, |r| r[V] != 0)],
        &[Await(GENERATION, R, |r| r[R] != r[K])],
    ];
    let mut steps = steps.concat();
    steps.push(Back(steps.len()));
    steps
}

/// `Lanes::hear`.
const HEAR: [Step; 3] = [Load(OWNED, R), SkipIf(1, |r| r[R] == 0), HeavyBarrier];

fn protocol(threads: &[&[Step]]) -> Protocol {
    let mut memory = vec![0; WORDS];
    memory[OWNED] = 1;
    Protocol {
        memory,
        threads: threads.iter().map(|steps| steps.to_vec()).collect(),
        // All is read.
        at_end: |memory, _| memory[BASE].wrapping_add(memory[LANES[0]]) == 0,
    }
}

fn assert_noticed(protocol: &Protocol, what: &str) {
    let wrong = protocol.explore().expect_err("it is broken");
    assert_eq!(wrong.what, what, "{wrong}");
}

#[test]
fn a_sleeper() {
    protocol(&[&signal(), &sleeper(&HEAR)]).check("light::a_sleeper");
}

/// The second signal comes when the reader has come back, or was never asleep.
#[test]
fn a_sleeper_that_comes_back() {
    let twice = [signal(), signal()].concat();
    // The reader reads until it has taken both signals.
    let mut reader = sleeper(&HEAR);
    reader.extend([Update(FLAG, R, |r| r[R] + r[V])]);
    reader.extend([Load(FLAG, R), SkipIf(1, |r| r[R] == 2)]);
    reader.push(Back(reader.len()));
    protocol(&[&twice, &reader]).check("light::a_sleeper_that_comes_back");
}

#[test]
fn breakages_of_a_sleeper() {
    let assert_noticed = |threads: &[&[Step]]| assert_noticed(&protocol(threads), DEADLOCK);
    // No heavy barrier.
    assert_noticed(&[&signal(), &sleeper(&[])]);
    // A fence on the sleeper's side does not replace the heavy barrier.
    assert_noticed(&[&signal(), &sleeper(&[Fence])]);
    // Too early: before the announcement.
    let early = [&[HeavyBarrier][..], &sleeper(&[])].concat();
    assert_noticed(&[&signal(), &early]);
    // The signaller looks before it adds.
    let late = [&wake(STATES[0])[..], &add_one(LANES[0])].concat();
    assert_noticed(&[&late, &sleeper(&HEAR)]);
    // The sleeper looks before it announces itself.
    let mut unannounced = [&HEAR[..], &READ, &[SkipIf(4, |r| r[V] != 0)], &ANNOUNCE].concat();
    unannounced.extend([Await(GENERATION, R, |r| r[R] != r[K])]);
    unannounced.push(Back(unannounced.len()));
    assert_noticed(&[&signal(), &unannounced]);
    // The signallers are not heard.
    assert_noticed(&[&signal(), &sleeper(&[Load(OWNED, R)])]);
}

/// A signaller is made while a reader falls asleep: `Lanes::claim`.
#[test]
fn a_signaller_that_is_made() {
    let made = |claim: Step| {
        let signaller = [&[claim][..], &signal()].concat();
        let mut protocol = protocol(&[&signaller, &sleeper(&HEAR)]);
        protocol.memory[OWNED] = 0;
        protocol
    };
    made(Update(OWNED, R, |_| 1)).check("light::a_signaller_that_is_made");
    // The lane is not claimed by a locked instruction: sleeper and signaller do not see each other.
    assert_noticed(&made(Store(OWNED, |_| 1)), DEADLOCK);
    // The lane is claimed after the first signal.
    let late = [&signal()[..], &[Update(OWNED, R, |_| 1)]].concat();
    let mut late = protocol(&[&late, &sleeper(&HEAR)]);
    late.memory[OWNED] = 0;
    assert_noticed(&late, DEADLOCK);
}

/// A signaller is dropped: what it has signalled is seen without a barrier.
#[test]
fn a_signaller_that_goes() {
    let gone = |parts: &[&[Step]]| protocol(&[&parts.concat(), &sleeper(&HEAR)]);
    let give_back = [Store(OWNED, |_| 0)];
    gone(&[&signal(), &give_back]).check("light::a_signaller_that_goes");
    // The lane is given back before its last signal.
    assert_noticed(&gone(&[&give_back, &signal()]), DEADLOCK);
}

/// A poller arms two events, and hears the signallers of both with one barrier.
#[test]
fn one_barrier_for_two_events() {
    let signal = |event: usize| [&add_one(LANES[event])[..], &wake(STATES[event])].concat();
    let poller = |parts: &[&[Step]]| {
        let mut steps = parts.concat();
        // The poller sleeps unless there is a count; after the sleep it knows that there is one.
        steps.extend([
            Load(LANES[0], L),
            Load(LANES[1], M),
            SkipIf(1, |r| r[L] + r[M] != 0),
            Await(GENERATION, R, |r| r[R] != r[K]),
        ]);
        Protocol {
            at_end: |_, _| true,
            ..protocol(&[&signal(0), &signal(1), &steps])
        }
    };
    let arm = [
        Load(GENERATION, K),
        Update(STATES[0], R, |_| 1),
        Update(STATES[1], R, |_| 1),
    ];
    poller(&[&arm, &[HeavyBarrier]]).check("light::one_barrier_for_two_events");
    // The heavy barrier comes between the two announcements.
    let between = poller(&[&arm[..2], &[HeavyBarrier], &arm[2..]]);
    let mut alone = between;
    alone.threads.remove(0);
    assert_noticed(&alone, DEADLOCK);
}

/// A write of 10 and then a signal are never read as 1 and then 10, nor the other way round.
#[test]
fn what_came_in_an_order() {
    let reader = |read: &[Step]| [read, &[Update(FLAG, R, |r| r[V])]].concat();
    let both = |first: &[Step], second: &[Step], read: &[Step], at_end| Protocol {
        at_end,
        ..protocol(&[&[first, second].concat(), &reader(read)])
    };
    let not_1: fn(&[u64], &[_]) -> bool = |memory, _| memory[FLAG] != 1;
    let not_10: fn(&[u64], &[_]) -> bool = |memory, _| memory[FLAG] != 10;
    both(&write(), &signal(), &READ, not_1).check("light::a_write_and_then_a_signal");
    both(&signal(), &write(), &READ, not_10).check("light::a_signal_and_then_a_write");
    // The lane is read before the base.
    let mut exchanged = READ;
    exchanged.swap(0, 1);
    assert_noticed(&both(&signal(), &write(), &exchanged, not_10), END);
    // The base is set, whatever value it has by now.
    let mut unconditional = READ;
    unconditional[4] = Update(BASE, R, |r| 0_u64.wrapping_sub(r[L]));
    unconditional[5] = SkipIf(1, |_| true);
    assert_noticed(&both(&write(), &signal(), &unconditional, not_1), END);
}

/// What can be done to an event by one thread.
#[derive(Clone, Copy, Debug)]
enum Call {
    Signal,
    Write,
    Read,
}

/// The code and the steps make each script of this many calls: what each read returns is the same.
#[test]
fn the_steps_do_what_the_code_does() {
    const CALLS: u32 = 5;
    for script in 0..3_u32.pow(CALLS) {
        let calls = (0..CALLS).map(|place| match script / 3_u32.pow(place) % 3 {
            0 => Call::Signal,
            1 => Call::Write,
            _ => Call::Read,
        });
        let calls: Vec<Call> = calls.collect();
        let steps: Vec<Vec<Step>> = calls
            .iter()
            .map(|call| match call {
                Call::Signal => signal(),
                Call::Write => write(),
                Call::Read => READ.to_vec(),
            })
            .collect();
        let steps: Vec<&[Step]> = steps.iter().map(Vec::as_slice).collect();
        let registers = protocol(&steps).one_after_the_other();
        let expected = calls.clone().into_iter().zip(registers);
        let expected: Vec<u64> = expected
            .filter(|(call, _)| matches!(call, Call::Read))
            .map(|(_, registers)| registers[V])
            .collect();
        loom::model(move || {
            let event = Arc::new(Event::new(0).with_spin(Spin::Never));
            let signaller = Signaller::new(Arc::clone(&event));
            assert!(signaller.has_lane());
            let mut reads = Vec::new();
            for call in &calls {
                match call {
                    Call::Signal => signaller.signal(),
                    Call::Write => event.write(10).unwrap(),
                    Call::Read => reads.push(event.try_read().unwrap_or(0)),
                }
            }
            assert_eq!(reads, expected, "{calls:?}");
        });
    }
}

/// The steps are those of the code, in its order: a change of the protocol in the code must be made here as well.
#[test]
fn the_code_has_these_steps() {
    let split = include_str!("../../src/event/split.rs");
    let signaller = include_str!("../../src/event/signaller.rs");
    let counter = include_str!("../../src/event/counter.rs");
    let waiters = include_str!("../../src/sync/waiters.rs");
    let poller = include_str!("../../src/poll/poller.rs");
    for (file, function, steps) in [
        (
            split,
            "fn add_one(&self)",
            &[
                "self.added.load(Ordering::Relaxed)",
                "release_store(&self.added, added + 1)",
                "membarrier::light()",
            ][..],
        ),
        (
            signaller,
            "pub fn signal(&self)",
            &["lane.add_one()", "self.event.signalled_by_lane()"],
        ),
        (
            signaller,
            "fn wake_after_lane(&self)",
            &["membarrier::full()", "self.counter.wake_readers(1, self)"],
        ),
        (
            split,
            "fn claim(&self)",
            &["lane.owned.swap(true, DEKKER)", "return Some("],
        ),
        (
            split,
            "fn update(&self",
            &[
                "self.base.load()",
                "self.added()",
                "self.base.replace(before, after)",
            ],
        ),
        (
            split,
            "fn hear(&self)",
            &["lane.owned.load(DEKKER)", "membarrier::heavy()"],
        ),
        (
            counter,
            "fn wait_to_read(",
            &[
                "take().or_else(|| self.hear_signallers().then(take)?)",
                "self.hear_signallers();",
                "self.left_over(mode)",
            ],
        ),
        (
            counter,
            "fn wait_to_watch(",
            &[
                "is_readable() || (self.hear_signallers() && is_readable())",
                "self.hear_signallers();",
                "self.left_over(owner.mode())",
            ],
        ),
        (
            waiters,
            "fn enter_and_try<T>(",
            &["self.enter()", "self.announce()", "attempt()", "sleep(key)"],
        ),
        (
            counter,
            "pub(crate) fn arm(&self",
            &["self.arm_unheard(interest)", "self.hear_signallers()"],
        ),
        (
            poller,
            "\nfn examine_all_armed(",
            &["item.hear_signallers()", "item.examine_armed()"],
        ),
    ] {
        assert_has_steps(file, function, steps);
    }
}
