//! The event: the same work done by an [`Event`], by the kernel's eventfd, by its peers in other crates and by bare
//! atomics.

use super::peers::{self, for_each_asked, for_each_peer};
use super::{Case, Ratio, Run, alone, two};
use doorbell::{Event, Spin};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering};

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
    let event = Event::new(0);
    case(SIGNAL, DOORBELL, alone(move || event.signal()));
    case(SIGNAL, EVENTFD, peers::ring(Eventfd::new));
    for (who, run) in for_each_peer!(peers::ring) {
        case(SIGNAL, who, run);
    }

    let event = Event::new(0);
    case(
        WRITE,
        DOORBELL,
        alone(move || event.write(black_box(1)).expect("the counter has room")),
    );
    let fd = Eventfd::new();
    case(WRITE, EVENTFD, alone(move || fd.write(black_box(1))));

    // A semaphore with many units, so that each read finds one.
    let event = Event::semaphore(u64::MAX / 2);
    case(READ, DOORBELL, alone(move || event.read()));
    let fd = Eventfd::with(EventfdFlags::SEMAPHORE);
    fd.write(u64::MAX / 2);
    case(READ, EVENTFD, alone(move || fd.read()));

    let event = Event::new(0);
    case(
        WRITE_READ,
        DOORBELL,
        alone(move || {
            event.write(black_box(1)).expect("the counter has room");
            event.read()
        }),
    );
    let counter = AtomicU64::new(0);
    case(
        WRITE_READ,
        TWO_LOCKED,
        alone(move || {
            counter.fetch_add(black_box(1), Ordering::SeqCst);
            counter.swap(0, Ordering::SeqCst)
        }),
    );
    let fd = Eventfd::new();
    case(
        WRITE_READ,
        EVENTFD,
        alone(move || {
            fd.write(black_box(1));
            fd.read()
        }),
    );

    let event = Event::new(0);
    case(
        SIGNAL_READ,
        DOORBELL,
        alone(move || {
            event.signal();
            event.read()
        }),
    );
    case(SIGNAL_READ, EVENTFD, peers::ring_and_wait(Eventfd::new));
    for (who, run) in for_each_peer!(peers::ring_and_wait) {
        case(SIGNAL_READ, who, run);
    }

    case(PRODUCERS, FETCH_ADD, {
        let counter = AtomicU64::new(0);
        two(move |_| counter.fetch_add(1, Ordering::SeqCst))
    });
    case(PRODUCERS, DOORBELL, {
        let event = Event::new(0);
        two(move |_| event.signal())
    });
    case(PRODUCERS, EVENTFD, peers::ring_by_two(Eventfd::new));
    for (who, run) in for_each_peer!(peers::ring_by_two) {
        case(PRODUCERS, who, run);
    }

    case(PING_PONG_SPINNING, RAW_SPIN, {
        // The number of the thread whose turn it is: the minimum that two threads need.
        let turn = AtomicU64::new(0);
        two(move |me| {
            while turn.load(Ordering::Acquire) != me {}
            turn.store(1 - me, Ordering::Release);
        })
    });
    case(PING_PONG_SPINNING, RAW_SPIN_PAUSE, {
        let turn = AtomicU64::new(0);
        two(move |me| {
            while turn.load(Ordering::Acquire) != me {
                spin_loop();
            }
            turn.store(1 - me, Ordering::Release);
        })
    });
    case(PING_PONG_SPINNING, DOORBELL, ping_pong(Spin::Always));
    for (who, run) in for_each_asked!(peers::ping_pong, Spinning) {
        case(PING_PONG_SPINNING, who, run);
    }

    case(PING_PONG_ADAPTIVE, DOORBELL, ping_pong(Spin::DEFAULT));
    for (who, run) in for_each_asked!(peers::ping_pong, SpinThenSleep) {
        case(PING_PONG_ADAPTIVE, who, run);
    }

    case(PING_PONG_PARKED, DOORBELL, ping_pong(Spin::Never));
    case(PING_PONG_PARKED, EVENTFD, peers::ping_pong(Eventfd::new));
    for (who, run) in for_each_peer!(peers::ping_pong) {
        case(PING_PONG_PARKED, who, run);
    }
    cases
}

/// The ratios to report, with their targets.
pub fn ratios() -> Vec<Ratio> {
    [
        (SIGNAL, DOORBELL, FETCH_ADD, "<= 1.3"),
        (SIGNAL, EVENTFD, DOORBELL, ""),
        (WRITE_READ, DOORBELL, TWO_LOCKED, "<= 1.3"),
        (WRITE_READ, EVENTFD, DOORBELL, ""),
        (PRODUCERS, DOORBELL, FETCH_ADD, "<= 1"),
        (PING_PONG_SPINNING, DOORBELL, RAW_SPIN, "<= 2.5"),
        (PING_PONG_PARKED, DOORBELL, EVENTFD, "<= 1"),
    ]
    .map(Ratio::from)
    .into()
}

pub const SIGNAL: &str = "signal, nobody asleep";
pub const WRITE: &str = "write";
pub const READ: &str = "read";
pub const WRITE_READ: &str = "write + read";
pub const SIGNAL_READ: &str = "signal + read";
pub const PRODUCERS: &str = "two producers at once";
pub const PING_PONG_SPINNING: &str = "ping-pong, spinning";
pub const PING_PONG_ADAPTIVE: &str = "ping-pong, spinning up to 20 µs";
pub const PING_PONG_PARKED: &str = "ping-pong, parked";

const DOORBELL: &str = "doorbell";
const EVENTFD: &str = <Eventfd as peers::Bell>::NAME;
pub const FETCH_ADD: &str = "fetch_add";
const TWO_LOCKED: &str = "fetch_add + swap";
const RAW_SPIN: &str = "raw spin";
const RAW_SPIN_PAUSE: &str = "raw spin with PAUSE";

fn ping_pong(spin: Spin) -> Run {
    let events = [Event::new(1), Event::new(0)].map(|event| event.with_spin(spin));
    two(move |me| {
        let me = me as usize;
        events[me].read();
        events[1 - me].signal();
    })
}

pub struct Eventfd(OwnedFd);

impl Eventfd {
    pub fn new() -> Self {
        Self::with(EventfdFlags::empty())
    }

    fn with(flags: EventfdFlags) -> Self {
        Eventfd(eventfd(0, flags).expect("the kernel has eventfds"))
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    pub fn write(&self, n: u64) {
        rustix::io::write(&self.0, &n.to_ne_bytes()).expect("the eventfd has room");
    }

    pub fn read(&self) -> u64 {
        let mut value = [0; 8];
        rustix::io::read(&self.0, &mut value).expect("a read that blocks succeeds");
        u64::from_ne_bytes(value)
    }
}
