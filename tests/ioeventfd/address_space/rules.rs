use crate::accelerator::Accelerator;
use crate::errors::assert_becomes;
use crate::freed::wait_until_alone;
use crate::watchdog::limit;
use doorbell::Event;
use doorbell::event::EventHandle;
use doorbell::ioeventfd::space::{
    AddError, AddressSpace, CommitReport, Listener, ListenerCall, MapError, RefusalError, Region,
};
use doorbell::ioeventfd::{Bus, Doorbell, DoorbellArray, DoorbellError, Key, Kick, ValueQueue};
use std::error::Error;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const BASE: u64 = 0xe000_0000;

/// A mapped region with a doorbell of four bytes at offset 0x10.
fn region(space: &AddressSpace) -> (Region, Arc<Event>) {
    let region = space.region(Bus::Mmio, 0x1000);
    let event = Arc::new(Event::new(0));
    assert!(region.map(BASE).unwrap().is_clean());
    let added = region.add_eventfd(0x10, 4, None, &event);
    assert!(added.unwrap().is_clean());
    (region, event)
}

fn kick(space: &AddressSpace, address: u64) -> bool {
    space.write(Bus::Mmio, address, &[0; 4])
}

#[test]
fn nothing_shows_before_the_outermost_commit() {
    let space = AddressSpace::new();
    let accelerator = Arc::new(Accelerator::new());
    assert!(space.add_listener(accelerator.clone()).is_clean());
    let outer = space.begin();
    let (region, event) = region(&space);
    let inner = space.begin();
    assert!(region.map(2 * BASE).unwrap().is_clean());
    assert!(inner.commit().is_clean());
    assert!(space.doorbells().is_empty());
    assert!(!kick(&space, BASE + 0x10) && !kick(&space, 2 * BASE + 0x10));
    assert_eq!(accelerator.holds(), []);

    assert!(outer.commit().is_clean());
    let expected = [Doorbell::new(Key::mmio(2 * BASE + 0x10, 4), event)];
    assert_eq!(space.doorbells(), expected);
    assert_eq!(accelerator.holds(), expected);
    assert!(!kick(&space, BASE + 0x10) && kick(&space, 2 * BASE + 0x10));
}

#[test]
fn a_dropped_transaction_is_committed() {
    let space = AddressSpace::new();
    let transaction = space.begin();
    let _region = region(&space);
    drop(transaction);
    assert!(kick(&space, BASE + 0x10));
}

#[test]
fn other_threads_wait_for_the_outermost_commit() {
    let space = AddressSpace::new();
    let (region, _event) = region(&space);
    let (sender, receiver) = mpsc::channel();
    let transaction = space.begin();
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(region.unmap().is_clean());
            sender.send(()).unwrap();
        });
        let early = receiver.recv_timeout(Duration::from_millis(50));
        assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
        // Neither the inner commit nor the other thread's change ends it.
        assert!(region.set_enabled(true).is_clean());
        assert_eq!(region.base(), Some(BASE));
        assert!(transaction.commit().is_clean());
        receiver.recv().unwrap();
        assert_eq!(region.base(), None);
    });
}

#[test]
fn a_region_takes_its_doorbells_with_it_when_it_is_dropped() {
    limit(
        "a_region_takes_its_doorbells_with_it_when_it_is_dropped",
        || {
            let space = AddressSpace::new();
            let accelerator = Arc::new(Accelerator::new());
            assert!(space.add_listener(accelerator.clone()).is_clean());
            let (region, event) = region(&space);
            assert!(accelerator.write(Bus::Mmio, BASE + 0x10, &[0; 4]));
            drop(region);
            assert!(space.doorbells().is_empty() && accelerator.holds().is_empty());
            assert!(!kick(&space, BASE + 0x10));
            // What the accelerator had taken came to the event when the accelerator let go.
            assert_eq!(event.try_read(), Some(1));

            assert!(space.remove_listener(&*accelerator).is_clean());
            wait_until_alone(&accelerator);
            // The accelerator has a log.
            drop(accelerator);
            wait_until_alone(&event);
        },
    );
}

