//! Saved address spaces: what a state must be, and what a VMM does with it.

use doorbell::Event;
use doorbell::ioeventfd::space::{
    AddError, AddressSpace, AddressSpaceState, MapError, RegionState, SpaceStateError,
};
use doorbell::ioeventfd::{
    Bus, Doorbell, DoorbellArray, DoorbellError, DoorbellState, DoorbellStateError, Key,
    TargetState,
};
use doorbell::state::UnknownVersion;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

fn state() -> AddressSpaceState {
    let mut state = AddressSpaceState::default();
    state.targets = vec![TargetState::Event(0)];
    for (id, base) in [(3, 0x1000), (5, 0x8000)] {
        let mut region = RegionState::new(id, Bus::Mmio, 0x1000);
        region.base = Some(base);
        region.doorbells = vec![DoorbellState::Single {
            key: Key::mmio(0x10, 4),
            target: 0,
        }];
        state.regions.push(region);
    }
    state
}

/// Each fault of a state is an error, and the error leaves everything unchanged.
#[test]
fn an_invalid_state_is_an_error() {
    let space = AddressSpace::new();
    let event = Arc::new(Event::new(0));
    let there = space.region(Bus::Mmio, 0x10);
    assert_eq!(there.id(), 0);
    let restore = |change: &dyn Fn(&mut AddressSpaceState)| {
        let mut state = state();
        change(&mut state);
        let restored = space.restore(&state, |number| (number == 0).then(|| (&event).into()));
        let error = restored.map(drop);
        assert!(space.doorbells().is_empty());
        let kind = error.map_err(|error| {
            assert!(!error.to_string().is_empty());
            (error, std::io::Error::from(error).kind())
        });
        kind.map(drop)
    };
    let invalid = |error| Err((error, ErrorKind::InvalidInput));
    let exists = |error| Err((error, ErrorKind::AlreadyExists));
    assert_eq!(restore(&|_| {}), Ok(()));
    assert_eq!(
        restore(&|state| state.version = 7),
        invalid(SpaceStateError::Version(UnknownVersion(7)))
    );
    assert_eq!(
        restore(&|state| state.targets[0] = TargetState::Event(9)),
        invalid(SpaceStateError::Targets(DoorbellStateError::UnknownEvent(
            9
        )))
    );
    assert_eq!(
        restore(&|state| state.targets.clear()),
        invalid(SpaceStateError::Targets(DoorbellStateError::UnknownTarget(
            0
        )))
    );
    for id in [0, 5, u64::MAX] {
        assert_eq!(
            restore(&|state| state.regions[0].id = id),
            exists(SpaceStateError::RegionId(id)),
            "{id}"
        );
    }
    for (bus, base) in [(Bus::Mmio, u64::MAX - 0xffe), (Bus::Pio, 0xf001)] {
        assert_eq!(
            restore(&|state| {
                state.regions[1].bus = bus;
                state.regions[1].base = Some(base);
            }),
            invalid(SpaceStateError::Map {
                region: 1,
                error: MapError
            })
        );
    }
    let add = |error| SpaceStateError::Add {
        region: 1,
        index: 0,
        error,
    };
    assert_eq!(
        restore(&|state| state.regions[1].bus = Bus::Pio),
        invalid(add(AddError::Bus))
    );
    assert_eq!(
        restore(&|state| state.regions[1].size = 0x13),
        invalid(add(AddError::Outside))
    );
    assert_eq!(
        restore(&|state| {
            let twice = state.regions[1].doorbells[0].clone();
            state.regions[1].doorbells.push(twice);
        }),
        exists(SpaceStateError::Add {
            region: 1,
            index: 1,
            error: DoorbellError::Collision.into()
        })
    );
    // A saved state never has two regions that were mapped at the same time, but a state that says so does no harm.
    assert_eq!(
        restore(&|state| {
            state.regions[0].mapped = u64::MAX;
            state.regions[1].mapped = u64::MAX;
            state.regions[1].base = Some(0x1000);
        }),
        Ok(())
    );
    assert_eq!(space.region(Bus::Mmio, 1).id(), 6);
}

/// A snapshot is taken inside a transaction, and regions that are made afterwards have other numbers than the restored
/// ones.
#[test]
fn numbers_and_open_transactions() {
    let space = AddressSpace::new();
    let event = Arc::new(Event::new(0));
    drop(space.region(Bus::Pio, 1));
    let bar = space.region_with_priority(Bus::Mmio, 0x1000, -1);
    bar.add(Doorbell::array(
        DoorbellArray::virtio_pci(0, 0, 2),
        [&event; 2],
    ))
    .unwrap();
    let transaction = space.begin();
    bar.map(0x4000).unwrap();
    bar.set_enabled(false);
    let state = space.save(|_| 42);
    transaction.commit();
    assert_eq!(state.regions.len(), 1);
    let region = &state.regions[0];
    assert_eq!((region.id, region.bus, region.size), (1, Bus::Mmio, 0x1000));
    assert_eq!((region.base, region.enabled), (Some(0x4000), false));
    assert_eq!((region.priority, region.doorbells.len()), (-1, 1));
    assert_eq!(state.targets, [TargetState::Event(42)]);

    let again = AddressSpace::new();
    let (regions, _) = again.restore(&state, |_| Some((&event).into())).unwrap();
    assert!(again.doorbells().is_empty());
    regions[0].set_enabled(true);
    assert!(again.write(Bus::Mmio, 0x4000, &[1, 0]));
    assert_eq!(event.read(), 1);
    assert_eq!(again.region(Bus::Mmio, 1).id(), 2);
    drop(regions);
    assert!(again.doorbells().is_empty());
}

/// If a listener panics while it is told of restored doorbells, the regions are gone again.
#[test]
fn a_listener_panics() {
    use doorbell::ioeventfd::space::{Listener, RefusalError};
    struct Panics;
    impl Listener for Panics {
        fn name(&self) -> &'static str {
            "panics"
        }
        fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
            panic!("for the test")
        }
        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Ok(())
        }
    }
    let space = AddressSpace::new();
    space.add_listener(Arc::new(Panics));
    let event = Arc::new(Event::new(0));
    let restore = || space.restore(&state(), |_| Some((&event).into())).map(drop);
    let restored = catch_unwind(AssertUnwindSafe(restore));
    assert!(restored.is_err());
    assert!(space.doorbells().is_empty());
    assert!(space.save(|_| 0).regions.is_empty());
}
