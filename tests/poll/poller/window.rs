//! A poller learns from what its looks find. The unit tests of `poll/window.rs` show how.

use crate::common::watchdog;
use crate::probes::{AT_ONCE, keys};
use doorbell::poll::{Poller, Probe, Watch};
use doorbell::{Event, Spin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// A probe that is ready in the second look of a wait, which is the first of the window, or only when the thread is
/// about to sleep.
#[derive(Default)]
struct InTheWindow {
    hit: AtomicBool,
    asked: AtomicBool,
}

struct OfWindow(Arc<InTheWindow>);

impl Probe for OfWindow {
    fn ready(&mut self) -> bool {
        self.0.asked.swap(true, Ordering::Relaxed) && self.0.hit.load(Ordering::Relaxed)
    }

    fn end(&mut self) -> bool {
        true
    }
}

/// The number of waits in which the poller looked for a while, if `hits_of_four` of four looks find something.
fn windows(waits: u32, hits_of_four: u32) -> u64 {
    let max = Duration::from_micros(10);
    let poller = Poller::with_spin(Spin::Adaptive { max });
    let kick = Arc::new(Event::new(1));
    let source = Arc::new(InTheWindow::default());
    poller.add(&kick, 1, Watch::READABLE.edge()).unwrap();
    poller
        .attach_probe(1, OfWindow(Arc::clone(&source)))
        .unwrap();
    assert_eq!(keys(&poller, 4, AT_ONCE), [1]);
    for wait in 0..waits {
        source.hit.store(wait % 4 < hits_of_four, Ordering::Relaxed);
        source.asked.store(false, Ordering::Relaxed);
        assert_eq!(keys(&poller, 4, None), [1]);
    }
    let stats = poller.stats();
    // A window may end without a look, if the thread is interrupted at its beginning.
    assert!(stats.hits <= stats.windows.min(stats.looks));
    assert_eq!(stats.hits + stats.sleeps, u64::from(waits));
    stats.windows
}

#[test]
fn it_looks_as_long_as_that_finds_something() {
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        return println!("skipped: on one CPU, no poller looks before it sleeps");
    }
    watchdog::limit("it_looks_as_long_as_that_finds_something", || {
        // If other programs take the CPU, looks are interrupted, and then there are none for a while. A try takes about
        // a millisecond.
        assert!((0..1_000).any(|_| windows(200, 3) > 150));
        // A request that is not found by looking does not count as found.
        assert!((0..10).all(|_| windows(200, 0) < 100));
    });
}
