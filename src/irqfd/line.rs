//! A line: the requests for interrupts on one GSI, and the level that the sink has been told.
//!
//! The kernel's counterparts are the source bits of a pin in KVM's interrupt controllers, the resampler of a GSI, and
//! the work item of an irqfd. Everything is in one word:
//!
//! ```text
//!     PENDING    a pulse or a message is due            set by signals of plain irqfds; stays while masked
//!     ASSERTED   a resampling irqfd holds the line up   set by signals of resampling irqfds; cleared by ack
//!     HELD       a level source holds the line up       set and cleared by set_level, for all of them
//!     MASKED     the sink is to be told nothing         set and cleared by mask and unmask
//!     ACKED      lower the line, then signal the resample events
//!     REROUTED   check whether the level stands where the route leads
//!     UP         the level is carried out               ┐ changed by
//!     ON_PIN     ... at a pin, which is up              ┘ the driver alone
//!     BUSY       there is a driver
//!     TIRED      the driver asks to be relieved         ┐ both: the driver is doing
//!     OFFERED    a thread waits to be the driver        ┘ its last turn
//!     the rest   how often PENDING has been taken out
//! ```
//!
//! The sink must be told of changes in the order in which they happen. A lock around its calls would deadlock with a
//! sink that calls back. So a thread that makes a request sets a bit. If there is something to do then and the line is
//! not `BUSY`, the same step sets `BUSY`, and the thread is the **driver**. The driver takes one request out of the
//! word, carries it out, and reads the word again. In the step in which it finds nothing to do, it stops being the
//! driver. A thread that finds the line `BUSY` leaves its request to the driver.
//!
//! * Nothing is lost. A request is set either before the driver stops, and then the driver sees it, or after that, and
//!   then the requesting thread becomes the driver.
//! * Nothing is stuck. The levels that drivers tell the sink follow the word, and the last one agrees with the word.
//! * A pulse takes its bit out before the sink is called. So after the last signal at least one pulse begins.
//! * An assertion that an ack swallows was set before the resample events were signalled. So the owners of those events
//!   check their devices afterwards, and assert the line again.
//!
//! **Turns.** The driver works in turns. A turn takes each kind of step at most once, so a flood of one kind holds up
//! no other kind, and everything that was due when a turn began has been done when the turn ends. The worker gives the
//! lines of its backlog one turn each, in order.
//!
//! **Relief.** A thread that drives inside its own signal would inject for other threads for as long as they make
//! requests. Only a thread that is present can take over, because a thread that finds the line `BUSY` leaves. So:
//!
//! ```text
//!     the driver, before each turn after the first TURNS            a thread that makes a request
//!     1  neither bit: sets TIRED
//!                                                                   2  TIRED alone: clears it, sets OFFERED, and waits a while
//!     3  OFFERED: sets TIRED too, and does a last turn
//!     4  both bits are still set: clears them and BUSY
//!                                                                   5  OFFERED is gone: is the driver, unless there is one
//!     or, after any turn: nothing left to do: as 4                     or the time is up: clears both bits, then as 5
//! ```
//!
//! * Nothing is lost. `OFFERED` is set as long as the last thread that set it waits. When that thread sees the bit
//!   gone, it checks whether it must drive. So when the driver leaves work behind, another thread finds it.
//! * No thread blocks. The wait is a spin of [`PATIENCE`]. When the time is up, the request is left to the driver,
//!   which goes on. A thread does not wait inside a call that it makes as the driver of the same line.
//! * A thread that waits for the sections under way also waits for all requests made before. The driver at that time is
//!   in one of those sections. It carries the request out, or leaves it to a thread that offered itself before the
//!   driver's last turn began. If the request was made before that turn, the turn has carried it out. If not, the
//!   section of the other thread is one of those under way, and the same argument holds for that thread.
//!
//! Messages have no level, so they need no driver while the line is not masked: see `board.rs`.

use super::{InterruptSink, LineState, Route};
use crate::event::{EventHandle, WeakEventHandle};
use crate::panics::{catch, go_on};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::spin::spin_until;
use crate::sync::srcu::{Srcu, with_section};
use crate::sync::{DEKKER, Mutex, MutexGuard, Tally, acquire_load, const_thread_local};
use std::cell::Cell;
use std::ptr;
use std::sync::PoisonError;
use std::time::Duration;

