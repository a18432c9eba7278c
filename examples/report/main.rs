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

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "../../tests/examples/vhost_user_blk/backend.rs"]
#[allow(dead_code)]
mod backend;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "../../benches/cases/mod.rs"]
mod cases;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod chart;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "../../benches/device/mod.rs"]
mod device;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "../../tests/examples/vhost_user_blk/driver.rs"]
#[allow(dead_code)]
mod driver;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod format;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod machine;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod measure;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod membarrier;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod options;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod page;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod progress;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod results;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod sections;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod text;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[path = "../../tests/common/watchdog.rs"]
#[allow(dead_code)]
mod watchdog;

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
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

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
fn main() {
    println!(
        "skipped: the crates of vhost-user and its driver are for 64-bit Linux with the GNU C library"
    );
}
