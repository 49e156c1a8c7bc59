//! What comes of an attempt: an answer, a failure, or nothing in time.

use std::time::Duration;

use super::desk::{Desk, Holder};
use super::request::Stage;
use super::{AttemptId, BreakerState, Conclusion, Quality, Reason, RequestEffect, RequestId};
use crate::engine::step::Event;
use crate::engine::timers::Key;
use crate::engine::{Answer, CallId, Cause, Effect, Engine, Target, Time};
use crate::spec::{DispatchPolicy, Generation, PoolId, WorkerId};

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The worker has not seen it.
    Undelivered,
    /// The worker answered that it is broken.
    Broken,
    /// The worker ended by itself.
    Crashed,
    /// The worker was ended, or has let go of it.
    Ended,
}

impl Failure {
    const fn reason(self) -> Reason {
        match self {
            Self::Undelivered => Reason::Undelivered,
            Self::Broken => Reason::WorkerBroken,
            Self::Crashed | Self::Ended => Reason::WorkerExit,
        }
    }
}

impl Engine {
    /// The desk that has this attempt in flight, in this spawn of its worker.
    fn desk_with(&mut self, attempt: AttemptId, worker: WorkerId, generation: Generation) -> Option<&mut Desk> {
        let desk = self.pools.get_mut(&worker.pool)?.dispatcher.desks.get_mut(&worker.slot)?;
        (desk.generation == Some(generation) && desk.in_flight.contains_key(&attempt)).then_some(desk)
    }

    pub(super) fn answered(
        &mut self,
        attempt: AttemptId,
        worker: WorkerId,
        generation: Generation,
        quality: Quality,
        now: Time,
    ) {
        let sound = quality != Quality::Broken;
        if self.desk_with(attempt, worker, generation).is_none() {
            return;
        }
        if sound {
            self.apply(worker, Event::Beat, now);
        }
        let Some(policy) = self.dispatch_policy(worker.pool) else { return self.drop_remains(attempt, worker) };
        let Some(holder) = self.vacate(attempt, worker, &policy, now) else { return };
        if sound {
            self.attempt_succeeded(attempt, worker, now);
        } else {
            self.breaker_failed(attempt, worker, &policy, now);
        }
        let Holder::Request(id) = holder else { return };
        if sound {
            if let Some(request) = self.requests.get(id) {
                self.requests.quarantine.answered(worker.pool, request.demand.fingerprint);
            }
            // One that nobody waits for has been counted as what it ended as.
            if let Some(pool) = self.pools.get_mut(&worker.pool) {
                pool.dispatcher.counters.errors += u64::from(quality == Quality::Refusal);
            }
            self.conclude(id, Conclusion::Answered(attempt), now);
        } else {
            self.retry(id, Failure::Broken, now);
        }
    }

    pub(super) fn undelivered(&mut self, attempt: AttemptId, worker: WorkerId, generation: Generation, now: Time) {
        if self.desk_with(attempt, worker, generation).is_some() {
            self.attempt_failed(attempt, worker, Failure::Undelivered, now);
        }
    }

    pub(super) fn released(&mut self, attempt: AttemptId, worker: WorkerId, generation: Generation, now: Time) {
        if self.desk_with(attempt, worker, generation).is_some() {
            self.attempt_failed(attempt, worker, Failure::Ended, now);
        }
    }

    /// An attempt is over without an answer.
    pub(super) fn attempt_failed(&mut self, attempt: AttemptId, worker: WorkerId, failure: Failure, now: Time) {
        let Some(policy) = self.dispatch_policy(worker.pool) else { return self.drop_remains(attempt, worker) };
        let Some(holder) = self.vacate(attempt, worker, &policy, now) else { return };
        match failure {
            Failure::Ended => self.probe_lost(attempt, worker, &policy, now),
            Failure::Undelivered | Failure::Broken | Failure::Crashed => {
                self.breaker_failed(attempt, worker, &policy, now);
            }
        }
        if let Holder::Request(id) = holder {
            self.retry(id, failure, now);
        }
    }

    /// Takes an attempt out of its desk, which has room for another by that.
    fn vacate(&mut self, attempt: AttemptId, worker: WorkerId, policy: &DispatchPolicy, now: Time) -> Option<Holder> {
        let dispatcher = &mut self.pools.get_mut(&worker.pool)?.dispatcher;
        let holder = dispatcher.desks.get_mut(&worker.slot)?.in_flight.remove(&attempt)?;
        dispatcher.touch(worker.slot);
        self.requests.calling.insert(worker.pool);
        self.requests.calling.extend(self.requests.budgets.give_back(policy.budget));
        self.refresh_desk(worker, now);
        Some(holder)
    }

