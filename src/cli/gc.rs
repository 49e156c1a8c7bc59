//! `halsup gc`: removes what a daemon that was killed has left, and files that have grown old.

use std::time::Duration;

use clap::Args;

use super::context::Context;
use super::error::Error;
use crate::daemon::recovery;
use crate::protocol::control::{ListReply, ListRequest, Request};
use crate::spec::parse_duration;

/// End workers that run without a daemon, and remove what was never finished, with logs of workers that there are no more.
///
/// While a daemon runs only the last is done: the rest is that daemon's.
#[derive(Debug, Args)]
pub(super) struct Gc {
    /// Logs and damaged files that are older go.
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = age)]
    stale: Duration,
}

fn age(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

impl Gc {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let spec = context.daemon_spec()?;
        let mut kept = Vec::new();
        match context.client() {
            Ok(mut client) => client.call_more(&Request::List(ListRequest { pool: None }), |reply: ListReply| {
                kept.extend(reply.workers.into_iter().map(|worker| worker.name));
                Ok(())
            })?,
            Err(Error::Unreachable { .. }) => {}
            Err(error) => return Err(error),
        }
        let swept = recovery::collect(&spec, self.stale, &kept)?;
        context.output.answer(&swept, |swept| {
            format!(
                "ended {} workers that ran without a daemon; removed {} unfinished volumes and restores, {} old files",
                swept.orphans, swept.unfinished, swept.files
            )
        })
    }
}
