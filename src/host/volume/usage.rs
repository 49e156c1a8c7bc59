//! What a volume holds, counted; for a helper process, since there may be millions of files.
//!
//! Nothing is followed and no other mount is entered. A file with several names counts once. What disappears while it is
//! counted is not counted.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{DIRECTORY, Store, VolumeError};
use crate::spec::VolumeName;

/// What is on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on the disk, not the lengths of files.
    pub bytes: u64,
    /// Files and directories, the volume's own among them.
    pub inodes: u64,
    /// Those whose owner is not root on the disk: workers whose identity is not `mapped` cannot change them.
    pub foreign: u64,
}

/// Counts a volume.
///
/// # Errors
/// [`VolumeError`].
pub fn count(store: &Store, name: &VolumeName) -> Result<Usage, VolumeError> {
    let data = store.data(name)?;
    let stat = rustix::fs::fstat(&data).map_err(VolumeError::step("look at", name.as_str()))?;
    let mut counted = Counted { usage: Usage::default(), seen: BTreeSet::new(), device: stat.st_dev };
    counted.add(&stat);
    // Directories by their path of names: a descriptor for each would be too many in a deep tree.
    let mut left: Vec<Vec<CString>> = vec![Vec::new()];
    while let Some(way) = left.pop() {
        match counted.directory(data.as_fd(), &way, &mut left) {
            // Gone, or something else, since it was listed.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(VolumeError::step("count", name.as_str())(errno)),
        }
    }
    Ok(counted.usage)
}

struct Counted {
    usage: Usage,
    /// Inodes with several names.
    seen: BTreeSet<u64>,
    device: u64,
}

impl Counted {
    fn directory(&mut self, top: BorrowedFd<'_>, way: &[CString], left: &mut Vec<Vec<CString>>) -> Result<(), Errno> {
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
            self.add(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_dev == self.device {
                left.push(way.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
        Ok(())
    }

    fn add(&mut self, stat: &rustix::fs::Stat) {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_directory && stat.st_nlink > 1 && !self.seen.insert(stat.st_ino) {
            return;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.usage.bytes = self.usage.bytes.saturating_add(blocks.saturating_mul(512));
        self.usage.inodes = self.usage.inodes.saturating_add(1);
        self.usage.foreign = self.usage.foreign.saturating_add(u64::from(stat.st_uid != 0 || stat.st_gid != 0));
    }
}
