//! The engine itself: takes inputs, steps workers, keeps the accounts, gives effects out.
//!
//! Owns all pools, calls and timers. Never decides about one worker (`worker.rs`) or what an order means (`orders.rs`). The
//! daemon calls [`Engine::handle`] for each input, [`Engine::handle_timeout`], [`Engine::poll_effect`] until it is empty,
//! [`Engine::next_deadline`], once a turn and with one time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::calls::{Ask, Calls, Wish};
use super::claims::{Account, Lease};
use super::dispatch::Requests;
use super::orders::count;
use super::pool::{Admission, Pool};
use super::restart::Random;
use super::shutdown::Shutdown;
use super::step::{After, Event, Phase};
use super::tasks::Tasks;
use super::timers::{Key, Timers};
use super::worker::{Context, News, Worker};
use super::{Answer, CallId, Cause, Change, Effect, Input, Instead, Origin, PoolRecord, Time, WorkerView};
use crate::spec::{Generation, PoolId, WorkerId};

/// Decides what to do next about every pool and worker; see the module.
#[derive(Debug)]
pub struct Engine {
    pub(super) pools: BTreeMap<PoolId, Pool>,
    pub(super) calls: Calls,
    pub(super) timers: Timers,
    pub(super) effects: VecDeque<Effect>,
    pub(super) random: Random,
    pub(super) last_generation: u64,
    pub(super) shutdown: Option<Shutdown>,
    /// Workers that shutdown has to wait for: neither down nor stuck.
    pub(super) busy: usize,
    /// Pools in which somebody may begin by now.
    pub(super) touched: BTreeSet<PoolId>,
    /// Workers and pools of which something has changed that outlives the daemon.
    pub(super) changed: BTreeSet<WorkerId>,
    pub(super) changed_pools: BTreeSet<PoolId>,
    pub(super) requests: Requests,
    pub(super) tasks: Tasks,
}

