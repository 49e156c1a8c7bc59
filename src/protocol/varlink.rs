//! Varlink on the wire: messages are JSON objects, each ended by one NUL byte. Calls and replies, without sockets.
//!
//! The daemon feeds what it read to a [`Decoder`] and takes out whole frames; [`Call::decode`] makes a call of one.
//! A peer that breaks a limit gets one error reply ([`FrameError::reply`]) and is then closed: its decoder gives out
//! nothing more. Format: <https://varlink.org/Method-Call>.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::{self, JsonError};
use super::service::ServiceError;
use super::verbatim::Verbatim;

/// The longest call, in bytes, without its NUL.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

/// The longest reply that a client accepts, in bytes: the daemon is trusted more than its callers, but not without end.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many whole frames of the longest kind may wait in a decoder.
const BACKLOG_FRAMES_MAX: usize = 4;

/// A peer sent more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// One message was too long.
    #[error("message is longer than {bytes_max} bytes")]
    TooLong {
        /// The limit that was passed.
        bytes_max: usize,
    },
    /// Messages were pushed faster than they were taken out.
    #[error("more than {bytes_max} bytes of messages wait to be read")]
    Backlog {
        /// The limit that was passed.
        bytes_max: usize,
    },
}

impl FrameError {
    /// The last reply for such a peer, before it is closed.
    #[must_use]
    pub fn reply(&self) -> Reply {
        super::control::Error::Refused { reason: self.to_string() }.to_reply()
    }
}

/// Cuts a byte stream into frames; holds at most four of the longest frames, then refuses.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes before this were given out.
    start: usize,
    /// No NUL lies between `start` and this.
    scanned: usize,
    frame_bytes_max: usize,
    failed: Option<FrameError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder for calls, with [`FRAME_BYTES_MAX`].
    #[must_use]
    pub const fn new() -> Self {
        Self::with_limit(FRAME_BYTES_MAX)
    }

    /// A decoder for replies, with [`REPLY_BYTES_MAX`].
    #[must_use]
    pub const fn for_replies() -> Self {
        Self::with_limit(REPLY_BYTES_MAX)
    }

    const fn with_limit(frame_bytes_max: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, scanned: 0, frame_bytes_max, failed: None }
    }

    /// Takes in what was read. Nothing is kept once a limit was passed.
    pub fn push(&mut self, bytes: &[u8]) {
        let waiting_max = self.frame_bytes_max.saturating_mul(BACKLOG_FRAMES_MAX);
        if self.failed.is_some() {
            return;
        }
        if self.waiting_bytes() + bytes.len() > waiting_max {
            // One endless message is the likelier story, and the clearer thing to say.
            let whole = self.buffer[self.start..].contains(&0);
            let bytes_max = if whole { waiting_max } else { self.frame_bytes_max };
            self.fail(if whole { FrameError::Backlog { bytes_max } } else { FrameError::TooLong { bytes_max } });
            return;
        }
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Gives out the next whole frame, without its NUL; `None` until more is pushed.
    ///
    /// # Errors
    /// [`FrameError`] once a limit was passed, and from then on always: the stream has no meaning any more.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let end = self.buffer[self.scanned..].iter().position(|byte| *byte == 0).map(|offset| self.scanned + offset);
        let length = end.unwrap_or(self.buffer.len()) - self.start;
        if length > self.frame_bytes_max {
            return Err(self.fail(FrameError::TooLong { bytes_max: self.frame_bytes_max }));
        }
        let Some(end) = end else {
            self.scanned = self.buffer.len();
            return Ok(None);
        };
        let frame = self.buffer[self.start..end].to_vec();
        self.start = end + 1;
        self.scanned = self.start;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            self.scanned = 0;
        }
        Ok(Some(frame))
    }

    /// Bytes that were pushed and not given out; above zero at the end of the stream means that a frame was cut off.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Whether a whole frame waits.
    #[must_use]
    pub fn has_frame(&self) -> bool {
        self.buffer.get(self.start..).is_some_and(|rest| rest.contains(&0))
    }

    /// How many frames were pushed before the last one, which may have come in part only.
    #[must_use]
    pub fn frames_before_last(&self) -> usize {
        let waiting = self.buffer.get(self.start..).unwrap_or_default();
        waiting.iter().rev().skip(1).filter(|byte| **byte == 0).count()
    }

    /// Gives out what was pushed behind the last frame, which is of another protocol after an upgrade.
    #[must_use]
    pub fn take_rest(&mut self) -> Vec<u8> {
        let rest = self.buffer.split_off(self.start);
        self.buffer = Vec::new();
        self.start = 0;
        self.scanned = 0;
        rest
    }

    fn fail(&mut self, error: FrameError) -> FrameError {
        self.buffer = Vec::new();
        self.start = 0;
        self.scanned = 0;
        self.failed = Some(error);
        error
    }
}

