//! Where memory is allocated: `wait_any` on up to 128 events allocates none, nor do futures once an event has been
//! waited for, nor batches once the events are in. Also, callbacks that attach and detach do not accumulate memory, and
//! a change of a route allocates little.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

use common::caller::{call_at, wait_until};
use common::counter::Place;
use common::watchdog;
use doorbell::Event;
use doorbell::Spin;
use doorbell::event::{Batch, Change, Interest, Observation, Observer, Readings};
use doorbell::ioeventfd::{Key, Table};
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router, Routes};
use doorbell::poll::{Events, Poller, Watch, wait_any};
use futures_core::Stream;
use rustix::thread::ClockId;
use rustix::thread::futex::{WaitvFlags, waitv};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

/// The system's allocator, which counts for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes that this thread has allocated.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    /// The same, less what this thread has freed.
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: all calls go to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        TAKEN.set(TAKEN.get() + layout.size());
        BYTES.set(BYTES.get() + layout.size() as isize);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - layout.size() as isize);
        // SAFETY: as promised by the caller; the pointer came from `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How many allocations this thread makes in `f`.
fn allocations(f: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

#[test]
fn allocations_are_counted() {
    assert_eq!(allocations(|| drop(Box::new(1))), 1);
}

fn has_waitv() -> bool {
    let none = waitv(&[], WaitvFlags::empty(), None, ClockId::Monotonic);
    let has = none == Err(rustix::io::Errno::INVAL);
    if !has {
        eprintln!("skipped: a kernel without futex_waitv");
    }
    has
}

#[test]
fn wait_any_takes_no_memory() {
    if !has_waitv() {
        return;
    }
    let wait = |number: usize, timeout| {
        let events: Vec<_> = (0..number).map(|_| Event::new(0)).collect();
        allocations(|| assert!(wait_any(&events, Some(timeout)).is_none()))
    };
    // The first wait that spins asks the system how many CPUs there are.
    wait(1, Duration::from_millis(1));
    for number in [0, 1, 2, 64, 128] {
        for timeout in [Duration::ZERO, Duration::from_millis(1)] {
            assert_eq!(wait(number, timeout), 0, "{number} events, {timeout:?}");
        }
    }
    // This shows that an allocation would be noticed.
    assert_ne!(wait(129, Duration::from_millis(1)), 0);
}

/// A `wait_any` that sleeps and is woken takes no memory either.
#[test]
fn a_woken_wait_any_takes_no_memory() {
    if !has_waitv() {
        return;
    }
    watchdog::limit("a_woken_wait_any_takes_no_memory", || {
        let events: Vec<_> = (0..64).map(|_| Event::new(0)).collect();
        let _ = wait_any(&events, Some(Duration::from_millis(1)));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                allocations(|| {
                    let ready = wait_any(&events, None).expect("no timeout");
                    assert_eq!(ready.last(), Some(63));
                })
            });
            let waits = || format!("{:?}", events[63]).contains("waiting_readers: 1");
            wait_until("the waiter to wait", waits);
            events[63].signal();
            assert_eq!(waiter.join().unwrap(), 0);
        });
    });
}

#[test]
fn futures_take_no_memory_but_the_first() {
    let event = Event::new(0);
    let mut context = Context::from_waker(Waker::noop());
    let mut once = || {
        allocations(|| {
            let [mut a, mut b, mut c] = [
                pin!(event.read_async()),
                pin!(event.read_async()),
                pin!(event.read_async()),
            ];
            let mut write = pin!(event.write_async(u64::MAX - 1));
            for future in [&mut a, &mut b, &mut c] {
                assert!(future.as_mut().poll(&mut context).is_pending());
            }
            event.signal();
            assert!(write.as_mut().poll(&mut context).is_pending());
            for future in [a, b] {
                _ = future.poll(&mut context);
            }
            assert!(write.poll(&mut context).is_ready());
            event.read();
        })
    };
    assert_ne!(once(), 0);
    for _ in 0..100 {
        assert_eq!(once(), 0);
    }
}

/// A stream takes memory when it is made, and none to wait.
#[test]
fn a_stream_takes_memory_once() {
    let event = Event::new(0);
    let mut context = Context::from_waker(Waker::noop());
    let wait = |readings: &mut Readings<'_>, context: &mut Context<'_>| {
        assert!(Pin::new(&mut *readings).poll_next(context).is_pending());
        event.signal();
        assert!(Pin::new(readings).poll_next(context).is_ready());
    };
    wait(&mut event.readings(), &mut context);
    let mut made = None;
    assert_eq!(allocations(|| made = Some(event.readings())), 1);
    let mut readings = made.expect("it was made");
    let waits = || (0..100).for_each(|_| wait(&mut readings, &mut context));
    assert_eq!(allocations(waits), 0);
}

#[test]
fn none_for_a_batch_that_knows_the_events() {
    let mut batch = Batch::new();
    let add = || (0..100).for_each(|_| _ = batch.add(Arc::new(Event::new(0))));
    assert_ne!(allocations(add), 0);
    let live = || {
        for _ in 0..3 {
            for index in 0..100 {
                batch.signal(index);
                batch.write(99 - index, 2).unwrap();
            }
            batch.commit().unwrap();
        }
        batch.write(7, u64::MAX - 1).unwrap();
        batch.commit().unwrap_err();
        batch.discard();
    };
    assert_eq!(allocations(live), 0);
    // No memory is taken when an event leaves, or when another takes its place.
    let new = Arc::new(Event::new(0));
    let exchange = || {
        batch.signal(50);
        drop(batch.remove(50));
        assert_eq!(batch.add(Arc::clone(&new)), 50);
    };
    assert_eq!(allocations(exchange), 0);
}

