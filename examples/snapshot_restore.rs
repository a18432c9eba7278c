//! A snapshot: a doorbell with kicks that nothing has read, and a masked vector with its pending bit, saved as JSON and
//! restored as if on another machine. (`doorbell::guide::snapshot` has the order of the steps for a live VM under KVM.)

use doorbell::Event;
use doorbell::event::{EventHandle, EventState};
use doorbell::ioeventfd::{Bus, Key, Table, TableState};
use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router, RouterState};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Apics(Mutex<Vec<u32>>);

impl InterruptSink for Apics {
    fn set_level(&self, _gsi: u32, _pin: u32, _level: bool) {}

    fn signal_msi(&self, _gsi: u32, message: MsiMessage) {
        self.0.lock().unwrap().push(message.data);
    }
}

/// The data that is transferred. Event 0 is the queue's kick, event 1 its interrupt.
type Snapshot = ([EventState; 2], TableState, RouterState);

fn save() -> Result<String, Box<dyn std::error::Error>> {
    let events = [Arc::new(Event::new(0)), Arc::new(Event::new(0))];
    let (table, router) = (Table::new(), Router::new(Apics::default()));
    let _doorbell = table.assign(Key::mmio(0xe000_3000, 2), &events[0])?;
    router.set_route(24, Some(Route::Msi(MsiMessage::new(0xfee0_0000, 0x41))))?;
    let _irqfd = router.assign(&events[1], 24)?;

    router.mask(24);
    events[1].signal(); // pending
    let kick = || table.write(Bus::Mmio, 0xe000_3000, &[0, 0]);
    assert!(kick() && kick());

    // The vCPUs and the device threads have stopped.
    let number = |event: &Event| u64::from(std::ptr::eq(event, &*events[1]));
    let router = router.save(number); // before the events, whose counts this may change
    let table = table.save(number);
    let snapshot: Snapshot = (events.each_ref().map(|event| event.save()), table, router);
    Ok(serde_json::to_string(&snapshot)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (events, table_state, router_state): Snapshot = serde_json::from_str(&save()?)?;
    let [kick, interrupt] = events.map(|state| Event::restore(&state).map(Arc::new));
    let events = [kick?, interrupt?];
    let find = |number| events.get(number as usize).map(EventHandle::from);
    let (table, apics) = (Table::new(), Arc::new(Apics::default()));
    let router = Router::new(Arc::clone(&apics));
    let _doorbells = table.restore(&table_state, find)?;
    let _irqfds = router.restore(&router_state, find)?;

    router.unmask(24);
    let (kicks, interrupts) = (events[0].read(), apics.0.lock().unwrap().len());
    println!("{kicks} kicks and {interrupts} interrupt came through");
    Ok(())
}
