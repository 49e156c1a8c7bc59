//! What a volume holds, counted; for a helper process, since there may be millions of files.
//!
//! Nothing is followed and no other mount is entered. A file with several names counts once. What disappears while it is
//! counted is not counted.

use std::collections::BTreeSet;

use rustix::fs::{FileType, Stat};
use serde::{Deserialize, Serialize};

use super::{Store, VolumeError, walk};
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
    let mut usage = Usage::default();
    // Inodes with several names.
    let mut seen = BTreeSet::new();
    walk::each(store, name, |_, _, stat| {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory || stat.st_nlink < 2 || seen.insert(stat.st_ino) {
            usage.add(stat);
        }
        Ok(())
    })?;
    Ok(usage)
}

impl Usage {
    fn add(&mut self, stat: &Stat) {
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(512));
        self.inodes = self.inodes.saturating_add(1);
        self.foreign = self.foreign.saturating_add(u64::from(stat.st_uid != 0 || stat.st_gid != 0));
    }
}
