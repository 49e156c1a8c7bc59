//! The daemon's own log.

use std::fmt::Display;

/// What changes the log while it runs.
#[derive(Debug)]
pub(super) struct LogHandle;

/// Goes on after a failure that changes nothing, and logs it with the reason why it may.
pub(super) fn best_effort<T, E: Display>(result: Result<T, E>, why: &str) {
    if let Err(error) = result {
        tracing::debug!(%error, why, "ignored");
    }
}
