//! The fast paths. Each is a function that is not inlined, so that what is counted does not depend on what is around it.

use doorbell::event::{Change, Interest, Observation};
use doorbell::ioeventfd::{Bus, Key, Reader, Table};
use doorbell::{Event, Mode};
use std::cell::Cell;
use std::hint::black_box;
use std::mem;
use std::sync::Arc;

/// The longest run.
pub const MOST_TIMES: usize = 3_000;

/// What the loop around the paths takes.
pub const NOTHING: &str = "nothing";

macro_rules! paths {
    ($($name:literal: $make:expr, $path:expr;)*) => {
        /// Their names, in the order in which they are shown.
        pub const NAMES: &[&str] = &[$($name),*];

        /// Goes along a path so many times, each time with another event.
        pub fn run(name: &str, times: usize) {
            match name {
                $($name => {
                    #[inline(never)]
                    fn path(event: &Event, table: &Lookups) {
                        let path: fn(&Event, &Lookups) = const { $path };
                        path(event, table);
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
    "lookup: hit, repeated": empty, |_, table| table.ring(7);
    "lookup: hit, random": empty, |_, table| table.ring(table.random());
    "lookup: miss, repeated": empty, |_, table| table.miss(7);
    "lookup: miss, random": empty, |_, table| table.miss(table.random());
    "lookup without a reader: hit": empty, |_, table| table.ring_without_reader(7);
}

fn go(make: fn() -> Made, times: usize, path: fn(&Event, &Lookups)) {
    let lookups = Lookups::new();
    // As many in each run, and never dropped, so that what differs is the paths.
    let events: Vec<Made> = (0..MOST_TIMES).map(|_| make()).collect();
    let path = black_box(path);
    for (event, _) in &events[..times] {
        path(event, &lookups);
    }
    mem::forget(events);
}

/// An event, and what observes it.
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

/// Does nothing, and the compiler does not know.
fn observer() -> Arc<dyn doorbell::event::Observer> {
    black_box(Arc::new(|change: Change| _ = black_box(change)))
}

/// A table with many doorbells for one event.
struct Lookups {
    table: Table,
    reader: Reader,
    random: Cell<u64>,
}

/// Doorbells in the table, a power of two,
const DOORBELLS: u64 = 1024;
/// and this far apart.
const STRIDE: u64 = 8;

impl Lookups {
    fn new() -> Self {
        let table = Table::new();
        let event = Arc::new(Event::new(0));
        let doorbell =
            |index| doorbell::ioeventfd::Doorbell::new(Key::mmio(address(index), 4), &event);
        let registrations = table.assign_all((0..DOORBELLS).map(doorbell));
        let registrations = registrations.expect("no two at one address");
        registrations.into_iter().for_each(|it| it.keep());
        let reader = table.reader();
        Lookups {
            table,
            reader,
            random: Cell::new(1),
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

fn address(index: u64) -> u64 {
    black_box(0xfe00_0000 + STRIDE * index)
}
