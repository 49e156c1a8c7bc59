//! Taking over what an earlier daemon has left: the cgroup tree says what there is, each worker's init says what it is, the
//! state file says where it stood, the exit ledger how it ended.
//!
//! `look` goes through the cgroups before anything is prepared, because listeners of pools are fetched from it; `settle`
//! finds out the fate of every worker of a pool; `Daemon::take_over` watches those that live. What cannot be taken over
//! is ended by the caller. Called by `launch`, once.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::birth::{chain, errno_of, is_shortage, start_failure};
use super::ends::Ends;
use super::environment::Told;
use super::live::{Evidence, Live, Particulars, Phase};
use super::past::{BirthRecord, Past, PastPool};
use super::pool::listen_text;
use super::reload::Change;
use super::session::Session;
use super::state::{Chore, Daemon};
use super::{Error, clock};
use crate::engine::{self, Ended, Fate, Input, PoolRecord, Time, WorkerRecord};
use crate::host::adopt::{AdoptError, Adopted};
use crate::host::cgroup::{CgroupRoot, FoundWorker, WorkerCgroup};
use crate::host::ledger::Ledger;
use crate::host::logfile::LogFile;
use crate::host::spawn::{Status, exit_info, program_failed};
use crate::protocol::init::{Entry, MAIN, Report, how};
use crate::spec::{Generation, Listen, OnSupervisorDeath, PoolId, PoolName, PoolSpec, Ready, WorkerId};

/// How long a worker may take to execute its init whose daemon was killed while it was being started.
const BIRTH_PATIENCE: Duration = Duration::from_millis(500);
/// What is said of an end that nobody saw.
const ENDED_ALONE: &str = "ended while no daemon ran; the time of its end is when that was found";
const BIRTH_PAUSE: Duration = Duration::from_millis(5);

/// A worker of an earlier daemon that lives.
#[derive(Debug)]
pub(super) struct Found {
    cgroup: WorkerCgroup,
    init: Adopted,
    pub(super) birth: BirthRecord,
}

/// All that an earlier daemon has left in the kernel.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Workers that can be taken over.
    pub(super) found: BTreeMap<(PoolName, u32), Found>,
    /// Cgroups that are to be emptied and removed.
    pub(super) doomed: Vec<FoundWorker>,
    /// Pools that have a cgroup.
    pub(super) pools: Vec<PoolName>,
    /// The highest generation among all.
    pub(super) generation: u64,
    /// How workers ended, by generation.
    entries: BTreeMap<u64, Entry>,
    /// Generations of which only the cgroup is left, and whether the kernel killed for memory in it.
    remains: BTreeMap<u64, bool>,
    /// Generations that live and cannot be taken over, and why.
    refused: BTreeMap<u64, String>,
}

/// What is in a worker's cgroup.
enum Opened {
    Alive(Box<Found>),
    Empty { oom: bool },
}

impl Left {
    /// Looks at everything; only of pools in `wanted` is anything taken over.
    ///
    /// # Errors
    /// When the cgroups cannot be listed, or the ledger not be read.
    pub(super) fn look(cgroups: &CgroupRoot, ledger: &mut Ledger, wanted: &BTreeSet<PoolName>) -> Result<Self, Error> {
        let walk = cgroups.walk()?;
        let mut left = Self { pools: walk.pools, entries: ledger.entries()?, ..Self::default() };
        let deadline = clock::after(clock::now(), BIRTH_PATIENCE);
        // The latest generation of a place comes last.
        for found in walk.workers {
            left.generation = left.generation.max(found.generation.0);
            let known = wanted.contains(&found.pool);
            match known.then(|| open(cgroups, &found, deadline)) {
                Some(Ok(Opened::Alive(worker))) => {
                    let place = (found.pool.clone(), found.slot);
                    if let Some(older) = left.found.insert(place, *worker) {
                        let generation = Generation(older.birth.generation);
                        left.doomed.push(FoundWorker { generation, ..found });
                    }
                }
                Some(Ok(Opened::Empty { oom })) => {
                    left.remains.insert(found.generation.0, oom);
                    left.doomed.push(found);
                }
                Some(Err(error)) => {
                    let (pool, slot) = (&found.pool, found.slot);
                    tracing::warn!(target: "pool", "take over {pool}.{slot}: {}; it is ended", chain(&error));
                    left.refused.insert(found.generation.0, chain(&error));
                    left.doomed.push(found);
                }
                None => left.doomed.push(found),
            }
        }
        for worker in left.found.values() {
            ledger.reserve(worker.init.ledger_at);
            // Somebody has removed the file: who lives still has it, with what those have written who do not.
            for (generation, entry) in ledger.entries_elsewhere(&worker.init.ledger)? {
                left.entries.entry(generation).or_insert(entry);
            }
        }
        Ok(left)
    }

