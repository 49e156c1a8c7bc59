//! Who has a worker to itself: claims of warm workers, leases, releases, and how many stay warm beside them.
//!
//! A claim takes the worker that has been warm for longest, or, where there is none and the caller agrees, the place of one
//! that is started for it. What is leased is not counted among the pool's own, so each claim leaves a deficit that is
//! closed at once. A leased worker belongs to its holder until its end: it is never started again, never given to
//! another, and its place goes with it. Never binds anything: the daemon carries [`Effect::Bind`] out.

use super::calls::{Ask, Wish};
use super::machine::Engine;
use super::orders::count;
use super::pool::Pool;
use super::step::{After, Event, Phase};
use super::timers::Key;
use super::worker::Worker;
use super::{Answer, CallId, Cause, ClaimsView, Effect, Instead, Origin, Return, Supply, Time, Tuning};
use crate::spec::{ClaimPolicy, PoolId, WorkerId};

/// Who has a worker to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    /// This call does, as soon as it is ready.
    Asked(CallId),
    /// Somebody to whom it was bound.
    Held,
}

/// What a pool keeps of its claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Ready and nobody's, the one that has been so for longest first.
    pub(super) warm: std::collections::BTreeSet<(Time, u32)>,
    /// Places that are neither leased nor being given up.
    pub(super) own: u32,
    /// Leased places, those that are being ended included.
    pub(super) leased: u32,
    /// Warm ones beyond the size that it is to have, until nobody has wanted them for a while.
    pub(super) extra: u32,
    /// Nothing is added or given up by itself.
    pub(super) paused: bool,
    next_slot: u32,
    pub(super) armed: Option<Time>,
}

/// A number that a place can have is below this.
const SLOTS_MAX: u32 = 1 << 20;

impl Pool {
    /// How many places that are not leased it is to have.
    pub(super) const fn room(&self) -> u32 {
        self.wanted.saturating_add(self.claims.extra)
    }

    /// The places that are missing and those that are too many, where the first so many are to be there.
    pub(super) fn unfit(&self) -> (Vec<u32>, Vec<u32>) {
        let is_there = |slot: &u32| self.slots.get(slot).is_some_and(|worker| worker.after != Some(After::Gone));
        let missing = (0..self.wanted).filter(|slot| !is_there(slot)).collect();
        let surge = self.dispatcher.surge.slot;
        (
            missing,
            self.slots.range(self.wanted..).map(|(&slot, _)| slot).filter(|slot| Some(*slot) != surge).rev().collect(),
        )
    }

    /// The same where there are claims: what is leased counts for neither, and while the pool is paused nothing does.
    pub(super) fn unfit_of_claims(&mut self) -> (Vec<u32>, Vec<u32>) {
        if self.claims.paused {
            return (Vec::new(), Vec::new());
        }
        let (room, own) = (self.room(), self.claims.own);
        let missing = (own..room).map(|_| self.next_slot()).collect();
        let is_own = |worker: &&Worker| worker.lease.is_none() && worker.after != Some(After::Gone);
        let surplus = usize::try_from(own.saturating_sub(room)).unwrap_or(usize::MAX);
        let surplus = if surplus == 0 {
            Vec::new()
        } else {
            self.slots.values().rev().filter(is_own).take(surplus).map(|worker| worker.id.slot).collect()
        };
        (missing, surplus)
    }

    /// A number that nobody has.
    pub(super) fn next_slot(&mut self) -> u32 {
        while self.slots.contains_key(&self.claims.next_slot) {
            self.claims.next_slot = (self.claims.next_slot + 1) % SLOTS_MAX;
        }
        let slot = self.claims.next_slot;
        self.claims.next_slot = (slot + 1) % SLOTS_MAX;
        slot
    }

    /// Counts all places anew: what they count as depends on the policy.
    pub(super) fn count_again(&mut self) {
        (self.claims.own, self.claims.leased) = (0, 0);
        self.claims.warm.clear();
        let counted: Vec<_> =
            self.slots.iter().map(|(&slot, worker)| (slot, worker.account(self.policy.claims))).collect();
        for (slot, account) in counted {
            self.account(slot, Account::NONE, account);
        }
    }

    /// Takes over the accounts of one place, as it is now; [`Account::NONE`] is a place that is not there.
    pub(super) fn account(&mut self, slot: u32, before: Account, after: Account) {
        let claims = &mut self.claims;
        claims.own = claims.own + u32::from(after.own) - u32::from(before.own);
        claims.leased = claims.leased + u32::from(after.leased) - u32::from(before.leased);
        if before.warm_since != after.warm_since {
            if let Some(since) = before.warm_since {
                claims.warm.remove(&(since, slot));
            }
            if let Some(since) = after.warm_since {
                claims.warm.insert((since, slot));
            }
        }
    }
}

