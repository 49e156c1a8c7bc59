//! The ring of events, for `halsup events` and for whoever follows.

use super::state::Daemon;
use crate::protocol::control::{Cause, EventKind, WorkerState};
use crate::spec::{Generation, WorkerId};

/// The latest events, bounded.
#[derive(Debug, Default)]
pub(super) struct EventLog {}

/// What happened; sequence and time are added when it is recorded.
#[derive(Debug, Clone)]
pub(super) struct Happening {
    pub(super) kind: EventKind,
    pub(super) pool: Option<String>,
    pub(super) worker: Option<WorkerId>,
    pub(super) generation: Option<Generation>,
    pub(super) state: Option<WorkerState>,
    pub(super) cause: Option<Cause>,
    pub(super) asked_by: Option<String>,
    pub(super) text: String,
}

impl Daemon {
    /// Records an event and sends it to all who follow.
    pub(super) fn record(&mut self, _happening: Happening) {}
}