    /// The listeners of a pool's workers, with their addresses as text.
    pub(super) fn listeners(&self, spec: &PoolSpec) -> Vec<(Listen, OwnedFd)> {
        let of_pool = self.found.iter().find(|((pool, _), _)| *pool == spec.name);
        let Some((_, worker)) = of_pool else { return Vec::new() };
        let mut kept = Vec::new();
        for listen in &spec.listen {
            let text = listen_text(listen);
            let place = worker.birth.listen.iter().position(|known| *known == text);
            match place.map(|place| worker.init.passed(place)) {
                Some(Ok(fd)) => kept.push((listen.clone(), fd)),
                Some(Err(error)) => tracing::warn!(target: "pool", "take over {text}: {}", chain(&error)),
                None => {}
            }
        }
        kept
    }
}

fn open(cgroups: &CgroupRoot, found: &FoundWorker, deadline: Time) -> Result<Opened, AdoptError> {
    let pool = cgroups.open_pool(&found.pool)?;
    let cgroup = WorkerCgroup::open(&pool, found.slot, found.generation)?;
    let init = loop {
        match Adopted::find(&cgroup) {
            Ok(Some(init)) => break init,
            Ok(None) => {
                let oom = cgroup.memory_events()?.is_some_and(|events| events.oom_kill > 0);
                return Ok(Opened::Empty { oom });
            }
            // It is between clone and exec, which takes a millisecond or two; or the host has no room now, for which no
            // worker is ended at once.
            Err(error) if clock::now() < deadline && may_pass(&error) => pause(),
            Err(error) => return Err(error),
        }
    };
    let birth = BirthRecord::read(&init.record).map_err(|error| AdoptError::Step {
        operation: "read its birth record",
        source: std::io::Error::other(error),
    })?;
    let same = birth.pool == found.pool.as_str()
        && (birth.slot, birth.generation) == (found.slot, found.generation.0)
        && init.generation == birth.generation;
    if same { Ok(Opened::Alive(Box::new(Found { cgroup, init, birth }))) } else { Err(AdoptError::NoInit) }
}

fn may_pass(error: &AdoptError) -> bool {
    matches!(error, AdoptError::Unborn) || errno_of(error).is_some_and(is_shortage)
}

/// There is no event for an exec; this happens only where a daemon was killed in the middle of a spawn.
fn pause() {
    let time = rustix::event::Timespec::try_from(BIRTH_PAUSE).unwrap_or_default();
    super::log::best_effort(rustix::event::poll(&mut [], Some(&time)), "looked at again at once");
}

/// A worker that is known of: what it was, what became of it, and what its certificate is to say.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) slot: u32,
    pub(super) record: WorkerRecord,
    pub(super) fate: Fate,
    pub(super) found: Option<Found>,
    /// For one that has ended.
    pub(super) evidence: Option<Evidence>,
    /// Its program never ran.
    pub(super) failed: bool,
    /// Who had it.
    pub(super) session: Option<Session>,
}

/// Finds out what has become of each worker of a pool that was written down or found. Workers that were not to outlive
/// their daemon are left in `left` as doomed; with `same_process`, this is still that daemon.
pub(super) fn settle(spec: &PoolSpec, past: &Past, left: &mut Left, now: Time, same_process: bool) -> Vec<Settled> {
    let name = &spec.name;
    let recorded = past.workers.iter().filter(|((pool, _), _)| pool == name).map(|((_, slot), _)| *slot);
    let found = left.found.keys().filter(|(pool, _)| pool == name).map(|(_, slot)| *slot);
    let slots: BTreeSet<u32> = recorded.chain(found).collect();
    let at_once =
        !same_process && matches!(spec.on_supervisor_death, OnSupervisorDeath::EndAfter(delay) if delay.is_zero());
    let mut settled = Vec::new();
    for slot in slots {
        let mut record = past.workers.get(&(name.clone(), slot)).cloned();
        let mut found = left.found.remove(&(name.clone(), slot));
        let session = past.sessions.get(&(name.clone(), slot)).cloned();
        if past.ending {
            // The order to end everything is carried out; who starts a daemon after that wants everything to begin.
            record = record.filter(WorkerRecord::had_processes).map(WorkerRecord::to_begin_again);
        }
        if (at_once || past.ending)
            && let Some(worker) = found.take()
        {
            let generation = Generation(worker.birth.generation);
            left.doomed.push(FoundWorker { pool: name.clone(), slot, generation });
        }
        settled.push(match (record, found) {
            (Some(record), Some(worker)) if record.generation == Some(worker.birth.generation) => {
                Settled { slot, record, fate: Fate::Lives, found: Some(worker), evidence: None, failed: false, session }
            }
            // What was written down is older than what runs, or nothing was.
            (record, Some(worker)) => {
                let record = assumed(spec, &worker, record, now);
                Settled { slot, record, fate: Fate::Lives, found: Some(worker), evidence: None, failed: false, session }
            }
            (Some(record), None) => Settled { session, ..ended(slot, record, left, at_once, past.ending) },
            (None, None) => continue,
        });
    }
    settled
}

