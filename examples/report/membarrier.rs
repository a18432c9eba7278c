//! A second process, which looks up and signals after `use_membarrier`.
//!
//! The choice between fences and membarrier is made once in a process, so both can take turns only in two processes.
//! This process is asked by a line on its standard input, `case times`, and answers with the time in nanoseconds.

use crate::cases::{Case, ioeventfd, signaller};
use anyhow::Context;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;
use std::{env, io};

const WITH_MEMBARRIER: &str = "doorbell, use_membarrier";

/// The cases that are measured: look-ups among 64 doorbells, and signallers.
fn measured() -> Vec<Case> {
    let mut cases = ioeventfd::all();
    cases
        .retain(|case| case.who == ioeventfd::DOORBELL && ioeventfd::of_64().contains(&case.group));
    let signallers = signaller::all().into_iter();
    cases.extend(signallers.filter(|case| case.who == signaller::SIGNALLER));
    cases
}

/// Serves as the second process.
pub fn serve() -> anyhow::Result<()> {
    let answer = |text: &dyn std::fmt::Display| {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush())
    };
    if let Err(reason) = doorbell::use_membarrier() {
        return Ok(answer(&reason)?);
    }
    answer(&READY)?;
    let mut cases = measured();
    for line in io::stdin().lines() {
        let line = line?;
        let (case, times) = line.split_once(' ').context("a case and a number")?;
        let (case, times): (usize, u64) = (case.parse()?, times.parse()?);
        answer(&(cases[case].run)(times).as_nanos())?;
    }
    Ok(())
}

const READY: &str = "ready";

/// The second process, for the cases that use it. It ends when the last of them is dropped.
struct Other {
    child: Child,
    asked: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Other {
    /// `None`, with a message, if the process cannot be started or cannot use membarrier.
    fn start() -> Option<Self> {
        let start = || -> anyhow::Result<Self> {
            let mut child = Command::new(env::current_exe()?)
                .arg("--with-membarrier")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let answers = child.stdout.take().context("it is piped")?;
            let mut other = Other {
                asked: child.stdin.take(),
                child,
                answers: BufReader::new(answers),
            };
            let answer = other.answer()?;
            anyhow::ensure!(answer == READY, answer);
            Ok(other)
        };
        start()
            .inspect_err(|reason| eprintln!("report: skipped: what takes membarrier ({reason})"))
            .ok()
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn run(&mut self, case: usize, times: u64) -> anyhow::Result<Duration> {
        writeln!(self.asked.as_mut().context("it is open")?, "{case} {times}")?;
        Ok(Duration::from_nanos(self.answer()?.parse()?))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // The process ends at the end of its input.
        self.asked = None;
        let _ = self.child.wait();
    }
}

/// What the second process measures, as cases of this one; none if there is no membarrier.
pub fn cases() -> Vec<Case> {
    let Some(other) = Other::start() else {
        return Vec::new();
    };
    let other = Rc::new(RefCell::new(other));
    let cases = measured().into_iter().enumerate();
    cases
        .map(|(number, Case { group, who, .. })| {
            let other = Rc::clone(&other);
            let run = move |times| {
                let time = other.borrow_mut().run(number, times);
                time.expect("the second process answers")
            };
            Case {
                group,
                who: match who {
                    ioeventfd::DOORBELL => WITH_MEMBARRIER,
                    who => who,
                },
                run: Box::new(run),
            }
        })
        .collect()
}
