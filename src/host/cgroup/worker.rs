//! The cgroup of one spawn: made with its limits before its first process, killed and removed as a whole.
//!
//! Never writes `cgroup.procs`. A kill is `cgroup.kill`, which no fork outruns (HARDENING B4).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, mkdirat};
use rustix::io::Errno;

use super::delegate::{read, remove_dir};
use super::events::{self, CgroupEvents, MemoryEvents, Pids, PidsEvents, Stats};
use super::files::{ATTRIBUTE_BYTES_MAX, open_dir, open_read, read_open, write_attribute};
use super::limits::{self, Enforcement};
use super::pool::PoolCgroup;
use super::{CgroupError, Removal};
use crate::spec::{Generation, Limits, LimitsMode};

/// The cgroup of one spawn of one worker.
#[derive(Debug)]
pub struct WorkerCgroup {
    pool: Arc<OwnedFd>,
    dir: OwnedFd,
    leaf: String,
    events: Option<OwnedFd>,
}

fn leaf_name(slot: u32, generation: Generation) -> String {
    format!("w-{slot}-{}", generation.0)
}

/// Undoes [`leaf_name`]; `None` for every other spelling.
pub(super) fn parse_leaf(leaf: &str) -> Option<(u32, Generation)> {
    let (slot, generation) = leaf.strip_prefix("w-")?.split_once('-')?;
    let (slot, generation) = (slot.parse().ok()?, Generation(generation.parse().ok()?));
    (leaf_name(slot, generation) == leaf).then_some((slot, generation))
}

impl WorkerCgroup {
    /// Creates the cgroup, writes every limit, reads each back and compares. What cannot be enforced and was not asked
    /// for is named in the [`Enforcement`]. Nothing is left behind on an error.
    ///
    /// # Errors
    /// When it exists or cannot be made; when a limit that an operator wrote down (or, under [`LimitsMode::Require`], any
    /// limit) cannot be enforced.
    pub fn create(
        pool: &PoolCgroup,
        slot: u32,
        generation: Generation,
        limits: &Limits,
        mode: LimitsMode,
    ) -> Result<(Self, Enforcement), CgroupError> {
        let leaf = leaf_name(slot, generation);
        mkdirat(pool.dir(), leaf.as_str(), Mode::from_raw_mode(0o755))
            .map_err(|source| CgroupError::Create { name: leaf.clone(), source })?;
        let outcome = Self::open_leaf(pool, leaf.clone()).and_then(|worker| {
            let enforcement = limits::apply(worker.dir.as_fd(), &worker.leaf, pool.controllers(), limits, mode)?;
            Ok((worker, enforcement))
        });
        if outcome.is_err() {
            // The first error is the one to tell; an empty cgroup made a moment ago can be removed.
            remove_dir(pool.dir().as_fd(), &leaf)?;
        }
        outcome
    }

