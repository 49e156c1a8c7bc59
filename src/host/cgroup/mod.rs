//! Cgroups, version 2: where halsup's subtree is, one cgroup per pool, one leaf per worker with its limits.
//!
//! ```text
//! <base>/supervisor                     the daemon itself, or who holds the base for it: a cgroup with processes cannot
//!                                       have controlled children
//! <base>/pool.<name>/w-<slot>-<generation>   one worker, made before its first process
//! ```
//!
//! Never walks paths once the base is open: all is done through directory descriptors. Never writes `cgroup.procs` for a
//! worker (that costs milliseconds and leaves a window without limits): `spawn` clones into [`WorkerCgroup::dir`].
//! Callers: `daemon` calls [`Location::discover`], then [`CgroupRoot::prepare`], then per pool [`PoolCgroup::create`], then
//! per spawn [`WorkerCgroup::create`].

mod container;
mod controller;
mod delegate;
mod discover;
mod events;
mod files;
mod freezer;
mod limits;
mod meter;
mod pool;
mod worker;

#[cfg(test)]
mod tests;

use rustix::io::Errno;

pub use controller::{Availability, Controller, Controllers, Missing};
pub use delegate::CgroupRoot;
pub use discover::{Delegation, Location};
pub use events::{CgroupEvents, CpuStat, MemoryEvents, Pids, PidsEvents, Stats};
pub use freezer::{reclaim, thaw_all};
pub use limits::{Enforcement, LimitName, MissedLimit, WantedLimit, wanted_limits};
pub use meter::{Meter, Used};
pub use pool::{FoundWorker, PoolCgroup, Walk};
pub use worker::WorkerCgroup;

/// The file system type of the version 2 hierarchy in `mountinfo`.
pub const FS_TYPE: &str = "cgroup2";

/// What became of a cgroup that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone, or was not there.
    Removed,
    /// It still holds processes or children; try again after its next event.
    Busy,
}

/// An operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The table of mounts could not be read.
    #[error("find cgroup v2")]
    MountInfo(#[from] super::mountinfo::MountInfoError),
    /// No version 2 hierarchy is mounted here.
    #[error("find cgroup v2: no cgroup2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup)")]
    NotMounted,
    /// The mounted hierarchy does not show this process's cgroup.
    #[error(
        "find cgroup v2: own cgroup {own:?} is not visible below any cgroup2 mount (a container with the host's /sys/fs/cgroup \
         mounted needs --cgroupns host)"
    )]
    NotVisible {
        /// This process's cgroup as the kernel names it.
        own: String,
    },
    /// `/proc/self/cgroup` could not be read, or has no line for version 2.
    #[error("read own cgroup from /proc/self/cgroup")]
    OwnCgroup(#[source] std::io::Error),
    /// What is mounted there is not a version 2 hierarchy.
    #[error("open {path}: not a cgroup2 file system")]
    NotCgroup2 {
        /// The mount point.
        path: String,
    },
    /// The cgroup that was named for workers was not delegated.
    #[error("use cgroup {path} for workers: there is no such cgroup, or systemd has not delegated it (Delegate=yes)")]
    NotDelegated {
        /// Where it was looked for, below the mount point.
        path: String,
    },
    /// A cgroup could not be created.
    #[error("create cgroup {name}")]
    Create {
        /// Its directory's name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// A cgroup could not be opened.
    #[error("open cgroup {name}")]
    Open {
        /// Its directory's name or path.
        name: String,
        /// Why.
        source: Errno,
    },
    /// A cgroup could not be listed.
    #[error("list cgroup {name}")]
    List {
        /// Its directory's name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// A cgroup could not be removed, for another reason than being in use.
    #[error("remove cgroup {name}")]
    Remove {
        /// Its directory's name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// A cgroup's file could not be read.
    #[error("read {file} of cgroup {name}")]
    Read {
        /// The cgroup's directory name.
        name: String,
        /// The file.
        file: &'static str,
        /// Why.
        source: Errno,
    },
    /// A cgroup's file could not be written.
    #[error("write {value} to {file} of cgroup {name}")]
    Write {
        /// The cgroup's directory name.
        name: String,
        /// The file.
        file: &'static str,
        /// What was to be written.
        value: String,
        /// Why.
        source: Errno,
    },
    /// A limit that must be enforced cannot be.
    #[error("set {limit} to {value}")]
    Limit {
        /// Which limit.
        limit: LimitName,
        /// Its value, as the kernel would be told.
        value: String,
        /// Why it cannot be enforced.
        source: Missing,
    },
}
