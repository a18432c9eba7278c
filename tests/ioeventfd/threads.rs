//! Many threads at one table.

use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::ioeventfd::{Bus, Doorbell, DoorbellArray, Key, Table};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const A: u64 = 0xe000_3000;

/// How long each of these tests runs.
const A_WHILE: Duration = Duration::from_millis(300);

/// Ends the process if a test hangs.
pub fn watchdog() -> impl Drop {
    struct Alive(Arc<AtomicBool>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = Alive(Arc::default());
    let watched = Arc::clone(&done.0);
    thread::spawn(move || {
        let start = Instant::now();
        while !watched.load(Ordering::Relaxed) {
            if start.elapsed() > Duration::from_secs(60) {
                eprintln!("hung for a minute");
                std::process::abort();
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    done
}

/// Threads make lookups at full speed, by a `Reader` and by the thread's own, while the doorbell that they ring comes
/// and goes, each time with a new event. Each write that was taken is one signal, and none comes after the doorbell has
/// gone.
#[test]
fn events_that_go_at_once() {
    let _watchdog = watchdog();
    let table = Table::new();
    // On either side there is a doorbell that stays.
    let steady = Arc::new(Event::new(0));
    let _low = table.assign(Key::mmio(A - 4, 4), &steady).unwrap();
    let _high = table.assign(Key::mmio(A + 4, 4), &steady).unwrap();
    let stop = AtomicBool::new(false);
    let taken = AtomicU64::new(0);
    let mut signals = 0;
    thread::scope(|scope| {
        for own_reader in [true, false] {
            let (table, taken, stop) = (&table, &taken, &stop);
            scope.spawn(move || {
                let reader = own_reader.then(|| table.reader());
                let write = |address| match &reader {
                    Some(reader) => reader.write(Bus::Mmio, address, &[0; 4]),
                    None => table.write(Bus::Mmio, address, &[0; 4]),
                };
                while !stop.load(Ordering::Relaxed) {
                    taken.fetch_add(write(A).into(), Ordering::Relaxed);
                    assert!(write(A - 4));
                    assert!(write(A + 4));
                }
            });
        }
        let start = Instant::now();
        let mut rounds = 0_u32;
        while start.elapsed() < A_WHILE || rounds < 1000 {
            let event = Arc::new(Event::new(0));
            // The doorbell is by turns an array that only the table holds, and a single doorbell that its registration
            // holds too.
            let array =
                (rounds % 2 == 0).then(|| Doorbell::array(DoorbellArray::mmio(A, 4, 1), [&event]));
            let registration = match &array {
                Some(array) => table.assign_all([array.clone()]).unwrap().remove(0),
                None => table.assign(Key::mmio(A, 4), &event).unwrap(),
            };
            if rounds % 8 < 2 {
                // This waits until a thread has rung the doorbell.
                signals += event.read();
            }
            match array {
                Some(array) => {
                    registration.keep();
                    table.deassign_all([array]).unwrap();
                }
                None => drop(registration),
            }
            let count = event.count();
            signals += count;
            thread::yield_now();
            // This is the last handle: a write that still held the doorbell would ring freed memory.
            assert_eq!(
                Arc::try_unwrap(event).map(|event| event.count()).ok(),
                Some(count)
            );
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(signals, taken.load(Ordering::Relaxed));
}

/// Many doorbells move between two places in one step. A write at either place is taken by exactly one of the two sets,
/// and at one of the two places at any time.
#[test]
fn moves_in_one_step() {
    let _watchdog = watchdog();
    let table = Table::new();
    let event = Arc::new(Event::new(0));
    let at = |base: u64| {
        let event = &event;
        (0..64).map(move |i| Doorbell::new(Key::mmio(base + 4 * i, 4), event))
    };
    let mut registrations = table.assign_all(at(A)).unwrap();
    let moves = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let reader = table.reader();
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                turn = (turn + 1) % 64;
                let before = moves.load(Ordering::Acquire);
                let old = reader.write(Bus::Mmio, A + 4 * turn, &[0; 4]);
                let new = reader.write(Bus::Mmio, 2 * A + 4 * turn, &[0; 4]);
                // Unless the doorbells moved in between, the doorbell is at one of the two places.
                if moves.load(Ordering::Acquire) == before && before % 2 == 0 {
                    assert!(old ^ new);
                }
            }
        });
        let start = Instant::now();
        while start.elapsed() < A_WHILE {
            for base in [2 * A, A] {
                // Odd while the move is under way.
                moves.fetch_add(1, Ordering::SeqCst);
                table.replace(&mut registrations, at(base)).unwrap();
                moves.fetch_add(1, Ordering::SeqCst);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A lookup waits neither for a lookup that is inside a callback nor for a change that waits for that one.
#[test]
fn a_lookup_waits_for_nobody() {
    let _watchdog = watchdog();
    let table = Table::new();
    let [slow, other] = [(); 2].map(|()| Arc::new(Event::new(0)));
    let registration = table.assign(Key::mmio(A, 4), &slow).unwrap();
    table.assign(Key::mmio(A + 4, 4), &other).unwrap().keep();
    let (inside, is_inside) = mpsc::channel();
    let (leave, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let _slow = Observation::new(
        Arc::clone(&slow),
        Interest::Signals,
        Arc::new(move |_: Change| {
            inside.send(()).unwrap();
            told.lock().unwrap().recv().unwrap();
        }),
    );
    thread::scope(|scope| {
        scope.spawn(|| assert!(table.write(Bus::Mmio, A, &[0; 4])));
        is_inside.recv().unwrap();
        let change = scope.spawn(|| drop(registration));
        // The change has been made when its doorbell is not found any more.
        while !table
            .doorbells()
            .iter()
            .all(|doorbell| doorbell.address() != A)
        {
            thread::yield_now();
        }
        let reader = table.reader();
        for (address, taken) in [(A + 4, true), (A, false)] {
            assert_eq!(table.write(Bus::Mmio, address, &[0; 4]), taken);
            assert_eq!(reader.write(Bus::Mmio, address, &[0; 4]), taken);
        }
        assert!(!change.is_finished());
        leave.send(()).unwrap();
    });
    assert_eq!((slow.count(), other.count()), (1, 2));
}

/// A doorbell is replaced by others at its address, with another target or of another form. Each write is taken, by the
/// one before or the one after, and signals once.
#[test]
fn replaced_in_place() {
    let _watchdog = watchdog();
    let table = Table::new();
    let events = [(); 2].map(|()| Arc::new(Event::new(0)));
    let forms = |round: usize| {
        let event = &events[round % 2];
        match round % 3 {
            0 => Doorbell::new(Key::mmio(A, 4), event),
            1 => Doorbell::new(Key::mmio(A, 0), event),
            _ => Doorbell::array(DoorbellArray::mmio(A, 4, 1), [event]),
        }
    };
    let mut registrations = table.assign_all([forms(0)]).unwrap();
    let stop = AtomicBool::new(false);
    let writes: u64 = thread::scope(|scope| {
        let writers = [true, false].map(|own_reader| {
            let (table, stop) = (&table, &stop);
            scope.spawn(move || {
                let reader = own_reader.then(|| table.reader());
                let mut writes = 0;
                while !stop.load(Ordering::Relaxed) {
                    let taken = match &reader {
                        Some(reader) => reader.write(Bus::Mmio, A, &[0; 4]),
                        None => table.write(Bus::Mmio, A, &[0; 4]),
                    };
                    assert!(taken, "a write is lost");
                    writes += 1;
                }
                writes
            })
        });
        let start = Instant::now();
        let mut round = 0;
        while start.elapsed() < A_WHILE || round < 200 {
            round += 1;
            table.replace(&mut registrations, [forms(round)]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        writers.map(|writer| writer.join().unwrap()).iter().sum()
    });
    assert_eq!(
        events
            .each_ref()
            .map(|event| event.count())
            .iter()
            .sum::<u64>(),
        writes
    );
}

/// Thousands of threads each make a lookup and end, while others change the table.
#[test]
fn threads_come_and_go() {
    let _watchdog = watchdog();
    let table = Table::new();
    let steady = Arc::new(Event::new(0));
    let _steady = table.assign(Key::mmio(A, 4), &steady).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                drop(table.assign(Key::mmio(A + 4, 4), &steady).unwrap());
            }
        });
        for _ in 0..1000 {
            let both = [true, false].map(|own_reader| {
                let table = &table;
                scope.spawn(move || match own_reader {
                    true => table.reader().write(Bus::Mmio, A, &[0; 4]),
                    false => table.write(Bus::Mmio, A, &[0; 4]),
                })
            });
            for one in both {
                assert!(one.join().unwrap());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(steady.count(), 2000);
}