const PENDING: u64 = 1;
const ASSERTED: u64 = 1 << 1;
const HELD: u64 = 1 << 2;
const MASKED: u64 = 1 << 3;
const ACKED: u64 = 1 << 4;
const REROUTED: u64 = 1 << 5;
const UP: u64 = 1 << 6;
const ON_PIN: u64 = 1 << 7;
const BUSY: u64 = 1 << 8;
const TIRED: u64 = 1 << 9;
const OFFERED: u64 = 1 << 10;
/// What a driver takes along.
const DRIVER: u64 = BUSY | TIRED | OFFERED;
const TIRED_DRIVER: u64 = BUSY | TIRED;
/// One in the number of times that `PENDING` has been taken out.
const TAKEN: u64 = 1 << 16;

/// How many turns a driver makes before it asks to be relieved.
const TURNS: u32 = 16;

/// How long a thread waits, awake, to relieve a driver: a few calls of a sink that does not block.
const PATIENCE: Duration = Duration::from_micros(20);

/// What a signal does to the line.
#[derive(Clone, Copy)]
pub(super) enum Trigger {
    /// A pulse or a message.
    Edge,
    /// Up, until the guest has acked it.
    Level,
}

/// What a thread asks of a line.
#[derive(Clone, Copy)]
pub(super) enum Request {
    /// A pulse or a message.
    Edge,
    /// The line up, until it is acked.
    Assert,
    Ack,
    /// Whether any of the [`Holders`] holds the line up.
    Hold(bool),
    Mask,
    Unmask,
    /// The mask goes that was there while the line was restored. The message of the line's level has been `sent`, by
    /// the router that the line was saved from.
    Resume {
        sent: bool,
    },
    Reroute,
}

impl Request {
    fn apply(self, state: u64) -> u64 {
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
            // The level may be stale. Its owner is asked first, so that the guest is not interrupted for nothing.
            Request::Unmask if state & ASSERTED != 0 => state & !MASKED | ACKED,
            Request::Unmask => state & !MASKED,
            Request::Resume { sent: true } => state & !MASKED | UP,
            Request::Resume { sent: false } => state & !MASKED,
            // A line that is not up, and has no driver, finds the new route when something is due.
            Request::Reroute if state & (UP | BUSY) == 0 => state,
            Request::Reroute => state | REROUTED,
        }
    }
}

/// What there is to do on a line: a set.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Steps(u8);

impl Steps {
    const NONE: Steps = Steps(0);
    // In the order in which they are done.
    const RESAMPLE: Steps = Steps(1);
    const REROUTE: Steps = Steps(1 << 1);
    const LOWER: Steps = Steps(1 << 2);
    const EDGE: Steps = Steps(1 << 3);
    const RAISE: Steps = Steps(1 << 4);

    fn due(state: u64) -> Steps {
        let masked = state & MASKED != 0;
        let level = state & (ASSERTED | HELD) != 0 && !masked;
        let up = state & UP != 0;
        let step = |step: Steps, due: bool| if due { step.0 } else { 0 };
        Steps(
            step(Steps::RESAMPLE, state & ACKED != 0)
                | step(Steps::REROUTE, state & REROUTED != 0)
                | step(Steps::LOWER, up && !level)
                // Not while the line is up: that is no edge. Then it comes when the line goes down.
                | step(Steps::EDGE, state & (PENDING | ON_PIN) == PENDING && !masked)
                | step(Steps::RAISE, level && !up),
        )
    }

    fn without(self, others: Steps) -> Steps {
        Steps(self.0 & !others.0)
    }

    fn with(self, others: Steps) -> Steps {
        Steps(self.0 | others.0)
    }

    fn first(self) -> Steps {
        Steps(self.0 & self.0.wrapping_neg())
    }

