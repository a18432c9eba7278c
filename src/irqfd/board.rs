//! What the irqfds of a router share: the lines, the routes, the sink.
//!
//! Everything that leads to a call of the sink happens in a section of [`srcu`](crate::sync::srcu), or on the worker's
//! thread. So a thread can change the routes, a mask or the list of an event's observers, and then wait for the
//! sections under way and for the worker. After that, nothing that was decided before the change happens any more.

use super::backlog::Backlog;
use super::line::{Holders, IrqLine, Pending, Request, Requested, Then, Trigger, Turn};
use super::lines::LineTree;
use super::sink::AckTarget;
use super::{InterruptSink, Route, RouteError, Routes, RoutingError};
use crate::sync::srcu::{Section, Srcu, synchronize, with_section};
use std::sync::Arc;

/// The outcome of a signal.
pub(super) struct Signalled {
    /// An interrupt was due already, and the signal is part of it.
    pub(super) coalesced: bool,
    /// The pending bit that the signal is in, if it is in one.
    pub(super) pending: Option<Pending>,
}

impl Signalled {
    const AT_ONCE: Signalled = Signalled {
        coalesced: false,
        pending: None,
    };
}

pub(super) struct Board {
    sink: Arc<dyn InterruptSink>,
    routes: Srcu<Routes>,
    lines: LineTree,
    /// The worker's, if the router has one.
    backlog: Option<Backlog>,
}

impl Board {
    pub(super) fn new(sink: Arc<dyn InterruptSink>, backlog: Option<Backlog>) -> Self {
        Board {
            sink,
            routes: Srcu::new(Routes::new()),
            lines: LineTree::new(),
            backlog,
        }
    }

    pub(super) fn sink(&self) -> &dyn InterruptSink {
        &*self.sink
    }

    /// The backlog, if there is a worker. A child of the process that has the worker has none: there, the thread that
    /// signals does the work.
    pub(super) fn backlog(&self) -> Option<&Backlog> {
        self.backlog.as_ref().filter(|backlog| backlog.has_worker())
    }

    /// An irqfd was signalled.
    #[inline]
    pub(super) fn signal(&self, line: &Arc<IrqLine>, trigger: Trigger) -> Signalled {
        with_section(|section| {
            let request = match trigger {
                Trigger::Edge => Request::Edge,
                Trigger::Level => Request::Assert,
            };
            // The mask is read before the route: an unmask comes after the route that it was made for.
            if line.is_masked() {
                return self.ask_inside(section, line, request);
            }
            match self.routes.read(section).get(line.gsi) {
                Some(Route::Msi(message)) if self.backlog().is_none() => {
                    line.count_message();
                    self.sink.signal_msi(line.gsi, message);
                    Signalled::AT_ONCE
                }
                // A message has no level.
                Some(Route::Msi(_)) => self.ask_inside(section, line, Request::Edge),
                Some(Route::Pin(_)) => self.ask_inside(section, line, request),
                None => {
                    line.count_lost();
                    Signalled::AT_ONCE
                }
            }
        })
    }

    /// Makes a request of a line, and drives the line if that is needed for it.
    pub(super) fn ask(&self, line: &Arc<IrqLine>, request: Request) -> Signalled {
        with_section(|section| self.ask_inside(section, line, request))
    }

    fn ask_inside(
        &self,
        section: &Section<'_>,
        line: &Arc<IrqLine>,
        request: Request,
    ) -> Signalled {
        let Requested {
            coalesced,
            pending,
            then,
        } = line.ask(request);
        self.carry_out(section, line, then);
        Signalled { coalesced, pending }
    }

    /// Changes what holds a line up.
    pub(super) fn hold(&self, line: &Arc<IrqLine>, change: impl FnOnce(&mut Holders)) {
        with_section(|section| self.carry_out(section, line, line.hold(change).then));
    }

    fn carry_out(&self, section: &Section<'_>, line: &Arc<IrqLine>, then: Then) {
        match (self.backlog(), then) {
            (_, Then::Leave) => return,
            (Some(backlog), _) => return backlog.push(Arc::clone(line)),
            (None, Then::Relieve) if !line.relieve() => return,
            (None, _) => {}
        }
        line.drive(self.sink(), || self.routes.read(section).get(line.gsi));
    }

    /// The worker's turn on a line of its backlog. It is in no section, because the sink may sleep.
    pub(super) fn turn(&self, line: &IrqLine) -> Turn {
        line.turn(self.sink(), || {
            with_section(|section| self.routes.read(section).get(line.gsi))
        })
    }

    pub(super) fn lines(&self) -> &LineTree {
        &self.lines
    }

    pub(super) fn routes(&self) -> Routes {
        with_section(|section| self.routes.read(section).clone())
    }

    /// Changes the routes as `make` says, and moves the levels that stand at old ones. Returns whether anything has
    /// changed. When this returns, injections by the old routes may still be under way.
    pub(super) fn reroute(
        &self,
        make: impl FnOnce(&mut Routes) -> Result<(), RouteError>,
    ) -> Result<bool, RoutingError> {
        let writer = self.routes.write();
        let mut routes = writer.read().clone();
        make(&mut routes)?;
        let changes = writer.read().changes(&routes);
        if changes.is_empty() {
            return Ok(false);
        }
        // Under the lock, so that the sink is told of changes in the order in which they are made.
        let taken = self.sink.set_routes(&routes, &changes);
        taken.map_err(RoutingError::Refused)?;
        writer.publish_without_waiting(routes);
        for change in &changes {
            if let Some(line) = self.lines.find(change.gsi) {
                self.ask(line, Request::Reroute);
            }
        }
        Ok(true)
    }

    /// Waits until everything that was decided before has been carried out. Returns at once inside a section of the
    /// calling thread.
    pub(super) fn wait_in_flight(&self) {
        let waited = synchronize();
        if let (true, Some(backlog)) = (waited, self.backlog()) {
            backlog.flush();
        }
    }
}

impl AckTarget for Board {
    fn ack(&self, gsi: u32) {
        if let Some(line) = self.lines.find(gsi) {
            self.ask(line, Request::Ack);
        }
    }
}
