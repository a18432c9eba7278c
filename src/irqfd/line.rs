//! A line: what asks for interrupts on one GSI, and what the sink has been told.
//!
//! The kernel's counterpart are the source bits of a pin in KVM's interrupt controllers, the resampler of a GSI, and the work
//! item of an irqfd. Everything is in one word:
//!
//! ```text
//!     PENDING    a pulse or a message is due            set by signals of plain irqfds; stays while masked
//!     ASSERTED   a resampling irqfd holds the line up   set by signals of resampling irqfds; cleared by ack
//!     HELD       a level source holds the line up       set and cleared by set_level, for all of them
//!     MASKED     the sink is to be told nothing         set and cleared by mask and unmask
//!     ACKED      lower the line, then signal the resample events
//!     REROUTED   see whether the level stands at the right place
//!     UP         the level is carried out               ┐ changed by
//!     ON_PIN     ... at a pin, which is up              ┘ the driver alone
//!     BUSY       there is a driver
//! ```
//!
//! The sink must be told of changes in the order in which they happen, and a lock held during its calls would be held against
//! the very sink that calls back. So whoever asks for something sets a bit, and if that leaves something to do and the line
//! is not `BUSY`, sets that as well: it is the **driver** now. The driver takes one request out of the word, carries it out,
//! looks again, and stops being the driver in the step in which it finds nothing to do. Whoever finds the line `BUSY` leaves
//! its request to the driver. (So a thread may find itself injecting for others, for as long as they keep asking.)
//!
//! * Nothing is lost: a request is set before the driver stops, who then sees it, or after, and makes another driver.
//! * Nothing is stuck: the levels that a driver tells the sink follow the word, and the last one agrees with it.
//! * A pulse takes its bit out before the sink is called. So after the last signal at least one pulse begins.
//! * An assertion that an ack swallows was set before the resample events were signalled: their owners look, and ask again.
//!
//! Messages have no level, so as long as the line is not masked they need no driver: see `board.rs`.

use super::{InterruptSink, Route};
use crate::Event;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::srcu::{Srcu, with_section};
use crate::sync::{DEKKER, Mutex, Tally};
use std::sync::{Arc, PoisonError, Weak};
use std::{mem, ptr, thread};

const PENDING: u32 = 1;
const ASSERTED: u32 = 1 << 1;
const HELD: u32 = 1 << 2;
const MASKED: u32 = 1 << 3;
const ACKED: u32 = 1 << 4;
const REROUTED: u32 = 1 << 5;
const UP: u32 = 1 << 6;
const ON_PIN: u32 = 1 << 7;
const BUSY: u32 = 1 << 8;

/// What somebody asks of a line.
#[derive(Clone, Copy)]
pub(super) enum Request {
    /// A pulse or a message.
    Edge,
    /// The line up, until it is acked.
    Assert,
    Ack,
    /// Whether anybody of the [`Holders`] holds the line up.
    Hold(bool),
    Mask,
    Unmask,
    Reroute,
}

impl Request {
    fn apply(self, state: u32) -> u32 {
        match self {
            // The line is up: no edge.
            Request::Edge if state & ON_PIN != 0 => state,
            Request::Edge => state | PENDING,
            Request::Assert => state | ASSERTED,
            Request::Ack => state | ACKED,
            Request::Hold(true) => state | HELD,
            Request::Hold(false) => state & !HELD,
            Request::Mask => state | MASKED,
            Request::Unmask if state & MASKED == 0 => state,
            // The level may be stale: its owner is asked before the guest is interrupted for nothing.
            Request::Unmask if state & ASSERTED != 0 => state & !MASKED | ACKED,
            Request::Unmask => state & !MASKED,
            // All others find the new route when they are due.
            Request::Reroute if state & (UP | BUSY) == 0 => state,
            Request::Reroute => state | REROUTED,
        }
    }
}

/// What the driver does next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Resample,
    Reroute,
    Lower,
    Edge,
    Raise,
    Rest,
}

impl Step {
    fn next(state: u32) -> Step {
        let masked = state & MASKED != 0;
        let level = state & (ASSERTED | HELD) != 0 && !masked;
        let up = state & UP != 0;
        if state & ACKED != 0 {
            Step::Resample
        } else if state & REROUTED != 0 {
            Step::Reroute
        } else if up && !level {
            Step::Lower
        } else if state & PENDING != 0 && !masked {
            Step::Edge
        } else if level && !up {
            Step::Raise
        } else {
            Step::Rest
        }
    }
}

/// What became of a request.
pub(super) struct Requested {
    /// It asked for what was due, or was so, already.
    pub(super) coalesced: bool,
    /// The caller is the driver now.
    pub(super) drive: bool,
}

