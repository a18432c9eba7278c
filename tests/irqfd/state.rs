//! Masks, pending bits and levels as a VMM reads and sets them, and routers that are saved and restored.

use super::sink::{Call, Log, down, message, up};
use doorbell::event::EventHandle;
use doorbell::irqfd::{
    AssignError, Eoi, InterruptSink, Irqfd, IrqfdState, LevelSource, LineState, MsiMessage,
    RestoreError, Restored, Route, RouteChange, RouteError, Router, RouterState, Routes,
    RoutingError,
};
use doorbell::state::VERSION;
use doorbell::{Event, Mode};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const PIN: u32 = 5;
const OTHER_PIN: u32 = 6;
const MSI: u32 = 24;
const DATA: u32 = 0x41;
const SENT: Call = Call::Msi {
    gsi: MSI,
    data: DATA,
};

fn router() -> (Router, Arc<Log>) {
    let log = Arc::new(Log::default());
    let router = Router::new(Arc::clone(&log));
    (router, log)
}

fn routes() -> Routes {
    let mut routes = Routes::identity(24);
    routes.set(MSI, Some(message(DATA))).unwrap();
    routes
}

/// Plays a table of steps, each with what is read after it and the calls to the sink that it makes.
#[test]
fn what_a_vmm_reads() {
    type Step = (
        &'static str,
        fn(&Router, &[LevelSource; 2]),
        // Masked, pending, level, asserted.
        [bool; 4],
        &'static [Call],
    );
    fn play(gsi: u32, steps: &[Step]) {
        let (router, log) = router();
        router.set_routes(routes()).unwrap();
        let sources = [(); 2].map(|()| router.level_source(gsi));
        for (name, step, expected, calls) in steps {
            step(&router, &sources);
            let read = [
                router.is_masked(gsi),
                router.is_pending(gsi),
                router.level(gsi),
                router.is_asserted(gsi),
            ];
            assert_eq!(read, *expected, "GSI {gsi}: {name}");
            assert_eq!(log.take(), *calls, "GSI {gsi}: {name}");
        }
    }
    const UP: Call = Call::Level {
        gsi: PIN,
        pin: PIN,
        level: true,
    };
    const DOWN: Call = Call::Level {
        gsi: PIN,
        pin: PIN,
        level: false,
    };
    let (o, i) = (false, true);
    play(
        MSI,
        &[
            ("as made", |_, _| {}, [o, o, o, o], &[]),
            (
                "set, not masked",
                |r, _| r.set_pending(MSI),
                [o, o, o, o],
                &[SENT],
            ),
            ("mask", |r, _| r.mask(MSI), [i, o, o, o], &[]),
            ("set", |r, _| r.set_pending(MSI), [i, i, o, o], &[]),
            ("set again", |r, _| r.set_pending(MSI), [i, i, o, o], &[]),
            (
                "take",
                |r, _| assert!(r.take_pending(MSI)),
                [i, o, o, o],
                &[],
            ),
            (
                "take none",
                |r, _| assert!(!r.take_pending(MSI)),
                [i, o, o, o],
                &[],
            ),
            (
                "set once more",
                |r, _| r.set_pending(MSI),
                [i, i, o, o],
                &[],
            ),
            ("unmask", |r, _| r.unmask(MSI), [o, o, o, o], &[SENT]),
            ("unmask again", |r, _| r.unmask(MSI), [o, o, o, o], &[]),
            (
                "a message has no level",
                |_, s| s[0].set_level(true),
                [o, o, o, i],
                &[SENT],
            ),
        ],
    );
    play(
        PIN,
        &[
            (
                "set, not masked",
                |r, _| r.set_pending(PIN),
                [o, o, o, o],
                &[UP, DOWN],
            ),
            ("hold", |_, s| s[0].set_level(true), [o, o, i, i], &[UP]),
            (
                "no edge of a line that is up",
                |r, _| r.set_pending(PIN),
                [o, o, i, i],
                &[],
            ),
            ("hold too", |_, s| s[1].set_level(true), [o, o, i, i], &[]),
            ("mask", |r, _| r.mask(PIN), [i, o, o, i], &[DOWN]),
            ("let go", |_, s| s[0].set_level(false), [i, o, o, i], &[]),
            ("unmask", |r, _| r.unmask(PIN), [o, o, i, i], &[UP]),
            ("the VMM", |r, _| r.set_level(PIN, true), [o, o, i, i], &[]),
            (
                "let go too",
                |_, s| s[1].set_level(false),
                [o, o, i, i],
                &[],
            ),
            (
                "all let go",
                |r, _| r.set_level(PIN, false),
                [o, o, o, o],
                &[DOWN],
            ),
            (
                "no route",
                |r, _| r.set_route(PIN, None).unwrap(),
                [o, o, o, o],
                &[],
            ),
            ("nowhere", |r, _| r.set_level(PIN, true), [o, o, o, i], &[]),
            (
                "a route",
                |r, _| r.set_route(PIN, Some(Route::Pin(PIN))).unwrap(),
                [o, o, i, i],
                &[UP],
            ),
        ],
    );
}

