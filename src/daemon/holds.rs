//! Workers that are frozen while somebody copies what they write: `HoldVolumes`.
//!
//! They stand still from the first reply on until the caller's connection ends, a daemon ends, or [`PATIENCE`] is over; while
//! they do, nobody expects a heartbeat of them. Whatever spoils a hold (a worker that was started meanwhile) ends it with an
//! error, so that who copies knows that the copy is not of one moment. A daemon that is killed leaves them frozen: the next
//! one thaws what it takes over, and the caller does so before.

use std::collections::BTreeMap;
use std::time::Duration;

use super::clock;
use super::control::{Asked, Outcome, Task};
use super::log::best_effort;
use super::state::Daemon;
use super::timers::Timer;
use crate::engine::{Input, Time};
use crate::protocol::control::{Error, EventKind, HoldVolumesReply, HoldVolumesRequest};
use crate::protocol::varlink::Reply;
use crate::spec::{Generation, VolumeName, WorkerId};

/// How long workers are held at the most.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// How long they may take to stand still.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between looks at whether they do, beside the events that say so.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
struct Hold {
    place: u32,
    volumes: Vec<VolumeName>,
    workers: Vec<(WorkerId, Generation)>,
    /// Whether the caller knows that they stand still.
    told: bool,
    due: Time,
}

/// The holds, by the number of their client.
#[derive(Debug, Default)]
pub(super) struct Holds(BTreeMap<u64, Hold>);

impl Holds {
    /// Whether somebody holds a worker still.
    pub(super) fn has(&self, worker: WorkerId, generation: Generation) -> bool {
        self.0.values().any(|hold| hold.workers.contains(&(worker, generation)))
    }
}

impl Daemon {
    /// Freezes the workers that can write some volumes, all where none is named, and has the caller wait.
    pub(super) fn hold_volumes(&mut self, asked: Asked, request: &HoldVolumesRequest) -> Outcome {
        let volumes: Vec<VolumeName> = request.names.iter().filter_map(|name| VolumeName::parse(name).ok()).collect();
        if self.upgrade.is_some() || self.finished || self.leaves {
            return Error::ShuttingDown {}.into();
        }
        let workers: Vec<(WorkerId, Generation)> = self
            .live
            .iter()
            .filter(|(worker, _)| self.writes(**worker, &volumes))
            .map(|(worker, live)| (*worker, live.generation))
            .collect();
        let due = clock::after(self.now, FREEZE_PATIENCE);
        let names = if volumes.is_empty() { "all".to_owned() } else { request.names.join(", ") };
        self.record_order(asked, EventKind::Order, format!("hold volumes {names}"));
        self.audit_order(asked, "volume_hold", &names);
        let hold = Hold { place: asked.place, volumes, workers, told: false, due };
        for (worker, _) in &hold.workers {
            let frozen = self.live.get(worker).map(|live| live.cgroup.freeze());
            if let Some(Err(error)) = frozen {
                let cause = super::birth::chain(&error);
                self.thaw_held(&hold);
                return Error::Failed { operation: "freeze".into(), object: self.worker_name(*worker), cause }.into();
            }
        }
        self.holds.0.insert(asked.number, hold);
        self.timers.set(self.now, Timer::Hold(asked.number));
        Outcome::Wait(Task::Order)
    }

    /// Whether a worker can write one of these volumes, or any where none is named.
    fn writes(&self, worker: WorkerId, volumes: &[VolumeName]) -> bool {
        let Some(pool) = self.pools.get(&worker.pool) else { return false };
        pool.spec.volumes.iter().any(|mount| mount.writable && (volumes.is_empty() || volumes.contains(&mount.name)))
    }

    /// Looks whether those who are to stand still do, and whether it has been long enough.
    pub(super) fn on_hold_timer(&mut self, number: u64) {
        let Some(hold) = self.holds.0.get(&number) else { return };
        if hold.due <= self.now {
            let why = if hold.told { "it took too long" } else { "its workers do not stand still" };
            return self.break_hold(number, why);
        }
        if hold.told {
            return;
        }
        let moving = hold.workers.iter().any(|(worker, generation)| {
            let live = self.live.get(worker).filter(|live| live.generation == *generation);
            live.is_some_and(|live| live.cgroup.events().is_ok_and(|events| events.populated && !events.frozen))
        });
        if moving {
            return self.timers.set(clock::after(self.now, PAUSE), Timer::Hold(number));
        }
        let cgroups: Vec<String> = hold.workers.iter().filter_map(|(worker, _)| self.cgroup_path(*worker)).collect();
        let held = u32::try_from(hold.workers.len()).unwrap_or(u32::MAX);
        let asked = (hold.place, number);
        let due = clock::after(self.now, PATIENCE);
        if let Some(hold) = self.holds.0.get_mut(&number) {
            (hold.told, hold.due) = (true, due);
        }
        self.timers.set(due, Timer::Hold(number));
        self.control.say_waiting(asked, &Reply::piece(&HoldVolumesReply { held, cgroups }), self.now);
    }

    pub(super) fn cgroup_path(&self, worker: WorkerId) -> Option<String> {
        let (live, pool) = (self.live.get(&worker)?, self.pools.get(&worker.pool)?);
        let base = self.cgroups.as_ref()?.location().path();
        Some(base.join(pool.prepared.cgroup.name()).join(live.cgroup.leaf()).display().to_string())
    }

    /// The caller is gone, which is how a hold ends.
    pub(super) fn end_hold(&mut self, number: u64) {
        if let Some(hold) = self.holds.0.remove(&number) {
            self.thaw_held(&hold);
        }
    }

    /// Ends a hold before its caller does, who is told why.
    fn break_hold(&mut self, number: u64, why: &str) {
        let Some(hold) = self.holds.0.remove(&number) else { return };
        self.thaw_held(&hold);
        let error = Error::Failed { operation: "hold".into(), object: "volumes".into(), cause: why.to_owned() };
        self.control.answer_waiting((hold.place, number), &error.to_reply(), self.now);
    }

    /// Ends all holds: workers are to be ended, or to be somebody else's.
    pub(super) fn break_holds(&mut self, why: &str) {
        for number in self.holds.0.keys().copied().collect::<Vec<_>>() {
            self.break_hold(number, why);
        }
    }

    /// A worker was started: what it writes is held by nobody.
    pub(super) fn break_holds_of(&mut self, worker: WorkerId) {
        let spoiled: Vec<u64> = self
            .holds
            .0
            .iter()
            .filter(|(_, hold)| self.writes(worker, &hold.volumes))
            .map(|(number, _)| *number)
            .collect();
        for number in spoiled {
            self.break_hold(number, &format!("{} was started meanwhile", self.worker_name(worker)));
        }
    }

    /// Lets workers go on that no other hold has and that do not stand still because nobody needs them.
    fn thaw_held(&self, hold: &Hold) {
        for (worker, generation) in &hold.workers {
            let held = |other: &Hold| other.workers.contains(&(*worker, *generation));
            let live = self.live.get(worker).filter(|live| live.generation == *generation);
            let stays = self.holds.0.values().any(held) || self.is_asleep(*worker);
            if let Some(live) = live.filter(|_| !stays) {
                best_effort(live.cgroup.thaw(), "it has just ended");
            }
        }
    }

    /// Signs of life in the place of workers that stand still, before the engine looks at its deadlines.
    pub(super) fn beat_for_held(&mut self) {
        let held = self.holds.0.values().flat_map(|hold| &hold.workers);
        self.inputs.extend(held.map(|(worker, generation)| Input::Beat(*worker, *generation)));
    }
}
