//! Scripts: random sequences of signals, acks, masks, routes and assignments, played to two routers and to a sequential
//! model of two virtual machines. One generator serves the property test and the fuzz target.

use super::sink::{Call, Log, down, message, up};
use arbitrary::{Arbitrary, Unstructured};
use doorbell::event::EventHandle;
use doorbell::irqfd::{
    AssignError, Irqfd, LevelSource, Route, RouteError, Router, Routes, RoutingError,
};
use doorbell::{Event, Mode};
use std::array;
use std::collections::{BTreeMap, BTreeSet};
use std::ptr;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Script(Vec<Step>);

impl<'a> Arbitrary<'a> for Script {
    /// A script that uses all of the bytes.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Script(steps))
    }
}

/// A step in one of the machines.
#[derive(Arbitrary, Clone, Debug)]
struct Step {
    machine: bool,
    what: What,
}

#[derive(Arbitrary, Clone, Debug)]
enum What {
    Assign {
        event: u8,
        gsi: u8,
        resample: Option<u8>,
        keep: bool,
    },
    Deassign(u8, u8),
    /// Drops one of the handles.
    Drop(u8),
    Signal(u8),
    /// This stands here twice, so that most signals come to events that are signalled often.
    SignalTwice(u8),
    Write(u8, u8),
    Read(u8),
    Ack(u8),
    Mask(u8),
    Unmask(u8),
    UnmaskWithRoute(u8, RouteSketch),
    UnmaskWithRoutes(Vec<(u8, RouteSketch)>),
    TakePending(u8),
    SetPending(u8),
    SetLevel(u8, bool),
    AddSource(u8),
    /// Sets one of the level sources.
    SetSource(u8, bool),
    DropSource(u8),
    SetRoute(u8, Option<RouteSketch>),
    ChangeRoutes(Vec<(u8, Option<RouteSketch>)>),
    SetRoutes(Vec<(u8, RouteSketch)>),
    /// Everything is dropped, and there is a new machine.
    Restart,
    /// Both machines are saved, and go on as machines that are restored from that.
    Migrate,
}

/// There are few pins, so that many GSIs want the same one.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum RouteSketch {
    Pin(u8),
    Msi(u8),
}

impl RouteSketch {
    fn route(self) -> Route {
        match self {
            RouteSketch::Pin(pin) => Route::Pin(u32::from(pin % 6)),
            RouteSketch::Msi(data) => message(u32::from(data % 4)),
        }
    }
}

fn gsi(number: u8) -> u32 {
    match number {
        0xfc => 4095,
        0xfd => 4096,
        0xfe => u32::MAX,
        _ => u32::from(number % 5),
    }
}

const EVENTS: usize = 6;

/// The last of them are semaphores.
fn mode(event: usize) -> Mode {
    match event {
        0..4 => Mode::Counter,
        _ => Mode::Semaphore,
    }
}

/// Where a level is raised.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Pin(u32),
    Message,
    Nowhere,
}

#[derive(Clone, Debug, Default)]
struct Line {
    masked: bool,
    pending: bool,
    /// Events that have a signal in the pending bit.
    pending_of: BTreeSet<usize>,
    asserted: bool,
    held: bool,
    /// The number of level sources that hold the line up.
    sources: usize,
    up: Option<Place>,
    resamplers: Vec<usize>,
    edges: u64,
    raises: u64,
    lost: u64,
    resamples: u64,
}

impl Line {
    fn take_pending(&mut self) -> bool {
        self.pending_of.clear();
        std::mem::take(&mut self.pending)
    }
}

/// The irqfd of an event.
#[derive(Clone, Debug)]
struct Owner {
    machine: usize,
    gsi: u32,
    resample: Option<usize>,
    signals: u64,
    coalesced: u64,
}

#[derive(Default)]
struct Machine {
    lines: BTreeMap<u32, Line>,
    routes: BTreeMap<u32, Route>,
    calls: Vec<Call>,
}

impl Machine {
    fn line(&mut self, gsi: u32) -> &mut Line {
        self.lines.entry(gsi).or_default()
    }

    fn send(&mut self, gsi: u32, route: Route) {
        match route {
            Route::Pin(pin) => self.calls.extend([up(gsi, pin), down(gsi, pin)]),
            Route::Msi(message) => self.calls.push(Call::Msi {
                gsi,
                data: message.data,
            }),
            _ => unreachable!("{route:?}"),
        }
    }