    /// Lists a desk anew and arms what depends on who is in it.
    pub(super) fn refresh_desk(&mut self, worker: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return };
        let Some(policy) = pool.policy.dispatch else { return };
        pool.dispatcher.refresh(worker.slot, &policy, now);
        let Some(desk) = pool.dispatcher.desks.get_mut(&worker.slot) else { return };
        let (deaf_at, breaker_due) = (desk.deaf_at(), desk.breaker.open_until());
        self.timers.arm(Key::Overdue(worker), &mut desk.armed_overdue, deaf_at);
        self.timers.arm(Key::Breaker(worker), &mut desk.armed_breaker, breaker_due);
        self.requests.calling.insert(worker.pool);
        self.retire_if_idle(worker, now);
    }

    /// Nobody wants this attempt's answer any more: the worker is told, and has a while.
    pub(super) fn orphan(&mut self, attempt: AttemptId, worker: WorkerId, from: Time, now: Time) {
        let Some(policy) = self.dispatch_policy(worker.pool) else { return };
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return };
        let Some(desk) = pool.dispatcher.desks.get_mut(&worker.slot) else { return };
        let Some(generation) = desk.generation.filter(|_| desk.in_flight.contains_key(&attempt)) else { return };
        desk.in_flight.insert(attempt, Holder::Orphan(from.after(policy.cancel_grace)));
        self.effects.push_back(Effect::Request(RequestEffect::Cancel(attempt, worker, generation)));
        if from <= now {
            self.probe_lost(attempt, worker, &policy, now);
        }
        self.refresh_desk(worker, now);
    }

    /// A worker goes on with what nobody wants, although it was told.
    pub(in crate::engine) fn overdue_is_due(&mut self, worker: WorkerId, now: Time) {
        let desk = self.pools.get_mut(&worker.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&worker.slot));
        let Some(desk) = desk else { return };
        desk.armed_overdue = None;
        if desk.deaf_at().is_some_and(|at| at <= now) {
            self.apply(worker, Event::Kill(Cause::Deadline), now);
        }
    }

    /// What becomes of a request whose attempt failed.
    fn retry(&mut self, id: RequestId, failure: Failure, now: Time) {
        let Some(request) = self.requests.open.get_mut(&id) else { return };
        let pool_id = request.pool;
        let Some(pool) = self.pools.get_mut(&pool_id) else { return };
        let Some(policy) = pool.policy.dispatch else { return };
        request.reached |= failure != Failure::Undelivered;
        if failure == Failure::Crashed {
            let kills = self.requests.quarantine.killed(pool_id, request.demand.fingerprint);
            if policy.quarantine_kills > 0 && kills >= policy.quarantine_kills {
                pool.dispatcher.counters.quarantined += 1;
                return self.conclude_for(id, Reason::Quarantined, now);
            }
        }
        let may = request.attempts < policy.attempts_max
            && request.deadline > now
            && (!request.reached || request.demand.idempotent);
        if !may || self.shutdown.is_some() || pool.removed {
            return self.conclude_for(id, failure.reason(), now);
        }
        if request.is_strict() && failure != Failure::Undelivered {
            return self.conclude_for(id, Reason::SessionWorkerUnavailable, now);
        }
        pool.dispatcher.counters.retries += 1;
        let at_once = pool.dispatcher.has_untried(&request.tried) && !request.is_strict();
        let pause = if at_once { Duration::ZERO } else { backoff(&policy, request.attempts) };
        // One that may have any desk stands where its number puts it; nobody who came later is before it.
        request.stage = Stage::BackingOff(now.after(pause));
        self.effects.push_back(Effect::Request(RequestEffect::Retrying(id, pause)));
        if at_once {
            request.stage = Stage::Waiting(None);
            self.queue_up(id, None, now);
        }
        self.arm_request(id);
    }

    fn attempt_succeeded(&mut self, attempt: AttemptId, worker: WorkerId, now: Time) {
        let Some(dispatcher) = self.pools.get_mut(&worker.pool).map(|pool| &mut pool.dispatcher) else { return };
        let closed = dispatcher.breaker.succeeded(attempt);
        let desk_closed = dispatcher.desks.get_mut(&worker.slot).is_some_and(|desk| desk.breaker.succeeded(attempt));
        self.tell_breakers(worker, desk_closed, closed, now);
    }

    fn breaker_failed(&mut self, attempt: AttemptId, worker: WorkerId, policy: &DispatchPolicy, now: Time) {
        let Some(dispatcher) = self.pools.get_mut(&worker.pool).map(|pool| &mut pool.dispatcher) else { return };
        let opened = dispatcher.breaker.failed(attempt, policy.pool_breaker, now);
        let mut desk_opened = false;
        if let Some(desk) = dispatcher.desks.get_mut(&worker.slot) {
            desk.failed += 1;
            desk_opened = desk.breaker.failed(attempt, policy.worker_breaker, now);
        }
        self.tell_breakers(worker, desk_opened, opened, now);
    }

    /// An attempt that may have been a probe says nothing, and will not.
    fn probe_lost(&mut self, attempt: AttemptId, worker: WorkerId, policy: &DispatchPolicy, now: Time) {
        let Some(dispatcher) = self.pools.get_mut(&worker.pool).map(|pool| &mut pool.dispatcher) else { return };
        let opened = dispatcher.breaker.probe_lost(attempt, policy.pool_breaker, now);
        let desk = dispatcher.desks.get_mut(&worker.slot);
        let desk_opened = desk.is_some_and(|desk| desk.breaker.probe_lost(attempt, policy.worker_breaker, now));
        self.tell_breakers(worker, desk_opened, opened, now);
    }

    /// Tells of breakers that have changed, and arms what follows from that.
    fn tell_breakers(&mut self, worker: WorkerId, of_worker: bool, of_pool: bool, now: Time) {
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return };
        let mut tell = |slot, state| {
            self.effects.push_back(Effect::Request(RequestEffect::BreakerChanged(worker.pool, slot, state)));
        };
        if of_worker && let Some(desk) = pool.dispatcher.desks.get(&worker.slot) {
            tell(Some(worker.slot), desk.breaker.state());
        }
        if of_pool {
            tell(None, pool.dispatcher.breaker.state());
        }
        let due = pool.dispatcher.breaker.open_until();
        self.timers.arm(Key::PoolBreaker(worker.pool), &mut pool.dispatcher.armed_breaker, due);
        // Written down whenever it would be another one for a later daemon, failures before it opens included.
        let record = pool.dispatcher.desks.get(&worker.slot).map(|desk| desk.breaker.record()).unwrap_or_default();
        if let Some(place) = pool.slots.get_mut(&worker.slot).filter(|place| place.breaker != record) {
            place.breaker = record;
            self.changed.insert(worker);
        }
        let record = pool.dispatcher.breaker.record();
        if std::mem::replace(&mut pool.breaker, record) != record {
            self.changed_pools.insert(worker.pool);
        }
        if of_worker || of_pool {
            self.requests.calling.insert(worker.pool);
        }
        self.refresh_desk(worker, now);
    }

    /// The time of a worker's open breaker is over.
    pub(in crate::engine) fn breaker_is_due(&mut self, worker: WorkerId, now: Time) {
        let desk = self.pools.get_mut(&worker.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&worker.slot));
        let Some(desk) = desk else { return };
        desk.armed_breaker = None;
        let changed = desk.breaker.is_due(now);
        self.tell_breakers(worker, changed, false, now);
    }

    /// A pool was taken over, its breaker as an earlier daemon has left it: if that is open, its time is over some day.
    pub(in crate::engine) fn watch_pool_breaker(&mut self, id: PoolId) {
        if let Some(pool) = self.pools.get_mut(&id) {
            let due = pool.dispatcher.breaker.open_until();
            self.timers.arm(Key::PoolBreaker(id), &mut pool.dispatcher.armed_breaker, due);
        }
    }

    /// The time of a pool's open breaker is over.
    pub(in crate::engine) fn pool_breaker_is_due(&mut self, id: PoolId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        pool.dispatcher.armed_breaker = None;
        if pool.dispatcher.breaker.is_due(now) {
            let told = RequestEffect::BreakerChanged(id, None, BreakerState::HalfOpen);
            self.effects.push_back(Effect::Request(told));
            self.changed_pools.insert(id);
            self.requests.calling.insert(id);
        }
    }

    /// Closes breakers and forgives what was held as poison. Answered with how many that were.
    pub(super) fn reset_breakers(&mut self, call: CallId, target: Target, now: Time) {
        let pools: Vec<PoolId> = match target {
            Target::All => self.pools.keys().copied().collect(),
            Target::Pool(pool) => vec![pool],
            Target::Worker(worker) => vec![worker.pool],
        };
        let mut reset = 0_u32;
        for id in pools {
            let Some(pool) = self.pools.get_mut(&id) else {
                return self.effects.push_back(Effect::Answer(call, Answer::NotFound));
            };
            let Some(policy) = pool.policy.dispatch else { continue };
            let reached = |slot: u32| !matches!(target, Target::Worker(worker) if worker.slot != slot);
            let slots: Vec<u32> = pool.dispatcher.desks.keys().copied().filter(|slot| reached(*slot)).collect();
            let of_pool = !matches!(target, Target::Worker(_));
            if of_pool {
                reset += self.requests.quarantine.forgive(id, policy.quarantine_kills);
                if pool.dispatcher.breaker.reset() {
                    reset += 1;
                    let told = RequestEffect::BreakerChanged(id, None, BreakerState::Closed);
                    self.effects.push_back(Effect::Request(told));
                }
                self.timers.arm(Key::PoolBreaker(id), &mut pool.dispatcher.armed_breaker, None);
                pool.breaker = super::BreakerRecord::default();
                self.changed_pools.insert(id);
            }
            for slot in slots {
                reset += u32::from(self.reset_breaker(WorkerId { pool: id, slot }, now));
            }
            self.requests.calling.insert(id);
        }
        self.effects.push_back(Effect::Answer(call, Answer::Done { achieved: reset, wanted: reset }));
    }

    fn reset_breaker(&mut self, worker: WorkerId, now: Time) -> bool {
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return false };
        let Some(desk) = pool.dispatcher.desks.get_mut(&worker.slot) else { return false };
        let changed = desk.breaker.reset();
        self.tell_breakers(worker, changed, false, now);
        changed
    }
}

/// The pause before the next attempt.
fn backoff(policy: &DispatchPolicy, attempts: u32) -> Duration {
    policy.backoff.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX))
}
