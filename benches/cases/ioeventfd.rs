//! The ioeventfd table: guest writes looked up in a [`Table`] and in other ways of keeping doorbells, and doorbells
//! added.
//!
//! A lookup is what a vCPU thread does with a guest's write: it finds the doorbell by address, length and datamatch and
//! signals its event, or finds that there is none. Every thread holds what its kind of table offers to threads that
//! look up often, here a [`Reader`]. The other tables do per access what VMMs do; see each.
//!
//! Two threads write to doorbells and events of their own, as the vCPUs of a guest do, unless there is only one
//! doorbell. So the counters do not add to what one reader costs the other. However many doorbells there are, they
//! share a few events, so only the search grows with their number.

use super::{Case, Ratio, Run, alone_with, two_with};
use arc_swap::ArcSwap;
use doorbell::Event;
use doorbell::ioeventfd::{self, Bus, Key, Reader, Registration, Table};
use fastrand::Rng;
use std::array;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::sync::{Arc, LazyLock, Mutex, RwLock, Weak};
use std::time::{Duration, Instant};

const SIZES: [u64; 5] = [1, 16, 64, 1_000, 100_000];

pub const DOORBELL: &str = "doorbell";
const NO_READER: &str = "doorbell, no reader";
pub const RW_LOCK: &str = "RwLock<BTreeMap>";
const MUTEX: &str = "Mutex<BTreeMap>";
const ARC_SWAP: &str = "arc-swap + sorted Vec";
const LINEAR: &str = "linear scan";

const REFERENCE: &str = "64 entries";
const TWO_READERS: &str = "64, two readers";
const TWO_TABLES: &str = "64, a table each";
const MANY_ENTRIES: &str = "100000 entries";
const REFERENCE_SEARCH: &str = "64 entries, no reader";
const MANY_ENTRIES_SEARCH: &str = "100000 entries, no reader";

const BATCH: &str = "one batch of 1000";
const ONE_BY_ONE: &str = "1000, one by one";

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |group: &str, who, run| {
        let group = group.to_owned();
        cases.push(Case { group, who, run });
    };
    let peers = SIZES.map(|size| (size, Peers::of(size)));
    let peers_of = |size| &peers.iter().find(|(of, _)| *of == size).expect("a size").1;

    for lookups in Lookups::all() {
        let peers = peers_of(lookups.size);
        let group = lookups.to_string();
        case(&group, DOORBELL, lookups.run(peers, Peers::reader));
        case(
            &group,
            NO_READER,
            lookups.run(peers, |all, _| Arc::clone(&all.table)),
        );
        case(
            &group,
            RW_LOCK,
            lookups.run(peers, |all, _| Arc::clone(&all.rw_lock)),
        );
        case(
            &group,
            MUTEX,
            lookups.run(peers, |all, _| Arc::clone(&all.mutex)),
        );
        case(
            &group,
            ARC_SWAP,
            lookups.run(peers, |all, _| Arc::clone(&all.arc_swap)),
        );
        // Beyond this size, a linear search is much slower than the others.
        if lookups.size <= 64 {
            case(
                &group,
                LINEAR,
                lookups.run(peers, |all, _| Arc::clone(&all.linear)),
            );
        }
    }
    // Ours again, small and large, alone and beside another reader, taking turns. Two readers of two tables share
    // nothing, so if one slows the other down, the machine is the cause.
    for pattern in Pattern::ALL {
        let group = growth(pattern);
        let lookups = |size, readers| Lookups {
            pattern,
            size,
            readers,
        };
        let mut ours = |who, lookups: Lookups, reader| {
            case(&group, who, lookups.run(peers_of(lookups.size), reader));
        };
        ours(REFERENCE, lookups(64, 1), Peers::reader);
        ours(TWO_READERS, lookups(64, 2), Peers::reader);
        ours(TWO_TABLES, lookups(64, 2), Peers::reader_of_own_table);
        ours(MANY_ENTRIES, lookups(100_000, 1), Peers::reader);
        // A reader that remembers where searches have ended does not search among 64.
        for (who, size) in [(REFERENCE_SEARCH, 64), (MANY_ENTRIES_SEARCH, 100_000)] {
            let run = lookups(size, 1).run(peers_of(size), |all, _| Arc::clone(&all.table));
            case(&group, who, run);
        }
    }

    for there in THERE {
        case(&assign(there), BATCH, assigning(there, assign_batch));
        case(
            &assign(there),
            ONE_BY_ONE,
            assigning(there, assign_one_by_one),
        );
    }
    cases
}

