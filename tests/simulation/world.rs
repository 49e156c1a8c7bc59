//! The world: its own clock, programs that do as they please, a kernel and a transport with faults.
//!
//! A turn is the daemon's: hear what has happened, look at the clock, do what the engine says. What happens is drawn from
//! the seed alone, so the same seed is the same run.

use std::collections::BTreeMap;
use std::time::Duration;

use halsup::engine::{CallId, Effect, Ended, Engine, Input, State, Target, Time};
use halsup::spec::{Generation, HeartbeatSource, PoolId, WorkerId};

use crate::dice::Dice;
use crate::operator;
use crate::promises::{Promises, Verdict};

/// More effects than this from one input are a livelock: at most a few for each of a handful of workers.
const EFFECTS_MAX: usize = 400;
/// More turns than this are a livelock.
const TURNS_MAX: u32 = 200_000;

/// What will have happened at some time.
#[derive(Debug, Clone)]
enum Happening {
    /// The exec succeeds.
    Exec(Generation),
    /// The spawn fails.
    ExecFails(Generation),
    Ready(Generation),
    /// It beats by itself, and goes on doing so.
    SelfBeat(Generation),
    /// It says something, if it still lives.
    Says(Generation, Input),
    /// Its main process ends; `true` if nothing of ours made it.
    Dies(Generation, Ended, bool),
    /// Its cgroup is empty.
    Empties(Generation),
    /// News that was under way or is told twice, whatever has become of its sender.
    News(Input),
    Order,
    Define(u32),
    Shutdown(Duration),
}