/// What a worker is taken for of which nothing was written down.
fn assumed(spec: &PoolSpec, worker: &Found, older: Option<WorkerRecord>, now: Time) -> WorkerRecord {
    let up = clock::wall().duration_since(clock::from_msec(worker.birth.started_msec)).unwrap_or_default();
    // A word of readiness is said once, and may have been heard: to take who has said it for one that never will would end
    // a healthy worker. What can be looked at again is looked at again.
    let cannot_be_asked = matches!(spec.ready, Ready::Exec | Ready::Notify | Ready::Channel);
    let ready = cannot_be_asked || up > spec.policy.startup.ready_timeout;
    let phase = match (&worker.init.main, ready) {
        (None, _) => engine::Phase::Spawning,
        (Some(_), true) => engine::Phase::Running,
        (Some(_), false) => engine::Phase::Starting,
    };
    // What runs in one that waits to be claimed is somebody's.
    let leased = spec.policy.claims.is_some() && worker.init.main.is_some();
    WorkerRecord { leased, ..WorkerRecord::assumed(worker.birth.generation, phase, older, now) }
}

/// What became of a worker that is there no more.
fn ended(slot: u32, record: WorkerRecord, left: &Left, at_once: bool, ending: bool) -> Settled {
    use engine::Phase as P;
    let had_processes = record.had_processes();
    let begun = matches!(record.phase, P::Starting | P::Running | P::Stopping | P::Killing | P::Stuck);
    let generation = record.generation.unwrap_or(0);
    let entry = left.entries.get(&generation).filter(|_| had_processes);
    let oom = left.remains.get(&generation).copied().unwrap_or(false);
    let mut evidence = Evidence::default();
    let mut failed = false;
    let value = |entry: &Entry| i32::try_from(entry.value).unwrap_or(-1);
    let fate = match entry.map(|entry| (entry.how, entry)) {
        Some((how::EXITED, entry)) => Fate::Ended(Ended::Exited(value(entry))),
        Some((how::SIGNALLED, Entry { value: 9, .. })) if oom => Fate::Ended(Ended::OutOfMemory),
        Some((how::SIGNALLED, entry)) => Fate::Ended(Ended::Signalled(value(entry))),
        Some((how::NOT_STARTED, entry)) => {
            let report = Report { a: entry.value >> 32, b: entry.value & 0xffff_ffff, ..Report::default() };
            let error = program_failed(&report, "its program", super::environment::WORK_DIR);
            evidence.start_failure = Some(start_failure("exec", &error));
            failed = record.phase == P::Spawning;
            if failed { Fate::Lives } else { Fate::Abandoned }
        }
        Some((how::ABANDONED, _)) => {
            evidence.note = Some("ended by its init: no daemon came back within on_supervisor_death".to_owned());
            Fate::Abandoned
        }
        Some(_) | None if ending => Fate::Abandoned,
        Some(_) | None if oom && begun => Fate::Ended(Ended::OutOfMemory),
        Some(_) | None if left.refused.contains_key(&generation) => {
            let reason = left.refused.get(&generation).cloned().unwrap_or_default();
            evidence.note =
                Some(format!("could not be taken over from the daemon before this one, so it was ended: {reason}"));
            Fate::Abandoned
        }
        Some(_) | None if at_once && begun => {
            evidence.note = Some("ended with the daemon, as on_supervisor_death = \"0s\" says".to_owned());
            Fate::Abandoned
        }
        Some(_) | None if begun && !record.certified => {
            evidence.note = Some(
                "nobody has written down how it ended: its init was killed while no daemon ran, or the exit ledger was removed".to_owned(),
            );
            Fate::Ended(Ended::Unknown)
        }
        Some(_) | None => Fate::Nothing,
    };
    if let Some(entry) = entry {
        evidence.user_usec = Some(entry.user_usec);
        evidence.system_usec = Some(entry.system_usec);
        evidence.max_rss_bytes = Some(entry.max_rss_kib.saturating_mul(1024));
    }
    if let Fate::Ended(ended) = fate {
        evidence.status = Some(super::exit::cause_of(ended));
        if evidence.note.is_none() {
            evidence.note = Some(ENDED_ALONE.to_owned());
        }
    }
    Settled { slot, record, fate, found: None, evidence: Some(evidence), failed, session: None }
}

