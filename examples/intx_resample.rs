//! A level-triggered interrupt (PCI's INTx) that two devices share: each has its own request, and the line is up while
//! either has one. The guest's end of interrupt lowers the line, and the device that still wants something raises it
//! again.

use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{InterruptSink, MsiMessage, Router, Routes};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

const GSI: u32 = 10;
/// The VMM's interrupt controller. (Under KVM: `doorbell::kvm::KvmSink`.)
#[derive(Default)]
struct Ioapic(Mutex<Vec<bool>>);

impl InterruptSink for Ioapic {
    fn set_level(&self, _gsi: u32, _pin: u32, level: bool) {
        self.0.lock().unwrap().push(level);
    }

    fn signal_msi(&self, _gsi: u32, _message: MsiMessage) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ioapic = Arc::new(Ioapic::default());
    let router = Router::new(Arc::clone(&ioapic));
    router.set_routes(Routes::identity(24))?;

    // Each device: an event that raises the line, and one that is signalled at the end of interrupt.
    let requests = [2, 1].map(|n| Arc::new(AtomicU32::new(n)));
    let mut devices = Vec::new();
    for requests in &requests {
        let (interrupt, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
        let irqfd = router.assign_with_resample(&interrupt, GSI, &resample)?;
        interrupt.signal();
        let (requests, ended) = (Arc::clone(requests), Arc::clone(&resample));
        let again = move |_: Change| {
            ended.try_read();
            if requests.load(Ordering::Relaxed) != 0 {
                interrupt.signal();
            }
        };
        let observation = Observation::new(&resample, Interest::Signals, Arc::new(again));
        devices.push((irqfd, observation));
    }
    // The guest serves a request of the first device that has one, and ends the interrupt, until the line stays down.
    while ioapic.0.lock().unwrap().last() == Some(&true) {
        let device = requests
            .iter()
            .find(|device| device.load(Ordering::Relaxed) != 0);
        device
            .expect("no interrupt without a request")
            .fetch_sub(1, Ordering::Relaxed);
        router.ack(GSI);
    }
    println!("the line went {:?}", ioapic.0.lock().unwrap());
    Ok(())
}
