//! Several threads in `wait`, many sources, and a hot set that goes up and down.

use crate::common::watchdog::Watchdog;
use crate::probes::{OfRing, Ring};
use doorbell::poll::{Events, PollStats, Poller, Watch};
use doorbell::{Event, Spin};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How the driver of a source kicks.
enum Kick {
    Event(Arc<Event>),
    /// By an eventfd that is watched itself.
    Descriptor(OwnedFd),
    /// By an eventfd that is bound to an event.
    Bound(OwnedFd, Arc<Event>),
    /// By notifying the poller: there is nothing but the probe.
    Notify,
}

struct Source {
    key: usize,
    ring: Arc<Ring>,
    kick: Kick,
}

impl Source {
    fn new(key: usize) -> Self {
        let (event, fd) = (
            Arc::new(Event::new(0)),
            eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
        );
        let kick = match key % 4 {
            0 => Kick::Notify,
            1 => Kick::Bound(fd, event),
            2 => Kick::Descriptor(fd),
            _ => Kick::Event(event),
        };
        Source {
            key,
            ring: Arc::default(),
            kick,
        }
    }

    fn register(&self, poller: &Poller) {
        let (key, edges) = (self.key, Watch::READABLE.edge());
        match &self.kick {
            Kick::Event(event) => poller.add(event, key, edges).unwrap(),
            Kick::Descriptor(fd) => poller.add_fd(fd, key, edges).unwrap(),
            Kick::Bound(fd, event) => poller.add_bound(fd, event, key, edges).unwrap(),
            Kick::Notify => return poller.add_probe(key, self.probe()).unwrap(),
        }
        poller.attach_probe(key, self.probe()).unwrap();
    }

    fn probe(&self) -> OfRing {
        OfRing(Arc::clone(&self.ring))
    }

    fn kick(&self, poller: &Poller) {
        match &self.kick {
            Kick::Event(event) => event.signal(),
            Kick::Descriptor(fd) | Kick::Bound(fd, _) => {
                rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
            }
            Kick::Notify => poller.notify(),
        }
    }
}

/// Every request of every source is served exactly once. `spin` is the poller's policy before it sleeps. Of several
/// threads, one may be away until others have served what comes meanwhile. If a source is `moving`, it is deleted and
/// added again, which wakes threads.
fn stress(threads: usize, spin: Spin, moving: bool) -> PollStats {
    const SOURCES: usize = 8;
    const REQUESTS: u64 = 8_000;
    let poller = Arc::new(Poller::with_spin(spin));
    let sources: Arc<[Source]> = (0..SOURCES).map(Source::new).collect();
    for source in &*sources {
        source.register(&poller);
    }
    let _watchdog = {
        let (poller, sources) = (Arc::clone(&poller), Arc::clone(&sources));
        Watchdog::new(Duration::from_secs(100), move || {
            let taken: Vec<u64> = sources.iter().map(|source| source.ring.taken()).collect();
            format!("{threads} threads, {spin:?}: {taken:?} of {REQUESTS}, {poller:?}")
        })
    };
    let (served, all_published) = (AtomicU64::new(0), AtomicBool::new(false));
    let away = AtomicBool::new(false);
    let is_done = || {
        let all = |source: &Source| source.ring.taken() == REQUESTS;
        sources.iter().all(all) && all_published.load(Ordering::Relaxed)
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // There is little room, so that a thread leaves some of what it finds to another.
                let mut events = Events::with_capacity(3);
                let mut random = fastrand::Rng::with_seed(7);
                while !is_done() {
                    poller.wait(&mut events, None).unwrap();
                    for report in &events {
                        let number = sources[report.key()].ring.take_all();
                        served.fetch_add(number, Ordering::Relaxed);
                    }
                    let may_leave = threads > 1 && random.u8(..16) == 0;
                    if may_leave && !away.swap(true, Ordering::Relaxed) {
                        let before = served.load(Ordering::Relaxed);
                        while served.load(Ordering::Relaxed) == before && !is_done() {
                            thread::yield_now();
                        }
                        away.store(false, Ordering::Relaxed);
                    }
                }
                poller.notify();
            });
        }
        let drivers = [0, 1].map(|half: usize| {
            let (poller, sources) = (&poller, &sources);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(half as u64 + 1);
                let own = &sources[half * SOURCES / 2..(half + 1) * SOURCES / 2];
                let mut left = [REQUESTS; SOURCES / 2];
                while left != [0; SOURCES / 2] {
                    // A few sources are busy for a while; the others get cold.
                    let busy = [(); 2].map(|()| random.usize(..own.len()));
                    for _ in 0..random.u64(1..64) {
                        let index = busy[random.usize(..busy.len())];
                        if left[index] != 0 {
                            left[index] -= 1;
                            if own[index].ring.publish() {
                                own[index].kick(poller);
                            }
                        }
                    }
                    match random.u8(..8) {
                        0 => thread::sleep(Duration::from_micros(300)),
                        1 => {}
                        _ => {
                            let idle = || own.iter().all(|source| source.ring.is_empty());
                            while !idle() {
                                thread::yield_now();
                            }
                        }
                    }
                }
            })
        });
        while !drivers.iter().all(thread::ScopedJoinHandle::is_finished) {
            if moving {
                // The requests that the source has by then are found.
                poller.delete(sources[3].key).unwrap();
                sources[3].register(&poller);
            }
            thread::sleep(Duration::from_micros(500));
        }
        all_published.store(true, Ordering::Relaxed);
        poller.notify();
    });
    assert_eq!(served.into_inner(), REQUESTS * SOURCES as u64);
    let begins: u64 = sources.iter().map(|source| source.ring.begins()).sum();
    assert!(begins > SOURCES as u64, "{begins}");
    poller.stats()
}

#[test]
fn nothing_is_lost_while_sources_get_hot_and_cold() {
    let max = Duration::from_micros(200);
    for threads in [1, 2, 3] {
        for spin in [Spin::Never, Spin::Adaptive { max }] {
            for moving in [false, true] {
                let stats = stress(threads, spin, moving);
                assert!(stats.sleeps > 1, "{stats:?}");
            }
        }
    }
}
