//! The `halsup-init` program: the crate's `init` room built alone, static, without std and libc start-up.
//!
//! `build.rs` compiles this file and the daemon carries the result; it is never installed as a file of its own.
#![no_std]
#![no_main]
#![allow(dead_code, reason = "the shared files have calls that only the daemon makes")]

#[path = "../protocol"]
mod protocol {
    pub mod init;
}
#[path = "../sys"]
mod sys {
    mod entry;
    pub mod pid1;
    pub mod raw;
}
#[path = "mod.rs"]
mod init;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::raw::exit(127)
}
