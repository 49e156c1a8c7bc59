//! `halsup kill`: sends a signal to main programs, or ends every process of workers at once.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::order;
use super::session::Named;
use crate::protocol::control::{KillRequest, Request};
use crate::spec::parse_signal;

/// Send a signal to main programs; without -s, kill every process of the workers at once.
///
/// Whether the workers are started again is decided as for any other death.
#[derive(Debug, Args)]
pub(super) struct Kill {
    /// Name or number of a signal for the main programs.
    #[arg(short, long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub(super) signal: Option<i32>,
    /// all, a pool such as web, a worker such as web.3, or a session.
    #[arg(required = true, value_name = "TARGET", value_parser = super::target)]
    pub(super) targets: Vec<Named>,
}

impl Kill {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let signal = self.signal;
        let done = if signal.is_some() { "signalled" } else { "killed" };
        order::give(context, "kill", done, &self.targets, |target| Request::Kill(KillRequest { target, signal }))
    }
}
