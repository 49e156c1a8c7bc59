//! Everything in a volume, one by one: through directory descriptors, with nothing followed and no other mount entered.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, Stat, openat, statat};
use rustix::io::Errno;

use super::{DIRECTORY, Store, VolumeError};
use crate::spec::VolumeName;

/// Gives the volume's own directory and everything below it to `visit`: the directory it is in, its name there, and what it
/// is. What disappears meanwhile is left out; ENOENT of `visit` is that too.
///
/// # Errors
/// [`VolumeError`].
pub(super) fn each(
    store: &Store,
    name: &VolumeName,
    mut visit: impl FnMut(BorrowedFd<'_>, &CStr, &Stat) -> Result<(), Errno>,
) -> Result<(), VolumeError> {
    let data = store.data(name)?;
    let failed = |errno| VolumeError::step("read", name.as_str())(errno);
    let top = rustix::fs::fstat(&data).map_err(failed)?;
    visit(data.as_fd(), c".", &top).map_err(failed)?;
    // Directories by their names from the top: a descriptor for each would be too many in a deep tree.
    let mut left: Vec<Vec<CString>> = vec![Vec::new()];
    while let Some(way) = left.pop() {
        match directory(data.as_fd(), top.st_dev, &way, &mut left, &mut visit) {
            // Gone, or something else, since it was listed.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

fn directory(
    top: BorrowedFd<'_>,
    device: u64,
    way: &[CString],
    left: &mut Vec<Vec<CString>>,
    visit: &mut impl FnMut(BorrowedFd<'_>, &CStr, &Stat) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut dir = openat(top, ".", DIRECTORY, Mode::empty())?;
    for name in way {
        dir = openat(&dir, name, DIRECTORY, Mode::empty())?;
    }
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        match visit(dir.as_fd(), name, &stat) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_dev == device {
            left.push(way.iter().cloned().chain([name.to_owned()]).collect());
        }
    }
    Ok(())
}
