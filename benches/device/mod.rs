//! A real device that a real driver drives: the example `vhost-user-blk`, a disk in memory, by the `virtio-driver`
//! crate, and other back-ends beside it. They take turns.
//!
//! A crate that includes this module must have `backend`, `driver` and `watchdog` of `tests/` at its root.

use crate::backend::{Daemon, Place};
use crate::driver::{Client, Waits};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::fs;
use std::time::{Duration, Instant};

const DISK: u64 = 64 << 20;
const RAM: &str = "--ram=64M";

/// How many samples are taken, and for how long.
pub struct Effort {
    pub turns: usize,
    pub each: Duration,
}

/// The load that the driver makes.
#[derive(Clone, Copy)]
pub struct Load {
    pub depth: usize,
    pub waits: Waits,
}

impl Load {
    pub fn name(self) -> String {
        let requests = match self.depth {
            1 => "one request".into(),
            depth => format!("{depth} requests"),
        };
        let waits = match self.waits {
            Waits::Blocking => "sleeps",
            Waits::Polling => "polls",
        };
        format!("{requests}, a driver that {waits}")
    }
}

/// All depths, and both ways to wait.
pub fn loads(depths: &[usize]) -> Vec<Load> {
    let both = [Waits::Blocking, Waits::Polling];
    let loads = depths
        .iter()
        .flat_map(|&depth| both.map(|waits| Load { depth, waits }));
    loads.collect()
}

/// The sample of one turn.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Requests per second.
    pub rate: f64,
    /// Latencies in microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Microseconds of the back-end's CPU per request.
    pub cpu: f64,
    /// Kicks per request.
    pub kicks: f64,
    pub interrupts: f64,
}

/// A back-end, and the driver that is connected to it.
pub struct Backend {
    pub name: &'static str,
    daemon: Daemon,
    client: Client,
    // This comes after the daemon, whose socket is in it.
    _place: Place,
}

/// The name of the back-end that all are compared with.
pub const BASELINE: &str = "epoll, asks after all";

/// The example's loops and rules for interrupts, and its options.
const OURS: [(&str, &[&str]); 9] = [
    (BASELINE, &["--loop=epoll", "--interrupts=after-all"]),
    (
        "epoll, asks after each",
        &["--loop=epoll", "--interrupts=after-each"],
    ),
    ("epoll, doorbell's rule", &["--loop=epoll"]),
    (
        "epoll, QEMU's polling",
        &["--loop=qemu", "--interrupts=after-all"],
    ),
    ("vhost-user-backend", &["--loop=vhost-user-backend"]),
    ("doorbell, no polling", &["--poll-max-us=0"]),
    ("doorbell, asks after all", &["--interrupts=after-all"]),
    ("doorbell, asks after each", &["--interrupts=after-each"]),
    ("doorbell", &[]),
];

/// The maximum number of back-ends.
#[allow(dead_code, reason = "for the report")]
pub const MOST_BACKENDS: usize = OURS.len() + QEMU.len();

/// QEMU's back-ends, and for how many nanoseconds at most they poll.
const QEMU: [(&str, u32); 2] = [
    ("qemu-storage-daemon", 0),
    ("qemu-storage-daemon, polling", 32_768),
];

/// All back-ends that there are, and the names of the others.
pub fn backends(pinned: bool) -> (Vec<Backend>, Vec<&'static str>) {
    let ours = OURS.map(|(name, options)| {
        let place = Place::new();
        let all: Vec<_> = [RAM].iter().chain(options).copied().collect();
        let daemon = Daemon::ours(&place, &all);
        (name, place, Some(daemon))
    });
    let qemu = QEMU.map(|(name, poll_max_ns)| {
        let place = Place::new();
        let daemon = Daemon::qemu_polls(&place, DISK, poll_max_ns);
        (name, place, daemon)
    });
    let (mut backends, mut missing) = (Vec::new(), Vec::new());
    for (name, place, daemon) in ours.into_iter().chain(qemu) {
        let Some(daemon) = daemon else {
            missing.push(name);
            continue;
        };
        let client = Client::connect(daemon.socket(), 1).expect("it listens");
        if pinned {
            pin_all(daemon.id(), 1);
        }
        backends.push(Backend {
            name,
            daemon,
            client,
            _place: place,
        });
    }
    (backends, missing)
}

/// The samples of each back-end. Each is passed to `told`.
pub fn take_turns(
    backends: &mut [Backend],
    load: Load,
    effort: &Effort,
    mut told: impl FnMut(),
) -> Vec<Vec<Sample>> {
    let mut samples: Vec<Vec<Sample>> = backends.iter().map(|_| Vec::new()).collect();
    let mut order: Vec<usize> = (0..backends.len()).collect();
    for _ in 0..effort.turns {
        fastrand::shuffle(&mut order);
        for &i in &order {
            samples[i].push(backends[i].sample(load, effort.each));
            told();
        }
    }
    samples
}

impl Backend {
    fn sample(&mut self, load: Load, each: Duration) -> Sample {
        let process = self.daemon.id();
        let lane = &mut self.client.lanes[0];
        let before = (cpu_of(process), lane.kicks, lane.interrupts);
        let start = Instant::now();
        let mut took = lane.load(DISK / 4096, load.depth, load.waits, each);
        let time = start.elapsed();
        let cpu = cpu_of(process) - before.0;
        let requests = took.len() as f64;
        took.sort_unstable();
        let quantile = |q: usize| f64::from(took[(took.len() - 1) * q / 100]) / 1e3;
        Sample {
            rate: requests / time.as_secs_f64(),
            p50: quantile(50),
            p99: quantile(99),
            cpu: cpu * 1e6 / requests,
            kicks: (lane.kicks - before.1) as f64 / requests,
            interrupts: (lane.interrupts - before.2) as f64 / requests,
        }
    }
}

/// Puts this thread on a CPU of its own.
pub fn pin_driver() {
    pin(None, 0);
}

fn pin(thread: Option<u32>, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let thread = thread.and_then(|id| rustix::process::Pid::from_raw(id as i32));
    // On a machine without these CPUs, the thread is not pinned.
    let _ = sched_setaffinity(thread, &set);
}

fn pin_all(process: u32, cpu: usize) {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    for task in tasks {
        let name = task.expect("a thread").file_name();
        pin(name.to_str().and_then(|id| id.parse().ok()), cpu);
    }
}

/// Seconds that the threads of a process have run, up to the last tick of those that are running.
fn cpu_of(process: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let of_task = |task: std::io::Result<fs::DirEntry>| {
        let path = task.ok()?.path().join("schedstat");
        let text = fs::read_to_string(path).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    tasks.filter_map(of_task).sum::<f64>() / 1e9
}
