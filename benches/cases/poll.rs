//! Pollers: the same work done by a [`Poller`] over events, by epoll over eventfds, and by the wakers of `mio` and
//! `polling`.

use super::event::FETCH_ADD;
use super::{Case, Ratio, Run, alone, alone_with, two_with};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Spin};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |group: &str, who, run| {
        let group = group.to_owned();
        cases.push(Case { group, who, run });
    };

    // No thread has waited since the last signal.
    case(
        SIGNAL,
        DOORBELL,
        alone_with(
            || Ours::new(1, Watch::READABLE),
            |set| set.events[0].signal(),
        ),
    );
    let counter = AtomicU64::new(0);
    case(
        SIGNAL,
        FETCH_ADD,
        alone(move || counter.fetch_add(1, Ordering::SeqCst)),
    );
    case(
        SIGNAL,
        EVENTFD,
        alone_with(
            || Kernels::new(1, EventFlags::empty()),
            |set| write(&set.eventfds[0]),
        ),
    );
    case(
        SIGNAL,
        MIO,
        alone_with(Mio::new, |mio| {
            mio.waker.wake().expect("the poll can be woken")
        }),
    );
    case(
        SIGNAL,
        POLLING,
        alone_with(polling, |poller| {
            poller.notify().expect("the poller can be woken")
        }),
    );

    for number in NUMBERS {
        for (group, ours, kernels) in [
            (
                one_of(number, "edge"),
                Watch::READABLE.edge(),
                EventFlags::ET,
            ),
            (
                one_of(number, "level"),
                Watch::READABLE,
                EventFlags::empty(),
            ),
        ] {
            let last = number - 1;
            case(
                &group,
                DOORBELL,
                alone_with(
                    move || Ours::new(number, ours),
                    move |set| {
                        set.events[last].signal();
                        set.wait();
                        set.events[last].try_read()
                    },
                ),
            );
            case(
                &group,
                EPOLL,
                alone_with(
                    move || (Kernels::new(number, kernels), kernel_room()),
                    move |(set, room)| {
                        write(&set.eventfds[last]);
                        set.wait(room, None);
                        read(&set.eventfds[last])
                    },
                ),
            );
        }
    }

    for number in [64, 10_000] {
        let group = all_of(number);
        case(
            &group,
            DOORBELL,
            alone_with(
                move || Ours::new(number, Watch::READABLE.edge()),
                |set| {
                    set.events.iter().for_each(|event| event.signal());
                    let mut left = set.events.len();
                    while left > 0 {
                        left -= set.wait();
                    }
                    set.events.iter().for_each(|event| _ = event.try_read());
                },
            ),
        );
        case(
            &group,
            EPOLL,
            alone_with(
                move || (Kernels::new(number, EventFlags::ET), kernel_room()),
                |(set, room)| {
                    set.eventfds.iter().for_each(write);
                    let mut left = set.eventfds.len();
                    while left > 0 {
                        left -= set.wait(room, None);
                    }
                    set.eventfds.iter().for_each(|fd| _ = read(fd));
                },
            ),
        );
    }

    case(SLEEPING, DOORBELL, ping_pong_of_events(Spin::Never, false));
    case(
        SLEEPING,
        DOORBELL_FDS,
        ping_pong_of_events(Spin::Never, true),
    );
    case(SLEEPING, EPOLL, {
        let sets = Arc::new([(); 2].map(|()| Kernels::new(1, EventFlags::empty())));
        write(&sets[0].eventfds[0]);
        two_with(
            move |me| (me as usize, Arc::clone(&sets), kernel_room()),
            |(me, sets, room)| {
                let set = &sets[*me];
                set.wait(room, None);
                read(&set.eventfds[0]);
                write(&sets[1 - *me].eventfds[0]);
            },
        )
    });
    case(SLEEPING, POLLING, {
        let sets = Arc::new([polling(), polling()]);
        sets[0].notify().expect("the poll can be woken");
        two_with(
            move |me| (me as usize, Arc::clone(&sets), polling::Events::new()),
            |(me, sets, events)| {
                sets[*me].wait(events, None).expect("it waits");
                sets[1 - *me].notify().expect("the poller can be woken");
            },
        )
    });
    case(SPINNING, DOORBELL, ping_pong_of_events(Spin::Always, false));
    case(
        SPINNING,
        DOORBELL_DEFAULT,
        ping_pong_of_events(Spin::DEFAULT, false),
    );
    case(SPINNING, EPOLL, {
        let sets = Arc::new([(); 2].map(|()| Kernels::new(1, EventFlags::empty())));
        write(&sets[0].eventfds[0]);
        two_with(
            move |me| (me as usize, Arc::clone(&sets), kernel_room()),
            |(me, sets, room)| {
                let set = &sets[*me];
                let now = Timespec::default();
                while set.wait(room, Some(&now)) == 0 {}
                read(&set.eventfds[0]);
                write(&sets[1 - *me].eventfds[0]);
            },
        )
    });
    cases
}

