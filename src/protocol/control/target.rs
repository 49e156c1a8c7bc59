//! What an order is about, as people write it: `all`, `web`, `web.3`.
//!
//! Decides the grammar alone; whether there is such a pool or worker is the daemon's knowledge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::PoolName;

/// A target was not of the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("target {shown:?} is not valid: expected `all`, a pool such as `web`, or a worker such as `web.3`")]
pub struct TargetError {
    /// What was written, cut to a printable length.
    pub shown: String,
}

/// What an order is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every pool and service.
    All,
    /// Every worker of a pool, or a service.
    Pool(PoolName),
    /// One worker of a pool.
    Worker(PoolName, u32),
}

impl Target {
    /// The pool, unless it is all of them.
    #[must_use]
    pub const fn pool(&self) -> Option<&PoolName> {
        match self {
            Self::All => None,
            Self::Pool(pool) | Self::Worker(pool, _) => Some(pool),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let refused = || TargetError { shown: text.chars().take(80).collect() };
        if text == "all" {
            return Ok(Self::All);
        }
        let (pool, slot) = text.split_once('.').map_or((text, None), |(pool, slot)| (pool, Some(slot)));
        let pool = PoolName::parse(pool).ok().ok_or_else(refused)?;
        let Some(slot) = slot else {
            return Ok(Self::Pool(pool));
        };
        // One worker has one name: neither `web.03` nor `web.+3`.
        let number = slot.parse().ok().filter(|number: &u32| number.to_string() == slot);
        number.map(|number| Self::Worker(pool, number)).ok_or_else(refused)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Pool(pool) => write!(f, "{pool}"),
            Self::Worker(pool, slot) => write!(f, "{pool}.{slot}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_one_way_to_be_written() {
        for good in ["all", "web", "web.0", "web.4294967295", "0.0"] {
            assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
        }
        let long = format!("{}.1", "x".repeat(64));
        for bad in [
            "",
            ".",
            "web.",
            ".3",
            "web.03",
            "web.+3",
            "web.-1",
            "web.3.4",
            "web.4294967296",
            "Web",
            "a/b",
            "a\n",
            &long,
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }
}
