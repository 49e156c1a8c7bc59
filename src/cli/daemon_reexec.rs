//! `halsup daemon reexec`: has the daemon go on as the program that is installed now, in the same process.

use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::error::Error;
use crate::protocol::control::{Request, UpgradeReply, UpgradeRequest};

/// Go on as the program that is installed now: same pid, same workers. If the new one fails, the old one goes on.
#[derive(Debug, Default, Args)]
pub(super) struct Reexec {
    /// Become this program instead of what lies where the running one was started from.
    #[arg(long, value_name = "PATH")]
    pub(super) binary: Option<PathBuf>,
}

impl Reexec {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let absolute = |path: PathBuf| std::path::absolute(&path).map_err(|source| Error::ReadFile { path, source });
        let binary = self.binary.map(absolute).transpose()?.map(|path| path.display().to_string());
        let reply: UpgradeReply = context.client()?.call(&Request::Upgrade(UpgradeRequest { binary }))?;
        context.output.answer(&reply, render)
    }
}

fn render(reply: &UpgradeReply) -> String {
    let UpgradeReply { from, version, pid, away_usec, workers } = reply;
    let (msec, rest) = (away_usec / 1000, away_usec % 1000 / 100);
    format!("halsup {from} goes on as {version} (pid {pid}) with {workers} workers; it was away for {msec}.{rest} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_says_from_what_to_what() {
        let reply =
            UpgradeReply { from: "1.0.0".into(), version: "1.1.0".into(), pid: 7, away_usec: 3_250, workers: 5 };
        assert_eq!(render(&reply), "halsup 1.0.0 goes on as 1.1.0 (pid 7) with 5 workers; it was away for 3.2 ms");
    }
}
