//! The results, as they are in report.json.

use crate::cases::interleave::{Samples, median, quantile, ratios};
use crate::device::Sample;
use crate::machine::Machine;
use serde::Serialize;

#[derive(Serialize)]
pub struct Report {
    pub doorbell: &'static str,
    /// When the report was finished.
    pub time: String,
    pub seconds: f64,
    pub quick: bool,
    pub machine: Machine,
    /// Threads that ran or were ready to run in the minute before.
    pub load_before: Option<f64>,
    pub sections: Vec<Section>,
}

#[derive(Serialize)]
pub struct Section {
    pub title: &'static str,
    /// What is compared, and what to know about it.
    pub text: &'static str,
    pub comparisons: Vec<Comparison>,
    pub distributions: Vec<Distribution>,
    pub devices: Vec<Device>,
    /// What could not be measured, and why.
    pub skipped: Vec<String>,
}

/// Peers, and their times as multiples of doorbell's.
type Ratios = Vec<(&'static str, f64)>;

impl Report {
    /// All peers, each once.
    pub fn peers(&self) -> Vec<&'static str> {
        let mut peers = Vec::new();
        for (_, ratios) in self.sections.iter().flat_map(Section::ratios) {
            for (who, _) in ratios {
                if !peers.contains(&who) {
                    peers.push(who);
                }
            }
        }
        peers
    }
}

impl Section {
    /// The ratios of each comparison, distribution and device, with its name.
    pub fn ratios(&self) -> Vec<(&str, Ratios)> {
        let compared = self.comparisons.iter().map(|comparison| {
            let rows = comparison.rows.iter();
            let ratios = peers(rows.map(|row| (row.who, row.kind, row.to_doorbell)));
            (comparison.name.as_str(), ratios)
        });
        let distributed = self.distributions.iter().map(|distribution| {
            let rows = distribution.rows.iter();
            let ratios = peers(rows.map(|row| (row.who, row.kind, row.to_doorbell)));
            (distribution.name, ratios)
        });
        let of_devices = self.devices.iter().map(|device| {
            let rows = device.rows.iter();
            let ratios = peers(rows.map(|row| (row.who, row.kind, row.to_doorbell)));
            (device.name.as_str(), ratios)
        });
        compared.chain(distributed).chain(of_devices).collect()
    }
}

