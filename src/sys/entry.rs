//! Where the kernel enters `halsup-init`, and the four memory functions that the compiler may call.

use core::arch::global_asm;
use core::ffi::c_void;

// The kernel enters with the stack pointer at argc, aligned to 16; a call from there keeps the ABI's alignment.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {start}", "ud2", start = sym start);

extern "C" fn start() -> ! {
    super::raw::exit(crate::init::run())
}

/// # Safety
/// As C's memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    // SAFETY: the caller vouches for both ranges; the registers named are all that change.
    unsafe { core::arch::asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}

/// # Safety
/// As C's memset.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut c_void, byte: i32, bytes: usize) -> *mut c_void {
    // SAFETY: the caller vouches for the range; the registers named are all that change.
    unsafe { core::arch::asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") byte.to_le_bytes()[0]) };
    to
}

/// # Safety
/// As C's memcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const c_void, right: *const c_void, bytes: usize) -> i32 {
    let (left, right) = (left.cast::<u8>(), right.cast::<u8>());
    let mut at = 0;
    while at < bytes {
        // SAFETY: the caller vouches for `bytes` bytes on both sides.
        let (a, b) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        at += 1;
    }
    0
}

/// # Safety
/// As C's bcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const c_void, right: *const c_void, bytes: usize) -> i32 {
    // SAFETY: as the caller vouches.
    unsafe { memcmp(left, right, bytes) }
}
