//! The event against kernel eventfd and bare atomics: criterion's account.
//!
//! `cargo bench --bench event`. The host's speed drifts; for ratios, see the `ratios` bench.

#[cfg(target_os = "linux")]
mod cases;

#[cfg(target_os = "linux")]
fn main() {
    let mut criterion = criterion::Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    let mut cases = cases::all().into_iter().peekable();
    while let Some(group) = cases.peek().map(|case| case.group) {
        let mut benches = criterion.benchmark_group(group);
        while let Some(mut case) = cases.next_if(|case| case.group == group) {
            benches.bench_function(case.who, |bencher| bencher.iter_custom(|n| (case.run)(n)));
        }
        benches.finish();
    }
    criterion.final_summary();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these benches compare with the eventfds of Linux");
}
