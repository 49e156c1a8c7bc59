//! What is told of requests and their sessions one by one: `ListSessions` and `RequestStatus`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::execute::is_request_name;
use super::request::pool_name_option;
use crate::spec::PoolName;

/// A session of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallSessionInfo {
    /// Its name.
    pub session: String,
    /// Its pool's.
    pub pool: String,
    /// The worker that it belongs to, once it had a request there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The spawn attempt of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Whether that has ended, and what it kept of the session with it.
    pub lost: bool,
    /// Its requests that wait or are under way.
    pub requests: u32,
    /// It is over when it has had no request for this long, in milliseconds.
    pub ttl_ms: u64,
    /// In how many milliseconds it is over; never while it has requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// The answer of `ListSessions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSessionsReply {
    /// Sessions of requests, in the order in which they began.
    pub sessions: Vec<CallSessionInfo>,
}

/// Parameters of `RequestStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestStatusRequest {
    /// Only of this pool.
    #[serde(with = "pool_name_option", default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Its number, or what its caller ties it to records of its own with.
    pub request: String,
}

impl RequestStatusRequest {
    /// Whether something can be called so.
    pub(super) fn is_sound(&self) -> bool {
        is_request_name(&self.request)
    }
}

/// How far a request is, or what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    /// It waits for a worker.
    Queued,
    /// A worker has it.
    Running,
    /// A worker has answered it.
    Answered,
    /// It is over, and no worker has seen it.
    NeverStarted,
    /// It is over, and a worker may have run it, whole or in part.
    InDoubt,
}

impl fmt::Display for RequestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Answered => "answered",
            Self::NeverStarted => "never started",
            Self::InDoubt => "in doubt",
        })
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestInfo {
    /// Its number, 32 hexadecimal digits.
    pub request: String,
    /// What ties it to its caller's own records.
    pub correlation: String,
    /// Its pool's name.
    pub pool: String,
    /// How far it is, or what became of it.
    pub state: RequestState,
    /// Why it has no result, in one word; `None` where it has one, or may still get one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who has it, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// That worker's spawn attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How often it was given to a worker.
    pub attempts: u32,
    /// How long ago it came, in milliseconds.
    pub age_ms: u64,
    /// How long ago it was over, in milliseconds; `None` where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
}

/// The answer of `RequestStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestStatusReply {
    /// Those that are called so, the latest last: at most one by its number, perhaps several by what ties them together.
    pub requests: Vec<RequestInfo>,
}
