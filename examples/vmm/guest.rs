//! The guest: a driver in real mode, assembled for the work it is to do.
//!
//! ```text
//!     set up stack, interrupt vectors and the PIC
//!     compare clocks with the device
//!     device up: ACKNOWLEDGE, DRIVER, FEATURES_OK (does it stay?), kicks per interrupt, DRIVER_OK
//!     repeat:
//!         for each bus, for each queue:
//!             kick a batch of times, each with a time stamp; wait for the device; take the time
//!     no more interrupts, one more kick by each doorbell
//!     device reset, and one more write to each doorbell, which must ring nothing now
//!     exit
//! ```
//!
//! [`soft`](crate::soft) does the same without KVM.

use crate::map::{BRING_UP, BUSES, LINES, NOTIFY_MMIO, QUEUES, cell, notify_address, port, status};
use crate::memory::Memory;
use crate::plan::Plan;
use doorbell::ioeventfd::Bus;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where the program starts.
pub const ENTRY: u64 = 0x1000;

/// The port that the program ends by: 0 if it has done its work, 1 if the device refused its features.
pub const EXIT: u16 = 0x00f4;

/// Interrupt handlers.
const HANDLERS: [u64; QUEUES] = [0x0800, 0x0900];
/// The stack grows down from here.
const STACK: i32 = 0x8000;
/// How often a queue has been waited for; one 64-bit cell each.
const AWAITED: u64 = 0x8000;

/// For how many ticks a driver that looks goes on looking before it halts: some 50 µs.
const PATIENCE: u32 = 150_000;
/// How often the driver looks between two readings of the clock, which may cost an exit.
const LOOKS: u32 = 16;

/// The first PIC's ports, and the vector it is told to give to line 0.
const PIC_COMMAND: i32 = 0x20;
const PIC_DATA: i32 = 0x21;
const VECTORS: u8 = 0x20;
/// The first PIC's edge/level control register: a bit for each level-triggered line.
const ELCR: u16 = 0x4d0;

/// Writes the program to guest memory.
pub fn load(memory: &Memory, plan: &Plan) -> Result<(), IcedError> {
    for (queue, address) in HANDLERS.into_iter().enumerate() {
        memory.load(address, &handler(queue, plan)?);
    }
    memory.load(ENTRY, &program(plan)?);
    Ok(())
}

/// Counts a queue's interrupt. If it is level-triggered, first checks whether the queue has a reason, and clears it.
fn handler(queue: usize, plan: &Plan) -> Result<Vec<u8>, IcedError> {
    const END_OF_INTERRUPT: i32 = 0x20;
    let mut a = CodeAssembler::new(16)?;
    let mut spurious = a.create_label();
    let mut end = a.create_label();
    a.push(ax)?;
    a.push(dx)?;
    if plan.setup.is_level() {
        a.mov(dx, u32::from(port::INTERRUPT_STATUS) + queue as u32)?;
        a.in_(al, dx)?;
        a.test(al, al)?;
        a.jz(spurious)?;
    }
    a.inc(dword_ptr(cell::interrupts(queue)))?;
    a.jmp(end)?;
    a.set_label(&mut spurious)?;
    a.inc(dword_ptr(cell::spurious(queue)))?;
    a.set_label(&mut end)?;
    a.mov(al, END_OF_INTERRUPT)?;
    a.out(PIC_COMMAND, al)?;
    a.pop(dx)?;
    a.pop(ax)?;
    a.iret()?;
    a.assemble(HANDLERS[queue])
}

