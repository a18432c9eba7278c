//! Shows the progress, and ends the program when there is none.

use indicatif::{ProgressBar, ProgressStyle};
use std::thread;
use std::time::Duration;

/// A line on a terminal, nothing elsewhere.
pub struct Progress(ProgressBar);

/// Give up after this time without a sample. The longest samples, of threads that wait for a CPU, take a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

impl Progress {
    pub fn new(samples: usize) -> Self {
        let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {eta:>4} left  {msg}");
        let bar = ProgressBar::new(samples as u64);
        bar.set_style(style.expect("the template is valid"));
        thread::spawn({
            let bar = bar.clone();
            move || watch(&bar)
        });
        Progress(bar)
    }

    /// Names what the next samples measure.
    pub fn begin(&self, name: &str) {
        self.0.set_message(name.to_owned());
    }

    pub fn step(&self) {
        self.0.inc(1);
    }

    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// Threads that wait for each other for ever cannot be joined.
fn watch(bar: &ProgressBar) {
    let mut last = bar.position();
    loop {
        thread::sleep(PATIENCE);
        let now = bar.position();
        if now == last && !bar.is_finished() {
            let seconds = PATIENCE.as_secs();
            eprintln!("report: no sample for {seconds} s: {}", bar.message());
            std::process::exit(1);
        }
        last = now;
    }
}
