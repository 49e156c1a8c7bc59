//! From nothing to the first turn, and from the last turn to nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open, openat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::audit::Audit;
use super::control::{Control, Origin};
use super::events::EventLog;
use super::fd_store::FdStore;
use super::foresight::Foresight;
use super::holds::Holds;
use super::images::Images;
use super::jobs::Jobs;
use super::limit_watch::LimitWatch;
use super::log::LogHandle;
use super::manager::Manager;
use super::own_files::OwnFiles;
use super::passed::Passed;
use super::pool::remove_stale_in;
use super::probe::Probes;
use super::pulls::Pulls;
use super::ready_file::ReadyFiles;
use super::recover::{Recovery, end_leftovers};
use super::reload::{FIRST_START, discard_sockets, prepare_all};
use super::session_files::SessionFiles;
use super::signals::Signals;
use super::sources::Sources;
use super::state::{Daemon, Shared};
use super::timers::{Timer, Timers};
use super::upgrade::Handover;
use super::watchdog::Watchdog;
use super::{Error, RunOptions, clock};
use crate::engine::{Engine, Input, State, Target};
use crate::host::adopt::own_pidfd;
use crate::host::cgroup::{CgroupRoot, Location};
use crate::host::container;
use crate::host::handover::unblock_signals;
use crate::host::identity::IdPool;
use crate::host::image_store::ImageStore;
use crate::host::init_image::init_program;
use crate::host::late_binding::Home;
use crate::host::ledger::Ledger;
use crate::host::mounts::private_null;
use crate::host::own_dir::{OwnDirError, own_dir};
use crate::host::spawn::{PASSED_MAX, SLOTTED_STACKS_MAX, Stack, close_inherited, set_undumpable};
use crate::host::volume::Store;
use crate::protocol::control::DaemonState;
use crate::spec::{Config, DaemonSpec};

/// How long the lock of a dead daemon is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How long that of a cgroup is, whose holder has no name.
const BASE_PATIENCE: Duration = Duration::from_millis(500);
/// Pause before the service manager is told once more what it did not take.
const NOTIFY_PAUSE: Duration = Duration::from_millis(100);
pub(super) fn run(config: Config, mut options: RunOptions) -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    if let Some(missing) = container::missing() {
        return Err(Error::Container { missing });
    }
    let started = |operation| move |source| Error::Start { operation, source };
    let mut handover = options.handover.take();
    let environment = environment();
    raise_descriptor_limit();
    super::log::best_effort(crate::host::spawn::take_short_turns(), "then a busy machine answers later");
    let passed = match &handover {
        None => Passed::take(&environment, std::process::id()),
        // What was passed to this process has been taken by the program that it was before.
        Some(handover) => {
            close_inherited(handover.numbers()).map(|()| Passed::before(&environment, std::process::id()))
        }
    };
    let passed = passed.map_err(started("take the descriptors that were passed"))?;
    set_undumpable().map_err(started("keep this process's memory to itself"))?;
    forbid_core();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    keep_killer_away();
    let log = LogHandle::install(&config.daemon.log_level, config.daemon.log_format)?;
    for name in &passed.strangers {
        tracing::warn!(target: "control", "closed what the service manager passed as {name:?}: it is nothing of ours");
    }
    // What a worker is given is put in places from 0 on before its exec; nothing of the daemon may be in the way.
    let low = occupy_low_descriptors().map_err(started("open /dev/null"))?;
    let stacks = slotted_stacks(&low).map_err(started("reserve descriptors"))?;
    let dirs = Directories::make(&config.daemon, handover.as_mut().and_then(|handed| handed.locks.take()))?;
    let mut poll = mio::Poll::new().map_err(started("make the event queue"))?;
    let mut sources = Sources::new(poll.registry().try_clone().map_err(started("share the event queue"))?);
    let signals = Signals::listen(&mut sources).map_err(started("listen to signals"))?;
    let cgroups = CgroupRoot::prepare(Location::discover(&config.daemon.instance, config.daemon.cgroup.as_deref())?)?;
    let handed_lock = handover.as_mut().and_then(|handed| handed.cgroup_lock.take());
    let cgroup_lock = handed_lock.map_or_else(|| lock_base(&cgroups, &config.daemon), Ok)?;
    if let Some(handover) = handover.as_ref().filter(|handover| handover.is_trial()) {
        return try_to_follow(&config, &dirs, &cgroups, handover);
    }
    let given = Given { environment, passed, handover, log, dirs, stacks, sources, signals };
    let (mut daemon, old_config) = match assemble(config, options, given, &cgroups) {
        Ok(assembled) => assembled,
        Err(error) => {
            give_up(cgroups);
            return Err(error);
        }
    };
    (daemon.cgroups, daemon.cgroup_lock) = (Some(cgroups), Some(cgroup_lock));
    daemon.begin(old_config.as_deref());
    let ran = daemon.run(&mut poll);
    daemon.end(ran)
}