pub(super) struct Line {
    pub(super) gsi: u32,
    state: AtomicU32,
    /// Where the level stands that is `UP`, as a [`place`]. The driver's.
    told: AtomicU64,
    /// Of the irqfds that have one: as many times as they name it. They own them, for old lists are freed by any thread.
    resamplers: Srcu<Vec<Weak<Event>>>,
    holders: Mutex<Holders>,
    counters: Counters,
}

/// Who holds the line up, besides resampling irqfds.
#[derive(Default)]
pub(super) struct Holders {
    /// The VMM, by [`set_level`](super::Router::set_level).
    pub(super) vmm: bool,
    /// As many [level sources](super::LevelSource).
    pub(super) sources: usize,
}

#[derive(Default)]
struct Counters {
    /// Messages without a driver.
    messages: Tally,
    /// Pulses and messages of drivers, who take turns.
    driven: Tally,
    raises: Tally,
    lost: Tally,
    resamples: Tally,
}

/// What has become of the signals on a line, of all its irqfds, since the line was first used.
///
/// Without resampling irqfds, `edges + lost`, with what is [pending](super::Router::is_pending) or has been
/// [taken](super::Router::take_pending), are the signals of its irqfds that were not coalesced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LineCounters {
    /// Pulses and messages.
    pub edges: u64,
    /// How often the line went up.
    pub raises: u64,
    /// What there was no route for.
    pub lost: u64,
    /// How often it was acked, in order to be lowered and to have its resample events signalled: by the guest, by the
    /// unmasking of an asserted line, and when the last resampling irqfd went.
    pub resamples: u64,
}

/// Where a level stands: a pin's number, or one of these.
const NOWHERE: u64 = u64::MAX;
const MESSAGE: u64 = u64::MAX - 1;

fn place(route: Option<Route>) -> u64 {
    match route {
        Some(Route::Pin(pin)) => pin.into(),
        Some(Route::Msi(_)) => MESSAGE,
        None => NOWHERE,
    }
}

fn pin_of(place: u64) -> Option<u32> {
    u32::try_from(place).ok()
}

impl Line {
    pub(super) fn new(gsi: u32) -> Self {
        Line {
            gsi,
            state: AtomicU32::new(0),
            told: AtomicU64::new(NOWHERE),
            resamplers: Srcu::new(Vec::new()),
            holders: Mutex::new(Holders::default()),
            counters: Counters::default(),
        }
    }

