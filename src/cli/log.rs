//! `halsup log`: changes what the daemon writes to its own log, while it runs.

use clap::Args;

use super::context::Context;
use super::error::Error;
use crate::protocol::control::{Request, SetLogReply, SetLogRequest};
use crate::protocol::escape;

/// Change what the daemon writes to its own log.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// A level such as info, or levels by category such as info,heartbeat=debug.
    #[arg(value_name = "LEVEL")]
    pub(super) filter: String,
}

impl Log {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let shown = escape::text(&self.filter).into_owned();
        let reply: SetLogReply = context.client()?.call(&Request::SetLog(SetLogRequest { filter: self.filter }))?;
        context.output.answer(&reply, |reply| format!("log: {shown} (was {})", escape::text(&reply.previous)))
    }
}
