//! A router is saved and restored.

use super::injector::Injector;
use super::line::{Pending, Request};
use super::{Irqfd, IrqfdState, LevelSource, LineState, RestoreError, Router, RouterState, Routes};
use crate::Event;
use crate::event::EventHandle;
use crate::state::{self, VERSION};
use std::collections::BTreeMap;
use std::fmt;

/// The guards of what [`Router::restore`] has restored. Dropping them undoes it.
#[must_use = "the events are deassigned, and the lines let go, when these are dropped"]
#[derive(Default)]
#[non_exhaustive]
pub struct Restored {
    /// The irqfds, in the order of [`RouterState::irqfds`].
    pub irqfds: Vec<Irqfd>,
    /// The level sources that held a line up, by GSI. Those of one GSI are alike: each device that held the line up
    /// gets one of them. Devices that did not hold the line up get new ones, from [`Router::level_source`].
    pub sources: Vec<LevelSource>,
}

impl fmt::Debug for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restored")
            .field("irqfds", &self.irqfds)
            .field("sources", &self.sources)
            .finish()
    }
}

impl Router {
    /// Routes, irqfds, masks, pending bits and held levels as plain data. `name` gives each event a number, which is
    /// how [`restore`](Self::restore) asks for the event. The router goes on as before.
    ///
    /// Stop the vCPUs and the devices first, and save the router before the events: see [the order of the
    /// steps](crate::guide::snapshot). First this waits as [`synchronize`](Self::synchronize) does, so there are
    /// [locks](crate::guide::locks) that the caller must not hold, and then until the sink has handed on [what it was
    /// told](super::InterruptSink::flush).
    ///
    /// ```
    /// # use doorbell::irqfd::{InterruptSink, MsiMessage, Router};
    /// # use std::sync::{Arc, Mutex};
    /// # #[derive(Default)]
    /// # struct Cpus(Mutex<Vec<u32>>);
    /// # impl InterruptSink for Cpus {
    /// #     fn set_level(&self, _: u32, _: u32, _: bool) {}
    /// #     fn signal_msi(&self, _: u32, message: MsiMessage) { self.0.lock().unwrap().push(message.data); }
    /// # }
    /// use doorbell::Event;
    ///
    /// let router = Router::new(Cpus::default());
    /// router.set_route(24, Some(MsiMessage::new(0xfee0_0000, 0x41).into()))?;
    /// let done = Arc::new(Event::new(0));
    /// let _irqfd = router.assign(&done, 24)?;
    /// router.mask(24);
    /// done.signal();
    ///
    /// let events = [done.save()];
    /// let state = router.save(|event| if std::ptr::eq(event, &*done) { 0 } else { unreachable!() });
    ///
    /// // In another process, with another router.
    /// let events = events.map(|event| Event::restore(&event).map(Arc::new));
    /// let [done] = events;
    /// let done = done?;
    /// let cpus = Arc::new(Cpus::default());
    /// let router = Router::new(cpus.clone());
    /// let _irqfds = router.restore(&state, |id| (id == 0).then(|| (&done).into()))?;
    /// assert!(router.is_masked(24) && router.is_pending(24));
    /// router.unmask(24);
    /// assert_eq!(*cpus.0.lock().unwrap(), [0x41]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    #[doc(alias = "snapshot")]
    pub fn save(&self, mut name: impl FnMut(&Event) -> u64) -> RouterState {
        self.synchronize();
        self.board().sink().flush();
        let lines = self.board().lines().all();
        let saved: BTreeMap<u32, (LineState, Option<Pending>)> =
            lines.iter().map(|line| (line.gsi, line.save())).collect();
        let irqfds = self.save_irqfds(|gsi| saved.get(&gsi)?.1);
        let mut irqfds: Vec<IrqfdState> = irqfds
            .into_iter()
            .map(|irqfd| IrqfdState {
                gsi: irqfd.gsi,
                event: name(&irqfd.event),
                resample: irqfd.resample.as_deref().map(&mut name),
                count: irqfd.count,
                covered: irqfd.covered,
                pending: irqfd.pending,
            })
            .collect();
        irqfds.sort_unstable_by_key(|irqfd| (irqfd.gsi, irqfd.event));
        let lines = saved.into_values().map(|(line, _)| line);
        RouterState {
            version: VERSION,
            routes: self.routes().iter().collect(),
            irqfds,
            lines: lines
                .filter(|line| *line != LineState::new(line.gsi))
                .collect(),
        }
    }

