//! One attribute file of a cgroup, read or written through the cgroup's directory descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::{Errno, pread, retry_on_intr, write};

/// Enough for every attribute but `cgroup.procs`.
pub(super) const ATTRIBUTE_BYTES_MAX: usize = 8192;

/// A cgroup directory below `parent`, for lookups and `CLONE_INTO_CGROUP`; not for listing.
pub(super) fn open_dir(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// As [`open_dir`], made first where it does not exist.
pub(super) fn ensure_dir(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => open_dir(parent, name),
        Err(errno) => Err(errno),
    }
}

/// Writes `value` in one call, as the kernel wants it.
pub(super) fn write_attribute(dir: BorrowedFd<'_>, file: &str, value: &str) -> Result<(), Errno> {
    let fd = openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    write_all(fd.as_fd(), value)
}

/// Writes `value`, then reads the file back through the same descriptor into `buffer`.
pub(super) fn write_and_read_back<'b>(
    dir: BorrowedFd<'_>,
    file: &str,
    value: &str,
    buffer: &'b mut [u8],
) -> Result<&'b str, Errno> {
    let fd = openat(dir, file, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    write_all(fd.as_fd(), value)?;
    read_open(fd.as_fd(), buffer)
}

/// Reads a whole attribute into `buffer`; `FBIG` if it does not fit, `ILSEQ` if it is not text.
pub(super) fn read_attribute<'b>(dir: BorrowedFd<'_>, file: &str, buffer: &'b mut [u8]) -> Result<&'b str, Errno> {
    let fd = open_read(dir, file)?;
    read_open(fd.as_fd(), buffer)
}

/// An attribute opened for reading, to be kept.
pub(super) fn open_read(dir: BorrowedFd<'_>, file: &str) -> Result<OwnedFd, Errno> {
    openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

/// As [`read_attribute`], from the beginning of an open file: the kernel makes the text anew for every read at 0.
pub(super) fn read_open<'b>(fd: BorrowedFd<'_>, buffer: &'b mut [u8]) -> Result<&'b str, Errno> {
    let mut filled = 0;
    loop {
        let room = buffer.get_mut(filled..).unwrap_or_default();
        if room.is_empty() {
            return Err(Errno::FBIG);
        }
        let offset = u64::try_from(filled).unwrap_or(u64::MAX);
        match retry_on_intr(|| pread(fd, &mut *room, offset))? {
            0 => break,
            count => filled += count,
        }
    }
    let bytes = buffer.get(..filled).unwrap_or_default();
    std::str::from_utf8(bytes).or(Err(Errno::ILSEQ))
}

/// Writes `value` in one call to an attribute that is open.
pub(super) fn write_open(fd: BorrowedFd<'_>, value: &str) -> Result<(), Errno> {
    write_all(fd, value)
}

fn write_all(fd: BorrowedFd<'_>, value: &str) -> Result<(), Errno> {
    let written = retry_on_intr(|| write(fd, value.as_bytes()))?;
    if written == value.len() { Ok(()) } else { Err(Errno::IO) }
}
