//! Scripts of calls, played to `doorbell::Event` and to a real eventfd at once; see `tests/common/script.rs`.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
mod compared;

use common::kernel::Kernel;
use common::ours::DefaultSpin;
use common::script::Script;
use common::signalled::Signalled;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: compared::report_at_exit(),
    |script: Script| {
        compared::add(script.compare::<DefaultSpin, Kernel>());
        compared::add(script.compare::<Signalled, Kernel>());
    }
);
