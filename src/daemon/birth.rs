//! Carries out `Effect::Spawn`: makes everything that a worker is born with, clones it, and listens to it.
//!
//! Whatever fails, nothing of the attempt is left: what was made is on a list that is undone in reverse.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use mio::Interest;

use super::ends::{Ends, ends, give, make_dir};
use super::environment::{self, Told, WORK_DIR};
use super::live::{Evidence, Live, Watched};
use super::past::BirthRecord;
use super::pool::{Pool, listen_text};
use super::sources::{Source, Sources};
use super::state::{Chore, Daemon, Freed, Place};
use super::timers::Timer;
use crate::engine::{Input, Time};
use crate::host::cgroup::{CgroupError, Enforcement, WorkerCgroup};
use crate::host::identity::{IdentityError, MAPPED_RANGE, user_namespace};
use crate::host::init_image::{Begins, ImageError, Start, Window, start_image};
use crate::host::ledger::LedgerError;
use crate::host::logfile::{LogFile, LogFileError, Stream};
use crate::host::port;
use crate::host::spawn::{self, Birth, ExtraMount, Gone, Overlay, Plan, SpawnError};
use crate::host::volume::VolumeError;
use crate::host::workdir::{LinkKind, Owner, WorkDir, WorkDirError};
use crate::protocol::control::StartFailure;
use crate::spec::{Generation, Identity, Net, OnSupervisorDeath, PoolSpec, Ports, Seccomp, WorkerId};

/// How many private ids there are: more than workers, so that one is not used again soon.
pub(super) const IDS: u32 = MAPPED_RANGE;
/// How many ranges for user namespaces fit above them.
pub(super) const RANGES: u32 = 4_000;

