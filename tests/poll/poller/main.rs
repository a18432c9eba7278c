//! The poller, beside the kernel's epoll.

#![cfg(target_os = "linux")]

mod bound;
mod broadcast;
mod calls;
mod cases;
#[path = "../../common/mod.rs"]
mod common;
mod fds;
mod limits;
mod outer;
mod probe_panics;
mod probe_stress;
mod probes;
mod script;
mod set;
mod threads;
mod window;

use arbitrary::{Arbitrary, Unstructured};
use common::kernel::can_signal;
use common::watchdog;
use proptest::prelude::*;
use script::Script;

/// No keys. The type of a bare `[]` would be ambiguous, since vm-memory compares its own integers with `usize`.
const NOTHING: [usize; 0] = [];

proptest! {
    #![proptest_config(ProptestConfig {
        // The input is bytes, as the fuzzer's is, and the failure message holds the script itself.
        failure_persistence: None,
        ..ProptestConfig::with_cases(1_000)
    })]

    #[test]
    fn a_poller_does_what_epoll_does(bytes in prop::collection::vec(any::<u8>(), 0..1_000)) {
        if !can_signal() {
            return Ok(());
        }
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        watchdog::limit("a script", || script.compare());
    }
}
