//! A driver and a device that share a ring in memory, as a split virtqueue's do: the driver kicks through an eventfd if
//! the device asks for it, the device interrupts through another if the driver asks for it.

use super::event::Eventfd;
use super::interleave::median;
use super::{cpu_time, pin_to};
use doorbell::Spin;
use doorbell::poll::{Events, Poller, Probe, Watch};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use std::hint::{black_box, spin_loop};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Data that driver and device write to, on cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

#[derive(Default)]
struct Ring {
    available: Line<AtomicU32>,
    used: Line<AtomicU32>,
    no_kick: Line<AtomicBool>,
    no_interrupt: Line<AtomicBool>,
    /// The device's own index.
    taken: Line<AtomicU32>,
    /// Held by the device's thread that serves, if there are several.
    turn: Line<Mutex<()>>,
    stop: Line<AtomicBool>,
}

struct OfRing(Arc<Ring>);

impl Probe for OfRing {
    fn ready(&mut self) -> bool {
        self.0.available.0.load(Ordering::Acquire) != self.0.taken.0.load(Ordering::Relaxed)
    }

    fn begin(&mut self) {
        self.0.no_kick.0.store(true, Ordering::Relaxed);
    }

    fn end(&mut self) -> bool {
        self.0.no_kick.0.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.ready()
    }
}

/// How a device waits.
#[derive(Clone, Copy)]
enum Loop {
    /// In epoll, with notifications on all the time.
    Epoll,
    /// In epoll, after having looked for this many microseconds.
    Fixed(u64),
    /// The same, with the time that QEMU's rule finds (`adjust_polling_time` of its `util/aio-posix.c`).
    Qemu(u64),
    /// In a poller with a window of this many microseconds and a probe, beside this many idle sources.
    Poller(u64, usize),
    /// The same, on two threads.
    TwoThreads(u64),
}

/// A device's thread: the kick that wakes it, and how it waits.
struct Waiter {
    how: Loop,
    kick: OwnedFd,
    probe: OfRing,
    epoll: OwnedFd,
    poller: Arc<Poller>,
    events: Events,
    _idle: Vec<OwnedFd>,
    /// The window by QEMU's rule, in nanoseconds.
    window: u64,
}

impl Waiter {
    fn new(how: Loop, ring: &Arc<Ring>) -> Self {
        let kick = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &kick, EventData::new_u64(0), flags).unwrap();
        let (max, others) = match how {
            Loop::Poller(max, others) => (max, others),
            Loop::TwoThreads(max) => (max, 0),
            _ => (0, 0),
        };
        let max = Duration::from_micros(max);
        let poller = Arc::new(Poller::with_spin(Spin::Adaptive { max }));
        poller.add_fd(&kick, 0, Watch::READABLE.edge()).unwrap();
        poller.attach_probe(0, OfRing(Arc::clone(ring))).unwrap();
        let idle = (1..=others).map(|key| {
            let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            poller.add_fd(&fd, key, Watch::READABLE.edge()).unwrap();
            poller.attach_probe(key, OfRing(Arc::default())).unwrap();
            fd
        });
        let _idle = idle.collect();
        Waiter {
            how,
            kick,
            probe: OfRing(Arc::clone(ring)),
            epoll,
            poller,
            events: Events::with_capacity(16),
            _idle,
            window: 0,
        }
    }

    /// The waiters of all threads.
    fn of_all(self) -> Vec<Waiter> {
        let second = matches!(self.how, Loop::TwoThreads(_)).then(|| Waiter {
            how: self.how,
            kick: self.kick.try_clone().unwrap(),
            probe: OfRing(Arc::clone(&self.probe.0)),
            epoll: self.epoll.try_clone().unwrap(),
            poller: Arc::clone(&self.poller),
            events: Events::with_capacity(16),
            _idle: Vec::new(),
            window: 0,
        });
        [self].into_iter().chain(second).collect()
    }

    fn wait(&mut self) {
        match self.how {
            Loop::Epoll => self.sleep(),
            Loop::Fixed(us) => _ = self.look_and_sleep(1_000 * us),
            Loop::Qemu(us) => {
                let (window, max) = (self.window, 1_000 * us);
                let blocked = self.look_and_sleep(window);
                if blocked <= window {
                    // The window was long enough.
                } else if blocked > max {
                    self.window = 0;
                } else if window < max {
                    self.window = if window == 0 { 4_000 } else { 2 * window }.min(max);
                }
            }
            Loop::Poller(..) | Loop::TwoThreads(_) => {
                _ = self.poller.wait(&mut self.events, None).unwrap()
            }
        }
    }

    fn sleep(&mut self) {
        let mut found = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }];
        epoll::wait(&self.epoll, &mut found, None).unwrap();
    }

    /// Returns the nanoseconds that this has taken.
    fn look_and_sleep(&mut self, window: u64) -> u64 {
        let start = Instant::now();
        let since = || start.elapsed().as_nanos() as u64;
        self.probe.begin();
        while since() < window {
            if self.probe.ready() {
                return since();
            }
            spin_loop();
        }
        if !self.probe.end() {
            self.sleep();
        }
        since()
    }
}

