//! What a child may do that was forked while other threads were inside calls, as `src/guide/fork.md` says: no call
//! hangs, and none panics.

#![cfg(unix)]

#[path = "../common/watchdog.rs"]
mod watchdog;

use doorbell::event::{Change, Interest, Observation};
use doorbell::ioeventfd::{Bus, Key, Table};
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router, Routes};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, reclaim};
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use watchdog::limit;

/// Runs `f` in a child of this process, and waits for its end. An alarm ends a child that hangs.
///
/// The child drops what `f` owns.
fn in_a_child(f: impl FnOnce()) {
    let f = ManuallyDrop::new(f);
    // SAFETY: the child never leaves this function.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: plain system calls.
        unsafe { libc::alarm(40) };
        // The thread that held the lock of libtest's output may not exist in the child.
        panic::set_hook(Box::new(|_| ()));
        let result = panic::catch_unwind(AssertUnwindSafe(ManuallyDrop::into_inner(f)));
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the status is there during the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child panicked, or hung");
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

fn observe(event: &Arc<Event>, call: impl Fn() + Send + Sync + 'static) -> Observation {
    let observer = Arc::new(move |_: Change| call());
    Observation::new(Arc::clone(event), Interest::Signals, observer)
}

/// A thread inside a callback of `event`, from a lookup of `table`.
struct Inside(Sender<()>, JoinHandle<()>);

impl Inside {
    fn new(table: &Table, event: &Arc<Event>) -> Self {
        let (entered, inside) = channel();
        let (leave, left) = channel::<()>();
        let left = Mutex::new(left);
        let (table, event) = (table.clone(), Arc::clone(event));
        let thread = thread::spawn(move || {
            let _observation = observe(&event, move || {
                entered.send(()).unwrap();
                left.lock().unwrap().recv().unwrap();
            });
            assert!(table.write(Bus::Mmio, 0, &[0; 4]));
        });
        inside.recv().unwrap();
        Inside(leave, thread)
    }

    fn end(self) {
        self.0.send(()).unwrap();
        self.1.join().unwrap();
    }
}

/// Tables, observers and pollers are read and changed, also by threads of the child, though a thread that does not
/// exist in the child was inside a callback.
#[test]
fn while_a_thread_was_inside_a_callback() {
    limit("while_a_thread_was_inside_a_callback", || {
        let (table, kick, other) = (Table::new(), event(), event());
        table.assign(Key::mmio(0, 4), &kick).unwrap().keep();
        let registration = table.assign(Key::mmio(8, 4), &other).unwrap();
        let calls = Arc::new(AtomicU32::new(0));
        let observation = observe(&other, {
            let calls = Arc::clone(&calls);
            move || _ = calls.fetch_add(1, SeqCst)
        });
        let reader = table.reader();
        let inside = Inside::new(&table, &kick);
        in_a_child(move || {
            assert!(reader.write(Bus::Mmio, 8, &[0; 4]));
            assert_eq!((other.try_read(), calls.load(SeqCst)), (Some(1), 1));
            let vcpu = thread::spawn(move || {
                assert!(reader.write(Bus::Mmio, 8, &[0; 4]));
                drop(observation);
                assert!(reader.write(Bus::Mmio, 8, &[0; 4]));
                drop(registration);
                assert!(!reader.write(Bus::Mmio, 8, &[0; 4]));
            });
            vcpu.join().unwrap();
            assert_eq!((other.try_read(), calls.load(SeqCst)), (Some(2), 2));
            // The reader of the thread that does not exist here has left its slot marked as inside.
            table.deassign(Key::mmio(0, 4), &kick).unwrap();
            assert!(reclaim());

            let poller = Poller::new();
            poller.add(&other, 7, Watch::READABLE).unwrap();
            let signaller = thread::spawn({
                let other = Arc::clone(&other);
                move || other.signal()
            });
            let mut events = Events::with_capacity(1);
            assert_eq!(poller.wait(&mut events, None).unwrap(), 1);
            signaller.join().unwrap();
            poller.delete(7).unwrap();
            assert_eq!(other.read_timeout(Duration::ZERO), Some(1));
        });
        inside.end();
    });
}

/// The section of the thread that forks goes on in the child, and writers wait for it.
#[test]
fn inside_a_callback() {
    limit("inside_a_callback", || {
        let (event, other) = (event(), event());
        let watched = Mutex::new(Some(observe(&other, || ())));
        let calls = Arc::new(AtomicU32::new(0));
        let _observation = observe(&event, {
            let calls = Arc::clone(&calls);
            move || {
                let watched = watched.lock().unwrap().take();
                in_a_child(|| {
                    let detached = Arc::new(AtomicBool::new(false));
                    let writer = thread::spawn({
                        let detached = Arc::clone(&detached);
                        move || {
                            drop(watched);
                            detached.store(true, SeqCst);
                        }
                    });
                    for _ in 0..20 {
                        thread::sleep(Duration::from_millis(1));
                        assert!(!detached.load(SeqCst));
                    }
                    assert!(!writer.is_finished());
                });
                calls.fetch_add(1, SeqCst);
            }
        });
        event.signal();
        assert_eq!(calls.load(SeqCst), 1);
    });
}

/// Forks at any moment of other threads that leave things behind in callbacks.
#[test]
fn while_others_attach_and_detach() {
    limit("while_others_attach_and_detach", || {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let (trigger, watched) = (event(), event());
                    let _observation = observe(&trigger, move || drop(observe(&watched, || ())));
                    while !stop.load(SeqCst) {
                        trigger.signal();
                    }
                });
            }
            for _ in 0..50 {
                in_a_child(|| {
                    let (trigger, watched) = (event(), event());
                    let observation = observe(&trigger, move || drop(observe(&watched, || ())));
                    trigger.signal();
                    drop(observation);
                    assert!(reclaim());
                });
            }
            stop.store(true, SeqCst);
        });
    });
}

