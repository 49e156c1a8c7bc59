//! The gateway's clocks: how long what it waits for may still take, and what time it is for people. The one place that reads
//! them.

use std::time::SystemTime;

pub(crate) use tokio::time::Instant;

/// Now.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The time of day. Nothing is decided by it.
pub(crate) fn wall() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "this is the place that they are read in")]
    SystemTime::now()
}
