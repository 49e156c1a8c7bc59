//! A volume as one worker sees it: a detached mount, on which root's files are the worker's.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::mount::{OpenTreeFlags, open_tree};

use super::VolumeError;
use crate::sys::mount::{ATTR_IDMAP, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, MountAttr, mount_setattr};

/// Who root's files belong to on a mount.
#[derive(Debug, Clone, Copy)]
pub enum Mapped<'fd> {
    /// Root itself: the worker is the host's root.
    No,
    /// Whoever is root in this user namespace.
    Through(BorrowedFd<'fd>),
}

/// Makes a mount of `data` that is nowhere yet.
///
/// # Errors
/// [`VolumeError::NoIdMapping`], [`VolumeError::Step`].
pub fn tree(name: &str, data: BorrowedFd<'_>, writable: bool, mapped: Mapped<'_>) -> Result<OwnedFd, VolumeError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(data, "", flags).map_err(VolumeError::step("mount", name))?;
    let set = ATTR_NOSUID | ATTR_NODEV | if writable { 0 } else { ATTR_RDONLY };
    mount_setattr(tree.as_fd(), &MountAttr { set, ..MountAttr::default() }, false)
        .map_err(VolumeError::step("restrict the mount of", name))?;
    if let Mapped::Through(userns) = mapped {
        let userns_fd = u64::from(userns.as_raw_fd().unsigned_abs());
        mount_setattr(tree.as_fd(), &MountAttr { set: ATTR_IDMAP, userns_fd, ..MountAttr::default() }, false)
            .map_err(|source| VolumeError::NoIdMapping { name: name.to_owned(), source })?;
    }
    Ok(tree)
}
