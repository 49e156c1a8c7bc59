//! What ClaudeCluster's later worker and its coordinator ask beside tasks: health, capabilities, processes. There a process
//! is what runs one task; here it is a worker of the pool of tasks.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use halsup::protocol::control::{
    ChangeReply, DaemonState, ListReply, ListRequest, NoParameters, Request, StatsReply, StatsRequest, StatusReply,
    TASK_METADATA_BYTES_MAX, TASK_PROMPT_BYTES_MAX, TargetRequest, TaskStatusReply, WorkerInfo, WorkerState,
};
use halsup::spec::PoolName;
use serde_json::{Value, json};

use super::hello;
use super::tasks::{sent, status, tasks_status};
use crate::answer::Refusal;
use crate::clock;
use crate::guard::Shown;
use crate::link::Link;
use crate::serve::Shared;

/// What runs tasks, in that system's words: processes that are there before they are needed.
pub(crate) const EXECUTION_MODE: &str = "process_pool";
/// The name of a task's session, before the task's own.
const SESSION_PREFIX: &str = "task-";

fn now() -> String {
    humantime::format_rfc3339_millis(clock::wall()).to_string()
}

/// `GET /health/live`: the gateway answers. It tells nothing of this daemon, and so it is told to everybody.
pub(crate) async fn live() -> Response {
    Json(json!({ "status": "healthy", "timestamp": now() })).into_response()
}

/// `GET /health/ready`: whether one more task would be taken.
pub(crate) async fn ready(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let daemon: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
        let room = status(&mut link).await?.map(|tasks| room(&tasks));
        let is_open = daemon.state == DaemonState::Running && !shared.is_draining();
        let is_ready = is_open && room != Some(0);
        let (code, word) =
            if is_ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
        let told = json!({ "status": word, "timestamp": now(), "availableCapacity": room });
        Ok((code, Json(told)).into_response())
    };
    sent(made.await)
}

/// How many tasks more would be taken.
fn room(tasks: &TaskStatusReply) -> u64 {
    let most = u64::from(tasks.max_concurrent) + u64::from(tasks.queue_max);
    most.saturating_sub(u64::from(tasks.running) + u64::from(tasks.queued))
}

/// Tasks, in numbers.
fn numbers(tasks: &TaskStatusReply) -> Value {
    json!({
        "total": tasks.completed + tasks.failed + tasks.cancelled + u64::from(tasks.running) + u64::from(tasks.queued),
        "running": tasks.running,
        "queued": tasks.queued,
        "completed": tasks.completed,
        "failed": tasks.failed,
        "cancelled": tasks.cancelled,
        "refused": tasks.refused,
    })
}

