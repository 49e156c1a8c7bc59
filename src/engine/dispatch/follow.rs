//! Desks follow their workers: one opens when its worker is ready, closes when it is to end, and what was in flight fails when it
//! has ended.
//!
//! Called after every step of a worker of a pool that dispatches. Never steps a worker itself.

use super::attempt::Failure;
use super::breaker::BreakerRecord;
use super::desk::Desk;
use super::{AttemptId, Reason, RequestEffect};
use crate::engine::orders::count;
use crate::engine::step::Phase;
use crate::engine::timers::Key;
use crate::engine::worker::Worker;
use crate::engine::{Cause, Effect, Engine, Time};
use crate::spec::{Generation, PoolId, WorkerId};

/// What a worker is to its desk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// The spawn whose answers count.
    generation: Option<Generation>,
    open: bool,
    unwell: bool,
    /// Whether it ended by itself, if it has ended.
    crashed: bool,
}

impl Seen {
    fn of(worker: &Worker) -> Self {
        let lives = matches!(worker.phase, Phase::Running | Phase::Stopping | Phase::Killing) && !worker.certified;
        let crashed = match worker.cause {
            None | Some(Cause::Itself(_) | Cause::Heartbeat | Cause::Deadline) => true,
            Some(
                Cause::ReadyTimeout
                | Cause::StartFailed
                | Cause::Requested
                | Cause::Shutdown
                | Cause::Released
                | Cause::Recycled,
            ) => false,
        };
        Self {
            generation: worker.generation.filter(|_| lives),
            open: worker.phase == Phase::Running && worker.after.is_none() && worker.lease.is_none(),
            unwell: worker.is_unwell(),
            crashed,
        }
    }
}

impl Engine {
    /// Has the desk of a worker follow it. A place that was given up has none.
    pub(in crate::engine) fn follow(&mut self, id: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        let Some(policy) = pool.policy.dispatch else { return self.follow_remains(id) };
        let Some(worker) = pool.slots.get(&id.slot) else { return self.give_up_desk(id, now) };
        let (seen, phase, breaker) = (Seen::of(worker), worker.phase, worker.breaker);
        let desk = pool
            .dispatcher
            .desks
            .entry(id.slot)
            .or_insert_with(|| Desk::new(breaker.within(policy.worker_breaker, now)));
        let was = (desk.generation, desk.open, desk.unwell);
        let turned = desk.phase.replace(phase) != Some(phase);
        if was == (seen.generation, seen.open, seen.unwell) {
            // Who has ended is down only now, or comes back only now.
            if turned {
                self.refresh_desk(id, now);
                self.surge_follows(id, now);
                self.dismiss_if_hopeless(id.pool, now);
            }
            return;
        }
        let ended = desk.generation.is_some() && desk.generation != seen.generation;
        (desk.generation, desk.open, desk.unwell) = (seen.generation, seen.open, seen.unwell);
        if ended {
            desk.occupied = None;
            if seen.crashed && !policy.taint.is_zero() {
                desk.tainted_until = Some(now.after(policy.taint));
                self.timers.arm(Key::Taint(id), &mut desk.armed_taint, desk.tainted_until);
                self.effects.push_back(Effect::Request(RequestEffect::Tainted(id)));
            }
        }
        if seen.open && !was.1 {
            desk.opened = Some(now);
            desk.served = 0;
            desk.retiring = false;
        }
        if ended {
            self.fail_all(id, if seen.crashed { Failure::Crashed } else { Failure::Ended }, now);
        }
        if was.1 && !seen.open {
            self.unbind_all(id, now);
        }
        self.watch_age(id, now);
        self.refresh_desk(id, now);
        self.surge_follows(id, now);
        self.dismiss_if_hopeless(id.pool, now);
    }

    fn fail_all(&mut self, id: WorkerId, failure: Failure, now: Time) {
        let desk = self.pools.get(&id.pool).and_then(|pool| pool.dispatcher.desks.get(&id.slot));
        let attempts: Vec<_> = desk.map(|desk| desk.in_flight.keys().copied().collect()).unwrap_or_default();
        for attempt in attempts {
            self.attempt_failed(attempt, id, failure, now);
        }
    }

    /// Whoever waits for this worker alone waits for nothing.
    fn unbind_all(&mut self, id: WorkerId, now: Time) {
        let desk = self.pools.get(&id.pool).and_then(|pool| pool.dispatcher.desks.get(&id.slot));
        let bound: Vec<_> = desk.map(|desk| desk.bound.iter().copied().collect()).unwrap_or_default();
        for request in bound {
            self.conclude_for(request, Reason::SessionWorkerUnavailable, now);
        }
    }

