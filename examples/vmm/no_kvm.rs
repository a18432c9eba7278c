//! In the place of `kvm` where there can be no KVM, or none that the guest could run on.

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
