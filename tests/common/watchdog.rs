//! Ends tests that hang.

use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// How long a test may take. None needs more than seconds.
const LIMIT: Duration = Duration::from_secs(60);

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
    /// `report` is called for what is to be printed when the time is up.
    pub fn new(limit: Duration, report: impl FnOnce() -> String + Send + 'static) -> Self {
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
