//! Frames of the worker channel (level 2 of the worker's contract): one JSON object in each `SOCK_SEQPACKET` message.
//!
//! The `kind` says what a frame is; its other fields are exactly those of that kind. A kind that later versions speak is
//! known by name, so that a worker that uses it is told so instead of being taken for broken. The daemon reads
//! [`FromWorker`] and writes [`ToWorker`]; a worker the other way round. Arguments, results and whatever else is only passed
//! on stays text ([`Verbatim`]). Whether the descriptor that a frame speaks of came along, and what it is, is for the caller
//! to see.

mod frame;
mod id;
mod kind;

#[cfg(test)]
mod tests;

use super::json::JsonError;
pub use super::verbatim::Verbatim;
pub use frame::{
    Answer, AnswerPayload, CREDIT_MAX, Call, Chunk, ChunkPayload, Credit, Event, Failed, Failure, InputChunk,
    MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, REASON_BYTES_MAX, Refusal, Reply, Request, RequestPayload,
    TRACEBACK_BYTES_MAX,
};
use frame::{Bare, DaemonHello, Numbered, OfRequest, WorkerHello};
pub use id::{RequestId, RequestIdError};
use kind::{Frame, encode};

/// The longest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// The number that both sides say in `hello`.
pub const PROTOCOL: u32 = 1;

/// Kinds that are reserved for late binding.
pub const RESERVED_KINDS: [&str; 1] = ["bind"];

/// What only a worker says.
const WORKER_KINDS: [&str; 6] = ["ready", "pong", "result", "error", "call", "event"];