/// A trial: prepares everything as a start would, and changes nothing that the running daemon has.
fn try_to_follow(config: &Config, dirs: &Directories, cgroups: &CgroupRoot, handover: &Handover) -> Result<(), Error> {
    let past = Recovery::begin(config, dirs, cgroups)?;
    prepare_all(config, cgroups, &past.left, Some(handover))?;
    init_program()?;
    Handover::pass_trial().map_err(|source| Error::Start { operation: "say that the trial is passed", source })
}

/// The lock of the instance's cgroup. That of a dead daemon goes with its others, though not in the same moment.
///
/// # Errors
/// When a daemon of the same name has it that has other directories.
fn lock_base(cgroups: &CgroupRoot, spec: &DaemonSpec) -> Result<OwnedFd, Error> {
    let base = wait_for_other(|| Ok(cgroups.lock()?))?;
    base.ok_or_else(|| Error::SameInstance { instance: spec.instance.to_string() })
}

/// Tries a lock until a daemon that is ending has let go of it; `None` if it has not.
///
/// # Errors
/// Those of `lock`.
pub(super) fn wait_for_other<T>(lock: impl Fn() -> Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    let deadline = clock::after(clock::now(), BASE_PATIENCE);
    loop {
        match lock()? {
            None if clock::now() < deadline => pause_for_lock(),
            locked => return Ok(locked),
        }
    }
}

/// Removes what a start that failed has made in the cgroup tree.
///
/// Workers of an earlier daemon stay as they are, for a start that succeeds.
fn give_up(cgroups: CgroupRoot) {
    let removed = cgroups.walk().map_err(Error::from).and_then(|walk| end_leftovers(&cgroups, &[], &walk.pools));
    super::log::best_effort(removed, "the next start removes what is left");
    super::log::best_effort(cgroups.release(), "the next start takes it over");
}

impl Daemon {
    fn begin(&mut self, old_config: Option<&str>) {
        self.state = DaemonState::Running;
        let pid = std::process::id().to_string();
        self.audit("coordinator_start", "daemon", &[("version", env!("CARGO_PKG_VERSION")), ("pid", &pid)]);
        self.forget_untaken_pidfds();
        self.set_watchdog();
        let ready = self.begin_pulls();
        if ready {
            self.manager.ready(&format!("halsup {} runs; pools: {}", env!("CARGO_PKG_VERSION"), self.pools.len()));
            self.catch_up_with_manager();
            tracing::info!(target: "pool", instance = %self.spec.instance, pools = self.pools.len(), "ready");
        }
        // The engine hears what there is before it hears what is to become of it.
        self.decide();
        self.restore_tasks();
        self.tell_of_all();
        self.reap_orphans();
        self.sweep_volumes();
        self.restart_what_differs(old_config);
        if ready {
            self.inputs.push(Input::AwaitRequested(FIRST_START, Target::All));
        }
    }