/// Counts messages, by whether this thread or another one sends them.
#[derive(Default)]
struct Counts {
    here: AtomicU32,
    by_a_worker: AtomicU32,
}

impl InterruptSink for Counts {
    fn set_level(&self, _: u32, _: u32, _: bool) {}

    fn signal_msi(&self, _: u32, _: MsiMessage) {
        let by_a_worker = thread::current().name() == Some("irqfd");
        let counter = if by_a_worker {
            &self.by_a_worker
        } else {
            &self.here
        };
        counter.fetch_add(1, SeqCst);
    }
}

/// The child has no worker: the thread that signals does the work, and nothing waits for the worker.
#[test]
fn a_router_with_a_worker() {
    limit("a_router_with_a_worker", || {
        let sink = Arc::new(Counts::default());
        let router = Router::with_worker(Arc::clone(&sink)).unwrap();
        let message = MsiMessage::new(0xfee0_0000, 0x41);
        router.set_route(5, Some(Route::Msi(message))).unwrap();
        let (kick, other) = (event(), event());
        let irqfd = router.assign(&kick, 5).unwrap();
        kick.signal();
        router.mask(5);
        router.unmask(5);
        while sink.by_a_worker.load(SeqCst) != 1 {
            thread::yield_now();
        }
        in_a_child(move || {
            kick.signal();
            assert_eq!(sink.here.load(SeqCst), 1);
            router.mask(5);
            kick.signal();
            assert!(router.is_pending(5));
            router.unmask(5);
            assert_eq!(sink.here.load(SeqCst), 2);
            let another = router.assign(&other, 5).unwrap();
            other.signal();
            drop((irqfd, another));
            router.set_routes(Routes::new()).unwrap();
            assert_eq!(sink.here.load(SeqCst), 3);
            assert_eq!(sink.by_a_worker.load(SeqCst), 1);
            // This is the last handle. The drop does not wait for the worker.
            drop(router);
            assert_eq!(
                Arc::strong_count(&sink),
                1 + 1,
                "the board of the thread that does not exist here"
            );
        });
    });
}

/// Whether this is a process for one test, in which no other test has called anything. If not, the test has been run in
/// such a process.
fn is_fresh(test: &str) -> bool {
    const FRESH: &str = "DOORBELL_TEST_FRESH";
    let fresh = std::env::var_os(FRESH).is_some();
    if !fresh {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", test]).env(FRESH, "").output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    fresh
}

/// Forks while another thread finds out what the first blocking call of a process must know.
#[test]
fn during_the_first_blocking_call() {
    const NAME: &str = "during_the_first_blocking_call";
    if !is_fresh(NAME) {
        return;
    }
    let block = || assert_eq!(event().read_timeout(Duration::from_millis(1)), None);
    limit(NAME, || {
        for round in 0..200 {
            in_a_child(|| {
                let begins = Arc::new(AtomicBool::new(false));
                let other = thread::spawn({
                    let begins = Arc::clone(&begins);
                    move || {
                        begins.store(true, SeqCst);
                        block();
                    }
                });
                while !begins.load(SeqCst) {}
                for _ in 0..10 * round {
                    std::hint::spin_loop();
                }
                in_a_child(|| {
                    // SAFETY: a plain system call. This alarm comes earlier than the usual one, which gives a child all
                    // the time that it may need.
                    unsafe { libc::alarm(5) };
                    block();
                });
                other.join().unwrap();
            });
        }
    });
}

/// Forks while other threads attach and detach, in a process in which no callback has been made yet: the lock for what
/// they replace is free in the child.
#[test]
fn before_the_first_callback() {
    const NAME: &str = "before_the_first_callback";
    if !is_fresh(NAME) {
        return;
    }
    let attach = || drop(observe(&event(), || ()));
    /// Ends the other threads, even if a child fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    limit(NAME, || {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = Stop(&stop);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        // Each thread attaches to an event of its own, so that the lists are short.
                        attach();
                    }
                });
            }
            for _ in 0..300 {
                in_a_child(|| {
                    // SAFETY: a plain system call. This alarm comes earlier than the usual one, which gives a child all
                    // the time that it may need.
                    unsafe { libc::alarm(5) };
                    attach();
                });
            }
        });
    });
}
