//! ClaudeCluster's sessions: a worker of a pool that dispatches, and one caller's requests to it, until nobody has asked for
//! anything for some time. They live in the daemon, which also ends them.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use halsup::protocol::control::{
    CallFailure, CallSessionInfo, CloseSessionRequest, Empty, Error, ExecuteReply, ExecuteRequest, IdentifyReply,
    ListRequest, ListSessionsReply, OpenSessionReply, OpenSessionRequest, PoolStatsReply, PoolStatsRequest, Request,
    RequestFailure, RequestOutcome,
};
use halsup::spec::PoolName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::tasks::{bad, body, sent};
use crate::answer::Refusal;
use crate::clock;
use crate::guard::Shown;
use crate::hub::{caller, pool_of};
use crate::link::{Link, LinkError};
use crate::serve::Shared;

/// How long a session is there without a request, where nobody says, in seconds.
const TTL_SECONDS: u64 = 3_600;
/// The longest, in seconds: a year.
const TTL_SECONDS_MAX: u64 = 365 * 86_400;

/// The body of `POST /sessions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Opened {
    /// Its name; made up where nobody says.
    session_id: Option<String>,
    /// Of which pool, where there are several.
    pool: Option<String>,
    /// In seconds.
    ttl: Option<u64>,
}

/// The body of `POST /sessions/{session}/tasks`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Task {
    command: Option<String>,
    args: Option<Value>,
    /// What is asked of a worker that takes prompts: the command `run`, with this as its `prompt`.
    prompt: Option<String>,
    timeout_ms: Option<u64>,
    /// What ties it to its caller's records.
    task_id: Option<String>,
}

/// What may stand behind the path of a session.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    pool: Option<String>,
}

fn at(later_ms: u64) -> Option<String> {
    let time = clock::wall().checked_add(std::time::Duration::from_millis(later_ms))?;
    Some(humantime::format_rfc3339_millis(time).to_string())
}

fn told(session: &CallSessionInfo) -> Value {
    json!({
        "sessionId": session.session,
        "pool": session.pool,
        "status": if session.lost { "lost" } else { "active" },
        "worker": session.worker,
        "activeTasks": session.requests,
        "ttl": session.ttl_ms / 1_000,
        // Never while something is asked of it.
        "expiresAt": session.expires_in_ms.and_then(at),
    })
}

/// The pool that sessions are of: the one that is asked for, or is the token's or the gateway's own, or the only one that dispatches.
async fn pool(shared: &Shared, link: &mut Link, who: &IdentifyReply, asked: Option<&str>) -> Result<PoolName, Refusal> {
    if let Some(asked) = asked {
        return PoolName::parse(asked).map_err(|_none| bad("pool: expected the name of a pool"));
    }
    if let Some(own) = pool_of(who) {
        return Ok(own);
    }
    if let Some(named) = shared.pool() {
        return PoolName::parse(named).map_err(|_none| Refusal::not_found());
    }
    let stats: PoolStatsReply = link.call(&Request::PoolStats(PoolStatsRequest { pool: None })).await?;
    match stats.pools.as_slice() {
        [one] => PoolName::parse(&one.pool).map_err(|_none| Refusal::not_found()),
        [] => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "Not found",
            "no pool dispatches: write `dispatch = true` into one",
        )),
        _ => Err(bad("pool: several pools dispatch: say which")),
    }
}

/// The sessions that this caller may know of.
async fn all(link: &mut Link, who: &IdentifyReply, pool: Option<PoolName>) -> Result<Vec<CallSessionInfo>, Refusal> {
    let request = Request::ListSessions(ListRequest { pool: pool.or_else(|| pool_of(who)) });
    link.ask(&request, true).await?;
    let mut sessions = Vec::new();
    loop {
        let (piece, more): (ListSessionsReply, bool) = link.answer().await?;
        sessions.extend(piece.sessions);
        if !more {
            return Ok(sessions);
        }
    }
}

/// The one of this name.
async fn find(link: &mut Link, who: &IdentifyReply, name: &str, asked: &Asked) -> Result<CallSessionInfo, Refusal> {
    let pool = asked.pool.as_deref().map(PoolName::parse).transpose();
    let pool = pool.map_err(|_none| bad("pool: expected the name of a pool"))?;
    let mut named = all(link, who, pool).await?.into_iter().filter(|session| session.session == name);
    match (named.next(), named.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Refusal::new(StatusCode::NOT_FOUND, "Session not found", "there is no session of this name")),
        (Some(_), Some(_)) => {
            Err(Refusal::new(StatusCode::CONFLICT, "Refused", "several pools have one of this name: say ?pool=NAME"))
        }
    }
}

/// `POST /sessions`.
pub(crate) async fn open(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    read: Result<Json<Opened>, JsonRejection>,
) -> Response {
    let made = async {
        let wanted = body(read)?;
        let ttl = wanted.ttl.unwrap_or(TTL_SECONDS);
        if !(1..=TTL_SECONDS_MAX).contains(&ttl) {
            return Err(bad("ttl: expected seconds, from 1 to those of a year"));
        }
        if shared.is_draining() {
            let message = "Worker is currently draining and cannot accept new sessions";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message));
        }
        let (mut link, who) = shared.link(&shown).await?;
        let pool = pool(&shared, &mut link, &who, wanted.pool.as_deref()).await?;
        if let Some(name) = &wanted.session_id
            && all(&mut link, &who, Some(pool.clone())).await?.iter().any(|session| session.session == *name)
        {
            return Err(Refusal::new(StatusCode::CONFLICT, "Session already exists", "take another sessionId"));
        }
        let ttl_ms = ttl.saturating_mul(1_000);
        let named = pool.to_string();
        let request = OpenSessionRequest { pool, session: wanted.session_id, ttl_ms: Some(ttl_ms) };
        let reply: OpenSessionReply = link.call(&Request::OpenSession(request)).await?;
        let told = json!({
            "message": "Session created",
            "sessionId": reply.session,
            "options": { "pool": named, "ttl": ttl },
            "expiresAt": at(ttl_ms),
        });
        Ok((StatusCode::CREATED, Json(told)).into_response())
    };
    sent(made.await)
}

