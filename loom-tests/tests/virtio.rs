//! The words of a virtqueue's rings: no kick and no interrupt that is needed is left out.
//!
//! `../breakages/virtio.toml` lists the ways in which the code was broken on purpose, and which of these models
//! noticed.

use doorbell::virtio::rings::{Completed, HEADER, Rings, USED_ELEMENT, Words};
use doorbell::{Event, Mode};
use loom::sync::atomic::{AtomicU16, Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom_tests::{Cargo, check, event, spawn};

/// The queue's size, which says where `used_event` and `avail_event` are.
const SIZE: u16 = 4;

/// Where both indices begin: they wrap with the first request.
const START: u16 = u16::MAX;

const REQUESTS: u16 = 2;

/// `NO_NOTIFY` and `NO_INTERRUPT`.
const SUPPRESSED: u16 = 1;

/// The memory of the guest.
#[derive(Default)]
struct Guest {
    avail_flags: AtomicU16,
    avail_idx: AtomicU16,
    used_event: AtomicU16,
    used_flags: AtomicU16,
    used_idx: AtomicU16,
    avail_event: AtomicU16,
}

/// loom gives sequentially consistent accesses acquire-release meaning only. So those are read-modify-writes here, as
/// in `sync::dekker_load`; all other accesses are as their names say.
impl Words for Guest {
    fn load_avail(&self, offset: usize, order: Ordering) -> u16 {
        let word = match offset {
            0 => &self.avail_flags,
            2 => &self.avail_idx,
            _ => {
                assert_eq!(offset, HEADER + 2 * usize::from(SIZE));
                &self.used_event
            }
        };
        match order {
            Ordering::SeqCst => word.fetch_add(0, order),
            _ => word.load(order),
        }
    }

    fn store_used(&self, offset: usize, value: u16, order: Ordering) {
        let word = match offset {
            0 => &self.used_flags,
            _ => {
                assert_eq!(offset, HEADER + USED_ELEMENT * usize::from(SIZE));
                &self.avail_event
            }
        };
        match order {
            Ordering::SeqCst => _ = word.swap(value, order),
            _ => word.store(value, order),
        }
    }
}

/// A queue between a driver and a device.
struct Queue {
    rings: Rings<Guest>,
    event_idx: bool,
    /// What the driver puts into each request.
    requests: [Cargo; REQUESTS as usize],
    /// What the device answers.
    answers: [Cargo; REQUESTS as usize],
    /// The device's next index, which is the end of what it has popped and completed.
    next: Mutex<u16>,
    kick: Arc<Event>,
    interrupt: Arc<Event>,
}

/// `vring_need_event()` of the specification.
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl Queue {
    fn new(event_idx: bool) -> Arc<Self> {
        let guest = Guest::default();
        for word in [&guest.avail_idx, &guest.used_idx, &guest.avail_event] {
            word.store(START, Ordering::Relaxed);
        }
        // The driver wants no interrupt yet: it has been interrupted for the last request.
        let last = START.wrapping_sub(1);
        guest.used_event.store(last, Ordering::Relaxed);
        Arc::new(Queue {
            rings: Rings::new(guest, SIZE, event_idx, START),
            event_idx,
            requests: Default::default(),
            answers: Default::default(),
            next: Mutex::new(START),
            kick: event(0, Mode::Counter),
            interrupt: event(0, Mode::Counter),
        })
    }

    fn guest(&self) -> &Guest {
        &self.rings.words
    }

    /// The driver: makes one more request available, and returns whether it is to kick. As in Linux' `virtqueue_kick`,
    /// there is a full barrier between the two.
    fn publish(&self) -> bool {
        let guest = self.guest();
        let old = guest.avail_idx.load(Ordering::Relaxed);
        self.requests[usize::from(old.wrapping_sub(START))].put(1);
        // A read-modify-write, since the device's look at it is one under loom.
        let new = guest
            .avail_idx
            .fetch_add(1, Ordering::SeqCst)
            .wrapping_add(1);
        fence(Ordering::SeqCst);
        match self.event_idx {
            true => need_event(guest.avail_event.load(Ordering::Relaxed), new, old),
            false => guest.used_flags.load(Ordering::Relaxed) & SUPPRESSED == 0,
        }
    }

    /// The driver: makes all requests available, one after the other.
    fn publish_all(&self) {
        for _ in 0..REQUESTS {
            if self.publish() {
                self.kick.signal();
            }
        }
    }

    /// The device: pops all requests, as `PolledQueue::serve` does.
    fn serve(&self) {
        loop {
            let mut next = self.next.lock().unwrap();
            // `Queue::iter` of the crate virtio-queue.
            while self.guest().avail_idx.load(Ordering::Acquire) != *next {
                assert_eq!(
                    self.requests[usize::from(next.wrapping_sub(START))].get(),
                    1
                );
                *next = next.wrapping_add(1);
                self.rings.popped(*next);
            }
            if !self.rings.rearm() {
                break;
            }
        }
    }

    fn is_done(&self) -> bool {
        *self.next.lock().unwrap() == START.wrapping_add(REQUESTS)
    }

    /// A thread of the device that sleeps between kicks.
    fn sleep_and_serve(&self) {
        while !self.is_done() {
            self.kick.read();
            self.serve();
        }
    }

    /// A thread of the device that polls for a while before it sleeps.
    fn poll_and_serve(&self) {
        self.rings.begin();
        if self.rings.has_more() {
            self.serve();
        }
        if self.rings.end() {
            self.serve();
        }
        self.sleep_and_serve();
    }

    /// The device: completes one request, as `PolledQueue::complete` does. Returns whether to interrupt.
    fn complete(&self, completed: &mut Completed) -> bool {
        let used_idx = &self.guest().used_idx;
        let used = used_idx.load(Ordering::Relaxed);
        self.answers[usize::from(used.wrapping_sub(START))].put(1);
        // `Queue::add_used` of the crate virtio-queue.
        used_idx.store(used.wrapping_add(1), Ordering::Release);
        completed.add_one(&self.rings, used.wrapping_add(1))
    }

    /// The driver: takes what has been completed, in the order in which Linux does, until it has all of them.
    fn take_answers(&self) {
        let guest = self.guest();
        let mut next = START;
        loop {
            if !self.event_idx {
                guest.avail_flags.store(SUPPRESSED, Ordering::Relaxed);
            }
            self.take(&mut next);
            if next == START.wrapping_add(REQUESTS) {
                return;
            }
            match self.event_idx {
                true => guest.used_event.store(next, Ordering::Relaxed),
                false => guest.avail_flags.store(0, Ordering::Relaxed),
            }
            fence(Ordering::SeqCst);
            if guest.used_idx.load(Ordering::Acquire) == next {
                self.interrupt.read();
            }
        }
    }

    fn take(&self, next: &mut u16) {
        while self.guest().used_idx.load(Ordering::Acquire) != *next {
            assert_eq!(self.answers[usize::from(next.wrapping_sub(START))].get(), 1);
            *next = next.wrapping_add(1);
        }
    }
}

fn with_and_without_event_idx(name: &str, preemptions: Option<usize>, model: fn(Arc<Queue>)) {
    for event_idx in [false, true] {
        let name = format!("{name}, {}", if event_idx { "EVENT_IDX" } else { "flags" });
        check(&name, preemptions, move || model(Queue::new(event_idx)));
    }
}

/// A device that sleeps between requests.
#[test]
fn a_device_that_sleeps() {
    with_and_without_event_idx("a_device_that_sleeps", Some(3), |queue| {
        let device = spawn(&queue, Queue::sleep_and_serve);
        queue.publish_all();
        device.join().unwrap();
    });
}

/// A device that polls, and then sleeps.
#[test]
fn a_device_that_polls() {
    with_and_without_event_idx("a_device_that_polls", Some(3), |queue| {
        let device = spawn(&queue, Queue::poll_and_serve);
        queue.publish_all();
        device.join().unwrap();
    });
}

/// One thread of the device has polled and falls asleep, while another one is woken by kicks.
///
/// The driver's thread serves a kick here, as if the other thread were awake at once: what is left is the two halves of
/// the device.
#[test]
fn one_falls_asleep_while_another_wakes_up() {
    with_and_without_event_idx(
        "one_falls_asleep_while_another_wakes_up",
        Some(4),
        |queue| {
            queue.rings.begin();
            let driver = spawn(&queue, |queue| {
                for _ in 0..REQUESTS {
                    if queue.publish() {
                        queue.serve();
                    }
                }
            });
            if queue.rings.end() {
                queue.serve();
            }
            driver.join().unwrap();
            assert!(queue.is_done());
        },
    );
}

/// A poller that finds a request, without the device's half of the handshake, sees what is in the request.
#[test]
fn who_is_told_sees_the_request() {
    with_and_without_event_idx("who_is_told_sees_the_request", None, |queue| {
        let poller = spawn(&queue, |queue| {
            if queue.rings.has_more() {
                assert_eq!(queue.requests[0].get(), 1);
            }
        });
        queue.publish();
        poller.join().unwrap();
    });
}

/// A driver that sleeps when it has taken all answers, and a device that completes one request after the other.
#[test]
fn a_driver_that_sleeps() {
    with_and_without_event_idx("a_driver_that_sleeps", Some(3), |queue| {
        let driver = spawn(&queue, Queue::take_answers);
        let mut completed = Completed::default();
        for _ in 0..REQUESTS {
            if queue.complete(&mut completed) {
                queue.interrupt.signal();
            }
            completed.interrupted(&queue.rings);
        }
        let next_used = queue.guest().used_idx.load(Ordering::Relaxed);
        if completed.finish(&queue.rings, next_used) {
            queue.interrupt.signal();
        }
        driver.join().unwrap();
    });
}

/// A driver that asks for an interrupt when half of the requests are done.
#[test]
fn a_driver_that_looks_ahead() {
    check("a_driver_that_looks_ahead", Some(3), || {
        let queue = Queue::new(true);
        let all = START.wrapping_add(REQUESTS);
        let driver = spawn(&queue, move |queue| {
            // `virtqueue_enable_cb_delayed`: for the last request.
            let event = all.wrapping_sub(1);
            queue.guest().used_event.store(event, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            // An interrupt that was due before `used_event` was set may come first.
            while queue.guest().used_idx.load(Ordering::Acquire) != all {
                queue.interrupt.read();
            }
            let mut next = START;
            queue.take(&mut next);
            assert_eq!(next, all);
        });
        let mut completed = Completed::default();
        for _ in 0..REQUESTS {
            if queue.complete(&mut completed) {
                queue.interrupt.signal();
            }
            completed.interrupted(&queue.rings);
        }
        let next_used = queue.guest().used_idx.load(Ordering::Relaxed);
        if completed.finish(&queue.rings, next_used) {
            queue.interrupt.signal();
        }
        driver.join().unwrap();
    });
}
