//! Leases: a worker that serves HTTP, held for one request, and a connection to it. `Lease` and `EndLease`.

use serde::{Deserialize, Serialize};

use super::execute::{REQUEST_NAME_BYTES_MAX, REQUEST_TIMEOUT_MS_MAX, is_request_name};
use super::request::pool_name;
use crate::spec::PoolName;

/// How many workers a lease can ask to avoid.
pub const LEASE_NOT_MAX: usize = 16;

/// Parameters of `Lease`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// Of which pool.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// It is over after this long, in milliseconds, 1..=[`REQUEST_TIMEOUT_MS_MAX`]; `None` is as the pool has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// It waits for a worker this long, in milliseconds; `None` is as the pool has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<u64>,
    /// Workers that have failed already: taken only where no other is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Vec<String>>,
    /// What ties it to the caller's own records; `None` has one made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// What it is for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The same for leases for the same; one that has killed workers is known by it. `None` is like no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Whether its connection is to change its protocol, such as to a WebSocket: then it is over after as long as the pool gives
    /// to those, and has to have changed as soon as a request has to be answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<bool>,
}

impl LeaseRequest {
    /// A lease that says nothing else.
    #[must_use]
    pub const fn of(pool: PoolName) -> Self {
        Self {
            pool,
            timeout_ms: None,
            queue_timeout_ms: None,
            not: None,
            correlation: None,
            summary: None,
            fingerprint: None,
            upgrade: None,
        }
    }

    /// The first parameter that is out of its range, by name.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        let time = |ms: Option<u64>| ms.is_none_or(|ms| (1..=REQUEST_TIMEOUT_MS_MAX).contains(&ms));
        let name = |text: &Option<String>| text.as_deref().is_none_or(is_request_name);
        let few = |names: &Vec<String>| {
            names.len() <= LEASE_NOT_MAX && names.iter().all(|name| name.len() <= REQUEST_NAME_BYTES_MAX)
        };
        let rules = [
            ("timeout_ms", time(self.timeout_ms)),
            ("queue_timeout_ms", time(self.queue_timeout_ms)),
            ("not", self.not.as_ref().is_none_or(few)),
            ("correlation", name(&self.correlation)),
            ("summary", name(&self.summary)),
            ("fingerprint", name(&self.fingerprint)),
        ];
        rules.into_iter().find(|(_, holds)| !holds).map(|(name, _)| name)
    }
}

/// The answer of `Lease`; the connection to the worker comes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// Its number, 32 hexadecimal digits.
    pub lease: String,
    /// Who it is.
    pub worker: String,
    /// That worker's spawn attempt.
    pub generation: u64,
    /// The port that the connection leads to.
    pub port: u16,
    /// How many workers it was tried with, this one included.
    pub attempts: u32,
    /// With how many it should be tried at most, and the pause before the second, in milliseconds; it doubles.
    pub attempts_max: u32,
    /// See `attempts_max`.
    pub backoff_ms: u64,
    /// In how many milliseconds it is over.
    pub left_ms: u64,
    /// In how many milliseconds the head of its answer has to have come.
    pub head_ms: u64,
    /// After how many milliseconds without a byte, either way, a connection that has changed its protocol is over.
    pub idle_ms: Option<u64>,
    /// How many bytes may be sent, as the body of a request.
    pub request_bytes_max: u64,
    /// How many bytes may be answered, as the body of an answer.
    pub answer_bytes_max: Option<u64>,
    /// What ties it to the caller's own records.
    pub correlation: String,
}

/// How the request of a lease has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseOutcome {
    /// The worker has answered, whatever it said.
    Done,
    /// It has not, or not to the end.
    Failed,
    /// It has answered that it is broken: a 5xx.
    ServerError,
}

/// Parameters of `EndLease`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndLeaseRequest {
    /// Which: one of this connection's.
    pub lease: String,
    /// How it ended.
    pub outcome: LeaseOutcome,
}

impl EndLeaseRequest {
    /// Whether the number could be one.
    pub(super) fn is_sound(&self) -> bool {
        self.lease.len() == 32 && self.lease.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }
}

/// The answer of `EndLease`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndLeaseReply {
    /// Whether it ended by this; not if its worker or its time was over already.
    pub ended: bool,
}
