//! The ioeventfd table: guest writes looked up in a [`Table`] and in other ways of keeping doorbells.
//!
//! Everybody does the same for a write: finds the doorbell by address, length and datamatch and signals its event, or
//! finds that there is none. Two threads write to doorbells and events of their own, unless there is only one doorbell.
//! However many doorbells there are, they share a few events, so that what grows with their number is the search.

use super::{Case, Ratio, Run, alone_with, two_with};
use arc_swap::ArcSwap;
use doorbell::Event;
use doorbell::ioeventfd::{self, Bus, Key, Registration, Table};
use fastrand::Rng;
use std::array;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, RwLock};

const SIZES: [u64; 5] = [1, 16, 64, 1_000, 100_000];

const DOORBELL: &str = "doorbell";
const RW_LOCK: &str = "RwLock<BTreeMap>";
const MUTEX: &str = "Mutex<BTreeMap>";
const ARC_SWAP: &str = "arc-swap + sorted Vec";
const LINEAR: &str = "linear scan";

const REFERENCE: &str = "64 entries";
const TWO_READERS: &str = "64, two readers";
const MANY_ENTRIES: &str = "100000 entries";

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
        case(&group, DOORBELL, lookups.run(peers, |all| &all.table));
        case(&group, RW_LOCK, lookups.run(peers, |all| &all.rw_lock));
        case(&group, MUTEX, lookups.run(peers, |all| &all.mutex));
        case(&group, ARC_SWAP, lookups.run(peers, |all| &all.arc_swap));
        // It is no match for the others beyond this.
        if lookups.size <= 64 {
            case(&group, LINEAR, lookups.run(peers, |all| &all.linear));
        }
    }
    // Ours again, small and large, alone and beside another reader, taking turns.
    for pattern in Pattern::ALL {
        let group = growth(pattern);
        for (who, size, readers) in [
            (REFERENCE, 64, 1),
            (TWO_READERS, 64, 2),
            (MANY_ENTRIES, 100_000, 1),
        ] {
            let lookups = Lookups {
                pattern,
                size,
                readers,
            };
            case(&group, who, lookups.run(peers_of(size), |all| &all.table));
        }
    }
    cases
}

/// What is wanted of them.
pub fn ratios() -> Vec<Ratio> {
    let mut ratios = Vec::new();
    let mut ratio = |group: &str, over, under, target| {
        let group = group.to_owned();
        ratios.push(Ratio {
            group,
            over,
            under,
            target,
        });
    };
    for lookups in Lookups::all() {
        let group = lookups.to_string();
        let target = match lookups {
            Lookups { size: ..16, .. } => "",
            Lookups { readers: 1, .. } => ">= 2",
            _ => ">= 8",
        };
        ratio(&group, RW_LOCK, DOORBELL, target);
        ratio(&group, ARC_SWAP, DOORBELL, "");
    }
    for pattern in Pattern::ALL {
        let group = growth(pattern);
        ratio(&group, TWO_READERS, REFERENCE, "<= 1");
        ratio(&group, MANY_ENTRIES, REFERENCE, "<= 4");
    }
    ratios
}

/// Which addresses are written to.
#[derive(Clone, Copy)]
struct Pattern {
    /// Doorbells, or what lies between two of them.
    hit: bool,
    /// Any of them in any order, or one over and over.
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

/// What is measured: so many threads write to a table of so many doorbells.
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

