//! The address space through its public API.

// The tests spell the bytes of writes out for one byte order.
#![cfg(target_endian = "little")]

mod accelerator;
#[path = "../../common/errors.rs"]
mod errors;
#[path = "../../common/freed.rs"]
mod freed;
mod model;
mod rules;
mod state;
mod threads;
#[path = "../../common/watchdog.rs"]
mod watchdog;
