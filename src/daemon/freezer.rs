//! Workers that stand still while nobody needs them: carries out `Measure`, `Freeze` and `Thaw`, and has the memory of those
//! that stand still taken from them, where the kernel knows how.
//!
//! A frozen init cannot end its worker when its daemon is gone. So nothing is frozen without the guard: a helper that does
//! nothing until this process ends or becomes another program, and then lets everything go on. Whoever holds volumes for
//! a copy freezes too (`holds`): a worker goes on when neither wants it to stand still.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use mio::{Interest, Token};

use super::birth::chain;
use super::clock;
use super::events::Happening;
use super::log::best_effort;
use super::sources::Source;
use super::state::Daemon;
use super::timers::Timer;
use crate::engine::{Input, Sleep, Time, Usage};
use crate::host::cgroup::{reclaim, thaw_all};
use crate::host::helper::{Ended, Helper};
use crate::host::spawn::{pid_of, wait};
use crate::protocol::control::EventKind;
use crate::protocol::init::MAIN;
use crate::spec::{Generation, WorkerId};

/// The helper that lets everything go on when the daemon is gone.
pub(super) const GUARD_WORD: &str = "thaw-guard";
/// The helper that takes memory from one cgroup.
pub(super) const RECLAIM_WORD: &str = "reclaim-memory";
/// How long a worker may take to stand still: one of its processes may wait for a disk.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between looks at whether it does.
const PAUSE: Duration = Duration::from_millis(5);
/// How long memory is taken from one worker.
const RECLAIM_PATIENCE: Duration = Duration::from_secs(10);
/// How many wait for that at most; of those beyond, the memory stays theirs.
const WAITING_MAX: usize = 1_024;

#[derive(Debug)]
struct Running {
    helper: Helper,
    token: Token,
}

#[derive(Debug)]
struct Guard {
    running: Running,
    /// Closed when this process ends or becomes another program, which is the guard's sign.
    _life: OwnedFd,
}

/// What is frozen, and who helps with that.
#[derive(Debug, Default)]
pub(super) struct Freezer {
    guard: Option<Guard>,
    /// Those that do not stand still yet, and how long they may take.
    freezing: BTreeMap<WorkerId, (Generation, Time)>,
    /// Those that do.
    frozen: BTreeSet<(WorkerId, Generation)>,
    /// Those of them whose memory is to be taken.
    waiting: VecDeque<(WorkerId, Generation)>,
    reclaim: Option<(WorkerId, Running, Time)>,
}

impl Daemon {
    /// Measures what a worker has used.
    pub(super) fn measure(&mut self, worker: WorkerId, generation: Generation) {
        let in_use = self.is_in_use(worker, generation);
        let Some(live) = self.live_mut(worker, generation) else { return };
        match live.cgroup.stats() {
            Ok(stats) => {
                let usage = Usage { cpu_usec: stats.cpu.usage_us, in_use };
                self.inputs.push(Input::Measured(worker, generation, usage));
            }
            // It is measured again, and not frozen before.
            Err(error) => {
                tracing::debug!(target: "worker", "measure {}: {}", self.worker_name(worker), chain(&error));
            }
        }
    }

    /// Whether somebody has something to do with it right now.
    fn is_in_use(&self, worker: WorkerId, generation: Generation) -> bool {
        let Some(live) = self.live.get(&worker) else { return false };
        let looked_at = |number: &u64| {
            let beside = self.terminals.get(*number).is_some_and(|terminal| terminal.program != MAIN);
            beside || self.control.viewers(*number).next().is_some()
        };
        live.terminals.iter().any(looked_at)
            || self.control.runs_program_in(worker)
            || self.holds.has(worker, generation)
            || self.upgrade.is_some()
    }

    /// Somebody has something to do with a worker: it goes on at once if it is frozen.
    pub(super) fn use_worker(&mut self, worker: WorkerId) {
        let Some(live) = self.live.get(&worker) else { return };
        if self.pools.get(&worker.pool).is_some_and(|pool| pool.spec.policy.freeze_after.is_some()) {
            self.inputs.push(Input::Used(worker, live.generation));
        }
    }

    /// Lets a worker stand still.
    pub(super) fn freeze(&mut self, worker: WorkerId, generation: Generation) {
        let guarded = self.guard_frozen();
        let Some(live) = self.live_mut(worker, generation) else { return };
        let frozen = guarded.map_err(|error| error.to_string());
        let frozen = frozen.and_then(|()| live.cgroup.freeze().map_err(|error| chain(&error)));
        match frozen {
            Ok(()) => {
                let due = clock::after(self.now, FREEZE_PATIENCE);
                self.freezer.freezing.insert(worker, (generation, due));
                self.look_at_freeze(worker, generation);
            }
            Err(trouble) => {
                tracing::warn!(target: "worker", "freeze {}: {trouble}", self.worker_name(worker));
                self.inputs.push(Input::FreezeFailed(worker, generation));
            }
        }
    }

