//! The table with `membarrier(2)` instead of fences: what the opt-in returns, and that lookups and changes still agree.
//!
//! The choice is made once for the whole process, so each test has a process of its own: this binary, started again for
//! that test.

#![cfg(target_os = "linux")]

use doorbell::event::{Change, Interest, Observation};
use doorbell::ioeventfd::space::AddressSpace;
use doorbell::ioeventfd::{Bus, Key, Table};
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router, Routes};
use doorbell::{Event, MembarrierError, use_membarrier};
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const KEY: Key = Key::mmio(0x1000, 4);

/// Runs `test` in a process of its own.
fn in_a_process(name: &str, test: fn()) {
    const MARK: &str = "DOORBELL_TEST_PROCESS";
    if std::env::var_os(MARK).is_some() {
        test();
        return;
    }
    let myself = std::env::current_exe().expect("the test has a path");
    let status = Command::new(myself)
        .args(["--exact", name, "--nocapture"])
        .env(MARK, "1")
        .status()
        .expect("the test can be started again");
    assert!(status.success(), "{name}: {status}");
}

/// Has the system answer `errno` to every `membarrier` of this thread. Ends the process, which is a test's own, with a
/// message if there is no seccomp, as under qemu-user.
fn refuse_membarrier(errno: i32) {
    let statement = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let mut program = [
        // The number of the system call comes first in the data.
        statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0),
        libc::sock_filter {
            jf: 1,
            ..statement(
                (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
                libc::SYS_membarrier as u32,
            )
        },
        statement(
            (libc::BPF_RET | libc::BPF_K) as u16,
            libc::SECCOMP_RET_ERRNO | errno as u32,
        ),
        statement(
            (libc::BPF_RET | libc::BPF_K) as u16,
            libc::SECCOMP_RET_ALLOW,
        ),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter and its program are there during the calls, which copy them.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter),
        ]
    };
    if results != [0, 0] {
        eprintln!("skipped: no seccomp: {}", io::Error::last_os_error());
        std::process::exit(0);
    }
}

/// Opts in, or prints why a test is skipped.
fn opt_in() -> bool {
    match use_membarrier() {
        Ok(()) => true,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            false
        }
    }
}

/// One round trip through the table, as it works with either barrier.
fn ring_once() {
    let table = Table::new();
    let event = Arc::new(Event::new(0));
    let registration = table.assign(KEY, &event).unwrap();
    assert!(table.write(Bus::Mmio, KEY.address, &[0; 4]));
    drop(registration);
    assert!(!table.write(Bus::Mmio, KEY.address, &[0; 4]));
    assert_eq!(Arc::into_inner(event).map(|event| event.read()), Some(1));
}

/// Readers at full speed without a fence, while the doorbell they ring comes and goes with its event.
#[test]
fn lookups_and_changes() {
    in_a_process("lookups_and_changes", || {
        if !opt_in() {
            return;
        }
        assert_eq!(use_membarrier(), Ok(()));
        ring_once();
        assert_eq!(use_membarrier(), Ok(()));

        let table = Table::new();
        let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut signals = 0;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let reader = table.reader();
                    while !stop.load(Ordering::Relaxed) {
                        let rung = reader.write(Bus::Mmio, KEY.address, &[0; 4]);
                        taken.fetch_add(rung.into(), Ordering::Relaxed);
                    }
                });
            }
            let start = Instant::now();
            let mut rounds = 0_u32;
            while start.elapsed() < Duration::from_millis(300) || rounds < 500 {
                let event = Arc::new(Event::new(0));
                drop(table.assign(KEY, &event).unwrap());
                let count = event.count();
                thread::yield_now();
                // This is the last handle, and no signal came after the doorbell had gone.
                assert_eq!(
                    Arc::into_inner(event).map(|event| event.count()),
                    Some(count)
                );
                signals += count;
                rounds += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(signals, taken.load(Ordering::Relaxed));
    });
}