/// Removes the sockets that workers have from the daemon before and that no pool is to listen on any more.
fn unlink_unwanted(pools: &[(Change, Vec<Settled>, Option<PastPool>)]) {
    let wanted: BTreeSet<String> = pools.iter().flat_map(|(change, ..)| &change.spec.listen).map(listen_text).collect();
    let found = pools.iter().flat_map(|(_, settled, _)| settled).filter_map(|one| one.found.as_ref());
    let had: BTreeSet<&String> = found.flat_map(|worker| &worker.birth.listen).collect();
    for path in had.into_iter().filter(|text| !wanted.contains(*text)).filter_map(|text| text.strip_prefix("unix:")) {
        super::log::best_effort(std::fs::remove_file(path), "another of its workers had it too");
    }
}

impl Daemon {
    /// Adds all pools at the start.
    pub(super) fn begin_pools(&mut self, pools: Vec<(Change, Vec<Settled>, Option<PastPool>)>) {
        unlink_unwanted(&pools);
        for (change, settled, known) in pools {
            self.begin_pool(change, settled, known);
        }
    }

    /// Adds a pool at the start: as an earlier daemon had it, where one had.
    fn begin_pool(&mut self, change: Change, settled: Vec<Settled>, past: Option<PastPool>) {
        let size = change.spec.policy.size;
        // A size that an operator has set holds as long as the configuration says what it said then.
        let known = past.filter(|past| past.size == (size.min, size.max)).map(|past| past.record);
        if known.is_none() && settled.is_empty() {
            return self.define(change);
        }
        let id = self.add_pool(change);
        let anew = PoolRecord { wanted: size.min, ..PoolRecord::default() };
        self.restore_pool(id, known.unwrap_or(anew), settled);
    }

    /// Restores a pool and watches those of its workers that live.
    fn restore_pool(&mut self, id: PoolId, was: PoolRecord, settled: Vec<Settled>) {
        let Some(pool) = self.pools.get(&id) else { return };
        let policy = Box::new(pool.spec.policy.clone());
        let settled: Vec<Settled> = settled.into_iter().map(|one| self.ask_store(one)).collect();
        let records = settled.iter().map(|one| (one.slot, one.record.clone(), one.fate)).collect();
        self.inputs.push(Input::PoolRestored(id, policy, was, records));
        for one in settled {
            let worker = WorkerId { pool: id, slot: one.slot };
            let generation = Generation(one.record.generation.unwrap_or(0));
            if let Some(evidence) = one.evidence {
                self.evidence.insert((worker, generation), evidence);
            }
            let runs = one.found.as_ref().is_some_and(|found| found.init.main.is_some());
            let (leased, lives) = (one.record.leased, one.found.is_some());
            self.take_session_over(worker, generation, one.session, leased, (lives, runs));
            match one.found {
                Some(found) => self.take_over(worker, found, one.record.phase),
                None if one.failed => self.inputs.push(Input::SpawnFailed(worker, generation)),
                None => self.inputs.push(Input::Emptied(worker, generation)),
            }
        }
    }

    /// Where nobody could write down how a worker ended, the kernel may still know, by the pidfd that the service manager kept.
    fn ask_store(&mut self, mut one: Settled) -> Settled {
        if one.fate != Fate::Ended(Ended::Unknown) {
            return one;
        }
        let generation = Generation(one.record.generation.unwrap_or(0));
        let Some(pidfd) = self.fd_store.take(generation) else { return one };
        // That of its init: one that exited has reported, and one that was killed took the rest with it.
        if let (Some(Status::Signalled(signal)), Some(evidence)) = (exit_info(&pidfd), &mut one.evidence) {
            one.fate = Fate::Ended(Ended::Signalled(signal));
            evidence.status = Some(super::exit::cause_of(Ended::Signalled(signal)));
            evidence.note = Some(ENDED_ALONE.to_owned());
        }
        self.forget_pidfd(generation);
        one
    }

