//! What a process takes from itself before it reads what others wrote: rights on files by Landlock, system calls by a filter.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::raw;

const LANDLOCK_CREATE_RULESET: usize = 444;
const LANDLOCK_ADD_RULE: usize = 445;
const LANDLOCK_RESTRICT_SELF: usize = 446;

/// To execute a file.
pub const LANDLOCK_EXECUTE: u64 = 1;
/// To make a character device.
pub const LANDLOCK_MAKE_CHAR: u64 = 1 << 6;
/// To make a socket.
pub const LANDLOCK_MAKE_SOCK: u64 = 1 << 9;
/// To make a block device.
pub const LANDLOCK_MAKE_BLOCK: u64 = 1 << 11;
/// To speak to devices, from version 5 on.
pub const LANDLOCK_IOCTL_DEV: u64 = 1 << 15;

/// All that a version of Landlock can take away.
const fn handled(version: isize) -> u64 {
    match version {
        ..2 => 0,
        2 => (1 << 14) - 1,
        3 | 4 => (1 << 15) - 1,
        5.. => (1 << 16) - 1,
    }
}

/// Leaves this process all rights but `taken` on what is below `dir`, and none on anything else. `false`: this kernel cannot,
/// or not without taking hard links too (before Linux 5.19).
///
/// # Errors
/// What the kernel says.
pub fn landlock(dir: BorrowedFd<'_>, taken: u64) -> io::Result<bool> {
    const VERSION: usize = 1;
    // SAFETY: without an attribute and with this flag, the call only returns a number.
    let version = unsafe { raw::syscall(LANDLOCK_CREATE_RULESET, 0, 0, VERSION, 0, 0, 0) };
    let handled = handled(version);
    if handled == 0 {
        return Ok(false);
    }
    let attribute = handled;
    // SAFETY: the kernel reads the eight bytes of the attribute's first field, all that version 2 has.
    let made = unsafe { raw::syscall(LANDLOCK_CREATE_RULESET, (&raw const attribute) as usize, 8, 0, 0, 0, 0) };
    let number = raw::check(made).map_err(os)?;
    // SAFETY: the call succeeded, so it returned a new descriptor that nothing else owns.
    let rules = unsafe { OwnedFd::from_raw_fd(raw::fd_from(number)) };
    // `struct landlock_path_beneath_attr`, which is packed: eight bytes of rights, four of the descriptor.
    let mut beneath = [0_u8; 12];
    let (rights, fd) = ((handled & !taken).to_ne_bytes(), dir.as_raw_fd().to_ne_bytes());
    for (to, from) in beneath.iter_mut().zip(rights.iter().chain(&fd)) {
        *to = *from;
    }
    const PATH_BENEATH: usize = 1;
    let (at, number) = (beneath.as_ptr() as usize, raw::fd_arg(rules.as_raw_fd()));
    // SAFETY: the kernel reads the twelve bytes of a packed `landlock_path_beneath_attr`.
    raw::check(unsafe { raw::syscall(LANDLOCK_ADD_RULE, number, PATH_BENEATH, at, 0, 0, 0) }).map_err(os)?;
    // SAFETY: the call takes numbers only and concerns this process.
    raw::check(unsafe { raw::syscall(LANDLOCK_RESTRICT_SELF, number, 0, 0, 0, 0, 0) }).map_err(os)?;
    Ok(true)
}

/// Installs a system call filter on this thread for good; each element is the eight bytes of one `struct sock_filter`.
/// `no_new_privs` has to be set.
///
/// # Errors
/// What the kernel says; EINVAL for what is no program.
pub fn filter(program: &[u64]) -> io::Result<()> {
    const SET_MODE_FILTER: usize = 1;
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `len` instructions of eight bytes from a slice that has as many.
    let set = unsafe { raw::syscall(raw::nr::SECCOMP, SET_MODE_FILTER, 0, (&raw const filter) as usize, 0, 0, 0) };
    raw::check(set).map(drop).map_err(os)
}

fn os(errno: raw::Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.0)
}
