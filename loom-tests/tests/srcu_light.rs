//! Light sections of `sync::srcu`, with `membarrier` in place of the reader's fence: nothing is freed while it is in
//! use.
//!
//! loom cannot run these, so the steps are written down here. Each is an access of `src/sync/srcu/` or
//! `src/sync/membarrier.rs`, and a comment says of which function. The breakages are protocols of this file with steps
//! left out or exchanged.

use loom_tests::store_buffers::Step::{Await, Check, HeavyBarrier, Load, SkipIf, Store, Update};
use loom_tests::store_buffers::{END, Protocol, Step, assert_has_steps};

/// `Slot::seq`.
const SEQ: usize = 0;
/// `Srcu`'s pointer: 0 is the old snapshot, 1 the new one.
const POINTER: usize = 1;
/// Whether the old snapshot was freed: what a reader finds there.
const FREED: usize = 2;
/// `membarrier::BEGUN` and `ENDED`.
const BEGUN: usize = 3;
const ENDED: usize = 4;
/// The old snapshot lies in a pile, under the lock of which 1 is added to `Pile::barriers`.
const PILE: usize = 5;
const WORDS: usize = 6;

/// Registers: the sequence, the pointer, what was found behind it.
const S: usize = 0;
const P: usize = 1;
const F: usize = 2;
/// How many barriers had begun.
const B: usize = 3;

const USED: &str = "a snapshot is used after it was freed";

/// `Reader::begin` of a light section.
const BEGIN: [Step; 2] = [Load(SEQ, S), Store(SEQ, |r| r[S] + 1)];
/// `Srcu::read`, and the accesses to the snapshot.
const READ: [Step; 3] = [
    Load(POINTER, P),
    Load(FREED, F),
    Check(USED, |r| r[P] == 1 || r[F] == 0),
];
/// `Reader::leave`.
const LEAVE: [Step; 1] = [Store(SEQ, |r| r[S] + 2)];

/// `Writer::publish`: the new pointer.
const SWAP: [Step; 1] = [Update(POINTER, P, |_| 1)];
/// `Slot::wait_for_end`, and the free that follows.
const WAIT_FOR_END: [Step; 3] = [
    Load(SEQ, S),
    SkipIf(1, |r| r[S] % 2 == 0),
    // The wait ends when the sequence has changed: a reader that has come back has the new snapshot. The old value is
    // in the other register.
    Await(SEQ, F, |r| r[F] != r[S]),
];
const FREE: [Step; 1] = [Store(FREED, |_| 1)];

fn protocol(threads: &[&[&[Step]]]) -> Protocol {
    Protocol {
        memory: vec![0; WORDS],
        threads: threads.iter().map(|parts| parts.concat()).collect(),
        at_end: |memory, _| memory[FREED] == 1,
    }
}

/// Two sections, one after the other, in each of which the snapshot is looked at twice.
fn reader() -> Vec<Step> {
    let section: &[&[Step]] = &[&BEGIN, &READ, &READ[1..], &LEAVE];
    [section.concat(), section.concat()].concat()
}

fn assert_noticed(threads: &[&[&[Step]]]) {
    let wrong = protocol(threads).explore().expect_err("it is broken");
    assert_eq!(wrong.what, USED, "{wrong}");
}

/// `Domain::synchronize`: a writer that waits.
#[test]
fn a_writer_waits() {
    let writer: &[&[Step]] = &[&SWAP, &[HeavyBarrier], &WAIT_FOR_END, &FREE];
    protocol(&[&[&reader()], writer]).check("a_writer_waits");
}

#[test]
fn a_writer_waits_for_two_readers_of_one_slot() {
    // The second reader claims the slot that the first has left, and goes on with its sequence.
    let writer: &[&[Step]] = &[&SWAP, &[HeavyBarrier], &WAIT_FOR_END, &FREE];
    let other: &[&[Step]] = &[&[Await(SEQ, S, |r| r[S] == 4)], &BEGIN, &READ, &LEAVE];
    protocol(&[&[&reader()], writer, other]).check("a_writer_waits_for_two_readers_of_one_slot");
}

