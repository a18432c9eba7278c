//! A clock that guest and device thread can both read, to time a kick from one to the other.

use std::time::Instant;

#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The time stamp counter, made the same for guest and host. It ticks at this rate.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Tsc { khz: u32 },
    /// Nanoseconds since a moment; for a software vCPU.
    Since(Instant),
}

impl Clock {
    /// Now, in ticks.
    pub fn now(&self) -> u64 {
        match self {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Clock::Tsc { .. } => {
                use std::arch::x86_64::{_mm_lfence, _rdtsc};
                // SAFETY: every x86_64 has both. The fence keeps RDTSC from running ahead of the loads before it.
                unsafe {
                    _mm_lfence();
                    _rdtsc()
                }
            }
            Clock::Since(start) => start.elapsed().as_nanos() as u64,
        }
    }

    /// The length of a time that was measured in ticks.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        match self {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Clock::Tsc { khz } => (u128::from(ticks) * 1_000_000 / u128::from(*khz)) as u64,
            Clock::Since(_) => ticks,
        }
    }
}
