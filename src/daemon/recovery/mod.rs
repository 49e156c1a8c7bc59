//! What is done to a state directory by hand: volumes out of archives and into them, backup, restore, reset.
//!
//! The command line calls in here, as root, with or without a daemon beside it; no loop is turned. Archives are written and
//! read by a process that is shut in (`archive`). Whatever is made appears by one rename, and what a kill leaves is told by
//! its name and its lock: [`sweep`] removes what nobody holds. A restore, a reset and the end of orphans need the lock of the
//! state directory, which a daemon holds as long as it lives.

mod backup;
mod clean;
mod hand;
mod record;
mod volume;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat, openat};
use rustix::io::Errno;

pub use backup::{Backup, Made, Restored, back_up, list, restore};
pub use clean::{Known, Swept, collect, reset};
pub use record::record;
pub use volume::{Imported, export, import};

use super::birth::{IDS, RANGES};
use crate::archive::{Job, Limits, Pack, Packed, Reading, Report, StartError, Task, Totals};
use crate::host::cgroup::CgroupError;
use crate::host::identity::MAPPED_RANGE;
use crate::host::own_dir::{OwnDirError, own_dir};
use crate::host::volume::{Store, VolumeError};
use crate::host::workdir::WorkDirError;
use crate::spec::{DaemonSpec, VolumeName};

