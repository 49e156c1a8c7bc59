//! What the engine promises about requests: held against each effect, and against the books when a turn is over.

use std::time::Duration;

use halsup::engine::{
    Answer, AttemptId, BreakerState, Cause, Conclusion, Delivery, Effect, Engine, Reason, RequestEffect, RequestId,
    SessionId, State, Time,
};
use halsup::spec::{BudgetKind, DispatchPolicy, Generation, PoolId, WorkerId};

use super::books::{Attempt, Books, Place, Pool, Request, Stage, Verdict};
use super::policy::STOP;

impl Place {
    /// Whether it can be given one more request, where so many are outstanding in it.
    fn is_free(&self, outstanding: usize, orphans: usize, policy: &DispatchPolicy) -> bool {
        let takes_part = self.is_ready() && self.occupied.is_none() && !self.retiring;
        takes_part && outstanding < policy.capacity as usize && orphans == 0 && self.fuse.lets_through()
    }
}

impl Books {
    /// The engine has decided this.
    pub(super) fn hold(&mut self, effect: &Effect, now: Time) -> Verdict {
        match *effect {
            Effect::Spawn(worker, generation) => {
                let Some(pool) = self.pools.get_mut(&worker.pool) else {
                    return Err(format!("{worker:?} is nobody's"));
                };
                let place = pool.places.entry(worker.slot).or_default();
                (place.generation, place.occupied, place.retiring) = (Some(generation), None, false);
                place.leased = false;
                (place.killed, place.killed_in_time, place.wanted_when_asked) = (false, false, 0);
            }
            Effect::StateChanged(worker, state) => {
                let Some(pool) = self.pools.get_mut(&worker.pool) else {
                    return Err(format!("{worker:?} is nobody's"));
                };
                let place = pool.places.entry(worker.slot).or_default();
                if state == State::Healthy && place.state.replace(state) != Some(State::Unhealthy) {
                    place.served = 0;
                }
                place.state = Some(state);
            }
            Effect::Signal(worker, _, signal) => {
                let wanted = self.outstanding(worker).filter(|(_, attempt)| attempt.holder.is_ok()).count();
                if let Some(place) = self.place(worker).filter(|_| signal == STOP) {
                    place.wanted_when_asked = wanted;
                }
            }
            Effect::Kill(worker, _) => {
                let in_time = self.deaf_at(worker).is_some_and(|at| at <= now);
                if let Some(place) = self.place(worker) {
                    (place.killed, place.killed_in_time) = (true, in_time);
                }
            }
            Effect::Certify(worker, _, cause) => return self.certified(worker, cause, now),
            Effect::Bind(worker, ..) => {
                if let Some(place) = self.place(worker) {
                    place.leased = true;
                }
            }
            Effect::Forget(worker) => {
                if let Some(pool) = self.pools.get_mut(&worker.pool) {
                    pool.places.remove(&worker.slot);
                }
            }
            Effect::Answer(call, ref answer) => {
                if let Some(Some(reached)) = self.calls.remove(&call) {
                    let told = match answer {
                        Answer::Done { achieved, .. } => *achieved,
                        Answer::NotFound => 0,
                        Answer::OutOfRange { .. }
                        | Answer::ShuttingDown
                        | Answer::NotClaimable
                        | Answer::NoneWarm
                        | Answer::Full { .. }
                        | Answer::ClaimFailed(_)
                        | Answer::Destroyed(_) => return Err(format!("{call:?} is answered {answer:?}")),
                    };
                    return held(told == reached, || format!("{call:?} reached {reached}, and is answered {answer:?}"));
                }
            }
            Effect::Finished => self.finished = true,
            Effect::Request(effect) => return self.hold_request(effect, now),
            Effect::Ping(..) | Effect::Measure(..) | Effect::Freeze(..) | Effect::Thaw(..) | Effect::Task(_) => {
                return Err(format!("nobody asked for {effect:?}"));
            }
        }
        Ok(())
    }