    /// Sets what `request` stands for. If the caller is the driver then, it must see to [`drive`](Self::drive).
    pub(super) fn ask(&self, request: Request) -> Requested {
        // A read-modify-write even if it changes nothing: what the caller did before is for the driver, and the guest, to see.
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let asked = request.apply(state);
            let drive = asked & BUSY == 0 && Step::next(asked) != Step::Rest;
            let after = if drive { asked | BUSY } else { asked };
            match self
                .state
                .compare_exchange_weak(state, after, DEKKER, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Requested {
                        coalesced: asked == state,
                        drive,
                    };
                }
                Err(now) => state = now,
            }
        }
    }

    /// As [`ask`](Self::ask), for what comes of a change of the holders.
    pub(super) fn hold(&self, change: impl FnOnce(&mut Holders)) -> Requested {
        // There is nothing behind the lock that a panic could have left half done.
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut holders);
        // Under the lock: the last request says what the last change was.
        self.ask(Request::Hold(holders.vmm || holders.sources != 0))
    }

    /// Looked at before a message is sent.
    #[inline(always)]
    pub(super) fn is_masked(&self) -> bool {
        // Acquire pairs with `ask`: the route is looked up after the unmask that it was set for.
        self.state.load(Ordering::Acquire) & MASKED != 0
    }

    pub(super) fn is_busy(&self) -> bool {
        // Acquire pairs with the step in which the driver stops: what it did for others is done.
        self.state.load(Ordering::Acquire) & BUSY != 0
    }

    pub(super) fn is_pending(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PENDING != 0
    }

    pub(super) fn take_pending(&self) -> bool {
        // Acquire pairs with `ask`: who takes the interrupt over sees what it was for.
        self.state.fetch_and(!PENDING, Ordering::Acquire) & PENDING != 0
    }

    /// Does what is asked for until nothing is.
    ///
    /// In a section, unless it is the worker that drives: who has changed the routes, or masked the line, waits for it.
    pub(super) fn drive(&self, sink: &dyn InterruptSink, route: impl Fn() -> Option<Route>) {
        let turn = Turn(self);
        loop {
            // Acquire pairs with `ask`: the route is looked up after the unmask that it was set for. (A change of routes
            // waits for this section, but not for the worker, nor inside a section.)
            let state = self.state.load(Ordering::Acquire);
            let told = self.told.load(Ordering::Relaxed);
            let step = Step::next(state);
            let route = match step {
                Step::Edge | Step::Raise | Step::Reroute => route(),
                _ => None,
            };
            let moved = state & UP != 0 && place(route) != told;
            let after = match step {
                // Down even if somebody else holds it up, who then raises it again: a new edge.
                Step::Resample => state & !(ACKED | ASSERTED | UP | ON_PIN),
                Step::Reroute if moved => state & !(REROUTED | UP | ON_PIN),
                Step::Reroute => state & !REROUTED,
                Step::Lower => state & !(UP | ON_PIN),
                Step::Edge => state & !PENDING,
                Step::Raise if matches!(route, Some(Route::Pin(_))) => state | UP | ON_PIN,
                Step::Raise => state | UP,
                Step::Rest => state & !BUSY,
            };
            // Release hands over the driver's work to the next driver; DEKKER as in `ask`.
            if self
                .state
                .compare_exchange(state, after, DEKKER, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            if state & !after & ON_PIN != 0 {
                if let Some(pin) = pin_of(told) {
                    sink.set_level(self.gsi, pin, false);
                }
            }
            match step {
                Step::Resample => self.resample(),
                Step::Edge => self.edge(sink, route),
                Step::Raise => self.raise(sink, route),
                Step::Lower | Step::Reroute => {}
                Step::Rest => return mem::forget(turn),
            }
        }
    }

    fn edge(&self, sink: &dyn InterruptSink, route: Option<Route>) {
        match route {
            Some(Route::Pin(pin)) => {
                self.counters.driven.add_one_alone();
                sink.pulse(self.gsi, pin);
            }
            Some(Route::Msi(message)) => {
                self.counters.driven.add_one_alone();
                sink.signal_msi(self.gsi, message);
            }
            None => self.counters.lost.add_one(),
        }
    }

    fn raise(&self, sink: &dyn InterruptSink, route: Option<Route>) {
        // Relaxed: of the driver alone, and drivers hand over by the state.
        self.told.store(place(route), Ordering::Relaxed);
        match route {
            Some(Route::Pin(pin)) => {
                self.counters.raises.add_one_alone();
                sink.set_level(self.gsi, pin, true);
            }
            Some(Route::Msi(message)) => {
                self.counters.raises.add_one_alone();
                sink.signal_msi(self.gsi, message);
            }
            None => {}
        }
    }

    fn resample(&self) {
        self.counters.resamples.add_one_alone();
        with_section(|section| {
            // Each is there: its irqfd keeps it until this section has ended.
            for event in self
                .resamplers
                .read(section)
                .iter()
                .filter_map(Weak::upgrade)
            {
                event.signal();
            }
        });
    }

    /// A message, without the word: nothing is due, and the line is not masked.
    #[inline(always)]
    pub(super) fn count_message(&self) {
        self.counters.messages.add_one();
    }

    pub(super) fn count_lost(&self) {
        self.counters.lost.add_one();
    }

    pub(super) fn counters(&self) -> LineCounters {
        let Counters {
            messages,
            driven,
            raises,
            lost,
            resamples,
        } = &self.counters;
        LineCounters {
            edges: messages.get() + driven.get(),
            raises: raises.get(),
            lost: lost.get(),
            resamples: resamples.get(),
        }
    }

    pub(super) fn has_resamplers(&self) -> bool {
        with_section(|section| !self.resamplers.read(section).is_empty())
    }

    /// To be called before the irqfd can be signalled.
    pub(super) fn add_resampler(&self, event: &Arc<Event>) {
        let writer = self.resamplers.write();
        let mut all = writer.read().clone();
        all.push(Arc::downgrade(event));
        writer.publish_without_waiting(all);
    }

    /// When this returns, the event is not signalled any more, inside a section excepted. Returns whether it was the last.
    pub(super) fn remove_resampler(&self, event: Arc<Event>) -> bool {
        let writer = self.resamplers.write();
        let mut all = writer.read().clone();
        let same = |other: &Weak<Event>| ptr::eq(other.as_ptr(), Arc::as_ptr(&event));
        if let Some(index) = all.iter().position(same) {
            all.remove(index);
        }
        let last = all.is_empty();
        writer.publish(all, event);
        last
    }
}

/// A driver's. If the sink or an observer of a resample event panics, the line is left for the next driver.
struct Turn<'a>(&'a Line);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        debug_assert!(thread::panicking());
        self.0.state.fetch_and(!BUSY, DEKKER);
    }
}