    /// Looks whether a worker stands still by now.
    pub(super) fn look_at_freeze(&mut self, worker: WorkerId, generation: Generation) {
        let Some(&(_, due)) = self.freezer.freezing.get(&worker).filter(|(known, _)| *known == generation) else {
            return;
        };
        let now = self.now;
        let Some(live) = self.live_mut(worker, generation) else { return };
        if live.cgroup.events().is_ok_and(|events| events.frozen) {
            self.freezer.freezing.remove(&worker);
            self.freezer.frozen.insert((worker, generation));
            self.inputs.push(Input::Froze(worker, generation));
            self.tell_of_sleep(worker, generation, "is frozen");
            self.reclaim_from(worker, generation);
        } else if due <= now {
            self.freezer.freezing.remove(&worker);
            tracing::warn!(target: "worker", "freeze {}: it does not stand still", self.worker_name(worker));
            self.inputs.push(Input::FreezeFailed(worker, generation));
        } else {
            self.timers.set(clock::after(now, PAUSE), Timer::LookAtFreeze(worker, generation));
        }
    }

    /// Lets a worker go on.
    pub(super) fn thaw(&mut self, worker: WorkerId, generation: Generation) {
        self.freezer.freezing.remove(&worker);
        let was_frozen = self.freezer.frozen.remove(&(worker, generation));
        if let Some((_, running, _)) = self.freezer.reclaim.as_ref().filter(|(of, ..)| *of == worker) {
            best_effort(running.helper.kill(), "it has ended by itself");
        }
        let held = self.holds.has(worker, generation);
        let Some(live) = self.live.get(&worker).filter(|live| live.generation == generation) else { return };
        if !held {
            best_effort(live.cgroup.thaw(), "it has just ended");
        }
        if was_frozen {
            self.tell_of_sleep(worker, generation, "goes on");
        }
    }

    fn tell_of_sleep(&mut self, worker: WorkerId, generation: Generation, what: &str) {
        let name = self.worker_name(worker);
        tracing::debug!(target: "worker", worker = %name, "{name} {what}");
        let mut happening = Happening::new(EventKind::State, format!("{name} {what}"));
        (happening.worker, happening.generation) = (Some(worker), Some(generation));
        self.record(happening);
        self.tell_of_worker(worker);
    }

    /// Whether a worker is to stand still by the engine's word.
    pub(super) fn is_asleep(&self, worker: WorkerId) -> bool {
        self.engine.worker(worker).is_some_and(|view| view.sleep != Sleep::Awake)
    }

    /// Sees to it that there is a guard.
    fn guard_frozen(&mut self) -> std::io::Result<()> {
        if self.freezer.guard.is_some() {
            return Ok(());
        }
        let base = self.cgroups.as_ref().map(|root| root.location().path().display().to_string());
        let base = base.ok_or(std::io::ErrorKind::NotFound)?;
        let (helper, life) = Helper::run_self(&["helper", GUARD_WORD, &base])?;
        let running = self.watch_helper(helper, Source::ThawGuard)?;
        self.freezer.guard = Some(Guard { running, _life: life });
        Ok(())
    }

    fn watch_helper(&mut self, helper: Helper, source: Source) -> std::io::Result<Running> {
        match self.sources.add(helper.pidfd().as_fd(), source, Interest::READABLE) {
            Ok(token) => Ok(Running { helper, token }),
            Err(error) => {
                end(&helper);
                Err(error)
            }
        }
    }

    /// The guard may have ended: there is another, or nothing stays frozen.
    pub(super) fn on_thaw_guard(&mut self) {
        let Some(guard) = self.freezer.guard.take() else { return };
        if matches!(guard.running.helper.ended(), Ok(None)) {
            self.freezer.guard = Some(guard);
            return;
        }
        self.sources.remove(guard.running.token, guard.running.helper.pidfd().as_fd());
        // It may have let everything go on before it ended; and without it nothing may stand still.
        let asleep = self.engine.workers().filter(|view| view.sleep != Sleep::Awake);
        let asleep: Vec<_> = asleep.filter_map(|view| Some((view.worker, view.generation?))).collect();
        if !asleep.is_empty() {
            tracing::warn!(target: "worker", workers = asleep.len(), "the guard of frozen workers has ended: they go on");
        }
        self.inputs.extend(asleep.into_iter().map(|(worker, generation)| Input::Used(worker, generation)));
    }

