//! What stands in for `epoll`, `fd_table` and `bound` where there is no epoll (or, under loom, nothing but the
//! process): none of it is ever made.

use super::place::Place;
use super::{PollError, Watch};
use crate::event::EventHandle;
use crate::sync::waiters::Outcome;
use std::time::Instant;

pub(super) enum Fds {}

#[derive(Default)]
pub(super) struct FdTable;

pub(super) enum FdRegistration {}

pub(super) enum Bound {}

pub(super) enum Found {}

impl Fds {
    pub(super) fn ring(&self) {
        match *self {}
    }

    pub(super) fn look(&self, _: usize, _: impl FnOnce(&[Found])) -> Result<(), PollError> {
        match *self {}
    }

    pub(super) fn sleep(
        &self,
        _: usize,
        _: Option<Instant>,
        _: impl FnOnce(&[Found]),
    ) -> Result<Outcome, PollError> {
        match *self {}
    }
}

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

    pub(super) fn resolve(&self, found: &Found) -> Option<(usize, u8)> {
        match *found {}
    }
}

impl Bound {
    pub(super) fn event(&self) -> &EventHandle {
        match *self {}
    }

    pub(super) fn carry(&self, _: &impl Place) {
        match *self {}
    }
}
