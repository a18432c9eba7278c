//! The addresses that the guest uses. The guest program, the device and the VMM share this map.

use doorbell::ioeventfd::{Bus, Key};

/// Each queue has two doorbells, one on each bus, and a device thread of its own.
pub const QUEUES: usize = 2;

/// The interrupt line of each queue, on the first PIC. The GSI of the same number leads there.
pub const LINES: [u8; QUEUES] = [5, 6];

/// The device's registers, in I/O ports.
pub mod port {
    /// One byte: the virtio device status.
    pub const STATUS: u16 = 0xc000;
    /// One byte for each queue: its interrupt status, which reading clears, if its line is level-triggered.
    pub const INTERRUPT_STATUS: u16 = 0xc002;
    /// Two bytes: after how many kicks a queue interrupts the guest; 0: never.
    pub const COALESCE: u16 = 0xc004;
    /// Two bytes: the index of the queue to kick, as in virtio's legacy PCI transport.
    pub const NOTIFY: u16 = 0xc008;
    /// One byte, no register of virtio's: the device compares [`cell::CLOCK`](super::cell::CLOCK) with its own clock.
    pub const CLOCK: u16 = 0xc00c;
}

/// A range of addresses that the device has on a bus.
pub struct Bar {
    pub base: u64,
    pub size: u64,
}

/// The range that the firmware has assigned.
pub fn bar(bus: Bus) -> Bar {
    match bus {
        Bus::Pio => Bar {
            base: port::STATUS.into(),
            size: 0x10,
        },
        Bus::Mmio => Bar {
            base: NOTIFY_MMIO,
            size: 0x1000,
        },
    }
}

/// The memory-mapped doorbell of queue 0; the next queue's is [`NOTIFY_STRIDE`] further, as in virtio's modern PCI
/// transport. No memory is here.
pub const NOTIFY_MMIO: u64 = 0xd_0000;
pub const NOTIFY_STRIDE: u64 = 4;

/// Bits of the status register (virtio 1.2, 2.1).
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
}

/// The status values that a driver writes to bring the device up, in this order.
pub const BRING_UP: [u8; 4] = [
    status::ACKNOWLEDGE,
    status::ACKNOWLEDGE | status::DRIVER,
    status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
    status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK,
];

/// The two buses, in the order in which the guest kicks by them.
pub const BUSES: [Bus; 2] = [Bus::Pio, Bus::Mmio];

/// The guest write that kicks `queue` by `bus` starts at this address and is a 16-bit `queue`.
pub fn notify_address(bus: Bus, queue: usize) -> u64 {
    match bus {
        Bus::Pio => port::NOTIFY.into(),
        Bus::Mmio => NOTIFY_MMIO + NOTIFY_STRIDE * queue as u64,
    }
}

/// The keys to register for the kicks, and the queues that they kick. All queues share a port, where the value
/// distinguishes them; in memory each queue has an address of its own, and a write may have any width.
pub fn doorbells() -> Vec<(Key, usize)> {
    let mut doorbells = Vec::new();
    for queue in 0..QUEUES {
        let port = Key::pio(notify_address(Bus::Pio, queue), 2);
        doorbells.push((port.with_datamatch(queue as u64), queue));
        doorbells.push((Key::mmio(notify_address(Bus::Mmio, queue), 0), queue));
    }
    doorbells
}

/// The most kicks per interrupt: as many as there is room to time-stamp.
pub const MAX_BATCH: u16 = 256;

/// Guest memory from address 0 up.
pub const MEMORY_SIZE: u64 = 0x1_0000;

/// Addresses of 64-bit cells in guest memory.
pub mod cell {
    /// A time between two writes to [`port::CLOCK`](super::port::CLOCK), by the guest's clock.
    pub const CLOCK: u64 = 0x9000;

    /// Kicks sent to a queue, counted by the guest.
    pub fn sent(queue: usize) -> u64 {
        0x9100 + 8 * queue as u64
    }

    /// Interrupts taken from a queue, counted by the guest.
    pub fn interrupts(queue: usize) -> u64 {
        0x9200 + 8 * queue as u64
    }

    /// Interrupts for which the queue had no reason (any more), counted by the guest separately.
    pub fn spurious(queue: usize) -> u64 {
        0x9300 + 8 * queue as u64
    }

    /// Kicks for which the guest wrote to a doorbell, counted by the guest if its driver asks the device whether to
    /// ring.
    pub fn rung(queue: usize) -> u64 {
        0x9400 + 8 * queue as u64
    }

    /// Not 0 while the device asks such a driver not to.
    pub fn quiet(queue: usize) -> u64 {
        0x9500 + 8 * queue as u64
    }

    /// Batches that the device has completed, counted by the device for a driver that looks.
    pub fn used(queue: usize) -> u64 {
        0x9580 + 8 * queue as u64
    }

    /// Not 0 while such a driver does not look and wants to be interrupted.
    pub fn wanted(queue: usize) -> u64 {
        0x9700 + 8 * queue as u64
    }

    /// Batches that a queue's driver knows to be completed, counted by the guest.
    pub fn completed(queue: usize) -> u64 {
        0x9780 + 8 * queue as u64
    }

    /// How long the last batch of a queue took by the guest's clock, from before its first kick to its interrupt.
    pub fn round_trip(queue: usize) -> u64 {
        0x9600 + 8 * queue as u64
    }

    /// When the guest made each kick of a queue's current batch: an array.
    pub fn stamps(queue: usize) -> u64 {
        0xa000 + 8 * u64::from(super::MAX_BATCH) * queue as u64
    }
}
