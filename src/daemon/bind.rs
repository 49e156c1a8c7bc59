//! Carries out `Effect::Bind`: brings what a claim wants into a worker that is parked, and has its init start the program.
//!
//! In this order: limits, mounts, program. Nothing but the init runs in the worker until then. Whatever fails, the worker is
//! ended and never given to another.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::birth::{WINDOW, chain};
use super::environment::{self, Told, WORK_DIR};
use super::foresight::{Foresight, Habit};
use super::session::{Session, SessionLimits, abandon_call};
use super::state::Daemon;
use crate::engine::{CallId, Input, Origin, Return};
use crate::host::identity::HostUser;
use crate::host::init_image::{Begins, Start, Window, start_image};
use crate::host::late_binding::{self, BindingError, Directory, LateMount, OwnerMap, SECRETS_TARGET};
use crate::spec::{Generation, Limit, Limits, Root, WorkerId};

/// Where a project appears inside a root that is not the host's.
const WORKSPACE: &str = "/workspace";

/// What a claim wants, checked.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Name of the session.
    pub(super) name: String,
    /// Who asks.
    pub(super) owner: u32,
    /// The task that it is for, if it is for one.
    pub(super) task: Option<String>,
    /// The project, where it appears, and whether it can be written there.
    pub(super) project: Option<(Directory, Option<PathBuf>, bool)>,
    /// Further directories.
    pub(super) mounts: Vec<(Directory, PathBuf, bool)>,
    /// Program and arguments; `None` is the pool's.
    pub(super) command: Option<Vec<String>>,
    /// Beside the pool's environment, `NAME=value`.
    pub(super) env: Vec<String>,
    /// Name and content.
    pub(super) secrets: Vec<(String, String)>,
    /// `memory.max`; 0 is none.
    pub(super) memory_bytes: Option<u64>,
    /// `cpu.max`; 0 is none.
    pub(super) cpu_millis: Option<u64>,
    /// `pids.max`; 0 is none.
    pub(super) pids: Option<u64>,
    /// Whether nobody will be attached to it when it begins.
    pub(super) detached: bool,
    /// Whether it is kept when its program has ended.
    pub(super) keeps: bool,
    /// The size of the terminal, if there is to be one.
    pub(super) window: Option<Window>,
    /// What is remembered.
    pub(super) labels: Vec<String>,
}

