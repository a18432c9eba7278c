//! Scripts of changes and guest writes, played to a table and to a list that is scanned; see
//! `tests/ioeventfd/script.rs`.

#![no_main]

mod compared;
#[path = "../../tests/ioeventfd/script.rs"]
mod script;

use libfuzzer_sys::fuzz_target;
use script::Script;

fuzz_target!(
    init: compared::report_at_exit(),
    |script: Script| compared::add(script.compare())
);
