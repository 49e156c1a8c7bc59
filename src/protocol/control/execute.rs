//! What is said about requests to the workers of a pool: `Execute` and what belongs to it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request::pool_name;
use super::request::pool_name_option;
use super::target::Target;
use crate::spec::{Affinity, PoolName};

/// The longest command, session or correlation of a request, in bytes.
pub const REQUEST_NAME_BYTES_MAX: usize = 256;

/// The longest timeout of a request, in milliseconds: a day.
pub const REQUEST_TIMEOUT_MS_MAX: u64 = 86_400_000;

/// What a request of a session means by its worker, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AffinityMode {
    /// See [`Affinity::Hint`].
    Hint,
    /// See [`Affinity::StrictQueue`].
    StrictQueue,
    /// See [`Affinity::StrictFailFast`].
    StrictFailFast,
}

impl From<AffinityMode> for Affinity {
    fn from(mode: AffinityMode) -> Self {
        match mode {
            AffinityMode::Hint => Self::Hint,
            AffinityMode::StrictQueue => Self::StrictQueue,
            AffinityMode::StrictFailFast => Self::StrictFailFast,
        }
    }
}

/// Memory whose descriptor comes with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentPayload {
    /// How many bytes of it are meant.
    pub bytes: u64,
    /// Whether it is lent, so that the worker may write it and answer in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
}

/// Memory that an answer is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadePayload {
    /// How many bytes of it are meant.
    pub bytes: u64,
    /// Whether it is the memory that the request lent; if not, a descriptor comes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_request: Option<bool>,
}

/// Parameters of `Execute`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecuteRequest {
    /// Of which pool.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// What to do, 1 to [`REQUEST_NAME_BYTES_MAX`] bytes.
    pub command: String,
    /// With what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Value>,
    /// The session that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What it means by the session's worker; `None` is as the pool has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<AffinityMode>,
    /// It has its answer after this long, in milliseconds, 1..=[`REQUEST_TIMEOUT_MS_MAX`]; `None` is as the pool has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// It waits for its first worker this long, in milliseconds; `None` is as the pool has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<u64>,
    /// Whether it may run twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotent: Option<bool>,
    /// What ties it to the caller's own records; `None` has one made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// Memory whose descriptor comes with the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<SentPayload>,
    /// Whether chunks are wanted as they are made; needs `more`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Whether it is wanted to know what the request has used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bill: Option<bool>,
    /// Whether chunks for its worker follow on the same connection, by `SendChunk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<bool>,
}

/// Parameters of `SendChunk`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendChunkRequest {
    /// The piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<Value>,
    /// Memory whose descriptor comes with the call; not lent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<SentPayload>,
    /// Whether it is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<bool>,
}

impl SendChunkRequest {
    /// Whether what it says of memory can be.
    pub(super) fn is_sound(&self) -> bool {
        self.payload.is_none_or(|payload| payload.shared != Some(true))
    }
}

/// What a request has used: its last attempt, in its worker, while it had it. What is not known is `None`, and `note` says why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    /// Processor time, in microseconds.
    pub cpu_usec: Option<u64>,
    /// Of it, in user mode.
    pub user_usec: Option<u64>,
    /// Of it, in the kernel.
    pub system_usec: Option<u64>,
    /// The most memory that the worker had at once meanwhile, in bytes; since Linux 6.12.
    pub memory_peak_bytes: Option<u64>,
    /// Read from devices, in bytes.
    pub read_bytes: Option<u64>,
    /// Written to devices, in bytes; not what waits in memory to be written.
    pub written_bytes: Option<u64>,
    /// Processes that it has begun and not ended.
    pub leaked_processes: Option<u64>,
    /// Why something is not known.
    pub note: Option<String>,
}

impl ExecuteRequest {
    /// A request that says nothing else.
    #[must_use]
    pub const fn of(pool: PoolName, command: String) -> Self {
        Self {
            pool,
            command,
            args: None,
            session: None,
            affinity: None,
            timeout_ms: None,
            queue_timeout_ms: None,
            idempotent: None,
            correlation: None,
            payload: None,
            stream: None,
            bill: None,
            input: None,
        }
    }

    /// The first parameter that is out of its range, by name.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        let name = |text: &str| is_request_name(text);
        let time = |ms: Option<u64>| ms.is_none_or(|ms| (1..=REQUEST_TIMEOUT_MS_MAX).contains(&ms));
        let rules = [
            ("command", name(&self.command)),
            ("session", self.session.as_deref().is_none_or(name)),
            ("correlation", self.correlation.as_deref().is_none_or(name)),
            ("timeout_ms", time(self.timeout_ms)),
            ("queue_timeout_ms", time(self.queue_timeout_ms)),
        ];
        rules.into_iter().find(|(_, holds)| !holds).map(|(name, _)| name)
    }
}