    /// A place is gone.
    fn give_up_desk(&mut self, id: WorkerId, now: Time) {
        let desk = self.pools.get_mut(&id.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&id.slot));
        let Some(desk) = desk else { return };
        (desk.generation, desk.open) = (None, false);
        self.fail_all(id, Failure::Ended, now);
        self.unbind_all(id, now);
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        if let Some(mut desk) = pool.dispatcher.remove(id.slot) {
            self.disarm(id, &mut desk);
        }
        self.surge_follows(id, now);
        self.dismiss_if_hopeless(id.pool, now);
    }

    /// An earlier daemon's requests are over in a worker that was taken over.
    pub(super) fn unoccupied(&mut self, id: WorkerId, generation: Generation, now: Time) {
        let desk = self.pools.get_mut(&id.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&id.slot));
        if let Some(desk) = desk.filter(|desk| desk.generation == Some(generation)) {
            desk.occupied = None;
            self.refresh_desk(id, now);
        }
    }

    /// A worker was taken over while it was ready: what is in it, only it can say. Nobody waits for that any more, so it has as
    /// long as for a request whose caller has gone: until the latest deadline that the pool gives, and then its grace.
    pub(in crate::engine) fn occupy(&mut self, id: WorkerId, now: Time) {
        self.follow(id, now);
        let Some(policy) = self.dispatch_policy(id.pool) else { return };
        let desk = self.pools.get_mut(&id.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&id.slot));
        if let Some(desk) = desk.filter(|desk| desk.generation.is_some()) {
            desk.occupied = Some(now.after(policy.timeout).after(policy.cancel_grace));
            self.refresh_desk(id, now);
        }
    }

    /// A worker's crash is long enough ago.
    pub(in crate::engine) fn taint_is_due(&mut self, id: WorkerId, now: Time) {
        let desk = self.pools.get_mut(&id.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&id.slot));
        if let Some(desk) = desk {
            (desk.armed_taint, desk.tainted_until) = (None, None);
            self.refresh_desk(id, now);
        }
    }

    /// A pool's way of dispatching has changed, or it has one from now on.
    pub(in crate::engine) fn redispatch(&mut self, id: PoolId, now: Time) {
        self.count_budgets();
        let Some(pool) = self.pools.get(&id) else { return };
        let slots: Vec<u32> = pool.slots.keys().copied().collect();
        for slot in slots {
            let worker = WorkerId { pool: id, slot };
            self.follow(worker, now);
            self.watch_age(worker, now);
            self.refresh_desk(worker, now);
        }
    }

    fn count_budgets(&mut self) {
        let in_flight = self.pools.values().filter_map(|pool| {
            let desks = pool.dispatcher.desks.values();
            Some((pool.policy.dispatch?.budget?, count(desks.map(|desk| desk.in_flight.len()).sum())))
        });
        self.requests.budgets.count_again(in_flight);
        self.requests.calling.extend(self.pools.keys().copied());
    }

    /// Requests are given to workers of this pool no more: whoever waits or has one is told. To be called while the pool still
    /// has its way of dispatching. What workers have not answered is remembered: it is still in them should requests be
    /// given to them again.
    pub(in crate::engine) fn end_dispatch(&mut self, id: PoolId, now: Time) {
        self.conclude_all(id, Reason::NotDispatched, now);
        self.end_sessions_of(id);
        let Some(pool) = self.pools.get_mut(&id) else { return };
        let mut ended = std::mem::take(&mut pool.dispatcher);
        pool.breaker = BreakerRecord::default();
        self.requests.quarantine.forgive(id, 0);
        for (&slot, worker) in pool.slots.iter_mut().filter(|(_, worker)| !worker.breaker.is_blank()) {
            worker.breaker = BreakerRecord::default();
            self.changed.insert(WorkerId { pool: id, slot });
        }
        self.timers.arm(Key::PoolBreaker(id), &mut ended.armed_breaker, None);
        for (slot, mut desk) in ended.desks {
            self.disarm(WorkerId { pool: id, slot }, &mut desk);
            if let (Some(remains), Some(pool)) = (desk.remains(), self.pools.get_mut(&id)) {
                pool.dispatcher.desks.insert(slot, remains);
            }
        }
    }

    /// A worker has changed whose pool does not dispatch: what it had in flight ends with its generation.
    fn follow_remains(&mut self, id: WorkerId) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        let generation = pool.slots.get(&id.slot).and_then(|worker| Seen::of(worker).generation);
        if pool.dispatcher.desks.get(&id.slot).is_some_and(|desk| desk.generation != generation) {
            pool.dispatcher.desks.remove(&id.slot);
        }
    }

    /// A worker has answered, late, what it was given when its pool still dispatched.
    pub(super) fn drop_remains(&mut self, attempt: AttemptId, id: WorkerId) {
        let desk = self.pools.get_mut(&id.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&id.slot));
        if let Some(desk) = desk {
            desk.in_flight.remove(&attempt);
        }
    }

    fn disarm(&mut self, id: WorkerId, desk: &mut Desk) {
        self.timers.arm(Key::Overdue(id), &mut desk.armed_overdue, None);
        self.timers.arm(Key::Breaker(id), &mut desk.armed_breaker, None);
        self.timers.arm(Key::Taint(id), &mut desk.armed_taint, None);
        self.timers.arm(Key::Age(id), &mut desk.armed_ttl, None);
        self.timers.arm(Key::Memory(id), &mut desk.armed_memory, None);
    }

    /// A pool is forgotten: nothing of it waits, and its sessions are over.
    pub(in crate::engine) fn forget_dispatch(&mut self, pool: PoolId, now: Time) {
        self.dismiss_queue(pool, Reason::PoolNotFound, now);
        self.end_sessions_of(pool);
        self.requests.quarantine.forgive(pool, 0);
        if let Some(found) = self.pools.get_mut(&pool) {
            self.timers.arm(Key::PoolBreaker(pool), &mut found.dispatcher.armed_breaker, None);
        }
    }
}
