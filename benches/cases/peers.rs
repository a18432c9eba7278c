//! Other ways to wake a thread, behind one interface: the peers of an event.
//!
//! Some count, some hold one token. Some have only a list of waiters, and get a counter beside it, as programs have
//! that use them.

pub use super::event::Eventfd;
use super::{Run, alone, two};
use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::{Parker, Unparker};
use doorbell::{Event, Spin};
use event_listener::Listener;
use pollster::block_on;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};
pub use tokio::sync::Notify;

/// Something that threads ring and one thread waits for.
pub trait Bell: Default + Send + Sync + 'static {
    const NAME: &'static str;

    fn ring(&self);

    /// Takes the rings, as one token or all of them. Sleeps at once if there is nothing.
    fn wait(&self);
}

/// A bell that can be checked without sleeping.
pub trait TryBell: Bell {
    /// Takes the rings, if there are any.
    fn try_wait(&self) -> bool;
}

/// A list with a value made for each peer, except [`Eventfd`].
macro_rules! for_each_peer {
    ($make:path) => {{
        use $crate::cases::peers::*;
        [
            (Listeners::NAME, $make(Listeners::default)),
            (Parking::NAME, $make(Parking::default)),
            (StdCondvar::NAME, $make(StdCondvar::default)),
            (ParkingLot::NAME, $make(ParkingLot::default)),
            (Semaphore::NAME, $make(Semaphore::default)),
            (Notify::NAME, $make(Notify::default)),
        ]
    }};
}
pub(crate) use for_each_peer;

/// The same for peers that can be checked without sleeping, in a wrapper that checks them, and with [`Eventfd`].
macro_rules! for_each_asked {
    ($make:path, $wrap:ident) => {{
        use $crate::cases::peers::*;
        [
            (Eventfd::NAME, $make($wrap::<Eventfd>::default)),
            (Listeners::NAME, $make($wrap::<Listeners>::default)),
            (StdCondvar::NAME, $make($wrap::<StdCondvar>::default)),
            (ParkingLot::NAME, $make($wrap::<ParkingLot>::default)),
            (Semaphore::NAME, $make($wrap::<Semaphore>::default)),
            (Notify::NAME, $make($wrap::<Notify>::default)),
        ]
    }};
}
pub(crate) use for_each_asked;

/// Rings while no thread waits.
pub fn ring<B: Bell>(make: fn() -> B) -> Run {
    let bell = make();
    alone(move || bell.ring())
}

/// Rings, and waits for the ring that is there already.
pub fn ring_and_wait<B: Bell>(make: fn() -> B) -> Run {
    let bell = make();
    alone(move || {
        bell.ring();
        bell.wait();
    })
}

/// Two threads ring one bell.
pub fn ring_by_two<B: Bell>(make: fn() -> B) -> Run {
    let bell = make();
    two(move |_| bell.ring())
}

/// Two threads wait for each other by turns.
pub fn ping_pong<B: Bell>(make: fn() -> B) -> Run {
    // The bells are on cache lines of their own, as an event is: two bells on one cache line would move between CPUs
    // together.
    let bells = [CachePadded::new(make()), CachePadded::new(make())];
    bells[0].ring();
    two(move |me| {
        let me = me as usize;
        bells[me].wait();
        bells[1 - me].ring();
    })
}

/// An [`Event`] whose readers sleep at once.
pub struct Sleeping(Event);

impl Default for Sleeping {
    fn default() -> Self {
        Sleeping(Event::new(0).with_spin(Spin::Never))
    }
}

impl Bell for Sleeping {
    const NAME: &'static str = "doorbell";

    fn ring(&self) {
        self.0.signal();
    }

    fn wait(&self) {
        self.0.read();
    }
}

impl Default for Eventfd {
    fn default() -> Self {
        Eventfd::new()
    }
}

impl Bell for Eventfd {
    const NAME: &'static str = "kernel eventfd";

    fn ring(&self) {
        self.write(1);
    }

    fn wait(&self) {
        self.read();
    }
}

impl TryBell for Eventfd {
    fn try_wait(&self) -> bool {
        // This reads at the current position, which is all that an eventfd has.
        let position = u64::MAX;
        let mut value = [0; 8];
        let mut room = [IoSliceMut::new(&mut value)];
        match preadv2(self.fd(), &mut room, position, ReadWriteFlags::NOWAIT) {
            Ok(_) => true,
            Err(Errno::AGAIN) => false,
            Err(e) => panic!("an eventfd can be read: {e}"),
        }
    }
}

/// event-listener: a list of waiters, and a counter beside it.
#[derive(Default)]
pub struct Listeners {
    count: AtomicU64,
    event: event_listener::Event,
}

impl Bell for Listeners {
    const NAME: &'static str = "event-listener";

    fn ring(&self) {
        self.count.fetch_add(1, Ordering::Release);
        // `notify` makes a full fence first.
        self.event.notify(1);
    }

    fn wait(&self) {
        while !self.try_wait() {
            let listener = self.event.listen();
            if self.try_wait() {
                return;
            }
            listener.wait();
        }
    }
}

impl TryBell for Listeners {
    fn try_wait(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0 && self.count.swap(0, Ordering::Acquire) != 0
    }
}