/// How the driver behaves.
#[derive(Clone, Copy)]
struct Pace {
    name: &'static str,
    depth: u32,
    /// Whether the driver looks at the used ring instead of sleeping.
    polls: bool,
    /// The time between an answer and the next request.
    thinks: Duration,
    /// After how many rounds the driver sleeps, and for how long.
    pause: Option<(u32, Duration)>,
    /// How many drivers there are, whose devices share a CPU.
    devices: usize,
}

/// Requests a second, and the device's microseconds of CPU for each.
struct Sample {
    rate: f64,
    cpu: f64,
    p99: f64,
}

fn device(ring: &Ring, mut waiter: Waiter, call: &Eventfd) -> (u32, Duration) {
    let start = cpu_time();
    let (mut sector, disk) = ([0_u8; 4096], [7_u8; 4096]);
    let mut served = 0;
    while !ring.stop.0.load(Ordering::Relaxed) {
        let several = matches!(waiter.how, Loop::TwoThreads(_));
        let turn = several.then(|| ring.turn.0.lock().unwrap());
        let mut taken = ring.taken.0.load(Ordering::Relaxed);
        while taken != ring.available.0.load(Ordering::Acquire) {
            sector.copy_from_slice(black_box(&disk));
            black_box(&sector);
            served += 1;
            taken += 1;
            ring.taken.0.store(taken, Ordering::Relaxed);
            ring.used.0.store(taken, Ordering::Release);
            fence(Ordering::SeqCst);
            if !ring.no_interrupt.0.load(Ordering::Relaxed) {
                call.write(1);
            }
        }
        drop(turn);
        waiter.wait();
    }
    // This wakes the next thread.
    waiter.poller.notify();
    (served, cpu_time() - start)
}

