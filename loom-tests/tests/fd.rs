//! Events as file descriptors: the mirror's lamp, the forwarder, and the move of an `EventFd` into the kernel.
//!
//! The kernel's eventfd is a model. `../breakages/fd.toml` lists the ways in which the code was broken on purpose.

use doorbell::fd::kernel::model::KernelEvent;
use doorbell::fd::{EFD_NONBLOCK, EFD_SEMAPHORE, EventFd, Forward, Mirror};
use doorbell::{Event, Mode, Spin};
use loom::thread::{self, JoinHandle};
use loom_tests::check;
use std::io;
use std::sync::Arc;

fn event(initial: u64) -> Arc<Event> {
    Arc::new(Event::with_mode(initial, Mode::Counter).with_spin(Spin::Never))
}

/// Runs `f` on a thread of the model with what it shares.
fn spawn<S: 'static, T: 'static>(
    shared: &Arc<S>,
    f: impl FnOnce(&S) -> T + 'static,
) -> JoinHandle<T> {
    let shared = Arc::clone(shared);
    thread::spawn(move || f(&shared))
}

// Mirror

/// What holds when no call is under way.
fn assert_agrees(mirror: &Mirror) {
    assert_eq!(mirror.fd().is_readable(), mirror.event().count() != 0);
}

/// When a signal returns, the descriptor is readable, even if another signal lit the lamp.
#[test]
fn mirror_two_signals() {
    check("mirror_two_signals", Some(3), || {
        let mirror = Arc::new(Mirror::new(event(0)).unwrap());
        let signal = |mirror: &Mirror| {
            mirror.event().signal();
            assert!(mirror.fd().is_readable());
        };
        let other = spawn(&mirror, signal);
        signal(&mirror);
        other.join().unwrap();
        assert_eq!(mirror.fd().writes(), 1);
    });
}

/// Two threads take the count from 0 to 1 and back.
#[test]
fn mirror_there_and_back() {
    check("mirror_there_and_back", Some(3), || {
        let mirror = Arc::new(Mirror::new(event(0)).unwrap());
        let other = spawn(&mirror, |mirror| {
            mirror.event().signal();
            mirror.event().try_read();
        });
        mirror.event().signal();
        mirror.event().try_read();
        other.join().unwrap();
        assert_agrees(&mirror);
    });
}

/// A peer that watches for edges sees one for a signal that came after the read that emptied the event, even if the
/// reader finds the count above zero again.
#[test]
fn mirror_refilled_while_being_read() {
    check("mirror_refilled_while_being_read", None, || {
        let mirror = Arc::new(Mirror::new(event(1)).unwrap());
        assert_eq!(mirror.fd().writes(), 1);
        let reader = spawn(&mirror, |mirror| mirror.event().try_read());
        mirror.event().signal();
        let taken = reader.join().unwrap();
        assert_agrees(&mirror);
        if taken == Some(1) {
            assert_eq!(mirror.fd().writes(), 2, "no edge");
        }
    });
}

/// When a read that empties the event returns, and no thread signals, the descriptor is dark, whichever thread put the
/// lamp out.
#[test]
fn mirror_two_reads_and_a_signal() {
    check("mirror_two_reads_and_a_signal", Some(3), || {
        let mirror = Arc::new(Mirror::new(event(1)).unwrap());
        let reader = spawn(&mirror, |mirror| {
            mirror.event().try_read();
        });
        let signaller = spawn(&mirror, |mirror| mirror.event().signal());
        mirror.event().try_read();
        signaller.join().unwrap();
        reader.join().unwrap();
        assert_agrees(&mirror);
    });
}

/// A signal while the mirror is being made is not missed.
#[test]
fn mirror_made_during_a_signal() {
    check("mirror_made_during_a_signal", None, || {
        let event = event(0);
        let signaller = spawn(&event, |event| event.signal());
        let mirror = Mirror::new(Arc::clone(&event)).unwrap();
        signaller.join().unwrap();
        assert_agrees(&mirror);
    });
}

// Forward

