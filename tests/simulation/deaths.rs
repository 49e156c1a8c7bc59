//! The death of the daemon, at any moment, and the next one: built from nothing but what was written down and what is found.
//!
//! Workers live on under their inits, end, hang, are ended because no daemon comes back. What the next daemon finds is
//! put together as `src/daemon/adopt.rs` does it, from the records and the truth; what it owes is for `takeover.rs` to say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use halsup::engine::{Change, Effect, Ended, Engine, Fate, Input, Phase, PoolRecord, WorkerRecord};
use halsup::spec::{Generation, PoolId, Size, WorkerId};

use crate::dice::Dice;
use crate::operator;
use crate::programs::Process;
use crate::promises::{Promises, Verdict};
use crate::takeover::Remains;
use crate::world::{Happening, World};

/// Where in a turn the daemon is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// Before it hears anything.
    Between,
    /// The certificates are written, the records are not.
    BeforeRecords,
    /// All is written, nothing is done.
    BeforeEffects,
    /// All is written, some of it is done.
    AmongEffects,
}

/// When the daemon will be killed: in the turn before which so many others have had effects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doom {
    pub(crate) point: Point,
    pub(crate) spared: u64,
}

impl Doom {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let points = [Point::Between, Point::BeforeRecords, Point::BeforeEffects, Point::AmongEffects];
        Self { point: dice.pick(&points), spared: dice.below(4) }
    }
}

/// What the init of a worker writes into the exit ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Ended(Ended),
    NotStarted,
    Abandoned,
}

/// What is in files: the latest value of each key, and every certificate.
#[derive(Debug, Default)]
pub(crate) struct Files {
    workers: BTreeMap<WorkerId, String>,
    pools: BTreeMap<PoolId, (u32, Size)>,
    /// Where the daemon that writes began to count.
    floor: u64,
    ending: bool,
    certificates: BTreeSet<Generation>,
    /// Certificates of a turn that no record knows of: the next daemon comes to the same ends.
    unrecorded: BTreeSet<Generation>,
    /// The next write begins the file anew.
    stale: bool,
}

