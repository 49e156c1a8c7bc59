//! Planned replacement: a worker that has become too old, too used or too large is replaced without failing a request.
//!
//! One at a time in each pool. A further worker, the *surge*, is started first and takes part; then the one that is due is given
//! nothing more, ends when nothing is in flight in it, and is started anew in its place, with its name and port; when it is
//! ready the next one follows. When none is due any more the surge drains and leaves. Where the surge does not come up, the
//! old worker goes on serving.

use std::collections::BTreeSet;
use std::time::Duration;

use super::desk::Dispatcher;
use super::{Due, RequestEffect};
use crate::engine::step::{After, Event, Phase};
use crate::engine::timers::Key;
use crate::engine::{Cause, Effect, Engine, Time};
use crate::spec::{Generation, PoolId, WorkerId};

/// How often a worker's memory is looked at, where that decides anything.
const MEMORY_INTERVAL: Duration = Duration::from_secs(10);

/// The replacement that is under way in a pool.
#[derive(Debug, Default)]
pub(in crate::engine) struct Surge {
    /// Who is to be replaced.
    due: BTreeSet<u32>,
    /// The further worker's place.
    pub(in crate::engine) slot: Option<u32>,
    /// Who is being replaced.
    retiring: Option<u32>,
}

impl Dispatcher {
    /// The further worker is an ordinary one where its place is below `wanted`; one that leaves already is being replaced.
    pub(in crate::engine) fn keep_surge_below(&mut self, wanted: u32) {
        if let Some(slot) = self.surge.slot.take_if(|slot| *slot < wanted)
            && self.desks.get(&slot).is_some_and(|desk| desk.retiring)
        {
            self.surge.retiring = Some(slot);
        }
    }
}

impl Engine {
    /// A worker was given one more request.
    pub(super) fn note_served(&mut self, id: WorkerId, now: Time) {
        let Some(pool) = self.pools.get(&id.pool) else { return };
        let Some(most) = pool.policy.dispatch.and_then(|policy| policy.recycle.requests) else { return };
        if pool.dispatcher.desks.get(&id.slot).is_some_and(|desk| desk.served >= most) {
            self.recycle_due(id, Due::Requests, now);
        }
    }

    /// Arms what looks at a desk's age and size.
    pub(super) fn watch_age(&mut self, id: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        let Some(policy) = pool.policy.dispatch.map(|policy| policy.recycle) else { return };
        let Some(desk) = pool.dispatcher.desks.get_mut(&id.slot) else { return };
        let opened = desk.opened.filter(|_| desk.open);
        let old_at = opened.zip(policy.ttl).map(|(opened, ttl)| opened.after(ttl));
        let look_at = opened.and(policy.memory_bytes).map(|_| desk.armed_memory.unwrap_or(now.after(MEMORY_INTERVAL)));
        self.timers.arm(Key::Age(id), &mut desk.armed_ttl, old_at);
        self.timers.arm(Key::Memory(id), &mut desk.armed_memory, look_at);
    }

