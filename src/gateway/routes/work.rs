//! `/w/{pool}/…`: requests for the workers of a pool that serve HTTP, passed on to one of them and its answer passed back.
//!
//! What a worker says is not touched but for what belongs to the connection; what a client says of where it comes from is
//! not believed. A request that failed is tried with another worker while no byte of an answer has come, if it was not sent or
//! may run twice, and only as much of it is kept as that needs.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use axum::response::IntoResponse as _;
use halsup::protocol::control::{CallFailure, Error, LeaseReply, LeaseRequest, RequestFailure};
use halsup::spec::PoolName;
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame, SizeHint};
use hyper::upgrade::OnUpgrade;
use tokio::time::{sleep, timeout};

use crate::answer::Refusal;
use crate::clock::{self, Instant};
use crate::guard::Shown;
use crate::lease::{Answered, Lease, Trouble, Wants};
use crate::link::LinkError;
use crate::serve::{Room, Shared};
use crate::tunnel::{self, Places};
use crate::upgrade;

/// As much of a body is kept, so that it can be sent once more, in bytes.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// It has to have come within this time: no worker is held for it before.
const KEPT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a request waits here for others to be over, before it asks for a worker at all.
const PLACE_PATIENCE: Duration = Duration::from_secs(5);
/// A request that has no more time than this has none.
const TIME_SLACK: Duration = Duration::from_millis(20);
/// The longest name that a client may give its request, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// The longest summary of a request, in bytes.
const SUMMARY_BYTES_MAX: usize = 200;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const WORKER: HeaderName = HeaderName::from_static("x-halsup-worker");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-halsup-attempts");

/// What belongs to a connection and not to what is said on it (RFC 9110, 7.6.1).
const OF_CONNECTION: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// What others say of where a request comes from.
const HEARSAY: [HeaderName; 8] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-halsup-worker"),
];

/// Where a connection comes from, for the worker's records; nothing here is decided by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// The pool that is alone behind the socket that a request came by.
#[derive(Debug, Clone)]
pub(crate) struct Door(pub(crate) PoolName);

/// The body of a request, as far as it is kept.
enum Kept {
    /// All of it.
    Whole(Bytes),
    /// Its beginning; the rest can be sent once.
    Begun(Option<(Bytes, Body)>),
}

/// A request on its way.
struct Work {
    pool: PoolName,
    /// Path and query, as the worker sees them.
    target: String,
    parts: Parts,
    kept: Kept,
    peer: Option<Peer>,
    tried: Vec<String>,
    attempts: u32,
    begun: Instant,
    /// When its answer has to have come; not known before the first worker.
    due: Option<Instant>,
    last_error: String,
    /// The protocols that it asks for, instead of an answer.
    protocols: Option<HeaderValue>,
}

/// Any request below `/w/`, or at a door.
pub(crate) async fn work(
    State(shared): State<Shared>,
    Extension(shown): Extension<Shown>,
    request: Request<Body>,
) -> Response<Body> {
    let Some((pool, target)) = split(&request) else { return Refusal::not_found().into_response() };
    if shared.is_draining() {
        let message = "no new work is taken now";
        return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message).into_response();
    }
    let protocols = match upgrade::wanted(request.version(), request.headers()) {
        Ok(protocols) => protocols,
        Err(refusal) => return refusal.into_response(),
    };
    let (parts, body) = request.into_parts();
    let kept = match timeout(KEPT_PATIENCE, keep(body)).await {
        Ok(Ok(kept)) => kept,
        Ok(Err(refusal)) => return refusal.into_response(),
        Err(_late) => {
            let message = "the body of the request did not come";
            return Refusal::new(StatusCode::REQUEST_TIMEOUT, "Request timeout", message).into_response();
        }
    };
    let peer = parts.extensions.get::<Peer>().copied();
    let mut work = Work {
        pool,
        target,
        parts,
        kept,
        peer,
        tried: Vec::new(),
        attempts: 0,
        begun: clock::now(),
        due: None,
        last_error: String::new(),
        protocols,
    };
    let mut response = work.run(&shared, &shown).await.unwrap_or_else(Refusal::into_response);
    let headers = response.headers_mut();
    if let Some(worker) = work.tried.last().and_then(|name| HeaderValue::from_str(name).ok()) {
        headers.insert(WORKER, worker);
    }
    if work.attempts > 0 {
        headers.insert(ATTEMPTS, HeaderValue::from(work.attempts));
    }
    if let Some(id) = work.parts.headers.get(REQUEST_ID) {
        headers.insert(REQUEST_ID, id.clone());
    }
    response
}