    fn certified(&mut self, worker: WorkerId, cause: Cause, now: Time) -> Verdict {
        if let Some(place) = self.place(worker) {
            if cause == Cause::Recycled && place.wanted_when_asked > 0 {
                return Err(format!("{worker:?} was replaced with {} requests in it", place.wanted_when_asked));
            }
            if cause == Cause::Deadline && !place.killed_in_time {
                return Err(format!("{worker:?} was killed before its grace was over"));
            }
        }
        self.ended(worker, cause, now);
        Ok(())
    }

    fn hold_request(&mut self, effect: RequestEffect, now: Time) -> Verdict {
        match effect {
            RequestEffect::Queued(id) => self.queued(id),
            RequestEffect::Deliver(id, delivery) => self.delivered(id, delivery, now),
            RequestEffect::Retrying(id, pause) => {
                let Some(request) = self.requests.get_mut(&id) else {
                    return Err(format!("{id:?} is tried again and was concluded"));
                };
                if request.stage != Stage::Failed {
                    return Err(format!("{id:?} is tried again and has not failed"));
                }
                request.stage = if pause.is_zero() { Stage::Waiting } else { Stage::BackingOff(now.after(pause)) };
                let pool = request.pool;
                self.count(pool, |counted| &mut counted.retries);
                Ok(())
            }
            RequestEffect::Cancel(id, worker, generation) => self.cancelled(id, worker, generation, now),
            RequestEffect::Conclude(id, conclusion) => self.concluded(id, conclusion, now),
            RequestEffect::SessionEnded(id) => self.session_ended(id, now),
            RequestEffect::RecycleDue(worker, generation, _) => {
                let place = self.place(worker).and_then(|place| place.generation);
                held(place == Some(generation), || format!("{worker:?} {generation:?} is replaced and is gone"))
            }
            RequestEffect::BreakerChanged(..)
            | RequestEffect::Tainted(_)
            | RequestEffect::BudgetReached(_)
            | RequestEffect::MeasureMemory(..) => Ok(()),
        }
    }

    fn count(&mut self, pool: PoolId, which: impl Fn(&mut super::fuse::Counted) -> &mut u64) {
        if let Some(pool) = self.pools.get_mut(&pool).filter(|pool| pool.policy.dispatch.is_some()) {
            *which(&mut pool.counted) += 1;
        }
    }

    fn queued(&mut self, id: RequestId) -> Verdict {
        let Some(request) = self.requests.get_mut(&id).filter(|request| request.stage == Stage::Submitted) else {
            return Err(format!("{id:?} waits and was not just submitted"));
        };
        request.stage = Stage::Waiting;
        let pool = request.pool;
        self.count(pool, |counted| &mut counted.queued_total);
        let (waiting, most) = (self.waiting(pool).count(), self.dispatch(pool).unwrap_or_default().queue_max);
        held(waiting <= most as usize, || format!("{waiting} wait, at most {most} may"))
    }

    fn delivered(&mut self, id: RequestId, delivery: Delivery, now: Time) -> Verdict {
        let Some(request) = self.requests.get(&id).cloned() else {
            return Err(format!("{id:?} is delivered and was concluded"));
        };
        let told = |what: &str| Err(format!("{id:?} is delivered {what}: {delivery:?} {request:?}"));
        if !matches!(request.stage, Stage::Submitted | Stage::Waiting) {
            return told("and does not wait");
        }
        if request.deadline <= now || (request.attempts == 0 && request.queue_deadline <= now) {
            return told("too late");
        }
        if request.attempts > 0 && request.seen && !request.demand.idempotent {
            return told("twice");
        }
        if (delivery.number, delivery.deadline) != (request.attempts + 1, request.deadline) {
            return told("with other words");
        }
        if delivery.number > request.attempts_max {
            return told("too often");
        }
        if self.last_attempt.is_some_and(|last| last >= delivery.attempt) {
            return told("under an old number");
        }
        if self.is_poison(request.pool, request.demand.fingerprint) {
            return told("and is poison");
        }
        if self.shutdown {
            return told("in a shutdown");
        }
        if !self.is_own_worker(&request, (delivery.worker, delivery.generation)) {
            return told("to another worker than its session's");
        }
        let is_older = |(older, other): (RequestId, &Request)| older < id && other.attempts == 0 && !other.strict;
        if request.attempts == 0 && !request.strict && self.waiting(request.pool).any(is_older) {
            return told("before an older one");
        }
        self.hold_place(&delivery).or_else(|why| told(&why))?;
        self.note_delivery(id, delivery);
        Ok(())
    }

