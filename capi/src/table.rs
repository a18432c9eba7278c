//! `doorbell_table`: an `Arc` around a `Table`; and what doorbells signal beside events.

use crate::arguments::{list, only};
use crate::event::{doorbell_event, handle};
use crate::failure::{Failed, attempt, counted, made};
use crate::handles::{add_reference, free, give_up_reference, new_owned, new_shared};
use doorbell_rs::ioeventfd::{
    Bus, Doorbell, DoorbellArray, Key, Latest, Reader, Table, Target, ValueQueue,
};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// Memory-mapped I/O.
pub const DOORBELL_MMIO: u32 = 0x0;
/// Port I/O (KVM_IOEVENTFD_FLAG_PIO).
pub const DOORBELL_PIO: u32 = 0x1;
/// Only writes of the value `datamatch` (KVM_IOEVENTFD_FLAG_DATAMATCH).
pub const DOORBELL_DATAMATCH: u32 = 0x2;

/// Which event a guest's write to an address signals. Reference-counted.
pub struct doorbell_table(Table);

/// A handle of a table that looks up faster. It keeps the table. One owner; one thread at a time, such as a vCPU.
pub struct doorbell_reader(Reader);

/// Keeps the values that the guest writes to doorbells, and signals an event for each. Reference-counted.
pub struct doorbell_value_queue(Arc<ValueQueue>);

/// Keeps the latest value that the guest has written to a doorbell, and signals an event. Reference-counted.
pub struct doorbell_latest(Arc<Latest>);

/// Which guest writes ring a doorbell, as struct kvm_ioeventfd says it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct doorbell_key {
    /// The guest address at which a write begins.
    pub address: u64,
    /// With DOORBELL_DATAMATCH: only writes of this value.
    pub datamatch: u64,
    /// 1, 2, 4 or 8: writes of this many bytes. 0: of any length.
    pub length: u32,
    /// DOORBELL_MMIO or DOORBELL_PIO, and DOORBELL_DATAMATCH.
    pub flags: u32,
}

/// Doorbells at equal distances, or with a stride of 0 told apart by the value that is written: the notify addresses
/// of virtio-pci.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct doorbell_array {
    /// The guest address of slot 0.
    pub address: u64,
    /// The distance between two slots in bytes: a power of two, or 0.
    pub stride: u64,
    /// How many slots there are.
    pub slots: u32,
    /// As that of doorbell_key. A stride of 0 needs one.
    pub length: u32,
    /// DOORBELL_MMIO or DOORBELL_PIO.
    pub flags: u32,
}

/// What a guest wrote.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct doorbell_kick {
    /// The value, zero-extended.
    pub value: u64,
    /// The slot of the doorbell in its array, or 0.
    pub slot: u32,
}

/// Makes an empty table.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_table_new() -> *mut doorbell_table {
    made(|| Ok(new_shared(doorbell_table(Table::new()))))
}

/// Adds a reference, and returns the table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_ref(table: *mut doorbell_table) -> *mut doorbell_table {
    unsafe { add_reference(table) }
}

/// Gives up a reference. The table goes with the last one and the last reader.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_unref(table: *mut doorbell_table) {
    unsafe { give_up_reference(table) };
}

/// Adds a doorbell that signals an event. (KVM_IOEVENTFD)
///
/// EEXIST: another doorbell takes writes that this one would take. EINVAL: an unknown length or flag, writes that would
/// end at 2^64 or beyond, or a datamatch that needs more bytes than the length has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_assign(
    table: *mut doorbell_table,
    key: *const doorbell_key,
    event: *mut doorbell_event,
) -> c_int {
    attempt(|| unsafe { assign(table, key, handle(event).into()) })
}

/// Removes a doorbell. When this returns, no signal comes through it any more. (KVM_IOEVENTFD_FLAG_DEASSIGN)
///
/// ENOENT: there is no doorbell with this key and this event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_deassign(
    table: *mut doorbell_table,
    key: *const doorbell_key,
    event: *mut doorbell_event,
) -> c_int {
    attempt(|| unsafe { deassign(table, key, handle(event).into()) })
}

