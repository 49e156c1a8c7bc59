//! Removes volumes that were set aside; for a helper process, since a volume may hold anything.

use rustix::fs::{FlockOperation, Mode, flock, openat};
use rustix::io::Errno;

use super::{DIRECTORY, Store, VolumeError};
use crate::host::workdir;

/// Removes `names` of [`Store::unfinished`], however long that takes.
///
/// # Errors
/// The first that cannot be removed, after all were tried.
pub fn remove(store: &Store, names: &[String]) -> Result<(), VolumeError> {
    let mut failure = None;
    for name in names {
        if is_held(store, name) {
            // Somebody makes a volume of it.
            continue;
        }
        if let Err(error) = workdir::remove(store.dir(), name) {
            failure.get_or_insert(VolumeError::step("remove", name)(std::io::Error::other(error)));
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Whether somebody holds the lock of a directory, as whoever works on one does.
fn is_held(store: &Store, name: &str) -> bool {
    let Ok(dir) = openat(store.dir(), name, DIRECTORY, Mode::empty()) else { return false };
    flock(&dir, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}
