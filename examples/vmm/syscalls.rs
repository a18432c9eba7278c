//! Counts a thread's system calls, by the kernel's own tracepoint, which does not affect the thread.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tracepoint {
    use perf_event::events::Tracepoint;
    use perf_event::{Builder, Counter};
    use std::{fs, io};

    /// Counts from its creation on.
    pub struct Syscalls(Counter);

    impl Syscalls {
        /// Counts the system calls of the calling thread.
        ///
        /// # Errors
        ///
        /// tracefs is not mounted, or this process may not use it.
        pub fn start() -> io::Result<Self> {
            let counter = Builder::new(Tracepoint::with_id(tracepoint_id()?))
                .observe_self()
                .any_cpu()
                .include_kernel()
                .enabled(true)
                .build()
                .map_err(|e| io::Error::new(e.kind(), format!("perf_event_open: {e}")))?;
            Ok(Syscalls(counter))
        }

        /// Returns how many calls there were until now.
        pub fn stop(mut self) -> io::Result<u64> {
            // The count includes the call that reads the counter.
            Ok(self.0.read()? - 1)
        }
    }

    fn tracepoint_id() -> io::Result<u64> {
        let mut missing = None;
        for root in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
            let file = format!("{root}/events/raw_syscalls/sys_enter/id");
            match fs::read_to_string(&file) {
                Ok(id) => return id.trim().parse().map_err(io::Error::other),
                Err(e) => {
                    missing.get_or_insert(io::Error::new(e.kind(), format!("{file}: {e}")));
                }
            }
        }
        Err(missing.expect("there is a root"))
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod tracepoint {
    use std::io;

    pub enum Syscalls {}

    impl Syscalls {
        pub fn start() -> io::Result<Self> {
            Err(io::Error::other("counted on x86_64 Linux only"))
        }

        pub fn stop(self) -> io::Result<u64> {
            match self {}
        }
    }
}

pub use tracepoint::Syscalls;
