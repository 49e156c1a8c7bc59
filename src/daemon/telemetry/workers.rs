//! What is told of pools, workers and their heartbeats.

use super::super::state::Daemon;
use super::Fact;
use crate::engine::{Effect, Input, State};
use crate::protocol::control::{Cause, DeathCertificate};
use crate::spec::{Generation, PoolId, WorkerId};

impl Daemon {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what is not listed is no event of its own")]
    pub(super) fn tell_worker_input(&mut self, input: &Input) {
        match input {
            Input::PoolDefined(pool, policy) | Input::PoolRestored(pool, policy, ..) => {
                let total = policy.size.min;
                if self.engine.pool_size(*pool).is_none() {
                    self.telemetry.memory.pools.insert(*pool, (self.now, total));
                    let fact = Fact::of_pool("pool.init_started", *pool);
                    self.emit(fact.count("total_workers", total).count("count", 1));
                }
            }
            Input::Spawned(worker, generation) => {
                let duration = self.telemetry.memory.spawning.remove(worker).map(|then| self.usec_since(then));
                let fact = Fact::of_generation("pool.worker.spawned", *worker, *generation);
                self.emit(fact.count("duration_us", duration));
            }
            Input::SpawnFailed(worker, generation) => {
                let duration = self.telemetry.memory.spawning.remove(worker).map(|then| self.usec_since(then));
                let fact = Fact::of_generation("pool.worker.spawn_failed", *worker, *generation);
                let failure = self.evidence.get(&(*worker, *generation)).and_then(|known| known.start_failure.as_ref());
                let reason = failure.map(|failure| failure.text.clone());
                self.emit(fact.count("duration_us", duration).with("reason", reason));
            }
            Input::Beat(worker, generation) => {
                let latency = self.telemetry.memory.pinged.remove(worker).map(|then| self.usec_since(then));
                if let Some(latency) = latency {
                    let fact = Fact::of_generation("heartbeat.pong_received", *worker, *generation);
                    self.emit(fact.count("latency_us", latency));
                }
                self.telemetry.memory.missed.remove(worker);
            }
            Input::PingFailed(worker, generation) => {
                let fact = Fact::of_generation("worker.health_check_failed", *worker, *generation);
                self.emit(fact.count("count", 1));
            }
            Input::BreakageAnnounced(worker, generation) => {
                let fact = Fact::of_generation("heartbeat.monitor_failure", *worker, *generation);
                self.emit(fact.with("failure_reason", "it says that it is broken"));
            }
            Input::ShutdownRequested(within) if self.telemetry.memory.shutdown.is_none() => {
                self.telemetry.memory.shutdown = Some(self.now);
                let timeout = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                self.emit(Fact::new("script.shutdown.start").count("timeout_ms", timeout));
                let workers = self.engine.workers().count();
                self.emit(Fact::new("script.shutdown.stop").count("workers", workers));
            }
            _ => {}
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what is not listed is no event of its own")]
    pub(super) fn tell_worker_effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Spawn(worker, generation) => {
                self.telemetry.memory.spawning.insert(*worker, self.now);
                self.emit(Fact::of_generation("pool.worker.spawn_started", *worker, *generation));
                let restarts = self.engine.worker(*worker).map_or(0, |view| view.restarts);
                if restarts > 0 {
                    for name in ["pool.worker.restarted", "worker.restarted"] {
                        let fact = Fact::of_generation(name, *worker, *generation);
                        self.emit(fact.count("count", 1).count("restarts", restarts));
                    }
                }
            }
            Effect::Ping(worker, generation) => {
                self.tell_misses(*worker);
                self.telemetry.memory.pinged.insert(*worker, self.now);
                self.emit(Fact::of_generation("heartbeat.ping_sent", *worker, *generation).count("count", 1));
            }
            Effect::StateChanged(worker, state) => self.tell_state(*worker, *state),
            Effect::Kill(worker, generation) => {
                if let Some(then) = self.telemetry.memory.ending.get(worker).copied() {
                    let fact = Fact::of_generation("cleanup.timeout", *worker, *generation);
                    self.emit(fact.count("duration_ms", self.msec_since(then)));
                }
                if self.telemetry.memory.shutdown.is_some() {
                    self.emit(Fact::of_generation("application_cleanup.emergency_cleanup", *worker, *generation));
                }
            }
            Effect::Certify(worker, generation, _) => {
                if let Some(certificate) = self.written.get(&(*worker, *generation)).cloned() {
                    self.tell_end(*worker, *generation, &certificate);
                }
            }
            Effect::Finished => {
                let duration = self.telemetry.memory.shutdown.map(|then| self.msec_since(then));
                self.emit(Fact::new("application_cleanup.cleanup_success").count("duration_ms", duration));
                self.emit(Fact::new("script.shutdown.cleanup").count("duration_ms", duration));
                self.emit(Fact::new("script.shutdown.exit").count("duration_ms", duration));
            }
            _ => {}
        }
    }

