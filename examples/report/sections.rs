//! What is compared, and what to know about it.

use crate::cases::{batch, event, futures, ioeventfd, poll, signaller, wait_any};

/// A section of the report.
pub struct Plan {
    pub title: &'static str,
    pub text: &'static str,
    /// Groups of cases.
    pub groups: Vec<String>,
    /// Whether to measure single wake-ups, too.
    pub latencies: bool,
    /// Whether to measure a real device, too.
    pub device: bool,
}

pub const WAKE_UP: &str = "one signal to a sleeping thread, until it runs";
pub const WAKE_CALL: &str = "one signal to a sleeping thread, the call";
pub const BURST: &str = "64 signals to a sleeping thread, until it has the last";
pub const BURST_CALL: &str = "64 signals to a sleeping thread, the calls";

/// The numbers of events of which one is waited for.
const MANY: [usize; 3] = [8, 64, 1_000];

pub fn all() -> Vec<Plan> {
    let strings = |groups: &[&str]| groups.iter().map(|&group| group.to_owned()).collect();
    vec![
        Plan {
            title: "Nobody asleep",
            text: "A signal that wakes nobody; a signal and a read that finds it; two threads that signal the same \
                   event at the same time, for an operation of each. fetch_add is one bare atomic addition: the least \
                   that any counter has to do. Mutexes and event-listener have a counter beside or inside them; \
                   Parker and Notify keep one token and do not count: a Parker is rung by one exchange, where a \
                   counter that saturates has to look first.",
            groups: strings(&[event::SIGNAL, event::SIGNAL_READ, event::PRODUCERS]),
            latencies: false,
            device: false,
        },
        Plan {
            title: "Batches",
            text: "Many signals, collected in a Batch and committed, or made one by one. The ratios are to the batch. \
                   Of one event the batch makes one addition; kernel eventfds take a write for each signal. What a \
                   batch saves with many events is wake-ups, and here nobody waits.",
            groups: strings(&[batch::ONE_EVENT, batch::MANY_EVENTS]),
            latencies: false,
            device: false,
        },
        Plan {
            title: "Ping-pong",
            text: "Two threads on two CPUs wait for each other by turns; a round is one turn of each. First both \
                   spin, by asking without blocking again and again; then they do so for up to 20 µs and sleep after \
                   that, an event by its default policy; then they sleep at once. A Parker cannot be asked. All \
                   have cache lines of their own, as an event always has. A raw spin is one word that says whose \
                   turn it is, in one line that moves once a turn; a bell for each thread makes two lines that do. \
                   The rounds of threads that spin vary by a third from report to report, and their ratios with them.",
            groups: strings(&[
                event::PING_PONG_SPINNING,
                event::PING_PONG_ADAPTIVE,
                event::PING_PONG_PARKED,
            ]),
            latencies: false,
            device: false,
        },
        Plan {
            title: "Waking a thread that sleeps",
            text: "Each sample is a thread that has been asleep for about 100 µs, on another CPU. All readers sleep \
                   at once, none spins. The calls are the time of the thread that signals, which is a vCPU's or a \
                   device's; of a burst, only the first signal should have somebody to wake.",
            groups: Vec::new(),
            latencies: true,
            device: false,
        },
        Plan {
            title: "Waiting for one of many",
            text: "wait_any beside poll(2) over as many eventfds, with the list made for each call, and epoll, with \
                   the list kept in the kernel. wait_any looks at each event, so beyond some hundred an epoll or a \
                   Poller is better.",
            groups: MANY
                .iter()
                .map(|&size| wait_any::ready(size))
                .chain(MANY.iter().map(|&size| wait_any::asleep(size)))
                .collect(),
            latencies: false,
            device: false,
        },
        Plan {
            title: "Pollers",
            text: "A Poller with events in it beside an epoll with eventfds in it, and the wakers of mio and polling, \
                   which are an eventfd in an epoll each. A signal to a busy poller is one that nobody has waited for \
                   since the last.",
            groups: [poll::SIGNAL.to_owned()]
                .into_iter()
                .chain(["edge", "level"].map(|trigger| poll::one_of(64, trigger)))
                .chain([poll::all_of(64)])
                .chain([poll::SLEEPING, poll::SPINNING].map(str::to_owned))
                .collect(),
            latencies: false,
            device: false,
        },
        Plan {
            title: "Tasks",
            text: "Futures, polled by hand with a waker that does nothing; the ping-pong is of two threads, each in \
                   pollster's block_on. An event counts, has many readers and hands on what a dropped future was \
                   woken for; its line links the futures themselves, as Notify's does.",
            groups: strings(&[
                futures::READY,
                futures::WAKE,
                futures::WOKEN,
                futures::IDLE,
                futures::IN_LINE,
                futures::PING_PONG,
            ]),
            latencies: false,
            device: false,
        },
        Plan {
            title: "A device",
            text: "The example vhost-user-blk, a disk in memory: reads of 4 KiB by the driver of the crate \
                   virtio-driver, which sleeps in its call eventfd or polls the used ring; driver and back-end have a \
                   CPU each. The loop of the back-end is epoll or doorbell's Poller, which polls the available ring \
                   for up to 32 µs before it sleeps, and the driver is asked whether it wants an interrupt after each \
                   request, after all that are there, or by doorbell's rule. Beside it, epoll with QEMU's rule for \
                   polling, the loop of the crate vhost-user-backend, and qemu-storage-daemon with a disk of zeroes \
                   that is nowhere. CPU is the back-end's for a request.",
            groups: Vec::new(),
            latencies: false,
            device: true,
        },
        Plan {
            title: "Look-ups",
            text: "A guest's write, looked up among 64 doorbells by one thread. A hit signals the doorbell's event, \
                   and a miss is the look-up alone. use_membarrier takes the fence out of a look-up, and what that is \
                   worth depends on the processor; a process has it or not, so a second process takes these turns. \
                   The buses of VMMs hold a lock or a reference count; a Vec behind an arc-swap and one that never \
                   changes hold less.",
            groups: ioeventfd::of_64().into(),
            latencies: false,
            device: false,
        },
        Plan {
            title: "Signallers",
            text: "A Signaller, after use_membarrier, beside Event::signal and others: what it saves who signals, and, \
                   in the rows with a read or a wait, what it costs the other side. Who reads takes together what lies \
                   in several words, and who falls asleep has all other threads of the process execute a barrier.",
            groups: strings(&[
                signaller::SIGNAL,
                signaller::TO_SPINNING,
                signaller::MANY_EVENTS,
                signaller::HIT_REPEATED,
                signaller::HIT_RANDOM,
                signaller::TO_POLLER,
                signaller::BURST_READ,
                signaller::SIGNAL_READ,
                signaller::POLLER_ROUND,
                signaller::PING_PONG,
            ]),
            latencies: false,
            device: false,
        },
    ]
}