/// A batch takes no memory when it wakes a thread that sleeps in a poller, or a thread that sleeps at all events.
#[test]
fn none_for_a_batch_that_wakes() {
    // Without it a visitor allocates, and is not counted as a reader.
    if !has_waitv() {
        return;
    }
    watchdog::limit("none_for_a_batch_that_wakes", || {
        let events: Vec<_> = (0..64)
            .map(|_| Arc::new(Event::new(0).with_spin(Spin::Never)))
            .collect();
        let poller = Arc::new(Poller::with_spin(Spin::Never));
        for (key, event) in events.iter().enumerate() {
            poller.add(event, key, Watch::READABLE).unwrap();
        }
        let mut batch = Batch::new();
        for event in &events {
            batch.add(Arc::clone(event));
        }
        let mut round = || {
            let in_poller = call_at(Place::Futex, {
                let poller = Arc::clone(&poller);
                move || poller.wait(&mut Events::with_capacity(64), None).unwrap()
            });
            let visitor = call_at(Place::Several, {
                let events = events.clone();
                move || wait_any(&events, None).is_some()
            });
            let waits = || {
                format!("{poller:?}").contains("waiting: 1")
                    && format!("{:?}", events[63]).contains("waiting_readers: 1")
            };
            wait_until("both to wait", waits);
            in_poller.wait_asleep();
            visitor.wait_asleep();
            let taken = allocations(|| {
                (0..64).for_each(|index| batch.signal(index));
                batch.commit().unwrap();
            });
            assert_eq!(in_poller.finish(), 64);
            assert!(visitor.finish());
            events.iter().for_each(|event| _ = event.read());
            // An event that is no longer ready leaves the poller's queue.
            poller
                .wait(&mut Events::with_capacity(64), Some(Duration::ZERO))
                .unwrap();
            taken
        };
        // The thread's first round allocates, which shows that there is something to keep.
        assert_ne!(round(), 0);
        for _ in 0..3 {
            assert_eq!(round(), 0);
        }
    });
}

/// A thread whose callbacks attach and detach for ever, while no other thread frees anything: it keeps what it has
/// retired during a call of another thread, or two, and no more.
#[test]
fn attaching_and_detaching_in_callbacks_for_ever() {
    watchdog::limit("attaching_and_detaching_in_callbacks_for_ever", || {
        let watched = Arc::new(Event::new(0));
        let observe = |event: &Arc<Event>, call: Arc<dyn Observer>| {
            Observation::new(Arc::clone(event), Interest::Signals, call)
        };
        let trigger = Arc::new(Event::new(0));
        let table = Table::new();
        let _observation = observe(&trigger, {
            let (watched, table) = (Arc::clone(&watched), table.clone());
            Arc::new(move |_: Change| {
                let observer = Arc::new(|_: Change| ());
                drop(Observation::new(
                    Arc::clone(&watched),
                    Interest::Signals,
                    observer,
                ));
                drop(table.assign(Key::mmio(0, 4), &watched).unwrap());
            })
        });
        let others = Arc::new(Event::new(0));
        let _called = observe(&others, Arc::new(|_: Change| ()));
        let stop = AtomicBool::new(false);
        let before = BYTES.get();
        thread::scope(|scope| {
            // This thread is inside a call at almost any moment, but never in the same call for long.
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    others.signal();
                }
            });
            for _ in 0..30_000 {
                trigger.signal();
            }
            stop.store(true, Relaxed);
        });
        // 30,000 observers are some megabytes. Now that no thread is inside a call, the next calls free what is left.
        for _ in 0..2 {
            trigger.signal();
        }
        let kept = BYTES.get() - before;
        assert!(kept < 100_000, "{kept} bytes kept");
    });
}

/// A change of one route of many allocates little: a guest that sets up thousands of vectors one by one does not have
/// all of them copied each time.
#[test]
fn a_change_of_a_route_does_not_copy_all() {
    struct Nobody;
    impl InterruptSink for Nobody {
        fn set_level(&self, _: u32, _: u32, _: bool) {}
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
    }
    let router = Router::new(Arc::new(Nobody));
    let message = |data| Route::Msi(MsiMessage::new(0, data));
    let gsis = 0..=Routes::MAX_GSI;
    let routes = gsis.clone().map(|gsi| match gsi % 2 {
        0 => (gsi, message(gsi)),
        _ => (gsi, Route::Pin(gsi)),
    });
    router
        .set_routes(Routes::from_entries(routes).unwrap())
        .unwrap();
    let bytes = |change: &dyn Fn()| {
        let before = TAKEN.get();
        change();
        TAKEN.get() - before
    };
    let all = std::mem::size_of::<Route>() * gsis.count();
    for gsi in [0, 1, 2000, Routes::MAX_GSI] {
        let changes: [&dyn Fn(); 3] = [
            &|| router.set_route(gsi, None).unwrap(),
            &|| router.unmask_with_route(gsi, Route::Pin(1 << 20)).unwrap(),
            &|| router.set_route(gsi, Some(message(1))).unwrap(),
        ];
        for change in changes {
            let taken = bytes(change);
            assert!(taken < all / 10, "{taken} of {all}");
        }
        let same = bytes(&|| router.set_route(gsi, Some(message(1))).unwrap());
        assert_eq!(same, 0);
    }
}
