//! `halsup completions`: a completion script for a shell, made from the program's own arguments.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::context::Context;
use super::error::Error;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell.
    #[arg(value_name = "SHELL")]
    pub(super) shell: Shell,
}

impl Completions {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Arguments::command(), "halsup", &mut script);
        context.output.bytes(&script)
    }
}
