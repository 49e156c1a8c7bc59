//! What the engine's effects come to: programs that do as they please, a kernel and a transport with faults.

use std::time::Duration;

use halsup::engine::{Ended, Input};
use halsup::spec::{Generation, HeartbeatSource, WorkerId};

use crate::deaths::Entry;
use crate::promises::Verdict;
use crate::world::{Happening, World};

/// What a spawned generation really is.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: WorkerId,
    pub(crate) beat_every: Duration,
    pub(crate) runs: bool,
    pub(crate) said_ready: bool,
    pub(crate) dead: bool,
    pub(crate) emptied: bool,
    pub(crate) hangs: bool,
    ignores_term: bool,
    /// `cgroup.kill` was written: its init may not come to write anything down.
    killed: bool,
    /// What its init wrote down.
    pub(crate) entry: Option<Entry>,
    /// Its cgroup is there and has counted a kill for memory.
    pub(crate) oom: bool,
    /// What it said while no daemon was there to hear it.
    pub(crate) unheard: Vec<Input>,
}

impl World {
    pub(crate) fn spawn(&mut self, id: WorkerId, generation: Generation) {
        self.spawns += 1;
        let heartbeat = self.promises.pools.get(&id.pool).and_then(|pool| pool.policy.heartbeat);
        let process = Process {
            id,
            beat_every: heartbeat.map_or(Duration::from_secs(1), |heartbeat| heartbeat.interval),
            runs: false,
            said_ready: false,
            dead: false,
            emptied: false,
            hangs: false,
            ignores_term: !self.calm && self.dice.chance(30),
            killed: false,
            entry: None,
            oom: false,
            unheard: Vec::new(),
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

    pub(crate) fn terminate(&mut self, generation: Generation) {
        let Some(process) = self.processes.get(&generation) else { return };
        if process.ignores_term || process.hangs {
            return;
        }
        let later = if self.calm { Duration::from_millis(5) } else { self.dice.millis(0, 3000) };
        let ended = self.dice.pick(&[Ended::Exited(0), Ended::Signalled(15), Ended::Exited(3)]);
        self.at(later, Happening::Dies(generation, ended, false));
    }

    pub(crate) fn kill(&mut self, generation: Generation) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.killed = true;
        let uninterruptible = !self.calm && self.dice.chance(8);
        let later = if uninterruptible { self.dice.millis(0, 15_000) } else { self.dice.millis(0, 5) };
        if !self.processes[&generation].runs && self.dice.chance(50) {
            self.at(later, Happening::ExecFails(generation));
        }
        self.at(later, Happening::Dies(generation, Ended::Signalled(9), false));
    }

    pub(crate) fn ping(&mut self, generation: Generation) {
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

    pub(crate) fn becomes_ready(&mut self, generation: Generation) -> Verdict {
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

    pub(crate) fn empties(&mut self, generation: Generation) -> Verdict {
        let away = self.away;
        let process = self.processes.get_mut(&generation).expect("spawned");
        if std::mem::replace(&mut process.emptied, true) {
            return Ok(());
        }
        // Only a daemon removes a cgroup.
        process.oom &= away;
        let id = process.id;
        self.report(Input::Emptied(id, generation))
    }

    pub(crate) fn exec(&mut self, generation: Generation) -> Verdict {
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
        let (most, extends, soon) = match self.long_extensions {
            true => (7_200_000, 60, self.dice.pick(&[400, 40_000])),
            false => (20_000, 8, 15_000),
        };
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

    pub(crate) fn self_beat(&mut self, generation: Generation) -> Verdict {
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

    pub(crate) fn die(&mut self, generation: Generation, ended: Ended, by_itself: bool) -> Verdict {
        let calm = self.calm;
        let process = self.processes.get_mut(&generation).expect("spawned");
        if process.dead || (by_itself && calm) {
            return Ok(());
        }
        process.dead = true;
        process.runs = true;
        process.oom = ended == Ended::OutOfMemory;
        let silent = ended == Ended::Unknown || ((process.killed || process.oom) && self.dice.chance(60));
        process.entry = (!silent).then_some(Entry::Ended(ended));
        let id = process.id;
        let stubborn = !self.calm && self.dice.chance(8);
        let later = if stubborn { self.dice.millis(0, 12_000) } else { self.dice.millis(0, 4) };
        self.at(later, Happening::Empties(generation));
        self.report(Input::Exited(id, generation, ended))
    }
}