/// Adds an array of doorbells; `events` has one for each slot. Errors as doorbell_table_assign. EINVAL also for a
/// stride that is not a power of two, no slots, or a stride of 0 without a length that holds the last slot's number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_assign_array(
    table: *mut doorbell_table,
    array: *const doorbell_array,
    events: *const *mut doorbell_event,
) -> c_int {
    attempt(|| {
        let (table, array) = unsafe { (&*table, &*array) };
        let targets = unsafe { targets(array, events) };
        table.0.assign_array(array.parsed()?, targets)?.keep();
        Ok(())
    })
}

/// Removes an array of doorbells, as doorbell_table_deassign.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_deassign_array(
    table: *mut doorbell_table,
    array: *const doorbell_array,
    events: *const *mut doorbell_event,
) -> c_int {
    attempt(|| {
        let (table, array) = unsafe { (&*table, &*array) };
        let targets = unsafe { targets(array, events) };
        let doorbell = Doorbell::array(array.parsed()?, targets);
        Ok(table.0.deassign_all([doorbell])?)
    })
}

/// Adds a doorbell that puts what is written into a queue. Errors as doorbell_table_assign.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_assign_value_queue(
    table: *mut doorbell_table,
    key: *const doorbell_key,
    queue: *mut doorbell_value_queue,
) -> c_int {
    attempt(|| unsafe { assign(table, key, Target::from(&(*queue).0)) })
}

/// Removes a doorbell that puts what is written into a queue, as doorbell_table_deassign.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_deassign_value_queue(
    table: *mut doorbell_table,
    key: *const doorbell_key,
    queue: *mut doorbell_value_queue,
) -> c_int {
    attempt(|| unsafe { deassign(table, key, Target::from(&(*queue).0)) })
}

/// Adds a doorbell that keeps the latest value. Errors as doorbell_table_assign.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_assign_latest(
    table: *mut doorbell_table,
    key: *const doorbell_key,
    latest: *mut doorbell_latest,
) -> c_int {
    attempt(|| unsafe { assign(table, key, Target::from(&(*latest).0)) })
}

/// Removes a doorbell that keeps the latest value, as doorbell_table_deassign.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_deassign_latest(
    table: *mut doorbell_table,
    key: *const doorbell_key,
    latest: *mut doorbell_latest,
) -> c_int {
    attempt(|| unsafe { deassign(table, key, Target::from(&(*latest).0)) })
}

/// Offers the table a guest's write of `length` bytes, in the byte order of the host, at `address` of the bus
/// DOORBELL_MMIO or DOORBELL_PIO. Returns 1 if a doorbell took it. 0: the write is for the device models.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_write(
    table: *mut doorbell_table,
    bus: u32,
    address: u64,
    data: *const c_void,
    length: usize,
) -> c_int {
    counted(|| {
        let (table, data) = unsafe { (&*table, list(data.cast(), length)) };
        Ok(table.0.write(bus_of(bus)?, address, data).into())
    })
}

/// Makes a reader of a table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_table_reader(table: *mut doorbell_table) -> *mut doorbell_reader {
    made(|| {
        let reader = unsafe { &*table }.0.reader();
        Ok(new_owned(doorbell_reader(reader)))
    })
}

/// Frees a reader.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_reader_free(reader: *mut doorbell_reader) {
    unsafe { free(reader) };
}

/// As doorbell_table_write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_reader_write(
    reader: *mut doorbell_reader,
    bus: u32,
    address: u64,
    data: *const c_void,
    length: usize,
) -> c_int {
    counted(|| {
        let (reader, data) = unsafe { (&*reader, list(data.cast(), length)) };
        Ok(reader.0.write(bus_of(bus)?, address, data).into())
    })
}

