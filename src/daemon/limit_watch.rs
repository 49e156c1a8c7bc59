//! Limits that workers run into, told when it happens: forks refused at `pids.max`, processes killed at `memory.max`.
//!
//! The kernel notifies the cgroup's event files, which one inotify descriptor watches for all workers. A worker at its limit
//! may touch it a hundred times a second: each watch is for one event and is set again a second later, so that this costs
//! one look a second and a worker. What was counted between is in the counters.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use mio::Interest;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::clock;
use super::events::Happening;
use super::live::Live;
use super::sources::{Source, Sources};
use super::state::Daemon;
use super::timers::Timer;
use crate::protocol::audit::Severity;
use crate::protocol::control::EventKind;
use crate::spec::{Generation, WorkerId};

/// How long a watch rests after it has spoken.
const REST: Duration = Duration::from_secs(1);
/// Events that one turn reads.
const EVENTS_A_TURN: usize = 1024;
const BUFFER_BYTES: usize = 4096;
/// The files that are watched, where the controller is there.
const FILES: [&str; 2] = ["pids.events", "memory.events"];

/// What a worker has run into so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    forks_refused: u64,
    oom_kills: u64,
}

impl Counts {
    /// What the kernel has counted; what it does not count is zero.
    fn of(live: &Live) -> Self {
        let pids = live.cgroup.pids_events().ok().flatten().unwrap_or_default();
        let memory = live.cgroup.memory_events().ok().flatten().unwrap_or_default();
        Self { forks_refused: pids.max, oom_kills: memory.oom_kill }
    }
}

/// The watches.
#[derive(Debug, Default)]
pub(super) struct LimitWatch {
    inotify: Option<OwnedFd>,
    token: Option<mio::Token>,
    watches: BTreeMap<i32, (WorkerId, Generation)>,
    seen: BTreeMap<WorkerId, (Generation, Counts)>,
}

impl LimitWatch {
    /// Forks that were refused to a worker's latest generation, and processes of it that were killed for memory.
    pub(super) fn hits(&self, worker: WorkerId) -> (u64, u64) {
        self.seen.get(&worker).map_or((0, 0), |(_, counts)| (counts.forks_refused, counts.oom_kills))
    }

    fn begun(&mut self, sources: &mut Sources) -> Result<&OwnedFd, Errno> {
        if self.inotify.is_none() {
            let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            let added = sources.add(fd.as_fd(), Source::Limits, Interest::READABLE);
            self.token = Some(added.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?);
            self.inotify = Some(fd);
        }
        self.inotify.as_ref().ok_or(Errno::BADF)
    }

    fn arm(&mut self, sources: &mut Sources, worker: WorkerId, live: &Live) -> Result<(), Errno> {
        let dir = live.cgroup.dir().as_raw_fd();
        for file in FILES {
            let flags = WatchFlags::MODIFY | WatchFlags::ONESHOT;
            match inotify::add_watch(self.begun(sources)?, format!("/proc/self/fd/{dir}/{file}"), flags) {
                Ok(watch) => {
                    self.watches.insert(watch, (worker, live.generation));
                }
                // Without the controller there is no such file and no such limit.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> (BTreeSet<(WorkerId, Generation)>, bool) {
        let mut spoken = BTreeSet::new();
        let Some(fd) = &self.inotify else { return (spoken, false) };
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(fd, &mut buffer);
        let mut count = 0;
        while count < EVENTS_A_TURN || !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else { return (spoken, false) };
            count += 1;
            spoken.extend(self.watches.remove(&event.wd()));
        }
        (spoken, true)
    }
}

impl Daemon {
    /// Begins to watch a worker that was just started.
    pub(super) fn watch_limits(&mut self, worker: WorkerId) {
        let Some(live) = self.live.get(&worker) else { return };
        if let Err(errno) = self.limit_watch.arm(&mut self.sources, worker, live) {
            tracing::debug!(target: "worker", error = %errno, "watch limits: they are still counted in the certificate");
        }
    }

    /// Some worker has run into a limit.
    pub(super) fn on_limits(&mut self) {
        let (spoken, more) = self.limit_watch.read();
        for (worker, generation) in spoken {
            self.look_at_limits(worker);
            if self.live_mut(worker, generation).is_some() {
                self.timers.set(clock::after(self.now, REST), Timer::WatchLimits(worker, generation));
            }
        }
        if more && let Some(token) = self.limit_watch.token {
            self.sources.again(token);
        }
    }

    /// A worker's watches have rested.
    pub(super) fn rearm_limits(&mut self, worker: WorkerId, generation: Generation) {
        if self.live_mut(worker, generation).is_some() {
            self.watch_limits(worker);
            self.look_at_limits(worker);
        }
    }

    /// Tells what a worker has run into since it was last looked at.
    pub(super) fn look_at_limits(&mut self, worker: WorkerId) {
        let Some(live) = self.live.get(&worker) else { return };
        let (generation, now) = (live.generation, Counts::of(live));
        let before = match self.limit_watch.seen.insert(worker, (generation, now)) {
            Some((known, counts)) if known == generation => counts,
            Some(_) | None => Counts::default(),
        };
        let name = self.worker_name(worker);
        let pool = self.pools.get(&worker.pool);
        if now.forks_refused > before.forks_refused {
            let limit = pool.and_then(|pool| pool.spec.limits.pids).map(|limit| limit.value);
            let limit = limit.map(|value| format!(" ({value})")).unwrap_or_default();
            let more = now.forks_refused - before.forks_refused;
            let text =
                format!("{name}: pids limit reached{limit}, {more} forks refused; raise it by `pids` in its table");
            let refused = more.to_string();
            self.audit_security(Severity::Medium, "PIDS_LIMIT", &name, &[("refused", &refused)]);
            self.tell_limit(worker, generation, text);
        }
        if now.oom_kills > before.oom_kills {
            let pool = self.pools.get(&worker.pool);
            let limit = pool.and_then(|pool| pool.spec.limits.memory_bytes).map(|limit| limit.value);
            let limit = limit.map(|bytes| format!(" ({bytes} bytes)")).unwrap_or_default();
            let more = now.oom_kills - before.oom_kills;
            let text = format!(
                "{name}: memory limit reached{limit}, {more} processes killed; raise it by `memory` in its table"
            );
            let killed = more.to_string();
            self.audit_security(Severity::Medium, "MEMORY_LIMIT", &name, &[("killed", &killed)]);
            self.tell_limit(worker, generation, text);
        }
    }

    fn tell_limit(&mut self, worker: WorkerId, generation: Generation, text: String) {
        tracing::warn!(target: "worker", "{text}");
        let mut happening = Happening::new(EventKind::Limit, text);
        (happening.worker, happening.generation) = (Some(worker), Some(generation));
        self.record(happening);
    }

    /// Forgets a place that was given up.
    pub(super) fn forget_limits(&mut self, worker: WorkerId) {
        self.limit_watch.seen.remove(&worker);
    }
}