/// The pool that a request is for, and what its worker is asked.
fn split(request: &Request<Body>) -> Option<(PoolName, String)> {
    let target = request.uri().path_and_query()?.as_str();
    if let Some(Door(pool)) = request.extensions().get::<Door>() {
        return Some((pool.clone(), target.to_owned()));
    }
    let rest = target.strip_prefix("/w/")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (pool, target) = rest.split_at(end);
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    PoolName::parse(pool).ok().map(|pool| (pool, target))
}

/// Reads as much of a body as is kept.
async fn keep(mut body: Body) -> Result<Kept, Refusal> {
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, "Bad request", format!("read the request's body: {error}"))
        })?;
        if let Ok(data) = frame.into_data() {
            kept.extend_from_slice(&data);
        }
        if kept.len() > KEPT_BYTES_MAX {
            return Ok(Kept::Begun(Some((kept.into(), body))));
        }
    }
    Ok(Kept::Whole(kept.into()))
}

impl Work {
    async fn run(&mut self, shared: &Shared, shown: &Shown) -> Result<Response<Body>, Refusal> {
        let (mut upgrade_place, wants) = match self.protocols {
            Some(_) => (Some(shared.upgrade_place().ok_or_else(too_many)?), Wants::Upgrade),
            None => (None, Wants::Answer),
        };
        loop {
            let Ok(place) = timeout(PLACE_PATIENCE, shared.lease_place()).await else {
                return Err(self.nobody());
            };
            let leased = Lease::take(shared.address(), shown.0.as_deref(), self.wanted(), place).await;
            let lease = leased.map_err(|error| self.refusal(error))?;
            self.attempts += lease.told().attempts;
            let due = *self.due.get_or_insert(clock::now() + Duration::from_millis(lease.told().head_ms));
            let again = self.tried.contains(&lease.told().worker);
            self.tried.push(lease.told().worker.clone());
            self.name_request(lease.told());
            if again {
                // It has failed with this very one: it gets a moment.
                let doubled = 1_u32.checked_shl(self.attempts.saturating_sub(2)).unwrap_or(u32::MAX);
                let pause = Duration::from_millis(lease.told().backoff_ms).saturating_mul(doubled);
                sleep(pause.min(due.saturating_duration_since(clock::now()))).await;
            }
            let attempts_max = lease.told().attempts_max;
            let request = self.request(lease.told())?;
            let (reason, may) = match lease.send(request, wants, due).await {
                Ok(Answered::With(response)) => return Ok(passed_back(response)),
                Ok(Answered::Changed(head, changed)) => {
                    let client = self.parts.extensions.remove::<OnUpgrade>().ok_or_else(Refusal::not_found)?;
                    let room = self.parts.extensions.get::<Room>().map(|room| room.0.clone());
                    let places = Places { _room: room, _upgrade: upgrade_place.take().ok_or_else(too_many)? };
                    tokio::spawn(tunnel::run(client, *changed, shared.ending(), places));
                    return Ok(changed_over(head));
                }
                Err(Trouble::Unsent(request, reason)) => {
                    self.put_back(*request);
                    (reason, true)
                }
                Err(Trouble::Broken(reason)) => (reason, self.may_run_twice()),
                Err(Trouble::Late) => return Err(self.late()),
                Err(Trouble::Ended) => return Err(LinkError::Silent.into()),
            };
            self.last_error = reason;
            if self.is_too_long() {
                return Err(too_long());
            }
            if !may || self.attempts >= attempts_max {
                return Err(self.exhausted());
            }
            // Where the daemon has ended it at its time, that is seen here a moment early.
            if clock::now() + TIME_SLACK >= due {
                return Err(self.late());
            }
        }
    }

