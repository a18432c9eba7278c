//! Whether the machine has more than one CPU.

/// Counts the CPUs now, which otherwise the first blocking call that spins does: opens
/// `/sys/devices/system/cpu/online`, reads it and closes it.
///
/// Call it before threads get seccomp filters that do not allow that. Afterwards, blocking calls on any thread make no
/// system calls except to wait, wake and yield. Without such a filter there is no need for it. (If the file cannot be
/// read, there are assumed to be many CPUs; but a filter may kill the thread that tries.) Calling it again does
/// nothing. [`use_membarrier`](crate::use_membarrier) should be called at the same point.
///
/// ```
/// doorbell::prepare_for_seccomp();
/// // From here on threads may be started, and filters installed.
/// ```
pub fn prepare_for_seccomp() {
    single_cpu();
}

/// Whether the machine has only one CPU, where spinning holds back the thread that it waits for. The system is asked
/// once, or by each of several threads that come here at the same time: none waits for another one, which may not exist
/// in a forked child.
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

/// How many CPUs are online, or `usize::MAX` if the system does not tell.
///
/// This is not `available_parallelism()`: in a thread that is pinned to one CPU, as device threads and vCPUs are, that
/// is 1, and does not tell where the signaller runs.
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
