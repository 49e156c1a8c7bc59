//! The control socket: who is connected, what was asked, and the answers on their way.

use super::state::Daemon;
use crate::engine::{Answer, CallId};

/// The control socket and its clients.
#[derive(Debug)]
pub(super) struct Control {}

impl Daemon {
    /// Answers a call that the engine has decided.
    pub(super) fn answer(&mut self, _call: CallId, _answer: &Answer) {}
}
