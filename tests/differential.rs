//! Random scripts of calls, played to `doorbell::Event` and to a real eventfd at once. `fuzz/` plays more of them.

#![cfg(target_os = "linux")]

mod common;

use arbitrary::{Arbitrary, Unstructured};
use common::script::Script;
use common::{DefaultSpin, Kernel};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        // The input is bytes, as the fuzzer's is, and the failure message holds the script itself.
        failure_persistence: None,
        ..ProptestConfig::with_cases(2_000)
    })]

    #[test]
    fn event_does_what_the_kernel_does(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let script = Script::arbitrary_take_rest(Unstructured::new(&bytes)).unwrap();
        script.compare::<DefaultSpin, Kernel>();
    }
}
