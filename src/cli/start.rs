//! `halsup start`: brings up what is stopped or crashed, and waits until it is ready.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::order;
use super::session::Named;
use crate::protocol::control::{Request, TargetRequest};

/// Start what is stopped or crashed; waits until all is ready.
#[derive(Debug, Args)]
pub(super) struct Start {
    /// all, a pool such as web, a worker such as web.3, or a session.
    #[arg(required = true, value_name = "TARGET", value_parser = super::target)]
    pub(super) targets: Vec<Named>,
}

impl Start {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        order::give(context, "start", "ready", &self.targets, |target| Request::Start(TargetRequest { target }))
    }
}
