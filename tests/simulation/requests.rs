//! A world of requests: pools that dispatch, people who submit and leave, and workers that answer well, late, twice, falsely or not.
//!
//! The world keeps its own books (`books.rs`): every request, attempt, session and breaker, from what it told the engine and what
//! the engine had done. The promises are in `promises.rs`, held after each input and each turn. Facts arrive late and in odd
//! order. At the end all faults cease: then everything is concluded, each pool has the size that it is to have, and after a
//! shutdown nothing is left, not even a deadline.

mod books;
mod fuse;
mod policy;
mod promises;

use std::collections::BTreeMap;
use std::time::Duration;

use halsup::engine::{
    AttemptId, BreakerRecord, CallId, Delivery, Demand, Effect, Ended, Engine, Fate, Input, Phase, PoolRecord, Quality,
    RequestEffect, RequestId, RequestInput, Return, SessionId, State, Supply, Target, Time, WorkerRecord,
};
use halsup::spec::{Budget, Generation, PoolId, WorkerId};

use crate::dice::Dice;
use books::{Books, Place, Pool, Verdict};
use fuse::Fuse;

/// More effects than this from one input are a livelock.
const EFFECTS_MAX: usize = 2_000;
/// Generations that an earlier daemon has given out.
const EARLIER: u64 = 100;

/// What runs.
#[derive(Debug)]
struct Process {
    worker: WorkerId,
    /// It goes on whatever it is told, and answers nothing.
    hangs: bool,
}

struct World {
    dice: Dice,
    engine: Engine,
    books: Books,
    now: Time,
    budget: Budget,
    processes: BTreeMap<Generation, Process>,
    /// News on its way to the engine, by the time when it arrives.
    news: BTreeMap<(Time, u64), Input>,
    sent: u64,
    calls: u64,
    requests: u64,
    /// The latest attempts, to lie about.
    told: Vec<(AttemptId, WorkerId, Generation)>,
    calm: bool,
    trace: Option<Vec<String>>,
}

impl World {
    fn new(seed: u64, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let budget = policy::budget(&mut dice);
        Self {
            engine: Engine::with_last_generation(seed, Generation(EARLIER)),
            dice,
            books: Books::default(),
            now: Time(1_000_000_000),
            budget,
            processes: BTreeMap::new(),
            news: BTreeMap::new(),
            sent: 0,
            calls: 0,
            requests: 0,
            told: Vec::new(),
            calm: false,
            trace: traced.then(Vec::new),
        }
    }

    fn send(&mut self, within: Duration, news: Input) {
        let later = self.dice.within(within);
        self.send_at(self.now.after(later), news);
    }

    fn send_at(&mut self, at: Time, news: Input) {
        self.sent += 1;
        self.news.insert((at, self.sent), news);
    }

    fn next_call(&mut self) -> CallId {
        self.calls += 1;
        CallId(self.calls)
    }

