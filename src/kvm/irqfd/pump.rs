//! The way back: KVM tells an eventfd of the guest's ends of interrupt, and a thread tells the router.

use super::{eventfd, signal};
use crate::irqfd::Eoi;
use crate::sync::atomic::{AtomicBool, Ordering};
use kvm_ioctls::VmFd;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use vmm_sys_util::eventfd::EventFd;

/// A line that KVM asserts when `raise` is written to, until the guest's end of interrupt, when it signals `resample`.
#[derive(Clone)]
pub(super) struct Assertion {
    raise: Arc<EventFd>,
    resample: Arc<EventFd>,
    /// It was raised, and the end of that interrupt has not been heard of.
    raised: Arc<AtomicBool>,
}

impl Assertion {
    pub(super) fn new(vm: &VmFd, gsi: u32) -> io::Result<Self> {
        let assertion = Assertion {
            raise: Arc::new(eventfd()?),
            resample: Arc::new(eventfd()?),
            raised: Arc::new(AtomicBool::new(false)),
        };
        assertion.register(vm, gsi)?;
        Ok(assertion)
    }

    fn register(&self, vm: &VmFd, gsi: u32) -> io::Result<()> {
        Ok(vm.register_irqfd_with_resample(&self.raise, &self.resample, gsi)?)
    }

    pub(super) fn raise(&self) {
        // Relaxed: the end of this interrupt comes by way of the kernel.
        self.raised.store(true, Ordering::Relaxed);
        signal(&self.raise);
    }

    /// Whether it takes somebody to lower it. The caller does.
    pub(super) fn take(&self) -> bool {
        self.raised.swap(false, Ordering::Relaxed)
    }

    /// Without an end of interrupt, KVM lowers the line when its last resampling irqfd goes.
    ///
    /// # Panics
    ///
    /// If the irqfd cannot be made anew, for want of memory.
    pub(super) fn lower(&self, vm: &VmFd, gsi: u32) {
        let lowered = vm.unregister_irqfd(&self.raise, gsi);
        let again = lowered
            .map_err(io::Error::from)
            .and_then(|()| self.register(vm, gsi));
        if let Err(error) = again {
            panic!("KVM_IRQFD: {error}");
        }
    }
}

/// The thread. It ends when this is dropped.
pub(super) struct Pump {
    shared: Arc<Shared>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: OwnedFd,
    /// The number that stands in the epoll is the index.
    watched: Mutex<Vec<(Assertion, Eoi)>>,
}

const STOP: u64 = u64::MAX;

impl Pump {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            watched: Mutex::default(),
        });
        let stop = eventfd()?;
        shared.add(&stop, STOP)?;
        let thread = {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("irqfd resample".into());
            thread.spawn(move || shared.work())?
        };
        Ok(Pump {
            shared,
            stop,
            thread: Some(thread),
        })
    }

    pub(super) fn watch(&self, assertion: &Assertion, line: Eoi) -> io::Result<()> {
        let mut watched = self.shared.lock();
        self.shared.add(&assertion.resample, watched.len() as u64)?;
        watched.push((assertion.clone(), line));
        Ok(())
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        signal(&self.stop);
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The last handle to the sink may be dropped by an ack, on this very thread.
        if thread.thread().id() != thread::current().id() {
            // It catches what panics.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<(Assertion, Eoi)>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, fd: &EventFd, number: u64) -> io::Result<()> {
        // SAFETY: the eventfd keeps its descriptor open, and is borrowed for as long as this is.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(
            self.epoll.as_fd(),
            fd,
            data,
            epoll::EventFlags::IN,
        )?)
    }

    fn work(&self) {
        let mut events = Vec::with_capacity(16);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => unreachable!("epoll_wait: {errno}"),
            }
            for event in &events {
                if event.data.u64() == STOP {
                    return;
                }
                let (assertion, line) = self.lock()[event.data.u64() as usize].clone();
                // The end of an interrupt: KVM has lowered the line already.
                if assertion.resample.read().is_ok() {
                    assertion.take();
                    // The panic of an observer has been reported.
                    let _ = panic::catch_unwind(AssertUnwindSafe(|| line.ack()));
                }
            }
        }
    }
}
