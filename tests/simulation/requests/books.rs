//! What the world knows of requests, attempts, sessions and places, from what it told the engine and what it was told to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use halsup::engine::{
    AttemptId, CallId, Cause, Demand, Input, Quality, Reason, RequestId, RequestInput, SessionId, State, Target, Time,
};
use halsup::spec::{Affinity, DispatchPolicy, Generation, PoolId, PoolPolicy, WorkerId};

use super::fuse::{Counted, Fuse};

pub(super) type Verdict = Result<(), String>;
pub(super) type Home = (WorkerId, Generation);

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not accepted yet.
    Submitted,
    Waiting,
    BackingOff(Time),
    InFlight(AttemptId),
    /// Its attempt is over, and what comes of that was not said yet.
    Failed,
}

/// A request without a conclusion.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) pool: PoolId,
    pub(super) demand: Demand,
    pub(super) strict: bool,
    pub(super) fails_fast: bool,
    pub(super) deadline: Time,
    pub(super) queue_deadline: Time,
    pub(super) stage: Stage,
    pub(super) attempts: u32,
    /// A worker may have run it.
    pub(super) seen: bool,
    /// How often it was to be tried at most, by any policy of its life.
    pub(super) attempts_max: u32,
    /// The workers that its session has had since it was submitted.
    pub(super) homes: BTreeSet<Home>,
    pub(super) abandoned: bool,
}

/// An attempt that its worker has not answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) worker: WorkerId,
    pub(super) generation: Generation,
    /// Whose it is; nobody's if its answer is wanted no more, and then until when its worker may go on with it.
    pub(super) holder: Result<RequestId, Time>,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) pool: PoolId,
    ttl: Duration,
    pub(super) expires: Time,
    pub(super) open: BTreeSet<RequestId>,
    pub(super) home: Option<Home>,
}

/// A place of a pool.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) generation: Option<Generation>,
    pub(super) state: Option<State>,
    pub(super) leased: bool,
    /// Until when it may go on with what an earlier daemon has given it.
    pub(super) occupied: Option<Time>,
    pub(super) retiring: bool,
    pub(super) killed: bool,
    /// It was killed when nobody wanted anything of it, and its grace was over.
    pub(super) killed_in_time: bool,
    /// Requests that were wanted of it when it was asked to end.
    pub(super) wanted_when_asked: usize,
    pub(super) fuse: Fuse,
    pub(super) total: u64,
    pub(super) failed: u64,
    pub(super) served: u64,
}

impl Place {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, Some(State::Healthy | State::Unhealthy)) && !self.leased
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) policy: PoolPolicy,
    /// How long a worker may go on with what nobody wants, by its latest way of dispatching.
    pub(super) grace: Duration,
    pub(super) removed: bool,
    pub(super) places: BTreeMap<u32, Place>,
    pub(super) fuse: Fuse,
    pub(super) counted: Counted,
}

impl Pool {
    pub(super) fn new(policy: PoolPolicy) -> Self {
        let (places, fuse, counted) = (BTreeMap::new(), Fuse::default(), Counted::default());
        let grace = policy.dispatch.map_or(Duration::ZERO, |dispatch| dispatch.cancel_grace);
        Self { policy, grace, removed: false, places, fuse, counted }
    }

    /// Nothing is left of what was known of its requests.
    fn dispatches_no_more(&mut self) {
        (self.fuse, self.counted) = (Fuse::default(), Counted::default());
        for place in self.places.values_mut() {
            (place.fuse, place.total, place.failed, place.served) = (Fuse::default(), 0, 0, 0);
            place.retiring = false;
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) pools: BTreeMap<PoolId, Pool>,
    pub(super) requests: BTreeMap<RequestId, Request>,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) kills: BTreeMap<(PoolId, u64), u32>,
    pub(super) last_attempt: Option<AttemptId>,
    pub(super) shutdown: bool,
    /// What was just submitted and has to be refused.
    pub(super) refused: Option<(RequestId, Reason)>,
    /// What was just answered well.
    pub(super) answered: Option<(RequestId, AttemptId)>,
    /// A session that was just closed.
    pub(super) closed: Option<SessionId>,
    /// Calls about requests without an answer, and how many they reach where that is known.
    pub(super) calls: BTreeMap<CallId, Option<u32>>,
    pub(super) finished: bool,
    pub(super) delivered: u64,
    pub(super) concluded: BTreeMap<&'static str, u64>,
}

impl Books {
    /// A pool that is not forgotten.
    pub(super) fn pool(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(&id).filter(|pool| !pool.removed || !pool.places.is_empty())
    }

    pub(super) fn dispatch(&self, id: PoolId) -> Option<DispatchPolicy> {
        self.pool(id)?.policy.dispatch
    }

