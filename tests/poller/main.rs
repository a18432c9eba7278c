//! The poller, beside the kernel's epoll.

#![cfg(target_os = "linux")]

mod bound;
mod calls;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod fds;
mod limits;
mod probes;
mod script;
mod set;
mod threads;

use arbitrary::{Arbitrary, Unstructured};
use common::watchdog;
use proptest::prelude::*;
use script::Script;

/// No keys. With a type of its own: a `[]` may be compared with several, once the crate `vm-memory` is there.
const NOTHING: [usize; 0] = [];

proptest! {
    #![proptest_config(ProptestConfig {
        // The input is bytes, as the fuzzer's is, and the failure message holds the script itself.
        failure_persistence: None,
        ..ProptestConfig::with_cases(1_000)
    })]

    #[test]
    fn a_poller_does_what_epoll_does(bytes in prop::collection::vec(any::<u8>(), 0..1_000)) {
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        watchdog::limit("a script", || script.compare());
    }
}
