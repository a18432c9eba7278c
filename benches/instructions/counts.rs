//! The counts on record, and whether they still hold.

use crate::{paths, valgrind};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::{Command, exit};

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/benches/instructions/counts.txt"
);

/// A path may take this factor more than on record.
const TOLERANCE: f64 = 1.10;

/// The start of the line that names the compiler.
const COMPILER: &str = "# counted with ";

/// Counts the instructions, and fails if a path takes more than it may.
pub fn check() {
    if !valgrind::is_there() {
        println!("skipped: instructions not counted, there is no valgrind");
        return;
    }
    let (compiler, recorded) = read();
    let mut grown = false;
    println!("{:<44}{:>12}{:>12}", "instructions", "counted", "on record");
    for (name, count) in count_all() {
        let (on_record, verdict) = match recorded.get(name) {
            None => ("-".to_owned(), "not on record"),
            Some(before) if count > before * TOLERANCE => (before.to_string(), "GROWN"),
            Some(before) if count * TOLERANCE < *before => (before.to_string(), "less"),
            Some(before) => (before.to_string(), ""),
        };
        grown |= !matches!(verdict, "" | "less");
        let line = format!("{name:<44}{count:>12}{on_record:>12}  {verdict}");
        println!("{}", line.trim_end());
    }
    if grown {
        let now = compiler_now();
        println!(
            "\nA path takes more than on record, or is not there: see benches/instructions/README.md."
        );
        if now != compiler {
            println!("The record was made with {compiler}, and this is {now}.");
        }
        exit(1);
    }
}

/// Counts the instructions, and puts the counts on record.
pub fn record() {
    let mut text = String::from(
        "# Instructions of each path, made by `cargo bench --profile release --bench instructions -- --record`.\n",
    );
    writeln!(text, "{COMPILER}{}", compiler_now()).expect("memory takes it");
    for (name, count) in count_all() {
        writeln!(text, "{count:>8}  {name}").expect("memory takes it");
    }
    print!("{text}");
    std::fs::write(FILE, text).expect("the record can be written");
}

/// The counts, without the call and the loop around each path.
fn count_all() -> impl Iterator<Item = (&'static str, f64)> {
    let nothing = valgrind::count(paths::NOTHING);
    let paths = paths::NAMES.iter().filter(|name| **name != paths::NOTHING);
    paths.map(move |name| {
        let count = valgrind::count(name) - nothing;
        (*name, (10.0 * count).round() / 10.0)
    })
}

/// The compiler and the counts on record.
fn read() -> (String, BTreeMap<String, f64>) {
    let text = std::fs::read_to_string(FILE).expect("there is a record");
    let compiler = text.lines().find_map(|line| line.strip_prefix(COMPILER));
    let counts = text.lines().filter(|line| !line.starts_with('#'));
    let counts = counts.map(|line| {
        let (count, name) = line.trim().split_once("  ").expect("a count and a name");
        (name.to_owned(), count.parse().expect("a count"))
    });
    (compiler.unwrap_or_default().to_owned(), counts.collect())
}

fn compiler_now() -> String {
    let output = Command::new("rustc").arg("--version").output();
    let output = output.expect("rustc tells its version");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
