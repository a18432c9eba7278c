//! The example `report`, run as a user runs it, quickly: the three files must be there and agree.

#![cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]

#[path = "../common/example.rs"]
mod example;

use example::texts;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::{env, fs, process};

fn report(arguments: &[&str]) -> Output {
    example::run("report", arguments)
}

/// A folder of its own for a test, removed afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("doorbell-{name}-{}", process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Folder(folder)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the folder was there");
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let list = value[name].as_array();
    list.unwrap_or_else(|| panic!("{name} is no list: {value}"))
}

fn number(value: &Value, name: &str) -> f64 {
    let number = value[name].as_f64();
    number.unwrap_or_else(|| panic!("{name} is no number: {value}"))
}

/// The figures of a row's samples, which must be in ascending order.
fn assert_ascending(row: &Value, names: &[&str]) {
    let numbers: Vec<f64> = names.iter().map(|name| number(row, name)).collect();
    assert!(numbers.is_sorted(), "{names:?}: {numbers:?} in {row}");
    assert!(numbers[0] > 0.0, "{row}");
}

#[test]
fn a_quick_run_writes_three_files_that_agree() {
    let folder = Folder::new("report");
    // The example makes the folder.
    let deep = folder.0.join("deep/down");
    let output = report(&["--quick", "--output", deep.to_str().expect("UTF-8")]);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert!(
        !stderr.contains(['\r', '\x1b']),
        "control characters in a pipe: {stderr:?}"
    );
    let read = |name: &str| folder.read(Path::new("deep/down").join(name).to_str().unwrap());
    let (page, text) = (read("report.html"), read("report.txt"));
    assert_eq!(stdout, text);

    let json: Value = serde_json::from_str(&read("report.json")).expect("JSON");
    assert_eq!(json["doorbell"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["quick"], true);
    let mut peers = Vec::new();
    for section in list(&json, "sections") {
        for comparison in list(section, "comparisons") {
            let name = comparison["name"].as_str().expect("a name");
            assert!(page.contains(name) && text.contains(name), "{name}");
            let rows = list(comparison, "rows");
            for row in rows {
                let names = [
                    "tenth_percentile_ns",
                    "median_ns",
                    "ninetieth_percentile_ns",
                ];
                assert_ascending(row, &names);
                peers.push(row["who"].as_str().expect("a name"));
            }
            let ours = rows.iter().filter(|row| row["kind"] == "doorbell");
            assert!(ours.count() >= 1 && rows.len() >= 2, "{name}");
        }
        for distribution in list(section, "distributions") {
            let name = distribution["name"].as_str().expect("a name");
            assert!(page.contains(name) && text.contains(name), "{name}");
            for row in list(distribution, "rows") {
                assert_ascending(row, &["median_ns", "p90_ns", "p99_ns", "max_ns"]);
                let quantiles = list(row, "quantiles_ns");
                assert!(quantiles.is_sorted_by_key(|ns| ns.as_f64().expect("a number")));
                assert_eq!(
                    number(row, "max_ns"),
                    quantiles.last().unwrap().as_f64().unwrap()
                );
            }
        }
    }
    let devices: Vec<&Value> = list(&json, "sections")
        .iter()
        .flat_map(|section| list(section, "devices"))
        .collect();
    assert_eq!(
        devices.len(),
        4,
        "one and 32 requests, drivers that sleep and that poll"
    );
    for device in devices {
        let name = device["name"].as_str().expect("a name");
        assert!(page.contains(name) && text.contains(name), "{name}");
        for row in list(device, "rows") {
            assert_ascending(row, &["p50_us", "p99_us"]);
            for number_of in ["requests_per_second", "to_doorbell"] {
                assert!(number(row, number_of) > 0.0, "{number_of}: {row}");
            }
            for number_of in ["cpu_us", "kicks", "interrupts"] {
                assert!(number(row, number_of) >= 0.0, "{number_of}: {row}");
            }
            peers.push(row["who"].as_str().expect("a name"));
        }
    }
    // The page and the output name the peers that are missing.
    let qemu = "qemu-storage-daemon";
    if !peers.contains(&qemu) {
        let told = format!("skipped: {qemu} (it is not there)");
        assert!(stderr.contains(&told), "{stderr}");
        let told = format!("Skipped: {qemu} (it is not there)");
        assert!(page.contains(&told) && text.contains(&told));
    }
    for peer in [
        "vhost-user-backend",
        "epoll, QEMU's polling",
        "doorbell",
        "kernel eventfd",
        "event-listener",
        "crossbeam Parker",
        "std Mutex + Condvar",
        "parking_lot Condvar",
        "POSIX sem_t",
        "tokio Notify",
        "poll(2)",
        "epoll",
    ] {
        assert!(peers.contains(&peer), "{peer} is missing");
        assert!(page.contains(peer) && text.contains(peer), "{peer}");
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let folder = Folder::new("page");
    let output = report(&["--quick", "--output", folder.0.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0), "{:?}", texts(&output));
    let page = folder.read("report.html");
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    for reference in [
        "http:", "https:", "src=", "href=", "url(", "@import", "<script",
    ] {
        assert!(!page.contains(reference), "{reference}");
    }
    // A distribution has a line for each of the eight.
    let lines = page.matches("<polyline").count();
    assert!(lines > 0 && lines % 8 == 0, "{lines}");
    assert!(!page.contains("NaN") && !page.contains(">inf"), "{page}");
}

#[test]
fn a_folder_that_cannot_be_made_is_told_at_once() {
    let output = report(&["--output", "/dev/null/report"]);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("cannot make /dev/null/report"), "{stderr}");
    assert_eq!(stdout, "");
}

#[test]
fn bad_options_are_told_and_exit_with_2() {
    let output = report(&["--fast"]);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("unexpected argument '--fast'"), "{stderr}");
}