/// Keeps as many requests under way as the pace says. Returns how long each round took, in microseconds.
fn driver(pace: Pace, ring: &Ring, kick: &OwnedFd, call: &Eventfd, time: Duration) -> Vec<f64> {
    let (start, mut rounds) = (Instant::now(), Vec::new());
    let (mut published, mut answered) = (0_u32, 0_u32);
    ring.no_interrupt.0.store(true, Ordering::Relaxed);
    while start.elapsed() < time {
        let round = Instant::now();
        while published - answered < pace.depth {
            published += 1;
            ring.available.0.store(published, Ordering::Release);
            fence(Ordering::SeqCst);
            if !ring.no_kick.0.load(Ordering::Relaxed) {
                rustix::io::write(kick, &1_u64.to_ne_bytes()).unwrap();
            }
        }
        loop {
            let used = ring.used.0.load(Ordering::Acquire);
            if used != answered {
                answered = used;
                break;
            }
            if pace.polls {
                spin_loop();
                continue;
            }
            ring.no_interrupt.0.store(false, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if ring.used.0.load(Ordering::Acquire) == answered {
                call.read();
            }
            ring.no_interrupt.0.store(true, Ordering::Relaxed);
        }
        rounds.push(round.elapsed().as_nanos() as f64 / 1e3);
        match pace.pause {
            Some((every, pause)) if rounds.len() as u32 % every == 0 => thread::sleep(pause),
            _ => {}
        }
        let thinking = Instant::now();
        while thinking.elapsed() < pace.thinks {
            spin_loop();
        }
    }
    rounds
}

fn run(pace: Pace, how: Loop, time: Duration) -> Sample {
    let mut pairs = Vec::new();
    for _ in 0..pace.devices {
        let (ring, call) = (Arc::new(Ring::default()), Arc::new(Eventfd::new()));
        let waiter = Waiter::new(how, &ring);
        let kick = waiter.kick.try_clone().unwrap();
        let device = waiter.of_all().into_iter().map(|waiter| {
            let (ring, call) = (Arc::clone(&ring), Arc::clone(&call));
            thread::spawn(move || {
                pin_to(&[1]);
                device(&ring, waiter, &call)
            })
        });
        let device: Vec<_> = device.collect();
        let driver = thread::spawn(move || {
            pin_to(&[0]);
            let rounds = driver(pace, &ring, &kick, &call, time);
            ring.stop.0.store(true, Ordering::Relaxed);
            ring.no_kick.0.store(false, Ordering::Relaxed);
            rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
            rounds
        });
        pairs.push((device, driver));
    }
    let (mut served, mut cpu, mut rounds) = (0, Duration::ZERO, Vec::new());
    for (device, driver) in pairs {
        rounds.extend(driver.join().unwrap());
        // A device that looks with notifications turned off sees that it is to stop, or is woken.
        for thread in device {
            let (by_this, cpu_of_this) = thread.join().unwrap();
            served += by_this;
            cpu += cpu_of_this;
        }
    }
    rounds.sort_by(f64::total_cmp);
    Sample {
        rate: f64::from(served) / time.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / f64::from(served.max(1)),
        p99: rounds[rounds.len() * 99 / 100],
    }
}

fn all_paces() -> Vec<Pace> {
    let steady = |name, us| Pace {
        name,
        depth: 1,
        polls: false,
        thinks: Duration::from_micros(us),
        pause: None,
        devices: 1,
    };
    let paused = |name, every, ms| Pace {
        pause: Some((every, Duration::from_millis(ms))),
        ..steady(name, 0)
    };
    vec![
        steady("one after the other", 0),
        steady("5 us between", 5),
        steady("15 us between", 15),
        steady("30 us between", 30),
        steady("100 us between", 100),
        steady("500 us between", 500),
        paused("bursts of 64, 2 ms between", 64, 2),
        paused("bursts of 4, 2 ms between", 4, 2),
        paused("idle: one in 5 ms", 1, 5),
        Pace {
            polls: true,
            ..steady("a driver that polls", 0)
        },
        Pace {
            depth: 32,
            ..steady("32 under way", 0)
        },
        Pace {
            depth: 32,
            polls: true,
            ..steady("32, a driver that polls", 0)
        },
        Pace {
            devices: 2,
            ..steady("two devices on one CPU", 0)
        },
    ]
}

/// Prints for each pace and loop the requests a second as a multiple of the first loop's, the device's CPU for a
/// request, and the time within which 99 in 100 rounds end. For paces whose names contain the word, and loops whose
/// names contain one of the words.
pub fn paces(turns: usize, each: Duration, word: &str, words: &[String]) {
    let mut loops = vec![
        ("epoll", Loop::Epoll),
        ("8 us", Loop::Fixed(8)),
        ("16 us", Loop::Fixed(16)),
        ("32 us", Loop::Fixed(32)),
        ("QEMU's rule, 32 us", Loop::Qemu(32)),
        ("doorbell, 32 us", Loop::Poller(32, 0)),
        ("doorbell, 1000 idle", Loop::Poller(32, 1000)),
        ("doorbell, 2 threads", Loop::TwoThreads(32)),
        ("doorbell, off", Loop::Poller(0, 0)),
    ];
    loops.retain(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(word)));
    let Some((first, _)) = loops.first() else {
        return println!("there are no such loops");
    };
    for pace in all_paces()
        .into_iter()
        .filter(|pace| pace.name.contains(word))
    {
        let mut samples: Vec<Vec<Sample>> = loops.iter().map(|_| Vec::new()).collect();
        let mut order: Vec<usize> = (0..loops.len()).collect();
        for _ in 0..turns {
            fastrand::shuffle(&mut order);
            for &i in &order {
                samples[i].push(run(pace, loops[i].1, each));
            }
        }
        let of = |i: usize, what: fn(&Sample) -> f64| -> Vec<f64> {
            samples[i].iter().map(what).collect()
        };
        println!(
            "\n{}: {:.0} requests a second with {first}",
            pace.name,
            median(&of(0, |s| s.rate))
        );
        for (i, (name, _)) in loops.iter().enumerate() {
            let rate = |s: &Sample| s.rate;
            let ratios: Vec<f64> = of(i, rate)
                .iter()
                .zip(of(0, rate))
                .map(|(one, first)| one / first)
                .collect();
            println!(
                "  {name:20} {:6.2} x  {:7.2} us of CPU  p99 {:7.1} us",
                median(&ratios),
                median(&of(i, |s| s.cpu)),
                median(&of(i, |s| s.p99)),
            );
        }
    }
}