    fn is_own_worker(&self, request: &Request, worker: (WorkerId, Generation)) -> bool {
        // Those of a session that is over, or has begun anew without a worker, may have any.
        let has_home = self.home(&request.demand).is_some() && !request.homes.is_empty();
        !request.strict || !has_home || request.homes.contains(&worker)
    }

    /// Whether the place of a delivery may be given one.
    fn hold_place(&self, delivery: &Delivery) -> Verdict {
        let worker = delivery.worker;
        let (Some(pool), Some(policy)) = (self.pool(worker.pool), self.dispatch(worker.pool)) else {
            return Err("in a pool without".to_owned());
        };
        let Some(place) = pool.places.get(&worker.slot) else { return Err("to nobody".to_owned()) };
        let outstanding = self.outstanding(worker).count();
        let is_right = [
            (place.is_ready(), "to who is not ready"),
            (place.generation == Some(delivery.generation), "to another spawn"),
            (place.occupied.is_none(), "to who is occupied"),
            (!place.retiring, "to who is being replaced"),
            (outstanding < policy.capacity as usize, "above capacity"),
            (place.fuse.lets_through(), "past the worker's breaker"),
            (pool.fuse.lets_through(), "past the pool's breaker"),
        ];
        if let Some((_, wrong)) = is_right.iter().find(|(right, _)| !right) {
            return Err((*wrong).to_owned());
        }
        let hybrid = policy.budget.is_some_and(|budget| budget.kind == BudgetKind::Hybrid);
        let spent_up = self.spent(worker.pool).is_some_and(|(spent, most)| spent >= most);
        held(!spent_up || (hybrid && outstanding == 0), || "beyond the budget".to_owned())
    }

    fn note_delivery(&mut self, id: RequestId, delivery: Delivery) {
        let (worker, generation) = (delivery.worker, delivery.generation);
        self.delivered += 1;
        self.last_attempt = Some(delivery.attempt);
        self.attempts.insert(delivery.attempt, Attempt { worker, generation, holder: Ok(id) });
        if let Some(pool) = self.pools.get_mut(&worker.pool) {
            pool.fuse.began(delivery.attempt);
        }
        if let Some(place) = self.place(worker) {
            place.fuse.began(delivery.attempt);
            place.total += 1;
            place.served += 1;
        }
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.attempts += 1;
        request.stage = Stage::InFlight(delivery.attempt);
        let Some(id) = request.demand.session else { return };
        if let Some(session) = self.sessions.get_mut(&id) {
            session.home = Some((worker, generation));
            let others = self.requests.values_mut().filter(|other| other.strict && other.demand.session == Some(id));
            others.for_each(|other| _ = other.homes.insert((worker, generation)));
        }
    }

    fn cancelled(&mut self, id: AttemptId, worker: WorkerId, generation: Generation, now: Time) -> Verdict {
        let Some(attempt) = self.attempts.get(&id).filter(|attempt| attempt.worker == worker).copied() else {
            return Err(format!("{id:?} is cancelled and is over"));
        };
        let Ok(request) = attempt.holder else { return Err(format!("{id:?} is cancelled twice")) };
        if attempt.generation != generation {
            return Err(format!("{id:?} is cancelled in another spawn"));
        }
        let Some(request) = self.requests.get_mut(&request) else { return Err(format!("{id:?} is nobody's")) };
        (request.stage, request.seen) = (Stage::Failed, true);
        let wanted_until = request.deadline.max(now);
        let grace = self.pools.get(&worker.pool).map_or(Duration::ZERO, |pool| pool.grace);
        let attempt = Attempt { holder: Err(wanted_until.after(grace)), ..attempt };
        self.attempts.insert(id, attempt);
        if wanted_until <= now {
            self.lost(id, worker, now);
        }
        Ok(())
    }

