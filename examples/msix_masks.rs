//! MSI-X: a vector that the guest masks, the pending bit, and an unmask with another message.

use doorbell::Event;
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router};
use std::sync::{Arc, Mutex};

const GSI: u32 = 24; // one for each vector of each device

/// The local APICs. (Under KVM: `doorbell::kvm::KvmSink`.)
#[derive(Default)]
struct Apics(Mutex<Vec<u32>>);

impl InterruptSink for Apics {
    fn set_level(&self, _gsi: u32, _pin: u32, _level: bool) {}

    fn signal_msi(&self, _gsi: u32, message: MsiMessage) {
        self.0.lock().unwrap().push(message.data);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let apics = Arc::new(Apics::default());
    let router = Router::new(Arc::clone(&apics));
    let queue_done = Arc::new(Event::new(0));
    let irqfd = router.assign(&queue_done, GSI)?;

    // The guest writes the vector's table entry, and unmasks it. Vectors are masked after a reset.
    router.mask(GSI);
    router.unmask_with_route(GSI, Route::Msi(MsiMessage::new(0xfee0_0000, 0x41)))?;
    queue_done.signal();

    // While the vector is masked, an interrupt sets the pending bit, which the device shows in its pending bit array.
    router.mask(GSI);
    queue_done.signal();
    queue_done.signal();
    assert!(router.is_masked(GSI) && router.is_pending(GSI));

    // After an unmask with another message, one interrupt comes, by the new message.
    router.unmask_with_route(GSI, Route::Msi(MsiMessage::new(0xfee0_1000, 0x52)))?;
    assert!(!router.is_pending(GSI));
    assert_eq!(*apics.0.lock().unwrap(), [0x41, 0x52]);
    println!(
        "{} signals, {} interrupts",
        irqfd.counters().signals,
        apics.0.lock().unwrap().len()
    );
    Ok(())
}
