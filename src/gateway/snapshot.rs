//! What the page is told: everything about the daemon that can be shown, as one object.

use std::collections::BTreeMap;

use axum::body::Bytes;
use halsup::protocol::control::{
    CertificatesReply, CertificatesRequest, DeathCertificate, DeskStats, EventKind, EventsReply, InspectReply,
    ListReply, ListRequest, NoParameters, PoolRequestStats, PoolStatsReply, PoolStatsRequest, Request, SessionsReply,
    StatsReply, StatsRequest, StatusReply, Target, TargetRequest, WorkerInfo, WorkerState, WorkerStats,
};
use serde_json::{Value, json};

use crate::link::{Link, LinkError};
use crate::sse::message;

/// How many deaths are looked through for each worker's last.
const DEATHS_MAX: usize = 200;
/// What is told of the last that a dead worker wrote, in characters.
const LAST_OUTPUT_CHARS: usize = 600;

/// Looks at a daemon, on somebody's behalf.
#[derive(Debug)]
pub(crate) struct Observer {
    link: Link,
    /// What was measured last, with a number that says when it is new.
    stats: BTreeMap<String, WorkerStats>,
    sample: u64,
    /// Each worker's `cpu.max`, in thousandths of a processor, and of which workers that is.
    processors: BTreeMap<String, u64>,
    known: Vec<(String, Option<u64>)>,
    /// Each worker's last death, and how many have died since that was asked.
    deaths: BTreeMap<String, DeathCertificate>,
    unseen: usize,
}

impl Observer {
    pub(crate) const fn new(link: Link) -> Self {
        Self {
            link,
            stats: BTreeMap::new(),
            sample: 0,
            processors: BTreeMap::new(),
            known: Vec::new(),
            deaths: BTreeMap::new(),
            unseen: DEATHS_MAX,
        }
    }

    /// Takes note of what has happened.
    pub(crate) fn note(&mut self, news: &EventsReply) {
        let died = news.events.iter().filter(|event| event.kind == EventKind::Death).count();
        let missed = usize::try_from(news.missed).unwrap_or(DEATHS_MAX);
        self.unseen = self.unseen.saturating_add(died).saturating_add(missed).min(DEATHS_MAX);
    }

    /// All there is, as a message of a stream; `measure` also what is used, which costs the daemon a look at every cgroup.
    ///
    /// # Errors
    /// [`LinkError`], as the daemon answers.
    pub(crate) async fn snapshot(&mut self, measure: bool) -> Result<Bytes, LinkError> {
        let status: StatusReply = self.link.call(&Request::Status(NoParameters {})).await?;
        let workers: ListReply = self.link.call(&Request::List(ListRequest { pool: None })).await?;
        let requests: PoolStatsReply = self.link.call(&Request::PoolStats(PoolStatsRequest { pool: None })).await?;
        self.look_at_deaths().await?;
        let sessions: SessionsReply = self.link.call(&Request::Sessions(ListRequest { pool: None })).await?;
        if measure {
            let stats: StatsReply = self.link.call(&Request::Stats(StatsRequest { target: None })).await?;
            self.stats = stats.workers.into_iter().map(|stats| (stats.name.clone(), stats)).collect();
            self.sample += 1;
        }
        // A worker that is there no more has died no more.
        let is_there = |name: &String| workers.workers.iter().any(|worker| worker.name == *name);
        self.deaths.retain(|name, _| is_there(name));
        self.look_at_processors(&workers.workers).await?;
        Ok(message("snapshot", None, &self.told(&status, &workers.workers, &requests.pools, &sessions)))
    }

    /// Those that have not been seen yet, newest first as they are told.
    async fn look_at_deaths(&mut self) -> Result<(), LinkError> {
        if self.unseen == 0 {
            return Ok(());
        }
        let last = u32::try_from(self.unseen).ok();
        let request = Request::Certificates(CertificatesRequest { target: None, last });
        let reply: CertificatesReply = self.link.call(&request).await?;
        for death in reply.certificates.into_iter().rev() {
            self.deaths.insert(death.worker.clone(), death);
        }
        self.unseen = 0;
        Ok(())
    }

    /// The limits of processors, which are the same for the life of a worker.
    async fn look_at_processors(&mut self, workers: &[WorkerInfo]) -> Result<(), LinkError> {
        let known: Vec<_> = workers.iter().map(|worker| (worker.name.clone(), worker.generation)).collect();
        if known == self.known {
            return Ok(());
        }
        let inspected = self.link.call::<InspectReply>(&Request::Inspect(TargetRequest { target: Target::All })).await;
        match inspected {
            Ok(inspected) => {
                let limit = |limits: &[halsup::protocol::control::LimitInfo]| {
                    let limit = limits.iter().find(|limit| limit.name == "cpu.max" && limit.enforced)?;
                    let (quota, period) = limit.value.split_once(' ')?;
                    Some(quota.parse::<u64>().ok()?.saturating_mul(1_000) / period.parse::<u64>().ok()?.max(1))
                };
                let of = |seen: &halsup::protocol::control::Inspection| {
                    limit(&seen.limits).map(|millis| (seen.worker.name.clone(), millis))
                };
                self.processors = inspected.workers.iter().filter_map(of).collect();
            }
            // It is not for this caller, or somebody else's session is among them: what is told then is told without.
            Err(LinkError::Failed(_) | LinkError::NoToken) => self.processors.clear(),
            Err(error @ (LinkError::Unreachable(_) | LinkError::Silent | LinkError::Busy | LinkError::Garbled)) => {
                return Err(error);
            }
        }
        self.known = known;
        Ok(())
    }

