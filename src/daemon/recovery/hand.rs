//! A directory that somebody works on: held by a lock, so that whoever sweeps leaves it alone, and removed if it is not
//! finished.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, flock, mkdirat, openat};
use rustix::io::Errno;

use super::{DIRECTORY, Error, step};
use crate::host::workdir;

/// Such a directory.
pub(super) struct InHand<'d> {
    parent: BorrowedFd<'d>,
    name: String,
    dir: OwnedFd,
}

impl<'d> InHand<'d> {
    /// Makes one, in the place of one that nobody holds.
    pub(super) fn make(parent: BorrowedFd<'d>, name: String) -> Result<Self, Error> {
        if let Some(left) = free(parent, &name)? {
            workdir::remove(parent, &name)?;
            drop(left);
        }
        mkdirat(parent, name.as_str(), Mode::RWXU).map_err(step("make", &name))?;
        let dir = openat(parent, name.as_str(), DIRECTORY, Mode::empty()).map_err(step("open", &name))?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive).map_err(step("lock", &name))?;
        Ok(Self { parent, name, dir })
    }

    pub(super) const fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Removes it and all that is in it.
    pub(super) fn discard(self) -> Result<(), Error> {
        Ok(workdir::remove(self.parent, &self.name)?)
    }
}

/// Takes hold of a directory that was left; `None` where there is none.
///
/// # Errors
/// [`Error::Refused`] if somebody works on it.
pub(super) fn free(parent: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>, Error> {
    let dir = match openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(step("open", name)(errno)),
    };
    match flock(dir.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(dir)),
        Err(Errno::WOULDBLOCK) => Err(Error::refused(format!("somebody else works on {name}"))),
        Err(errno) => Err(step("lock", name)(errno)),
    }
}
