//! The fast paths. Each is a function that is not inlined, so that its count does not depend on the code around it.

use doorbell::event::{Batch, Change, Interest, Observation, Signaller};
use doorbell::ioeventfd::{Bus, Key, Reader, Table};
use doorbell::poll::{Poller, Watch};
use doorbell::{Event, Mode};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::hint::black_box;
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Waker};

/// The longest run.
pub const MOST_TIMES: usize = 3_000;

/// The path that does nothing, which counts the loop around the paths.
pub const NOTHING: &str = "nothing";

/// The names of the paths of signallers begin with this.
const SIGNALLERS: &str = "signaller";

macro_rules! paths {
    ($($name:literal: $make:expr, $path:expr;)*) => {
        /// Their names, in the order in which they are shown.
        pub const NAMES: &[&str] = &[$($name),*];

        /// Runs a path this many times, each time with another event.
        pub fn run(name: &str, times: usize) {
            if name.starts_with(SIGNALLERS) {
                // This is too late if all paths are run in one process.
                if let Err(error) = doorbell::use_membarrier() {
                    println!("{name}: without lanes, {error}");
                }
            }
            match name {
                $($name => {
                    #[inline(never)]
                    fn path(event: &Event, fixture: &Fixture) {
                        let path: fn(&Event, &Fixture) = const { $path };
                        path(event, fixture);
                    }
                    go($make, times, path);
                })*
                _ => panic!("no path has the name {name}"),
            }
        }
    };
}

paths! {
    "nothing": empty, |_, _| ();
    "signal": empty, |event, _| event.signal();
    "signal_n": empty, |event, _| event.signal_n(black_box(3));
    "signal, semaphore": semaphore, |event, _| event.signal();
    "try_write": empty, |event, _| _ = black_box(event.try_write(black_box(3)));
    "try_write, no room": full, |event, _| _ = black_box(event.try_write(black_box(3)));
    "try_read": three, |event, _| _ = black_box(event.try_read());
    "try_read, nothing there": empty, |event, _| _ = black_box(event.try_read());
    "try_read, semaphore": semaphore, |event, _| _ = black_box(event.try_read());
    "try_read, semaphore, nothing there": empty_semaphore, |event, _| _ = black_box(event.try_read());
    "read": three, |event, _| _ = black_box(event.read());
    "signal, observed": observed, |event, _| event.signal();
    "signal, observed on demand, not armed": quiet, |event, _| event.signal();
    "signal, observed on demand, armed": armed, |event, _| event.signal();
    "signal, in a poller": in_poller, |event, _| event.signal();
    "signal, in a poller that knows": in_poller_that_knows, |event, _| event.signal();
    "async: wait, signal, go on": waited_for, |event, _| wait_then(event, || event.signal());
    "async: wait behind another, be dropped": in_line, |event, _| wait_then(event, || ());
    "lookup: hit, repeated": empty, |_, it| it.ring(7);
    "lookup: hit, random": empty, |_, it| it.ring(it.random());
    "lookup: miss, repeated": empty, |_, it| it.miss(7);
    "lookup: miss, random": empty, |_, it| it.miss(it.random());
    "lookup without a reader: hit": empty, |_, it| it.ring_without_reader(7);
    "batch: a signal, commit": empty, |_, it| it.signal_in_batch(&[0]);
    "batch: 16 signals of one event, commit": empty, |_, it| it.signal_in_batch(&[0; 16]);
    "batch: signals of 16 events, commit": empty, |_, it| it.signal_in_batch(&SIXTEEN);
    "signaller: signal": empty, |_, it| it.signaller.signal();
    "signaller: signal, try_read": empty, |_, it| it.signal_and_read();
    "signaller: try_read, nothing there": empty, |_, it| _ = black_box(it.signaller.event().try_read());
    "signaller: signal beside it": empty, |_, it| it.signaller.event().signal();
    "signaller: lookup: hit, repeated": empty, |_, it| it.ring_by_signaller(7);
    "signaller: batch: signals of 16 events, commit": empty, |_, it| it.signal_by_lanes(&SIXTEEN);
}

fn go(make: fn() -> Made, times: usize, path: fn(&Event, &Fixture)) {
    let fixture = Fixture::new();
    // There are as many events in each run, and they are never dropped, so that only the paths differ.
    let events: Vec<Made> = (0..MOST_TIMES).map(|_| make()).collect();
    let path = black_box(path);
    for (event, _) in &events[..times] {
        path(event, &fixture);
    }
    mem::forget(events);
}

/// An event, and its observation, if any.
type Made = (Arc<Event>, Option<Observation>);

fn with(count: u64, mode: Mode) -> Made {
    (Arc::new(Event::with_mode(count, mode)), None)
}

fn empty() -> Made {
    with(0, Mode::Counter)
}

fn three() -> Made {
    with(3, Mode::Counter)
}

fn full() -> Made {
    with(u64::MAX - 1, Mode::Counter)
}

fn semaphore() -> Made {
    with(3, Mode::Semaphore)
}

fn empty_semaphore() -> Made {
    with(0, Mode::Semaphore)
}

