//! Waiting for pools to be there: `WaitPool`.

use serde::{Deserialize, Serialize};

use super::reply::Failure;
use super::request::pool_name_option;
use crate::spec::PoolName;

/// Parameters of `WaitPool`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitPoolRequest {
    /// For this pool; `None` is for every one.
    #[serde(with = "pool_name_option", default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Whether all workers have to be ready that there are to be, not one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
}

/// How far a pool is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolProgress {
    /// Its name.
    pub pool: String,
    /// How many workers are to be ready.
    pub wanted: u32,
    /// How many are.
    pub ready: u32,
    /// How many are on their way.
    pub starting: u32,
}

/// An answer of `WaitPool`: with `more` one for each step, and the last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitPoolReply {
    /// Whether what is waited for is there; in the last answer `false` says that nothing is on its way any more.
    pub reached: bool,
    /// How far each pool is.
    pub pools: Vec<PoolProgress>,
    /// In the last answer, unless it is reached: workers that are down, and why.
    pub failures: Vec<Failure>,
}
