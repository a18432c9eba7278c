//! The machine on which the report was measured.

use serde::Serialize;
use std::fs;

#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub virtual_machine: bool,
    pub system: String,
    pub kernel: String,
    pub architecture: &'static str,
}

impl Machine {
    pub fn this() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name| fields(&cpuinfo, ':', name).next();
        let release = read("/etc/os-release");
        let system = fields(&release, '=', "PRETTY_NAME").next();
        Machine {
            cpu: field("model name").unwrap_or("unknown").to_owned(),
            cpus: fields(&cpuinfo, ':', "processor").count(),
            virtual_machine: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            system: system.unwrap_or("unknown").trim_matches('"').to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            architecture: std::env::consts::ARCH,
        }
    }
}

/// How many threads ran or were ready to run, on average over the last minute; this program's own threads are included.
pub fn load() -> Option<f64> {
    read("/proc/loadavg").split(' ').next()?.parse().ok()
}

/// The text of a file; empty if there is no such file.
fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

fn fields<'a>(text: &'a str, separator: char, name: &str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (key, value) = line.split_once(separator)?;
        (key.trim() == name).then(|| value.trim())
    })
}
