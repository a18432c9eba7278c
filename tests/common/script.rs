//! Scripts: random sequences of calls, played to two counters at once and compared after every call. One generator
//! serves the property test and the fuzz target.
//!
//! A call that would block is left out, since one thread plays the script; calls that block only sometimes are made
//! when they do not. Signals to the kernel's counter are real up to its saturation, see [`Kernel`](super::Kernel).

use super::counter::{Counter, rules};
use arbitrary::{Arbitrary, Unstructured};
use doorbell::Mode;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Script {
    mode: Mode,
    initial: Amount,
    steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Script {
    /// A script that uses all of the bytes.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mode = *bytes.choose(&[Mode::Counter, Mode::Semaphore])?;
        let initial = bytes.arbitrary()?;
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Script {
            mode,
            initial,
            steps,
        })
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Read,
    TryRead,
    ReadTimeout,
    ReadDeadline,
    Write(Amount),
    TryWrite(Amount),
    WriteTimeout(Amount),
    WriteDeadline(Amount),
    Signal,
    SignalN(Amount),
}

/// A number that is worth trying at a count.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Amount {
    /// Near 0, 2^32, 2^63 or, as 0 minus a little, `u64::MAX`.
    Near(Anchor, i8),
    /// Near the number that the count has room for.
    Room(i8),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Anchor {
    Zero,
    Half,
    Top,
}

impl Amount {
    fn at(self, count: u64) -> u64 {
        let (near, offset) = match self {
            Amount::Near(Anchor::Zero, offset) => (0, offset),
            Amount::Near(Anchor::Half, offset) => (1 << 32, offset),
            Amount::Near(Anchor::Top, offset) => (1 << 63, offset),
            Amount::Room(offset) => ((u64::MAX - 1).wrapping_sub(count), offset),
            Amount::Any(n) => (n, 0),
        };
        // The number is within four of the edge, close enough for the next calls to reach it.
        near.wrapping_add_signed((offset / 32).into())
    }
}

/// What can be seen of one call: what it returned (0 for a write), and the counter after it.
#[derive(Debug, PartialEq)]
struct Seen {
    result: Result<u64, Errno>,
    count: u64,
    ready: PollFlags,
}

impl Script {
    /// Plays the script to a counter of each kind. Returns the number of calls made to each. Panics at a difference.
    pub fn compare<A: Counter, B: Counter>(&self) -> u64 {
        let initial = self.initial.at(0);
        let (a, b) = (A::new(initial, self.mode), B::new(initial, self.mode));
        let mut before = Seen::after(Ok(0), &a);
        assert_eq!(Seen::after(Ok(0), &b), before, "at the start of {self:?}");
        let mut calls = 0;
        for (index, step) in self.steps.iter().enumerate() {
            let Some(seen_a) = step.play(&a, &before) else {
                continue;
            };
            let seen_b = step.play(&b, &before);
            assert_eq!(
                seen_b.as_ref(),
                Some(&seen_a),
                "step {index}, {step:?} at {before:?}, in {self:?}"
            );
            before = seen_a;
            calls += 1;
        }
        calls
    }
}

impl Seen {
    fn after<C: Counter>(result: Result<u64, Errno>, counter: &C) -> Self {
        Seen {
            result,
            count: counter.count(),
            ready: counter.poll(),
        }
    }
}

impl Step {
    /// `None` if the call would block.
    fn play<C: Counter>(self, counter: &C, before: &Seen) -> Option<Seen> {
        let amount = |amount: Amount| amount.at(before.count);
        let past = || Instant::now() - Duration::from_nanos(1);
        let result = match self {
            Step::Read if before.count == 0 => return None,
            Step::Read => counter.read(),
            Step::TryRead => counter.try_read(),
            Step::ReadTimeout => counter.read_timeout(Duration::ZERO),
            Step::ReadDeadline => counter.read_deadline(past()),
            Step::Write(n) => {
                let n = amount(n);
                if rules::written(before.count, n) == Err(Errno::AGAIN) {
                    return None;
                }
                counter.write(n).map(|()| 0)
            }
            Step::TryWrite(n) => counter.try_write(amount(n)).map(|()| 0),
            Step::WriteTimeout(n) => counter.write_timeout(amount(n), Duration::ZERO).map(|()| 0),
            Step::WriteDeadline(n) => counter.write_deadline(amount(n), past()).map(|()| 0),
            Step::Signal => {
                counter.signal();
                Ok(0)
            }
            Step::SignalN(n) => {
                counter.signal_n(amount(n));
                Ok(0)
            }
        };
        Some(Seen::after(result, counter))
    }
}
