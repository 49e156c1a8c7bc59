//! `halsup release`: gives claimed workers back.

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::context::Context;
use super::error::Error;
use super::{output, session};
use crate::protocol::control::{ReleaseReply, ReleaseRequest, Request};
use crate::protocol::escape;

/// Give sessions back: their workers are ended with all that runs in them, and nothing of them meets the next.
#[derive(Debug, Args)]
pub(super) struct Release {
    /// Names of sessions, or of their workers.
    #[arg(required = true, value_name = "SESSION")]
    sessions: Vec<String>,
    /// Have the worker's place back, with a fresh worker in it that is warm; done when it is.
    #[arg(long, conflicts_with = "destroy")]
    reset: bool,
    /// Let the worker's place go with it, as it is by default; the pool makes what it lacks.
    #[arg(long)]
    destroy: bool,
}

/// The answer with what it was about, as JSON prints it.
#[derive(Serialize)]
struct Answered<'a> {
    target: &'a str,
    #[serde(flatten)]
    reply: &'a ReleaseReply,
}

impl Release {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        let mut first_incomplete = None;
        for name in &self.sessions {
            let request = self.request(&mut client, name)?;
            let reply: ReleaseReply = client.call(&Request::Release(request))?;
            context.output.answer(&Answered { target: name, reply: &reply }, |_| line(name, &reply))?;
            if let Some(reason) = &reply.reason {
                output::complain_text(&format!("{name}: {reason}"));
            }
            let ReleaseReply { achieved, wanted, failures, .. } = reply;
            let what = format!("release {name}");
            let outcome = (achieved != wanted).then_some(Error::Incomplete { what, achieved, wanted, failures });
            first_incomplete = first_incomplete.or(outcome);
        }
        first_incomplete.map_or(Ok(()), Err)
    }

    /// What is asked of the daemon about one that lives, or has ended and is kept.
    fn request(&self, client: &mut Client, name: &str) -> Result<ReleaseRequest, Error> {
        let missing = match session::find(client, name) {
            Ok(found) => {
                let reset = self.reset.then_some(true);
                return Ok(ReleaseRequest { target: session::target_of(&found)?, reset, session: None });
            }
            Err(missing @ Error::SessionNotFound { .. }) => missing,
            Err(error) => return Err(error),
        };
        let (_, target) = session::find_kept(client, name)?.ok_or(missing)?;
        Ok(ReleaseRequest { target, reset: None, session: Some(name.to_owned()) })
    }
}

fn line(name: &str, reply: &ReleaseReply) -> String {
    let name = escape::text(name);
    match (reply.achieved == reply.wanted, reply.reset) {
        (true, true) => format!("{name}: 1 released and reset"),
        (true, false) => format!("{name}: 1 released"),
        (false, _) => format!("{name}: {} of {} released", reply.achieved, reply.wanted),
    }
}
