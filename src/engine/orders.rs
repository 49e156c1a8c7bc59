//! What each order of an operator, a reload or a shutdown does to pools and workers.
//!
//! Every order that carries a [`CallId`] is answered exactly once: at once, when the workers it waits for have settled,
//! or at a deadline of its own. Never steps a worker but through [`Engine::apply`]. Called by [`Engine::handle`].

use std::collections::BTreeSet;
use std::time::Duration;

use super::calls::{Ask, Wish};
use super::claims::Account;
use super::pool::Pool;
use super::shutdown::Shutdown;
use super::step::{After, Event, Phase};
use super::timers::Key;
use super::worker::{Context, EXTENSION_MAX, Worker};
use super::{Answer, CallId, Cause, Effect, Engine, Fate, PoolRecord, Target, Time, WorkerRecord};
use crate::spec::{PoolId, PoolPolicy, WorkerId};

/// What a call is patient for beyond what its workers may take.
const MARGIN: Duration = Duration::from_secs(10);

/// Whether an order reaches workers whose place is being given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Included,
    Excluded,
}

impl Engine {
    pub(super) fn define(&mut self, id: PoolId, policy: PoolPolicy, now: Time) {
        if self.shutdown.is_some() {
            return;
        }
        self.changed_pools.insert(id);
        let Some(pool) = self.pools.get_mut(&id) else {
            self.pools.insert(id, Pool::new(policy));
            return self.fit_to_size(id, now);
        };
        if pool.removed {
            return;
        }
        if policy.dispatch.is_none() && pool.policy.dispatch.is_some() {
            self.end_dispatch(id, now);
        }
        let Some(pool) = self.pools.get_mut(&id) else { return };
        let (heartbeat, dispatch, freeze_after) =
            (pool.policy.heartbeat, pool.policy.dispatch, pool.policy.freeze_after);
        pool.redefine(policy);
        pool.count_again();
        let dispatches_as_before = pool.policy.dispatch == dispatch;
        let idles_differ = pool.policy.freeze_after != freeze_after;
        if pool.policy.heartbeat != heartbeat {
            self.renew_monitors(id, now);
        }
        if idles_differ {
            self.renew_idles(id, now);
        }
        if !dispatches_as_before {
            self.redispatch(id, now);
        }
        self.fit_to_size(id, now);
    }

    /// Takes over a pool that an earlier daemon had. Workers that are still being ended keep their places beyond its size.
    pub(super) fn restore(
        &mut self,
        id: PoolId,
        policy: PoolPolicy,
        was: PoolRecord,
        workers: Vec<(u32, WorkerRecord, Fate)>,
        now: Time,
    ) {
        if self.shutdown.is_some() || self.pools.contains_key(&id) {
            return;
        }
        self.changed_pools.insert(id);
        let mut pool = Pool::new(policy);
        pool.tune(was.tuning);
        pool.want(was.wanted);
        pool.claims.paused = was.paused;
        pool.restore_breaker(was.breaker, now);
        self.pools.insert(id, pool);
        self.watch_pool_breaker(id);
        for (slot, record, fate) in workers {
            self.restore_worker(WorkerId { pool: id, slot }, &record, fate, now);
        }
        self.fit_to_size(id, now);
    }

    fn restore_worker(&mut self, id: WorkerId, record: &WorkerRecord, fate: Fate, now: Time) {
        self.last_generation = self.last_generation.max(record.generation.unwrap_or(0));
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        if pool.slots.contains_key(&id.slot) {
            return;
        }
        let mut worker = Worker::from_record(id, record, now);
        let mut news = Vec::new();
        let mut context = Context {
            now,
            policy: &pool.policy,
            random: &mut self.random,
            last_generation: &mut self.last_generation,
            effects: &mut self.effects,
            news: &mut news,
        };
        worker.settle_fate(record, fate, &mut context);
        worker.report(now, &mut self.effects);
        self.timers.arm_all(&mut worker);
        if worker.phase == Phase::Queued {
            worker.turn = pool.enqueue(id.slot);
        }
        pool.in_flight += u32::from(worker.in_flight);
        self.busy += usize::from(worker.is_busy());
        let account = worker.account(pool.policy.claims);
        pool.slots.insert(id.slot, worker);
        pool.account(id.slot, Account::NONE, account);
        self.changed.insert(id);
        self.touched.insert(id.pool);
        self.occupy(id, now);
    }

