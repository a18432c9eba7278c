//! Scripts of operations, played to a `doorbell::poll::Poller` and to a real epoll at once; see
//! `tests/poll/poller/script.rs`.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
mod compared;
#[path = "../../tests/poll/poller/script.rs"]
mod script;
#[path = "../../tests/poll/poller/set.rs"]
mod set;

use libfuzzer_sys::fuzz_target;
use script::Script;

fuzz_target!(
    init: compared::report_at_exit(),
    |script: Script| compared::add(script.compare())
);
