//! The table, and the lines around it.

use crate::irqfds::Told;
use crate::options::Setup;
use crate::plan::{Outcome, Plan};
use crate::syscalls::Syscalls;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use std::fmt;

pub struct Row {
    pub plan: Plan,
    /// The outcome of all runs of the plan.
    pub outcome: Outcome,
}

impl Row {
    pub fn new(plan: Plan) -> Self {
        Row {
            plan,
            outcome: Outcome::nothing(),
        }
    }
}

/// Stands for a value that is not known.
const UNKNOWN: &str = "n/a";
/// Stands for a value that does not exist: the counters of an irqfd that is not doorbell's.
const NONE: &str = "-";

const COLUMNS: usize = 19;

pub fn header() -> String {
    let line = |cells: [&str; COLUMNS]| format_row(cells.map(String::from));
    let above = line([
        "",
        "",
        "kicks",
        "",
        "",
        "events",
        "irqfd",
        "",
        "",
        "",
        "",
        "",
        "",
        "kick to device thread, µs",
        "",
        "",
        "round trip, µs",
        "",
        "syscalls",
    ]);
    let below = line([
        "set-up",
        "batch",
        "sent",
        "rung",
        "exited",
        "seen",
        "signals",
        "injected",
        "coalesced",
        "ends",
        "completed",
        "interrupts",
        "spurious",
        "median",
        "p99",
        "max",
        "median",
        "p99",
        "per kick",
    ]);
    format!("{above}\n{below}")
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome {
            sent,
            rung,
            exited,
            completed,
            interrupts,
            spurious,
            served,
        } = &self.outcome;
        let time = |times: &Histogram<u64>, quantile| {
            format!("{:.1}", times.value_at_quantile(quantile) as f64 / 1000.0)
        };
        let latency = |quantile| match served.clock_holds {
            true => time(&served.latency, quantile),
            false => UNKNOWN.into(),
        };
        let syscalls = match served.syscalls {
            Some(calls) => format!("{:.2}", calls as f64 / *sent as f64),
            None => UNKNOWN.into(),
        };
        let told = |count: fn(&Told) -> u64| match &served.told {
            Some(told) => count(told).to_string(),
            None => NONE.into(),
        };
        f.write_str(&format_row([
            self.plan.setup.to_string(),
            self.plan.batch.to_string(),
            sent.to_string(),
            rung.to_string(),
            exited.to_string(),
            served.seen.to_string(),
            told(|told| told.signals),
            told(|told| told.injections),
            told(|told| told.coalesced),
            told(|told| told.acks),
            completed.to_string(),
            interrupts.to_string(),
            spurious.to_string(),
            latency(0.5),
            latency(0.99),
            latency(1.0),
            time(&served.round_trip, 0.5),
            time(&served.round_trip, 0.99),
            syscalls,
        ]))
    }
}

fn format_row(
    [
        setup,
        batch,
        sent,
        rung,
        exited,
        seen,
        signals,
        injected,
        coalesced,
        ends,
        completed,
        interrupts,
        spurious,
        median,
        p99,
        max,
        round_median,
        round_p99,
        syscalls,
    ]: [String; COLUMNS],
) -> String {
    let kicks = format!("{setup:<9} {batch:>6} {sent:>9} {rung:>9} {exited:>9} {seen:>9}");
    let irqfd = format!("{signals:>8} {injected:>8} {coalesced:>9} {ends:>8}");
    let taken = format!("{completed:>9} {interrupts:>10} {spurious:>8}");
    let times = format!("{median:>9} {p99:>9} {max:>9} {round_median:>9} {round_p99:>9}");
    format!("{kicks} {irqfd} {taken} {times} {syscalls:>10}")
}

/// Explains the set-ups, and why a value is not known.
pub fn notes(setups: &[Setup], rows: &[Row]) -> Vec<String> {
    let mut notes: Vec<String> = setups
        .iter()
        .filter_map(|setup| {
            Some(format!(
                "{setup}: {}",
                setup.to_possible_value()?.get_help()?
            ))
        })
        .collect();
    if rows.iter().any(|row| !row.outcome.served.clock_holds) {
        notes.push("latency n/a: the guest's time stamp counter is not the host's".into());
    }
    let uncounted = Syscalls::start().err();
    notes.extend(uncounted.map(|e| format!("syscalls n/a: {e}")));
    notes
}
