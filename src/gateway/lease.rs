//! A worker held for one request: the lease of it, the connection that comes with it, and its end.
//!
//! The daemon has made the connection and has checked that it leads to the worker; from here it is spoken HTTP on. However a
//! request ends, the lease does: said where it is known how, and else by the end of the connection to the daemon, which then
//! sees to it that the worker is given nothing before it has let go.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use halsup::protocol::control::{
    CallFailure, EndLeaseReply, EndLeaseRequest, LeaseOutcome, LeaseReply, LeaseRequest, Request as Call,
};
use halsup::protocol::service::ServiceError;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::AbortHandle;

use crate::clock::{self, Instant};
use crate::link::{Address, Link, LinkError};
use crate::tunnel::{Changed, End};

/// A worker, held.
#[derive(Debug)]
pub(crate) struct Lease {
    socket: OwnedFd,
    held: Held,
}

/// What holds it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) link: Link,
    pub(crate) told: LeaseReply,
    place: OwnedSemaphorePermit,
}

/// What a worker has answered.
#[derive(Debug)]
pub(crate) enum Answered {
    /// Whatever it is: its end is the lease's.
    With(Response<Body>),
    /// It speaks another protocol from now on.
    Changed(Response<()>, Box<Changed>),
}

/// Whether a request asks its worker for another protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    Answer,
    Upgrade,
}

/// How a request to a worker failed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No byte of it was sent: it comes back.
    Unsent(Box<Request<Body>>, String),
    /// The worker may have run it.
    Broken(String),
    /// It was not answered in time.
    Late,
    /// The daemon is gone, and with it the lease.
    Ended,
}

/// Ends a task with whatever has it.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Lease {
    /// Waits for a worker, on behalf of whoever has shown `token`, or nothing.
    pub(crate) async fn take(
        address: &Address,
        token: Option<&str>,
        wanted: LeaseRequest,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, LinkError> {
        let mut link = address.connect().await?;
        if let Some(token) = token {
            // As everywhere: a token that is none is as good as nothing, and another thing than one that does not reach so far.
            link.identify(Some(token)).await.map_err(|error| match error {
                LinkError::Failed(CallFailure::Service(ServiceError::PermissionDenied {})) => LinkError::NoToken,
                other @ (LinkError::Unreachable(_)
                | LinkError::Silent
                | LinkError::Busy
                | LinkError::Garbled
                | LinkError::NoToken
                | LinkError::Failed(_)) => other,
            })?;
        }
        // The daemon knows how long it may take, and always answers.
        link.ask(&Call::Lease(Box::new(wanted)), false).await?;
        let (told, _) = link.answer::<LeaseReply>().await?;
        let socket = link.take_passed().ok_or(LinkError::Garbled)?;
        Ok(Self { socket, held: Held { link, told, place } })
    }

    /// What the daemon has said of it.
    pub(crate) const fn told(&self) -> &LeaseReply {
        &self.held.told
    }

    /// Sends a request and waits for the head of its answer until `due`. The answer's body ends the lease, or what is said
    /// in another protocol.
    pub(crate) async fn send(self, request: Request<Body>, wants: Wants, due: Instant) -> Result<Answered, Trouble> {
        let Self { socket, mut held } = self;
        let stream = match tokio::net::TcpStream::from_std(TcpStream::from(socket)) {
            Ok(stream) => stream,
            Err(error) => return Err(Trouble::Unsent(Box::new(request), failed(&error))),
        };
        let (mut sender, connection) = match http1::handshake::<_, Body>(TokioIo::new(stream)).await {
            Ok(both) => both,
            Err(error) => return Err(Trouble::Unsent(Box::new(request), failed(&error))),
        };
        let connection = Task(tokio::spawn(connection.with_upgrades()).abort_handle());
        let answered = tokio::select! {
            answered = sender.try_send_request(request) => answered,
            () = tokio::time::sleep_until(due) => return Err(Trouble::Late),
            () = held.link.closed() => return Err(Trouble::Ended),
        };
        let response = match answered {
            Ok(response) => response,
            Err(mut error) => {
                let reason = failed(error.error());
                if let Some(request) = error.take_message() {
                    // It says nothing of the worker but that it cannot be reached, which is enough.
                    held.failed().await;
                    return Err(Trouble::Unsent(Box::new(request), reason));
                }
                if clock::now() >= due {
                    return Err(Trouble::Late);
                }
                held.failed().await;
                return Err(Trouble::Broken(reason));
            }
        };
        match (response.status(), wants) {
            (StatusCode::SWITCHING_PROTOCOLS, Wants::Upgrade) => change(response, held, connection, due).await,
            (StatusCode::SWITCHING_PROTOCOLS, Wants::Answer) => {
                held.failed().await;
                Err(Trouble::Broken("it changed its protocol unasked".to_owned()))
            }
            _ => Ok(Answered::With(held.answer(response, connection))),
        }
    }
}