/// It could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One operation on one object.
    #[error("{operation} {object}")]
    Step {
        /// What was being done.
        operation: &'static str,
        /// To what.
        object: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It is not done, and why.
    #[error("{reason}")]
    Refused {
        /// As a sentence.
        reason: String,
    },
    /// There is no such thing.
    #[error("{what} does not exist")]
    Missing {
        /// With its kind.
        what: String,
    },
    /// A daemon runs.
    #[error("a daemon uses {state_dir}: end it first, by halsup daemon stop")]
    Running {
        /// Its state directory.
        state_dir: String,
    },
    /// The state directory.
    #[error("open the state directory")]
    OwnDir(#[from] OwnDirError),
    /// Volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The process that reads or writes archives.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Removing a tree.
    #[error("remove what is not needed any more")]
    Remove(#[from] WorkDirError),
    /// Cgroups.
    #[error("look at the cgroups of workers")]
    Cgroup(#[from] CgroupError),
    /// Processes that an earlier daemon left.
    #[error("end what an earlier daemon left: {reason}")]
    Orphans {
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// Whether what was named is not there.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Volume(VolumeError::Missing { .. }))
    }

    fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}

fn step<E: Into<io::Error>>(operation: &'static str, object: impl std::fmt::Display) -> impl FnOnce(E) -> Error {
    let object = object.to_string();
    move |source| Error::Step { operation, object, source: source.into() }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The state directory and what is in it.
struct Place {
    state: OwnedFd,
    store: Store,
}

impl Place {
    fn open(spec: &DaemonSpec) -> Result<Self, Error> {
        let state = own_dir(&spec.state_dir, 0o700)?;
        let store = Store::open(state.as_fd())?;
        Ok(Self { state, store })
    }

    /// Takes the lock that a daemon holds.
    fn lock(&self, spec: &DaemonSpec) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = openat(&self.state, "lock", flags, Mode::RUSR | Mode::WUSR);
        let lock = lock.map_err(step("open", spec.state_dir.join("lock").display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(Errno::WOULDBLOCK) => Err(Error::Running { state_dir: spec.state_dir.display().to_string() }),
            Err(errno) => Err(step("lock", spec.state_dir.display())(errno)),
        }
    }
}

/// A range of ids for a process that is shut in: above all that a daemon gives to workers.
fn range(spec: &DaemonSpec) -> u32 {
    const TURNS: u32 = 64;
    let number = RANGES.saturating_add(std::process::id() % TURNS);
    spec.uid_base.saturating_add(IDS).saturating_add(number.saturating_mul(MAPPED_RANGE))
}

/// What came of an archive.
enum Outcome {
    Unpacked(Totals),
    Packed(Packed),
}

/// Packs a directory into a file.
fn pack(spec: &DaemonSpec, dir: BorrowedFd<'_>, out: BorrowedFd<'_>, wanted: Pack) -> Result<Packed, Error> {
    let limits = Limits { bytes: 1 << 50, ..Limits::default() };
    match run(spec, out, dir, Task::Pack(wanted), limits)? {
        Outcome::Packed(packed) => Ok(packed),
        Outcome::Unpacked(_) => Err(Error::refused("the packer unpacked")),
    }
}

/// Unpacks an archive into an empty directory.
fn unpack(spec: &DaemonSpec, archive: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> Result<Totals, Error> {
    match run(spec, archive, dir, Task::Tree, Limits::default())? {
        Outcome::Unpacked(totals) => Ok(totals),
        Outcome::Packed(_) => Err(Error::refused("the reader packed")),
    }
}

fn run(
    spec: &DaemonSpec,
    archive: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    task: Task,
    limits: Limits,
) -> Result<Outcome, Error> {
    let job = Job { parent: std::process::id(), task, limits };
    let reading = Reading::start(archive, dir, range(spec), &job)?;
    let mut last = None;
    let ended = loop {
        let mut polled =
            [PollFd::from_borrowed_fd(reading.socket(), PollFlags::IN), PollFd::new(reading.pidfd(), PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(step("wait for", "the process that has the archive")(errno)),
        }
        while let Some(report) = reading.report() {
            last = Some(report);
        }
        if let Some(ended) = reading.ended().map_err(step("wait for", "the process that has the archive"))? {
            // What it said before it ended may have come after the look above.
            while let Some(report) = reading.report() {
                last = Some(report);
            }
            break ended;
        }
    };
    match last {
        Some(Report::Done(done)) if ended.code == Some(0) => Ok(Outcome::Unpacked(done.totals)),
        Some(Report::Packed(packed)) if ended.code == Some(0) => Ok(Outcome::Packed(packed)),
        Some(Report::Refused(sentence)) => Err(Error::refused(sentence)),
        Some(Report::Done(_) | Report::Packed(_) | Report::Progress { .. }) | None => {
            let complaint = ended.stderr.trim();
            let why = if complaint.is_empty() { "it was ended before it was done" } else { complaint };
            Err(Error::refused(format!("the process that has the archive failed: {why}")))
        }
    }
}

/// An archive that is being made: nameless until it is whole, so that nothing is left of one that is not. Where the file
/// system has no nameless files it has a name that is removed, unless a kill comes first.
struct Nameless {
    file: OwnedFd,
    dir: OwnedFd,
    name: String,
    /// What it is called meanwhile.
    partial: Option<String>,
}

impl Nameless {
    /// For `path`, where nothing may be yet.
    fn make(path: &Path) -> Result<Self, Error> {
        let failed = |source| step("write", path.display())(source);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::refused(format!("{} is no name of a file", path.display())))?.to_owned();
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, open, Mode::empty()).map_err(failed)?;
        if rustix::fs::statat(&dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(failed(Errno::EXIST));
        }
        let mode = Mode::RUSR | Mode::WUSR;
        let (file, partial) = match openat(&dir, ".", OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
            Ok(file) => (file, None),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let partial = format!(".{name}.partial");
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                (openat(&dir, partial.as_str(), flags, mode).map_err(failed)?, Some(partial))
            }
            Err(errno) => return Err(failed(errno)),
        };
        Ok(Self { file, dir, name, partial })
    }

    /// Gives it its name.
    fn appear(self) -> Result<(), Error> {
        let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        let (dir, name) = (&self.dir, self.name.as_str());
        let linked = match &self.partial {
            None => linkat(CWD, own, dir, name, AtFlags::SYMLINK_FOLLOW),
            Some(partial) => linkat(dir, partial.as_str(), dir, name, AtFlags::empty()),
        };
        linked.map_err(step("write", name))?;
        rustix::fs::fsync(dir).map_err(step("write", name))
    }
}

impl Drop for Nameless {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let removed = rustix::fs::unlinkat(&self.dir, partial.as_str(), AtFlags::empty());
            super::log::best_effort(removed, "it is of no use, and says so by its name");
        }
    }
}

/// The time, for a name.
fn stamp(now: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(now).to_string();
    text.replace([':', '-'], "").replace('T', "-").trim_end_matches('Z').to_owned()
}

/// Volumes by name, all where none is named; refuses one that is not there.
fn chosen(store: &Store, wanted: &[VolumeName]) -> Result<Vec<VolumeName>, Error> {
    if wanted.is_empty() {
        return Ok(store.names()?);
    }
    for name in wanted {
        if !store.exists(name)? {
            return Err(Error::Missing { what: format!("volume {name}") });
        }
    }
    Ok(wanted.to_vec())
}
