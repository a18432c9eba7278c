//! Peers are killed with SIGKILL, thousands of times, at any instruction. What they had done stays done, the operation
//! that they were in has happened or has not, and the survivor goes on.

use crate::common::caller::{call_at, wait_until};
use crate::common::counter::Place;
use crate::common::watchdog::Watchdog;
use crate::memory::Memory;
use doorbell::{Mode, SharedEvent, Spin};
use rustix::fs::SealFlags;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const KILLS: u32 = 3_000;

/// More than all children signal together.
const MARK: u64 = 1 << 32;

/// There is room for one unit, until some are taken.
const NEARLY_FULL: u64 = FULL - 1;
const FULL: u64 = u64::MAX - 1;

/// What the two processes share. All events sleep at once, so that there is much sleeping and waking to be killed in.
struct Shared {
    /// The child signals, this process reads.
    signalled: SharedEvent,
    /// This process signals, the child reads.
    read: SharedEvent,
    /// The child writes, this process makes room.
    written: SharedEvent,
    memory: Memory,
}

/// What a child has begun and finished: in each pair, the second number equals the first, or is smaller by one.
struct Ledger<'a> {
    signals: [&'a AtomicU32; 2],
    reads: [&'a AtomicU32; 2],
    writes: [&'a AtomicU32; 2],
}

impl Shared {
    fn new() -> Self {
        let memory = Memory::new(4 * 64, SealFlags::SHRINK);
        let make = |offset, initial, mode| {
            // SAFETY: the memory is dropped after the events.
            let event = unsafe { SharedEvent::create_at(memory.at(offset), initial, mode) };
            event.unwrap().with_spin(Spin::Never)
        };
        Shared {
            signalled: make(64, 0, Mode::Counter),
            read: make(128, 0, Mode::Semaphore),
            written: make(192, NEARLY_FULL, Mode::Semaphore),
            memory,
        }
    }

    fn ledger(&self) -> Ledger<'_> {
        let [a, b, c, d, e, f, ..] = self.memory.words(0);
        Ledger {
            signals: [a, b],
            reads: [c, d],
            writes: [e, f],
        }
    }

    /// Everything that a child does. It must neither allocate nor panic: other threads of its parent may have held any
    /// lock.
    fn live(&self) -> ! {
        let ledger = self.ledger();
        let book = |[begun, finished]: [&AtomicU32; 2], act: &dyn Fn()| {
            begun.fetch_add(1, Ordering::SeqCst);
            act();
            finished.fetch_add(1, Ordering::SeqCst);
        };
        loop {
            book(ledger.signals, &|| self.signalled.signal());
            book(ledger.reads, &|| {
                let _ = self.read.read();
            });
            book(ledger.signals, &|| {
                let _ = self.signalled.write(1);
            });
            book(ledger.writes, &|| {
                let _ = self.written.write(1);
            });
        }
    }
}

/// A child of this process that does nothing but [`Shared::live`].
fn fork(shared: &Shared) -> libc::pid_t {
    // SAFETY: the child only uses memory that it has, and makes system calls.
    match unsafe { libc::fork() } {
        0 => shared.live(),
        child => {
            assert!(child > 0, "fork fails");
            child
        }
    }
}

fn kill(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the child is ours, and has not been waited for.
    unsafe {
        assert_eq!(libc::kill(child, libc::SIGKILL), 0);
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
    }
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
}

fn in_between(value: u64, [begun, finished]: [&AtomicU32; 2]) -> bool {
    let [begun, finished] = [begun, finished].map(|n| u64::from(n.load(Ordering::SeqCst)));
    (finished..=begun).contains(&value)
}

#[test]
fn what_was_done_stays_done() {
    let killed = std::sync::Arc::new(AtomicU32::new(0));
    let seen = std::sync::Arc::clone(&killed);
    let report = move || format!("after {} kills", seen.load(Ordering::Relaxed));
    let _watchdog = Watchdog::new(Duration::from_secs(120), report);

    let shared = Shared::new();
    let ledger = shared.ledger();
    let taken = AtomicU64::new(0);
    let end = AtomicBool::new(false);
    let mut late = 0;
    thread::scope(|scope| {
        // The read sleeps without a time limit, which would hide a lost wake-up.
        scope.spawn(|| {
            while !end.load(Ordering::SeqCst) {
                taken.fetch_add(shared.signalled.read(), Ordering::SeqCst);
            }
        });
        let _last = Last(&shared, &end);
        let (mut signalled, mut room_made) = (0, 0);
        for round in 0..KILLS {
            let before = ledger.signals[1].load(Ordering::SeqCst);
            let child = fork(&shared);
            let finished = || ledger.signals[1].load(Ordering::SeqCst) != before;
            wait_until("the child to begin", finished);
            let start = Instant::now();
            let life = Duration::from_nanos(fastrand::u64(..300_000));
            while start.elapsed() < life {
                // Room is made only when it is needed, so that the child has to wait for it; then there is room for a
                // while.
                let units = fastrand::u64(1..64);
                if shared.read.count() == 0 {
                    shared.read.signal_n(units);
                    signalled += units;
                }
                if shared.written.count() == FULL {
                    for _ in 0..units {
                        shared.written.try_read().unwrap();
                    }
                    room_made += units;
                }
                for _ in 0..fastrand::u32(..20) {
                    std::hint::spin_loop();
                }
            }
            kill(child);
            killed.store(round + 1, Ordering::Relaxed);

            // Only the reader's own wake-up brings the count to 0.
            let start = Instant::now();
            wait_until("the reader to wake", || shared.signalled.count() == 0);
            late += u32::from(start.elapsed() > Duration::from_millis(100));
            // When the reader has come to the mark, it has added up what it took before.
            shared.signalled.signal_n(MARK);
            let taken = || taken.load(Ordering::SeqCst);
            wait_until("the mark", || taken() / MARK == u64::from(round) + 1);
            let taken = taken() % MARK;
            assert!(in_between(taken, ledger.signals), "taken {taken}");
            let read = signalled - shared.read.count();
            assert!(in_between(read, ledger.reads), "read {read}");
            // The count may be below its initial value, and the sum may exceed the type.
            let written = shared.written.count().wrapping_add(room_made);
            let written = written.wrapping_sub(NEARLY_FULL);
            assert!(in_between(written, ledger.writes), "written {written}");

            // The operation that was cut short counts as done if it was done.
            settle(ledger.signals, taken);
            settle(ledger.reads, read);
            settle(ledger.writes, written);
        }
    });
    println!(
        "{KILLS} kills, {} signals, {} reads and {} writes; {late} times the reader was not woken but looked up",
        ledger.signals[0].load(Ordering::SeqCst),
        ledger.reads[0].load(Ordering::SeqCst),
        ledger.writes[0].load(Ordering::SeqCst),
    );
    println!(
        "{:?}\n{:?}\n{:?}",
        shared.signalled, shared.read, shared.written
    );
}

/// Ends the reader, even if the test has failed.
struct Last<'a>(&'a Shared, &'a AtomicBool);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
        self.0.signalled.signal();
    }
}