/// The ratios to report, with their targets.
pub fn ratios() -> Vec<Ratio> {
    let mut ratios = Vec::new();
    let mut ratio = |group: &str, over, under, target| {
        ratios.push(Ratio::from((group, over, under, target)));
    };
    for lookups in Lookups::all() {
        let group = lookups.to_string();
        let target = match lookups {
            Lookups { size: ..16, .. } => "",
            Lookups {
                size: 64,
                readers: 1,
                pattern,
            } if pattern.hit => match pattern.random {
                true => ">= 4",
                false => ">= 6",
            },
            Lookups { readers: 1, .. } => ">= 2",
            _ => ">= 8",
        };
        ratio(&group, RW_LOCK, DOORBELL, target);
        ratio(&group, ARC_SWAP, DOORBELL, "");
    }
    for pattern in Pattern::ALL {
        let group = growth(pattern);
        ratio(&group, TWO_READERS, REFERENCE, "<= 1");
        ratio(&group, TWO_READERS, TWO_TABLES, "<= 1");
        let reader = if pattern.random { "" } else { "<= 4" };
        ratio(&group, MANY_ENTRIES, REFERENCE, reader);
        ratio(&group, MANY_ENTRIES_SEARCH, REFERENCE_SEARCH, "<= 4");
    }
    for there in THERE {
        ratio(&assign(there), ONE_BY_ONE, BATCH, ">= 50");
    }
    ratios
}

/// The groups of one thread that looks up among 64 doorbells.
pub fn of_64() -> [String; 4] {
    Pattern::ALL.map(|pattern| {
        let lookups = Lookups {
            pattern,
            size: 64,
            readers: 1,
        };
        lookups.to_string()
    })
}

/// Hits among 64 doorbells, one over and over or any of them: by a reader with signallers, one without, and
/// [`RW_LOCK`]. Each has events of its own, since an event that has had a signaller costs more to signal otherwise.
pub fn hits_of_64(random: bool) -> [Run; 3] {
    let lookups = Lookups {
        pattern: Pattern { hit: true, random },
        size: 64,
        readers: 1,
    };
    let signallers = |all: &Peers, me: u64| all.reader(me).with_signallers(64);
    [
        lookups.run(&Peers::of(64), signallers),
        lookups.run(&Peers::of(64), Peers::reader),
        lookups.run(&Peers::of(64), |all, _| Arc::clone(&all.rw_lock)),
    ]
}

/// The addresses that are written to.
#[derive(Clone, Copy)]
struct Pattern {
    /// Whether the addresses are doorbells, or lie between two of them.
    hit: bool,
    /// Whether the addresses come in random order, or one over and over.
    random: bool,
}

impl Pattern {
    const ALL: [Pattern; 4] = [
        Pattern {
            hit: true,
            random: false,
        },
        Pattern {
            hit: true,
            random: true,
        },
        Pattern {
            hit: false,
            random: false,
        },
        Pattern {
            hit: false,
            random: true,
        },
    ];
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.hit { "hit" } else { "miss" };
        let which = if self.random { "random" } else { "repeated" };
        write!(f, "lookup: {what}, {which}")
    }
}

fn growth(pattern: Pattern) -> String {
    format!("{pattern}, growing")
}

/// What is measured: a number of threads that write to a table of a number of doorbells.
#[derive(Clone, Copy)]
struct Lookups {
    pattern: Pattern,
    size: u64,
    readers: u64,
}

impl fmt::Display for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lookups {
            pattern,
            size,
            readers,
        } = self;
        write!(f, "{pattern}, entries {size}, readers {readers}")
    }
}

impl Lookups {
    fn all() -> impl Iterator<Item = Self> {
        SIZES.into_iter().flat_map(|size| {
            [1, 2].into_iter().flat_map(move |readers| {
                Pattern::ALL.map(|pattern| Lookups {
                    pattern,
                    size,
                    readers,
                })
            })
        })
    }

    fn run<D: Doorbells>(self, peers: &LazyPeers, doorbells: fn(&Peers, u64) -> D) -> Run {
        let peers = Arc::clone(peers);
        let reader = move |me| (doorbells(&peers, me), self.writes(me));
        // The length is known when the guest exits.
        let once = |(doorbells, writes): &mut (D, Writes)| {
            doorbells.write(writes.next(), black_box(&[0; 4]))
        };
        match self.readers {
            1 => alone_with(move || reader(0), once),
            _ => two_with(reader, once),
        }
    }

    /// What one of the readers writes to: its share of the doorbells.
    fn writes(self, me: u64) -> Writes {
        let count = (self.size / self.readers).max(1);
        let first = me * count % self.size;
        let (first, count) = match self.pattern.random {
            true => (first, count),
            false => (first + count / 2, 1),
        };
        Writes {
            start: address(first) + if self.pattern.hit { 0 } else { LENGTH },
            count,
            random: Rng::new(),
        }
    }
}

struct Writes {
    start: u64,
    count: u64,
    random: Rng,
}

