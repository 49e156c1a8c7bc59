//! A world of claims: one pool whose workers wait, people who claim and release them, programs that end when they like.
//!
//! The world keeps its own books: who was told that it has which worker, what lives, what was asked to end. It never asks the
//! engine what is so, but at the end how many are warm and held, which it then knows itself. The promises are in `hold`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use halsup::engine::{Answer, CallId, Effect, Ended, Engine, Input, Origin, Return, Supply, Time, Tuning, Usage};
use halsup::spec::{ClaimPolicy, Generation, PoolId, PoolPolicy, Restart, Size, Startup, Stop, WorkerId};

use crate::dice::Dice;

const POOL: PoolId = PoolId(1);

/// What the world knows of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Asked for.
    Spawning,
    /// It runs and waits.
    Warm,
}

struct World {
    dice: Dice,
    engine: Engine,
    now: Time,
    max: u32,
    sessions_max: u32,
    lives: BTreeMap<(WorkerId, Generation), Life>,
    /// News on its way to the engine, by the time when it arrives.
    news: BTreeMap<(Time, u64), Input>,
    sent: u64,
    calls: u64,
    /// Claims without an answer.
    open: BTreeMap<CallId, Supply>,
    held: BTreeMap<WorkerId, Generation>,
    ever_held: BTreeSet<(WorkerId, Generation)>,
    /// Those that stand still, or are about to.
    frozen: BTreeSet<(WorkerId, Generation)>,
    /// Who was to be reset, by the call that asked.
    resets: BTreeMap<CallId, WorkerId>,
    /// The same, until they are gone or begin anew.
    given_back: BTreeSet<WorkerId>,
    reset: u64,
    froze: u64,
    wanted: u32,
    paused: bool,
    bound: u64,
    cold: u64,
}

type Verdict = Result<(), String>;

