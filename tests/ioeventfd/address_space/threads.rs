//! Guest writes while the doorbells move.

use crate::accelerator::Accelerator;
use crate::watchdog::limit;
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::ioeventfd::space::{AddressSpace, Listener, RefusalError, Region};
use doorbell::ioeventfd::{Bus, Doorbell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

struct Machine {
    space: AddressSpace,
    accelerator: Arc<Accelerator>,
    region: Region,
    event: Arc<Event>,
}

impl Machine {
    fn new() -> Self {
        let space = AddressSpace::new();
        let accelerator = Arc::new(Accelerator::new());
        assert!(space.add_listener(accelerator.clone()).is_clean());
        let region = space.region(Bus::Mmio, 0x1000);
        let event = Arc::new(Event::new(0));
        assert!(region.map(base(0)).unwrap().is_clean());
        let added = region.add_eventfd(0x10, 0, None, &event);
        assert!(added.unwrap().is_clean());
        Machine {
            space,
            accelerator,
            region,
            event,
        }
    }

    /// A guest's write: the accelerator takes it, or it exits.
    fn kick(&self, base: u64) -> bool {
        let (address, data) = (base + 0x10, &[1]);
        self.accelerator.write(Bus::Mmio, address, data)
            || self.space.write(Bus::Mmio, address, data)
    }
}

fn base(step: u64) -> u64 {
    0xe000_0000 + 0x2000 * step
}

/// Every kick is taken, where the region was or where it is now, and none counts twice.
#[test]
fn a_moving_doorbell_is_never_nowhere() {
    const MOVES: u64 = 500;
    let machine = Machine::new();
    // The last step that the guest has seen.
    let seen = AtomicU64::new(0);
    /// Tells that the guest has ended, even if it has failed.
    struct Gone<'a>(&'a AtomicU64);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            self.0.store(u64::MAX, Ordering::Release);
        }
    }
    let kicks = thread::scope(|scope| {
        scope.spawn(|| {
            for step in 1..=MOVES {
                while seen.load(Ordering::Acquire) < step - 1 {
                    thread::yield_now();
                }
                let region = &machine.region;
                match step % 3 {
                    0 => assert!(region.map(base(step)).unwrap().is_clean()),
                    // The region is moved as a guest moves it, with the steps in between hidden by a transaction.
                    1 => {
                        let transaction = machine.space.begin();
                        assert!(region.set_enabled(false).is_clean());
                        assert!(region.map(base(step)).unwrap().is_clean());
                        assert!(region.set_enabled(true).is_clean());
                        assert!(transaction.commit().is_clean());
                    }
                    _ => {
                        let transaction = machine.space.begin();
                        assert!(region.unmap().is_clean());
                        assert!(region.map(base(step)).unwrap().is_clean());
                        assert!(transaction.commit().is_clean());
                    }
                }
            }
        });
        let vcpu = scope.spawn(|| {
            let _gone = Gone(&seen);
            let (mut step, mut kicks) = (0, 0);
            while step < MOVES {
                if !machine.kick(base(step)) {
                    // The region moves on only when the guest has found it.
                    step += 1;
                    assert!(machine.kick(base(step)), "lost a kick at step {step}");
                    seen.store(step, Ordering::Release);
                }
                kicks += 1;
            }
            kicks
        });
        vcpu.join().unwrap()
    });
    assert!(machine.region.unmap().is_clean());
    assert_eq!(machine.event.try_read(), Some(kicks));
}