/// Two routers, the second of which is restored from the first. The events of the second one are others, with the
/// counts of the first one's.
struct Machine {
    router: Router,
    log: Arc<Log>,
    events: Vec<Arc<Event>>,
    irqfds: Vec<Irqfd>,
    sources: Vec<LevelSource>,
}

const EVENTS: [(u64, Mode); 4] = [
    (0, Mode::Counter),
    (0, Mode::Counter),
    (7, Mode::Counter),
    (5, Mode::Semaphore),
];
/// The number of the resample event.
const RESAMPLE: usize = 1;

fn name(events: &[Arc<Event>]) -> impl FnMut(&Event) -> u64 {
    |event| {
        let is = |other: &Arc<Event>| std::ptr::eq(&**other, event);
        1_000 + events.iter().position(is).expect("a known event") as u64
    }
}

fn find(events: &[Arc<Event>]) -> impl FnMut(u64) -> Option<EventHandle> {
    |id| {
        Some(
            events
                .get(usize::try_from(id.checked_sub(1_000)?).ok()?)?
                .into(),
        )
    }
}

impl Machine {
    fn new() -> Self {
        let (router, log) = router();
        router.set_routes(routes()).unwrap();
        Machine {
            router,
            log,
            events: EVENTS
                .map(|(count, mode)| Arc::new(Event::with_mode(count, mode)))
                .into(),
            irqfds: Vec::new(),
            sources: Vec::new(),
        }
    }

    fn assign(&mut self, event: usize, gsi: u32) {
        let irqfd = self.router.assign(&self.events[event], gsi).unwrap();
        self.irqfds.push(irqfd);
    }

    fn assign_with_resample(&mut self, event: usize, gsi: u32) {
        let (event, resample) = (&self.events[event], &self.events[RESAMPLE]);
        let irqfd = self.router.assign_with_resample(event, gsi, resample);
        self.irqfds.push(irqfd.unwrap());
    }

    fn hold(&mut self, gsi: u32) {
        let source = self.router.level_source(gsi);
        source.set_level(true);
        self.sources.push(source);
    }

    /// The machine that is restored from what this one has saved, and the state.
    fn migrate(self) -> (Machine, RouterState) {
        let state = self.router.save(name(&self.events));
        assert_eq!(state, self.router.save(name(&self.events)), "it stays");
        let events: Vec<_> = self.events.iter().map(|event| event.save()).collect();
        drop(self);

        #[cfg(target_os = "linux")]
        let state: RouterState = {
            let text = serde_json::to_string(&state).unwrap();
            let read = serde_json::from_str(&text).unwrap();
            assert_eq!(state, read, "{text}");
            read
        };
        let events = events
            .iter()
            .map(|event| Arc::new(Event::restore(event).unwrap()));
        let events: Vec<_> = events.collect();
        let (router, log) = router();
        let Restored {
            irqfds, sources, ..
        } = router.restore(&state, find(&events)).unwrap();
        let machine = Machine {
            router,
            log,
            events,
            irqfds,
            sources,
        };
        assert_eq!(machine.router.save(name(&machine.events)), state);
        assert_eq!(
            machine.router.routes(),
            Routes::from_entries(state.routes.clone()).unwrap()
        );
        (machine, state)
    }
}