    pub(super) fn place(&mut self, id: WorkerId) -> Option<&mut Place> {
        self.pools.get_mut(&id.pool)?.places.get_mut(&id.slot)
    }

    /// What a worker has not answered, wanted or not.
    pub(super) fn outstanding(&self, worker: WorkerId) -> impl Iterator<Item = (AttemptId, &Attempt)> {
        self.attempts.iter().filter(move |(_, attempt)| attempt.worker == worker).map(|(&id, attempt)| (id, attempt))
    }

    /// When a worker may be killed for going on with what nobody wants.
    pub(super) fn deaf_at(&self, worker: WorkerId) -> Option<Time> {
        let all: Result<Vec<Time>, RequestId> =
            self.outstanding(worker).map(|(_, attempt)| attempt.holder.map_or_else(Ok, Err)).collect();
        let occupied = self.pools.get(&worker.pool)?.places.get(&worker.slot)?.occupied;
        all.ok()?.into_iter().chain(occupied).max()
    }

    pub(super) fn waiting(&self, pool: PoolId) -> impl Iterator<Item = (RequestId, &Request)> {
        let waits = move |request: &Request| request.pool == pool && request.stage == Stage::Waiting;
        self.requests.iter().filter(move |(_, request)| waits(request)).map(|(&id, request)| (id, request))
    }

    pub(super) fn home(&self, demand: &Demand) -> Option<Home> {
        self.sessions.get(&demand.session?)?.home
    }

    /// Requests in flight in all pools that share a pool's budget, and how many may be.
    pub(super) fn spent(&self, pool: PoolId) -> Option<(u32, u32)> {
        let budget = self.dispatch(pool)?.budget?;
        let shares = |id: PoolId| self.dispatch(id).and_then(|policy| policy.budget).map(|b| b.id) == Some(budget.id);
        let spent = self.attempts.values().filter(|attempt| shares(attempt.worker.pool)).count();
        Some((u32::try_from(spent).expect("few"), budget.max))
    }

    pub(super) fn is_poison(&self, pool: PoolId, fingerprint: u64) -> bool {
        let most = self.dispatch(pool).map_or(0, |policy| policy.quarantine_kills);
        most > 0 && self.kills.get(&(pool, fingerprint)).is_some_and(|kills| *kills >= most)
    }

    /// The engine is about to be told.
    pub(super) fn hear(&mut self, input: &Input, now: Time) {
        if let Input::PoolDefined(id, policy) = input {
            self.defined(*id, policy);
        } else if let Input::PoolRemoved(id) = input {
            if let Some(pool) = self.pools.get_mut(id) {
                pool.removed = true;
            }
        } else if let Input::Request(input) = input {
            self.hear_request(*input, now);
        }
        self.shutdown |= matches!(input, Input::ShutdownRequested(_));
    }

    fn defined(&mut self, id: PoolId, policy: &PoolPolicy) {
        if self.shutdown {
            return;
        }
        if self.pool(id).is_none() {
            self.kills.retain(|(pool, _), _| *pool != id);
            self.pools.insert(id, Pool::new(policy.clone()));
            return;
        }
        let Some(pool) = self.pools.get_mut(&id).filter(|pool| !pool.removed) else { return };
        pool.policy = policy.clone();
        let Some(dispatch) = policy.dispatch else {
            self.kills.retain(|(of, _), _| *of != id);
            return pool.dispatches_no_more();
        };
        pool.grace = dispatch.cancel_grace;
        for request in self.requests.values_mut().filter(|request| request.pool == id) {
            request.attempts_max = request.attempts_max.max(dispatch.attempts_max);
        }
    }

    fn hear_request(&mut self, input: RequestInput, now: Time) {
        match input {
            RequestInput::Submitted(id, pool, demand) => self.submitted(id, pool, demand, now),
            RequestInput::Abandoned(id) => {
                if let Some(request) = self.requests.get_mut(&id) {
                    request.abandoned = true;
                }
            }
            RequestInput::Answered(id, worker, generation, quality) => {
                if let Some(attempt) = self.take(id, worker, generation) {
                    self.attempt_answered(id, attempt, quality, now);
                }
            }
            RequestInput::Undelivered(id, worker, generation) => {
                if let Some(attempt) = self.take(id, worker, generation) {
                    self.failed(id, worker, now);
                    self.failed_for(attempt.holder, false);
                }
            }
            RequestInput::Released(id, worker, generation) => {
                if let Some(attempt) = self.take(id, worker, generation) {
                    self.lost(id, worker, now);
                    self.failed_for(attempt.holder, true);
                }
            }
            RequestInput::Unoccupied(worker, generation) => {
                if let Some(place) = self.place(worker).filter(|place| place.generation == Some(generation)) {
                    place.occupied = None;
                }
            }
            RequestInput::MemoryMeasured(..) => {}
            RequestInput::SessionRequested(call, id, pool, ttl) => {
                self.calls.insert(call, None);
                let policy = self.pool(pool).filter(|pool| !pool.removed).and_then(|pool| pool.policy.dispatch);
                if let Some(policy) = policy.filter(|_| !self.shutdown) {
                    self.have_session(id, pool, policy, ttl, now);
                }
            }
            RequestInput::SessionClosed(call, id) => {
                self.calls.insert(call, Some(u32::from(self.sessions.contains_key(&id))));
                self.closed = Some(id);
            }
            RequestInput::BreakersReset(call, target) => self.reset(call, target),
        }
    }

