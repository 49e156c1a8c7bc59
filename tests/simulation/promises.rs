//! Everything that the engine promises, kept by the world: it hears every input before the engine does, and holds every
//! effect against what is owed. Nothing in here is learned from the engine but what it was free to choose: the moment of a
//! restart within its jitter, and who of those that wait begins first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use halsup::engine::{Answer, CallId, Cause, Effect, Input, State, Target, Time};
use halsup::spec::{Generation, PoolId, PoolPolicy, WorkerId};

use crate::calls::{Ask, Call};
use crate::place::{Body, Place, Wish};

pub(crate) type Verdict = Result<(), String>;

#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pub(crate) policy: PoolPolicy,
    pub(crate) wanted: u32,
    pub(crate) removed: bool,
    /// When the latest starts were; a change of the batch begins anew.
    pub(crate) starts: VecDeque<Time>,
}

#[derive(Debug, Clone)]
pub(crate) struct Promises {
    pub(crate) pools: BTreeMap<PoolId, Pool>,
    pub(crate) places: BTreeMap<WorkerId, Place>,
    pub(crate) calls: BTreeMap<CallId, Call>,
    answered: BTreeSet<CallId>,
    /// Answers that need no waiting.
    pub(crate) owed_answers: Vec<Effect>,
    /// Each generation ever spawned, and whether its end was certified.
    pub(crate) generations: BTreeMap<Generation, bool>,
    pub(crate) last_generation: u64,
    pub(crate) shutdown: Option<Time>,
    pub(crate) expired: bool,
    pub(crate) finished: bool,
}

impl Promises {
    pub(crate) fn new(last_generation: u64) -> Self {
        Self {
            pools: BTreeMap::new(),
            places: BTreeMap::new(),
            calls: BTreeMap::new(),
            answered: BTreeSet::new(),
            owed_answers: Vec::new(),
            generations: BTreeMap::new(),
            last_generation,
            shutdown: None,
            expired: false,
            finished: false,
        }
    }

    /// Hears an input before the engine does.
    pub(crate) fn hear(&mut self, input: &Input, now: Time) {
        match input {
            Input::PoolDefined(pool, policy) => self.pool_defined(*pool, policy, now),
            // `Promises::taken_over` hears what this is about: the truth, and never the records.
            Input::PoolRestored(..) => {}
            Input::AwaitRequested(call, target) => self.await_requested(*call, *target, now),
            Input::PoolRemoved(pool) => self.pool_removed(*pool, now),
            Input::StartRequested(call, target) => self.bring_up(*call, *target, false, now),
            Input::RestartRequested(call, target) => self.bring_up(*call, *target, true, now),
            Input::StopRequested(call, target) => self.stop_requested(*call, *target, now),
            Input::KillRequested(call, target, signal) => self.kill_requested(*call, *target, *signal, now),
            Input::ScaleRequested(call, pool, wanted) => self.scale_requested(*call, *pool, *wanted, now),
            Input::ClaimRequested(..)
            | Input::ReleaseRequested(..)
            | Input::WarmRequested(..)
            | Input::TuneRequested(..)
            | Input::Paused(..) => {
                // `claims.rs` has a world of its own.
            }
            Input::Request(_) | Input::Task(_) => {}
            Input::Used(..) | Input::Measured(..) | Input::Froze(..) | Input::FreezeFailed(..) => {
                // `idle.rs` has one too.
            }
            Input::ResetRequested(call, target) => self.reset_requested(*call, *target, now),
            Input::ShutdownRequested(patience) => self.shutdown_requested(now.after(*patience), now),
            Input::Spawned(id, generation) => self.fact(*id, *generation, |place, policy| place.runs(policy, now)),
            Input::SpawnFailed(id, generation) => {
                self.fact(*id, *generation, |place, policy| place.spawn_failed(policy, now));
            }
            Input::BecameReady(id, generation) => self.fact(*id, *generation, |place, policy| place.ready(policy, now)),
            Input::Beat(id, generation) => self.fact(*id, *generation, |place, _| {
                if let Some(beats) = place.beats() {
                    beats.beat(now);
                }
            }),
            Input::PingFailed(id, generation) => self.fact(*id, *generation, |place, policy| {
                if place.beats().is_some_and(|beats| beats.ping_failed()) {
                    place.kill(Some(Cause::Heartbeat), policy, now);
                }
            }),
            Input::BreakageAnnounced(id, generation) => self.fact(*id, *generation, |place, policy| {
                if place.beats().is_some_and(|beats| beats.broken()) {
                    place.kill(Some(Cause::Heartbeat), policy, now);
                }
            }),
            Input::TimeoutExtended(id, generation, duration) => {
                self.fact(*id, *generation, |place, _| place.extended(*duration, now));
            }
            Input::BeatIntervalSet(id, generation, interval) => {
                self.fact(*id, *generation, |place, _| place.interval_set(*interval, now));
            }
            Input::StopAnnounced(id, generation) => {
                self.fact(*id, *generation, |place, policy| place.stop_announced(policy, now));
            }
            Input::Exited(id, generation, ended) => {
                self.fact(*id, *generation, |place, policy| place.exited(*ended, policy, now));
            }
            Input::Emptied(id, generation) => self.fact(*id, *generation, |place, _| place.emptied(now)),
        }
        self.settle();
    }

