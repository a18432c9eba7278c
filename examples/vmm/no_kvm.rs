//! Replaces `kvm` on platforms without KVM, or whose KVM cannot run the guest.

use crate::machine::Machine;
use crate::options::Setup;
use crate::plan::Plan;
use doorbell::Spin;
use std::path::Path;

pub enum Kvm {}

pub const SETUPS: &[Setup] = &[];

pub fn open(_: &Path) -> anyhow::Result<Kvm> {
    anyhow::bail!("the guest needs that of x86_64 Linux")
}

pub fn machine(kvm: &Kvm, _: &Plan, _: Spin) -> anyhow::Result<Machine> {
    match *kvm {}
}
