//! Runs a model in loom, on the code that ships.
//!
//! Run it from this directory, whose `.cargo/config.toml` sets `--cfg loom`: `cargo test`. A lost wake-up shows as
//! loom's `deadlock` panic. `cargo run --bin breakages` shows that the models can fail. `PREEMPTIONS=n` replaces the
//! bound of every model that has one, `PREEMPTIONS=none` lifts it.

#[cfg(not(loom))]
compile_error!("run cargo inside loom-tests/, where .cargo/config.toml sets --cfg loom");

pub use doorbell::sync::futex::model as futex;

mod stacks;
pub mod store_buffers;

use doorbell::event::EventHandle;
use doorbell::{Event, Mode, Spin};
use loom::cell::UnsafeCell;
use loom::thread::{self, JoinHandle};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Explores all interleavings of `model`, or those with at most `preemptions` preemptions, and prints how many there
/// were.
pub fn check(name: &str, preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let preemptions = preemptions.and_then(|bound| match std::env::var("PREEMPTIONS").as_deref() {
        Err(_) => Some(bound),
        Ok("none") => None,
        Ok(bound) => Some(bound.parse().expect("PREEMPTIONS is a number or `none`")),
    });
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    // A run cut short looks like one that passed.
    builder.max_permutations = None;
    builder.max_duration = None;

    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let start = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        futex::reset();
        model();
    });
    let bound = preemptions.map_or("exhaustive".into(), |n| format!("at most {n} preemptions"));
    println!(
        "{name}: {} interleavings, {bound}, {:.1?}",
        runs.load(Ordering::Relaxed),
        start.elapsed()
    );
}

/// A timeout for timed waits, which end only when [`futex::expire`] says so.
pub const SOME_TIME: Duration = Duration::from_secs(3600);

/// An event that several threads of a model share; loom tracks the handles.
pub fn event(initial: u64, mode: Mode) -> loom::sync::Arc<Event> {
    loom::sync::Arc::new(Event::with_mode(initial, mode).with_spin(Spin::Never))
}

/// Runs `f` on a thread of the model with a handle to what `handle` leads to.
pub fn spawn<H: Clone + Deref + 'static, T: 'static>(
    handle: &H,
    f: impl FnOnce(&H::Target) -> T + 'static,
) -> JoinHandle<T> {
    let handle = handle.clone();
    thread::spawn(move || f(&handle))
}

/// A handle of an event behind loom's `Arc`, whose count of handles loom tracks.
pub fn handle(event: &loom::sync::Arc<Event>) -> EventHandle {
    EventHandle::of_field(&std::sync::Arc::new(event.clone()), |event| event)
}

/// Data that is handed over by an event: loom reports an access that nothing orders.
pub struct Cargo(UnsafeCell<u64>);

// SAFETY: that the event orders the accesses is what the models test; loom checks each access.
unsafe impl Sync for Cargo {}
// SAFETY: a number may be sent.
unsafe impl Send for Cargo {}

impl Default for Cargo {
    fn default() -> Self {
        Cargo(UnsafeCell::new(0))
    }
}

impl Cargo {
    /// Writes the number.
    pub fn put(&self, value: u64) {
        // SAFETY: checked by loom.
        self.0.with_mut(|cell| unsafe { *cell = value });
    }

    /// Reads the number.
    pub fn get(&self) -> u64 {
        // SAFETY: checked by loom.
        self.0.with(|cell| unsafe { *cell })
    }
}
