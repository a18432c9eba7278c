//! The report as one page that needs nothing else.

use crate::chart;
use crate::format::{self, Unit};
use crate::results::{Comparison, Distribution, Kind, Report};
use crate::text;
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("page.css");

pub fn of(report: &Report) -> String {
    html! {
        (DOCTYPE)
        html lang="en-GB" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "doorbell: what everything costs" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "doorbell: what everything costs" }
                @for line in text::about(report) {
                    p.about { (line) }
                }
                (glance(report))
                @for section in &report.sections {
                    h2 { (section.title) }
                    p { (section.text) }
                    @for comparison in &section.comparisons {
                        (compare(comparison))
                    }
                    @for distribution in &section.distributions {
                        (distribute(distribution))
                    }
                }
            }
        }
    }
    .into_string()
}

/// Everybody's ratio in everything.
fn glance(report: &Report) -> Markup {
    let mut peers = Vec::new();
    let mut lines = Vec::new();
    for section in &report.sections {
        let compared = section.comparisons.iter().map(|comparison| {
            let rows = comparison.rows.iter();
            let peers = rows.filter(|row| row.kind == Kind::Peer);
            let ratios: Vec<_> = peers.map(|row| (row.who, row.to_doorbell)).collect();
            (comparison.name.as_str(), ratios)
        });
        let distributed = section.distributions.iter().map(|distribution| {
            let peers = distribution.rows.iter().skip(1);
            let ratios: Vec<_> = peers.map(|row| (row.who, row.to_doorbell)).collect();
            (distribution.name, ratios)
        });
        lines.extend(compared.chain(distributed));
    }
    for (who, _) in lines.iter().flat_map(|(_, ratios)| ratios) {
        if !peers.contains(who) {
            peers.push(*who);
        }
    }
    html! {
        h2 { "At a glance" }
        p {
            "How many times doorbell's time the others take. "
            span.behind { "Below 1, marked like this," }
            " they take less."
        }
        div.wide {
            table.glance {
                thead { tr { th {} @for who in &peers { th { (who) } } } }
                tbody {
                    @for (name, ratios) in &lines {
                        tr {
                            td { (name) }
                            @for who in &peers {
                                @match ratios.iter().find(|(peer, _)| peer == who) {
                                    Some((_, ratio)) => (ratio_cell(*ratio)),
                                    None => td {},
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn ratio_cell(ratio: f64) -> Markup {
    html! { td.behind[ratio < 1.0] { (format::ratio(ratio)) } }
}

fn compare(comparison: &Comparison) -> Markup {
    let unit = Unit::of_comparison(comparison);
    let medians = comparison.rows.iter().map(|row| row.median_ns);
    let shortest = medians.fold(f64::INFINITY, f64::min);
    let best = comparison.best();
    html! {
        h3 { (comparison.name) }
        div.wide {
            table {
                thead {
                    tr {
                        th {}
                        th.bar { "throughput" }
                        th { "a second" }
                        th { "median, " (unit.name) }
                        th { "10 to 90 %, " (unit.name) }
                        th { "× doorbell’s time" }
                        th {}
                    }
                }
                tbody {
                    @for row in &comparison.rows {
                        tr.doorbell[row.kind == Kind::Doorbell].least[row.kind == Kind::Least] {
                            td { (row.who) }
                            td.bar { (chart::bar(shortest / row.median_ns)) }
                            td { (format::rate(row.median_ns)) }
                            td { (unit.show(row.median_ns)) }
                            td {
                                (unit.show(row.tenth_percentile_ns)) " – " (unit.show(row.ninetieth_percentile_ns))
                            }
                            (ratio_and_mark(row.to_doorbell, best, row.kind))
                        }
                    }
                }
            }
        }
    }
}

fn ratio_and_mark(ratio: f64, best: f64, kind: Kind) -> Markup {
    let is_best = kind != Kind::Least && ratio <= best;
    html! {
        td.best[is_best].behind[kind == Kind::Peer && ratio < 1.0] { (format::ratio(ratio)) }
        td.mark title=[is_best.then_some("the best of these")] { @if is_best { "✓" } }
    }
}

fn distribute(distribution: &Distribution) -> Markup {
    let unit = Unit::of_distribution(distribution);
    let best = distribution.best();
    html! {
        h3 { (distribution.name) }
        (chart::cumulative(distribution))
        div.wide {
            table {
                thead {
                    tr {
                        th {}
                        th { "samples" }
                        th { "median, " (unit.name) }
                        th { "90 %" }
                        th { "99 %" }
                        th { "longest" }
                        th { "× doorbell’s median" }
                        th {}
                    }
                }
                tbody {
                    @for (series, row) in distribution.rows.iter().enumerate() {
                        @let kind = if series == 0 { Kind::Doorbell } else { Kind::Peer };
                        tr.doorbell[kind == Kind::Doorbell] {
                            td { (chart::key(series)) (row.who) }
                            td { (row.samples) }
                            td { (unit.show(row.median_ns)) }
                            td { (unit.show(row.p90_ns)) }
                            td { (unit.show(row.p99_ns)) }
                            td { (unit.show(row.max_ns)) }
                            (ratio_and_mark(row.to_doorbell, best, kind))
                        }
                    }
                }
            }
        }
    }
}
