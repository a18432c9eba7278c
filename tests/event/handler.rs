//! Events in signal handlers: what is documented to be safe there, at any moment of the thread that is interrupted.

#![cfg(unix)]

#[path = "../common/watchdog.rs"]
mod watchdog;

#[cfg(any(target_os = "linux", target_os = "android"))]
use doorbell::Mode;
use doorbell::event::{Change, Interest, Observation};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Spin};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use watchdog::limit;

/// The event that the handler signals. The interrupted thread uses it, too.
static COUNTER: Event = Event::new(0);
/// The event that the handler looks at, reads and writes.
static OTHER: Event = Event::semaphore(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);
#[cfg(any(target_os = "linux", target_os = "android"))]
static SHARED: AtomicPtr<doorbell::SharedEvent> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn handler(_: libc::c_int) {
    HANDLED.fetch_add(1, SeqCst);
    COUNTER.signal();
    OTHER.try_write(1).unwrap();
    if let Some(taken) = OTHER.try_read() {
        TAKEN.fetch_add(taken, SeqCst);
    }
    assert!(!COUNTER.readiness().is_error());
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: null, or an event that is never freed.
    if let Some(shared) = unsafe { SHARED.load(SeqCst).as_ref() } {
        shared.signal();
    }
}

fn install(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the action is complete, and the handlers do only what is documented to be safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// Held by each test, because a storm takes a CPU.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends `thread` signals until told to stop, each when the one before has been handled.
fn storm(
    thread: libc::pthread_t,
    signal: libc::c_int,
    handled: &AtomicU64,
    stop: &AtomicBool,
) -> u64 {
    let mut sent = 0;
    while !stop.load(SeqCst) {
        // SAFETY: the thread runs until it has told this one to stop.
        assert_eq!(unsafe { libc::pthread_kill(thread, signal) }, 0);
        sent += 1;
        while handled.load(SeqCst) != sent && !stop.load(SeqCst) {
            std::hint::spin_loop();
        }
    }
    sent
}

/// A thread signals, reads, sleeps in and waits at the events that the handler signals, calls observers of other
/// events, attaches and detaches, and passes the handler's signals on to an observed event. Every signal arrives.
#[test]
fn signals_at_any_moment() {
    let _alone = alone();
    limit("signals_at_any_moment", || {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let shared: &doorbell::SharedEvent = {
            let (shared, _memfd) = doorbell::SharedEvent::create(0, Mode::Counter).unwrap();
            let shared = Box::leak(Box::new(shared));
            SHARED.store(shared, SeqCst);
            shared
        };
        install(libc::SIGUSR1, handler);
        let device = Arc::new(Event::new(0).with_spin(Spin::Never));
        let observe = |event: &Arc<Event>, observer| {
            Observation::new(Arc::clone(event), Interest::Signals, observer)
        };
        let observed = Arc::new(AtomicU64::new(0));
        let _observation = observe(&device, {
            let (device, observed) = (Arc::clone(&device), Arc::clone(&observed));
            Arc::new(move |_: Change| {
                observed.fetch_add(device.try_read().unwrap_or(0), SeqCst);
            })
        });
        let stop = AtomicBool::new(false);
        // SAFETY: the call takes no arguments.
        let here = unsafe { libc::pthread_self() };
        let mut own = 0;
        let mut passed_on = 0;
        let mut taken = 0;
        let mut in_shared = 0;
        let sent = thread::scope(|scope| {
            let (here, stop) = (here as usize, &stop);
            let storm =
                scope.spawn(move || storm(here as libc::pthread_t, libc::SIGUSR1, &HANDLED, stop));
            let mut pass_on = |n: u64| {
                passed_on += n;
                device.signal_n(n);
            };
            while HANDLED.load(SeqCst) < 20_000 {
                COUNTER.signal();
                own += 1;
                pass_on(COUNTER.read());
                // The read sleeps until the handler signals.
                pass_on(COUNTER.read());
                taken += OTHER.read_timeout(Duration::ZERO).unwrap_or(0);
                let brief = Arc::new(|_: Change| ());
                drop(observe(&device, brief));
                #[cfg(any(target_os = "linux", target_os = "android"))]
                {
                    in_shared += shared.try_read().unwrap_or(0);
                }
            }
            stop.store(true, SeqCst);
            storm.join().unwrap()
        });
        while HANDLED.load(SeqCst) != sent {
            thread::yield_now();
        }
        passed_on += COUNTER
            .try_read()
            .inspect(|&n| device.signal_n(n))
            .unwrap_or(0);
        assert_eq!(passed_on, sent + own);
        assert_eq!(observed.load(SeqCst), passed_on);
        while let Some(one) = OTHER.try_read() {
            taken += one;
        }
        assert_eq!(taken + TAKEN.load(SeqCst), sent);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        assert_eq!(in_shared + shared.try_read().unwrap_or(0), sent);
    });
}

/// Threads sleep until there are units in the one and room in the other, which a handler and the thread that it
/// interrupts provide.
static UNITS: Event = Event::semaphore(0).with_spin(Spin::Never);
static ROOM: Event = Event::new(FULL).with_spin(Spin::Never);
const FULL: u64 = u64::MAX - 1;
static WAKING: AtomicU64 = AtomicU64::new(0);
/// How often `ROOM` has been read.
static EMPTIED: AtomicU64 = AtomicU64::new(0);

fn wake() {
    UNITS.signal();
    if let Some(count) = ROOM.try_read() {
        assert_eq!(count, FULL);
        EMPTIED.fetch_add(1, SeqCst);
    }
}

extern "C" fn wake_in_handler(_: libc::c_int) {
    wake();
    WAKING.fetch_add(1, SeqCst);
}

/// A thread wakes others, and so does a handler that interrupts it in the midst of that. Every unit and all room find
/// the threads that sleep until they come.
#[test]
fn wake_ups_at_any_moment() {
    let _alone = alone();
    limit("wake_ups_at_any_moment", || {
        install(libc::SIGURG, wake_in_handler);
        let [stop, done] = [(); 2].map(|()| AtomicBool::new(false));
        // SAFETY: the call takes no arguments.
        let here = unsafe { libc::pthread_self() } as usize;
        thread::scope(|scope| {
            let (stop, done) = (&stop, &done);
            let storm =
                scope.spawn(move || storm(here as libc::pthread_t, libc::SIGURG, &WAKING, stop));
            let sleepers = [(); 2].map(|()| {
                scope.spawn(move || {
                    let mut units = UNITS.read();
                    while !done.load(SeqCst) {
                        units += UNITS.read();
                    }
                    units
                })
            });
            let writer = scope.spawn(move || {
                let mut filled = 0;
                while !done.load(SeqCst) {
                    ROOM.write(FULL).unwrap();
                    filled += 1;
                }
                filled
            });
            let mut own = 0;
            while WAKING.load(SeqCst) < 5_000 {
                wake();
                own += 1;
            }
            stop.store(true, SeqCst);
            let sent = storm.join().unwrap();
            while WAKING.load(SeqCst) != sent {
                thread::yield_now();
            }
            done.store(true, SeqCst);
            while !writer.is_finished() || sleepers.iter().any(|sleeper| !sleeper.is_finished()) {
                wake();
                own += 1;
                thread::yield_now();
            }
            let units: u64 = sleepers.map(|sleeper| sleeper.join().unwrap()).iter().sum();
            assert_eq!(units + UNITS.try_read_all().unwrap_or(0), sent + own);
            let filled: u64 = 1 + writer.join().unwrap();
            assert_eq!(EMPTIED.load(SeqCst) + ROOM.count() / FULL, filled);
        });
    });
}

/// The poller that the other handler notifies.
static NOTIFIED: AtomicPtr<Poller> = AtomicPtr::new(std::ptr::null_mut());
static NOTIFICATIONS: AtomicU64 = AtomicU64::new(0);

extern "C" fn notify(_: libc::c_int) {
    // SAFETY: the pointer is to a poller that is never freed.
    unsafe { &*NOTIFIED.load(SeqCst) }.notify();
    NOTIFICATIONS.fetch_add(1, SeqCst);
}

/// A thread adds, modifies, deletes and waits, while a handler on the same thread notifies the poller. A lock of the
/// poller's that a notification took would be the thread's own. Each wait ends, though nothing becomes ready.
#[test]
fn notifications_at_any_moment() {
    let _alone = alone();
    limit("notifications_at_any_moment", || {
        let poller = Box::leak(Box::new(Poller::with_spin(Spin::Never)));
        NOTIFIED.store(poller, SeqCst);
        let poller: &Poller = poller;
        install(libc::SIGUSR2, notify);
        let idle = Arc::new(Event::new(0));
        let stop = AtomicBool::new(false);
        // SAFETY: the call takes no arguments.
        let here = unsafe { libc::pthread_self() };
        thread::scope(|scope| {
            let (here, stop) = (here as usize, &stop);
            scope
                .spawn(move || storm(here as libc::pthread_t, libc::SIGUSR2, &NOTIFICATIONS, stop));
            let mut found = Events::with_capacity(1);
            while NOTIFICATIONS.load(SeqCst) < 5_000 {
                for _ in 0..10 {
                    poller.add(&idle, 1, Watch::READABLE).unwrap();
                    poller.modify(1, Watch::BOTH.edge()).unwrap();
                    poller.modify(1, Watch::READABLE).unwrap();
                    poller.delete(1).unwrap();
                }
                assert_eq!(poller.wait(&mut found, None).unwrap(), 0);
            }
            stop.store(true, SeqCst);
        });
    });
}
