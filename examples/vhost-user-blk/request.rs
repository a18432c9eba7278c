//! A request of a virtio block device: reads a chain of descriptors, and does what it asks for.
//!
//! Nothing from the driver is trusted: each access goes through the memory map, and fails outside of it.

use crate::program::disk::{Disk, SECTOR};
use std::fmt;
use std::io;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const HEADER: u64 = 16;
pub const ID_BYTES: usize = 20;

/// A chain that is no request. The driver cannot be answered, and its queue cannot be used any more.
#[derive(Debug)]
pub enum Malformed {
    /// The descriptors lead nowhere, in circles, or outside of guest memory.
    Chain,
    /// A buffer for the device to read comes after one for it to write.
    Order,
    /// There is no room for the header or the status.
    Short,
    /// The header or the status is not in guest memory.
    Outside,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Chain => "a chain of descriptors does not end, or leaves guest memory",
            Malformed::Order => "a chain has a readable descriptor after a writable one",
            Malformed::Short => "a request has no room for its header or its status",
            Malformed::Outside => "a request's header or status is not in guest memory",
        })
    }
}

/// What requests are carried out with.
pub struct Requests {
    pub disk: Disk,
    id: [u8; ID_BYTES],
    /// Each write is on the disk before it is completed, because the driver cannot flush.
    pub write_through: bool,
    readable: Buffers,
    writable: Buffers,
}

impl Requests {
    pub fn new(disk: Disk, serial: &str) -> Self {
        let mut id = [0; ID_BYTES];
        id[..serial.len()].copy_from_slice(serial.as_bytes());
        Requests {
            disk,
            id,
            write_through: true,
            readable: Buffers::default(),
            writable: Buffers::default(),
        }
    }

    /// Does what the chain asks for. Returns how many bytes were written to its buffers.
    pub fn handle(
        &mut self,
        mut chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<u32, Malformed> {
        self.read_chain(&mut chain)?;
        let mem = chain.memory();
        if self.readable.bytes < HEADER || self.writable.bytes < 1 {
            return Err(Malformed::Short);
        }
        let mut header = [0; HEADER as usize];
        self.readable.take_front(mem, &mut header)?;
        let status_at = self.writable.take_last_byte();
        let kind = u32::from_le_bytes(header[..4].try_into().expect("4 bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));

        let (status, data) = match kind {
            IN => self.transfer(mem, sector, false),
            OUT => self.transfer(mem, sector, true),
            FLUSH => (status_of(self.disk.flush()), 0),
            GET_ID => self.get_id(mem),
            _ => (UNSUPP, 0),
        };
        mem.write_obj(status, status_at)
            .map_err(|_| Malformed::Outside)?;
        Ok(data + 1)
    }

    fn read_chain(
        &mut self,
        chain: &mut DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<(), Malformed> {
        self.readable.clear();
        self.writable.clear();
        let mut ends = false;
        for descriptor in chain {
            if descriptor.is_write_only() {
                self.writable.push(descriptor.addr(), descriptor.len());
            } else if self.writable.buffers.is_empty() {
                self.readable.push(descriptor.addr(), descriptor.len());
            } else {
                return Err(Malformed::Order);
            }
            ends = !descriptor.has_next();
        }
        // The iterator stops at any fault, and after as many descriptors as the queue has.
        if ends { Ok(()) } else { Err(Malformed::Chain) }
    }

    fn transfer(&mut self, mem: &GuestMemoryMmap, sector: u64, write: bool) -> (u8, u32) {
        let data = if write {
            &self.readable
        } else {
            &self.writable
        };
        if !self.disk.has(sector, data.bytes) || write && self.disk.is_read_only() {
            return (IOERR, 0);
        }
        let mut offset = sector * SECTOR;
        for &(address, len) in &data.buffers {
            for slice in GuestMemoryBackend::get_slices(mem, address, len as usize) {
                let done = slice.map_err(io::Error::other).and_then(|slice| {
                    if write {
                        self.disk.write(offset, &slice)
                    } else {
                        self.disk.read(offset, &slice)
                    }?;
                    Ok(slice.len())
                });
                match done {
                    Ok(done) => offset += done as u64,
                    Err(_) => return (IOERR, 0),
                }
            }
        }
        if !write {
            return (OK, data.bytes as u32);
        }
        if self.write_through {
            return (status_of(self.disk.flush()), 0);
        }
        (OK, 0)
    }

    fn get_id(&mut self, mem: &GuestMemoryMmap) -> (u8, u32) {
        if self.writable.bytes < ID_BYTES as u64 {
            return (IOERR, 0);
        }
        let mut rest = &self.id[..];
        for &(address, len) in &self.writable.buffers {
            let (now, later) = rest.split_at(rest.len().min(len as usize));
            if mem.write_slice(now, address).is_err() {
                return (IOERR, 0);
            }
            rest = later;
        }
        (OK, ID_BYTES as u32)
    }
}

fn status_of(result: io::Result<()>) -> u8 {
    if result.is_ok() { OK } else { IOERR }
}

/// Buffers of one direction, in order.
#[derive(Default)]
struct Buffers {
    buffers: Vec<(GuestAddress, u32)>,
    bytes: u64,
}

impl Buffers {
    fn clear(&mut self) {
        self.buffers.clear();
        self.bytes = 0;
    }

    fn push(&mut self, address: GuestAddress, len: u32) {
        if len != 0 {
            self.buffers.push((address, len));
            self.bytes += u64::from(len);
        }
    }

    /// Reads the first bytes, however they are cut up, and leaves the rest. The caller has checked that there are
    /// enough.
    fn take_front(&mut self, mem: &GuestMemoryMmap, out: &mut [u8]) -> Result<(), Malformed> {
        let (mut done, mut used_up) = (0, 0);
        for (address, len) in &mut self.buffers {
            let now = (out.len() - done).min(*len as usize);
            mem.read_slice(&mut out[done..done + now], *address)
                .map_err(|_| Malformed::Outside)?;
            done += now;
            *len -= now as u32;
            if *len != 0 {
                // These bytes were read just now, so the address does not wrap.
                address.0 += now as u64;
                break;
            }
            used_up += 1;
            if done == out.len() {
                break;
            }
        }
        self.buffers.drain(..used_up);
        self.bytes -= done as u64;
        Ok(())
    }

    /// The caller has checked that there is one.
    fn take_last_byte(&mut self) -> GuestAddress {
        let (address, len) = self.buffers.last_mut().expect("there is a byte");
        *len -= 1;
        let at = GuestAddress(address.0.wrapping_add(u64::from(*len)));
        if *len == 0 {
            self.buffers.pop();
        }
        self.bytes -= 1;
        at
    }
}
