//! What the tests share: the counter under test behind one face, the kernel's behind the same, and threads that are
//! known to be asleep.

// Each test target, and the fuzz target, uses a part of it.
#![allow(dead_code)]

pub mod caller;
pub mod counter;
pub mod kernel;
pub mod ours;
pub mod script;
pub mod watchdog;
