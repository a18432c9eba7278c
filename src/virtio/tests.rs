use super::{PolledQueue, QueueError};
use crate::poll::Probe;
use crate::sync::atomic::Ordering;
use std::ops::Deref;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;

const SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// A queue as it is, and one of the crate that goes the same way in the same memory a little further up: the oracle.
struct Rig {
    driver: Driver,
    queue: PolledQueue<Arc<Memory>>,
}

/// What the driver does to the rings, also while the queue is served.
#[derive(Clone)]
struct Driver(Arc<Memory>);

impl Deref for Rig {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

fn new_queue(event_idx: bool, start: u16) -> Queue {
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
    queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
    queue.set_used_ring_address(Some(USED as u32), None);
    queue.set_event_idx(event_idx);
    queue.set_next_avail(start);
    queue.set_next_used(start);
    queue.set_ready(true);
    queue
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap())
}

impl Rig {
    /// Both indices begin at `start`.
    fn new(event_idx: bool, start: u16) -> Self {
        let mem = memory();
        let rig = Rig {
            queue: PolledQueue::new(new_queue(event_idx, start), Arc::clone(&mem)).unwrap(),
            driver: Driver(mem),
        };
        rig.set(AVAILABLE + 2, start);
        rig.set(USED + 2, start);
        rig
    }

    /// Whether a driver that has gone from `old` to the index it has would kick.
    fn would_kick(&self, old: u16) -> bool {
        let new = self.get(AVAILABLE + 2);
        if self.queue.queue().event_idx_enabled() {
            new.wrapping_sub(self.avail_event()).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.get(USED) & 1 == 0
        }
    }

    /// Serves all, and returns how many requests and interrupts that were.
    fn serve(&mut self) -> (u16, u16, bool) {
        let mut interrupts = 0;
        let served = self
            .queue
            .serve(SIZE, |_| Ok::<_, QueueError>(0), || interrupts += 1)
            .unwrap();
        (served.requests, interrupts, served.more)
    }
}

impl Driver {
    fn set(&self, at: u64, value: u16) {
        self.0
            .store(value.to_le(), GuestAddress(at), Ordering::Relaxed)
            .unwrap();
    }

    fn get(&self, at: u64) -> u16 {
        u16::from_le(self.0.load(GuestAddress(at), Ordering::Relaxed).unwrap())
    }

    fn make_available(&self, n: u16) {
        self.set(AVAILABLE + 2, self.get(AVAILABLE + 2).wrapping_add(n));
    }

    fn set_used_event(&self, index: u16) {
        self.set(AVAILABLE + 4 + 2 * u64::from(SIZE), index);
    }

    fn avail_event(&self) -> u16 {
        self.get(USED + 4 + 8 * u64::from(SIZE))
    }
}

/// With and without EVENT_IDX, from indices that do and do not wrap.
fn rigs() -> impl Iterator<Item = (bool, u16, Rig)> {
    [0, 7, 65530].into_iter().flat_map(|start| {
        [false, true].map(|event_idx| (event_idx, start, Rig::new(event_idx, start)))
    })
}

#[test]
fn ready_is_what_has_not_been_popped() {
    for (event_idx, start, mut rig) in rigs() {
        let mut probe = rig.queue.probe();
        for n in 1..20 {
            assert!(!probe.ready(), "{event_idx} {start} {n}");
            rig.make_available(n % SIZE + 1);
            assert!(probe.ready());
            // One after the other: it is ready until the last one has been popped.
            for _ in 0..n % SIZE {
                rig.queue.pop().unwrap().unwrap();
                assert!(probe.ready());
            }
            rig.queue.pop().unwrap().unwrap();
        }
        assert!(rig.queue.pop().unwrap().is_none());
    }
}

