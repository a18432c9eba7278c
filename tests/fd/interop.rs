//! Our descriptors in the hands of other crates.

use crate::common::watchdog;
#[cfg(feature = "vmm-sys-util")]
use crate::is_readable;
use doorbell::Event;
use doorbell::fd::{
    EFD_NONBLOCK, EventConsumer, EventFd, EventFlag, EventNotifier, Mirror,
    new_event_consumer_and_notifier,
};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::pipe::{PipeFlags, pipe_with};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

// The notifier and the consumer

#[test]
fn notify_and_consume() {
    for flags in [EventFlag::empty(), EventFlag::all()] {
        let (consumer, notifier) = new_event_consumer_and_notifier(flags).unwrap();
        notifier.notify().unwrap();
        notifier.try_clone().unwrap().notify().unwrap();
        consumer.try_clone().unwrap().consume().unwrap();
        if flags.contains(EventFlag::NONBLOCK) {
            let error = consumer.consume().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
        assert_ne!(consumer.as_raw_fd(), notifier.as_raw_fd());
        notifier.notify().unwrap();
        consumer.consume().unwrap();
    }
}

#[test]
fn close_on_exec() {
    let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::CLOEXEC).unwrap();
    let is_set = |fd: &dyn AsFd| {
        let fd = fd.as_fd();
        fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)
    };
    assert!(is_set(&consumer) && is_set(&notifier));
    assert!(is_set(&consumer.try_clone().unwrap()) && is_set(&notifier.try_clone().unwrap()));
    let (consumer, _) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
    assert!(!is_set(&consumer));
}

#[test]
fn the_ends_of_a_pipe() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    // SAFETY: the descriptors are owned, and given away.
    let (consumer, notifier) = unsafe {
        (
            EventConsumer::from_raw_fd(reader.into_raw_fd()),
            EventNotifier::from_raw_fd(writer.into_raw_fd()),
        )
    };
    notifier.notify().unwrap();
    consumer.consume().unwrap();
}

/// Our consumer treats a pipe as the original does: less than 8 bytes are taken, and lost.
#[test]
fn a_consumer_of_a_pipe() {
    use vmm_sys_util::event::EventConsumer as Original;

    fn seen(
        make: impl FnOnce(OwnedFd) -> Box<dyn Fn() -> io::Result<()>>,
    ) -> Vec<Result<(), (ErrorKind, Option<i32>)>> {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let consume = make(reader);
        let mut writer = Some(writer);
        let steps: [&[u8]; 6] = [&[], &[1; 8], &[1; 16], &[], &[1; 3], &[1; 5]];
        let mut seen = Vec::new();
        for bytes in steps {
            if !bytes.is_empty() {
                rustix::io::write(writer.as_ref().unwrap(), bytes).unwrap();
            }
            seen.push(consume());
        }
        rustix::io::write(writer.take().unwrap(), &[1; 3]).unwrap();
        seen.extend([consume(), consume()]);
        seen.into_iter()
            .map(|result| result.map_err(|error| (error.kind(), error.raw_os_error())))
            .collect()
    }
    let ours = seen(|fd| {
        let consumer = EventConsumer::from(fd);
        Box::new(move || consumer.consume())
    });
    let theirs = seen(|fd| {
        // SAFETY: the descriptor is owned, and given away.
        let consumer = unsafe { Original::from_raw_fd(fd.into_raw_fd()) };
        Box::new(move || consumer.consume())
    });
    assert_eq!(ours, theirs);
    assert_eq!(ours[..4].iter().filter(|result| result.is_ok()).count(), 3);
}

/// The ends own their descriptors, as the originals do.
#[test]
fn ends_that_become_descriptors() {
    let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
    notifier.notify().unwrap();
    let raw = [consumer.as_raw_fd(), notifier.as_raw_fd()];
    let fds = [OwnedFd::from(consumer), OwnedFd::from(notifier)];
    assert_eq!(fds.each_ref().map(|fd| fd.as_raw_fd()), raw);
    rustix::io::write(&fds[1], &2_u64.to_ne_bytes()).unwrap();
    let [consumer, _notifier] = fds;
    assert_eq!(EventFd::from(consumer).read().unwrap(), 3);
}

