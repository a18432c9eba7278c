//! Counts instructions by running this program under valgrind.

use crate::paths::MOST_TIMES;
use std::process::Command;

/// The argument that tells this program to run a path; the name of the path and the number of runs follow.
pub const RUN: &str = "--run";

/// Two lengths of a run. The difference leaves out what both have in common: the start of the process and the making of
/// tables.
const SHORT: usize = 1_000;
const LONG: usize = MOST_TIMES;

pub fn is_there() -> bool {
    let version = Command::new("valgrind").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// Instructions of one run of the path, including its call and the loop around it.
pub fn count(name: &str) -> f64 {
    let (short, long) = (instructions(name, SHORT), instructions(name, LONG));
    (long - short) as f64 / (LONG - SHORT) as f64
}

fn instructions(name: &str, times: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("this program has a path"))
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
