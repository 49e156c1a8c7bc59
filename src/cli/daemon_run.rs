//! `halsup daemon run`: reads the configuration and becomes the daemon.
//!
//! What goes wrong before the daemon is ready is told to whoever waits on `NOTIFY_SOCKET`, beside being printed.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::notify;
use crate::daemon::{Handover, RunOptions};
use crate::exit_code::ExitCode;

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
            // As long as there is a program to go back to, that is better than to end.
            Handover::fall_back(&error.to_string());
            notify::tell_failure(context.environment().get(notify::SOCKET).map(String::as_str), error);
        }
        outcome
    }

    fn become_daemon(&self, context: &Context) -> Result<(), Error> {
        // Before anything is opened, and before anything can go wrong.
        let handover = Handover::take().map_err(|sentence| Error::NotStarted { sentence, code: ExitCode::Failed })?;
        context.refuse_socket()?;
        let without_file = context.config_without_file()?;
        let config = match handover.as_ref().and_then(Handover::config).or(without_file) {
            Some(text) => context.check_config(text)?,
            None => context.load_config()?,
        };
        let path = context.config_path();
        let path = std::path::absolute(path).map_err(|source| Error::ReadFile { path: path.into(), source })?;
        if self.background {
            // The directory of whoever called must not be held for the daemon's life.
            rustix::process::chdir("/").unwrap_or_default();
        }
        crate::daemon::run(config, RunOptions { config_path: Some(path), without_file, when_ready: None, handover })?;
        Ok(())
    }
}
