//! The report as text.

use crate::format::{self, Unit};
use crate::results::{Comparison, Device, Distribution, Kind, Report};
use std::fmt::Write;

pub fn of(report: &Report) -> String {
    let mut text = String::new();
    for line in about(report) {
        text += &line;
        text.push('\n');
    }
    for section in &report.sections {
        let (title, rule) = (section.title, "=".repeat(section.title.len()));
        write!(text, "\n{title}\n{rule}\n").expect("memory takes it");
        for comparison in &section.comparisons {
            text += &compare(comparison);
        }
        for distribution in &section.distributions {
            text += &distribute(distribution);
        }
        for device in &section.devices {
            text += &drive(device);
        }
        for what in &section.skipped {
            writeln!(text, "\nSkipped: {what}").expect("memory takes it");
        }
    }
    text
}

/// Where, when and how the report was measured.
pub fn about(report: &Report) -> Vec<String> {
    let machine = &report.machine;
    let place = if machine.virtual_machine {
        "a virtual machine with "
    } else {
        ""
    };
    let mut lines = vec![
        format!("doorbell {}, {}", report.doorbell, report.time),
        format!(
            "{place}{} × {} ({}), Linux {}, {}",
            machine.cpus, machine.cpu, machine.architecture, machine.kernel, machine.system
        ),
        format!(
            "Samples taken in turns in one process, within {:.0} s; medians. Ratios are medians of the ratios within a turn, \
             except for single calls.",
            report.seconds
        ),
    ];
    if report.quick {
        lines.push("A quick run: few samples, and short ones. The numbers mean little.".into());
    }
    if let Some(load) = report.load_before.filter(|load| *load > 0.5) {
        lines.push(format!(
            "The machine was busy with other things: a load of {load:.1} before it began. What sleeps and is woken suffers \
             most."
        ));
    }
    lines
}

/// The remark on a row's ratio.
pub fn mark(to_doorbell: f64, best: f64) -> &'static str {
    if to_doorbell <= best { "best" } else { "" }
}

fn compare(comparison: &Comparison) -> String {
    let unit = Unit::of_comparison(comparison);
    let mut text = format!(
        "\n{:<48}{:>12}{:>20}{:>12}{:>14}\n",
        comparison.name,
        format!("median, {}", unit.name),
        format!("10 to 90 %, {}", unit.name),
        "a second",
        "to doorbell"
    );
    for row in &comparison.rows {
        let spread = [row.tenth_percentile_ns, row.ninetieth_percentile_ns].map(|ns| unit.show(ns));
        let mark = match row.kind {
            Kind::Least => "the least there is to do",
            _ => mark(row.to_doorbell, comparison.best()),
        };
        let line = format!(
            "  {:<46}{:>12}{:>20}{:>12}{:>12} ×  {mark}",
            row.who,
            unit.show(row.median_ns),
            spread.join(" to "),
            format::rate(row.median_ns),
            format::ratio(row.to_doorbell),
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn distribute(distribution: &Distribution) -> String {
    let unit = Unit::of_distribution(distribution);
    let mut text = format!(
        "\n{:<56}{:>12}{:>10}{:>10}{:>10}{:>14}\n",
        distribution.name,
        format!("median, {}", unit.name),
        "90 %",
        "99 %",
        "longest",
        "to doorbell"
    );
    for row in &distribution.rows {
        let line = format!(
            "  {:<54}{:>12}{:>10}{:>10}{:>10}{:>12} ×  {}",
            row.who,
            unit.show(row.median_ns),
            unit.show(row.p90_ns),
            unit.show(row.p99_ns),
            unit.show(row.max_ns),
            format::ratio(row.to_doorbell),
            mark(row.to_doorbell, distribution.best()),
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn drive(device: &Device) -> String {
    let mut text = format!(
        "\n{:<34}{:>10}{:>10}{:>10}{:>10}{:>9}{:>12}{:>14}\n",
        device.name,
        "a second",
        "p50, µs",
        "p99, µs",
        "CPU, µs",
        "kicks",
        "interrupts",
        "to doorbell"
    );
    for row in &device.rows {
        let line = format!(
            "  {:<32}{:>10}{:>10.1}{:>10.1}{:>10.2}{:>9.4}{:>12.4}{:>12} ×  {}",
            row.who,
            format::rate(1e9 / row.requests_per_second),
            row.p50_us,
            row.p99_us,
            row.cpu_us,
            row.kicks,
            row.interrupts,
            format::ratio(row.to_doorbell),
            mark(row.to_doorbell, device.best()),
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}
