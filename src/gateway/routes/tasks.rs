//! ClaudeCluster's endpoints: prompts that are typed into a program under a terminal, key for key.
//!
//! The tasks live in the daemon. Here a request becomes a call and an answer its JSON; whoever goes, and this gateway too,
//! can come back and ask again.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use halsup::protocol::control::{
    CallFailure, CancelTaskReply, Error, InspectTaskReply, InspectTaskRequest, ListTasksReply, NoParameters, Request,
    RunTaskReply, RunTaskRequest, SwitchExecutorReply, SwitchExecutorRequest, TASK_OUTPUT_BYTES_MAX, TaskInfo,
    TaskRequest, TaskState, TaskStatusReply,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::cluster::EXECUTION_MODE;
use crate::answer::Refusal;
use crate::guard::Shown;
use crate::link::{Link, LinkError};
use crate::serve::Shared;

/// The body of `POST /run`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Run {
    prompt: Option<String>,
    worker_id: Option<String>,
    priority: Option<Value>,
    metadata: Option<Map<String, Value>>,
    /// By what name it is asked for afterwards; made up where nobody says.
    task_id: Option<String>,
    timeout_ms: Option<u64>,
}

impl Run {
    /// What the daemon is asked for.
    pub(crate) fn request(self) -> Result<RunTaskRequest, Refusal> {
        Ok(RunTaskRequest {
            prompt: prompt(self.prompt)?,
            task: self.task_id,
            worker_id: self.worker_id,
            priority: priority(self.priority.as_ref())?,
            metadata: self.metadata,
            timeout_ms: self.timeout_ms,
        })
    }
}

/// The body of `POST /tasks`: of the later worker with an id, of the coordinator without.
#[derive(Debug, Deserialize)]
pub(crate) struct Submitted {
    id: Option<String>,
    title: Option<String>,
    description: Option<String>,
    prompt: Option<String>,
    priority: Option<Value>,
    metadata: Option<Map<String, Value>>,
    #[serde(rename = "timeoutMs")]
    timeout_ms: Option<u64>,
}

/// The body of `POST /pty/switch`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Switch {
    executor_type: Option<String>,
    streaming_type: Option<String>,
}

/// Sends what was made, or why it was not.
pub(crate) fn sent(made: Result<Response, Refusal>) -> Response {
    made.unwrap_or_else(Refusal::into_response)
}

pub(crate) fn bad(details: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "Bad request", details).with_details()
}

/// A body that could be read, or what is wrong with it.
pub(crate) fn body<T>(read: Result<Json<T>, JsonRejection>) -> Result<T, Refusal> {
    read.map(|Json(read)| read).map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large", "send at most 256 KiB")
        }
        _ => bad(rejection.body_text()),
    })
}

/// A priority, which is a whole number from 1 to 10.
fn priority(said: Option<&Value>) -> Result<Option<u8>, Refusal> {
    let Some(said) = said.filter(|said| !said.is_null()) else { return Ok(None) };
    let number = said.as_u64().and_then(|number| u8::try_from(number).ok()).filter(|number| (1..=10).contains(number));
    number.map(Some).ok_or_else(|| bad("priority: expected a whole number from 1 to 10"))
}

/// A prompt that is one.
fn prompt(said: Option<String>) -> Result<String, Refusal> {
    said.filter(|prompt| !prompt.is_empty()).ok_or_else(|| bad("prompt: expected a text that is not empty"))
}

/// What the daemon says of tasks in all; none where it runs no tasks.
pub(crate) async fn status(link: &mut Link) -> Result<Option<TaskStatusReply>, Refusal> {
    match link.call::<TaskStatusReply>(&Request::TaskStatus(NoParameters {})).await {
        Ok(status) => Ok(Some(status)),
        Err(LinkError::Failed(CallFailure::Control(Error::Refused { .. }))) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Has a task run, unless nothing new is begun.
pub(crate) async fn submit(shared: &Shared, shown: &Shown, request: RunTaskRequest) -> Result<RunTaskReply, Refusal> {
    if shared.is_draining() {
        let message = "Worker is currently draining and cannot accept new tasks";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message));
    }
    let (mut link, _) = shared.link(shown).await?;
    match link.call(&Request::RunTask(Box::new(request))).await {
        Err(LinkError::Failed(CallFailure::Control(Error::ShuttingDown {}))) => {
            let message = "Worker is currently offline and cannot accept new tasks";
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message))
        }
        reply => Ok(reply?),
    }
}