/// What a spawned generation really is.
#[derive(Debug)]
struct Process {
    id: WorkerId,
    beat_every: Duration,
    runs: bool,
    said_ready: bool,
    dead: bool,
    hangs: bool,
    ignores_term: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    dice: Dice,
    now: Time,
    engine: Engine,
    promises: Promises,
    agenda: BTreeMap<(Time, u64), Happening>,
    sequence: u64,
    processes: BTreeMap<Generation, Process>,
    calls: u64,
    calm: bool,
    stalls: bool,
    long_extensions: bool,
    finished: u32,
    turns: u32,
    /// The last lines of what was heard and done, if they are kept.
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) spawns: u64,
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let last = if dice.chance(10) { u64::MAX - dice.below(20) } else { 0 };
        let (stalls, long_extensions) = (dice.chance(30), dice.chance(2));
        Self {
            engine: Engine::with_last_generation(dice.next(), Generation(last)),
            promises: Promises::new(last),
            dice,
            now: Time(1_000_000_000),
            agenda: BTreeMap::new(),
            sequence: 0,
            processes: BTreeMap::new(),
            calls: 0,
            calm: false,
            stalls,
            long_extensions,
            finished: 0,
            turns: 0,
            trace: traced.then(Vec::new),
            spawns: 0,
        }
    }

    /// A whole run: chaos, calm in which all must heal, shutdown; or a shutdown in the middle of the chaos.
    pub(crate) fn run(&mut self) -> Verdict {
        let chaos = self.dice.millis(20_000, 60_000);
        self.at(Duration::ZERO, Happening::Define(1));
        if self.dice.chance(60) {
            let later = self.dice.within(chaos / 4);
            self.at(later, Happening::Define(2));
        }
        for _ in 0..self.dice.below(16) {
            let when = self.dice.within(chaos);
            self.at(when, Happening::Order);
        }
        let abrupt = self.dice.chance(25);
        if abrupt {
            for _ in 0..=self.dice.below(2) {
                let when = self.dice.within(chaos);
                let patience = self.dice.millis(0, 15_000);
                self.at(when, Happening::Shutdown(patience));
            }
        }
        self.run_until(self.now.after(chaos))?;
        self.become_calm();
        if abrupt {
            return self.end();
        }
        self.heal()?;
        let patience = self.dice.millis(0, 20_000);
        self.at(Duration::ZERO, Happening::Shutdown(patience));
        self.end()
    }

    /// No new faults: every process that still lives answers, every spawn succeeds, nobody orders anything.
    fn become_calm(&mut self) {
        self.calm = true;
        self.agenda.retain(|_, happening| !matches!(happening, Happening::Order | Happening::Define(_)));
        let alive: Vec<Generation> =
            self.processes.iter().filter(|(_, p)| p.runs && !p.dead).map(|(&g, _)| g).collect();
        for generation in alive {
            let process = self.processes.get_mut(&generation).expect("just listed");
            process.hangs = false;
            let pool = self.promises.pools.get(&process.id.pool);
            if let Some(heartbeat) = pool.and_then(|pool| pool.policy.heartbeat) {
                process.beat_every = process.beat_every.min(heartbeat.interval);
                self.at(Duration::ZERO, Happening::SelfBeat(generation));
            }
        }
    }

    /// Liveness: in calm, after whatever barrier there was is reset, every wanted worker becomes healthy.
    fn heal(&mut self) -> Verdict {
        let rounds = if self.long_extensions { 14 } else { 4 };
        for _ in 0..rounds {
            self.run_until(self.now.after(Duration::from_secs(300)))?;
            if self.is_healthy() {
                return Ok(());
            }
            for order in [Input::ResetRequested, Input::StartRequested] {
                let call = self.next_call();
                self.at(Duration::ZERO, Happening::News(order(call, Target::All)));
            }
        }
        let states: Vec<_> = self.engine.workers().map(|view| (view.worker, view.state)).collect();
        Err(format!("faults ceased, and not all became healthy: {states:?}"))
    }

    fn is_healthy(&self) -> bool {
        let all_there = self.promises.pools.iter().all(|(&id, pool)| {
            pool.removed || self.promises.places.keys().filter(|place| place.pool == id).count() == pool.wanted as usize
        });
        all_there && self.promises.places.values().all(|place| place.reported == Some(State::Healthy))
    }

    /// Until nothing more can happen; then nothing may be left.
    fn end(&mut self) -> Verdict {
        self.run_until(Time(u64::MAX))?;
        if self.finished != 1 {
            return Err(format!("finished {} times", self.finished));
        }
        if !self.promises.calls.is_empty() {
            return Err(format!("never answered: {:?}", self.promises.calls.keys()));
        }
        if let Some((generation, _)) = self.promises.generations.iter().find(|(_, certified)| !**certified) {
            return Err(format!("{generation:?} has no certificate"));
        }
        if let Some((generation, _)) = self.processes.iter().find(|(_, process)| process.runs && !process.dead) {
            return Err(format!("{generation:?} is alive after shutdown"));
        }
        Ok(())
    }

    fn next_call(&mut self) -> CallId {
        self.calls += 1;
        CallId(self.calls)
    }

    fn at(&mut self, later: Duration, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now.after(later), self.sequence), happening);
    }

    fn run_until(&mut self, end: Time) -> Verdict {
        loop {
            let agenda = self.agenda.first_key_value().map(|((time, _), _)| *time);
            let Some(mut next) = [agenda, self.engine.next_deadline()].into_iter().flatten().min() else {
                return Ok(());
            };
            if next > end {
                self.now = self.now.max(end);
                return Ok(());
            }
            if self.stalls && !self.calm && self.dice.chance(2) {
                next = next.after(self.dice.millis(0, 15_000));
            }
            self.now = self.now.max(next);
            self.turn()?;
        }
    }

    fn turn(&mut self) -> Verdict {
        self.turns += 1;
        if self.turns > TURNS_MAX {
            return Err("the run does not end".into());
        }
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let happening = entry.remove();
            self.happen(happening)?;
        }
        self.engine.handle_timeout(self.now);
        self.promises.tick(self.now);
        self.take_effects()?;
        self.promises.hold_deficits(self.now)?;
        self.check_deadline()?;
        self.check_views()
    }

    /// Called too late is an omission, called at once again is a livelock.
    fn check_deadline(&self) -> Verdict {
        let (given, owed) = (self.engine.next_deadline(), self.promises.earliest());
        if given.is_some_and(|given| given <= self.now) {
            return Err(format!("the next deadline {given:?} is not in the future"));
        }
        match (given, owed) {
            (Some(given), Some(owed)) if given <= owed => Ok(()),
            (_, None) => Ok(()),
            (_, Some(owed)) => Err(format!("something is due at {owed:?}, and the next deadline is {given:?}")),
        }
    }

    fn check_views(&mut self) -> Verdict {
        if self.engine.workers().count() != self.promises.places.len() {
            return Err("the listing has other workers than there are".into());
        }
        for place in self.promises.places.values_mut() {
            let Some(view) = self.engine.worker(place.id) else { return Err(format!("{:?} is not listed", place.id)) };
            let missed = place.is_ready().then(|| place.beats().map_or(0, |beats| beats.missed));
            if Some(view.state) != place.reported || missed.is_some_and(|missed| missed != view.missed) {
                return Err(format!("the listing says {view:?}; missed are {missed:?}"));
            }
        }
        Ok(())
    }

    fn tell(&mut self, input: Input) -> Verdict {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>14} <- {input:?}", self.now.0));
        }
        self.promises.hear(&input, self.now);
        self.engine.handle(input, self.now);
        self.take_effects()
    }

    /// A fact reaches the daemon, perhaps once more later.
    fn report(&mut self, input: Input) -> Verdict {
        if !self.calm && self.dice.chance(5) {
            let later = self.dice.millis(0, 20_000);
            self.at(later, Happening::News(input.clone()));
        }
        self.tell(input)
    }

    fn take_effects(&mut self) -> Verdict {
        let effects: Vec<Effect> = std::iter::from_fn(|| self.engine.poll_effect()).take(EFFECTS_MAX + 1).collect();
        if effects.len() > EFFECTS_MAX {
            return Err("effects without end".into());
        }
        if let Some(trace) = &mut self.trace {
            trace.extend(effects.iter().map(|effect| format!("{:>14} -> {effect:?}", self.now.0)));
        }
        self.promises.hold(&effects, self.now)?;
        for effect in &effects {
            self.perform(effect);
        }
        Ok(())
    }

    fn perform(&mut self, effect: &Effect) {
        match *effect {
            Effect::Spawn(id, generation) => self.spawn(id, generation),
            Effect::Signal(_, generation, 15) => self.terminate(generation),
            Effect::Kill(_, generation) => self.kill(generation),
            Effect::Ping(_, generation) => self.ping(generation),
            Effect::Finished => self.finished += 1,
            Effect::Signal(..)
            | Effect::StateChanged(..)
            | Effect::Certify(..)
            | Effect::Forget(_)
            | Effect::Answer(..) => {}
        }
    }

    fn spawn(&mut self, id: WorkerId, generation: Generation) {
        self.spawns += 1;
        let heartbeat = self.promises.pools.get(&id.pool).and_then(|pool| pool.policy.heartbeat);
        let process = Process {
            id,
            beat_every: heartbeat.map_or(Duration::from_secs(1), |heartbeat| heartbeat.interval),
            runs: false,
            said_ready: false,
            dead: false,
            hangs: false,
            ignores_term: !self.calm && self.dice.chance(30),
        };
        self.processes.insert(generation, process);
        if self.calm {
            return self.at(Duration::from_micros(300), Happening::Exec(generation));
        }
        let slow = if self.dice.chance(8) { 25_000 } else { 20 };
        let later = self.dice.millis(0, slow);
        match self.dice.below(100) {
            0..14 => self.at(later, Happening::ExecFails(generation)),
            14..17 => {}
            _ => self.at(later, Happening::Exec(generation)),
        }
    }

    fn terminate(&mut self, generation: Generation) {
        let Some(process) = self.processes.get(&generation) else { return };
        if process.ignores_term || process.hangs {
            return;
        }
        let later = if self.calm { Duration::from_millis(5) } else { self.dice.millis(0, 3000) };
        let ended = self.dice.pick(&[Ended::Exited(0), Ended::Signalled(15), Ended::Exited(3)]);
        self.at(later, Happening::Dies(generation, ended, false));
    }

    fn kill(&mut self, generation: Generation) {
        let Some(process) = self.processes.get(&generation) else { return };
        let uninterruptible = !self.calm && self.dice.chance(8);
        let later = if uninterruptible { self.dice.millis(0, 15_000) } else { self.dice.millis(0, 5) };
        if !process.runs && self.dice.chance(50) {
            self.at(later, Happening::ExecFails(generation));
        }
        self.at(later, Happening::Dies(generation, Ended::Signalled(9), false));
    }

    fn ping(&mut self, generation: Generation) {
        let Some(process) = self.processes.get(&generation) else { return };
        let (id, hangs) = (process.id, process.hangs);
        if hangs {
            return;
        }
        let beat = Input::Beat(id, generation);
        if self.calm {
            return self.at(Duration::from_millis(1), Happening::Says(generation, beat));
        }
        let later = self.dice.millis(0, 800);
        match self.dice.below(100) {
            0..8 => self.at(later, Happening::Says(generation, Input::PingFailed(id, generation))),
            8..14 => {}
            14..22 => self.at(later * 8, Happening::Says(generation, beat)),
            _ => self.at(later, Happening::Says(generation, beat)),
        }
    }

    fn happen(&mut self, happening: Happening) -> Verdict {
        match happening {
            Happening::Exec(generation) => self.exec(generation),
            Happening::ExecFails(generation) => {
                let process = self.processes.get_mut(&generation).expect("spawned");
                if process.runs || process.dead {
                    return Ok(());
                }
                process.dead = true;
                let id = process.id;
                self.report(Input::SpawnFailed(id, generation))
            }
            Happening::Ready(generation) => {
                let process = self.processes.get_mut(&generation).expect("spawned");
                if process.dead || process.said_ready {
                    return Ok(());
                }
                process.said_ready = true;
                let id = process.id;
                let pool = self.promises.pools.get(&id.pool);
                if let Some(heartbeat) = pool.and_then(|pool| pool.policy.heartbeat)
                    && heartbeat.source == HeartbeatSource::Notify
                {
                    process.beat_every = process.beat_every.min(heartbeat.interval);
                    self.at(Duration::from_millis(50), Happening::SelfBeat(generation));
                }
                self.report(Input::BecameReady(id, generation))
            }
            Happening::SelfBeat(generation) => self.self_beat(generation),
            Happening::Says(generation, input) => {
                let process = self.processes.get_mut(&generation).expect("spawned");
                if process.dead {
                    return Ok(());
                }
                if let Input::BeatIntervalSet(_, _, interval) = input {
                    process.beat_every = interval;
                }
                self.report(input)
            }
            Happening::Dies(generation, ended, by_itself) => self.die(generation, ended, by_itself),
            Happening::Empties(generation) => {
                let id = self.processes[&generation].id;
                self.report(Input::Emptied(id, generation))
            }
            Happening::News(input) => self.tell(input),
            Happening::Order => {
                let call = self.next_call();
                let known = self.promises.pools.get(&PoolId(1)).map(|pool| &pool.policy);
                let order = operator::order(&mut self.dice, call, known);
                self.tell(order)
            }
            Happening::Define(pool) => {
                let policy = operator::policy(&mut self.dice);
                self.tell(Input::PoolDefined(PoolId(pool), Box::new(policy)))
            }
            Happening::Shutdown(patience) => self.tell(Input::ShutdownRequested(patience)),
        }
    }

    fn exec(&mut self, generation: Generation) -> Verdict {
        let process = self.processes.get_mut(&generation).expect("spawned");
        if process.dead {
            return Ok(());
        }
        process.runs = true;
        let id = process.id;
        if self.calm {
            self.at(Duration::from_millis(2), Happening::Ready(generation));
            return self.report(Input::Spawned(id, generation));
        }
        if self.dice.chance(3) {
            self.happen(Happening::Ready(generation))?;
        }
        let percent = if self.long_extensions { 50 } else { 90 };
        if self.dice.chance(percent) {
            let later = if self.dice.chance(70) { self.dice.millis(0, 400) } else { self.dice.millis(0, 25_000) };
            self.at(later, Happening::Ready(generation));
        }
        self.live(generation, id);
        self.report(Input::Spawned(id, generation))
    }

    /// What a program does of its own accord.
    fn live(&mut self, generation: Generation, id: WorkerId) {
        if self.dice.chance(55) {
            let later = if self.dice.chance(40) { self.dice.millis(0, 300) } else { self.dice.millis(0, 40_000) };
            let ended = self.dice.pick(&[
                Ended::Exited(0),
                Ended::Exited(1),
                Ended::Signalled(11),
                Ended::OutOfMemory,
                Ended::Unknown,
            ]);
            self.at(later, Happening::Dies(generation, ended, true));
        }
        let (most, extends, soon) = if self.long_extensions { (7_200_000, 60, 400) } else { (20_000, 8, 15_000) };
        let none = !self.long_extensions && self.dice.chance(5);
        let own_interval = if none { Duration::ZERO } else { self.dice.millis(200, 5000) };
        let says = [
            Input::TimeoutExtended(id, generation, self.dice.millis(0, most)),
            Input::BeatIntervalSet(id, generation, own_interval),
            Input::StopAnnounced(id, generation),
            Input::BreakageAnnounced(id, generation),
            Input::Beat(id, generation),
        ];
        for (input, percent) in says.into_iter().zip([extends, 8, 5, 3, 10]) {
            if self.dice.chance(percent) {
                let later = self.dice.millis(0, soon);
                self.at(later, Happening::Says(generation, input));
            }
        }
    }

    fn self_beat(&mut self, generation: Generation) -> Verdict {
        if !self.calm && self.dice.chance(3) {
            self.processes.get_mut(&generation).expect("spawned").hangs = true;
        }
        let process = &self.processes[&generation];
        if process.dead || process.hangs || self.finished > 0 {
            return Ok(());
        }
        let (id, every) = (process.id, process.beat_every.max(Duration::from_millis(20)));
        let percent = if self.calm { 40 } else { self.dice.small(20, 130) };
        self.at(every * percent / 100, Happening::SelfBeat(generation));
        self.report(Input::Beat(id, generation))
    }

    fn die(&mut self, generation: Generation, ended: Ended, by_itself: bool) -> Verdict {
        let calm = self.calm;
        let process = self.processes.get_mut(&generation).expect("spawned");
        if process.dead || (by_itself && calm) {
            return Ok(());
        }
        process.dead = true;
        process.runs = true;
        let id = process.id;
        let stubborn = !self.calm && self.dice.chance(8);
        let later = if stubborn { self.dice.millis(0, 12_000) } else { self.dice.millis(0, 4) };
        self.at(later, Happening::Empties(generation));
        self.report(Input::Exited(id, generation, ended))
    }
}
