//! The way to the daemon: calls of its control interface over its socket for the gateway, each connection on behalf of one
//! caller.
//!
//! A connection says first what its caller has shown; from then on the daemon decides by that. Nothing is kept here of a
//! token; a stream keeps its own for as long as it goes on, and a ticket for half a minute.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use halsup::protocol::control::{CallFailure, IdentifyReply, IdentifyRequest, Request};
use halsup::protocol::service::ServiceError;
use halsup::protocol::varlink::{Decoder, Reply};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A daemon that says nothing for so long is one that is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many connections there may be at once: fewer than the daemon has places for its gateway, so that whoever comes in a
/// crowd waits here and is not refused there.
const LINKS_MAX: usize = 192;
/// How much is read at a time, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nobody listens there, or they went away.
    #[error("the daemon cannot be reached")]
    Unreachable(#[source] std::io::Error),
    /// It says nothing.
    #[error("the daemon does not answer")]
    Silent,
    /// As many ask it as may.
    #[error("too many ask the daemon at once")]
    Busy,
    /// It says something that is no answer.
    #[error("the daemon's answer cannot be read")]
    Garbled,
    /// It says no to who has shown nothing.
    #[error("this is told to who shows a token")]
    NoToken,
    /// It says no.
    #[error(transparent)]
    Failed(#[from] CallFailure),
}

impl From<std::io::Error> for LinkError {
    fn from(error: std::io::Error) -> Self {
        Self::Unreachable(error)
    }
}

/// Where the daemon is.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    path: PathBuf,
    places: Arc<Semaphore>,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    socket: UnixStream,
    decoder: Decoder,
    /// Whether a token was shown.
    has_shown: bool,
    /// The descriptor that came last.
    passed: Option<OwnedFd>,
    _place: OwnedSemaphorePermit,
}

impl Address {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, places: Arc::new(Semaphore::new(LINKS_MAX)) }
    }

    /// A connection on behalf of whoever has shown `token`, or nothing.
    pub(crate) async fn link(&self, token: Option<&str>) -> Result<(Link, IdentifyReply), LinkError> {
        let mut link = self.connect().await?;
        let who = link.identify(token).await?;
        Ok((link, who))
    }
}

impl Address {
    /// A connection on nobody's behalf yet.
    pub(crate) async fn connect(&self) -> Result<Link, LinkError> {
        let place = timeout(PATIENCE, Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(place)) = place else { return Err(LinkError::Busy) };
        let socket = UnixStream::connect(&self.path).await?;
        Ok(Link { socket, decoder: Decoder::for_replies(), has_shown: false, passed: None, _place: place })
    }
}

impl Link {
    /// Says on whose behalf it is.
    pub(crate) async fn identify(&mut self, token: Option<&str>) -> Result<IdentifyReply, LinkError> {
        self.has_shown = token.is_some();
        self.call(&Request::Identify(IdentifyRequest { token: token.map(str::to_owned) })).await
    }

    /// Takes the descriptor that came with what was answered last.
    pub(crate) fn take_passed(&mut self) -> Option<OwnedFd> {
        self.passed.take()
    }

    /// Waits for its end, while nothing is asked.
    pub(crate) async fn closed(&mut self) {
        // Whatever is said unasked is as bad as nothing.
        drop(self.frame().await);
    }

    /// Asks something that has one answer.
    pub(crate) async fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, LinkError> {
        self.ask(request, false).await?;
        timeout(PATIENCE, self.answer()).await.map_err(|_late| LinkError::Silent)?.map(|(answer, _)| answer)
    }

    /// Asks something; `more` for what has several answers.
    pub(crate) async fn ask(&mut self, request: &Request, more: bool) -> Result<(), LinkError> {
        let mut call = request.to_call();
        call.more = more;
        Ok(self.socket.write_all(&call.encode()).await?)
    }

    /// The next answer, and whether there are more after it.
    pub(crate) async fn answer<T: DeserializeOwned>(&mut self) -> Result<(T, bool), LinkError> {
        let frame = self.frame().await?;
        let reply = Reply::decode(&frame).map_err(|_garbled| LinkError::Garbled)?;
        if let Some(failure) = CallFailure::from_reply(&reply) {
            let is_denied = failure == CallFailure::Service(ServiceError::PermissionDenied {});
            return Err(if is_denied && !self.has_shown { LinkError::NoToken } else { failure.into() });
        }
        let more = reply.continues;
        let parameters = serde_json::Value::Object(reply.parameters);
        serde_json::from_value(parameters).map(|answer| (answer, more)).map_err(|_garbled| LinkError::Garbled)
    }

    async fn frame(&mut self) -> Result<Vec<u8>, LinkError> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|_too_long| LinkError::Garbled)? {
                return Ok(frame);
            }
            let count = self.receive(&mut buffer).await?;
            if count == 0 {
                return Err(LinkError::Unreachable(std::io::ErrorKind::UnexpectedEof.into()));
            }
            self.decoder.push(buffer.get(..count).unwrap_or_default());
        }
    }

    /// Reads what there is, and the descriptor that came with it.
    async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.readable().await?;
            match self.socket.try_io(Interest::READABLE, || receive(&self.socket, buffer)) {
                Ok((count, passed)) => {
                    if passed.is_some() {
                        self.passed = passed;
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn receive(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut passed = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = message {
            passed = rights.next();
        }
    }
    Ok((received.bytes, passed))
}
