//! The lists in the documentation of `doorbell::kvm`, each row on a thread of its own that may make only the calls of
//! that row. The threads meet in one VM.

use crate::vm::{self, Exit, Vm};
use crate::{DONE, DUPLICATE, Filtered, done, filtered, listed, msi, observe, under_filters, with};
use crate::{NAP, WAIT, WAIT_BITSET, WAKE, is_observed};
use doorbell::Event;
use doorbell::ioeventfd::Bus;
use doorbell::ioeventfd::space::AddressSpace;
use doorbell::irqfd::{Irqfd, Route, Router, Routes};
use doorbell::kvm::{Injection, KvmListener, KvmSink};
use iced_x86::code_asm::*;
use kvm_bindings::{
    KVMIO, kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irqchip, kvm_irqfd, kvm_msi,
    kvm_pit_config, kvm_pit_state2, kvm_regs,
};
use kvm_ioctls::Kvm;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iow_nr!(KVM_IRQ_LINE, KVMIO, 0x61, kvm_irq_level);
ioctl_iowr_nr!(KVM_GET_IRQCHIP, KVMIO, 0x62, kvm_irqchip);
ioctl_iow_nr!(KVM_SET_GSI_ROUTING, KVMIO, 0x6a, kvm_irq_routing);
ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_ior_nr!(KVM_GET_PIT2, KVMIO, 0x9f, kvm_pit_state2);
ioctl_iow_nr!(KVM_SIGNAL_MSI, KVMIO, 0xa5, kvm_msi);

const ROUNDS: usize = 200;

/// A row of a list: its calls and ioctls, and the calls that a router, a table or an address space makes itself.
fn row(
    calls: &[libc::c_long],
    ioctls: &[libc::c_ulong],
    body: impl FnOnce() + Send + 'static,
) -> Filtered {
    let calls = [&[libc::SYS_sched_yield, libc::SYS_clock_nanosleep], calls].concat();
    let mut allowed = listed(&calls, &[WAIT, WAKE, WAIT_BITSET]);
    // The requests have 32 bits.
    let ioctls: Vec<_> = ioctls.iter().map(|&request| request as i32).collect();
    allowed.insert(libc::SYS_ioctl, with(1, &ioctls));
    if cfg!(debug_assertions) {
        // The standard library calls this before it closes a descriptor.
        allowed.insert(libc::SYS_fcntl, with(1, &[libc::F_GETFD]));
    }
    filtered(allowed, body)
}

/// Fails unless the process has come to its end, if there is KVM.
fn came_to_its_end(test: &str) {
    match Kvm::new() {
        Ok(_) => {
            let output = observe(&[], test);
            assert_eq!(output.status.code(), Some(DONE), "{output:?}");
        }
        Err(error) => eprintln!("skipped: no usable /dev/kvm ({error})"),
    }
}

const HANDLER: u64 = 0x1000;
const GUEST: u64 = 0x2000;
/// The pin of the line whose interrupts the guest ends.
const LEVEL: u32 = 5;

/// A guest that takes interrupts all the time.
fn guest() -> Vm {
    let mut machine = Vm::with_interrupts(0x3000).expect("KVM was there before");
    let guest = vm::assemble(GUEST, |a| {
        vm::set_up_pic(a, &[LEVEL as u8], &[LEVEL as u8])?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)
    });
    let handler = vm::assemble(HANDLER, |a| {
        vm::end_of_interrupt(a)?;
        a.out(0xf4, al)?;
        a.iret()
    });
    let memory = machine.memory();
    memory.load(GUEST, &guest);
    memory.load(HANDLER, &handler);
    // Messages and pins of all rows arrive.
    (0x20..=u8::MAX).for_each(|vector| memory.set_vector(vector, HANDLER));
    let regs = kvm_regs {
        rip: GUEST,
        rsp: HANDLER,
        ..kvm_regs::default()
    };
    machine.set(regs, 0);
    machine
}

