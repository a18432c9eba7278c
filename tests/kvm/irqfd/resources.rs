//! The resources of a sink: descriptors and threads, which are released with what they were for.

use crate::child;
use crate::exact::await_that;
use crate::refusals::split;
use crate::vm::descriptor;
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{MsiMessage, Route, Router, Routes};
use doorbell::kvm::{Injection, KvmSink};
use kvm_ioctls::{Kvm, VmFd};
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};

/// A VM with interrupt controllers. `None`, with a message, if there is no usable KVM.
fn machine() -> Option<Arc<VmFd>> {
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm());
    match vm.and_then(|vm| vm.create_irq_chip().map(|()| vm)) {
        Ok(vm) => Some(Arc::new(vm)),
        Err(error) => {
            eprintln!("skipped: no usable /dev/kvm ({error})");
            None
        }
    }
}

fn router(vm: &Arc<VmFd>, injection: Injection) -> Router {
    let sink = KvmSink::new(descriptor(vm), injection).unwrap();
    let router = Router::new(Arc::new(sink));
    router.set_routes(Routes::identity(24)).unwrap();
    router
}

/// The open descriptors, in order, without the one that this function opens itself.
fn descriptors() -> Vec<RawFd> {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let open = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse());
    let mut open: Vec<RawFd> = open.map(Result::unwrap).collect();
    // SAFETY: the number is only looked up, and may be any.
    open.retain(|&fd| rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok());
    open.sort_unstable();
    open
}

/// The number of sinks' threads, which wait for ends of interrupts.
fn threads() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let names =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "irqfd resample").count()
}

