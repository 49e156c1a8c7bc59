//! The mount calls that have no safe wrapper elsewhere.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::raw;

/// `struct mount_attr` of mount_setattr(2).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE` and the like, or 0.
    pub propagation: u64,
    /// For `MOUNT_ATTR_IDMAP`: a user namespace's descriptor.
    pub userns_fd: u64,
}

/// Read-only.
pub const ATTR_RDONLY: u64 = 0x1;
/// Set-user-id bits and file capabilities have no effect.
pub const ATTR_NOSUID: u64 = 0x2;
/// Device nodes cannot be opened.
pub const ATTR_NODEV: u64 = 0x4;
/// Programs cannot be executed.
pub const ATTR_NOEXEC: u64 = 0x8;
/// For [`MountAttr::propagation`]: what is mounted below shows nowhere else, nor does what is mounted elsewhere show here.
pub const PRIVATE: u64 = 1 << 18;
/// Ids are mapped through a user namespace.
pub const ATTR_IDMAP: u64 = 0x10_0000;

/// mount_setattr(2) on the mount that `mount` is open on, with all below it if `recursive`.
///
/// # Errors
/// What the kernel says; EINVAL where a filesystem cannot be id-mapped.
pub fn mount_setattr(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    const AT_EMPTY_PATH: usize = 0x1000;
    const AT_RECURSIVE: usize = 0x8000;
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let empty: &CStr = c"";
    let attr_at = std::ptr::from_ref(attr) as usize;
    // SAFETY: the path ends with NUL, and the kernel reads size_of::<MountAttr>() bytes of `attr`.
    let returned = unsafe {
        raw::syscall(
            raw::nr::MOUNT_SETATTR,
            raw::fd_arg(mount.as_raw_fd()),
            empty.as_ptr() as usize,
            flags,
            attr_at,
            size_of::<MountAttr>(),
            0,
        )
    };
    raw::check(returned).map(|_| ()).map_err(|e| io::Error::from_raw_os_error(e.0))
}
