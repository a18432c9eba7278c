//! The guest's ends of interrupt: KVM signals an eventfd, and a thread tells the router.

use super::Vm;
use super::eventfd::EventFd;
use crate::irqfd::Eoi;
use crate::sync::srcu;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// A line that KVM asserts when `raise` is written to, until the guest's end of interrupt, when it signals `resample`.
pub(super) struct Assertion {
    vm: Arc<Vm>,
    gsi: u32,
    raise: EventFd,
    resample: EventFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    registered: bool,
    /// The line was raised. Since then it has not been lowered, and no end of that interrupt has been taken.
    raised: bool,
    /// The line was lowered without an end of interrupt. So the next end that is taken may be that of an interrupt from
    /// before, and KVM's worker may have raised the line after it.
    unsure: bool,
    /// Such an end was taken while the line was raised. Whether KVM has lowered the line then is not known.
    suspect: bool,
}

impl Assertion {
    pub(super) fn new(vm: Arc<Vm>, gsi: u32) -> io::Result<Self> {
        Ok(Assertion {
            vm,
            gsi,
            raise: EventFd::new()?,
            resample: EventFd::new()?,
            state: Mutex::default(),
        })
    }

    /// Gives KVM the irqfd.
    pub(super) fn open(&self) -> io::Result<()> {
        self.register(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What it says is so at every point where a holder of the lock can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, state: &mut State) -> io::Result<()> {
        if !state.registered {
            let (vm, gsi) = (&self.vm, self.gsi);
            vm.irqfd_with_resample(&self.raise, gsi, &self.resample)?;
            state.registered = true;
        }
        Ok(())
    }

    fn unregister(&self, state: &mut State) -> io::Result<()> {
        if mem::take(&mut state.registered) {
            self.vm.deassign_irqfd(&self.raise, self.gsi)?;
        }
        Ok(())
    }

    pub(super) fn raise(&self) -> io::Result<()> {
        let mut state = self.lock();
        // KVM may have refused it when the line was lowered.
        self.register(&mut state)?;
        self.raise.signal()?;
        state.raised = true;
        Ok(())
    }

    pub(super) fn is_raised(&self) -> bool {
        self.lock().raised
    }

    /// Lowers the line, unless KVM has done so at an end of interrupt. Returns whether it was up.
    ///
    /// Without an end of interrupt, KVM lowers the line only when its last resampling irqfd goes.
    pub(super) fn lower(&self) -> io::Result<bool> {
        let mut state = self.lock();
        let raised = mem::take(&mut state.raised);
        if raised {
            // If this is for an end of interrupt that was suspect, what has been raised since is the device's answer to
            // it.
            state.unsure = !mem::take(&mut state.suspect);
            self.unregister(&mut state)?;
            self.register(&mut state)?;
        }
        Ok(raised)
    }

    /// Waits until KVM's worker has raised the line, if it has been raised.
    ///
    /// KVM waits for the worker when an irqfd goes. Another irqfd keeps the line up meanwhile, and tells the same
    /// eventfd of ends of interrupt.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut state = self.lock();
        if !state.raised || !state.registered {
            return Ok(());
        }
        let stand_in = EventFd::new()?;
        let (vm, gsi) = (&self.vm, self.gsi);
        vm.irqfd_with_resample(&stand_in, gsi, &self.resample)?;
        self.unregister(&mut state)?;
        let registered = self.register(&mut state);
        vm.deassign_irqfd(&stand_in, gsi)?;
        registered
    }

    /// Ends the irqfd. KVM lowers the line.
    pub(super) fn close(&self) -> io::Result<()> {
        self.unregister(&mut self.lock())
    }

    /// Takes the end of an interrupt, if the guest has ended one. KVM has lowered the line then, as far as is known.
    pub(super) fn take_end(&self) -> bool {
        let mut state = self.lock();
        let ended = self.resample.take();
        if ended {
            match mem::take(&mut state.unsure) {
                true => state.suspect = state.raised,
                false => state.raised = false,
            }
        }
        ended
    }
}