#[test]
fn without_a_poller_each_kick_is_asked_for() {
    for (event_idx, start, mut rig) in rigs() {
        let _probe = rig.queue.probe();
        for n in 1..20 {
            assert!(!rig.queue.rearm(), "{event_idx} {start} {n}");
            let old = rig.get(AVAILABLE + 2);
            rig.make_available(n % SIZE + 1);
            assert!(rig.would_kick(old), "{event_idx} {start} {n}");
            assert_eq!(rig.serve().0, n % SIZE + 1);
        }
    }
}

#[test]
fn while_a_poller_polls_nobody_kicks() {
    for (event_idx, start, mut rig) in rigs() {
        let mut probe = rig.queue.probe();
        assert!(!probe.end());
        for n in 1..20 {
            // The first one after a sleep kicks.
            let old = rig.get(AVAILABLE + 2);
            rig.make_available(1);
            assert!(rig.would_kick(old), "{event_idx} {start} {n}");
            probe.begin();
            for _ in 0..5 {
                assert_eq!(rig.serve().0, 1);
                probe.begin();
                let old = rig.get(AVAILABLE + 2);
                rig.make_available(1);
                assert!(!rig.would_kick(old), "{event_idx} {start} {n}");
            }
            // What came before the end is found by it.
            assert!(probe.end());
            assert_eq!(rig.serve().0, 1);
            assert!(!probe.end());
        }
    }
}

#[test]
fn end_is_what_the_crates_queue_does() {
    for (event_idx, start, mut rig) in rigs() {
        // The same words, written by `enable_notification` to memory of its own.
        let other = memory();
        let mut oracle = new_queue(event_idx, start);
        let mut probe = rig.queue.probe();
        for n in 0..40_u16 {
            if n % 3 == 1 {
                probe.begin();
                oracle.disable_notification(&*other).unwrap();
            }
            if n % 2 == 1 {
                rig.make_available(1);
            }
            let avail = rig.get(AVAILABLE + 2).to_le();
            other
                .store(avail, GuestAddress(AVAILABLE + 2), Ordering::Relaxed)
                .unwrap();
            assert_eq!(
                probe.end(),
                oracle.enable_notification(&*other).unwrap(),
                "{event_idx} {start} {n}"
            );
            for at in [USED, USED + 4 + 8 * u64::from(SIZE)] {
                let expected: u16 = other.load(GuestAddress(at), Ordering::Relaxed).unwrap();
                assert_eq!(
                    rig.get(at),
                    u16::from_le(expected),
                    "{event_idx} {start} {n}"
                );
            }
            if n % 4 == 3 {
                while rig.queue.pop().unwrap().is_some() {}
                oracle.set_next_avail(rig.queue.queue().next_avail());
            }
        }
    }
}

#[test]
fn a_probe_that_is_dropped_while_polling_asks_for_kicks() {
    for (event_idx, start, mut rig) in rigs() {
        let mut probe = rig.queue.probe();
        probe.begin();
        rig.make_available(1);
        assert_eq!(rig.serve().0, 1);
        drop(probe);
        let old = rig.get(AVAILABLE + 2);
        rig.make_available(1);
        assert!(rig.would_kick(old), "{event_idx} {start}");
        // And the device does so by itself from then on.
        assert_eq!(rig.serve().0, 1);
        let old = rig.get(AVAILABLE + 2);
        rig.make_available(1);
        assert!(rig.would_kick(old), "{event_idx} {start}");
    }
}

#[test]
fn the_budget_is_kept_and_what_is_left_is_told() {
    for (event_idx, start, mut rig) in rigs() {
        rig.make_available(10);
        let serve = |rig: &mut Rig, budget| {
            rig.queue
                .serve(budget, |_| Ok::<_, QueueError>(0), || {})
                .map(|served| (served.requests, served.more))
                .unwrap()
        };
        assert_eq!(serve(&mut rig, 4), (4, true), "{event_idx} {start}");
        assert_eq!(serve(&mut rig, 4), (4, true));
        assert_eq!(serve(&mut rig, 4), (2, false));
        // The last one within the budget.
        rig.make_available(4);
        assert_eq!(serve(&mut rig, 4), (4, false));
        // A poller that polls finds it without being told.
        let mut probe = rig.queue.probe();
        probe.begin();
        rig.make_available(5);
        assert_eq!(serve(&mut rig, 4), (4, false));
        assert!(probe.ready());
        assert_eq!(serve(&mut rig, 4), (1, false));
    }
}

