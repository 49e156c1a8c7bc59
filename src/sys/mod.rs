//! The only `unsafe` and the only libc: one function per system call or table, each as small as it can be.
//!
//! Never logs, retries or decides. `host` calls in here and makes it safe.

pub mod syscall_names;
