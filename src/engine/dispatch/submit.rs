//! A request comes, goes, or has waited long enough.
//!
//! Decides whether it is accepted at all, and concludes what no worker will answer. Whatever becomes of a request becomes of
//! it in [`Engine::conclude`], once.

use super::request::{Request, Stage};
use super::{Conclusion, Demand, Reason, RequestEffect, RequestId, RequestInput};
use crate::engine::step::Phase;
use crate::engine::timers::Key;
use crate::engine::{Effect, Engine, Time};
use crate::spec::{Affinity, DispatchPolicy, PoolId};

impl Engine {
    /// Takes a fact about requests, or an order.
    pub(in crate::engine) fn handle_request(&mut self, input: RequestInput, now: Time) {
        match input {
            RequestInput::Submitted(id, pool, demand) => self.submit(id, pool, demand, now),
            RequestInput::Abandoned(id) => self.abandon(id, now),
            RequestInput::Answered(attempt, worker, generation, quality) => {
                self.answered(attempt, worker, generation, quality, now);
            }
            RequestInput::Undelivered(attempt, worker, generation) => {
                self.undelivered(attempt, worker, generation, now)
            }
            RequestInput::Released(attempt, worker, generation) => self.released(attempt, worker, generation, now),
            RequestInput::Unoccupied(worker, generation) => self.unoccupied(worker, generation, now),
            RequestInput::MemoryMeasured(worker, generation, bytes) => {
                self.memory_measured(worker, generation, bytes, now);
            }
            RequestInput::SessionRequested(call, session, pool, ttl) => {
                self.session_requested(call, session, pool, ttl, now);
            }
            RequestInput::SessionClosed(call, session) => self.session_closed(call, session),
            RequestInput::BreakersReset(call, target) => self.reset_breakers(call, target, now),
        }
    }

    pub(super) fn dispatch_policy(&self, pool: PoolId) -> Option<DispatchPolicy> {
        self.pools.get(&pool)?.policy.dispatch
    }

    fn submit(&mut self, id: RequestId, pool: PoolId, demand: Demand, now: Time) {
        if let Err(reason) = self.accept(id, pool, demand, now) {
            self.effects.push_back(Effect::Request(RequestEffect::Conclude(id, Conclusion::NeverStarted(reason))));
        }
    }

    /// Takes a request in, or says why not.
    fn accept(&mut self, id: RequestId, pool_id: PoolId, demand: Demand, now: Time) -> Result<(), Reason> {
        if self.shutdown.is_some() {
            return Err(Reason::ShuttingDown);
        }
        let pool = self.pools.get_mut(&pool_id).filter(|pool| !pool.removed).ok_or(Reason::PoolNotFound)?;
        let policy = pool.policy.dispatch.ok_or(Reason::NotDispatched)?;
        let dispatcher = &mut pool.dispatcher;
        dispatcher.counters.requests += 1;
        if self.requests.quarantine.holds(pool_id, demand.fingerprint, policy.quarantine_kills) {
            dispatcher.counters.quarantined += 1;
            return Err(Reason::Quarantined);
        }
        if dispatcher.breaker.open_until().is_some() {
            return Err(Reason::CircuitOpen);
        }
        if !self.enter_session(demand.session, id, pool_id, policy.sessions, now) {
            return Err(Reason::SessionQuotaExceeded);
        }
        let deadline = now.after(demand.timeout.unwrap_or(policy.timeout));
        let request = Request {
            pool: pool_id,
            demand,
            affinity: demand.affinity.unwrap_or(policy.sessions.affinity),
            deadline,
            queue_deadline: now.after(demand.queue_timeout.unwrap_or(policy.queue_timeout)),
            stage: Stage::Waiting(None),
            attempts: 0,
            reached: false,
            tried: demand.avoided.into_iter().flatten().collect(),
            armed: None,
        };
        let queued = self.enqueue_request(id, request, policy, now);
        if queued.is_err() {
            self.leave_session(demand.session, id, now);
        }
        queued
    }