/// Each signal is an edge of its own, and when both have returned their counts have been passed on.
#[test]
fn forward_two_signals() {
    check("forward_two_signals", Some(3), || {
        let forward = Arc::new(Forward::new(event(0)).unwrap());
        let signal = |forward: &Forward| {
            let before = forward.fd().writes();
            forward.event().signal();
            assert!(forward.fd().writes() > before);
        };
        let other = spawn(&forward, signal);
        signal(&forward);
        other.join().unwrap();
        assert_eq!((forward.fd().count(), forward.fd().writes()), (2, 2));
        assert_eq!(forward.event().count(), 0);
    });
}

/// A count that had no room is passed on once, by one of the threads that try.
#[test]
fn forward_two_flushes() {
    check("forward_two_flushes", Some(3), || {
        let forward = Arc::new(Forward::new(event(0)).unwrap());
        forward.fd().write(u64::MAX - 1).unwrap();
        forward.event().signal_n(2);
        forward.event().signal_n(3);
        let reader = spawn(&forward, |forward| forward.fd().read().unwrap());
        let other = spawn(&forward, |forward| {
            let _ = forward.flush();
        });
        let _ = forward.flush();
        other.join().unwrap();
        assert_eq!(reader.join().unwrap(), u64::MAX - 1);
        forward.flush().unwrap();
        assert_eq!(forward.fd().count(), 5);
        assert_eq!((forward.pending(), forward.event().count()), (0, 0));
    });
}

/// An eventfd that blocks and is full holds up only the signallers, until a thread reads it.
#[test]
fn forward_to_an_eventfd_that_blocks() {
    check("forward_to_an_eventfd_that_blocks", Some(2), || {
        const FULL: u64 = u64::MAX - 1;
        let fd = KernelEvent::blocking(FULL);
        let forward = Arc::new(Forward::over(event(0), fd.clone()));
        let signallers = [1, 2].map(|n| spawn(&forward, move |it| it.event().signal_n(n)));
        assert_eq!(forward.pending(), 0);
        let here = forward.event().try_read().unwrap_or(0);
        assert_eq!(fd.read().unwrap(), FULL);
        for signaller in signallers {
            signaller.join().unwrap();
        }
        assert_eq!(here + fd.count(), 3);
        assert_eq!((forward.pending(), forward.event().count()), (0, 0));
    });
}

/// Two signallers find no room for counts whose sum exceeds one number: the rest stays in the event.
#[test]
fn forward_too_much_for_one_number() {
    check("forward_too_much_for_one_number", Some(2), || {
        const FULL: u64 = u64::MAX - 1;
        let forward = Arc::new(Forward::new(event(0)).unwrap());
        forward.fd().write(FULL).unwrap();
        forward.event().signal_n(FULL);
        forward.event().signal_n(5);
        let other = spawn(&forward, |forward| {
            let _ = forward.flush();
        });
        let _ = forward.flush();
        other.join().unwrap();
        let mut taken = 0;
        while forward.fd().is_readable() {
            taken += u128::from(forward.fd().read().unwrap());
            let _ = forward.flush();
        }
        assert_eq!(taken, 2 * u128::from(FULL) + 5);
        assert_eq!((forward.pending(), forward.event().count()), (0, 0));
    });
}

/// A signal that comes while the forwarder is being made arrives once.
#[test]
fn forward_made_during_a_signal() {
    check("forward_made_during_a_signal", None, || {
        let event = event(1);
        let signaller = spawn(&event, |event| event.signal_n(2));
        let forward = Forward::new(Arc::clone(&event)).unwrap();
        signaller.join().unwrap();
        assert_eq!(forward.fd().count(), 3);
        assert_eq!(event.count(), 0);
    });
}

/// A signal that comes while the forwarder is dropped has been passed on, or is still in the event.
#[test]
fn forward_dropped_during_a_signal() {
    check("forward_dropped_during_a_signal", Some(3), || {
        let event = event(0);
        let forward = Forward::new(Arc::clone(&event)).unwrap();
        let copy = forward.fd().clone();
        let signaller = spawn(&event, |event| event.signal_n(2));
        drop(forward);
        signaller.join().unwrap();
        assert_eq!(copy.count() + event.count(), 2);
    });
}

// EventFd

fn eventfd(flags: i32, count: u64) -> EventFd {
    let event = EventFd::new(flags).unwrap();
    event.write(count).unwrap();
    event
}

