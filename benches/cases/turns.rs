//! Samples taken in turns: a machine that is shared may be twice as slow a second later, and that shall meet all alike.

use super::Case;
use std::time::Duration;

/// Nanoseconds an iteration, a list for each case; the same place in two lists is the same turn.
pub type Samples = Vec<(&'static str, Vec<f64>)>;

/// Lets the cases run so many times each, every time for about as long as `turn`, after they have warmed up. Each sample is
/// `told` of.
pub fn take_turns(
    cases: &mut [Case],
    turns: usize,
    turn: Duration,
    mut told: impl FnMut(),
) -> Samples {
    let iterations: Vec<u64> = cases
        .iter_mut()
        .map(|case| {
            let mut n = 16;
            while (case.run)(n) < turn / 2 {
                n *= 2;
            }
            n
        })
        .collect();
    let mut samples: Vec<_> = cases.iter().map(|case| (case.who, Vec::new())).collect();
    let mut order: Vec<usize> = (0..cases.len()).collect();
    for _ in 0..turns {
        // Others on this machine may keep time with us; they shall not always meet the same case.
        fastrand::shuffle(&mut order);
        for &i in &order {
            let n = iterations[i];
            // The other cases have had the caches.
            (cases[i].run)(n);
            let time = (cases[i].run)(n);
            samples[i].1.push(time.as_nanos() as f64 / n as f64);
            told();
        }
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
