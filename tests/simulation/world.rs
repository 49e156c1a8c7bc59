//! The world: its own clock, and the turns of its daemon.
//!
//! A turn is the daemon's: hear what has happened, look at the clock, do what the engine says. What happens is drawn from
//! the seed alone, so the same seed is the same run.

use std::collections::BTreeMap;
use std::time::Duration;

use halsup::engine::{CallId, Effect, Ended, Engine, Input, State, Target, Time};
use halsup::spec::{Generation, PoolId};

use crate::deaths::{Doom, Entry, Files, Point};
use crate::dice::Dice;
use crate::operator;
use crate::programs::Process;
use crate::promises::{Promises, Verdict};

/// More effects than this from one input are a livelock: at most a few for each of a handful of workers.
const EFFECTS_MAX: usize = 400;
/// More turns than this are a livelock.
const TURNS_MAX: u32 = 200_000;

/// What will have happened at some time.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
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
    /// The daemon will be killed soon.
    Doom,
    /// Another daemon starts.
    Return,
    /// Its init gives up waiting for another daemon after the death with this number.
    Orphaned(Generation, u64),
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) now: Time,
    pub(crate) engine: Engine,
    pub(crate) promises: Promises,
    pub(crate) agenda: BTreeMap<(Time, u64), Happening>,
    sequence: u64,
    pub(crate) processes: BTreeMap<Generation, Process>,
    /// Decided in this turn, and not done yet.
    pub(crate) pending: Vec<Effect>,
    pub(crate) files: Files,
    /// How long the inits of each pool wait for another daemon.
    pub(crate) patiences: BTreeMap<PoolId, Option<Duration>>,
    /// No daemon is there.
    pub(crate) away: bool,
    pub(crate) doom: Option<Doom>,
    /// Whether daemons are killed in this run.
    mortal: bool,
    calls: u64,
    pub(crate) calm: bool,
    stalls: bool,
    pub(crate) long_extensions: bool,
    pub(crate) finished: u32,
    turns: u32,
    /// The last lines of what was heard and done, if they are kept.
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) spawns: u64,
    /// How often a daemon was killed.
    pub(crate) deaths: u64,
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let last = if dice.chance(10) { u64::MAX - dice.below(20) } else { 0 };
        let (stalls, long_extensions) = (dice.chance(30), dice.chance(4));
        // Where generations begin anew, nobody can count on from the highest.
        let mortal = last == 0 && (long_extensions || dice.chance(60));
        let patiences = (1..=3).map(|pool| {
            let patience = dice.pick(&[Some(0), Some(5), Some(60), Some(60), None, None]);
            (PoolId(pool), patience.map(Duration::from_secs))
        });
        let patiences = patiences.collect();
        Self {
            engine: Engine::with_last_generation(dice.next(), Generation(last)),
            promises: Promises::new(last),
            dice,
            now: Time(1_000_000_000),
            agenda: BTreeMap::new(),
            sequence: 0,
            processes: BTreeMap::new(),
            pending: Vec::new(),
            files: Files::default(),
            patiences,
            away: false,
            doom: None,
            mortal,
            calls: 0,
            calm: false,
            stalls,
            long_extensions,
            finished: 0,
            turns: 0,
            trace: traced.then(Vec::new),
            spawns: 0,
            deaths: 0,
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
        if self.mortal {
            for _ in 0..=self.dice.below(4) {
                let when = self.dice.within(chaos);
                self.at(when, Happening::Doom);
            }
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
        self.doom = None;
        let over =
            |happening: &Happening| matches!(happening, Happening::Order | Happening::Define(_) | Happening::Doom);
        self.agenda.retain(|_, happening| !over(happening));
        self.everyone_answers();
    }

    /// Every process that lives does what its pool asks of it now.
    pub(crate) fn everyone_answers(&mut self) {
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

    pub(crate) fn at(&mut self, later: Duration, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now.after(later), self.sequence), happening);
    }

    fn run_until(&mut self, end: Time) -> Verdict {
        loop {
            let agenda = self.agenda.first_key_value().map(|((time, _), _)| *time);
            let deadline = self.engine.next_deadline().filter(|_| !self.away);
            let Some(mut next) = [agenda, deadline].into_iter().flatten().min() else {
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
        if !self.away && self.is_doomed(Point::Between) {
            self.daemon_dies(None);
        }
        let before = self.is_doomed(Point::BeforeRecords).then(|| self.promises.clone());
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let happening = entry.remove();
            self.happen(happening)?;
        }
        if self.away {
            return Ok(());
        }
        self.engine.handle_timeout(self.now);
        self.promises.tick(self.now);
        self.take_effects()?;
        self.promises.hold_deficits(self.now)?;
        self.check_deadline()?;
        self.check_views()?;
        self.finish_turn(before)
    }

    /// Writes down what was decided, then does it; or is killed at some point of that.
    fn finish_turn(&mut self, before: Option<Promises>) -> Verdict {
        let effects = std::mem::take(&mut self.pending);
        self.files.certify(&effects)?;
        if let Some(before) = before.filter(|_| !effects.is_empty()) {
            self.daemon_dies(Some(before));
            return Ok(());
        }
        let changes = self.engine.take_changes();
        self.files.write(changes, &self.promises);
        let done = match effects.len() {
            0 => 0,
            _ if self.is_doomed(Point::BeforeEffects) => 0,
            some if self.is_doomed(Point::AmongEffects) => usize::try_from(self.dice.below(some as u64)).expect("few"),
            all => all,
        };
        for effect in effects.iter().take(done) {
            self.perform(effect);
        }
        if done < effects.len() {
            self.daemon_dies(None);
        } else if !effects.is_empty()
            && let Some(doom) = &mut self.doom
        {
            doom.spared = doom.spared.saturating_sub(1);
        }
        Ok(())
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
            if view.restarts < place.counted {
                return Err(format!("the listing says {view:?}, and {} restarts were counted before", place.counted));
            }
            place.counted = view.restarts;
        }
        Ok(())
    }

    pub(crate) fn tell(&mut self, input: Input) -> Verdict {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>14} <- {input:?}", self.now.0));
        }
        self.promises.hear(&input, self.now);
        self.engine.handle(input, self.now);
        self.take_effects()
    }

    /// A fact reaches the daemon, perhaps once more later.
    pub(crate) fn report(&mut self, input: Input) -> Verdict {
        if self.away {
            self.unheard(input);
            return Ok(());
        }
        if !self.calm && self.dice.chance(5) {
            let later = self.dice.millis(0, 20_000);
            self.at(later, Happening::News(input.clone()));
        }
        self.tell(input)
    }

    /// Nobody hears it now. What a program says waits in its socket; who dies leaves what it leaves; a probe is lost.
    fn unheard(&mut self, input: Input) {
        let (Input::BecameReady(_, generation)
        | Input::TimeoutExtended(_, generation, _)
        | Input::BeatIntervalSet(_, generation, _)
        | Input::StopAnnounced(_, generation)
        | Input::BreakageAnnounced(_, generation)) = input
        else {
            return;
        };
        self.processes.get_mut(&generation).expect("spawned").unheard.push(input);
    }

    pub(crate) fn take_effects(&mut self) -> Verdict {
        let effects: Vec<Effect> = std::iter::from_fn(|| self.engine.poll_effect()).take(EFFECTS_MAX + 1).collect();
        if effects.len() > EFFECTS_MAX {
            return Err("effects without end".into());
        }
        if let Some(trace) = &mut self.trace {
            trace.extend(effects.iter().map(|effect| format!("{:>14} -> {effect:?}", self.now.0)));
        }
        self.promises.hold(&effects, self.now)?;
        self.pending.extend(effects);
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
            | Effect::Measure(..)
            | Effect::Freeze(..)
            | Effect::Thaw(..)
            | Effect::Bind(..)
            | Effect::Answer(..)
            | Effect::Request(_)
            | Effect::Task(_) => {}
        }
    }

    pub(crate) fn happen(&mut self, happening: Happening) -> Verdict {
        match happening {
            Happening::Exec(generation) => self.exec(generation),
            Happening::ExecFails(generation) => {
                let process = self.processes.get_mut(&generation).expect("spawned");
                if process.runs || process.dead {
                    return Ok(());
                }
                process.dead = true;
                process.emptied = true;
                process.entry = Some(Entry::NotStarted);
                let id = process.id;
                self.report(Input::SpawnFailed(id, generation))
            }
            Happening::Ready(generation) => self.becomes_ready(generation),
            Happening::SelfBeat(generation) => self.self_beat(generation),
            Happening::Says(generation, input) => {
                let process = self.processes.get_mut(&generation).expect("spawned");
                if process.dead {
                    return Ok(());
                }
                if let Input::BeatIntervalSet(_, _, interval) = input {
                    process.beat_every = interval;
                }
                if let Input::TimeoutExtended(id, ..) = input
                    && self.long_extensions
                    && !self.calm
                {
                    // However often it is said, it is never more than an hour in all.
                    let (later, longer) = (self.dice.millis(500, 20_000), self.dice.millis(0, 7_200_000));
                    let again = Input::TimeoutExtended(id, generation, longer);
                    self.at(later, Happening::Says(generation, again));
                }
                self.report(input)
            }
            Happening::Dies(generation, ended, by_itself) => self.die(generation, ended, by_itself),
            Happening::Empties(generation) => self.empties(generation),
            Happening::Doom => {
                self.doom = (!self.away).then(|| Doom::draw(&mut self.dice));
                Ok(())
            }
            Happening::Return => self.come_back(),
            Happening::Orphaned(generation, death) => {
                self.orphaned(generation, death);
                Ok(())
            }
            // Whoever wants it tries again until there is a daemon.
            Happening::Define(_) | Happening::Shutdown(_) if self.away => {
                self.at(Duration::from_secs(1), happening);
                Ok(())
            }
            Happening::News(_) | Happening::Order if self.away => Ok(()),
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
}
