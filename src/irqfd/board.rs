//! What the irqfds of a router share: the lines, the routes, the sink.
//!
//! Everything that leads to a call of the sink happens in a section of [`srcu`](crate::sync::srcu), or on the worker's
//! thread. So whoever has changed something, the routes, a mask, the list of an event's observers, waits for the sections
//! under way (and the worker), and knows that nothing happens any more that was decided before.

use super::injector::Trigger;
use super::line::{Line, Request};
use super::worker::Backlog;
use super::{InterruptSink, Route, RouteError, Routes, RoutingError};
use crate::sync::srcu::{Section, Srcu, synchronize, with_section};
use std::sync::Arc;

pub(super) struct Board {
    sink: Arc<dyn InterruptSink>,
    routes: Srcu<Routes>,
    /// By GSI. A line that has been made stays.
    lines: Srcu<Vec<Arc<Line>>>,
    /// For the worker, if there is one.
    backlog: Option<Backlog>,
}

impl Board {
    pub(super) fn new(sink: Arc<dyn InterruptSink>, backlog: Option<Backlog>) -> Self {
        Board {
            sink,
            routes: Srcu::new(Routes::new()),
            lines: Srcu::new(Vec::new()),
            backlog,
        }
    }

    pub(super) fn sink(&self) -> &dyn InterruptSink {
        &*self.sink
    }

    /// Where there is a worker. There is none in a child of the process that has it, where whoever signals does its work.
    pub(super) fn backlog(&self) -> Option<&Backlog> {
        self.backlog.as_ref().filter(|backlog| backlog.has_worker())
    }

    /// An irqfd was signalled. Returns whether that was coalesced with what is due already.
    #[inline]
    pub(super) fn signal(&self, line: &Arc<Line>, trigger: Trigger) -> bool {
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
                    false
                }
                // A message has no level.
                Some(Route::Msi(_)) => self.ask_inside(section, line, Request::Edge),
                Some(Route::Pin(_)) => self.ask_inside(section, line, request),
                None => {
                    line.count_lost();
                    false
                }
            }
        })
    }

    /// Asks a line for something, and sees to it that it happens. Returns whether it was so already.
    pub(super) fn ask(&self, line: &Arc<Line>, request: Request) -> bool {
        with_section(|section| self.ask_inside(section, line, request))
    }

    fn ask_inside(&self, section: &Section<'_>, line: &Arc<Line>, request: Request) -> bool {
        let requested = line.ask(request);
        if requested.drive {
            match self.backlog() {
                None => line.drive(self.sink(), || self.routes.read(section).get(line.gsi)),
                Some(backlog) => backlog.push(Arc::clone(line)),
            }
        }
        requested.coalesced
    }

    /// What the worker does with a line in its backlog: in no section, since the sink may sleep.
    pub(super) fn drive(&self, line: &Line) {
        line.drive(self.sink(), || {
            with_section(|section| self.routes.read(section).get(line.gsi))
        });
    }

    pub(super) fn find(&self, gsi: u32) -> Option<Arc<Line>> {
        with_section(|section| {
            let lines = self.lines.read(section);
            let index = lines.binary_search_by_key(&gsi, |line| line.gsi).ok()?;
            Some(Arc::clone(&lines[index]))
        })
    }

    pub(super) fn line(&self, gsi: u32) -> Arc<Line> {
        if let Some(line) = self.find(gsi) {
            return line;
        }
        let writer = self.lines.write();
        let mut lines = writer.read().clone();
        match lines.binary_search_by_key(&gsi, |line| line.gsi) {
            // Another thread was faster.
            Ok(index) => Arc::clone(&lines[index]),
            Err(index) => {
                let line = Arc::new(Line::new(gsi));
                lines.insert(index, Arc::clone(&line));
                writer.publish(lines, ());
                line
            }
        }
    }

    pub(super) fn routes(&self) -> Routes {
        self.routes.write().read().clone()
    }

    /// Replaces the routes by what `make` makes of them, and moves the levels that stand at the old ones.
    pub(super) fn reroute(
        &self,
        make: impl FnOnce(&Routes) -> Result<Routes, RouteError>,
    ) -> Result<(), RoutingError> {
        let writer = self.routes.write();
        let routes = make(&writer.read())?;
        // Under the lock, so that the sink gets them in the same order.
        let taken = self.sink.set_routes(&routes);
        taken.map_err(RoutingError::Refused)?;
        writer.publish(routes, ());
        // Nobody looks at the old routes any more, but levels stand there.
        let lines = with_section(|section| self.lines.read(section).clone());
        for line in &lines {
            self.ask(line, Request::Reroute);
        }
        self.settle();
        Ok(())
    }

    /// Waits until nothing is under way that was decided before: inside a section of this thread's, not.
    pub(super) fn settle(&self) {
        let waited = synchronize();
        if let (true, Some(backlog)) = (waited, self.backlog()) {
            backlog.flush();
        }
    }
}