    fn concluded(&mut self, id: RequestId, conclusion: Conclusion, now: Time) -> Verdict {
        let Some(request) = self.requests.remove(&id) else {
            return Err(format!("{id:?} is concluded twice, or was never submitted: {conclusion:?}"));
        };
        let wrong = || Err(format!("{id:?} is concluded {conclusion:?}: {request:?}"));
        let expected = self.refused.take_if(|(refused, _)| *refused == id);
        let (reason, seen) = match conclusion {
            Conclusion::Answered(attempt) => {
                if self.answered.take() != Some((id, attempt)) {
                    return wrong();
                }
                self.tally("answered");
                self.count(request.pool, |counted| &mut counted.answered);
                self.leave_session(id, &request.demand, now);
                return Ok(());
            }
            Conclusion::NeverStarted(reason) => (reason, false),
            Conclusion::InDoubt(reason) => (reason, true),
        };
        let is_refusal = expected.is_none_or(|(_, expected)| expected == reason);
        if matches!(request.stage, Stage::InFlight(_)) || seen != request.seen || !is_refusal {
            return wrong();
        }
        if !self.is_true(reason, &request, now) {
            return wrong();
        }
        self.tally(if seen { "in doubt" } else { "never started" });
        self.count_conclusion(reason, &request);
        self.leave_session(id, &request.demand, now);
        Ok(())
    }

    fn tally(&mut self, class: &'static str) {
        *self.concluded.entry(class).or_default() += 1;
    }

    fn count_conclusion(&mut self, reason: Reason, request: &Request) {
        let pool = request.pool;
        if reason == Reason::Quarantined {
            self.count(pool, |counted| &mut counted.quarantined);
        }
        if request.stage == Stage::Submitted {
            // Refusals are counted as what they are alone.
            if reason == Reason::PoolSaturated {
                self.count(pool, |counted| &mut counted.saturated);
            }
            return;
        }
        if reason == Reason::Abandoned {
            return self.count(pool, |counted| &mut counted.abandoned);
        }
        self.count(pool, |counted| &mut counted.errors);
        if reason == Reason::QueueTimeout {
            self.count(pool, |counted| &mut counted.queue_timeouts);
        }
    }

    /// Whether a request may be concluded for this reason.
    fn is_true(&self, reason: Reason, request: &Request, now: Time) -> bool {
        let is_new = request.stage == Stage::Submitted;
        let failed = request.stage == Stage::Failed;
        let pool = self.pool(request.pool);
        match reason {
            Reason::PoolNotFound => pool.is_none_or(|pool| pool.removed),
            Reason::NotDispatched => self.dispatch(request.pool).is_none(),
            Reason::PoolSaturated => {
                let most = self.dispatch(request.pool).unwrap_or_default().queue_max;
                is_new && self.waiting(request.pool).count() >= most as usize
            }
            Reason::QueueTimeout => !failed && request.queue_deadline.min(request.deadline) <= now,
            Reason::WorkerTimeout => request.seen && request.deadline <= now,
            Reason::WorkerExit | Reason::WorkerBroken => failed && request.seen,
            Reason::Undelivered => failed,
            Reason::WorkerBusy => request.strict && request.fails_fast,
            Reason::SessionWorkerUnavailable => request.strict && (!is_new || !request.homes.is_empty()),
            Reason::SessionQuotaExceeded | Reason::CircuitOpen => is_new,
            Reason::NoWorkers => pool.is_none_or(|pool| !pool.places.values().any(Place::is_ready)),
            Reason::Quarantined => self.is_poison(request.pool, request.demand.fingerprint),
            Reason::Abandoned => request.abandoned,
            Reason::ShuttingDown => self.shutdown,
        }
    }

