//! `halsup daemon reset`: back to how it was before the first start, but for the configuration.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Args;

use super::context::Context;
use super::daemon_stop::Stop;
use super::error::Error;
use crate::daemon::recovery;

/// Stop everything and remove all that a daemon has kept: volumes, images, state, logs. The configuration and backups stay.
#[derive(Debug, Args)]
pub(super) struct Reset {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Leave the volumes.
    #[arg(long)]
    keep_volumes: bool,
}

impl Reset {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let spec = context.daemon_spec()?;
        if !self.yes {
            let what = if self.keep_volumes { "images, state and logs" } else { "volumes, images, state and logs" };
            ask(&format!("this ends all workers and removes {what} in {}", spec.state_dir.display()))?;
        }
        if context.client().is_ok() {
            Stop::default().run(context)?;
        }
        let swept = recovery::reset(&spec, self.keep_volumes)?;
        // The first line of the next audit log: that the one before is gone, and who has done it.
        super::backup::record(&spec, "reset", "state", &[("keeps_volumes", &self.keep_volumes.to_string())]);
        context.output.answer(&swept, |swept| {
            let removed = swept.removed.iter().map(|path| format!("removed {path}\n"));
            removed.chain(["halsup daemon start begins anew\n".to_owned()]).collect()
        })
    }
}

/// Asks whoever sits there; nobody there is no yes.
fn ask(what: &str) -> Result<(), Error> {
    let refuse = || Error::Usage { reason: format!("{what}: say --yes if that is meant") };
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(refuse());
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{what}\ntype yes to go on: ").and_then(|()| stderr.flush()).map_err(Error::output)?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(Error::output)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(refuse()) }
}
