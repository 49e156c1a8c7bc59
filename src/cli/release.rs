//! `halsup release`: gives claimed workers back.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::{order, session};
use crate::protocol::control::{ChangeReply, Request, TargetRequest};

/// Give sessions back: their workers are ended with all that runs in them, and replaced by fresh ones.
#[derive(Debug, Args)]
pub(super) struct Release {
    /// Names of sessions, or of their workers.
    #[arg(required = true, value_name = "SESSION")]
    sessions: Vec<String>,
}

impl Release {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        let mut first_incomplete = None;
        for name in &self.sessions {
            let found = session::find(&mut client, name)?;
            let target = session::target_of(&found)?;
            let change: ChangeReply = client.call(&Request::Release(TargetRequest { target }))?;
            let outcome = order::report(context, "release", "released", name, change)?;
            first_incomplete = first_incomplete.or(outcome);
        }
        first_incomplete.map_or(Ok(()), Err)
    }
}
