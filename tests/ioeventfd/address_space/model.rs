//! Random changes, and after each commit a comparison of everything with a naive recomputation: what is in force, which
//! calls the listeners got and in which order, what was refused, and where each write goes.

use crate::accelerator::{Accelerator, Asked, addresses, collide, order, rung};
use doorbell::Event;
use doorbell::ioeventfd::space::{
    AddError, AddressSpace, AddressSpaceState, CommitReport, ListenerCall, MapError, Region,
    Transaction,
};
use doorbell::ioeventfd::{
    Bus, Doorbell, DoorbellArray, DoorbellError, Key, Kick, Latest, Target, ValueQueue,
};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// Regions are mapped below this, and overlap often.
const ADDRESSES: u64 = 32;
const LARGEST: u64 = 12;
/// The last two keep what was written.
const TARGETS: usize = 5;
const BUSES: [Bus; 2] = [Bus::Mmio, Bus::Pio];

#[derive(Clone, Debug)]
enum Step {
    Make {
        bus: Bus,
        size: u64,
        priority: i32,
    },
    Remove(usize),
    Map(usize, u64),
    Unmap(usize),
    Enable(usize, bool),
    Add {
        region: usize,
        offset: u64,
        length: u32,
        datamatch: Option<u64>,
        target: usize,
    },
    /// The slots have consecutive targets.
    AddArray {
        region: usize,
        offset: u64,
        stride: u64,
        slots: u32,
        length: u32,
        target: usize,
    },
    /// A region, and the index of one of its doorbells.
    Del(usize, usize),
    Begin,
    Commit,
    Listen(usize),
    Forget(usize),
    Retry,
}

fn step() -> impl Strategy<Value = Step> {
    let bus = || proptest::sample::select(&BUSES[..]);
    let base = prop_oneof![
        20 => 0..ADDRESSES,
        1 => (0..2 * LARGEST).prop_map(|below| u64::MAX - below),
        1 => (0..2 * LARGEST).prop_map(|below| 0x1_0000 + LARGEST - below),
    ];
    let length = || proptest::sample::select(&[0, 0, 1, 1, 1, 2, 2, 4, 8, 3][..]);
    let stride = proptest::sample::select(&[0, 1, 1, 2, 2, 4, 3][..]);
    let datamatch =
        prop_oneof![2 => Just(None), 3 => (0..2_u64).prop_map(Some), 1 => Just(Some(256))];
    prop_oneof![
        2 => (bus(), 0..LARGEST, 0..3).prop_map(|(bus, size, priority)| Step::Make { bus, size, priority }),
        1 => any::<usize>().prop_map(Step::Remove),
        6 => (any::<usize>(), base).prop_map(|(region, base)| Step::Map(region, base)),
        1 => any::<usize>().prop_map(Step::Unmap),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(region, on)| Step::Enable(region, on)),
        12 => (any::<usize>(), 0..LARGEST, length(), datamatch, 0..TARGETS).prop_map(
            |(region, offset, length, datamatch, target)| Step::Add { region, offset, length, datamatch, target }
        ),
        4 => (any::<usize>(), 0..LARGEST, stride, 0..4_u32, length(), 0..TARGETS).prop_map(
            |(region, offset, stride, slots, length, target)| {
                Step::AddArray { region, offset, stride, slots, length, target }
            }
        ),
        3 => (any::<usize>(), any::<usize>()).prop_map(|(region, nth)| Step::Del(region, nth)),
        2 => Just(Step::Begin),
        3 => Just(Step::Commit),
        1 => (0..LISTENERS.len()).prop_map(Step::Listen),
        1 => (0..LISTENERS.len()).prop_map(Step::Forget),
        1 => Just(Step::Retry),
    ]
}