/// Whenever a listener is told of a doorbell, the table has it.
#[test]
fn the_table_has_it_first_and_last() {
    struct Kicks(AddressSpace, AtomicU64);
    impl Kicks {
        fn kick(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
            assert!(kick(&self.0, doorbell.address()));
            self.1.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
    impl Listener for Kicks {
        fn name(&self) -> &'static str {
            "kicks"
        }
        fn eventfd_add(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
            self.kick(doorbell)
        }
        fn eventfd_del(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
            self.kick(doorbell)
        }
    }

    let space = AddressSpace::new();
    let kicks = Arc::new(Kicks(space.clone(), AtomicU64::new(0)));
    assert!(space.add_listener(kicks.clone()).is_clean());
    let (region, event) = region(&space);
    assert!(region.map(2 * BASE).unwrap().is_clean());
    assert!(region.remove().is_clean());
    assert_eq!(kicks.1.load(Ordering::Relaxed), 4);
    assert_eq!(event.try_read(), Some(4));
    assert!(space.remove_listener(&*kicks).is_clean());
}

#[test]
fn what_a_listener_changes_is_in_force_when_the_commit_returns() {
    /// A listener that unmaps a region as soon as it hears of a doorbell.
    struct Unmaps(Mutex<Option<Region>>);
    impl Listener for Unmaps {
        fn name(&self) -> &'static str {
            "unmaps"
        }
        fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
            let region = self.0.lock().unwrap();
            assert!(region.as_ref().unwrap().unmap().is_clean());
            Ok(())
        }
        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Err("told that it is gone".into())
        }
    }

    let space = AddressSpace::new();
    let (region, _event) = region(&space);
    let listener = Arc::new(Unmaps(Mutex::new(Some(region))));
    let report = space.add_listener(listener.clone());
    assert!(space.doorbells().is_empty());
    let [refusal] = &report.refusals[..] else {
        panic!("{report:?}")
    };
    assert_eq!(refusal.call, ListenerCall::Delete);
    // Its region is dropped outside of the listener's own lock, as dropping it tells the listener.
    let region = listener.0.lock().unwrap().take();
    drop(region);
}

#[test]
fn a_refused_doorbell_is_served_and_reported() {
    let space = AddressSpace::new();
    let log = Arc::default();
    let refuses = Arc::new(Accelerator::with("picky", 0, &log, |_, _| true));
    let takes = Arc::new(Accelerator::with("other", 0, &log, |_, _| false));
    assert!(space.add_listener(refuses.clone()).is_clean());
    assert!(space.add_listener(takes.clone()).is_clean());
    let region = space.region(Bus::Mmio, 0x1000);
    assert!(region.map(BASE).unwrap().is_clean());
    let event = Arc::new(Event::new(0));

    let report = region.add_eventfd(0x10, 4, None, &event).unwrap();
    let [refusal] = &report.refusals[..] else {
        panic!("{report:?}")
    };
    assert_eq!(refusal.listener, "picky");
    assert_eq!(refusal.call, ListenerCall::Add);
    assert_eq!(refusal.doorbell, space.doorbells()[0]);
    assert_eq!(refusal.source().unwrap().to_string(), "as told");
    assert!(!refusal.is_unreachable());
    assert_eq!(
        refusal.to_string(),
        "picky did not add the doorbell at Mmio 0xe0000010: as told"
    );
    assert!(kick(&space, BASE + 0x10));
    assert_eq!(refuses.holds(), []);
    assert_eq!(takes.holds(), space.doorbells());
    // The listener is not asked to let go of a doorbell that it does not have.
    assert!(region.unmap().is_clean());
}

#[test]
fn a_doorbell_is_where_its_first_address_is() {
    let space = AddressSpace::new();
    let (_below, event) = region(&space);
    // Another region covers the doorbell from its second address on.
    let above = space.region_with_priority(Bus::Mmio, 0x100, 1);
    assert!(above.map(BASE + 0x11).unwrap().is_clean());
    assert!(kick(&space, BASE + 0x10));
    // It covers the doorbell from the first address on.
    assert!(above.map(BASE + 0x10).unwrap().is_clean());
    assert!(!kick(&space, BASE + 0x10));
    // It ends just below the doorbell's first address.
    assert!(above.map(BASE + 0x10 - 0x100).unwrap().is_clean());
    assert!(kick(&space, BASE + 0x10));
    assert_eq!(event.try_read(), Some(2));
}