impl Writes {
    /// The next address.
    fn next(&mut self) -> u64 {
        match self.count {
            1 => self.start,
            count => self.start + STRIDE * self.random.u64(..count),
        }
    }
}

/// Doorbells take writes of this many bytes,
const LENGTH: u64 = 4;
/// and lie this far apart, so there is room for misses.
const STRIDE: u64 = 8;

fn address(index: u64) -> u64 {
    0xfe00_0000 + STRIDE * index
}

/// How many events each half of the doorbells shares.
const EVENTS: u64 = 32;

#[derive(Clone)]
struct Doorbell {
    key: Key,
    event: Arc<Event>,
}

impl Doorbell {
    /// A guest's write to its address.
    fn write(&self, data: &[u8]) -> bool {
        let takes = self.takes(data);
        if takes {
            self.event.signal();
        }
        takes
    }

    fn takes(&self, data: &[u8]) -> bool {
        let length = self.key.length == 0 || self.key.length as usize == data.len();
        length
            && self.key.datamatch.is_none_or(|wanted| {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                wanted == u64::from_ne_bytes(value)
            })
    }
}

/// The doorbells, in ascending order.
fn doorbells(count: u64) -> Vec<Doorbell> {
    let events: [Arc<Event>; 2 * EVENTS as usize] = array::from_fn(|_| Arc::new(Event::new(0)));
    (0..count)
        .map(|index| {
            let half = if index < count / 2 { 0 } else { EVENTS };
            Doorbell {
                key: Key::mmio(address(index), LENGTH as u32),
                event: Arc::clone(&events[(half + index % EVENTS) as usize]),
            }
        })
        .collect()
}

fn table(doorbells: &[Doorbell]) -> Table {
    let table = Table::new();
    keep(assign_batch(&table, doorbells));
    table
}

fn keep(registrations: Vec<Registration>) {
    registrations.into_iter().for_each(Registration::keep);
}

/// The same doorbells in each kind of table.
struct Peers {
    table: Arc<Table>,
    /// A table for each of two readers.
    own_tables: [Table; 2],
    rw_lock: Arc<RwLock<Devices<Weak<dyn Device>>>>,
    mutex: Arc<Mutex<Devices<Arc<dyn Device>>>>,
    arc_swap: Arc<ArcSwap<Vec<Doorbell>>>,
    linear: Arc<Linear>,
    /// Owns the devices to which other tables have weak pointers.
    _devices: Vec<Arc<dyn Device>>,
}

/// Tables that are made at the first lookup, because a large one takes long to make.
type LazyPeers = Arc<LazyLock<Peers, Box<dyn FnOnce() -> Peers + Send>>>;

impl Peers {
    fn of(count: u64) -> LazyPeers {
        Arc::new(LazyLock::new(Box::new(move || {
            let doorbells = doorbells(count);
            let devices: Vec<Arc<dyn Device>> = doorbells
                .iter()
                .map(|doorbell| Arc::new(doorbell.clone()) as _)
                .collect();
            Peers {
                table: Arc::new(table(&doorbells)),
                own_tables: [table(&doorbells), table(&doorbells)],
                rw_lock: Arc::new(RwLock::new(on_bus(&doorbells, &devices, Arc::downgrade))),
                mutex: Arc::new(Mutex::new(on_bus(&doorbells, &devices, Arc::clone))),
                arc_swap: Arc::new(ArcSwap::from_pointee(doorbells.clone())),
                linear: Arc::new(Linear(doorbells)),
                _devices: devices,
            }
        })))
    }

    fn reader(&self, _me: u64) -> Reader {
        self.table.reader()
    }

    fn reader_of_own_table(&self, me: u64) -> Reader {
        self.own_tables[me as usize].reader()
    }
}

/// A table in which a thread looks up.
trait Doorbells: 'static {
    fn write(&self, address: u64, data: &[u8]) -> bool;
}

impl Doorbells for Reader {
    fn write(&self, address: u64, data: &[u8]) -> bool {
        Reader::write(self, Bus::Mmio, address, data)
    }
}

impl Doorbells for Arc<Table> {
    fn write(&self, address: u64, data: &[u8]) -> bool {
        Table::write(self, Bus::Mmio, address, data)
    }
}

/// A device on the bus of a VMM. It decides itself what a write to its addresses is.
trait Device: Send + Sync {
    fn write(&self, offset: u64, data: &[u8]) -> bool;
}

impl Device for Doorbell {
    fn write(&self, offset: u64, data: &[u8]) -> bool {
        offset == 0 && Doorbell::write(self, data)
    }
}

/// The addresses of a device on a bus, ordered by the first address.
#[derive(Clone, Copy)]
struct BusRange {
    base: u64,
    length: u64,
}

