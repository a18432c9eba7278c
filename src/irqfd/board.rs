//! What the irqfds of a router share: the lines, the routes, the sink.
//!
//! Everything that leads to a call of the sink happens in a section of [`srcu`](crate::sync::srcu), or on the worker's
//! thread. So whoever has changed something, the routes, a mask, the list of an event's observers, and waits for the
//! sections under way (and the worker), knows that nothing happens any more that was decided before.

use super::backlog::Backlog;
use super::line::{Holders, IrqLine, Pending, Request, Requested, Then, Trigger, Turn};
use super::lines::LineTree;
use super::sink::AckTarget;
use super::{InterruptSink, Route, RouteError, Routes, RoutingError};
use crate::sync::srcu::{Section, Srcu, synchronize, with_section};
use std::sync::Arc;

/// What became of a signal.
pub(super) struct Signalled {
    /// It was coalesced with what is due already.
    pub(super) coalesced: bool,
    /// The pending bit that it is in.
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
    /// For the worker, if there is one.
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

    /// Where there is a worker. There is none in a child of the process that has it, where whoever signals does its
    /// work.
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
            // The mask first, then the route: who unmasks sets the route before.
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

    /// Asks a line for something, and sees to it that it happens.
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

    /// Changes who holds a line up.
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

    /// What the worker does with a line in its backlog: in no section, since the sink may sleep.
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

    /// Replaces the routes by what `make` makes of them, and moves the levels that stand at old ones. Returns whether
    /// anything has changed. Injections by the old routes may be under way then.
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
        // Under the lock, so that the sink gets them in the same order.
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

    /// Waits until nothing is under way that was decided before: inside a section of this thread's, not.
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
