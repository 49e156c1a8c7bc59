//! What the frames of a request carry: the fields of each kind, and the range of each field.
//!
//! Reading and writing hold a frame to the same ranges, so what can be sent can be read.

use serde::{Deserialize, Deserializer, Serialize};

use super::super::verbatim::Verbatim;
use super::{ChannelError, RequestId, shape};

/// The longest name of a command, a tool or an event, a session or a correlation, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// The longest `reason` or `category` of an error, in bytes.
pub const REASON_BYTES_MAX: usize = 128;

/// The longest `message` of an error, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// The longest `traceback` of an error, in bytes.
pub const TRACEBACK_BYTES_MAX: usize = 48 * 1024;

/// The largest payload that can be spoken of, in bytes; what is let through is decided elsewhere.
pub const PAYLOAD_BYTES_MAX: u64 = 1 << 40;

/// The most chunks that are granted at once.
pub const CREDIT_MAX: u32 = 65_536;

/// Work for a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Names this attempt; the answer says it again.
    pub id: RequestId,
    /// What to do; 1 to [`NAME_BYTES_MAX`] bytes.
    pub command: String,
    /// With what.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub args: Option<Verbatim>,
    /// How much time is left for it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Whether chunks are wanted before the answer.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stream: bool,
    /// How many chunks may be sent before more are granted, up to [`CREDIT_MAX`]; 0 without `stream`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub credit: u32,
    /// Whether chunks come to it, as many as the worker grants.
    #[serde(default, skip_serializing_if = "is_false")]
    pub input: bool,
    /// The session that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What ties it to the caller's own records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// The memory whose descriptor comes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<RequestPayload>,
}

/// Memory that comes with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestPayload {
    /// How many bytes of it are meant.
    pub bytes: u64,
    /// Whether it is lent: the worker may write it, and answer in it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
}

/// More chunks may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credit {
    /// The stream's request.
    pub id: RequestId,
    /// How many, 1 to [`CREDIT_MAX`].
    pub count: u32,
}

/// The answer to a worker's [`Call`]: a result or an error, not both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// The call's number.
    pub call: u64,
    /// What the tool returned.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub result: Option<Verbatim>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
}

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// In one word, for programs.
    pub reason: String,
    /// In a sentence, for people.
    pub message: String,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The request's.
    pub id: RequestId,
    /// What came out.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub result: Option<Verbatim>,
    /// The memory whose descriptor comes along, or that came with the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<AnswerPayload>,
}

/// Memory that an answer is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerPayload {
    /// How many bytes of it are meant.
    pub bytes: u64,
    /// Whether it is the memory that the request lent; then no descriptor comes along.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_request: bool,
}

/// The other answer to a request: the application's own error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// The request's.
    pub id: RequestId,
    /// What went wrong.
    pub error: Failure,
}

/// What went wrong in the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// In a sentence, for people; up to [`MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
    /// In one word, for programs; up to [`REASON_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The kind of error that the application counts it among; up to [`REASON_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Whatever else it says.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub details: Option<Verbatim>,
    /// Where it happened; up to [`TRACEBACK_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
}

/// A piece of a stream; it uses up one credit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// The stream's request.
    pub id: RequestId,
    /// The piece.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub data: Option<Verbatim>,
    /// The memory whose descriptor comes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<ChunkPayload>,
}

/// A piece of what its caller sends to a request; it uses up one credit of the worker's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputChunk {
    /// The request.
    pub id: RequestId,
    /// The piece.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub data: Option<Verbatim>,
    /// The memory whose descriptor comes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<ChunkPayload>,
    /// Whether it is the last. The last may be empty; then it says only that there are no more.
    #[serde(default, skip_serializing_if = "is_false")]
    pub end: bool,
}

/// Memory that comes with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkPayload {
    /// How many bytes of it are meant.
    pub bytes: u64,
}

/// A worker asks back: it wants a tool of the supervisor's used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The worker's number for it, which the reply says again.
    pub call: u64,
    /// The request that it is made for.
    pub id: RequestId,
    /// Which tool; 1 to [`NAME_BYTES_MAX`] bytes.
    pub tool: String,
    /// With what.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub args: Option<Verbatim>,
}

/// Something that happened in a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Its name; 1 to [`NAME_BYTES_MAX`] bytes.
    pub event: String,
    /// What was measured: an object.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub measurements: Option<Verbatim>,
    /// What it is about: an object.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Verbatim>,
}

/// The first frame of a worker.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerHello {
    pub(super) protocol: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pid: Option<u32>,
}

