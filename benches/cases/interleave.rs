//! Samples taken in turns: a shared machine may be twice as slow a second later, and that must affect all cases alike.

use super::Case;
use std::time::{Duration, Instant};

/// Nanoseconds per iteration, a list for each case; the same place in two lists is the same turn.
pub type Samples = Vec<(&'static str, Vec<f64>)>;

/// How often the cases run, and for how long.
pub struct Turns {
    pub most: usize,
    /// About the time of one sample.
    pub each: Duration,
    /// No turn begins after this time, once there are three.
    pub within: Duration,
}

impl Turns {
    pub fn over(&self, taken: usize, start: Instant) -> bool {
        taken == self.most || (taken >= 3 && start.elapsed() > self.within)
    }
}

/// Lets the cases run by turns, after they have warmed up. Each sample is passed to `told`.
pub fn take_turns(cases: &mut [Case], turns: &Turns, mut told: impl FnMut()) -> Samples {
    let start = Instant::now();
    let mut iterations: Vec<u64> = cases
        .iter_mut()
        .map(|case| {
            let mut n = 1;
            while (case.run)(n) < turns.each / 2 {
                n *= 2;
            }
            n
        })
        .collect();
    let mut samples: Vec<_> = cases.iter().map(|case| (case.who, Vec::new())).collect();
    let mut order: Vec<usize> = (0..cases.len()).collect();
    let mut taken = 0;
    while !turns.over(taken, start) {
        // Other programs on this machine may run in the same rhythm; they must not always affect the same case.
        fastrand::shuffle(&mut order);
        for &i in &order {
            let n = &mut iterations[i];
            // The other cases have displaced the caches. Also, threads that wake each other may become a hundred times
            // slower when other programs want the CPUs.
            let time = (cases[i].run)(*n);
            let fits = *n as f64 * turns.each.as_secs_f64() / time.as_secs_f64();
            *n = (fits as u64).clamp(1, 2 * *n);
            let time = (cases[i].run)(*n);
            samples[i].1.push(time.as_nanos() as f64 / *n as f64);
            told();
        }
        taken += 1;
    }
    samples
}

/// The ratio of two cases' times in each turn.
pub fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(a, b)| a / b).collect()
}

pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

pub fn quantile(samples: &[f64], quantile: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (quantile * sorted.len() as f64) as usize;
    sorted[index.min(sorted.len() - 1)]
}
