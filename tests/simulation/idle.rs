//! A world of idleness: workers that work now and then, people who need them, and heartbeats that only who runs can give.
//!
//! The world knows of each worker when it last did something and when somebody last had something to do with it. Its promises:
//! nobody is frozen before the pool's patience is over, everybody who is idle is frozen in twice the time, who stands still is
//! let go before anything else is done to it, is asked for no sign of life and ends for want of none, and when all stand
//! still nobody wakes up to look.

use std::collections::BTreeMap;
use std::time::Duration;

use halsup::engine::{Answer, CallId, Cause, Effect, Ended, Engine, Input, Sleep, Target, Time, Usage};
use halsup::spec::{Generation, Heartbeat, HeartbeatSource, PoolId, PoolPolicy, Restart, Size, WorkerId};

use crate::dice::Dice;

const POOL: PoolId = PoolId(1);
/// What news of a worker may take.
const LATENCY: Duration = Duration::from_millis(3);

type Verdict = Result<(), String>;

/// A worker that lives.
#[derive(Debug)]
struct Process {
    id: WorkerId,
    ready: bool,
    cpu_usec: u64,
    /// When it last did something, and somebody something to it.
    active: Time,
    used: bool,
    still: bool,
    /// When it does something next, in the time in which it runs.
    works_at: Time,
}

struct World {
    dice: Dice,
    engine: Engine,
    now: Time,
    policy: PoolPolicy,
    patience: Duration,
    alive: BTreeMap<Generation, Process>,
    news: BTreeMap<(Time, u64), Input>,
    sent: u64,
    calls: u64,
    froze: u64,
    thawed: u64,
}

