//! `halsup spawn`: a session in a directory; a warm worker if there is one, else a fresh one, and which it was is said.

use std::path::PathBuf;

use clap::Args;

use super::claim_options::{ClaimOptions, pool_of, real_path};
use super::context::Context;
use super::error::Error;
use super::{output, session};
use crate::protocol::control::{ClaimReply, ClaimRequest, Request};
use crate::protocol::escape;
use crate::spec::PoolName;

/// Begin a session in a directory, or come back to the one that is there.
#[derive(Debug, Args)]
pub(super) struct Spawn {
    /// The project directory [default: the current one].
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The same, as the system before this one said it.
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "dir")]
    via_parent: Option<Option<PathBuf>>,
    /// The pool [default: the one whose workers can be claimed].
    #[arg(long, value_name = "POOL", value_parser = super::pool_name)]
    pool: Option<PoolName>,
    /// Print the session's name instead of attaching to it.
    #[arg(short, long)]
    detach: bool,
    /// Begin another session even if the directory has one.
    #[arg(long)]
    new: bool,
    #[command(flatten)]
    options: ClaimOptions,
}

impl Spawn {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let dir = self.dir.or(self.via_parent.flatten()).unwrap_or_else(|| PathBuf::from("."));
        let dir = PathBuf::from(real_path(&dir)?);
        let mut client = context.client()?;
        let usual = self.options.name.clone().unwrap_or_else(|| session::name_of(&dir));
        let there = session::all(&mut client)?;
        let is_there = |name: &str| there.iter().any(|one| one.session.as_ref().is_some_and(|s| s.name == name));
        let name = if self.new {
            // The next one that is free; a race for it is refused by the daemon.
            (1..).map(|n| if n == 1 { usual.clone() } else { format!("{usual}-{n}") }).find(|name| !is_there(name))
        } else {
            Some(usual)
        };
        let name = name.unwrap_or_default();
        if is_there(&name) {
            output::complain_text(&format!("session {name} is there already"));
            return context.output.text(&escape::text(&name));
        }
        let pool = pool_of(&mut client, self.pool)?;
        let mut request = ClaimRequest::of(pool);
        self.options.fill(&mut request, Some(&dir))?;
        request.name = Some(name);
        let reply: ClaimReply = client.call(&Request::Claim(Box::new(request)))?;
        let from = if reply.warm { "warm" } else { "cold" };
        output::complain_text(&format!("session {} runs in {} ({from})", reply.session, reply.worker));
        context.output.answer(&reply, |reply| escape::text(&reply.session).into_owned())
    }
}
