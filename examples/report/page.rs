//! The report as one page that needs no other file.

use crate::chart;
use crate::format::{self, Unit};
use crate::results::{self, Comparison, Device, Distribution, Kind, Report, Section};
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
                    @for device in &section.devices {
                        (drive(device))
                    }
                    @for what in &section.skipped {
                        p.about { "Skipped: " (what) }
                    }
                }
            }
        }
    }
    .into_string()
}

/// The ratios of all peers in all comparisons.
fn glance(report: &Report) -> Markup {
    html! {
        h2 { "At a glance" }
        p {
            "How many times doorbell’s time the others take. "
            span.behind { "Marked like this," }
            " they take at least a twentieth less."
        }
        @let peers = report.peers();
        @for section in &report.sections {
            (glance_at(section, &peers))
        }
    }
}

fn glance_at(section: &Section, peers: &[&str]) -> Markup {
    let lines = section.ratios();
    let takes_part = |peer| {
        lines
            .iter()
            .any(|(_, ratios)| ratios.iter().any(|(who, _)| who == peer))
    };
    let peers: Vec<_> = peers.iter().filter(|peer| takes_part(*peer)).collect();
    html! {
        div.wide {
            table.glance {
                thead { tr { th { (section.title) } @for who in &peers { th { (who) } } } }
                tbody {
                    @for (name, ratios) in &lines {
                        tr {
                            td { (name) }
                            @for who in &peers {
                                @match ratios.iter().find(|(peer, _)| peer == *who) {
                                    Some((_, ratio)) => td.behind[results::is_less(*ratio)] { (format::ratio(*ratio)) },
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
        td.best[is_best].behind[kind == Kind::Peer && results::is_less(ratio)] { (format::ratio(ratio)) }
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
                        tr.doorbell[row.kind == Kind::Doorbell] {
                            td { (chart::key(series)) (row.who) }
                            td { (row.samples) }
                            td { (unit.show(row.median_ns)) }
                            td { (unit.show(row.p90_ns)) }
                            td { (unit.show(row.p99_ns)) }
                            td { (unit.show(row.max_ns)) }
                            (ratio_and_mark(row.to_doorbell, best, row.kind))
                        }
                    }
                }
            }
        }
    }
}

fn drive(device: &Device) -> Markup {
    let rates = device.rows.iter().map(|row| row.requests_per_second);
    let highest = rates.fold(0.0, f64::max);
    let best = device.best();
    html! {
        h3 { (device.name) }
        div.wide {
            table {
                thead {
                    tr {
                        th {}
                        th.bar { "requests" }
                        th { "a second" }
                        th { "p50, µs" }
                        th { "p99, µs" }
                        th { "CPU, µs" }
                        th { "kicks" }
                        th { "interrupts" }
                        th { "× doorbell’s time" }
                        th {}
                    }
                }
                tbody {
                    @for row in &device.rows {
                        tr.doorbell[row.kind == Kind::Doorbell] {
                            td { (row.who) }
                            td.bar { (chart::bar(row.requests_per_second / highest)) }
                            td { (format::rate(1e9 / row.requests_per_second)) }
                            td { (format!("{:.1}", row.p50_us)) }
                            td { (format!("{:.1}", row.p99_us)) }
                            td { (format!("{:.2}", row.cpu_us)) }
                            td { (format!("{:.4}", row.kicks)) }
                            td { (format!("{:.4}", row.interrupts)) }
                            (ratio_and_mark(row.to_doorbell, best, row.kind))
                        }
                    }
                }
            }
        }
    }
}