    /// Says that the daemon is ready, after what it has waited for.
    pub(super) fn say_ready(&mut self) {
        self.manager.ready(&format!("halsup {} runs; pools: {}", env!("CARGO_PKG_VERSION"), self.pools.len()));
        self.catch_up_with_manager();
        tracing::info!(target: "pool", instance = %self.spec.instance, pools = self.pools.len(), "ready");
        self.inputs.push(Input::AwaitRequested(FIRST_START, Target::All));
    }

    /// Has the service manager told in a moment what it has not taken. To be called after news for it.
    pub(super) fn catch_up_with_manager(&mut self) {
        if self.manager.wants_call() {
            self.timers.set(clock::after(self.now, NOTIFY_PAUSE), Timer::Notify);
        }
    }

    fn audit_stop(&mut self, how: &str) {
        let pid = std::process::id().to_string();
        self.audit("coordinator_stop", "daemon", &[("pid", &pid), ("how", how)]);
        self.flush_audit();
    }

    /// Ends without touching a worker: all that is theirs stays where the next daemon looks for it.
    fn end_alone(mut self) {
        self.audit_stop("workers are left");
        for log in self.logs.values_mut() {
            log.flush(clock::wall());
        }
        self.sync_state();
        self.tell_of_nobody(true);
        self.shutdown_done(Vec::new());
        self.flush_clients();
        self.close_control();
        tracing::info!(target: "pool", workers = self.live.len(), "left");
    }

    fn end(mut self, ran: Result<(), Error>) -> Result<(), Error> {
        self.end_pulls();
        self.end_jobs();
        self.end_freezer();
        self.break_holds("the daemon ends");
        self.audit_stop("workers are ended");
        self.end_imports("the daemon ends");
        if self.leaves {
            self.end_alone();
            return ran;
        }
        self.conclude_tasks();
        let stuck: Vec<String> = self
            .engine
            .workers()
            .filter(|view| view.state == State::Stuck)
            .map(|view| self.worker_name(view.worker))
            .collect();
        self.chores.append(&mut self.late_chores);
        while self.do_chores() {
            self.manager.watchdog();
        }
        if stuck.is_empty() {
            self.keep_all_ended();
            self.forget_state();
        }
        let ids: Vec<_> = self.pools.keys().copied().collect();
        for id in ids {
            self.forget_pool(id);
        }
        self.sync_state();
        self.tell_of_nobody(!stuck.is_empty());
        if let Some(cgroups) = self.cgroups.take()
            && let Err(error) = cgroups.release()
        {
            tracing::warn!(target: "pool", "leave the cgroup: {}", super::birth::chain(&error));
        }
        self.shutdown_done(stuck.clone());
        self.flush_clients();
        self.close_control();
        tracing::info!(target: "pool", "stopped");
        ran?;
        if stuck.is_empty() { Ok(()) } else { Err(Error::Stuck { count: stuck.len(), names: stuck.join(", ") }) }
    }
}

/// As many descriptors as the host allows: a worker takes up to ten.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    super::log::best_effort(raised, "then fewer workers fit, and the spawn that fails says so");
}

/// Keeps the out-of-memory killer away: a worker between clone and exec shares this process's memory, so
/// that one killed there for its own limit would take the daemon with it.
fn keep_killer_away() {
    let never = std::fs::write("/proc/self/oom_score_adj", "-1000");
    super::log::best_effort(
        never,
        "needs CAP_SYS_RESOURCE; then the smallest memory limit is what keeps such a kill away",
    );
}

/// A child that shares this process's memory makes it dumpable again, as far as `fs.suid_dumpable` says, when it changes its
/// ids (commit_creds in the kernel). So no core may be written either way; one byte, because zero lets the kernel start a
/// handler that `core_pattern` names (core(5)). The hard limit stays for workers that were given another.
fn forbid_core() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    let lowered = setrlimit(Resource::Core, Rlimit { current: Some(maximum.map_or(1, |most| most.min(1))), maximum });
    super::log::best_effort(lowered, "a limit can always be lowered");
}

