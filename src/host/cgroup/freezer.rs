//! What helpers do about frozen cgroups: let all of them go on, take unused memory from one. They have its path and nothing
//! else; a path of halsup's is never used for another worker.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::CgroupError;
use super::files::{ATTRIBUTE_BYTES_MAX, open_dir, read_attribute, write_attribute};
use super::pool::{PREFIX, children};
use super::worker::parse_leaf;

/// So much is asked for at once: who asks can be ended between two times, and within one too.
const PIECE_BYTES: u64 = 4 << 20;

/// Lets every worker of the subtree at `base` go on. What has gone meanwhile is no error; of what can, as much goes on.
///
/// # Errors
/// The first trouble, after all were tried.
pub fn thaw_all(base: &Path) -> Result<(), CgroupError> {
    let base = open(base)?;
    let (mut outcome, mut truncated) = (Ok(()), false);
    let pools = children(base.as_fd(), ".", usize::MAX, &mut truncated)?;
    for pool in pools.iter().filter(|name| name.starts_with(PREFIX)) {
        for leaf in children(base.as_fd(), pool, usize::MAX, &mut truncated)? {
            if parse_leaf(&leaf).is_some() {
                outcome = outcome.and(thaw(base.as_fd(), &format!("{pool}/{leaf}")));
            }
        }
    }
    outcome
}

fn thaw(base: BorrowedFd<'_>, name: &str) -> Result<(), CgroupError> {
    let failed =
        |source| CgroupError::Write { name: name.to_owned(), file: "cgroup.freeze", value: "0".to_owned(), source };
    match open_dir(base, name).and_then(|dir| write_attribute(dir.as_fd(), "cgroup.freeze", "0")) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(source) => Err(failed(source)),
    }
}

/// Has the kernel take from the cgroup at `path` what memory it can do without, at most what it has now, and gives how much
/// that was. May take long: the kernel writes what is dirty or to be swapped.
///
/// # Errors
/// When the kernel has no such request, or the cgroup is gone.
pub fn reclaim(path: &Path) -> Result<u64, CgroupError> {
    let dir = open(path)?;
    let name = path.display().to_string();
    let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
    let text = read_attribute(dir.as_fd(), "memory.current", &mut buffer).map_err(|source| CgroupError::Read {
        name: name.clone(),
        file: "memory.current",
        source,
    })?;
    let mut left = text.trim().parse::<u64>().unwrap_or(0);
    let mut taken = 0;
    while left > 0 {
        let piece = left.min(PIECE_BYTES);
        match write_attribute(dir.as_fd(), "memory.reclaim", &piece.to_string()) {
            Ok(()) => (left, taken) = (left - piece, taken + piece),
            // That was all that it can do without.
            Err(Errno::AGAIN) => break,
            Err(source) => {
                let (file, value) = ("memory.reclaim", piece.to_string());
                return Err(CgroupError::Write { name, file, value, source });
            }
        }
    }
    Ok(taken)
}

fn open(path: &Path) -> Result<OwnedFd, CgroupError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .map_err(|source| CgroupError::Open { name: path.display().to_string(), source })
}
