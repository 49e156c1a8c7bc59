//! Orders to the engine: what they are about, who gave them, and what came of them.
//!
//! Never decides what an order does to a worker. A call that waits for the engine is remembered here by its number until
//! [`Daemon::answer`]; numbers with the highest bit set are orders of the daemon's own and go to [`Daemon::answer_own`].

use std::collections::BTreeMap;

use super::super::events::Happening;
use super::super::perform::worker_state;
use super::super::state::Daemon;
use super::OWN_CALLS;
use super::client::Task;
use super::dispatch::{Asked, Outcome};
use crate::engine::{Answer, CallId, Input, Instead, Return, State, Target as EngineTarget, Tuning, WorkerView};
use crate::protocol::control::{
    ChangeReply, DeathCertificate, Error, EventKind, Failure, ReleaseReply, ReleaseRequest, Request, ShutdownReply,
    Target, WorkerState,
};
use crate::protocol::varlink::Reply;
use crate::spec::{PoolId, PoolName, WorkerId, format_signal};

/// How many orders may be without an answer, those of clients that have gone included.
const ORDERS_MAX: usize = 1_024;
/// How many failures one answer names.
const FAILURES_MAX: usize = 1_000;
/// How many pools are named where one was not found.
const NAMES_SHOWN_MAX: usize = 8;

/// What an order wants of the workers it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// To be ready.
    Up,
    /// To be ready, as many as this.
    UpTo(u32),
    /// To be empty.
    Down,
    /// To be nobody's, and not there.
    Gone,
    /// To be one of the pool's again.
    Back,
    /// To run, so that a signal could reach them.
    Reached,
    /// Nothing that could fail.
    Nothing,
    /// Nothing of workers: it is about requests.
    OfRequests,
}

/// An order without an answer.
#[derive(Debug)]
struct Order {
    /// Place and number of who waits for it.
    waits: Option<(u32, u64)>,
    wish: Wish,
    target: EngineTarget,
    /// What it is about, for people.
    shown: String,
}

/// The orders that have no answer yet.
#[derive(Debug, Default)]
pub(super) struct Orders {
    open: BTreeMap<CallId, Order>,
    last: u64,
}

impl Orders {
    /// A number for a call that the engine answers; `None` while too many are open.
    pub(super) fn next_call(&mut self) -> Option<CallId> {
        if self.open.len() >= ORDERS_MAX {
            return None;
        }
        self.last = self.last.wrapping_add(1) & (OWN_CALLS - 1);
        Some(CallId(self.last))
    }

    /// The latest of those numbers.
    pub(super) const fn latest(&self) -> u64 {
        self.last
    }
}

/// Whether a target reaches a worker.
pub(super) fn covers(target: EngineTarget, worker: WorkerId) -> bool {
    match target {
        EngineTarget::All => true,
        EngineTarget::Pool(pool) => pool == worker.pool,
        EngineTarget::Worker(one) => one == worker,
    }
}

/// `a, b, c`, cut after a few.
fn some_of<'a>(names: impl Iterator<Item = &'a PoolName>) -> String {
    let mut shown = String::new();
    for (at, name) in names.enumerate() {
        if at == NAMES_SHOWN_MAX {
            shown.push_str(", …");
            break;
        }
        if at > 0 {
            shown.push_str(", ");
        }
        shown.push_str(name.as_str());
    }
    if shown.is_empty() { "none".into() } else { shown }
}

impl Daemon {
    /// What a client calls `web.3` as the engine counts it.
    pub(in crate::daemon) fn resolve(&self, target: &Target) -> Result<EngineTarget, Error> {
        match target {
            Target::All => Ok(EngineTarget::All),
            Target::Pool(name) => self.resolve_pool(name).map(EngineTarget::Pool),
            Target::Worker(name, slot) => {
                let worker = WorkerId { pool: self.resolve_pool(name)?, slot: *slot };
                let pool = self.pools.get(&worker.pool);
                if pool.is_some_and(|pool| pool.spec.service) {
                    let what = format!("worker {target} ({name} is a service, its worker is {name})");
                    return Err(Error::NotFound { what });
                }
                if self.engine.worker(worker).is_some() {
                    return Ok(EngineTarget::Worker(worker));
                }
                let mut slots = self.engine.workers().map(|view| view.worker).filter(|one| one.pool == worker.pool);
                let there = match (slots.next(), slots.last()) {
                    (Some(first), Some(last)) => format!("has {name}.{} to {name}.{}", first.slot, last.slot),
                    (Some(only), None) => format!("has {name}.{}", only.slot),
                    (None, _) => "has none".into(),
                };
                Err(Error::NotFound { what: format!("worker {target} (pool {name} {there})") })
            }
        }
    }