fn program(plan: &Plan) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let mut refused = a.create_label();

    set_up_cpu(&mut a)?;
    set_up_pic(&mut a, plan)?;
    out8(&mut a, port::CLOCK, 0)?;
    stamp(&mut a, cell::CLOCK)?;
    out8(&mut a, port::CLOCK, 0)?;

    for value in BRING_UP {
        if value & status::DRIVER_OK != 0 {
            a.mov(dx, u32::from(port::STATUS))?;
            a.in_(al, dx)?;
            a.test(al, i32::from(status::FEATURES_OK))?;
            a.jz(refused)?;
            out16(&mut a, port::COALESCE, plan.batch)?;
        }
        out8(&mut a, port::STATUS, value)?;
    }

    let mut next_round = a.create_label();
    a.mov(ebp, plan.batches)?;
    a.set_label(&mut next_round)?;
    for bus in BUSES {
        for queue in 0..QUEUES {
            kick_batch(&mut a, bus, queue, plan)?;
            match plan.setup.is_polled() {
                true => wait_for_completion(&mut a, queue)?,
                false => wait_for_interrupt(&mut a, queue)?,
            }
        }
    }
    a.dec(ebp)?;
    a.jnz(next_round)?;

    out16(&mut a, port::COALESCE, 0)?;
    for bus in BUSES {
        for queue in 0..QUEUES {
            kick(&mut a, bus, queue, plan)?;
        }
    }
    out8(&mut a, port::STATUS, 0)?;
    for bus in BUSES {
        for queue in 0..QUEUES {
            ring(&mut a, bus, queue)?;
        }
    }
    if plan.setup.is_polled() {
        // An interrupt may be pending that the last look has made unnecessary.
        a.sti()?;
        a.nop()?;
    }
    out8(&mut a, EXIT, 0)?;

    a.set_label(&mut refused)?;
    out8(&mut a, EXIT, 1)?;
    a.assemble(ENTRY)
}

/// Data and stack at 0, ES on the memory-mapped doorbells, and the interrupt vectors.
fn set_up_cpu(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, STACK)?;
    a.mov(ax, (NOTIFY_MMIO >> 4) as u32)?;
    a.mov(es, ax)?;
    for queue in 0..QUEUES {
        let vector = u64::from(VECTORS + LINES[queue]);
        // A vector is an offset and a segment of 16 bits each; the segment is 0.
        a.mov(dword_ptr(4 * vector), HANDLERS[queue] as u32)?;
    }
    Ok(())
}

/// Unmasks our lines, edge- or level-triggered, and masks all others.
fn set_up_pic(a: &mut CodeAssembler, plan: &Plan) -> Result<(), IcedError> {
    let open = LINES.iter().fold(0, |bits, line| bits | 1 << line);
    if plan.setup.is_level() {
        out8(a, ELCR, open as u8)?;
    }
    // The initialisation command words 1 to 4, then the mask.
    for (port, value) in [
        (PIC_COMMAND, 0x11),
        (PIC_DATA, i32::from(VECTORS)),
        (PIC_DATA, 1 << 2), // the second PIC is on line 2
        (PIC_DATA, 1),      // 8086 mode
        (PIC_DATA, 0xff & !open),
    ] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    Ok(())
}

/// Kicks `queue` a batch of times.
fn kick_batch(a: &mut CodeAssembler, bus: Bus, queue: usize, plan: &Plan) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(di, cell::stamps(queue) as u32)?;
    a.mov(cx, u32::from(plan.batch))?;
    a.set_label(&mut again)?;
    stamp(a, di)?;
    a.add(di, 8)?;
    kick(a, bus, queue, plan)?;
    a.dec(cx)?;
    a.jnz(again)
}

/// One kick, counted.
fn kick(a: &mut CodeAssembler, bus: Bus, queue: usize, plan: &Plan) -> Result<(), IcedError> {
    if !plan.setup.is_polled() {
        ring(a, bus, queue)?;
        return a.inc(dword_ptr(cell::sent(queue)));
    }
    let mut done = a.create_label();
    // The count is what the device looks at. LOCK is the fence between the count and the look at what the device asks
    // for.
    a.lock().inc(dword_ptr(cell::sent(queue)))?;
    a.cmp(dword_ptr(cell::quiet(queue)), 0)?;
    a.jne(done)?;
    ring(a, bus, queue)?;
    a.inc(dword_ptr(cell::rung(queue)))?;
    a.set_label(&mut done)
}

/// The write to a doorbell. The vCPU exits here, unless KVM has the doorbell.
fn ring(a: &mut CodeAssembler, bus: Bus, queue: usize) -> Result<(), IcedError> {
    let address = notify_address(bus, queue);
    match bus {
        Bus::Pio => out16(a, address as u16, queue as u16),
        Bus::Mmio => {
            a.mov(ax, queue as u32)?;
            a.mov(word_ptr(address - NOTIFY_MMIO).es(), ax)
        }
    }
}