    /// What the word is when the step is taken, on a line whose level stands at `level_at` and whose route leads to
    /// `target`. Without a step, the driver stops.
    fn apply(self, state: u64, level_at: u64, target: u64) -> u64 {
        match self {
            // The line goes down even if a level source holds it up. It is raised again then, which is a new edge.
            Steps::RESAMPLE => state & !(ACKED | ASSERTED | UP | ON_PIN),
            Steps::REROUTE if target != level_at => state & !(REROUTED | UP | ON_PIN),
            Steps::REROUTE => state & !REROUTED,
            Steps::LOWER => state & !(UP | ON_PIN),
            Steps::EDGE => (state & !PENDING) + TAKEN,
            Steps::RAISE if pin_of(target).is_some() => state | UP | ON_PIN,
            Steps::RAISE => state | UP,
            _ => state & !DRIVER,
        }
    }
}

/// The outcome of a request.
pub(super) struct Requested {
    /// The request changed nothing: the same was due already, or was the case.
    pub(super) coalesced: bool,
    /// The pending bit that it is in, if it is in one.
    pub(super) pending: Option<Pending>,
    pub(super) then: Then,
}

/// What the thread that made the request has to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It is the driver now, and must see to [`drive`](IrqLine::drive).
    Drive,
    /// It must see to [`relieve`](IrqLine::relieve).
    Relieve,
    Leave,
}

/// One setting of a line's pending bit, until it is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pending(pub(super) u64);

impl Pending {
    fn of(state: u64) -> Option<Self> {
        (state & PENDING != 0).then_some(Pending(state / TAKEN))
    }
}

pub(super) struct IrqLine {
    pub(super) gsi: u32,
    state: AtomicU64,
    /// Where the level stands that is `UP`, as [`target_of`] has it. The driver's.
    level_at: AtomicU64,
    /// How many there are.
    irqfds: Mutex<usize>,
    /// The resample events of the irqfds, each as often as irqfds have it. The irqfds own the events, because any
    /// thread may free an old list.
    resamplers: Srcu<Vec<WeakEventHandle>>,
    holders: Mutex<Holders>,
    counters: Counters,
}

/// What holds the line up, besides resampling irqfds.
#[derive(Default)]
pub(super) struct Holders {
    /// The VMM, by [`set_level`](super::Router::set_level).
    pub(super) vmm: bool,
    /// So many [level sources](super::LevelSource).
    pub(super) sources: usize,
}

#[derive(Default)]
struct Counters {
    /// Messages that were sent without a driver.
    messages: Tally,
    /// Pulses and messages that drivers made, of which there is one at a time.
    driven: Tally,
    raises: Tally,
    lost: Tally,
    resamples: Tally,
}

/// What the signals of all irqfds of a line have led to, since the line was first used.
///
/// Without resampling irqfds, `edges + lost`, with what is [pending](super::Router::is_pending), has been
/// [taken](super::Router::take_pending) or was pending when the last irqfd went, are the signals of its irqfds that
/// were not coalesced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LineCounters {
    /// Pulses and messages.
    pub edges: u64,
    /// How often the line went up.
    pub raises: u64,
    /// Signals that had no route.
    pub lost: u64,
    /// How often the line was lowered and its resample events were signalled: at an ack of the guest's, at the
    /// unmasking of an asserted line, and when the last resampling irqfd went.
    pub resamples: u64,
}

/// Where a level stands: a pin's number, or one of these.
const NOWHERE: u64 = u64::MAX;
const MESSAGE: u64 = u64::MAX - 1;

fn target_of(route: Option<Route>) -> u64 {
    match route {
        Some(Route::Pin(pin)) => pin.into(),
        Some(Route::Msi(_)) => MESSAGE,
        None => NOWHERE,
    }
}

fn pin_of(target: u64) -> Option<u32> {
    u32::try_from(target).ok()
}

impl IrqLine {
    pub(super) fn new(gsi: u32) -> Self {
        IrqLine {
            gsi,
            state: AtomicU64::new(0),
            level_at: AtomicU64::new(NOWHERE),
            irqfds: Mutex::new(0),
            resamplers: Srcu::new(Vec::new()),
            holders: Mutex::new(Holders::default()),
            counters: Counters::default(),
        }
    }