fn peers(rows: impl Iterator<Item = (&'static str, Kind, f64)>) -> Ratios {
    rows.filter(|(_, kind, _)| *kind == Kind::Peer)
        .map(|(who, _, ratio)| (who, ratio))
        .collect()
}

/// The same work done in different ways.
#[derive(Serialize)]
pub struct Comparison {
    pub name: String,
    pub turns: usize,
    pub rows: Vec<Row>,
}

#[derive(Serialize)]
pub struct Row {
    pub who: &'static str,
    pub kind: Kind,
    pub median_ns: f64,
    pub tenth_percentile_ns: f64,
    pub ninetieth_percentile_ns: f64,
    /// The median of the ratios to doorbell's time in the same turn: above 1, doorbell is faster.
    pub to_doorbell: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Doorbell,
    Peer,
    /// The minimum that every way has to do, which does not do the work.
    Least,
}

impl Kind {
    fn of(who: &str) -> Self {
        match who {
            _ if who.starts_with(OURS) => Kind::Doorbell,
            "fetch_add" | "raw spin" | "raw spin with PAUSE" => Kind::Least,
            _ => Kind::Peer,
        }
    }
}

const OURS: &str = "doorbell";

/// Whether a ratio is below 1 by more than the error of samples like these.
pub fn is_less(ratio: f64) -> bool {
    ratio < 0.95
}

impl Comparison {
    pub fn new(name: String, samples: &Samples) -> Self {
        let (_, ours) = find_ours(samples);
        let rows = samples.iter().map(|(who, times)| Row {
            who,
            kind: Kind::of(who),
            median_ns: median(times),
            tenth_percentile_ns: quantile(times, 0.1),
            ninetieth_percentile_ns: quantile(times, 0.9),
            to_doorbell: median(&ratios(times, ours)),
        });
        Comparison {
            name,
            turns: ours.len(),
            rows: rows.collect(),
        }
    }

    /// The fastest row, without those that only show the minimum.
    pub fn best(&self) -> f64 {
        let rows = self.rows.iter().filter(|row| row.kind != Kind::Least);
        rows.map(|row| row.to_doorbell)
            .fold(f64::INFINITY, f64::min)
    }
}

/// How long single calls took.
#[derive(Serialize)]
pub struct Distribution {
    pub name: &'static str,
    pub rows: Vec<Latencies>,
}

#[derive(Serialize)]
pub struct Latencies {
    pub who: &'static str,
    pub kind: Kind,
    pub samples: usize,
    pub median_ns: f64,
    pub p90_ns: f64,
    pub p99_ns: f64,
    pub max_ns: f64,
    /// The ratio of the medians: above 1, doorbell is faster.
    pub to_doorbell: f64,
    /// Nanoseconds at each two-hundredth of the samples, from the shortest to the longest.
    pub quantiles_ns: Vec<f64>,
}

impl Distribution {
    pub fn new(name: &'static str, samples: &Samples) -> Self {
        let (_, ours) = find_ours(samples);
        let ours = median(ours);
        let rows = samples.iter().map(|(who, times)| {
            let mut sorted = times.clone();
            sorted.sort_by(f64::total_cmp);
            let at = |quantile: f64| sorted[((sorted.len() - 1) as f64 * quantile) as usize];
            Latencies {
                who,
                kind: Kind::of(who),
                samples: times.len(),
                median_ns: at(0.5),
                p90_ns: at(0.9),
                p99_ns: at(0.99),
                max_ns: at(1.0),
                to_doorbell: median(times) / ours,
                quantiles_ns: (0..=200).map(|i| at(f64::from(i) / 200.0)).collect(),
            }
        });
        Distribution {
            name,
            rows: rows.collect(),
        }
    }

    pub fn best(&self) -> f64 {
        let ratios = self.rows.iter().map(|row| row.to_doorbell);
        ratios.fold(f64::INFINITY, f64::min)
    }
}

/// A device, and what drives it.
#[derive(Serialize)]
pub struct Device {
    pub name: String,
    pub turns: usize,
    pub rows: Vec<Backend>,
}

/// Medians of the turns.
#[derive(Serialize)]
pub struct Backend {
    pub who: &'static str,
    pub kind: Kind,
    pub requests_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Microseconds of the back-end's CPU for each request.
    pub cpu_us: f64,
    /// Kicks for each request.
    pub kicks: f64,
    /// Interrupts for each request, as far as the driver takes them.
    pub interrupts: f64,
    /// The median of the ratios to doorbell's time for a request in the same turn: above 1, doorbell is faster.
    pub to_doorbell: f64,
}

impl Device {
    pub fn new(name: String, samples: &[(&'static str, Vec<Sample>)]) -> Self {
        let times = samples.iter().map(|(who, samples)| {
            let times = samples.iter().map(|sample| 1e9 / sample.rate);
            (*who, times.collect())
        });
        let times: Samples = times.collect();
        let (_, ours) = find_ours(&times);
        let rows = samples
            .iter()
            .zip(&times)
            .map(|((who, samples), (_, times))| {
                let of = |what: fn(&Sample) -> f64| {
                    let values: Vec<f64> = samples.iter().map(what).collect();
                    median(&values)
                };
                Backend {
                    who,
                    kind: Kind::of(who),
                    requests_per_second: of(|sample| sample.rate),
                    p50_us: of(|sample| sample.p50),
                    p99_us: of(|sample| sample.p99),
                    cpu_us: of(|sample| sample.cpu),
                    kicks: of(|sample| sample.kicks),
                    interrupts: of(|sample| sample.interrupts),
                    to_doorbell: median(&ratios(times, ours)),
                }
            });
        Device {
            name,
            turns: ours.len(),
            rows: rows.collect(),
        }
    }

    pub fn best(&self) -> f64 {
        let ratios = self.rows.iter().map(|row| row.to_doorbell);
        ratios.fold(f64::INFINITY, f64::min)
    }
}

/// What the others are compared with: doorbell in its plain form, or otherwise its last row.
fn find_ours(samples: &Samples) -> &(&'static str, Vec<f64>) {
    let plain = samples.iter().find(|(who, _)| *who == OURS);
    let last = || samples.iter().rfind(|(who, _)| who.starts_with(OURS));
    plain
        .or_else(last)
        .expect("doorbell takes part in everything")
}
