//! Ends tests that hang.

use std::fs;
use std::io::{self, Write};
use std::sync::LazyLock;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// How long a test may take. None needs more than seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether this is a Linux program of another processor, run by qemu-user, which fakes most of `/proc`, but not this.
pub fn emulated() -> bool {
    static EMULATED: LazyLock<bool> = LazyLock::new(|| {
        fs::read_link("/proc/thread-self/exe").is_ok_and(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("qemu-"))
        })
    });
    *EMULATED
}

/// Runs a test with a watchdog over it.
pub fn limit<T>(name: &'static str, test: impl FnOnce() -> T) -> T {
    let _watchdog = Watchdog::new(LIMIT, || name.to_owned());
    test()
}

/// Ends the process with a report unless dropped in time.
pub struct Watchdog {
    /// Its drop is the message.
    _alive: Sender<()>,
}

impl Watchdog {
    /// `report` is called for what is to be printed when the time is up. An emulated program has ten times as long.
    pub fn new(limit: Duration, report: impl FnOnce() -> String + Send + 'static) -> Self {
        let limit = if emulated() { 10 * limit } else { limit };
        let (alive, watched) = mpsc::channel();
        thread::spawn(move || {
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // This bypasses libtest's capture, which an abort would leave unprinted.
                let text = format!("hung for {limit:?}: {}\n", report());
                let _ = io::stderr().write_all(text.as_bytes());
                std::process::abort();
            }
        });
        Watchdog { _alive: alive }
    }
}
