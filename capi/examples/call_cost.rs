//! What a call costs through the shared library, over the same call in Rust.
//!
//! `cargo run --release --example call_cost [LIBRARY]`: the library is opened with `dlopen`, and its functions are called
//! through pointers, as a C program calls them through its table of imports. Both ways take turns, and the medians of
//! many turns are compared.

use doorbell_rs::Event;
use doorbell_rs::ioeventfd::{Bus, Key, Table};
use std::ffi::{CString, c_int, c_void};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use std::{env, fs, mem, ptr};

const CALLS: u32 = 20_000;
const TURNS: usize = 301;

type Object = *mut c_void;

struct Library(*mut c_void);

impl Library {
    fn open(path: &str) -> Self {
        let name = CString::new(path).unwrap();
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(
            !library.is_null(),
            "{path} cannot be opened: cargo build --release"
        );
        Library(library)
    }

    /// # Safety
    ///
    /// The function is of this type.
    unsafe fn get<F: Copy>(&self, name: &str) -> F {
        let symbol = CString::new(name).unwrap();
        let address = unsafe { libc::dlsym(self.0, symbol.as_ptr()) };
        assert!(!address.is_null(), "{name} is missing");
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>());
        black_box(unsafe { mem::transmute_copy(&address) })
    }
}

/// Nanoseconds for each call of one turn.
fn turn(body: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    body();
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn compare(name: &str, mut rust: impl FnMut(), mut c: impl FnMut()) {
    let (mut in_rust, mut in_c, mut over) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..TURNS {
        let [first, second] = if number % 2 == 0 {
            let first = turn(&mut rust);
            [first, turn(&mut c)]
        } else {
            let second = turn(&mut c);
            [turn(&mut rust), second]
        };
        in_rust.push(first);
        in_c.push(second);
        over.push(second - first);
    }
    println!(
        "| {name} | {:.2} | {:.2} | {:+.2} |",
        median(in_rust),
        median(in_c),
        median(over)
    );
}

fn main() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/libdoorbell.so");
    let path = env::args().nth(1).unwrap_or_else(|| default.to_owned());
    let library = Library::open(&path);
    // SAFETY: the types are those of doorbell.h.
    let (new, signal, write, read, count) = unsafe {
        (
            library.get::<extern "C" fn(u64, u32) -> Object>("doorbell_event_new"),
            library.get::<extern "C" fn(Object)>("doorbell_event_signal"),
            library.get::<extern "C" fn(Object, u64) -> c_int>("doorbell_event_try_write"),
            library.get::<extern "C" fn(Object, *mut u64) -> c_int>("doorbell_event_try_read"),
            library.get::<extern "C" fn(Object) -> u64>("doorbell_event_count"),
        )
    };
    // SAFETY: likewise.
    let (table_new, assign, reader_new, ring) = unsafe {
        (
            library.get::<extern "C" fn() -> Object>("doorbell_table_new"),
            library.get::<extern "C" fn(Object, *const doorbell::doorbell_key, Object) -> c_int>(
                "doorbell_table_assign",
            ),
            library.get::<extern "C" fn(Object) -> Object>("doorbell_table_reader"),
            library.get::<extern "C" fn(Object, u32, u64, *const u8, usize) -> c_int>(
                "doorbell_reader_write",
            ),
        )
    };
    let ours = Event::new(0);
    let theirs = new(0, 0);

    println!(
        "load: {}",
        fs::read_to_string("/proc/loadavg").unwrap().trim()
    );
    println!("| ns a call, medians of {TURNS} turns of {CALLS} | Rust | C | over |");
    println!("|---|---|---|---|");
    compare(
        "signal",
        || (0..CALLS).for_each(|_| black_box(&ours).signal()),
        || (0..CALLS).for_each(|_| signal(black_box(theirs))),
    );
    ours.try_read();
    read(theirs, ptr::null_mut());
    compare(
        "try_write",
        || (0..CALLS).for_each(|_| black_box(&ours).try_write(1).unwrap()),
        || (0..CALLS).for_each(|_| assert_eq!(write(black_box(theirs), 1), 0)),
    );
    compare(
        "try_write and try_read, both",
        || {
            for _ in 0..CALLS {
                black_box(&ours).try_write(1).unwrap();
                black_box(black_box(&ours).try_read().unwrap());
            }
        },
        || {
            let mut value = 0;
            for _ in 0..CALLS {
                assert_eq!(write(black_box(theirs), 1), 0);
                assert_eq!(read(black_box(theirs), &mut value), 0);
                black_box(value);
            }
        },
    );
    compare(
        "try_read of 0",
        || (0..CALLS).for_each(|_| assert!(black_box(&ours).try_read().is_none())),
        || (0..CALLS).for_each(|_| assert!(read(black_box(theirs), ptr::null_mut()) < 0)),
    );
    compare(
        "count",
        || (0..CALLS).for_each(|_| _ = black_box(black_box(&ours).count())),
        || (0..CALLS).for_each(|_| _ = black_box(count(black_box(theirs)))),
    );

    let table = Table::new();
    let key = Key::mmio(0xd000_0050, 4);
    let event = Arc::new(Event::new(0));
    table.assign(key, event).unwrap().keep();
    let reader = table.reader();
    let their_table = table_new();
    let key = doorbell::doorbell_key {
        address: 0xd000_0050,
        datamatch: 0,
        length: 4,
        flags: doorbell::DOORBELL_MMIO,
    };
    assert_eq!(assign(their_table, &key, theirs), 0);
    let their_reader = reader_new(their_table);
    // As in a vCPU's exit: nothing of the write is known when this is compiled.
    let data = [0_u8; 4];
    compare(
        "a doorbell, by a reader",
        || {
            for _ in 0..CALLS {
                let (bus, address, data) = black_box((Bus::Mmio, 0xd000_0050, &data[..]));
                assert!(reader.write(bus, address, data));
            }
        },
        || {
            for _ in 0..CALLS {
                let (bus, address, data) =
                    black_box((doorbell::DOORBELL_MMIO, 0xd000_0050, &data[..]));
                let taken = ring(their_reader, bus, address, data.as_ptr(), data.len());
                assert_eq!(taken, 1);
            }
        },
    );
}