fn observed() -> Made {
    let (event, _) = empty();
    let observation = Observation::new(Arc::clone(&event), Interest::Signals, observer());
    (event, Some(observation))
}

fn quiet() -> Made {
    let (event, _) = empty();
    let observation = Observation::on_demand(Arc::clone(&event), Interest::Signals, observer());
    (event, Some(observation))
}

fn armed() -> Made {
    let (event, observation) = quiet();
    observation.iter().for_each(|it| it.arm(Interest::Signals));
    (event, observation)
}

/// The event is watched by a poller in which no thread sleeps.
fn in_poller() -> Made {
    static POLLER: LazyLock<Poller> = LazyLock::new(Poller::new);
    static KEYS: AtomicUsize = AtomicUsize::new(0);
    let made = empty();
    let key = KEYS.fetch_add(1, Relaxed);
    let added = POLLER.add(&made.0, key, Watch::READABLE.edge());
    added.expect("the key is new");
    made
}

/// The poller has been told of a signal before, and has not looked since.
fn in_poller_that_knows() -> Made {
    let made = in_poller();
    made.0.signal();
    made
}

/// A task has waited for the event before.
fn waited_for() -> Made {
    let made = empty();
    wait_then(&made.0, || made.0.signal());
    made
}

/// A task waits for the event, for ever.
fn in_line() -> Made {
    let made = empty();
    let event = Box::leak(Box::new(Arc::clone(&made.0)));
    let future = Box::leak(Box::new(Box::pin(event.read_async())));
    let mut context = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_pending());
    made
}

fn wait_then(event: &Event, f: impl FnOnce()) {
    let mut future = pin!(event.read_async());
    let mut context = Context::from_waker(Waker::noop());
    _ = black_box(future.as_mut().poll(&mut context));
    f();
    _ = black_box(future.poll(&mut context));
}

/// An observer that does nothing, which the compiler does not know.
fn observer() -> Arc<dyn doorbell::event::Observer> {
    black_box(Arc::new(|change: Change| _ = black_box(change)))
}

/// A table with many doorbells for one event, and a batch of signals for many events.
struct Fixture {
    table: Table,
    reader: Reader,
    random: Cell<u64>,
    batch: RefCell<Batch>,
    /// These have lanes if the path is one of signallers, and are not used otherwise.
    signaller: Signaller,
    reader_with_signallers: Reader,
    batch_with_signallers: RefCell<Batch>,
}

const SIXTEEN: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Doorbells in the table, a power of two,
const DOORBELLS: u64 = 1024;
/// and this far apart.
const STRIDE: u64 = 8;

impl Fixture {
    fn new() -> Self {
        let table = Table::new();
        let event = Arc::new(Event::new(0));
        let doorbell =
            |index| doorbell::ioeventfd::Doorbell::new(Key::mmio(address(index), 4), &event);
        let registrations = table.assign_all((0..DOORBELLS).map(doorbell));
        let registrations = registrations.expect("no two at one address");
        registrations.into_iter().for_each(|it| it.keep());
        let reader = table.reader();
        let sixteen = |mut batch: Batch| {
            for _ in SIXTEEN {
                batch.add(Arc::new(Event::new(0)));
            }
            RefCell::new(batch)
        };
        Fixture {
            reader,
            random: Cell::new(1),
            batch: sixteen(Batch::new()),
            signaller: Signaller::new(Arc::new(Event::new(0))),
            reader_with_signallers: table.reader().with_signallers(1),
            batch_with_signallers: sixteen(Batch::with_signallers()),
            table,
        }
    }

    fn ring(&self, index: u64) {
        black_box(
            self.reader
                .write(Bus::Mmio, address(index), black_box(&[0; 4])),
        );
    }

    fn miss(&self, index: u64) {
        black_box(
            self.reader
                .write(Bus::Mmio, address(index) + 4, black_box(&[0; 4])),
        );
    }

    fn ring_without_reader(&self, index: u64) {
        black_box(
            self.table
                .write(Bus::Mmio, address(index), black_box(&[0; 4])),
        );
    }

    fn signal_and_read(&self) {
        self.signaller.signal();
        black_box(self.signaller.event().try_read());
    }

    fn ring_by_signaller(&self, index: u64) {
        black_box(
            self.reader_with_signallers
                .write(Bus::Mmio, address(index), black_box(&[0; 4])),
        );
    }

    fn signal_in_batch(&self, events: &[usize]) {
        signal_all(&mut self.batch.borrow_mut(), events);
    }

    fn signal_by_lanes(&self, events: &[usize]) {
        signal_all(&mut self.batch_with_signallers.borrow_mut(), events);
    }

    /// The same numbers each time: an `xorshift`.
    fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x % DOORBELLS
    }
}

fn signal_all(batch: &mut Batch, events: &[usize]) {
    for &event in black_box(events) {
        batch.signal(event);
    }
    _ = black_box(batch.commit());
}

fn address(index: u64) -> u64 {
    black_box(0xfe00_0000 + STRIDE * index)
}
