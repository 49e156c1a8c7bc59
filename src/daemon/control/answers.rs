//! What is told of the daemon, its pools and its workers.

use std::time::Duration;

use super::super::clock;
use super::super::live::Live;
use super::super::perform::worker_state;
use super::super::pool::Pool;
use super::super::state::Daemon;
use crate::engine::{Sleep, State, Target as EngineTarget, Time, WorkerView};
use crate::host::cgroup::{Availability, wanted_limits};
use crate::host::spawn::pid_of;
use crate::protocol::control::{
    ClaimsInfo, Controllers, Occupancy, PROTOCOL, PoolInfo, StateCounts, StatusReply, WorkerInfo,
};
use crate::spec::PoolId;

/// How many reasons are told where limits are not held.
const REASONS_MAX: usize = 5;

/// Different reasons as one sentence; `None` if there are none.
fn sentence(reasons: impl Iterator<Item = String>) -> Option<String> {
    let mut told: Vec<String> = Vec::new();
    for reason in reasons {
        if told.len() < REASONS_MAX && !told.contains(&reason) {
            told.push(reason);
        }
    }
    (!told.is_empty()).then(|| grouped(&told))
}

/// Puts controllers that miss for one reason into one clause: what is said of three of them is read once.
fn grouped(told: &[String]) -> String {
    let mut clauses: Vec<(Vec<&str>, &str)> = Vec::new();
    for reason in told {
        let named = reason.strip_prefix("controller ").and_then(|rest| rest.split_once(' '));
        match (named, named.and_then(|(_, why)| clauses.iter_mut().find(|(_, known)| *known == why))) {
            (Some((name, _)), Some((names, _))) => names.push(name),
            (Some((name, why)), None) => clauses.push((vec![name], why)),
            (None, _) => clauses.push((Vec::new(), reason)),
        }
    }
    let clause = |(names, why): &(Vec<&str>, &str)| match names.as_slice() {
        [] => (*why).to_owned(),
        [name] => format!("controller {name} {why}"),
        many => format!("controllers {}: each {why}", many.join(", ")),
    };
    clauses.iter().map(clause).collect::<Vec<_>>().join("; ")
}

impl Pool {
    /// Why limits of this pool's workers cannot be held, a reason for each.
    fn missed(&self) -> impl Iterator<Item = String> {
        let controllers = self.prepared.cgroup.controllers();
        wanted_limits(&self.spec.limits).into_iter().filter_map(|wanted| {
            match controllers.availability(wanted.limit.controller()) {
                Availability::Enabled => None,
                Availability::Missing(reason) => Some(reason.to_string()),
            }
        })
    }
}

impl Daemon {
    /// The answer of `Status`.
    pub(in crate::daemon) fn status_reply(&self) -> StatusReply {
        let pools: Vec<PoolInfo> = self.pools.values().map(|pool| self.pool_info(pool)).collect();
        let mut counts = StateCounts::default();
        for view in self.views(EngineTarget::All) {
            counts.add(worker_state(view.state));
        }
        let of_pools = self.pools.values().flat_map(Pool::missed);
        let of_workers = self.live.values().flat_map(missed);
        let limits_reason = sentence(of_pools.chain(of_workers));
        StatusReply {
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            instance: self.spec.instance.to_string(),
            state: self.state,
            started: clock::rfc3339(self.started_wall),
            uptime_seconds: clock::since(self.started, self.now).as_secs(),
            config_path: self.config_path.as_ref().map(|path| path.display().to_string()),
            runtime_dir: self.spec.runtime_dir.display().to_string(),
            state_dir: self.spec.state_dir.display().to_string(),
            cgroup: self.cgroups.as_ref().map(|root| root.location().base.display().to_string()),
            controllers: self.controllers(),
            limits_enforced: limits_reason.is_none(),
            limits_reason,
            state_trouble: self.persist.trouble().map(str::to_owned),
            log_filter: self.log.filter().to_owned(),
            counts,
            pools,
        }
    }

    fn controllers(&self) -> Controllers {
        let mut told = Controllers::default();
        for (controller, availability) in self.cgroups.iter().flat_map(|root| root.controllers().iter()) {
            match availability {
                Availability::Enabled => told.available.push(controller.to_string()),
                Availability::Missing(_) => told.missing.push(controller.to_string()),
            }
        }
        told
    }

    fn pool_info(&self, pool: &Pool) -> PoolInfo {
        let size = pool.spec.policy.size;
        let (wanted, min, max) = self.engine.pool_size(pool.id).unwrap_or((0, size.min, size.max));
        let mut counts = StateCounts::default();
        let mut frozen = 0;
        for view in self.views(EngineTarget::Pool(pool.id)) {
            counts.add(worker_state(view.state));
            frozen += u32::from(view.sleep == Sleep::Frozen);
        }
        let name = pool.spec.name.to_string();
        let (service, root, net) = (pool.spec.service, pool.spec.root.to_string(), pool.spec.net.to_string());
        PoolInfo { name, service, min, max, wanted, root, net, claims: self.claims_info(pool), counts, frozen }
    }

