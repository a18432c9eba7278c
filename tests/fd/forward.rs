//! Signals to a forwarded event arrive at its eventfd.

use crate::common::caller::{Caller, call, call_at};
use crate::common::counter::{Counter, Place};
use crate::common::ours::DefaultSpin;
use crate::common::watchdog::{self, Watchdog};
use crate::{Watch, child, is_readable};
use doorbell::event::{Change, Interest, Observation};
use doorbell::fd::{EFD_NONBLOCK, EventFd, Forward, Mirror};
use doorbell::{Event, Mode};
use rustix::event::EventfdFlags;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::pipe::SpliceFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{ErrorKind, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

const FULL: u64 = u64::MAX - 1;

/// The event, the forwarder, and the eventfd at which counts arrive.
fn forwarded(initial: u64, mode: Mode) -> (Arc<Event>, Forward, EventFd) {
    let event = Arc::new(Event::with_mode(initial, mode));
    let forward = Forward::new(Arc::clone(&event)).unwrap();
    let peer = peer(&forward);
    (event, forward, peer)
}

fn peer(forward: &Forward) -> EventFd {
    forward.as_fd().try_clone_to_owned().unwrap().into()
}

#[track_caller]
fn assert_empty(peer: &EventFd) {
    assert_eq!(peer.read().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn counts_are_passed_on() {
    for mode in [Mode::Counter, Mode::Semaphore] {
        let (event, forward, peer) = forwarded(2, mode);
        assert_eq!(peer.read().unwrap(), 2);
        event.signal();
        event.signal_n(10);
        event.write(100).unwrap();
        event.try_write(1000).unwrap();
        assert_eq!(event.count(), 0);
        assert_eq!(peer.read().unwrap(), 1111);
        assert_empty(&peer);
        assert_eq!(forward.pending(), 0);
    }
}

/// Each signal is an edge, as a `write(2)` is, even if it adds nothing.
#[test]
fn every_signal_is_an_edge() {
    let (event, forward, peer) = forwarded(0, Mode::Counter);
    let edges = Watch::edges(&forward);
    assert!(!edges.now(), "making the forwarder is no signal");
    event.write(0).unwrap();
    assert!(!edges.now());
    event.signal();
    assert!(edges.now());
    assert!(!edges.now());
    event.signal_n(0);
    assert!(edges.now());
    event.write(0).unwrap();
    assert!(edges.now());
    event.write(3).unwrap();
    assert!(edges.now());
    // Neither we nor the kernel wrote anything.
    event.write(u64::MAX).unwrap_err();
    assert_eq!(event.try_read(), None);
    assert!(!edges.now());
    assert_eq!(peer.read().unwrap(), 4);
}

#[test]
fn no_room() {
    let (event, forward, peer) = forwarded(0, Mode::Counter);
    peer.write(FULL).unwrap();
    event.signal_n(5);
    assert_eq!((forward.pending(), event.count()), (5, 0));
    assert_eq!(forward.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    event.signal();
    event.write(1).unwrap();
    assert_eq!((forward.pending(), event.count()), (5, 2));
    let shown = format!("{forward:?}");
    for part in ["count: 2", "pending: 5"] {
        assert!(shown.contains(part), "{shown}");
    }
    assert_eq!(peer.read().unwrap(), FULL);
    event.signal();
    assert_eq!((forward.pending(), event.count()), (0, 0));
    assert_eq!(peer.read().unwrap(), 8);

    peer.write(FULL).unwrap();
    event.signal();
    event.signal();
    peer.read().unwrap();
    forward.flush().unwrap();
    assert_eq!((forward.pending(), event.count()), (0, 0));
    assert_eq!(peer.read().unwrap(), 2);
    forward.flush().unwrap();
    assert_empty(&peer);
}

/// The overflow state is more than one write can add.
#[test]
fn the_overflow_state() {
    let (event, forward, peer) = forwarded(u64::MAX, Mode::Counter);
    assert_eq!((forward.pending(), event.count()), (1, 0));
    assert_eq!(peer.read().unwrap(), FULL);
    event.signal_n(u64::MAX);
    // The 1 that was left had to be passed on before what is new.
    assert_eq!(event.count(), 0);
    assert_eq!((peer.read().unwrap(), forward.pending()), (1, u64::MAX));
    assert_eq!(forward.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!((peer.read().unwrap(), forward.pending()), (FULL, 1));
    forward.flush().unwrap();
    assert_eq!((peer.read().unwrap(), forward.pending()), (1, 0));
}

#[test]
fn dropping_gives_back_what_had_no_room() {
    let (event, forward, peer) = forwarded(0, Mode::Counter);
    peer.write(FULL).unwrap();
    event.signal_n(5);
    event.signal_n(6);
    drop(forward);
    assert_eq!(event.read(), 11);
    assert_eq!(peer.read().unwrap(), FULL);
    event.signal();
    assert_empty(&peer);
    assert_eq!(event.read(), 1);
    assert_eq!(Arc::strong_count(&event), 1);
}

#[test]
fn to_an_eventfd_that_is_there() {
    let event = Arc::new(Event::new(7));
    let peer = EventFd::new(EFD_NONBLOCK).unwrap();
    peer.write(100).unwrap();
    let fd = peer.as_fd().try_clone_to_owned().unwrap();
    let forward = Forward::with_fd(Arc::clone(&event), fd);
    assert_eq!(peer.read().unwrap(), 107);
    event.signal();
    assert!(is_readable(&forward));
    assert_eq!(peer.read().unwrap(), 1);
}

/// A blocking eventfd with this count, as a vhost-user front-end sends it. A peer sleeps in reads of it.
fn blocking(count: u64) -> (EventFd, OwnedFd) {
    let peer = EventFd::new(0).unwrap();
    if count != 0 {
        peer.write(count).unwrap();
    }
    let sent = peer.as_fd().try_clone_to_owned().unwrap();
    (peer, sent)
}

fn is_blocking(fd: impl AsFd) -> bool {
    !fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

#[test]
fn to_an_eventfd_that_blocks() {
    watchdog::limit("a blocking eventfd", || {
        let event = Arc::new(Event::new(7));
        let (peer, sent) = blocking(0);
        let peer = Arc::new(peer);
        let forward = Forward::with_fd(Arc::clone(&event), sent);
        assert!(is_blocking(&*peer), "the flag is the peer's");
        assert_eq!(peer.read().unwrap(), 7);
        for n in 1..10 {
            let sleeper = call_at(Place::Descriptor(peer.as_raw_fd()), {
                let peer = Arc::clone(&peer);
                move || peer.read().unwrap()
            });
            sleeper.wait_asleep();
            event.signal_n(n);
            assert_eq!(sleeper.finish(), n);
        }
        assert_eq!((forward.pending(), event.count()), (0, 0));
    });
}

/// A signal without room waits as a write does, until a peer or this process reads.
#[test]
fn to_an_eventfd_that_blocks_and_is_full() {
    watchdog::limit("a full eventfd that blocks", || {
        let event = Arc::new(Event::new(0));
        let (peer, sent) = blocking(FULL - 1);
        let forward = Forward::with_fd(Arc::clone(&event), sent);
        event.signal();
        event.write(0).unwrap();
        let waiting = call_at(Place::Descriptor(forward.as_raw_fd()), {
            let event = Arc::clone(&event);
            move || event.signal_n(5)
        });
        waiting.wait_asleep();
        assert_eq!(event.try_read(), None);
        let ours = EventFd::from(forward.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(ours.read().unwrap(), FULL);
        waiting.finish();
        assert_eq!(peer.read().unwrap(), 5);
        assert_eq!((forward.pending(), event.count()), (0, 0));
    });
}

/// The sum of what the non-blocking `peer` reads until nothing is left to be forwarded.
fn drained(forward: &Forward, peer: &EventFd) -> u128 {
    let mut taken = 0;
    loop {
        while let Ok(n) = peer.read() {
            taken += u128::from(n);
        }
        if forward.flush().is_ok() && !is_readable(peer) {
            return taken;
        }
    }
}

/// No thread waits for room in such an eventfd, and the peer sees the flag.
#[test]
fn to_an_eventfd_that_is_made_not_to_block() {
    watchdog::limit("no room in an eventfd that blocked", || {
        for flags in [0, EFD_NONBLOCK] {
            let event = Arc::new(Event::new(3));
            let peer = EventFd::new(flags).unwrap();
            peer.write(FULL).unwrap();
            let sent = peer.as_fd().try_clone_to_owned().unwrap();
            let forward = Forward::with_fd_nonblocking(Arc::clone(&event), sent).unwrap();
            assert!(!is_blocking(&peer));
            event.signal();
            assert_eq!(forward.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!((forward.pending(), event.count()), (3, 1));
            assert_eq!(peer.read().unwrap(), FULL);
            forward.flush().unwrap();
            assert_eq!(peer.read().unwrap(), 4);
            assert_empty(&peer);
        }
    });
}

/// Whatever the flag is when a write finds no room, each count arrives or is still in the event.
#[test]
fn a_peer_that_sets_and_clears_the_flag() {
    watchdog::limit("a flag that changes", || {
        let event = Arc::new(Event::new(0));
        let (peer, sent) = blocking(0);
        let forward = Forward::with_fd(Arc::clone(&event), sent);
        let stop = AtomicBool::new(false);
        let (mut written, mut taken) = (0_u128, 0_u128);
        let (set, cleared) = (OFlags::NONBLOCK, OFlags::empty());
        thread::scope(|scope| {
            let writers = [1, 2].map(|seed| {
                let event = &event;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    let mut written = 0;
                    for _ in 0..5_000 {
                        let n = random.u64(..) >> random.u32(0..4);
                        written += event.try_write(n).map_or(0, |()| u128::from(n));
                    }
                    written
                })
            });
            let reader = scope.spawn(|| {
                let mut taken = 0;
                let mut flags = [cleared, set].into_iter().cycle();
                while !stop.load(Ordering::Relaxed) {
                    fcntl_setfl(&peer, flags.next().unwrap()).unwrap();
                    thread::yield_now();
                    // No other thread reads, so this read does not sleep.
                    if is_readable(&peer) {
                        taken += u128::from(peer.read().unwrap());
                    }
                }
                taken
            });
            written += writers.into_iter().map(|w| w.join().unwrap()).sum::<u128>();
            stop.store(true, Ordering::Relaxed);
            taken += reader.join().unwrap();
        });
        fcntl_setfl(&peer, set).unwrap();
        assert!(taken > 0);
        taken += drained(&forward, &peer);
        assert_eq!(taken, written);
        assert_eq!((event.count(), forward.pending()), (0, 0));
    });
}

/// A peer that shares the descriptor's flags can block writes to it, and nothing else: a signal on another event goes
/// on, and so does a thread that looks at this event or at its forwarder. Nothing is lost when the peer makes room.
#[test]
fn a_peer_that_blocks_writes() {
    watchdog::limit("a peer that blocks writes", || {
        let (event, forward, peer) = forwarded(0, Mode::Counter);
        peer.write(FULL).unwrap();
        event.signal_n(5);
        assert_eq!(forward.pending(), 5);
        fcntl_setfl(&peer, OFlags::empty()).unwrap();
        let signallers = [6, 7].map(|n| {
            let event = Arc::clone(&event);
            call_at(Place::Descriptor(forward.as_raw_fd()), move || {
                event.signal_n(n)
            })
        });
        signallers.iter().for_each(Caller::wait_asleep);
        assert_eq!(forward.pending(), 0, "a thread is writing it");
        assert!(format!("{forward:?}").contains("pending"));
        assert!(event.count() <= 13);
        let other = Event::new(0);
        other.signal();
        assert_eq!(other.read(), 1);
        // One of the two threads has found the 5, and has to write that before its own count. What the threads have
        // taken is in their writes.
        let mut taken = u128::from(peer.read().unwrap());
        signallers.into_iter().for_each(Caller::finish);
        fcntl_setfl(&peer, OFlags::NONBLOCK).unwrap();
        while let Ok(n) = peer.read() {
            taken += u128::from(n);
        }
        assert_eq!(taken, u128::from(FULL) + 5 + 6 + 7);
        assert_eq!((forward.pending(), event.count()), (0, 0));
    });
}

/// Two threads find no room for counts whose sum exceeds one number.
#[test]
fn too_much_for_one_number() {
    watchdog::limit("too much for one number", || {
        for _ in 0..100 {
            let (event, forward, peer) = forwarded(0, Mode::Counter);
            peer.write(FULL).unwrap();
            let both = Barrier::new(2);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        both.wait();
                        event.signal_n(FULL);
                    });
                }
            });
            let taken = drained(&forward, &peer);
            // All of it arrives, unless the event had both counts at once, and saturated.
            let full = u128::from(FULL);
            assert!(taken == 3 * full || taken == 2 * full + 1, "{taken}");
        }
    });
}

/// To take a count is to read it: observers of reads are called, and may signal; writers that wait go on.
#[test]
fn taking_is_reading() {
    watchdog::limit("an observer that signals", || {
        let event = Arc::new(Event::new(1));
        let left = Arc::new(AtomicU32::new(3));
        let _observation = {
            let (weak, left) = (Arc::downgrade(&event), Arc::clone(&left));
            let signal_thrice = move |_: Change| {
                let take = |n: u32| n.checked_sub(1);
                if left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok()
                {
                    weak.upgrade().unwrap().signal_n(10);
                }
            };
            Observation::new(Arc::clone(&event), Interest::Reads, Arc::new(signal_thrice))
        };
        let forward = Forward::new(Arc::clone(&event)).unwrap();
        let peer = peer(&forward);
        assert_eq!(peer.read().unwrap(), 31);
        // The same when the count is not taken by a signal.
        peer.write(FULL).unwrap();
        event.signal();
        event.signal();
        assert_eq!((forward.pending(), event.count()), (1, 1));
        peer.read().unwrap();
        left.store(1, Ordering::Relaxed);
        forward.flush().unwrap();
        assert_eq!(peer.read().unwrap(), 12);

        peer.write(FULL).unwrap();
        event.signal();
        event.signal_n(FULL);
        let writer = call(&DefaultSpin::from(Arc::clone(&event)), |event| {
            Counter::write(event, 5)
        });
        writer.wait_asleep();
        peer.read().unwrap();
        let _ = forward.flush();
        writer.finish().unwrap();
    });
}

/// A mirror of the same event shows the count that is left, which is 0.
#[test]
fn beside_a_mirror() {
    let (event, _forward, peer) = forwarded(1, Mode::Counter);
    let mirror = Mirror::new(Arc::clone(&event)).unwrap();
    for _ in 0..3 {
        event.signal();
        assert!(!is_readable(&mirror));
        assert!(is_readable(&peer));
    }
    peer.write(FULL - 4).unwrap();
    event.signal();
    event.signal();
    assert!(is_readable(&mirror));
    assert_eq!(peer.read().unwrap(), FULL);
    event.signal();
    assert!(!is_readable(&mirror));
    assert_eq!(peer.read().unwrap(), 3);
}

/// Two forwarders compete for the event, and each count goes to one of them.
#[test]
fn exported_twice() {
    let (event, first, peer_of_first) = forwarded(0, Mode::Counter);
    let second = Forward::new(Arc::clone(&event)).unwrap();
    let peer_of_second = peer(&second);
    let taken = || [&peer_of_first, &peer_of_second].map(|peer| peer.read().unwrap_or(0));
    for n in 1..10 {
        event.signal_n(n);
        assert_eq!(taken().iter().sum::<u64>(), n);
    }
    drop(first);
    event.signal();
    assert_eq!(taken(), [0, 1]);
}

#[test]
fn nothing_is_lost_under_load() {
    const SIGNALS: u64 = 30_000;
    const THREADS: u64 = 3;
    let (event, _forward, peer) = forwarded(0, Mode::Counter);
    let _watchdog = Watchdog::new(Duration::from_secs(50), || "signallers".to_owned());
    let level = Watch::level(&peer);
    let mut taken = 0;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..SIGNALS).for_each(|_| event.signal()));
        }
        while taken < THREADS * SIGNALS {
            if level.wait(Duration::from_secs(60)) {
                taken += peer.read().unwrap();
            }
        }
    });
    assert_eq!(taken, THREADS * SIGNALS);
    assert_empty(&peer);
}

