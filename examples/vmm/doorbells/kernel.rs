//! Set-ups in which KVM takes the kicks: by hand, and by doorbell's listener.

use super::{Counter, Doorbells, eventfds};
use crate::map::QUEUES;
use anyhow::{Context, bail};
use doorbell::ioeventfd::{Bus, Key};
use doorbell::kvm::KernelCount;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// The set-up `kernel`: KVM_IOEVENTFD by hand.
#[derive(Debug)]
pub struct InKernel {
    vm: Arc<VmFd>,
    fds: [EventFd; QUEUES],
}

impl InKernel {
    pub fn new(vm: &Arc<VmFd>) -> anyhow::Result<Self> {
        Ok(InKernel {
            vm: Arc::clone(vm),
            fds: eventfds()?,
        })
    }
}

/// kvm-ioctls derives the length from the type of the datamatch, so it can register these two kinds of key.
macro_rules! ioeventfd {
    ($self:ident, $method:ident, $key:ident, $queue:ident) => {{
        let address = match $key.bus {
            Bus::Pio => IoEventAddress::Pio($key.address),
            Bus::Mmio => IoEventAddress::Mmio($key.address),
        };
        match ($key.length, $key.datamatch) {
            (0, None) => $self.vm.$method(&$self.fds[$queue], &address, NoDatamatch),
            (2, Some(value)) => $self.vm.$method(&$self.fds[$queue], &address, value as u16),
            _ => bail!("kvm-ioctls has no form for {:?}", $key),
        }
        .with_context(|| format!("KVM_IOEVENTFD of {:?}", $key))?
    }};
}

impl Doorbells for InKernel {
    fn counter(&self, queue: usize) -> &dyn Counter {
        &self.fds[queue]
    }

    fn assign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()> {
        for &(key, queue) in doorbells {
            ioeventfd!(self, register_ioevent, key, queue);
        }
        Ok(())
    }

    fn deassign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()> {
        for &(key, queue) in doorbells {
            ioeventfd!(self, unregister_ioevent, key, queue);
        }
        Ok(())
    }

    fn write(&self, _: Bus, _: u64, _: &[u8]) -> bool {
        // KVM looked already.
        false
    }
}

/// An event of the set-up `listener`, and the part of its count that is in the kernel.
impl Counter for KernelCount {
    fn signal(&self) {
        // The device thread sleeps in this descriptor.
        rustix::io::write(self, &1_u64.to_ne_bytes()).expect("write(2) to an eventfd");
    }

    fn wait(&self) -> u64 {
        // A kick that exits, as kicks do whose doorbell KVM has refused, wakes no thread that sleeps on the descriptor.
        // The limit is long, because with a short one the kernel sets its timer each time.
        const LOOK: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        loop {
            if let Some(count) = self.event().try_read() {
                return count;
            }
            match poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&LOOK)) {
                Ok(_) | Err(Errno::INTR) => self.drain(),
                Err(e) => panic!("poll(2) of an eventfd: {e}"),
            };
        }
    }

    fn take(&self) -> u64 {
        self.drain();
        self.event().try_read().unwrap_or(0)
    }
}
