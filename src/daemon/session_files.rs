//! Files that tell scripts of sessions and warm workers: `sessions/NAME.json`, `pool/workers/NAME.json` and
//! `pool/pool-manager.pid`, with the keys of the system that had them first.
//!
//! They follow what is known here and are never read: what somebody removes is made anew, what an earlier daemon left and is
//! not true any more is removed at the start. No caller waits for them: what has changed is written a moment after callers
//! are answered, a few files a turn. Nothing that a claim brings in is in them: no environment, no secret, no command.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde_json::Value;

use super::birth::chain;
use super::control::{missed_of, occupancy};
use super::kept::Kept;
use super::launch::{refused, wait_for_other};
use super::live::Live;
use super::own_files::{OwnFiles, Removed, Watch};
use super::pool::Pool;
use super::session::{Session, SessionLimits};
use super::state::Daemon;
use super::timers::Timer;
use super::{Error, clock};
use crate::engine::{State, WorkerView};
use crate::host::record_dir::{RecordDir, RecordError};
use crate::spec::{DaemonSpec, WorkerId, format_bytes, format_cpus};

/// Where sessions are, below the home.
pub(super) const SESSIONS: &str = "sessions";
/// Where the rest is.
pub(super) const POOL: &str = "pool";
const WORKERS: &str = "workers";
const PID_NAME: &str = "pool-manager.pid";
const SUFFIX: &str = ".json";
/// Workers whose files are written in one turn.
const WORKERS_A_TURN: usize = 4;
/// Pause before what has changed is written: callers come first.
const PAUSE: Duration = Duration::from_millis(2);
/// Pause before what could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A file as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    name: String,
    content: String,
}

/// The directories, and what is in them.
#[derive(Debug)]
pub(super) struct SessionFiles {
    home: RecordDir,
    sessions: RecordDir,
    workers: RecordDir,
    pool: RecordDir,
    /// Of sessions, workers, pool and home.
    watches: [Option<Watch>; 4],
    of_workers: BTreeMap<WorkerId, Told>,
    of_sessions: BTreeMap<WorkerId, Told>,
    /// Of sessions that have ended and are kept, by their names.
    of_kept: BTreeMap<String, Told>,
    /// Whether there is a file with the pid.
    pid: bool,
    /// Of whom something has changed.
    changed: BTreeSet<WorkerId>,
    /// Which of those that are kept, or were.
    kept_changed: BTreeSet<String>,
    pools_changed: bool,
    /// Whether the timer is set.
    planned: bool,
    /// Whether they are written in this turn.
    due: bool,
    /// Whether the latest try failed.
    failing: bool,
}

/// As scripts know it.
#[derive(Debug, Serialize)]
struct WorkerFile<'a> {
    name: &'a str,
    container_id: String,
    created_at: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    claimed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_dir: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    /// Null in one that is warm: it serves one session and nobody before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used: Option<Value>,
    resource_limits: LimitsFile,
    pid: i32,
}

/// As scripts know it.
#[derive(Debug, Serialize)]
struct SessionFile<'a> {
    name: &'a str,
    image: String,
    parent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_dir: Option<&'a str>,
    created_at: String,
    detached: bool,
    remove_on_exit: bool,
    resource_limits: LimitsFile,
    user_isolation: UserFile,
    worker: &'a str,
    container_id: String,
    terminal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    /// When and how it ended, if it is only kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<String>,
}

#[derive(Debug, Serialize)]
struct UserFile {
    /// Whose session it is.
    user_id: u32,
    /// Who its processes are on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_uid: Option<u32>,
}

