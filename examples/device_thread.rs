//! A device thread: four queues that the guest kicks, a timer, a socket, and a clean stop.

use doorbell::Event;
use doorbell::ioeventfd::{Bus, DoorbellArray, Table};
use doorbell::poll::{Events, Poller, Watch};
use rustix::time::{self, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::io::{Read, Write};
use std::{error, os::unix::net::UnixStream, sync::Arc, thread};

const TIMER: usize = 4;
const SOCKET: usize = 5;
const STOPPED: usize = 6;

static STOP: Event = Event::new(0);
static SERVED: Event = Event::semaphore(0);

fn main() -> Result<(), Box<dyn error::Error>> {
    let table = Table::new();
    let queues = [0; 4].map(|count| Arc::new(Event::new(count)));
    let notify = DoorbellArray::virtio_pci(0xe000_3000, 4, 4);
    let _doorbells = table.assign_array(notify, &queues)?;

    let poller = Poller::new();
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

    let device = thread::spawn(move || {
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
    // A vCPU thread rings queue 2, and a client writes 5 bytes.
    assert!(table.write(Bus::Mmio, 0xe000_3008, &2_u16.to_ne_bytes()));
    client.write_all(b"hello")?;
    (0..3).for_each(|_| _ = SERVED.read());
    STOP.signal();
    let [kicks @ .., timer, bytes] = device.join().expect("no panic");
    println!("kicks: {kicks:?}, timer: {timer}, bytes: {bytes}");
    Ok(())
}
