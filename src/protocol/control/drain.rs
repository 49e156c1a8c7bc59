//! `Drain`: that the gateway takes no new work, kept by the daemon for the gateway that comes after it.

use serde::{Deserialize, Serialize};

use crate::spec::PoolName;

/// The most pools that can be said to be paused because the gateway is drained.
pub const DRAINED_MAX: usize = 1_024;

/// Parameters of `Drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Whether the gateway takes no new work; `None` asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
    /// Pools that were paused for that, and go on when it is over; at most [`DRAINED_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<Vec<String>>,
}

impl DrainRequest {
    pub(super) fn is_sound(&self) -> bool {
        let named =
            |pools: &Vec<String>| pools.len() <= DRAINED_MAX && pools.iter().all(|pool| PoolName::parse(pool).is_ok());
        self.pools.as_ref().is_none_or(named)
    }
}

/// The answer of `Drain`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReply {
    /// What is paused; `None`: it is not drained.
    pub drained: Option<Vec<String>>,
}