#[test]
fn both_ways_to_an_eventfd() {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let notifier = EventNotifier::from(event.try_clone().unwrap());
    let consumer = EventConsumer::from(event);
    notifier.notify().unwrap();
    assert_eq!(EventFd::from(consumer).read().unwrap(), 1);
}

// event-manager

/// A device that reads its queue's event and its stop event.
struct Device {
    queue: Arc<Event>,
    readiness: Mirror,
    stop: EventFd,
    seen: Arc<Mutex<Vec<u64>>>,
}

impl MutEventSubscriber for Device {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.readiness, EventSet::IN)).unwrap();
        ops.add(Events::new(&self.stop, EventSet::IN)).unwrap();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut seen = self.seen.lock().unwrap();
        if events.fd() == self.readiness.as_raw_fd() {
            seen.push(self.queue.try_read().unwrap());
        } else {
            assert_eq!(events.fd(), self.stop.as_raw_fd());
            seen.push(1000 + self.stop.read().unwrap());
            ops.remove(Events::empty(&self.stop)).unwrap();
        }
    }
}

#[test]
fn event_manager() {
    watchdog::limit("event-manager", || {
        let queue = Arc::new(Event::new(0));
        let stop = EventFd::new(EFD_NONBLOCK).unwrap();
        let stopper = stop.try_clone().unwrap();
        let seen = Arc::default();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(Device {
            readiness: Mirror::new(Arc::clone(&queue)).unwrap(),
            queue: Arc::clone(&queue),
            stop,
            seen: Arc::clone(&seen),
        });
        let mut turn = |expected: &[u64]| {
            manager.run_with_timeout(0).unwrap();
            assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), expected);
        };
        turn(&[]);
        queue.signal_n(3);
        turn(&[3]);
        turn(&[]);
        stopper.write(5).unwrap();
        turn(&[1005]);
        stopper.write(6).unwrap();
        queue.signal();
        turn(&[1]);
        turn(&[]);
    });
}

/// A poll that io_uring has under way ends with the signal. (On processors that the crate `io-uring` supports.)
#[cfg(any(
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "x86_64"
))]
#[test]
fn io_uring() {
    use io_uring::{IoUring, opcode, types};

    let mut ring = match IoUring::new(2) {
        Ok(ring) => ring,
        Err(error) => {
            eprintln!("skipped: io_uring: {error}");
            return;
        }
    };
    let event = Arc::new(Event::new(0));
    let mirror = Mirror::new(Arc::clone(&event)).unwrap();
    let poll = opcode::PollAdd::new(types::Fd(mirror.as_raw_fd()), libc::POLLIN as u32)
        .build()
        .user_data(7);
    watchdog::limit("io_uring", || {
        // SAFETY: the entry points to no memory, and the descriptor is open until the end.
        unsafe { ring.submission().push(&poll) }.unwrap();
        ring.submit().unwrap();
        assert!(ring.completion().is_empty());
        event.signal();
        ring.submit_and_wait(1).unwrap();
        let done = ring.completion().next().unwrap();
        assert_eq!((done.user_data(), done.result()), (7, libc::POLLIN.into()));
    });
}

// Conversions that features add

