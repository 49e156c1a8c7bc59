//! What workers use, read from their cgroups when it is asked for.

use super::super::log::best_effort;
use super::super::perform::worker_state;
use super::super::state::Daemon;
use super::dispatch::{Asked, Outcome};
use super::pieces::What;
use crate::engine::WorkerView;
use crate::host::cgroup::{Availability, CgroupError, Controller, LimitName};
use crate::protocol::control::{Target, WorkerStats};

/// What could be read; a cgroup that is just going is no error to anybody.
fn known<T: Default>(read: Result<T, CgroupError>) -> T {
    match read {
        Ok(value) => value,
        Err(error) => {
            best_effort(Err::<(), _>(error), "what is not known is told as null");
            T::default()
        }
    }
}

impl Daemon {
    pub(super) fn stats(&self, asked: Asked, target: Option<&Target>) -> Outcome {
        self.of_workers(asked, What::Stats, target.unwrap_or(&Target::All))
    }

    pub(super) fn worker_stats(&self, view: &WorkerView) -> WorkerStats {
        let name = self.worker_name(view.worker);
        let mut told = empty(name, view);
        let Some(live) = self.live_of(view) else { return told };
        let Some(pool) = self.pools.get(&view.worker.pool) else { return told };
        if let Ok(stats) = live.cgroup.stats() {
            told.memory_current_bytes = stats.memory_bytes;
            told.memory_peak_bytes = stats.memory_peak_bytes;
            told.pids = stats.pids;
            told.cpu_usec = Some(stats.cpu.usage_us);
            told.cpu_user_usec = Some(stats.cpu.user_us);
            told.cpu_system_usec = Some(stats.cpu.system_us);
            let controllers = pool.prepared.cgroup.controllers();
            if controllers.availability(Controller::Cpu) == Availability::Enabled {
                told.throttled_usec = Some(stats.cpu.throttled_us);
                told.throttled_periods = Some(stats.cpu.throttled_periods);
            }
        }
        told.oom_kills = known(live.cgroup.memory_events()).map(|events| events.oom_kill);
        told.pids_limit_hits = known(live.cgroup.pids_events()).map(|events| events.max);
        let held = |limit| !live.enforcement.missing.iter().any(|missed| missed.limit == limit);
        let limits = &pool.spec.limits;
        told.memory_max_bytes = limits.memory_bytes.filter(|_| held(LimitName::MemoryMax)).map(|limit| limit.value);
        told.pids_max = limits.pids.filter(|_| held(LimitName::PidsMax)).map(|limit| limit.value);
        told
    }
}

fn empty(name: String, view: &WorkerView) -> WorkerStats {
    WorkerStats {
        name,
        state: worker_state(view.state),
        memory_current_bytes: None,
        memory_peak_bytes: None,
        memory_max_bytes: None,
        cpu_usec: None,
        cpu_user_usec: None,
        cpu_system_usec: None,
        throttled_usec: None,
        throttled_periods: None,
        pids: None,
        pids_max: None,
        oom_kills: None,
        pids_limit_hits: None,
    }
}