fn policy(dice: &mut Dice, patience: Duration) -> PoolPolicy {
    let heartbeat = Heartbeat {
        source: dice.pick(&[HeartbeatSource::Channel, HeartbeatSource::Notify]),
        interval: dice.millis(500, 8_000),
        timeout: Duration::from_millis(400),
        max_missed: dice.small(1, 3),
        initial_delay: Duration::ZERO,
        dependent: true,
    };
    PoolPolicy {
        size: Size { min: 3, max: 3 },
        heartbeat: dice.chance(70).then_some(heartbeat),
        freeze_after: Some(patience),
        restart: Restart { max_restarts: 10_000, ..PoolPolicy::default().restart },
        ..PoolPolicy::default()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let patience = dice.millis(200, 3_000);
        let policy = policy(&mut dice, patience);
        let mut world = Self {
            engine: Engine::new(seed),
            dice,
            now: Time(0),
            policy: policy.clone(),
            patience,
            alive: BTreeMap::new(),
            news: BTreeMap::new(),
            sent: 0,
            calls: 0,
            froze: 0,
            thawed: 0,
        };
        world.engine.handle(Input::PoolDefined(POOL, Box::new(policy)), world.now);
        world
    }

    fn send(&mut self, within: Duration, news: Input) {
        self.sent += 1;
        let at = self.now.after(self.dice.within(within));
        self.news.insert((at, self.sent), news);
    }

    fn pick(&mut self) -> Option<Generation> {
        let ready: Vec<Generation> = self.alive.iter().filter(|(_, p)| p.ready).map(|(&g, _)| g).collect();
        (!ready.is_empty()).then(|| self.dice.pick(&ready))
    }

    /// Somebody does something.
    fn act(&mut self) {
        let Some(generation) = self.pick() else { return };
        self.calls += 1;
        let (call, now) = (CallId(self.calls), self.now);
        let process = self.alive.get_mut(&generation).expect("picked");
        let target = Target::Worker(process.id);
        let input = match self.dice.below(100) {
            0..60 => {
                process.active = now;
                Input::Used(process.id, generation)
            }
            60..75 => {
                process.used = !process.used;
                process.active = now;
                Input::Used(process.id, generation)
            }
            75..85 => {
                process.active = now;
                Input::KillRequested(call, target, Some(1))
            }
            85..90 => Input::RestartRequested(call, target),
            90..95 => Input::KillRequested(call, target, None),
            _ => {
                self.patience = self.dice.millis(200, 3_000);
                let freeze_after = self.dice.chance(80).then_some(self.patience);
                return self.redefine(freeze_after);
            }
        };
        self.engine.handle(input, self.now);
    }

    /// The pool is defined anew. Where its patience changes everybody has the whole of it again; the same is no change.
    fn redefine(&mut self, freeze_after: Option<Duration>) {
        if self.policy.freeze_after != freeze_after {
            for process in self.alive.values_mut() {
                process.active = self.now;
            }
        }
        self.policy.freeze_after = freeze_after;
        self.engine.handle(Input::PoolDefined(POOL, Box::new(self.policy.clone())), self.now);
    }

    /// Those work whose time has come and who run; who does not run works when it goes on.
    fn work(&mut self) {
        let (now, pause) = (self.now, self.dice.millis(50, 9_000));
        let due = |process: &&mut Process| process.ready && !process.still && process.works_at <= now;
        for process in self.alive.values_mut().filter(due) {
            process.cpu_usec += 5;
            process.active = now;
            process.works_at = now.after(pause);
        }
    }

    fn hold(&mut self, effect: &Effect) -> Verdict {
        match *effect {
            Effect::Spawn(id, generation) => {
                let (active, works_at) = (self.now, self.now);
                let process = Process { id, ready: false, cpu_usec: 0, active, used: false, still: false, works_at };
                self.alive.insert(generation, process);
                self.send(Duration::from_millis(50), Input::Spawned(id, generation));
            }
            Effect::Measure(id, generation) => {
                let Some(process) = self.alive.get(&generation) else { return Ok(()) };
                if process.still {
                    return Err(format!("{id:?} stands still and is measured"));
                }
                let usage = Usage { cpu_usec: process.cpu_usec, in_use: process.used };
                self.engine.handle(Input::Measured(id, generation, usage), self.now);
            }
            Effect::Freeze(id, generation) => return self.hold_freeze(id, generation),
            Effect::Thaw(id, generation) => {
                let Some(process) = self.alive.get_mut(&generation) else { return Ok(()) };
                if !process.still {
                    return Err(format!("{id:?} goes on and did not stand still"));
                }
                process.still = false;
                process.active = self.now;
                self.thawed += 1;
            }
            Effect::Ping(id, generation) => {
                self.runs(id, generation, "is asked for a sign of life")?;
                self.send(LATENCY, Input::Beat(id, generation));
            }
            Effect::Signal(id, generation, signal) => {
                self.runs(id, generation, "gets a signal")?;
                if signal == self.policy.stop.signal {
                    self.end(id, generation, Ended::Signalled(signal));
                }
            }
            Effect::Kill(id, generation) => {
                self.runs(id, generation, "is killed")?;
                self.end(id, generation, Ended::Signalled(9));
            }
            Effect::Certify(id, _, Cause::Heartbeat) => return Err(format!("{id:?} ended for want of beats")),
            Effect::Answer(_, Answer::NotFound) => return Err("a worker is not found".to_owned()),
            Effect::Request(_) | Effect::Task(_) => {
                return Err("a request was heard of that nobody made".to_owned());
            }
            Effect::Bind(..)
            | Effect::StateChanged(..)
            | Effect::Certify(..)
            | Effect::Forget(_)
            | Effect::Answer(..)
            | Effect::Finished => {}
        }
        Ok(())
    }

    fn hold_freeze(&mut self, id: WorkerId, generation: Generation) -> Verdict {
        let Some(process) = self.alive.get_mut(&generation) else { return Ok(()) };
        let Some(patience) = self.policy.freeze_after else {
            return Err(format!("{id:?} is frozen and nobody is to be"));
        };
        if process.used || process.still {
            return Err(format!("{id:?} is in use, or stands still already, and is frozen"));
        }
        let idle = self.now.since(process.active);
        if idle < patience {
            return Err(format!("{id:?} is frozen after {idle:?}, not {patience:?}"));
        }
        self.froze += 1;
        process.still = true;
        // Now and then one of its processes cannot be stopped: it goes on when the engine has heard of it.
        let fails = self.dice.chance(10);
        self.send(LATENCY, if fails { Input::FreezeFailed(id, generation) } else { Input::Froze(id, generation) });
        Ok(())
    }

    fn runs(&self, id: WorkerId, generation: Generation, what: &str) -> Verdict {
        let still = self.alive.get(&generation).is_some_and(|process| process.still);
        if still { Err(format!("{id:?} stands still and {what}")) } else { Ok(()) }
    }

    fn end(&mut self, id: WorkerId, generation: Generation, ended: Ended) {
        if self.alive.remove(&generation).is_some() {
            self.send(LATENCY, Input::Exited(id, generation, ended));
            self.sent += 1;
            self.news.insert((self.now.after(LATENCY * 2), self.sent), Input::Emptied(id, generation));
        }
    }

    fn turn(&mut self) -> Verdict {
        while self.news.first_key_value().is_some_and(|(&(at, _), _)| at <= self.now) {
            let Some((_, news)) = self.news.pop_first() else { break };
            if let Input::Spawned(_, generation) = news
                && let Some(process) = self.alive.get_mut(&generation)
            {
                process.ready = true;
                process.active = self.now;
                process.works_at = self.now.after(self.dice.millis(0, 2_000));
            }
            self.engine.handle(news, self.now);
        }
        self.work();
        // Those that beat by themselves do it as long as they run.
        if self.policy.heartbeat.is_some_and(|heartbeat| heartbeat.source == HeartbeatSource::Notify) {
            let running = self.alive.iter().filter(|(_, process)| process.ready && !process.still);
            let beats: Vec<Input> = running.map(|(&g, process)| Input::Beat(process.id, g)).collect();
            beats.into_iter().for_each(|beat| self.engine.handle(beat, self.now));
        }
        self.engine.handle_timeout(self.now);
        while let Some(effect) = self.engine.poll_effect() {
            self.hold(&effect)?;
        }
        self.hold_idle()
    }

    /// Who has been idle for twice the time stands still by now.
    fn hold_idle(&self) -> Verdict {
        let Some(patience) = self.policy.freeze_after else { return Ok(()) };
        let most = patience * 2 + LATENCY * 4;
        let tired = |process: &&Process| process.ready && !process.used && !process.still;
        match self.alive.values().filter(tired).find(|process| self.now.since(process.active) > most) {
            Some(process) => Err(format!("{process:?} is idle and not frozen")),
            None => Ok(()),
        }
    }

    /// To the next thing that happens, at the latest in so long.
    fn advance(&mut self, most: Duration) {
        let works = self.alive.values().filter(|process| process.ready && !process.still).map(|p| p.works_at).min();
        let next = [self.engine.next_deadline(), self.news.first_key_value().map(|(&(at, _), _)| at), works];
        // Who beats by itself has a clock of its own.
        let limit = self.now.after(most.min(Duration::from_millis(250)));
        self.now = next.into_iter().flatten().min().map_or(limit, |next| next.min(limit)).max(self.now);
    }

    fn run(&mut self) -> Verdict {
        for _ in 0..1_500 {
            if self.dice.chance(8) {
                self.act();
            }
            self.turn()?;
            let pause = self.dice.millis(0, 250);
            self.advance(pause);
        }
        // Nobody works or needs anybody any more.
        for process in self.alive.values_mut() {
            (process.used, process.works_at) = (false, Time(u64::MAX));
        }
        self.patience = self.dice.millis(200, 3_000);
        self.redefine(Some(self.patience));
        for _ in 0..200 {
            self.turn()?;
            for process in self.alive.values_mut() {
                process.works_at = Time(u64::MAX);
            }
            self.advance(Duration::from_millis(250));
        }
        let awake: Vec<_> = self.engine.workers().filter(|view| view.sleep != Sleep::Frozen).collect();
        match (awake.is_empty(), self.engine.next_deadline()) {
            (true, None) => Ok(()),
            (true, Some(at)) => Err(format!("all stand still, and somebody is looked at in {:?}", at.since(self.now))),
            (false, _) => Err(format!("not frozen: {awake:?}")),
        }
    }
}

#[test]
fn who_is_idle_stands_still_and_who_is_needed_does_not() {
    let (mut froze, mut thawed) = (0, 0);
    for seed in 0..crate::number("HALSUP_SIMULATION_SEEDS", 600) {
        let mut world = World::new(seed);
        world.run().unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        froze += world.froze;
        thawed += world.thawed;
    }
    assert!(froze > 5_000 && thawed > 3_000, "the world freezes little: {froze}, and {thawed} went on");
}
