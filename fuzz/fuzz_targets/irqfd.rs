//! Scripts of signals, acks, masks, routes and assignments, played to two routers and to a sequential model of the
//! interrupt lines of two machines; see `tests/irqfd/script.rs`.

#![no_main]

mod compared;
#[path = "../../tests/irqfd/script.rs"]
mod script;
#[path = "../../tests/irqfd/sink.rs"]
mod sink;

use libfuzzer_sys::fuzz_target;
use script::Script;

fuzz_target!(
    init: compared::report_at_exit(),
    |script: Script| compared::add(script.compare())
);
