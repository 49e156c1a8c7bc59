//! What a start finds of the daemon before it, brought together: its state file, its cgroups, its directories; and the end of
//! what nobody takes over.
//!
//! `launch` calls [`Recovery::begin`] before anything is prepared, because pools' listeners come from what is found, and
//! [`Recovery::settle`] when every pool could be prepared: until then nothing of the old daemon has been touched.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::adopt::{Left, Settled, settle};
use super::birth::{IDS, RANGES};
use super::kept::{Kept, kept_key};
use super::launch::Directories;
use super::past::{Past, PastPool};
use super::persist::{Persist, boot_id};
use super::reload::Change;
use super::state::{Chore, Freed, Place};
use super::tasks::{PastTasks, task_key};
use super::tokens::{Tokens, token_key};
use super::{Error, clock};
use crate::engine::Time;
use crate::host::cgroup::{CgroupRoot, FoundWorker, Removal, WorkerCgroup};
use crate::host::identity::IdPool;
use crate::host::ledger::Ledger;
use crate::protocol::control::DeathCertificate;
use crate::spec::{Config, Generation, PoolName};

/// How long an earlier daemon's workers may take to die at the start.
const LEFTOVER_DEADLINE: Duration = Duration::from_secs(10);
/// Processes of one leftover cgroup that are counted for an error.
const LEFTOVER_PIDS_MAX: usize = 1000;

/// What was found.
#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) persist: Persist,
    pub(super) left: Left,
    past: Past,
    ledger: Ledger,
    wanted: BTreeSet<PoolName>,
}

/// What the new daemon goes on with.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) persist: Persist,
    pub(super) ledger: Ledger,
    pub(super) ids: IdPool,
    pub(super) ranges: IdPool,
    pub(super) generation: Generation,
    pub(super) certificates: VecDeque<DeathCertificate>,
    /// Sessions that have ended and are kept.
    pub(super) kept: BTreeMap<String, Kept>,
    /// Tokens of the gateway's callers.
    pub(super) tokens: Tokens,
    pub(super) tasks: PastTasks,
    pub(super) chores: VecDeque<Chore>,
    /// The text of the configuration that was in force.
    pub(super) config: Option<String>,
    /// Every pool of the configuration, with what there is of it.
    pub(super) pools: Vec<(Change, Vec<Settled>, Option<PastPool>)>,
}

impl Recovery {
    /// Reads and looks, and touches nothing but damaged files.
    ///
    /// # Errors
    /// When what is there cannot be read at all.
    pub(super) fn begin(config: &Config, dirs: &Directories, cgroups: &CgroupRoot) -> Result<Self, Error> {
        let mut ledger = Ledger::open(dirs.runtime.as_fd())?;
        let boot = boot_id().map_err(|source| Error::Start { operation: "read the boot id", source })?;
        let (persist, past) = Persist::open(dirs.state.as_fd(), &config.daemon.instance, &boot)?;
        for sentence in &past.damage {
            tracing::error!(target: "state", "{sentence}");
        }
        let wanted = config.pools.iter().map(|pool| pool.name.clone()).collect();
        let left = Left::look(cgroups, &mut ledger, &wanted)?;
        Ok(Self { persist, left, past, ledger, wanted })
    }

    /// Finds out what became of every worker, and ends what is not taken over.
    ///
    /// # Errors
    /// When the directories or cgroups cannot be read.
    pub(super) fn settle(
        mut self,
        changes: Vec<Change>,
        dirs: &Directories,
        cgroups: &CgroupRoot,
        now: Time,
        same_process: bool,
    ) -> Result<Recovered, Error> {
        let mut pools = Vec::new();
        for change in changes {
            let settled = settle(&change.spec, &self.past, &mut self.left, now, same_process);
            let known = self.past.pools.get(&change.spec.name).copied();
            pools.push((change, settled, known));
        }
        let found = || pools.iter().flat_map(|(_, settled, _)| settled).filter_map(|one| one.found.as_ref());
        let trees = found().flat_map(|worker| worker.birth.trees.iter().cloned()).collect();
        let (mut ids, mut ranges) = (IdPool::new(IDS, now.0), IdPool::new(RANGES, now.0));
        for identity in found().filter_map(|worker| worker.birth.frees) {
            match identity {
                Freed::Id(number) => ids.reserve(number),
                Freed::Range(number) => ranges.reserve(number),
            }
        }
        let unwanted: Vec<_> = self.left.pools.iter().filter(|pool| !self.wanted.contains(*pool)).cloned().collect();
        end_leftovers(cgroups, &self.left.doomed, &unwanted)?;
        let remains = Leftovers::find(dirs, &trees)?;
        let generation = remains.last.max(Generation(self.past.generation.max(self.left.generation)));
        self.persist.keep_generation(generation);
        // A file of records is begun anew with each daemon.
        for (session, kept) in &self.past.kept {
            self.persist.keep_ended(&kept_key(session), Some(kept));
        }
        for (name, token) in &self.past.tokens {
            self.persist.keep_token(&token_key(name), Some(token));
        }
        for (name, kept) in &self.past.tasks.tasks {
            self.persist.keep_task(&task_key(name), Some(kept));
        }
        self.persist.keep_tasks(&self.past.tasks.all);
        Ok(Recovered {
            persist: self.persist,
            ledger: self.ledger,
            ids,
            ranges,
            generation,
            certificates: self.past.certificates,
            kept: self.past.kept,
            tokens: Tokens::of(self.past.tokens),
            tasks: self.past.tasks,
            chores: remains.chores,
            config: self.past.config,
            pools,
        })
    }
}