/// crossbeam's parker: one token.
pub struct Parking {
    parker: Parker,
    unparker: Unparker,
}

// SAFETY: a parker may be used by one thread at a time, and only one thread waits for a bell.
unsafe impl Sync for Parking {}

impl Default for Parking {
    fn default() -> Self {
        let parker = Parker::new();
        let unparker = parker.unparker().clone();
        Parking { parker, unparker }
    }
}

impl Bell for Parking {
    const NAME: &'static str = "crossbeam Parker";

    fn ring(&self) {
        self.unparker.unpark();
    }

    fn wait(&self) {
        self.parker.park();
    }
}

/// std's mutex with a counter in it, and condition variable.
#[derive(Default)]
pub struct StdCondvar {
    count: Mutex<u64>,
    rung: Condvar,
}

impl Bell for StdCondvar {
    const NAME: &'static str = "std Mutex + Condvar";

    fn ring(&self) {
        *self.count.lock().expect("nobody panics") += 1;
        self.rung.notify_one();
    }

    fn wait(&self) {
        let count = self.count.lock().expect("nobody panics");
        let silent = |count: &mut u64| *count == 0;
        *self.rung.wait_while(count, silent).expect("nobody panics") = 0;
    }
}

impl TryBell for StdCondvar {
    fn try_wait(&self) -> bool {
        std::mem::take(&mut *self.count.lock().expect("nobody panics")) != 0
    }
}

/// The same, of parking_lot.
#[derive(Default)]
pub struct ParkingLot {
    count: parking_lot::Mutex<u64>,
    rung: parking_lot::Condvar,
}

impl Bell for ParkingLot {
    const NAME: &'static str = "parking_lot Condvar";

    fn ring(&self) {
        *self.count.lock() += 1;
        self.rung.notify_one();
    }

    fn wait(&self) {
        let mut count = self.count.lock();
        self.rung.wait_while(&mut count, |count| *count == 0);
        *count = 0;
    }
}

impl TryBell for ParkingLot {
    fn try_wait(&self) -> bool {
        std::mem::take(&mut *self.count.lock()) != 0
    }
}

/// libc's semaphore. A semaphore cannot be moved once it is made.
pub struct Semaphore(Box<CachePadded<UnsafeCell<MaybeUninit<libc::sem_t>>>>);

// SAFETY: threads share a semaphore.
unsafe impl Send for Semaphore {}
// SAFETY: threads share a semaphore.
unsafe impl Sync for Semaphore {}

impl Semaphore {
    fn raw(&self) -> *mut libc::sem_t {
        self.0.get().cast()
    }
}

impl Default for Semaphore {
    fn default() -> Self {
        let semaphore = Semaphore(Box::new(CachePadded::new(UnsafeCell::new(
            MaybeUninit::uninit(),
        ))));
        // SAFETY: the memory is allocated, and no thread uses it yet.
        let done = unsafe { libc::sem_init(semaphore.raw(), 0, 0) };
        assert_eq!(done, 0, "0 is a value for a semaphore");
        semaphore
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // SAFETY: the semaphore was made, and no thread uses it any more.
        unsafe { libc::sem_destroy(self.raw()) };
    }
}

impl Bell for Semaphore {
    const NAME: &'static str = "POSIX sem_t";

    fn ring(&self) {
        // SAFETY: the semaphore was made. The call fails if there are 2^31 rings that no thread took, which no case
        // makes.
        unsafe { libc::sem_post(self.raw()) };
    }

    fn wait(&self) {
        // SAFETY: the semaphore was made. The call fails if a signal handler has run.
        while unsafe { libc::sem_wait(self.raw()) } != 0 {}
    }
}

impl TryBell for Semaphore {
    fn try_wait(&self) -> bool {
        // SAFETY: the semaphore was made.
        unsafe { libc::sem_trywait(self.raw()) == 0 }
    }
}

/// tokio's `Notify`: one token, in a thread that does nothing else.
impl Bell for Notify {
    const NAME: &'static str = "tokio Notify";

    fn ring(&self) {
        self.notify_one();
    }

    fn wait(&self) {
        block_on(self.notified());
    }
}

impl TryBell for Notify {
    fn try_wait(&self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(self.notified()).poll(&mut context).is_ready()
    }
}

/// A bell that is checked over and over, without sleeping.
#[derive(Default)]
pub struct Spinning<B>(B);

impl<B: TryBell> Bell for Spinning<B> {
    const NAME: &'static str = B::NAME;

    fn ring(&self) {
        self.0.ring();
    }

    fn wait(&self) {
        while !self.0.try_wait() {
            spin_loop();
        }
    }
}

/// A bell that is checked for as long as an event spins at most by default; then the thread sleeps.
#[derive(Default)]
pub struct SpinThenSleep<B>(B);

impl<B: TryBell> Bell for SpinThenSleep<B> {
    const NAME: &'static str = B::NAME;

    fn ring(&self) {
        self.0.ring();
    }

    fn wait(&self) {
        let start = Instant::now();
        while start.elapsed() < LONGEST_SPIN {
            // Reading the clock costs more than some of these checks.
            for _ in 0..16 {
                if self.0.try_wait() {
                    return;
                }
                spin_loop();
            }
        }
        self.0.wait();
    }
}

const LONGEST_SPIN: Duration = Duration::from_micros(20);
