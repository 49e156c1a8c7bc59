//! Streams: the daemon's events, the page's snapshots, the log of a worker; and the tickets by which a browser comes to them.
//!
//! Each has a heartbeat, by which also is asked whether its reader may still look, and an end that says why.

use axum::body::Bytes;
use axum::extract::{OriginalUri, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use halsup::protocol::control::{IdentifyReply, LAST_MAX, LOG_LINES_MAX, LogsReply, LogsRequest, Request, Target};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::answer::Refusal;
use crate::guard::{Shown, check_origin};
use crate::hub::{Told, caller};
use crate::link::{Link, LinkError};
use crate::serve::Shared;
use crate::sse::{Gone, HEARTBEAT, Place, Writer, message, stream};
use crate::tickets::LIFE;

/// Lines of a log that are told of before it is followed, where the caller does not say.
const LINES_DEFAULT: u32 = 100;
/// Events that a page is told of that happened before it was opened.
const EVENTS_BEFORE: usize = 50;
/// The longest path that a ticket is made for, in bytes.
const PATH_BYTES_MAX: usize = 256;
/// What is fetched by a ticket instead of a stream: the token that it stands for.
const TOKEN_PATH: &str = "/api/token";

/// What may stand behind the path of a stream.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    ticket: Option<String>,
    lines: Option<u32>,
    /// For clients that cannot set `Last-Event-ID`.
    last_event_id: Option<String>,
}

impl Asked {
    /// The id of the last event that a client knows, where it said so in the address.
    pub(crate) fn last_event_id(&self) -> Option<&str> {
        self.last_event_id.as_deref()
    }
}

/// The body of `POST /api/ticket`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TicketRequest {
    path: String,
}

