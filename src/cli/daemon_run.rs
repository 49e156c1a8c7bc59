//! `halsup daemon run`: reads the configuration and becomes the daemon.
//!
//! What goes wrong before the daemon is ready is told to whoever waits on `NOTIFY_SOCKET`, beside being printed.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::notify;
use crate::daemon::RunOptions;

/// Be the daemon, in the foreground; what a service manager runs.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Leave the caller's session first; `daemon start` says so.
    #[arg(long, hide = true)]
    pub(super) background: bool,
}

impl Run {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if self.background {
            // Refused only to a process that leads its group already, which is what is wanted.
            rustix::process::setsid().map(drop).unwrap_or_default();
        }
        let outcome = self.become_daemon(context);
        if let Err(error) = &outcome {
            notify::tell_failure(context.environment().get(notify::SOCKET).map(String::as_str), error);
        }
        outcome
    }

    fn become_daemon(&self, context: &Context) -> Result<(), Error> {
        context.refuse_socket()?;
        let config = context.load_config()?;
        let path = context.config_path();
        let path = std::path::absolute(path).map_err(|source| Error::ReadFile { path: path.into(), source })?;
        if self.background {
            // The directory of whoever called must not be held for the daemon's life.
            rustix::process::chdir("/").unwrap_or_default();
        }
        crate::daemon::run(config, RunOptions { config_path: Some(path), when_ready: None })?;
        Ok(())
    }
}
