//! The cgroup of a pool, which hands the controllers on to its workers; and the walk that finds what an earlier daemon left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;

use super::controller::Controllers;
use super::delegate::{CgroupRoot, enable, remove_dir};
use super::files::{ensure_dir, open_dir, write_attribute};
use super::worker::parse_leaf;
use super::{CgroupError, Removal};
use crate::spec::{Generation, PoolName};

pub(super) const PREFIX: &str = "pool.";
/// Below a pool there are its workers, and below those nothing.
const DEPTH: &str = "1";
/// More cgroups than this are not listed by one walk.
const WALK_MAX: usize = 65_536;
/// Directories that are none of ours are named up to this many.
const STRANGERS_MAX: usize = 100;

/// The cgroup of one pool.
#[derive(Debug, Clone)]
pub struct PoolCgroup {
    dir: Arc<OwnedFd>,
    name: String,
    controllers: Controllers,
}

impl PoolCgroup {
    /// Creates it, or takes the existing one, and enables for workers all that the base has.
    ///
    /// # Errors
    /// When the directory cannot be made or opened. A controller that cannot be enabled is named by [`Self::controllers`].
    pub fn create(root: &CgroupRoot, pool: &PoolName) -> Result<Self, CgroupError> {
        let name = format!("{PREFIX}{pool}");
        let dir =
            ensure_dir(root.base(), &name).map_err(|source| CgroupError::Create { name: name.clone(), source })?;
        // A worker never has cgroups of its own; a flood of them would exhaust the kernel's (HARDENING B2). The kernel holds
        // a new cgroup against the depth of every one above it, so the pool's counts for all its workers.
        write_attribute(dir.as_fd(), "cgroup.max.depth", DEPTH).map_err(|source| CgroupError::Write {
            name: name.clone(),
            file: "cgroup.max.depth",
            value: DEPTH.to_owned(),
            source,
        })?;
        let mut controllers = *root.controllers();
        enable(dir.as_fd(), &name, &mut controllers)?;
        Ok(Self { dir: Arc::new(dir), name, controllers })
    }

    /// What this pool's workers can be limited by.
    #[must_use]
    pub fn controllers(&self) -> &Controllers {
        &self.controllers
    }

    /// Removes it; `Busy` while it has workers.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub fn remove(&self, root: &CgroupRoot) -> Result<Removal, CgroupError> {
        remove_dir(root.base(), &self.name)
    }

    pub(super) fn dir(&self) -> &Arc<OwnedFd> {
        &self.dir
    }

    /// The directory's name, `pool.<name>`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A worker's cgroup that exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundWorker {
    /// Its pool.
    pub pool: PoolName,
    /// Its place in the pool.
    pub slot: u32,
    /// Its spawn.
    pub generation: Generation,
}

/// What a walk over the base found.
#[derive(Debug, Default)]
pub struct Walk {
    /// Pools with a cgroup, sorted.
    pub pools: Vec<PoolName>,
    /// Workers with a cgroup, sorted.
    pub workers: Vec<FoundWorker>,
    /// Directories that halsup did not make, up to 100 of them.
    pub strangers: Vec<String>,
    /// Whether there was more than one walk lists (65,536).
    pub truncated: bool,
}

impl CgroupRoot {
    /// Lists the pools and workers that have a cgroup below the base, whoever made them.
    ///
    /// # Errors
    /// When a directory cannot be read; one that vanishes meanwhile is no error.
    pub fn walk(&self) -> Result<Walk, CgroupError> {
        let mut walk = Walk::default();
        for name in children(self.base(), ".", WALK_MAX, &mut walk.truncated)? {
            match name.strip_prefix(PREFIX).map(PoolName::parse) {
                Some(Ok(pool)) => walk.pools.push(pool),
                Some(Err(_)) => walk.stranger(name),
                None if name == super::discover::SUPERVISOR => {}
                None => walk.stranger(name),
            }
        }
        walk.pools.sort();
        for pool in walk.pools.clone() {
            self.walk_pool(&pool, &mut walk)?;
        }
        walk.workers.sort();
        Ok(walk)
    }

    fn walk_pool(&self, pool: &PoolName, walk: &mut Walk) -> Result<(), CgroupError> {
        let name = format!("{PREFIX}{pool}");
        let room = WALK_MAX.saturating_sub(walk.workers.len());
        for leaf in children(self.base(), &name, room, &mut walk.truncated)? {
            match parse_leaf(&leaf) {
                Some((slot, generation)) => walk.workers.push(FoundWorker { pool: pool.clone(), slot, generation }),
                None => walk.stranger(format!("{name}/{leaf}")),
            }
        }
        Ok(())
    }

    /// Opens the cgroup of a pool that a walk found, without enabling anything.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_pool(&self, pool: &PoolName) -> Result<PoolCgroup, CgroupError> {
        let name = format!("{PREFIX}{pool}");
        let dir = open_dir(self.base(), &name).map_err(|source| CgroupError::Open { name: name.clone(), source })?;
        Ok(PoolCgroup { dir: Arc::new(dir), name, controllers: *self.controllers() })
    }
}

impl Walk {
    fn stranger(&mut self, name: String) {
        if self.strangers.len() < STRANGERS_MAX {
            self.strangers.push(name);
        }
    }
}

/// The names of the directories in `name`, at most `max`.
pub(super) fn children(
    parent: BorrowedFd<'_>,
    name: &str,
    max: usize,
    truncated: &mut bool,
) -> Result<Vec<String>, CgroupError> {
    let failed = |source| CgroupError::List { name: name.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        fd => fd.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in Dir::new(fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy();
        if !entry.file_type().is_dir() || name == "." || name == ".." {
            continue;
        }
        if names.len() == max {
            *truncated = true;
            break;
        }
        names.push(name.into_owned());
    }
    Ok(names)
}