/// What an earlier daemon of this instance has left in directories, and the highest generation among it: names that hold it
/// may still be in use while it is being removed, so counting goes on from there.
#[derive(Debug, Default)]
struct Leftovers {
    chores: VecDeque<Chore>,
    last: Generation,
}

impl Leftovers {
    fn find(dirs: &Directories, kept: &BTreeSet<(Place, String)>) -> Result<Self, Error> {
        let mut left = Self::default();
        let (work, notify, overlay) = (dirs.work.as_fd(), dirs.notify.as_fd(), dirs.overlay.as_fd());
        let images = dirs.images.unfinished();
        for (place, dir) in
            [(Place::Work, work), (Place::Notify, notify), (Place::Overlay, overlay), (Place::Image, images)]
        {
            let entries = rustix::fs::Dir::read_from(dir);
            let entries =
                entries.map_err(|errno| Error::Start { operation: "list what is left", source: errno.into() })?;
            for entry in entries.flatten() {
                let Ok(name) = entry.file_name().to_str() else { continue };
                if name == "." || name == ".." {
                    continue;
                }
                let generation = name.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or(0);
                left.last = left.last.max(Generation(generation));
                let tree = (place, name.to_owned());
                if !kept.contains(&tree) {
                    left.chores.push_back(Chore { trees: vec![tree], ..Chore::default() });
                }
            }
        }
        Ok(left)
    }
}

/// Ends what an earlier daemon of this instance left running and nobody takes over: nothing may run that nobody watches.
///
/// What the kernel does not let go of is said and left where it is; it is no reason to leave everything else unwatched.
pub(super) fn end_leftovers(cgroups: &CgroupRoot, doomed: &[FoundWorker], pools: &[PoolName]) -> Result<(), Error> {
    let deadline = clock::after(clock::now(), LEFTOVER_DEADLINE);
    let mut found = Vec::new();
    for leftover in doomed {
        let pool = cgroups.open_pool(&leftover.pool)?;
        let worker = WorkerCgroup::open(&pool, leftover.slot, leftover.generation)?;
        if worker.populated()? {
            tracing::warn!(target: "pool", "end {}.{}, which an earlier daemon left", leftover.pool, leftover.slot);
        }
        worker.kill()?;
        found.push(worker);
    }
    for mut worker in found {
        if let Err(error) = empty_leftover(&mut worker, deadline) {
            tracing::error!(target: "pool", "end what is left in {}: {}", worker.leaf(), super::birth::chain(&error));
        }
    }
    for pool in pools {
        cgroups.open_pool(pool)?.remove(cgroups)?;
    }
    Ok(())
}

fn empty_leftover(worker: &mut WorkerCgroup, deadline: Time) -> Result<(), Error> {
    // Emptiness and removal are two moments apart: the kernel lets go of a cgroup a little after its last process.
    while worker.populated()? || worker.remove()? == Removal::Busy {
        let left = clock::since(clock::now(), deadline);
        if left.is_zero() {
            let processes = worker.pids(LEFTOVER_PIDS_MAX)?.pids.len();
            let (cgroup, seconds) = (worker.leaf().to_owned(), LEFTOVER_DEADLINE.as_secs());
            return Err(Error::Leftover { cgroup, processes, seconds });
        }
        let mut events = [PollFd::from_borrowed_fd(worker.events_fd()?, PollFlags::PRI)];
        let timeout = Timespec::try_from(left.min(Duration::from_millis(20))).unwrap_or_default();
        super::log::best_effort(rustix::event::poll(&mut events, Some(&timeout)), "looked at again at once");
    }
    Ok(())
}
