//! `halsup start`: brings up what is stopped or crashed, and waits until it is ready.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::order;
use crate::protocol::control::{Request, Target, TargetRequest};

/// Start what is stopped or crashed; waits until all is ready.
#[derive(Debug, Args)]
pub(super) struct Start {
    /// all, a pool such as web, or a worker such as web.3.
    #[arg(required = true, value_name = "TARGET", value_parser = super::target)]
    pub(super) targets: Vec<Target>,
}

impl Start {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        order::give(context, "start", "ready", &self.targets, |target| Request::Start(TargetRequest { target }))
    }
}
