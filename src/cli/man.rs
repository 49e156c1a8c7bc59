//! `halsup man`: the manual pages, made from the program's own arguments.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use super::context::Context;
use super::error::Error;

/// Print the manual page, or write the pages of all verbs into a directory.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where to write halsup.1, halsup-up.1 and the others.
    #[arg(value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let command = super::Arguments::command();
        let Some(directory) = self.directory else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).map_err(Error::output)?;
            return context.output.bytes(&page);
        };
        std::fs::create_dir_all(&directory)
            .and_then(|()| clap_mangen::generate_to(command, &directory))
            .map_err(|source| Error::WriteFile { path: directory, source })
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::Output;
    use super::*;

    #[test]
    fn every_verb_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let context = Context::with_environment(Output::new(false), None, None, None, Default::default());
        Man { directory: Some(directory.path().join("man1")) }.run(&context).unwrap();
        for page in ["halsup", "halsup-up", "halsup-daemon-start", "halsup-logs"] {
            let text = std::fs::read_to_string(directory.path().join(format!("man1/{page}.1"))).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}");
        }
    }
}