fn policy(dice: &mut Dice) -> PoolPolicy {
    let min = dice.small(0, 3);
    PoolPolicy {
        size: Size { min, max: min + dice.small(1, 3) },
        startup: Startup {
            batch_size: dice.small(1, 4),
            batch_delay: Duration::from_millis(dice.pick(&[0, 0, 200])),
            ready_timeout: Duration::from_secs(5),
            waits_for_ready: false,
        },
        restart: Restart {
            enabled: true,
            delay: Duration::from_millis(100),
            delay_max: Duration::from_secs(1),
            jitter_percent: 20,
            stable_after: Duration::from_secs(1),
            max_restarts: 10_000,
            window: Duration::from_secs(1),
        },
        heartbeat: None,
        stop: Stop { signal: 1, grace: Duration::from_millis(500), kill_timeout: Duration::from_secs(60) },
        freeze_after: dice.chance(50).then(|| dice.millis(200, 2_000)),
        claims: Some(ClaimPolicy {
            idle_timeout: Duration::from_secs(3),
            check_interval: Duration::from_secs(30),
            sessions_max: dice.small(1, 8),
        }),
        dispatch: None,
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let policy = policy(&mut dice);
        let mut world = Self {
            engine: Engine::new(seed),
            dice,
            now: Time(0),
            max: policy.size.max,
            sessions_max: policy.claims.expect("claims").sessions_max,
            lives: BTreeMap::new(),
            news: BTreeMap::new(),
            sent: 0,
            calls: 0,
            open: BTreeMap::new(),
            held: BTreeMap::new(),
            ever_held: BTreeSet::new(),
            frozen: BTreeSet::new(),
            resets: BTreeMap::new(),
            given_back: BTreeSet::new(),
            reset: 0,
            froze: 0,
            wanted: policy.size.min,
            paused: false,
            bound: 0,
            cold: 0,
        };
        world.engine.handle(Input::PoolDefined(POOL, Box::new(policy)), world.now);
        world
    }

    fn send(&mut self, within: Duration, news: Input) {
        self.sent += 1;
        let at = self.now.after(self.dice.within(within));
        self.news.insert((at, self.sent), news);
    }

    fn warm(&self) -> usize {
        self.lives.iter().filter(|((worker, _), life)| **life == Life::Warm && !self.held.contains_key(worker)).count()
    }

    /// Somebody wants something.
    fn act(&mut self) {
        self.calls += 1;
        let call = CallId(self.calls);
        let input = match self.dice.below(100) {
            0..35 => {
                let supply = self.dice.pick(&[Supply::WarmOnly, Supply::WarmOrCold]);
                self.open.insert(call, supply);
                Input::ClaimRequested(call, POOL, supply)
            }
            35..60 => match self.held.keys().next().copied() {
                Some(worker) => {
                    let becomes = self.dice.pick(&[Return::Destroyed, Return::Reset]);
                    if becomes == Return::Reset {
                        self.resets.insert(call, worker);
                        self.given_back.insert(worker);
                    }
                    Input::ReleaseRequested(call, worker, becomes)
                }
                None => return,
            },
            60..70 => {
                let count = self.dice.small(0, self.max + 1);
                let (_, min, max) = self.engine.pool_size(POOL).expect("the pool");
                if (min..=max).contains(&count) {
                    self.wanted = count;
                }
                Input::ScaleRequested(call, POOL, count)
            }
            70..75 => Input::WarmRequested(call, POOL),
            75..78 => {
                let max = self.dice.small(1, 5);
                let min = self.dice.small(0, max);
                let idle_timeout = self.dice.chance(50).then(|| self.dice.millis(500, 4_000));
                (self.wanted, self.max, self.paused) = (min, max, false);
                let tuning = Tuning { min: Some(min), max: Some(max), idle_timeout, check_interval: None };
                Input::TuneRequested(call, POOL, tuning)
            }
            78..83 => {
                self.paused = !self.paused;
                Input::Paused(POOL, self.paused)
            }
            _ => return self.die(),
        };
        self.engine.handle(input, self.now);
    }

    /// Some program ends by itself.
    fn die(&mut self) {
        let alive = self.lives.iter().filter(|(_, life)| **life == Life::Warm).map(|(&one, _)| one);
        let alive: Vec<(WorkerId, Generation)> = alive.collect();
        if let Some(&one) = alive.get(usize::try_from(self.dice.below(8)).expect("below 8")) {
            self.end(one, Ended::Exited(0));
        }
    }

    fn end(&mut self, (worker, generation): (WorkerId, Generation), ended: Ended) {
        if self.lives.remove(&(worker, generation)).is_some() {
            self.send(Duration::from_millis(1), Input::Exited(worker, generation, ended));
            self.sent += 1;
            let at = self.now.after(Duration::from_millis(2) + self.dice.millis(0, 20));
            self.news.insert((at, self.sent), Input::Emptied(worker, generation));
        }
    }

    fn hold(&mut self, effect: &Effect) -> Verdict {
        match *effect {
            Effect::Spawn(worker, generation) => return self.hold_spawn(worker, generation),
            Effect::Bind(worker, generation, call, origin) => {
                let Some(supply) = self.open.remove(&call) else {
                    return Err(format!("{call:?} gets {worker:?} and has been answered"));
                };
                if self.frozen.contains(&(worker, generation)) {
                    return Err(format!("{worker:?} is bound and stands still"));
                }
                if !self.ever_held.insert((worker, generation)) || self.held.insert(worker, generation).is_some() {
                    return Err(format!("{worker:?} {generation:?} has two holders"));
                }
                if origin == Origin::Cold && supply == Supply::WarmOnly {
                    return Err(format!("{worker:?} was started for a claim that wanted none started"));
                }
                // Who is being reset is the pool's again from then on.
                let held = self.held.keys().filter(|&worker| !self.given_back.contains(worker)).count();
                let held = u32::try_from(held).expect("few");
                if held > self.sessions_max {
                    return Err(format!("{held} are held, at most {} may be", self.sessions_max));
                }
                self.bound += 1;
                self.cold += u64::from(origin == Origin::Cold);
            }
            Effect::Answer(call, ref answer) => return self.answered(call, answer),
            Effect::Measure(worker, generation) => {
                let usage = Usage { cpu_usec: self.dice.below(2), in_use: self.dice.chance(10) };
                self.send(Duration::from_millis(1), Input::Measured(worker, generation, usage));
            }
            Effect::Freeze(worker, generation) => {
                self.frozen.insert((worker, generation));
                self.froze += 1;
                self.send(Duration::from_millis(5), Input::Froze(worker, generation));
            }
            Effect::Thaw(worker, generation) => {
                if !self.frozen.remove(&(worker, generation)) {
                    return Err(format!("{worker:?} goes on and did not stand still"));
                }
            }
            Effect::Signal(worker, generation, _) | Effect::Kill(worker, generation) => {
                if self.frozen.contains(&(worker, generation)) {
                    return Err(format!("{worker:?} is asked to end and stands still"));
                }
                self.end((worker, generation), Ended::Signalled(1));
            }
            Effect::Forget(worker) => {
                self.given_back.remove(&worker);
                self.held.remove(&worker);
            }
            Effect::Ping(..)
            | Effect::StateChanged(..)
            | Effect::Certify(..)
            | Effect::Request(_)
            | Effect::Task(_)
            | Effect::Finished => {}
        }
        Ok(())
    }

    fn hold_spawn(&mut self, worker: WorkerId, generation: Generation) -> Verdict {
        if self.lives.keys().any(|(known, _)| *known == worker) {
            return Err(format!("{worker:?} is started again while it lives"));
        }
        if self.held.contains_key(&worker) {
            if !self.given_back.remove(&worker) {
                return Err(format!("{worker:?} is somebody's and is started again"));
            }
            // What was held is gone, and nobody has the place.
            self.held.remove(&worker);
            self.reset += 1;
        }
        if self.dice.chance(10) {
            self.send(Duration::from_millis(50), Input::SpawnFailed(worker, generation));
        } else {
            self.lives.insert((worker, generation), Life::Spawning);
            self.send(Duration::from_millis(50), Input::Spawned(worker, generation));
        }
        Ok(())
    }

    fn answered(&mut self, call: CallId, answer: &Answer) -> Verdict {
        if let Some(worker) = self.resets.remove(&call) {
            let is_warm = self.lives.iter().any(|((known, _), life)| *known == worker && *life == Life::Warm);
            let is_nobodys = !self.held.contains_key(&worker);
            return match answer {
                Answer::Done { achieved: 1, .. } if !(is_warm && is_nobodys) => {
                    Err(format!("{worker:?} is said to be warm again and is not"))
                }
                Answer::Destroyed(_) if is_warm => Err(format!("{worker:?} is said to be destroyed and lives")),
                Answer::Done { .. }
                | Answer::NotFound
                | Answer::OutOfRange { .. }
                | Answer::ShuttingDown
                | Answer::NotClaimable
                | Answer::NoneWarm
                | Answer::Full { .. }
                | Answer::ClaimFailed(_)
                | Answer::Destroyed(_) => Ok(()),
            };
        }
        if matches!(answer, Answer::Destroyed(_)) {
            return Err(format!("{call:?} wanted no reset and is answered {answer:?}"));
        }
        let Some(supply) = self.open.remove(&call) else { return Ok(()) };
        match answer {
            Answer::NoneWarm if supply == Supply::WarmOrCold => Err("no worker was started for a claim".to_owned()),
            Answer::Full { max } if *max != self.sessions_max => Err(format!("{max} is not the most")),
            Answer::NoneWarm | Answer::Full { .. } | Answer::ClaimFailed(_) | Answer::ShuttingDown => Ok(()),
            Answer::Done { .. }
            | Answer::NotFound
            | Answer::OutOfRange { .. }
            | Answer::NotClaimable
            | Answer::Destroyed(_) => Err(format!("{call:?} is answered {answer:?}")),
        }
    }

    /// One turn: what has arrived, what is due, what comes of it.
    fn turn(&mut self) -> Verdict {
        while self.news.first_key_value().is_some_and(|(&(at, _), _)| at <= self.now) {
            let Some((_, news)) = self.news.pop_first() else { break };
            if let Input::Spawned(worker, generation) = news
                && let Some(life) = self.lives.get_mut(&(worker, generation))
            {
                *life = Life::Warm;
            }
            self.engine.handle(news, self.now);
        }
        self.engine.handle_timeout(self.now);
        while let Some(effect) = self.engine.poll_effect() {
            self.hold(&effect)?;
        }
        let warm = self.warm();
        if warm > usize::try_from(self.max).expect("few") {
            return Err(format!("{warm} are warm, at most {} may be", self.max));
        }
        Ok(())
    }

    fn advance(&mut self, most: Duration) {
        let next = [self.engine.next_deadline(), self.news.first_key_value().map(|(&(at, _), _)| at)];
        let limit = self.now.after(most);
        self.now = next.into_iter().flatten().min().map_or(limit, |next| next.min(limit)).max(self.now);
    }

    fn run(&mut self) -> Verdict {
        for _ in 0..400 {
            if self.dice.chance(60) {
                self.act();
            }
            self.turn()?;
            let pause = self.dice.millis(0, 300);
            self.advance(pause);
        }
        // Left alone, it becomes what it is to be.
        if self.paused {
            self.engine.handle(Input::Paused(POOL, false), self.now);
        }
        for _ in 0..2_000 {
            self.turn()?;
            self.advance(Duration::from_millis(500));
        }
        if !self.open.is_empty() {
            return Err(format!("no answer: {:?}", self.open.keys()));
        }
        let (warm, told) = (self.warm(), self.engine.claims(POOL));
        if u32::try_from(warm) != Ok(self.wanted) || told.warm != self.wanted {
            return Err(format!("{warm} are warm, {} are said to be, {} are wanted", told.warm, self.wanted));
        }
        if u32::try_from(self.held.len()) != Ok(told.leased) {
            return Err(format!("{} are held, {} are said to be", self.held.len(), told.leased));
        }
        self.engine.handle(Input::ShutdownRequested(Duration::from_secs(5)), self.now);
        for _ in 0..200 {
            self.turn()?;
            self.advance(Duration::from_secs(1));
        }
        if self.lives.is_empty() && self.held.is_empty() { Ok(()) } else { Err(format!("left: {:?}", self.lives)) }
    }
}

#[test]
fn a_claimed_worker_has_one_holder_and_what_is_claimed_is_replaced() {
    let first = crate::number("HALSUP_SIMULATION_FIRST", 0);
    let seeds = crate::number("HALSUP_SIMULATION_SEEDS", 600);
    let (mut bound, mut cold, mut froze, mut reset) = (0, 0, 0, 0);
    for seed in first..first + seeds {
        let mut world = World::new(seed);
        world.run().unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        bound += world.bound;
        cold += world.cold;
        froze += world.froze;
        reset += world.reset;
    }
    // A seed alone may have nobody who claims.
    let is_busy = seeds < 100 || (bound > seeds && cold > seeds / 10);
    assert!(is_busy, "the world claims little: {bound}, of them {cold} cold");
    assert!(seeds < 100 || reset > seeds, "the world resets little: {reset}");
    assert!(seeds < 100 || froze > seeds, "the world freezes little: {froze}");
}
