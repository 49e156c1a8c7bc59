//! Gives everything in a volume to root on the disk; for a helper process.
//!
//! Whoever put files of other owners into a volume, by hand or from an archive, put them where no worker can change them.

use rustix::fs::{AtFlags, Gid, Uid, chownat};

use super::{Store, VolumeError, walk};
use crate::spec::VolumeName;

/// Changes every owner that is not root.
///
/// # Errors
/// [`VolumeError`].
pub fn give_to_root(store: &Store, name: &VolumeName) -> Result<(), VolumeError> {
    walk::each(store, name, |dir, entry, stat| {
        if stat.st_uid == 0 && stat.st_gid == 0 {
            return Ok(());
        }
        chownat(dir, entry, Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::SYMLINK_NOFOLLOW)
    })
}