    /// A worker is as old as it may become.
    pub(in crate::engine) fn age_is_due(&mut self, id: WorkerId, now: Time) {
        let desk = self.pools.get_mut(&id.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&id.slot));
        if let Some(desk) = desk {
            desk.armed_ttl = None;
            self.recycle_due(id, Due::Ttl, now);
        }
    }

    /// A worker's memory is to be looked at.
    pub(in crate::engine) fn memory_is_due(&mut self, id: WorkerId, now: Time) {
        let desk = self.pools.get_mut(&id.pool).and_then(|pool| pool.dispatcher.desks.get_mut(&id.slot));
        let Some(desk) = desk else { return };
        desk.armed_memory = None;
        if let Some(generation) = desk.generation {
            self.effects.push_back(Effect::Request(RequestEffect::MeasureMemory(id, generation)));
        }
        self.watch_age(id, now);
    }

    pub(super) fn memory_measured(&mut self, id: WorkerId, generation: Generation, bytes: u64, now: Time) {
        let Some(pool) = self.pools.get(&id.pool) else { return };
        let most = pool.policy.dispatch.and_then(|policy| policy.recycle.memory_bytes);
        let is_present = pool.dispatcher.desks.get(&id.slot).is_some_and(|desk| desk.generation == Some(generation));
        if is_present && most.is_some_and(|most| bytes > most) {
            self.recycle_due(id, Due::Memory(bytes), now);
        }
    }

    fn recycle_due(&mut self, id: WorkerId, why: Due, now: Time) {
        if self.shutdown.is_some() {
            return;
        }
        let Some(pool) = self.pools.get_mut(&id.pool).filter(|pool| !pool.removed) else { return };
        let surge = &mut pool.dispatcher.surge;
        // The further worker leaves by itself when all others are new.
        if surge.slot == Some(id.slot) || surge.retiring == Some(id.slot) || !surge.due.insert(id.slot) {
            return;
        }
        if let Some(generation) = pool.dispatcher.desks.get(&id.slot).and_then(|desk| desk.generation) {
            self.effects.push_back(Effect::Request(RequestEffect::RecycleDue(id, generation, why)));
        }
        self.advance_surge(id.pool, now);
    }

    /// A desk has changed: the replacement goes on, if it waited for that.
    pub(super) fn surge_follows(&mut self, id: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        let surge = &mut pool.dispatcher.surge;
        if surge.slot.is_none() && surge.due.is_empty() {
            return;
        }
        let desk = pool.dispatcher.desks.get(&id.slot);
        // Whoever has ended meanwhile is new already, or gone.
        if desk.is_none_or(|desk| !desk.open && desk.generation.is_none()) {
            surge.due.remove(&id.slot);
        }
        let settled = pool.slots.get(&id.slot).is_none_or(|worker| match worker.phase {
            Phase::Stopped | Phase::Crashed | Phase::Stuck | Phase::Waiting => true,
            Phase::Running => worker.after.is_none() && desk.is_some_and(|desk| desk.open && !desk.retiring),
            Phase::Queued
            | Phase::Spawning
            | Phase::Aborting
            | Phase::Starting
            | Phase::Stopping
            | Phase::Killing
            | Phase::Emptying => false,
        });
        if surge.retiring == Some(id.slot) && settled {
            surge.retiring = None;
        }
        if surge.slot == Some(id.slot) && !pool.slots.contains_key(&id.slot) {
            surge.slot = None;
        }
        self.advance_surge(id.pool, now);
    }

    /// Does the next step of a pool's replacement.
    fn advance_surge(&mut self, id: PoolId, now: Time) {
        if self.shutdown.is_some() {
            return;
        }
        let Some(pool) = self.pools.get_mut(&id).filter(|pool| !pool.removed) else { return };
        let surge = &pool.dispatcher.surge;
        if surge.retiring.is_some() {
            return;
        }
        match (surge.slot, surge.due.first().copied()) {
            (None, None) => {}
            (None, Some(_)) => self.begin_surge(id, now),
            (Some(slot), due) => {
                let desk = pool.dispatcher.desks.get(&slot);
                let is_up = desk.is_some_and(|desk| desk.open && desk.generation.is_some() && !desk.retiring);
                match due {
                    Some(due) if is_up => self.retire(WorkerId { pool: id, slot: due }, now),
                    Some(_) => {}
                    None => self.end_surge(WorkerId { pool: id, slot }, now),
                }
            }
        }
    }

    fn begin_surge(&mut self, id: PoolId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        let mut slot = pool.wanted;
        while pool.slots.contains_key(&slot) {
            slot += 1;
        }
        pool.dispatcher.surge.slot = Some(slot);
        self.add(WorkerId { pool: id, slot }, now);
        self.touched.insert(id);
    }

    /// Gives a worker nothing more; it ends when nothing is in flight in it.
    fn retire(&mut self, id: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        pool.dispatcher.surge.due.remove(&id.slot);
        let Some(desk) = pool.dispatcher.desks.get_mut(&id.slot).filter(|desk| desk.open) else {
            return self.advance_surge(id.pool, now);
        };
        desk.retiring = true;
        pool.dispatcher.surge.retiring = Some(id.slot);
        pool.dispatcher.counters.recycled += 1;
        self.release_bound(id, now);
        self.refresh_desk(id, now);
    }

    fn end_surge(&mut self, id: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        // One that ends by itself with requests in it is asked for nothing: it goes when they have failed with it.
        if pool.dispatcher.desks.get(&id.slot).is_some_and(|desk| !desk.open && !desk.in_flight.is_empty()) {
            return;
        }
        match pool.dispatcher.desks.get_mut(&id.slot).filter(|desk| desk.generation.is_some() && desk.open) {
            Some(desk) => {
                desk.retiring = true;
                self.release_bound(id, now);
                self.refresh_desk(id, now);
            }
            None => self.apply(id, Event::Stop(After::Gone, Cause::Recycled), now),
        }
    }

    /// Whoever is strict about a worker that leaves cannot have it any more.
    fn release_bound(&mut self, id: WorkerId, now: Time) {
        let desk = self.pools.get(&id.pool).and_then(|pool| pool.dispatcher.desks.get(&id.slot));
        let bound: Vec<_> = desk.map(|desk| desk.bound.iter().copied().collect()).unwrap_or_default();
        for request in bound {
            self.conclude_for(request, super::Reason::SessionWorkerUnavailable, now);
        }
    }

    /// Ends a worker that is given nothing more once nothing is in it.
    pub(super) fn retire_if_idle(&mut self, id: WorkerId, now: Time) {
        let Some(pool) = self.pools.get(&id.pool) else { return };
        let Some(desk) = pool.dispatcher.desks.get(&id.slot) else { return };
        if !desk.retiring || !desk.open || !desk.in_flight.is_empty() {
            return;
        }
        let after = if pool.dispatcher.surge.slot == Some(id.slot) { After::Gone } else { After::Again };
        self.apply(id, Event::Stop(after, Cause::Recycled), now);
    }
}
