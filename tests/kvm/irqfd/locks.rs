//! Calls that do not wait, with a sink of KVM's, while another thread is inside a callback, whatever the callback waits
//! for.

use crate::common::watchdog;
use crate::vm::descriptor;
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{MsiMessage, Route, Router, Routes};
use doorbell::kvm::{Injection, KvmSink};
use kvm_ioctls::Kvm;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

#[test]
fn beside_a_callback_that_does_not_return() {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("skipped: no usable /dev/kvm");
        return;
    };
    watchdog::limit("beside_a_callback_that_does_not_return", || {
        let (entered, is_inside) = mpsc::channel();
        let (leave, asked) = mpsc::channel::<()>();
        let asked = Mutex::new(asked);
        let device = Arc::new(Event::new(0));
        let observer = move |_: Change| {
            entered.send(()).unwrap();
            asked.lock().unwrap().recv().unwrap();
        };
        let observation =
            Observation::new(Arc::clone(&device), Interest::Signals, Arc::new(observer));
        thread::scope(|scope| {
            scope.spawn(|| device.signal());
            is_inside.recv().unwrap();
            let mut irqfds = Vec::new();
            for injection in [Injection::Userspace, Injection::Kernel] {
                let vm = kvm.create_vm().unwrap();
                vm.create_irq_chip().unwrap();
                let router = Router::new(KvmSink::new(descriptor(&vm), injection).unwrap());
                for gsi in 0..30 {
                    let [event, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
                    irqfds.push(router.assign(&resample, gsi).unwrap());
                    irqfds.push(router.assign_with_resample(&event, gsi, &resample).unwrap());
                }
                for (gsi, _) in Routes::identity(24).iter() {
                    router.mask(gsi);
                    router.unmask_with_route(gsi, Route::Pin(gsi)).unwrap();
                    router.set_level(gsi, true);
                    router.ack(gsi);
                    router.set_level(gsi, false);
                }
                let message = |data| Route::Msi(MsiMessage::new(0xfee0_0000, data));
                router
                    .unmask_with_routes((24..30).map(|gsi| (gsi, message(gsi))))
                    .unwrap();
                router.unmask_with_route(5, message(5)).unwrap();
            }
            leave.send(()).unwrap();
            drop(irqfds);
        });
        drop(observation);
    });
}