/// The thread. It ends when this is dropped; inside a callback, where the drop must not wait, soon after.
pub(super) struct Pump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: OwnedFd,
    /// Stays open until the thread has seen it: a descriptor that is closed leaves the epoll.
    stop: EventFd,
    watched: Mutex<Watched>,
    /// Held by the thread from before it takes an end of interrupt until it has told the line of it.
    in_flight: Mutex<()>,
}

#[derive(Default)]
struct Watched {
    /// By GSI, and by the number that stands in the epoll.
    numbers: BTreeMap<u32, u64>,
    lines: BTreeMap<u64, (Arc<Assertion>, Eoi)>,
    /// A number is never used twice, because the thread may have the number of a line that has gone.
    next: u64,
}

const STOP: u64 = u64::MAX;

impl Pump {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            stop: EventFd::new()?,
            watched: Mutex::default(),
            in_flight: Mutex::default(),
        });
        shared.add(&shared.stop, STOP)?;
        let thread = {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("irqfd resample".into());
            thread.spawn(move || shared.work())?
        };
        Ok(Pump {
            shared,
            thread: Some(thread),
        })
    }

    /// `None` where the caller must not wait for them: in a callback, for which an observer of a resample event may
    /// wait.
    pub(super) fn in_flight(&self) -> Option<InFlight> {
        let thread = self.thread.as_ref()?.thread();
        let may_wait = thread.id() != thread::current().id() && srcu::may_wait();
        may_wait.then(|| InFlight(Arc::clone(&self.shared)))
    }

    /// The lines whose guest has ended an interrupt that the router has not been told of.
    pub(super) fn take_ends(&self) -> Vec<Eoi> {
        let watched = self.shared.lock();
        let ended = watched
            .lines
            .values()
            .filter(|(assertion, _)| assertion.take_end());
        ended.map(|(_, line)| line.clone()).collect()
    }

    /// For a GSI that is not watched.
    pub(super) fn watch(&self, assertion: &Arc<Assertion>, line: Eoi) -> io::Result<()> {
        let mut watched = self.shared.lock();
        let number = watched.next;
        self.shared.add(&assertion.resample, number)?;
        watched.next += 1;
        watched.numbers.insert(line.gsi(), number);
        watched.lines.insert(number, (Arc::clone(assertion), line));
        Ok(())
    }

    /// Stops telling the router of ends of interrupt on this line, except of one that the thread is telling it now.
    /// Returns the line's [`Eoi`].
    pub(super) fn forget(&self, gsi: u32) -> io::Result<Option<Eoi>> {
        let mut watched = self.shared.lock();
        let number = watched.numbers.remove(&gsi);
        let Some((assertion, line)) = number.and_then(|number| watched.lines.remove(&number))
        else {
            return Ok(None);
        };
        // The thread may hold the assertion, and its eventfd then stays open and in the epoll.
        self.shared.remove(&assertion.resample)?;
        Ok(Some(line))
    }
}

/// The ends of interrupt that the thread is telling the router of.
pub(super) struct InFlight(Arc<Shared>);

impl InFlight {
    /// Waits until the router has been told. The caller is not the thread, and in no callback.
    pub(super) fn wait(self) {
        drop(
            self.0
                .in_flight
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        // There is room for one.
        let _ = self.shared.stop.signal();
        let Some(thread) = self.thread.take() else {
            return;
        };
        // An ack may drop the last handle to the sink on this very thread. In a callback the drop must not wait,
        // because an observer of a resample event may be waiting for the callback.
        if thread.thread().id() != thread::current().id() && srcu::may_wait() {
            // It catches what panics.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, eventfd: &EventFd, number: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(
            &self.epoll,
            eventfd,
            data,
            epoll::EventFlags::IN,
        )?)
    }

    fn remove(&self, eventfd: &EventFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, eventfd)?)
    }

    fn work(&self) {
        let mut events = Vec::with_capacity(16);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => unreachable!("epoll_wait: {errno}"),
            }
            for event in &events {
                let number = event.data.u64();
                if number == STOP {
                    return;
                }
                let _in_flight = self
                    .in_flight
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let Some((assertion, line)) = self.lock().lines.get(&number).cloned() else {
                    continue;
                };
                if assertion.take_end() {
                    // The panic of an observer has been reported.
                    let _ = panic::catch_unwind(AssertUnwindSafe(|| line.ack()));
                }
            }
        }
    }
}
