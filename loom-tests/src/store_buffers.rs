//! A memory with store buffers, and threads that are lists of steps. All that the threads can do is explored.
//!
//! loom has no `membarrier`, and a fence in place of `membarrier` would prove nothing. This is the memory of x86 (total
//! store order): a store waits in its thread's buffer, first in, first out, until it reaches the memory at any later
//! time; a load takes the youngest store of its own buffer, or what the memory has; a locked instruction and a fence
//! wait until the buffer is empty. Loads are not reordered. So what passes here may still be wrong on a processor that
//! reorders more, and what fails here is wrong on all.
//!
//! A [heavy barrier](Step::HeavyBarrier) is `membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)`. It interrupts one thread
//! after the other, each at some moment between its beginning and its end, and the buffer of an interrupted thread is
//! empty at that moment.
//!
//! Protocols are written down as steps, apart from the code; see the tests for what keeps the two together.

use stateright::{Checker, Model as _, Property};
use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

/// What a thread keeps to itself: `registers[n]`.
pub type Registers = [u64; REGISTERS];
const REGISTERS: usize = 6;

/// A word of the memory, by its number.
pub type Word = usize;

/// A register, by its number.
pub type Register = usize;

/// One step of a thread.
///
/// A step is one access; what a thread does with its registers alone belongs to the step before.
#[derive(Clone, Copy)]
pub enum Step {
    /// A plain load (`mov`).
    Load(Word, Register),
    /// A plain store (`mov`) of what is computed from the registers.
    Store(Word, fn(&Registers) -> u64),
    /// A locked instruction. The register takes the old value of the word, then the word takes what is computed from
    /// the registers.
    Update(Word, Register, fn(&Registers) -> u64),
    /// `mfence`.
    Fence,
    /// `membarrier`.
    HeavyBarrier,
    /// Loads until the condition holds. A thread that waits for ever is a deadlock, and that is reported.
    Await(Word, Register, fn(&Registers) -> bool),
    /// Computes a register.
    Set(Register, fn(&Registers) -> u64),
    /// Skips this many steps if the condition holds.
    SkipIf(usize, fn(&Registers) -> bool),
    /// Goes this many steps back.
    Back(usize),
    /// A condition that must hold. The text says what is wrong if it does not.
    Check(&'static str, fn(&Registers) -> bool),
}

/// Threads, and the memory with which they begin.
#[derive(Clone)]
pub struct Protocol {
    /// The words at the beginning.
    pub memory: Vec<u64>,
    /// The steps of each thread.
    pub threads: Vec<Vec<Step>>,
    /// What must hold of the memory and of the registers of each thread when all threads have ended and all buffers are
    /// empty.
    pub at_end: fn(&[u64], &[Registers]) -> bool,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// A thread makes its next step.
    Step(usize),
    /// The oldest store of a thread reaches the memory.
    Drain(usize),
    /// A heavy barrier of one thread interrupts another.
    Interrupt {
        /// The thread that executes the barrier.
        by: usize,
        /// The thread that is interrupted.
        thread: usize,
    },
}

/// The state of the memory and of all threads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    memory: Vec<u64>,
    threads: Vec<Thread>,
    wrong: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Thread {
    next: usize,
    registers: Registers,
    buffer: VecDeque<(Word, u64)>,
    /// The threads that this thread's heavy barrier has yet to interrupt, a bit for each; `None` if no barrier is under
    /// way.
    barrier: Option<u32>,
}

impl Thread {
    /// The value of a word that this thread's own loads see.
    fn sees(&self, memory: &[u64], word: Word) -> u64 {
        let own = self.buffer.iter().rev().find(|(of, _)| *of == word);
        own.map_or(memory[word], |&(_, value)| value)
    }
}

impl Protocol {
    /// Whether a thread's next step can be made now.
    fn can_step(&self, state: &State, number: usize) -> bool {
        let thread = &state.threads[number];
        let Some(step) = self.threads[number].get(thread.next) else {
            return false;
        };
        match *step {
            Step::Update(..) | Step::Fence => thread.buffer.is_empty(),
            // A heavy barrier begins and ends with a full barrier of its own thread.
            Step::HeavyBarrier => {
                thread.buffer.is_empty() && thread.barrier.is_none_or(|left| left == 0)
            }
            Step::Await(word, register, until) => {
                let mut registers = thread.registers;
                registers[register] = thread.sees(&state.memory, word);
                until(&registers)
            }
            _ => true,
        }
    }

    fn step(&self, state: &mut State, number: usize) {
        let all = (1 << self.threads.len()) - 1;
        let State {
            memory, threads, ..
        } = state;
        let thread = &mut threads[number];
        let registers = &mut thread.registers;
        thread.next += 1;
        match self.threads[number][thread.next - 1] {
            Step::Load(word, register) | Step::Await(word, register, _) => {
                let value = thread.sees(memory, word);
                thread.registers[register] = value;
            }
            Step::Store(word, value) => thread.buffer.push_back((word, value(registers))),
            Step::Update(word, register, value) => {
                registers[register] = memory[word];
                memory[word] = value(registers);
            }
            Step::HeavyBarrier if thread.barrier.is_none() => {
                thread.barrier = Some(all & !(1 << number));
                thread.next -= 1;
            }
            Step::HeavyBarrier => thread.barrier = None,
            Step::Fence | Step::Set(..) | Step::SkipIf(..) | Step::Back(_) | Step::Check(..) => {}
        }
        self.compute(state, number);
    }

