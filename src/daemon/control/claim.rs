//! Claims as they are asked for and answered: what is wanted is checked and opened before the engine hears of it, and a caller
//! that has gone by the time its worker is there gets none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::bind::Wanted;
use super::super::birth::WINDOW;
use super::super::session::abandon_call;
use super::super::state::Daemon;
use super::client::Task;
use super::dispatch::{Asked, Outcome};
use crate::engine::{Answer, CallId, Input, Origin, Return, Supply, Target as EngineTarget, TaskId};
use crate::host::init_image::Window;
use crate::host::late_binding::{Directory, in_the_way};
use crate::protocol::control::{
    ClaimReply, ClaimRequest, Empty, Error, EventKind, PauseRequest, TuneRequest, is_session_name,
};
use crate::protocol::varlink::Reply;
use crate::spec::{Generation, PoolSpec, Root, WorkerId, parse_bind};

/// Who waits for a claim.
#[derive(Debug, Clone, Copy)]
enum Waits {
    /// A client, by its place and number.
    Client(u32, u64),
    /// A task.
    Task(TaskId),
}

/// A claim that has no worker yet, or whose program does not run yet.
#[derive(Debug)]
struct Claim {
    waits: Waits,
    name: String,
    /// Until it is bound.
    wanted: Option<Wanted>,
    worker: Option<(WorkerId, Origin)>,
}

/// The claims that are not answered.
#[derive(Debug, Default)]
pub(super) struct Claims {
    open: BTreeMap<CallId, Claim>,
}

impl Daemon {
    /// Takes a claim: checks it, opens what it names, and asks the engine for a worker.
    pub(super) fn claim(&mut self, asked: Asked, request: &ClaimRequest) -> Outcome {
        let pool = match self.resolve_pool(&request.pool) {
            Ok(pool) => pool,
            Err(error) => return error.into(),
        };
        let Some(spec) = self.pools.get(&pool).map(|pool| &pool.spec) else {
            return Error::NotFound { what: format!("pool {}", request.pool) }.into();
        };
        if asked.oneway {
            return Error::Refused { reason: "a claim is for whoever hears its answer".into() }.into();
        }
        let trusted = asked.by.uid == 0 || asked.by.uid == self.control.own_uid;
        let wanted = match wanted(request, spec, asked.by.uid, trusted, self.control.orders.latest()) {
            Ok(wanted) => wanted,
            Err(reason) => return Error::Refused { reason }.into(),
        };
        let name = wanted.name.clone();
        let Some(call) = self.control.orders.next_call() else { return Error::Saturated {}.into() };
        if !self.may_begin_anew(&name, &asked) || !self.sessions.reserve(&name) {
            let reason = format!("session {name} exists already: attach to it, or choose another name");
            return Error::Refused { reason }.into();
        }
        self.audit_order(asked, "session_claim", name.as_str());
        self.record_order(asked, EventKind::Order, format!("claim a worker of {} for {name}", request.pool));
        let claim = Claim { waits: Waits::Client(asked.place, asked.number), name, wanted: Some(wanted), worker: None };
        self.control.claims.open.insert(call, claim);
        let supply = if request.warm_only == Some(true) { Supply::WarmOnly } else { Supply::WarmOrCold };
        self.inputs.push(Input::ClaimRequested(call, pool, supply));
        Outcome::Wait(Task::Order)
    }

    /// What the claim `call` wants, which has got a worker; `None` if its caller has gone.
    pub(in crate::daemon) fn wanted_by(&mut self, call: CallId, worker: WorkerId, origin: Origin) -> Option<Wanted> {
        let claim = self.control.claims.open.get_mut(&call)?;
        let waits = match claim.waits {
            Waits::Client(place, number) => {
                self.control.clients.get(&place).is_some_and(|client| client.number == number)
            }
            // One that is not wanted any more has given up its claim.
            Waits::Task(_) => true,
        };
        if !waits {
            let name = claim.name.clone();
            self.control.claims.open.remove(&call);
            self.sessions.give_back(&name);
            return None;
        }
        claim.worker = Some((worker, origin));
        claim.wanted.take()
    }

    /// A claimed worker's program runs: tells who claimed it.
    pub(in crate::daemon) fn claim_is_done(&mut self, worker: WorkerId, generation: Generation, pid: Option<u32>) {
        let Some(claim) = self.take_claim_of(worker) else { return };
        let (place, number) = match claim.waits {
            Waits::Client(place, number) => (place, number),
            Waits::Task(id) => {
                self.session_is_answered(worker);
                return self.await_prompt(id);
            }
        };
        if self.control.clients.get(&place).is_none_or(|client| client.number != number) {
            return self.inputs.push(Input::ReleaseRequested(abandon_call(generation), worker, Return::Destroyed));
        }
        self.session_is_answered(worker);
        let warm = claim.worker.is_some_and(|(_, origin)| origin == Origin::Warm);
        let reply =
            ClaimReply { session: claim.name, worker: self.worker_name(worker), generation: generation.0, warm, pid };
        self.control.answer_waiting((place, number), &Reply::last(&reply), self.now);
    }