    /// One fact or order, and what the engine decides about it.
    fn tell(&mut self, input: Input) -> Verdict {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12} <- {input:?}", self.now.0));
        }
        let known = matches!(input, Input::PoolRestored(..));
        if !known {
            self.books.hear(&input, self.now);
        }
        let is_order = matches!(input, Input::Request(_));
        self.engine.handle(input, self.now);
        self.take_effects()?;
        self.books.closed = None;
        if is_order && !self.books.calls.is_empty() {
            return Err(format!("not answered: {:?}", self.books.calls));
        }
        Ok(())
    }

    fn take_effects(&mut self) -> Verdict {
        for _ in 0..EFFECTS_MAX {
            let Some(effect) = self.engine.poll_effect() else { return Ok(()) };
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{:>12} -> {effect:?}", self.now.0));
            }
            self.books.hold(&effect, self.now)?;
            self.perform(&effect);
        }
        Err("effects without end".to_owned())
    }

    fn perform(&mut self, effect: &Effect) {
        match *effect {
            Effect::Spawn(worker, generation) => {
                if !self.calm && self.dice.chance(6) {
                    return self.send(Duration::from_millis(30), Input::SpawnFailed(worker, generation));
                }
                let hangs = !self.calm && self.dice.chance(12);
                self.processes.insert(generation, Process { worker, hangs });
                self.send(Duration::from_millis(30), Input::Spawned(worker, generation));
            }
            Effect::Signal(_, generation, policy::STOP) => {
                let hangs = self.processes.get(&generation).is_none_or(|process| process.hangs);
                if !hangs || self.dice.chance(20) {
                    self.end(generation, Duration::from_millis(300), Ended::Exited(0));
                }
            }
            Effect::Kill(_, generation) => self.end(generation, Duration::from_millis(5), Ended::Signalled(9)),
            Effect::Request(RequestEffect::Deliver(id, delivery)) => self.run_request(id, delivery),
            Effect::Request(RequestEffect::Cancel(attempt, worker, generation)) => {
                if self.processes.get(&generation).is_some_and(|process| !process.hangs) {
                    // One says so, of another it is seen that it has let go.
                    let over = match self.dice.chance(50) {
                        true => RequestInput::Answered(attempt, worker, generation, Quality::Refusal),
                        false => RequestInput::Released(attempt, worker, generation),
                    };
                    self.send(Duration::from_millis(60), Input::Request(over));
                }
            }
            Effect::Request(RequestEffect::MeasureMemory(worker, generation)) => {
                let bytes = self.dice.below(1_300);
                let measured = RequestInput::MemoryMeasured(worker, generation, bytes);
                self.send(Duration::from_millis(20), Input::Request(measured));
            }
            Effect::Signal(..)
            | Effect::Ping(..)
            | Effect::Measure(..)
            | Effect::Freeze(..)
            | Effect::Thaw(..)
            | Effect::Bind(..)
            | Effect::StateChanged(..)
            | Effect::Certify(..)
            | Effect::Forget(_)
            | Effect::Answer(..)
            | Effect::Request(_)
            | Effect::Task(_)
            | Effect::Finished => {}
        }
    }

    /// A worker gets a request, or does not.
    fn run_request(&mut self, id: RequestId, delivery: Delivery) {
        let Delivery { attempt, worker, generation, .. } = delivery;
        self.told.push((attempt, worker, generation));
        let answered = |quality| Input::Request(RequestInput::Answered(attempt, worker, generation, quality));
        let Some(process) = self.processes.get(&generation) else { return };
        if self.calm {
            return self.send(Duration::from_millis(30), answered(Quality::Sound));
        }
        let hangs = process.hangs;
        let poison = self.books.requests.get(&id).is_some_and(|request| request.demand.fingerprint == 0);
        if poison && self.dice.chance(50) {
            return self.end(generation, Duration::from_millis(40), Ended::Signalled(11));
        }
        match self.dice.below(100) {
            0..6 => {
                let undelivered = RequestInput::Undelivered(attempt, worker, generation);
                return self.send(Duration::from_millis(20), Input::Request(undelivered));
            }
            6..12 => return self.end(generation, Duration::from_millis(200), Ended::Signalled(11)),
            12..20 => return,
            _ => {}
        }
        if hangs {
            return;
        }
        let quality = match self.dice.below(10) {
            0 => Quality::Refusal,
            1 => Quality::Broken,
            _ => Quality::Sound,
        };
        let takes = Duration::from_millis(self.dice.pick(&[3, 30, 100, 3_000]));
        self.send(takes, answered(quality));
        if self.dice.chance(8) {
            self.send(takes * 2, answered(Quality::Sound));
        }
    }

    /// A worker ends; all that it has said before may come later.
    fn end(&mut self, generation: Generation, within: Duration, ended: Ended) {
        if let Some(process) = self.processes.remove(&generation) {
            let at = self.now.after(self.dice.within(within));
            self.send_at(at, Input::Exited(process.worker, generation, ended));
            let later = at.after(Duration::from_nanos(1) + self.dice.millis(0, 40));
            self.send_at(later, Input::Emptied(process.worker, generation));
        }
    }

    fn some_pool(&mut self) -> PoolId {
        PoolId(self.dice.pick(&[1, 1, 1, 2, 2, 3]))
    }

    fn some_worker(&mut self) -> WorkerId {
        WorkerId { pool: self.some_pool(), slot: self.dice.small(0, 3) }
    }

    fn some_process(&mut self) -> Option<(WorkerId, Generation)> {
        let all: Vec<_> = self.processes.iter().map(|(&generation, process)| (process.worker, generation)).collect();
        (!all.is_empty()).then(|| self.dice.pick(&all))
    }

    fn some_target(&mut self) -> Target {
        match self.dice.below(8) {
            0 => Target::All,
            1 | 2 => Target::Pool(self.some_pool()),
            _ => Target::Worker(self.some_worker()),
        }
    }

    fn some_session(&mut self, pool: PoolId) -> SessionId {
        SessionId(u64::from(pool.0) * 10 + self.dice.below(4))
    }

    fn submission(&mut self) -> Input {
        let pool = self.some_pool();
        self.requests += 1;
        let demand = Demand {
            timeout: self.dice.chance(30).then(|| self.dice.millis(1, 3_000)),
            queue_timeout: self.dice.chance(30).then(|| self.dice.millis(1, 1_500)),
            idempotent: self.dice.chance(40),
            session: self.dice.chance(35).then(|| self.some_session(pool)),
            affinity: self.dice.chance(40).then(|| policy::affinity(&mut self.dice)),
            fingerprint: if self.dice.chance(6) { 0 } else { 1 + self.dice.below(20) },
            avoided: [self.dice.chance(20).then(|| self.dice.small(0, 3)), None, None, None],
        };
        Input::Request(RequestInput::Submitted(RequestId(self.requests), pool, demand))
    }

    /// Somebody wants something, or something happens by itself.
    fn act(&mut self) -> Verdict {
        let call = self.next_call();
        let input = match self.dice.below(1_000) {
            0..640 => self.submission(),
            640..740 => Input::Request(RequestInput::Abandoned(RequestId(1 + self.dice.below(self.requests.max(1))))),
            740..770 => {
                let open: Vec<RequestId> = self.books.requests.keys().copied().collect();
                let Some(&id) = open.first() else { return Ok(()) };
                Input::Request(RequestInput::Abandoned(id))
            }
            770..790 => {
                let (pool, ttl) = (self.some_pool(), self.dice.millis(1, 1_000));
                let session = self.some_session(pool);
                let ttl = self.dice.chance(50).then_some(ttl);
                Input::Request(RequestInput::SessionRequested(call, session, pool, ttl))
            }
            790..810 => {
                let pool = self.some_pool();
                Input::Request(RequestInput::SessionClosed(call, self.some_session(pool)))
            }
            810..830 => {
                if let Some((_, generation)) = self.some_process() {
                    self.end(generation, Duration::ZERO, Ended::Signalled(11));
                }
                return Ok(());
            }
            830..855 => return self.lie(),
            855..865 => {
                let Some((worker, generation)) = self.some_process() else { return Ok(()) };
                let bytes = self.dice.below(1_300);
                Input::Request(RequestInput::MemoryMeasured(worker, generation, bytes))
            }
            865..875 => {
                let Some((worker, generation)) = self.some_process() else { return Ok(()) };
                Input::StopAnnounced(worker, generation)
            }
            _ => return self.order(call),
        };
        self.tell(input)
    }

    /// Somebody answers what he was not asked, or what is over.
    fn lie(&mut self) -> Verdict {
        if self.told.is_empty() {
            return Ok(());
        }
        let (mut attempt, mut worker, mut generation) = self.dice.pick(&self.told);
        match self.dice.below(4) {
            0 => attempt = AttemptId(attempt.0 + 1),
            1 => worker = self.some_worker(),
            2 => generation = Generation(generation.0 + 1),
            _ => {}
        }
        let input = match self.dice.below(5) {
            0 => RequestInput::Undelivered(attempt, worker, generation),
            4 => RequestInput::Released(attempt, worker, generation),
            1 => RequestInput::Unoccupied(worker, generation),
            _ => {
                RequestInput::Answered(attempt, worker, generation, self.dice.pick(&[Quality::Sound, Quality::Broken]))
            }
        };
        self.tell(Input::Request(input))
    }

    /// An operator orders something.
    fn order(&mut self, call: CallId) -> Verdict {
        let target = self.some_target();
        let pool = self.some_pool();
        let input = match self.dice.below(100) {
            0..12 => Input::KillRequested(call, target, None),
            12..22 => Input::StopRequested(call, target),
            22..45 => Input::StartRequested(call, target),
            45..55 => Input::RestartRequested(call, target),
            55..68 => Input::ScaleRequested(call, pool, self.dice.small(0, 5)),
            68..76 => Input::Request(RequestInput::BreakersReset(call, target)),
            76..88 => return self.define(pool, false),
            88..90 => Input::PoolRemoved(pool),
            90..94 => Input::ClaimRequested(call, PoolId(3), Supply::WarmOrCold),
            94..97 => {
                let becomes = self.dice.pick(&[Return::Destroyed, Return::Reset]);
                Input::ReleaseRequested(call, self.some_worker(), becomes)
            }
            _ => Input::ResetRequested(call, target),
        };
        self.tell(input)
    }

    /// A pool is wanted, with another policy than before.
    fn define(&mut self, pool: PoolId, calm: bool) -> Verdict {
        let mut policy = policy::pool(&mut self.dice, self.budget, pool == PoolId(3));
        if calm {
            policy.restart.enabled = true;
            policy.restart.max_restarts = 10_000;
            if let Some(dispatch) = &mut policy.dispatch {
                dispatch.recycle = halsup::spec::RecyclePolicy::default();
            }
        } else if self.dice.chance(25) {
            policy.dispatch = None;
        }
        self.tell(Input::PoolDefined(pool, Box::new(policy)))
    }

    /// An earlier daemon has had this pool: what it has left runs on.
    fn restore(&mut self, id: PoolId) -> Verdict {
        let policy = policy::pool(&mut self.dice, self.budget, false);
        let dispatch = policy.dispatch.expect("it dispatches");
        let mut record = || BreakerRecord {
            failures: self.dice.small(0, 3),
            open_until: self.dice.chance(40).then(|| self.now.after(self.dice.millis(0, 3_000))),
        };
        let (of_pool, of_workers) = (record(), [record(), record(), record()]);
        let mut pool = Pool::new(policy.clone());
        pool.fuse = Fuse::restored(of_pool, dispatch.pool_breaker, self.now);
        let mut records = Vec::new();
        for (slot, breaker) in (0..self.dice.small(1, 3)).zip(of_workers) {
            let generation = pool_generation(id, slot);
            let (phase, fate) = self.dice.pick(&[
                (Phase::Running, Fate::Lives),
                (Phase::Running, Fate::Lives),
                (Phase::Stopped, Fate::Nothing),
                (Phase::Killing, Fate::Lives),
            ]);
            let older = WorkerRecord::assumed(generation.0, phase, None, self.now);
            records.push((slot, WorkerRecord { breaker, ..older }, fate));
            let mut place = Place { generation: Some(generation), ..Place::default() };
            place.fuse = Fuse::restored(breaker, dispatch.worker_breaker, self.now);
            if fate == Fate::Lives {
                let worker = WorkerId { pool: id, slot };
                place.occupied =
                    (phase == Phase::Running).then(|| self.now.after(dispatch.timeout).after(dispatch.cancel_grace));
                self.processes.insert(generation, Process { worker, hangs: false });
                let unoccupied = RequestInput::Unoccupied(worker, generation);
                // Some never say it, and some too late.
                if self.dice.chance(80) {
                    self.send(Duration::from_secs(3), Input::Request(unoccupied));
                }
            }
            pool.places.insert(slot, place);
        }
        let wanted = self.dice.small(0, 4);
        self.books.pools.insert(id, pool);
        let was = PoolRecord { wanted, breaker: of_pool, ..PoolRecord::default() };
        self.tell(Input::PoolRestored(id, Box::new(policy), was, records))
    }

    /// One turn: what has arrived, what is due, what comes of it.
    fn turn(&mut self) -> Verdict {
        while self.news.first_key_value().is_some_and(|(&(at, _), _)| at <= self.now) {
            let Some((_, news)) = self.news.pop_first() else { break };
            if !self.calm && self.dice.chance(3) {
                self.send(Duration::from_millis(500), news.clone());
            }
            self.tell(news)?;
        }
        self.books.tick(self.now);
        self.engine.handle_timeout(self.now);
        self.take_effects()?;
        self.books.settle(&self.engine, self.now)?;
        match self.engine.next_deadline() {
            Some(next) if next <= self.now => Err(format!("the next deadline {next:?} is not in the future")),
            Some(_) | None => Ok(()),
        }
    }

    fn advance(&mut self, most: Duration) {
        let next = [self.engine.next_deadline(), self.news.first_key_value().map(|(&(at, _), _)| at)];
        let limit = self.now.after(most);
        self.now = next.into_iter().flatten().min().map_or(limit, |next| next.min(limit)).max(self.now);
        if !self.calm && self.dice.chance(2) {
            self.now = self.now.after(self.dice.millis(0, 1_500));
        }
    }

    fn run(&mut self) -> Verdict {
        for pool in [PoolId(1), PoolId(2), PoolId(3)] {
            let restored = pool != PoolId(3) && self.dice.chance(30);
            if restored { self.restore(pool)? } else { self.define(pool, false)? }
        }
        let abrupt = self.dice.chance(25);
        for _ in 0..self.dice.small(100, 400) {
            if self.dice.chance(70) {
                self.act()?;
            }
            self.turn()?;
            let pause = self.dice.within(Duration::from_millis(60));
            self.advance(pause);
        }
        self.calm = true;
        self.processes.values_mut().for_each(|process| process.hangs = false);
        if !abrupt {
            self.heal()?;
        }
        self.end_all()
    }

    /// Left alone, everything is concluded and every pool is as large as it is to be, and well.
    fn heal(&mut self) -> Verdict {
        self.let_pass(Duration::from_secs(10))?;
        for pool in [PoolId(1), PoolId(2), PoolId(3)] {
            self.define(pool, true)?;
        }
        for order in [Input::ResetRequested, Input::StartRequested] {
            let call = self.next_call();
            self.tell(order(call, Target::All))?;
        }
        self.let_pass(Duration::from_secs(30))?;
        if !self.books.requests.is_empty() || !self.books.attempts.is_empty() {
            return Err(format!("open: {:?} {:?}", self.books.requests, self.books.attempts));
        }
        for (&id, pool) in &self.books.pools {
            let Some((wanted, ..)) = self.engine.pool_size(id).filter(|_| id != PoolId(3)) else { continue };
            let well = pool.places.values().filter(|place| place.state == Some(State::Healthy)).count();
            if pool.places.len() != wanted as usize || well != wanted as usize {
                return Err(format!("{id:?} is to have {wanted} and has {:?}", pool.places));
            }
        }
        Ok(())
    }

    fn let_pass(&mut self, time: Duration) -> Verdict {
        let end = self.now.after(time);
        while self.now < end {
            self.turn()?;
            self.advance(Duration::from_millis(500));
        }
        self.turn()
    }

    fn end_all(&mut self) -> Verdict {
        for _ in 0..self.dice.below(8) {
            let submission = self.submission();
            self.tell(submission)?;
        }
        self.tell(Input::ShutdownRequested(Duration::from_secs(2)))?;
        let submission = self.submission();
        self.tell(submission)?;
        self.let_pass(Duration::from_secs(20))?;
        if !self.books.finished || !self.books.requests.is_empty() {
            return Err(format!("the shutdown has left {:?}", self.books.requests));
        }
        match self.engine.next_deadline() {
            Some(at) => Err(format!("after all is over something is due in {:?}", at.since(self.now))),
            None => Ok(()),
        }
    }
}