    /// Makes a request.
    pub(super) fn ask(&self, request: Request) -> Requested {
        // A read-modify-write even if it changes nothing, so that the driver, and the guest, see what the caller did
        // before.
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let asked = request.apply(state);
            let due = Steps::due(asked) != Steps::NONE;
            let (then, after) = match asked & (BUSY | TIRED | OFFERED) {
                0 if due => (Then::Drive, asked | BUSY),
                TIRED_DRIVER if due && !self.is_driven_here() => {
                    (Then::Relieve, asked & !TIRED | OFFERED)
                }
                _ => (Then::Leave, asked),
            };
            match self
                .state
                .compare_exchange_weak(state, after, DEKKER, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Requested {
                        coalesced: asked == state,
                        pending: match request {
                            Request::Edge => Pending::of(asked),
                            _ => None,
                        },
                        then,
                    };
                }
                Err(now) => state = now,
            }
        }
    }

    /// Changes the holders, and makes the request that follows from the change.
    pub(super) fn hold(&self, change: impl FnOnce(&mut Holders)) -> Requested {
        // There is nothing behind the lock that a panic could have left half done.
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut holders);
        // Under the lock, so that the last request is that of the last change.
        self.ask(Request::Hold(holders.vmm || holders.sources != 0))
    }

    /// To be read before a message is sent.
    #[inline(always)]
    pub(super) fn is_masked(&self) -> bool {
        // Acquire pairs with `ask`: the route is looked up after the unmask that it was set for.
        acquire_load(&self.state) & MASKED != 0
    }

    /// Whether there is a driver, or something due for which a thread is about to become the driver.
    pub(super) fn is_active(&self) -> bool {
        // Acquire pairs with the step in which the driver stops: what it did for others is done.
        let state = self.state.load(Ordering::Acquire);
        state & BUSY != 0 || Steps::due(state) != Steps::NONE
    }

    pub(super) fn is_pending(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PENDING != 0
    }

    pub(super) fn take_pending(&self) -> bool {
        self.take().is_some()
    }

    /// Whether the sink has been told that the line is up.
    pub(super) fn is_up(&self) -> bool {
        self.state.load(Ordering::Relaxed) & ON_PIN != 0
    }

    /// Whether anything holds the line up, masked or not.
    pub(super) fn is_asserted(&self) -> bool {
        self.state.load(Ordering::Relaxed) & (ASSERTED | HELD) != 0
    }

    /// The line as it is now, and its pending bit.
    pub(super) fn save(&self) -> (LineState, Option<Pending>) {
        // Acquire pairs with the step in which the driver stops: `level_at` is of that time.
        let state = self.state.load(Ordering::Acquire);
        let level_at = self.level_at.load(Ordering::Relaxed);
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = LineState {
            gsi: self.gsi,
            masked: state & MASKED != 0,
            pending: state & PENDING != 0,
            asserted: state & ASSERTED != 0,
            level: holders.vmm,
            sources: holders.sources,
            sent: state & UP != 0 && level_at == MESSAGE,
        };
        (saved, Pending::of(state))
    }

    /// Says where the level stands that [`Request::Resume`] says to be up. No thread drives the line: it is masked, and
    /// nothing is due.
    pub(super) fn set_sent(&self) {
        self.level_at.store(MESSAGE, Ordering::Relaxed);
    }

    fn take(&self) -> Option<Pending> {
        let taken = |state| Pending::of(state).map(|_| (state & !PENDING) + TAKEN);
        self.change(taken).and_then(Pending::of)
    }

    /// Replaces the word by `next` of it, unless that is `None`. Returns the word before.
    fn change(&self, next: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        // Acquire pairs with `ask`: a thread that takes over a request sees what the requesting thread did before.
        // Release hands over the driver's work.
        let done = self.state.fetch_update(DEKKER, Ordering::Relaxed, next);
        done.ok()
    }

    /// Carries out requests until there are none, or until another thread takes over.
    ///
    /// To be called in a section, for which a change of routes waits. (The worker calls [`turn`](Self::turn) instead,
    /// in no section.)
    pub(super) fn drive(&self, sink: &dyn InterruptSink, route: impl Fn() -> Option<Route>) {
        let here = ptr::from_ref(self).addr();
        let outer = DRIVEN.with(|driven| driven.replace(here));
        let mut panicked = None;
        let mut turns = 0;
        loop {
            let tired = turns >= patient_turns();
            if tired {
                self.state.fetch_or(TIRED, DEKKER);
            }
            // If the sink or an observer of a resample event panics, the other requests are carried out nevertheless.
            match catch(&mut panicked, || self.turn(sink, &route)) {
                Some(Turn::Rests) => break,
                Some(Turn::GoesOn) | None => {}
            }
            if tired && self.hand_over() {
                break;
            }
            turns = turns.saturating_add(1);
        }
        DRIVEN.with(|driven| driven.set(outer));
        go_on(panicked);
    }

    /// To be called after a turn. Returns whether the caller has stopped being the driver, because another thread waits
    /// to be it. That thread has waited since before the turn: it clears `TIRED` when it begins to wait.
    fn hand_over(&self) -> bool {
        let relieved = self.change(|state| {
            (state & (TIRED | OFFERED) == TIRED | OFFERED).then_some(state & !DRIVER)
        });
        relieved.is_some()
    }

    /// Waits for the driver to hand over, for a while. Returns whether the caller is the driver then.
    pub(super) fn relieve(&self) -> bool {
        // Relaxed: `change` reads the word again.
        let gone = || self.state.load(Ordering::Relaxed) & OFFERED == 0;
        if !spin_until(PATIENCE, gone) {
            // The bit may be another thread's by now. That thread then stops waiting early, as this one does.
            self.state.fetch_and(!(TIRED | OFFERED), DEKKER);
        }
        let take = |state| {
            let free = state & BUSY == 0 && Steps::due(state) != Steps::NONE;
            free.then_some(state | BUSY)
        };
        self.change(take).is_some()
    }

    /// Whether the calling thread is in a call that it makes as the driver of this line. (If it drives another line
    /// inside that call, this says no for the outer line, and the thread then waits in vain.)
    fn is_driven_here(&self) -> bool {
        DRIVEN.with(Cell::get) == ptr::from_ref(self).addr()
    }

    /// Takes each step once, if it is due.
    pub(super) fn turn(&self, sink: &dyn InterruptSink, route: impl Fn() -> Option<Route>) -> Turn {
        let mut done = Steps::NONE;
        loop {
            // Acquire pairs with `ask`: the route is looked up after the unmask that it was set for. (A change of
            // routes waits for this section, but not for the worker, nor inside a section.)
            let state = self.state.load(Ordering::Acquire);
            let level_at = self.level_at.load(Ordering::Relaxed);
            let due = Steps::due(state);
            let step = due.without(done).first();
            if step == Steps::NONE && due != Steps::NONE {
                return Turn::GoesOn;
            }
            let route = match step {
                Steps::EDGE | Steps::RAISE | Steps::REROUTE => route(),
                _ => None,
            };
            let after = step.apply(state, level_at, target_of(route));
            // Release hands over the driver's work to the next driver; DEKKER as in `ask`.
            if self
                .state
                .compare_exchange(state, after, DEKKER, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            done = done.with(step);
            if state & !after & ON_PIN != 0 {
                if let Some(pin) = pin_of(level_at) {
                    sink.set_level(self.gsi, pin, false);
                }
            }
            match step {
                Steps::RESAMPLE => self.resample(),
                Steps::EDGE => self.edge(sink, route),
                Steps::RAISE => self.raise(sink, route),
                Steps::LOWER | Steps::REROUTE => {}
                _ => return Turn::Rests,
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
        // Relaxed: only the driver writes this, and drivers hand over by the state.
        self.level_at.store(target_of(route), Ordering::Relaxed);
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
            // Each event is alive: its irqfd keeps it until this section has ended.
            for event in self
                .resamplers
                .read(section)
                .iter()
                .filter_map(WeakEventHandle::upgrade)
            {
                event.signal();
            }
        });
    }

    /// Counts a message that is sent without a driver.
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

    /// Counts an irqfd. To be called before it can be signalled.
    pub(super) fn join(&self) {
        *self.irqfds() += 1;
    }

    /// Discounts an irqfd whose newest request was in the pending bit given. Returns whether that bit is still pending;
    /// the caller then gives the signal back to the event. The last irqfd takes the bit out, so that it does not
    /// interrupt for the next user of the GSI.
    pub(super) fn leave(&self, pending: Option<Pending>) -> bool {
        // Under the lock, so that no irqfd joins meanwhile whose signal would be in the bit that is taken out.
        let mut irqfds = self.irqfds();
        *irqfds -= 1;
        let still = match *irqfds {
            0 => self.take(),
            _ => Pending::of(self.state.load(Ordering::Relaxed)),
        };
        pending.is_some() && pending == still
    }

    fn irqfds(&self) -> MutexGuard<'_, usize> {
        // There is nothing behind the lock that a panic could have left half done.
        self.irqfds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before the irqfd can be signalled.
    pub(super) fn add_resampler(&self, event: &EventHandle) {
        let writer = self.resamplers.write();
        let mut all = writer.read().clone();
        all.push(event.downgrade());
        writer.publish_without_waiting(all);
    }

    /// When this returns, the event is not signalled any more, unless the caller is inside a section. Returns whether
    /// it was the last one.
    pub(super) fn remove_resampler(&self, event: EventHandle) -> bool {
        let writer = self.resamplers.write();
        let mut all = writer.read().clone();
        let same = |other: &WeakEventHandle| other.ptr_eq(&event);
        if let Some(index) = all.iter().position(same) {
            all.remove(index);
        }
        let last = all.is_empty();
        writer.publish(all, event);
        last
    }
}

