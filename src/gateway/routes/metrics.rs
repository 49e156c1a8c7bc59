//! `GET /metrics`: everything that can be counted, as OpenMetrics. Its labels are pools, workers, states and routes, all of
//! which an operator has written down or we have.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use halsup::protocol::control::{
    BreakerPosition, DaemonState, ListReply, ListRequest, NoParameters, PoolRequestStats, PoolStatsReply,
    PoolStatsRequest, Request, StatsReply, StatsRequest, StatusReply, Target, WorkerInfo, WorkerState, WorkerStats,
};

use super::tasks::sent;
use crate::answer::Refusal;
use crate::guard::Shown;
use crate::hub::pool_of;
use crate::openmetrics::{CONTENT_TYPE, Exposition, Kind, seconds};
use crate::serve::Shared;

/// `GET /metrics`: as OpenMetrics, or as JSON for who asks for that and nothing else.
pub(crate) async fn metrics(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    headers: HeaderMap,
) -> Response {
    if wants_json(&headers) {
        return sent(super::cluster::metrics(&shared, &shown).await);
    }
    match told(&shared, &shown).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether JSON is asked for, and no text beside it.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|kinds| kinds.to_str().ok());
    let kinds: Vec<&str> = accepted.flat_map(|kinds| kinds.split(',')).collect();
    let essence = |kind: &str| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    !kinds.is_empty() && kinds.iter().all(|kind| essence(kind) == "application/json")
}

async fn told(shared: &Shared, shown: &Shown) -> Result<String, Refusal> {
    let mut text = Exposition::default();
    // A daemon that is gone is something to tell, and not to everybody that nobody is known to be.
    let linked = shared.link(shown).await;
    if let Err(refusal) = &linked
        && !refusal.is_unavailable()
    {
        return Err(linked.err().unwrap_or_else(Refusal::unauthorized));
    }
    text.family("halsup_up", Kind::Gauge, "Whether the daemon answers.").sample(&[], u8::from(linked.is_ok()));
    // A token of one pool is told of that alone.
    let mut is_of_all = true;
    if let Ok((mut link, who)) = linked {
        let pool = pool_of(&who);
        is_of_all = pool.is_none();
        let workers: ListReply = link.call(&Request::List(ListRequest { pool: pool.clone() })).await?;
        let requests: PoolStatsReply = link.call(&Request::PoolStats(PoolStatsRequest { pool: pool.clone() })).await?;
        let target = pool.clone().map(Target::Pool);
        let stats: StatsReply = link.call(&Request::Stats(StatsRequest { target })).await?;
        if let Some(pool) = &pool {
            workers_by_state(&mut text, &[pool.as_str()], &workers.workers);
        } else {
            let status: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
            daemon(&mut text, &status);
            let names: Vec<&str> = status.pools.iter().map(|pool| pool.name.as_str()).collect();
            workers_by_state(&mut text, &names, &workers.workers);
            pools(&mut text, &status);
        }
        pool_requests(&mut text, &requests.pools);
        workers_of(&mut text, &workers.workers);
        desks(&mut text, &requests.pools);
        usage(&mut text, &workers.workers, &stats.workers);
    }
    if is_of_all {
        gateway(&mut text, shared);
    }
    Ok(text.end())
}

fn daemon(text: &mut Exposition, status: &StatusReply) {
    let labels = [("version", status.version.as_str()), ("instance", status.instance.as_str())];
    text.family("halsup_daemon", Kind::Info, "What the daemon is.").sample(&labels, 1);
    text.family("halsup_uptime_seconds", Kind::Gauge, "How long the daemon runs.").sample(&[], status.uptime_seconds);
    let mut family = text.family("halsup_daemon_state", Kind::Gauge, "1 for the state that the daemon is in.");
    for state in [DaemonState::Starting, DaemonState::Running, DaemonState::Stopping] {
        family.sample(&[("state", &state.to_string())], u8::from(status.state == state));
    }
    text.family("halsup_limits_enforced", Kind::Gauge, "Whether the kernel holds every limit of every pool.")
        .sample(&[], u8::from(status.limits_enforced));
    text.family("halsup_state_trouble", Kind::Gauge, "Whether the state on disk cannot be written.")
        .sample(&[], u8::from(status.state_trouble.is_some()));
}