/// What one place counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    own: bool,
    leased: bool,
    warm_since: Option<Time>,
}

impl Account {
    /// A place that is not there.
    pub(super) const NONE: Self = Self { own: false, leased: false, warm_since: None };
}

impl Worker {
    /// What it counts as in a pool with these claims.
    pub(super) fn account(&self, claims: Option<ClaimPolicy>) -> Account {
        let leased = self.lease.is_some();
        let own = !leased && self.after != Some(After::Gone);
        let warm = own && claims.is_some() && self.phase == Phase::Running && self.after.is_none();
        Account { own, leased, warm_since: if warm { self.ready_at } else { None } }
    }
}

impl Engine {
    /// Gives a worker to whoever asks.
    pub(super) fn claim(&mut self, call: CallId, id: PoolId, supply: Supply, now: Time) {
        if self.refused(call) {
            return;
        }
        let Some(pool) = self.pools.get_mut(&id).filter(|pool| !pool.removed) else {
            return self.effects.push_back(Effect::Answer(call, Answer::NotFound));
        };
        let Some(policy) = pool.policy.claims else {
            return self.effects.push_back(Effect::Answer(call, Answer::NotClaimable));
        };
        if pool.claims.leased >= policy.sessions_max {
            return self.effects.push_back(Effect::Answer(call, Answer::Full { max: policy.sessions_max }));
        }
        let warm = pool.claims.warm.first().map(|&(_, slot)| slot);
        let slot = match (warm, supply) {
            (Some(slot), _) => slot,
            (None, Supply::WarmOrCold) => pool.next_slot(),
            (None, Supply::WarmOnly) => {
                return self.effects.push_back(Effect::Answer(call, Answer::NoneWarm));
            }
        };
        let worker = WorkerId { pool: id, slot };
        if warm.is_none() {
            self.add(worker, now);
        } else {
            // Before it is bound.
            self.apply(worker, Event::Used, now);
        }
        pool_take(self.pools.get_mut(&id), warm.is_some());
        self.lease(worker, call);
        self.follow(worker, now);
        self.fit_to_size(id, now);
        self.rest_extras(id, now);
    }