#[derive(Debug, Serialize)]
struct LimitsFile {
    /// Whether there are any, and the kernel holds them all.
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids_limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl LimitsFile {
    fn new(limits: SessionLimits, pool: &Pool, live: &Live) -> Self {
        let SessionLimits { memory_bytes, cpu_millis, pids } = limits;
        let any = memory_bytes.or(cpu_millis).or(pids).is_some();
        let reason = missed_of(pool, live).filter(|_| any);
        Self { enabled: any && reason.is_none(), reason, ..Self::of_none(limits) }
    }

    /// The same where nothing runs.
    fn of_none(limits: SessionLimits) -> Self {
        let SessionLimits { memory_bytes, cpu_millis, pids } = limits;
        Self {
            enabled: false,
            memory: memory_bytes.map(format_bytes),
            cpus: cpu_millis.map(format_cpus),
            pids_limit: pids.map(|pids| pids.to_string()),
            reason: Some("it has ended".to_owned()),
        }
    }
}

impl SessionFiles {
    /// Makes the directories and takes them for this daemon alone; of two that wrote there each would remove what the other
    /// tells.
    ///
    /// # Errors
    /// [`Error::SameHome`], and where somebody else could change one of them.
    pub(super) fn open(spec: &DaemonSpec) -> Result<Self, Error> {
        let open = |path: PathBuf| RecordDir::open(&path).map_err(refused);
        let (home, pool) = (open(spec.home.clone())?, open(spec.home.join(POOL))?);
        let (sessions, workers) = (open(spec.home.join(SESSIONS))?, open(spec.home.join(POOL).join(WORKERS))?);
        wait_for_other(|| match flock(&pool, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(())),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::Start { operation: "lock the directory of sessions", source: errno.into() }),
        })?
        .ok_or_else(|| Error::SameHome { path: spec.home.display().to_string() })?;
        Ok(Self {
            home,
            sessions,
            workers,
            pool,
            watches: [None; 4],
            of_workers: BTreeMap::new(),
            of_sessions: BTreeMap::new(),
            of_kept: BTreeMap::new(),
            pid: false,
            changed: BTreeSet::new(),
            kept_changed: BTreeSet::new(),
            pools_changed: true,
            planned: false,
            due: false,
            failing: false,
        })
    }

    /// Hears from now on what others remove.
    fn watch(&mut self, own_files: &OwnFiles) {
        self.watches = [&self.sessions, &self.workers, &self.pool, &self.home].map(|dir| own_files.watch_removals(dir));
    }

    /// Removes what earlier daemons have told, and what this one has.
    fn clear(&mut self) {
        let cleared = self.sessions.clear(SUFFIX).and_then(|()| self.workers.clear(SUFFIX));
        let cleared = cleared.and_then(|()| self.pool.clear(PID_NAME));
        super::log::best_effort(cleared, "what is told wrongly is written anew as soon as that can be done");
        self.of_workers.clear();
        self.of_sessions.clear();
        self.of_kept.clear();
        self.pid = false;
    }
}

/// Brings one file to what it is to say.
fn bring<K: Ord>(
    dir: &RecordDir,
    known: &mut BTreeMap<K, Told>,
    whose: K,
    wanted: Option<Told>,
) -> Result<(), RecordError> {
    let old = known.get(&whose);
    if old == wanted.as_ref() {
        return Ok(());
    }
    if let Some(old) = old.filter(|old| wanted.as_ref().is_none_or(|wanted| wanted.name != old.name)) {
        dir.remove(&old.name)?;
        known.remove(&whose);
    }
    if let Some(wanted) = wanted {
        dir.write(&wanted.name, &wanted.content)?;
        known.insert(whose, wanted);
    }
    Ok(())
}

fn told(name: &str, file: &impl Serialize) -> Option<Told> {
    // Nothing in them can fail to be JSON.
    let content = serde_json::to_string_pretty(file).ok()? + "\n";
    Some(Told { name: format!("{name}{SUFFIX}"), content })
}

/// Twelve digits, as scripts expect them: the generation, which no other worker of this daemon has or will have.
fn id_text(live: &Live) -> String {
    generation_text(live.generation.0)
}

fn generation_text(generation: u64) -> String {
    format!("{generation:012x}")
}

fn image_text(root: &str) -> String {
    root.trim_start_matches("image:").to_owned()
}

impl Daemon {
    /// Something about a worker has changed that its files may tell.
    pub(super) fn tell_of_worker(&mut self, worker: WorkerId) {
        let claimable = self.pools.get(&worker.pool).is_some_and(|pool| pool.spec.policy.claims.is_some());
        let files = &mut self.session_files;
        if claimable || files.of_workers.contains_key(&worker) || files.of_sessions.contains_key(&worker) {
            files.changed.insert(worker);
            self.write_session_files_in(PAUSE);
        }
    }

    /// A session is kept, or not any more.
    pub(super) fn tell_of_kept(&mut self, session: &str) {
        self.session_files.kept_changed.insert(session.to_owned());
        self.write_session_files_in(PAUSE);
    }

    /// Something about a pool has changed.
    pub(super) fn tell_of_pools(&mut self) {
        self.session_files.pools_changed = true;
        self.write_session_files_in(PAUSE);
    }

    /// Makes all files anew: at the start, and when it is not known any more what is there.
    pub(super) fn tell_of_all(&mut self) {
        self.session_files.watch(&self.own_files);
        self.session_files.clear();
        let workers: Vec<WorkerId> = self.engine.workers().map(|view| view.worker).collect();
        workers.into_iter().for_each(|worker| self.tell_of_worker(worker));
        let kept: Vec<String> = self.kept.keys().cloned().collect();
        kept.iter().for_each(|session| self.tell_of_kept(session));
        self.tell_of_pools();
    }