/// Observers need no barrier: they come and go while others are called, also by lookups without a fence, though the
/// system refuses `membarrier`.
#[test]
fn observers_without_a_barrier() {
    in_a_process("observers_without_a_barrier", || {
        if !opt_in() {
            return;
        }
        let table = Table::new();
        let event = Arc::new(Event::new(0));
        table.assign(KEY, &event).unwrap().keep();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let reader = table.reader();
                while !stop.load(Ordering::Relaxed) {
                    assert!(reader.write(Bus::Mmio, KEY.address, &[0; 4]));
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    event.signal();
                }
            });
            refuse_membarrier(libc::EPERM);
            let start = Instant::now();
            let mut rounds = 0_u32;
            while start.elapsed() < Duration::from_millis(300) || rounds < 500 {
                let gone = Arc::new(AtomicBool::new(false));
                let observer = {
                    let gone = Arc::clone(&gone);
                    Arc::new(move |_: Change| assert!(!gone.load(Ordering::Relaxed)))
                };
                let held = Arc::clone(&gone);
                let observation = Observation::new(Arc::clone(&event), Interest::Both, observer);
                event.try_read();
                drop(observation);
                gone.store(true, Ordering::Relaxed);
                assert_eq!(Arc::strong_count(&held), 2, "the observer has been dropped");
                rounds += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

/// Changes of routes, masks and irqfds work and return, though the system refuses `membarrier`: they call none.
#[test]
fn routes_and_masks_without_a_barrier() {
    struct Nowhere;
    impl InterruptSink for Nowhere {
        fn set_level(&self, _: u32, _: u32, _: bool) {}
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
    }

    in_a_process("routes_and_masks_without_a_barrier", || {
        if !opt_in() {
            return;
        }
        let message = |data| Route::Msi(MsiMessage::new(0xfee0_0000, data));
        let router = Router::new(Nowhere);
        // Lookups and changes of a table leave the routes alone.
        ring_once();
        refuse_membarrier(libc::EPERM);
        router.set_routes(Routes::identity(24)).unwrap();
        router.set_route(24, Some(message(1))).unwrap();
        router
            .change_routes([(24, Some(message(2))), (25, Some(message(3)))])
            .unwrap();
        let events = [(); 2].map(|()| Arc::new(Event::new(0)));
        let irqfds =
            [(0, 5), (1, 24)].map(|(number, gsi)| router.assign(&events[number], gsi).unwrap());
        for gsi in [5, 24] {
            router.mask(gsi);
            events.iter().for_each(|event| event.signal());
            router.unmask(gsi);
            router.synchronize();
        }
        router.mask(24);
        router.unmask_with_route(24, message(4)).unwrap();
        router.unmask_with_routes([(25, message(5))]).unwrap();
        assert_eq!(
            irqfds.each_ref().map(|irqfd| irqfd.counters().injections),
            [2, 2]
        );
        drop(irqfds);
        // The barrier would be refused.
        let change = || drop(Table::new().assign(KEY, &events[0]));
        let change = std::panic::catch_unwind(std::panic::AssertUnwindSafe(change));
        assert!(change.is_err());
    });
}

/// A change of a table in a callback calls no barrier. What it replaces is kept until a change outside of callbacks has
/// called one; then the next callback that changes something frees it.
#[test]
fn changes_in_callbacks() {
    in_a_process("changes_in_callbacks", || {
        if !opt_in() {
            return;
        }
        let table = Table::new();
        let event = Arc::new(Event::new(0));
        table.assign(KEY, &event).unwrap().keep();
        let replaced = Arc::new(Event::new(0));
        let _observation = Observation::new(Arc::clone(&event), Interest::Signals, {
            let (table, replaced) = (table.clone(), Arc::clone(&replaced));
            Arc::new(move |_: Change| {
                let key = Key::mmio(0x2000, 4);
                drop(table.assign(key, &replaced).unwrap());
            })
        });
        let ring = || assert!(table.write(Bus::Mmio, KEY.address, &[0; 4]));
        let kept = || Arc::strong_count(&replaced) - 2;
        for rings in 1..=3 {
            ring();
            assert_eq!(kept(), rings);
        }
        thread::spawn(ring_once).join().unwrap();
        assert_eq!(kept(), 3);
        ring();
        assert_eq!(kept(), 1);
        assert!(doorbell::reclaim());
        assert_eq!(kept(), 0);
        // A change in a callback does not call `membarrier`.
        refuse_membarrier(libc::EPERM);
        ring();
        assert_eq!(kept(), 1);
    });
}

/// A transaction puts off the wait for lookups to its end. The end calls the barrier, and lookups have ended then.
#[test]
fn changes_in_a_transaction() {
    in_a_process("changes_in_a_transaction", || {
        if !opt_in() {
            return;
        }
        let (table, space) = (Table::new(), AddressSpace::new());
        let event = Arc::new(Event::new(0));
        let doorbell = table.assign(KEY, &event).unwrap();
        let transaction = space.begin();
        drop(doorbell);
        assert_eq!(Arc::strong_count(&event), 2);
        assert!(transaction.commit().is_clean());
        assert_eq!(Arc::strong_count(&event), 1);
    });
}

/// The first lookup or change chooses fences.
#[test]
fn too_late() {
    in_a_process("too_late", || {
        ring_once();
        let error = use_membarrier().unwrap_err();
        assert_eq!(error, MembarrierError::TooLate);
        assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::EBUSY));
        ring_once();
    });
}

/// A filter refuses the call: the opt-in reports that, and fences are used.
#[test]
fn refused() {
    in_a_process("refused", || {
        refuse_membarrier(libc::EPERM);
        let error = use_membarrier().unwrap_err();
        assert_eq!(error, MembarrierError::Refused);
        assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::EPERM));
        ring_once();
    });
}

/// A kernel has no `membarrier`: the same.
#[test]
fn unsupported() {
    in_a_process("unsupported", || {
        refuse_membarrier(libc::ENOSYS);
        assert_eq!(use_membarrier(), Err(MembarrierError::Unsupported));
        ring_once();
    });
}

/// A filter refuses the call after it has been registered. A change panics, since it cannot know which lookups still
/// use the old entry, and leaks what it replaced rather than freeing it.
#[test]
fn refused_later() {
    in_a_process("refused_later", || {
        if !opt_in() {
            return;
        }
        let table = Table::new();
        let event = Arc::new(Event::new(0));
        let registration = table.assign(KEY, &event).unwrap();
        refuse_membarrier(libc::EPERM);
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(registration)));
        assert!(dropped.is_err());
        assert!(!table.write(Bus::Mmio, KEY.address, &[0; 4]));
        assert_eq!(Arc::strong_count(&event), 2);
    });
}