    fn session_ended(&mut self, id: SessionId, now: Time) -> Verdict {
        let Some(session) = self.sessions.remove(&id) else { return Err(format!("{id:?} ended twice")) };
        let pool_is_over = self.dispatch(session.pool).is_none();
        if self.closed == Some(id) || pool_is_over {
            return Ok(());
        }
        held(session.open.is_empty() && session.expires <= now, || format!("{id:?} is over at {now:?}: {session:?}"))
    }

    /// Everything that has to be so when a turn is over.
    pub(super) fn settle(&mut self, engine: &Engine, now: Time) -> Verdict {
        if let Some((id, reason)) = self.refused {
            return Err(format!("{id:?} was not refused for {reason:?}"));
        }
        if let Some((id, _)) = self.answered {
            return Err(format!("{id:?} was answered and is not concluded"));
        }
        let late = |request: &Request| {
            let waits = request.stage == Stage::Waiting && request.attempts == 0;
            request.deadline <= now || (waits && request.queue_deadline <= now)
        };
        let lost = |request: &Request| matches!(request.stage, Stage::Submitted | Stage::Failed);
        if let Some(wrong) = self.requests.iter().find(|(_, request)| late(request) || lost(request)) {
            return Err(format!("late or lost: {wrong:?}"));
        }
        let over = |session: &super::books::Session| session.open.is_empty() && session.expires <= now;
        if let Some(wrong) = self.sessions.iter().find(|(_, session)| over(session)) {
            return Err(format!("a session goes on: {wrong:?}"));
        }
        self.see_who_retires(engine);
        for (&id, pool) in self.pools.iter().filter(|(_, pool)| pool.policy.dispatch.is_some()) {
            if pool.removed && pool.places.is_empty() {
                continue;
            }
            self.hold_deaf(id, pool, now)?;
            hold_one_by_one(id, pool)?;
            self.hold_views(id, pool, engine)?;
            self.hold_queue(id, pool)?;
        }
        let open = engine.open_requests();
        held(open == self.requests.len(), || format!("{open} are open, not {}", self.requests.len()))
    }

    /// Who is being replaced, the engine decides: what is promised is that it is given nothing from then on.
    fn see_who_retires(&mut self, engine: &Engine) {
        for pool in self.pools.values_mut() {
            pool.places.values_mut().for_each(|place| place.retiring = false);
        }
        for (&id, pool) in &mut self.pools {
            for desk in engine.desks(id).filter(|desk| desk.retiring) {
                if let Some(place) = pool.places.get_mut(&desk.slot) {
                    place.retiring = place.is_ready() && place.generation == desk.generation;
                }
            }
        }
    }

    /// Who goes on with what nobody wants has been killed when its grace was over.
    fn hold_deaf(&self, id: PoolId, pool: &Pool, now: Time) -> Verdict {
        let worker = |slot: u32| WorkerId { pool: id, slot };
        let deaf = |slot: u32| self.deaf_at(worker(slot)).is_some_and(|at| at <= now);
        match pool.places.iter().find(|(slot, place)| !place.killed && deaf(**slot)) {
            Some((slot, place)) => Err(format!("{:?} goes on with what nobody wants: {place:?}", worker(*slot))),
            None => Ok(()),
        }
    }