impl Engine {
    /// An engine without pools. `seed` is all the chance it will ever have (restart jitter); same inputs, same effects.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_last_generation(seed, Generation(0))
    }

    /// As [`Engine::new`], but generations count up from behind `last`: a daemon that knows those of its predecessor
    /// gives none of them out again.
    #[must_use]
    pub fn with_last_generation(seed: u64, last: Generation) -> Self {
        Self {
            pools: BTreeMap::new(),
            calls: Calls::default(),
            timers: Timers::default(),
            effects: VecDeque::new(),
            random: Random::new(seed),
            last_generation: last.0,
            shutdown: None,
            busy: 0,
            touched: BTreeSet::new(),
            changed: BTreeSet::new(),
            changed_pools: BTreeSet::new(),
            requests: Requests::default(),
            tasks: Tasks::default(),
        }
    }

    /// Takes one fact or order. A fact about a worker or generation that is not the present one changes nothing.
    pub fn handle(&mut self, input: Input, now: Time) {
        match input {
            Input::PoolDefined(pool, policy) => self.define(pool, *policy, now),
            Input::PoolRestored(pool, policy, was, workers) => self.restore(pool, *policy, was, workers, now),
            Input::AwaitRequested(call, target) => self.await_up(call, target, now),
            Input::PoolRemoved(pool) => self.remove(pool, now),
            Input::StartRequested(call, target) => self.bring_up(call, target, Event::Start, now),
            Input::StopRequested(call, target) => self.stop(call, target, now),
            Input::RestartRequested(call, target) => {
                self.bring_up(call, target, Event::Stop(After::Again, Cause::Requested), now);
            }
            Input::KillRequested(call, target, None) => self.kill(call, target, Event::Kill(Cause::Requested), now),
            Input::KillRequested(call, target, Some(signal)) => self.kill(call, target, Event::Signal(signal), now),
            Input::ScaleRequested(call, pool, wanted) => self.scale(call, pool, wanted, now),
            Input::ClaimRequested(call, pool, supply) => self.claim(call, pool, supply, now),
            Input::ReleaseRequested(call, worker, becomes) => self.release(call, worker, becomes, now),
            Input::TuneRequested(call, pool, tuning) => self.tune(call, pool, tuning, now),
            Input::WarmRequested(call, pool) => self.warm(call, pool, now),
            Input::Paused(pool, paused) => self.pause(pool, paused, now),
            Input::ResetRequested(call, target) => self.reset(call, target, now),
            Input::ShutdownRequested(patience) => self.shut_down(patience, now),
            Input::Spawned(worker, generation) => self.fact(worker, generation, Event::Spawned, now),
            Input::SpawnFailed(worker, generation) => self.fact(worker, generation, Event::SpawnFailed, now),
            Input::BecameReady(worker, generation) => self.fact(worker, generation, Event::BecameReady, now),
            Input::Beat(worker, generation) => self.fact(worker, generation, Event::Beat, now),
            Input::PingFailed(worker, generation) => self.fact(worker, generation, Event::PingFailed, now),
            Input::TimeoutExtended(worker, generation, duration) => {
                self.fact(worker, generation, Event::TimeoutExtended(duration), now);
            }
            Input::BeatIntervalSet(worker, generation, interval) => {
                self.fact(worker, generation, Event::BeatIntervalSet(interval), now);
            }
            Input::StopAnnounced(worker, generation) => self.fact(worker, generation, Event::StopAnnounced, now),
            Input::BreakageAnnounced(worker, generation) => {
                self.fact(worker, generation, Event::BreakageAnnounced, now);
            }
            Input::Used(worker, generation) => self.fact(worker, generation, Event::Used, now),
            Input::Measured(worker, generation, usage) => self.fact(worker, generation, Event::Measured(usage), now),
            Input::Froze(worker, generation) => self.fact(worker, generation, Event::Froze, now),
            Input::FreezeFailed(worker, generation) => self.fact(worker, generation, Event::FreezeFailed, now),
            Input::Exited(worker, generation, ended) => self.fact(worker, generation, Event::Exited(ended), now),
            Input::Emptied(worker, generation) => self.fact(worker, generation, Event::Emptied, now),
            Input::Request(input) => self.handle_request(input, now),
            Input::Task(input) => self.handle_task(input, now),
        }
        self.settle(now);
    }

    /// Acts on every deadline that has come. To be called once a turn, after all inputs of the turn.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(key) = self.timers.pop_due(now) {
            match key {
                Key::Phase(id) => self.phase_is_due(id, now),
                Key::Beat(id) => self.beat_is_due(id, now),
                Key::Measure(id) => self.measure_is_due(id, now),
                Key::Batch(id) => {
                    if let Some(pool) = self.pools.get_mut(&id) {
                        pool.armed = None;
                        self.touched.insert(id);
                    }
                }
                Key::Idle(id) => self.idle_is_due(id, now),
                Key::Shutdown => {
                    if let Some(shutdown) = &mut self.shutdown {
                        shutdown.armed = None;
                        shutdown.expired = true;
                        self.kill_remaining(now);
                    }
                }
                Key::Call(id) => self.answer(id, None),
                Key::Request(id) => self.request_is_due(id, now),
                Key::Overdue(id) => self.overdue_is_due(id, now),
                Key::Breaker(id) => self.breaker_is_due(id, now),
                Key::PoolBreaker(id) => self.pool_breaker_is_due(id, now),
                Key::Taint(id) => self.taint_is_due(id, now),
                Key::Age(id) => self.age_is_due(id, now),
                Key::Memory(id) => self.memory_is_due(id, now),
                Key::Session(id) => self.session_is_due(id),
            }
            self.settle(now);
        }
        self.tasks_are_due(now);
    }

    /// The next thing to do, in the order in which it was decided.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// What is to be written down, each worker and pool once and as it is now. To be called after the inputs of a turn and
    /// before its effects are carried out, so that a daemon that is killed leaves nothing that no record knows of.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let pools = std::mem::take(&mut self.changed_pools);
        let workers = std::mem::take(&mut self.changed);
        let pool = |pool: &Pool| PoolRecord {
            wanted: pool.wanted,
            paused: pool.claims.paused,
            tuning: pool.tuning,
            breaker: pool.breaker,
        };
        let pools = pools.into_iter().map(|id| Change::Pool(id, self.pools.get(&id).map(pool)));
        let tasks = std::mem::take(&mut self.tasks.changed);
        let totals = std::mem::take(&mut self.tasks.totals_changed).then(|| {
            let (totals, switched) = self.tasks.totals();
            Change::Tasks(totals, switched)
        });
        let record = |id: WorkerId| self.find(id).map(|worker| Box::new(worker.record()));
        let workers = workers.into_iter().map(|id| Change::Worker(id, record(id)));
        let tasks = tasks.into_iter().map(|id| Change::Task(id, self.tasks.record(id)));
        pools.chain(workers).chain(tasks).chain(totals).collect()
    }

    /// What [`Self::take_changes`] would say of one worker, which it then does not say again.
    pub fn take_change_of(&mut self, id: WorkerId) -> Option<Change> {
        let changed = self.changed.remove(&id);
        changed.then(|| Change::Worker(id, self.find(id).map(|worker| Box::new(worker.record()))))
    }

    /// When to call [`Engine::handle_timeout`] at the latest; `None` if only an input can change anything.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        [self.timers.first(), self.tasks.first_due()].into_iter().flatten().min()
    }

    /// Every worker, by pool and slot.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView> {
        self.pools.values().flat_map(|pool| pool.slots.values().map(Worker::view))
    }

    /// One worker.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<WorkerView> {
        self.find(id).map(Worker::view)
    }

    /// How many workers a pool is to have, and the least and most that its policy allows.
    #[must_use]
    pub fn pool_size(&self, id: PoolId) -> Option<(u32, u32, u32)> {
        self.pools.get(&id).map(|pool| (pool.wanted, pool.policy.size.min, pool.policy.size.max))
    }

    pub(super) fn find(&self, id: WorkerId) -> Option<&Worker> {
        self.pools.get(&id.pool)?.slots.get(&id.slot)
    }

    fn find_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.pools.get_mut(&id.pool)?.slots.get_mut(&id.slot)
    }

    fn fact(&mut self, id: WorkerId, generation: Generation, event: Event, now: Time) {
        if self.find(id).is_some_and(|worker| worker.generation == Some(generation)) {
            self.apply(id, event, now);
        }
    }

    fn phase_is_due(&mut self, id: WorkerId, now: Time) {
        if let Some(worker) = self.find_mut(id) {
            worker.armed_deadline = None;
            worker.deadline = None;
            self.apply(id, Event::Overdue, now);
        }
    }

    fn beat_is_due(&mut self, id: WorkerId, now: Time) {
        if let Some(worker) = self.find_mut(id) {
            worker.armed_beat = None;
            self.apply(id, Event::BeatDue, now);
        }
    }

    fn measure_is_due(&mut self, id: WorkerId, now: Time) {
        if let Some(worker) = self.find_mut(id) {
            worker.armed_measure = None;
            self.apply(id, Event::MeasureDue, now);
        }
    }

    /// Steps one worker and brings all accounts in line with what it has become.
    pub(super) fn apply(&mut self, id: WorkerId, event: Event, now: Time) {
        let Some(pool) = self.pools.get_mut(&id.pool) else { return };
        let Some(worker) = pool.slots.get_mut(&id.slot) else { return };
        let before = (worker.phase, worker.is_busy(), worker.in_flight, worker.turn);
        let account = worker.account(pool.policy.claims);
        let mut news = Vec::new();
        let mut context = Context {
            now,
            policy: &pool.policy,
            random: &mut self.random,
            last_generation: &mut self.last_generation,
            effects: &mut self.effects,
            news: &mut news,
        };
        worker.step(event, &mut context);
        if worker.bind(Origin::Cold, &mut self.effects) {
            self.changed.insert(id);
        }
        if !event.leaves_nothing() || worker.phase != before.0 {
            self.changed.insert(id);
        }
        let gone = news.contains(&News::Gone);
        if gone {
            self.timers.disarm(worker);
        } else {
            worker.report(now, &mut self.effects);
            self.timers.arm_all(worker);
        }
        let unanswered = match worker.lease {
            Some(Lease::Asked(call)) if gone => Some(call),
            Some(Lease::Asked(_) | Lease::Held) | None => None,
        };
        let counts = if gone { Account::NONE } else { worker.account(pool.policy.claims) };
        let (phase, is_busy, in_flight) = (worker.phase, worker.is_busy() && !gone, worker.in_flight);
        let (was_queued, is_queued) = (before.0 == Phase::Queued, phase == Phase::Queued && !gone);
        pool.account(id.slot, account, counts);
        pool.in_flight = pool.in_flight + u32::from(in_flight) - u32::from(before.2);
        self.busy = self.busy + usize::from(is_busy) - usize::from(before.1);
        if was_queued && !is_queued {
            pool.dequeue(before.3, id.slot);
        } else if is_queued && !was_queued {
            let turn = pool.enqueue(id.slot);
            if let Some(worker) = pool.slots.get_mut(&id.slot) {
                worker.turn = turn;
            }
        }
        if pool.queued() > 0 || pool.armed.is_some() {
            self.touched.insert(id.pool);
        }
        if gone {
            pool.slots.remove(&id.slot);
            if let Some(call) = unanswered {
                self.effects.push_back(Effect::Answer(call, Answer::ClaimFailed(id)));
            }
            self.effects.push_back(Effect::Forget(id));
            news.extend([News::UpSettled, News::DownSettled]);
        }
        self.spread(id, &news);
        self.follow(id, now);
        if gone {
            self.forget_if_empty(id.pool, now);
        }
    }

    fn spread(&mut self, id: WorkerId, news: &[News]) {
        for news in news {
            let wish = match news {
                News::UpSettled => Wish::Up,
                News::DownSettled => Wish::Down,
                News::Gone => continue,
            };
            for call in self.calls.settle(id, wish) {
                self.answer(call, None);
            }
        }
    }

    /// Forgets a removed pool once its last place is given up.
    pub(super) fn forget_if_empty(&mut self, id: PoolId, now: Time) {
        if self.pools.get(&id).is_some_and(|pool| pool.removed && pool.slots.is_empty()) {
            self.forget_dispatch(id, now);
        }
        if let Some(pool) = self.pools.get_mut(&id)
            && pool.removed
            && pool.slots.is_empty()
        {
            self.timers.arm(Key::Batch(id), &mut pool.armed, None);
            self.timers.arm(Key::Idle(id), &mut pool.claims.armed, None);
            self.pools.remove(&id);
            self.changed_pools.insert(id);
        }
    }

    /// Lets begin who may, and says when all is over.
    fn settle(&mut self, now: Time) {
        while !self.touched.is_empty() || !self.requests.calling.is_empty() {
            while let Some(id) = self.touched.pop_first() {
                self.admit(id, now);
            }
            if let Some(id) = self.requests.calling.pop_first() {
                self.pump(id, now);
            }
        }
        if self.busy == 0
            && let Some(shutdown) = &mut self.shutdown
            && !shutdown.finished
        {
            shutdown.finished = true;
            self.timers.arm(Key::Shutdown, &mut shutdown.armed, None);
            let open: Vec<CallId> = self.calls.iter().map(|(id, _)| id).collect();
            for id in open {
                self.answer(id, None);
            }
            self.effects.push_back(Effect::Finished);
        }
    }

    fn admit(&mut self, id: PoolId, now: Time) {
        loop {
            let Some(pool) = self.pools.get_mut(&id) else { return };
            let wanted = match pool.admission(now) {
                Admission::Now(slot) => {
                    pool.began(now);
                    self.apply(WorkerId { pool: id, slot }, Event::Admitted, now);
                    continue;
                }
                Admission::At(time) => Some(time),
                Admission::Idle => None,
            };
            self.timers.arm(Key::Batch(id), &mut pool.armed, wanted);
            self.touched.remove(&id);
            return;
        }
    }

    /// Answers a call with what is achieved now, or with `instead`.
    pub(super) fn answer(&mut self, id: CallId, instead: Option<Answer>) {
        let Some(mut call) = self.calls.close(id) else { return };
        self.timers.arm(Key::Call(id), &mut call.armed, None);
        let done = |achieved: usize, wanted: u32| Answer::Done { achieved: count(achieved), wanted };
        let is_up = |worker: &Worker| worker.phase == Phase::Running;
        let achieved = match &call.ask {
            Ask::Up(targets) => {
                let up = targets.iter().filter(|&&id| self.find(id).is_some_and(is_up)).count();
                done(up, count(targets.len()))
            }
            &Ask::Gone(target, instead) => match self.find(target).map(|worker| worker.phase) {
                Some(Phase::Stuck) => Answer::Destroyed(Instead::Stuck),
                Some(_) | None => Answer::Destroyed(instead),
            },
            Ask::Down(targets) => {
                let is_down = |id| self.find(id).is_none_or(|worker| worker.phase == Phase::Stopped);
                let down = targets.iter().filter(|&&id| is_down(id)).count();
                done(down, count(targets.len()))
            }
            &Ask::Size(pool, wanted) => {
                let up = self.pools.get(&pool).map_or(0, |pool| match pool.policy.claims {
                    Some(_) => pool.claims.warm.len(),
                    None => pool.slots.range(..wanted).filter(|(_, worker)| is_up(worker)).count(),
                });
                done(up, wanted)
            }
        };
        self.effects.push_back(Effect::Answer(id, instead.unwrap_or(achieved)));
    }
}