impl Ord for BusRange {
    fn cmp(&self, other: &Self) -> Ordering {
        self.base.cmp(&other.base)
    }
}

impl PartialOrd for BusRange {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for BusRange {
    fn eq(&self, other: &Self) -> bool {
        self.base == other.base
    }
}

impl Eq for BusRange {}

type Devices<D> = BTreeMap<BusRange, D>;

fn on_bus<D>(
    doorbells: &[Doorbell],
    devices: &[Arc<dyn Device>],
    hold: impl Fn(&Arc<dyn Device>) -> D,
) -> Devices<D> {
    let places = doorbells.iter().map(|doorbell| BusRange {
        base: doorbell.key.address,
        length: LENGTH,
    });
    places.zip(devices.iter().map(hold)).collect()
}

/// The device that begins last at or below an address, and where.
fn below<D>(devices: &Devices<D>, address: u64) -> Option<(BusRange, &D)> {
    let end = BusRange {
        base: address,
        length: 1,
    };
    let (range, device) = devices.range(..=end).next_back()?;
    Some((*range, device))
}

/// Cloud Hypervisor's bus (`vm-device/src/bus.rs`): the weak pointer to the device below the address is upgraded under
/// the lock, the address compared with the device's end and the device called when the lock is free again. Cloud
/// Hypervisor clones the upgraded pointer once more, which is left out.
impl Doorbells for Arc<RwLock<Devices<Weak<dyn Device>>>> {
    fn write(&self, address: u64, data: &[u8]) -> bool {
        let below = {
            let devices = self.read().expect("nobody panics");
            below(&devices, address).and_then(|(range, device)| Some((range, device.upgrade()?)))
        };
        below.is_some_and(|(range, device)| {
            let offset = address - range.base;
            offset < range.length && device.write(offset, data)
        })
    }
}

/// rust-vmm's bus (`src/bus` of vm-device) in a mutex, as in vmm-reference: the device is called under the lock.
impl Doorbells for Arc<Mutex<Devices<Arc<dyn Device>>>> {
    fn write(&self, address: u64, data: &[u8]) -> bool {
        let devices = self.lock().expect("nobody panics");
        below(&devices, address).is_some_and(|(range, device)| {
            let offset = address - range.base;
            offset < range.length && device.write(offset, data)
        })
    }
}

/// The first of these doorbells, which begin with those at `address`, that takes the write.
fn first_of<'a>(
    doorbells: impl IntoIterator<Item = &'a Doorbell>,
    address: u64,
    data: &[u8],
) -> bool {
    doorbells
        .into_iter()
        .take_while(|doorbell| doorbell.key.address == address)
        .any(|doorbell| doorbell.write(data))
}

impl Doorbells for Arc<ArcSwap<Vec<Doorbell>>> {
    fn write(&self, address: u64, data: &[u8]) -> bool {
        let doorbells = self.load();
        let first = doorbells.partition_point(|doorbell| doorbell.key.address < address);
        first_of(&doorbells[first..], address, data)
    }
}

/// A list of doorbells that is never changed, so it needs no lock.
struct Linear(Vec<Doorbell>);

impl Doorbells for Arc<Linear> {
    fn write(&self, address: u64, data: &[u8]) -> bool {
        let elsewhere = |doorbell: &&Doorbell| doorbell.key.address != address;
        first_of(self.0.iter().skip_while(elsewhere), address, data)
    }
}

/// How many doorbells are in a table before others are added.
const THERE: [u64; 2] = [0, 20_000];

fn assign(there: u64) -> String {
    format!("assign: 1000 to {there} entries")
}

/// Adds 1000 doorbells, below those that are there, to a new table each time. The time does not include making and
/// dropping the table.
fn assigning(there: u64, assign: fn(&Table, &[Doorbell]) -> Vec<Registration>) -> Run {
    let doorbells = doorbells(there + 1000);
    Box::new(move |times| {
        let mut sum = Duration::ZERO;
        for _ in 0..times {
            let (new, old) = doorbells.split_at(1000);
            let table = table(old);
            let start = Instant::now();
            let registrations = assign(&table, new);
            sum += start.elapsed();
            keep(registrations);
        }
        sum
    })
}

fn assign_batch(table: &Table, doorbells: &[Doorbell]) -> Vec<Registration> {
    let batch = doorbells
        .iter()
        .map(|Doorbell { key, event }| ioeventfd::Doorbell::new(*key, event));
    table.assign_all(batch).expect("no two at one address")
}

fn assign_one_by_one(table: &Table, doorbells: &[Doorbell]) -> Vec<Registration> {
    let assign = |Doorbell { key, event }: &Doorbell| table.assign(*key, event);
    doorbells
        .iter()
        .map(|doorbell| assign(doorbell).expect("no two at one address"))
        .collect()
}
