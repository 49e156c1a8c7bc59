//! The measured program: reads the monotonic clock as its first act and writes it, eight bytes, to the FIFO that its first
//! argument names. With a second argument it then stays until a signal ends it.
//!
//! No std, no libc: nothing of its own stands between exec and the clock. Built by `build.rs`, carried by the bench.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const WRITE: usize = 1;
const OPEN: usize = 2;
const PAUSE: usize = 34;
const CLOCK_GETTIME: usize = 228;
const EXIT_GROUP: usize = 231;

// The kernel enters with the stack pointer at argc, which argv follows.
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "and rsp, -16", "call {start}", "ud2", start = sym start);

/// # Safety
/// The arguments must be what the call expects.
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize) -> isize {
    let result: isize;
    // SAFETY: the caller vouches for the arguments; the registers named are all that change.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, lateout("rcx") _,
            lateout("r11") _, options(nostack));
    }
    result
}

unsafe extern "C" fn start(stack: *const usize) -> ! {
    const MONOTONIC: usize = 1;
    let mut time = [0_u64; 2];
    // SAFETY: the kernel writes one timespec.
    unsafe { syscall(CLOCK_GETTIME, MONOTONIC, time.as_mut_ptr() as usize, 0) };
    let nanoseconds = time[0] * 1_000_000_000 + time[1];
    // SAFETY: argc stands where the kernel put the stack pointer; two words of argv or its null pointer follow it.
    let (argc, fifo) = unsafe { (stack.read(), stack.add(2).read()) };
    if argc > 1 {
        // SAFETY: argv[1] is a string of the kernel's; 1 is O_WRONLY.
        let fd = unsafe { syscall(OPEN, fifo, 1, 0) };
        // SAFETY: the kernel reads eight bytes.
        unsafe { syscall(WRITE, fd.cast_unsigned(), (&raw const nanoseconds) as usize, 8) };
    }
    while argc > 2 {
        // SAFETY: pause takes nothing.
        unsafe { syscall(PAUSE, 0, 0, 0) };
    }
    loop {
        // SAFETY: exit_group takes a number and does not return.
        unsafe { syscall(EXIT_GROUP, 0, 0, 0) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