/// `GET /sessions`.
pub(crate) async fn list(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> Response {
    let made = async {
        let (mut link, who) = shared.link(&shown).await?;
        let sessions = all(&mut link, &who, None).await?;
        let told = json!({
            "sessions": sessions.iter().map(told).collect::<Vec<_>>(),
            "totalActiveSessions": sessions.iter().filter(|session| !session.lost).count(),
        });
        Ok(Json(told).into_response())
    };
    sent(made.await)
}

/// `GET /sessions/{session}`.
pub(crate) async fn show(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    Path(session): Path<String>,
    Query(asked): Query<Asked>,
) -> Response {
    let made = async {
        let (mut link, who) = shared.link(&shown).await?;
        Ok(Json(told(&find(&mut link, &who, &session, &asked).await?)).into_response())
    };
    sent(made.await)
}

/// `DELETE /sessions/{session}`.
pub(crate) async fn close(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    Path(session): Path<String>,
    Query(asked): Query<Asked>,
) -> Response {
    let made = async {
        let (mut link, who) = shared.link(&shown).await?;
        let found = find(&mut link, &who, &session, &asked).await?;
        let pool = PoolName::parse(&found.pool).map_err(|_none| Refusal::not_found())?;
        let request = CloseSessionRequest { pool, session: found.session };
        let _: Empty = link.call(&Request::CloseSession(request)).await?;
        Ok(Json(json!({ "message": "Session ended", "sessionId": session })).into_response())
    };
    sent(made.await)
}

/// `POST /sessions/{session}/tasks`: answered with what comes of it.
pub(crate) async fn task(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    Path(session): Path<String>,
    Query(asked): Query<Asked>,
    read: Result<Json<Task>, JsonRejection>,
) -> Response {
    let made = async {
        let task = body(read)?;
        let (command, args) = match (task.command, task.prompt) {
            (Some(command), None) if !command.is_empty() => (command, task.args),
            (None, Some(prompt)) if !prompt.is_empty() => {
                let mut args = match task.args {
                    Some(Value::Object(args)) => args,
                    None => Map::new(),
                    Some(_) => return Err(bad("args: expected an object beside a prompt")),
                };
                args.insert("prompt".to_owned(), Value::String(prompt));
                ("run".to_owned(), Some(Value::Object(args)))
            }
            (Some(_) | None, Some(_) | None) => return Err(bad("expected either a command or a prompt, not empty")),
        };
        if shared.is_draining() {
            let message = "Worker is currently draining and cannot accept new tasks";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message));
        }
        let (mut link, who) = shared.link(&shown).await?;
        // It holds a connection to the daemon for as long as it takes.
        let _place = shared.logs().place(&caller(&who))?;
        let found = find(&mut link, &who, &session, &asked).await?;
        let pool = PoolName::parse(&found.pool).map_err(|_none| Refusal::not_found())?;
        let request = ExecuteRequest {
            pool,
            command,
            args,
            session: Some(found.session),
            affinity: None,
            timeout_ms: task.timeout_ms,
            queue_timeout_ms: None,
            idempotent: None,
            correlation: task.task_id,
            payload: None,
            stream: None,
            bill: None,
            input: None,
        };
        link.ask(&Request::Execute(Box::new(request)), false).await?;
        // As long as it may take, which is the daemon's to bound.
        match link.answer::<ExecuteReply>().await {
            Ok((reply, _)) => Ok(Json(answered(&session, &reply)).into_response()),
            Err(LinkError::Failed(CallFailure::Control(Error::RequestFailed(failure)))) => failed(&session, &failure),
            Err(error) => Err(error.into()),
        }
    };
    sent(made.await)
}

fn answered(session: &str, reply: &ExecuteReply) -> Value {
    json!({
        "message": "Task completed",
        "taskId": reply.correlation,
        "sessionId": session,
        "status": "completed",
        "success": true,
        "result": reply.result,
        "worker": reply.worker,
        "executionTime": reply.usec.map(|usec| usec / 1_000),
    })
}

/// What a worker has answered is an answer, also where it is an error; whatever else became of it is the pool's.
fn failed(session: &str, failure: &RequestFailure) -> Result<Response, Refusal> {
    if failure.outcome == RequestOutcome::Answered {
        let told = json!({
            "message": "Task failed",
            "taskId": failure.correlation,
            "sessionId": session,
            "status": "failed",
            "success": false,
            "error": failure.message,
            "worker": failure.worker,
        });
        return Ok(Json(told).into_response());
    }
    let (status, error) = match failure.category.as_str() {
        "timeout" => (StatusCode::GATEWAY_TIMEOUT, "Gateway timeout"),
        "validation" => (StatusCode::BAD_REQUEST, "Bad request"),
        "pool" => (StatusCode::SERVICE_UNAVAILABLE, "Service unavailable"),
        _ => (StatusCode::BAD_GATEWAY, "Bad gateway"),
    };
    Err(Refusal::new(status, error, failure.message.clone()))
}