    fn run<D: Doorbells>(self, peers: &LazyPeers, which: fn(&Peers) -> &Arc<D>) -> Run {
        let peers = Arc::clone(peers);
        let reader = move |me| (Arc::clone(which(&peers)), self.writes(me));
        let once = |(doorbells, writes): &mut (Arc<D>, Writes)| {
            doorbells.write(Bus::Mmio, writes.next(), &[0; 4])
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
            start: address(first) + if self.pattern.hit { 0 } else { STRIDE / 2 },
            count,
            random: Rng::with_seed(me),
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
        self.start + STRIDE * self.random.u64(..self.count)
    }
}

const STRIDE: u64 = 4;

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

/// In ascending order.
fn doorbells(count: u64) -> Vec<Doorbell> {
    let events: [Arc<Event>; 2 * EVENTS as usize] = array::from_fn(|_| Arc::new(Event::new(0)));
    (0..count)
        .map(|index| {
            let half = if index < count / 2 { 0 } else { EVENTS };
            Doorbell {
                key: Key::mmio(address(index), 4),
                event: Arc::clone(&events[(half + index % EVENTS) as usize]),
            }
        })
        .collect()
}

/// The same doorbells in everybody's hands.
struct Peers {
    table: Arc<Table>,
    rw_lock: Arc<RwLock<Map>>,
    mutex: Arc<Mutex<Map>>,
    arc_swap: Arc<ArcSwap<Vec<Doorbell>>>,
    linear: Arc<Linear>,
}

/// A large table is made when something is to be looked up in it.
type LazyPeers = Arc<LazyLock<Peers, Box<dyn FnOnce() -> Peers + Send>>>;

impl Peers {
    fn of(count: u64) -> LazyPeers {
        Arc::new(LazyLock::new(Box::new(move || {
            let doorbells = doorbells(count);
            let table = Table::new();
            let batch = doorbells
                .iter()
                .map(|Doorbell { key, event }| ioeventfd::Doorbell::new(*key, event));
            let registrations = table.assign_all(batch).expect("no two at one address");
            registrations.into_iter().for_each(Registration::keep);
            Peers {
                table: Arc::new(table),
                rw_lock: Arc::new(RwLock::new(map(&doorbells))),
                mutex: Arc::new(Mutex::new(map(&doorbells))),
                arc_swap: Arc::new(ArcSwap::from_pointee(doorbells.clone())),
                linear: Arc::new(Linear(doorbells)),
            }
        })))
    }
}

trait Doorbells: Send + Sync + 'static {
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool;
}

impl Doorbells for Table {
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        Table::write(self, bus, address, data)
    }
}

/// What stands at each address.
type Map = BTreeMap<(Bus, u64), Vec<Doorbell>>;

fn map(doorbells: &[Doorbell]) -> Map {
    let mut map = Map::new();
    for doorbell in doorbells {
        map.entry(doorbell.place())
            .or_default()
            .push(doorbell.clone());
    }
    map
}

/// As the device bus of Cloud Hypervisor and others has it: a handle is cloned out, and used when the lock is free again.
fn get(map: &Map, bus: Bus, address: u64, data: &[u8]) -> Option<Arc<Event>> {
    let here = map.get(&(bus, address))?;
    here.iter()
        .find(|doorbell| doorbell.takes(data))
        .map(|doorbell| Arc::clone(&doorbell.event))
}

fn ring(event: Option<Arc<Event>>) -> bool {
    event.is_some_and(|event| {
        event.signal();
        true
    })
}

impl Doorbells for RwLock<Map> {
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        let event = get(&self.read().expect("nobody panics"), bus, address, data);
        ring(event)
    }
}

impl Doorbells for Mutex<Map> {
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        let event = get(&self.lock().expect("nobody panics"), bus, address, data);
        ring(event)
    }
}

impl Doorbell {
    fn place(&self) -> (Bus, u64) {
        (self.key.bus, self.key.address)
    }

    /// Whether a write to its address is for it.
    fn takes(&self, data: &[u8]) -> bool {
        let length = self.key.length == 0 || self.key.length as usize == data.len();
        length
            && self.key.datamatch.is_none_or(|wanted| {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                wanted == u64::from_ne_bytes(value)
            })
    }

    fn ring(&self) -> bool {
        self.event.signal();
        true
    }
}

impl Doorbells for ArcSwap<Vec<Doorbell>> {
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        let doorbells = self.load();
        let first = doorbells.partition_point(|doorbell| doorbell.place() < (bus, address));
        doorbells[first..]
            .iter()
            .take_while(|doorbell| doorbell.place() == (bus, address))
            .find(|doorbell| doorbell.takes(data))
            .is_some_and(Doorbell::ring)
    }
}

/// One behind the other, and never changed, so that nothing need guard it.
struct Linear(Vec<Doorbell>);

impl Doorbells for Linear {
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        self.0
            .iter()
            .find(|doorbell| doorbell.place() == (bus, address) && doorbell.takes(data))
            .is_some_and(Doorbell::ring)
    }
}
