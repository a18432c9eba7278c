//! Signallers: what they save, and what they cost a thread that sleeps. `use_membarrier` must have been called.

use super::event::Eventfd;
use super::ioeventfd::{self, RW_LOCK};
use super::peers::{self, Bell, for_each_peer};
use super::{Case, Ratio, Run, alone, pin, two_with};
use doorbell::event::{Batch, Signaller};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, Spin};
use rustix::event::epoll;
use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |group: &str, who, run| {
        let group = group.to_owned();
        cases.push(Case { group, who, run });
    };

    let counter = AtomicU64::new(0);
    case(
        SIGNAL,
        FETCH_ADD,
        alone(move || counter.fetch_add(1, Ordering::SeqCst)),
    );
    let signaller = signaller();
    case(SIGNAL, SIGNALLER, alone(move || signaller.signal()));
    let event = Event::new(0);
    case(SIGNAL, PLAIN, alone(move || event.signal()));
    for (who, run) in for_each_peer!(peers::ring) {
        case(SIGNAL, who, run);
    }

    let (signaller, event) = pair();
    case(
        TO_SPINNING,
        SIGNALLER,
        to_spinning(&event, move || signaller.signal()),
    );
    let event = Arc::new(Event::new(0));
    let signalled = Arc::clone(&event);
    case(
        TO_SPINNING,
        PLAIN,
        to_spinning(&event, move || signalled.signal()),
    );

    let (signaller, event) = pair();
    case(
        SIGNAL_READ,
        SIGNALLER,
        alone(move || {
            signaller.signal();
            event.read()
        }),
    );
    let event = Event::new(0);
    case(
        SIGNAL_READ,
        PLAIN,
        alone(move || {
            event.signal();
            event.read()
        }),
    );
    case(SIGNAL_READ, EVENTFD, peers::ring_and_wait(Eventfd::new));

    let (signaller, event) = pair();
    case(
        BURST_READ,
        SIGNALLER,
        alone(move || {
            (0..BURST).for_each(|_| signaller.signal());
            event.read()
        }),
    );
    let event = Event::new(0);
    case(
        BURST_READ,
        PLAIN,
        alone(move || {
            (0..BURST).for_each(|_| event.signal());
            event.read()
        }),
    );

    case(MANY_EVENTS, SIGNALLER, commits(Batch::with_signallers()));
    case(MANY_EVENTS, PLAIN, commits(Batch::new()));
    let fds: Vec<_> = (0..EVENTS).map(|_| Eventfd::new()).collect();
    case(
        MANY_EVENTS,
        EVENTFD,
        alone(move || fds.iter().for_each(|fd| fd.write(1))),
    );

    for (group, random) in [(HIT_REPEATED, false), (HIT_RANDOM, true)] {
        let whose = [SIGNALLER, PLAIN, RW_LOCK];
        for (who, run) in whose.into_iter().zip(ioeventfd::hits_of_64(random)) {
            case(group, who, run);
        }
        let counter = AtomicU64::new(0);
        case(
            group,
            FETCH_ADD,
            alone(move || counter.fetch_add(1, Ordering::SeqCst)),
        );
    }

    let (signaller, event) = pair();
    let poller = knowing_poller(&event);
    case(
        TO_POLLER,
        SIGNALLER,
        alone(move || {
            black_box(&poller);
            signaller.signal();
        }),
    );
    let event = Arc::new(Event::new(0));
    let poller = knowing_poller(&event);
    case(
        TO_POLLER,
        PLAIN,
        alone(move || {
            black_box(&poller);
            event.signal();
        }),
    );
    case(TO_POLLER, EPOLL, {
        let fd = Eventfd::new();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("the kernel has epolls");
        epoll::add(
            &epoll,
            fd.fd(),
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )
        .expect("the epoll has room");
        alone(move || {
            black_box(&epoll);
            fd.write(1);
        })
    });

    let (signaller, event) = pair();
    case(
        POLLER_ROUND,
        SIGNALLER,
        poller_round(&event, move || signaller.signal()),
    );
    let event = Arc::new(Event::new(0));
    let signalled = Arc::clone(&event);
    case(
        POLLER_ROUND,
        PLAIN,
        poller_round(&event, move || signalled.signal()),
    );

    case(PING_PONG, SIGNALLER, ping_pong(true));
    case(PING_PONG, PLAIN, ping_pong(false));
    case(PING_PONG, EVENTFD, peers::ping_pong(Eventfd::new));
    cases
}

