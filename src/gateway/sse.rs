//! Server-sent events (HTML, 9.2): how one is written, and a stream of them that a reader cannot make grow.
//!
//! A stream holds two messages at the most beyond what the kernel takes. Who reads nothing for half a minute is let go.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::answer::Refusal;

/// How often something is said on a stream on which nothing happens.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a message waits for a reader.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many streams there may be, and of them of one caller: one token's, or all those without one.
pub(crate) const STREAMS_MAX: (usize, usize) = (256, 64);
/// The same for those of logs, each of which has a connection to the daemon.
pub(crate) const LOGS_MAX: (usize, usize) = (96, 24);
/// Messages on their way to one reader.
const MESSAGES_MAX: usize = 1;

/// Whoever reads is gone, or does not read.
#[derive(Debug)]
pub(crate) struct Gone;

/// One message. What stands in it is JSON, and so on one line.
pub(crate) fn message(event: &str, id: Option<&str>, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_else(|_unwritable| "null".to_owned());
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {event}\n{id}data: {data}\n\n").into()
}

/// The writing end of a stream.
#[derive(Debug)]
pub(crate) struct Writer {
    sender: mpsc::Sender<Bytes>,
    _place: Place,
}

impl Writer {
    /// Gives a message to the reader.
    ///
    /// # Errors
    /// [`Gone`]: the stream is over.
    pub(crate) async fn send(&self, message: Bytes) -> Result<(), Gone> {
        match timeout(PATIENCE, self.sender.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// Says that it is still there.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) async fn beat(&self) -> Result<(), Gone> {
        self.send(Bytes::from_static(b": \n\n")).await
    }

    /// Ends when the reader has gone.
    pub(crate) async fn gone(&self) {
        self.sender.closed().await;
    }
}

/// The body of a stream: what is written, as it is taken.
struct Messages(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Messages {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}

/// A stream: what writes it, and the answer that reads it.
pub(crate) fn stream(place: Place) -> (Writer, Response) {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    let response = (headers, Body::new(Messages(receiver))).into_response();
    (Writer { sender, _place: place }, response)
}

/// The streams there are, by who reads them.
#[derive(Debug, Clone)]
pub(crate) struct Streams {
    most: (usize, usize),
    open: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// The place of one stream; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    streams: Streams,
    caller: String,
}

impl Streams {
    /// None yet, and at most so many: of all, of one.
    pub(crate) fn new(most: (usize, usize)) -> Self {
        Self { most, open: Arc::default() }
    }

    /// A place for one more stream of this caller.
    ///
    /// # Errors
    /// 503: there are as many as may be.
    pub(crate) fn place(&self, caller: &str) -> Result<Place, Refusal> {
        let mut open = self.open();
        let own = open.get(caller).copied().unwrap_or(0);
        if own >= self.most.1 || open.values().sum::<usize>() >= self.most.0 {
            let message = "too many streams are open: close one, or wait";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message));
        }
        open.insert(caller.to_owned(), own + 1);
        drop(open);
        Ok(Place { streams: self.clone(), caller: caller.to_owned() })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.open().values().sum()
    }

    fn open(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open();
        match open.get_mut(&self.caller) {
            Some(own) if *own > 1 => *own -= 1,
            Some(_) | None => {
                open.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_said_is_one_message() {
        let said = message("log", Some("1.2"), &serde_json::json!({"text": "a\nevent: b\r\n\n\u{2028}<script>"}));
        assert_eq!(
            said,
            "event: log\nid: 1.2\ndata: {\"text\":\"a\\nevent: b\\r\\n\\n\u{2028}<script>\"}\n\n".as_bytes()
        );
        assert_eq!(message("end", None, &()), "event: end\ndata: null\n\n".as_bytes());
    }

    #[test]
    fn one_caller_leaves_places_to_the_others() {
        let (all, of_one) = STREAMS_MAX;
        let streams = Streams::new(STREAMS_MAX);
        let mut held: Vec<Place> = (0..of_one).map(|_| streams.place("a").unwrap()).collect();
        assert!(streams.place("a").is_err());
        held.push(streams.place("b").unwrap());
        assert_eq!(streams.count(), of_one + 1);
        held.remove(0);
        held.push(streams.place("a").unwrap());
        assert!(streams.place("a").is_err());
        for caller in ["c", "d", "e"] {
            held.extend((0..of_one - 1).map(|_| streams.place(caller).unwrap()));
        }
        held.extend([streams.place("f").unwrap(), streams.place("f").unwrap()]);
        assert_eq!(streams.count(), all);
        assert!(streams.place("f").is_err(), "all are taken");
        drop(held);
        assert_eq!(streams.count(), 0);
    }
}
