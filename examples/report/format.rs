//! Numbers for readers.

use crate::results::{Comparison, Distribution};

/// A unit of time, the same for a whole table.
#[derive(Clone, Copy)]
pub struct Unit {
    pub name: &'static str,
    nanoseconds: f64,
}

const NANOSECONDS: Unit = Unit {
    name: "ns",
    nanoseconds: 1.0,
};
const MICROSECONDS: Unit = Unit {
    name: "µs",
    nanoseconds: 1000.0,
};

impl Unit {
    pub fn of_comparison(comparison: &Comparison) -> Self {
        Self::of(comparison.rows.iter().map(|row| row.median_ns))
    }

    pub fn of_distribution(distribution: &Distribution) -> Self {
        Self::of(distribution.rows.iter().map(|row| row.median_ns))
    }

    /// The largest unit in which none of the times is below 1.
    fn of(times: impl Iterator<Item = f64>) -> Self {
        match times.fold(f64::INFINITY, f64::min) {
            ..1000.0 => NANOSECONDS,
            _ => MICROSECONDS,
        }
    }

    /// A time as a round number.
    pub fn brief(self, nanoseconds: f64) -> String {
        grouped(&(nanoseconds / self.nanoseconds).to_string())
    }

    pub fn show(self, nanoseconds: f64) -> String {
        grouped(&format!("{:.1}", nanoseconds / self.nanoseconds))
    }
}

/// A time as a number of operations per second.
pub fn rate(nanoseconds: f64) -> String {
    match 1e9 / nanoseconds {
        rate @ 1e6.. => format!("{} M", three_digits(rate / 1e6)),
        rate @ 1e3.. => format!("{} k", three_digits(rate / 1e3)),
        rate => three_digits(rate),
    }
}

pub fn ratio(ratio: f64) -> String {
    grouped(&three_digits(ratio))
}

fn three_digits(number: f64) -> String {
    match number {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// A number with a thin space between groups of three digits before the point.
fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i != 0 && (whole.len() - i) % 3 == 0 {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped + rest
}
