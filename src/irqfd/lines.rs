//! The lines of a router, by GSI.
//!
//! A line stays once it has been made, so the lines need no snapshots: they are a tree that only grows. A lookup takes
//! no lock, and making a line does not wait. The digits of a GSI, lowest first, are the path to its line, so that GSIs
//! that follow one another are spread. The path ends at the first node that was free when the line was made.

use super::line::IrqLine;
use crate::sync::lazy::Lazy;
use std::array;
use std::sync::Arc;

pub(super) struct LineTree(Lazy<Node>);

const DIGITS: usize = 4;

struct Node {
    line: Arc<IrqLine>,
    /// By the next digit.
    next: [Lazy<Node>; DIGITS],
}

impl LineTree {
    pub(super) fn new() -> Self {
        LineTree(Lazy::new())
    }

    /// The line, if it has been made.
    pub(super) fn find(&self, gsi: u32) -> Option<&Arc<IrqLine>> {
        self.walk(gsi, Lazy::get)
    }

    /// The line, made if there is none.
    pub(super) fn get(&self, gsi: u32) -> &Arc<IrqLine> {
        let made = self.walk(gsi, |slot| Some(slot.get_or_make(|| Node::new(gsi))));
        match made {
            Some(line) => line,
            None => unreachable!("there is a node in every slot of the path"),
        }
    }

    /// All that have been made, by GSI.
    pub(super) fn all(&self) -> Vec<&Arc<IrqLine>> {
        let mut lines = Vec::new();
        let mut slots = vec![&self.0];
        while let Some(slot) = slots.pop() {
            if let Some(node) = slot.get() {
                lines.push(&node.line);
                slots.extend(&node.next);
            }
        }
        lines.sort_unstable_by_key(|line| line.gsi);
        lines
    }

    /// Ends: when all digits have been used, no other GSI has come the same way.
    fn walk<'a>(
        &'a self,
        gsi: u32,
        node: impl Fn(&'a Lazy<Node>) -> Option<&'a Node>,
    ) -> Option<&'a Arc<IrqLine>> {
        let (mut slot, mut digits) = (&self.0, gsi as usize);
        loop {
            let Node { line, next } = node(slot)?;
            if line.gsi == gsi {
                return Some(line);
            }
            slot = &next[digits % DIGITS];
            digits /= DIGITS;
        }
    }
}

impl Node {
    fn new(gsi: u32) -> Self {
        Node {
            line: Arc::new(IrqLine::new(gsi)),
            next: array::from_fn(|_| Lazy::new()),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    /// Every GSI has a line of its own, which is found again. A line that has not been made is not found.
    #[test]
    fn each_has_its_own() {
        let lines = LineTree::new();
        let gsis = || {
            let spread = (0..32).flat_map(|bit| [1 << bit, u32::MAX >> bit, !(1 << bit)]);
            (0..5_000).chain(spread)
        };
        assert!(gsis().all(|gsi| lines.find(gsi).is_none()));
        for gsi in gsis() {
            assert_eq!(lines.get(gsi).gsi, gsi);
        }
        for gsi in gsis() {
            let found = lines.find(gsi).expect("it was made");
            assert!(Arc::ptr_eq(found, lines.get(gsi)));
        }
        assert!(lines.find(5_001).is_none());
        let mut expected: Vec<u32> = gsis().collect();
        expected.sort_unstable();
        expected.dedup();
        let all: Vec<u32> = lines.all().iter().map(|line| line.gsi).collect();
        assert_eq!(all, expected);
    }

    /// A lookup takes as many steps as a number of lines needs, not as many as there are lines.
    #[test]
    fn the_way_is_short() {
        fn depth(slot: &Lazy<Node>) -> usize {
            let deeper = |node: &Node| 1 + node.next.iter().map(depth).max().unwrap_or(0);
            slot.get().map_or(0, deeper)
        }
        let lines = LineTree::new();
        for gsi in 0..4_096 {
            lines.get(gsi);
        }
        // Levels of 1, 4, 16 to 4,096 lines.
        assert!(depth(&lines.0) <= 7, "{}", depth(&lines.0));
    }

    /// Threads that make the same lines at the same time get the same ones.
    #[test]
    fn made_once() {
        let lines = LineTree::new();
        let made: Vec<Vec<usize>> = thread::scope(|scope| {
            let make = || {
                let address = |gsi| Arc::as_ptr(lines.get(gsi)).addr();
                (0..1_000).map(address).collect()
            };
            let threads = [(); 3].map(|()| scope.spawn(make));
            threads.map(|thread| thread.join().expect("it ends")).into()
        });
        assert!(made.iter().all(|other| *other == made[0]));
    }
}
