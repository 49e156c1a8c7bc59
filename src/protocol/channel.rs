//! Frames of the worker channel (level 2 of the worker's contract): one JSON object in each `SOCK_SEQPACKET` message.
//!
//! The `kind` says what a frame is; its other fields are exactly those of that kind. Kinds that later versions speak are
//! known by name, so that a worker that uses one is told so instead of being taken for broken. The daemon reads
//! [`FromWorker`] and writes [`ToWorker`]; a worker the other way round.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::{self, JsonError};

/// The longest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// The number that both sides say in `hello`.
pub const PROTOCOL: u32 = 1;

/// Kinds that are reserved for requests and late binding.
pub const RESERVED_KINDS: [&str; 11] =
    ["bind", "request", "chunk", "result", "error", "cancel", "call", "reply", "event", "credit", "drain"];

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
    /// Without a `kind`, with an unknown one, or with other fields than its kind has.
    #[error("channel frame is not valid: {reason}")]
    Shape {
        /// What was wrong.
        reason: String,
    },
}

/// The kinds of both directions as they are written.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Wire {
    Hello {
        protocol: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    Ready {},
    Ping {
        id: u64,
    },
    Pong {
        id: u64,
    },
}

enum Frame {
    Spoken(Wire),
    Reserved(&'static str),
}

impl FromWorker {
    /// Reads one message of a worker.
    ///
    /// # Errors
    /// [`ChannelError`] says what was wrong with it.
    pub fn decode(message: &[u8]) -> Result<Self, ChannelError> {
        Ok(match decode(message)? {
            Frame::Spoken(Wire::Hello { protocol, pid }) => Self::Hello { protocol, pid },
            Frame::Spoken(Wire::Ready {}) => Self::Ready,
            Frame::Spoken(Wire::Pong { id }) => Self::Pong { id },
            Frame::Spoken(Wire::Ping { .. }) => return Err(shape("a worker does not send `ping`")),
            Frame::Reserved(kind) => Self::Unsupported(kind),
        })
    }

    /// The message; a reserved kind is written without fields.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { protocol, pid } => encode(&Wire::Hello { protocol: *protocol, pid: *pid }),
            Self::Ready => encode(&Wire::Ready {}),
            Self::Pong { id } => encode(&Wire::Pong { id: *id }),
            Self::Unsupported(kind) => encode(&serde_json::json!({ "kind": kind })),
        }
    }
}

impl ToWorker {
    /// Reads one message of the daemon.
    ///
    /// # Errors
    /// [`ChannelError`] says what was wrong with it.
    pub fn decode(message: &[u8]) -> Result<Self, ChannelError> {
        Ok(match decode(message)? {
            Frame::Spoken(Wire::Hello { protocol, pid: None }) => Self::Hello { protocol },
            Frame::Spoken(Wire::Ping { id }) => Self::Ping { id },
            Frame::Spoken(Wire::Hello { pid: Some(_), .. }) => return Err(shape("the daemon does not send `pid`")),
            Frame::Spoken(Wire::Ready {}) => return Err(shape("the daemon does not send `ready`")),
            Frame::Spoken(Wire::Pong { .. }) => return Err(shape("the daemon does not send `pong`")),
            Frame::Reserved(kind) => Self::Unsupported(kind),
        })
    }

    /// The message; a reserved kind is written without fields.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { protocol } => encode(&Wire::Hello { protocol: *protocol, pid: None }),
            Self::Ping { id } => encode(&Wire::Ping { id: *id }),
            Self::Unsupported(kind) => encode(&serde_json::json!({ "kind": kind })),
        }
    }
}

