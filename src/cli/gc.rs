//! `halsup gc`: removes what a daemon that was killed has left, and files that have grown old.

use std::time::Duration;

use clap::Args;

use super::context::Context;
use super::error::Error;
use crate::daemon::recovery::{self, Known};
use crate::protocol::control::{ListReply, ListRequest, Request, SessionsReply};
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
        let known = match context.client() {
            Ok(mut client) => {
                let all = ListRequest { pool: None };
                let mut known = Known::default();
                // Those that live first: one that ends meanwhile is among them, or among those that are kept.
                client.call_more(&Request::List(all.clone()), |reply: ListReply| {
                    for worker in reply.workers {
                        known.workers.push(worker.name);
                        known.sessions.extend(worker.session.map(|session| session.name));
                    }
                    Ok(())
                })?;
                let reply: SessionsReply = client.call(&Request::Sessions(all))?;
                known.sessions.extend(reply.sessions.into_iter().map(|session| session.name));
                Some(known)
            }
            Err(Error::Unreachable { .. }) => None,
            Err(error) => return Err(error),
        };
        let swept = recovery::collect(&spec, self.stale, known.as_ref())?;
        let counts = [swept.orphans, swept.unfinished, swept.files].map(|count| count.to_string());
        let more = [("orphans", &*counts[0]), ("unfinished", &*counts[1]), ("files", &*counts[2])];
        super::backup::record(&spec, "gc", "state", &more);
        context.output.answer(&swept, |swept| {
            format!(
                "ended {} workers that ran without a daemon; removed {} unfinished volumes and restores, {} old files",
                swept.orphans, swept.unfinished, swept.files
            )
        })
    }
}
