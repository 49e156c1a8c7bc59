//! Readiness by a file in the worker's directory, by inotify.

use super::state::Daemon;
use crate::spec::{Generation, WorkerId};

/// Watches on work directories.
#[derive(Debug, Default)]
pub(super) struct ReadyFiles {}

impl Daemon {
    /// Watches for the file that makes a worker ready; it may be there already.
    pub(super) fn watch_ready_file(&mut self, _worker: WorkerId, _generation: Generation, _file: &std::path::Path) {}

    /// Some watched directory changed.
    pub(super) fn on_files(&mut self) {}

    /// Ends the watch of a worker that is ready or has ended.
    pub(super) fn end_ready_file(&mut self, _worker: WorkerId) {}
}
