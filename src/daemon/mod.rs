//! Who drives: one `mio` loop that turns readiness into inputs of the engine, and its effects into system calls.

mod clock;
mod control;
mod doctor;
mod events;
mod live;
mod log;
mod log_sink;
mod manager;
mod pool;
mod probe;
mod probe_socket;
mod ready_file;
mod sources;
mod state;
mod timers;

use std::path::PathBuf;

use crate::protocol::control::{Check, StatusReply, WorkerInfo};
use crate::spec::{Config, InstanceName};

/// What the command line decides about a daemon beside its configuration.
#[derive(Debug, Default)]
pub struct RunOptions {
    /// Where the configuration was read from, for `Reload` and `Status`; `None` came from the command line.
    pub config_path: Option<PathBuf>,
    /// Called once, when every first worker is ready or cannot be.
    pub when_ready: Option<fn(&StatusReply, &[WorkerInfo])>,
}

/// Why a daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
#[error("the daemon is not part of this build")]
pub struct Error;

/// Runs the daemon until it is shut down.
///
/// # Errors
/// [`Error`].
pub fn run(_config: Config, _options: RunOptions) -> Result<(), Error> {
    Err(Error)
}

/// What the host has of what halsup needs.
#[must_use]
pub fn doctor() -> Vec<Check> {
    doctor::checks(&InstanceName::default())
}