/// A kind of listener: its name, its priority, and what it refuses.
type Kind = (&'static str, i32, fn(ListenerCall, &Doorbell) -> bool);

const LISTENERS: [Kind; 4] = [
    ("takes all", 10, |_, _| false),
    ("takes no odd addresses", 0, |change, doorbell| {
        change == ListenerCall::Add && doorbell.address() % 2 == 1
    }),
    ("complains when it lets go", 10, |change, doorbell| {
        change == ListenerCall::Delete && order(doorbell).2 == 1
    }),
    ("takes only wildcards, and complains", -5, |_, doorbell| {
        order(doorbell).2 != 0
    }),
];

/// The expected state of a region.
struct Model {
    bus: Bus,
    size: u64,
    priority: i32,
    base: Option<u64>,
    enabled: bool,
    mapped: usize,
    /// The doorbells, at offsets in the region.
    doorbells: Vec<Doorbell>,
}

/// The expected state of a listener.
struct Told {
    kind: Kind,
    accelerator: Arc<Accelerator>,
    leaving: bool,
    new: bool,
    holds: Vec<Doorbell>,
}

struct Test<'a> {
    space: &'a AddressSpace,
    open: Vec<Transaction<'a>>,
    regions: Vec<(Region, Model)>,
    mapped: usize,
    listeners: Vec<Told>,
    log: Arc<Mutex<Vec<Asked>>>,
    in_force: Vec<Doorbell>,
    retry: bool,
    targets: [Target; TARGETS],
}

impl<'a> Test<'a> {
    fn new(space: &'a AddressSpace) -> Self {
        Test {
            space,
            open: Vec::new(),
            regions: Vec::new(),
            mapped: 0,
            listeners: Vec::new(),
            log: Arc::default(),
            in_force: Vec::new(),
            retry: false,
            targets: std::array::from_fn(|target| {
                let event = Arc::new(Event::new(0));
                match target {
                    3 => Arc::new(Latest::new(&event, 0)).into(),
                    4 => Arc::new(ValueQueue::new(&event, 1)).into(),
                    _ => event.into(),
                }
            }),
        }
    }

