//! An eventfd that KVM sends messages for (`src/kvm/irqfd/wire.rs`), which is detached while others signal.
//!
//! The file that ships is compiled here, with stand-ins for the modules that make its system calls. The stand-ins do
//! what `eventfd_signal`, `irqfd_wakeup`, `kvm_irqfd_assign` and `eventfd_ctx_remove_wait_queue` of the kernel do under
//! the lock of the eventfd. `../breakages/wire.toml` lists the ways in which the code was broken on purpose.

#[path = "../../src/kvm/irqfd/wire.rs"]
mod wire;

use loom::sync::Mutex;
use loom::thread;
use loom_tests::check;
use std::io;
use std::sync::Arc;
use wire::Wire;

mod sync {
    pub use loom::sync::atomic;
}

mod eventfd {
    pub use super::EventFd;
}

const GSI: u32 = 3;

/// The messages that KVM has sent. The atomic is std's, because nothing depends on its value before the end.
#[derive(Default)]
pub struct Vm(std::sync::atomic::AtomicU32);

/// A semaphore on which no thread sleeps.
pub struct EventFd(Mutex<Semaphore>);

#[derive(Default)]
struct Semaphore {
    count: u64,
    irqfd: Option<Arc<Vm>>,
}

impl EventFd {
    fn semaphore() -> io::Result<Self> {
        Ok(EventFd(Mutex::default()))
    }

    /// An irqfd takes a unit away and sends the message, in the same step.
    fn signal(&self) -> io::Result<()> {
        let mut semaphore = self.0.lock().unwrap();
        semaphore.count += 1;
        if let Some(vm) = semaphore.irqfd.clone() {
            semaphore.count -= 1;
            vm.send();
        }
        Ok(())
    }

    fn take(&self) -> bool {
        let mut semaphore = self.0.lock().unwrap();
        let any = semaphore.count != 0;
        semaphore.count -= u64::from(any);
        any
    }
}

/// A unit that is left would be sent when the wire is attached the next time.
impl Drop for EventFd {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.0.get_mut().unwrap().count, 0, "not taken back");
        }
    }
}

impl Vm {
    fn send(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn sent(&self) -> u32 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// If there is a count, KVM sends a message and leaves the count.
    fn irqfd(self: &Arc<Self>, fd: &EventFd, gsi: u32) -> io::Result<()> {
        assert_eq!(gsi, GSI);
        let mut semaphore = fd.0.lock().unwrap();
        assert!(semaphore.irqfd.is_none(), "the irqfd is attached twice");
        if semaphore.count != 0 {
            self.send();
        }
        semaphore.irqfd = Some(Arc::clone(self));
        Ok(())
    }

    /// The irqfd reads the eventfd when it is deassigned.
    fn deassign_irqfd(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        assert_eq!(gsi, GSI);
        let mut semaphore = fd.0.lock().unwrap();
        assert!(
            semaphore.irqfd.take().is_some(),
            "the irqfd is not attached"
        );
        semaphore.count = semaphore.count.saturating_sub(1);
        Ok(())
    }
}

/// A VM, a wire that is attached, and threads that signal it once each. As the sink does, the threads send the messages
/// that the wire does not.
fn while_signalled(signallers: usize, change: impl FnOnce(&Wire, &Vm)) -> (u32, u32) {
    let vm = Arc::new(Vm::default());
    let wire = Arc::new(Wire::new(Arc::clone(&vm), GSI).unwrap());
    wire.attach().unwrap();
    let signaller = || {
        let wire = Arc::clone(&wire);
        thread::spawn(move || u32::from(!wire.signal()))
    };
    let signallers: Vec<_> = (0..signallers).map(|_| signaller()).collect();
    change(&wire, &vm);
    let others = signallers.into_iter().map(|other| other.join().unwrap());
    let by_others = others.sum();
    // The last signaller drops the wire like this when it lets go of it.
    drop(wire);
    (vm.sent(), by_others)
}

/// Each signal is one message: KVM's or the signaller's. After the detach, it is the signaller's.
#[test]
fn signals_and_detach() {
    for (signallers, preemptions) in [(1, None), (2, Some(3))] {
        check("signals_and_detach", preemptions, move || {
            let mut sent_before = 0;
            let (sent, by_others) = while_signalled(signallers, |wire, vm| {
                wire.detach().unwrap();
                wire.detach().unwrap();
                sent_before = vm.sent();
            });
            assert_eq!(sent + by_others, signallers as u32);
            assert_eq!(sent, sent_before);
        });
    }
}

/// A route that goes and comes back: no signal is without a message. There is at most one message more, if KVM has
/// found a unit that a signaller then took back.
#[test]
fn signals_and_detach_and_attach() {
    for (signallers, preemptions) in [(1, None), (2, Some(3))] {
        check("signals_and_detach_and_attach", preemptions, move || {
            let (sent, by_others) = while_signalled(signallers, |wire, _| {
                wire.detach().unwrap();
                wire.attach().unwrap();
                wire.attach().unwrap();
            });
            let signals = signallers as u32;
            let messages = sent + by_others;
            assert!((signals..=signals + 1).contains(&messages), "{messages}");
        });
    }
}