/// An error and what caused it, in one line.
fn failed(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Takes the connection back from what spoke HTTP on it.
async fn change(response: Response<Incoming>, mut held: Held, task: Task, due: Instant) -> Result<Answered, Trouble> {
    let (parts, body) = response.into_parts();
    let head = Response::from_parts(parts.clone(), ());
    if !head.headers().contains_key(header::UPGRADE) {
        held.failed().await;
        return Err(Trouble::Broken("it changed its protocol and did not say to which".to_owned()));
    }
    let upgraded = hyper::upgrade::on(Response::from_parts(parts, body));
    let Ok(upgraded) = tokio::time::timeout_at(due, upgraded).await else { return Err(Trouble::Late) };
    let ended = match upgraded {
        Ok(upgraded) => {
            upgraded.downcast::<TokioIo<tokio::net::TcpStream>>().map_err(|_other| "it was lost".to_owned())
        }
        Err(error) => Err(failed(&error)),
    };
    drop(task);
    match ended {
        Ok(parts) => {
            let worker = End { stream: parts.io.into_inner(), early: parts.read_buf };
            Ok(Answered::Changed(head, Box::new(Changed { worker, held })))
        }
        Err(reason) => {
            held.failed().await;
            Err(Trouble::Broken(reason))
        }
    }
}

impl Held {
    /// Its request was not answered, or not to the end.
    async fn failed(&mut self) {
        end(&mut self.link, &self.told.lease, LeaseOutcome::Failed).await;
    }

    /// An answer that ends the lease when it ends.
    fn answer(self, response: Response<Incoming>, connection: Task) -> Response<Body> {
        let outcome = if response.status().is_server_error() { LeaseOutcome::ServerError } else { LeaseOutcome::Done };
        let (said, says) = oneshot::channel();
        let (confirms, confirmed) = oneshot::channel();
        let keeper = Keeper { link: self.link, lease: self.told.lease, place: self.place, confirms };
        tokio::spawn(keeper.keep(says, connection.0.clone()));
        let left = self.told.answer_bytes_max;
        let (parts, inner) = response.into_parts();
        let mut answer = Answer {
            inner,
            left,
            outcome,
            said: Some(said),
            confirmed: Some(confirmed),
            state: State::Flows,
            connection,
        };
        if answer.inner.is_end_stream() {
            answer.say(outcome);
        }
        Response::from_parts(parts, Body::new(answer))
    }
}

/// How long the daemon has to answer that a lease is over.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Says how a lease has ended; whether it had not before.
pub(crate) async fn end(link: &mut Link, lease: &str, outcome: LeaseOutcome) -> bool {
    let request = Call::EndLease(EndLeaseRequest { lease: lease.to_owned(), outcome });
    let ended = tokio::time::timeout(END_PATIENCE, link.call::<EndLeaseReply>(&request)).await;
    matches!(ended, Ok(Ok(EndLeaseReply { ended: true })))
}

/// Holds a lease until its answer is over.
#[derive(Debug)]
struct Keeper {
    link: Link,
    lease: String,
    place: OwnedSemaphorePermit,
    confirms: oneshot::Sender<bool>,
}

impl Keeper {
    async fn keep(mut self, says: oneshot::Receiver<LeaseOutcome>, connection: AbortHandle) {
        tokio::select! {
            said = says => if let Ok(outcome) = said {
                let ended = end(&mut self.link, &self.lease, outcome).await;
                if self.confirms.send(ended).is_err() {
                    tracing::debug!("a lease ended, and nobody waited for it");
                }
            },
            // The lease is over, whatever its worker still says.
            () = self.link.closed() => connection.abort(),
        }
        drop(self.place);
    }
}

#[derive(Debug)]
enum State {
    Flows,
    /// All has come; whether that was all is for the daemon to say.
    Confirming(oneshot::Receiver<bool>),
    Over,
}

/// The body of a worker's answer.
#[derive(Debug)]
struct Answer {
    inner: Incoming,
    /// How many bytes it may still have.
    left: Option<u64>,
    outcome: LeaseOutcome,
    said: Option<oneshot::Sender<LeaseOutcome>>,
    confirmed: Option<oneshot::Receiver<bool>>,
    state: State,
    connection: Task,
}

impl Answer {
    /// Says how it ended. That the keeper is gone means that the lease is over.
    fn say(&mut self, outcome: LeaseOutcome) {
        let said = self.said.take().map_or(Ok(()), |said| said.send(outcome));
        if said.is_err() {
            tracing::debug!("an answer ended after its lease");
        }
    }
}

/// Why an answer is broken off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the worker broke off")]
    Off(#[source] hyper::Error),
    #[error("the worker or its time was over before its answer")]
    Over,
    #[error("the answer is longer than it may be")]
    Long,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        loop {
            match &mut self.state {
                State::Over => return Poll::Ready(None),
                State::Confirming(confirmed) => {
                    let ended = ready!(Pin::new(confirmed).poll(cx));
                    self.state = State::Over;
                    // An answer without a length ends with its connection, however that came to its end.
                    return Poll::Ready(if ended == Ok(true) { None } else { Some(Err(Broken::Over.into())) });
                }
                State::Flows => {}
            }
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => {
                    let outcome = self.outcome;
                    self.say(outcome);
                    self.state = self.confirmed.take().map_or(State::Over, State::Confirming);
                    continue;
                }
                Some(Err(error)) => {
                    self.state = State::Over;
                    self.say(LeaseOutcome::Failed);
                    return Poll::Ready(Some(Err(Broken::Off(error).into())));
                }
                Some(Ok(frame)) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            if let Some(left) = &mut self.left {
                let Some(rest) = left.checked_sub(data.len() as u64) else {
                    self.state = State::Over;
                    self.said = None;
                    self.connection.0.abort();
                    return Poll::Ready(Some(Err(Broken::Long.into())));
                };
                *left = rest;
            }
            if self.inner.is_end_stream() {
                let outcome = self.outcome;
                self.say(outcome);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