    fn step(&mut self, step: Step) {
        let index = |index: usize| index.checked_rem(self.regions.len());
        let report = match step {
            Step::Make {
                bus,
                size,
                priority,
            } => {
                let region = self.space.region_with_priority(bus, size, priority);
                let model = Model {
                    bus,
                    size,
                    priority,
                    base: None,
                    enabled: true,
                    mapped: 0,
                    doorbells: Vec::new(),
                };
                self.regions.push((region, model));
                return;
            }
            Step::Remove(region) => {
                let Some(region) = index(region) else { return };
                self.regions.swap_remove(region).0.remove()
            }
            Step::Map(region, base) => {
                let Some(region) = index(region) else { return };
                let (region, model) = &mut self.regions[region];
                let mapped = region.map(base);
                let limit = match model.bus {
                    Bus::Mmio => u64::MAX.into(),
                    Bus::Pio => 0x1_0000,
                };
                if u128::from(base) + u128::from(model.size) > limit {
                    assert_eq!(mapped.err(), Some(MapError));
                    return;
                }
                if model.base != Some(base) {
                    self.mapped += 1;
                    model.base = Some(base);
                    model.mapped = self.mapped;
                }
                mapped.unwrap()
            }
            Step::Unmap(region) => {
                let Some(region) = index(region) else { return };
                let (region, model) = &mut self.regions[region];
                model.base = None;
                region.unmap()
            }
            Step::Enable(region, on) => {
                let Some(region) = index(region) else { return };
                let (region, model) = &mut self.regions[region];
                model.enabled = on;
                region.set_enabled(on)
            }
            Step::Add {
                region,
                offset,
                length,
                datamatch,
                target,
            } => {
                let Some(region) = index(region) else { return };
                let (region, model) = &mut self.regions[region];
                let target = &self.targets[target];
                let mut key = Key::new(model.bus, offset, length);
                key.datamatch = datamatch;
                let added = region.add_eventfd(offset, length, datamatch, target);
                let expected = model.add(Doorbell::new(key, target));
                assert_eq!(added.as_ref().err(), expected.as_ref().err());
                match added {
                    Ok(report) => report,
                    Err(_) => return,
                }
            }
            Step::AddArray {
                region,
                offset,
                stride,
                slots,
                length,
                target,
            } => {
                let Some(region) = index(region) else { return };
                let (region, model) = &mut self.regions[region];
                let array = DoorbellArray::new(model.bus, offset, stride, slots);
                let array = array.with_length(length);
                let targets = self.targets.iter().cycle().skip(target);
                let doorbell = Doorbell::array(array, targets.take(slots as usize));
                let added = region.add(doorbell.clone());
                let expected = model.add(doorbell);
                assert_eq!(added.as_ref().err(), expected.as_ref().err());
                match added {
                    Ok(report) => report,
                    Err(_) => return,
                }
            }
            Step::Del(region, nth) => {
                let Some(region) = index(region) else { return };
                let (region, model) = &mut self.regions[region];
                let Some(nth) = nth.checked_rem(model.doorbells.len()) else {
                    return;
                };
                let doorbell = model.doorbells.remove(nth);
                match &doorbell {
                    Doorbell::Single { key, target } => {
                        region.del_eventfd(key.address, key.length, key.datamatch, target)
                    }
                    _ => region.del(&doorbell),
                }
                .unwrap()
            }
            Step::Begin => {
                self.open.push(self.space.begin());
                return;
            }
            Step::Commit => {
                let Some(open) = self.open.pop() else { return };
                open.commit()
            }
            Step::Listen(kind) => {
                let kind @ (name, priority, refuses) = LISTENERS[kind];
                let accelerator = Arc::new(Accelerator::with(name, priority, &self.log, refuses));
                let place = self
                    .listeners
                    .partition_point(|told| told.kind.1 <= priority);
                let told = Told {
                    kind,
                    accelerator: accelerator.clone(),
                    leaving: false,
                    new: true,
                    holds: Vec::new(),
                };
                self.listeners.insert(place, told);
                self.space.add_listener(accelerator)
            }
            Step::Forget(kind) => {
                let named = |told: &&mut Told| told.kind.0 == LISTENERS[kind].0 && !told.leaving;
                let Some(told) = self.listeners.iter_mut().find(named) else {
                    return;
                };
                told.leaving = true;
                self.space.remove_listener(&*told.accelerator)
            }
            Step::Retry => {
                self.retry = true;
                self.space.retry_refused()
            }
        };
        if self.open.is_empty() {
            self.committed(&report);
        } else {
            assert!(report.is_clean());
            assert_eq!(self.log.lock().unwrap().len(), 0, "before the commit");
        }
        for (region, model) in &self.regions {
            let mut sorted = model.doorbells.clone();
            sorted.sort_by_key(order);
            assert_eq!(region.doorbells(), sorted);
            assert_eq!(region.base(), model.base);
            assert_eq!(region.is_enabled(), model.enabled);
        }
    }

    fn committed(&mut self, report: &CommitReport) {
        let old = std::mem::replace(&mut self.in_force, in_sight(&self.regions));
        let retry = std::mem::take(&mut self.retry);
        assert_eq!(self.space.doorbells(), self.in_force);

        let mut expected: Vec<Asked> = Vec::new();
        for told in self.listeners.iter_mut().rev() {
            let goes = |doorbell: &Doorbell| told.leaving || !self.in_force.contains(doorbell);
            let (gone, stays) = told.holds.drain(..).partition(goes);
            let gone: Vec<_> = gone;
            told.holds = stays;
            expected.extend(
                gone.into_iter()
                    .map(|d| (told.kind.0, ListenerCall::Delete, d)),
            );
        }
        self.listeners.retain(|told| !told.leaving);
        for told in &mut self.listeners {
            for doorbell in &self.in_force {
                let again = retry && !told.holds.contains(doorbell);
                if !old.contains(doorbell) || told.new || again {
                    expected.push((told.kind.0, ListenerCall::Add, doorbell.clone()));
                    if !told.kind.2(ListenerCall::Add, doorbell) {
                        told.holds.push(doorbell.clone());
                    }
                }
            }
            told.holds.sort_by_key(order);
            told.new = false;
            // In addition, the accelerator itself checks that it gets nothing twice, and nothing that collides.
            assert_eq!(told.accelerator.holds(), told.holds);
        }
        let asked = std::mem::take(&mut *self.log.lock().unwrap());
        assert_eq!(asked, expected);

        expected.retain(|(name, change, doorbell)| {
            let kind = LISTENERS.iter().find(|kind| kind.0 == *name).unwrap();
            kind.2(*change, doorbell)
        });
        let refused: Vec<Asked> = report
            .refusals
            .iter()
            .map(|refusal| (refusal.listener, refusal.call, refusal.doorbell.clone()))
            .collect();
        assert_eq!(refused, expected);

        self.probe();
    }