    fn lower(&mut self, gsi: u32) {
        if let Some(Place::Pin(pin)) = self.line(gsi).up.take() {
            self.calls.push(down(gsi, pin));
        }
    }

    /// Makes the calls to the sink that the line needs.
    fn settle(&mut self, gsi: u32) {
        let route = self.routes.get(&gsi).copied();
        let line = self.line(gsi);
        let level = (line.asserted || line.held || line.sources != 0) && !line.masked;
        if !level {
            self.lower(gsi);
        }
        let line = self.line(gsi);
        if line.pending && !line.masked {
            line.take_pending();
            match route {
                None => line.lost += 1,
                Some(route) => {
                    line.edges += 1;
                    self.send(gsi, route);
                }
            }
        }
        let line = self.line(gsi);
        if level && line.up.is_none() {
            match route {
                None => line.up = Some(Place::Nowhere),
                Some(Route::Pin(pin)) => {
                    line.up = Some(Place::Pin(pin));
                    line.raises += 1;
                    self.calls.push(up(gsi, pin));
                }
                Some(route) => {
                    line.up = Some(Place::Message);
                    line.raises += 1;
                    self.send(gsi, route);
                }
            }
        }
    }

    /// Returns whether the signal was coalesced.
    fn signal(&mut self, event: usize, gsi: u32, level: bool, settle: bool) -> bool {
        let route = self.routes.get(&gsi).copied();
        let line = self.line(gsi);
        if !line.masked && route.is_none() {
            line.lost += 1;
            return false;
        }
        if !line.masked && matches!(route, Some(Route::Msi(_))) {
            line.edges += 1;
            self.send(gsi, route.expect("a message"));
            return false;
        }
        let at_pin = matches!(line.up, Some(Place::Pin(_)));
        let coalesced = match level {
            true => std::mem::replace(&mut line.asserted, true),
            false if at_pin => true,
            false => {
                line.pending_of.insert(event);
                std::mem::replace(&mut line.pending, true)
            }
        };
        if settle {
            self.settle(gsi);
        }
        coalesced
    }

    fn set_pending(&mut self, gsi: u32) {
        let line = self.line(gsi);
        if !matches!(line.up, Some(Place::Pin(_))) {
            line.pending = true;
            self.settle(gsi);
        }
    }

    /// What a change of routes does to the levels.
    fn moved(&mut self) {
        for gsi in self.lines.keys().copied().collect::<Vec<_>>() {
            let place = match self.routes.get(&gsi) {
                None => Place::Nowhere,
                Some(&Route::Pin(pin)) => Place::Pin(pin),
                Some(_) => Place::Message,
            };
            if self.line(gsi).up.is_some_and(|at| at != place) {
                self.lower(gsi);
                self.settle(gsi);
            }
        }
    }

