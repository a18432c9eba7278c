//! Guest writes while the doorbells move.

use crate::accelerator::Accelerator;
use crate::watchdog::limit;
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::ioeventfd::Bus;
use doorbell::ioeventfd::space::{AddressSpace, Region};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
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

/// A kick may be taken or not; once the commit that switches the region off has returned, none is taken.
#[test]
fn a_disabled_doorbell_is_silent() {
    const TIMES: u64 = 100;
    /// Tells the guest to stop, even if the test has failed.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

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
