//! Ratios, from samples taken in turns: the event against kernel eventfd and bare atomics, lookups in the ioeventfd
//! table against other ways of keeping one, and many doorbells assigned in one batch against one by one; `wait_any`
//! against poll(2), futures against those of others, the poller against epoll, a guest's kicks through the KVM listener
//! against KVM_IOEVENTFD by hand, irqfds against KVM's, and a guest's whole round trip to a device thread and back.
//!
//! `cargo bench --bench ratios [-- [membarrier] [WORD]]`, for all groups of cases or those with this in their name, and
//! with `use_membarrier` if the word says so. A shared machine may be twice as slow a second later, so the cases of a
//! group take turns, a few milliseconds each. The report has the median time of each case and the median of the ratios
//! within a turn. If other programs keep the CPUs busy, even that may be off. Then the ratio of the shortest times is
//! better, except for two threads, which may have been quick because they did not meet.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    use cases::interleave::{self, Samples, Turns, median, take_turns};
    use std::time::Duration;

    let mut turns = Turns {
        most: 1,
        each: Duration::from_millis(4),
        within: Duration::MAX,
    };
    let mut word = String::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // `cargo test --benches` only checks that it runs.
            "--bench" => turns.most = 51,
            "membarrier" => doorbell::use_membarrier().expect("membarrier is allowed"),
            _ => word = argument,
        }
    }

    println!("{:<56}{:<38}{:>12}", "", "", "median ns");
    let mut groups: Vec<(String, Samples)> = Vec::new();
    let mut cases = cases::all()
        .into_iter()
        .filter(|case| case.group.contains(&word))
        .collect::<Vec<_>>();
    for group in cases.chunk_by_mut(|a, b| a.group == b.group) {
        let name = group[0].group.clone();
        let samples = take_turns(group, &turns, || ());
        for (who, times) in &samples {
            println!("{name:<56}{who:<38}{:>12.1}", median(times));
        }
        groups.push((name, samples));
    }

    println!();
    println!(
        "{:<56}{:<38}{:>9}{:>9}{:>9}",
        "ratio", "", "median", "shortest", "target"
    );
    for ratio in cases::ratios() {
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
        let (over, under) = (of(ratio.over), of(ratio.under));
        let ratios = interleave::ratios(over, under);
        let shortest = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        let what = format!("{} / {}", ratio.over, ratio.under);
        println!(
            "{name:<56}{what:<38}{:>9.2}{:>9.2}{:>9}",
            median(&ratios),
            shortest(over) / shortest(under),
            ratio.target
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