/// The ratios to report, with their targets.
pub fn ratios() -> Vec<Ratio> {
    [
        (SIGNAL, SIGNALLER, FETCH_ADD, "<= 0.25"),
        (SIGNAL, peers::Parking::NAME, SIGNALLER, ">= 3.5"),
        (SIGNAL, peers::Semaphore::NAME, SIGNALLER, ">= 3.5"),
        (SIGNAL, peers::Notify::NAME, SIGNALLER, ">= 3.5"),
        (TO_SPINNING, PLAIN, SIGNALLER, ">= 8"),
        (SIGNAL_READ, EVENTFD, SIGNALLER, ">= 30"),
        (SIGNAL_READ, SIGNALLER, PLAIN, ""),
        (BURST_READ, PLAIN, SIGNALLER, ""),
        (MANY_EVENTS, EVENTFD, SIGNALLER, ">= 60"),
        (MANY_EVENTS, PLAIN, SIGNALLER, ""),
        (HIT_REPEATED, RW_LOCK, SIGNALLER, ">= 6"),
        (HIT_REPEATED, PLAIN, SIGNALLER, ""),
        (HIT_REPEATED, SIGNALLER, FETCH_ADD, "<= 0.7"),
        (HIT_RANDOM, RW_LOCK, SIGNALLER, ">= 4"),
        (HIT_RANDOM, PLAIN, SIGNALLER, ""),
        (TO_POLLER, EPOLL, SIGNALLER, ">= 60"),
        (POLLER_ROUND, SIGNALLER, PLAIN, ""),
        (PING_PONG, SIGNALLER, EVENTFD, "<= 1.35"),
        (PING_PONG, PLAIN, EVENTFD, "<= 1"),
    ]
    .map(Ratio::from)
    .into()
}

const BURST: usize = 16;
const EVENTS: usize = 64;

pub const SIGNAL: &str = "signaller: signal, nobody asleep";
pub const TO_SPINNING: &str = "signaller: signal, a consumer spinning";
pub const SIGNAL_READ: &str = "signaller: signal + read";
pub const BURST_READ: &str = "signaller: 16 signals + read";
pub const MANY_EVENTS: &str = "signaller: a signal of each of 64 events";
pub const HIT_REPEATED: &str = "signaller: a hit among 64 doorbells, repeated";
pub const HIT_RANDOM: &str = "signaller: a hit among 64 doorbells, random";
pub const TO_POLLER: &str = "signaller: signal to a busy poller";
pub const POLLER_ROUND: &str = "signaller: signal + wait + read, a poller";
pub const PING_PONG: &str = "signaller: ping-pong, parked";

pub const SIGNALLER: &str = "doorbell, by a signaller";
const PLAIN: &str = "doorbell";
const EVENTFD: &str = Eventfd::NAME;
const EPOLL: &str = "eventfd in an epoll";
const FETCH_ADD: &str = "fetch_add";

fn pair() -> (Signaller, Arc<Event>) {
    let event = Arc::new(Event::new(0));
    (Signaller::new(Arc::clone(&event)), event)
}

fn signaller() -> Signaller {
    pair().0
}

/// The time that the signalling thread takes, while another thread takes the count over and over.
fn to_spinning(event: &Arc<Event>, signal: impl Fn() + Send + 'static) -> Run {
    let event = Arc::clone(event);
    Box::new(move |times| {
        let (reading, done) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                pin(1);
                reading.store(true, Ordering::Release);
                while !done.load(Ordering::Relaxed) {
                    black_box(event.try_read());
                }
            });
            pin(0);
            while !reading.load(Ordering::Acquire) {
                spin_loop();
            }
            let start = Instant::now();
            (0..times).for_each(|_| signal());
            let time = start.elapsed();
            done.store(true, Ordering::Relaxed);
            time
        })
    })
}

fn commits(mut batch: Batch) -> Run {
    let indices: Vec<_> = (0..EVENTS)
        .map(|_| batch.add(Arc::new(Event::new(0))))
        .collect();
    alone(move || {
        for &index in black_box(&indices) {
            batch.signal(index);
        }
        batch.commit()
    })
}

/// A poller that has the event in its queue.
fn knowing_poller(event: &Arc<Event>) -> Poller {
    let poller = Poller::new();
    poller.add(event, 0, Watch::READABLE).expect("a new key");
    event.signal();
    poller
}

fn poller_round(event: &Arc<Event>, signal: impl Fn() + 'static) -> Run {
    let event = Arc::clone(event);
    let poller = Poller::new();
    poller.add(&event, 0, Watch::READABLE).expect("a new key");
    let mut found = Events::with_capacity(1);
    alone(move || {
        signal();
        poller.wait(&mut found, None).expect("the buffer has room");
        event.read()
    })
}

fn ping_pong(by_signallers: bool) -> Run {
    let events = [Event::new(1), Event::new(0)].map(|event| Arc::new(event.with_spin(Spin::Never)));
    let events = Arc::new(events);
    let state = move |me: u64| {
        let (own, other) = (me as usize, 1 - me as usize);
        let signaller = by_signallers.then(|| Signaller::new(Arc::clone(&events[other])));
        (
            Arc::clone(&events[own]),
            Arc::clone(&events[other]),
            signaller,
        )
    };
    two_with(state, |(own, other, signaller)| {
        own.read();
        match signaller {
            Some(signaller) => signaller.signal(),
            None => other.signal(),
        }
    })
}
