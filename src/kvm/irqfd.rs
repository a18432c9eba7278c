//! Interrupts by KVM: the sink, and what it is made of.
//!
//! What differs between interrupt controllers is in `pc.rs` and `gic.rs`, which have the same items. The other files
//! use the one of the machine by the name `controller`.

use super::Error;
use super::ioctl::Vm;
#[cfg(not(target_arch = "x86_64"))]
use gic as controller;
#[cfg(target_arch = "x86_64")]
use pc as controller;

mod eventfd;
#[cfg(any(not(target_arch = "x86_64"), test))]
mod gic;
#[cfg(test)]
mod gic_tests;
#[cfg(target_arch = "x86_64")]
mod pc;
mod pump;
mod sink;
mod table;
mod wire;

pub use sink::{Injection, KvmSink};
pub use table::RouteTableError;
