//! `POST /execute`: a task, and its answer is its end. Whoever goes before that takes the task with them: nobody else was told
//! of it.

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use halsup::protocol::control::{
    Cause, FollowTaskReply, FollowTaskRequest, InspectTaskReply, InspectTaskRequest, Request, TASK_OUTPUT_BYTES_MAX,
    TaskRequest, TaskState,
};
use serde_json::{Value, json};

use super::tasks::{Run, body, sent, submit, tasks_status};
use crate::answer::Refusal;
use crate::guard::Shown;
use crate::hub::caller;
use crate::link::Link;
use crate::serve::Shared;

/// A task whose caller waits for it; cancelled if that is over first.
struct Waited {
    shared: Shared,
    shown: Shown,
    task: Option<String>,
}

impl Drop for Waited {
    fn drop(&mut self) {
        let Some(task) = self.task.take() else { return };
        let (shared, shown) = (self.shared.clone(), self.shown.clone());
        tokio::spawn(async move {
            let request = Request::CancelTask(TaskRequest { task: task.clone() });
            let cancelled = async {
                let (mut link, _) = shared.connect(&shown).await?;
                link.ask(&request, false).await?;
                link.answer::<Value>().await
            };
            if let Err(error) = cancelled.await {
                tracing::info!(%error, "cancel task {task}, whose caller has gone");
            }
        });
    }
}

/// `POST /execute`.
pub(crate) async fn execute(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    read: Result<Json<Run>, JsonRejection>,
) -> Response {
    let made = async {
        let request = body(read)?.request()?;
        let prompt = request.prompt.clone();
        let (mut link, who) = shared.link(&shown).await?;
        // It holds a connection to the daemon for as long as the task takes.
        let _place = shared.logs().place(&caller(&who))?;
        let command = tasks_status(&mut link).await?.command;
        let accepted = submit(&shared, &shown, request).await?;
        let mut waited = Waited { shared: shared.clone(), shown: shown.clone(), task: Some(accepted.task.clone()) };
        let ended = wait(&mut link, &accepted.task).await?;
        // Over: nothing is left to cancel.
        waited.task = None;
        Ok(Json(told(&ended, &prompt, &command)).into_response())
    };
    sent(made.await)
}

/// Waits until a task is over, and gives all that is known of it.
async fn wait(link: &mut Link, task: &str) -> Result<InspectTaskReply, Refusal> {
    link.ask(&Request::FollowTask(FollowTaskRequest { task: task.to_owned(), after: None }), true).await?;
    // As long as the task may take, which is the daemon's to bound.
    while link.answer::<FollowTaskReply>().await?.1 {}
    let request = InspectTaskRequest { task: task.to_owned(), output_bytes: Some(TASK_OUTPUT_BYTES_MAX) };
    Ok(link.call(&Request::InspectTask(request)).await?)
}

/// How it ended, with the keys of ClaudeCluster's demonstration.
fn told(ended: &InspectTaskReply, prompt: &str, command: &[String]) -> Value {
    let task = &ended.task;
    let time = |text: &Option<String>| text.as_deref().and_then(|text| humantime::parse_rfc3339(text).ok());
    let took = time(&task.began).zip(time(&task.ended)).and_then(|(began, ended)| ended.duration_since(began).ok());
    let code = match task.exit {
        Some(Cause::Exited(code)) => Some(code),
        Some(_) | None => None,
    };
    json!({
        "success": task.state == TaskState::Completed,
        "taskId": task.task,
        "status": task.state,
        "workerId": task.worker_id,
        "command": command.join(" "),
        "prompt": prompt,
        "output": ended.output,
        "outputSkippedBytes": ended.skipped_bytes,
        "result": ended.output.trim(),
        "error": task.error,
        "exitCode": code,
        "executionTime": took.and_then(|took| u64::try_from(took.as_millis()).ok()),
        "timestamp": task.ended,
    })
}