/// This process's environment, as far as it is text.
pub(super) fn environment() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

fn occupy_low_descriptors() -> io::Result<Vec<OwnedFd>> {
    let mut low = Vec::new();
    loop {
        let null = open_null()?;
        if usize::try_from(null.as_raw_fd()).is_ok_and(|number| number >= PASSED_MAX) {
            return Ok(low);
        }
        low.push(null);
    }
}

/// Stacks with low descriptor numbers, made while the low numbers are free.
fn slotted_stacks(low: &[OwnedFd]) -> io::Result<Vec<Stack>> {
    let Some(null) = low.first() else { return Ok(Vec::new()) };
    (0..SLOTTED_STACKS_MAX).map(|_| Stack::with_slots(null.as_fd())).collect()
}

fn open_null() -> io::Result<OwnedFd> {
    Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The daemon's directories, and the lock that makes it the only one.
pub(super) struct Directories {
    pub(super) state: OwnedFd,
    pub(super) runtime: OwnedFd,
    pub(super) work: OwnedFd,
    pub(super) notify: OwnedFd,
    pub(super) overlay: OwnedFd,
    tasks: OwnedFd,
    volumes: Store,
    all_logs: OwnedFd,
    pub(super) images: ImageStore,
    logs: OwnedFd,
    /// One on each: either may be shared with another daemon by mistake.
    locks: [OwnedFd; 2],
}

impl Directories {
    /// Makes and locks them. `locks` are those that the program before this one has had.
    fn make(spec: &DaemonSpec, locks: Option<[OwnedFd; 2]>) -> Result<Self, Error> {
        let state = directory(&spec.state_dir, 0o700)?;
        let runtime = directory(&spec.runtime_dir, 0o755)?;
        let locks = match locks {
            Some(locks) => locks,
            None => [lock(state.as_fd(), &spec.state_dir)?, lock(runtime.as_fd(), &spec.runtime_dir)?],
        };
        let all_logs = directory(&spec.state_dir.join("logs"), 0o700)?;
        let below = |parent: BorrowedFd<'_>, at: &Path, name: &str| {
            match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(broken("make", &at.join(name))(errno.into())),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::empty()).map_err(|errno| broken("open", &at.join(name))(errno.into()))
        };
        Ok(Self {
            work: below(runtime.as_fd(), &spec.runtime_dir, "work")?,
            notify: below(runtime.as_fd(), &spec.runtime_dir, "notify")?,
            overlay: below(state.as_fd(), &spec.state_dir, "overlay")?,
            tasks: below(state.as_fd(), &spec.state_dir, "tasks")?,
            volumes: Store::open(state.as_fd())?,
            all_logs,
            images: ImageStore::open(state.as_fd(), &spec.state_dir)?,
            logs: directory(&spec.state_dir.join("logs/workers"), 0o700)?,
            locks,
            state,
            runtime,
        })
    }
}

fn broken(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.display().to_string();
    move |source| Error::Directory { operation, path: path.clone(), source }
}

/// Makes a directory if need be and opens it; refuses one that others could change or replace.
fn directory(path: &Path, mode: u32) -> Result<OwnedFd, Error> {
    own_dir(path, mode).map_err(refused)
}

pub(super) fn refused(error: OwnDirError) -> Error {
    match error {
        OwnDirError::Step { operation, path, source } => broken(operation, &path)(source),
        OwnDirError::NotOurs { path } => Error::NotOurs { path: path.display().to_string() },
    }
}

/// The lock of a state directory; it is released by the kernel, whatever becomes of this process.
fn lock(state: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    let failed = |operation| broken(operation, &path.join("lock"));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(state, "lock", flags, Mode::RUSR | Mode::WUSR).map_err(|errno| failed("open")(errno.into()))?;
    match wait_for_lock(&lock) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(Error::Running { path: path.display().to_string(), pid: holder(&lock) });
        }
        Err(errno) => return Err(failed("lock")(errno.into())),
    }
    let pid = format!("{:<15}\n", std::process::id());
    rustix::io::pwrite(&lock, pid.as_bytes(), 0).map_err(|errno| failed("write")(errno.into()))?;
    Ok(lock)
}