/// Makes a queue for up to `capacity` values, which signals `event` for each. A write that finds it full is not taken.
/// EINVAL: a capacity of 0, or of more than 2^20.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_value_queue_new(
    event: *mut doorbell_event,
    capacity: usize,
) -> *mut doorbell_value_queue {
    made(|| {
        if !(1..=ValueQueue::MAX_CAPACITY).contains(&capacity) {
            return Err(Failed::INVALID);
        }
        let queue = ValueQueue::new(unsafe { handle(event) }, capacity);
        Ok(new_shared(doorbell_value_queue(Arc::new(queue))))
    })
}

/// Adds a reference, and returns the queue.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_value_queue_ref(
    queue: *mut doorbell_value_queue,
) -> *mut doorbell_value_queue {
    unsafe { add_reference(queue) }
}

/// Gives up a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_value_queue_unref(queue: *mut doorbell_value_queue) {
    unsafe { give_up_reference(queue) };
}

/// Takes the oldest value. EAGAIN: there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_value_queue_pop(
    queue: *mut doorbell_value_queue,
    kick: *mut doorbell_kick,
) -> c_int {
    attempt(|| {
        let popped = unsafe { &*queue }.0.pop().ok_or(Failed::WOULD_BLOCK)?;
        let (slot, value) = (popped.slot, popped.value);
        unsafe { kick.write(doorbell_kick { value, slot }) };
        Ok(())
    })
}

/// Makes a keeper of the latest value, `value` at first, which signals `event`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_latest_new(
    event: *mut doorbell_event,
    value: u64,
) -> *mut doorbell_latest {
    made(|| {
        let latest = Latest::new(unsafe { handle(event) }, value);
        Ok(new_shared(doorbell_latest(Arc::new(latest))))
    })
}

/// Adds a reference, and returns the keeper.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_latest_ref(latest: *mut doorbell_latest) -> *mut doorbell_latest {
    unsafe { add_reference(latest) }
}

/// Gives up a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_latest_unref(latest: *mut doorbell_latest) {
    unsafe { give_up_reference(latest) };
}

/// The latest value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_latest_value(latest: *const doorbell_latest) -> u64 {
    unsafe { &*latest }.0.value()
}

impl doorbell_key {
    fn parsed(&self) -> Result<Key, Failed> {
        only(self.flags, DOORBELL_PIO | DOORBELL_DATAMATCH)?;
        let bus = bus_of(self.flags & DOORBELL_PIO)?;
        let key = Key::new(bus, self.address, self.length);
        Ok(match self.flags & DOORBELL_DATAMATCH {
            0 => key,
            _ => key.with_datamatch(self.datamatch),
        })
    }
}

impl doorbell_array {
    fn parsed(&self) -> Result<DoorbellArray, Failed> {
        let bus = bus_of(self.flags)?;
        let array = DoorbellArray::new(bus, self.address, self.stride, self.slots);
        Ok(array.with_length(self.length))
    }
}

#[inline(always)]
fn bus_of(bus: u32) -> Result<Bus, Failed> {
    match bus {
        DOORBELL_MMIO => Ok(Bus::Mmio),
        DOORBELL_PIO => Ok(Bus::Pio),
        _ => Err(Failed::INVALID),
    }
}

/// # Safety
///
/// There is an event for each slot.
unsafe fn targets(array: &doorbell_array, events: *const *mut doorbell_event) -> Vec<Target> {
    let events = unsafe { list(events, array.slots as usize) };
    let targets = events.iter().map(|&event| unsafe { handle(event) }.into());
    targets.collect()
}

/// # Safety
///
/// The pointers are what their types say.
unsafe fn assign(
    table: *mut doorbell_table,
    key: *const doorbell_key,
    target: Target,
) -> Result<(), Failed> {
    let (table, key) = unsafe { (&*table, (*key).parsed()?) };
    table.0.assign(key, target)?.keep();
    Ok(())
}

/// # Safety
///
/// As above.
unsafe fn deassign(
    table: *mut doorbell_table,
    key: *const doorbell_key,
    target: Target,
) -> Result<(), Failed> {
    let (table, key) = unsafe { (&*table, (*key).parsed()?) };
    Ok(table.0.deassign(key, target)?)
}
