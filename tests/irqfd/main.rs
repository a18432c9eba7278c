//! irqfds, through the public API: the rules of KVM's (`rules.rs`, with what became of each of its conformance cases), random
//! scripts against a sequential model of a line (`script.rs`), and threads (`threads.rs`).

mod rules;
mod script;
mod sink;
mod threads;
