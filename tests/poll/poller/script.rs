//! Scripts of operations, played to a poller over events and to a real epoll over eventfds at once. After every
//! operation the results are compared: for a wait, the same keys in the same order with the same readiness.
//!
//! An event that is registered under several keys is an eventfd with a duplicate for each. One thing is left out, since
//! the kernel misses it: the overflow of an event that is not watched for reading.

use crate::common::counter::Counter;
use crate::common::kernel::Kernel;
use crate::common::ours::DefaultSpin;
use crate::set::{Epoll, Ours, Ready, Set};
use arbitrary::{Arbitrary, Unstructured};
use doorbell::Mode;
use doorbell::poll::{Probe, Watch};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// There are few, so that operations meet.
const EVENTS: u8 = 4;
const KEYS: u8 = 6;

#[derive(Clone, Debug)]
pub struct Script {
    modes: [Mode; EVENTS as usize],
    steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Script {
    /// A script that uses all of the bytes.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let kinds = u8::arbitrary(bytes)?;
        let modes = std::array::from_fn(|index| match kinds & 1 << index {
            0 => Mode::Counter,
            _ => Mode::Semaphore,
        });
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Script { modes, steps })
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Read(Target),
    Write(Target, Amount),
    Signal(Target),
    Add(Key, Target, How),
    Modify(Key, How),
    Delete(Key),
    /// A probe that never finds anything: with it, the poller reports the same as without.
    Probe(Key),
    Wait(Room),
    /// This stands here twice, because waits show the differences.
    WaitForAll,
}

#[derive(Clone, Copy, Debug)]
struct Target(usize);

#[derive(Clone, Copy, Debug)]
struct Key(usize);

/// How many events a wait may report.
#[derive(Clone, Copy, Debug)]
struct Room(usize);

macro_rules! small {
    ($($type:ident: $range:expr;)*) => {$(
        impl<'a> Arbitrary<'a> for $type {
            fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
                bytes.int_in_range($range).map(|n: u8| $type(n.into()))
            }
        }
    )*};
}

small! {
    Target: 0..=EVENTS - 1;
    Key: 0..=KEYS - 1;
    Room: 1..=KEYS;
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Amount {
    Zero,
    One,
    Two,
    /// As much as fits, or a little less, or 1 more.
    Room(i8),
}

impl Amount {
    fn at(self, count: u64) -> u64 {
        match self {
            Amount::Zero => 0,
            Amount::One => 1,
            Amount::Two => 2,
            Amount::Room(less) => {
                let room = (u64::MAX - 1).wrapping_sub(count);
                room.wrapping_add_signed((less / 64).into())
            }
        }
    }
}

/// What to watch for.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct How {
    what: What,
    edge: bool,
    one_shot: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum What {
    Readable,
    Writable,
    Both,
    Errors,
}

impl How {
    fn watch(self) -> Watch {
        let mut watch = match self.what {
            What::Readable => Watch::READABLE,
            What::Writable => Watch::WRITABLE,
            What::Both => Watch::BOTH,
            What::Errors => Watch::ERRORS,
        };
        if self.edge {
            watch = watch.edge();
        }
        if self.one_shot {
            watch = watch.one_shot();
        }
        watch
    }

    fn reads(self) -> bool {
        matches!(self.what, What::Readable | What::Both)
    }
}

/// The poller and the epoll, and what is registered with both.
struct Play {
    events: Vec<(DefaultSpin, Kernel)>,
    poller: Ours,
    epoll: Epoll,
    registered: BTreeMap<usize, (usize, How)>,
    /// The keys that have a probe.
    probed: BTreeSet<usize>,
}

struct NeverReady;

impl Probe for NeverReady {
    fn ready(&mut self) -> bool {
        false
    }

    fn end(&mut self) -> bool {
        false
    }
}

impl Script {
    /// Plays the script. Returns the number of operations. Panics at a difference.
    pub fn compare(&self) -> u64 {
        let mut play = Play {
            events: self
                .modes
                .map(|mode| (DefaultSpin::new(0, mode), Kernel::new(0, mode)))
                .into(),
            poller: Ours::new(),
            epoll: Epoll::new(),
            registered: BTreeMap::new(),
            probed: BTreeSet::new(),
        };
        let mut operations = 0;
        for (index, &step) in self.steps.iter().enumerate() {
            let Some((ours, kernels)) = play.step(step) else {
                continue;
            };
            assert_eq!(ours, kernels, "step {index}, {step:?}, in {self:?}");
            operations += 1;
        }
        operations
    }
}

/// The result of an operation on one side: what a wait found, what a read took.
#[derive(Debug, PartialEq)]
enum Seen {
    Ready(Result<Vec<Ready>, Errno>),
    Read(Result<u64, Errno>),
    Done(Result<(), Errno>),
}

impl Play {
    /// `None` if the step is left out.
    fn step(&mut self, step: Step) -> Option<(Seen, Seen)> {
        Some(match step {
            Step::Read(Target(target)) => {
                let (ours, kernels) = &self.events[target];
                (Seen::Read(ours.try_read()), Seen::Read(kernels.try_read()))
            }
            Step::Write(Target(target), amount) => {
                let (ours, kernels) = &self.events[target];
                let n = amount.at(ours.count());
                (
                    Seen::Done(ours.try_write(n)),
                    Seen::Done(kernels.try_write(n)),
                )
            }
            Step::Signal(Target(target)) => {
                let (ours, kernels) = &self.events[target];
                let overflows = ours.count() >= u64::MAX - 1;
                let mut watched = self.registered.values();
                if overflows && watched.any(|(of, how)| *of == target && !how.reads()) {
                    return None;
                }
                ours.signal();
                kernels.signal();
                (Seen::Done(Ok(())), Seen::Done(Ok(())))
            }
            Step::Add(Key(key), Target(target), how) => {
                let (ours, kernels) = &self.events[target];
                self.registered.entry(key).or_insert((target, how));
                (
                    Seen::Done(self.poller.add(ours, key, how.watch())),
                    Seen::Done(self.epoll.add(kernels, key, how.watch())),
                )
            }
            // A registration with a probe cannot be a one-shot. epoll does not have this rule.
            Step::Modify(Key(key), how) if how.one_shot && self.probed.contains(&key) => {
                return None;
            }
            Step::Modify(Key(key), how) => {
                if let Some((_, now)) = self.registered.get_mut(&key) {
                    *now = how;
                }
                (
                    Seen::Done(self.poller.modify(key, how.watch())),
                    Seen::Done(self.epoll.modify(key, how.watch())),
                )
            }
            Step::Delete(Key(key)) => {
                self.registered.remove(&key);
                self.probed.remove(&key);
                (
                    Seen::Done(self.poller.delete(key)),
                    Seen::Done(self.epoll.delete(key)),
                )
            }
            Step::Probe(Key(key)) => {
                if self.poller.attach_probe(key, NeverReady).is_ok() {
                    self.probed.insert(key);
                }
                return None;
            }
            Step::Wait(Room(room)) => self.wait(room),
            Step::WaitForAll => self.wait(KEYS.into()),
        })
    }

    fn wait(&self, room: usize) -> (Seen, Seen) {
        let at_once = Some(Duration::ZERO);
        (
            Seen::Ready(self.poller.wait(room, at_once)),
            Seen::Ready(self.epoll.wait(room, at_once)),
        )
    }
}