/// What an earlier daemon has called the worker in this place.
fn pool_generation(pool: PoolId, slot: u32) -> Generation {
    Generation(u64::from(pool.0) * 10 + u64::from(slot))
}

#[test]
fn every_request_is_concluded_once_and_as_it_was_promised() {
    let first = crate::number("HALSUP_SIMULATION_FIRST", 0);
    let seeds = crate::number("HALSUP_SIMULATION_SEEDS", 600);
    let mut delivered = 0;
    let mut concluded: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + seeds {
        let mut world = World::new(seed, false);
        if let Err(broken) = world.run() {
            let mut again = World::new(seed, true);
            assert_eq!(again.run(), Err(broken.clone()), "seed {seed} runs differently a second time");
            let trace = again.trace.expect("kept");
            let tail = trace[trace.len().saturating_sub(120)..].join("\n");
            panic!("{tail}\nseed {seed}: {broken}");
        }
        delivered += world.books.delivered;
        for (class, count) in world.books.concluded {
            *concluded.entry(class).or_default() += count;
        }
    }
    let is_busy = ["answered", "never started", "in doubt"].iter().all(|class| concluded.contains_key(class));
    assert!(seeds < 100 || (is_busy && delivered > seeds * 20), "the world does little: {delivered}, {concluded:?}");
}
