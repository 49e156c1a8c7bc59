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

impl Happening {
    /// Something of this kind, with these words; the rest is filled in where it applies.
    pub(super) const fn new(kind: EventKind, text: String) -> Self {
        Self { kind, pool: None, worker: None, generation: None, state: None, cause: None, asked_by: None, text }
    }
}

impl Daemon {
    /// Records an event and sends it to all who follow.
    pub(super) fn record(&mut self, _happening: Happening) {}
}
