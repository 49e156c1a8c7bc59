//! `halsup reset`: lifts crash barriers and restart delays.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::order;
use super::session::Named;
use crate::protocol::control::{Request, TargetRequest};

/// Lift crash barriers and restart delays and start what they held back.
#[derive(Debug, Args)]
pub(super) struct Reset {
    /// all, a pool such as web, a worker such as web.3, or a session.
    #[arg(required = true, value_name = "TARGET", value_parser = super::target)]
    pub(super) targets: Vec<Named>,
}

impl Reset {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        order::give(context, "reset", "reset", &self.targets, |target| Request::Reset(TargetRequest { target }))
    }
}