fn workers_by_state(text: &mut Exposition, pools: &[&str], workers: &[WorkerInfo]) {
    let mut family = text.family("halsup_workers", Kind::Gauge, "Workers by state.");
    for &pool in pools {
        for state in WorkerState::ALL {
            let count = workers.iter().filter(|worker| worker.pool == pool && worker.state == state).count();
            family.sample(&[("pool", pool), ("state", state.as_str())], count);
        }
    }
    let mut family = text.family("halsup_restarts", Kind::Counter, "Restarts of the workers that there are.");
    for &pool in pools {
        let own = workers.iter().filter(|worker| worker.pool == pool);
        family.sample(&[("pool", pool)], own.map(|worker| worker.restarts).sum::<u64>());
    }
}

fn pools(text: &mut Exposition, status: &StatusReply) {
    let mut family = text.family("halsup_workers_wanted", Kind::Gauge, "Workers that a pool is to have.");
    for pool in &status.pools {
        family.sample(&[("pool", &pool.name)], pool.wanted);
    }
    let mut family =
        text.family("halsup_workers_frozen", Kind::Gauge, "Workers that stand still until they are needed.");
    for pool in &status.pools {
        family.sample(&[("pool", &pool.name)], pool.frozen);
    }
    let mut family = text.family("halsup_claims", Kind::Gauge, "Workers of a pool by whether somebody has them.");
    for (pool, claims) in status.pools.iter().filter_map(|pool| pool.claims.as_ref().map(|claims| (pool, claims))) {
        family.sample(&[("pool", &pool.name), ("state", "warm")], claims.warm);
        family.sample(&[("pool", &pool.name), ("state", "busy")], claims.busy);
    }
}

const POSITIONS: [(BreakerPosition, &str); 3] =
    [(BreakerPosition::Closed, "closed"), (BreakerPosition::Open, "open"), (BreakerPosition::HalfOpen, "half_open")];

type OfPool = (&'static str, Kind, &'static str, fn(&PoolRequestStats) -> u64);

fn pool_requests(text: &mut Exposition, pools: &[PoolRequestStats]) {
    let families: [OfPool; 11] = [
        ("halsup_requests", Kind::Counter, "Requests that were asked for.", |pool| pool.requests),
        ("halsup_requests_failed", Kind::Counter, "Requests that ended without a result.", |pool| pool.errors),
        ("halsup_requests_answered", Kind::Counter, "Requests that a worker has answered.", |pool| pool.answered),
        ("halsup_requests_saturated", Kind::Counter, "Requests refused because the queue was full.", |pool| {
            pool.pool_saturated
        }),
        ("halsup_requests_timed_out", Kind::Counter, "Requests that waited as long as they may.", |pool| {
            pool.queue_timeouts
        }),
        ("halsup_requests_retried", Kind::Counter, "Attempts beyond the first.", |pool| pool.retries),
        ("halsup_requests_abandoned", Kind::Counter, "Requests that nobody waited for any more.", |pool| {
            pool.abandoned
        }),
        ("halsup_workers_recycled", Kind::Counter, "Workers replaced as planned.", |pool| pool.recycled),
        ("halsup_requests_queued", Kind::Gauge, "Requests that wait now.", |pool| u64::from(pool.queued)),
        ("halsup_requests_in_flight", Kind::Gauge, "Requests in workers now.", |pool| u64::from(pool.in_flight)),
        ("halsup_sessions", Kind::Gauge, "Sessions that there are.", |pool| u64::from(pool.sessions)),
    ];
    for (name, kind, help, value) in families {
        let mut family = text.family(name, kind, help);
        for pool in pools {
            family.sample(&[("pool", &pool.pool)], value(pool));
        }
    }
    let mut family = text.family("halsup_pool_breaker", Kind::Gauge, "1 for the position of a pool's circuit breaker.");
    for pool in pools {
        for (position, word) in POSITIONS {
            family.sample(&[("pool", &pool.pool), ("state", word)], u8::from(pool.breaker == position));
        }
    }
}

fn workers_of(text: &mut Exposition, workers: &[WorkerInfo]) {
    let mut family = text.family("halsup_worker_restarts", Kind::Counter, "Restarts over the whole life of a worker.");
    for worker in workers {
        family.sample(&[("pool", &worker.pool), ("worker", &worker.name)], worker.restarts);
    }
    let mut family = text.family("halsup_worker_missed_heartbeats", Kind::Gauge, "Heartbeats missed in a row.");
    for worker in workers {
        family.sample(&[("pool", &worker.pool), ("worker", &worker.name)], worker.missed_heartbeats);
    }
}

