//! `GET /hello`: what ClaudeCluster's coordinator asks a worker all the time, with the keys of all its shapes.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use halsup::protocol::control::{DaemonState, NoParameters, Request, StatusReply, TaskStatusReply};
use serde_json::{Value, json};

use super::tasks::status;
use crate::answer::Refusal;
use crate::clock;
use crate::guard::Shown;
use crate::serve::Shared;

/// The version that is told.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What can be run.
pub(crate) const COMMANDS: [&str; 1] = ["claude-code"];
/// What it can do.
pub(crate) const CAPABILITIES: [&str; 4] = ["claude-code", "pty", "sse", "cancel"];

/// Says who answers, and how busy they are.
pub(crate) async fn hello(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let daemon: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
        let tasks = status(&mut link).await?.unwrap_or_default();
        Ok::<_, Refusal>(Json(told(&shared, &daemon, &tasks)).into_response())
    };
    made.await.unwrap_or_else(Refusal::into_response)
}

/// What of its states the worker is in: it takes tasks also while it is busy, as long as there is room for them to wait.
pub(crate) fn word(shared: &Shared, daemon: &StatusReply, tasks: &TaskStatusReply) -> &'static str {
    if daemon.state != DaemonState::Running || shared.is_draining() {
        "offline"
    } else if tasks.max_concurrent > 0 && tasks.running >= tasks.max_concurrent {
        "busy"
    } else {
        "available"
    }
}

fn told(shared: &Shared, daemon: &StatusReply, tasks: &TaskStatusReply) -> Value {
    let machine = json!({
        "nodeVersion": VERSION,
        "platform": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "architecture": std::env::consts::ARCH,
    });
    let (id, name) = shared.worker();
    json!({
        "status": word(shared, daemon, tasks),
        "timestamp": humantime::format_rfc3339_millis(clock::wall()).to_string(),
        "version": VERSION,
        "uptime": daemon.uptime_seconds,
        "activeTasks": tasks.running,
        "currentTasks": tasks.running,
        "queuedTasks": tasks.queued,
        "totalTasksExecuted": tasks.completed + tasks.failed + tasks.cancelled,
        "lastTaskTimestamp": tasks.last_ended,
        "id": id,
        "workerId": id,
        "name": name,
        "systemInfo": machine,
        "capabilities": {
            "maxConcurrentTasks": tasks.max_concurrent,
            "supportedCommands": COMMANDS,
            "environment": machine,
        },
        "capabilityList": CAPABILITIES,
    })
}