#[cfg(feature = "mio")]
#[test]
fn mio_sources() {
    use doorbell::fd::Forward;
    use mio::{Interest, Poll, Token};
    use std::time::Duration;

    let mut poll = Poll::new().unwrap();
    let mut events = mio::Events::with_capacity(8);
    let event = Arc::new(Event::new(0));
    let forwarded = Arc::new(Event::new(0));
    let mut mirror = Mirror::new(Arc::clone(&event)).unwrap();
    let mut forward = Forward::new(Arc::clone(&forwarded)).unwrap();
    let mut eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
    let (mut consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
    let registry = poll.registry().try_clone().unwrap();
    registry
        .register(&mut mirror, Token(0), Interest::READABLE)
        .unwrap();
    registry
        .register(&mut forward, Token(1), Interest::READABLE)
        .unwrap();
    registry
        .register(&mut eventfd, Token(2), Interest::READABLE)
        .unwrap();
    registry
        .register(&mut consumer, Token(3), Interest::READABLE)
        .unwrap();
    let error = registry
        .register(&mut mirror, Token(4), Interest::READABLE)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);

    let mut ready = || {
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        let mut tokens: Vec<_> = events.iter().map(|event| event.token().0).collect();
        tokens.sort_unstable();
        tokens
    };
    assert!(ready().is_empty());
    event.signal();
    assert_eq!(ready(), [0]);
    forwarded.signal();
    eventfd.write(1).unwrap();
    notifier.notify().unwrap();
    assert_eq!(ready(), [1, 2, 3]);
    event.read();
    event.signal();
    assert_eq!(ready(), [0]);
    registry.deregister(&mut mirror).unwrap();
    registry
        .reregister(&mut eventfd, Token(7), Interest::WRITABLE)
        .unwrap();
    event.read();
    event.signal();
    assert_eq!(ready(), [7]);
}