    fn renew_monitors(&mut self, id: PoolId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        for worker in pool.slots.values_mut() {
            worker.renew_monitor(&pool.policy, now);
            worker.report(now, &mut self.effects);
            self.timers.arm_all(worker);
        }
    }

    fn renew_idles(&mut self, id: PoolId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        for worker in pool.slots.values_mut() {
            self.effects.extend(worker.renew_idle(&pool.policy, now));
            self.timers.arm_all(worker);
        }
    }

    /// Adds the places that are missing; gives up those that are too many, highest first.
    pub(super) fn fit_to_size(&mut self, id: PoolId, now: Time) {
        self.touched.insert(id);
        let Some(pool) = self.pools.get_mut(&id) else { return };
        pool.keep_surge_in_size();
        let (missing, surplus) = if pool.policy.claims.is_some() { pool.unfit_of_claims() } else { pool.unfit() };
        for slot in missing {
            let worker = WorkerId { pool: id, slot };
            match self.find(worker) {
                None => self.add(worker, now),
                Some(_) => self.apply(worker, Event::Start, now),
            }
        }
        for slot in surplus {
            self.apply(WorkerId { pool: id, slot }, Event::Stop(After::Gone, Cause::Requested), now);
        }
    }

    pub(super) fn add(&mut self, id: WorkerId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        let mut worker = Worker::new(id, now);
        worker.turn = pool.enqueue(id.slot);
        worker.report(now, &mut self.effects);
        let account = worker.account(pool.policy.claims);
        pool.slots.insert(id.slot, worker);
        pool.account(id.slot, Account::NONE, account);
        self.busy += 1;
        self.changed.insert(id);
    }

    pub(super) fn remove(&mut self, id: PoolId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        pool.removed = true;
        let slots: Vec<u32> = pool.slots.keys().rev().copied().collect();
        for slot in slots {
            self.apply(WorkerId { pool: id, slot }, Event::Stop(After::Gone, Cause::Requested), now);
        }
        self.forget_if_empty(id, now);
    }

    /// The workers that an order is about; `None` if there is no such pool or worker.
    fn resolve(&self, target: Target, leaving: Leaving) -> Option<Vec<WorkerId>> {
        let reached = |worker: &&Worker| leaving == Leaving::Included || worker.after != Some(After::Gone);
        let known = |pool: &&Pool| leaving == Leaving::Included || !pool.removed;
        let all = |pool: &Pool| pool.slots.values().filter(reached).map(|worker| worker.id).collect::<Vec<_>>();
        match target {
            Target::All => Some(self.pools.values().filter(known).flat_map(all).collect()),
            Target::Pool(id) => self.pools.get(&id).filter(known).map(all),
            Target::Worker(id) => {
                let pool = self.pools.get(&id.pool).filter(known)?;
                pool.slots.get(&id.slot).filter(reached).map(|worker| vec![worker.id])
            }
        }
    }

    /// The workers that an order is about, or its answer.
    fn targets(&mut self, call: CallId, target: Target, leaving: Leaving) -> Option<Vec<WorkerId>> {
        let found = self.resolve(target, leaving);
        if found.is_none() {
            self.effects.push_back(Effect::Answer(call, Answer::NotFound));
        }
        found
    }

    pub(super) fn refused(&mut self, call: CallId) -> bool {
        let refused = self.shutdown.is_some();
        if refused {
            self.effects.push_back(Effect::Answer(call, Answer::ShuttingDown));
        }
        refused
    }

    /// Brings all targets up, by `event`, and answers when they are.
    pub(super) fn bring_up(&mut self, call: CallId, target: Target, event: Event, now: Time) {
        if self.refused(call) {
            return;
        }
        let Some(targets) = self.targets(call, target, Leaving::Excluded) else { return };
        let patience = self.start_bound(&targets);
        for &worker in &targets {
            self.apply(worker, event, now);
        }
        let pending = targets.iter().filter(|&&worker| self.is_rising(worker)).map(|&w| (w, Wish::Up)).collect();
        self.wait(call, Ask::Up(targets), pending, now.after(patience));
    }

