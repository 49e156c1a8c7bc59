//! Gives waiting requests to free desks, the oldest first.
//!
//! Called whenever a desk may have become free or a request may have come; what it leaves waiting, waits for something.

use super::budget::Room;
use super::desk::Holder;
use super::request::{Home, Stage};
use super::{Delivery, Reason, RequestEffect, RequestId};
use crate::engine::timers::Key;
use crate::engine::{Effect, Engine, Time};
use crate::spec::{DispatchPolicy, PoolId, WorkerId};

/// What comes next of a request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It is given to this desk.
    Desk(u32),
    /// It is strict, and its session has got a worker since it began to wait: it waits for that one.
    Home,
}

impl Engine {
    /// Gives out whatever can be given out in a pool.
    pub(in crate::engine) fn pump(&mut self, pool_id: PoolId, now: Time) {
        let Some(policy) = self.dispatch_policy(pool_id) else { return };
        while let Some((request, next)) = self.next_delivery(pool_id, &policy) {
            // Whoever has waited too long never runs, also where its deadline has not been looked at yet.
            if self.expire(request, now) || self.stop_poison(request, &policy, now) {
                continue;
            }
            match next {
                Next::Desk(slot) => self.deliver(request, WorkerId { pool: pool_id, slot }, &policy, now),
                Next::Home => {
                    self.unqueue(request, now);
                    self.come_back(request, now);
                }
            }
        }
    }

    /// The next request of a pool that can be given to a desk, and which.
    fn next_delivery(&mut self, pool_id: PoolId, policy: &DispatchPolicy) -> Option<(RequestId, Next)> {
        let pool = self.pools.get_mut(&pool_id)?;
        let dispatcher = &mut pool.dispatcher;
        if !dispatcher.breaker.allows() {
            return None;
        }
        let room = self.requests.budgets.room(policy.budget);
        let Some((id, bound)) = dispatcher.next(room) else {
            if room != Room::Any && dispatcher.next(Room::Any).is_some() {
                self.requests.budgets.starve(policy.budget, pool_id);
                if !std::mem::replace(&mut dispatcher.starved, true) {
                    self.effects.push_back(Effect::Request(RequestEffect::BudgetReached(pool_id)));
                }
            }
            return None;
        };
        dispatcher.starved = false;
        let request = self.requests.open.get(&id)?;
        let home = self.requests.home(request.demand.session);
        if bound.is_none() && home.is_some() && request.is_strict() {
            return Some((id, Next::Home));
        }
        let home = home.filter(|home| {
            let desk = dispatcher.desks.get(&home.worker.slot);
            let is_present = desk.is_some_and(|desk| desk.generation == Some(home.generation));
            is_present && dispatcher.is_free(home.worker.slot, room)
        });
        // A session's worker is tried again; only who has none is sent to somebody else.
        let slot = match (bound, home) {
            (Some(slot), _) => slot,
            (None, Some(home)) if !request.tried.contains(&home.worker.slot) => home.worker.slot,
            (None, _) => dispatcher.choose(&request.tried, policy.select, room)?,
        };
        Some((id, Next::Desk(slot)))
    }

    /// Ends a request of which it is known by now that it kills workers; whether it is one.
    fn stop_poison(&mut self, id: RequestId, policy: &DispatchPolicy, now: Time) -> bool {
        let Some(request) = self.requests.get(id) else { return false };
        let (pool, fingerprint) = (request.pool, request.demand.fingerprint);
        if !self.requests.quarantine.holds(pool, fingerprint, policy.quarantine_kills) {
            return false;
        }
        if let Some(pool) = self.pools.get_mut(&pool) {
            pool.dispatcher.counters.quarantined += 1;
        }
        self.conclude_for(id, Reason::Quarantined, now);
        true
    }

    fn deliver(&mut self, id: RequestId, worker: WorkerId, policy: &DispatchPolicy, now: Time) {
        let attempt = self.requests.next_attempt(now);
        let Some(request) = self.requests.open.get_mut(&id) else { return };
        let Some(dispatcher) = self.pools.get_mut(&worker.pool).map(|pool| &mut pool.dispatcher) else { return };
        let Stage::Waiting(bound) = request.stage else { return };
        dispatcher.unqueue(id, bound);
        let Some(desk) = dispatcher.desks.get_mut(&worker.slot) else { return };
        let Some(generation) = desk.generation else { return };
        desk.in_flight.insert(attempt, Holder::Request(id));
        desk.served += 1;
        desk.total += 1;
        desk.breaker.began(attempt);
        dispatcher.breaker.began(attempt);
        dispatcher.touch(worker.slot);
        dispatcher.refresh(worker.slot, policy, now);
        self.requests.budgets.take(policy.budget);
        request.stage = Stage::InFlight(attempt, worker);
        request.attempts += 1;
        request.tried.push(worker.slot);
        let delivery = Delivery { attempt, worker, generation, number: request.attempts, deadline: request.deadline };
        let (session, due) = (request.demand.session, request.due());
        self.timers.arm(Key::Request(id), &mut request.armed, Some(due));
        self.requests.set_home(session, Home { worker, generation });
        self.effects.push_back(Effect::Request(RequestEffect::Deliver(id, delivery)));
        self.note_served(worker, now);
    }
}
