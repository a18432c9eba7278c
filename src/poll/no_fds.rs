//! Stands in for `fd_table` and `bound` where descriptors cannot be registered: where there is no epoll, and under
//! loom.

use super::epoll::{FdReport, Fds};
use super::queued_binding::QueuedBinding;
use super::{PollError, Watch};
use crate::event::EventHandle;

#[derive(Default)]
pub(super) struct FdTable;

pub(super) enum FdRegistration {}

pub(super) enum Bound {}

impl FdTable {
    pub(super) fn modify(
        &mut self,
        _: &Fds,
        registration: &FdRegistration,
        _: Watch,
    ) -> Result<(), PollError> {
        match *registration {}
    }

    pub(super) fn delete(&mut self, _: &Fds, registration: &FdRegistration) {
        match *registration {}
    }

    pub(super) fn is_one_shot(&self, registration: &FdRegistration) -> bool {
        match *registration {}
    }

    pub(super) fn resolve(&self, found: &FdReport) -> Option<(usize, u8)> {
        match *found {}
    }
}

impl Bound {
    pub(super) fn event(&self) -> &EventHandle {
        match *self {}
    }

    pub(super) fn carry(&self, _: &impl QueuedBinding) {
        match *self {}
    }
}