/// Halts until the queue has interrupted once more.
fn wait_for_interrupt(a: &mut CodeAssembler, queue: usize) -> Result<(), IcedError> {
    let awaited = AWAITED + 8 * queue as u64;
    let mut look = a.create_label();
    let mut done = a.create_label();
    a.inc(dword_ptr(awaited))?;
    a.mov(eax, dword_ptr(awaited))?;
    a.set_label(&mut look)?;
    a.cli()?;
    a.cmp(dword_ptr(cell::interrupts(queue)), eax)?;
    a.jae(done)?;
    // STI takes effect after the next instruction, so no interrupt slips in between the look and the halt.
    a.sti()?;
    a.hlt()?;
    a.jmp(look)?;
    a.set_label(&mut done)?;
    time_round_trip(a, queue)
}

/// Looks for a while whether the device is done with one more batch; then asks for an interrupt, and halts until it
/// comes.
fn wait_for_completion(a: &mut CodeAssembler, queue: usize) -> Result<(), IcedError> {
    let (used, wanted, completed) = (
        cell::used(queue),
        cell::wanted(queue),
        cell::completed(queue),
    );
    let mut begin = a.create_label();
    let mut again = a.create_label();
    let mut look = a.create_label();
    let mut late = a.create_label();
    let mut done = a.create_label();
    a.mov(ebx, dword_ptr(completed))?;
    a.inc(ebx)?;
    a.cmp(dword_ptr(used), ebx)?;
    a.jae(done)?;
    a.set_label(&mut begin)?;
    a.cli()?;
    a.rdtsc()?;
    a.mov(esi, eax)?;
    a.set_label(&mut again)?;
    a.mov(cx, LOOKS)?;
    a.set_label(&mut look)?;
    a.cmp(dword_ptr(used), ebx)?;
    a.jae(late)?;
    a.dec(cx)?;
    a.jnz(look)?;
    a.rdtsc()?;
    a.sub(eax, esi)?;
    a.cmp(eax, PATIENCE)?;
    a.jb(again)?;
    // XCHG is the fence between what is asked for and the last look.
    a.mov(eax, 1)?;
    a.xchg(dword_ptr(wanted), eax)?;
    a.cmp(dword_ptr(used), ebx)?;
    a.jae(late)?;
    // STI takes effect after the next instruction, as above.
    a.sti()?;
    a.hlt()?;
    a.jmp(begin)?;
    a.set_label(&mut late)?;
    a.mov(dword_ptr(wanted), 0)?;
    a.set_label(&mut done)?;
    time_round_trip(a, queue)?;
    a.mov(dword_ptr(completed), ebx)
}

/// Stores how long ago the batch began.
fn time_round_trip(a: &mut CodeAssembler, queue: usize) -> Result<(), IcedError> {
    let (begun, took) = (cell::stamps(queue), cell::round_trip(queue));
    a.rdtsc()?;
    a.sub(eax, dword_ptr(begun))?;
    a.sbb(edx, dword_ptr(begun + 4))?;
    a.mov(dword_ptr(took), eax)?;
    a.mov(dword_ptr(took + 4), edx)
}

/// Stores the time at a 64-bit cell.
fn stamp(a: &mut CodeAssembler, cell: impl Into<AsmMemoryOperand>) -> Result<(), IcedError> {
    let cell = cell.into();
    a.rdtsc()?;
    a.mov(dword_ptr(cell), eax)?;
    a.mov(dword_ptr(cell + 4), edx)
}

fn out8(a: &mut CodeAssembler, port: u16, value: u8) -> Result<(), IcedError> {
    a.mov(dx, u32::from(port))?;
    a.mov(al, u32::from(value))?;
    a.out(dx, al)
}

fn out16(a: &mut CodeAssembler, port: u16, value: u16) -> Result<(), IcedError> {
    a.mov(dx, u32::from(port))?;
    a.mov(ax, u32::from(value))?;
    a.out(dx, ax)
}
