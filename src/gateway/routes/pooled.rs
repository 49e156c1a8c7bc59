//! AtomForge's endpoints: a pool of daemons as its users know it, key for key.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use halsup::protocol::control::{
    BreakerPosition, DeskStats, ListReply, ListRequest, NoParameters, Occupancy, PoolRequestStats, PoolStatsReply,
    PoolStatsRequest, Request, ResetBreakersReply, ResetBreakersRequest, StatsReply, StatsRequest, StatusReply, Target,
    WorkerInfo, WorkerState, WorkerStats,
};
use halsup::spec::PoolName;
use serde_json::{Map, Value, json};

use crate::answer::Refusal;
use crate::guard::Shown;
use crate::link::Link;
use crate::serve::Shared;

const SERVICE: &str = "atomforge-fdo-api";
const SERVICE_VERSION: &str = "2.0.0";

/// All that is told of one pool.
struct Pool {
    name: PoolName,
    workers: Vec<WorkerInfo>,
    stats: Option<PoolRequestStats>,
}

impl Pool {
    fn healthy(&self) -> usize {
        self.workers.iter().filter(|worker| worker.state == WorkerState::Healthy).count()
    }

    fn percentage(&self) -> f64 {
        let (healthy, all) = (as_f64(self.healthy()), as_f64(self.workers.len()));
        if self.workers.is_empty() { 0.0 } else { healthy * 100.0 / all }
    }

    fn desk(&self, worker: &WorkerInfo) -> Option<&DeskStats> {
        self.stats.as_ref().and_then(|stats| stats.desks.iter().find(|desk| desk.worker == worker.name))
    }
}

/// Counts here are far below what a double cannot tell apart.
fn as_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

/// Bytes in MiB, to a hundredth.
fn mib(bytes: u64) -> f64 {
    let hundredths = u32::try_from(bytes.saturating_mul(100) / 1_048_576).unwrap_or(u32::MAX);
    f64::from(hundredths) / 100.0
}

/// The pool that the operator has named, or the only one there is.
async fn pool(shared: &Shared, link: &mut Link) -> Result<Pool, Refusal> {
    let status: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
    let mut pools = status.pools.iter().filter(|pool| !pool.service);
    let name = match (shared.pool(), pools.next(), pools.next()) {
        (Some(named), _, _) => named.to_owned(),
        (None, Some(only), None) => only.name.clone(),
        (None, Some(_), Some(_)) => {
            let message = "there are several pools: write which one is meant into `pool` of [gateway]";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "Pool mode not enabled", message));
        }
        (None, None, _) => {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "Pool mode not enabled", "there is no pool"));
        }
    };
    let missing = |_| Refusal::not_found();
    let name = PoolName::parse(&name).map_err(missing)?;
    let listed: ListReply = link.call(&Request::List(ListRequest { pool: Some(name.clone()) })).await?;
    let stats: PoolStatsReply = link.call(&Request::PoolStats(PoolStatsRequest { pool: Some(name.clone()) })).await?;
    Ok(Pool { name, workers: listed.workers, stats: stats.pools.into_iter().next() })
}