    fn take_over(&mut self, worker: WorkerId, found: Found, phase: engine::Phase) {
        let Some(pool) = self.pools.get(&worker.pool) else { return };
        let Found { cgroup, init, birth } = found;
        let name = pool.worker_name(worker.slot);
        let generation = Generation(birth.generation);
        let ready_is_open = matches!(phase, engine::Phase::Spawning | engine::Phase::Starting);
        // A claim may have other limits than its pool, which were in force when it was answered.
        let of_pool = self.sessions.of(worker).is_none().then_some(&pool.spec.limits);
        let enforcement = of_pool.and_then(|limits| cgroup.enforcement(&pool.prepared.cgroup, limits).ok());
        let enforcement = enforcement.unwrap_or_default();
        // EPIPE: it has ended a moment ago, which its pidfd says next.
        super::log::best_effort(init.announce(self.shared.daemon.as_fd()), "its end is about to be heard");
        let log_spec = pool.spec.log;
        self.open_log(worker, &name, log_spec);
        if self.handover.is_some() {
            self.fd_store.assume(generation);
        }
        let runs = init.main.is_some();
        let mut live = Live::new(
            None,
            i32::try_from(init.pid).unwrap_or(0),
            cgroup,
            Particulars {
                pool: worker.pool,
                generation,
                enforcement,
                chore: Chore {
                    trees: birth.trees,
                    image: birth.image,
                    frees: birth.frees,
                    ledger_at: Some(init.ledger_at),
                    ..Chore::default()
                },
                uid: birth.uid,
                told: Told { port: birth.port, last_port: birth.last_port },
                work_name: birth.work_name,
                started: clock::from_msec(birth.started_msec),
            },
        );
        // Somebody may have held it for a copy when the daemon before this one ended.
        super::log::best_effort(live.cgroup.thaw(), "it was not frozen");
        live.main_pid = init.main.as_ref().and_then(crate::host::spawn::pid_of);
        (live.main, live.claim) = (init.main, init.claim);
        live.phase = if runs { Phase::Running } else { Phase::Starting };
        let terminal = rustix::termios::isatty(&init.terminal).then_some(init.terminal);
        let ends = Ends {
            init: init.socket,
            stdout: init.stdout,
            stderr: init.stderr,
            channel: birth.channel.then_some(init.channel),
            notify: birth.notify.then_some(init.notify),
            notify_dir: None,
            theirs: Vec::new(),
        };
        if let Err(error) = self.watch(worker, live, init.pidfd, ends) {
            tracing::warn!(target: "worker", worker = %name, "take over {name}: {}; it was ended", chain(&error));
            let note =
                format!("could not be taken over from the daemon before this one, so it was ended: {}", chain(&error));
            self.evidence.insert((worker, generation), Evidence { note: Some(note), ..Evidence::default() });
            self.inputs.push(Input::Exited(worker, generation, Ended::Unknown));
            self.inputs.push(Input::Emptied(worker, generation));
            return;
        }
        self.take_terminal_over(worker, &name, terminal);
        self.tell_taken_over(&name, generation);
        if runs && phase == engine::Phase::Spawning {
            self.inputs.push(Input::Spawned(worker, generation));
        }
        if runs && ready_is_open {
            self.await_ready(worker);
        } else {
            self.learn_port(worker);
        }
        self.have_forgotten(worker, generation);
    }

    fn tell_taken_over(&mut self, name: &str, generation: Generation) {
        tracing::debug!(target: "worker", worker = %name, generation = generation.0, "{name} is taken over");
        self.audit("worker_adopt", name, &[("generation", &generation.0.to_string())]);
    }

    fn take_terminal_over(&mut self, worker: WorkerId, name: &str, terminal: Option<OwnedFd>) {
        if let Some(Err(error)) = terminal.map(|master| self.begin_terminal(worker, MAIN, master)) {
            tracing::warn!(target: "worker", worker = %name, %error, "watch the terminal of {name}: nobody can attach to it");
        }
    }

    fn open_log(&mut self, worker: WorkerId, name: &str, spec: crate::spec::LogSpec) {
        match LogFile::open(self.shared.log_dir.as_fd(), name, spec) {
            Ok(log) => {
                self.logs.insert(worker, log);
            }
            Err(error) => tracing::warn!(target: "worker", worker = %name, "{}", chain(&error)),
        }
    }

    /// Restarts the workers of pools that were taken over and are wanted otherwise by now, as a reload would.
    pub(super) fn restart_what_differs(&mut self, old_config: Option<&str>) {
        let Some(text) = old_config else { return };
        let environment = super::launch::environment();
        // What the build before this one understood, this one may not; then nothing is known to differ.
        let Ok(old) = crate::spec::parse_config(text, &environment) else { return };
        for spec in old.pools {
            let Some(id) = self.names.get(&spec.name).copied() else { continue };
            let Some(pool) = self.pools.get(&id) else { continue };
            if (PoolSpec { policy: pool.spec.policy.clone(), ..spec }) != pool.spec {
                self.restart_changed(id);
            }
        }
    }
}
