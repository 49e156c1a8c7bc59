//! Probes: questions to a worker's port, for readiness and heartbeats, without waiting for the answer.

use super::state::Daemon;
use crate::spec::{Generation, Probe, WorkerId};

/// Probes under way.
#[derive(Debug, Default)]
pub(super) struct Probes {}

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Success makes the worker ready; failure asks again a little later.
    Readiness,
    /// Success is a beat, failure a miss.
    Heartbeat,
}

impl Daemon {
    /// Begins a probe of a worker's port.
    pub(super) fn begin_probe(
        &mut self,
        _worker: WorkerId,
        _generation: Generation,
        _probe: &Probe,
        _purpose: Purpose,
    ) {
    }

    /// A probe's socket has news.
    pub(super) fn on_probe(&mut self, _place: u32) {}

    /// A probe has had its time.
    pub(super) fn on_probe_timeout(&mut self, _place: u32, _number: u64) {}

    /// Ends the probes of a worker that has ended.
    pub(super) fn end_probes(&mut self, _worker: WorkerId) {}
}
impl Daemon {
    pub(super) fn on_ready_probe_timer(&mut self, _w: WorkerId, _g: Generation) {}
}