/// Whether a command, session or correlation can be called so.
pub(super) fn is_request_name(text: &str) -> bool {
    (1..=REQUEST_NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// An answer of `Execute`: a chunk, or the last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteReply {
    /// A chunk; then nothing else is there but its payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<Value>,
    /// What came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Memory whose descriptor comes with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<MadePayload>,
    /// The request's number, 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// That worker's spawn attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How often it was given to a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// How long it waited for a worker, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_usec: Option<u64>,
    /// How long it took in all, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usec: Option<u64>,
    /// What ties it to the caller's own records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// What it has used, if that was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bill: Option<Bill>,
}

/// What became of a request that has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestOutcome {
    /// A worker has answered: this is its own error.
    Answered,
    /// No worker has seen it.
    NeverStarted,
    /// A worker may have run it, whole or in part.
    InDoubt,
}

impl fmt::Display for RequestOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered => "answered",
            Self::NeverStarted => "never started",
            Self::InDoubt => "in doubt",
        })
    }
}

/// Why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFailure {
    /// The request's number, 32 hexadecimal digits.
    pub request: String,
    /// What became of it.
    pub outcome: RequestOutcome,
    /// `pool`, `worker`, `timeout`, `validation`, or what the worker said.
    pub category: String,
    /// In one word, for programs, such as `queue_timeout`.
    pub reason: String,
    /// In a sentence, for people.
    pub message: String,
    /// Whatever else the worker said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    /// Where it happened in the worker's program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
    /// Who had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How often it was given to a worker.
    pub attempts: u32,
    /// What ties it to the caller's own records.
    pub correlation: String,
    /// What it has used, if that was wanted and a worker has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bill: Option<Bill>,
}

/// Parameters of `OpenSession`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSessionRequest {
    /// Of which pool.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// Its name; `None` has one made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// It is over when it has had no request for this long, in milliseconds; `None` is as the pool has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

impl OpenSessionRequest {
    /// The first parameter that is out of its range, by name.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        if !self.session.as_deref().is_none_or(is_request_name) {
            return Some("session");
        }
        (!self.ttl_ms.is_none_or(|ttl| (1..=365 * REQUEST_TIMEOUT_MS_MAX).contains(&ttl))).then_some("ttl_ms")
    }
}

/// Parameters of `CloseSession`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseSessionRequest {
    /// Of which pool.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// Its name.
    pub session: String,
}

/// The answer of `OpenSession`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSessionReply {
    /// Its name.
    pub session: String,
}

/// Parameters of `PoolStats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolStatsRequest {
    /// Only this pool.
    #[serde(with = "pool_name_option", default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

/// Parameters of `ResetBreakers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetBreakersRequest {
    /// What it is about.
    pub target: Target,
}

/// The answer of `ResetBreakers`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetBreakersReply {
    /// How many breakers were not closed, and how many requests were held as poison.
    pub reset: u32,
}

/// What a circuit breaker lets through, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerPosition {
    /// Everything.
    Closed,
    /// Nothing, for now.
    Open,
    /// One probe.
    HalfOpen,
}

impl fmt::Display for BreakerPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

/// The requests of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeskStats {
    /// Its name.
    pub worker: String,
    /// Requests in flight.
    pub in_flight: u32,
    /// Requests that it was ever given.
    pub requests: u64,
    /// Of them, those that failed.
    pub failed: u64,
    /// Requests that its present spawn was given.
    pub served: u64,
    /// Failures in a row.
    pub failures: u32,
    /// Its breaker.
    pub breaker: BreakerPosition,
    /// In how many milliseconds an open breaker lets a probe through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_in_ms: Option<u64>,
    /// Whether it is being replaced.
    pub retiring: bool,
}

/// The requests of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRequestStats {
    /// Its name.
    pub pool: String,
    /// Requests that were asked for.
    pub requests: u64,
    /// Requests that wait now.
    pub queued: u32,
    /// Requests that ended without a result.
    pub errors: u64,
    /// Requests that waited as long as they may.
    pub queue_timeouts: u64,
    /// Requests that were refused because as many waited as may.
    pub pool_saturated: u64,
    /// Workers that could be given requests, busy ones included.
    pub workers: u32,
    /// Workers that are free.
    pub available: u32,
    /// Workers that have a request in flight.
    pub busy: u32,
    /// Requests that have ever waited.
    pub queued_total: u64,
    /// Requests in workers now.
    pub in_flight: u32,
    /// Requests that a worker has answered.
    pub answered: u64,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Requests that nobody waited for any more.
    pub abandoned: u64,
    /// Requests that were stopped as poison.
    pub quarantined: u64,
    /// Workers that were replaced as planned.
    pub recycled: u64,
    /// Sessions.
    pub sessions: u32,
    /// The pool's breaker.
    pub breaker: BreakerPosition,
    /// Each worker's.
    pub desks: Vec<DeskStats>,
}

/// The answer of `PoolStats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatsReply {
    /// Pools that dispatch, by name.
    pub pools: Vec<PoolRequestStats>,
}
