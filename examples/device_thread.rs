//! A device thread: four queues that the guest kicks, a timer, a socket, and a clean stop.

use doorbell::ioeventfd::{Bus, DoorbellArray, Table};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::{Event, event::EventHandle};
use rustix::time::{self, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::{error, io::Read, io::Write, os::unix::net::UnixStream, sync::Arc, thread};

const TIMER: usize = 4;
const SOCKET: usize = 5;
const STOPPED: usize = 6;
static STOP: Event = Event::new(0);
static SERVED: Event = Event::semaphore(0);

/// Has its events inside. Table and poller take a handle of a field, which keeps the whole device.
struct Device {
    kicks: [Event; 4],
}

fn main() -> Result<(), Box<dyn error::Error>> {
    let kicks = [const { Event::new(0) }; 4];
    let device = Arc::new(Device { kicks });
    let queues = [0, 1, 2, 3].map(|n| EventHandle::of_field(&device, |device| &device.kicks[n]));
    let (table, poller) = (Table::new(), Poller::new());
    let _doorbells = table.assign_array(DoorbellArray::virtio_pci(0xe000_3000, 4, 4), &queues)?;
    for (key, queue) in queues.iter().enumerate() {
        poller.add(queue, key, Watch::READABLE)?;
    }
    let timer = time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    poller.add_fd(&timer, TIMER, Watch::READABLE)?;
    let (mut client, mut socket) = UnixStream::pair()?;
    poller.add_fd(&socket, SOCKET, Watch::READABLE)?;
    poller.add(&STOP, STOPPED, Watch::READABLE)?;
    let mut soon = time::timerfd_gettime(&timer)?; // all zero: not armed
    soon.it_value.tv_nsec = 1_000_000;
    time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &soon)?;
    let thread = thread::spawn(move || {
        let (mut events, mut seen) = (Events::with_capacity(8), [0; 6]);
        loop {
            poller.wait(&mut events, None).expect("it works");
            for report in events.iter() {
                match report.key() {
                    STOPPED => return seen,
                    TIMER => seen[TIMER] += rustix::io::read(&timer, &mut [0; 8]).unwrap_or(0) / 8,
                    SOCKET => seen[SOCKET] += socket.read(&mut [0; 64]).unwrap_or(0),
                    queue => seen[queue] += queues[queue].try_read().unwrap_or(0) as usize,
                }
                SERVED.signal();
            }
        }
    });
    assert!(table.write(Bus::Mmio, 0xe000_3008, &2_u16.to_ne_bytes())); // a vCPU rings queue 2
    client.write_all(b"hello")?;
    (0..3).for_each(|_| _ = SERVED.read());
    STOP.signal();
    let [kicks @ .., timer, bytes] = thread.join().expect("no panic");
    println!("kicks: {kicks:?}, timer: {timer}, bytes: {bytes}");
    Ok(())
}