/// `POST /api/ticket`: one stream, for who shows a token.
pub(crate) async fn ticket(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    Json(request): Json<TicketRequest>,
) -> Response {
    match told_ticket(&shared, &shown, &request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn told_ticket(shared: &Shared, shown: &Shown, request: &TicketRequest) -> Result<Response, Refusal> {
    let (_, who) = shared.link(shown).await?;
    let path = request.path.as_str();
    let is_stream = matches!(path, "/events" | "/api/watch" | TOKEN_PATH)
        || path.starts_with("/api/logs/")
        || path.starts_with("/stream/");
    if !is_stream || path.len() > PATH_BYTES_MAX {
        let message = "a ticket is for one stream: /events, /api/watch, /api/logs/WORKER or /stream/TASK";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "Bad request", message));
    }
    let token = shown.0.as_deref().ok_or_else(Refusal::unauthorized)?;
    let ticket = shared
        .tickets()
        .issue(token, path)
        .map_err(|error| Refusal::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests", error.to_string()))?;
    let told = json!({ "ticket": ticket, "path": path, "expires_in": LIFE.as_secs(), "role": who.role });
    Ok(Json(told).into_response())
}

/// `GET /api/token`: the token behind a ticket, for the page that was opened with it.
pub(crate) async fn token(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let told = async {
        let shown = shown_for(&shared, shown, &uri, &headers, &asked)?;
        let (_, who) = shared.link(&shown).await?;
        let token = shown.0.ok_or_else(Refusal::unauthorized)?;
        Ok::<_, Refusal>(Json(json!({ "token": token, "name": who.name, "role": who.role, "pool": who.pool })))
    };
    match told.await {
        Ok(told) => told.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// What is shown by the ticket in the address, if there is one.
pub(crate) fn shown_for(
    shared: &Shared,
    shown: Shown,
    uri: &Uri,
    headers: &HeaderMap,
    asked: &Asked,
) -> Result<Shown, Refusal> {
    check_origin(shared, headers)?;
    match &asked.ticket {
        None => Ok(shown),
        Some(ticket) => {
            let token = shared.tickets().redeem(ticket, uri.path());
            token.map(|token| Shown(Some(token))).ok_or_else(|| {
                let message = "this ticket is none: one is good once, for one stream, and for half a minute";
                Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
            })
        }
    }
}

/// A stream's reader, of whom is asked again and again.
struct Reader {
    shared: Shared,
    shown: Shown,
    writer: Writer,
    ending: watch::Receiver<()>,
}

/// Why a stream is over.
enum End {
    /// The reader has gone.
    Gone,
    /// The gateway ends.
    Shutdown,
    /// The daemon says nothing more, or not to this reader.
    Daemon,
}

impl From<Gone> for End {
    fn from(_gone: Gone) -> Self {
        Self::Gone
    }
}

impl Reader {
    fn new(shared: Shared, shown: Shown, place: Place) -> (Self, Response) {
        let (writer, response) = stream(place);
        let ending = shared.ending();
        (Self { shared, shown, writer, ending }, response)
    }

    /// Whether the reader may still look.
    async fn ask_again(&self) -> Result<(), End> {
        match self.shared.connect(&self.shown).await {
            Ok(_) => Ok(self.writer.beat().await?),
            Err(_) => Err(End::Daemon),
        }
    }

    /// Tells one event, unless it was told before; or how many could not wait for this reader.
    async fn tell(&self, told: Result<Told, RecvError>, reached: u64) -> Result<(), End> {
        let said = match told {
            Ok(told) if told.sequence <= reached => return Ok(()),
            Ok(told) => told.message,
            Err(RecvError::Lagged(missed)) => message("missed", None, &json!({ "missed": missed })),
            Err(RecvError::Closed) => return Err(End::Daemon),
        };
        Ok(self.writer.send(said).await?)
    }

    /// Says why it is over.
    async fn end(self, end: End) {
        let last = match end {
            End::Gone => return,
            End::Shutdown => message("server_shutdown", None, &json!({ "reason": "the gateway ends" })),
            End::Daemon => message("end", None, &json!({ "reason": "the daemon tells nothing more" })),
        };
        // Who is gone need not be told.
        self.writer.send(last).await.unwrap_or_else(|Gone| tracing::debug!("nobody reads the end of a stream"));
    }
}

/// `GET /events`.
pub(crate) async fn events(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let begun = async {
        let shown = shown_for(&shared, shown, &uri, &headers, &asked)?;
        let (_, who) = shared.link(&shown).await?;
        // Its place first: what follows costs more.
        let place = shared.streams().place(&caller(&who))?;
        let daemon = daemon_life(&who);
        let (kept, receiver) = shared.hubs().events(&shared, &shown, &who, &daemon).await?;
        let header = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let last = header.or(asked.last_event_id);
        let past = Past::since(kept, &daemon, last.as_deref(), who.pool.is_none());
        let (reader, response) = Reader::new(shared.clone(), shown, place);
        tokio::spawn(tell_events(reader, past, receiver));
        Ok::<_, Refusal>(response)
    };
    begun.await.unwrap_or_else(Refusal::into_response)
}

/// What tells one life of the daemon from others.
fn daemon_life(who: &IdentifyReply) -> String {
    who.started.iter().flat_map(|started| started.chars()).filter(char::is_ascii_digit).collect()
}

/// What has happened since: events after an id, how many are lost, and the sequence that they reach to.
struct Past {
    events: Vec<Told>,
    missed: u64,
    reached: u64,
}

impl Past {
    /// What of this is new to a reader who has seen the event of this id; nothing to one who begins. Who is told `all` events
    /// has missed those that are not there; of one pool's nobody knows how many there were between two of them, unless
    /// there are more than are kept.
    fn since(kept: Vec<Told>, daemon: &str, last: Option<&str>, all: bool) -> Self {
        let reached = kept.last().map_or(0, |told| told.sequence);
        let Some((life, number)) = last.and_then(|last| last.split_once('.')) else {
            return Self { events: Vec::new(), missed: 0, reached };
        };
        // Of another life of the daemon's: all of this one is new.
        let seen = number.parse::<u64>().ok().filter(|_| life == daemon).unwrap_or(0);
        let first = kept.first().map_or(0, |told| told.sequence);
        let may_miss = all || kept.len() >= usize::try_from(LAST_MAX).unwrap_or(usize::MAX);
        let missed = if may_miss { first.saturating_sub(seen.saturating_add(1)) } else { 0 };
        Self { events: kept.into_iter().filter(|told| told.sequence > seen).collect(), missed, reached }
    }
}

async fn tell_events(mut reader: Reader, past: Past, receiver: broadcast::Receiver<Told>) {
    let end = events_until(&mut reader, past, receiver).await;
    reader.end(end).await;
}

async fn events_until(reader: &mut Reader, past: Past, mut receiver: broadcast::Receiver<Told>) -> End {
    let begun = async {
        reader.writer.beat().await?;
        if past.missed > 0 {
            reader.writer.send(message("missed", None, &json!({ "missed": past.missed }))).await?;
        }
        for told in past.events {
            reader.writer.send(told.message).await?;
        }
        Ok::<(), Gone>(())
    };
    if begun.await.is_err() {
        return End::Gone;
    }
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.tick().await;
    loop {
        let said = tokio::select! {
            told = receiver.recv() => reader.tell(told, past.reached).await,
            _ = beats.tick() => reader.ask_again().await,
            _ = reader.ending.changed() => Err(End::Shutdown),
            () = reader.writer.gone() => Err(End::Gone),
        };
        if let Err(end) = said {
            return end;
        }
    }
}

/// `GET /api/watch`.
pub(crate) async fn watch(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let begun = async {
        let shown = shown_for(&shared, shown, &uri, &headers, &asked)?;
        let (_, who) = shared.link(&shown).await?;
        if let Some(pool) = &who.pool {
            let message = format!(
                "this token is for the pool {pool} alone, and the page shows all of them: /events, /metrics and \
                 /api/logs/WORKER tell it of its pool"
            );
            return Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message));
        }
        let place = shared.streams().place(&caller(&who))?;
        let daemon = daemon_life(&who);
        let (mut before, happening) = shared.hubs().events(&shared, &shown, &who, &daemon).await?;
        before.drain(..before.len().saturating_sub(EVENTS_BEFORE));
        let snapshots = shared.hubs().snapshots(&shared, &shown, &who).await?;
        let (reader, response) = Reader::new(shared.clone(), shown, place);
        tokio::spawn(tell_snapshots(reader, snapshots, before, happening));
        Ok::<_, Refusal>(response)
    };
    begun.await.unwrap_or_else(Refusal::into_response)
}

async fn tell_snapshots(
    mut reader: Reader,
    mut snapshots: watch::Receiver<Bytes>,
    before: Vec<Told>,
    mut happening: broadcast::Receiver<Told>,
) {
    let reached = before.last().map_or(0, |told| told.sequence);
    let before: Vec<u8> = before.iter().flat_map(|told| told.message.to_vec()).collect();
    let mut said = reader.writer.send(before.into()).await.map_err(End::from);
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.tick().await;
    let end = loop {
        if let Err(end) = said {
            break end;
        }
        said = tokio::select! {
            changed = snapshots.changed() => match changed {
                Ok(()) => {
                    let snapshot = snapshots.borrow_and_update().clone();
                    reader.writer.send(snapshot).await.map_err(End::from)
                }
                Err(_) => Err(End::Daemon),
            },
            told = happening.recv() => reader.tell(told, reached).await,
            _ = beats.tick() => reader.ask_again().await,
            _ = reader.ending.changed() => Err(End::Shutdown),
            () = reader.writer.gone() => Err(End::Gone),
        };
    };
    reader.end(end).await;
}

/// `GET /api/logs/{worker}`.
pub(crate) async fn logs(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    OriginalUri(uri): OriginalUri,
    Path(worker): Path<String>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let begun = async {
        let shown = shown_for(&shared, shown, &uri, &headers, &asked)?;
        let (mut link, who) = shared.link(&shown).await?;
        let worker: Target = worker.parse().map_err(|_none| Refusal::not_found())?;
        let place = shared.logs().place(&caller(&who))?;
        let lines = Some(asked.lines.unwrap_or(LINES_DEFAULT).min(LOG_LINES_MAX));
        let request = LogsRequest { worker, lines, follow: Some(true), session: None };
        link.ask(&Request::Logs(request), true).await?;
        let (first, _) = link.answer::<LogsReply>().await?;
        let (reader, response) = Reader::new(shared.clone(), shown, place);
        tokio::spawn(tell_lines(reader, link, first));
        Ok::<_, Refusal>(response)
    };
    begun.await.unwrap_or_else(Refusal::into_response)
}

async fn tell_lines(mut reader: Reader, mut link: Link, first: LogsReply) {
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.tick().await;
    let mut answer: Result<(LogsReply, bool), LinkError> = Ok((first, true));
    let end = loop {
        let said = match &answer {
            Ok((reply, _)) => {
                let entries = reply.entries.iter().map(|entry| message("log", None, entry).to_vec());
                let lines: Vec<u8> = entries.flatten().collect();
                if lines.is_empty() { Ok(()) } else { reader.writer.send(lines.into()).await.map_err(End::from) }
            }
            Err(_) => Err(End::Daemon),
        };
        if let Err(end) = said {
            break end;
        }
        answer = tokio::select! {
            answer = link.answer::<LogsReply>() => answer,
            _ = beats.tick() => match reader.ask_again().await {
                Ok(()) => Ok((LogsReply::default(), true)),
                Err(end) => break end,
            },
            _ = reader.ending.changed() => break End::Shutdown,
            () = reader.writer.gone() => break End::Gone,
        };
    };
    reader.end(end).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(sequences: std::ops::RangeInclusive<u64>) -> Vec<Told> {
        sequences.map(|sequence| Told { sequence, message: Bytes::new() }).collect()
    }

    #[test]
    fn who_comes_back_is_told_what_is_new_and_how_much_is_lost() {
        let since = |last: Option<&str>| {
            let past = Past::since(kept(11..=20), "7", last, true);
            (past.missed, past.events.first().map(|told| told.sequence), past.events.len(), past.reached)
        };
        assert_eq!(since(None), (0, None, 0, 20));
        assert_eq!(since(Some("7.15")), (0, Some(16), 5, 20));
        assert_eq!(since(Some("7.20")), (0, None, 0, 20));
        assert_eq!(since(Some("7.10")), (0, Some(11), 10, 20));
        assert_eq!(since(Some("7.4")), (6, Some(11), 10, 20));
        assert_eq!(since(Some("6.15")), (10, Some(11), 10, 20), "of another daemon's life");
        assert_eq!(since(Some("7.99999999999999999999")), (10, Some(11), 10, 20));
        assert_eq!(since(Some("nothing")), (0, None, 0, 20));
        assert_eq!(since(Some("7.30")), (0, None, 0, 20));
        let of_one_pool = |kept| Past::since(kept, "7", Some("7.4"), false).missed;
        assert_eq!(of_one_pool(kept(11..=20)), 0, "those between are of other pools");
        assert_eq!(of_one_pool(kept(11..=2_000)), 6, "as many as may be missing");
    }
}