    fn claims_info(&self, pool: &Pool) -> Option<ClaimsInfo> {
        let (view, limits) = (self.engine.claims(pool.id), &pool.spec.limits);
        let policy = view.policy.or(pool.spec.policy.claims)?;
        Some(ClaimsInfo {
            warm: view.warm,
            busy: view.leased,
            sessions_max: policy.sessions_max,
            idle_timeout_seconds: policy.idle_timeout.as_secs(),
            check_interval_seconds: policy.check_interval.as_secs(),
            paused: view.paused,
            memory_bytes: limits.memory_bytes.map(|limit| limit.value),
            cpu_millis: limits.cpu_millis.map(|limit| limit.value),
            pids: limits.pids.map(|limit| limit.value),
        })
    }

    /// Every worker, or those of a pool, as `List` tells them.
    pub(in crate::daemon) fn worker_infos(&self, pool: Option<PoolId>) -> Vec<WorkerInfo> {
        self.views(pool.map_or(EngineTarget::All, EngineTarget::Pool)).map(|view| self.worker_info(&view)).collect()
    }

    /// What is there of a worker's latest generation.
    pub(super) fn live_of(&self, view: &WorkerView) -> Option<&Live> {
        self.live.get(&view.worker).filter(|live| Some(live.generation) == view.generation)
    }

    pub(super) fn worker_info(&self, view: &WorkerView) -> WorkerInfo {
        let worker = view.worker;
        let pool = self.pools.get(&worker.pool);
        let live = self.live_of(view);
        let age = clock::since(view.since, self.now);
        let told_port = || {
            let base = pool?.spec.base_port?;
            base.checked_add(u16::try_from(worker.slot).ok()?)
        };
        let limits_reason = match live {
            Some(live) => sentence(missed(live)),
            None => pool.and_then(|pool| sentence(pool.missed())),
        };
        let is_ready = matches!(view.state, State::Healthy | State::Unhealthy);
        WorkerInfo {
            name: self.worker_name(worker),
            pool: pool.map_or_else(String::new, |pool| pool.spec.name.to_string()),
            slot: worker.slot,
            state: worker_state(view.state),
            occupancy: is_ready.then_some(occupancy(view)),
            generation: view.generation.map(|generation| generation.0),
            pid: live.and_then(|live| live.main_pid.or_else(|| pid_of(live.main.as_ref()?))),
            init_pid: live.and_then(|live| u32::try_from(live.init_pid).ok()),
            uid: live.map(|live| live.uid),
            since: self.ago(age),
            age_seconds: age.as_secs(),
            restarts: view.restarts,
            missed_heartbeats: view.missed,
            last_health: live.and_then(|live| live.last_health).map(clock::rfc3339),
            restart_in_ms: view.restart_at.map(|at| self.milliseconds_until(at)),
            port: live.and_then(|live| live.told.port).or_else(told_port),
            cgroup: pool.zip(live).and_then(|(pool, live)| self.cgroup_of(pool, live)),
            work_dir: live.map(|live| self.spec.runtime_dir.join("work").join(&live.work_name).display().to_string()),
            status_text: live.and_then(|live| live.status_text.clone()),
            last_exit: self.last_exit.get(&worker).copied(),
            limits_enforced: limits_reason.is_none(),
            limits_reason,
            session: self.sessions.of(worker).map(super::super::session::Session::info),
        }
    }

    fn cgroup_of(&self, pool: &Pool, live: &Live) -> Option<String> {
        let base = &self.cgroups.as_ref()?.location().base;
        Some(base.join(pool.prepared.cgroup.name()).join(live.cgroup.leaf()).display().to_string())
    }

    /// The wall time so long ago.
    fn ago(&self, age: Duration) -> String {
        let wall = clock::wall();
        clock::rfc3339(wall.checked_sub(age).unwrap_or(wall))
    }

    fn milliseconds_until(&self, at: Time) -> u64 {
        u64::try_from(clock::since(self.now, at).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Whether a ready worker holds work, or stands still.
pub(in crate::daemon) fn occupancy(view: &WorkerView) -> Occupancy {
    match (view.sleep, view.leased) {
        (Sleep::Frozen, _) => Occupancy::Frozen,
        (Sleep::Awake | Sleep::Freezing, true) => Occupancy::Busy,
        (Sleep::Awake | Sleep::Freezing, false) => Occupancy::Warm,
    }
}

/// Why limits of a worker are not held, as a sentence: what its pool's cgroup lacks, which is known of every worker, and what
/// its own start has met.
pub(in crate::daemon) fn missed_of(pool: &Pool, live: &Live) -> Option<String> {
    sentence(pool.missed().chain(missed(live)))
}

/// Why limits of a worker are not held, a reason for each.
fn missed(live: &Live) -> impl Iterator<Item = String> {
    live.enforcement.missing.iter().map(|missed| missed.reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_once_and_not_without_end() {
        assert_eq!(sentence(std::iter::empty()), None);
        assert_eq!(sentence(["a", "b", "a"].into_iter().map(String::from)), Some("a; b".into()));
        assert_eq!(sentence((0..9).map(|n| n.to_string())), Some("0; 1; 2; 3; 4".into()));
    }
}
