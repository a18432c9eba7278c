//! Random scripts of calls, played to our events and to a real eventfd at once. `fuzz/` plays more of them.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

use arbitrary::{Arbitrary, Unstructured};
use common::kernel::{Kernel, can_signal};
use common::ours::DefaultSpin;
use common::script::Script;
use common::shared::Shared;
use common::signalled::Signalled;
use common::watchdog;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        // The input is bytes, as the fuzzer's is, and the failure message holds the script itself.
        failure_persistence: None,
        ..ProptestConfig::with_cases(1_000)
    })]

    #[test]
    fn event_does_what_the_kernel_does(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if !can_signal() {
            return Ok(());
        }
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        watchdog::limit("a script", || script.compare::<DefaultSpin, Kernel>());
    }

    #[test]
    fn signallers_do_what_the_kernel_does(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if !can_signal() {
            return Ok(());
        }
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        watchdog::limit("a script", || script.compare::<Signalled, Kernel>());
    }

    #[test]
    fn shared_event_does_what_the_kernel_does(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if !can_signal() {
            return Ok(());
        }
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        watchdog::limit("a script", || script.compare::<Shared, Kernel>());
    }
}
