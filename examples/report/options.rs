//! The command line.

use clap::Parser;
use std::path::PathBuf;

/// Measures doorbell's events beside the kernel's eventfd, epoll, poll and other crates' ways to wake a thread, and
/// writes report.html, report.txt and report.json.
///
/// Exits with 0, with 1 if the report cannot be written, with 2 for bad options.
#[derive(Parser, Debug)]
#[command(name = "report")]
pub struct Options {
    /// Take few and short samples: shows that it works and little more
    #[arg(long)]
    pub quick: bool,

    /// The folder to write to; made if it is not there
    #[arg(long, value_name = "FOLDER", default_value = "target/report")]
    pub output: PathBuf,

    /// Do after `use_membarrier` what the standard input says: see `membarrier.rs`
    #[arg(long, hide = true)]
    pub with_membarrier: bool,
}