/// `POST /run`.
pub(crate) async fn run(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    read: Result<Json<Run>, JsonRejection>,
) -> Response {
    let made = async {
        let reply = submit(&shared, &shown, body(read)?.request()?).await?;
        let told = json!({
            "taskId": reply.task,
            "status": reply.state,
            "estimatedDuration": reply.estimated_duration_ms,
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// `POST /tasks`.
pub(crate) async fn submitted(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    read: Result<Json<Submitted>, JsonRejection>,
) -> Response {
    let made = async {
        let task = body(read)?;
        let wrong = || Refusal::new(StatusCode::BAD_REQUEST, "Invalid task", "Task must have id and title");
        let text = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (id, title) = (text(task.id), text(task.title));
        let is_prompt = task.prompt.as_deref().is_some_and(|prompt| !prompt.is_empty());
        // What is typed: the prompt as it is, or what the task is called and what is said of it.
        let prompt = match (text(task.prompt), title, text(task.description)) {
            (Some(prompt), _, _) => prompt,
            (None, Some(title), Some(description)) => format!("{title}\n\n{description}"),
            (None, Some(title), None) => title,
            (None, None, _) => return Err(wrong()),
        };
        // Who has made up no name is the coordinator's client, and is told where to look.
        let has_id = id.is_some();
        if !has_id && !is_prompt {
            return Err(wrong());
        }
        let request = RunTaskRequest {
            prompt,
            task: id,
            priority: priority(task.priority.as_ref())?,
            metadata: task.metadata,
            timeout_ms: task.timeout_ms,
            ..RunTaskRequest::default()
        };
        let reply = submit(&shared, &shown, request).await.map_err(|refusal| {
            let is_taken = refusal.status() == StatusCode::CONFLICT;
            if is_taken {
                Refusal::new(StatusCode::CONFLICT, "Task already exists", "take another id")
            } else {
                refusal
            }
        })?;
        let told = json!({
            "message": "Task submitted",
            "taskId": reply.task,
            "status": reply.state,
            "executionMode": EXECUTION_MODE,
            "sessionId": Value::Null,
            "assignedWorker": shared.worker().0,
            "estimatedDuration": reply.estimated_duration_ms,
            "streamUrl": format!("/stream/{}", reply.task),
        });
        Ok((StatusCode::ACCEPTED, Json(told)).into_response())
    };
    sent(made.await)
}

/// A task as it is told of.
fn told(task: &TaskInfo) -> Value {
    json!({
        "taskId": task.task,
        "status": task.state,
        "prompt": task.prompt,
        "priority": task.priority,
        "workerId": task.worker_id,
        "executorType": task.executor,
        "submittedAt": task.submitted,
        "startedAt": task.began,
        "completedAt": task.ended,
        "progress": task.progress,
        "timeoutMs": task.timeout_ms,
        "estimatedDuration": task.estimated_duration_ms,
        "outputBytes": task.output_bytes,
        "exit": task.exit,
        "error": task.error,
        "worker": task.worker,
        "session": task.session,
    })
}

/// `GET /tasks`.
pub(crate) async fn list(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        link.ask(&Request::ListTasks(NoParameters {}), true).await?;
        let mut tasks = Vec::new();
        loop {
            let (piece, more): (ListTasksReply, bool) = link.answer().await?;
            tasks.extend(piece.tasks.iter().map(told));
            if !more {
                break;
            }
        }
        Ok(Json(json!({ "total": tasks.len(), "tasks": tasks })).into_response())
    };
    sent(made.await)
}

/// `GET /tasks/{id}`.
pub(crate) async fn show(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    Path(task): Path<String>,
) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let request = InspectTaskRequest { task, output_bytes: Some(TASK_OUTPUT_BYTES_MAX) };
        let reply: InspectTaskReply = link.call(&Request::InspectTask(request)).await?;
        let mut told = told(&reply.task);
        if let Some(fields) = told.as_object_mut() {
            fields.insert("metadata".to_owned(), json!(reply.metadata));
            fields.insert("output".to_owned(), json!(reply.output));
            fields.insert("outputSkippedBytes".to_owned(), json!(reply.skipped_bytes));
        }
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// `DELETE /tasks/{id}`: answered when nothing of it runs any more.
pub(crate) async fn cancel(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    Path(task): Path<String>,
) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let request = Request::CancelTask(TaskRequest { task: task.clone() });
        link.ask(&request, false).await?;
        // As long as its stop may take, which is the daemon's to bound.
        let (reply, _): (CancelTaskReply, bool) = link.answer().await?;
        let message = match (reply.was_over, reply.state) {
            (true, _) => "Task was over",
            (false, TaskState::Cancelled) => "Task cancelled",
            (false, _) => "Task ended",
        };
        Ok(Json(json!({ "message": message, "taskId": task, "status": reply.state })).into_response())
    };
    sent(made.await)
}

/// `GET /pty/status`.
pub(crate) async fn pty(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, _) = shared.link(&shown).await?;
        let status = tasks_status(&mut link).await?;
        let told = json!({
            "executorType": status.executor,
            "streamingType": "sse",
            "ptyAvailable": true,
            "environment": "production",
            "claudeCliPath": status.command.first(),
            "activeProcesses": status.running,
            "maxConcurrentProcesses": status.max_concurrent,
            "queued": status.queued,
            "draining": status.draining,
            "terminal": { "cols": status.columns, "rows": status.rows },
            "timeoutMs": status.timeout_ms,
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// The same where it has to run tasks.
pub(crate) async fn tasks_status(link: &mut Link) -> Result<TaskStatusReply, Refusal> {
    status(link).await?.ok_or_else(|| {
        let message = "this daemon runs no tasks: write [tasks] into its configuration";
        Refusal::new(StatusCode::NOT_FOUND, "Not found", message)
    })
}

/// `POST /pty/switch`. Streams are server-sent events and nothing else: to ask for another kind is refused.
pub(crate) async fn switch(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    read: Result<Json<Switch>, JsonRejection>,
) -> Response {
    let made = async {
        let wanted = body(read)?;
        if wanted.streaming_type.as_deref().is_some_and(|kind| kind != "sse") {
            return Err(bad("streamingType: expected sse, which is what there is"));
        }
        let (mut link, _) = shared.link(&shown).await?;
        let (executor, draining) = match wanted.executor_type {
            Some(executor) if matches!(executor.as_str(), "pty" | "stub" | "auto") => {
                let request = Request::SwitchExecutor(SwitchExecutorRequest { executor });
                let reply: SwitchExecutorReply = link.call(&request).await?;
                (reply.executor, reply.draining)
            }
            Some(_) => return Err(bad("executorType: expected pty, stub or auto")),
            None => {
                let status = tasks_status(&mut link).await?;
                (status.executor, status.draining)
            }
        };
        let told = json!({
            "message": "Execution components switched successfully",
            "newConfig": { "executorType": executor, "streamingType": "sse" },
            "draining": draining,
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}
