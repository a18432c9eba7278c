//! Guest memory: pages that a vCPU and the VMM use at the same time, seen as atomic cells of 64 bits.

use crate::map::MEMORY_SIZE;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

const PAGE: usize = 4096;
const CELL: usize = 8;

/// Aligned as KVM wants it.
#[repr(C, align(4096))]
struct Page([AtomicU64; PAGE / CELL]);

/// Clones share the same memory.
///
/// Most accesses are relaxed. They are ordered by what comes between the guest's access and the device's: a kick that
/// the device thread has read, an interrupt that the guest has taken, the end of the vCPU thread.
#[derive(Clone)]
pub struct Memory(Arc<[Page]>);

impl Memory {
    pub fn new() -> Self {
        let page = || Page([const { AtomicU64::new(0) }; PAGE / CELL]);
        Memory((0..MEMORY_SIZE as usize / PAGE).map(|_| page()).collect())
    }

    pub fn get(&self, address: u64) -> u64 {
        self.cell(address).load(Ordering::Relaxed)
    }

    pub fn set(&self, address: u64, value: u64) {
        self.cell(address).store(value, Ordering::Relaxed);
    }

    /// A number that the other side counts up after it has written the data that belongs to the number.
    pub fn get_published(&self, address: u64) -> u64 {
        // Acquire pairs with `publish`, or with the guest's locked instruction.
        self.cell(address).load(Ordering::Acquire)
    }

    /// Counts such a number up by one. Later loads of the caller come after that.
    pub fn publish(&self, address: u64) {
        // Release pairs with `get_published`, SeqCst with the fence between the other side's write and its look.
        self.cell(address).fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    fn cell(&self, address: u64) -> &AtomicU64 {
        let index = address as usize / CELL;
        &self.0[index / (PAGE / CELL)].0[index % (PAGE / CELL)]
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

/// The methods that only KVM needs.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
impl Memory {
    /// Copies a program to an address that is a multiple of 8.
    pub fn load(&self, address: u64, program: &[u8]) {
        for (cell, bytes) in (address..).step_by(CELL).zip(program.chunks(CELL)) {
            let mut padded = [0; CELL];
            padded[..bytes.len()].copy_from_slice(bytes);
            self.set(cell, u64::from_le_bytes(padded));
        }
    }

    /// The address of the pages in the VMM's own address space.
    pub fn host_address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}
