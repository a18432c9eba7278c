//! The CPUs that the threads of a machine are kept on, if any.

use std::sync::Arc;

/// The CPUs that this process may run on.
#[derive(Clone)]
pub struct Pins(Arc<[usize]>);

#[cfg(target_os = "linux")]
impl Pins {
    pub fn new() -> anyhow::Result<Self> {
        use anyhow::{Context, ensure};
        use rustix::thread::{CpuSet, sched_getaffinity};
        let may = sched_getaffinity(None).context("sched_getaffinity(2)")?;
        let cpus: Arc<[usize]> = (0..CpuSet::MAX_CPU)
            .filter(|&cpu| may.is_set(cpu))
            .collect();
        ensure!(
            cpus.len() > 1,
            "--pin: there is one CPU, which vCPU and device would share"
        );
        Ok(Pins(cpus))
    }

    /// Keeps the calling thread on one CPU.
    fn keep_on(&self, index: usize) {
        use rustix::thread::{CpuSet, sched_setaffinity};
        let mut set = CpuSet::new();
        set.set(self.0[index]);
        if let Err(e) = sched_setaffinity(None, &set) {
            crate::fail(&anyhow::Error::new(e).context("sched_setaffinity(2)"));
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Pins {
    pub fn new() -> anyhow::Result<Self> {
        anyhow::bail!("--pin: only on Linux")
    }

    fn keep_on(&self, _: usize) {}
}

impl Pins {
    /// The calling thread is the vCPU's.
    pub fn keep_vcpu(&self) {
        self.keep_on(0);
    }

    /// The calling thread is one of the device's.
    pub fn keep_device(&self, number: usize) {
        self.keep_on(1 + number % (self.0.len() - 1));
    }
}
