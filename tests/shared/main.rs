//! Shared events: what makes memory one, peers that are killed, that do not keep to the protocol, that sleep in
//! `epoll`, and one in C.
//!
//! What the calls do is shown by `tests/conformance.rs`.

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
