//! Peers that write anything to the memory at any time. Every call returns, or waits no longer than its time limit; the
//! peer decides what it returns.

use crate::common::caller::call_at;
use crate::common::counter::Place;
use crate::common::watchdog;
use crate::memory::{Memory, WORDS};
use doorbell::event::Interest;
use doorbell::{Mode, SharedEvent, Spin, WriteError};
use rustix::fs::{self, FallocateFlags, OFlags, SealFlags, fallocate};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    socketpair,
};
use std::error::Error;
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
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
        // A value that is returned is not 0.
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
            event.add_waker(waker).unwrap();
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

/// The same bytes, seen by threads that attach.
#[test]
fn any_bytes_while_attaching() {
    let memory = Memory::new(64, SealFlags::SHRINK);
    let event = event(&memory, Mode::Counter, Spin::Never);
    let good = memory
        .words(0)
        .each_ref()
        .map(|word| word.load(Ordering::Relaxed));
    let scribble = || {
        // Now and then the bytes are an event.
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

/// A peer that never backs off wins nearly every race; a thread that loses too many goes on nevertheless.
#[test]
fn a_peer_that_hogs_the_line() {
    for mode in MODES {
        for offset in [2, 4, 6] {
            let memory = Memory::new(64, SealFlags::SHRINK);
            let event = event(&memory, mode, Spin::Never);
            let word = &memory.words(0)[offset];
            let hog = || {
                for _ in 0..100 {
                    // Bit 0, which is an announcement in the state words, comes and goes.
                    word.fetch_add(9, Ordering::SeqCst);
                }
            };
            watchdog::limit("a hog", || attacked(hog, || make_calls(&event, 200)));
        }
    }
}

/// A peer may move a sleeper to another futex, where no wake-up reaches it. The sleeper looks up by itself.
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
            // SAFETY: both futexes are mapped.
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
            // None is moved if the sleeper was looking up just then.
            assert!(moved <= 1, "{moved}");
            event.signal();
            assert_eq!(reader.finish(), 1);
        }
    });
}

/// A peer cannot make a signal block by what it does to the socket that wakes it.
#[test]
fn wakers_that_cannot_be_written_to() {
    let memory = Memory::new(64, SealFlags::SHRINK);
    let mut event = event(&memory, Mode::Counter, Spin::Never);
    let (full, waker) = UnixStream::pair().unwrap();
    waker.set_nonblocking(false).unwrap();
    event.add_waker(waker).unwrap();
    let (closed, waker) = UnixStream::pair().unwrap();
    drop(closed);
    event.add_waker(waker).unwrap();
    watchdog::limit("full sockets", || {
        // These are more bytes than any socket holds: each byte has a buffer of its own.
        for _ in 0..10_000 {
            event.arm(Interest::Signals);
            event.signal();
        }
    });
    assert_eq!(event.read(), 10_000);
    drop(full);
}

/// A peer passes something else as the socket that wakes it: a send to that could block, or reach another process.
#[test]
fn wakers_that_are_none() {
    let memory = Memory::new(64, SealFlags::SHRINK);
    let mut event = event(&memory, Mode::Counter, Spin::Never);
    let mut refused = |waker: OwnedFd, kind: &str, number: Errno| {
        let error = event.add_waker(waker).expect_err(kind);
        assert!(format!("{error:?}").starts_with(kind), "{error:?}");
        assert!(!error.to_string().is_empty());
        let reason = error.source().map(ToString::to_string);
        let error = io::Error::from(error);
        // The system's reason is reported.
        assert_eq!(reason, (kind == "Os").then(|| error.to_string()));
        assert_eq!(Errno::from_io_error(&error), Some(number), "{kind}");
    };
    let (_reader, pipe) = rustix::pipe::pipe().unwrap();
    refused(pipe, "NotSocket", Errno::NOTSOCK);
    let path = rustix::fs::open("/", OFlags::PATH, fs::Mode::empty()).unwrap();
    refused(path, "Os", Errno::BADF);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let inet = format!("NotUnix({})", libc::AF_INET);
    refused(tcp.into(), &inet, Errno::AFNOSUPPORT);
    refused(listener.into(), &inet, Errno::AFNOSUPPORT);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    refused(udp.into(), &inet, Errno::AFNOSUPPORT);

    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    refused(datagrams.into(), "NotConnected", Errno::NOTCONN);
    for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        refused(socket.unwrap(), "NotConnected", Errno::NOTCONN);
    }
    assert!(format!("{event:?}").contains("wakers: 0"), "{event:?}");
    for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        let (waker, other) = pair.unwrap();
        let theirs = waker.try_clone().unwrap();
        event.add_waker(waker).unwrap();
        // The peer cannot connect it elsewhere afterwards.
        let elsewhere = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let name = format!("doorbell {} {}", std::process::id(), kind.as_raw());
        let name = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        bind(&elsewhere, &name).unwrap();
        listen(&elsewhere, 1).unwrap();
        assert_eq!(connect(&theirs, &name), Err(Errno::ISCONN));
        drop(other);
        assert_eq!(connect(&theirs, &name), Err(Errno::ISCONN));
    }
    assert!(format!("{event:?}").contains("wakers: 2"), "{event:?}");
}

/// A peer may take away the memory that contains the event; the next access finds new memory, all 0.
#[test]
fn memory_that_is_taken_away() {
    for spin in [Spin::Never, Spin::DEFAULT] {
        let memory = Memory::new(64, SealFlags::SHRINK | SealFlags::GROW);
        let event = event(&memory, Mode::Counter, spin);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let take = || fallocate(&memory, flags, 0, 4096).unwrap();
        watchdog::limit("holes", || attacked(take, || make_calls(&event, 500)));
        // The event works again when the peer has stopped.
        let _ = event.try_read();
        event.signal();
        assert_eq!(event.try_read(), Some(1));
    }
}
