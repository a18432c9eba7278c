//! Counts by running this program under valgrind.

use crate::paths::MOST_TIMES;
use std::process::Command;

/// What tells this program to run a path: with its name and how often.
pub const RUN: &str = "--run";

/// Two lengths of a run. What both have in common, the start of the process and the making of tables, is no part of a
/// path.
const SHORT: usize = 1_000;
const LONG: usize = MOST_TIMES;

pub fn is_there() -> bool {
    let version = Command::new("valgrind").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// Instructions of one time along the path, its call and the loop around it included.
pub fn count(name: &str) -> f64 {
    let (short, long) = (instructions(name, SHORT), instructions(name, LONG));
    (long - short) as f64 / (LONG - SHORT) as f64
}

fn instructions(name: &str, times: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("this program is somewhere"))
        .args([RUN, name, &times.to_string()])
        .output()
        .expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr);
    // "==123== Collected : 4567"
    let collected = text.lines().find_map(|line| {
        let (_, number) = line.split_once("Collected : ")?;
        number.trim().parse().ok()
    });
    collected.unwrap_or_else(|| panic!("valgrind counted nothing: {text}"))
}
