//! The only `unsafe` and the only libc of the crate: one function per call, safe to call where a signature can make it so.
//!
//! Never decides, retries, logs, or allocates after clone. `host` and `daemon` call in; nothing here calls out.
#![expect(unsafe_code, reason = "this is the room that unsafe code lives in")]

mod after_clone;
pub mod confine;
pub mod fallback;
pub mod late_mount;
pub mod mount;
pub mod pid1;
mod plan;
pub mod process;
pub mod raw;
pub mod spawn;
pub mod syscall_names;
#[cfg(debug_assertions)]
mod tripwire;