fn is_blocking(result: &io::Result<u64>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// A write and a read while the count moves: nothing is lost or doubled.
#[test]
fn move_during_write_and_read() {
    check("move_during_write_and_read", Some(3), || {
        let event = eventfd(EFD_NONBLOCK, 1);
        let (writer, reader) = (event.try_clone().unwrap(), event.try_clone().unwrap());
        let writer = thread::spawn(move || writer.write(2).unwrap());
        let reader = thread::spawn(move || reader.read());
        let fd = event.move_to_kernel();
        writer.join().unwrap();
        let taken = reader.join().unwrap();
        // There was at least 1 at any time.
        assert_eq!(taken.unwrap() + fd.count(), 3);
    });
}

/// The calls of one thread take effect in order, before or after the move.
#[test]
fn move_between_calls() {
    check("move_between_calls", None, || {
        let event = eventfd(EFD_NONBLOCK, 0);
        let other = event.try_clone().unwrap();
        let mover = thread::spawn(move || {
            other.move_to_kernel();
        });
        event.write(1).unwrap();
        event.write(2).unwrap();
        assert_eq!(event.read().unwrap(), 3);
        assert!(is_blocking(&event.read()));
        mover.join().unwrap();
        assert!(is_blocking(&event.read()));
    });
}

/// Two reads that may meet the move find the count, in the event or in the kernel.
#[test]
fn move_met_by_a_read() {
    check("move_met_by_a_read", Some(3), || {
        let event = eventfd(EFD_NONBLOCK | EFD_SEMAPHORE, 2);
        let others: Vec<_> = (0..2)
            .map(|_| {
                let other = event.try_clone().unwrap();
                thread::spawn(move || other.read().unwrap())
            })
            .collect();
        let fd = event.move_to_kernel();
        for other in others {
            assert_eq!(other.join().unwrap(), 1);
        }
        assert_eq!(fd.count(), 0);
    });
}

/// A reader that sleeps, or is about to, goes on in the kernel, and is woken there.
#[test]
fn move_under_a_sleeping_reader() {
    check("move_under_a_sleeping_reader", Some(3), || {
        let event = eventfd(0, 0);
        let (reader, writer) = (event.try_clone().unwrap(), event.try_clone().unwrap());
        let reader = thread::spawn(move || reader.read().unwrap());
        let writer = thread::spawn(move || writer.write(5).unwrap());
        event.move_to_kernel();
        assert_eq!(reader.join().unwrap(), 5);
        writer.join().unwrap();
    });
}

/// Both readers go on, the one that the write woke and the one that was no longer announced.
#[test]
fn move_under_two_sleeping_readers() {
    check("move_under_two_sleeping_readers", Some(3), || {
        let event = eventfd(EFD_SEMAPHORE, 0);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let reader = event.try_clone().unwrap();
                thread::spawn(move || reader.read().unwrap())
            })
            .collect();
        event.write(1).unwrap();
        event.move_to_kernel().write(1).unwrap();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 1);
        }
    });
}

/// A writer that sleeps goes on in the kernel.
#[test]
fn move_under_a_sleeping_writer() {
    check("move_under_a_sleeping_writer", None, || {
        const FULL: u64 = u64::MAX - 1;
        let event = eventfd(0, FULL);
        let writer = event.try_clone().unwrap();
        let writer = thread::spawn(move || writer.write(2).unwrap());
        let fd = event.move_to_kernel();
        assert_eq!(fd.read().unwrap(), FULL);
        writer.join().unwrap();
        assert_eq!(fd.count(), 2);
    });
}

/// Several threads ask for the descriptor at once, one of them through a clone that has just been made: there is one
/// count.
#[test]
fn two_moves_and_a_clone() {
    check("two_moves_and_a_clone", None, || {
        let event = eventfd(EFD_NONBLOCK, 1);
        let other = event.try_clone().unwrap();
        let other = thread::spawn(move || {
            let fd = other.move_to_kernel();
            assert_eq!(fd.count() & 1, 1, "what was there first");
            fd.write(2).unwrap();
            other
        });
        let clone = event.try_clone().unwrap();
        clone.write(4).unwrap();
        assert_eq!(event.move_to_kernel().count() & 5, 5);
        let other = other.join().unwrap();
        assert_eq!(clone.move_to_kernel().count(), 7);
        assert_eq!(other.read().unwrap(), 7);
        assert!(is_blocking(&event.read()));
    });
}