fn decode(message: &[u8]) -> Result<Frame, ChannelError> {
    if message.len() > FRAME_BYTES_MAX {
        return Err(ChannelError::TooLong);
    }
    let object = json::parse_object(message).map_err(ChannelError::Json)?;
    let kind = object.get("kind").and_then(Value::as_str).ok_or_else(|| shape("expected a `kind`"))?;
    if let Some(reserved) = RESERVED_KINDS.iter().find(|reserved| **reserved == kind) {
        return Ok(Frame::Reserved(reserved));
    }
    serde_json::from_value(Value::Object(object)).map(Frame::Spoken).map_err(|cause| shape(&cause.to_string()))
}

fn encode<T: Serialize>(frame: &T) -> Vec<u8> {
    // Numbers and fixed words cannot fail to be written.
    serde_json::to_vec(frame).unwrap_or_default()
}

fn shape(reason: &str) -> ChannelError {
    ChannelError::Shape { reason: reason.chars().take(200).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::seeded::Seeded;
    use super::*;

    #[test]
    fn frames_survive_the_way_there_and_back() {
        for frame in [
            FromWorker::Hello { protocol: 1, pid: Some(7) },
            FromWorker::Hello { protocol: 1, pid: None },
            FromWorker::Ready,
            FromWorker::Pong { id: u64::MAX },
        ] {
            assert_eq!(FromWorker::decode(&frame.encode()).unwrap(), frame);
        }
        for frame in [ToWorker::Hello { protocol: 1 }, ToWorker::Ping { id: 0 }] {
            assert_eq!(ToWorker::decode(&frame.encode()).unwrap(), frame);
        }
        assert_eq!(ToWorker::Ping { id: 3 }.encode(), br#"{"kind":"ping","id":3}"#);
        for kind in RESERVED_KINDS {
            let message = format!(r#"{{"kind":"{kind}","id":1,"anything":[]}}"#);
            assert_eq!(FromWorker::decode(message.as_bytes()).unwrap(), FromWorker::Unsupported(kind));
            assert_eq!(ToWorker::decode(message.as_bytes()).unwrap(), ToWorker::Unsupported(kind));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_with_its_reason() {
        for (message, expected) in [
            ("{}", "expected a `kind`"),
            (r#"{"kind":1}"#, "expected a `kind`"),
            (r#"{"kind":"nope"}"#, "unknown variant `nope`"),
            (r#"{"kind":"ping","id":1}"#, "does not send `ping`"),
            (r#"{"kind":"pong"}"#, "missing field `id`"),
            (r#"{"kind":"pong","id":-1}"#, "invalid value"),
            (r#"{"kind":"pong","id":1.5}"#, "invalid type"),
            (r#"{"kind":"pong","id":1,"x":1}"#, "unknown field `x`"),
            (r#"{"kind":"ready","x":1}"#, "unknown field `x`"),
            (r#"{"kind":"hello"}"#, "missing field `protocol`"),
            (r#"{"kind":"pong","id":1,"id":2}"#, "read a channel frame"),
            ("", "read a channel frame"),
        ] {
            let error = FromWorker::decode(message.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{message}: {error}");
        }
        assert!(ToWorker::decode(br#"{"kind":"ready"}"#).is_err());
        let long = vec![b' '; FRAME_BYTES_MAX + 1];
        assert!(matches!(FromWorker::decode(&long), Err(ChannelError::TooLong)));
    }

    #[test]
    fn no_message_makes_it_panic() {
        let pieces: &[&[u8]] = &[
            b"{",
            b"}",
            b"\"kind\"",
            b":",
            b"\"pong\"",
            b"\"hello\"",
            b",",
            b"\"id\":1",
            b"\"protocol\":1",
            b"\"bind\"",
        ];
        for seed in 0..3_000 {
            let mut seeded = Seeded::new(seed);
            drop(FromWorker::decode(&seeded.bytes(200, pieces)));
            let good = FromWorker::Hello { protocol: 1, pid: Some(1) }.encode();
            drop(FromWorker::decode(&seeded.mutated(&good)));
            drop(ToWorker::decode(&seeded.mutated(&good)));
        }
    }
}