/// `GET /status`.
pub(crate) async fn state(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let daemon: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
        let tasks = status(&mut link).await?.unwrap_or_default();
        let (id, name) = shared.worker();
        let told = json!({
            "workerId": id,
            "name": name,
            "status": hello::word(&shared, &daemon, &tasks),
            "version": hello::VERSION,
            "uptime": daemon.uptime_seconds,
            "timestamp": now(),
            "executionMode": EXECUTION_MODE,
            "executorType": tasks.executor,
            "activeTasks": tasks.running,
            "queuedTasks": tasks.queued,
            "maxConcurrentTasks": tasks.max_concurrent,
            "tasks": numbers(&tasks),
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// `GET /capabilities`.
pub(crate) async fn capabilities(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let tasks = tasks_status(&mut link).await?;
        let (id, name) = shared.worker();
        let told = json!({
            "workerId": id,
            "name": name,
            "version": hello::VERSION,
            "supportedCommands": hello::COMMANDS,
            "capabilities": hello::CAPABILITIES,
            "executionModes": [EXECUTION_MODE],
            "defaultExecutionMode": EXECUTION_MODE,
            "featureFlags": { "allowModeOverride": false },
            "executorTypes": ["pty", "stub"],
            "streamingTypes": ["sse"],
            "maxConcurrentTasks": tasks.max_concurrent,
            "maxQueuedTasks": tasks.queue_max,
            "taskTimeoutMs": tasks.timeout_ms,
            "terminal": { "cols": tasks.columns, "rows": tasks.rows },
            "limits": { "promptBytes": TASK_PROMPT_BYTES_MAX, "metadataBytes": TASK_METADATA_BYTES_MAX },
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// The pool of tasks.
async fn pool_of_tasks(link: &mut Link) -> Result<(TaskStatusReply, PoolName), Refusal> {
    let tasks = tasks_status(link).await?;
    let pool = PoolName::parse(&tasks.pool).map_err(|_none| Refusal::not_found())?;
    Ok((tasks, pool))
}

/// Its workers.
async fn workers_of_tasks(link: &mut Link) -> Result<(TaskStatusReply, Vec<WorkerInfo>), Refusal> {
    let (tasks, pool) = pool_of_tasks(link).await?;
    let listed: ListReply = link.call(&Request::List(ListRequest { pool: Some(pool) })).await?;
    Ok((tasks, listed.workers))
}

/// The task that a worker has.
fn task_of(worker: &WorkerInfo) -> Option<&str> {
    worker.session.as_ref().and_then(|session| session.name.strip_prefix(SESSION_PREFIX))
}

/// What a worker is, in the words of that system for its processes.
fn process_word(worker: &WorkerInfo) -> &'static str {
    match worker.state {
        WorkerState::Initializing | WorkerState::Restarting => "starting",
        WorkerState::Healthy if worker.session.is_some() => "busy",
        WorkerState::Healthy => "ready",
        WorkerState::Unhealthy | WorkerState::Crashed | WorkerState::Stuck => "error",
        WorkerState::Draining | WorkerState::Stopped => "terminated",
    }
}

/// `GET /processes`.
pub(crate) async fn processes(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let (tasks, workers) = workers_of_tasks(&mut link).await?;
        let told = workers.iter().map(|worker| {
            json!({
                "id": worker.name,
                "pid": worker.pid,
                "status": process_word(worker),
                "state": worker.state,
                "taskId": task_of(worker),
                "since": worker.since,
                "ageSeconds": worker.age_seconds,
                "restarts": worker.restarts,
            })
        });
        let of = |word: &str| workers.iter().filter(|worker| process_word(worker) == word).count();
        let told = json!({
            "processes": told.collect::<Vec<_>>(),
            "total": workers.len(),
            "busy": of("busy"),
            "ready": of("ready"),
            "maxProcesses": tasks.max_concurrent,
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// `POST /processes/cleanup`: those that are ended for good are there again. Nothing else is ever left: what has run a task
/// is gone with it.
pub(crate) async fn cleanup(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let (_, pool) = pool_of_tasks(&mut link).await?;
        let request = Request::Reset(TargetRequest { target: halsup::protocol::control::Target::Pool(pool) });
        let reply: ChangeReply = link.call(&request).await?;
        let told = json!({
            "message": "Process cleanup completed",
            "cleaned": reply.achieved,
            "wanted": reply.wanted,
            "timestamp": now(),
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// `GET /workers`, of the coordinator.
pub(crate) async fn workers(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let (tasks, workers) = workers_of_tasks(&mut link).await?;
        let word = |worker: &WorkerInfo| match process_word(worker) {
            "ready" => "available",
            "busy" => "busy",
            _ => "offline",
        };
        let told = workers.iter().map(|worker| {
            json!({
                "id": worker.name,
                "name": worker.name,
                "status": word(worker),
                "activeTasks": u8::from(task_of(worker).is_some()),
                "maxTasks": 1,
                "taskId": task_of(worker),
            })
        });
        let told = json!({
            "workers": told.collect::<Vec<_>>(),
            "totalWorkers": workers.len(),
            "availableWorkers": workers.iter().filter(|worker| word(worker) == "available").count(),
            "totalActiveTasks": tasks.running,
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// `GET /metrics` as JSON, for who asks for that: `{tasks, performance, resources}`.
pub(crate) async fn metrics(shared: &Shared, shown: &Shown) -> Result<Response, Refusal> {
    let (mut link, _) = shared.link(shown).await?;
    let daemon: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
    let tasks = status(&mut link).await?.unwrap_or_default();
    let stats: StatsReply = link.call(&Request::Stats(StatsRequest { target: None })).await?;
    let ended = tasks.completed + tasks.failed;
    // What is counted nowhere on this machine is null, and not nothing.
    let sum = |of: fn(&halsup::protocol::control::WorkerStats) -> Option<u64>| {
        let known: Vec<u64> = stats.workers.iter().filter_map(of).collect();
        (!known.is_empty()).then(|| known.iter().sum::<u64>())
    };
    let told = json!({
        "timestamp": now(),
        "tasks": numbers(&tasks),
        "performance": {
            "uptime": daemon.uptime_seconds,
            // In percent; of none, nothing is known.
            "successRate": tasks.completed.saturating_mul(100).checked_div(ended),
            "maxConcurrentTasks": tasks.max_concurrent,
            "lastTaskTimestamp": tasks.last_ended,
        },
        "resources": {
            "workers": stats.workers.len(),
            "memoryBytes": sum(|stats| stats.memory_current_bytes),
            "cpuUsec": sum(|stats| stats.cpu_usec),
            "processes": sum(|stats| stats.pids),
        },
    });
    Ok(Json(told).into_response())
}
