//! A kick that KVM takes and an interrupt that KVM injects. It needs `/dev/kvm`, and a guest, which is in `guest.rs`.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod guest;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use doorbell::Event;
    use doorbell::ioeventfd::{Bus, space::AddressSpace};
    use doorbell::irqfd::{MsiMessage, Route, Router};
    use doorbell::kvm::{Injection, KvmListener, KvmSink};
    use doorbell::poll::{Events, Poller, Watch};
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::sync::Arc;

    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        println!("skipped: there is no /dev/kvm");
        return Ok(());
    };
    let vm = kvm.create_vm()?;
    vm.create_irq_chip()?;
    // SAFETY: `vm` is open for as long as `vm_fd` is used.
    let vm_fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };

    // Guest to VMM: KVM adds the kicks of the port to an eventfd, and the poller moves them from there to the event.
    let space = AddressSpace::new();
    let listener = Arc::new(KvmListener::new(vm_fd)?);
    assert!(space.add_listener(&listener).is_clean());
    let ports = space.region(Bus::Pio, 0x100);
    ports.map(0xc000)?;
    let kick = Arc::new(Event::new(0));
    assert!(ports.add_eventfd(0x50, 1, None, &kick)?.is_clean());
    let poller = Poller::new();
    poller.add_bound(listener.count_of(&kick)?, &kick, 0, Watch::READABLE)?;

    // VMM to guest: a signal of `done` is the message-signalled interrupt 0x41 of CPU 0.
    let router = Router::new(KvmSink::new(vm_fd, Injection::default())?);
    router.set_route(24, Some(Route::Msi(MsiMessage::new(0xfee0_0000, 0x41))))?;
    let done = Arc::new(Event::new(0));
    let _irqfd = router.assign(&done, 24)?;

    // The device thread serves one request.
    let device = std::thread::spawn(move || {
        let mut events = Events::with_capacity(1);
        poller.wait(&mut events, None).expect("a kick");
        println!("kicks: {}", kick.read());
        done.signal();
    });
    guest::kick_and_wait(&vm, &space, 0xc050, 0x41)?;
    println!("the guest was interrupted");
    device.join().expect("no panic");
    Ok(())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: this needs KVM on x86-64");
}