fn desks(text: &mut Exposition, pools: &[PoolRequestStats]) {
    let all = || pools.iter().flat_map(|pool| pool.desks.iter().map(move |desk| (pool.pool.as_str(), desk)));
    let mut family = text.family("halsup_worker_requests", Kind::Counter, "Requests that a worker was given.");
    for (pool, desk) in all() {
        family.sample(&[("pool", pool), ("worker", &desk.worker)], desk.requests);
    }
    let mut family = text.family("halsup_worker_requests_failed", Kind::Counter, "Of them, those that failed.");
    for (pool, desk) in all() {
        family.sample(&[("pool", pool), ("worker", &desk.worker)], desk.failed);
    }
    let mut family = text.family("halsup_worker_requests_in_flight", Kind::Gauge, "Requests that a worker has now.");
    for (pool, desk) in all() {
        family.sample(&[("pool", pool), ("worker", &desk.worker)], desk.in_flight);
    }
    let help = "1 for the position of a worker's circuit breaker.";
    let mut family = text.family("halsup_worker_breaker", Kind::Gauge, help);
    for (pool, desk) in all() {
        for (position, word) in POSITIONS {
            let labels = [("pool", pool), ("worker", desk.worker.as_str()), ("state", word)];
            family.sample(&labels, u8::from(desk.breaker == position));
        }
    }
}

type OfWorker = (&'static str, Kind, &'static str, fn(&WorkerStats) -> Option<String>);

/// What the kernel does not count here has no sample.
fn usage(text: &mut Exposition, workers: &[WorkerInfo], stats: &[WorkerStats]) {
    let families: [OfWorker; 9] = [
        ("halsup_worker_memory_bytes", Kind::Gauge, "Memory in use.", |stats| plain(stats.memory_current_bytes)),
        ("halsup_worker_memory_peak_bytes", Kind::Gauge, "The most memory in use.", |stats| {
            plain(stats.memory_peak_bytes)
        }),
        ("halsup_worker_memory_limit_bytes", Kind::Gauge, "The limit of memory.", |stats| {
            plain(stats.memory_max_bytes)
        }),
        ("halsup_worker_cpu_seconds", Kind::Counter, "Processor time used.", |stats| stats.cpu_usec.map(seconds)),
        ("halsup_worker_cpu_throttled_seconds", Kind::Counter, "Time spent held back by the limit.", |stats| {
            stats.throttled_usec.map(seconds)
        }),
        ("halsup_worker_processes", Kind::Gauge, "Processes and threads.", |stats| plain(stats.pids)),
        ("halsup_worker_processes_limit", Kind::Gauge, "The limit of processes.", |stats| plain(stats.pids_max)),
        ("halsup_worker_processes_refused", Kind::Counter, "Processes refused by the limit.", |stats| {
            plain(stats.pids_limit_hits)
        }),
        ("halsup_worker_oom_kills", Kind::Counter, "Processes killed for lack of memory.", |stats| {
            plain(stats.oom_kills)
        }),
    ];
    let pool_of = |name: &str| workers.iter().find(|worker| worker.name == name).map_or("", |worker| &worker.pool);
    for (name, kind, help, value) in families {
        let mut family = text.family(name, kind, help);
        for stats in stats {
            family.known(&[("pool", pool_of(&stats.name)), ("worker", &stats.name)], value(stats));
        }
    }
}

fn plain(value: Option<u64>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn gateway(text: &mut Exposition, shared: &Shared) {
    let help = "Connections to the gateway.";
    text.family("halsup_gateway_connections", Kind::Gauge, help).sample(&[], shared.connections());
    text.family("halsup_gateway_streams", Kind::Gauge, "Streams that are read.")
        .sample(&[], shared.streams().count() + shared.logs().count());
    text.family("halsup_gateway_draining", Kind::Gauge, "Whether the gateway takes no new work.")
        .sample(&[], u8::from(shared.is_draining()));
    let help = "Requests to the gateway by route and class of answer.";
    let mut family = text.family("halsup_gateway_requests", Kind::Counter, help);
    for ((route, class), count) in shared.counts().all() {
        family.sample(&[("route", &route), ("code", &format!("{class}xx"))], count);
    }
}
