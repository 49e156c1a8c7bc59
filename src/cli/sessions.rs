//! `halsup sessions`: the workers that are claimed or have a terminal, and which one is meant by a name.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::context::Context;
use super::error::Error;
use super::human;
use super::session;
use super::table::table;
use crate::protocol::control::{
    CallFailure, CallSessionInfo, Error as ControlError, ListRequest, ListSessionsReply, Request, SessionInfo,
    SessionsReply, Target, WorkerState,
};
use crate::spec::PoolName;

/// What is said where there is none.
const NONE: &str = "No running sessions. `halsup ps` lists workers without a terminal too.";

/// The same of requests.
const NONE_OF_REQUESTS: &str = "No sessions of requests.";

/// List sessions: workers that somebody has claimed or that have a terminal. With `--requests`, the sessions that requests belong
/// to (`halsup call --session`): which worker each has, and when it is over.
#[derive(Debug, Args)]
pub(super) struct Sessions {
    /// Only those of this pool.
    #[arg(value_name = "POOL", value_parser = super::pool_name)]
    pub(super) pool: Option<PoolName>,
    /// Sessions of requests instead.
    #[arg(long)]
    requests: bool,
}

impl Sessions {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if self.requests {
            return of_requests(context, self.pool);
        }
        let reply: SessionsReply = context.client()?.call(&Request::Sessions(ListRequest { pool: self.pool }))?;
        if context.output.is_json() {
            let socket = context.socket()?;
            return context.output.json_line(&Listed::of(&reply.sessions, socket.parent().unwrap_or(&socket)));
        }
        context.output.text(&render(&reply.sessions))
    }
}

fn of_requests(context: &Context, pool: Option<PoolName>) -> Result<(), Error> {
    let mut all = ListSessionsReply::default();
    context.client()?.call_more(&Request::ListSessions(ListRequest { pool }), |reply: ListSessionsReply| {
        all.sessions.extend(reply.sessions);
        Ok(())
    })?;
    context.output.answer(&all, |all| {
        if all.sessions.is_empty() {
            return NONE_OF_REQUESTS.to_owned();
        }
        let row = |session: &CallSessionInfo| {
            let worker = human::or_dash(session.worker.as_ref(), Clone::clone);
            [
                session.session.clone(),
                session.pool.clone(),
                if session.lost { format!("{worker}, gone") } else { worker },
                session.requests.to_string(),
                human::age(session.ttl_ms / 1000),
                human::or_dash(session.expires_in_ms, |ms| human::age(ms / 1000)),
            ]
        };
        table(["NAME", "POOL", "WORKER", "REQUESTS", "TTL", "OVER IN"], all.sessions.iter().map(row))
    })
}

/// The list as JSON: the keys that `show-workers -j` of HAL-9000 has, and our own as `sessions`.
#[derive(Serialize)]
struct Listed<'a> {
    parent_running: bool,
    coordinator: Coordinator,
    worker_count: usize,
    workers: Vec<Worker<'a>>,
    sessions: &'a [SessionInfo],
}

#[derive(Serialize)]
struct Coordinator {
    active: bool,
    socket_dir: String,
}

#[derive(Serialize)]
struct Worker<'a> {
    name: &'a str,
    status: WorkerState,
    started: &'a str,
    image: Option<&'a str>,
    /// What was a socket of tmux is a terminal that the daemon holds.
    tmux_socket: TmuxSocket,
    session: &'a str,
}

#[derive(Serialize)]
struct TmuxSocket {
    exists: bool,
    healthy: bool,
}

impl<'a> Listed<'a> {
    fn of(sessions: &'a [SessionInfo], socket_dir: &Path) -> Self {
        let worker = |session: &'a SessionInfo| Worker {
            name: &session.worker,
            status: session.state,
            started: &session.started,
            image: session.image.as_deref(),
            tmux_socket: TmuxSocket {
                exists: session.columns.is_some(),
                healthy: session.columns.is_some() && session.state == WorkerState::Healthy,
            },
            session: &session.name,
        };
        // Those that are only kept run no more.
        let living: Vec<&SessionInfo> = sessions.iter().filter(|session| session.ended.is_none()).collect();
        Self {
            // The daemon has answered.
            parent_running: true,
            coordinator: Coordinator { active: true, socket_dir: socket_dir.display().to_string() },
            worker_count: living.len(),
            workers: living.into_iter().map(worker).collect(),
            sessions,
        }
    }
}

fn render(sessions: &[SessionInfo]) -> String {
    if sessions.is_empty() {
        return NONE.to_owned();
    }
    let header = ["NAME", "WORKER", "STATE", "STARTED", "PROJECT", "SIZE", "VIEWERS", "TYPING"];
    table(
        header,
        sessions.iter().map(|session| {
            [
                session.name.clone(),
                session.worker.clone(),
                state(session),
                session.started.clone(),
                session.project.clone().unwrap_or_else(|| "-".into()),
                session
                    .columns
                    .zip(session.rows)
                    .map_or_else(|| "-".into(), |(columns, rows)| format!("{columns}x{rows}")),
                session.viewers.to_string(),
                session.writer.clone().unwrap_or_else(|| "-".into()),
            ]
        }),
    )
}

/// What it is doing, or how it ended.
fn state(session: &SessionInfo) -> String {
    match (session.exit, session.frozen) {
        (Some(cause), _) => format!("ended ({cause})"),
        (None, true) => format!("{}, frozen", session.state),
        (None, false) => session.state.to_string(),
    }
}

/// The session that a name means, or the only one there is.
///
/// # Errors
/// No such session (exit 5), or more than one and no name (2).
pub(super) fn pick(client: &mut Client, name: Option<&str>) -> Result<(Target, String), Error> {
    if let Some(name) = name {
        // A claimed worker has a name of its own, which may look like a pool's.
        let claimed =
            session::all(client)?.into_iter().find(|one| one.session.as_ref().is_some_and(|s| s.name == name));
        if let Some(worker) = claimed {
            return Ok((session::target_of(&worker)?, name.to_owned()));
        }
        let target = name.parse().ok().filter(|target| *target != Target::All);
        return target
            .map(|target| (target, name.to_owned()))
            .ok_or_else(|| Error::SessionNotFound { name: name.to_owned() });
    }
    let reply: SessionsReply = client.call(&Request::Sessions(ListRequest { pool: None }))?;
    let living: Vec<SessionInfo> = reply.sessions.into_iter().filter(|session| session.ended.is_none()).collect();
    match living.as_slice() {
        [] => Err(Error::NoSessions { sentence: NONE }),
        [only] => pick(client, Some(&only.name)),
        several => {
            let names: Vec<_> = several.iter().map(|session| session.name.as_str()).collect();
            Err(Error::Usage { reason: format!("several sessions run, name one of them: {}", names.join(", ")) })
        }
    }
}

/// A refusal that means that there is no such session is said in those words.
pub(super) fn not_found(error: Error, name: &str) -> Error {
    let is_missing = matches!(error, Error::Refused(CallFailure::Control(ControlError::NotFound { .. })));
    if is_missing { Error::SessionNotFound { name: name.to_owned() } } else { error }
}