    /// Makes a new router what another one was when it was [saved](Self::save). `event` finds the event of a number,
    /// which has the count it was saved with. The restored guards are to be kept.
    ///
    /// The sink gets the routes and the irqfds as from [`set_routes`](Self::set_routes) and [`assign`](Self::assign),
    /// and is told again of each level that is held up. Nothing that had interrupted before the save interrupts again,
    /// provided that the interrupt controllers are restored before. An event that has been signalled since the save
    /// interrupts.
    ///
    /// To be called before anything interrupts, [in this order](crate::guide::snapshot). This waits as `set_routes` and
    /// `save` do.
    ///
    /// # Errors
    ///
    /// The version is unknown, the router has routes or irqfds already, there is no event of a number, the routes are
    /// invalid, or the sink refuses routes or irqfds. The router then has neither, and no line of it is masked or held.
    /// The events may have lost their counts, so they are to be restored anew for another attempt.
    pub fn restore(
        &self,
        state: &RouterState,
        mut event: impl FnMut(u64) -> Option<EventHandle>,
    ) -> Result<Restored, RestoreError> {
        state::check(state.version)?;
        if self.has_irqfds() || self.routes() != Routes::new() {
            return Err(RestoreError::InUse);
        }
        let mut find = |id| event(id).ok_or(RestoreError::Event(id));
        let mut events = Vec::with_capacity(state.irqfds.len());
        for irqfd in &state.irqfds {
            events.push((
                find(irqfd.event)?,
                irqfd.resample.map(&mut find).transpose()?,
            ));
        }
        let routes = Routes::from_entries(state.routes.iter().copied());
        let routes = routes.map_err(|error| RestoreError::Routes(error.into()))?;

        let mut lines: BTreeMap<u32, LineState> = state
            .lines
            .iter()
            .map(|line| (line.gsi, line.clone()))
            .collect();
        for &IrqfdState { gsi, .. } in &state.irqfds {
            lines.entry(gsi).or_insert_with(|| LineState::new(gsi));
        }
        // Nothing interrupts before everything is there.
        let masked = Masked::new(self, lines.keys().copied().collect());
        self.set_routes(routes).map_err(RestoreError::Routes)?;
        let mut restored = Restored::default();
        for (irqfd, (event, resample)) in state.irqfds.iter().zip(events) {
            let begin = |injector: &Injector| {
                injector.resume(irqfd.count, irqfd.covered);
                // So that it is in the same pending bit as the line's other irqfds.
                if irqfd.pending {
                    let board = self.board();
                    let request = board.ask(board.lines().get(irqfd.gsi), Request::Edge);
                    request
                        .pending
                        .into_iter()
                        .for_each(|bit| injector.set_pending(bit));
                }
            };
            match self.assign_irqfd(event, irqfd.gsi, resample, begin) {
                Ok(assigned) => restored.irqfds.push(assigned),
                Err(error) => {
                    drop(restored);
                    let _ = self.set_routes(Routes::new());
                    let gsi = irqfd.gsi;
                    return Err(RestoreError::Irqfd { gsi, error });
                }
            }
        }
        masked.forget();
        for (&gsi, line) in &lines {
            self.restore_line(line);
            restored
                .sources
                .extend((0..line.sources).map(|_| self.restored_source(gsi)));
        }
        self.synchronize();
        self.board().sink().flush();
        Ok(restored)
    }

    /// For a line that is masked.
    fn restore_line(&self, state: &LineState) {
        let board = self.board();
        let line = board.lines().get(state.gsi);
        if state.pending {
            board.ask(line, Request::Edge);
        }
        if state.asserted {
            board.ask(line, Request::Assert);
        }
        if state.level || state.sources != 0 {
            board.hold(line, |holders| {
                holders.vmm = state.level;
                holders.sources += state.sources;
            });
        }
        if !state.masked {
            let sent = state.sent && (state.asserted || state.level || state.sources != 0);
            if sent {
                line.set_sent();
            }
            board.ask(line, Request::Resume { sent });
        }
    }
}

/// Lines that are masked during a restore, and are unmasked if the restore fails.
struct Masked<'a> {
    router: &'a Router,
    gsis: Vec<u32>,
}

impl<'a> Masked<'a> {
    fn new(router: &'a Router, gsis: Vec<u32>) -> Self {
        for &gsi in &gsis {
            router.mask(gsi);
        }
        Masked { router, gsis }
    }

    fn forget(mut self) {
        self.gsis.clear();
    }
}

impl Drop for Masked<'_> {
    fn drop(&mut self) {
        for &gsi in &self.gsis {
            self.router.unmask(gsi);
        }
    }
}
