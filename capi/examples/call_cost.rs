//! What a call through C costs over the same call in Rust: with the library linked statically, and with the shared
//! library.
//!
//! `make && cargo run --release --example call_cost [LIBRARY]`. The shared library is opened with `dlopen`. The
//! functions of both are called through pointers, as a C program calls those of a shared library. The three ways take
//! turns, and the medians of many turns are compared.

use doorbell::{DOORBELL_MMIO, doorbell_event, doorbell_key, doorbell_reader, doorbell_table};
use doorbell_rs::Event;
use doorbell_rs::ioeventfd::{Bus, Key, Table};
use std::ffi::{CString, c_int, c_void};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use std::{array, env, fs, mem, ptr};

const CALLS: u32 = 20_000;
const TURNS: usize = 301;

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

/// The functions of the C library, from wherever they are.
macro_rules! api {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        #[derive(Clone, Copy)]
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Api {
            fn linked() -> Self {
                black_box(Api { $($name: doorbell::$name,)* })
            }

            fn of(library: &Library) -> Self {
                // SAFETY: the types are those of doorbell.h.
                unsafe { Api { $($name: library.get(stringify!($name)),)* } }
            }
        }
    };
}

api! {
    doorbell_event_new: fn(u64, u32) -> *mut doorbell_event;
    doorbell_event_unref: fn(*mut doorbell_event);
    doorbell_event_signal: fn(*mut doorbell_event);
    doorbell_event_try_write: fn(*mut doorbell_event, u64) -> c_int;
    doorbell_event_try_read: fn(*mut doorbell_event, *mut u64) -> c_int;
    doorbell_event_count: fn(*const doorbell_event) -> u64;
    doorbell_table_new: fn() -> *mut doorbell_table;
    doorbell_table_assign: fn(*mut doorbell_table, *const doorbell_key, *mut doorbell_event) -> c_int;
    doorbell_table_reader: fn(*mut doorbell_table) -> *mut doorbell_reader;
    doorbell_reader_write: fn(*mut doorbell_reader, u32, u64, *const c_void, usize) -> c_int;
}

const ADDRESS: u64 = 0xd000_0050;

/// An event, and a reader that signals it, made by one of the two libraries.
struct Objects {
    api: Api,
    event: *mut doorbell_event,
    reader: *mut doorbell_reader,
}

impl Objects {
    fn new(api: Api) -> Self {
        let key = doorbell_key {
            address: ADDRESS,
            datamatch: 0,
            length: 4,
            flags: DOORBELL_MMIO,
        };
        // SAFETY: what the header asks for.
        unsafe {
            let event = (api.doorbell_event_new)(0, 0);
            let table = (api.doorbell_table_new)();
            assert_eq!((api.doorbell_table_assign)(table, &key, event), 0);
            let reader = (api.doorbell_table_reader)(table);
            Objects { api, event, reader }
        }
    }

    // SAFETY of all: the handles live as long as the program.

    fn nothing(&self) {
        unsafe { (self.api.doorbell_event_unref)(ptr::null_mut()) };
    }

    fn signal(&self) {
        unsafe { (self.api.doorbell_event_signal)(self.event) };
    }

    fn try_write(&self) {
        assert_eq!(
            unsafe { (self.api.doorbell_event_try_write)(self.event, 1) },
            0
        );
    }

    fn try_read(&self) {
        let mut value = 0;
        let result = unsafe { (self.api.doorbell_event_try_read)(self.event, &mut value) };
        assert_eq!(result, 0);
        black_box(value);
    }

    fn fail_to_read(&self) {
        assert!(unsafe { (self.api.doorbell_event_try_read)(self.event, ptr::null_mut()) } < 0);
    }

    fn count(&self) {
        black_box(unsafe { (self.api.doorbell_event_count)(self.event) });
    }

    fn ring(&self, data: &[u8]) {
        let (bus, address, data) = black_box((DOORBELL_MMIO, ADDRESS, data));
        let start = data.as_ptr().cast();
        let taken = unsafe {
            (self.api.doorbell_reader_write)(self.reader, bus, address, start, data.len())
        };
        assert_eq!(taken, 1);
    }
}

fn compare(name: &str, rust: impl Fn(), c: impl Fn(&Objects), [linked, loaded]: &[Objects; 2]) {
    let mut times: [Vec<f64>; 5] = array::from_fn(|_| Vec::new());
    for number in 0..TURNS {
        let mut taken = [0.0; 3];
        for way in (0..3).map(|way| (way + number) % 3) {
            taken[way] = match way {
                0 => turn(&mut || (0..CALLS).for_each(|_| rust())),
                1 => turn(&mut || (0..CALLS).for_each(|_| c(linked))),
                _ => turn(&mut || (0..CALLS).for_each(|_| c(loaded))),
            };
        }
        let over = [taken[1] - taken[0], taken[2] - taken[0]];
        for (times, time) in times.iter_mut().zip(taken.into_iter().chain(over)) {
            times.push(time);
        }
    }
    let [rust, linked, loaded, linked_over, loaded_over] = times.map(median);
    println!(
        "| {name} | {rust:.2} | {linked:.2} | {linked_over:+.2} | {loaded:.2} | {loaded_over:+.2} |"
    );
}

fn main() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/libdoorbell.so");
    let path = env::args().nth(1).unwrap_or_else(|| default.to_owned());
    let library = Library::open(&path);
    let theirs = [Api::linked(), Api::of(&library)].map(Objects::new);
    let ours = &Event::new(0);
    let observed = Arc::new(Event::new(0));
    let table = Table::new();
    let key = Key::mmio(ADDRESS, 4);
    table.assign(key, &observed).unwrap().keep();
    let reader = table.reader();

    let load = fs::read_to_string("/proc/loadavg").unwrap();
    println!("load: {}", load.trim());
    println!(
        "| ns a call, medians of {TURNS} turns of {CALLS} | Rust | static | over | shared | over |"
    );
    println!("|---|---|---|---|---|---|");
    // What any call of a C function takes: no function can take less.
    compare("nothing: unref of NULL", || (), Objects::nothing, &theirs);
    let signal = || black_box(ours).signal();
    compare("signal", signal, Objects::signal, &theirs);
    let write = || black_box(ours).try_write(1).unwrap();
    compare("try_write", write, Objects::try_write, &theirs);
    ours.try_read();
    theirs.iter().for_each(Objects::try_read);
    let fail_to_read = || assert!(black_box(ours).try_read().is_none());
    compare(
        "try_read of 0",
        fail_to_read,
        Objects::fail_to_read,
        &theirs,
    );
    let write_and_read = || {
        black_box(ours).try_write(1).unwrap();
        black_box(black_box(ours).try_read().unwrap());
    };
    let both = |theirs: &Objects| {
        theirs.try_write();
        theirs.try_read();
    };
    compare(
        "try_write and try_read, both",
        write_and_read,
        both,
        &theirs,
    );
    let count = || _ = black_box(black_box(ours).count());
    compare("count", count, Objects::count, &theirs);
    // As in a vCPU's exit: nothing of the write is known when this is compiled.
    let data = [0_u8; 4];
    let ring = || {
        let (bus, address, data) = black_box((Bus::Mmio, ADDRESS, &data[..]));
        assert!(black_box(&reader).write(bus, address, data));
    };
    compare(
        "a doorbell, by a reader",
        ring,
        |theirs| theirs.ring(&data),
        &theirs,
    );
}