    /// Rewrites the limits of one that nothing runs in yet but its init.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn limit(&self, pool: &PoolCgroup, limits: &Limits, mode: LimitsMode) -> Result<Enforcement, CgroupError> {
        limits::apply_anew(self.dir.as_fd(), &self.leaf, pool.controllers(), limits, mode)
    }

    /// Opens one that exists, as a walk found it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(pool: &PoolCgroup, slot: u32, generation: Generation) -> Result<Self, CgroupError> {
        Self::open_leaf(pool, leaf_name(slot, generation))
    }

    /// Which of `limits` are in force, for one that an earlier daemon made.
    ///
    /// # Errors
    /// When a file cannot be read for another reason than that it is missing.
    pub fn enforcement(&self, pool: &PoolCgroup, limits: &Limits) -> Result<Enforcement, CgroupError> {
        limits::look(self.dir.as_fd(), &self.leaf, pool.controllers(), limits)
    }

    fn open_leaf(pool: &PoolCgroup, leaf: String) -> Result<Self, CgroupError> {
        match open_dir(pool.dir().as_fd(), &leaf) {
            Ok(dir) => Ok(Self { pool: Arc::clone(pool.dir()), dir, leaf, events: None }),
            Err(source) => Err(CgroupError::Open { name: leaf, source }),
        }
    }

    /// The directory, for `CLONE_INTO_CGROUP`.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The directory's name, `w-<slot>-<generation>`.
    #[must_use]
    pub fn leaf(&self) -> &str {
        &self.leaf
    }

    /// Sends SIGKILL to every process in it, at once. `cgroup.events` tells when the last is gone.
    ///
    /// # Errors
    /// When the kernel refuses; a cgroup that is gone already is no error.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match write_attribute(self.dir.as_fd(), "cgroup.kill", "1") {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(source) => Err(self.write_error("cgroup.kill", "1", source)),
        }
    }

    /// Stops every process in it without their notice. Done when [`CgroupEvents::frozen`] is set.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1")
    }

    /// Lets a frozen cgroup go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")
    }

    /// Whether the kernel takes its memory on request (Linux 5.19, with the memory controller).
    #[must_use]
    pub fn can_reclaim(&self) -> bool {
        rustix::fs::accessat(&self.dir, "memory.reclaim", rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty())
            .is_ok()
    }

    /// `cgroup.events`, opened at the first call and kept: to be registered for `PRIORITY` readiness, which each call of
    /// [`Self::events`] clears.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn events_fd(&mut self) -> Result<BorrowedFd<'_>, CgroupError> {
        let fd = match self.events.take() {
            Some(fd) => fd,
            None => self.open_events()?,
        };
        let kept: &OwnedFd = self.events.insert(fd);
        Ok(kept.as_fd())
    }

    /// What `cgroup.events` says now. A cgroup that is gone is neither populated nor frozen.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn events(&self) -> Result<CgroupEvents, CgroupError> {
        let opened;
        let fd = if let Some(fd) = &self.events {
            fd
        } else {
            opened = match self.open_events() {
                Err(CgroupError::Read { source: Errno::NOENT | Errno::NODEV, .. }) => {
                    return Ok(CgroupEvents::default());
                }
                fd => fd?,
            };
            &opened
        };
        let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
        match read_open(fd.as_fd(), &mut buffer) {
            Ok(text) => Ok(CgroupEvents::parse(text)),
            Err(Errno::NODEV) => Ok(CgroupEvents::default()),
            Err(source) => Err(CgroupError::Read { name: self.leaf.clone(), file: "cgroup.events", source }),
        }
    }

    /// Whether any process is in it.
    ///
    /// # Errors
    /// When `cgroup.events` cannot be read.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        self.events().map(|events| events.populated)
    }

    /// Counters of `memory.events`; `None` without the memory controller.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn memory_events(&self) -> Result<Option<MemoryEvents>, CgroupError> {
        self.optional("memory.events", MemoryEvents::parse)
    }

    /// Counters of `pids.events`; `None` without the pids controller.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn pids_events(&self) -> Result<Option<PidsEvents>, CgroupError> {
        self.optional("pids.events", PidsEvents::parse)
    }

    /// What it uses now. What no controller counts is `None`.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let number = |text: &str| text.trim().parse().ok();
        Ok(Stats {
            memory_bytes: self.optional("memory.current", number)?.flatten(),
            memory_peak_bytes: self.optional("memory.peak", number)?.flatten(),
            pids: self.optional("pids.current", number)?.flatten(),
            cpu: self.optional("cpu.stat", events::CpuStat::parse)?.unwrap_or_default(),
        })
    }

    /// The processes in it, at most `max`. A hint only: by the time it is read any of them may be another process.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn pids(&self, max: usize) -> Result<Pids, CgroupError> {
        events::pids(self.dir.as_fd(), &self.leaf, max)
    }

    /// Removes it; `Busy` while it holds a process, zombies included.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub fn remove(&self) -> Result<Removal, CgroupError> {
        remove_dir(self.pool.as_fd(), &self.leaf)
    }

    fn open_events(&self) -> Result<OwnedFd, CgroupError> {
        open_read(self.dir.as_fd(), "cgroup.events").map_err(|source| CgroupError::Read {
            name: self.leaf.clone(),
            file: "cgroup.events",
            source,
        })
    }

    pub(super) fn optional<T>(&self, file: &'static str, parse: impl Fn(&str) -> T) -> Result<Option<T>, CgroupError> {
        let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
        match read(self.dir.as_fd(), &self.leaf, file, &mut buffer) {
            Ok(text) => Ok(Some(parse(text))),
            Err(CgroupError::Read { source: Errno::NOENT | Errno::NODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, file: &'static str, value: &str) -> Result<(), CgroupError> {
        write_attribute(self.dir.as_fd(), file, value).map_err(|source| self.write_error(file, value, source))
    }

    fn write_error(&self, file: &'static str, value: &str, source: Errno) -> CgroupError {
        CgroupError::Write { name: self.leaf.clone(), file, value: value.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaf_names_have_one_spelling() {
        assert_eq!(leaf_name(3, Generation(17)), "w-3-17");
        assert_eq!(parse_leaf("w-3-17"), Some((3, Generation(17))));
        let max = leaf_name(u32::MAX, Generation(u64::MAX));
        assert_eq!(parse_leaf(&max), Some((u32::MAX, Generation(u64::MAX))));
        for bad in ["", "w-", "w-1", "w-1-", "w-01-2", "w-1-+2", "w-1-2-3", "w-1-2 ", "x-1-2", "w-4294967296-1"] {
            assert_eq!(parse_leaf(bad), None, "{bad:?}");
        }
    }
}