/// `GET /health`.
pub(crate) async fn health(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    match told_health(&shared, &shown).await {
        Ok(told) => Json(told).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn told_health(shared: &Shared, shown: &Shown) -> Result<Value, Refusal> {
    let (mut link, _) = shared.link(shown).await?;
    let pool = pool(shared, &mut link).await?;
    let healthy = pool.healthy();
    Ok(json!({
        "service": SERVICE,
        "version": SERVICE_VERSION,
        "features": ["daemon_pool", "circuit_breaker", "failover"],
        "status": if healthy > 0 { "healthy" } else { "degraded" },
        "execution_mode": "daemon_pool",
        "release": { "path": Value::Null, "bin_dir": Value::Null },
        "pool": {
            "enabled": true,
            "size": pool.workers.len(),
            "healthy_instances": healthy,
            "health_percentage": pool.percentage(),
        },
    }))
}

/// `GET /health/pool`.
pub(crate) async fn pool_health(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    match told_pool(&shared, &shown).await {
        Ok(told) => Json(told).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// A worker's state in AtomForge's words, of which there are fewer.
const fn state_word(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Initializing => "initializing",
        WorkerState::Healthy => "healthy",
        WorkerState::Unhealthy | WorkerState::Stuck => "unhealthy",
        WorkerState::Crashed | WorkerState::Stopped => "crashed",
        WorkerState::Restarting | WorkerState::Draining => "restarting",
    }
}

async fn told_pool(shared: &Shared, shown: &Shown) -> Result<Value, Refusal> {
    let (mut link, _) = shared.link(shown).await?;
    let pool = pool(shared, &mut link).await?;
    let mut by_state: Map<String, Value> = ["initializing", "healthy", "unhealthy", "crashed", "restarting"]
        .map(|word| (word.to_owned(), json!(0)))
        .into_iter()
        .collect();
    for worker in &pool.workers {
        if let Some(count) = by_state.get_mut(state_word(worker.state)) {
            *count = json!(count.as_u64().unwrap_or(0) + 1);
        }
    }
    let desks = || pool.stats.iter().flat_map(|stats| &stats.desks);
    let is_free = |worker: &&WorkerInfo| {
        worker.state == WorkerState::Healthy && pool.desk(worker).is_none_or(|desk| desk.in_flight == 0)
    };
    Ok(json!({
        "pool_size": pool.workers.len(),
        "instances_total": pool.workers.len(),
        "instances_healthy": pool.healthy(),
        "pool_health_percentage": pool.percentage(),
        "total_requests": desks().map(|desk| desk.requests).sum::<u64>(),
        "failed_requests": desks().map(|desk| desk.failed).sum::<u64>(),
        "daemon_restarts": pool.workers.iter().map(|worker| worker.restarts).sum::<u64>(),
        "concurrent_requests": desks().map(|desk| u64::from(desk.in_flight)).sum::<u64>(),
        "idle_daemons": pool.workers.iter().filter(is_free).count(),
        "instances_by_state": by_state,
        "instances": pool.workers.iter().map(|worker| instance(worker, pool.desk(worker))).collect::<Vec<_>>(),
    }))
}

/// A time of RFC 3339 in seconds since 1970, as AtomForge's users know it.
fn unix_seconds(text: &str) -> Option<f64> {
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

fn instance(worker: &WorkerInfo, desk: Option<&DeskStats>) -> Value {
    json!({
        "id": format!("daemon_{}", worker.slot),
        "port": worker.port,
        "state": state_word(worker.state),
        "restart_count": worker.restarts,
        "consecutive_failures": desk.map_or(0, |desk| desk.failures),
        "total_requests": desk.map_or(0, |desk| desk.requests),
        "failed_requests": desk.map_or(0, |desk| desk.failed),
        "circuit_breaker_open": desk.is_some_and(|desk| desk.breaker == BreakerPosition::Open),
        "is_processing": desk.is_some_and(|desk| desk.in_flight > 0) || worker.occupancy == Some(Occupancy::Busy),
        "last_health_check": worker.last_health.as_deref().and_then(unix_seconds),
        "worker": worker.name,
    })
}

/// `GET /health/pool/memory`.
pub(crate) async fn pool_memory(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    match told_memory(&shared, &shown).await {
        Ok(told) => Json(told).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn told_memory(shared: &Shared, shown: &Shown) -> Result<Value, Refusal> {
    let (mut link, _) = shared.link(shown).await?;
    let pool = pool(shared, &mut link).await?;
    let request = Request::Stats(StatsRequest { target: Some(Target::Pool(pool.name.clone())) });
    let stats: StatsReply = link.call(&request).await?;
    let of = |worker: &WorkerInfo| stats.workers.iter().find(|stats| stats.name == worker.name);
    let used = |stats: Option<&WorkerStats>| stats.and_then(|stats| stats.memory_current_bytes);
    let known: Vec<u64> = pool.workers.iter().filter_map(|worker| used(of(worker))).collect();
    let average = if known.is_empty() { 0.0 } else { mib(known.iter().sum::<u64>()) / as_f64(known.len()) };
    let instances: Vec<Value> = pool
        .workers
        .iter()
        .map(|worker| {
            let memory = used(of(worker)).map(mib);
            json!({
                "id": format!("daemon_{}", worker.slot),
                "port": worker.port,
                "daemon_memory_mb": memory,
                "launcher_memory_mb": 0.0,
                "wine_infra_share_mb": 0.0,
                "total_memory_mb": memory,
                "peak_memory_mb": of(worker).and_then(|stats| stats.memory_peak_bytes).map(mib),
                "limit_memory_mb": of(worker).and_then(|stats| stats.memory_max_bytes).map(mib),
                "worker": worker.name,
            })
        })
        .collect();
    let host = HostMemory::read()?;
    Ok(json!({
        "system_memory_total_mb": mib(host.total),
        "system_memory_used_mb": mib(host.total.saturating_sub(host.available)),
        "system_memory_available_mb": mib(host.available),
        "system_memory_percent": host.used_percent(),
        "pool_size": pool.workers.len(),
        "avg_daemon_memory_mb": average,
        "avg_launcher_memory_mb": 0.0,
        "wine_infra_total_mb": 0.0,
        "wine_infra_per_daemon_mb": 0.0,
        "per_daemon_total_mb": average,
        "instances": instances,
    }))
}

/// The memory of this machine, in bytes.
struct HostMemory {
    total: u64,
    available: u64,
}

impl HostMemory {
    /// As the kernel tells every process.
    fn read() -> Result<Self, Refusal> {
        let failed = |what: String| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error", what);
        let text = std::fs::read_to_string("/proc/meminfo");
        let text = text.map_err(|error| failed(format!("read /proc/meminfo: {error}")))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|kib| kib.parse::<u64>().ok());
            kib.map(|kib| kib.saturating_mul(1_024)).ok_or_else(|| failed(format!("find {name} in /proc/meminfo")))
        };
        Ok(Self { total: field("MemTotal")?, available: field("MemAvailable")? })
    }

    fn used_percent(&self) -> f64 {
        if self.total == 0 { 0.0 } else { mib(self.total.saturating_sub(self.available)) * 100.0 / mib(self.total) }
    }
}

/// `POST /pool/reset-circuit-breakers`.
pub(crate) async fn reset_breakers(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    match told_reset(&shared, &shown).await {
        Ok(told) => Json(told).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn told_reset(shared: &Shared, shown: &Shown) -> Result<Value, Refusal> {
    let (mut link, _) = shared.link(shown).await?;
    let pool = pool(shared, &mut link).await?;
    let request = Request::ResetBreakers(ResetBreakersRequest { target: Target::Pool(pool.name) });
    let reply: ResetBreakersReply = link.call(&request).await?;
    Ok(json!({
        "success": true,
        "circuit_breakers_reset": reply.reset,
        "message": format!("Reset circuit breakers for {} instance(s)", reply.reset),
    }))
}