    /// The end, with nobody left to tell of; or, where workers go on alone, with nobody who manages them.
    pub(super) fn tell_of_nobody(&mut self, workers_stay: bool) {
        if workers_stay {
            let removed = self.session_files.pool.remove(PID_NAME);
            super::log::best_effort(removed, "the next daemon writes its own");
        } else {
            self.session_files.clear();
        }
    }

    fn write_session_files_in(&mut self, pause: Duration) {
        if !self.session_files.planned {
            self.session_files.planned = true;
            self.timers.set(clock::after(self.now, pause), Timer::SessionFiles);
        }
    }

    /// Their pause is over.
    pub(super) fn session_files_are_due(&mut self) {
        (self.session_files.planned, self.session_files.due) = (false, true);
    }

    /// Writes a few of the files that are not as they are to be, if it is time.
    pub(super) fn write_session_files(&mut self) {
        if !std::mem::take(&mut self.session_files.due) {
            return;
        }
        let written = self.write_some();
        let failing = std::mem::replace(&mut self.session_files.failing, written.is_err());
        match written {
            Ok(()) if failing => tracing::info!(target: "state", "files of sessions are written again"),
            Err(error) if !failing => tracing::warn!(target: "state", "{}: tried again", chain(&error)),
            Ok(()) | Err(_) => {}
        }
        if self.session_files.failing {
            self.write_session_files_in(RETRY_PAUSE);
        } else if !self.session_files.changed.is_empty() || !self.session_files.kept_changed.is_empty() {
            self.write_session_files_in(PAUSE);
        }
    }

    fn write_some(&mut self) -> Result<(), RecordError> {
        if self.session_files.pools_changed {
            self.write_pid()?;
            self.session_files.pools_changed = false;
        }
        for _ in 0..WORKERS_A_TURN {
            let Some(&worker) = self.session_files.changed.first() else { break };
            let (of_worker, of_session) = (self.worker_file(worker), self.session_file(worker));
            let files = &mut self.session_files;
            bring(&files.workers, &mut files.of_workers, worker, of_worker)?;
            bring(&files.sessions, &mut files.of_sessions, worker, of_session)?;
            files.changed.remove(&worker);
        }
        self.write_some_kept()
    }

    /// Those of sessions that are kept, once all others are written: a name may have gone from one to the other.
    fn write_some_kept(&mut self) -> Result<(), RecordError> {
        for _ in 0..WORKERS_A_TURN {
            if !self.session_files.changed.is_empty() {
                break;
            }
            let Some(name) = self.session_files.kept_changed.first().cloned() else { break };
            let wanted = self.kept.get(&name).and_then(|kept| self.kept_file(kept));
            let files = &mut self.session_files;
            let file_name = format!("{name}{SUFFIX}");
            if wanted.is_none() && files.of_sessions.values().any(|told| told.name == file_name) {
                // The file is that of a session which has begun anew under the name.
                files.of_kept.remove(&name);
            } else {
                bring(&files.sessions, &mut files.of_kept, name.clone(), wanted)?;
            }
            files.kept_changed.remove(&name);
        }
        Ok(())
    }

    fn kept_file(&self, kept: &Kept) -> Option<Told> {
        let session = &kept.session;
        let file = SessionFile {
            name: &session.name,
            image: image_text(&kept.root),
            parent: self.spec.instance.as_str(),
            project_dir: session.project.as_deref(),
            created_at: clock::rfc3339(clock::from_msec(session.created_msec)),
            detached: session.detached,
            remove_on_exit: false,
            resource_limits: LimitsFile::of_none(session.limits),
            user_isolation: UserFile { user_id: session.owner, worker_uid: None },
            worker: &kept.worker,
            container_id: generation_text(session.generation),
            terminal: session.terminal,
            pid: None,
            ended_at: Some(&kept.ended),
            exit: Some(kept.cause.to_string()),
        };
        told(&session.name, &file)
    }

    /// Whether anybody looks after warm workers, in the form that scripts ask for.
    fn write_pid(&mut self) -> Result<(), RecordError> {
        let managed = |pool: &Pool| pool.spec.policy.claims.is_some() && !self.engine.claims(pool.id).paused;
        let wanted = self.pools.values().any(managed);
        let files = &mut self.session_files;
        if wanted && !files.pid {
            files.pool.write(PID_NAME, &format!("{}\n", std::process::id()))?;
        } else if files.pid && !wanted {
            files.pool.remove(PID_NAME)?;
        }
        files.pid = wanted;
        Ok(())
    }