    /// Puts a worker into the line of those whose memory is to be taken, where the kernel can do that.
    fn reclaim_from(&mut self, worker: WorkerId, generation: Generation) {
        let can = self.live.get(&worker).is_some_and(|live| live.cgroup.can_reclaim());
        if can && self.freezer.waiting.len() < WAITING_MAX {
            self.freezer.waiting.push_back((worker, generation));
            self.reclaim_next();
        }
    }

    fn reclaim_next(&mut self) {
        while self.freezer.reclaim.is_none() {
            let Some((worker, generation)) = self.freezer.waiting.pop_front() else { return };
            if !self.freezer.frozen.contains(&(worker, generation)) {
                continue;
            }
            let Some(path) = self.cgroup_path(worker) else { continue };
            let begun = Helper::run(Path::new("/proc/self/exe"), &["helper", RECLAIM_WORD, &path], &[]);
            match begun.and_then(|helper| self.watch_helper(helper, Source::Reclaim)) {
                Ok(running) => {
                    let due = clock::after(self.now, RECLAIM_PATIENCE);
                    self.freezer.reclaim = Some((worker, running, due));
                    self.timers.set(due, Timer::Reclaim);
                }
                Err(error) => {
                    tracing::debug!(target: "worker", %error, "take memory from {}", self.worker_name(worker));
                }
            }
        }
    }

    /// The helper that takes memory may have ended.
    pub(super) fn on_reclaim(&mut self) {
        let Some((worker, running, due)) = self.freezer.reclaim.take() else { return };
        let ended = match running.helper.ended() {
            Ok(None) => {
                self.freezer.reclaim = Some((worker, running, due));
                return;
            }
            Ok(Some(ended)) => ended,
            Err(error) => Ended { code: None, stdout: String::new(), stderr: error.to_string() },
        };
        self.sources.remove(running.token, running.helper.pidfd().as_fd());
        let (name, said) = (self.worker_name(worker), ended.stdout.trim());
        tracing::debug!(target: "worker", worker = %name, code = ended.code, "took memory from {name}: {said}{}", ended.stderr.trim());
        self.reclaim_next();
    }

    /// Memory was taken from one worker for long enough.
    pub(super) fn on_reclaim_timeout(&mut self) {
        if let Some((_, running, _)) = self.freezer.reclaim.as_ref().filter(|(.., due)| *due <= self.now) {
            best_effort(running.helper.kill(), "it has just ended");
        }
    }

    /// Hears the end of a helper of these, by its pid; whether it is one.
    pub(super) fn on_freezer_child(&mut self, pid: i32) -> bool {
        let is_it =
            |running: &Running| pid_of(running.helper.pidfd()).and_then(|own| i32::try_from(own).ok()) == Some(pid);
        let of_guard = self.freezer.guard.as_ref().is_some_and(|guard| is_it(&guard.running));
        let of_reclaim = self.freezer.reclaim.as_ref().is_some_and(|(_, running, _)| is_it(running));
        if of_guard {
            self.on_thaw_guard();
        } else if of_reclaim {
            self.on_reclaim();
        }
        of_guard || of_reclaim
    }

    /// The daemon ends: nothing stays frozen, and nobody is left to see to it.
    pub(super) fn end_freezer(&mut self) {
        let asleep = self.engine.workers().filter(|view| view.sleep != Sleep::Awake);
        for live in asleep.filter_map(|view| self.live.get(&view.worker)) {
            best_effort(live.cgroup.thaw(), "it has just ended");
        }
        let Freezer { guard, reclaim, .. } = std::mem::take(&mut self.freezer);
        let running = guard.map(|guard| guard.running).into_iter().chain(reclaim.map(|(_, running, _)| running));
        for Running { helper, token } in running {
            end(&helper);
            self.sources.remove(token, helper.pidfd().as_fd());
        }
    }
}

fn end(helper: &Helper) {
    best_effort(helper.kill(), "it has ended by itself");
    best_effort(wait(helper.pidfd()), "it is this daemon's child");
}

/// What the guard does: waits for its daemon's end, then lets everything below `base` go on.
///
/// # Errors
/// A sentence.
pub(super) fn guard(base: &Path) -> Result<String, String> {
    let mut nothing = [0_u8; 1];
    // Nobody writes: the only news is the end.
    while let Err(rustix::io::Errno::INTR) = rustix::io::read(std::io::stdin(), &mut nothing) {}
    thaw_all(base).map(|()| String::new()).map_err(|error| chain(&error))
}

/// What the other helper does; what it says is for the log.
///
/// # Errors
/// A sentence.
pub(super) fn take_memory(cgroup: &Path) -> Result<String, String> {
    reclaim(cgroup).map(|bytes| format!("{bytes} bytes")).map_err(|error| chain(&error))
}