    fn tell_state(&mut self, worker: WorkerId, state: State) {
        match state {
            State::Healthy => {
                let was_missing = self.telemetry.memory.missed.remove(&worker).is_some();
                let ready = self.engine.workers().filter(|view| view.worker.pool == worker.pool);
                let ready = ready.filter(|view| view.state == State::Healthy).count();
                if !was_missing {
                    let fact = Fact::of_worker("pool.worker_ready", worker);
                    self.emit(fact.count("worker_count", ready).count("count", 1));
                    let watched = self.pools.get(&worker.pool).and_then(|pool| pool.spec.policy.heartbeat);
                    if let Some(heartbeat) = watched {
                        let interval = u64::try_from(heartbeat.interval.as_millis()).unwrap_or(u64::MAX);
                        self.emit(Fact::of_worker("heartbeat.monitor_started", worker).count("interval_ms", interval));
                    }
                }
                self.tell_complete(worker.pool, ready);
            }
            State::Unhealthy => self.tell_misses(worker),
            State::Draining => {
                self.telemetry.memory.ending.insert(worker, self.now);
                self.emit(Fact::of_worker("cleanup.start", worker).count("count", 1));
            }
            State::Initializing | State::Restarting | State::Crashed | State::Stopped | State::Stuck => {}
        }
    }

    /// A pool is whole for the first time.
    fn tell_complete(&mut self, pool: PoolId, ready: usize) {
        let Some((then, total)) = self.telemetry.memory.pools.get(&pool).copied() else { return };
        if u32::try_from(ready).is_ok_and(|ready| ready < total) {
            return;
        }
        self.telemetry.memory.pools.remove(&pool);
        for name in ["pool.init_complete", "pool.initialized"] {
            let fact = Fact::of_pool(name, pool).count("duration_ms", self.msec_since(then));
            self.emit(fact.count("total_workers", total).count("count", 1));
        }
    }

    /// Heartbeats that a worker has missed since it was last looked at.
    fn tell_misses(&mut self, worker: WorkerId) {
        let Some(view) = self.engine.worker(worker) else { return };
        let before = self.telemetry.memory.missed.get(&worker).copied().unwrap_or(0);
        if view.missed > before {
            self.telemetry.memory.missed.insert(worker, view.missed);
            self.emit(Fact::of_worker("heartbeat.heartbeat_timeout", worker).count("missed_count", view.missed));
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most causes have no event of their own")]
    fn tell_end(&mut self, worker: WorkerId, generation: Generation, certificate: &DeathCertificate) {
        use Cause::{Deadline, Exited, Heartbeat, Oom, Recycled, Released, Requested, Shutdown, Signal, StartFailed};
        let cause = certificate.cause;
        let planned = matches!(cause, Requested | Released | Recycled | Shutdown);
        let reason = cause.to_string();
        let at = |text: &str| humantime::parse_rfc3339(text).ok();
        let begun = certificate.started.as_deref().and_then(at);
        let lifetime = begun.zip(at(&certificate.ended)).and_then(|(begun, ended)| ended.duration_since(begun).ok());
        let lifetime = lifetime.map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
        let desk = self.engine.desks(worker.pool).find(|desk| desk.slot == worker.slot);
        let commands = desk.map(|desk| desk.total);
        let fact = |name: &str| Fact::of_generation(name, worker, generation).with("reason", reason.clone());
        self.tell_misses(worker);
        let ended = fact("pool.worker.terminated").count("lifetime_ms", lifetime).count("total_commands", commands);
        self.emit(ended.with("planned", planned));
        if self.pools.get(&worker.pool).is_some_and(|pool| pool.spec.policy.heartbeat.is_some()) {
            self.emit(fact("heartbeat.monitor_stopped"));
        }
        match cause {
            Heartbeat => self.emit(fact("heartbeat.monitor_failure").with("failure_reason", "missed heartbeats")),
            Recycled => self.emit(fact("worker.recycled").count("memory_bytes", certificate.memory_peak_bytes)),
            Oom => {
                let killed = certificate.oom_kills;
                self.emit(
                    fact("error.oom").count("oom_kills", killed).count("memory_bytes", certificate.memory_peak_bytes),
                );
            }
            _ => {}
        }
        if !planned && matches!(cause, Exited(_) | Signal(_) | Oom | Heartbeat | Deadline | StartFailed) {
            self.emit(fact("worker.crash").count("count", 1));
        }
        if let Some(left) = certificate.leftover_processes.filter(|left| *left > 0) {
            self.emit(fact("application_cleanup.orphaned_processes_found").count("count", left));
            self.emit(fact("application_cleanup.cleanup_success").count("count", left));
        }
        if let Some(then) = self.telemetry.memory.ending.remove(&worker) {
            self.emit(fact("cleanup.success").count("duration_ms", self.msec_since(then)));
        }
        self.telemetry.memory.pinged.remove(&worker);
        self.telemetry.memory.missed.remove(&worker);
        self.telemetry.memory.spawning.remove(&worker);
    }
}