/// A frame was not a call or a reply.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not strict JSON.
    #[error("read a message")]
    Json(#[source] JsonError),
    /// JSON, but not of the shape that Varlink gives to messages.
    #[error("message is not a Varlink {what}: {reason}")]
    Shape {
        /// `call` or `reply`.
        what: &'static str,
        /// What was wrong.
        reason: String,
    },
}

impl MessageError {
    /// The last reply for such a peer, before it is closed.
    #[must_use]
    pub fn reply(&self) -> Reply {
        let reason = match self {
            Self::Json(cause) => cause.to_string(),
            Self::Shape { .. } => self.to_string(),
        };
        super::control::Error::Refused { reason }.to_reply()
    }
}

/// A method call, from client to service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Interface and method: `io.halsup.Control.Ping`.
    pub method: String,
    /// Named parameters; absent is the same as empty.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// The caller wants no reply.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oneway: bool,
    /// The caller takes more than one reply.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// The caller wants the connection for another protocol after the reply.
    #[serde(default, skip_serializing_if = "is_false")]
    pub upgrade: bool,
}

impl Call {
    /// Reads a call from one frame.
    ///
    /// # Errors
    /// [`MessageError`]: not strict JSON, or not a call.
    pub fn decode(frame: &[u8]) -> Result<Self, MessageError> {
        decode(frame, "call")
    }

    /// The frame with its NUL.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

/// A reply, from service to client.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// Named results, or the error's fields.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// More replies to the same call follow.
    #[serde(default, skip_serializing_if = "is_false")]
    pub continues: bool,
    /// The name of the error, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reply {
    /// The last reply to a call, carrying `results`, which serialises to an object.
    #[must_use]
    pub fn last<T: Serialize>(results: &T) -> Self {
        Self { parameters: object_of(results), continues: false, error: None }
    }

    /// A reply that others follow.
    #[must_use]
    pub fn piece<T: Serialize>(results: &T) -> Self {
        Self { parameters: object_of(results), continues: true, error: None }
    }

    /// A reply that is the error `name` with `fields`, which serialises to an object.
    #[must_use]
    pub fn failure<T: Serialize>(name: impl Into<String>, fields: &T) -> Self {
        Self { parameters: object_of(fields), continues: false, error: Some(name.into()) }
    }

    /// Reads a reply from one frame.
    ///
    /// # Errors
    /// [`MessageError`]: not strict JSON, or not a reply.
    pub fn decode(frame: &[u8]) -> Result<Self, MessageError> {
        decode(frame, "reply")
    }

    /// The frame with its NUL.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

/// The frame of a reply with `results`, which serialises to an object, and one more field whose value is passed on as it was
/// written; others follow it, or none.
#[must_use]
pub fn encode_with<T: Serialize>(results: &T, field: &str, value: Option<&Verbatim>, continues: bool) -> Vec<u8> {
    let mut frame = br#"{"parameters":"#.to_vec();
    let start = frame.len();
    frame.extend(serde_json::to_vec(results).unwrap_or_default());
    if let Some(value) = value {
        // Behind the last field, in front of the bracket.
        let is_alone = frame.get(start..) == Some(b"{}");
        frame.pop();
        if !is_alone {
            frame.push(b',');
        }
        frame.extend(format!("\"{field}\":").bytes());
        frame.extend(value.text().bytes());
        frame.push(b'}');
    }
    if continues {
        frame.extend(br#","continues":true"#);
    }
    frame.extend(b"}\0");
    frame
}

impl From<&ServiceError> for Reply {
    fn from(error: &ServiceError) -> Self {
        error.to_reply()
    }
}

fn decode<T: for<'de> Deserialize<'de>>(frame: &[u8], what: &'static str) -> Result<T, MessageError> {
    let mut object = json::parse_object(frame).map_err(MessageError::Json)?;
    // Some clients write null for "no parameters".
    if object.get("parameters").is_some_and(Value::is_null) {
        object.remove("parameters");
    }
    T::deserialize(Value::Object(object))
        .map_err(|cause| MessageError::Shape { what, reason: cause.to_string().chars().take(200).collect() })
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // JSON writes NUL as \u0000, so the only NUL is the one that ends the frame.
    let mut frame = serde_json::to_vec(message).unwrap_or_default();
    frame.push(0);
    frame
}

/// A value as an object; what is none (which no type of this module is) counts as without fields.
fn object_of<T: Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) | Err(_) => Map::new(),
    }
}
const fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
#[path = "varlink_tests.rs"]
mod tests;
