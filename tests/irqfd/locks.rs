//! Callers that hold a lock which a callback on another thread wants. A vCPU writes to a register of the interrupt
//! controller's model, and calls the router under the model's lock; a device's signal is in the sink, or in an
//! observer, and wants that lock. A call that waited for the device would wait for ever.

use super::watchdog;
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::ioeventfd::space::AddressSpace;
use doorbell::ioeventfd::{Bus, Key, Table};
use doorbell::irqfd::{InterruptSink, LevelSource, MsiMessage, Route, Router, Routes};
use doorbell::poll::{Poller, Watch};
use std::any::Any;
use std::io;
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;

/// The GSI of the device that is in the way.
const DEVICE: u32 = 5;
/// Lines that are in use,
const OLD: u32 = 6;
/// masked ones,
const MASKED: u32 = 7;
/// and one that has not been used.
const NEW: u32 = 8;

/// The locked model, and where the two threads meet.
#[derive(Default)]
struct Model {
    registers: Mutex<u32>,
    met: OnceLock<Arc<Barrier>>,
}

impl Model {
    fn touch_registers(&self) {
        self.met.get().expect("the test has begun").wait();
        *self.registers.lock().unwrap() += 1;
    }
}

impl InterruptSink for Model {
    fn set_level(&self, _: u32, _: u32, _: bool) {}

    fn signal_msi(&self, gsi: u32, _: MsiMessage) {
        if gsi == DEVICE {
            self.touch_registers();
        }
    }
}

