//! A real device that a real driver drives, with the loops and rules for interrupts of the example `vhost-user-blk`,
//! and other back-ends.
//!
//! `cargo bench --bench vhost_user_blk [WORD]`: the back-ends whose names contain the word. First driver and back-end
//! have a CPU each, then the kernel places them.

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "../tests/examples/vhost_user_blk/backend.rs"]
#[allow(dead_code)]
mod backend;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod cases;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod device;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "../tests/examples/vhost_user_blk/driver.rs"]
#[allow(dead_code)]
mod driver;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "../tests/common/watchdog.rs"]
#[allow(dead_code)]
mod watchdog;

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
fn main() {
    // `cargo test --benches` only checks that it runs.
    let measure = std::env::args().any(|argument| argument == "--bench");
    let word = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"));
    linux::run(measure, &word.unwrap_or_default());
}

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
fn main() {
    println!(
        "skipped: the crates of vhost-user and its driver are for 64-bit Linux with the GNU C library"
    );
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod linux {
    use super::cases::interleave::{median, ratios};
    use super::device::{self, Backend, Effort, Sample};
    use std::thread;
    use std::time::Duration;

    pub fn run(measure: bool, word: &str) {
        let effort = if measure { (9, 200) } else { (1, 1) };
        let effort = Effort {
            turns: effort.0,
            each: Duration::from_millis(effort.1),
        };
        for (place, pinned, depths) in [
            ("pinned", true, &[1, 8, 32, 64][..]),
            ("not pinned", false, &[1, 32]),
        ] {
            let loads = device::loads(depths).into_iter();
            let named = loads.map(|load| (format!("{}, {place}", load.name()), load));
            let wanted: Vec<_> = named.filter(|(name, _)| name.contains(word)).collect();
            if wanted.is_empty() {
                continue;
            }
            // A pinned thread stays pinned, and so does everything that it starts.
            let take = || {
                let (mut backends, _) = device::backends(pinned);
                if pinned {
                    device::pin_driver();
                }
                for (name, load) in wanted {
                    let samples = device::take_turns(&mut backends, load, &effort, || {});
                    print(&name, &backends, &samples);
                }
            };
            thread::scope(|scope| scope.spawn(take).join().expect("it measures"));
        }
    }

    fn print(name: &str, backends: &[Backend], samples: &[Vec<Sample>]) {
        let of =
            |i: usize, what: fn(&Sample) -> f64| samples[i].iter().map(what).collect::<Vec<f64>>();
        println!("\n{name}; ratios to the rate of {:?}", device::BASELINE);
        println!(
            "  {:28} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10}",
            "", "ratio", "a second", "p50, us", "p99, us", "CPU, us", "kicks", "interrupts"
        );
        for (i, backend) in backends.iter().enumerate() {
            println!(
                "  {:28} {:6.2} x {:8.0} {:8.1} {:8.1} {:8.2} {:8.4} {:10.4}",
                backend.name,
                median(&ratios(&of(i, |s| s.rate), &of(0, |s| s.rate))),
                median(&of(i, |s| s.rate)),
                median(&of(i, |s| s.p50)),
                median(&of(i, |s| s.p99)),
                median(&of(i, |s| s.cpu)),
                median(&of(i, |s| s.kicks)),
                median(&of(i, |s| s.interrupts)),
            );
        }
    }
}
