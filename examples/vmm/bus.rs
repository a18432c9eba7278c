//! What a guest's access meets when it reaches the VMM: the doorbells first, then the device's registers.

use crate::device::Device;
use crate::doorbells::Doorbells;
use anyhow::{bail, ensure};
use doorbell::ioeventfd::Bus;
use std::sync::Arc;

/// The two buses of a machine, as its vCPU sees them.
pub struct Buses {
    doorbells: Arc<dyn Doorbells>,
    pub device: Device,
    /// Kicks that came through the buses.
    pub kicks: u64,
}

impl Buses {
    pub fn new(doorbells: Arc<dyn Doorbells>, device: Device) -> Self {
        Buses {
            doorbells,
            device,
            kicks: 0,
        }
    }

    /// The guest wrote `data`.
    pub fn write(&mut self, bus: Bus, address: u64, data: &[u8]) -> anyhow::Result<()> {
        if self.doorbells.write(bus, address, data) {
            self.kicks += 1;
            return Ok(());
        }
        let claimed = self.device.write(bus, address, data)?;
        ensure!(
            claimed,
            "the guest wrote {data:x?} to {bus:?} {address:#x}, where nothing is"
        );
        Ok(())
    }

    /// The guest reads `data.len()` bytes.
    pub fn read(&self, bus: Bus, address: u64, data: &mut [u8]) -> anyhow::Result<()> {
        match self.device.read(bus, address) {
            Some(value) => data.fill(value),
            None => bail!("the guest read {bus:?} {address:#x}, where nothing is"),
        }
        Ok(())
    }
}
