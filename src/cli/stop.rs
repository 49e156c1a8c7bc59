//! `halsup stop`: ends workers, and waits until nothing of them is left.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::order;
use super::session::Named;
use crate::protocol::control::{Request, TargetRequest};

/// Stop workers; waits until nothing of them is left.
#[derive(Debug, Args)]
pub(super) struct Stop {
    /// all, a pool such as web, a worker such as web.3, or a session.
    #[arg(required = true, value_name = "TARGET", value_parser = super::target)]
    pub(super) targets: Vec<Named>,
}

impl Stop {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        order::give(context, "stop", "stopped", &self.targets, |target| Request::Stop(TargetRequest { target }))
    }
}