    pub(in crate::daemon) fn resolve_pool(&self, name: &PoolName) -> Result<PoolId, Error> {
        let found = self.names.get(name).copied();
        found
            .ok_or_else(|| Error::NotFound { what: format!("pool {name} (there are: {})", some_of(self.names.keys())) })
    }

    /// The workers that a target reaches, in order.
    pub(in crate::daemon) fn views(&self, target: EngineTarget) -> impl Iterator<Item = WorkerView> {
        // A pool that is being forgotten has no name any more.
        let known = |view: &WorkerView| self.pools.contains_key(&view.worker.pool);
        self.engine.workers().filter(move |view| covers(target, view.worker) && known(view))
    }

    /// Hands an order to the engine.
    pub(super) fn order(&mut self, asked: Asked, request: &Request) -> Outcome {
        if let Request::Release(ReleaseRequest { target, session: Some(session), .. }) = request {
            return self.release_kept(asked, target, session);
        }
        let Some(wire) = request.target() else {
            return Error::Refused { reason: "this is no order".into() }.into();
        };
        let target = match self.resolve(&wire) {
            Ok(target) => target,
            Err(error) => return error.into(),
        };
        let refusal = if let Request::Tune(tune) = request {
            self.refuse_tuning(target, tune)
        } else if matches!(request, Request::Release(_)) {
            self.refuse_release(target)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return refusal.into();
        }
        let Some(call) = self.control.orders.next_call() else { return Error::Saturated {}.into() };
        let Some((input, wish, text)) = translate(request, call, target) else {
            return Error::Refused { reason: "this is no order".into() }.into();
        };
        if let (Request::Release(release), EngineTarget::Worker(worker)) = (request, target)
            && release.reset == Some(true)
        {
            self.session_vanishes(worker);
        }
        let shown = wire.to_string();
        let waits = (!asked.oneway).then_some((asked.place, asked.number));
        self.control.orders.open.insert(call, Order { waits, wish, target, shown: shown.clone() });
        self.note_who_asked(asked, target, &format!("{text} {shown}"));
        self.inputs.push(input);
        Outcome::Wait(Task::Order)
    }

    /// A number for an order about requests, whose client waits.
    pub(in crate::daemon) fn next_call_of_requests(&mut self, asked: Asked) -> Option<CallId> {
        let call = self.control.orders.next_call()?;
        let waits = (!asked.oneway).then_some((asked.place, asked.number));
        let (wish, target) = (Wish::OfRequests, EngineTarget::All);
        self.control.orders.open.insert(call, Order { waits, wish, target, shown: String::new() });
        Some(call)
    }

    fn note_who_asked(&mut self, asked: Asked, target: EngineTarget, text: &str) {
        let who = asked.by.to_string();
        tracing::info!(target: "control", by = %who, "{text}");
        let (verb, object) = (text.split(' ').next().unwrap_or(text), text.rsplit(' ').next().unwrap_or("-"));
        self.audit_order(asked, &format!("order_{verb}"), object);
        let workers: Vec<WorkerId> = self.views(target).map(|view| view.worker).collect();
        for worker in workers {
            self.asked_by.insert(worker, who.clone());
        }
        let (pool, worker) = match target {
            EngineTarget::All => (None, None),
            EngineTarget::Pool(pool) => (self.pools.get(&pool).map(|pool| pool.spec.name.to_string()), None),
            EngineTarget::Worker(worker) => (None, Some(worker)),
        };
        self.record(Happening { pool, worker, asked_by: Some(who), ..Happening::new(EventKind::Order, text.into()) });
    }

    /// Records that somebody ordered something of the daemon itself.
    pub(in crate::daemon) fn record_order(&mut self, asked: Asked, kind: EventKind, text: String) {
        tracing::info!(target: "control", by = %asked.by, "{text}");
        self.record(Happening { asked_by: Some(asked.by.to_string()), ..Happening::new(kind, text) });
    }

