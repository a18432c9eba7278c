//! Measures costs: an [`Event`](doorbell::Event) beside the kernel's eventfd, epoll, poll and other crates' ways to
//! wake a thread.
//!
//! All comparisons are made in one process and by turns, so that other load on the machine affects all cases alike.
//! Only the device's back-ends are processes of their own, and the cases after `use_membarrier`, which is for a whole
//! process. The cases are those of the benches. The result is one page without external references, the same as text,
//! and the same as JSON.
//!
//! | what | where |
//! |---|---|
//! | what is compared with what | [`sections`], `benches/cases/`, `benches/device/` |
//! | the turns | [`measure`] |
//! | a process with membarrier | [`membarrier`] |
//! | the results | [`results`], written by [`page`] with [`chart`], and by [`text`] |
//!
//! `cargo run --release --example report -- --help` tells the options.

#[cfg(target_os = "linux")]
#[path = "../../tests/examples/vhost_user_blk/backend.rs"]
#[allow(dead_code)]
mod backend;
#[cfg(target_os = "linux")]
#[path = "../../benches/cases/mod.rs"]
mod cases;
#[cfg(target_os = "linux")]
mod chart;
#[cfg(target_os = "linux")]
#[path = "../../benches/device/mod.rs"]
mod device;
#[cfg(target_os = "linux")]
#[path = "../../tests/examples/vhost_user_blk/driver.rs"]
#[allow(dead_code)]
mod driver;
#[cfg(target_os = "linux")]
mod format;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod measure;
#[cfg(target_os = "linux")]
mod membarrier;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod page;
#[cfg(target_os = "linux")]
mod progress;
#[cfg(target_os = "linux")]
mod results;
#[cfg(target_os = "linux")]
mod sections;
#[cfg(target_os = "linux")]
mod text;
#[cfg(target_os = "linux")]
#[path = "../../tests/common/watchdog.rs"]
#[allow(dead_code)]
mod watchdog;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    use anyhow::Context;
    use clap::Parser;
    use std::fs;

    let options = options::Options::parse();
    if options.with_membarrier {
        return membarrier::serve();
    }
    let folder = &options.output;
    // This fails before the measurements, which take minutes.
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let report = measure::run(options.quick);

    let text = text::of(&report);
    print!("{text}");
    for (name, content) in [
        ("report.html", page::of(&report)),
        ("report.txt", text),
        ("report.json", serde_json::to_string_pretty(&report)? + "\n"),
    ] {
        let file = folder.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("report: wrote {}", file.display());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: this compares with what Linux has");
}