/// The last handle to a sink may be dropped by an ack, on the sink's own thread.
#[test]
fn a_sink_that_dies_on_its_own_thread() {
    child::alone("resources::a_sink_that_dies_on_its_own_thread", || {
        let Some(vm) = machine() else { return };
        for dies_there in [false, true] {
            let none = descriptors();
            let router = router(&vm, Injection::Userspace);
            let [event, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
            let irqfd = router.assign_with_resample(&event, 10, &resample);
            irqfd.unwrap().keep();
            await_that(|| threads() == 1);
            let last = Arc::new(Mutex::new(Some(router)));
            let acked = Arc::new(Event::new(0));
            let observer = {
                let (last, acked) = (Arc::clone(&last), Arc::clone(&acked));
                move |_: Change| {
                    if dies_there {
                        drop(last.lock().unwrap().take());
                    }
                    acked.signal();
                }
            };
            let observation = Observation::new(resample, Interest::Signals, Arc::new(observer));
            // This does what KVM does at the guest's end of interrupt: it signals the last of the new descriptors.
            let mut new = descriptors().into_iter().filter(|fd| !none.contains(fd));
            let end = new.next_back().unwrap();
            // SAFETY: the sink keeps the descriptor open.
            let end = unsafe { BorrowedFd::borrow_raw(end) };
            rustix::io::write(end, &1_u64.to_ne_bytes()).unwrap();
            acked.read();
            drop(last.lock().unwrap().take());
            drop((observation, event));
            await_that(|| threads() == 0 && descriptors() == none);
        }
    });
}

/// A sink's epoll has only lines with resampling irqfds, even if a child process still has their descriptors open.
#[test]
fn lines_leave_the_epoll() {
    child::alone("resources::lines_leave_the_epoll", || {
        let Some(vm) = machine() else { return };
        let router = router(&vm, Injection::Userspace);
        let [event, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
        let before = descriptors();
        let irqfd = router.assign_with_resample(&event, 10, &resample).unwrap();
        // A child that is forked now has these.
        let new = descriptors();
        let new = new.iter().filter(|fd| !before.contains(fd));
        let inherited: Vec<_> = new
            // SAFETY: the sink keeps the descriptor open.
            .map(|&fd| unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned())
            .map(Result::unwrap)
            .collect();
        let in_epoll = || {
            let information = inherited.iter().map(|fd| {
                let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
                fs::read_to_string(path).unwrap()
            });
            let lines = |text: String| text.lines().filter(|line| line.starts_with("tfd:")).count();
            information.map(lines).sum::<usize>()
        };
        // The other one is the eventfd that ends the thread.
        assert_eq!(in_epoll(), 2);
        drop(irqfd);
        assert_eq!(in_epoll(), 1);
    });
}

/// The descriptors of a sink are closed in programs that the VMM executes, and reads and writes there do not block. A
/// thread that has written to an irqfd of KVM's too late takes its write back, so a read takes one unit.
#[test]
fn how_descriptors_are_opened() {
    child::alone("resources::how_descriptors_are_opened", || {
        let Some(vm) = machine() else { return };
        let [edge, level, resample] = [(); 3].map(|()| Arc::new(Event::new(0)));
        let before = descriptors();
        let router = router(&vm, Injection::Kernel);
        let of_no_irqfd = descriptors();
        let open = |before: &[RawFd], of: &dyn Fn(BorrowedFd<'_>)| {
            let mut new = descriptors();
            new.retain(|fd| !before.contains(fd));
            // SAFETY: the sink keeps the descriptor open.
            let new = new.iter().map(|&fd| unsafe { BorrowedFd::borrow_raw(fd) });
            new.map(of).count()
        };
        // On a pin, KVM does not have this irqfd.
        let _edge = router.assign(&edge, 20).unwrap();
        let of_a_message = open(&of_no_irqfd, &|fd| {
            rustix::io::write(fd, &3_u64.to_ne_bytes()).unwrap();
            let mut count = [0; 8];
            for _ in 0..3 {
                rustix::io::read(fd, &mut count).unwrap();
                assert_eq!(u64::from_ne_bytes(count), 1);
            }
            assert_eq!(rustix::io::read(fd, &mut count), Err(Errno::AGAIN));
        });
        assert_eq!(of_a_message, 1);
        let _level = router.assign_with_resample(&level, 10, &resample).unwrap();
        let all = open(&before, &|fd| {
            assert_eq!(rustix::io::fcntl_getfd(fd), Ok(FdFlags::CLOEXEC));
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            if fs::read_link(path).unwrap().as_os_str() == "anon_inode:[eventfd]" {
                let flags = rustix::fs::fcntl_getfl(fd).unwrap();
                assert!(flags.contains(OFlags::NONBLOCK));
            }
        });
        // The descriptors are the VM's, two for messages, two for the assertion, and two for the thread.
        assert_eq!(all, 7);
    });
}

/// Of an irqfd that KVM refuses, nothing stays: KVM has no resampling irqfds beside a split interrupt controller.
#[test]
fn a_refused_irqfd_leaves_no_descriptors() {
    child::alone("resources::a_refused_irqfd_leaves_no_descriptors", || {
        let Some(vm) = split(false) else { return };
        let vm = Arc::new(vm);
        let sink = KvmSink::new(descriptor(&vm), Injection::Userspace).unwrap();
        let router = Router::new(Arc::new(sink));
        let [event, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
        let before = descriptors().len();
        for _ in 0..3 {
            let refused = router.assign_with_resample(&event, 10, &resample);
            assert!(refused.is_err());
            // Those of the thread.
            assert_eq!(descriptors().len() - before, 2);
        }
    });
}

/// All descriptors of a GSI are closed with its last irqfd.
#[test]
fn descriptors_go_with_the_last_irqfd() {
    child::alone("resources::descriptors_go_with_the_last_irqfd", || {
        let Some(vm) = machine() else { return };
        let events = [(); 4].map(|()| Arc::new(Event::new(0)));
        let [first, second, third, resample] = &events;
        for (injection, of_messages) in [(Injection::Userspace, 0), (Injection::Kernel, 1)] {
            let router = router(&vm, injection);
            let message = MsiMessage::new(0xfee0_0000, 0x41);
            router.set_route(24, Some(Route::Msi(message))).unwrap();
            let none = descriptors().len();
            let open = || descriptors().len() - none;
            for _ in 0..3 {
                for gsi in [10, 24] {
                    let irqfds = [first, second].map(|event| router.assign(event, gsi).unwrap());
                    assert_eq!(open(), of_messages);
                    let [a, b] = irqfds;
                    drop(a);
                    assert_eq!(open(), of_messages);
                    drop(b);
                    assert_eq!(open(), 0);
                }
            }
            // The thread has an epoll and an eventfd, for as long as the sink exists.
            let resampling = |event| router.assign_with_resample(event, 10, resample).unwrap();
            let thread = 2;
            let with_assertion = thread + 2 + of_messages;
            let plain = router.assign(third, 10).unwrap();
            for _ in 0..3 {
                let irqfds = [first, second].map(|event| {
                    let irqfd = resampling(event);
                    assert_eq!(open(), with_assertion);
                    irqfd
                });
                let [a, b] = irqfds;
                drop(a);
                assert_eq!(open(), with_assertion);
                drop(b);
                assert_eq!(open(), thread + of_messages);
            }
            drop(plain);
            assert_eq!(open(), thread);
            drop(router);
            // The VM's descriptor goes with the sink, too.
            assert_eq!(descriptors().len(), none - 1);
            assert_eq!(threads(), 0);
        }
    });
}