/// A driver that sleeps: after each interrupt it takes what there is, and asks for the next one.
#[test]
fn a_driver_that_sleeps_is_interrupted_for_the_first_of_many() {
    for (event_idx, start, mut rig) in rigs() {
        rig.set_used_event(start);
        for n in 1..20 {
            rig.make_available(8);
            let mut used_at = Vec::new();
            let driver = rig.driver.clone();
            let used = || driver.get(USED + 2);
            let before = used();
            let _ = rig
                .queue
                .serve(
                    SIZE,
                    |_| Ok::<_, QueueError>(0),
                    || used_at.push(used().wrapping_sub(before)),
                )
                .unwrap();
            if event_idx {
                // Once, and that after the first.
                assert_eq!(used_at, [1], "{start} {n}");
            } else {
                // The flag says that it wants all, and it does not seem to hear.
                assert_eq!(used_at, [1, 2, 4, 8], "{start} {n}");
            }
            rig.set_used_event(before.wrapping_add(8));
        }
    }
}

/// A driver that is awake: it takes each request at once, and asks to hear of the next one.
#[test]
fn a_driver_that_is_awake_is_interrupted_after_all() {
    for (event_idx, start, mut rig) in rigs() {
        rig.set_used_event(start);
        let mut interrupts = 0;
        for _ in 0..1000 {
            rig.make_available(8);
            let driver = rig.driver.clone();
            let _ = rig
                .queue
                .serve(
                    SIZE,
                    |_| Ok::<_, QueueError>(0),
                    || {
                        interrupts += 1;
                        driver.set_used_event(driver.get(USED + 2));
                        // Without EVENT_IDX, it turns interrupts off while it works.
                        driver.set(AVAILABLE, 1);
                    },
                )
                .unwrap();
            // It has been through.
            rig.set_used_event(rig.get(USED + 2));
            rig.set(AVAILABLE, 0);
        }
        // One a batch, and where it was tried, one more.
        let most = if event_idx { 1000 + 30 } else { 1000 };
        assert!(
            (1000..=most).contains(&interrupts),
            "{event_idx} {start}: {interrupts}"
        );
    }
}

/// Whatever a driver does while a batch is served, it hears of what it has asked for before: it looks whether there is
/// something after it has asked, and then relies on the interrupt.
#[test]
fn no_driver_relies_on_an_interrupt_in_vain() {
    let mut random = fastrand::Rng::with_seed(11);
    for (event_idx, start, mut rig) in rigs() {
        let mut seen = start;
        // Asleep: it has asked for an interrupt behind what it has seen, and there was nothing.
        let asleep = std::cell::Cell::new(true);
        rig.set_used_event(start);
        for batch in 0..5000 {
            let n = random.u16(1..=SIZE);
            rig.make_available(n);
            let driver = rig.driver.clone();
            let awake = |seen: &mut u16| {
                *seen = driver.get(USED + 2);
                driver.set(AVAILABLE, 0);
                driver.set_used_event(*seen);
                asleep.set(true);
            };
            let slow = random.bool();
            let _ = rig
                .queue
                .serve(
                    SIZE,
                    |_| Ok::<_, QueueError>(0),
                    || {
                        // It is awake from here on, and asks again now or after the batch.
                        asleep.set(false);
                        if slow {
                            driver.set(AVAILABLE, 1);
                        } else {
                            awake(&mut seen);
                        }
                    },
                )
                .unwrap();
            let used = driver.get(USED + 2);
            assert!(!asleep.get() || seen == used, "{event_idx} {start} {batch}");
            awake(&mut seen);
        }
    }
}