    /// Answers a call that the engine has decided.
    pub(in crate::daemon) fn answer(&mut self, call: CallId, answer: &Answer) {
        if call.0 & OWN_CALLS != 0 {
            return self.answer_own(call, answer);
        }
        if self.refuse_claim(call, answer) {
            return;
        }
        let Some(order) = self.control.orders.open.remove(&call) else { return };
        let Some((place, number)) = order.waits else { return };
        let reply = match order.wish {
            Wish::OfRequests => self.answer_about_requests(call, answer),
            Wish::Up | Wish::UpTo(_) | Wish::Down | Wish::Gone | Wish::Back | Wish::Reached | Wish::Nothing => {
                self.outcome(&order, answer)
            }
        };
        let now = self.now;
        let waits = self.control.clients.get_mut(&place).filter(|client| client.number == number);
        if let Some(client) = waits {
            client.task = Task::Idle;
            client.say(&reply, now);
        }
    }

    fn outcome(&self, order: &Order, answer: &Answer) -> Reply {
        match *answer {
            Answer::Done { achieved, wanted } if matches!(order.wish, Wish::Gone | Wish::Back) => {
                let failures = if achieved == wanted { Vec::new() } else { self.failures(order) };
                let reset = order.wish == Wish::Back && achieved == wanted;
                Reply::last(&ReleaseReply { achieved, wanted, failures, reset, reason: None })
            }
            Answer::Destroyed(instead) => Reply::last(&destroyed(order, instead)),
            Answer::Done { achieved, wanted } => {
                let failures = if achieved == wanted { Vec::new() } else { self.failures(order) };
                Reply::last(&ChangeReply { achieved, wanted, failures })
            }
            Answer::NotFound => {
                let kind = if matches!(order.target, EngineTarget::Worker(_)) { "worker" } else { "pool" };
                Error::NotFound { what: format!("{kind} {}", order.shown) }.to_reply()
            }
            Answer::OutOfRange { min, max } => {
                let reason = if min == max {
                    format!("pool {} has a fixed size of {max}: give it `min` and `max` to scale it", order.shown)
                } else {
                    format!("pool {} has at least {min} and at most {max} workers", order.shown)
                };
                Error::Refused { reason }.to_reply()
            }
            Answer::ShuttingDown => Error::ShuttingDown {}.to_reply(),
            Answer::NotClaimable => {
                let reason =
                    format!("workers of {} cannot be claimed: write `claims = true` into the pool", order.shown);
                Error::Refused { reason }.to_reply()
            }
            // Answers to claims, which are no orders.
            Answer::NoneWarm | Answer::Full { .. } | Answer::ClaimFailed(_) => Error::Saturated {}.to_reply(),
        }
    }

    /// Workers of a pool that are not ready, and why.
    pub(super) fn unready(&self, pool: PoolId) -> Vec<Failure> {
        let target = EngineTarget::Pool(pool);
        self.failures(&Order { waits: None, wish: Wish::Up, target, shown: String::new() })
    }

    /// Why workers are not as an order wanted them.
    fn failures(&self, order: &Order) -> Vec<Failure> {
        let mut latest: BTreeMap<&str, &DeathCertificate> = BTreeMap::new();
        for certificate in &self.certificates {
            latest.insert(&certificate.worker, certificate);
        }
        let failed = self.views(order.target).filter(|view| !is_as_wished(order.wish, view));
        let told = failed.take(FAILURES_MAX).map(|view| {
            let worker = self.worker_name(view.worker);
            let reason = reason(worker_state(view.state), latest.get(worker.as_str()).copied());
            Failure { worker, reason }
        });
        told.collect()
    }

    /// The end has come: tells who waits for it.
    pub(in crate::daemon) fn shutdown_done(&mut self, stuck: Vec<String>) {
        let remaining = u32::try_from(stuck.len()).unwrap_or(u32::MAX);
        let reply = Reply::last(&ShutdownReply { remaining, stuck });
        for client in self.control.clients.values_mut() {
            if matches!(client.task, Task::Shutdown(_)) {
                client.task = Task::Idle;
                client.say(&reply, self.now);
            }
        }
    }
}