impl Files {
    /// Each end is written down once, whoever comes to know of it.
    pub(crate) fn certify(&mut self, effects: &[Effect]) -> Verdict {
        for effect in effects {
            if let Effect::Certify(_, generation, _) = effect
                && !self.certificates.insert(*generation)
                && !self.unrecorded.remove(generation)
            {
                return Err(format!("{generation:?} is certified by two daemons"));
            }
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, changes: Vec<Change>, promises: &Promises) {
        if std::mem::take(&mut self.stale) {
            self.workers.clear();
            self.pools.clear();
        }
        self.ending = promises.shutdown.is_some();
        for change in changes {
            match change {
                Change::Worker(id, Some(record)) => {
                    self.workers.insert(id, serde_json::to_string(&record).expect("a record is JSON"));
                }
                Change::Worker(id, None) => {
                    self.workers.remove(&id);
                }
                Change::Pool(id, wanted) => {
                    match wanted.zip(promises.pools.get(&id)) {
                        Some((PoolRecord { wanted, .. }, pool)) => self.pools.insert(id, (wanted, pool.policy.size)),
                        None => self.pools.remove(&id),
                    };
                }
                Change::Task(..) | Change::Tasks(..) => {}
            }
        }
    }

    /// The highest generation that anybody has given out.
    fn generation(&self) -> u64 {
        let recorded = self.workers.values().filter_map(|text| read(text).generation).max().unwrap_or(0);
        recorded.max(self.certificates.last().map_or(0, |last| last.0)).max(self.floor)
    }
}

fn read(text: &str) -> WorkerRecord {
    serde_json::from_str(text).expect("a record is read as it was written")
}

impl Process {
    /// What is left of it for a daemon that looks, `kept` if that takes over what lives.
    fn remains(&self, kept: bool, ending: bool) -> Remains {
        match self.entry {
            _ if !self.dead && kept => Remains::Lives,
            _ if !self.dead => Remains::Abandoned,
            Some(Entry::Ended(ended)) => Remains::Ended(ended),
            Some(Entry::NotStarted) => Remains::NeverRan,
            Some(Entry::Abandoned) => Remains::Abandoned,
            None if ending || !(kept || self.oom) => Remains::Abandoned,
            None => Remains::Unwitnessed { oom: self.oom },
        }
    }
}

/// What `adopt.rs` makes of a record and of what it finds, and what it tells the engine after it.
fn settle(
    id: WorkerId,
    record: &WorkerRecord,
    process: Option<&Process>,
    kept: bool,
    ending: bool,
) -> (Fate, Vec<Input>) {
    use Phase as P;
    let number = Generation(record.generation.unwrap_or(0));
    if let Some(process) = process.filter(|process| !process.dead && kept) {
        let late = process.runs && record.phase == P::Spawning;
        return (Fate::Lives, if late { vec![Input::Spawned(id, number)] } else { Vec::new() });
    }
    let begun = matches!(record.phase, P::Starting | P::Running | P::Stopping | P::Killing | P::Stuck);
    let oom = process.is_some_and(|process| process.dead && process.oom);
    let fate = match process.filter(|process| process.dead && record.had_processes()).and_then(|process| process.entry)
    {
        Some(Entry::NotStarted) if record.phase == P::Spawning => {
            return (Fate::Lives, vec![Input::SpawnFailed(id, number)]);
        }
        Some(Entry::Ended(ended)) => Fate::Ended(ended),
        Some(Entry::NotStarted | Entry::Abandoned) => Fate::Abandoned,
        None if ending => Fate::Abandoned,
        None if oom && begun => Fate::Ended(Ended::OutOfMemory),
        None if !kept && begun => Fate::Abandoned,
        None if begun && !record.certified => Fate::Ended(Ended::Unknown),
        None => Fate::Nothing,
    };
    (fate, vec![Input::Emptied(id, number)])
}

impl World {
    /// Ends the daemon here. What it had decided in this turn and not written down never was.
    pub(crate) fn daemon_dies(&mut self, before: Option<Promises>) {
        self.note(|| "            == the daemon is killed".to_owned());
        self.deaths += 1;
        if let Some(before) = before {
            self.files.unrecorded.extend(self.promises.generations.iter().filter_map(|(generation, certified)| {
                (*certified && before.generations.get(generation) == Some(&false)).then_some(*generation)
            }));
            // Who got no answer asks again.
            if before.shutdown.is_none() && self.promises.shutdown.is_some() {
                let patience = self.dice.millis(0, 15_000);
                self.at(Duration::ZERO, Happening::Shutdown(patience));
            }
            for id in
                self.promises.pools.keys().filter(|id| !before.pools.contains_key(id)).copied().collect::<Vec<_>>()
            {
                self.at(Duration::ZERO, Happening::Define(id.0));
            }
            self.promises = before;
        }
        self.away = true;
        // One that has finished and is killed before it has ended leaves what one leaves that is ending.
        self.finished = 0;
        self.doom = None;
        self.pending.clear();
        self.agenda.retain(|_, happening| !matches!(happening, Happening::News(_)));
        let away = match self.dice.below(3) {
            0 => self.dice.millis(0, 50),
            1 => self.dice.millis(0, 5000),
            _ => self.dice.millis(0, 120_000),
        };
        self.at(away, Happening::Return);
        let orphans: Vec<_> = self.processes.iter().filter(|(_, p)| !p.dead).map(|(&g, p)| (g, p.id.pool)).collect();
        for (generation, pool) in orphans {
            if let Some(patience) = self.patience(pool) {
                self.at(patience, Happening::Orphaned(generation, self.deaths));
            }
        }
    }

    /// How long the inits of a pool wait for another daemon; `None` is for ever.
    fn patience(&self, pool: PoolId) -> Option<Duration> {
        self.patiences.get(&pool).copied().flatten()
    }

    /// Its init has waited long enough for a daemon.
    pub(crate) fn orphaned(&mut self, generation: Generation, death: u64) {
        let process = self.processes.get_mut(&generation).expect("spawned");
        if self.away && self.deaths == death && !process.dead {
            process.dead = true;
            process.entry = Some(Entry::Abandoned);
        }
    }

