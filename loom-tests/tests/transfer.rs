//! Counts on their way from a kernel eventfd into an event: for all other threads, a count is in one of the two.
//!
//! The kernel's eventfd is the model of `fd.rs`. `../breakages/transfer.toml` lists the ways in which the code was
//! broken on purpose.

use doorbell::event::transfer::{Carrier, Step, drain};
use doorbell::fd::kernel::model::KernelEvent;
use doorbell::fd::{EFD_NONBLOCK, EventFd};
use doorbell::{Event, Mode, Spin};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread::{self, JoinHandle};
use loom_tests::check;
use std::sync::Arc;

/// An event, and an eventfd with what was written to it.
struct Pair {
    event: Event,
    fd: KernelEvent,
    carrier: Carrier,
    /// The binding has been deleted.
    over: AtomicBool,
}

impl Pair {
    fn new(initial: u64, written: u64) -> Arc<Self> {
        let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
        let fd = eventfd.move_to_kernel().clone();
        fd.write(written).unwrap();
        Arc::new(Pair {
            event: Event::with_mode(initial, Mode::Counter).with_spin(Spin::Never),
            fd,
            carrier: Carrier::new(),
            over: AtomicBool::new(false),
        })
    }

    fn drain(&self) -> u64 {
        drain(&self.event, || self.fd.read().unwrap_or(0))
    }

    fn step(&self) -> Step {
        // Whether the binding is over is only a flag for the thread that carries.
        let is_over = || self.over.load(Ordering::Relaxed);
        self.carrier
            .step(&self.event, is_over, || self.fd.read().ok())
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.carrier.settle(&self.event);
    }
}

fn spawn<T: 'static>(pair: &Arc<Pair>, f: impl FnOnce(&Pair) -> T + 'static) -> JoinHandle<T> {
    let pair = Arc::clone(pair);
    thread::spawn(move || f(&pair))
}

/// Two threads drain an eventfd that is no longer written to: whichever returns first, the event has the whole count.
#[test]
fn two_drains() {
    check("two_drains", None, || {
        let pair = Pair::new(0, 5);
        let other = spawn(&pair, Pair::drain);
        let moved = pair.drain();
        assert_eq!(pair.event.try_read(), Some(5));
        assert_eq!(moved + other.join().unwrap(), 5);
        assert_eq!(pair.event.try_read(), None);
    });
}

/// A poller carries while the listener drains.
#[test]
fn a_step_and_a_drain() {
    check("a_step_and_a_drain", None, || {
        let pair = Pair::new(0, 5);
        let carries = spawn(&pair, Pair::step);
        pair.drain();
        assert_eq!(pair.event.try_read(), Some(5));
        carries.join().unwrap();
        assert_eq!(pair.event.try_read(), None);
    });
}

/// A binding ends while a poller carries: what was read is in the event, and nothing is read any more.
#[test]
fn the_end_of_a_binding() {
    check("the_end_of_a_binding", None, || {
        let pair = Pair::new(0, 5);
        let carries = spawn(&pair, |pair| {
            pair.step();
            pair.step()
        });
        pair.end();
        let at_the_end = (pair.event.count(), pair.fd.count());
        assert_eq!(at_the_end.0 + at_the_end.1, 5);
        carries.join().unwrap();
        assert_eq!((pair.event.count(), pair.fd.count()), at_the_end);
    });
}

/// What has no room is left with the carrier until a thread reads the event, or is signalled at the end. Until then,
/// nothing more is read from the eventfd.
#[test]
fn what_has_no_room() {
    const FULL: u64 = u64::MAX - 1;
    check("what_has_no_room", Some(3), || {
        let pair = Pair::new(FULL - 2, 5);
        let reader = spawn(&pair, |pair| pair.event.read());
        let carries = spawn(&pair, |pair| {
            pair.step();
            pair.fd.write(7).unwrap();
            pair.step();
        });
        let read = reader.join().unwrap();
        carries.join().unwrap();
        pair.end();
        let there = [read, pair.event.count(), pair.fd.count()].map(u128::from);
        assert_eq!(there.iter().sum::<u128>(), u128::from(FULL) - 2 + 5 + 7);
    });
}

/// A thread that sleeps at the event is woken by a drain, and by a carrier's step.
#[test]
fn a_reader_is_woken() {
    for carried in [false, true] {
        check("a_reader_is_woken", None, move || {
            let pair = Pair::new(0, 5);
            let reader = spawn(&pair, |pair| pair.event.read());
            if carried {
                assert_eq!(pair.step(), Step::Carried);
            } else {
                pair.drain();
            }
            assert_eq!(reader.join().unwrap(), 5);
        });
    }
}
