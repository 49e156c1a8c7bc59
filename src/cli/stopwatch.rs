//! How long something took, and how long it may still take; for the command line alone, the daemon has its own clock.

use std::time::{Duration, Instant, SystemTime};

/// The time of day, to compare with times that were written down.
#[expect(clippy::disallowed_methods, reason = "a command compares what it shows; no decision of the daemon's")]
pub(super) fn wall() -> SystemTime {
    SystemTime::now()
}

/// Runs from its making.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts one.
    #[expect(clippy::disallowed_methods, reason = "a command measures its own waiting; no decision of the daemon's")]
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since its start.
    pub(super) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// What is left of `limit`, if anything.
    pub(super) fn left_of(self, limit: Duration) -> Option<Duration> {
        limit.checked_sub(self.elapsed())
    }
}
