//! Back to nothing, and the remains of what was killed.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, statat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;

use super::{DIRECTORY, Error, Place, hand, step};
use crate::daemon::kept::{ENDED_LOG, Kept};
use crate::daemon::recover::end_leftovers;
use crate::host::cgroup::{CgroupRoot, Location};
use crate::host::own_dir::own_dir;
use crate::host::volume::{VOLUMES, removal};
use crate::host::workdir;
use crate::spec::DaemonSpec;

/// What was removed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Swept {
    /// Workers that ran without a daemon and were ended.
    pub orphans: usize,
    /// Volumes and restores that were never finished.
    pub unfinished: usize,
    /// Old logs of workers that there are no more, and old damaged files.
    pub files: usize,
    /// What a reset has removed, by name.
    pub removed: Vec<String>,
}

/// What a daemon that runs knows of, by name.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// All workers.
    pub workers: Vec<String>,
    /// All sessions, those that have ended and are kept among them.
    pub sessions: Vec<String>,
}

impl Known {
    /// Whether a log is of one of them.
    fn has(&self, log: &str) -> bool {
        let is_of = |name: &str| log.strip_prefix(name).is_some_and(|rest| rest.starts_with(".log"));
        self.workers.iter().any(|worker| is_of(worker))
            || self.sessions.iter().any(|session| is_of(&Kept::log_name(session)))
    }
}

/// Ends what runs without a daemon, and removes what was never finished and files older than `stale`. Beside a daemon, whose
/// business the first two are, only the last. The logs of all that it knows of stay.
///
/// # Errors
/// [`Error`].
pub fn collect(spec: &DaemonSpec, stale: Duration, known: Option<&Known>) -> Result<Swept, Error> {
    let place = Place::open(spec)?;
    let mut swept = Swept::default();
    match place.lock(spec) {
        Ok(_lock) => {
            swept.orphans = end_orphans(spec)?;
            swept.unfinished = sweep(&place)?;
        }
        Err(Error::Running { .. }) => {}
        Err(error) => return Err(error),
    }
    let before = crate::daemon::clock::wall().checked_sub(stale).unwrap_or(SystemTime::UNIX_EPOCH);
    // Which sessions that have ended are kept only a daemon says.
    let is_kept = |name: &str| known.map_or_else(|| name.contains(ENDED_LOG), |known| known.has(name));
    swept.files += remove_old(&place, "logs/workers", before, is_kept)?;
    swept.files += remove_old(&place, crate::host::state_file::QUARANTINE, before, |_| false)?;
    Ok(swept)
}

/// Removes everything that a daemon has kept: state, logs, images, and, unless they are to stay, volumes. Ends orphans first.
///
/// # Errors
/// [`Error`].
pub fn reset(spec: &DaemonSpec, keeps_volumes: bool) -> Result<Swept, Error> {
    let place = Place::open(spec)?;
    let _lock = place.lock(spec)?;
    let mut swept = Swept { orphans: end_orphans(spec)?, ..Swept::default() };
    let stays = |name: &str| name == "lock" || keeps_volumes && name == VOLUMES;
    swept.removed.extend(empty(place.state.as_fd(), &spec.state_dir, stays)?);
    let runtime = own_dir(&spec.runtime_dir, 0o755)?;
    swept.removed.extend(empty(runtime.as_fd(), &spec.runtime_dir, |name| name == "lock")?);
    Ok(swept)
}

/// Ends the workers that an earlier daemon left, with their cgroups.
fn end_orphans(spec: &DaemonSpec) -> Result<usize, Error> {
    let location = Location::discover(&spec.instance, spec.cgroup.as_deref())?;
    if !location.path().is_dir() {
        return Ok(0);
    }
    let cgroups = CgroupRoot::prepare(location)?;
    let Some(_lock) = cgroups.lock()? else {
        return Err(Error::Running { state_dir: spec.state_dir.display().to_string() });
    };
    let walk = cgroups.walk()?;
    let count = walk.workers.len();
    end_leftovers(&cgroups, &walk.workers, &walk.pools)
        .map_err(|error| Error::Orphans { reason: crate::daemon::birth::chain(&error) })?;
    cgroups.release()?;
    Ok(count)
}

/// Removes what was never finished and nobody holds.
fn sweep(place: &Place) -> Result<usize, Error> {
    let left = place.store.unfinished()?;
    removal::remove(&place.store, &left)?;
    let mut count = left.len();
    if let Some(held) = hand::free(place.state.as_fd(), "restore.tmp")? {
        workdir::remove(place.state.as_fd(), "restore.tmp")?;
        drop(held);
        count += 1;
    }
    Ok(count)
}

/// Removes all entries of a directory but those that stay; their paths.
fn empty(dir: BorrowedFd<'_>, path: &Path, stays: impl Fn(&str) -> bool) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for name in names(dir, path)? {
        if !stays(&name) {
            workdir::remove(dir, &name)?;
            removed.push(path.join(name).display().to_string());
        }
    }
    removed.sort();
    Ok(removed)
}

fn names(dir: BorrowedFd<'_>, path: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(step("list", path.display()))? {
        let entry = entry.map_err(step("list", path.display()))?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}

/// Removes the files in a directory that were last written before a time.
fn remove_old(place: &Place, path: &str, before: SystemTime, is_kept: impl Fn(&str) -> bool) -> Result<usize, Error> {
    let before = before.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let dir = match rustix::fs::openat(&place.state, path, DIRECTORY, rustix::fs::Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(0),
        Err(errno) => return Err(step("open", path)(errno)),
    };
    let mut count = 0;
    for name in names(dir.as_fd(), Path::new(path))? {
        let Ok(stat) = statat(&dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let is_old = u64::try_from(stat.st_mtime).unwrap_or(0) < before;
        if is_old && !is_kept(&name) && unlinkat(&dir, name.as_str(), AtFlags::empty()).is_ok() {
            count += 1;
        }
    }
    Ok(count)
}