/// The eventfd is full most of the time.
#[test]
fn nothing_is_lost_where_there_is_no_room() {
    watchdog::limit("no room", || {
        let (event, forward, peer) = forwarded(0, Mode::Counter);
        let stop = AtomicBool::new(false);
        let (mut written, mut taken) = (0_u128, 0_u128);
        thread::scope(|scope| {
            let writers: Vec<_> = (0..2_u64)
                .map(|seed| {
                    let event = &event;
                    scope.spawn(move || {
                        let mut random = fastrand::Rng::with_seed(seed);
                        let mut written = 0;
                        for _ in 0..20_000 {
                            let n = random.u64(..) >> random.u32(0..4);
                            written += event.try_write(n).map_or(0, |()| u128::from(n));
                        }
                        written
                    })
                })
                .collect();
            let reader = scope.spawn(|| {
                let mut taken = 0;
                while !stop.load(Ordering::Relaxed) {
                    taken += peer.read().map_or(0, u128::from);
                    thread::yield_now();
                }
                taken
            });
            written += writers.into_iter().map(|w| w.join().unwrap()).sum::<u128>();
            stop.store(true, Ordering::Relaxed);
            taken += reader.join().unwrap();
        });
        // What is left, which may be more than `pending` can say.
        let _ = forward.flush();
        while let Ok(n) = peer.read() {
            taken += u128::from(n);
            let _ = forward.flush();
        }
        assert_eq!((event.count(), forward.pending()), (0, 0));
        assert_eq!(taken, written);
        assert!(taken > 0);
    });
}

