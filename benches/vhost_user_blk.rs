//! A real device that a real driver drives: the example `vhost-user-blk`, a disk in memory, by the `virtio-driver`
//! crate. Its device loop is doorbell's poller, with polling and without, or epoll; and `qemu-storage-daemon`, if it is
//! there.
//!
//! `cargo bench --bench vhost_user_blk`. The back-ends take turns, and driver and back-end have a CPU each.

#[cfg(target_os = "linux")]
#[path = "../tests/vhost_user_blk/backend.rs"]
#[allow(dead_code)]
mod backend;
#[cfg(target_os = "linux")]
mod cases;
#[cfg(target_os = "linux")]
#[path = "../tests/vhost_user_blk/driver.rs"]
#[allow(dead_code)]
mod driver;
#[cfg(target_os = "linux")]
#[path = "../tests/common/watchdog.rs"]
#[allow(dead_code)]
mod watchdog;

#[cfg(target_os = "linux")]
fn main() {
    // `cargo test --benches` asks only whether it runs.
    let measure = std::env::args().any(|argument| argument == "--bench");
    linux::run(measure);
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: vhost-user is for Linux");
}

#[cfg(target_os = "linux")]
mod linux {
    use super::backend::{Daemon, Place};
    use super::cases::turns::median;
    use super::driver::{Client, Waits};
    use rustix::thread::{CpuSet, sched_setaffinity};
    use std::fs;
    use std::time::Duration;

    const DISK: u64 = 64 << 20;

    struct Sample {
        rate: f64,
        p50: f64,
        p99: f64,
        /// Microseconds of the back-end's CPU for a request.
        cpu: f64,
    }

    pub fn run(measure: bool) {
        let (turns, each) = if measure { (9, 200) } else { (1, 1) };
        let each = Duration::from_millis(each);
        pin(None, 0);
        let place = [(); 4].map(|()| Place::new());
        let disk = place[3].disk(DISK);
        let ours = |place, options: &[&str]| {
            let mut all = vec!["--ram", "64M"];
            all.extend(options);
            Some(Daemon::ours(place, &all))
        };
        let backends = [
            ("epoll", ours(&place[0], &["--loop", "epoll"])),
            (
                "doorbell, no polling",
                ours(&place[1], &["--poll-max-us", "0"]),
            ),
            ("doorbell, 32 us", ours(&place[2], &["--poll-max-us", "32"])),
            ("qemu-storage-daemon", Daemon::qemu(&place[3], &disk, 1)),
        ];
        let mut backends: Vec<_> = backends
            .into_iter()
            .filter_map(|(name, daemon)| {
                let daemon = daemon?;
                let client = Client::connect(daemon.socket(), 1).expect("it listens");
                pin_all(daemon.id(), 1);
                Some((name, daemon, client))
            })
            .collect();
        for (name, depth, waits) in [
            ("one request, a driver that blocks", 1, Waits::Blocking),
            ("one request, a driver that polls", 1, Waits::Polling),
            ("32 requests, a driver that blocks", 32, Waits::Blocking),
            ("32 requests, a driver that polls", 32, Waits::Polling),
        ] {
            let mut samples: Vec<Vec<Sample>> = backends.iter().map(|_| Vec::new()).collect();
            let mut order: Vec<usize> = (0..backends.len()).collect();
            for _ in 0..turns {
                fastrand::shuffle(&mut order);
                for &i in &order {
                    let (_, daemon, client) = &mut backends[i];
                    let before = cpu_of(daemon.id());
                    let lane = &mut client.lanes[0];
                    let mut took = lane.load(DISK / 4096, depth, waits, each);
                    let cpu = cpu_of(daemon.id()) - before;
                    took.sort_unstable();
                    let quantile = |q: usize| f64::from(took[(took.len() - 1) * q / 100]) / 1e3;
                    samples[i].push(Sample {
                        rate: took.len() as f64 / each.as_secs_f64(),
                        p50: quantile(50),
                        p99: quantile(99),
                        cpu: cpu * 1e6 / took.len() as f64,
                    });
                }
            }
            print(
                name,
                &backends.iter().map(|backend| backend.0).collect::<Vec<_>>(),
                &samples,
            );
        }
        for (name, daemon, client) in backends {
            drop(client);
            if name != "qemu-storage-daemon" {
                println!("{name}: {:?}", daemon.end().stats.all);
            }
        }
    }

    fn print(name: &str, names: &[&str], samples: &[Vec<Sample>]) {
        let of =
            |i: usize, what: fn(&Sample) -> f64| samples[i].iter().map(what).collect::<Vec<f64>>();
        println!(
            "\n{name}: {:.0} a second with epoll",
            median(&of(0, |s| s.rate))
        );
        for (i, name) in names.iter().enumerate() {
            let rates = of(i, |s| s.rate).into_iter().zip(of(0, |s| s.rate));
            println!(
                "  {name:21} {:6.2} x  p50 {:7.1} us  p99 {:7.1} us  {:6.2} us of CPU",
                median(&rates.map(|(one, epoll)| one / epoll).collect::<Vec<_>>()),
                median(&of(i, |s| s.p50)),
                median(&of(i, |s| s.p99)),
                median(&of(i, |s| s.cpu)),
            );
        }
    }

    fn pin(thread: Option<u32>, cpu: usize) {
        let mut set = CpuSet::new();
        set.set(cpu);
        let thread = thread.and_then(|id| rustix::process::Pid::from_raw(id as i32));
        // A machine without these CPUs measures what it can.
        let _ = sched_setaffinity(thread, &set);
    }

    fn pin_all(process: u32, cpu: usize) {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
        for task in tasks {
            let name = task.expect("a thread").file_name();
            pin(name.to_str().and_then(|id| id.parse().ok()), cpu);
        }
    }

    /// Seconds that its threads have run, to the nanosecond.
    fn cpu_of(process: u32) -> f64 {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
        let of_task = |task: std::io::Result<fs::DirEntry>| {
            let path = task.ok()?.path().join("schedstat");
            let text = fs::read_to_string(path).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        };
        tasks.filter_map(of_task).sum::<f64>() / 1e9
    }
}
