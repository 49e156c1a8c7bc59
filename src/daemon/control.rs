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

/// The daemon's own orders have this bit in their number.
pub(super) const OWN_CALLS: u64 = 1 << 63;

/// X
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct ControlError;

impl Control {
    pub(super) fn bind(
        _spec: &crate::spec::DaemonSpec,
        _sources: &mut super::sources::Sources,
    ) -> Result<Self, ControlError> {
        Ok(Self {})
    }
}
impl Daemon {
    pub(super) fn on_listener(&mut self) {}
    pub(super) fn on_client(&mut self, _place: u32) {}
    pub(super) fn on_client_timeout(&mut self, _place: u32, _number: u64) {}
    pub(super) fn log_line(&mut self, _worker: crate::spec::WorkerId, _s: crate::host::logfile::Stream, _b: &[u8]) {}
    pub(super) fn flush_clients(&mut self) {}
    pub(super) fn close_control(&mut self) {}
    pub(super) fn resume_accept(&mut self) {}
    pub(super) fn shutdown_done(&mut self, _s: Vec<String>) {}
    pub(super) fn status_reply(&self) -> crate::protocol::control::StatusReply {
        panic!()
    }
    pub(super) fn worker_infos(&self, _p: Option<crate::spec::PoolId>) -> Vec<crate::protocol::control::WorkerInfo> {
        vec![]
    }
}
