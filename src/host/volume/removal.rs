//! Removes volumes that were set aside; for a helper process, since a volume may hold anything.

use super::{Store, VolumeError};
use crate::host::workdir;

/// Removes `names` of [`Store::unfinished`], however long that takes.
///
/// # Errors
/// The first that cannot be removed, after all were tried.
pub fn remove(store: &Store, names: &[String]) -> Result<(), VolumeError> {
    let mut failure = None;
    for name in names {
        if let Err(error) = workdir::remove(store.dir(), name) {
            failure.get_or_insert(VolumeError::step("remove", name)(std::io::Error::other(error)));
        }
    }
    failure.map_or(Ok(()), Err)
}
