//! The ioctls of a VM, by a descriptor that this crate owns.
//!
//! The crates that open `/dev/kvm` have types of their own for a VM, and new versions of them. What all of these types
//! have in common is the descriptor. It is duplicated, so the VM's own type is neither kept nor named here.

use super::Error;
use kvm_bindings::{KVMIO, kvm_ioeventfd};
#[cfg(not(test))]
use rustix::ioctl::ioctl;
use rustix::ioctl::{Opcode, Setter, opcode};
#[cfg(test)]
use stand_in::ioctl;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

#[cfg(test)]
pub(super) mod stand_in;

/// A VM of KVM's, which stays as long as this does.
pub(super) struct Vm(OwnedFd);

const IOEVENTFD: Opcode = write::<kvm_ioeventfd>(0x79);

/// The opcode of an ioctl that reads a `T`.
const fn write<T>(number: u8) -> Opcode {
    opcode::write::<T>(KVMIO as u8, number)
}

impl Vm {
    /// Duplicates the descriptor.
    pub(super) fn new(vm: impl AsFd) -> Result<Self, Error> {
        match vm.as_fd().try_clone_to_owned() {
            Ok(fd) => Ok(Vm(fd)),
            Err(source) => Err(Error {
                call: "fcntl(F_DUPFD_CLOEXEC)",
                source,
            }),
        }
    }

    /// `KVM_IOEVENTFD`
    pub(super) fn ioeventfd(&self, argument: kvm_ioeventfd) -> io::Result<()> {
        // SAFETY: the ioctl reads this structure.
        unsafe { self.set::<IOEVENTFD, _>(argument) }
    }

    /// An ioctl that reads its argument.
    ///
    /// # Safety
    ///
    /// The ioctl takes an `A`, and does nothing but read it.
    unsafe fn set<const OPCODE: Opcode, A>(&self, argument: A) -> io::Result<()> {
        // SAFETY: as this function's.
        Ok(unsafe { ioctl(&self.0, Setter::<OPCODE, A>::new(argument)) }?)
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64", test))]
mod irqfd {
    use super::{Vm, ioctl, write};
    use kvm_bindings::{
        KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, KvmIrqRouting, kvm_irq_level,
        kvm_irq_routing, kvm_irqfd, kvm_msi,
    };
    use rustix::ioctl::{IntegerSetter, Opcode};
    use std::io;
    use std::os::fd::{AsFd, AsRawFd};

    const IRQ_LINE: Opcode = write::<kvm_irq_level>(0x61);
    const SET_GSI_ROUTING: Opcode = write::<kvm_irq_routing>(0x6a);
    const IRQFD: Opcode = write::<kvm_irqfd>(0x76);
    const SIGNAL_MSI: Opcode = write::<kvm_msi>(0xa5);

    fn number(fd: &impl AsFd) -> u32 {
        fd.as_fd().as_raw_fd() as u32
    }

    impl Vm {
        /// `KVM_SET_GSI_ROUTING`
        pub(in crate::kvm) fn set_gsi_routing(&self, routing: &KvmIrqRouting) -> io::Result<()> {
            let pointer = routing.as_fam_struct_ptr().cast_mut().cast();
            // SAFETY: the ioctl reads the structure that the argument points to, and as many entries after it as that
            // says, which are there.
            Ok(unsafe {
                ioctl(
                    &self.0,
                    IntegerSetter::<SET_GSI_ROUTING>::new_pointer(pointer),
                )
            }?)
        }

        /// `KVM_IRQFD`, by which a signal of `fd` sends the message of the GSI.
        pub(in crate::kvm) fn irqfd(&self, fd: &impl AsFd, gsi: u32) -> io::Result<()> {
            self.set_irqfd(kvm_irqfd {
                fd: number(fd),
                gsi,
                ..kvm_irqfd::default()
            })
        }

        /// `KVM_IRQFD`, by which a signal of `fd` raises the line until the guest's end of interrupt, when `resample`
        /// is signalled.
        pub(in crate::kvm) fn irqfd_with_resample(
            &self,
            fd: &impl AsFd,
            gsi: u32,
            resample: &impl AsFd,
        ) -> io::Result<()> {
            self.set_irqfd(kvm_irqfd {
                fd: number(fd),
                gsi,
                flags: KVM_IRQFD_FLAG_RESAMPLE,
                resamplefd: number(resample),
                ..kvm_irqfd::default()
            })
        }

        /// Ends what either of the two calls above began.
        pub(in crate::kvm) fn deassign_irqfd(&self, fd: &impl AsFd, gsi: u32) -> io::Result<()> {
            self.set_irqfd(kvm_irqfd {
                fd: number(fd),
                gsi,
                flags: KVM_IRQFD_FLAG_DEASSIGN,
                ..kvm_irqfd::default()
            })
        }

        fn set_irqfd(&self, argument: kvm_irqfd) -> io::Result<()> {
            // SAFETY: the ioctl reads this structure.
            unsafe { self.set::<IRQFD, _>(argument) }
        }

        /// `KVM_IRQ_LINE`. What the number means depends on the architecture.
        pub(in crate::kvm) fn set_irq_line(&self, irq: u32, level: bool) -> io::Result<()> {
            let mut argument = kvm_irq_level {
                level: level.into(),
                ..kvm_irq_level::default()
            };
            argument.__bindgen_anon_1.irq = irq;
            // SAFETY: the ioctl reads this structure.
            unsafe { self.set::<IRQ_LINE, _>(argument) }
        }

        /// `KVM_SIGNAL_MSI`
        pub(in crate::kvm) fn signal_msi(&self, message: kvm_msi) -> io::Result<()> {
            // SAFETY: the ioctl reads this structure.
            unsafe { self.set::<SIGNAL_MSI, _>(message) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Vm, ioctl};
    use kvm_bindings::{KVMIO, kvm_irqchip, kvm_pit_state2};
    use rustix::ioctl::{Opcode, Updater, opcode};
    use std::io;

    const GET_IRQCHIP: Opcode = opcode::read_write::<kvm_irqchip>(KVMIO as u8, 0x62);
    const GET_PIT2: Opcode = opcode::read::<kvm_pit_state2>(KVMIO as u8, 0x9f);

    impl Vm {
        /// An ioctl that writes to its argument.
        ///
        /// # Safety
        ///
        /// The ioctl takes an `A`, and does nothing but read it and write a valid one there.
        unsafe fn update<const OPCODE: Opcode, A>(&self, argument: &mut A) -> io::Result<()> {
            // SAFETY: as this function's.
            Ok(unsafe { ioctl(&self.0, Updater::<OPCODE, A>::new(argument)) }?)
        }

        /// Whether KVM has an interrupt controller of this kind. (`KVM_GET_IRQCHIP`)
        pub(in crate::kvm) fn has_irqchip(&self, chip_id: u32) -> bool {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            // SAFETY: the ioctl reads and writes this structure, all bits of which are valid.
            unsafe { self.update::<GET_IRQCHIP, _>(&mut chip) }.is_ok()
        }

        /// Whether KVM has a timer. (`KVM_GET_PIT2`)
        pub(in crate::kvm) fn has_pit(&self) -> bool {
            let mut pit = kvm_pit_state2::default();
            // SAFETY: the ioctl writes this structure, all bits of which are valid.
            unsafe { self.update::<GET_PIT2, _>(&mut pit) }.is_ok()
        }
    }
}