    /// A claimed worker's program does not run: tells who claimed it why.
    pub(in crate::daemon) fn claim_failed(&mut self, worker: WorkerId, cause: &str) {
        let Some(claim) = self.take_claim_of(worker) else { return };
        self.sessions.give_back(&claim.name);
        match claim.waits {
            Waits::Client(place, number) => {
                let (operation, object, cause) = ("claim".into(), claim.name, cause.to_owned());
                let error = Error::Failed { operation, object, cause };
                self.control.answer_waiting((place, number), &error.to_reply(), self.now);
            }
            Waits::Task(id) => self.task_is_not_started(id, cause),
        }
    }

    /// Remembers the claim of a task's worker.
    pub(in crate::daemon) fn expect_claim_of_task(&mut self, call: CallId, task: TaskId, wanted: Wanted) {
        let claim = Claim { waits: Waits::Task(task), name: wanted.name.clone(), wanted: Some(wanted), worker: None };
        self.control.claims.open.insert(call, claim);
    }

    /// Nobody wants what was claimed any more.
    pub(in crate::daemon) fn give_up_claim(&mut self, call: CallId) {
        if let Some(claim) = self.control.claims.open.remove(&call) {
            self.sessions.give_back(&claim.name);
        }
    }

    fn take_claim_of(&mut self, worker: WorkerId) -> Option<Claim> {
        let is_of = |claim: &Claim| claim.worker.is_some_and(|(known, _)| known == worker);
        let call = self.control.claims.open.iter().find(|(_, claim)| is_of(claim)).map(|(call, _)| *call)?;
        self.control.claims.open.remove(&call)
    }

    /// The engine has no worker for a claim.
    pub(in crate::daemon) fn refuse_claim(&mut self, call: CallId, answer: &Answer) -> bool {
        let Some(claim) = self.control.claims.open.remove(&call) else { return false };
        self.sessions.give_back(&claim.name);
        let refused = |reason: &str| Error::Refused { reason: reason.to_owned() };
        let error = match *answer {
            Answer::NoneWarm => refused("No warm workers available"),
            Answer::NotClaimable => refused("its workers cannot be claimed: write `claims = true` into the pool"),
            Answer::Full { max } => {
                refused(&format!("{max} workers are claimed, which is as many as `claims.sessions` allows"))
            }
            Answer::ShuttingDown => Error::ShuttingDown {},
            Answer::ClaimFailed(worker) => {
                let name = self.worker_name(worker);
                let last = self.certificates.iter().rev().find(|certificate| certificate.worker == name);
                let cause = last.map_or_else(String::new, |last| match &last.start_failure {
                    Some(failure) => failure.text.clone(),
                    None => last.cause.to_string(),
                });
                Error::Failed { operation: "claim".into(), object: claim.name.clone(), cause }
            }
            Answer::NotFound | Answer::Done { .. } | Answer::OutOfRange { .. } | Answer::Destroyed(_) => {
                refused("the pool is gone")
            }
        };
        match claim.waits {
            Waits::Client(place, number) => {
                self.control.answer_waiting((place, number), &error.to_reply(), self.now);
            }
            Waits::Task(id) => self.task_is_not_started(id, &error.to_string()),
        }
        true
    }

    /// Why this cannot be given back.
    pub(super) fn refuse_release(&self, target: EngineTarget) -> Option<Error> {
        let EngineTarget::Worker(worker) = target else {
            return Some(Error::Refused { reason: "only one session can be released at once".into() });
        };
        if self.sessions.of(worker).is_none() {
            return Some(Error::Refused { reason: format!("{} is not claimed", self.worker_name(worker)) });
        }
        None
    }

    /// Why a pool cannot have these numbers.
    pub(super) fn refuse_tuning(&self, target: EngineTarget, tune: &TuneRequest) -> Option<Error> {
        let EngineTarget::Pool(pool) = target else { return None };
        let (_, min, max) = self.engine.pool_size(pool)?;
        let (min, max) = (tune.min.unwrap_or(min), tune.max.unwrap_or(max));
        (min > max).then(|| Error::Refused { reason: format!("min {min} is more than max {max}") })
    }

    /// Lets a pool be, or not any more.
    pub(super) fn ordered_pause(&mut self, asked: Asked, request: &PauseRequest) -> Outcome {
        let pool = match self.resolve_pool(&request.pool) {
            Ok(pool) => pool,
            Err(error) => return error.into(),
        };
        if self.pools.get(&pool).is_none_or(|pool| pool.spec.policy.claims.is_none()) {
            let reason = "only a pool with `claims` can be paused".into();
            return Error::Refused { reason }.into();
        }
        let what = if request.paused { "pause" } else { "resume" };
        self.audit_order(asked, &format!("pool_{what}"), request.pool.as_str());
        self.record_order(asked, EventKind::Order, format!("{what} pool {}", request.pool));
        self.inputs.push(Input::Paused(pool, request.paused));
        Outcome::Reply(Reply::last(&Empty {}))
    }
}