    /// Executes the steps before a thread's next access.
    fn compute(&self, state: &mut State, number: usize) {
        let thread = &mut state.threads[number];
        let registers = &mut thread.registers;
        while let Some(step) = self.threads[number].get(thread.next) {
            match *step {
                Step::Set(register, value) => registers[register] = value(registers),
                Step::SkipIf(steps, condition) if condition(registers) => thread.next += steps,
                Step::SkipIf(..) => {}
                Step::Back(steps) => {
                    thread.next -= steps;
                    continue;
                }
                Step::Check(wrong, condition) if !condition(registers) => state.wrong = Some(wrong),
                Step::Check(..) => {}
                _ => return,
            }
            thread.next += 1;
        }
        assert!(
            thread.next <= self.threads[number].len(),
            "a step beyond the last"
        );
    }

    fn is_at_end(&self, state: &State) -> bool {
        let mut threads = state.threads.iter().zip(&self.threads);
        threads.all(|(thread, steps)| thread.next == steps.len() && thread.buffer.is_empty())
    }

    fn ends_well(&self, state: &State) -> bool {
        let registers: Vec<_> = state
            .threads
            .iter()
            .map(|thread| thread.registers)
            .collect();
        !self.is_at_end(state) || (self.at_end)(&state.memory, &registers)
    }

    /// Lets one thread after the other run to its end, and its stores reach the memory. Returns the registers of each
    /// thread.
    ///
    /// # Panics
    ///
    /// A thread waits for another.
    pub fn one_after_the_other(&self) -> Vec<Registers> {
        let [mut state] = self.init_states().try_into().expect("one beginning");
        for (number, steps) in self.threads.iter().enumerate() {
            loop {
                while let Some((word, value)) = state.threads[number].buffer.pop_front() {
                    state.memory[word] = value;
                }
                if state.threads[number].next == steps.len() {
                    break;
                }
                assert!(self.can_step(&state, number), "a thread waits");
                self.step(&mut state, number);
            }
        }
        let threads = state.threads.iter();
        threads.map(|thread| thread.registers).collect()
    }

    /// Explores everything. Returns how many states there are, or the actions that lead to what is wrong.
    pub fn explore(&self) -> Result<usize, Wrong> {
        let checker = self.clone().checker().spawn_bfs().join();
        match checker.discoveries().into_iter().next() {
            None => Ok(checker.unique_state_count()),
            Some((property, path)) => {
                let wrong = path.last_state().wrong.unwrap_or(property);
                let actions = path.into_actions();
                Err(Wrong {
                    what: wrong,
                    actions,
                })
            }
        }
    }

    /// Explores everything, and prints how many states there were.
    ///
    /// # Panics
    ///
    /// Something is wrong.
    pub fn check(&self, name: &str) {
        let start = Instant::now();
        match self.explore() {
            Ok(states) => println!(
                "{name}: {states} states, exhaustive, {:.1?}",
                start.elapsed()
            ),
            Err(wrong) => panic!("{name}: {wrong}"),
        }
    }
}

/// What can go wrong, and by which actions. No shorter list of actions leads there.
#[derive(Debug)]
pub struct Wrong {
    /// A text of a [`Step::Check`], or [`DEADLOCK`] or [`END`].
    pub what: &'static str,
    /// The actions, one after the other.
    pub actions: Vec<Action>,
}

/// A thread waits for ever.
pub const DEADLOCK: &str = "a thread waits for ever";
/// [`Protocol::at_end`] does not hold.
pub const END: &str = "it does not end as it should";
const CHECKED: &str = "something is wrong";

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, after {:?}", self.what, self.actions)
    }
}

/// Asserts that the texts of `steps` are in a function of a source file, in this order. `function` is a text that only
/// the head of this function has.
///
/// # Panics
///
/// One of the texts is not there.
pub fn assert_has_steps(file: &str, function: &str, steps: &[&str]) {
    let (_, rest) = file.split_once(function).expect(function);
    let mut rest = rest.split("\n    }\n").next().unwrap_or(rest);
    for step in steps {
        (_, rest) = rest
            .split_once(step)
            .unwrap_or_else(|| panic!("`{step}` is not where it was in `{function}`"));
    }
}

impl stateright::Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let thread = Thread {
            next: 0,
            registers: Registers::default(),
            buffer: VecDeque::new(),
            barrier: None,
        };
        let mut state = State {
            memory: self.memory.clone(),
            threads: vec![thread; self.threads.len()],
            wrong: None,
        };
        for number in 0..self.threads.len() {
            self.compute(&mut state, number);
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        for (number, thread) in state.threads.iter().enumerate() {
            if self.can_step(state, number) {
                actions.push(Action::Step(number));
            }
            if !thread.buffer.is_empty() {
                actions.push(Action::Drain(number));
                continue;
            }
            for (by, caller) in state.threads.iter().enumerate() {
                if caller.barrier.is_some_and(|left| left & (1 << number) != 0) {
                    actions.push(Action::Interrupt { by, thread: number });
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step(number) => self.step(&mut state, number),
            Action::Drain(number) => {
                let (word, value) = state.threads[number].buffer.pop_front()?;
                state.memory[word] = value;
            }
            Action::Interrupt { by, thread } => {
                let left = state.threads[by].barrier.as_mut()?;
                *left &= !(1 << thread);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(CHECKED, |_, state: &State| state.wrong.is_none()),
            Property::always(END, |protocol: &Self, state| protocol.ends_well(state)),
            Property::always(DEADLOCK, |protocol: &Self, state| {
                let mut actions = Vec::new();
                protocol.actions(state, &mut actions);
                state.wrong.is_some() || !actions.is_empty() || protocol.is_at_end(state)
            }),
        ]
    }
}
