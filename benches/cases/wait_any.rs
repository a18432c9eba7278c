//! Waiting for one of several events: `wait_any`, and poll(2) and epoll over eventfds.

use super::{Case, Ratio, alone, two};
use doorbell::poll::wait_any;
use doorbell::{Event, Spin};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;

/// Up to 128 events are waited for in `futex_waitv(2)`, more in line.
pub const SIZES: [usize; 5] = [1, 8, 64, 128, 1_000];

const DOORBELL: &str = "doorbell";
const POLL: &str = "poll(2)";
const EPOLL: &str = "epoll";

pub fn ready(size: usize) -> String {
    format!("wait_any, the last of {size} is ready")
}

pub fn asleep(size: usize) -> String {
    format!("wait_any, ping-pong of two asleep on {size} each")
}

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |group: String, who, run| cases.push(Case { group, who, run });
    for size in SIZES {
        let events = events(size);
        events[size - 1].signal();
        case(
            ready(size),
            DOORBELL,
            alone(move || wait_any(&events, None).expect("no timeout").next()),
        );
        let fds = eventfds(size);
        write(&fds[size - 1]);
        case(ready(size), POLL, alone(move || wait_poll(&fds)));
        let set = Epoll::new(size);
        write(&set.fds[size - 1]);
        case(ready(size), EPOLL, alone(move || set.wait()));
    }
    for size in SIZES {
        let sets = [events(size), events(size)];
        sets[0][size - 1].signal();
        case(
            asleep(size),
            DOORBELL,
            two(move |me| {
                let me = me as usize;
                let found = wait_any(&sets[me], None).expect("no timeout").next();
                sets[me][found.expect("one")].try_read();
                sets[1 - me][size - 1].signal();
            }),
        );
        let sets = [eventfds(size), eventfds(size)];
        write(&sets[0][size - 1]);
        case(
            asleep(size),
            POLL,
            two(move |me| {
                let me = me as usize;
                read(&sets[me][wait_poll(&sets[me])]);
                write(&sets[1 - me][size - 1]);
            }),
        );
        let sets = [Epoll::new(size), Epoll::new(size)];
        write(&sets[0].fds[size - 1]);
        case(
            asleep(size),
            EPOLL,
            two(move |me| {
                let me = me as usize;
                read(&sets[me].fds[sets[me].wait()]);
                write(&sets[1 - me].fds[size - 1]);
            }),
        );
    }
    cases
}

/// The ratios to report, with their targets.
pub fn ratios() -> Vec<Ratio> {
    let groups = SIZES.map(ready).into_iter().chain(SIZES.map(asleep));
    groups
        .flat_map(|group| {
            [POLL, EPOLL].map(|over| Ratio::from((group.as_str(), over, DOORBELL, "")))
        })
        .collect()
}

fn events(size: usize) -> Vec<Event> {
    (0..size)
        .map(|_| Event::new(0).with_spin(Spin::Never))
        .collect()
}

fn eventfds(size: usize) -> Vec<OwnedFd> {
    (0..size)
        .map(|_| eventfd(0, EventfdFlags::empty()).expect("the kernel has eventfds"))
        .collect()
}

/// poll(2), as in a program that does not keep the list: it is made for each call, and searched afterwards.
fn wait_poll(fds: &[OwnedFd]) -> usize {
    let mut list: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    poll(&mut list, None).expect("poll(2) works");
    let ready = |fd: &PollFd| !fd.revents().is_empty();
    list.iter().position(ready).expect("no timeout")
}

/// epoll, as in a program that keeps the list in the kernel.
struct Epoll {
    epoll: OwnedFd,
    fds: Vec<OwnedFd>,
}

impl Epoll {
    fn new(size: usize) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("the kernel has epolls");
        let fds = eventfds(size);
        for (index, fd) in fds.iter().enumerate() {
            let index = EventData::new_u64(index as u64);
            epoll::add(&epoll, fd, index, EventFlags::IN).expect("the eventfd is new");
        }
        Epoll { epoll, fds }
    }

    fn wait(&self) -> usize {
        let mut found = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }];
        epoll::wait(&self.epoll, &mut found, None).expect("it waits");
        found[0].data.u64() as usize
    }
}

fn write(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).expect("the eventfd has room");
}

fn read(fd: &OwnedFd) {
    rustix::io::read(fd, &mut [0; 8]).expect("the eventfd has a count");
}
