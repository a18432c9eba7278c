//! Scripts that any side can play, and their outcomes.

use super::guest::LEVEL;

/// Events of a side. The last two are for resampling only: in a ring of events and their resample events KVM interrupts
/// for ever.
pub const EVENTS: usize = 6;
pub const SEMAPHORE: usize = 3;
pub const RESAMPLE: [usize; 2] = [4, 5];

#[derive(Clone, Debug)]
pub enum Op {
    Assign {
        event: usize,
        gsi: u32,
        resample: Option<usize>,
    },
    Deassign {
        event: usize,
        gsi: u32,
    },
    Write {
        event: usize,
        n: u64,
    },
    Read(usize),
    /// Sets the VMM's own level of the level-triggered line.
    Level(bool),
    /// Routes a GSI to a message with this vector, or nowhere.
    Route {
        gsi: u32,
        vector: Option<u8>,
    },
    /// The guest takes interrupts. The lists are for the first of them, while it is in service, for the second, and so
    /// on.
    Run(Vec<Vec<Op>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Errno(i32),
    Read(Option<u64>),
    /// Vectors, in the order in which they were taken, and the outcomes of the operations meanwhile.
    Interrupts(Vec<(u8, Vec<Outcome>)>),
}

/// Events and interrupt controllers.
pub trait Act {
    /// Carries out any operation but `Run`.
    fn act(&mut self, op: &Op) -> Outcome;
}

/// The same, with a guest. While the guest has an interrupt in service, it does not run.
pub trait Side: Act {
    fn run(&mut self, in_service: &mut dyn FnMut(&mut dyn Act, u8));
}

pub fn play(side: &mut dyn Side, script: &[Op]) -> Vec<Outcome> {
    let step = |op: &Op| match op {
        Op::Run(service) => Outcome::Interrupts(run(side, service)),
        op => side.act(op),
    };
    script.iter().map(step).collect()
}

/// The guest takes interrupts, and the test does what is listed while they are in service.
pub fn run(side: &mut dyn Side, service: &[Vec<Op>]) -> Vec<(u8, Vec<Outcome>)> {
    let mut taken = Vec::new();
    side.run(&mut |side, vector| {
        let ops = service.get(taken.len()).map_or(&[][..], |ops| ops);
        let outcomes = ops.iter().map(|op| side.act(op)).collect();
        taken.push((vector, outcomes));
        // A line that is held up interrupts for ever.
        if taken.len() > service.len() + 3 {
            side.act(&Op::Level(false));
        }
        assert!(taken.len() < 100, "a storm: {taken:x?}");
    });
    taken
}

/// Short ways to write scripts.
pub fn assign(event: usize, gsi: u32) -> Op {
    let resample = None;
    Op::Assign {
        event,
        gsi,
        resample,
    }
}

/// Assigns a resampling irqfd on the level-triggered line.
pub fn resampling(event: usize, resample: usize) -> Op {
    Op::Assign {
        event,
        gsi: LEVEL.into(),
        resample: Some(resample),
    }
}

pub fn deassign(event: usize, gsi: u32) -> Op {
    Op::Deassign { event, gsi }
}

pub fn write(event: usize, n: u64) -> Op {
    Op::Write { event, n }
}

pub fn route(gsi: u32, vector: impl Into<Option<u8>>) -> Op {
    let vector = vector.into();
    Op::Route { gsi, vector }
}

pub fn look() -> Op {
    Op::Run(Vec::new())
}
