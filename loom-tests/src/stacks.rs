//! The stacks of loom's threads, kept for the next interleaving.
//!
//! loom maps a stack for each thread of each interleaving, protects the stack's last page and unmaps the stack again. A
//! model spent more than half of its time there. So `mmap` and `munmap` are defined here, which take precedence over
//! those of the C library, and keep what is mapped as a stack. The last page of a stack stays protected. (The C library
//! maps the stacks of the tests' own threads without these.)

use libc::{MAP_STACK, SYS_mmap, SYS_munmap, c_int, c_void, off_t, size_t};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Stack {
    at: usize,
    size: usize,
    used: bool,
}

static STACKS: Mutex<Vec<Stack>> = Mutex::new(Vec::new());

fn stacks() -> MutexGuard<'static, Vec<Stack>> {
    STACKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
///
/// As `mmap(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    at: *mut c_void,
    size: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let is_stack = at.is_null() && flags & MAP_STACK != 0;
    let mut stacks = is_stack.then(stacks);
    if let Some(stacks) = &mut stacks {
        let fits = |stack: &&mut Stack| !stack.used && stack.size == size;
        if let Some(stack) = stacks.iter_mut().find(fits) {
            stack.used = true;
            return stack.at as *mut c_void;
        }
    }
    // SAFETY: as promised.
    let at = unsafe { libc::syscall(SYS_mmap, at, size, protection, flags, fd, offset) } as usize;
    if let Some(stacks) = &mut stacks {
        let used = true;
        stacks.push(Stack { at, size, used });
    }
    at as *mut c_void
}

/// # Safety
///
/// As `munmap(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(at: *mut c_void, size: size_t) -> c_int {
    let is_it = |stack: &&mut Stack| stack.at == at as usize && stack.size == size;
    if let Some(stack) = stacks().iter_mut().find(is_it) {
        stack.used = false;
        return 0;
    }
    // SAFETY: as promised.
    unsafe { libc::syscall(SYS_munmap, at, size) as c_int }
}