    /// An address space that went through JSON has the same regions with the same doorbells in force, even when regions
    /// that hid others are gone, and the same pending writes; and saving it gives the same state.
    fn goes_through_a_snapshot(&self) {
        let number = |event: &Event| {
            let mut targets = self.targets.iter();
            targets
                .position(|target| target.event().ptr_eq(event))
                .unwrap() as u64
        };
        if let Target::ValueQueue(queue) = &self.targets[4] {
            assert!(queue.push(Kick::new(1, 2)));
        }
        let state = self.space.save(number);
        let json = serde_json::to_string(&state).unwrap();
        let read: AddressSpaceState = serde_json::from_str(&json).unwrap();
        assert_eq!(read, state);

        let events: [_; TARGETS] = std::array::from_fn(|_| Arc::new(Event::new(0)));
        let find = |number: u64| Some((&events[number as usize]).into());
        let again = AddressSpace::new();
        let log = Arc::default();
        let accelerator = Arc::new(Accelerator::with("restored", 0, &log, |_, _| false));
        again.add_listener(accelerator.clone());
        let (regions, report) = again.restore(&read, find).unwrap();
        assert!(report.is_clean());
        let name = |event: &Event| {
            let mut events = events.iter();
            events
                .position(|other| std::ptr::eq(&**other, event))
                .unwrap() as u64
        };
        assert_eq!(again.save(name), state);
        assert!(
            again.restore(&read, find).is_err() || regions.is_empty(),
            "numbers are taken"
        );
        assert_eq!(accelerator.holds(), again.doorbells());

        // The regions are in the same order as in the state.
        let mut old: Vec<&Region> = self.regions.iter().map(|(region, _)| region).collect();
        old.sort_by_key(|region| region.id());
        let same = || {
            let (now, again) = (self.space.doorbells(), again.doorbells());
            let places = |doorbells: &[Doorbell]| doorbells.iter().map(order).collect::<Vec<_>>();
            assert_eq!(places(&now), places(&again));
            for (now, again) in now.iter().zip(&again) {
                let numbers = now.targets().iter().map(|target| number(target.event()));
                assert!(numbers.eq(again.targets().iter().map(|target| name(target.event()))));
                for target in again.targets() {
                    match target {
                        Target::ValueQueue(queue) => assert_eq!(queue.len(), 1),
                        Target::Latest(latest) => {
                            let Target::Latest(old) = &self.targets[3] else {
                                unreachable!()
                            };
                            assert_eq!(latest.value(), old.value());
                        }
                        _ => {}
                    }
                }
            }
        };
        same();
        // The regions hide the same doorbells, too.
        for (old, new) in old.iter().zip(&regions) {
            let enabled = old.is_enabled();
            old.set_enabled(false);
            new.set_enabled(false);
            same();
            old.set_enabled(enabled);
            new.set_enabled(enabled);
        }
        self.log.lock().unwrap().clear();
        assert!(
            old.iter()
                .map(|region| region.id())
                .eq(regions.iter().map(|region| region.id()))
        );
        if let Target::ValueQueue(queue) = &self.targets[4] {
            assert_eq!(queue.drain().count(), 1);
        }
    }

