//! What is said about claims: the request, its answer, and what is told of a session.

use serde::{Deserialize, Serialize};

use super::SCALE_COUNT_MAX;
use super::reply::Failure;
use super::request::pool_name;
use super::target::Target;
use crate::spec::PoolName;

/// The longest `idle_timeout_seconds` and `check_interval_seconds`: a day.
pub const PATIENCE_SECONDS_MAX: u64 = 86_400;
/// Most items of any list of a claim.
pub const CLAIM_ITEMS_MAX: usize = 256;

/// Parameters of `Claim`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Of which pool.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// The session's name: 1 to 64 of `a-z`, `A-Z`, `0-9`, `_` and `-`, not `-` first; `None` has one made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Absolute path of a directory that appears inside, with its owner's files writable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Where it appears; `None` is at its own path, or at `/workspace` where the root is not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_target: Option<String>,
    /// Whether it can only be read there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_read_only: Option<bool>,
    /// Further directories, each `/path`, `/path:/inside` or `/path:/inside:rw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<String>>,
    /// Program and arguments; `None` is the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Environment beside the pool's, each `NAME=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Files in `/run/secrets` that only the program can read, each `name=content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<String>>,
    /// `memory.max` in bytes, 0 for none; `None` is the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// `cpu.max` in thousandths of a processor, 0 for none; `None` is the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// `pids.max`, 0 for none; `None` is the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Lines of a terminal that the program gets; with neither these nor `columns` it is as the pool says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Columns of the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// What is remembered of it, each `name=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Whether to refuse where no worker is warm instead of starting one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_only: Option<bool>,
    /// Whether nobody will be attached to it when it begins; remembered for scripts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<bool>,
    /// Whether it is kept when its program has ended, with its exit and its log, until it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<bool>,
}

impl ClaimRequest {
    /// A claim of `pool` that says nothing else.
    #[must_use]
    pub const fn of(pool: PoolName) -> Self {
        Self {
            pool,
            session: None,
            project: None,
            project_target: None,
            project_read_only: None,
            mounts: None,
            command: None,
            env: None,
            secrets: None,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
            rows: None,
            columns: None,
            labels: None,
            warm_only: None,
            detached: None,
            keep: None,
        }
    }

    /// The first parameter that is out of its range, by name.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        let long = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| list.len() > CLAIM_ITEMS_MAX);
        let lists = [
            ("mounts", &self.mounts),
            ("command", &self.command),
            ("env", &self.env),
            ("secrets", &self.secrets),
            ("labels", &self.labels),
        ];
        if let Some((name, _)) = lists.into_iter().find(|(_, list)| long(list)) {
            return Some(name);
        }
        if self.command.as_ref().is_some_and(|command| command.first().is_none_or(String::is_empty)) {
            return Some("command");
        }
        self.session.as_deref().is_some_and(|name| !is_session_name(name)).then_some("session")
    }
}

/// Whether a session can be called so.
#[must_use]
pub fn is_session_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !name.is_empty() && name.len() <= 64 && !name.starts_with('-') && name.bytes().all(known)
}

/// The answer of `Claim`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimReply {
    /// The session's name.
    pub session: String,
    /// Which worker it has.
    pub worker: String,
    /// That worker's spawn attempt.
    pub generation: u64,
    /// Whether the worker was warm.
    pub warm: bool,
    /// The program's pid on the host.
    pub pid: Option<u32>,
}

/// Parameters of `Release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// Which.
    pub target: Target,
    /// Whether its place is to be one of the pool's again, instead of going with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<bool>,
    /// Instead of a worker of `target`, which is then its pool: the session of this name, which has ended and is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// The answer of `Release`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseReply {
    /// How many workers are in the state that was ordered: gone, or warm again.
    pub achieved: u32,
    /// How many were to be.
    pub wanted: u32,
    /// Why it is not, as far as it is known.
    pub failures: Vec<Failure>,
    /// Whether its place is one of the pool's again.
    pub reset: bool,
    /// Why it is not, where that was asked for.
    pub reason: Option<String>,
}

/// Parameters of `Warm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRequest {
    /// Which.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
}

/// Parameters of `Tune`; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneRequest {
    /// Which.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// So many stay warm, and never fewer; 0..=[`SCALE_COUNT_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Never more are warm; 1..=[`SCALE_COUNT_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// How long one beyond the wanted number stays warm, 1..=[`PATIENCE_SECONDS_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// Within what time what is missing is made up for, 1..=[`PATIENCE_SECONDS_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_interval_seconds: Option<u64>,
}

impl TuneRequest {
    /// The parameter that is out of its range, if one is.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        let patience = 1..=PATIENCE_SECONDS_MAX;
        if self.min.is_some_and(|min| min > SCALE_COUNT_MAX) {
            Some("min")
        } else if self.max.is_some_and(|max| !(1..=SCALE_COUNT_MAX).contains(&max)) {
            Some("max")
        } else if self.idle_timeout_seconds.is_some_and(|seconds| !patience.contains(&seconds)) {
            Some("idle_timeout_seconds")
        } else if self.check_interval_seconds.is_some_and(|seconds| !patience.contains(&seconds)) {
            Some("check_interval_seconds")
        } else {
            None
        }
    }
}

/// Parameters of `Pause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// Which.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// Whether nothing is added to it or given up by itself, from now on.
    pub paused: bool,
}

/// What a pool whose workers can be claimed has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimsInfo {
    /// How many are ready and nobody's.
    pub warm: u32,
    /// How many somebody has.
    pub busy: u32,
    /// How many somebody may have at once.
    pub sessions_max: u32,
    /// How long one beyond the wanted number stays warm.
    pub idle_timeout_seconds: u64,
    /// Within what time what is missing is made up for.
    #[serde(default)]
    pub check_interval_seconds: u64,
    /// Whether nothing is added or given up by itself.
    pub paused: bool,
    /// `memory.max` of a claim that says nothing of it; `None` is no limit.
    pub memory_bytes: Option<u64>,
    /// `cpu.max`, likewise, in thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// `pids.max`, likewise.
    pub pids: Option<u64>,
}

/// A claimed worker, as `List` tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Its name.
    pub name: String,
    /// Who claimed it.
    pub owner: u32,
    /// The directory that appears inside, by its path on the host.
    pub project: Option<String>,
    /// Since when; RFC 3339.
    pub created: String,
    /// Whether its program has a terminal.
    pub terminal: bool,
    /// What runs in it.
    pub command: Vec<String>,
    /// What the claim said to remember, each `name=value`.
    pub labels: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_names_are_words() {
        for good in ["a", "hal-9000-web-0a1b2c3d", "My_Session-1", &"x".repeat(64)] {
            assert!(is_session_name(good), "{good}");
        }
        for bad in ["", "-a", "a b", "a/b", "a.b", "é", "a\n", &"x".repeat(65)] {
            assert!(!is_session_name(bad), "{bad}");
        }
    }
}