    /// What is asked of the daemon.
    fn wanted(&self) -> LeaseRequest {
        // One that lasts is not over when it has begun.
        let due = self.due.filter(|_| self.protocols.is_none());
        let left = due.map(|due| due.saturating_duration_since(clock::now()).as_millis());
        let path = self.target.split('?').next().unwrap_or_default();
        let summary: String = format!("{} {path}", self.parts.method).chars().take(SUMMARY_BYTES_MAX).collect();
        let fingerprint = match &self.kept {
            Kept::Whole(body) => {
                let mut hasher = DefaultHasher::new();
                (self.parts.method.as_str(), &self.target, body).hash(&mut hasher);
                Some(format!("{:016x}", hasher.finish()))
            }
            Kept::Begun(_) => None,
        };
        let id = self.parts.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_request_id(id));
        LeaseRequest {
            timeout_ms: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX).max(1)),
            not: (!self.tried.is_empty()).then(|| self.tried.clone()),
            correlation: id.map(str::to_owned),
            summary: Some(summary),
            fingerprint,
            upgrade: self.protocols.is_some().then_some(true),
            ..LeaseRequest::of(self.pool.clone())
        }
    }

    /// A request that has no name, or none that can be passed on, is called as its first lease is.
    fn name_request(&mut self, told: &LeaseReply) {
        if let Ok(id) = HeaderValue::from_str(&told.correlation) {
            self.parts.headers.insert(REQUEST_ID, id);
        }
    }

    /// The request as its worker gets it.
    fn request(&mut self, told: &LeaseReply) -> Result<Request<Body>, Refusal> {
        let declared = length(&self.parts.headers);
        let body = match &mut self.kept {
            Kept::Whole(body) if body.len() as u64 > told.request_bytes_max => return Err(too_long()),
            Kept::Whole(body) => Body::from(body.clone()),
            Kept::Begun(_) if declared.is_some_and(|length| length > told.request_bytes_max) => return Err(too_long()),
            Kept::Begun(rest) => {
                let (begin, rest) = rest.take().ok_or_else(|| self.exhausted())?;
                Body::new(Sent { begin: Some(begin), rest, left: told.request_bytes_max })
            }
        };
        let mut headers = self.parts.headers.clone();
        strip(&mut headers);
        for name in HEARSAY {
            headers.remove(name);
        }
        // It is shown to the gateway, and no worker's.
        headers.remove(header::AUTHORIZATION);
        headers.remove(header::EXPECT);
        let host = headers.remove(header::HOST);
        let mut say = |name: &'static str, value: Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        };
        say("host", HeaderValue::from_str(&format!("127.0.0.1:{}", told.port)).ok());
        say("x-forwarded-host", host);
        say("x-forwarded-proto", Some(HeaderValue::from_static("http")));
        let prefix = self.parts.extensions.get::<Door>().is_none().then(|| format!("/w/{}", self.pool));
        say("x-forwarded-prefix", prefix.and_then(|prefix| HeaderValue::from_str(&prefix).ok()));
        say("x-forwarded-for", self.peer.and_then(|peer| HeaderValue::from_str(&peer.0.to_string()).ok()));
        let kind = if self.protocols.is_some() { "upgrade" } else { "close" };
        say("connection", Some(HeaderValue::from_static(kind)));
        say("upgrade", self.protocols.clone());
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.target.parse().map_err(|_no_uri| Refusal::not_found())?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Of a request that was not sent, what is left can be sent another time.
    fn put_back(&mut self, request: Request<Body>) {
        if let Kept::Begun(rest) = &mut self.kept {
            *rest = Some((Bytes::new(), request.into_body()));
        }
    }

    fn may_run_twice(&self) -> bool {
        let safe = [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS];
        let said = safe.contains(&self.parts.method) || self.parts.headers.contains_key("idempotency-key");
        said && matches!(self.kept, Kept::Whole(_))
    }

    /// Whether it was longer than it may be, as it turned out while it was sent.
    fn is_too_long(&self) -> bool {
        self.last_error.contains(TOO_LONG)
    }

    fn instances(&self) -> usize {
        let mut names = self.tried.clone();
        names.sort();
        names.dedup();
        names.len()
    }

    /// In AtomForge's words.
    fn nobody(&self) -> Refusal {
        let waited = clock::now().saturating_duration_since(self.begun);
        let waited =
            if waited.as_secs() > 0 { format!("{}s", waited.as_secs()) } else { format!("{}ms", waited.as_millis()) };
        let message = format!(
            "No healthy daemon instances available after {waited} wait (attempted {} instances, pool exhausted)",
            self.instances()
        );
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message)
    }

    fn exhausted(&self) -> Refusal {
        let message = format!(
            "All retry attempts failed ({} attempts across {} instances). Last error: {}",
            self.attempts,
            self.instances(),
            self.last_error
        );
        Refusal::new(StatusCode::BAD_GATEWAY, "Bad gateway", message)
    }

    fn late(&self) -> Refusal {
        let worker = self.tried.last().map_or("a worker", String::as_str);
        let message = format!(
            "no answer of {worker} within {} ms",
            clock::now().saturating_duration_since(self.begun).as_millis()
        );
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout", message)
    }

    /// Why there is no worker.
    fn refusal(&mut self, error: LinkError) -> Refusal {
        // Another worker was asked for in the last moment.
        if self.due.is_some_and(|due| clock::now() >= due) {
            return self.late();
        }
        let unavailable =
            |message: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message);
        match error {
            LinkError::Failed(CallFailure::Control(Error::RequestFailed(failed))) => {
                let RequestFailure { reason, message, attempts, .. } = *failed;
                self.attempts += attempts;
                match reason.as_str() {
                    "queue_timeout" | "no_workers_available" | "circuit_open" => self.nobody(),
                    "worker_timeout" => self.late(),
                    "pool_not_found" | "not_dispatched" => Refusal::not_found(),
                    "undelivered" => {
                        self.last_error = message;
                        self.exhausted()
                    }
                    _ => unavailable(message),
                }
            }
            LinkError::Failed(CallFailure::Control(Error::Refused { reason })) if self.protocols.is_some() => {
                Refusal::new(StatusCode::FORBIDDEN, "Forbidden", reason)
            }
            // A pool that serves no HTTP.
            LinkError::Failed(CallFailure::Control(Error::Refused { reason })) => {
                Refusal::new(StatusCode::NOT_FOUND, "Not found", reason)
            }
            other @ (LinkError::Unreachable(_)
            | LinkError::Silent
            | LinkError::Busy
            | LinkError::Garbled
            | LinkError::NoToken
            | LinkError::Failed(_)) => other.into(),
        }
    }
}