#[test]
fn too_many_descriptors() {
    child::alone("forward::too_many_descriptors", || {
        let event = Arc::new(Event::new(3));
        let limit = Rlimit {
            current: Some(3),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        let error = Forward::new(Arc::clone(&event)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(event.read(), 3);
    });
}

/// KVM injects for each signal, even for one that adds nothing, and takes the count.
#[cfg(target_arch = "x86_64")]
#[test]
fn kvm_irqfd() {
    use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip};
    const GSI: u32 = 5;
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        eprintln!("skipped: kvm_irqfd: no /dev/kvm");
        return;
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let chip = || {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_PIC_MASTER,
            ..kvm_irqchip::default()
        };
        vm.get_irqchip(&mut chip).unwrap();
        chip
    };
    // SAFETY: the PIC's state is what was asked for.
    let is_pending = || unsafe { chip().chip.pic.irr } & (1 << GSI) != 0;
    let take = || {
        crate::common::caller::wait_until("an interrupt", is_pending);
        let mut chip = chip();
        chip.chip.pic.irr = 0;
        vm.set_irqchip(&chip).unwrap();
    };

    // A signal is pending before there is an irqfd.
    let event = Arc::new(Event::new(1));
    let forward = Forward::new(Arc::clone(&event)).unwrap();
    let irqfd = kvm_irqfd_argument(forward.as_raw_fd(), GSI);
    // SAFETY: KVM reads the argument and nothing else.
    let result = unsafe { vmm_sys_util::ioctl::ioctl_with_ref(&vm, KVM_IRQFD(), &irqfd) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    take();
    let peer = peer(&forward);
    // KVM leaves the count that it finds, and takes it at the next signal.
    assert_eq!(peer.read().unwrap(), 1);
    for _ in 0..3 {
        assert!(!is_pending());
        event.signal();
        take();
        assert_empty(&peer);
        event.write(0).unwrap();
        take();
    }
    assert!(!is_pending());
    assert_eq!(event.count(), 0);
}

#[cfg(target_arch = "x86_64")]
fn kvm_irqfd_argument(fd: i32, gsi: u32) -> kvm_bindings::kvm_irqfd {
    kvm_bindings::kvm_irqfd {
        fd: fd as u32,
        gsi,
        ..Default::default()
    }
}

#[cfg(target_arch = "x86_64")]
vmm_sys_util::ioctl_iow_nr!(
    KVM_IRQFD,
    kvm_bindings::KVMIO,
    0x76,
    kvm_bindings::kvm_irqfd
);

/// As the docs say, no kind of write fails at once on a full eventfd regardless of the peer's `O_NONBLOCK`. This shows
/// it for the kernel.
#[test]
fn no_write_ignores_the_flag() {
    let eventfd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    let one = 1_u64.to_ne_bytes();
    let (anywhere, no_wait) = (u64::MAX, ReadWriteFlags::NOWAIT);
    let written = rustix::io::pwritev2(&eventfd, &[IoSlice::new(&one)], anywhere, no_wait);
    if written == Err(Errno::NOSYS) {
        return eprintln!("skipped: no pwritev2(2)");
    }
    assert_eq!(written, Err(Errno::OPNOTSUPP));
    let path = format!("/proc/self/fd/{}", eventfd.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
    assert_eq!(opened.err(), Some(Errno::NXIO));
    let (from, to) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&to, &one).unwrap();
    let spliced = rustix::pipe::splice(&from, None, &eventfd, None, 8, SpliceFlags::NONBLOCK);
    assert_eq!(spliced, Err(Errno::INVAL));
}
