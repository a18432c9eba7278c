//! Peers that write to the memory what they like, when they like. Every call returns, or waits no longer than it was
//! told to; what it returns is up to the peer.

use crate::common::caller::call_at;
use crate::common::counter::Place;
use crate::common::watchdog;
use crate::memory::{Memory, WORDS};
use doorbell::event::Interest;
use doorbell::{Mode, SharedEvent, Spin, WriteError};
use rustix::fs::SealFlags;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const MODES: [Mode; 2] = [Mode::Counter, Mode::Semaphore];

fn event(memory: &Memory, mode: Mode, spin: Spin) -> SharedEvent {
    // SAFETY: the memory outlives the events of these tests.
    let event = unsafe { SharedEvent::create_at(memory.at(0), 0, mode) };
    event.unwrap().with_spin(spin)
}

/// Runs `attack` over and over on a thread as long as `body` runs.
fn attacked<T>(attack: impl Fn() + Sync, body: impl FnOnce() -> T) -> T {
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                attack();
            }
        });
        let result = body();
        end.store(true, Ordering::Relaxed);
        result
    })
}

/// Makes all calls that do not wait, or do not wait for long.
fn make_calls(event: &SharedEvent, times: u32) {
    let short = Duration::from_micros(50);
    for _ in 0..times {
        event.signal();
        event.signal_n(fastrand::u64(..));
        let _ = event.try_read();
        let written = [
            event.try_write(fastrand::u64(..u64::MAX)),
            event.write_timeout(fastrand::u64(..u64::MAX), short),
            event.write_deadline(1, Instant::now()),
        ];
        assert!(!written.contains(&Err(WriteError::Invalid)));
        assert_eq!(event.try_write(u64::MAX), Err(WriteError::Invalid));
        // A value that is returned is one.
        assert_ne!(event.read_timeout(short), Some(0));
        assert_ne!(event.read_deadline(Instant::now()), Some(0));
        event.arm(Interest::Both);
        let _ = (event.count(), event.readiness(), format!("{event:?}"));
    }
}

fn some_value() -> u32 {
    match fastrand::u32(..6) {
        0 => 0,
        1 => !0,
        2 => 1 << fastrand::u32(..32),
        3 => fastrand::u32(..16),
        4 => !fastrand::u32(..16),
        _ => fastrand::u32(..),
    }
}

#[test]
fn any_bytes_at_any_time() {
    for mode in MODES {
        for spin in [Spin::Never, Spin::DEFAULT, Spin::Always] {
            let memory = Memory::new(64, SealFlags::SHRINK);
            let mut event = event(&memory, mode, spin);
            let (_watched, waker) = UnixStream::pair().unwrap();
            event.add_waker(waker);
            let scribble = || {
                memory.words(0)[fastrand::usize(..WORDS)].store(some_value(), Ordering::Relaxed);
            };
            watchdog::limit("random bytes", || {
                attacked(scribble, || {
                    thread::scope(|scope| {
                        scope.spawn(|| make_calls(&event, 1_000));
                        make_calls(&event, 1_000);
                    });
                });
            });
            assert_eq!(event.mode(), mode, "the mode is not the peer's to change");
        }
    }
}

/// The same bytes, met by those who attach.
#[test]
fn any_bytes_while_attaching() {
    let memory = Memory::new(64, SealFlags::SHRINK);
    let event = event(&memory, Mode::Counter, Spin::Never);
    let good = memory
        .words(0)
        .each_ref()
        .map(|word| word.load(Ordering::Relaxed));
    let scribble = || {
        // Now and then it is one.
        let index = [0, 1, 8][fastrand::usize(..3)];
        let value = if fastrand::u8(..4) == 0 {
            some_value()
        } else {
            good[index]
        };
        memory.words(0)[index].store(value, Ordering::Relaxed);
    };
    let attached = attacked(scribble, || {
        let attach = |_| SharedEvent::attach(&memory, 0).is_ok();
        (0..20_000).map(attach).filter(|&attached| attached).count()
    });
    assert!((1..20_000).contains(&attached), "attached {attached} times");
    drop(event);
}

/// A peer that never backs off wins every race, or nearly; whoever loses too many goes on nevertheless.
#[test]
fn a_peer_that_hogs_the_line() {
    for mode in MODES {
        for offset in [2, 4, 6] {
            let memory = Memory::new(64, SealFlags::SHRINK);
            let event = event(&memory, mode, Spin::Never);
            let word = &memory.words(0)[offset];
            let hog = || {
                for _ in 0..100 {
                    // Bit 0 of it comes and goes, an announcement in the state words.
                    word.fetch_add(9, Ordering::SeqCst);
                }
            };
            watchdog::limit("a hog", || attacked(hog, || make_calls(&event, 200)));
        }
    }
}

/// A peer may move a sleeper to another futex, where no wake-up reaches it. It looks up of its own accord.
#[test]
fn a_sleeper_moved_elsewhere() {
    let memory = Memory::new(128, SealFlags::SHRINK);
    let event = event(&memory, Mode::Counter, Spin::Never);
    watchdog::limit("a sleeper elsewhere", || {
        for _ in 0..3 {
            let peer = SharedEvent::attach(&memory, 0).unwrap();
            let peer = peer.with_spin(Spin::Never);
            let reader = call_at(Place::SharedMemory, move || peer.read());
            reader.wait_asleep();
            let [from, to] = [&memory.words(0)[5], &memory.words(64)[0]];
            // SAFETY: both futexes are there.
            let moved = unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    from.as_ptr(),
                    libc::FUTEX_REQUEUE,
                    0,
                    libc::c_long::from(i32::MAX),
                    to.as_ptr(),
                )
            };
            // None if it was looking up just then.
            assert!(moved <= 1, "{moved}");
            event.signal();
            assert_eq!(reader.finish(), 1);
        }
    });
}

/// Nor can a peer make a signal block by what it does to the socket that wakes it, or by what it says is one.
#[test]
fn wakers_that_cannot_be_written_to() {
    let memory = Memory::new(64, SealFlags::SHRINK);
    let mut event = event(&memory, Mode::Counter, Spin::Never);
    let (full, waker) = UnixStream::pair().unwrap();
    waker.set_nonblocking(false).unwrap();
    event.add_waker(waker);
    let (closed, waker) = UnixStream::pair().unwrap();
    drop(closed);
    event.add_waker(waker);
    let (_reader, pipe) = rustix::pipe::pipe().unwrap();
    event.add_waker(pipe);
    watchdog::limit("full sockets", || {
        // More than any socket holds: each byte has a buffer of its own.
        for _ in 0..10_000 {
            event.arm(Interest::Signals);
            event.signal();
        }
    });
    assert_eq!(event.read(), 10_000);
    drop(full);
}