    /// Puts a request into the queue of its pool, and further if a desk is free.
    fn enqueue_request(
        &mut self,
        id: RequestId,
        mut request: Request,
        policy: DispatchPolicy,
        now: Time,
    ) -> Result<(), Reason> {
        let pool_id = request.pool;
        let bound = self.bound_to(&request, now)?;
        if bound.is_none() && self.is_hopeless(pool_id) {
            return Err(Reason::NoWorkers);
        }
        request.stage = Stage::Waiting(bound);
        self.requests.insert(id, request);
        self.queue_up(id, bound, now);
        self.pump(pool_id, now);
        if self.requests.get(id).is_none_or(|request| !matches!(request.stage, Stage::Waiting(_))) {
            return Ok(());
        }
        let Some(pool) = self.pools.get_mut(&pool_id) else { return Ok(()) };
        if pool.dispatcher.queued() > policy.queue_max as usize {
            pool.dispatcher.unqueue(id, bound);
            pool.dispatcher.counters.saturated += 1;
            if let Some(slot) = bound {
                pool.dispatcher.refresh(slot, &policy, now);
            }
            self.requests.take(id);
            return Err(Reason::PoolSaturated);
        }
        pool.dispatcher.counters.queued += 1;
        self.effects.push_back(Effect::Request(RequestEffect::Queued(id)));
        self.arm_request(id);
        Ok(())
    }

    /// The desk that a strict request has to wait for; `None` if it may have any.
    fn bound_to(&self, request: &Request, now: Time) -> Result<Option<u32>, Reason> {
        let Some(home) = self.requests.home(request.demand.session).filter(|_| request.is_strict()) else {
            return Ok(None);
        };
        let dispatcher = self.pools.get(&request.pool).map(|pool| &pool.dispatcher);
        let desk = dispatcher.and_then(|dispatcher| dispatcher.desks.get(&home.worker.slot));
        let there = desk.filter(|desk| desk.is_there() && desk.generation == Some(home.generation));
        let Some(desk) = there.filter(|desk| !desk.retiring) else { return Err(Reason::SessionWorkerUnavailable) };
        let free = self.dispatch_policy(request.pool).is_some_and(|policy| desk.is_free(&policy));
        let first = desk.bound.is_empty() && free && now <= request.deadline;
        if request.affinity == Affinity::StrictFailFast && !first {
            return Err(Reason::WorkerBusy);
        }
        Ok(Some(home.worker.slot))
    }

    /// Puts a waiting request where those like it wait.
    pub(super) fn queue_up(&mut self, id: RequestId, bound: Option<u32>, now: Time) {
        let Some(pool_id) = self.requests.get(id).map(|request| request.pool) else { return };
        let Some(pool) = self.pools.get_mut(&pool_id) else { return };
        let Some(policy) = pool.policy.dispatch else { return };
        match bound {
            None => {
                pool.dispatcher.waiting.insert(id);
            }
            Some(slot) => {
                pool.dispatcher.bind(slot, id);
                pool.dispatcher.refresh(slot, &policy, now);
            }
        }
        self.requests.calling.insert(pool_id);
    }

    pub(super) fn arm_request(&mut self, id: RequestId) {
        if let Some(request) = self.requests.open.get_mut(&id) {
            let due = request.due();
            self.timers.arm(Key::Request(id), &mut request.armed, Some(due));
        }
    }

    /// Takes a request out of wherever it waits. It is not concluded by that.
    pub(super) fn unqueue(&mut self, id: RequestId, now: Time) {
        let Some(request) = self.requests.get(id) else { return };
        let (pool, stage) = (request.pool, request.stage);
        let Some(pool) = self.pools.get_mut(&pool) else { return };
        if let (Stage::Waiting(bound), Some(policy)) = (stage, pool.policy.dispatch) {
            pool.dispatcher.unqueue(id, bound);
            if let Some(slot) = bound {
                pool.dispatcher.refresh(slot, &policy, now);
            }
        }
    }

    /// Ends a request. The one place where that happens.
    pub(super) fn conclude(&mut self, id: RequestId, conclusion: Conclusion, now: Time) {
        self.unqueue(id, now);
        let Some(mut request) = self.requests.take(id) else { return };
        self.timers.arm(Key::Request(id), &mut request.armed, None);
        self.leave_session(request.demand.session, id, now);
        if let Some(pool) = self.pools.get_mut(&request.pool) {
            let counters = &mut pool.dispatcher.counters;
            match conclusion {
                Conclusion::Answered(_) => counters.answered += 1,
                Conclusion::NeverStarted(Reason::Abandoned) | Conclusion::InDoubt(Reason::Abandoned) => {
                    counters.abandoned += 1;
                }
                Conclusion::NeverStarted(Reason::QueueTimeout) => {
                    counters.queue_timeouts += 1;
                    counters.errors += 1;
                }
                Conclusion::NeverStarted(_) | Conclusion::InDoubt(_) => counters.errors += 1,
            }
        }
        self.effects.push_back(Effect::Request(RequestEffect::Conclude(id, conclusion)));
    }

    /// Ends a request without an answer.
    pub(super) fn conclude_for(&mut self, id: RequestId, reason: Reason, now: Time) {
        let reached = self.requests.get(id).is_some_and(|request| request.reached);
        let conclusion = if reached { Conclusion::InDoubt(reason) } else { Conclusion::NeverStarted(reason) };
        self.conclude(id, conclusion, now);
    }