#[cfg(feature = "vmm-sys-util")]
#[test]
fn originals() {
    use vmm_sys_util::event;
    use vmm_sys_util::eventfd::EventFd as Original;

    // Ours is converted to theirs, and both handles work.
    let ours = EventFd::new(EFD_NONBLOCK).unwrap();
    let clone = ours.try_clone().unwrap();
    ours.write(3).unwrap();
    let theirs = Original::try_from(&ours).unwrap();
    assert_ne!(theirs.as_raw_fd(), ours.as_raw_fd());
    theirs.write(4).unwrap();
    assert_eq!(clone.read().unwrap(), 7);
    let raw = ours.as_raw_fd();
    let theirs = Original::from(ours);
    assert_eq!(theirs.as_raw_fd(), raw);
    clone.write(5).unwrap();
    assert_eq!(theirs.read().unwrap(), 5);
    // Theirs is converted back to ours.
    let ours = EventFd::from(theirs);
    assert_eq!(ours.as_raw_fd(), raw);
    ours.write(6).unwrap();
    assert_eq!(clone.read().unwrap(), 6);

    let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
    let their_notifier = event::EventNotifier::from(notifier);
    their_notifier.notify().unwrap();
    consumer.consume().unwrap();
    let their_consumer = event::EventConsumer::try_from(&consumer).unwrap();
    let notifier = EventNotifier::from(their_notifier);
    notifier.notify().unwrap();
    their_consumer.consume().unwrap();
    assert_eq!(
        consumer.consume().unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    notifier.notify().unwrap();
    EventConsumer::from(their_consumer).consume().unwrap();

    let event = Arc::new(Event::new(3));
    let forward = doorbell::fd::Forward::new(Arc::clone(&event)).unwrap();
    let theirs = Original::try_from(&forward).unwrap();
    event.signal();
    assert_eq!(theirs.read().unwrap(), 4);
}

/// Ours is passed where originals are borrowed: the same descriptor, which stays open. An original made of a mirror
/// shows the event's readiness to the original's epoll. Reads and writes of it do not reach the event.
#[cfg(feature = "vmm-sys-util")]
#[test]
fn a_mirror_as_an_original() {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    use vmm_sys_util::eventfd;

    let event = Arc::new(Event::new(0));
    let mirror = Mirror::new(&event).unwrap();
    let kept = eventfd::EventFd::try_from(&mirror).unwrap();
    assert_ne!(kept.as_raw_fd(), mirror.as_raw_fd());
    assert_eq!(mirror.as_original().as_raw_fd(), mirror.as_raw_fd());
    let epoll = Epoll::new().unwrap();
    let watched = EpollEvent::new(EventSet::IN, 7);
    epoll
        .ctl(ControlOperation::Add, kept.as_raw_fd(), watched)
        .unwrap();
    let ready = || {
        let mut events = [EpollEvent::default(); 2];
        epoll.wait(0, &mut events).unwrap()
    };
    assert_eq!(ready(), 0);
    event.signal_n(5);
    assert_eq!(ready(), 1);
    assert_eq!(event.read(), 5);
    assert_eq!(ready(), 0);
    // This descriptor is for polling only.
    kept.write(3).unwrap();
    assert_eq!((ready(), event.count()), (1, 0));
    assert_eq!(kept.read().unwrap(), 3);
    event.signal();
    kept.read().unwrap();
    assert_eq!((ready(), event.count()), (0, 1));
    // The descriptor stays as it was when the mirror is dropped.
    event.read();
    event.signal();
    drop(mirror);
    event.read();
    assert_eq!(ready(), 1);
}

#[cfg(feature = "vmm-sys-util")]
#[test]
fn lent_as_originals() {
    use vmm_sys_util::eventfd::EventFd as Original;

    let signal = |fd: &Original| fd.write(2).unwrap();
    let ours = EventFd::new(EFD_NONBLOCK).unwrap();
    ours.write(1).unwrap();
    for _ in 0..2 {
        signal(&ours.as_original());
    }
    assert_eq!(ours.as_original().as_raw_fd(), ours.as_raw_fd());
    assert_eq!(ours.read().unwrap(), 5);

    let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
    notifier.as_original().notify().unwrap();
    consumer.as_original().consume().unwrap();
    assert_eq!(
        consumer.consume().unwrap_err().kind(),
        ErrorKind::WouldBlock
    );

    let event = Arc::new(Event::new(3));
    let forward = doorbell::fd::Forward::new(Arc::clone(&event)).unwrap();
    assert_eq!(forward.as_original().read().unwrap(), 3);
    assert!(is_readable(&forward) == (event.count() != 0));
}

/// KVM takes an `EventFd` as an ioeventfd and an irqfd, without a duplicate.
#[cfg(all(feature = "vmm-sys-util", target_arch = "x86_64"))]
#[test]
fn lent_to_kvm() {
    use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch};

    let Ok(kvm) = Kvm::new() else {
        eprintln!("skipped: lent_to_kvm: no /dev/kvm");
        return;
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let address = IoEventAddress::Mmio(0x1000);
    vm.register_ioevent(&event.as_original(), &address, NoDatamatch)
        .unwrap();
    vm.unregister_ioevent(&event.as_original(), &address, NoDatamatch)
        .unwrap();
    vm.register_irqfd(&event.as_original(), 5).unwrap();
    vm.unregister_irqfd(&event.as_original(), 5).unwrap();
    event.write(1).unwrap();
    assert_eq!(event.read().unwrap(), 1);
}

/// A serial port whose interrupt is an event, in each of the ways to hold one.
#[cfg(feature = "vm-superio")]
#[test]
fn superio_triggers() {
    use doorbell::event::EventHandle;
    use vm_superio::{Serial, Trigger};

    /// Has a serial port raise its interrupt for a byte received.
    fn receive<T: Trigger>(trigger: T) {
        let mut serial = Serial::new(trigger, std::io::sink());
        assert!(serial.write(1, 0b0001).is_ok());
        assert!(serial.enqueue_raw_bytes(b"x").is_ok());
    }
    let event = Arc::new(Event::new(0));
    receive(&*event);
    assert_eq!(event.try_read(), Some(1));
    receive(EventHandle::from(&event));
    assert_eq!(event.try_read(), Some(1));
    let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
    receive(eventfd.try_clone().unwrap());
    assert_eq!(eventfd.read().unwrap(), 1);
    eventfd.write(u64::MAX - 1).unwrap();
    assert_eq!(eventfd.trigger().unwrap_err().kind(), ErrorKind::WouldBlock);
    let event = Event::new(0);
    event.trigger().unwrap();
    assert_eq!(event.try_read(), Some(1));
}