/// Locks. A daemon that was killed in the middle of a spawn leaves its lock with the child until that executes, a millisecond
/// later: while the holder that is named does not live, that is waited for.
fn wait_for_lock(lock: &OwnedFd) -> Result<(), rustix::io::Errno> {
    let deadline = clock::after(clock::now(), LOCK_PATIENCE);
    loop {
        let taken = flock(lock, FlockOperation::NonBlockingLockExclusive);
        let dead = || holder(lock).is_some_and(|pid| !runs(pid));
        if taken != Err(rustix::io::Errno::WOULDBLOCK) || clock::now() >= deadline || !dead() {
            return taken;
        }
        pause_for_lock();
    }
}

/// No event tells that a lock is free.
fn pause_for_lock() {
    let pause = Timespec::try_from(Duration::from_millis(2)).unwrap_or_default();
    super::log::best_effort(rustix::event::poll(&mut [], Some(&pause)), "tried again at once");
}

/// Whether this process has not ended; one that waits to be reaped has.
fn runs(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pidfd = pid.map(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()));
    let Some(Ok(pidfd)) = pidfd else { return false };
    let mut end = [PollFd::new(&pidfd, PollFlags::IN)];
    rustix::event::poll(&mut end, Some(&Timespec::default())) != Ok(1)
}

/// Who holds a lock, by its own word.
fn holder(lock: &OwnedFd) -> Option<u32> {
    let mut text = [0_u8; 16];
    let length = rustix::io::pread(lock, &mut text, 0).unwrap_or(0);
    std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
}

/// What a daemon is made of, beside its configuration.
struct Given {
    environment: BTreeMap<String, String>,
    passed: Passed,
    handover: Option<Handover>,
    log: LogHandle,
    dirs: Directories,
    stacks: Vec<Stack>,
    sources: Sources,
    signals: Signals,
}

/// Takes over the connections of the program before this one; place and number of the one that waits for the upgrade.
fn greet_again(
    control: &mut Control,
    handover: Option<&mut Handover>,
    sources: &mut Sources,
    now: crate::engine::Time,
) -> Option<(u32, u64)> {
    let mut waiting = None;
    for (socket, is_asking) in handover.map(|handed| std::mem::take(&mut handed.clients)).unwrap_or_default() {
        let Some(client) = control.take_over(socket, sources, now) else { continue };
        if is_asking {
            control.have_wait(client);
            waiting = Some(client);
        }
    }
    waiting
}

/// What all workers share, and the audit log.
fn shared(
    dirs: Directories,
    (ids, ranges): (IdPool, IdPool),
    ledger: Ledger,
    stacks: Vec<Stack>,
) -> Result<(Audit, Shared, Images), Error> {
    let audit = Audit::open(dirs.all_logs.as_fd())?;
    let daemon = own_pidfd().map_err(|source| Error::Start { operation: "open a pidfd of this process", source })?;
    let home = Home::here().map_err(|source| Error::Start { operation: "hold on to its own directories", source })?;
    let images = Images::new(dirs.images);
    let shared = Shared {
        init: Rc::new(init_program()?),
        work_dirs: dirs.work,
        notify_dirs: dirs.notify,
        overlay_dirs: dirs.overlay,
        volumes: dirs.volumes,
        log_dir: dirs.logs,
        task_dir: dirs.tasks,
        null: private_null()?,
        ids,
        ranges,
        stacks,
        ledger,
        home,
        daemon,
        locks: dirs.locks,
    };
    Ok((audit, shared, images))
}

/// The program before this one has blocked them until somebody listens.
fn let_signals_through(handover: Option<&Handover>) -> Result<(), Error> {
    let blocked = handover.is_some();
    let through = if blocked { unblock_signals() } else { Ok(()) };
    through.map_err(|source| Error::Start { operation: "let signals through", source })
}

