//! Carries out the engine's effects. What comes of one is an input of a later turn.

use super::clock;
use super::control::OWN_CALLS;
use super::events::Happening;
use super::exit::cause_of;
use super::live::{Evidence, Phase};
use super::state::Daemon;
use crate::engine::{Cause as EngineCause, Effect, Ended, State};
use crate::host::spawn::signal as send_signal;
use crate::protocol::control::{Cause, DeathCertificate, EventKind, WorkerState};
use crate::spec::{Generation, PoolId, WorkerId};

/// Certificates that are kept for all workers together.
const CERTIFICATES_MAX: usize = 4096;

impl Daemon {
    /// Carries out one effect.
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Spawn(worker, generation) => {
                // Who had the generation before has given it back, and nothing of that is left.
                self.end_session(worker);
                self.spawn(worker, generation);
            }
            Effect::Signal(worker, generation, signal) => self.signal(worker, generation, signal),
            Effect::Kill(worker, generation) => self.kill(worker, generation),
            Effect::Ping(worker, generation) => {
                if self.live_mut(worker, generation).is_some_and(|live| live.phase == Phase::Running) {
                    self.ping(worker);
                }
            }
            Effect::Measure(worker, generation) => self.measure(worker, generation),
            Effect::Freeze(worker, generation) => self.freeze(worker, generation),
            Effect::Thaw(worker, generation) => self.thaw(worker, generation),
            Effect::Bind(worker, generation, call, origin) => self.bind(worker, generation, call, origin),
            Effect::StateChanged(worker, state) => self.state_changed(worker, state),
            Effect::Certify(worker, generation, _) => self.certify(worker, generation),
            Effect::Forget(worker) => self.forget(worker),
            Effect::Answer(call, answer) if call.0 & OWN_CALLS != 0 => self.answer_own(call, &answer),
            Effect::Answer(call, answer) => self.answer(call, &answer),
            Effect::Request(effect) => self.perform_request(effect),
            Effect::Task(effect) => self.perform_task(effect),
            Effect::Finished => self.finished = true,
        }
    }

    fn signal(&mut self, worker: WorkerId, generation: Generation, signal: i32) {
        let Some(live) = self.live_mut(worker, generation) else { return };
        // Without the program's own pidfd, which a full table of descriptors may have cost, its init passes the signal on.
        let Some(main) = live.main.as_ref().or(live.process.as_ref().map(|process| &process.fd)) else { return };
        // ESRCH: it has just ended, and its exit is on its way.
        super::log::best_effort(send_signal(main, signal), "its exit will be heard");
    }

    fn kill(&mut self, worker: WorkerId, generation: Generation) {
        self.give_up_spawn(worker, generation);
        let Some(live) = self.live_mut(worker, generation) else { return };
        if let Err(error) = live.cgroup.kill() {
            tracing::warn!(target: "worker", "kill {}: {}", self.worker_name(worker), super::birth::chain(&error));
            // Without the cgroup's help the first process still takes its whole pid namespace with it.
            if let Some(process) = self.live.get(&worker).and_then(|live| live.process.as_ref()) {
                super::log::best_effort(send_signal(&process.fd, 9), "it has just ended");
            }
        }
        self.empty(worker, generation);
    }

    fn state_changed(&mut self, worker: WorkerId, state: State) {
        let state = worker_state(state);
        let name = self.worker_name(worker);
        let generation = self.live.get(&worker).map(|live| live.generation);
        tracing::info!(target: "worker", worker = %name, state = %state, "{name} is {state}");
        let limits = self.live.get(&worker).and_then(|live| super::birth::limits_reason(&live.enforcement));
        if state == WorkerState::Healthy || state == WorkerState::Stopped {
            self.end_ready_file(worker);
        }
        if let (WorkerState::Initializing, Some(reason)) = (state, limits) {
            tracing::debug!(target: "worker", worker = %name, "limits of {name} are not enforced: {reason}");
        }
        let asked_by = self.asked_by.get(&worker).cloned();
        if matches!(state, WorkerState::Healthy | WorkerState::Stopped | WorkerState::Crashed | WorkerState::Stuck) {
            // What was asked for has come about; what happens from here on has other reasons.
            self.asked_by.remove(&worker);
        }
        let mut happening = Happening::new(EventKind::State, format!("{name} is {state}"));
        (happening.worker, happening.generation, happening.state) = (Some(worker), generation, Some(state));
        happening.asked_by = asked_by;
        self.record(happening);
    }

    /// Writes the certificate of an end down, before anything else is done about it. An end that an earlier daemon has
    /// certified is not certified again.
    pub(super) fn write_end(&mut self, worker: WorkerId, generation: Generation, cause: EngineCause) {
        let name = self.worker_name(worker);
        if self.certificates.iter().rev().any(|known| known.worker == name && known.generation == generation.0) {
            return;
        }
        let mut known = self.evidence.remove(&(worker, generation)).unwrap_or_default();
        if self.sessions.of(worker).is_some_and(|session| session.vanishes) {
            known.last_output.clear();
        }
        let cause = match cause {
            EngineCause::Itself(Ended::Unknown) if known.start_failure.is_some() => Cause::StartFailed,
            EngineCause::Itself(Ended::Unknown) => known.status.unwrap_or(Cause::Unknown),
            EngineCause::Itself(ended) => cause_of(ended),
            EngineCause::Heartbeat => Cause::Heartbeat,
            EngineCause::ReadyTimeout | EngineCause::StartFailed => Cause::StartFailed,
            EngineCause::Requested => Cause::Requested,
            EngineCause::Shutdown => Cause::Shutdown,
            EngineCause::Released => Cause::Released,
            EngineCause::Deadline => Cause::Deadline,
            EngineCause::Recycled => Cause::Recycled,
        };
        let asked_by = if cause == Cause::Requested { self.asked_by.get(&worker).cloned() } else { None };
        let certificate = self.certificate(worker, generation, cause, known, asked_by);
        self.write_certificate(&certificate);
        self.written.insert((worker, generation), certificate);
    }

    fn certify(&mut self, worker: WorkerId, generation: Generation) {
        let Some(certificate) = self.written.remove(&(worker, generation)) else { return };
        let cause = certificate.cause;
        let what = certificate.start_failure.as_ref().map(|failure| format!(": {}", failure.text)).unwrap_or_default();
        let name = certificate.worker.clone();
        tracing::info!(target: "worker", worker = %name, generation = generation.0, cause = %cause, "{name} ended: {cause}{what}");
        let mut happening = Happening::new(EventKind::Death, format!("{name} ended: {cause}{what}"));
        (happening.worker, happening.generation, happening.cause) = (Some(worker), Some(generation), Some(cause));
        happening.asked_by.clone_from(&certificate.asked_by);
        self.audit_end(&certificate);
        self.end_task_of(worker, &certificate);
        self.last_exit.insert(worker, cause);
        if self.certificates.len() >= CERTIFICATES_MAX {
            self.certificates.pop_front();
        }
        self.certificates.push_back(certificate);
        self.record(happening);
    }

    fn certificate(
        &self,
        worker: WorkerId,
        generation: Generation,
        cause: Cause,
        known: Evidence,
        asked_by: Option<String>,
    ) -> DeathCertificate {
        let session = self.sessions.of(worker).filter(|session| session.generation == generation.0);
        DeathCertificate {
            worker: self.worker_name(worker),
            generation: generation.0,
            cause,
            status: known.status,
            start_failure: known.start_failure,
            started: known.started.map(clock::rfc3339),
            ended: clock::rfc3339(clock::wall()),
            pid: known.pid,
            user_usec: known.user_usec,
            system_usec: known.system_usec,
            max_rss_bytes: known.max_rss_bytes,
            memory_peak_bytes: known.memory_peak_bytes,
            oom_kills: known.oom_kills,
            leftover_processes: known.leftover,
            last_output: known.last_output,
            asked_by,
            note: known.note,
            session: session.map(|session| session.name.clone()),
            owner: session.map(|session| session.owner),
        }
    }

    fn forget(&mut self, worker: WorkerId) {
        self.end_session(worker);
        self.forget_limits(worker);
        self.asked_by.remove(&worker);
        self.last_exit.remove(&worker);
    }

    /// Lets go of the pools that are wanted no more and that the engine has forgotten.
    pub(super) fn forget_pools(&mut self) {
        let gone: Vec<PoolId> =
            self.leaving.iter().copied().filter(|id| self.engine.pool_size(*id).is_none()).collect();
        for id in gone {
            self.forget_pool(id);
        }
    }

    /// Lets go of a pool that is wanted no more and has no workers left.
    pub(super) fn forget_pool(&mut self, id: PoolId) {
        self.leaving.remove(&id);
        let Some(pool) = self.pools.remove(&id) else { return };
        self.end_tools_for(id, pool.spec.name.as_str());
        pool.prepared.unlink_sockets();
        self.forget_foreseen();
        if self.names.get(&pool.spec.name) == Some(&id) {
            self.names.remove(&pool.spec.name);
        }
        if let Some(cgroups) = &self.cgroups
            && let Err(error) = pool.prepared.cgroup.remove(cgroups)
        {
            tracing::warn!(target: "pool", "forget pool {}: {}", pool.spec.name, super::birth::chain(&error));
        }
        tracing::info!(target: "pool", pool = %pool.spec.name, "pool {} is gone", pool.spec.name);
    }
}

/// The engine's states in the words of the interface.
pub(super) const fn worker_state(state: State) -> WorkerState {
    match state {
        State::Initializing => WorkerState::Initializing,
        State::Healthy => WorkerState::Healthy,
        State::Unhealthy => WorkerState::Unhealthy,
        State::Draining => WorkerState::Draining,
        State::Restarting => WorkerState::Restarting,
        State::Crashed => WorkerState::Crashed,
        State::Stopped => WorkerState::Stopped,
        State::Stuck => WorkerState::Stuck,
    }
}
