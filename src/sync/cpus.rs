//! Whether the machine has more than one CPU.

/// Does now what the first blocking call of the process would do that spins: opens `/sys/devices/system/cpu/online`,
/// reads it and closes it, to see whether there is more than one CPU.
///
/// Call it before threads get seccomp filters that do not allow that. After it, a blocking call makes no system calls
/// but those that wait, wake and yield, on any thread. It need not be called: what cannot be read counts as many CPUs,
/// but a filter may kill who tries. Calling it again does nothing. [`use_membarrier`](crate::use_membarrier) is the
/// other call that has its place there.
///
/// ```
/// doorbell::prepare_for_seccomp();
/// // From here on threads may be started, and filters installed.
/// ```
pub fn prepare_for_seccomp() {
    single_cpu();
}

/// Whether the machine has one CPU only, where spinning holds back the very thread it waits for. Asked of the system
/// once, or by each of several threads that meet here: none waits for another, which a fork may have left behind.
pub(crate) fn single_cpu() -> bool {
    const UNKNOWN: u8 = 0;
    const ONE: u8 = 1;
    const SEVERAL: u8 = 2;
    // It orders nothing: std's under loom too.
    static CPUS: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(UNKNOWN);
    let known = CPUS.load(std::sync::atomic::Ordering::Relaxed);
    if known != UNKNOWN {
        return known == ONE;
    }
    let single = online_cpus() == 1;
    let known = if single { ONE } else { SEVERAL };
    CPUS.store(known, std::sync::atomic::Ordering::Relaxed);
    single
}

/// How many CPUs run; a great many if the system does not tell.
///
/// Not `available_parallelism()`: in a thread that is pinned to one CPU, as device threads and vCPUs are, that is 1,
/// and says nothing about where the signaller runs.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn online_cpus() -> usize {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    count_cpus(&ranges).unwrap_or(usize::MAX)
}

/// The number of CPUs in a list such as `0-3,8`.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn count_cpus(ranges: &str) -> Option<usize> {
    let mut cpus = 0;
    for range in ranges.trim_end().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        cpus += last.checked_sub(first)? + 1;
    }
    Some(cpus)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn online_cpus() -> usize {
    std::thread::available_parallelism().map_or(usize::MAX, |cpus| cpus.get())
}

#[cfg(all(test, not(loom), target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-3,8\n"), Some(5));
        assert_eq!(count_cpus("0-1,4-5,7"), Some(5));
        assert_eq!(count_cpus(""), None);
        assert_eq!(count_cpus("3-1"), None);
        assert_eq!(count_cpus("a"), None);
        // A pinned thread has one CPU to itself, and the machine has as many as before.
        let before = online_cpus();
        std::thread::spawn(move || {
            let mut one = rustix::thread::CpuSet::new();
            one.set(0);
            rustix::thread::sched_setaffinity(None, &one).expect("CPU 0 is there");
            assert_eq!(online_cpus(), before);
        })
        .join()
        .unwrap();
    }
}