/// The region that was moved last is on top; mapping a region where it is already does not count.
#[test]
fn among_equals_the_last_mapped_wins() {
    let space = AddressSpace::new();
    let (first, first_event) = region(&space);
    let (second, second_event) = region(&space);
    let who = || {
        assert!(kick(&space, BASE + 0x10));
        (first_event.try_read(), second_event.try_read())
    };
    assert_eq!(who(), (None, Some(1)));
    assert!(first.map(BASE).unwrap().is_clean());
    assert_eq!(who(), (None, Some(1)));
    assert!(first.unmap().is_clean());
    assert!(first.map(BASE).unwrap().is_clean());
    assert_eq!(who(), (Some(1), None));
    // Switching off and on does not count either.
    assert!(second.set_enabled(false).is_clean());
    assert!(second.set_enabled(true).is_clean());
    assert_eq!(who(), (Some(1), None));
}

#[test]
fn errors_carry_the_errno() {
    let space = AddressSpace::new();
    let (region, event) = region(&space);
    let add = |offset, length| {
        let added = region.add_eventfd(offset, length, None, &event);
        added.expect_err("refused")
    };
    assert_eq!(add(0xffd, 4), AddError::Outside);
    assert_eq!(add(0x1000, 0), AddError::Outside);
    assert_becomes(add(0x1000, 0), ErrorKind::InvalidInput);
    assert_eq!(add(0x10, 0), AddError::Assign(DoorbellError::Collision));
    assert_becomes(add(0x10, 0), ErrorKind::AlreadyExists);
    assert_eq!(region.map(u64::MAX - 0xfff).err(), Some(MapError));
    assert_becomes(MapError, ErrorKind::InvalidInput);
    assert_eq!(region.base(), Some(BASE));
    assert!(region.map(u64::MAX - 0x1000).unwrap().is_clean());

    let other = Arc::new(Event::new(0));
    for (length, event) in [(4, &other), (2, &event)] {
        let gone = region.del_eventfd(0x10, length, None, event);
        assert_becomes(gone.unwrap_err(), ErrorKind::NotFound);
    }
}

/// An array goes with its region, is hidden as a whole if another region covers a part of it, and keeps the numbers of
/// its slots.
#[test]
fn a_range_stands_as_a_whole() {
    let space = AddressSpace::new();
    let bar = space.region(Bus::Mmio, 0x1000);
    let event = Arc::new(Event::new(0));
    let queue = Arc::new(ValueQueue::new(&event, 4));
    let slots = Doorbell::array(
        DoorbellArray::mmio(0x100, 4, 16).with_length(4),
        [&queue; 16],
    );
    assert!(bar.map(BASE).unwrap().is_clean());
    assert!(bar.add(slots.clone()).unwrap().is_clean());
    let slot_5 = 0x100 + 4 * 5;
    assert!(kick(&space, BASE + slot_5));
    assert!(bar.map(2 * BASE).unwrap().is_clean());
    assert!(!kick(&space, BASE + slot_5));
    assert!(kick(&space, 2 * BASE + slot_5));

    // The region covers only the last slot, and then no part of the array.
    let above = space.region_with_priority(Bus::Mmio, 0x100, 1);
    assert!(above.map(2 * BASE + 0x13c).unwrap().is_clean());
    assert!(!kick(&space, 2 * BASE + slot_5));
    assert!(above.map(2 * BASE + 0x140).unwrap().is_clean());
    assert!(kick(&space, 2 * BASE + slot_5));
    // A region of lower priority that begins in the middle of the array makes no difference.
    let below = space.region_with_priority(Bus::Mmio, 0x100, -1);
    assert!(below.map(2 * BASE + 0x120).unwrap().is_clean());
    assert!(kick(&space, 2 * BASE + slot_5));

    assert!(bar.del(&slots).unwrap().is_clean());
    assert!(!kick(&space, 2 * BASE + slot_5));
    assert!(bar.del(&slots).is_err());
    assert_eq!(event.try_read(), Some(4));
    let kicks: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
    assert_eq!(kicks, [Kick::new(5, 0); 4]);
}