/// Tells the guest to stop, even if the test has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A kick may be taken or not; once the commit that switches the region off has returned, none is taken.
#[test]
fn a_disabled_doorbell_is_silent() {
    const TIMES: u64 = 100;
    let machine = Machine::new();
    let stop = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    // This waits until the guest has made a write from beginning to end.
    let a_write = || {
        let begun = writes.load(Ordering::Relaxed);
        while writes.load(Ordering::Relaxed) < begun + 2 {
            thread::yield_now();
        }
    };
    let (taken, received) = thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            let mut taken = 0;
            while !stop.load(Ordering::Relaxed) {
                taken += u64::from(machine.kick(base(0)));
                writes.fetch_add(1, Ordering::Relaxed);
            }
            taken
        });
        let guard = Stop(&stop);
        let mut received = 0;
        for _ in 0..TIMES {
            a_write();
            assert!(machine.region.set_enabled(false).is_clean());
            let kicks = machine.event.try_read();
            received += kicks.expect("the doorbell was on during a write");
            a_write();
            assert_eq!(machine.event.count(), 0);
            assert!(machine.region.set_enabled(true).is_clean());
        }
        assert!(machine.region.unmap().is_clean());
        drop(guard);
        received += machine.event.try_read().unwrap_or(0);
        (vcpu.join().unwrap(), received)
    });
    assert_eq!(taken, received);
}

/// A vCPU's kick runs a callback that moves a region, while another thread moves another: neither waits for the other,
/// and both regions are where they were moved to last.
#[test]
fn a_callback_inside_a_write_moves_a_region() {
    const TIMES: u64 = 2000;
    limit("a_callback_inside_a_write_moves_a_region", || {
        let machine = Machine::new();
        let space = &machine.space;
        let [moved_inside, moved_outside] = [(), ()].map(|()| space.region(Bus::Mmio, 0x100));
        let unused = Arc::new(Event::new(0));
        for region in [&moved_inside, &moved_outside] {
            let added = region.add_eventfd(0, 0, None, &unused);
            assert!(added.unwrap().is_clean());
        }
        let moved_inside = Arc::new(moved_inside);
        let _observation = Observation::new(Arc::clone(&machine.event), Interest::Signals, {
            let (moved, moves) = (Arc::clone(&moved_inside), AtomicU64::new(0));
            Arc::new(move |_: Change| {
                let step = moves.fetch_add(1, Ordering::Relaxed) + 1;
                assert!(moved.map(0x1000 * step).unwrap().is_clean());
            })
        });
        // Each kick exits, so the callback runs inside a write.
        assert!(space.remove_listener(&*machine.accelerator).is_clean());
        let together = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                for step in 1..=TIMES {
                    let base = 0x8000_0000 + 0x1000 * step;
                    assert!(moved_outside.map(base).unwrap().is_clean());
                }
            });
            together.wait();
            for _ in 0..TIMES {
                assert!(machine.kick(base(0)));
            }
        });
        assert_eq!(moved_inside.base(), Some(0x1000 * TIMES));
        assert_eq!(moved_outside.base(), Some(0x8000_0000 + 0x1000 * TIMES));
        assert_eq!(machine.event.try_read(), Some(TIMES));
    });
}