const TOO_LONG: &str = "the request is longer than it may be";

fn too_long() -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large", TOO_LONG)
}

fn too_many() -> Refusal {
    let message = "there are as many connections that have changed their protocol as may be";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message)
}

fn is_request_id(id: &str) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Takes out what belongs to the connection.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty() && name != "host" && name != "content-length")
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in OF_CONNECTION {
        headers.remove(name);
    }
}

/// A worker's answer as the client gets it.
fn passed_back(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    strip(headers);
    // What a worker serves is not of the gateway's own origin, whatever it says of itself.
    headers.append(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox allow-scripts allow-forms; frame-ancestors 'none'"),
    );
    *response.version_mut() = axum::http::Version::HTTP_11;
    response
}

/// A worker's word that it changes the protocol, as the client gets it.
fn changed_over(head: Response<()>) -> Response<Body> {
    let mut response = head.map(|()| Body::empty());
    let headers = response.headers_mut();
    let protocol = headers.get(header::UPGRADE).cloned();
    strip(headers);
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
    }
    *response.version_mut() = axum::http::Version::HTTP_11;
    response
}

/// A body on its way to a worker: what was kept of it, and then the rest.
#[derive(Debug)]
struct Sent {
    begin: Option<Bytes>,
    rest: Body,
    /// How many bytes it may still have.
    left: u64,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        loop {
            let data = match self.begin.take() {
                Some(begin) => begin,
                None => match ready!(Pin::new(&mut self.rest).poll_frame(cx)) {
                    None => return Poll::Ready(None),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    // What comes behind a body is nobody's business.
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => data,
                        Err(_trailers) => continue,
                    },
                },
            };
            let Some(left) = self.left.checked_sub(data.len() as u64) else {
                return Poll::Ready(Some(Err(axum::Error::new(std::io::Error::other(TOO_LONG)))));
            };
            self.left = left;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
