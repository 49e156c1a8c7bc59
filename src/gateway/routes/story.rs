//! `GET /stream/{taskId}`: what happens to a task, as server-sent events, from its beginning or from where a client has been
//! cut off.

use axum::Extension;
use axum::extract::{OriginalUri, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use halsup::protocol::control::{FollowTaskReply, FollowTaskRequest, Request, TaskEvent, TaskEventKind};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::streams::{Asked, shown_for};
use crate::answer::Refusal;
use crate::guard::Shown;
use crate::hub::caller;
use crate::link::{Link, LinkError};
use crate::serve::Shared;
use crate::sse::{Gone, Writer, message, stream};

/// How often something is said where nothing happens, as its clients expect it.
const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(30);

/// Follows a task to its end.
pub(crate) async fn story(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    Path(task): Path<String>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let begun = async {
        let shown = shown_for(&shared, shown, &uri, &headers, &asked)?;
        let (mut link, who) = shared.link(&shown).await?;
        let place = shared.streams().place(&caller(&who))?;
        let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?").to_owned());
        let after = last.or_else(|| asked.last_event_id().map(str::to_owned));
        let after = after.map(|after| after.parse()).transpose().map_err(|_no_number| {
            let message = "Last-Event-ID: expected the id of an event of this task";
            Refusal::new(StatusCode::BAD_REQUEST, "Bad request", message)
        })?;
        let request = Request::FollowTask(FollowTaskRequest { task: task.clone(), after });
        link.ask(&request, true).await?;
        // The first answer comes at once, and says whether there is such a task.
        let first: (FollowTaskReply, bool) = link.answer().await?;
        let (writer, response) = stream(place);
        tokio::spawn(follow(task, link, first, writer, shared.ending()));
        Ok::<_, Refusal>(response)
    };
    begun.await.unwrap_or_else(Refusal::into_response)
}

async fn follow(
    task: String,
    mut link: Link,
    first: (FollowTaskReply, bool),
    writer: Writer,
    mut ending: watch::Receiver<()>,
) {
    let (mut reply, mut more) = first;
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.tick().await;
    loop {
        if tell(&task, &writer, &reply).await.is_err() || !more {
            return;
        }
        reply = FollowTaskReply::default();
        let said = tokio::select! {
            answered = link.answer::<FollowTaskReply>() => match answered {
                Ok(answer) => {
                    (reply, more) = answer;
                    Ok(())
                }
                Err(error) => return lost(&task, &writer, &error).await,
            },
            _ = beats.tick() => writer.send(message("heartbeat", None, &json!({ "taskId": task }))).await,
            _ = ending.changed() => {
                let last = message("server_shutdown", None, &json!({ "taskId": task, "reason": "the gateway ends" }));
                return writer.send(last).await.unwrap_or_else(|Gone| tracing::debug!("nobody reads the end of a stream"));
            }
            () = writer.gone() => return,
        };
        if said.is_err() {
            return;
        }
    }
}

/// The daemon went away, or says nothing more: whoever follows comes back with the id of what they were told last.
async fn lost(task: &str, writer: &Writer, error: &LinkError) {
    let last = message("server_shutdown", None, &json!({ "taskId": task, "reason": error.to_string() }));
    writer.send(last).await.unwrap_or_else(|Gone| tracing::debug!("nobody reads the end of a stream"));
}

async fn tell(task: &str, writer: &Writer, reply: &FollowTaskReply) -> Result<(), Gone> {
    if reply.missed > 0 {
        writer.send(message("missed", None, &json!({ "taskId": task, "missed": reply.missed }))).await?;
    }
    for event in &reply.events {
        let id = event.sequence.to_string();
        writer.send(message(&event.kind.to_string(), Some(&id), &told(task, event))).await?;
    }
    Ok(())
}

fn told(task: &str, event: &TaskEvent) -> Value {
    let mut told = json!({ "taskId": task, "type": event.kind, "timestamp": event.time });
    let data = match event.kind {
        TaskEventKind::Status => json!({ "status": event.state }),
        TaskEventKind::Progress => json!({ "progress": event.progress }),
        TaskEventKind::Output => json!({ "output": event.text }),
        TaskEventKind::Complete => json!({ "status": event.state, "exit": event.exit }),
        TaskEventKind::Error => json!({ "status": event.state, "error": event.text, "exit": event.exit }),
    };
    if let Some(fields) = told.as_object_mut() {
        fields.insert("data".to_owned(), data);
    }
    told
}