/// A driver that polls, or that turns interrupts off.
#[test]
fn a_driver_that_polls_is_not_interrupted() {
    for (event_idx, start, mut rig) in rigs() {
        // Behind: what it asked for has been.
        rig.set_used_event(start.wrapping_sub(1));
        rig.set(AVAILABLE, 1);
        for n in 0..200 {
            rig.make_available(n % SIZE + 1);
            assert_eq!(rig.serve(), (n % SIZE + 1, 0, false), "{event_idx} {start}");
        }
        // Until it changes its mind.
        rig.set_used_event(rig.get(USED + 2));
        rig.set(AVAILABLE, 0);
        rig.make_available(1);
        assert_eq!(rig.serve(), (1, 1, false), "{event_idx} {start}");
    }
}

/// By whatever a driver asks for, and whenever a device asks it: what the crate's queue answers at the end of a batch
/// is what has been answered somewhere in the batch here.
#[test]
fn an_interrupt_that_the_crates_queue_finds_due_is_not_lost() {
    let mut random = fastrand::Rng::with_seed(7);
    for start in [0, 65500] {
        let mut rig = Rig::new(true, start);
        let other = memory();
        let mut oracle = new_queue(true, start);
        for batch in 0..2000 {
            let used = rig.get(USED + 2);
            let n = random.u16(1..=SIZE);
            // Anywhere near, before and after.
            let event = used.wrapping_add(random.u16(0..40)).wrapping_sub(20);
            rig.set_used_event(event);
            let at = GuestAddress(AVAILABLE + 4 + 2 * u64::from(SIZE));
            other.store(event.to_le(), at, Ordering::Relaxed).unwrap();
            rig.make_available(n);
            let (requests, interrupts, _) = rig.serve();
            assert_eq!(requests, n);
            for _ in 0..n {
                oracle.add_used(&*other, 0, 0).unwrap();
            }
            let due = oracle.needs_notification(&*other).unwrap();
            assert_eq!(interrupts, u16::from(due), "{start} {batch}");
        }
    }
}

#[test]
fn rules_that_are_broken_are_told() {
    for (event_idx, start, mut rig) in rigs() {
        rig.make_available(SIZE + 1);
        let error = rig.queue.pop().unwrap_err();
        assert!(
            matches!(
                error,
                QueueError::Queue(virtio_queue::Error::InvalidAvailRingIndex)
            ),
            "{event_idx} {start}: {error:?}"
        );
        assert!(rig.queue.complete(SIZE, 0).is_err());
    }
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    let mem = memory();
    let mut queue = new_queue(true, 0);
    queue.set_ready(false);
    let error = PolledQueue::new(queue, Arc::clone(&mem)).unwrap_err();
    assert!(matches!(error, QueueError::Invalid));
    let mut queue = new_queue(true, 0);
    queue.set_avail_ring_address(Some(0xfff0), None);
    let error = PolledQueue::new(queue, mem).unwrap_err();
    assert!(matches!(error, QueueError::Invalid));
    // In two pieces.
    let pieces = [(GuestAddress(0), 0x2010), (GuestAddress(0x2010), 0x8000)];
    let mem = Arc::new(Memory::from_ranges(&pieces).unwrap());
    let error = PolledQueue::new(new_queue(true, 0), mem).unwrap_err();
    assert!(matches!(error, QueueError::Scattered));
}

#[test]
fn into_queue_gives_back_where_it_was() {
    for (event_idx, start, mut rig) in rigs() {
        rig.make_available(3);
        rig.set_used_event(start);
        assert!(matches!(rig.serve(), (3, 1.., false)));
        let Rig { queue, driver } = rig;
        let mem = driver.0;
        let mut queue = queue.into_queue();
        let end = start.wrapping_add(3);
        assert_eq!(
            (queue.next_avail(), queue.next_used()),
            (end, end),
            "{event_idx}"
        );
        // The driver has been interrupted already. Without EVENT_IDX the queue always says that it is to be.
        let interrupt = queue.needs_notification(&*mem).unwrap();
        assert_eq!(interrupt, !event_idx, "{start}");
    }
}