/// A listener is asked again for what it has refused, while a guest writes without pause: each write is taken, by the
/// listener or by the table, and signals once.
#[test]
fn asked_again_under_a_writing_guest() {
    const TIMES: u64 = 30;
    static REFUSES: AtomicBool = AtomicBool::new(false);
    limit("asked_again_under_a_writing_guest", || {
        let machine = Machine::new();
        let space = &machine.space;
        assert!(space.remove_listener(&*machine.accelerator).is_clean());
        let refuses = |_, _: &Doorbell| REFUSES.load(Ordering::Relaxed);
        let picky = Arc::new(Accelerator::with("picky", 0, &Arc::default(), refuses));
        let stop = AtomicBool::new(false);
        let writes = AtomicU64::new(0);
        let a_write = || {
            let begun = writes.load(Ordering::Relaxed);
            while writes.load(Ordering::Relaxed) < begun + 2 {
                assert!(!stop.load(Ordering::Relaxed), "the guest has failed");
                thread::yield_now();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let _failed = Stop(&stop);
                let (address, data) = (base(0) + 0x10, &[1]);
                while !stop.load(Ordering::Relaxed) {
                    let taken = picky.write(Bus::Mmio, address, data)
                        || space.write(Bus::Mmio, address, data);
                    assert!(taken, "a write is lost");
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
            let _ended = Stop(&stop);
            for _ in 0..TIMES {
                REFUSES.store(true, Ordering::Relaxed);
                assert_eq!(space.add_listener(picky.clone()).refusals.len(), 1);
                a_write();
                REFUSES.store(false, Ordering::Relaxed);
                for _ in 0..2 {
                    assert!(space.retry_refused().is_clean());
                    assert_eq!(picky.holds(), space.doorbells());
                    a_write();
                }
                assert!(space.remove_listener(&*picky).is_clean());
                a_write();
            }
        });
        let writes = writes.load(Ordering::Relaxed);
        assert_eq!(machine.event.try_read(), Some(writes));
    });
}

/// A guest's write waits neither for a thread that has a transaction open nor for one that is in a listener's call.
#[test]
fn a_write_waits_for_no_transaction() {
    /// Has another thread write at an address, in a call.
    struct Writes(AddressSpace, u64);
    impl Listener for Writes {
        fn name(&self) -> &'static str {
            "writes"
        }
        fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
            let write = || self.0.write(Bus::Mmio, self.1 + 0x10, &[1]);
            assert!(thread::scope(|scope| scope.spawn(write).join()).unwrap());
            Ok(())
        }
        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Ok(())
        }
    }

    limit("a_write_waits_for_no_transaction", || {
        let machine = Machine::new();
        let space = &machine.space;
        assert!(space.remove_listener(&*machine.accelerator).is_clean());
        let transaction = space.begin();
        assert!(machine.region.map(base(1)).unwrap().is_clean());
        let writes = || [0, 1].map(|step| machine.kick(base(step)));
        let taken = thread::scope(|scope| scope.spawn(writes).join().unwrap());
        assert_eq!(taken, [true, false]);
        assert!(transaction.commit().is_clean());

        let listener = Arc::new(Writes(space.clone(), base(1)));
        assert!(space.add_listener(listener.clone()).is_clean());
        assert_eq!(machine.event.try_read(), Some(2));
        assert!(space.remove_listener(&*listener).is_clean());
    });
}

/// An observer that is inside its call until it is told to leave, and is detached meanwhile.
struct Detached {
    observation: Mutex<Option<Observation>>,
    leave: Sender<()>,
}

impl Detached {
    /// Detaches the observer, and only then lets it leave.
    fn detach(&self) {
        let observation = self.observation.lock().unwrap().take();
        drop(observation);
        self.leave.send(()).unwrap();
    }
}

impl Listener for Detached {
    fn name(&self) -> &'static str {
        "detaches"
    }
    fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
        self.detach();
        Ok(())
    }
    fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
        Ok(())
    }
}

/// A thread that detaches an observer in a listener's call, or with a transaction open, does not wait for another
/// thread's call of that observer there. It waits at the end of the transaction.
#[test]
fn a_detach_in_a_transaction_waits_at_its_end() {
    for in_a_listener in [true, false] {
        limit("a_detach_in_a_transaction_waits_at_its_end", || {
            let machine = Machine::new();
            let space = &machine.space;
            let event = Arc::new(Event::new(0));
            let ended = Arc::new(AtomicBool::new(false));
            let (inside, is_inside) = channel();
            let (leave, told) = channel();
            let told = Mutex::new(told);
            let observer = {
                let ended = Arc::clone(&ended);
                move |_: Change| {
                    inside.send(()).unwrap();
                    told.lock().unwrap().recv().unwrap();
                    // The detaching thread would be through by now if it did not wait for this.
                    thread::sleep(std::time::Duration::from_millis(20));
                    ended.store(true, Ordering::Relaxed);
                }
            };
            let observation =
                Observation::new(Arc::clone(&event), Interest::Signals, Arc::new(observer));
            let detached = Arc::new(Detached {
                observation: Mutex::new(Some(observation)),
                leave,
            });
            thread::scope(|scope| {
                scope.spawn(|| event.signal());
                is_inside.recv().unwrap();
                if in_a_listener {
                    assert!(space.add_listener(detached.clone()).is_clean());
                } else {
                    let transaction = space.begin();
                    detached.detach();
                    assert!(transaction.commit().is_clean());
                }
                assert!(ended.load(Ordering::Relaxed), "a call is under way");
            });
            assert!(space.remove_listener(&*detached).is_clean());
        });
    }
}
