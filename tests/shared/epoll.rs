//! A peer that sleeps in `epoll`.

use crate::common::shared::{receive, send};
use crate::common::watchdog;
use doorbell::event::Interest;
use doorbell::{Mode, SharedEvent};
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// The number of bytes that can be read.
fn bytes(socket: &mut UnixStream) -> usize {
    let mut all = 0;
    loop {
        match socket.read(&mut [0; 64]) {
            Ok(0) => return all,
            Ok(some) => all += some,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return all;
            }
        }
    }
}

/// An event on two sides; the first may be armed, and the second has the means to wake it through the socket.
fn sides(initial: u64) -> (SharedEvent, SharedEvent, UnixStream) {
    let (mine, memfd) = SharedEvent::create(initial, Mode::Counter).unwrap();
    let mut yours = SharedEvent::attach(memfd, 0).unwrap();
    let (mut socket, waker) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    yours.add_waker(waker).unwrap();
    assert_eq!(bytes(&mut socket), 1, "for what came before");
    (mine, yours, socket)
}

#[test]
fn written_only_while_armed() {
    let (mine, yours, mut socket) = sides(0);
    yours.signal();
    assert_eq!(bytes(&mut socket), 0);
    for _ in 0..3 {
        mine.arm(Interest::Signals);
        yours.try_read();
        assert_eq!(bytes(&mut socket), 0, "not of interest");
        yours.signal();
        yours.signal();
        yours.try_write(1).unwrap();
        assert_eq!(bytes(&mut socket), 1);
    }
    // A waiter is told even of a write of 0.
    mine.arm(Interest::Both);
    yours.try_write(0).unwrap();
    assert_eq!(bytes(&mut socket), 1);
    yours.try_read().unwrap();
    assert_eq!(bytes(&mut socket), 1);
}

#[test]
fn for_room_too() {
    let (mine, yours, mut socket) = sides(u64::MAX - 1);
    mine.arm(Interest::Reads);
    yours.signal();
    assert_eq!(bytes(&mut socket), 0);
    yours.read();
    assert_eq!(bytes(&mut socket), 1);
}

/// A peer without the means to wake leaves the wake-up to peers that have them.
#[test]
fn who_cannot_wake_takes_nothing_away() {
    let (mine, yours, mut socket) = sides(0);
    mine.arm(Interest::Signals);
    mine.signal();
    assert_eq!(bytes(&mut socket), 0);
    yours.signal();
    assert_eq!(bytes(&mut socket), 1);

    // A peer that gets the means later makes up for its earlier signals.
    let (mut late, memfd) = SharedEvent::create(0, Mode::Counter).unwrap();
    let sleeper = SharedEvent::attach(memfd, 0).unwrap();
    let (mut socket, waker) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    assert!(!sleeper.arm(Interest::Signals).is_readable());
    late.signal();
    assert_eq!(bytes(&mut socket), 0);
    late.add_waker(waker).unwrap();
    assert_eq!(bytes(&mut socket), 1);
    assert_eq!(sleeper.count(), 1);
}

const SLEEPS: &str = "DOORBELL_TEST_SLEEPS_IN_EPOLL";
const SIGNALS: u64 = 2_000;

/// The other process of `a_peer_in_another_process`: sleeps only in epoll until it has read everything.
#[test]
fn sleeper() {
    if std::env::var_os(SLEEPS).is_none() {
        return;
    }
    let stdin = io::stdin();
    let (_, memfd) = receive(&stdin).unwrap();
    let event = SharedEvent::attach(memfd.unwrap(), 0).unwrap();
    let (mut socket, waker) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    send(&stdin, [0; 3], Some(waker.as_fd()));
    drop(waker);

    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let data = epoll::EventData::new_u64(0);
    epoll::add(&epoll, &socket, data, epoll::EventFlags::IN).unwrap();
    let (mut sum, mut sleeps, mut woken_by) = (0, 0, 0);
    while sum < SIGNALS {
        if !event.arm(Interest::Signals).is_readable() {
            let mut events = Vec::with_capacity(1);
            match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => sleeps += 1,
                Err(error) => panic!("{error}"),
            }
            woken_by += bytes(&mut socket) as u64;
        }
        sum += event.try_read().unwrap_or(0);
    }
    send(&stdin, [sum, sleeps, woken_by], None);
}

#[test]
fn a_peer_in_another_process() {
    watchdog::limit("a peer in epoll", || {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "epoll::sleeper", "--nocapture"])
            .env(SLEEPS, "")
            .stdin(theirs)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (mut event, memfd) = SharedEvent::create(0, Mode::Counter).unwrap();
        send(&ours, [0; 3], Some(memfd.as_fd()));
        let waker: OwnedFd = receive(&ours).unwrap().1.expect("a waker");
        event.add_waker(waker).unwrap();
        for _ in 0..SIGNALS {
            event.signal();
            if fastrand::bool() {
                thread::sleep(Duration::from_nanos(fastrand::u64(..40_000)));
            }
        }
        let ([sum, sleeps, bytes], _) = receive(&ours).expect("the peer reports");
        assert!(child.wait().unwrap().success());
        assert_eq!(sum, SIGNALS);
        assert!(
            (1..=SIGNALS).contains(&sleeps),
            "the peer slept {sleeps} times"
        );
        // The very first byte was not needed, and one byte may be left over that came before the last look.
        assert!(bytes <= sleeps + 2, "{bytes} bytes for {sleeps} sleeps");
    });
}
