//! `halsup restart`: stops workers, starts them again, and waits until they are ready.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::order;
use super::session::Named;
use crate::protocol::control::{Request, TargetRequest};

/// Stop workers and start them again; waits until all are ready.
#[derive(Debug, Args)]
pub(super) struct Restart {
    /// all, a pool such as web, a worker such as web.3, or a session.
    #[arg(required = true, value_name = "TARGET", value_parser = super::target)]
    pub(super) targets: Vec<Named>,
}

impl Restart {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        order::give(context, "restart", "ready", &self.targets, |target| Request::Restart(TargetRequest { target }))
    }
}