    /// Answers when all targets that are on their way up are.
    pub(super) fn await_up(&mut self, call: CallId, target: Target, now: Time) {
        if self.refused(call) {
            return;
        }
        let Some(targets) = self.targets(call, target, Leaving::Excluded) else { return };
        let patience = self.start_bound(&targets);
        let pending = targets.iter().filter(|&&worker| self.is_rising(worker)).map(|&w| (w, Wish::Up)).collect();
        self.wait(call, Ask::Up(targets), pending, now.after(patience));
    }

    /// Stops all targets and answers when they are empty.
    pub(super) fn stop(&mut self, call: CallId, target: Target, now: Time) {
        if self.refused(call) {
            return;
        }
        let Some(targets) = self.targets(call, target, Leaving::Included) else { return };
        let patience = self.stop_bound(&targets);
        for &worker in &targets {
            self.apply(worker, Event::Stop(After::Down, Cause::Requested), now);
        }
        let pending = targets.iter().filter(|&&worker| self.is_falling(worker)).map(|&w| (w, Wish::Down)).collect();
        self.wait(call, Ask::Down(targets), pending, now.after(patience));
    }

    pub(super) fn scale(&mut self, call: CallId, id: PoolId, wanted: u32, now: Time) {
        if self.refused(call) {
            return;
        }
        let Some(pool) = self.pools.get_mut(&id).filter(|pool| !pool.removed) else {
            return self.effects.push_back(Effect::Answer(call, Answer::NotFound));
        };
        let size = pool.policy.size;
        if wanted < size.min || wanted > size.max {
            let refusal = Answer::OutOfRange { min: size.min, max: size.max };
            return self.effects.push_back(Effect::Answer(call, refusal));
        }
        pool.wanted = wanted;
        pool.claims.extra = 0;
        self.changed_pools.insert(id);
        self.fit_to_size(id, now);
        self.await_size(call, id, wanted, now);
    }

    /// Answers when a pool has as many places as it is to have, and what was too many is gone.
    pub(super) fn await_size(&mut self, call: CallId, id: PoolId, wanted: u32, now: Time) {
        let all = self.resolve(Target::Pool(id), Leaving::Included).unwrap_or_default();
        let patience = self.start_bound(&all).max(self.stop_bound(&all));
        let all = all.into_iter().filter(|&worker| self.find(worker).is_some_and(|worker| worker.lease.is_none()));
        let claims = self.pools.get(&id).is_some_and(|pool| pool.policy.claims.is_some());
        let stays = |worker: &Worker| match claims {
            true => worker.after != Some(After::Gone),
            false => worker.id.slot < wanted,
        };
        let (stay, leave): (Vec<_>, Vec<_>) = all.partition(|&worker| self.find(worker).is_some_and(stays));
        let rising = stay.into_iter().filter(|&worker| self.is_rising(worker)).map(|w| (w, Wish::Up));
        let falling = leave.into_iter().filter(|&worker| self.is_falling(worker)).map(|w| (w, Wish::Down));
        let pending = rising.chain(falling).collect();
        self.wait(call, Ask::Size(id, wanted), pending, now.after(patience));
    }

    /// Kills or signals; answered at once with how many of the targets could be reached.
    pub(super) fn kill(&mut self, call: CallId, target: Target, event: Event, now: Time) {
        let Some(targets) = self.targets(call, target, Leaving::Included) else { return };
        let mut achieved = 0;
        for &worker in &targets {
            let reached = self.find(worker).is_some_and(|worker| match worker.phase {
                Phase::Starting | Phase::Running | Phase::Stopping => true,
                Phase::Spawning | Phase::Aborting | Phase::Killing | Phase::Stuck => {
                    matches!(event, Event::Kill(_))
                }
                Phase::Stopped | Phase::Crashed | Phase::Queued | Phase::Emptying | Phase::Waiting => false,
            });
            achieved += u32::from(reached);
            self.apply(worker, event, now);
        }
        self.effects.push_back(Effect::Answer(call, Answer::Done { achieved, wanted: count(targets.len()) }));
    }