/// Plays a table of cases: what is done before the save, the calls to the sink that the restore makes, and what is done
/// after, with its calls.
#[test]
fn each_is_restored() {
    type Case = (
        &'static str,
        fn(&mut Machine),
        Vec<Call>,
        Vec<(fn(&mut Machine), Vec<Call>)>,
    );
    let cases: Vec<Case> = vec![
        (
            "a pending message",
            |m| {
                m.assign(0, MSI);
                m.router.mask(MSI);
                m.events[0].signal();
            },
            vec![],
            vec![
                (
                    |m| assert!(m.router.is_masked(MSI) && m.router.is_pending(MSI)),
                    vec![],
                ),
                (|m| m.router.unmask(MSI), vec![SENT]),
                (|m| m.events[0].signal(), vec![SENT]),
                (|m| drop(m.irqfds.pop()), vec![]),
                (|m| m.events[0].signal(), vec![]),
                (|m| assert_eq!(m.events[0].count(), 1), vec![]),
            ],
        ),
        (
            "a pending message whose event is deassigned",
            |m| {
                m.assign(0, MSI);
                m.assign(1, MSI);
                m.router.mask(MSI);
                m.events[0].signal_n(3);
            },
            vec![],
            vec![
                (|m| drop(m.irqfds.remove(1)), vec![]),
                (|m| assert_eq!(m.events[1].count(), 0), vec![]),
                (|m| assert!(m.router.is_pending(MSI)), vec![]),
                (|m| drop(m.irqfds.pop()), vec![]),
                (|m| assert_eq!(m.events[0].count(), 1), vec![]),
                (|m| m.router.unmask(MSI), vec![]),
            ],
        ),
        (
            "a bit that no irqfd has set",
            |m| {
                m.router.mask(PIN);
                m.router.set_pending(PIN);
            },
            vec![],
            vec![(|m| m.router.unmask(PIN), vec![up(PIN, PIN), down(PIN, PIN)])],
        ),
        (
            "counts that have interrupted",
            |m| {
                m.assign(2, MSI);
                m.assign(3, PIN);
            },
            vec![],
            vec![
                (
                    |m| assert_eq!((m.events[2].count(), m.events[3].count()), (7, 5)),
                    vec![],
                ),
                // The count at the assignment goes with the irqfd; for a semaphore, one unit does.
                (|m| m.irqfds.clear(), vec![]),
                (
                    |m| assert_eq!((m.events[2].count(), m.events[3].count()), (0, 4)),
                    vec![],
                ),
            ],
        ),
        (
            "counts that a signal has taken",
            |m| {
                m.assign(2, MSI);
                m.events[2].signal();
                m.assign(3, PIN);
                m.events[3].signal();
            },
            vec![],
            vec![
                (|m| m.events[2].signal(), vec![SENT]),
                (|m| m.irqfds.clear(), vec![]),
                (
                    |m| assert_eq!((m.events[2].count(), m.events[3].count()), (0, 4)),
                    vec![],
                ),
            ],
        ),
        (
            "a level that two devices hold",
            |m| {
                m.hold(PIN);
                m.hold(PIN);
                m.hold(OTHER_PIN);
            },
            vec![up(PIN, PIN), up(OTHER_PIN, OTHER_PIN)],
            vec![
                (
                    |m| assert!(m.sources.iter().all(LevelSource::level)),
                    vec![],
                ),
                (
                    |m| {
                        assert!(
                            m.sources
                                .iter()
                                .map(LevelSource::gsi)
                                .eq([PIN, PIN, OTHER_PIN])
                        )
                    },
                    vec![],
                ),
                (|m| drop(m.sources.remove(0)), vec![]),
                (|m| m.sources[0].set_level(false), vec![down(PIN, PIN)]),
                (|m| m.sources.clear(), vec![down(OTHER_PIN, OTHER_PIN)]),
            ],
        ),
        (
            "a masked level of the VMM's",
            |m| {
                m.router.set_level(PIN, true);
                m.router.mask(PIN);
            },
            vec![],
            vec![
                (|m| m.router.unmask(PIN), vec![up(PIN, PIN)]),
                (|m| m.router.set_level(PIN, false), vec![down(PIN, PIN)]),
            ],
        ),
        (
            "an interrupt that the guest has not acked",
            |m| {
                m.assign_with_resample(0, PIN);
                m.events[0].signal();
            },
            vec![up(PIN, PIN)],
            vec![
                (|m| assert_eq!(m.events[RESAMPLE].count(), 0), vec![]),
                (|m| m.events[0].signal(), vec![]),
                (|m| m.router.ack(PIN), vec![down(PIN, PIN)]),
                (|m| assert_eq!(m.events[RESAMPLE].count(), 1), vec![]),
                (|m| m.events[0].signal(), vec![up(PIN, PIN)]),
            ],
        ),
        (
            "a masked interrupt that the guest has not acked",
            |m| {
                m.assign_with_resample(0, PIN);
                m.events[0].signal();
                m.router.mask(PIN);
            },
            vec![],
            vec![
                // As always, the device is asked first.
                (|m| m.router.unmask(PIN), vec![]),
                (|m| assert_eq!(m.events[RESAMPLE].count(), 1), vec![]),
            ],
        ),
        (
            "the message of a level",
            |m| {
                m.hold(MSI);
            },
            vec![],
            vec![
                (|m| m.sources[0].set_level(false), vec![]),
                (|m| m.sources[0].set_level(true), vec![SENT]),
            ],
        ),
        (
            "the message of a level, masked",
            |m| {
                m.hold(MSI);
                m.router.mask(MSI);
            },
            vec![],
            vec![(|m| m.router.unmask(MSI), vec![SENT])],
        ),
        (
            "a level without a route",
            |m| {
                m.router.set_route(PIN, None).unwrap();
                m.hold(PIN);
            },
            vec![],
            vec![(
                |m| m.router.set_route(PIN, Some(Route::Pin(PIN))).unwrap(),
                vec![up(PIN, PIN)],
            )],
        ),
        (
            "a level at another pin",
            |m| {
                m.hold(PIN);
                m.router.set_route(PIN, Some(Route::Pin(30))).unwrap();
            },
            vec![up(PIN, 30)],
            vec![(|m| m.sources.clear(), vec![down(PIN, 30)])],
        ),
    ];
    for (name, before, restored, after) in cases {
        let mut machine = Machine::new();
        before(&mut machine);
        let (mut machine, _) = machine.migrate();
        assert_eq!(machine.log.take(), restored, "{name}");
        for (number, (step, calls)) in after.into_iter().enumerate() {
            step(&mut machine);
            assert_eq!(machine.log.take(), calls, "{name}: step {number}");
        }
        // The machine migrates on to a third one.
        let (machine, _) = machine.migrate();
        drop(machine);
    }
}

