//! `doorbell_batch`: a `Box<Batch>`.

use crate::arguments::{give, only};
use crate::event::{doorbell_event, handle};
use crate::failure::{Failed, attempt, made};
use crate::handles::{free, new_owned};
use doorbell_rs::event::Batch;
use std::ffi::c_int;

/// Signals and writes to several events that are delivered together. One owner; one thread at a time.
pub struct doorbell_batch(Batch);

/// Makes a batch without events. `flags`: 0.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_batch_new(flags: u32) -> *mut doorbell_batch {
    made(|| {
        only(flags, 0)?;
        Ok(new_owned(doorbell_batch(Batch::new())))
    })
}

/// Commits the batch, and frees it. Writes for which there is no room are lost.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_batch_free(batch: *mut doorbell_batch) {
    unsafe { free(batch) };
}

/// Adds an event, and stores its index in *index. If the event is in the batch already, the index is the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_batch_add(
    batch: *mut doorbell_batch,
    event: *mut doorbell_event,
    index: *mut usize,
) -> c_int {
    attempt(|| {
        let (batch, event) = unsafe { (&mut *batch, handle(event)) };
        unsafe { index.write(batch.0.add(event)) };
        Ok(())
    })
}

/// Takes back one doorbell_batch_add. After the last one, what is pending for the event is delivered, and the event
/// leaves the batch. Unless unwritten is NULL, the sum of pending writes for which there was no room is stored in it,
/// or 0; those writes are lost. EINVAL: the index is not one of a doorbell_batch_add.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_batch_remove(
    batch: *mut doorbell_batch,
    index: usize,
    unwritten: *mut u64,
) -> c_int {
    attempt(|| {
        let removed = unsafe { with_event(batch, index) }?.remove(index);
        let lost = removed.and_then(|removed| removed.unwritten);
        unsafe { give(unwritten, Ok(lost.unwrap_or(0))) }
    })
}

/// Adds one signal to what is pending for an event. EINVAL: there is no such index.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_batch_signal(batch: *mut doorbell_batch, index: usize) -> c_int {
    unsafe { doorbell_batch_signal_n(batch, index, 1) }
}

/// Adds n signals. EINVAL: there is no such index.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_batch_signal_n(
    batch: *mut doorbell_batch,
    index: usize,
    n: u64,
) -> c_int {
    attempt(|| {
        unsafe { with_event(batch, index) }?.signal_n(index, n);
        Ok(())
    })
}

/// Adds a write of n, as doorbell_event_try_write makes it. EINVAL: there is no such index, or n is UINT64_MAX.
/// EAGAIN: no event could hold the sum of the pending writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_batch_write(
    batch: *mut doorbell_batch,
    index: usize,
    n: u64,
) -> c_int {
    attempt(|| {
        let batch = unsafe { with_event(batch, index) }?;
        Ok(batch.write(index, n)?)
    })
}

/// Delivers what is pending: first all counts change, then each thread that sleeps is woken once, then interrupts are
/// sent. EAGAIN: there are writes for which there was no room. They stay pending; all else was delivered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_batch_commit(batch: *mut doorbell_batch) -> c_int {
    attempt(|| Ok(unsafe { &mut *batch }.0.commit()?))
}

/// Takes back all that is pending, signals and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_batch_discard(batch: *mut doorbell_batch) {
    unsafe { &mut *batch }.0.discard();
}

/// The batch, if it has an event at the index: `Batch` panics for an index that it does not know.
///
/// # Safety
///
/// The pointer is a handle, which no other thread uses meanwhile.
#[inline(always)]
unsafe fn with_event<'a>(
    batch: *mut doorbell_batch,
    index: usize,
) -> Result<&'a mut Batch, Failed> {
    let batch = unsafe { &mut *batch };
    match batch.0.get(index) {
        Some(_) => Ok(&mut batch.0),
        None => Err(Failed::INVALID),
    }
}