/// A claim cannot be carried out in its worker.
#[derive(Debug, thiserror::Error)]
enum BindError {
    #[error(transparent)]
    Binding(#[from] BindingError),
    #[error("set its limits")]
    Limits(#[from] crate::host::cgroup::CgroupError),
    #[error("write its start image")]
    Image(#[from] crate::host::init_image::ImageError),
    #[error("it has just ended")]
    Gone,
    #[error("write down that it is claimed: {trouble}")]
    Unwritten { trouble: String },
}

impl Daemon {
    /// Binds a worker to the claim `call`.
    pub(super) fn bind(&mut self, worker: WorkerId, generation: Generation, call: CallId, origin: Origin) {
        let Some(wanted) = self.wanted_by(call, worker, origin) else {
            // Whoever asked has gone, and nothing of it has begun.
            return self.inputs.push(Input::ReleaseRequested(abandon_call(generation), worker, Return::Destroyed));
        };
        if let Err(error) = self.try_bind(worker, generation, wanted) {
            self.inputs.push(Input::ReleaseRequested(abandon_call(generation), worker, Return::Destroyed));
            self.claim_failed(worker, &chain(&error));
        }
    }

    fn try_bind(&mut self, worker: WorkerId, generation: Generation, wanted: Wanted) -> Result<(), BindError> {
        let pool = self.pools.get(&worker.pool).ok_or(BindError::Gone)?;
        let live = self.live.get_mut(&worker).filter(|live| live.generation == generation).ok_or(BindError::Gone)?;
        let terminal = wanted.window.or_else(|| pool.spec.terminal.then_some(WINDOW));
        let command = wanted.command.unwrap_or_else(|| pool.spec.command.clone());
        let host_root = pool.spec.root == Root::Host;
        let place = |(directory, target, _): &(Directory, Option<PathBuf>, bool)| match target {
            Some(target) => target.clone(),
            None if host_root => directory.path().to_owned(),
            None => PathBuf::from(WORKSPACE),
        };
        let cwd = wanted.project.as_ref().map_or_else(|| PathBuf::from(WORK_DIR), place);
        let limits = limits(&pool.spec.limits, wanted.memory_bytes, wanted.cpu_millis, wanted.pids);
        let session = Session {
            name: wanted.name,
            generation: generation.0,
            owner: wanted.owner,
            project: wanted.project.as_ref().map(|(directory, ..)| directory.path().display().to_string()),
            cwd: Some(cwd.display().to_string()),
            created_msec: super::clock::msec(super::clock::wall()),
            terminal: terminal.is_some(),
            detached: wanted.detached,
            limits: SessionLimits::of(&limits),
            command,
            labels: wanted.labels,
            answered: false,
            keeps: wanted.keeps,
            vanishes: false,
            task: wanted.task.clone(),
        };
        if limits != pool.spec.limits {
            live.enforcement = live.cgroup.limit(&pool.prepared.cgroup, &limits, self.spec.limits)?;
        }
        let gid = pool.prepared.host_ids.map_or(live.uid, |(_, gid)| gid);
        let user = HostUser { uid: live.uid, gid };
        let project = wanted.project.as_ref().map(|(directory, _, writable)| (directory, cwd.as_path(), *writable));
        let others = wanted.mounts.iter().map(|(directory, target, writable)| (directory, target.as_path(), *writable));
        let directories: Vec<(&Directory, &Path, bool)> = project.into_iter().chain(others).collect();
        let map = live.owner_map.take();
        let foreseen = (map.as_ref(), &mut self.foresight);
        let mounts = mounts(&directories, &wanted.secrets, user, host_root, foreseen)?;
        let env = Environment { session: &session, more: wanted.env, terminal: terminal.is_some(), told: live.told };
        let image = image(pool, worker.slot, self.spec.instance.as_str(), env, &cwd, terminal)?;
        let owner = wanted.project.as_ref().map(|(directory, ..)| directory.owner);
        let habit = Habit { owner, secrets: !wanted.secrets.is_empty() };
        // Before anything is there that a daemon that is killed now would leave: the next one finds it and gives it back.
        self.keep_session(worker, session);
        if let Some(task) = wanted.task {
            self.task_is_bound(&task, worker, generation);
        }
        self.write_state_now();
        if let Some(trouble) = self.persist.trouble() {
            return Err(BindError::Unwritten { trouble: trouble.to_owned() });
        }
        let live = self.live.get_mut(&worker).ok_or(BindError::Gone)?;
        let (Some(process), Some(init)) = (&live.process, &live.init) else { return Err(BindError::Gone) };
        let (process, init) = (process.fd.as_fd(), init.fd.as_fd());
        late_binding::mount_and_start(process, init, &mounts, image.as_fd(), &self.shared.home)?;
        live.claim = Some(image);
        self.learn_habit(worker.pool, habit);
        Ok(())
    }
}

/// All that is to be mounted, in order.
fn mounts(
    directories: &[(&Directory, &Path, bool)],
    secrets: &[(String, String)],
    user: HostUser,
    host_root: bool,
    (map, stock): (Option<&OwnerMap>, &mut Foresight),
) -> Result<Vec<LateMount>, BindingError> {
    let mut mounts = Vec::new();
    let mut covered = BTreeSet::new();
    // Where the root is the host's, a home that only its owner can enter is in the way of what lies in it.
    for (_, target, _) in directories.iter().filter(|_| host_root) {
        let Some(way) = late_binding::in_the_way(target)? else { continue };
        if covered.insert(way.clone()) {
            mounts.push(late_binding::at(late_binding::cover(&way)?, &way));
        }
    }
    for (directory, target, writable) in directories {
        mounts.push(late_binding::at(directory.tree(user, *writable, map)?, target));
    }
    if !secrets.is_empty() {
        let tree = stock.places.pop().map_or_else(late_binding::place_for_secrets, Ok)?;
        late_binding::keep_secrets(&tree, secrets, user)?;
        mounts.push(late_binding::at(tree, Path::new(SECRETS_TARGET)));
    }
    Ok(mounts)
}

/// A pool's limits with what a claim says of them.
fn limits(of_pool: &Limits, memory_bytes: Option<u64>, cpu_millis: Option<u64>, pids: Option<u64>) -> Limits {
    let one = |wanted: Option<u64>, known: Option<Limit<u64>>| match wanted {
        None => known,
        Some(0) => None,
        Some(value) => Some(Limit { value, asked: true }),
    };
    Limits {
        memory_bytes: one(memory_bytes, of_pool.memory_bytes),
        cpu_millis: one(cpu_millis, of_pool.cpu_millis),
        pids: one(pids, of_pool.pids),
        ..of_pool.clone()
    }
}

struct Environment<'a> {
    session: &'a Session,
    more: Vec<String>,
    terminal: bool,
    told: Told,
}

/// Everything that the init is to know of the program, sealed.
fn image(
    pool: &super::pool::Pool,
    slot: u32,
    instance: &str,
    said: Environment<'_>,
    cwd: &Path,
    terminal: Option<Window>,
) -> Result<OwnedFd, BindError> {
    let (_, mut env) = environment::of_worker(pool, slot, instance, said.told);
    env.push(format!("HALSUP_SESSION={}", said.session.name));
    if said.terminal && !pool.spec.terminal {
        env.push("TERM=xterm-256color".to_owned());
    }
    let named = |variable: &str| variable.split_once('=').map(|(name, _)| name.to_owned());
    for variable in said.more {
        env.retain(|known| named(known) != named(&variable));
        env.push(variable);
    }
    let cwd = cwd.to_string_lossy();
    let start = Start {
        argv: &said.session.command,
        env: &env,
        cwd: &cwd,
        rlimits: &pool.prepared.rlimits,
        seccomp: &pool.prepared.filter,
        begins: terminal.map_or(Begins::Program, Begins::Terminal),
        ..Start::default()
    };
    Ok(start_image(&start)?)
}
