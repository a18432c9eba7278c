//! The sink that the tests use.

use doorbell::irqfd::{InterruptSink, MsiMessage, Route};
use std::sync::{Mutex, PoisonError};

/// A call that the sink got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Level { gsi: u32, pin: u32, level: bool },
    Msi { gsi: u32, data: u32 },
}

/// A sink that records its calls.
#[derive(Default)]
pub struct Log(Mutex<Vec<Call>>);

impl Log {
    /// The calls since this was last called.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, call: Call) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
    }
}

impl InterruptSink for Log {
    fn set_level(&self, gsi: u32, pin: u32, level: bool) {
        self.push(Call::Level { gsi, pin, level });
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        self.push(Call::Msi {
            gsi,
            data: message.data,
        });
    }
}

pub fn up(gsi: u32, pin: u32) -> Call {
    let level = true;
    Call::Level { gsi, pin, level }
}

pub fn down(gsi: u32, pin: u32) -> Call {
    let level = false;
    Call::Level { gsi, pin, level }
}

pub fn message(data: u32) -> Route {
    Route::Msi(MsiMessage::new(0xfee0_0000, data))
}