    /// An attempt that is outstanding in this spawn of this worker is so no more.
    fn take(&mut self, id: AttemptId, worker: WorkerId, generation: Generation) -> Option<Attempt> {
        let known = |attempt: &Attempt| attempt.worker == worker && attempt.generation == generation;
        self.attempts.get(&id).is_some_and(known).then(|| self.attempts.remove(&id)).flatten()
    }

    fn submitted(&mut self, id: RequestId, pool: PoolId, demand: Demand, now: Time) {
        let refusal = self.refusal(pool, &demand, now);
        self.refused = refusal.map(|reason| (id, reason));
        if !self.shutdown
            && let Some(known) = self.pools.get_mut(&pool)
            && !known.removed
            && known.policy.dispatch.is_some()
        {
            known.counted.requests += 1;
        }
        let policy = self.dispatch(pool).unwrap_or_default();
        let affinity = demand.affinity.unwrap_or(policy.sessions.affinity);
        if refusal.is_none()
            && let Some(session) = demand.session.and_then(|session| self.sessions.get_mut(&session))
        {
            session.open.insert(id);
            session.expires = now.after(session.ttl);
        }
        let strict = demand.session.is_some() && affinity != Affinity::Hint;
        let request = Request {
            pool,
            demand,
            strict,
            fails_fast: affinity == Affinity::StrictFailFast,
            deadline: now.after(demand.timeout.unwrap_or(policy.timeout)),
            queue_deadline: now.after(demand.queue_timeout.unwrap_or(policy.queue_timeout)),
            stage: Stage::Submitted,
            attempts: 0,
            seen: false,
            attempts_max: policy.attempts_max,
            homes: self.home(&demand).filter(|_| strict).into_iter().collect(),
            abandoned: false,
        };
        self.requests.insert(id, request);
    }

    /// Why a request has to be refused before anybody looks for a worker. Its session exists if it is not.
    fn refusal(&mut self, id: PoolId, demand: &Demand, now: Time) -> Option<Reason> {
        if self.shutdown {
            return Some(Reason::ShuttingDown);
        }
        let Some(pool) = self.pools.get(&id).filter(|pool| !pool.removed) else { return Some(Reason::PoolNotFound) };
        let Some(policy) = pool.policy.dispatch else { return Some(Reason::NotDispatched) };
        if self.is_poison(id, demand.fingerprint) {
            return Some(Reason::Quarantined);
        }
        if pool.fuse.state() == halsup::engine::BreakerState::Open {
            return Some(Reason::CircuitOpen);
        }
        let has_room = demand.session.is_none_or(|session| self.have_session(session, id, policy, None, now));
        (!has_room).then_some(Reason::SessionQuotaExceeded)
    }

    fn have_session(
        &mut self,
        id: SessionId,
        pool: PoolId,
        policy: DispatchPolicy,
        ttl: Option<Duration>,
        now: Time,
    ) -> bool {
        let of_pool = self.sessions.values().filter(|session| session.pool == pool).count();
        if !self.sessions.contains_key(&id) && of_pool < policy.sessions.max as usize {
            let ttl = ttl.unwrap_or(policy.sessions.ttl);
            let session = Session { pool, ttl, expires: now.after(ttl), open: BTreeSet::new(), home: None };
            self.sessions.insert(id, session);
        }
        self.sessions.contains_key(&id)
    }

    pub(super) fn leave_session(&mut self, id: RequestId, demand: &Demand, now: Time) {
        if let Some(session) = demand.session.and_then(|session| self.sessions.get_mut(&session))
            && session.open.remove(&id)
        {
            session.expires = now.after(session.ttl);
        }
    }