/// The first frame of the daemon.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DaemonHello {
    pub(super) protocol: u32,
}

/// A ping or a pong.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Numbered {
    pub(super) id: u64,
}

/// What is about a request and says no more.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfRequest {
    pub(super) id: RequestId,
}

/// What its kind says all of.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bare {}

/// The fields of one kind of frame.
pub(super) trait Fields: Serialize + for<'de> Deserialize<'de> {
    /// Whether what the types leave open is in range.
    ///
    /// # Errors
    /// [`ChannelError::Shape`] names the field.
    fn check(&self) -> Result<(), ChannelError> {
        Ok(())
    }
}

impl Fields for WorkerHello {}
impl Fields for DaemonHello {}
impl Fields for Numbered {}
impl Fields for OfRequest {}
impl Fields for Bare {}

impl Fields for Request {
    fn check(&self) -> Result<(), ChannelError> {
        name("command", &self.command)?;
        self.session.iter().try_for_each(|session| name("session", session))?;
        self.correlation.iter().try_for_each(|correlation| name("correlation", correlation))?;
        hold(self.credit <= CREDIT_MAX, "`credit` is out of range")?;
        hold(self.stream || self.credit == 0, "`credit` without `stream`")?;
        payload(self.payload.map(|payload| payload.bytes))
    }
}

impl Fields for Credit {
    fn check(&self) -> Result<(), ChannelError> {
        hold((1..=CREDIT_MAX).contains(&self.count), "`count` is out of range")
    }
}

impl Fields for Reply {
    fn check(&self) -> Result<(), ChannelError> {
        hold(self.result.is_none() || self.error.is_none(), "both `result` and `error`")?;
        let Some(error) = &self.error else { return Ok(()) };
        at_most("reason", &error.reason, REASON_BYTES_MAX)?;
        at_most("message", &error.message, MESSAGE_BYTES_MAX)
    }
}

impl Fields for Answer {
    fn check(&self) -> Result<(), ChannelError> {
        payload(self.payload.map(|payload| payload.bytes))
    }
}

impl Fields for Failed {
    fn check(&self) -> Result<(), ChannelError> {
        let Failure { message, reason, category, details: _, traceback } = &self.error;
        at_most("message", message, MESSAGE_BYTES_MAX)?;
        reason.iter().try_for_each(|reason| at_most("reason", reason, REASON_BYTES_MAX))?;
        category.iter().try_for_each(|category| at_most("category", category, REASON_BYTES_MAX))?;
        traceback.iter().try_for_each(|traceback| at_most("traceback", traceback, TRACEBACK_BYTES_MAX))
    }
}

impl Fields for Chunk {
    fn check(&self) -> Result<(), ChannelError> {
        payload(self.payload.map(|payload| payload.bytes))
    }
}

impl Fields for InputChunk {
    fn check(&self) -> Result<(), ChannelError> {
        payload(self.payload.map(|payload| payload.bytes))
    }
}

impl Fields for Call {
    fn check(&self) -> Result<(), ChannelError> {
        name("tool", &self.tool)
    }
}

impl Fields for Event {
    fn check(&self) -> Result<(), ChannelError> {
        name("event", &self.event)?;
        hold(self.measurements.iter().all(Verbatim::is_object), "`measurements` is not an object")?;
        hold(self.metadata.iter().all(Verbatim::is_object), "`metadata` is not an object")
    }
}

fn hold(holds: bool, reason: &str) -> Result<(), ChannelError> {
    if holds { Ok(()) } else { Err(shape(reason)) }
}

fn at_most(field: &str, text: &str, bytes_max: usize) -> Result<(), ChannelError> {
    if text.len() <= bytes_max { Ok(()) } else { Err(shape(&format!("`{field}` is longer than {bytes_max} bytes"))) }
}

fn name(field: &str, text: &str) -> Result<(), ChannelError> {
    if text.is_empty() { Err(shape(&format!("`{field}` is empty"))) } else { at_most(field, text, NAME_BYTES_MAX) }
}

fn payload(bytes: Option<u64>) -> Result<(), ChannelError> {
    hold(bytes.is_none_or(|bytes| bytes <= PAYLOAD_BYTES_MAX), "`bytes` of the payload is out of range")
}

/// A value that was said, `null` too.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Verbatim>, D::Error> {
    Verbatim::deserialize(deserializer).map(Some)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes the field by reference")]
fn is_false(said: &bool) -> bool {
    !said
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes the field by reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}