#[expect(clippy::too_many_lines, reason = "most of it is one field a line")]
fn assemble(
    config: Config,
    options: RunOptions,
    given: Given,
    cgroups: &CgroupRoot,
) -> Result<(Daemon, Option<String>), Error> {
    let Given { environment, mut passed, mut handover, log, dirs, stacks, mut sources, signals } = given;
    let session_files = SessionFiles::open(&config.daemon)?;
    let mut past = Recovery::begin(&config, &dirs, cgroups)?;
    let_signals_through(handover.as_ref())?;
    // What has a name in the file system comes last, so that a start that fails leaves none.
    let changes = prepare_all(&config, cgroups, &past.left, handover.as_ref())?;
    let mut control = Control::open(&config.daemon, Origin::of(&mut passed, handover.as_mut()), &mut sources)
        .inspect_err(|_| discard_sockets(&changes, &past.left, handover.as_ref()))?;
    let (config_text, now) = (past.persist.config_in_force(handover.as_ref(), &options), clock::now());
    let found = past.settle(changes, &dirs, cgroups, now, handover.is_some())?;
    remove_stale_in(&config);
    let fd_store = FdStore::new(&environment, std::process::id(), passed.pidfds);
    let own_files = OwnFiles::watch([dirs.state.as_fd(), dirs.runtime.as_fd()], &mut sources);
    let (audit, shared, images) = shared(dirs, (found.ids, found.ranges), found.ledger, stacks)?;
    let mut daemon = Daemon {
        asked_for_upgrade: greet_again(&mut control, handover.as_mut(), &mut sources, now),
        spec: config.daemon,
        config_path: options.config_path.clone(),
        options,
        engine: Engine::with_last_generation(now.0, found.generation.max(fd_store.last())),
        now,
        started: now,
        started_wall: handover.as_ref().map_or_else(clock::wall, Handover::started),
        state: DaemonState::Starting,
        cgroups: None,
        shared,
        pools: BTreeMap::new(),
        names: BTreeMap::new(),
        next_pool: 0,
        leaving: BTreeSet::new(),
        live: BTreeMap::new(),
        postponed: BTreeMap::new(),
        evidence: BTreeMap::new(),
        asked_by: BTreeMap::new(),
        last_exit: BTreeMap::new(),
        own_files,
        persist: found.persist,
        sessions: super::session::Sessions::default(),
        kept: found.kept,
        tokens: found.tokens,
        gateway: None,
        gateway_spec: config.gateway,
        drained: None,
        tasks: super::tasks::Tasks::new(config.tasks, found.tasks),
        session_files,
        written: BTreeMap::new(),
        certificates: found.certificates,
        logs: BTreeMap::new(),
        terminals: super::terminal::Terminals::default(),
        sources,
        timers: Timers::default(),
        probes: Probes::default(),
        ready_files: ReadyFiles::default(),
        limit_watch: LimitWatch::default(),
        inputs: Vec::new(),
        images,
        pulls: Pulls::default(),
        requests: super::requests::Requests::new(clock::msec(clock::wall())),
        chores: found.chores,
        foresight: Foresight::default(),
        late_chores: VecDeque::new(),
        events: EventLog::default(),
        telemetry: super::telemetry::Telemetry::default(),
        control,
        log,
        config_text,
        signals,
        manager: Manager::from_environment(&environment),
        fd_store,
        watchdog: Watchdog::default(),
        audit,
        freezer: super::freezer::Freezer::default(),
        jobs: Jobs::default(),
        holds: Holds::default(),
        holder_search: None,
        reaps: std::process::id() == 1,
        cgroup_lock: None,
        upgrade: None,
        strays: handover.is_some(),
        handover,
        finished: false,
        leaves: false,
    };
    daemon.look_after_gateway();
    daemon.begin_pools(found.pools);
    Ok((daemon, found.config))
}