    /// Each write rings its expected target once, or none.
    fn probe(&self) {
        for bus in BUSES {
            for address in 0..ADDRESSES + LARGEST {
                for size in [1, 2, 4, 8] {
                    for value in [0_u64, 1, 256] {
                        let data = &value.to_le_bytes()[..size];
                        let hits = self.in_force.iter();
                        let hit = hits.filter_map(|doorbell| rung(doorbell, bus, address, data));
                        let hit = hit.map(|target| target.event()).next();
                        let taken = self.space.write(bus, address, data);
                        assert_eq!(taken, hit.is_some(), "{bus:?} {address:#x} {data:?}");
                        for target in &self.targets {
                            let event = target.event();
                            let hit = hit.is_some_and(|hit| hit.ptr_eq(event));
                            assert_eq!(event.try_read(), hit.then_some(1));
                            let value = value & (u64::MAX >> (64 - 8 * size));
                            match target {
                                Target::Latest(latest) if hit => assert_eq!(latest.value(), value),
                                Target::ValueQueue(queue) => {
                                    let kept = queue.pop().map(|Kick { value, .. }| value);
                                    assert_eq!(kept, hit.then_some(value));
                                }
                                _ => {}
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Model {
    fn add(&mut self, doorbell: Doorbell) -> Result<(), AddError> {
        let (address, length, size) = match &doorbell {
            Doorbell::Single { key, .. } => (key.address, key.length, key.length.max(1).into()),
            Doorbell::Array { array, .. } => {
                if array.stride == 3 {
                    return Err(DoorbellError::Stride.into());
                }
                if array.slots == 0 {
                    return Err(DoorbellError::Slots.into());
                }
                let last = array.stride * u64::from(array.slots - 1);
                let slot = array.stride.max(array.length.into());
                (array.address, array.length, last + slot)
            }
            other => unreachable!("{other:?}"),
        };
        if length == 3 {
            return Err(DoorbellError::Length.into());
        }
        if let Doorbell::Single { key, .. } = &doorbell {
            if length == 0 && key.datamatch.is_some() {
                return Err(DoorbellError::WildcardDatamatch.into());
            }
            if length == 1 && key.datamatch == Some(256) {
                return Err(DoorbellError::DatamatchWidth.into());
            }
        }
        if let Doorbell::Array { array, .. } = &doorbell {
            if length == 0 && array.stride == 0 {
                return Err(DoorbellError::WildcardDatamatch.into());
            }
        }
        if address + size > self.size {
            return Err(AddError::Outside);
        }
        if self.doorbells.iter().any(|other| collide(other, &doorbell)) {
            return Err(DoorbellError::Collision.into());
        }
        self.doorbells.push(doorbell);
        Ok(())
    }

    fn covers(&self, bus: Bus, address: u64) -> bool {
        let start = self.base.filter(|_| self.enabled && self.bus == bus);
        start.is_some_and(|base| (base..base + self.size).contains(&address))
    }
}

/// The doorbells in force: those whose address, or all of whose addresses for an array, are inside their region, and in
/// no other region that outranks it.
fn in_sight(regions: &[(Region, Model)]) -> Vec<Doorbell> {
    let mut in_sight = Vec::new();
    for (_, region) in regions {
        for doorbell in &region.doorbells {
            let Some(base) = region.base else { continue };
            let visible = |offset: u64| {
                let owner = regions
                    .iter()
                    .map(|(_, region)| region)
                    .filter(|other| other.covers(region.bus, base + offset))
                    .max_by_key(|other| (other.priority, other.mapped));
                owner.is_some_and(|owner| std::ptr::eq(owner, region))
            };
            let mut moved = doorbell.clone();
            let whole = match &mut moved {
                Doorbell::Single { key, .. } => {
                    let visible = visible(key.address);
                    key.address += base;
                    visible
                }
                Doorbell::Array { array, .. } => {
                    let visible = addresses(array).all(visible);
                    array.address += base;
                    visible
                }
                other => unreachable!("{other:?}"),
            };
            if whole {
                in_sight.push(moved);
            }
        }
    }
    in_sight.sort_by_key(order);
    in_sight
}

proptest! {
    #[test]
    fn everything_is_as_a_naive_recomputation_says(steps in proptest::collection::vec(step(), 1..60)) {
        let space = AddressSpace::new();
        let mut test = Test::new(&space);
        for step in steps {
            test.step(step);
        }
        while !test.open.is_empty() {
            test.step(Step::Commit);
        }
        test.goes_through_a_snapshot();
        while !test.regions.is_empty() {
            test.step(Step::Remove(0));
        }
        prop_assert!(test.in_force.is_empty());
    }
}
