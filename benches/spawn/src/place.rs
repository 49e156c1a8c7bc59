//! Where the bench works: a directory with the measured program and its FIFO, and the clock that all rows share.
//!
//! Everything that is measured writes into the one FIFO, so every row is measured by the same instrument.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::time::{ClockId, clock_gettime};

use crate::Result;

static FIRST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/first"));

/// Nothing that is measured takes longer; whoever does has hung.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where [`Place::shared`] appears inside whatever isolates.
pub const INSIDE: &str = "/run/bench";

/// Nanoseconds of the monotonic clock, which the measured program reads too.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Stands still until `at`, a value of [`now`].
pub fn wait_until(at: u64) {
    let left = Duration::from_nanos(at.saturating_sub(now()));
    let timeout = Timespec::try_from(left).unwrap_or_default();
    // An early return only makes the pace less even.
    let _early = poll(&mut [], Some(&timeout));
}

/// Waits until `fd` is readable; whether it is.
pub fn readable(fd: impl AsFd, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).unwrap_or_default();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// The bench's directory; removed on drop.
pub struct Place {
    dir: tempfile::TempDir,
    fifo: OwnedFd,
}

impl Place {
    pub fn make() -> Result<Self> {
        // As `/run` is wherever halsup is installed: a tmpfs. What a disk's file system adds is not halsup's.
        let (tmpfs, disk) = (Path::new("/dev/shm"), std::env::temp_dir());
        let parent = if tmpfs.is_dir() { tmpfs } else { &disk };
        let dir = tempfile::Builder::new().prefix("halsup-bench-").tempdir_in(parent)?;
        let shared = dir.path().join("shared");
        fs::create_dir(&shared)?;
        for open_to_all in [dir.path(), &shared] {
            fs::set_permissions(open_to_all, fs::Permissions::from_mode(0o755))?;
        }
        let (program, fifo) = (shared.join("first"), shared.join("fifo"));
        fs::write(&program, FIRST)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
        fs::set_permissions(&fifo, fs::Permissions::from_mode(0o666))?;
        // Open for writing too, so that it never is at its end.
        let fifo = open(&fifo, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { dir, fifo })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory with `first` and `fifo`.
    pub fn shared(&self) -> PathBuf {
        self.path("shared")
    }

    /// When the next measured program read the clock.
    pub fn stamp(&self) -> Result<u64> {
        let mut bytes = [0; 8];
        if !readable(&self.fifo, PATIENCE) {
            return Err(format!("no program began within {PATIENCE:?}").into());
        }
        rustix::io::read(&self.fifo, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}