/// A signal between the restore of the event and the restore of the router causes an interrupt.
#[test]
fn a_signal_between_the_two_restores() {
    for (event, mask) in [(0, false), (2, false), (3, false), (0, true)] {
        let mut machine = Machine::new();
        machine.assign(event, MSI);
        if mask {
            machine.router.mask(MSI);
        }
        let state = machine.router.save(name(&machine.events));
        let events: Vec<Arc<Event>> = machine
            .events
            .iter()
            .map(|event| Arc::new(Event::restore(&event.save()).unwrap()))
            .collect();
        events[event].signal();
        let (router, log) = router();
        let _restored = router.restore(&state, find(&events)).unwrap();
        if mask {
            assert_eq!((log.take(), router.is_pending(MSI)), (vec![], true));
            router.unmask(MSI);
        }
        assert_eq!(log.take(), [SENT], "{event}");
    }
}

/// States are plain data that a VMM can make, and their routes and messages are legible.
#[test]
fn plain_data() {
    assert_eq!(RouterState::default().version, VERSION);
    assert_eq!(
        Router::new(Log::default()).save(|_| 0),
        RouterState::default()
    );

    let mut state = RouterState::default();
    let message = MsiMessage::new(0x1_fee0_1000, 0x42);
    state.routes = vec![
        (3, Route::Pin(4)),
        (24, message.into()),
        (25, message.with_devid(0x10).into()),
    ];
    state.irqfds = vec![IrqfdState::new(24, 9, Some(10))];
    let mut line = LineState::new(24);
    line.masked = true;
    state.lines = vec![line];
    let events = [9, 10].map(|id| (id, Arc::new(Event::new(0))));
    let (router, log) = router();
    let found = |id| Some((&events.iter().find(|(other, _)| *other == id)?.1).into());
    let restored = router.restore(&state, found).unwrap();
    assert!(restored.irqfds[0].event().ptr_eq(&events[0].1));
    events[0].1.signal();
    assert_eq!(log.take(), []);
    assert_eq!(router.routes().get(25), Some(state.routes[2].1));

    #[cfg(target_os = "linux")]
    {
        let text = serde_json::to_string(&state.routes).unwrap();
        let plain = r#"{"Msi":{"address":8571064320,"data":66,"devid":null}}"#;
        let of_device = plain.replace("null", "16");
        assert_eq!(
            text,
            format!(r#"[[3,{{"Pin":4}}],[24,{plain}],[25,{of_device}]]"#)
        );
        assert_eq!(
            serde_json::from_str::<Vec<(u32, Route)>>(&text).unwrap(),
            state.routes
        );
        let no_device = plain.replace("null", "4294967295");
        serde_json::from_str::<Route>(&no_device).unwrap_err();
    }
}

/// States that cannot be restored; the router is unchanged then.
#[test]
fn refusals() {
    /// A sink that refuses what it is told to refuse.
    #[derive(Default)]
    struct Refuser {
        log: Log,
        routes: AtomicBool,
        irqfds: AtomicU32,
    }

    impl InterruptSink for Refuser {
        fn set_level(&self, gsi: u32, pin: u32, level: bool) {
            self.log.set_level(gsi, pin, level);
        }

        fn signal_msi(&self, gsi: u32, message: MsiMessage) {
            self.log.signal_msi(gsi, message);
        }

        fn set_routes(&self, _: &Routes, _: &[RouteChange]) -> io::Result<()> {
            match self.routes.load(Ordering::Relaxed) {
                true => Err(ErrorKind::Unsupported.into()),
                false => Ok(()),
            }
        }

        fn connect(&self, line: Eoi, _: bool) -> io::Result<()> {
            match line.gsi() == self.irqfds.load(Ordering::Relaxed) {
                true => Err(ErrorKind::Unsupported.into()),
                false => Ok(()),
            }
        }
    }

    let mut machine = Machine::new();
    machine.assign(0, MSI);
    machine.assign(2, PIN);
    machine.hold(PIN);
    machine.router.mask(MSI);
    machine.events[0].signal();
    let state = machine.router.save(name(&machine.events));

    type Check = fn(&RestoreError) -> bool;
    type Break = fn(&mut RouterState, &Refuser);
    let cases: [(Break, Check); 7] = [
        (
            |state, _| state.version = VERSION + 1,
            |error| matches!(error, RestoreError::Version(version) if version.0 == VERSION + 1),
        ),
        (
            |state, _| state.irqfds[0].event = 3,
            |error| matches!(error, RestoreError::Event(3)),
        ),
        (
            |state, _| state.irqfds[0].resample = Some(4),
            |error| matches!(error, RestoreError::Event(4)),
        ),
        (
            |state, _| state.routes[1].0 = 0,
            |error| {
                let RestoreError::Routes(RoutingError::Invalid(error)) = error else {
                    return false;
                };
                *error == RouteError::GsiTwice
            },
        ),
        (
            |_, sink| sink.routes.store(true, Ordering::Relaxed),
            |error| matches!(error, RestoreError::Routes(RoutingError::Refused(_))),
        ),
        (
            |_, sink| sink.irqfds.store(MSI, Ordering::Relaxed),
            |error| {
                let error = match error {
                    RestoreError::Irqfd { gsi: MSI, error } => error,
                    _ => return false,
                };
                matches!(error, AssignError::Refused(_))
            },
        ),
        (
            |state, _| state.irqfds[1].event = state.irqfds[0].event,
            |error| {
                let error = match error {
                    RestoreError::Irqfd { gsi: MSI, error } => error,
                    _ => return false,
                };
                matches!(error, AssignError::Busy)
            },
        ),
    ];
    for (number, (change, is)) in cases.into_iter().enumerate() {
        let events = EVENTS.map(|(count, mode)| Arc::new(Event::with_mode(count, mode)));
        let sink = Arc::new(Refuser::default());
        let router = Router::new(Arc::clone(&sink));
        let mut state = state.clone();
        change(&mut state, &sink);
        let error = router.restore(&state, find(&events)).unwrap_err();
        assert!(is(&error), "{number}: {error}");
        assert_ne!(error.to_string(), "");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let kind = io::Error::from(error).kind();
        let expected = match number {
            0 => (true, ErrorKind::InvalidInput),
            1 | 2 => (false, ErrorKind::InvalidInput),
            3 => (true, ErrorKind::InvalidInput),
            4 | 5 => (true, ErrorKind::Unsupported),
            _ => (true, ErrorKind::ResourceBusy),
        };
        assert_eq!((source.is_some(), kind), expected, "{number}");
        // Nothing of the state is left, and the router can be used.
        assert_eq!(router.save(|_| 0), RouterState::default(), "{number}");
        assert_eq!(sink.log.take(), [], "{number}");
        sink.routes.store(false, Ordering::Relaxed);
        router.set_routes(routes()).unwrap();
        for event in &events {
            let _irqfd = router.assign(event, OTHER_PIN).unwrap();
        }
    }

    // A router that is in use.
    let error = machine
        .router
        .restore(&state, find(&machine.events))
        .unwrap_err();
    assert!(matches!(error, RestoreError::InUse), "{error}");
    assert_eq!(io::Error::from(error).kind(), ErrorKind::ResourceBusy);
}