/// A waker that was killed before the wake-up leaves the count, and a claimed announcement.
#[test]
fn a_wake_up_that_never_came() {
    let memory = Memory::new(64, SealFlags::SHRINK);
    // SAFETY: the memory outlives the event.
    let event = unsafe { SharedEvent::create_at(memory.at(0), 0, Mode::Semaphore) }.unwrap();
    let readers = [(); 2].map(|()| {
        let event = SharedEvent::attach(&memory, 0).unwrap();
        let event = event.with_spin(Spin::Never);
        let reader = call_at(Place::SharedMemory, move || event.read());
        reader.wait_asleep();
        reader
    });
    memory.count(0).fetch_add(2, Ordering::SeqCst);
    let state = &memory.words(0)[4];
    state.fetch_and(!1, Ordering::SeqCst);
    for reader in readers {
        assert_eq!(reader.finish(), 1);
    }
    assert_eq!(state.load(Ordering::SeqCst), 0);
    drop(event);
}

/// A killed sleeper stays counted, and others sleep and wake beside it.
#[test]
fn a_sleeper_that_is_no_more() {
    let memory = Memory::new(64, SealFlags::SHRINK);
    // SAFETY: the memory outlives the event.
    let event = unsafe { SharedEvent::create_at(memory.at(0), 0, Mode::Counter) }.unwrap();
    // The killed sleeper is announced, too.
    memory.words(0)[4].store(16 + 1, Ordering::SeqCst);
    for n in 1..100 {
        let peer = SharedEvent::attach(&memory, 0).unwrap();
        let peer = peer.with_spin(Spin::Never);
        let reader = call_at(Place::SharedMemory, move || peer.read());
        reader.wait_asleep();
        event.signal_n(n);
        assert_eq!(reader.finish(), n);
    }
    assert!(format!("{event:?}").contains("waiting_readers: 1,"));
}

fn settle(entry: [&AtomicU32; 2], value: u64) {
    entry
        .iter()
        .for_each(|word| word.store(value as u32, Ordering::SeqCst));
}