    fn attempt_answered(&mut self, id: AttemptId, attempt: Attempt, quality: Quality, now: Time) {
        let sound = quality != Quality::Broken;
        if !sound {
            self.failed(id, attempt.worker, now);
            return self.failed_for(attempt.holder, true);
        }
        if let Some(pool) = self.pools.get_mut(&attempt.worker.pool).filter(|pool| pool.policy.dispatch.is_some()) {
            pool.fuse.succeeded(id);
            if let Some(place) = pool.places.get_mut(&attempt.worker.slot) {
                place.fuse.succeeded(id);
            }
            pool.counted.errors += u64::from(quality == Quality::Refusal && attempt.holder.is_ok());
        }
        if let Ok(request) = attempt.holder {
            self.answered = Some((request, id));
            self.failed_for(attempt.holder, true);
            let fingerprint = self.requests.get(&request).map_or(0, |request| request.demand.fingerprint);
            self.kills.remove(&(attempt.worker.pool, fingerprint));
        }
    }

    /// The attempt is over: what becomes of its request is said next.
    fn failed_for(&mut self, holder: Result<RequestId, Time>, seen: bool) {
        if let Some(request) = holder.ok().and_then(|id| self.requests.get_mut(&id)) {
            request.stage = Stage::Failed;
            request.seen |= seen;
        }
    }

    fn failed(&mut self, id: AttemptId, worker: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return };
        let Some(policy) = pool.policy.dispatch else { return };
        pool.fuse.failed(id, policy.pool_breaker, now);
        if let Some(place) = pool.places.get_mut(&worker.slot) {
            place.failed += 1;
            place.fuse.failed(id, policy.worker_breaker, now);
        }
    }

    pub(super) fn lost(&mut self, id: AttemptId, worker: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return };
        let Some(policy) = pool.policy.dispatch else { return };
        pool.fuse.lost(id, policy.pool_breaker, now);
        if let Some(place) = pool.places.get_mut(&worker.slot) {
            place.fuse.lost(id, policy.worker_breaker, now);
        }
    }

    /// A worker has ended: so has all that was in it.
    pub(super) fn ended(&mut self, worker: WorkerId, cause: Cause, now: Time) {
        if let Some(place) = self.place(worker) {
            place.occupied = None;
        }
        let crashed = matches!(cause, Cause::Itself(_) | Cause::Heartbeat | Cause::Deadline);
        let over: Vec<(AttemptId, Attempt)> = self.outstanding(worker).map(|(id, attempt)| (id, *attempt)).collect();
        for (id, attempt) in over {
            self.attempts.remove(&id);
            if crashed {
                self.failed(id, worker, now);
            } else {
                self.lost(id, worker, now);
            }
            self.failed_for(attempt.holder, true);
            if let Some(request) = attempt.holder.ok().and_then(|id| self.requests.get(&id)).filter(|_| crashed) {
                *self.kills.entry((worker.pool, request.demand.fingerprint)).or_default() += 1;
            }
        }
    }

    fn reset(&mut self, call: CallId, target: Target) {
        let mut reset = 0_u32;
        let reached: Vec<PoolId> = match target {
            Target::All => self.pools.keys().copied().filter(|id| self.pool(*id).is_some()).collect(),
            Target::Pool(pool) | Target::Worker(WorkerId { pool, .. }) => vec![pool],
        };
        for id in reached {
            let Some(policy) = self.dispatch(id) else { continue };
            let Some(pool) = self.pools.get_mut(&id) else { continue };
            for (slot, place) in &mut pool.places {
                if !matches!(target, Target::Worker(worker) if worker.slot != *slot) {
                    reset += u32::from(place.fuse.reset());
                }
            }
            if !matches!(target, Target::Worker(_)) {
                reset += u32::from(pool.fuse.reset());
                let most = policy.quarantine_kills;
                let held = |(of, _): &(PoolId, u64), kills: u32| *of == id && most > 0 && kills >= most;
                let held = self.kills.iter().filter(|(key, kills)| held(key, **kills)).count();
                reset += u32::try_from(held).expect("few");
                self.kills.retain(|(of, _), _| *of != id);
            }
        }
        self.calls.insert(call, Some(reset));
    }

    /// What is over by now, before the engine looks at the clock.
    pub(super) fn tick(&mut self, now: Time) {
        for pool in self.pools.values_mut().filter(|pool| pool.policy.dispatch.is_some()) {
            pool.fuse.tick(now);
            pool.places.values_mut().for_each(|place| place.fuse.tick(now));
        }
        let back = |request: &Request| matches!(request.stage, Stage::BackingOff(until) if until <= now);
        for request in self.requests.values_mut().filter(|request| back(request)) {
            request.stage = Stage::Waiting;
            let home = request.demand.session.and_then(|session| self.sessions.get(&session)).and_then(|s| s.home);
            request.homes.extend(home.filter(|_| request.strict));
        }
    }
}
