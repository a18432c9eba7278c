//! Ratios, from samples taken in turns: the event against kernel eventfd and bare atomics, lookups in the ioeventfd
//! table against other ways of keeping one.
//!
//! `cargo bench --bench ratios [-- WORD]`, for all groups of cases or those with this in their name. A machine that is
//! shared may be twice as slow a second later, so the cases of a group take turns, a few milliseconds each, and what is
//! reported is the median time of each and the median of the ratios within a turn.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    let mut turns = 1;
    let mut word = String::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // `cargo test --benches` asks only whether it runs.
            "--bench" => turns = 101,
            _ => word = argument,
        }
    }

    println!("{:<56}{:<32}{:>12}", "", "", "median ns");
    let mut groups: Vec<(String, Samples)> = Vec::new();
    let mut cases = [
        cases::event::all(),
        cases::batch::all(),
        cases::ioeventfd::all(),
    ]
    .into_iter()
    .flatten()
    .filter(|case| case.group.contains(&word))
    .collect::<Vec<_>>();
    for group in cases.chunk_by_mut(|a, b| a.group == b.group) {
        let name = group[0].group.clone();
        let samples = take_turns(group, turns);
        for (who, times) in &samples {
            println!("{name:<56}{who:<32}{:>12.1}", median(times));
        }
        groups.push((name, samples));
    }

    println!();
    println!("{:<56}{:<32}{:>9}{:>12}", "ratio", "", "median", "target");
    for ratio in [
        cases::event::ratios(),
        cases::batch::ratios(),
        cases::ioeventfd::ratios(),
    ]
    .iter()
    .flatten()
    {
        let Some((name, samples)) = groups.iter().find(|(name, _)| *name == ratio.group) else {
            continue;
        };
        let of = |who| {
            &samples
                .iter()
                .find(|(name, _)| *name == who)
                .expect("a case")
                .1
        };
        let times = of(ratio.over).iter().zip(of(ratio.under));
        let ratios: Vec<f64> = times.map(|(a, b)| a / b).collect();
        let what = format!("{} / {}", ratio.over, ratio.under);
        println!(
            "{name:<56}{what:<32}{:>9.2}{:>12}",
            median(&ratios),
            ratio.target
        );
    }
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
