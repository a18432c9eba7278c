//! Shared events: how memory becomes an event; peers that are killed, that break the protocol, or that sleep in
//! `epoll`; and a peer in C.
//!
//! `tests/event/conformance.rs` shows what the calls do.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod attach;
mod c;
mod epoll;
mod exec;
mod hostile;
mod huge;
mod killed;
mod memory;
