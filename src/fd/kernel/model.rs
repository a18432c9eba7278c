//! The kernel's eventfd, for loom: a counter under a lock, as it is in the kernel, and a queue of sleeping threads.

use loom::sync::{Condvar, Mutex, MutexGuard};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::sync::Arc;

/// A file descriptor. Clones of it share what it stands for.
#[derive(Clone)]
pub struct KernelEvent(Arc<File>);

struct File {
    flags: EventfdFlags,
    count: Mutex<Count>,
    changed: Condvar,
}

#[derive(Default)]
struct Count {
    now: u64,
    writes: u64,
}

impl KernelEvent {
    pub(crate) fn new(flags: EventfdFlags) -> io::Result<Self> {
        Ok(KernelEvent(Arc::new(File {
            flags,
            count: Mutex::default(),
            changed: Condvar::new(),
        })))
    }

    /// As a peer makes it.
    pub fn blocking(count: u64) -> Self {
        let fd = Self::new(EventfdFlags::empty()).expect("a model has room");
        fd.lock().now = count;
        fd
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(self.clone())
    }

    pub fn read(&self) -> io::Result<u64> {
        self.when(|count| {
            let left = match count.now {
                0 => return None,
                now if self.0.flags.contains(EventfdFlags::SEMAPHORE) => now - 1,
                _ => 0,
            };
            Some(std::mem::replace(&mut count.now, left) - left)
        })
    }

    pub fn write(&self, n: u64) -> io::Result<()> {
        if n == u64::MAX {
            return Err(Errno::INVAL.into());
        }
        self.when(|count| {
            let fits = n < u64::MAX - count.now;
            fits.then(|| {
                count.now += n;
                count.writes += 1;
            })
        })
    }

    /// What `poll(2)` would say.
    pub fn is_readable(&self) -> bool {
        self.count() != 0
    }

    pub fn count(&self) -> u64 {
        self.lock().now
    }

    /// How many edges an epoll has seen.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    fn when<T>(&self, change: impl Fn(&mut Count) -> Option<T>) -> io::Result<T> {
        let mut count = self.lock();
        loop {
            if let Some(result) = change(&mut count) {
                self.0.changed.notify_all();
                return Ok(result);
            }
            if self.0.flags.contains(EventfdFlags::NONBLOCK) {
                return Err(Errno::AGAIN.into());
            }
            count = self.0.changed.wait(count).expect("loom has no poison");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.0.count.lock().expect("loom has no poison")
    }
}

impl fmt::Debug for KernelEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KernelEvent")
    }
}