    fn abandon(&mut self, id: RequestId, now: Time) {
        self.give_up(id, Reason::Abandoned, now);
    }

    /// Ends a request that nobody waits for any more, wherever it is.
    fn give_up(&mut self, id: RequestId, reason: Reason, now: Time) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if let Stage::InFlight(attempt, worker) = request.stage {
            request.reached = true;
            let wanted_until = request.deadline.max(now);
            self.orphan(attempt, worker, wanted_until, now);
        }
        self.conclude_for(id, reason, now);
    }

    /// A request's deadline has come, or the end of its pause.
    pub(in crate::engine) fn request_is_due(&mut self, id: RequestId, now: Time) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.armed = None;
        if matches!(request.stage, Stage::BackingOff(_)) && request.deadline > now {
            return self.come_back(id, now);
        }
        let reason = match (request.stage, request.reached) {
            (Stage::InFlight(..), _) | (_, true) => Reason::WorkerTimeout,
            (Stage::Waiting(_) | Stage::BackingOff(_), false) => Reason::QueueTimeout,
        };
        self.give_up(id, reason, now);
    }

    /// Ends a request whose time was over before it had a worker; whether it was.
    pub(super) fn expire(&mut self, id: RequestId, now: Time) -> bool {
        let Some(request) = self.requests.open.get_mut(&id).filter(|request| request.due() <= now) else {
            return false;
        };
        self.timers.arm(Key::Request(id), &mut request.armed, None);
        self.request_is_due(id, now);
        true
    }

    /// A pause is over: the request waits again, where its number puts it.
    pub(super) fn come_back(&mut self, id: RequestId, now: Time) {
        let Some(request) = self.requests.get(id) else { return };
        match self.bound_to(request, now) {
            Ok(None) if self.is_hopeless(request.pool) => self.conclude_for(id, Reason::NoWorkers, now),
            Ok(bound) => {
                if let Some(request) = self.requests.get_mut(id) {
                    request.stage = Stage::Waiting(bound);
                }
                self.queue_up(id, bound, now);
                self.arm_request(id);
            }
            Err(reason) => self.conclude_for(id, reason, now),
        }
    }

    /// Whether no worker of a pool is ready, and none is on its way.
    fn is_hopeless(&self, pool: PoolId) -> bool {
        let Some(pool) = self.pools.get(&pool) else { return true };
        let has_desk = pool.dispatcher.desks.values().any(super::desk::Desk::is_there);
        !has_desk
            && pool.slots.values().all(|worker| match worker.phase {
                Phase::Stopped | Phase::Crashed | Phase::Stuck => true,
                Phase::Stopping | Phase::Killing | Phase::Emptying | Phase::Aborting => {
                    matches!(worker.after, Some(crate::engine::After::Down | crate::engine::After::Gone))
                }
                Phase::Queued | Phase::Spawning | Phase::Starting | Phase::Running | Phase::Waiting => false,
            })
    }

    /// Concludes what waits in a pool if nothing can become of it.
    pub(super) fn dismiss_if_hopeless(&mut self, pool: PoolId, now: Time) {
        let waits = self.pools.get(&pool).is_some_and(|pool| !pool.dispatcher.waiting.is_empty());
        if waits && self.is_hopeless(pool) {
            self.dismiss_queue(pool, Reason::NoWorkers, now);
        }
    }

    /// Concludes everything of a pool that is not concluded, whether a worker has it or not.
    pub(super) fn conclude_all(&mut self, pool: PoolId, reason: Reason, now: Time) {
        let of_pool = self.requests.open.iter().filter(|(_, request)| request.pool == pool);
        for id in of_pool.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.give_up(id, reason, now);
        }
    }

    /// The daemon shuts down: nothing that waits will have a worker.
    pub(in crate::engine) fn dismiss_all(&mut self, now: Time) {
        for pool in self.pools.keys().copied().collect::<Vec<_>>() {
            self.dismiss_queue(pool, Reason::ShuttingDown, now);
        }
    }

    /// Concludes everything that waits in a pool.
    pub(in crate::engine) fn dismiss_queue(&mut self, pool: PoolId, reason: Reason, now: Time) {
        let waits = |request: &Request| match request.stage {
            Stage::Waiting(_) | Stage::BackingOff(_) => request.pool == pool,
            Stage::InFlight(..) => false,
        };
        let waiting = self.requests.open.iter().filter(|(_, request)| waits(request));
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.conclude_for(id, reason, now);
        }
    }
}
