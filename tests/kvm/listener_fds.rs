//! The descriptors of the KVM listener, in a process of their own: the count is of the whole process, and so is the
//! limit.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use doorbell::Event;
use doorbell::ioeventfd::space::Listener;
use doorbell::ioeventfd::space::{AddressSpace, CommitReport, Region};
use doorbell::ioeventfd::{Bus, Doorbell, Key};
use doorbell::kvm::KvmListener;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

const QUEUES: u64 = 100;

fn open() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").expect("/proc is there");
    // One of the descriptors is the directory's.
    fds.count() - 1
}

fn limit_to(more: Option<usize>) {
    let limits = getrlimit(Resource::Nofile);
    let current = more.map_or(limits.maximum, |more| Some((open() + more) as u64));
    setrlimit(Resource::Nofile, Rlimit { current, ..limits }).unwrap();
}

/// A device with a doorbell for each queue, each of which has its own event.
fn plug(space: &AddressSpace, base: u64) -> (Region, CommitReport) {
    let bar = space.region(Bus::Mmio, 0x1000);
    let transaction = space.begin();
    assert!(bar.map(base).unwrap().is_clean());
    for queue in 0..QUEUES {
        let event = Arc::new(Event::new(0));
        assert!(
            bar.add_eventfd(4 * queue, 4, None, event)
                .unwrap()
                .is_clean()
        );
    }
    (bar, transaction.commit())
}

/// This is one test, because several would disturb one another.
#[test]
fn descriptors_go_with_the_events() {
    let vm = match kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => vm,
        Err(error) => return eprintln!("skipped: no usable /dev/kvm ({error})"),
    };
    // SAFETY: `vm` keeps its descriptor open.
    let vm_fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    let listener = Arc::new(KvmListener::new(vm_fd).unwrap());
    let space = AddressSpace::new();
    assert!(space.add_listener(listener.clone()).is_clean());
    let before = open();

    // Descriptors go with the last user: the commit that unplugs the device drops its events.
    let (device, report) = plug(&space, 0xd000_0000);
    assert!(report.is_clean());
    assert_eq!(open(), before + QUEUES as usize);
    assert!(device.remove().is_clean());
    assert_eq!(open(), before);

    // Other code holds the events at that time, and drops them later. The next commit of that kind finds them.
    let held: Vec<_> = (0..QUEUES).map(|_| Arc::new(Event::new(0))).collect();
    for event in &held {
        drop(listener.count_of(event).unwrap());
    }
    let (device, report) = plug(&space, 0xd000_0000);
    assert!(report.is_clean() && device.remove().is_clean());
    assert_eq!(open(), before + QUEUES as usize);
    drop(held);
    let (device, report) = plug(&space, 0xd000_0000);
    assert!(report.is_clean() && device.remove().is_clean());
    assert_eq!(open(), before);

    // Events that have gone have the last descriptors, and nothing has told the listener to let go of them.
    for _ in 0..2 {
        limit_to(Some(QUEUES as usize));
        let mut events = Vec::new();
        let refused = loop {
            let event = Arc::new(Event::new(0));
            match listener.count_of(&event) {
                Ok(_) => events.push(event),
                Err(error) => break error,
            }
        };
        assert!(events.len() >= QUEUES as usize);
        assert_eq!(refused.call(), "eventfd2");
        let errno = io::Error::from(refused).raw_os_error();
        assert_eq!(errno, Some(libc::EMFILE));
        drop(events);
        let event = Arc::new(Event::new(0));
        let doorbell = Doorbell::new(Key::mmio(0xe000_0000, 4), &event);
        listener.eventfd_add(&doorbell).unwrap();
        limit_to(None);
        assert_eq!(open(), before + 1);
        listener.eventfd_del(&doorbell).unwrap();
        drop((event, doorbell));
        listener.committed();
        assert_eq!(open(), before);
    }
}