    fn valid(routes: &BTreeMap<u32, Route>, gsi: u32, route: Route) -> Result<(), RouteError> {
        if gsi > Routes::MAX_GSI {
            return Err(RouteError::Gsi);
        }
        let pin = matches!(route, Route::Pin(_));
        if pin
            && routes
                .iter()
                .any(|(&other, &at)| other != gsi && at == route)
        {
            return Err(RouteError::PinTwice);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Model {
    machines: [Machine; 2],
    counts: [u64; EVENTS],
    owners: BTreeMap<usize, Owner>,
}

impl Model {
    fn take(&mut self, event: usize) -> u64 {
        let count = self.counts[event];
        let taken = match mode(event) {
            Mode::Counter => count,
            Mode::Semaphore => count.min(1),
        };
        self.counts[event] -= taken;
        taken
    }

    /// `driven` is the line that is being driven: requests to it wait.
    fn signal(&mut self, event: usize, n: u64, driven: Option<(usize, u32)>) {
        self.counts[event] += n;
        if self.owners.contains_key(&event) {
            self.take(event);
            self.inject(event, driven);
        }
    }

    fn inject(&mut self, event: usize, driven: Option<(usize, u32)>) {
        let owner = self.owners.get_mut(&event).expect("an owner");
        let settle = driven != Some((owner.machine, owner.gsi));
        owner.signals += 1;
        let machine = &mut self.machines[owner.machine];
        let coalesced = machine.signal(event, owner.gsi, owner.resample.is_some(), settle);
        owner.coalesced += u64::from(coalesced);
    }

    /// Lowers the line, then asks the devices.
    fn resample(&mut self, machine: usize, gsi: u32) {
        self.machines[machine].line(gsi).asserted = false;
        self.machines[machine].lower(gsi);
        self.machines[machine].line(gsi).resamples += 1;
        for event in self.machines[machine].line(gsi).resamplers.clone() {
            self.signal(event, 1, Some((machine, gsi)));
        }
        self.machines[machine].settle(gsi);
    }

    fn unmask(&mut self, machine: usize, gsi: u32) {
        let line = self.machines[machine].line(gsi);
        if std::mem::replace(&mut line.masked, false) {
            match line.asserted {
                true => self.resample(machine, gsi),
                false => self.machines[machine].settle(gsi),
            }
        }
    }

    fn deassign(&mut self, event: usize) {
        let owner = self.owners.remove(&event).expect("an owner");
        if let Some(resample) = owner.resample {
            let resamplers = &mut self.machines[owner.machine].line(owner.gsi).resamplers;
            let place = resamplers.iter().position(|&other| other == resample);
            resamplers.remove(place.expect("the irqfd was added"));
            if resamplers.is_empty() {
                self.resample(owner.machine, owner.gsi);
            }
        }
        self.take(event);
        let at = |owner: &Owner| (owner.machine, owner.gsi);
        let last = !self.owners.values().any(|other| at(other) == at(&owner));
        let line = self.machines[owner.machine].line(owner.gsi);
        self.counts[event] += u64::from(line.pending_of.remove(&event));
        if last {
            line.take_pending();
        }
    }
}

fn name_of(events: &[Arc<Event>; EVENTS], handle: &EventHandle) -> usize {
    let is = |event: &Arc<Event>| handle.ptr_eq(event);
    events.iter().position(is).expect("a known event")
}

struct Player {
    routers: [Router; 2],
    logs: [Arc<Log>; 2],
    events: [Arc<Event>; EVENTS],
    /// The irqfds, each with the number of its event.
    irqfds: Vec<(Irqfd, usize)>,
    /// The level sources, each with the number of its machine.
    sources: Vec<(LevelSource, usize)>,
    model: Model,
}

impl Script {
    /// Plays the script, and returns how many steps had the expected result. Panics at the first that has not.
    pub fn compare(&self) -> u64 {
        let logs = [Arc::new(Log::default()), Arc::new(Log::default())];
        let mut player = Player {
            routers: logs.each_ref().map(|log| Router::new(Arc::clone(log))),
            logs,
            events: array::from_fn(|event| Arc::new(Event::with_mode(0, mode(event)))),
            irqfds: Vec::new(),
            sources: Vec::new(),
            model: Model::default(),
        };
        for step in &self.0 {
            player.play(usize::from(step.machine), &step.what);
            player.compare();
        }
        self.0.len() as u64
    }
}

impl Player {
    fn play(&mut self, machine: usize, what: &What) {
        let index = |number: &u8| usize::from(*number) % EVENTS;
        let router = &self.routers[machine];
        let model = &mut self.model;
        match what {
            What::Assign {
                event,
                gsi,
                resample,
                keep,
            } => {
                let resample = resample.as_ref().map(index);
                self.assign(machine, index(event), self::gsi(*gsi), resample, *keep);
            }
            What::Deassign(event, gsi) => {
                let (event, gsi) = (index(event), self::gsi(*gsi));
                router.deassign(&self.events[event], gsi);
                let owner = model.owners.get(&event);
                if owner.is_some_and(|owner| (owner.machine, owner.gsi) == (machine, gsi)) {
                    model.deassign(event);
                    self.irqfds.retain(|(_, other)| *other != event);
                }
            }
            What::Drop(number) => {
                let count = self.irqfds.len();
                if count != 0 {
                    let (irqfd, event) = self.irqfds.swap_remove(usize::from(*number) % count);
                    drop(irqfd);
                    model.deassign(event);
                }
            }
            What::Signal(event) => {
                self.events[index(event)].signal();
                model.signal(index(event), 1, None);
            }
            What::SignalTwice(event) => {
                for _ in 0..2 {
                    self.events[index(event)].signal();
                    model.signal(index(event), 1, None);
                }
            }
            What::Write(event, n) => {
                let n = u64::from(n % 4);
                self.events[index(event)].try_write(n).expect("room");
                model.signal(index(event), n, None);
            }
            What::Read(event) => {
                let taken = self.events[index(event)].try_read();
                assert_eq!(taken.unwrap_or(0), model.take(index(event)));
            }
            What::Ack(number) => {
                let gsi = gsi(*number);
                router.ack(gsi);
                if !model.machines[machine].line(gsi).resamplers.is_empty() {
                    model.resample(machine, gsi);
                }
            }
            What::Mask(number) => {
                let gsi = gsi(*number);
                router.mask(gsi);
                model.machines[machine].line(gsi).masked = true;
                model.machines[machine].settle(gsi);
            }
            What::Unmask(number) => {
                router.unmask(gsi(*number));
                model.unmask(machine, gsi(*number));
            }
            What::UnmaskWithRoute(number, sketch) => {
                let (gsi, route) = (gsi(*number), sketch.route());
                let result = router.unmask_with_route(gsi, route);
                if self.change_routes(machine, &[(gsi, Some(route))], result) {
                    self.model.unmask(machine, gsi);
                }
            }
            What::TakePending(number) => {
                let gsi = gsi(*number);
                let taken = router.take_pending(gsi);
                let line = model.machines[machine].line(gsi);
                assert_eq!(taken, line.take_pending());
            }
            What::SetPending(number) => {
                router.set_pending(gsi(*number));
                model.machines[machine].set_pending(gsi(*number));
            }
            What::SetLevel(number, level) => {
                let gsi = gsi(*number);
                router.set_level(gsi, *level);
                model.machines[machine].line(gsi).held = *level;
                model.machines[machine].settle(gsi);
            }
            What::AddSource(number) => {
                let source = router.level_source(gsi(*number));
                self.sources.push((source, machine));
            }
            What::SetSource(number, level) => {
                let count = self.sources.len();
                if count != 0 {
                    self.set_source(usize::from(*number) % count, *level);
                }
            }
            What::DropSource(number) => {
                let count = self.sources.len();
                if count != 0 {
                    self.drop_source(usize::from(*number) % count);
                }
            }
            What::SetRoute(number, sketch) => {
                let (gsi, route) = (gsi(*number), sketch.map(RouteSketch::route));
                let result = router.set_route(gsi, route);
                self.change_routes(machine, &[(gsi, route)], result);
            }
            What::ChangeRoutes(changes) => {
                let change = |&(number, sketch): &(u8, Option<RouteSketch>)| {
                    (gsi(number), sketch.map(RouteSketch::route))
                };
                let changes: Vec<_> = changes.iter().map(change).collect();
                let result = router.change_routes(changes.iter().copied());
                self.change_routes(machine, &changes, result);
            }
            What::UnmaskWithRoutes(sketches) => {
                let route = |&(number, sketch): &(u8, RouteSketch)| (gsi(number), sketch.route());
                let routes: Vec<_> = sketches.iter().map(route).collect();
                let result = router.unmask_with_routes(routes.iter().copied());
                let changes: Vec<_> = routes
                    .iter()
                    .map(|&(gsi, route)| (gsi, Some(route)))
                    .collect();
                if self.change_routes(machine, &changes, result) {
                    for (gsi, _) in routes {
                        self.model.unmask(machine, gsi);
                    }
                }
            }
            What::SetRoutes(entries) => self.set_routes(machine, entries),
            What::Migrate => self.migrate(),
            What::Restart => {
                let gone = |owner: &Owner| owner.machine == machine;
                let model = &mut self.model;
                self.irqfds.retain(|(_, event)| !gone(&model.owners[event]));
                self.sources.retain(|(_, other)| *other != machine);
                self.routers[machine] = Router::new(Arc::clone(&self.logs[machine]));
                // The order in which the irqfds go is not specified. So the calls that this causes are ignored; their
                // resample events are not signalled by it, and the levels end low.
                for event in 0..EVENTS {
                    if model.owners.get(&event).is_some_and(gone) {
                        model.deassign(event);
                    }
                }
                self.logs[machine].take();
                model.machines[machine] = Machine::default();
            }
        }
    }

    fn assign(
        &mut self,
        machine: usize,
        event: usize,
        gsi: u32,
        resample: Option<usize>,
        keep: bool,
    ) {
        let router = &self.routers[machine];
        let result = match resample {
            None => router.assign(&self.events[event], gsi),
            Some(rs) => router.assign_with_resample(&self.events[event], gsi, &self.events[rs]),
        };
        let model = &mut self.model;
        match result {
            Err(AssignError::SameEvent) => assert_eq!(resample, Some(event)),
            Err(AssignError::Busy) => assert!(model.owners.contains_key(&event)),
            Err(error) => panic!("{error}"),
            Ok(irqfd) => {
                assert!(!model.owners.contains_key(&event) && resample != Some(event));
                let owner = Owner {
                    machine,
                    gsi,
                    resample,
                    signals: 0,
                    coalesced: 0,
                };
                model.owners.insert(event, owner);
                let line = model.machines[machine].line(gsi);
                line.resamplers.extend(resample);
                if model.counts[event] != 0 {
                    model.inject(event, None);
                }
                match keep {
                    true => irqfd.keep(),
                    false => self.irqfds.push((irqfd, event)),
                }
            }
        }
    }

    fn migrate(&mut self) {
        let name = |event: &Event| {
            let is = |other: &Arc<Event>| ptr::eq(&**other, event);
            self.events.iter().position(is).expect("a known event") as u64
        };
        let states = self.routers.each_ref().map(|router| router.save(name));
        let events = self.events.each_ref().map(|event| event.save());
        let level =
            |(source, machine): (LevelSource, usize)| (source.gsi(), source.level(), machine);
        let sources: Vec<_> = self.sources.drain(..).map(level).collect();
        let guarded: Vec<usize> = self.irqfds.drain(..).map(|(_, event)| event).collect();

        self.events = events.map(|event| Arc::new(Event::restore(&event).expect("our version")));
        self.logs = Default::default();
        self.routers = self.logs.each_ref().map(|log| Router::new(Arc::clone(log)));
        let find = |id| self.events.get(id as usize).map(Into::into);
        let restored = [0, 1].map(|machine| {
            let restored = self.routers[machine].restore(&states[machine], find);
            restored.expect("the saved state is valid")
        });
        let mut held = Vec::new();
        let mut irqfds = BTreeMap::new();
        for (machine, restored) in restored.into_iter().enumerate() {
            held.extend(restored.sources.into_iter().map(|source| (source, machine)));
            for irqfd in restored.irqfds {
                let event = name_of(&self.events, irqfd.event());
                irqfds.insert(event, irqfd);
            }
        }
        let guarded = guarded.into_iter().map(|event| {
            let irqfd = irqfds.remove(&event).expect("the irqfd was assigned");
            (irqfd, event)
        });
        self.irqfds = guarded.collect();
        irqfds.into_values().for_each(Irqfd::keep);
        for (gsi, level, machine) in sources {
            let source = match level {
                true => {
                    let is = |(source, other): &(LevelSource, usize)| {
                        (source.gsi(), *other) == (gsi, machine)
                    };
                    let index = held
                        .iter()
                        .position(is)
                        .expect("the source held the line up");
                    held.swap_remove(index).0
                }
                false => self.routers[machine].level_source(gsi),
            };
            self.sources.push((source, machine));
        }
        assert!(held.is_empty());

        // Counters begin again, the sinks are told again which lines are up, and resample events are signalled in the
        // order of the irqfds' events.
        let Model {
            machines, owners, ..
        } = &mut self.model;
        for owner in owners.values_mut() {
            (owner.signals, owner.coalesced) = (0, 0);
        }
        for (index, machine) in machines.iter_mut().enumerate() {
            for (&gsi, line) in &mut machine.lines {
                let here = owners
                    .values()
                    .filter(|owner| (owner.machine, owner.gsi) == (index, gsi));
                line.resamplers = here.filter_map(|owner| owner.resample).collect();
                (line.edges, line.raises, line.lost, line.resamples) = (0, 0, 0, 0);
                if let Some(Place::Pin(pin)) = line.up {
                    line.raises = 1;
                    machine.calls.push(up(gsi, pin));
                }
            }
        }
    }

    fn set_source(&mut self, index: usize, level: bool) {
        let (source, machine) = &self.sources[index];
        let before = source.level();
        source.set_level(level);
        let machine = &mut self.model.machines[*machine];
        let line = machine.line(source.gsi());
        line.sources += usize::from(level);
        line.sources -= usize::from(before);
        machine.settle(source.gsi());
    }

    fn drop_source(&mut self, index: usize) {
        let (source, machine) = self.sources.swap_remove(index);
        let (gsi, before) = (source.gsi(), source.level());
        drop(source);
        let machine = &mut self.model.machines[machine];
        machine.line(gsi).sources -= usize::from(before);
        machine.settle(gsi);
    }

    /// Returns whether the routes were valid.
    fn change_routes(
        &mut self,
        machine: usize,
        changes: &[(u32, Option<Route>)],
        result: Result<(), RoutingError>,
    ) -> bool {
        let machine = &mut self.model.machines[machine];
        let mut routes = machine.routes.clone();
        let mut problems = Vec::new();
        for (index, (gsi, _)) in changes.iter().enumerate() {
            if *gsi > Routes::MAX_GSI {
                problems.push(RouteError::Gsi);
            }
            if changes[..index].iter().any(|(other, _)| other == gsi) {
                problems.push(RouteError::GsiTwice);
            }
            routes.remove(gsi);
        }
        for &(gsi, route) in changes {
            if let Some(route) = route {
                problems.extend(Machine::valid(&routes, gsi, route).err());
                routes.insert(gsi, route);
            }
        }
        match result {
            Ok(()) => {
                assert_eq!(problems, []);
                machine.routes = routes;
                machine.moved();
                true
            }
            Err(RoutingError::Invalid(error)) => {
                assert!(problems.contains(&error), "{error}: {problems:?}");
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn set_routes(&mut self, machine: usize, entries: &[(u8, RouteSketch)]) {
        let entries = entries
            .iter()
            .map(|(number, sketch)| (gsi(*number), sketch.route()));
        let ours = Routes::from_entries(entries.clone());
        let mut valid = Ok(());
        let mut routes = BTreeMap::new();
        for (gsi, route) in entries {
            let twice = if routes.contains_key(&gsi) {
                Err(RouteError::GsiTwice)
            } else {
                Ok(())
            };
            valid = valid
                .and(twice)
                .and_then(|()| Machine::valid(&routes, gsi, route));
            routes.insert(gsi, route);
        }
        match ours {
            Err(error) => assert_eq!(valid, Err(error)),
            Ok(ours) => {
                assert_eq!(valid, Ok(()));
                self.routers[machine]
                    .set_routes(ours)
                    .expect("the sink takes all routes");
                self.model.machines[machine].routes = routes;
                self.model.machines[machine].moved();
            }
        }
    }

    fn compare(&mut self) {
        let counts = self.events.each_ref().map(|event| event.count());
        assert_eq!(counts, self.model.counts);
        for (index, machine) in self.model.machines.iter_mut().enumerate() {
            let router = &self.routers[index];
            assert_eq!(self.logs[index].take(), std::mem::take(&mut machine.calls));
            assert!(router.routes().iter().eq(machine.routes.clone()));
            for (&gsi, line) in &machine.lines {
                assert_eq!(router.is_pending(gsi), line.pending);
                assert_eq!(router.is_masked(gsi), line.masked);
                let is_up = matches!(line.up, Some(Place::Pin(_)));
                assert_eq!(router.level(gsi), is_up);
                let holds = line.asserted || line.held || line.sources != 0;
                assert_eq!(router.is_asserted(gsi), holds);
                let ours = router.line_counters(gsi);
                assert_eq!(
                    (ours.edges, ours.raises, ours.lost, ours.resamples),
                    (line.edges, line.raises, line.lost, line.resamples),
                    "GSI {gsi}"
                );
            }
        }
        for (irqfd, event) in &self.irqfds {
            let owner = &self.model.owners[event];
            let counters = irqfd.counters();
            assert_eq!(
                (counters.signals, counters.coalesced),
                (owner.signals, owner.coalesced)
            );
        }
    }
}
