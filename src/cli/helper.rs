//! `halsup helper`: what a daemon runs this program for beside itself. Not for people.

use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::error::Error;

/// Do a daemon's slow work.
#[derive(Debug, Args)]
pub(super) struct Helper {
    word: String,
    state_dir: PathBuf,
    arguments: Vec<String>,
}

impl Helper {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let printed = crate::daemon::help(&self.word, &self.state_dir, &self.arguments);
        context.output.text(&printed.map_err(|sentence| Error::Helper { sentence })?)
    }
}
