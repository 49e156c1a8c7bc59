//! The death certificate: the full record of how one generation of a worker ended.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most of a worker's last output that a certificate keeps, in bytes.
pub const LAST_OUTPUT_BYTES_MAX: usize = 4_096;

/// Why a worker ended, everywhere the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// `exit(N)`, by itself.
    Exited(i32),
    /// Killed by signal S, not by us.
    Signal(i32),
    /// Killed by the out-of-memory killer inside its own limit.
    Oom,
    /// Too many heartbeats were missed.
    Heartbeat,
    /// It was not ready, or not done, in time.
    Deadline,
    /// Replaced as planned.
    Recycled,
    /// Its lease was given back.
    Released,
    /// Somebody asked for it.
    Requested,
    /// The daemon ended.
    Shutdown,
    /// It never ran.
    StartFailed,
    /// Nobody can know any more.
    Unknown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Oom => f.write_str("oom"),
            Self::Heartbeat => f.write_str("heartbeat"),
            Self::Deadline => f.write_str("deadline"),
            Self::Recycled => f.write_str("recycled"),
            Self::Released => f.write_str("released"),
            Self::Requested => f.write_str("requested"),
            Self::Shutdown => f.write_str("shutdown"),
            Self::StartFailed => f.write_str("start-failed"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl FromStr for Cause {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected the cause of a death, such as `exited 1` or `oom`";
        let number =
            |digits: &str| digits.parse().ok().filter(|number: &i32| number.to_string() == digits).ok_or(EXPECTED);
        if let Some(code) = text.strip_prefix("exited ") {
            return number(code).map(Self::Exited);
        }
        if let Some(signal) = text.strip_prefix("signal ") {
            return number(signal).map(Self::Signal);
        }
        Ok(match text {
            "oom" => Self::Oom,
            "heartbeat" => Self::Heartbeat,
            "deadline" => Self::Deadline,
            "recycled" => Self::Recycled,
            "released" => Self::Released,
            "requested" => Self::Requested,
            "shutdown" => Self::Shutdown,
            "start-failed" => Self::StartFailed,
            "unknown" => Self::Unknown,
            _ => return Err(EXPECTED),
        })
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a start went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// The step, such as `exec` or `set memory.max`.
    pub stage: String,
    /// The kernel's error number, if it was the kernel that refused.
    pub errno: Option<i32>,
    /// The whole sentence for people.
    pub text: String,
}

/// The full record of how one generation of a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeathCertificate {
    /// `web.3`; for a service its name.
    pub worker: String,
    /// Which spawn attempt.
    pub generation: u64,
    /// Why it ended.
    pub cause: Cause,
    /// How its main process ended, where the cause does not say it: `exited 0`, `signal 15`.
    pub status: Option<Cause>,
    /// Where the start went wrong, with cause `start-failed` alone.
    pub start_failure: Option<StartFailure>,
    /// When its program began; RFC 3339. `None` where it never did.
    pub started: Option<String>,
    /// When it was gone; RFC 3339.
    pub ended: String,
    /// The host's pid of its main process.
    pub pid: Option<u32>,
    /// User CPU time, in microseconds.
    pub user_usec: Option<u64>,
    /// System CPU time, in microseconds.
    pub system_usec: Option<u64>,
    /// Largest resident set of its largest process, in bytes.
    pub max_rss_bytes: Option<u64>,
    /// `memory.peak` of its cgroup, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// `oom_kill` of its `memory.events`.
    pub oom_kills: Option<u64>,
    /// How many processes were left when its main process had ended.
    pub leftover_processes: Option<u64>,
    /// The last it wrote, at most [`LAST_OUTPUT_BYTES_MAX`]; not escaped for a terminal. Empty for who may not see it.
    pub last_output: String,
    /// Who asked for the end: `uid 1000 (pid 4711)`.
    pub asked_by: Option<String>,
    /// What is not known of this end, and why: it came while no daemon ran.
    #[serde(default)]
    pub note: Option<String>,
    /// The session that it was, if it was one.
    #[serde(default)]
    pub session: Option<String>,
    /// Whose that was, by uid.
    #[serde(default)]
    pub owner: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_survives_the_way_there_and_back() {
        for text in [
            "exited 0",
            "exited 255",
            "exited -1",
            "signal 9",
            "oom",
            "heartbeat",
            "deadline",
            "recycled",
            "released",
            "requested",
            "shutdown",
            "start-failed",
            "unknown",
        ] {
            assert_eq!(text.parse::<Cause>().unwrap().to_string(), text);
        }
        for text in ["", "exited", "exited ", "exited 01", "exited 1 2", "signal x", "OOM", "signal 99999999999"] {
            assert!(text.parse::<Cause>().is_err(), "{text:?}");
        }
    }
}