#[cfg(not(loom))]
fn patient_turns() -> u32 {
    TURNS
}

#[cfg(loom)]
fn patient_turns() -> u32 {
    model::TURNS.get()
}

/// How a turn ends.
pub(super) enum Turn {
    /// There is nothing to do, and the caller has stopped being the driver.
    Rests,
    /// There is more to do, for the same driver.
    GoesOn,
}

const_thread_local! {
    /// The address of the line that this thread drives; of several, the innermost.
    static DRIVEN: Cell<usize> = { Cell::new(0) };
}

/// For models.
#[cfg(loom)]
pub mod model {
    use std::cell::Cell;

    thread_local! {
        /// For all threads of a model, which are one thread of std's.
        pub(super) static TURNS: Cell<u32> = const { Cell::new(super::TURNS) };
    }

    /// Has drivers ask to be relieved after so many turns.
    pub fn relieve_after(turns: u32) {
        TURNS.set(turns);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const ALL: u64 = TAKEN - 1;
    const PIN: u64 = 3;

    /// Each request, in each of the states that make a difference to it: what is set, and what is cleared. All other
    /// bits stay as they are.
    #[test]
    fn requests() {
        // The request, the bits that must be set and those that must not for the row to hold, and what becomes of it.
        let rows: &[(Request, u64, u64, u64, u64)] = &[
            (Request::Edge, ON_PIN, 0, 0, 0),
            (Request::Edge, 0, ON_PIN, PENDING, 0),
            (Request::Assert, 0, 0, ASSERTED, 0),
            (Request::Ack, 0, 0, ACKED, 0),
            (Request::Hold(true), 0, 0, HELD, 0),
            (Request::Hold(false), 0, 0, 0, HELD),
            (Request::Mask, 0, 0, MASKED, 0),
            (Request::Unmask, 0, MASKED, 0, 0),
            (Request::Unmask, MASKED, ASSERTED, 0, MASKED),
            (Request::Unmask, MASKED | ASSERTED, 0, ACKED, MASKED),
            (Request::Resume { sent: false }, 0, 0, 0, MASKED),
            (Request::Resume { sent: true }, 0, 0, UP, MASKED),
            (Request::Reroute, 0, UP | BUSY, 0, 0),
            (Request::Reroute, UP, 0, REROUTED, 0),
            (Request::Reroute, BUSY, 0, REROUTED, 0),
        ];
        for &(request, with, without, sets, clears) in rows {
            let mut states = 0;
            for state in (0..=ALL).filter(|state| state & with == with && state & without == 0) {
                for state in [state, state + 7 * TAKEN] {
                    let after = request.apply(state);
                    assert_eq!(after, (state | sets) & !clears, "{state:#x}, row {with:#x}");
                    states += 1;
                }
            }
            assert_ne!(states, 0);
        }
    }

    /// What is due in which states, in the order in which it is done.
    #[test]
    fn due() {
        let rows: &[(u64, &[Steps])] = &[
            (0, &[]),
            (PENDING, &[Steps::EDGE]),
            (PENDING | MASKED, &[]),
            // No edge while the line is up at a pin; a message that is up does not keep it.
            (PENDING | HELD | UP | ON_PIN, &[]),
            (PENDING | HELD | UP, &[Steps::EDGE]),
            (PENDING | UP | ON_PIN, &[Steps::LOWER]),
            (HELD, &[Steps::RAISE]),
            (ASSERTED, &[Steps::RAISE]),
            (ASSERTED | HELD | UP | ON_PIN, &[]),
            (HELD | MASKED, &[]),
            (HELD | MASKED | UP | ON_PIN, &[Steps::LOWER]),
            (UP, &[Steps::LOWER]),
            (ACKED, &[Steps::RESAMPLE]),
            (ACKED | MASKED, &[Steps::RESAMPLE]),
            (REROUTED, &[Steps::REROUTE]),
            (REROUTED | MASKED, &[Steps::REROUTE]),
            (
                ACKED | REROUTED | PENDING | HELD,
                &[Steps::RESAMPLE, Steps::REROUTE, Steps::EDGE, Steps::RAISE],
            ),
            (
                ACKED | REROUTED | UP,
                &[Steps::RESAMPLE, Steps::REROUTE, Steps::LOWER],
            ),
        ];
        for &(state, expected) in rows {
            // The driver's own bits, and the number, make no difference.
            for others in [0, BUSY, TIRED_DRIVER, DRIVER, 5 * TAKEN] {
                let mut due = Steps::due(state | others);
                for &step in expected {
                    assert!(due.first() == step, "{state:#x}");
                    due = due.without(step);
                }
                assert!(due == Steps::NONE, "{state:#x}: more is due");
            }
        }
    }

    /// What a step makes of the word, wherever the level stands.
    #[test]
    fn steps() {
        const OTHER_PIN: u64 = 4;
        // The step, where the level stands, where the route leads, and what is set and cleared.
        let rows: &[(Steps, u64, u64, u64, u64)] = &[
            (Steps::RESAMPLE, PIN, PIN, 0, ACKED | ASSERTED | UP | ON_PIN),
            (Steps::REROUTE, PIN, PIN, 0, REROUTED),
            (Steps::REROUTE, PIN, OTHER_PIN, 0, REROUTED | UP | ON_PIN),
            (Steps::REROUTE, PIN, MESSAGE, 0, REROUTED | UP | ON_PIN),
            (Steps::REROUTE, MESSAGE, MESSAGE, 0, REROUTED),
            (Steps::REROUTE, NOWHERE, PIN, 0, REROUTED | UP | ON_PIN),
            (Steps::LOWER, PIN, PIN, 0, UP | ON_PIN),
            (Steps::RAISE, NOWHERE, PIN, UP | ON_PIN, 0),
            (Steps::RAISE, PIN, MESSAGE, UP, 0),
            (Steps::RAISE, PIN, NOWHERE, UP, 0),
            (Steps::NONE, PIN, PIN, 0, DRIVER),
        ];
        for &(step, level_at, target, sets, clears) in rows {
            for state in 0..=ALL {
                let after = step.apply(state, level_at, target);
                assert_eq!(after, (state | sets) & !clears, "{state:#x}");
            }
        }
        // A pending bit that is taken out is told from the next one.
        for state in (0..=ALL).filter(|state| state & PENDING != 0) {
            let after = Steps::EDGE.apply(state, NOWHERE, PIN);
            assert_eq!(after, (state & !PENDING) + TAKEN);
            assert_ne!(Pending::of(after | PENDING), Pending::of(state));
        }
    }

    /// From any state, a driver that gets no more requests has nothing to do after five steps.
    #[test]
    fn steps_end() {
        for state in 0..=ALL {
            for target in [PIN, MESSAGE, NOWHERE] {
                let (mut state, mut taken) = (state, 0);
                while Steps::due(state) != Steps::NONE {
                    let step = Steps::due(state).first();
                    state = step.apply(state, PIN, target);
                    taken += 1;
                    assert!(taken <= 5, "{state:#x}");
                }
            }
        }
    }
}