    /// Forgives; answered at once with how many were held back.
    pub(super) fn reset(&mut self, call: CallId, target: Target, now: Time) {
        if self.refused(call) {
            return;
        }
        let Some(targets) = self.targets(call, target, Leaving::Excluded) else { return };
        let held_back = targets.iter().filter(|&&worker| self.find(worker).is_some_and(Worker::is_held_back)).count();
        for &worker in &targets {
            self.apply(worker, Event::Reset, now);
        }
        let reset = count(held_back);
        self.effects.push_back(Effect::Answer(call, Answer::Done { achieved: reset, wanted: reset }));
    }

    pub(super) fn shut_down(&mut self, patience: Duration, now: Time) {
        let deadline = now.after(patience);
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.shorten(deadline);
        } else {
            self.shutdown = Some(Shutdown::new(deadline));
            self.refuse_open_calls();
            self.dismiss_all(now);
            self.end_tasks(now);
            for worker in self.resolve(Target::All, Leaving::Included).unwrap_or_default() {
                self.apply(worker, Event::Stop(After::Down, Cause::Shutdown), now);
            }
        }
        if let Some(shutdown) = &mut self.shutdown {
            let wanted = shutdown.wanted();
            self.timers.arm(Key::Shutdown, &mut shutdown.armed, wanted);
        }
    }

    /// What was to come up will not; what was to go down will.
    fn refuse_open_calls(&mut self) {
        let waiting_for_up = |ask: &Ask| match ask {
            Ask::Up(_) | Ask::Size(..) => true,
            Ask::Down(_) | Ask::Gone(..) => false,
        };
        let refused: Vec<CallId> = self.calls.iter().filter(|(_, ask)| waiting_for_up(ask)).map(|(id, _)| id).collect();
        for id in refused {
            self.answer(id, Some(Answer::ShuttingDown));
        }
    }

    /// Kills whatever shutdown's patience has left.
    pub(super) fn kill_remaining(&mut self, now: Time) {
        for id in self.resolve(Target::All, Leaving::Included).unwrap_or_default() {
            if self.find(id).is_some_and(Worker::is_busy) {
                self.apply(id, Event::Kill(Cause::Shutdown), now);
            }
        }
    }

    pub(super) fn wait(&mut self, call: CallId, ask: Ask, pending: BTreeSet<(WorkerId, Wish)>, deadline: Time) {
        let done = pending.is_empty();
        let open = self.calls.open(call, ask, pending);
        if done {
            self.answer(call, None);
        } else {
            self.timers.arm(Key::Call(call), &mut open.armed, Some(deadline));
        }
    }

    /// Whether a worker is on its way to be ready.
    fn is_rising(&self, id: WorkerId) -> bool {
        self.find(id).is_some_and(|worker| match worker.phase {
            Phase::Queued | Phase::Spawning | Phase::Starting => true,
            Phase::Aborting | Phase::Stopping | Phase::Killing | Phase::Emptying => match worker.after {
                None | Some(After::Again) => true,
                Some(After::Down | After::Gone) => false,
            },
            Phase::Running | Phase::Stopped | Phase::Crashed | Phase::Waiting | Phase::Stuck => false,
        })
    }

    /// Whether a worker is on its way to be empty.
    pub(super) fn is_falling(&self, id: WorkerId) -> bool {
        self.find(id).is_some_and(Worker::is_busy)
    }

    pub(super) fn start_bound(&self, targets: &[WorkerId]) -> Duration {
        self.bound(targets, |pool| pool.start_bound(targets.len()))
    }

    /// An extension by the worker prolongs its stop, but never beyond [`EXTENSION_MAX`].
    pub(super) fn stop_bound(&self, targets: &[WorkerId]) -> Duration {
        self.bound(targets, |pool| pool.stop_bound().max(EXTENSION_MAX + pool.policy.stop.kill_timeout))
    }

    fn bound(&self, targets: &[WorkerId], of: impl Fn(&Pool) -> Duration) -> Duration {
        let pools: BTreeSet<PoolId> = targets.iter().map(|worker| worker.pool).collect();
        let longest = pools.iter().filter_map(|id| self.pools.get(id)).map(of).max();
        longest.unwrap_or_default().saturating_add(MARGIN)
    }
}

/// A number of workers; there are never more than `u32` counts.
pub(super) fn count(workers: usize) -> u32 {
    u32::try_from(workers).unwrap_or(u32::MAX)
}