    fn told(
        &self,
        status: &StatusReply,
        workers: &[WorkerInfo],
        requests: &[PoolRequestStats],
        sessions: &SessionsReply,
    ) -> Value {
        let desk =
            |worker: &WorkerInfo| requests.iter().flat_map(|pool| &pool.desks).find(|desk| desk.worker == worker.name);
        let pools = status.pools.iter().map(|pool| {
            let stats = requests.iter().find(|stats| stats.pool == pool.name);
            let mut told = json!(pool);
            if let (Some(told), Some(stats)) = (told.as_object_mut(), stats) {
                told.insert("requests".to_owned(), pool_requests(stats));
            }
            told
        });
        let workers_told = workers.iter().map(|worker| self.worker(worker, desk(worker)));
        json!({
            "daemon": {
                "version": status.version,
                "instance": status.instance,
                "state": status.state,
                "started": status.started,
                "uptime_seconds": status.uptime_seconds,
                "limits_enforced": status.limits_enforced,
                "limits_reason": status.limits_reason,
                "state_trouble": status.state_trouble,
            },
            "sample": self.sample,
            "totals": totals(workers, requests, sessions),
            "pools": pools.collect::<Vec<_>>(),
            "workers": workers_told.collect::<Vec<_>>(),
            "sessions": sessions.sessions,
        })
    }

    fn worker(&self, worker: &WorkerInfo, desk: Option<&DeskStats>) -> Value {
        let stats = self.stats.get(&worker.name);
        json!({
            "name": worker.name,
            "pool": worker.pool,
            "state": worker.state,
            "occupancy": worker.occupancy,
            "generation": worker.generation,
            "pid": worker.pid,
            "since": worker.since,
            "age_seconds": worker.age_seconds,
            "restarts": worker.restarts,
            "restart_in_ms": worker.restart_in_ms,
            "missed_heartbeats": worker.missed_heartbeats,
            "port": worker.port,
            "status_text": worker.status_text,
            "limits_enforced": worker.limits_enforced,
            "limits_reason": worker.limits_reason,
            "session": worker.session.as_ref().map(|session| &session.name),
            "requests": desk.map(|desk| desk.requests),
            "failed": desk.map(|desk| desk.failed),
            "in_flight": desk.map(|desk| desk.in_flight),
            "breaker": desk.map(|desk| desk.breaker),
            "probe_in_ms": desk.and_then(|desk| desk.probe_in_ms),
            "memory_bytes": stats.and_then(|stats| stats.memory_current_bytes),
            "memory_peak_bytes": stats.and_then(|stats| stats.memory_peak_bytes),
            "memory_max_bytes": stats.and_then(|stats| stats.memory_max_bytes),
            "cpu_usec": stats.and_then(|stats| stats.cpu_usec),
            "cpu_max_millis": self.processors.get(&worker.name),
            "throttled_usec": stats.and_then(|stats| stats.throttled_usec),
            "pids": stats.and_then(|stats| stats.pids),
            "pids_max": stats.and_then(|stats| stats.pids_max),
            "oom_kills": stats.and_then(|stats| stats.oom_kills),
            "last_death": self.deaths.get(&worker.name).map(last_death),
        })
    }
}

fn pool_requests(stats: &PoolRequestStats) -> Value {
    json!({
        "requests": stats.requests,
        "errors": stats.errors,
        "queued": stats.queued,
        "in_flight": stats.in_flight,
        "queue_timeouts": stats.queue_timeouts,
        "pool_saturated": stats.pool_saturated,
        "retries": stats.retries,
        "sessions": stats.sessions,
        "breaker": stats.breaker,
    })
}

fn last_death(death: &DeathCertificate) -> Value {
    let skipped = death.last_output.chars().count().saturating_sub(LAST_OUTPUT_CHARS);
    json!({
        "generation": death.generation,
        "cause": death.cause,
        "status": death.status,
        "ended": death.ended,
        "asked_by": death.asked_by,
        "start_failure": death.start_failure.as_ref().map(|failure| &failure.text),
        "memory_peak_bytes": death.memory_peak_bytes,
        "user_usec": death.user_usec,
        "system_usec": death.system_usec,
        "last_output": death.last_output.chars().skip(skipped).collect::<String>(),
    })
}

fn totals(workers: &[WorkerInfo], requests: &[PoolRequestStats], sessions: &SessionsReply) -> Value {
    let desks = || requests.iter().flat_map(|pool| &pool.desks);
    json!({
        "workers": workers.len(),
        "healthy": workers.iter().filter(|worker| worker.state == WorkerState::Healthy).count(),
        // What somebody has stopped is missing nothing.
        "expected": workers.iter().filter(|worker| worker.state != WorkerState::Stopped).count(),
        "requests": desks().map(|desk| desk.requests).sum::<u64>(),
        "failed": desks().map(|desk| desk.failed).sum::<u64>(),
        "restarts": workers.iter().map(|worker| worker.restarts).sum::<u64>(),
        "queued": requests.iter().map(|pool| u64::from(pool.queued)).sum::<u64>(),
        "in_flight": requests.iter().map(|pool| u64::from(pool.in_flight)).sum::<u64>(),
        "sessions": sessions.sessions.len(),
    })
}