    /// Another daemon starts: it looks, settles, ends what it does not take over, and restores.
    pub(crate) fn come_back(&mut self) -> Verdict {
        self.away = false;
        let generation = self.files.generation();
        self.note(|| format!("            == another daemon counts on from {generation}"));
        self.engine = Engine::with_last_generation(self.dice.next(), Generation(generation));
        (self.files.floor, self.files.stale) = (generation, true);
        if generation != self.promises.last_generation {
            return Err(format!("{generation} is not the last, that is {}", self.promises.last_generation));
        }
        let ending = self.promises.begin_again();
        assert_eq!(ending, self.files.ending, "the world has written down that everything is being ended");
        let pools: Vec<PoolId> = self.promises.pools.keys().copied().collect();
        let facts: Vec<Input> = pools.into_iter().flat_map(|id| self.restore(id, ending)).collect();
        self.take_effects()?;
        facts.into_iter().try_for_each(|fact| self.tell(fact))?;
        for process in self.processes.values_mut() {
            process.emptied |= process.dead;
        }
        self.end_unwanted();
        if self.calm {
            // The configuration that the daemon came back with may ask for beats that the one before did not.
            self.everyone_answers();
        }
        if ending {
            // Who wanted everything to end still does.
            let (later, patience) = (self.dice.millis(0, 20_000), self.dice.millis(0, 15_000));
            self.at(later, Happening::Shutdown(patience));
        }
        Ok(())
    }

    /// Restores one pool; what the engine is to be told about its workers after that.
    fn restore(&mut self, id: PoolId, ending: bool) -> Vec<Input> {
        let mut policy = self.promises.pools[&id].policy.clone();
        if self.dice.chance(12) {
            policy = operator::reloaded(&mut self.dice, Some(&policy));
        }
        let kept = !ending && self.patience(id) != Some(Duration::ZERO);
        let (mut records, mut facts) = (Vec::new(), Vec::new());
        for (worker, text) in self.files.workers.iter().filter(|(worker, _)| worker.pool == id) {
            let mut record = read(text);
            if ending && !record.had_processes() {
                continue;
            }
            if ending {
                record = record.to_begin_again();
            }
            let process = record.generation.and_then(|generation| self.processes.get(&Generation(generation)));
            let (fate, follow) = settle(*worker, &record, process, kept, ending);
            records.push((worker.slot, record, fate));
            facts.extend(follow);
        }
        let known = self.files.pools.get(&id).filter(|(_, size)| !ending && *size == policy.size).copied();
        let wanted = known.map_or(policy.size.min, |(wanted, _)| wanted);
        self.note(|| format!("            == {id:?}: {wanted} wanted, {records:?}"));
        let nothing = known.is_none() && records.is_empty();
        let processes = &self.processes;
        let remains = |generation| match processes.get(&generation) {
            Some(process) => process.remains(kept, ending),
            None if !kept => Remains::Abandoned,
            None => Remains::Unwitnessed { oom: false },
        };
        self.promises.taken_over(id, &policy, remains, self.now);
        self.engine.handle(
            match nothing {
                true => Input::PoolDefined(id, Box::new(policy)),
                false => {
                    Input::PoolRestored(id, Box::new(policy), PoolRecord { wanted, ..PoolRecord::default() }, records)
                }
            },
            self.now,
        );
        facts
    }

    /// Ends what lives and belongs to nobody; lets what lives be heard again.
    fn end_unwanted(&mut self) {
        let kept: BTreeMap<Generation, bool> = self
            .promises
            .places
            .values()
            .filter_map(|place| place.live().filter(|live| !live.exited))
            .map(|live| (live.generation, live.is_left_alone() && live.ready_since.is_none()))
            .collect();
        let mut said = Vec::new();
        for (generation, process) in self.processes.iter_mut().filter(|(_, process)| !process.dead) {
            match kept.get(generation) {
                None => (process.dead, process.emptied) = (true, true),
                Some(awaited) => {
                    // Its socket has kept what it said, and its probe is asked again.
                    said.extend(std::mem::take(&mut process.unheard).into_iter().map(|input| (*generation, input)));
                    if *awaited && process.said_ready {
                        said.push((*generation, Input::BecameReady(process.id, *generation)));
                    }
                }
            }
        }
        for (generation, input) in said {
            let later = self.dice.millis(0, 200);
            self.at(later, Happening::Says(generation, input));
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// The moment of the daemon's death has come, if so.
    pub(crate) fn is_doomed(&self, point: Point) -> bool {
        self.doom.is_some_and(|doom| doom.point == point && doom.spared == 0)
    }
}