#[test]
fn a_doorbell_of_another_bus_is_refused() {
    let space = AddressSpace::new();
    let (region, event) = region(&space);
    let added = region.add(Doorbell::new(Key::pio(0x20, 4), &event));
    assert_eq!(added.unwrap_err(), AddError::Bus);
    assert_becomes(AddError::Bus, ErrorKind::InvalidInput);
    assert_eq!(region.doorbells().len(), 1);
}

/// A listener may look at the address space when it is asked for its priority, and when it is dropped.
#[test]
fn a_listener_may_look_when_it_comes_and_goes() {
    struct Looks(AddressSpace);
    impl Listener for Looks {
        fn name(&self) -> &'static str {
            "looks"
        }
        fn priority(&self) -> i32 {
            self.0.doorbells().len() as i32
        }
        fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Err("takes nothing".into())
        }
        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Ok(())
        }
    }
    impl Drop for Looks {
        fn drop(&mut self) {
            let region = self.0.region(Bus::Mmio, 0x10);
            assert!(region.map(0).unwrap().is_clean());
        }
    }
    let space = AddressSpace::new();
    let listener = Arc::new(Looks(space.clone()));
    assert!(space.add_listener(listener.clone()).is_clean());
    let listener_ref: *const Looks = &*listener;
    drop(listener);
    // SAFETY: the address space has a handle of the listener until it is removed.
    let report = space.remove_listener(unsafe { &*listener_ref });
    assert!(report.is_clean());
}

/// A listener says of which refused doorbells the guest's writes do not reach the VMM. It is not asked about doorbells
/// that it let go of.
#[test]
fn refusals_that_cost_more_than_speed() {
    struct Knows;
    impl Listener for Knows {
        fn name(&self) -> &'static str {
            "knows"
        }
        fn eventfd_add(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
            match doorbell.address() & 0xff {
                0x10 => Err("taken".into()),
                0x20 => Err("no room".into()),
                _ => Ok(()),
            }
        }
        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Err("taken".into())
        }
        fn is_unreachable(&self, error: &RefusalError) -> bool {
            error.to_string() == "taken"
        }
    }

    let space = AddressSpace::new();
    let knows: Arc<dyn Listener> = Arc::new(Knows);
    assert!(space.add_listener(&knows).is_clean());
    let region = space.region(Bus::Mmio, 0x1000);
    let event = Arc::new(Event::new(0));
    for offset in [0x10, 0x20, 0x30] {
        assert!(
            region
                .add_eventfd(offset, 4, None, &event)
                .unwrap()
                .is_clean()
        );
    }
    let unreachable = |report: &CommitReport| -> Vec<u64> {
        let refusals = report.unreachable();
        refusals.map(|refusal| refusal.doorbell.address()).collect()
    };
    let report = region.map(BASE).unwrap();
    assert_eq!(report.refusals.len(), 2);
    assert_eq!(unreachable(&report), [BASE + 0x10]);
    let report = region.unmap();
    assert_eq!((report.refusals.len(), unreachable(&report)), (1, vec![]));
    assert!(space.remove_listener(&*knows).is_clean());
}

/// No guest makes an empty write: it rings no doorbell, not even one for any length.
#[test]
fn an_empty_write_is_no_doorbells() {
    let space = AddressSpace::new();
    let region = space.region(Bus::Mmio, 0x1000);
    let event = Arc::new(Event::new(0));
    assert!(region.map(BASE).unwrap().is_clean());
    for doorbell in [
        Doorbell::new(Key::mmio(0x10, 0), &event),
        Doorbell::array(DoorbellArray::mmio(0x20, 4, 4), [&event; 4]),
    ] {
        assert!(region.add(doorbell).unwrap().is_clean());
    }
    for address in [BASE + 0x10, BASE + 0x20, BASE + 0x24] {
        assert!(!space.write(Bus::Mmio, address, &[]));
        assert!(space.write(Bus::Mmio, address, &[0; 3]));
    }
    assert_eq!(event.try_read(), Some(3));
}