/// The list of a `KvmSink` that injects in this way.
fn list_of_a_sink(injection: Injection) -> ! {
    let by_kernel = injection == Injection::Kernel;
    let mut machine = guest();
    let router = Router::new(KvmSink::new(vm::descriptor(machine.fd()), injection).unwrap());
    let mut routes = Routes::identity(24);
    routes.set(24, Some(msi(0x41))).unwrap();
    // This pin is free for another GSI.
    routes.set(10, None).unwrap();
    router.set_routes(routes).unwrap();
    let event = || Arc::new(Event::new(0));
    let [message, pulse, level, resample] = [(); 4].map(|()| event());
    let lasting: Vec<Irqfd> = vec![
        router.assign(&message, 24).unwrap(),
        router.assign(&pulse, 6).unwrap(),
    ];
    doorbell::prepare_for_seccomp();

    let sends: &[libc::c_long] = if by_kernel {
        &[libc::SYS_write, libc::SYS_read]
    } else {
        &[]
    };
    let assigns: &[libc::c_long] = match by_kernel {
        true => &[libc::SYS_eventfd2, libc::SYS_close],
        false => &[],
    };
    let assigns_of_kernel: &[libc::c_ulong] = if by_kernel { &[KVM_IRQFD()] } else { &[] };
    let all = |body: fn(&Router)| {
        let router = router.clone();
        move || body(&router)
    };

    // The first resampling irqfd starts the thread, which has the filter of the thread that assigns it, and does not
    // end in this test.
    let first = {
        let (router, level, resample) = (router.clone(), Arc::clone(&level), Arc::clone(&resample));
        let start = [
            libc::SYS_clone3,
            // musl's.
            libc::SYS_clone,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rseq,
            libc::SYS_set_robust_list,
            libc::SYS_sched_getaffinity,
            libc::SYS_sigaltstack,
            libc::SYS_gettid,
            libc::SYS_prctl,
            libc::SYS_epoll_create1,
            libc::SYS_eventfd2,
            libc::SYS_epoll_ctl,
        ];
        let thread = [
            libc::SYS_epoll_pwait,
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_close,
        ];
        let calls = [&start[..], &thread].concat();
        row(&calls, &[KVM_IRQFD(), KVM_IRQ_LINE()], move || {
            std::mem::forget(
                router
                    .assign_with_resample(&level, LEVEL, &resample)
                    .unwrap(),
            );
        })
    };
    under_filters([first]);

    // The guest runs meanwhile, and sends ends of interrupts.
    static STOP: AtomicBool = AtomicBool::new(false);
    let vcpu = std::thread::spawn(move || {
        let mut ended = 0;
        while !STOP.load(Ordering::Relaxed) || ended == 0 {
            match machine.run() {
                Exit::Write { .. } => ended += 1,
                exit => panic!("{exit:?}"),
            }
        }
        std::mem::forget(machine);
    });
    let message = {
        let message = Arc::clone(&message);
        move || (0..10 * ROUNDS).for_each(|_| message.signal())
    };
    let pins = {
        let pulse = Arc::clone(&pulse);
        let router = router.clone();
        move || {
            let source = router.level_source(7);
            for _ in 0..ROUNDS {
                pulse.signal();
                source.set_level(true);
                source.set_level(false);
            }
            std::mem::forget(source);
        }
    };
    let asserts = {
        let (router, level, resample) = (router.clone(), Arc::clone(&level), Arc::clone(&resample));
        move || {
            for round in 0..ROUNDS {
                level.signal();
                if round % 4 == 0 {
                    router.mask(LEVEL);
                    router.unmask(LEVEL);
                } else {
                    let _ = resample.read_timeout(NAP);
                }
            }
        }
    };
    let assigning = all(|router| {
        for _ in 0..ROUNDS {
            let irqfd = router.assign(Arc::new(Event::new(0)), 25).unwrap();
            drop(irqfd);
        }
    });
    let resampling = all(|router| {
        for round in 0..ROUNDS {
            let [event, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
            let irqfd = router.assign_with_resample(&event, 8, &resample).unwrap();
            if round % 2 == 0 {
                // The line is up at the end.
                event.signal();
            }
            drop(irqfd);
        }
    });
    let routes = all(|router| {
        for round in 0..ROUNDS as u32 {
            router.set_route(24, Some(msi(0x41 + round % 2))).unwrap();
            router.set_route(24, Some(Route::Pin(10))).unwrap();
            router.set_route(24, None).unwrap();
            // This line is up.
            router.set_level(9, true);
            router.set_route(9, None).unwrap();
            router.set_route(9, Some(Route::Pin(9))).unwrap();
            router.set_level(9, false);
        }
    });
    let saving = {
        let (router, level) = (router.clone(), Arc::clone(&level));
        move || {
            for _ in 0..ROUNDS {
                level.signal();
                let state = router.save(|_| 0);
                assert!(state.irqfds.len() >= 3);
            }
        }
    };
    let resampling_calls = [
        assigns,
        &[
            libc::SYS_eventfd2,
            libc::SYS_epoll_ctl,
            libc::SYS_close,
            libc::SYS_read,
            libc::SYS_write,
        ],
    ]
    .concat();
    under_filters([
        // The GSI has a pin for a while.
        row(sends, &[KVM_SIGNAL_MSI(), KVM_IRQ_LINE()], message),
        row(&[], &[KVM_IRQ_LINE()], pins),
        row(&[libc::SYS_write], &[KVM_IRQ_LINE(), KVM_IRQFD()], asserts),
        row(assigns, assigns_of_kernel, assigning),
        row(
            &resampling_calls,
            &[KVM_IRQFD(), KVM_IRQ_LINE()],
            resampling,
        ),
        row(
            &[libc::SYS_write, libc::SYS_close],
            &[KVM_SET_GSI_ROUTING(), KVM_IRQFD(), KVM_IRQ_LINE()],
            routes,
        ),
        row(
            &[
                libc::SYS_eventfd2,
                libc::SYS_read,
                libc::SYS_write,
                libc::SYS_close,
            ],
            &[KVM_IRQFD(), KVM_IRQ_LINE()],
            saving,
        ),
    ]);
    STOP.store(true, Ordering::Relaxed);
    level.signal();
    vcpu.join().unwrap();
    std::mem::forget(lasting);
    done()
}

#[test]
fn the_list_of_a_sink_is_complete_where_the_vmm_injects() {
    if is_observed() {
        list_of_a_sink(Injection::Userspace);
    }
    came_to_its_end("kvm::the_list_of_a_sink_is_complete_where_the_vmm_injects");
}

#[test]
fn the_list_of_a_sink_is_complete_where_the_kernel_injects() {
    if is_observed() {
        list_of_a_sink(Injection::Kernel);
    }
    came_to_its_end("kvm::the_list_of_a_sink_is_complete_where_the_kernel_injects");
}

/// The list of a `KvmListener`.
#[test]
fn the_list_of_a_listener_is_complete() {
    if !is_observed() {
        return came_to_its_end("kvm::the_list_of_a_listener_is_complete");
    }
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    vm.create_pit2(kvm_pit_config::default()).unwrap();
    let space = AddressSpace::new();
    let listener = Arc::new(KvmListener::new(vm::descriptor(&vm)).unwrap());
    assert!(space.add_listener(listener.clone()).is_clean());
    let ports = space.region(Bus::Pio, 0x1000);
    assert!(ports.map(0).unwrap().is_clean());
    let memory = space.region(Bus::Mmio, 0x1000);
    assert!(memory.map(0xfec0_0000).unwrap().is_clean());
    let lasting = Arc::new(Event::new(0));
    assert!(
        ports
            .add_eventfd(0x100, 2, None, &lasting)
            .unwrap()
            .is_clean()
    );
    let count = listener.count_of(&lasting).unwrap();
    doorbell::prepare_for_seccomp();

    // The standard library draws the keys of a thread's first hash map.
    let calls = [libc::SYS_close, libc::SYS_getrandom];
    let mut allowed = listed(&calls, &[]);
    let mut fcntl = DUPLICATE.to_vec();
    if cfg!(debug_assertions) {
        fcntl.push(libc::F_GETFD);
    }
    allowed.insert(libc::SYS_fcntl, with(1, &fcntl));
    let makes = {
        let vm = Arc::clone(&vm);
        filtered(allowed, move || {
            for _ in 0..ROUNDS {
                drop(KvmListener::new(vm::descriptor(&vm)).unwrap());
            }
            std::mem::forget(vm);
        })
    };
    let changes = |region: doorbell::ioeventfd::space::Region, vacant: u64, occupied: u64| {
        move || {
            for round in 0..ROUNDS {
                let event = Arc::new(Event::new(0));
                let datamatch = (round % 2 == 0).then_some(7);
                let report = region.add_eventfd(vacant, 4, datamatch, &event).unwrap();
                assert!(report.is_clean());
                assert!(
                    region
                        .del_eventfd(vacant, 4, datamatch, &event)
                        .unwrap()
                        .is_clean()
                );
                let report = region.add_eventfd(occupied, 1, None, &event).unwrap();
                assert!(!report.is_clean());
                let _ = region.del_eventfd(occupied, 1, None, &event).unwrap();
            }
            std::mem::forget(region);
        }
    };
    let adds = [libc::SYS_eventfd2, libc::SYS_read, libc::SYS_close];
    let drains = {
        let (space, lasting) = (space.clone(), Arc::clone(&lasting));
        move || {
            for _ in 0..ROUNDS {
                rustix::io::write(&count, &1_u64.to_ne_bytes()).unwrap();
                assert_eq!(space.drain() + count.drain() + lasting.read(), 2);
            }
            std::mem::forget((space, count));
        }
    };
    let counts = move || {
        for _ in 0..ROUNDS {
            listener.count_of(Arc::new(Event::new(0))).unwrap().drain();
        }
        std::mem::forget(listener);
    };
    under_filters([
        makes,
        row(
            &adds,
            &[KVM_IOEVENTFD(), KVM_GET_PIT2()],
            changes(ports, 0x200, 0x40),
        ),
        row(
            &adds,
            &[KVM_IOEVENTFD(), KVM_GET_IRQCHIP()],
            changes(memory, 0x200, 0x10),
        ),
        // The writes are the test's.
        row(&[libc::SYS_read, libc::SYS_write], &[], drains),
        row(&adds, &[], counts),
    ]);
    done()
}