#[test]
fn breakages_of_a_writer_that_waits() {
    let reader = reader();
    // No heavy barrier: the reader's store is still in its buffer.
    assert_noticed(&[&[&reader], &[&SWAP, &WAIT_FOR_END, &FREE]]);
    // Too early: before the pointer is swapped.
    assert_noticed(&[&[&reader], &[&[HeavyBarrier], &SWAP, &WAIT_FOR_END, &FREE]]);
    // Too late: the sequence has been looked at.
    assert_noticed(&[&[&reader], &[&SWAP, &WAIT_FOR_END, &[HeavyBarrier], &FREE]]);
    // The writer looks at the sequence before it swaps the pointer.
    assert_noticed(&[&[&reader], &[&WAIT_FOR_END, &SWAP, &[HeavyBarrier], &FREE]]);
    // The reader loads the pointer before it says that it is inside.
    let early: &[&[Step]] = &[&READ[..1], &BEGIN, &READ[1..], &LEAVE];
    let writer: &[&[Step]] = &[&SWAP, &[HeavyBarrier], &WAIT_FOR_END, &FREE];
    assert_noticed(&[early, writer]);
    // The reader leaves before its last look.
    let late: &[&[Step]] = &[&BEGIN, &READ, &LEAVE, &READ[1..]];
    assert_noticed(&[late, writer]);
    // The writer does not wait at all.
    assert_noticed(&[&[&reader], &[&SWAP, &[HeavyBarrier], &FREE]]);
}

/// `Reader::publish`: a fenced section inside a light one. Its writers call no `membarrier`.
#[test]
fn a_fenced_section_inside_a_light_one() {
    let publish = [Load(SEQ, S), Update(SEQ, B, |r| r[S])];
    let begin: &[&[Step]] = &[&BEGIN, &publish, &READ, &[Store(SEQ, |r| r[S] + 1)]];
    let writer: &[&[Step]] = &[&SWAP, &WAIT_FOR_END, &FREE];
    protocol(&[begin, writer]).check("a_fenced_section_inside_a_light_one");
    // The sequence is not published once more.
    assert_noticed(&[&[&BEGIN, &READ, &LEAVE], writer]);
}

/// `membarrier::heavy`, called by a thread that changes something else.
const HEAVY: [Step; 3] = [
    Update(BEGUN, B, |r| r[B] + 1),
    HeavyBarrier,
    // The code keeps the greatest number; only one thread calls `heavy` here.
    Update(ENDED, S, |r| r[B] + 1),
];
/// `Domain::leave`: the writer leaves the heavy barrier to others, and says how many have begun after its change.
const LEAVE_IN_PILE: [Step; 2] = [Load(BEGUN, B), PUT_INTO_PILE];
const PUT_INTO_PILE: Step = Update(PILE, F, |r| r[B] + 1);
/// `Pile::begin_to_wait` and `take_waiting`: a thread that looks at the pile later frees what is in it, if a barrier
/// that began since has ended, once the readers inside have left. The thread looks once, at any time.
const LOOK_AT_PILE: [Step; 4] = [
    Update(PILE, B, |r| r[B]),
    SkipIf(6, |r| r[B] == 0),
    Load(ENDED, P),
    // `ended_since`: ENDED > barriers.
    SkipIf(4, |r| r[P] < r[B]),
];

fn left_to_others(writer: &[&[Step]], look: &[&[Step]]) -> Protocol {
    let section: &[&[Step]] = &[&BEGIN, &READ, &READ[1..], &LEAVE];
    let mut protocol = protocol(&[section, writer, &[&HEAVY], look]);
    // The thread may have looked before the barrier.
    protocol.at_end = |_, _| true;
    protocol
}

#[test]
fn a_writer_leaves_the_barrier_to_others() {
    let look: &[&[Step]] = &[&LOOK_AT_PILE, &WAIT_FOR_END, &FREE];
    let protocol = left_to_others(&[&SWAP, &LEAVE_IN_PILE], look);
    protocol.check("a_writer_leaves_the_barrier_to_others");
    // The free is reached in some run, so the model can find a fault.
    let mut never = protocol;
    never.at_end = |memory, _| memory[FREED] == 0;
    assert_eq!(
        never.explore().expect_err("the snapshot was freed").what,
        END
    );
}

