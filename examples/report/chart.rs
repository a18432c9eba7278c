//! Drawings for the page.

use crate::format::Unit;
use crate::results::{Distribution, Latencies};
use maud::{Markup, html};

/// A bar that takes a share of the whole width.
pub fn bar(share: f64) -> Markup {
    html! {
        svg viewBox="0 0 100 10" preserveAspectRatio="none" role="presentation" {
            rect x="0" y="0" width=(format!("{:.2}", 100.0 * share)) height="10" {}
        }
    }
}

/// A piece of a distribution's line, for a legend.
pub fn key(series: usize) -> Markup {
    html! {
        svg.key viewBox="0 0 28 10" role="presentation" {
            line class=(class(series)) x1="0" y1="5" x2="28" y2="5" {}
        }
    }
}

fn class(series: usize) -> String {
    format!("s{series}")
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;

/// The share of the samples that took no longer than a given time. The axis of the times is logarithmic.
pub fn cumulative(distribution: &Distribution) -> Markup {
    let axis = Axis::of(&distribution.rows);
    let unit = Unit::of_distribution(distribution);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    html! {
        svg.cdf viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img"
            aria-label={ "Cumulative distribution: " (distribution.name) }
        {
            @for percent in [0, 25, 50, 75, 100] {
                @let y = height(f64::from(percent) / 100.0);
                line.grid x1=(LEFT) y1=(px(y)) x2=(right) y2=(px(y)) {}
                text x=(LEFT - 6.0) y=(px(y + 4.0)) text-anchor="end" { (percent) " %" }
            }
            @for tick in axis.ticks() {
                @let x = axis.place(tick);
                line.grid x1=(px(x)) y1=(TOP) x2=(px(x)) y2=(bottom) {}
                text x=(px(x)) y=(bottom + 16.0) text-anchor="middle" { (unit.brief(tick)) }
            }
            text x=(right) y=(bottom + 34.0) text-anchor="end" { (unit.name) ", logarithmic" }
            // Our row comes first, and its line is to lie on top.
            @for (series, row) in distribution.rows.iter().enumerate().rev() {
                polyline class=(class(series)) points=(line(row, &axis)) {}
            }
        }
    }
}

fn line(row: &Latencies, axis: &Axis) -> String {
    let last = (row.quantiles_ns.len() - 1) as f64;
    let quantiles = row.quantiles_ns.iter().enumerate();
    let shown = quantiles.filter(|&(_, &ns)| axis.holds(ns));
    let points = shown.map(|(i, &ns)| {
        let (x, y) = (axis.place(ns), height(i as f64 / last));
        format!("{},{}", px(x), px(y))
    });
    points.collect::<Vec<_>>().join(" ")
}

fn height(share: f64) -> f64 {
    TOP + (1.0 - share) * (HEIGHT - BOTTOM - TOP)
}

fn px(place: f64) -> String {
    format!("{place:.1}")
}

/// An axis of times, without the shortest hundredth and the longest twentieth, which would leave little room for the
/// rest.
struct Axis {
    first: f64,
    last: f64,
}

impl Axis {
    fn of(rows: &[Latencies]) -> Self {
        let first = rows.iter().map(|row| row.quantiles_ns[2]);
        let last = rows.iter().map(|row| row.quantiles_ns[190]);
        let first = first.fold(f64::INFINITY, f64::min).max(1.0);
        Axis {
            first,
            last: last.fold(2.0 * first, f64::max),
        }
    }

    fn holds(&self, ns: f64) -> bool {
        (self.first..=self.last).contains(&ns)
    }

    fn place(&self, ns: f64) -> f64 {
        let share = (ns / self.first).ln() / (self.last / self.first).ln();
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    /// The ticks: 1, 2, 5, 10, and so on.
    fn ticks(&self) -> Vec<f64> {
        let decades = (0..12).map(|decade| 10_f64.powi(decade));
        let ticks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * decade));
        ticks.filter(|&tick| self.holds(tick)).collect()
    }
}