/// A worker could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum BirthError {
    #[error("make its cgroup")]
    Cgroup(#[from] CgroupError),
    #[error("make its directory")]
    WorkDir(#[from] WorkDirError),
    #[error("find it an identity")]
    Identity(#[from] IdentityError),
    #[error("write its start image")]
    Image(#[from] ImageError),
    #[error("start it")]
    Spawn(#[from] SpawnError),
    #[error("give it a place in the exit ledger")]
    Ledger(#[from] LedgerError),
    #[error("give it its volumes")]
    Volume(#[from] VolumeError),
    #[error("open its log")]
    Log(#[from] LogFileError),
    #[error("{operation}")]
    Step { operation: &'static str, source: io::Error },
    #[error("port {port} is in use{}", .holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    PortInUse { port: u16, holder: Option<String> },
    #[error("give it ports: all of {ports} are told to workers that live")]
    NoPorts { ports: Ports },
    #[error("write down that it is started: {trouble}")]
    Unwritten { trouble: String },
    #[error("{lacks}")]
    NoImage { lacks: String },
    #[error("its pool is gone")]
    NoPool,
}

impl BirthError {
    const fn stage(&self) -> &'static str {
        match self {
            Self::Cgroup(_) => "cgroup",
            Self::WorkDir(_) => "directory",
            Self::Identity(_) => "identity",
            Self::Image(_) => "image",
            Self::Spawn(_) => "clone",
            Self::Ledger(_) => "ledger",
            Self::Log(_) => "log",
            Self::Volume(_) => "volume",
            Self::Step { .. } => "sockets",
            Self::PortInUse { .. } | Self::NoPorts { .. } => "port",
            Self::Unwritten { .. } => "state",
            Self::NoImage { .. } => "image",
            Self::NoPool => "pool",
        }
    }
}

pub(super) fn step<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> BirthError {
    move |source| BirthError::Step { operation, source: source.into() }
}

/// An error and its causes as one line: `make its cgroup: set memory.max to 64M: Invalid argument`.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The error number at the bottom of a chain.
pub(super) fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        if let Some(errno) = cause.downcast_ref::<rustix::io::Errno>() {
            return Some(errno.raw_os_error());
        }
        next = cause.source();
    }
    None
}

/// A failure as a certificate has it.
pub(super) fn start_failure(stage: &str, error: &(dyn std::error::Error + 'static)) -> StartFailure {
    StartFailure { stage: stage.to_owned(), errno: errno_of(error), text: chain(error) }
}

/// How often a spawn is tried again for which the host had no room.
const RETRIES: u32 = 10;
/// The size of a terminal that nobody has attached to yet.
pub(super) const WINDOW: Window = Window { rows: 24, columns: 80 };
/// The first pause; it doubles, up to the longest.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Whether an error says that the host has no room now: EAGAIN, ENOMEM, ENFILE, EMFILE, ENOSPC, EDQUOT.
pub(super) const fn is_shortage(errno: i32) -> bool {
    matches!(errno, 11 | 12 | 23 | 24 | 28 | 122)
}

/// Who a worker runs as, outside and inside.
pub(super) struct Ids {
    /// What is free again when it has ended.
    freed: Option<Freed>,
    /// On the host.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// In its user namespace, or the same.
    inside: (u32, u32),
    pub(super) userns: Option<Rc<OwnedFd>>,
}

/// What has been made so far and has to go again if the rest fails.
#[derive(Default)]
pub(super) struct Made {
    cgroup: Option<WorkerCgroup>,
    pub(super) chore: Chore,
}

/// The log of a worker that is about to be born.
fn log(pool: &PoolSpec, dir: BorrowedFd<'_>, name: &str) -> Result<LogFile, LogFileError> {
    if pool.policy.claims.is_some() {
        // What is logged there is a session's, and who has the place next is to read nothing of it.
        LogFile::forget(dir, name)?;
    }
    LogFile::open(dir, name, pool.log)
}

impl Daemon {
    /// Starts a worker; what fails becomes `SpawnFailed` in the next turn.
    pub(super) fn spawn(&mut self, worker: WorkerId, generation: Generation) {
        self.spawn_once(worker, generation, 0);
    }

    /// Starts a worker that the host had no room for `tries` times.
    ///
    /// A shortage of the host is no fault of the worker, so it does not count towards its crash barrier: the same spawn is
    /// tried again, with growing pauses, for about twenty seconds or until the engine wants it no more.
    pub(super) fn spawn_once(&mut self, worker: WorkerId, generation: Generation, tries: u32) {
        let postponed = self.postponed.remove(&worker).map(|(_, failure)| failure);
        let is_first = postponed.is_none();
        if self.is_being_removed(worker, generation)
            && let Some(failure) = postponed
        {
            // What the try before has made goes first: this one makes the same names.
            return self.postpone(worker, generation, failure, tries, RETRY_PAUSE);
        }
        let mut made = Made::default();
        let Err(error) = self.try_spawn(worker, generation, &mut made) else {
            self.break_holds_of(worker);
            return self.audit_spawn(worker, generation);
        };
        self.chores.push_back(Chore { of: Some((worker, generation)), cgroup: made.cgroup, ..made.chore });
        self.logs.remove(&worker);
        let failure = start_failure(error.stage(), &error);
        // A disk that takes no state is nothing that a worker could get used to: that is waited out however long it takes.
        let unwritten = matches!(error, BirthError::Unwritten { .. });
        // Somebody who is ending still has ports.
        let is_scarce = matches!(error, BirthError::NoPorts { .. }) || failure.errno.is_some_and(is_shortage);
        if unwritten || (tries < RETRIES && is_scarce) {
            // Said once: what is in the way of all is in the way of each, time and again.
            let name = self.worker_name(worker);
            if is_first {
                tracing::warn!(target: "spawn", worker = %name, "start {name}: {}; it is tried again", failure.text);
            } else {
                tracing::debug!(target: "spawn", worker = %name, "start {name}: {}; it is tried again", failure.text);
            }
            let doublings = if unwritten { 3 } else { tries.min(RETRIES) };
            let pause = RETRY_PAUSE.saturating_mul(1 << doublings).min(RETRY_PAUSE_MAX);
            let tries = tries.saturating_add(u32::from(!unwritten));
            return self.postpone(worker, generation, failure, tries, pause);
        }
        self.spawn_failed(worker, generation, failure);
    }

    fn postpone(&mut self, worker: WorkerId, generation: Generation, why: StartFailure, tries: u32, pause: Duration) {
        self.timers.set(super::clock::after(self.now, pause), Timer::Spawn(worker, generation, tries));
        self.postponed.insert(worker, (generation, why));
    }

    fn is_being_removed(&self, worker: WorkerId, generation: Generation) -> bool {
        self.chores.iter().chain(&self.late_chores).any(|chore| chore.of == Some((worker, generation)))
    }

    /// Gives up a spawn that was to be tried again.
    pub(super) fn give_up_spawn(&mut self, worker: WorkerId, generation: Generation) {
        match self.postponed.remove(&worker) {
            Some((known, failure)) if known == generation => self.spawn_failed(worker, generation, failure),
            Some(other) => {
                self.postponed.insert(worker, other);
            }
            None => {}
        }
    }

    fn spawn_failed(&mut self, worker: WorkerId, generation: Generation, failure: StartFailure) {
        let name = self.worker_name(worker);
        tracing::warn!(target: "spawn", worker = %name, generation = generation.0, "start {name}: {}", failure.text);
        let evidence = Evidence { start_failure: Some(failure), ..Evidence::default() };
        self.evidence.insert((worker, generation), evidence);
        self.inputs.push(Input::SpawnFailed(worker, generation));
    }

    /// Whether nothing stands in the way of a spawn that is known beforehand.
    fn check_ready_to_spawn(&self, worker: WorkerId) -> Result<(), BirthError> {
        if let Some(trouble) = self.persist.trouble() {
            return Err(BirthError::Unwritten { trouble: trouble.to_owned() });
        }
        let pool = self.pools.get(&worker.pool).ok_or(BirthError::NoPool)?;
        match &pool.prepared.lacks {
            Some(lacks) => Err(BirthError::NoImage { lacks: lacks.clone() }),
            None => Ok(()),
        }
    }

    /// The ports that a worker is to be told: what nobody who lives was told, whatever the configuration was then.
    fn ports_of(&self, pool: &Pool, slot: u32) -> Result<Told, BirthError> {
        let Some(ports) = pool.spec.ports else {
            return Ok(Told { port: environment::port(pool, slot), last_port: None });
        };
        let told = self.live.values().filter_map(|live| Some((live.told.port?, live.told.last_port)));
        let mut taken: Vec<(u16, u16)> = told.map(|(port, last)| (port, last.unwrap_or(port))).collect();
        taken.sort_unstable();
        let mut taken = taken.into_iter().peekable();
        let free = ports.pieces().find(|(first, last)| {
            while taken.next_if(|(_, other)| other < first).is_some() {}
            taken.peek().is_none_or(|(other, _)| other > last)
        });
        let (first, last) = free.ok_or(BirthError::NoPorts { ports })?;
        Ok(Told { port: Some(first), last_port: Some(last) })
    }

    fn try_spawn(&mut self, worker: WorkerId, generation: Generation, made: &mut Made) -> Result<(), BirthError> {
        self.check_ready_to_spawn(worker)?;
        let pool = self.pools.get(&worker.pool).ok_or(BirthError::NoPool)?;
        let name = pool.worker_name(worker.slot);
        let told = self.ports_of(pool, worker.slot)?;
        if let (Some(port), None, Net::Parent) = (told.port, told.last_port, &pool.spec.net) {
            check_port(port, &mut self.holder_search, self.now)?;
        }
        let limits = &pool.spec.limits;
        let (cgroup, enforcement) =
            WorkerCgroup::create(&pool.prepared.cgroup, worker.slot, generation, limits, self.spec.limits)?;
        made.cgroup = Some(cgroup);
        let place = format!("{name}-{}", generation.0);
        let ids = take_ids(pool, &self.spec, &mut self.shared.ids, &mut self.shared.ranges)?;
        made.chore.frees = ids.freed;
        made.chore.trees.push((Place::Work, place.clone()));
        let prefer = if pool.spec.root.has_overlay() { LinkKind::HardLink } else { LinkKind::Symlink };
        let owner = Owner { uid: ids.uid, gid: ids.gid };
        let (work, _) = WorkDir::create(self.shared.work_dirs.as_fd(), &place, &pool.prepared.links, prefer, owner)?;
        let overlay = self.overlay(pool, &ids, &place, made)?;
        let extra = super::volumes::mounts(&self.shared.volumes, &pool.spec.volumes, &ids)?;
        let mut ends = ends(pool, &ids, self.shared.null.as_fd(), self.shared.notify_dirs.as_fd(), &place, made)?;
        let ledger_at = self.shared.ledger.take()?;
        made.chore.ledger_at = Some(ledger_at);
        let started = super::clock::wall();
        let record = BirthRecord {
            pool: pool.spec.name.to_string(),
            slot: worker.slot,
            generation: generation.0,
            uid: ids.uid,
            frees: ids.freed,
            port: told.port,
            last_port: told.last_port,
            work_name: place.clone(),
            trees: made.chore.trees.clone(),
            image: made.chore.image.clone(),
            started_msec: super::clock::msec(started),
            listen: pool.spec.listen.iter().map(listen_text).collect(),
            channel: ends.channel.is_some(),
            notify: ends.notify.is_some(),
        };
        let image = image(pool, self.spec.instance.as_str(), &ends, &record, ledger_at)?;
        ends.theirs.insert(4, image);
        ends.keep(&self.shared).map_err(step("give its init what it keeps"))?;
        let work_dir = work.dir().try_clone_to_owned().map_err(step("open its directory"))?;
        let notify_dir = ends.notify_dir.take();
        let passed = std::mem::take(&mut ends.theirs);
        let plan =
            plan(pool, &name, &ids, &self.shared.init, PlanFds { work_dir, notify_dir, overlay, extra, passed })?;
        self.logs.insert(worker, log(&pool.spec, self.shared.log_dir.as_fd(), &name)?);
        let cgroup_dir = made.cgroup.as_ref().map(WorkerCgroup::dir);
        let child = spawn::begin(plan, cgroup_dir, self.shared.stacks.pop())?;
        let Some(cgroup) = made.cgroup.take() else { return Err(BirthError::NoPool) };
        let chore = std::mem::take(&mut made.chore);
        // From here on there is a child: whatever fails to be watched ends it, and its exit is watched above all.
        let live = Live::new(
            Some(child.birth),
            child.pid,
            cgroup,
            super::live::Particulars {
                pool: worker.pool,
                generation,
                enforcement,
                chore,
                uid: ids.uid,
                told,
                work_name: place,
                started,
            },
        );
        self.watch(worker, live, child.pidfd, ends)
    }

    pub(super) fn watch(
        &mut self,
        worker: WorkerId,
        mut live: Live,
        pidfd: OwnedFd,
        ends: Ends,
    ) -> Result<(), BirthError> {
        let sources = &mut self.sources;
        let watched = (|| {
            live.init = Some(listen(sources, ends.init, Source::Init(worker))?);
            live.stdout = Some(listen(sources, ends.stdout, Source::Output(worker, Stream::Stdout))?);
            live.stderr = Some(listen(sources, ends.stderr, Source::Output(worker, Stream::Stderr))?);
            live.channel = ends.channel.map(|fd| listen(sources, fd, Source::Channel(worker))).transpose()?;
            live.notify = ends.notify.map(|fd| listen(sources, fd, Source::Notify(worker))).transpose()?;
            Ok(())
        })();
        let exit = sources.add(pidfd.as_fd(), Source::Exit(worker), Interest::READABLE);
        match (watched, exit) {
            (Ok(()), Ok(token)) => {
                live.process = Some(Watched { fd: pidfd, token });
                self.live.insert(worker, live);
                self.watch_limits(worker);
                self.store_pidfd(worker);
                Ok(())
            }
            (watched, exit) => {
                let failure = watched.err().unwrap_or(BirthError::Step {
                    operation: "watch its process",
                    source: exit.err().unwrap_or_else(|| io::ErrorKind::Other.into()),
                });
                self.end_unwatched(live, &pidfd);
                Err(failure)
            }
        }
    }

    /// Ends a child that cannot be watched. Blocks until it is dead, which SIGKILL sees to within a scheduling delay; this is
    /// the path of an exhausted epoll, where there is no event to wait for.
    fn end_unwatched(&mut self, live: Live, pidfd: &OwnedFd) {
        super::log::best_effort(live.cgroup.kill(), "the process itself is killed next");
        super::log::best_effort(crate::host::spawn::kill(pidfd), "it may have ended by itself");
        super::log::best_effort(crate::host::spawn::wait(pidfd), "it is this daemon's child");
        if let Some(birth) = live.birth {
            self.shared.stacks.push(birth.release(Gone::Waited));
        }
        for watched in [live.init, live.stdout, live.stderr, live.channel, live.notify].into_iter().flatten() {
            watched.close(&mut self.sources);
        }
        // One that was taken over is nobody's child here, and may still be dying.
        self.chores.push_back(Chore { cgroup: Some(live.cgroup), ..live.chore });
    }

    fn overlay(&self, pool: &Pool, ids: &Ids, place: &str, made: &mut Made) -> Result<Option<Overlay>, BirthError> {
        if !pool.spec.root.has_overlay() {
            return Ok(None);
        }
        made.chore.image.clone_from(&pool.prepared.image);
        made.chore.trees.push((Place::Overlay, place.to_owned()));
        let stage = make_dir(self.shared.overlay_dirs.as_fd(), place, 0o700).map_err(step("make its overlay"))?;
        let upper = make_dir(stage.as_fd(), "upper", 0o755).map_err(step("make its overlay"))?;
        make_dir(stage.as_fd(), "work", 0o700).map_err(step("make its overlay"))?;
        if ids.userns.is_some() {
            give(upper.as_fd(), "", ids.uid, ids.gid).map_err(step("give it its overlay"))?;
        }
        let mapped_lower = pool.prepared.lower.as_ref().map(OwnedFd::try_clone).transpose();
        let mapped_lower = mapped_lower.map_err(step("open its root directory"))?;
        Ok(Some(Overlay { stage, mapped_lower, carry: pool.prepared.carry.clone() }))
    }
}

fn listen(sources: &mut Sources, fd: OwnedFd, source: Source) -> Result<Watched, BirthError> {
    let token = sources.add(fd.as_fd(), source, Interest::READABLE).map_err(step("watch its sockets"))?;
    Ok(Watched { fd, token })
}

/// The search for a port's holder reads all of `/proc`: at most one in this time.
const HOLDER_SEARCH: Duration = Duration::from_secs(5);

fn check_port(number: u16, last_search: &mut Option<Time>, now: Time) -> Result<(), BirthError> {
    match port::check_free(number) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let due = last_search.is_none_or(|last| super::clock::since(last, now) >= HOLDER_SEARCH);
            let holder = if due { port::holder(number) } else { None };
            if due {
                *last_search = Some(now);
            }
            Err(BirthError::PortInUse { port: number, holder })
        }
        Err(source) => Err(BirthError::Step { operation: "look at its port", source }),
    }
}

fn take_ids(
    pool: &Pool,
    daemon: &crate::spec::DaemonSpec,
    ids: &mut crate::host::identity::IdPool,
    ranges: &mut crate::host::identity::IdPool,
) -> Result<Ids, BirthError> {
    match &pool.spec.identity {
        Identity::Dynamic => {
            let number = ids.take()?;
            let uid = daemon.uid_base.saturating_add(number);
            Ok(Ids { freed: Some(Freed::Id(number)), uid, gid: uid, inside: (uid, uid), userns: None })
        }
        Identity::Mapped => {
            let number = ranges.take()?;
            let base = daemon.uid_base.saturating_add(IDS).saturating_add(number.saturating_mul(MAPPED_RANGE));
            let made = user_namespace(base);
            let userns = made.inspect_err(|_| ranges.give_back(number))?;
            Ok(Ids {
                freed: Some(Freed::Range(number)),
                uid: base,
                gid: base,
                inside: (0, 0),
                userns: Some(Rc::new(userns)),
            })
        }
        Identity::Host(_) | Identity::UnsafeRoot => {
            let (uid, gid) = pool.prepared.host_ids.unwrap_or((u32::MAX, u32::MAX));
            Ok(Ids { freed: None, uid, gid, inside: (uid, gid), userns: None })
        }
    }
}

/// Everything that a worker's init is to know, sealed.
fn image(
    pool: &Pool,
    instance: &str,
    ends: &Ends,
    record: &BirthRecord,
    ledger_at: u64,
) -> Result<OwnedFd, BirthError> {
    let told = Told { port: record.port, last_port: record.last_port };
    let (argv, env) = environment::of_worker(pool, record.slot, instance, told);
    let death_msec = match pool.spec.on_supervisor_death {
        OnSupervisorDeath::Forever => None,
        OnSupervisorDeath::EndAfter(delay) => Some(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX - 1)),
    };
    let written = serde_json::to_vec(record);
    let written = written.map_err(|error| step("write its birth record")(io::Error::other(error)))?;
    let start = Start {
        argv: &argv,
        env: &env,
        cwd: WORK_DIR,
        rlimits: &pool.prepared.rlimits,
        seccomp: &pool.prepared.filter,
        passed: ends.for_program(),
        death_msec,
        ledger_at,
        generation: record.generation,
        record: &written,
        begins: begins(pool),
    };
    Ok(start_image(&start)?)
}

/// A worker that can be claimed waits for that.
fn begins(pool: &Pool) -> Begins {
    match (pool.spec.policy.claims, pool.spec.terminal) {
        // A filter of somebody else's need not know what an init does.
        (Some(_), _) => Begins::Parked { filtered: pool.spec.seccomp == Seccomp::Default },
        (None, true) => Begins::Terminal(WINDOW),
        (None, false) => Begins::Program,
    }
}

struct PlanFds {
    work_dir: OwnedFd,
    notify_dir: Option<OwnedFd>,
    overlay: Option<Overlay>,
    extra: Vec<ExtraMount>,
    passed: Vec<OwnedFd>,
}

fn plan(pool: &Pool, name: &str, ids: &Ids, init: &Rc<OwnedFd>, fds: PlanFds) -> Result<Plan, BirthError> {
    const GIB: u64 = 1 << 30;
    let size = pool.spec.limits.memory_bytes.map_or(GIB, |limit| limit.value);
    let options = |mode: &str| CString::new(format!("mode={mode},size={size},nr_inodes=65536"));
    let text = |made: Result<CString, std::ffi::NulError>| {
        made.map_err(|nul| BirthError::Step { operation: "name it", source: nul.into() })
    };
    Ok(Plan {
        template: Rc::clone(&pool.prepared.template),
        net: pool.prepared.net.clone(),
        own_net: pool.spec.net == Net::Own,
        userns: ids.userns.clone(),
        work_dir: fds.work_dir,
        notify_dir: fds.notify_dir,
        overlay: fds.overlay,
        extra: fds.extra,
        init: Rc::clone(init),
        hostname: text(CString::new(name.replace('.', "-")))?,
        tmp_options: text(options("1777"))?,
        shm_options: text(options("1777"))?,
        mask_proc: ids.uid == 0,
        dies_with_parent: matches!(pool.spec.on_supervisor_death, OnSupervisorDeath::EndAfter(delay) if delay.is_zero()),
        uid: ids.inside.0,
        gid: ids.inside.1,
        passed: fds.passed,
    })
}

/// What is kept of limits that are not enforced, as one sentence; `None` if all are.
pub(super) fn limits_reason(enforcement: &Enforcement) -> Option<String> {
    let missing: Vec<String> =
        enforcement.missing.iter().map(|missed| format!("{}: {}", missed.limit, missed.reason)).collect();
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// Lets go of what a child has read, once its init has spoken or it was waited for.
pub(super) fn release(stacks: &mut Vec<crate::host::spawn::Stack>, birth: Option<Birth>, gone: Gone) {
    const STACKS_MAX: usize = 64;
    if let Some(birth) = birth {
        let stack = birth.release(gone);
        // The last is the first to be taken: those with low descriptor numbers, where there are any.
        if stack.has_slots() {
            stacks.push(stack);
        } else if stacks.len() < STACKS_MAX {
            stacks.insert(0, stack);
        }
    }
}