    /// Nobody waits for whom somebody is free.
    fn hold_queue(&self, id: PoolId, pool: &Pool) -> Verdict {
        let Some((first, _)) = self.waiting(id).next() else { return Ok(()) };
        let down = |place: &Place| matches!(place.state, Some(State::Stopped | State::Crashed | State::Stuck));
        if pool.places.values().all(down) {
            return Err(format!("{first:?} waits for nobody in {id:?}"));
        }
        let Some(policy) = pool.policy.dispatch.filter(|_| pool.fuse.lets_through()) else { return Ok(()) };
        let spent_up = self.spent(id).is_some_and(|(spent, most)| spent >= most);
        let hybrid = policy.budget.is_some_and(|budget| budget.kind == BudgetKind::Hybrid);
        for (&slot, place) in &pool.places {
            let worker = WorkerId { pool: id, slot };
            let (all, orphans) = self.loads(worker);
            if !place.is_free(all, orphans, &policy) || (spent_up && !(hybrid && all == 0)) {
                continue;
            }
            let own = place.generation.map(|generation| (worker, generation));
            // One whose session has had several workers waits for one of them, and which is not known.
            let takes = |request: &Request| !request.strict || request.homes.iter().all(|home| Some(*home) == own);
            if let Some((waits, request)) = self.waiting(id).find(|(_, request)| takes(request)) {
                return Err(format!("{waits:?} waits and {worker:?} is free: {request:?} {place:?}"));
            }
        }
        Ok(())
    }

    /// How many attempts are outstanding in a worker, and how many of them nobody wants.
    fn loads(&self, worker: WorkerId) -> (usize, usize) {
        let orphans = self.outstanding(worker).filter(|(_, attempt)| attempt.holder.is_err()).count();
        (self.outstanding(worker).count(), orphans)
    }

    /// What the engine tells of a pool is what the world has counted.
    fn hold_views(&self, id: PoolId, pool: &Pool, engine: &Engine) -> Verdict {
        let Some(view) = engine.dispatch(id) else { return Err(format!("{id:?} is not listed")) };
        let counted = pool.counted;
        let of_pool = |attempt: &&Attempt| attempt.worker.pool == id;
        let (in_flight, waiting) = (self.attempts.values().filter(of_pool).count(), self.waiting(id).count());
        let busy = pool.places.keys().filter(|slot| self.loads(WorkerId { pool: id, slot: **slot }).0 > 0).count();
        let told = [view.requests, view.queued_total, view.answered, view.errors, view.queue_timeouts];
        let is = [counted.requests, counted.queued_total, counted.answered, counted.errors, counted.queue_timeouts];
        let told_more = [view.saturated, view.retries, view.abandoned, view.quarantined];
        let is_more = [counted.saturated, counted.retries, counted.abandoned, counted.quarantined];
        let now_told = [view.queued, view.in_flight, view.busy, view.workers];
        let ready = pool.places.values().filter(|place| place.is_ready()).count();
        let now_is = [waiting, in_flight, busy, ready].map(|many| u32::try_from(many).expect("few"));
        if (told, told_more, now_told) != (is, is_more, now_is) {
            return Err(format!("{id:?} is told to be {view:?}, and is {counted:?} {now_is:?}"));
        }
        if view.breaker != pool.fuse.state() {
            return Err(format!("the breaker of {id:?} is {:?}, not {:?}", view.breaker, pool.fuse));
        }
        for desk in engine.desks(id) {
            let Some(place) = pool.places.get(&desk.slot) else { return Err(format!("nobody is at {desk:?}")) };
            let (all, _) = self.loads(WorkerId { pool: id, slot: desk.slot });
            let is = (place.total, place.failed, place.fuse.failures, place.fuse.state(), all);
            let told = (desk.total, desk.failed, desk.failures, desk.breaker, desk.in_flight as usize);
            let served = !place.is_ready() || desk.served == place.served;
            let timed = (desk.breaker == BreakerState::Open) == desk.open_until.is_some();
            if is != told || !served || !timed {
                return Err(format!("{id:?} has {desk:?}, and it is {place:?} with {all}"));
            }
        }
        Ok(())
    }
}

fn held(so: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if so { Ok(()) } else { Err(otherwise()) }
}

/// Workers are replaced one at a time: who goes on serving is not told to leave meanwhile.
fn hold_one_by_one(id: PoolId, pool: &Pool) -> Verdict {
    let leaving = pool.places.iter().filter(|(_, place)| place.retiring).map(|(slot, _)| *slot).collect::<Vec<_>>();
    held(leaving.len() <= 1, || format!("the workers {leaving:?} of {id:?} are replaced at once"))
}