    fn fact(&mut self, id: WorkerId, generation: Generation, what: impl FnOnce(&mut Place, &PoolPolicy)) {
        let Some(place) = self.places.get_mut(&id) else { return };
        if place.live().is_some_and(|live| live.generation == generation) {
            what(place, &self.pools[&id.pool].policy);
        }
    }

    fn pool_defined(&mut self, id: PoolId, policy: &PoolPolicy, now: Time) {
        if self.shutdown.is_some() || self.pools.get(&id).is_some_and(|pool| pool.removed) {
            return;
        }
        let new = Pool { policy: policy.clone(), wanted: 0, removed: false, starts: VecDeque::new() };
        let pool = self.pools.entry(id).or_insert(new);
        if pool.policy.startup != policy.startup {
            pool.starts.clear();
        }
        let heartbeat_changed = pool.policy.heartbeat != policy.heartbeat;
        pool.policy = policy.clone();
        pool.wanted = pool.wanted.clamp(policy.size.min, policy.size.max);
        if heartbeat_changed {
            for (_, place) in self.places.iter_mut().filter(|(place, _)| place.pool == id) {
                place.heartbeat_changed(policy, now);
            }
        }
        self.fit(id, now);
    }

    pub(crate) fn fit(&mut self, id: PoolId, now: Time) {
        let pool = &self.pools[&id];
        for slot in 0..pool.wanted {
            let worker = WorkerId { pool: id, slot };
            let place = self.places.entry(worker).or_insert_with(|| Place::new(worker));
            if place.wish == Wish::Gone {
                place.start();
            }
        }
        for (_, place) in self.places.iter_mut().filter(|(place, _)| place.pool == id && place.slot >= pool.wanted) {
            place.stop(Wish::Gone, Cause::Requested, &pool.policy, now);
        }
    }