    fn lease(&mut self, id: WorkerId, call: CallId) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        let Some(worker) = pool.slots.get_mut(&id.slot) else { return };
        let before = worker.account(pool.policy.claims);
        worker.lease = Some(Lease::Asked(call));
        let bound = worker.bind(Origin::Warm, &mut self.effects);
        let after = worker.account(pool.policy.claims);
        pool.account(id.slot, before, after);
        if bound {
            self.changed.insert(id);
        }
    }

    /// Ends a lease: the worker is ended with its holder's work. Its place is given up, or is the pool's again.
    pub(super) fn release(&mut self, call: CallId, id: WorkerId, becomes: Return, now: Time) {
        let Some(worker) = self.find(id).filter(|worker| worker.lease.is_some()) else {
            return self.effects.push_back(Effect::Answer(call, Answer::NotFound));
        };
        let patience = self.stop_bound(&[id]);
        let ask = match becomes {
            Return::Destroyed => Ask::Down(vec![id]),
            Return::Reset => match self.keeps_from_reset(worker) {
                Some(instead) => Ask::Gone(id, instead),
                None => return self.reset_lease(call, id, now),
            },
        };
        self.apply(id, Event::Stop(After::Gone, Cause::Released), now);
        let pending = if self.is_falling(id) { [(id, Wish::Down)].into() } else { std::collections::BTreeSet::new() };
        self.wait(call, ask, pending, now.after(patience));
    }

    /// Why the place of a leased worker cannot be one of the pool's again.
    fn keeps_from_reset(&self, worker: &Worker) -> Option<Instead> {
        let pool = self.pools.get(&worker.id.pool).filter(|pool| !pool.removed && pool.policy.claims.is_some());
        let Some(pool) = pool.filter(|_| self.shutdown.is_none()) else { return Some(Instead::Leaving) };
        let max = pool.policy.size.max;
        if worker.phase != Phase::Running || worker.lease != Some(Lease::Held) || worker.after.is_some() {
            Some(Instead::Ending)
        } else if pool.claims.own >= max {
            Some(Instead::Full { max })
        } else {
            None
        }
    }

    /// Ends the generation of a leased worker and has its place begin anew as one that is nobody's. What the pool has more of
    /// with it than it is to have leaves as any other extra one does.
    fn reset_lease(&mut self, call: CallId, id: WorkerId, now: Time) {
        let patience = self.stop_bound(&[id]) + self.start_bound(&[id]);
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        let Some(worker) = pool.slots.get_mut(&id.slot) else { return };
        let before = worker.account(pool.policy.claims);
        worker.lease = None;
        // Not warm, not for a moment: what runs in it is still its holder's.
        pool.account(id.slot, before, Account { own: true, leased: false, warm_since: None });
        if pool.claims.own > pool.room() {
            pool.claims.extra += 1;
        }
        self.apply(id, Event::Stop(After::Again, Cause::Released), now);
        self.rest_extras(id.pool, now);
        self.wait(call, Ask::Up(vec![id]), [(id, Wish::Up)].into(), now.after(patience));
    }

    /// Has one more warm worker made than there are to be, as far as the policy allows. Answered when it is ready.
    pub(super) fn warm(&mut self, call: CallId, id: PoolId, now: Time) {
        if self.refused(call) {
            return;
        }
        let Some(pool) = self.pools.get_mut(&id).filter(|pool| !pool.removed) else {
            return self.effects.push_back(Effect::Answer(call, Answer::NotFound));
        };
        if pool.policy.claims.is_none() {
            return self.effects.push_back(Effect::Answer(call, Answer::NotClaimable));
        }
        let size = pool.policy.size;
        if pool.room() >= size.max {
            let refusal = Answer::OutOfRange { min: size.min, max: size.max };
            return self.effects.push_back(Effect::Answer(call, refusal));
        }
        pool.claims.extra += 1;
        let wanted = pool.room();
        self.fit_to_size(id, now);
        self.rest_extras(id, now);
        self.await_size(call, id, wanted, now);
    }

    /// Has a pool go on with these numbers; those of an earlier time that are not said stay. Answered when as many are warm as
    /// are to be.
    pub(super) fn tune(&mut self, call: CallId, id: PoolId, tuning: Tuning, now: Time) {
        if self.refused(call) {
            return;
        }
        let Some(pool) = self.pools.get_mut(&id).filter(|pool| !pool.removed) else {
            return self.effects.push_back(Effect::Answer(call, Answer::NotFound));
        };
        if pool.policy.claims.is_none() {
            return self.effects.push_back(Effect::Answer(call, Answer::NotClaimable));
        }
        let (min, max) = (tuning.min.or(pool.tuning.min), tuning.max.or(pool.tuning.max));
        let idle_timeout = tuning.idle_timeout.or(pool.tuning.idle_timeout);
        let check_interval = tuning.check_interval.or(pool.tuning.check_interval);
        pool.tune(Tuning { min, max, idle_timeout, check_interval });
        if let Some(min) = tuning.min {
            pool.want(min);
            pool.claims.extra = 0;
        }
        pool.claims.paused = false;
        let wanted = pool.room();
        self.changed_pools.insert(id);
        self.fit_to_size(id, now);
        self.rest_extras(id, now);
        self.await_size(call, id, wanted, now);
    }

    /// Lets a pool be as it is, or has it be as it is to be again.
    pub(super) fn pause(&mut self, id: PoolId, paused: bool, now: Time) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        pool.claims.paused = paused;
        self.changed_pools.insert(id);
        self.fit_to_size(id, now);
    }

    /// The claims of a pool.
    #[must_use]
    pub fn claims(&self, id: PoolId) -> ClaimsView {
        let view = |pool: &Pool| {
            let claims = &pool.claims;
            ClaimsView {
                policy: pool.policy.claims,
                warm: count(claims.warm.len()),
                leased: claims.leased,
                paused: claims.paused,
            }
        };
        self.pools.get(&id).map(view).unwrap_or_default()
    }

    /// From now on, extra workers have so long to be wanted.
    fn rest_extras(&mut self, id: PoolId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        let timeout = pool.policy.claims.map(|claims| claims.idle_timeout);
        let due = timeout.filter(|_| pool.claims.extra > 0).map(|timeout| now.after(timeout));
        self.timers.arm(Key::Idle(id), &mut pool.claims.armed, due);
    }

    /// Nobody has wanted the extra workers: they leave.
    pub(super) fn idle_is_due(&mut self, id: PoolId, now: Time) {
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.claims.armed = None;
            pool.claims.extra = 0;
            self.fit_to_size(id, now);
        }
    }
}

/// A claim of a warm worker uses up an extra one first.
fn pool_take(pool: Option<&mut Pool>, warm: bool) {
    if let Some(pool) = pool.filter(|_| warm) {
        pool.claims.extra = pool.claims.extra.saturating_sub(1);
    }
}

impl Worker {
    /// Gives it to the call that has asked for it, if it is ready; whether it did.
    pub(super) fn bind(&mut self, origin: Origin, effects: &mut std::collections::VecDeque<Effect>) -> bool {
        let (Some(Lease::Asked(call)), Phase::Running, Some(generation)) = (self.lease, self.phase, self.generation)
        else {
            return false;
        };
        self.lease = Some(Lease::Held);
        effects.push_back(Effect::Bind(self.id, generation, call, origin));
        true
    }
}