    /// What is there of a worker that is ready, and of whom it can be claimed.
    fn ready(&self, worker: WorkerId) -> Option<(&Pool, &Live, WorkerView)> {
        let pool = self.pools.get(&worker.pool).filter(|pool| pool.spec.policy.claims.is_some())?;
        let view = self.engine.worker(worker)?;
        let live = self.live.get(&worker).filter(|live| Some(live.generation) == view.generation)?;
        matches!(view.state, State::Healthy | State::Unhealthy).then_some((pool, live, view))
    }

    fn worker_file(&self, worker: WorkerId) -> Option<Told> {
        let (pool, live, view) = self.ready(worker)?;
        let leased = view.leased;
        let session = self.sessions.of(worker).filter(|_| leased);
        if leased && session.is_none() {
            // In a moment it has one.
            return None;
        }
        let name = pool.worker_name(worker.slot);
        let limits = session.map_or_else(|| SessionLimits::of(&pool.spec.limits), |session| session.limits);
        let file = WorkerFile {
            name: &name,
            container_id: id_text(live),
            created_at: clock::rfc3339(live.started),
            status: occupancy(&view).as_str(),
            claimed_at: session.map(|session| clock::rfc3339(clock::from_msec(session.created_msec))),
            project_dir: session.and_then(|session| session.project.as_deref()),
            session: session.map(|session| session.name.as_str()),
            last_used: (!leased).then_some(Value::Null),
            resource_limits: LimitsFile::new(limits, pool, live),
            pid: live.init_pid,
        };
        told(&name, &file)
    }

    /// Of a session whose caller was told that it has it, until its place is given up.
    fn session_file(&self, worker: WorkerId) -> Option<Told> {
        let session: &Session = self.sessions.of(worker).filter(|session| session.answered)?;
        let pool = self.pools.get(&worker.pool)?;
        let live = self.live.get(&worker).filter(|live| live.generation.0 == session.generation)?;
        let name = pool.worker_name(worker.slot);
        let file = SessionFile {
            name: &session.name,
            image: image_text(&pool.spec.root.to_string()),
            parent: self.spec.instance.as_str(),
            project_dir: session.project.as_deref(),
            created_at: clock::rfc3339(clock::from_msec(session.created_msec)),
            detached: session.detached,
            remove_on_exit: !session.keeps,
            resource_limits: LimitsFile::new(session.limits, pool, live),
            user_isolation: UserFile { user_id: session.owner, worker_uid: Some(live.uid) },
            worker: &name,
            container_id: id_text(live),
            terminal: session.terminal,
            pid: Some(live.init_pid),
            ended_at: None,
            exit: None,
        };
        told(&session.name, &file)
    }

    /// Somebody has removed something from one of the directories, or one of them.
    pub(super) fn look_after_session_files(&mut self, removed: &[Removed]) {
        if removed.iter().any(|one| [SESSIONS, POOL, WORKERS].contains(&one.name.as_str())) {
            return self.renew_session_files();
        }
        let files = &mut self.session_files;
        let place = |watch: Watch| files.watches.iter().position(|known| *known == Some(watch));
        let (mut lost, mut pid) = (Vec::new(), false);
        let mut lost_kept = Vec::new();
        for one in removed {
            let of_kept = one.name.strip_suffix(SUFFIX).filter(|_| place(one.watch) == Some(0));
            if let Some(name) = of_kept.filter(|name| files.of_kept.contains_key(*name)) {
                files.of_kept.remove(name);
                lost_kept.push(name.to_owned());
                continue;
            }
            let known = match place(one.watch) {
                Some(0) => &mut files.of_sessions,
                Some(1) => &mut files.of_workers,
                Some(_) if one.name == PID_NAME && files.pid => {
                    (files.pid, files.pools_changed, pid) = (false, true, true);
                    continue;
                }
                Some(_) | None => continue,
            };
            let its = known.iter().find(|(_, told)| told.name == one.name).map(|(worker, _)| *worker);
            if let Some(worker) = its {
                known.remove(&worker);
                lost.push(worker);
            }
        }
        if lost.is_empty() && lost_kept.is_empty() && !pid {
            return;
        }
        tracing::info!(target: "state", "files of sessions were removed by somebody else: they are written anew");
        files.changed.extend(lost);
        files.kept_changed.extend(lost_kept);
        self.write_session_files_in(PAUSE);
    }

    /// One of the directories has gone, or it was not heard what became of what is in them.
    pub(super) fn renew_session_files(&mut self) {
        let files = &mut self.session_files;
        for dir in [&mut files.home, &mut files.pool, &mut files.sessions, &mut files.workers] {
            if let Err(error) = dir.renew() {
                tracing::warn!(target: "state", "{}: files of sessions are not written", chain(&error));
            }
        }
        self.tell_of_all();
    }
}
