//! The shared event: sleepers among processes, peers that are killed, and peers that sleep in `epoll`.
//!
//! What the shared event has in common with the event is modelled in `event.rs`. A process is a thread here. A killed
//! process is a thread that ends where the process was killed. No sleep outlasts 250 ms; the end of that time is
//! `futex::lapse`.

use doorbell::event::Interest;
use doorbell::{Mode, SharedEvent, Spin};
use loom::thread;
use loom_tests::{SOME_TIME, check, futex, spawn};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

const FULL: u64 = u64::MAX - 1;

/// The handles that two processes have of one event.
fn event(initial: u64, mode: Mode) -> [Arc<SharedEvent>; 2] {
    SharedEvent::modelled(initial, mode).map(|side| Arc::new(side.with_spin(Spin::Never)))
}

#[test]
fn signal_and_reader() {
    check("signal_and_reader", None, || {
        let [a, b] = event(0, Mode::Counter);
        let reader = spawn(&b, |b| b.read());
        a.signal();
        assert_eq!(reader.join().unwrap(), 1);
    });
}

#[test]
fn write_and_room() {
    check("write_and_room", None, || {
        let [a, b] = event(FULL, Mode::Counter);
        let writer = spawn(&b, |b| b.write(2).unwrap());
        assert_eq!(a.read(), FULL);
        writer.join().unwrap();
        assert_eq!(a.read(), 2);
    });
}

/// A waker is killed when it owes a wake-up: the sleeper finds the signal when it looks up.
#[test]
fn a_killed_waker() {
    check("a_killed_waker", None, || {
        let [a, b] = event(0, Mode::Counter);
        let reader = spawn(&b, |b| b.read());
        a.signal_and_die();
        futex::lapse();
        assert_eq!(reader.join().unwrap(), 1);
    });
}

/// A waker is killed, and another waker, which found no announcement for that reason, lives on.
#[test]
fn a_killed_waker_beside_another() {
    check("a_killed_waker_beside_another", Some(2), || {
        let [a, b] = event(0, Mode::Semaphore);
        let readers = [(); 2].map(|()| spawn(&b, |b| b.read()));
        let survivor = spawn(&a, |a| a.signal());
        a.signal_and_die();
        futex::lapse();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 1);
        }
        survivor.join().unwrap();
        assert_eq!(a.count(), 0);
    });
}

/// A killed sleeper leaves the count of sleepers too high. No other sleeper loses a wake-up for that.
#[test]
fn a_killed_sleeper() {
    check("a_killed_sleeper", Some(3), || {
        let [a, b] = event(0, Mode::Counter);
        let sleeper = spawn(&b, |b| b.sleep_and_die());
        let reader = spawn(&b, |b| b.read());
        a.signal();
        assert_eq!(reader.join().unwrap(), 1);
        sleeper.join().unwrap();
        // The next reader gets its wake-up, too.
        let reader = spawn(&b, |b| b.read());
        a.signal();
        assert_eq!(reader.join().unwrap(), 1);
    });
}

/// A sleeper that looks up has not timed out.
#[test]
fn looking_up_is_not_giving_up() {
    check("looking_up_is_not_giving_up", Some(3), || {
        let [a, b] = event(0, Mode::Counter);
        let reader = spawn(&b, |b| b.read_timeout(SOME_TIME));
        let clock = thread::spawn(futex::lapse);
        a.signal();
        assert_eq!(reader.join().unwrap(), Some(1));
        clock.join().unwrap();
    });
}

/// An event of which the first side may be armed and the second has the socket to wake it.
fn watched() -> (Arc<SharedEvent>, Arc<SharedEvent>, UnixStream) {
    let [a, mut b] = SharedEvent::modelled(0, Mode::Counter);
    let (mut socket, waker) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    b.add_waker(waker).unwrap();
    assert_eq!(bytes(&mut socket), 1);
    (Arc::new(a), Arc::new(b), socket)
}

fn bytes(socket: &mut UnixStream) -> usize {
    socket.read(&mut [0; 8]).unwrap_or(0)
}

/// An observer that armed and was told that there is nothing to read gets exactly one byte.
#[test]
fn arming_races_signals() {
    check("arming_races_signals", Some(3), || {
        let (a, b, mut socket) = watched();
        let sleeper = spawn(&a, |a| a.arm(Interest::Signals));
        let signaller = spawn(&b, |b| b.signal());
        b.signal();
        let ready = sleeper.join().unwrap().is_readable();
        signaller.join().unwrap();
        let bytes = bytes(&mut socket);
        assert!(ready || bytes == 1, "the armed observer sleeps for ever");
        assert!(bytes <= 1, "there are two bytes for one arming");
        assert_eq!(a.try_read(), Some(2));
    });
}

/// A thread without a socket signals: it leaves the arming to a thread that has a socket.
#[test]
fn who_cannot_wake_takes_nothing_away() {
    check("who_cannot_wake_takes_nothing_away", None, || {
        let (a, b, mut socket) = watched();
        assert!(!a.arm(Interest::Signals).is_readable());
        let unable = spawn(&a, |a| a.signal());
        b.signal();
        unable.join().unwrap();
        assert_eq!(bytes(&mut socket), 1);
        assert_eq!(a.try_read(), Some(2));
    });
}