/// What only the daemon says.
const DAEMON_KINDS: [&str; 6] = ["ping", "request", "cancel", "reply", "drain", "forget"];

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromWorker {
    /// The first frame.
    Hello {
        /// [`PROTOCOL`] of the worker.
        protocol: u32,
        /// Its pid as it sees it; for the log alone, never to act on.
        pid: Option<u32>,
    },
    /// It is ready for work.
    Ready,
    /// The answer to a ping.
    Pong {
        /// The ping's number.
        id: u64,
    },
    /// The answer to a request.
    Result(Answer),
    /// The application's own error, which is an answer too.
    Error(Box<Failed>),
    /// A piece of a stream.
    Chunk(Chunk),
    /// It takes more chunks of a request's input.
    Credit(Credit),
    /// It wants a tool of the supervisor's used.
    Call(Call),
    /// Something happened in it.
    Event(Event),
    /// A reserved kind.
    Unsupported(&'static str),
}

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToWorker {
    /// The first frame.
    Hello {
        /// [`PROTOCOL`] of the daemon.
        protocol: u32,
    },
    /// To be answered by a pong with the same number.
    Ping {
        /// Its number, never used twice on one channel.
        id: u64,
    },
    /// Work.
    Request(Box<Request>),
    /// The answer is wanted no more: clean up, then answer.
    Cancel {
        /// The request's.
        id: RequestId,
    },
    /// More chunks may be sent.
    Credit(Credit),
    /// A piece of a request's input.
    Chunk(InputChunk),
    /// The answer to a call of the worker's.
    Reply(Reply),
    /// No further request comes: finish those in flight, then end.
    Drain,
    /// A new supervisor knows none of the requests in flight: cancel them, answer none, be ready when they are over.
    Forget,
    /// A reserved kind.
    Unsupported(&'static str),
}

/// A frame was not one.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("channel frame is longer than {FRAME_BYTES_MAX} bytes")]
    TooLong,
    /// Not strict JSON.
    #[error("read a channel frame")]
    Json(#[source] JsonError),
    /// Without a `kind`, with an unknown one, with other fields than its kind has, or with a field out of range.
    #[error("channel frame is not valid: {reason}")]
    Shape {
        /// What was wrong.
        reason: String,
    },
}

impl FromWorker {
    /// Reads one message of a worker.
    ///
    /// # Errors
    /// [`ChannelError`] says what was wrong with it.
    pub fn decode(message: &[u8]) -> Result<Self, ChannelError> {
        let frame = Frame::read(message)?;
        Ok(match frame.kind.as_ref() {
            "hello" => {
                let WorkerHello { protocol, pid } = frame.fields()?;
                Self::Hello { protocol, pid }
            }
            "ready" => frame.fields().map(|Bare {}| Self::Ready)?,
            "pong" => frame.fields().map(|Numbered { id }| Self::Pong { id })?,
            "result" => Self::Result(frame.fields()?),
            "error" => Self::Error(Box::new(frame.fields()?)),
            "chunk" => Self::Chunk(frame.fields()?),
            "credit" => Self::Credit(frame.fields()?),
            "call" => Self::Call(frame.fields()?),
            "event" => Self::Event(frame.fields()?),
            other => Self::Unsupported(reserved(&frame, other, "a worker", &DAEMON_KINDS)?),
        })
    }

    /// The message; a reserved kind is written without fields.
    ///
    /// # Errors
    /// [`ChannelError`] if a field is out of range, or the message would be longer than [`FRAME_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, ChannelError> {
        match self {
            Self::Hello { protocol, pid } => encode("hello", &WorkerHello { protocol: *protocol, pid: *pid }),
            Self::Ready => encode("ready", &Bare {}),
            Self::Pong { id } => encode("pong", &Numbered { id: *id }),
            Self::Result(answer) => encode("result", answer),
            Self::Error(failed) => encode("error", failed.as_ref()),
            Self::Chunk(chunk) => encode("chunk", chunk),
            Self::Credit(credit) => encode("credit", credit),
            Self::Call(call) => encode("call", call),
            Self::Event(event) => encode("event", event),
            Self::Unsupported(kind) => encode(kind, &Bare {}),
        }
    }

    /// Whether one descriptor comes along with it.
    #[must_use]
    pub fn has_descriptor(&self) -> bool {
        match self {
            Self::Result(answer) => answer.payload.is_some_and(|payload| !payload.in_request),
            Self::Chunk(chunk) => chunk.payload.is_some(),
            Self::Hello { .. }
            | Self::Ready
            | Self::Pong { .. }
            | Self::Error(_)
            | Self::Credit(_)
            | Self::Call(_)
            | Self::Event(_)
            | Self::Unsupported(_) => false,
        }
    }
}

impl ToWorker {
    /// Reads one message of the daemon.
    ///
    /// # Errors
    /// [`ChannelError`] says what was wrong with it.
    pub fn decode(message: &[u8]) -> Result<Self, ChannelError> {
        let frame = Frame::read(message)?;
        Ok(match frame.kind.as_ref() {
            "hello" => frame.fields().map(|DaemonHello { protocol }| Self::Hello { protocol })?,
            "ping" => frame.fields().map(|Numbered { id }| Self::Ping { id })?,
            "request" => Self::Request(Box::new(frame.fields()?)),
            "cancel" => frame.fields().map(|OfRequest { id }| Self::Cancel { id })?,
            "credit" => Self::Credit(frame.fields()?),
            "chunk" => Self::Chunk(frame.fields()?),
            "reply" => Self::Reply(frame.fields()?),
            "drain" => frame.fields().map(|Bare {}| Self::Drain)?,
            "forget" => frame.fields().map(|Bare {}| Self::Forget)?,
            other => Self::Unsupported(reserved(&frame, other, "the daemon", &WORKER_KINDS)?),
        })
    }

    /// The message; a reserved kind is written without fields.
    ///
    /// # Errors
    /// [`ChannelError`] if a field is out of range, or the message would be longer than [`FRAME_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, ChannelError> {
        match self {
            Self::Hello { protocol } => encode("hello", &DaemonHello { protocol: *protocol }),
            Self::Ping { id } => encode("ping", &Numbered { id: *id }),
            Self::Request(request) => encode("request", request.as_ref()),
            Self::Cancel { id } => encode("cancel", &OfRequest { id: *id }),
            Self::Credit(credit) => encode("credit", credit),
            Self::Chunk(chunk) => encode("chunk", chunk),
            Self::Reply(reply) => encode("reply", reply),
            Self::Drain => encode("drain", &Bare {}),
            Self::Forget => encode("forget", &Bare {}),
            Self::Unsupported(kind) => encode(kind, &Bare {}),
        }
    }

    /// Whether one descriptor comes along with it.
    #[must_use]
    pub fn has_descriptor(&self) -> bool {
        match self {
            Self::Request(request) => request.payload.is_some(),
            Self::Chunk(chunk) => chunk.payload.is_some(),
            Self::Hello { .. }
            | Self::Ping { .. }
            | Self::Cancel { .. }
            | Self::Credit(_)
            | Self::Reply(_)
            | Self::Drain
            | Self::Forget
            | Self::Unsupported(_) => false,
        }
    }
}

/// The name of the reserved kind that `frame` is of.
///
/// # Errors
/// [`ChannelError::Shape`] if it is of `others`, or of no kind at all; whatever is wrong with every frame that is like it.
fn reserved(frame: &Frame<'_>, kind: &str, side: &str, others: &[&str]) -> Result<&'static str, ChannelError> {
    if let Some(reserved) = RESERVED_KINDS.iter().find(|reserved| **reserved == kind) {
        frame.pass_over()?;
        return Ok(reserved);
    }
    let reason = if others.contains(&kind) { format!("{side} does not send `{kind}`") } else { unknown(kind) };
    Err(shape(&reason))
}

fn unknown(kind: &str) -> String {
    let shown: String = kind.chars().take(80).collect();
    format!("unknown kind `{shown}`")
}

fn shape(reason: &str) -> ChannelError {
    ChannelError::Shape { reason: reason.chars().take(200).collect() }
}