fn message(data: u32) -> Route {
    let address = 0xfee0_0000;
    Route::Msi(MsiMessage::new(address, data))
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

/// The objects that the vCPU calls. What the calls return is kept until the lock has been released.
struct Machine {
    router: Router,
    level: LevelSource,
    event: Arc<Event>,
    table: Table,
    poller: Poller,
    space: AddressSpace,
}

type Kept = Box<dyn Any>;

/// Makes the call under the lock, while the device is in the sink or in an observer.
fn call_under_lock(name: &'static str, call: fn(&Machine) -> Kept) {
    for in_sink in [true, false] {
        watchdog::limit(name, || {
            let model = Arc::new(Model::default());
            let router = Router::new(Arc::clone(&model));
            let routes = [DEVICE, OLD, MASKED].map(|gsi| (gsi, message(gsi)));
            router
                .set_routes(Routes::from_entries(routes).unwrap())
                .unwrap();
            router.unmask(OLD);
            router.mask(MASKED);
            let device = event();
            let observation = match in_sink {
                true => {
                    router.assign(&device, DEVICE).unwrap().keep();
                    None
                }
                false => {
                    let model = Arc::clone(&model);
                    let observer = move |_: Change| model.touch_registers();
                    Some(Observation::new(
                        Arc::clone(&device),
                        Interest::Signals,
                        Arc::new(observer),
                    ))
                }
            };
            let machine = Machine {
                level: router.level_source(OLD),
                router,
                event: event(),
                table: Table::new(),
                poller: Poller::new(),
                space: AddressSpace::new(),
            };
            let met = Arc::new(Barrier::new(2));
            model.met.set(Arc::clone(&met)).expect("once");
            thread::scope(|scope| {
                scope.spawn(|| device.signal());
                let registers = model.registers.lock().unwrap();
                met.wait();
                let kept = call(&machine);
                assert_eq!(*registers, 0, "{name} waited for the lock");
                drop(registers);
                drop(kept);
            });
            assert_eq!(*model.registers.lock().unwrap(), 1);
            drop(observation);
        });
    }
}

/// Calls that do not wait.
macro_rules! under_lock {
    ($($(#[$platform:meta])? $name:ident: |$machine:ident| $call:expr;)*) => {
        $($(#[$platform])?
        #[test]
        fn $name() {
            call_under_lock(stringify!($name), |$machine| Box::new($call));
        })*
    };
}

under_lock! {
    mask: |m| m.router.mask(OLD);
    mask_a_new_line: |m| m.router.mask(NEW);
    unmask: |m| m.router.unmask(MASKED);
    unmask_a_new_line: |m| m.router.unmask(NEW);
    unmask_with_the_same_route: |m| m.router.unmask_with_route(MASKED, message(MASKED)).unwrap();
    unmask_with_another_route: |m| m.router.unmask_with_route(MASKED, message(9)).unwrap();
    unmask_several: |m| m.router.unmask_with_routes([(OLD, message(9)), (NEW, Route::Pin(1))]).unwrap();
    unmask_with_a_route_that_is_refused: |m| m.router.unmask_with_route(5000, message(9)).unwrap_err();
    set_the_same_route: |m| m.router.set_route(OLD, Some(message(OLD))).unwrap();
    set_the_same_routes: |m| m.router.set_routes(m.router.routes()).unwrap();
    set_level: |m| m.router.set_level(OLD, true);
    set_level_of_a_new_line: |m| m.router.set_level(NEW, true);
    a_level_source: |m| m.level.set_level(true);
    a_new_level_source: |m| drop(m.router.level_source(NEW));
    assign: |m| m.router.assign(&m.event, OLD).unwrap();
    assign_to_a_new_line: |m| m.router.assign(&m.event, NEW).unwrap();
    assign_with_resample: |m| m.router.assign_with_resample(&m.event, OLD, event()).unwrap();
    ack: |m| m.router.ack(OLD);
    is_pending: |m| m.router.is_pending(MASKED);
    take_pending: |m| m.router.take_pending(MASKED);
    line_counters: |m| m.router.line_counters(OLD);
    routes: |m| m.router.routes();
    debug: |m| format!("{:?}", m.router);
    observe: |m| Observation::new(Arc::clone(&m.event), Interest::Both, Arc::new(|_: Change| ()));
    observe_on_demand: |m| {
        Observation::on_demand(Arc::clone(&m.event), Interest::Both, Arc::new(|_: Change| ()))
    };
    add_to_a_poller: |m| m.poller.add(&m.event, 0, Watch::BOTH).unwrap();
    modify_in_a_poller: |m| {
        m.poller.add(&m.event, 0, Watch::BOTH).unwrap();
        m.poller.modify(0, Watch::READABLE.edge()).unwrap();
    };
    notify_a_poller: |m| m.poller.notify();
    #[cfg(unix)]
    mirror: |m| doorbell::fd::Mirror::new(Arc::clone(&m.event)).unwrap();
    #[cfg(all(target_os = "linux", not(doorbell_no_eventfd)))]
    forward: |m| doorbell::fd::Forward::new(Arc::clone(&m.event)).unwrap();
    assign_a_doorbell: |m| m.table.assign(Key::mmio(0, 4), &m.event).unwrap();
    ring_a_doorbell: |m| m.table.write(Bus::Mmio, 0, &[0; 4]);
    list_the_doorbells: |m| m.table.doorbells();
    add_to_an_address_space: |m| {
        let region = m.space.region(Bus::Mmio, 0x1000);
        assert!(region.map(0x1000).unwrap().is_clean());
        assert!(region.add_eventfd(0, 4, None, &m.event).unwrap().is_clean());
        region
    };
}

/// A sink that looks at the router while the routes change sees the old ones.
#[test]
fn routes_inside_set_routes() {
    #[derive(Default)]
    struct Curious(OnceLock<Router>, Mutex<Vec<[usize; 2]>>);
    impl InterruptSink for Curious {
        fn set_level(&self, _: u32, _: u32, _: bool) {}
        fn signal_msi(&self, _: u32, _: MsiMessage) {}
        fn set_routes(
            &self,
            routes: &Routes,
            changes: &[doorbell::irqfd::RouteChange],
        ) -> io::Result<()> {
            let router = self.0.get().expect("the sink has been told");
            let old = router.routes().iter().count();
            assert!(format!("{router:?}").starts_with("Router"));
            assert_eq!(changes.len(), routes.iter().count() - old);
            self.1.lock().unwrap().push([old, routes.iter().count()]);
            Ok(())
        }
    }
    watchdog::limit("routes_inside_set_routes", || {
        let sink = Arc::new(Curious::default());
        let router = Router::new(Arc::clone(&sink));
        assert!(sink.0.set(router.clone()).is_ok());
        router.set_routes(Routes::identity(24)).unwrap();
        router.set_route(24, Some(message(1))).unwrap();
        assert_eq!(*sink.1.lock().unwrap(), [[0, 24], [24, 25]]);
    });
}
