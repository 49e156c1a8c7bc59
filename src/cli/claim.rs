//! `halsup claim`: takes a warm worker for oneself and starts a program in it.

use std::path::PathBuf;

use clap::Args;

use super::claim_options::{ClaimOptions, pool_of};
use super::context::Context;
use super::error::Error;
use crate::protocol::control::{ClaimReply, ClaimRequest, Request};
use crate::protocol::escape;
use crate::spec::PoolName;

/// Take a warm worker, bring a project directory into it and start a program there; prints the session's name.
#[derive(Debug, Args)]
pub(super) struct Claim {
    /// The pool [default: the one whose workers can be claimed].
    #[arg(long, value_name = "POOL", value_parser = super::pool_name)]
    pool: Option<PoolName>,
    /// A directory that appears inside, with its owner's files writable.
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// Start a worker where none is warm, instead of refusing.
    #[arg(long)]
    cold_ok: bool,
    #[command(flatten)]
    options: ClaimOptions,
}

impl Claim {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        let pool = pool_of(&mut client, self.pool)?;
        let mut request = ClaimRequest { warm_only: Some(!self.cold_ok), ..ClaimRequest::of(pool) };
        let kept = self.options.fill(&mut request, self.project.as_deref())?;
        let reply: ClaimReply = client.call(&Request::Claim(Box::new(request)))?;
        kept.let_go();
        // The name stands alone on stdout, for scripts.
        context.output.answer(&reply, |reply| escape::text(&reply.session).into_owned())
    }
}