/// There are 0x1_0000 ports.
#[test]
fn ports_end() {
    let space = AddressSpace::new();
    let ports = space.region(Bus::Pio, 0x10);
    for base in [0xfff1, 0x1_0000, 0xffff_fff0, u64::MAX - 0x10, u64::MAX] {
        assert_eq!(ports.map(base).unwrap_err(), MapError, "{base:#x}");
        assert_eq!(ports.base(), None);
    }
    assert!(ports.map(0xfff0).unwrap().is_clean());
    let event = Arc::new(Event::new(0));
    assert!(ports.add_eventfd(0xf, 1, None, &event).unwrap().is_clean());
    assert!(space.write(Bus::Pio, 0xffff, &[0]));
    assert_eq!(ports.map(0x1_0000).unwrap_err(), MapError);
    assert_eq!(ports.base(), Some(0xfff0));
    // A region of all ports, and one with one port more.
    assert!(space.region(Bus::Pio, 0x1_0000).map(0).unwrap().is_clean());
    assert_eq!(
        space.region(Bus::Pio, 0x1_0001).map(0).unwrap_err(),
        MapError
    );
}

/// Listeners are asked to drain, and hear of the end of a commit that took doorbells from them when these doorbells
/// have gone.
#[test]
fn listeners_drain_and_hear_the_end() {
    #[derive(Default)]
    struct Hears {
        event: Mutex<Option<doorbell::event::WeakEventHandle>>,
        heard: Mutex<Vec<&'static str>>,
    }
    impl Hears {
        fn hear(&self, what: &'static str) {
            self.heard.lock().unwrap().push(what);
        }
    }
    impl Listener for Hears {
        fn name(&self) -> &'static str {
            "hears"
        }
        fn eventfd_add(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
            *self.event.lock().unwrap() = Some(doorbell.targets()[0].event().downgrade());
            self.hear("add");
            Ok(())
        }
        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            self.hear("del");
            Ok(())
        }
        fn drain(&self) -> u64 {
            self.hear("drain");
            let event = self
                .event
                .lock()
                .unwrap()
                .as_ref()
                .and_then(|event| event.upgrade());
            event.map_or(0, |event| {
                event.signal_n(5);
                5
            })
        }
        fn committed(&self) {
            let gone = self
                .event
                .lock()
                .unwrap()
                .as_ref()
                .is_none_or(|event| event.is_gone());
            self.hear(if gone { "committed, gone" } else { "committed" });
        }
    }
    limit("listeners_drain_and_hear_the_end", || {
        let space = AddressSpace::new();
        let listeners = [(); 2].map(|()| Arc::new(Hears::default()));
        for listener in &listeners {
            assert!(space.add_listener(listener.clone()).is_clean());
        }
        let (region, event) = region(&space);
        assert_eq!(space.drain(), 10);
        assert_eq!(event.try_read(), Some(10));
        assert!(region.map(2 * BASE).unwrap().is_clean());
        drop(event);
        let outer = space.begin();
        assert!(region.unmap().is_clean());
        assert!(region.set_enabled(false).is_clean());
        assert!(region.remove().is_clean());
        assert!(outer.commit().is_clean());
        // There is nothing to report.
        let other = space.region(Bus::Mmio, 1);
        assert!(other.map(0).unwrap().is_clean());
        assert_eq!(space.drain(), 0);
        for listener in &listeners {
            let heard = std::mem::take(&mut *listener.heard.lock().unwrap());
            let moved = ["add", "drain", "del", "add", "committed"];
            let gone = ["del", "committed, gone", "drain"];
            assert_eq!(heard, [&moved[..], &gone].concat());
        }
    });
}