/// What a claim wants, with everything opened that it names.
fn wanted(request: &ClaimRequest, pool: &PoolSpec, owner: u32, trusted: bool, number: u64) -> Result<Wanted, String> {
    let name = request.session.clone().unwrap_or_else(|| made_up_name(number));
    if !is_session_name(&name) {
        return Err(format!("{name:?} is no name of a session"));
    }
    let open = |path: &str| open_allowed(path, pool, owner, trusted);
    // Known before a worker is taken for it.
    let inside = |path: &str| {
        let target = inside(path)?;
        let way = if pool.root == Root::Host { in_the_way(&target).map(drop) } else { Ok(()) };
        way.map(|()| target).map_err(|error| error.to_string())
    };
    let project = match &request.project {
        None => None,
        Some(path) => {
            let target = request.project_target.as_deref().map(&inside).transpose()?;
            Some((open(path)?, target, request.project_read_only != Some(true)))
        }
    };
    let mut mounts = Vec::new();
    for text in request.mounts.iter().flatten() {
        let bind = parse_bind(text).map_err(|expected| format!("mount {text:?}: expected {expected}"))?;
        let target = inside(&bind.target.to_string_lossy())?;
        mounts.push((open(&bind.source.to_string_lossy())?, target, bind.writable));
    }
    let env: Vec<String> = request.env.iter().flatten().cloned().collect();
    for variable in &env {
        check_variable(variable)?;
    }
    let mut secrets: Vec<(String, String)> = Vec::new();
    for secret in request.secrets.iter().flatten() {
        let (name, content) = secret.split_once('=').ok_or("a secret is written name=content")?;
        if !is_session_name(&name.replace('.', "_")) || secrets.iter().any(|(known, _)| known == name) {
            return Err(format!("{name:?} is no name of a secret, or is there twice"));
        }
        secrets.push((name.to_owned(), content.to_owned()));
    }
    // A shell without a terminal would read nothing and end at once: it waits on one that whoever attaches later sees.
    let is_shell = request.command.is_none() && pool.gives_a_shell();
    let window = (is_shell || request.rows.is_some() || request.columns.is_some()).then(|| Window {
        rows: request.rows.unwrap_or(WINDOW.rows),
        columns: request.columns.unwrap_or(WINDOW.columns),
    });
    Ok(Wanted {
        name,
        owner,
        task: None,
        project,
        mounts,
        command: request.command.clone(),
        env,
        secrets,
        memory_bytes: request.memory_bytes,
        cpu_millis: request.cpu_millis,
        pids: request.pids,
        window,
        detached: request.detached.unwrap_or(true),
        keeps: request.keep == Some(true),
        labels: request.labels.clone().unwrap_or_default(),
    })
}

/// As the seed names what is claimed.
fn made_up_name(number: u64) -> String {
    let seconds = super::super::clock::msec(super::super::clock::wall()) / 1_000;
    format!("hal9000-worker-{seconds}-{number}")
}

/// A place inside where something of a claim may appear.
fn inside(path: &str) -> Result<PathBuf, String> {
    let bind = parse_bind(&format!("/x:{path}")).map_err(|expected| format!("{path:?}: expected {expected}"))?;
    if bind.target.starts_with("/run") {
        return Err(format!("{path:?}: /run is the worker's own; choose another place"));
    }
    Ok(bind.target)
}

fn open_allowed(path: &str, pool: &PoolSpec, owner: u32, trusted: bool) -> Result<Directory, String> {
    let asked = Path::new(path);
    let plain = asked.is_absolute() && asked.components().all(|part| part != std::path::Component::ParentDir);
    if !plain {
        return Err(format!("{path:?} is no absolute path without \"..\""));
    }
    if !pool.projects.iter().any(|root| asked.starts_with(root)) {
        let roots: Vec<String> = pool.projects.iter().map(|root| root.display().to_string()).collect();
        let roots = roots.join(" ");
        return Err(format!("Security violation: path '{path}' not in allowed directories (claims.projects: {roots})"));
    }
    let directory = Directory::open(asked).map_err(|error| super::super::birth::chain(&error))?;
    if !trusted && directory.owner.uid != owner {
        return Err(format!("Security violation: path '{path}' does not belong to uid {owner}"));
    }
    Ok(directory)
}

fn check_variable(variable: &str) -> Result<(), String> {
    let name = variable.split_once('=').map(|(name, _)| name).ok_or("a variable is written NAME=value")?;
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let known = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !first || !known || name.len() > 128 || variable.contains('\0') {
        return Err(format!("{name:?} is no name of a variable"));
    }
    if name == "ANTHROPIC_API_KEY" {
        return Err("SECURITY VIOLATION: ANTHROPIC_API_KEY in the environment: pass it as a secret".into());
    }
    let reserved = ["LISTEN_", "WATCHDOG_", "HALSUP_", "LD_"];
    if name == "NOTIFY_SOCKET" || reserved.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(format!("{name} is halsup's own"));
    }
    Ok(())
}