/// An order as the engine takes it, what it wants, and its verb.
fn translate(request: &Request, call: CallId, target: EngineTarget) -> Option<(Input, Wish, String)> {
    Some(match (request, target) {
        (Request::Start(_), _) => (Input::StartRequested(call, target), Wish::Up, "start".into()),
        (Request::Stop(_), _) => (Input::StopRequested(call, target), Wish::Down, "stop".into()),
        (Request::Restart(_), _) => (Input::RestartRequested(call, target), Wish::Up, "restart".into()),
        (Request::Kill(kill), _) => {
            let text = kill.signal.map_or_else(|| "kill".into(), |signal| format!("send {} to", format_signal(signal)));
            (Input::KillRequested(call, target, kill.signal), Wish::Reached, text)
        }
        (Request::Reset(_), _) => (Input::ResetRequested(call, target), Wish::Nothing, "reset".into()),
        (Request::Release(release), EngineTarget::Worker(worker)) if release.reset == Some(true) => {
            (Input::ReleaseRequested(call, worker, Return::Reset), Wish::Back, "release and reset".into())
        }
        (Request::Release(_), EngineTarget::Worker(worker)) => {
            (Input::ReleaseRequested(call, worker, Return::Destroyed), Wish::Gone, "release".into())
        }
        (Request::Warm(_), EngineTarget::Pool(pool)) => {
            (Input::WarmRequested(call, pool), Wish::Up, "warm a worker of".into())
        }
        (Request::Tune(tune), EngineTarget::Pool(pool)) => {
            let seconds = |seconds: Option<u64>| seconds.map(std::time::Duration::from_secs);
            let tuning = Tuning {
                min: tune.min,
                max: tune.max,
                idle_timeout: seconds(tune.idle_timeout_seconds),
                check_interval: seconds(tune.check_interval_seconds),
            };
            (Input::TuneRequested(call, pool, tuning), Wish::Up, "tune".into())
        }
        (Request::Scale(scale), EngineTarget::Pool(pool)) => (
            Input::ScaleRequested(call, pool, scale.count),
            Wish::UpTo(scale.count),
            format!("scale to {}", scale.count),
        ),
        (_, EngineTarget::All | EngineTarget::Pool(_) | EngineTarget::Worker(_)) => return None,
    })
}

/// What is told of a worker that was to be reset and was destroyed.
fn destroyed(order: &Order, instead: Instead) -> ReleaseReply {
    let (worker, stuck) = (order.shown.clone(), instead == Instead::Stuck);
    let reason = match instead {
        Instead::Full { max } => {
            format!("destroyed instead: its pool has {max} warm workers without it, which is as many as it may have")
        }
        Instead::Ending => "destroyed instead: it was ending already".to_owned(),
        Instead::Leaving => "destroyed instead: its pool, or the daemon, is to end".to_owned(),
        Instead::Stuck => "its processes could not be ended".to_owned(),
    };
    let failures = if stuck { vec![Failure { worker, reason: reason.clone() }] } else { Vec::new() };
    ReleaseReply { achieved: u32::from(!stuck), wanted: 1, failures, reset: false, reason: Some(reason) }
}

fn is_as_wished(wish: Wish, view: &WorkerView) -> bool {
    let is_up = matches!(view.state, State::Healthy | State::Unhealthy);
    match wish {
        Wish::Up | Wish::Back => is_up,
        Wish::UpTo(count) => is_up || view.worker.slot >= count,
        Wish::Down | Wish::Gone => view.state == State::Stopped,
        Wish::Reached => !matches!(view.state, State::Stopped | State::Crashed | State::Restarting),
        Wish::Nothing | Wish::OfRequests => true,
    }
}

/// `crashed: exited 1: No such file`: what it is doing, and how its last generation ended.
fn reason(state: WorkerState, last: Option<&DeathCertificate>) -> String {
    let ended = match (state, last) {
        (WorkerState::Crashed | WorkerState::Restarting | WorkerState::Initializing, Some(last)) => last,
        (WorkerState::Stuck, _) => return "stuck: its processes could not be ended".into(),
        _ => return state.to_string(),
    };
    let mut text = format!("{state}: ");
    match &ended.start_failure {
        Some(failure) => text.push_str(&failure.text),
        None => text.push_str(&ended.cause.to_string()),
    }
    // What a session wrote is not for everybody who gives orders to its pool.
    let output = if ended.owner.is_none() { ended.last_output.as_str() } else { "" };
    let last_line = output.lines().rev().find(|line| !line.trim().is_empty());
    if let Some(line) = last_line {
        text.push_str(": ");
        text.extend(line.trim().chars().take(200));
    }
    text
}