/// The ratios to report, with their targets.
pub fn ratios() -> Vec<Ratio> {
    let mut ratios = vec![
        (SIGNAL.to_owned(), DOORBELL, FETCH_ADD, "<= 1.5"),
        (SIGNAL.to_owned(), EVENTFD, DOORBELL, ""),
        (SIGNAL.to_owned(), MIO, DOORBELL, ""),
        (SIGNAL.to_owned(), POLLING, DOORBELL, ""),
    ];
    for number in NUMBERS {
        ratios.push((one_of(number, "edge"), EPOLL, DOORBELL, ""));
        ratios.push((one_of(number, "level"), EPOLL, DOORBELL, ""));
    }
    ratios.extend([
        (all_of(64), EPOLL, DOORBELL, ""),
        (all_of(10_000), EPOLL, DOORBELL, ""),
        (SLEEPING.to_owned(), DOORBELL, EPOLL, "<= 1"),
        (SLEEPING.to_owned(), DOORBELL_FDS, EPOLL, "<= 1"),
        (SLEEPING.to_owned(), POLLING, DOORBELL, ""),
        (SPINNING.to_owned(), EPOLL, DOORBELL, ""),
    ]);
    ratios.into_iter().map(Ratio::from).collect()
}

/// How many events are registered.
const NUMBERS: [usize; 3] = [1, 64, 10_000];

/// How many a wait reports at most.
const ROOM: usize = 256;

pub const SIGNAL: &str = "poll: signal to a busy poller";
pub const SLEEPING: &str = "poll: ping-pong, sleeping";
pub const SPINNING: &str = "poll: ping-pong, awake";

pub fn one_of(number: usize, trigger: &str) -> String {
    format!("poll: signal + wait + read, {trigger}, 1 ready of {number}")
}

pub fn all_of(number: usize) -> String {
    format!("poll: signal + wait + read, all of {number}")
}

const DOORBELL: &str = "doorbell";
const DOORBELL_DEFAULT: &str = "doorbell, default spin policy";
const DOORBELL_FDS: &str = "doorbell, with a descriptor";
const EVENTFD: &str = "eventfd in an epoll";
const EPOLL: &str = "epoll";
const MIO: &str = "mio's waker";
const POLLING: &str = "polling's notify";

/// Events in a poller.
struct Ours {
    poller: Poller,
    events: Vec<Arc<Event>>,
    found: Events,
}

impl Ours {
    fn new(number: usize, watch: Watch) -> Self {
        let poller = Poller::with_spin(Spin::Never);
        let events: Vec<_> = (0..number).map(|_| Arc::new(Event::new(0))).collect();
        for (key, event) in events.iter().enumerate() {
            poller.add(event, key, watch).expect("the key is new");
        }
        Ours {
            poller,
            events,
            found: Events::with_capacity(ROOM),
        }
    }

    fn wait(&mut self) -> usize {
        self.poller.wait(&mut self.found, None).expect("it waits")
    }
}

/// Eventfds in an epoll.
struct Kernels {
    epoll: OwnedFd,
    eventfds: Vec<OwnedFd>,
}

impl Kernels {
    fn new(number: usize, flags: EventFlags) -> Self {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).expect("more descriptors");
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("an epoll");
        let eventfds: Vec<_> = (0..number)
            .map(|key| {
                let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
                let key = EventData::new_u64(key as u64);
                epoll::add(&epoll, &fd, key, flags | EventFlags::IN).expect("the eventfd is new");
                fd
            })
            .collect();
        Kernels { epoll, eventfds }
    }

    fn wait(&self, room: &mut [epoll::Event], timeout: Option<&Timespec>) -> usize {
        epoll::wait(&self.epoll, room, timeout).expect("it waits")
    }
}

fn kernel_room() -> Vec<epoll::Event> {
    let nothing = epoll::Event {
        flags: EventFlags::empty(),
        data: EventData::new_u64(0),
    };
    vec![nothing; ROOM]
}

fn write(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).expect("the eventfd has room");
}

fn read(fd: &OwnedFd) -> u64 {
    let mut value = [0; 8];
    rustix::io::read(fd, &mut value).expect("the eventfd has a count");
    u64::from_ne_bytes(value)
}

struct Mio {
    _poll: mio::Poll,
    waker: mio::Waker,
}

impl Mio {
    fn new() -> Self {
        let poll = mio::Poll::new().expect("an epoll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("an eventfd");
        Mio { _poll: poll, waker }
    }
}

fn polling() -> polling::Poller {
    polling::Poller::new().expect("an epoll")
}

/// Each of two threads waits for an event in a poller of its own, and signals the other's.
fn ping_pong_of_events(spin: Spin, with_fd: bool) -> Run {
    let sets = Arc::new([(); 2].map(|()| {
        let poller = Poller::with_spin(spin);
        let event = Arc::new(Event::new(0));
        poller
            .add(&event, 0, Watch::READABLE)
            .expect("the key is new");
        let fd = eventfd(0, EventfdFlags::empty()).expect("an eventfd");
        if with_fd {
            poller
                .add_fd(&fd, 1, Watch::READABLE)
                .expect("the key is new");
        }
        (poller, event, fd)
    }));
    sets[0].1.signal();
    two_with(
        move |me| (me as usize, Arc::clone(&sets), Events::with_capacity(ROOM)),
        |(me, sets, found)| {
            let (poller, event, _) = &sets[*me];
            poller.wait(found, Some(Duration::MAX)).expect("it waits");
            event.try_read();
            sets[1 - *me].1.signal();
        },
    )
}
