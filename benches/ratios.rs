//! The event against kernel eventfd and bare atomics: ratios, from samples taken in turns.
//!
//! `cargo bench --bench ratios`. A machine that is shared may be twice as slow a second later, so the cases of a group
//! take turns, a few milliseconds each, and what is reported is the median time of each and the median of the ratios
//! within a turn.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    use cases::{
        DOORBELL, EVENTFD, FETCH_ADD, PING_PONG_PARKED, PING_PONG_SPINNING, PRODUCERS, RAW_SPIN,
        SIGNAL, WRITE_READ,
    };

    // `cargo test --benches` asks only whether it runs.
    let turns = if std::env::args().any(|argument| argument == "--bench") {
        101
    } else {
        1
    };
    println!("{:<24}{:<32}{:>12}", "", "", "median ns");
    let mut groups: Vec<(&str, Samples)> = Vec::new();
    let mut cases = cases::all();
    for group in cases.chunk_by_mut(|a, b| a.group == b.group) {
        let name = group[0].group;
        let samples = take_turns(group, turns);
        for (who, times) in &samples {
            println!("{name:<24}{who:<32}{:>12.1}", median(times));
        }
        groups.push((name, samples));
    }

    println!();
    println!("{:<24}{:<32}{:>9}{:>12}", "ratio", "", "median", "target");
    let ratio = |group, over, under, target: &str| {
        let (_, samples) = groups
            .iter()
            .find(|(name, _)| *name == group)
            .expect("a group");
        let of = |who| {
            &samples
                .iter()
                .find(|(name, _)| *name == who)
                .expect("a case")
                .1
        };
        let ratios: Vec<f64> = of(over).iter().zip(of(under)).map(|(a, b)| a / b).collect();
        let what = format!("{over} / {under}");
        println!("{group:<24}{what:<32}{:>9.2}{target:>12}", median(&ratios));
    };
    ratio(SIGNAL, DOORBELL, FETCH_ADD, "<= 1.3");
    ratio(SIGNAL, EVENTFD, DOORBELL, "");
    ratio(WRITE_READ, EVENTFD, DOORBELL, ">= 80");
    ratio(PRODUCERS, DOORBELL, FETCH_ADD, "<= 1");
    ratio(PING_PONG_SPINNING, DOORBELL, RAW_SPIN, "<= 2.5");
    ratio(PING_PONG_PARKED, DOORBELL, EVENTFD, "<= 1");
}

/// Nanoseconds an iteration, a list for each case; the same place in two lists is the same turn.
#[cfg(target_os = "linux")]
type Samples = Vec<(&'static str, Vec<f64>)>;

#[cfg(target_os = "linux")]
fn take_turns(cases: &mut [cases::Case], turns: usize) -> Samples {
    use std::time::Duration;
    const TURN: Duration = Duration::from_millis(4);

    let iterations: Vec<u64> = cases
        .iter_mut()
        .map(|case| {
            let mut n = 16;
            while (case.run)(n) < TURN / 2 {
                n *= 2;
            }
            n
        })
        .collect();
    let mut samples: Vec<_> = cases.iter().map(|case| (case.who, Vec::new())).collect();
    for _ in 0..turns {
        for ((case, &n), (_, times)) in cases.iter_mut().zip(&iterations).zip(&mut samples) {
            times.push((case.run)(n).as_nanos() as f64 / n as f64);
        }
    }
    samples
}

#[cfg(target_os = "linux")]
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