#[test]
fn breakages_of_a_barrier_left_to_others() {
    let writer: &[&[Step]] = &[&SWAP, &LEAVE_IN_PILE];
    let look: &[&[Step]] = &[&LOOK_AT_PILE, &WAIT_FOR_END, &FREE];
    fn assert_noticed(writer: &[&[Step]], look: &[&[Step]]) {
        let wrong = left_to_others(writer, look).explore();
        assert_eq!(wrong.expect_err("it is broken").what, USED);
    }
    // How many have begun is asked before the pointer is swapped.
    assert_noticed(&[&LEAVE_IN_PILE[..1], &SWAP, &[PUT_INTO_PILE]], look);
    // One that had begun before is enough.
    let mut early = LOOK_AT_PILE;
    early[3] = SkipIf(4, |r| r[P] + 1 < r[B]);
    assert_noticed(writer, &[&early, &WAIT_FOR_END, &FREE]);
    // One that has begun and not ended is enough.
    let mut unfinished = LOOK_AT_PILE;
    unfinished[2] = Load(BEGUN, P);
    assert_noticed(writer, &[&unfinished, &WAIT_FOR_END, &FREE]);
    // The thread does not ask whether a barrier has ended.
    let take = [LOOK_AT_PILE[0], SkipIf(4, |r| r[B] == 0)];
    assert_noticed(writer, &[&take, &WAIT_FOR_END, &FREE]);
    // The thread does not wait for readers inside.
    let unseen = [
        LOOK_AT_PILE[0],
        SkipIf(3, |r| r[B] == 0),
        LOOK_AT_PILE[2],
        SkipIf(1, |r| r[P] < r[B]),
    ];
    assert_noticed(writer, &[&unseen, &FREE]);
}

/// The steps are those of the code, in its order: a change of the protocol in the code must be made here as well.
#[test]
fn the_code_has_these_steps() {
    let reader = include_str!("../../src/sync/srcu/reader.rs");
    let slots = include_str!("../../src/sync/srcu/slots.rs");
    let piles = include_str!("../../src/sync/srcu/piles.rs");
    let grace = include_str!("../../src/sync/srcu/grace.rs");
    let membarrier = include_str!("../../src/sync/membarrier.rs");
    for (file, function, steps) in [
        (
            reader,
            "fn begin<K: Kind>",
            &[
                "slot.seq.load(Ordering::Relaxed).wrapping_add(INSIDE)",
                "if K::LIGHT && membarrier::is_light() {",
                "slot.seq.store(seq, Ordering::Release)",
                "membarrier::light()",
                "self.publish()",
            ][..],
        ),
        (
            reader,
            "fn publish(&self)",
            &["slot.seq.load(", "slot.seq.swap(seq, DEKKER)"],
        ),
        (
            reader,
            "fn leave(&self) {",
            &["release_store(&self.slot.seq, seq)"],
        ),
        (
            grace,
            "fn wait_for_readers(&self, light: bool)",
            &["membarrier::heavy()", "slot.wait_for_end()"],
        ),
        (
            slots,
            "fn wait_for_end(&self)",
            &["dekker_load(&self.seq)", "dekker_load(&self.seq) == seq"],
        ),
        (
            grace,
            "fn synchronize<K: Kind>",
            &["self.wait_for_readers(K::LIGHT)", "free(due)"],
        ),
        (
            grace,
            "fn leave<K: Kind>",
            &[
                "self.lock()",
                "pile.barriers = membarrier::begun()",
                "pile.push(outdated)",
            ],
        ),
        (
            piles,
            "fn begin_to_wait(",
            &[
                "membarrier::ended_since(self.barriers)",
                "are_seen()",
                "inside()",
            ],
        ),
        (
            membarrier,
            "fn heavy() {\n        if",
            &[
                "BEGUN.fetch_add(1, Ordering::SeqCst) + 1",
                "membarrier(MembarrierCommand::PrivateExpedited)",
                "ENDED.fetch_max(number, Ordering::Release)",
            ],
        ),
        (
            membarrier,
            "fn ended_since(begun: u64)",
            &["ENDED.load(Ordering::Acquire) > begun"],
        ),
    ] {
        assert_has_steps(file, function, steps);
    }
}