/// A listener that panics, or an observer of an event that it signals, fails the commit. The commit takes effect
/// nevertheless: the table has the doorbells in force, and all listeners have been told.
#[test]
fn a_listener_that_panics() {
    struct Panics {
        when: ListenerCall,
        priority: i32,
    }
    impl Panics {
        fn told(&self, call: ListenerCall) -> Result<(), RefusalError> {
            assert_ne!(self.when, call, "for the test");
            Ok(())
        }
    }
    impl Listener for Panics {
        fn name(&self) -> &'static str {
            "panics"
        }
        fn priority(&self) -> i32 {
            self.priority
        }
        fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
            self.told(ListenerCall::Add)
        }
        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            self.told(ListenerCall::Delete)
        }
    }
    for when in [ListenerCall::Add, ListenerCall::Delete] {
        // The listener is called before the other one, whether doorbells come or go, or after it.
        for priority in [-1, 1] {
            let space = AddressSpace::new();
            let other = Arc::new(Accelerator::new());
            assert!(space.add_listener(Arc::clone(&other)).is_clean());
            let (region, event) = region(&space);
            let panics = |call: &dyn Fn() -> CommitReport| {
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err()
            };
            let listener = Arc::new(Panics { when, priority });
            let added = panics(&|| space.add_listener(&listener));
            assert_eq!(added, when == ListenerCall::Add);
            for base in [0x1000, 0x2000, 0x3000] {
                assert!(panics(&|| region.map(base).unwrap()));
                let expected = [Doorbell::new(Key::mmio(base + 0x10, 4), &event)];
                assert_eq!(space.doorbells(), expected);
                assert_eq!(other.holds(), expected, "{when:?} {priority}");
                assert!(kick(&space, base + 0x10));
                assert!(!kick(&space, base - 0x1000 + 0x10));
            }
            assert_eq!(event.try_read(), Some(3));
            let remove = std::panic::AssertUnwindSafe(|| region.remove());
            let removed = std::panic::catch_unwind(remove);
            assert_eq!(removed.is_err(), when == ListenerCall::Delete);
            assert_eq!(other.holds(), []);
        }
    }
}

/// A listener that panics at the end of a transaction does not affect the others.
#[test]
fn a_listener_that_panics_at_the_end() {
    #[derive(Default)]
    struct Hears(AtomicU64);
    impl Listener for Hears {
        fn name(&self) -> &'static str {
            "hears"
        }
        fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Ok(())
        }
        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Ok(())
        }
        fn committed(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("for the test");
        }
    }
    let space = AddressSpace::new();
    let listeners = [(); 2].map(|()| Arc::new(Hears::default()));
    for listener in &listeners {
        assert!(space.add_listener(listener).is_clean());
    }
    let (region, _) = region(&space);
    let unmap = std::panic::AssertUnwindSafe(|| region.unmap());
    assert!(std::panic::catch_unwind(unmap).is_err());
    let heard = listeners.map(|listener| listener.0.load(Ordering::Relaxed));
    assert_eq!(heard, [1, 1]);
}

/// The owner of an event can do anything when it is dropped, such as drop another region: whichever call drops the last
/// handle of the event, no part of the address space is in use by then.
#[test]
fn the_last_handle_of_an_event_drops_a_region() {
    struct Device {
        kick: Event,
        registers: Region,
        dropped: Arc<AtomicUsize>,
    }
    impl Drop for Device {
        fn drop(&mut self) {
            assert!(self.registers.map(0x9000).is_ok());
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
    let space = AddressSpace::new();
    let dropped = Arc::new(AtomicUsize::new(0));
    let kick = || {
        let device = Arc::new(Device {
            kick: Event::new(0),
            registers: space.region(Bus::Mmio, 0x10),
            dropped: Arc::clone(&dropped),
        });
        EventHandle::of_field(&device, |device| &device.kick)
    };
    let dropped = || dropped.swap(0, Ordering::Relaxed);
    for base in [None, Some(0x1000)] {
        let region = || {
            let region = space.region(Bus::Mmio, 0x10);
            base.map(|base| region.map(base).unwrap());
            region
        };
        // The region that has the doorbell is dropped, alone or in a transaction.
        let notify = region();
        notify.add_eventfd(0, 4, None, kick()).unwrap();
        drop(notify);
        assert_eq!(dropped(), 1);
        let notify = region();
        notify.add_eventfd(0, 4, None, kick()).unwrap();
        let transaction = space.begin();
        notify.remove();
        transaction.commit();
        assert_eq!(dropped(), 1);
        // The doorbell is removed, and the caller has given away the other handle.
        let notify = region();
        let handle = kick();
        notify.add_eventfd(0, 4, None, &handle).unwrap();
        notify.del_eventfd(0, 4, None, handle).unwrap();
        assert_eq!(dropped(), 1);
        // The doorbell is refused.
        assert!(notify.add_eventfd(0, 3, None, kick()).is_err());
        assert!(notify.add_eventfd(0x10, 4, None, kick()).is_err());
        assert!(notify.del_eventfd(0, 4, None, kick()).is_err());
        assert!(notify.add(Doorbell::new(Key::pio(0, 4), kick())).is_err());
        assert_eq!(dropped(), 4);
    }
    assert!(space.doorbells().is_empty());
}