    fn pool_removed(&mut self, id: PoolId, now: Time) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        pool.removed = true;
        pool.wanted = 0;
        self.fit(id, now);
    }

    /// The workers that an order reaches, or `None` if there is no such thing.
    fn reach(&self, target: Target, leaving: bool) -> Option<Vec<WorkerId>> {
        let reached = |place: &&Place| leaving || (place.wish != Wish::Gone && !self.pools[&place.id.pool].removed);
        let of = |pool: PoolId| {
            let all = self.places.values().filter(move |place| place.id.pool == pool);
            all.filter(reached).map(|place| place.id).collect()
        };
        match target {
            Target::All => Some(self.places.values().filter(reached).map(|place| place.id).collect()),
            Target::Pool(id) => self.pools.get(&id).filter(|pool| leaving || !pool.removed).map(|_| of(id)),
            Target::Worker(id) => self.places.get(&id).filter(reached).map(|place| vec![place.id]),
        }
    }

    fn owe(&mut self, call: CallId, answer: Answer) {
        self.owed_answers.push(Effect::Answer(call, answer));
    }

    fn is_refused(&mut self, call: CallId) -> bool {
        if self.shutdown.is_some() {
            self.owe(call, Answer::ShuttingDown);
        }
        self.shutdown.is_some()
    }

    fn on(&mut self, id: WorkerId, what: impl FnOnce(&mut Place, &PoolPolicy)) {
        if let Some(place) = self.places.get_mut(&id) {
            what(place, &self.pools[&id.pool].policy);
        }
    }

    fn bring_up(&mut self, id: CallId, target: Target, again: bool, now: Time) {
        if self.is_refused(id) {
            return;
        }
        let Some(targets) = self.reach(target, false) else { return self.owe(id, Answer::NotFound) };
        for &worker in &targets {
            self.on(worker, |place, policy| {
                if again {
                    place.stop(Wish::Again, Cause::Requested, policy, now);
                } else {
                    place.start();
                }
            });
        }
        self.settle();
        let pending = targets.iter().copied().filter(|worker| self.places[worker].is_rising()).collect();
        self.open(id, Ask::Up, targets, (pending, BTreeSet::new()), now);
    }

    fn await_requested(&mut self, id: CallId, target: Target, now: Time) {
        if self.is_refused(id) {
            return;
        }
        let Some(targets) = self.reach(target, false) else { return self.owe(id, Answer::NotFound) };
        let pending = targets.iter().copied().filter(|worker| self.places[worker].is_rising()).collect();
        self.open(id, Ask::Up, targets, (pending, BTreeSet::new()), now);
    }

    fn stop_requested(&mut self, id: CallId, target: Target, now: Time) {
        if self.is_refused(id) {
            return;
        }
        let Some(targets) = self.reach(target, true) else { return self.owe(id, Answer::NotFound) };
        for &worker in &targets {
            self.on(worker, |place, policy| place.stop(Wish::Down, Cause::Requested, policy, now));
        }
        self.settle();
        let pending = targets.iter().copied().filter(|worker| self.places[worker].is_busy()).collect();
        self.open(id, Ask::Down, targets, (BTreeSet::new(), pending), now);
    }

    fn scale_requested(&mut self, id: CallId, pool_id: PoolId, wanted: u32, now: Time) {
        if self.is_refused(id) {
            return;
        }
        let Some(pool) = self.pools.get_mut(&pool_id).filter(|pool| !pool.removed) else {
            return self.owe(id, Answer::NotFound);
        };
        let size = pool.policy.size;
        if !(size.min..=size.max).contains(&wanted) {
            return self.owe(id, Answer::OutOfRange { min: size.min, max: size.max });
        }
        pool.wanted = wanted;
        self.fit(pool_id, now);
        self.settle();
        let of_pool = || self.places.values().filter(|place| place.id.pool == pool_id && !place.gone);
        let up = of_pool().filter(|place| place.id.slot < wanted && place.is_rising()).map(|place| place.id).collect();
        let down = of_pool().filter(|place| place.id.slot >= wanted && place.is_busy()).map(|place| place.id).collect();
        let targets = (0..wanted).map(|slot| WorkerId { pool: pool_id, slot }).collect();
        self.open(id, Ask::Size, targets, (up, down), now);
    }

    fn open(
        &mut self,
        id: CallId,
        ask: Ask,
        targets: Vec<WorkerId>,
        (up, down): (BTreeSet<WorkerId>, BTreeSet<WorkerId>),
        now: Time,
    ) {
        let policies = self.pools.values().map(|pool| &pool.policy);
        let call = Call::new(ask, targets, up, down, policies, self.places.len(), now);
        self.calls.insert(id, call);
    }

    fn kill_requested(&mut self, id: CallId, target: Target, signal: Option<i32>, now: Time) {
        let Some(targets) = self.reach(target, true) else { return self.owe(id, Answer::NotFound) };
        let mut achieved = 0;
        for &worker in &targets {
            self.on(worker, |place, policy| {
                achieved += u32::from(match signal {
                    None => place.kill_ordered(Cause::Requested, policy, now),
                    Some(signal) => place.signal_ordered(signal),
                });
            });
        }
        self.owe(id, Answer::Done { achieved, wanted: u32::try_from(targets.len()).expect("few") });
    }

    fn reset_requested(&mut self, id: CallId, target: Target, now: Time) {
        if self.is_refused(id) {
            return;
        }
        let Some(targets) = self.reach(target, false) else { return self.owe(id, Answer::NotFound) };
        let mut reset = 0;
        for worker in targets {
            self.on(worker, |place, _| {
                reset += u32::from(place.is_held_back());
                place.reset(now);
            });
        }
        self.owe(id, Answer::Done { achieved: reset, wanted: reset });
    }

    fn shutdown_requested(&mut self, deadline: Time, now: Time) {
        if let Some(earlier) = self.shutdown {
            self.shutdown = Some(earlier.min(deadline));
            return;
        }
        self.shutdown = Some(deadline);
        for call in self.calls.values_mut() {
            call.refused |= call.ask != Ask::Down;
        }
        for (id, place) in &mut self.places {
            place.stop(Wish::Down, Cause::Shutdown, &self.pools[&id.pool].policy, now);
        }
    }

    /// Lets the calls know who has settled, forgets who is gone.
    pub(crate) fn settle(&mut self) {
        for (id, place) in &mut self.places {
            let up = std::mem::take(&mut place.up_settled);
            let down = std::mem::take(&mut place.down_settled);
            if up || down {
                for call in self.calls.values_mut() {
                    call.settle(*id, up.into(), down.into());
                }
            }
        }
    }

    /// What comes due at `now` by the clock alone.
    pub(crate) fn tick(&mut self, now: Time) {
        if self.shutdown.is_some_and(|deadline| deadline <= now) && !self.expired && !self.finished {
            self.expired = true;
            for (id, place) in &mut self.places {
                if place.is_busy() {
                    place.kill_ordered(Cause::Shutdown, &self.pools[&id.pool].policy, now);
                }
            }
        }
        for (id, place) in &mut self.places {
            let policy = &self.pools[&id.pool].policy;
            while place.due().is_some_and(|due| due <= now) {
                place.tick(policy, now);
            }
        }
        self.settle();
    }

    /// The earliest moment at which the engine must do something of its own accord.
    pub(crate) fn earliest(&self) -> Option<Time> {
        let places = self.places.values().filter_map(Place::due);
        let shutdown = self.shutdown.filter(|_| !self.expired && !self.finished);
        let batches = self.pools.iter().filter_map(|(&id, pool)| {
            let due = self.places.values().any(|place| place.id.pool == id && matches!(place.body, Body::Due));
            (due && self.starting(id) < pool.policy.startup.batch_size).then(|| pool.batch_opens()).flatten()
        });
        let calls = self.calls.values().map(|call| call.bound);
        places.chain(shutdown).chain(batches).chain(calls).min()
    }

    fn starting(&self, id: PoolId) -> u32 {
        let starting = self.places.values().filter(|place| place.id.pool == id && place.is_starting()).count();
        u32::try_from(starting).expect("few")
    }

    /// Holds what the engine did about an input, or about the time, against what is owed.
    pub(crate) fn hold(&mut self, effects: &[Effect], now: Time) -> Verdict {
        for effect in effects {
            self.hold_one(effect, now)?;
        }
        if let Some(owed) = self.places.values().find_map(|place| place.owed.first()).or(self.owed_answers.first()) {
            return Err(format!("owed, and not done: {owed:?}"));
        }
        self.places.retain(|_, place| !place.gone);
        let places = &self.places;
        self.pools.retain(|&id, pool| !pool.removed || places.keys().any(|place| place.pool == id));
        self.hold_states()?;
        if let Some((id, _)) = self.calls.iter().find(|(_, call)| call.is_complete() || call.bound < now) {
            return Err(format!("{id:?} is due for an answer and got none"));
        }
        let over = self.shutdown.is_some() && !self.places.values().any(Place::is_busy);
        if over != self.finished {
            return Err(format!("finished is {}, and ought to be {over}", self.finished));
        }
        Ok(())
    }

    fn hold_one(&mut self, effect: &Effect, now: Time) -> Verdict {
        match effect {
            Effect::Spawn(id, generation) => self.hold_spawn(*id, *generation, now),
            Effect::StateChanged(id, state) => self.hold_state_change(*id, *state, now),
            Effect::Answer(id, answer) => self.hold_answer(*id, answer, now),
            Effect::Finished => {
                if self.finished || self.shutdown.is_none() || !self.calls.is_empty() {
                    return Err(format!("finished at the wrong time; open calls: {:?}", self.calls.keys()));
                }
                self.finished = true;
                Ok(())
            }
            Effect::Measure(..) | Effect::Freeze(..) | Effect::Thaw(..) => {
                Err("a worker is to be frozen of a pool in which nobody is".to_owned())
            }
            Effect::Bind(..) => Err("a worker was bound that nobody claimed".to_owned()),
            Effect::Request(_) | Effect::Task(_) => Err("a request was heard of that nobody made".to_owned()),
            Effect::Signal(id, ..) | Effect::Kill(id, _) | Effect::Ping(id, _) | Effect::Forget(id) => {
                self.hold_owed(*id, effect)
            }
            Effect::Certify(id, generation, _) => {
                self.hold_owed(*id, effect)?;
                match self.generations.insert(*generation, true) {
                    Some(false) => Ok(()),
                    Some(true) => Err(format!("{generation:?} is certified twice")),
                    None => Err(format!("{generation:?} is certified and was never spawned")),
                }
            }
        }
    }

    fn hold_owed(&mut self, id: WorkerId, effect: &Effect) -> Verdict {
        let Some(place) = self.places.get_mut(&id) else { return Err(format!("no such place: {effect:?}")) };
        if place.owed.first() != Some(effect) {
            return Err(format!("not owed: {effect:?}; owed: {:?}", place.owed));
        }
        place.owed.remove(0);
        Ok(())
    }

    fn hold_spawn(&mut self, id: WorkerId, generation: Generation, now: Time) -> Verdict {
        let wrong = |what: &str| Err(format!("{what}: spawn of {id:?} {generation:?}"));
        let starting = self.starting(id.pool);
        let Some(pool) = self.pools.get_mut(&id.pool) else { return wrong("no such pool") };
        let Some(place) = self.places.get_mut(&id) else { return wrong("no such place") };
        if self.shutdown.is_some() || pool.removed || id.slot >= pool.wanted {
            return wrong("not wanted");
        }
        match place.body {
            Body::Due => {}
            Body::Delayed(least, _) if least <= now => {}
            Body::Delayed(least, _) => return wrong(&format!("not before {least:?}")),
            Body::Live(_) => return wrong("the place is taken"),
            Body::Down { .. } => return wrong("it is to stay down"),
        }
        if starting >= pool.policy.startup.batch_size {
            return wrong("the batch is full");
        }
        if pool.batch_opens().is_some_and(|opens| now < opens) {
            return wrong("the batch pauses");
        }
        self.last_generation = self.last_generation.wrapping_add(1);
        if generation.0 != self.last_generation || self.generations.insert(generation, false).is_some() {
            return wrong("generations count up");
        }
        pool.starts.push_back(now);
        if pool.starts.len() > 64 {
            pool.starts.pop_front();
        }
        place.spawned(generation, &pool.policy, now);
        Ok(())
    }

    fn hold_state_change(&mut self, id: WorkerId, state: State, now: Time) -> Verdict {
        let Some(place) = self.places.get_mut(&id) else { return Err(format!("no such place: {id:?} {state:?}")) };
        if place.reported == Some(state) {
            return Err(format!("{id:?} was {state:?} already"));
        }
        place.reported = Some(state);
        if let Body::Delayed(least, _) = place.body
            && state == State::Initializing
        {
            if now < least {
                return Err(format!("{id:?} restarts before {least:?}"));
            }
            place.body = Body::Due;
        }
        Ok(())
    }

    fn hold_answer(&mut self, id: CallId, answer: &Answer, now: Time) -> Verdict {
        if !self.answered.insert(id) {
            return Err(format!("{id:?} is answered twice"));
        }
        let Some(call) = self.calls.remove(&id) else {
            let owed = self.owed_answers.iter().position(|owed| *owed == Effect::Answer(id, answer.clone()));
            let Some(position) = owed else {
                return Err(format!("{id:?} got {answer:?}; owed: {:?}", self.owed_answers));
            };
            self.owed_answers.remove(position);
            return Ok(());
        };
        let states =
            |worker: &WorkerId| self.places.get(worker).filter(|place| !place.gone).and_then(|place| place.reported);
        call.check(answer, states, now).map_err(|wrong| format!("{id:?}: {wrong}"))
    }

    fn hold_states(&self) -> Verdict {
        for place in self.places.values() {
            let expected = place.expected_state();
            if place.reported != Some(expected) {
                return Err(format!("{:?} is said to be {:?} and is {expected:?}", place.id, place.reported));
            }
        }
        Ok(())
    }

    /// Once a turn: whoever can begin has begun.
    pub(crate) fn hold_deficits(&self, now: Time) -> Verdict {
        for place in self.places.values().filter(|place| matches!(place.body, Body::Due)) {
            let pool = &self.pools[&place.id.pool];
            let open = pool.batch_opens().is_none_or(|opens| opens <= now);
            if open && self.starting(place.id.pool) < pool.policy.startup.batch_size {
                return Err(format!("{:?} could begin and does not", place.id));
            }
        }
        Ok(())
    }
}

impl Pool {
    /// When the pause ends that a full batch makes; `None` if there is none. Of any `batch_size` + 1 starts in a row, some
    /// two lie at least `batch_delay` apart.
    fn batch_opens(&self) -> Option<Time> {
        let startup = &self.policy.startup;
        let size = startup.batch_size as usize;
        let latest: Vec<Time> = self.starts.iter().rev().take(size).copied().collect();
        let paused = latest.windows(2).any(|pair| pair[0].since(pair[1]) >= startup.batch_delay);
        (latest.len() == size && !paused).then(|| latest[0].after(startup.batch_delay))
    }
}
