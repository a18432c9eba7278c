//! irqfds, through the public API: the rules of KVM's irqfds (`rules.rs`, which lists what became of each conformance
//! case), random scripts against a sequential model of a line (`script.rs`), and threads (`driver.rs`, `threads.rs`,
//! `worker.rs`).

mod connections;
mod driver;
#[path = "../common/errors.rs"]
mod errors;
mod levels;
mod locks;
mod routes;
mod rules;
mod script;
mod sink;
mod state;
mod threads;
mod waits;
#[path = "../common/watchdog.rs"]
mod watchdog;
mod worker;

use arbitrary::{Arbitrary, Unstructured};
use proptest::prelude::*;
use script::Script;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_scripts(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).expect("any bytes will do");
        script.compare();
    }
}
