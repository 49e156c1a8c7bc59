//! X
#[derive(Debug)]
pub(super) struct Manager;
impl Manager {
    pub(super) fn from_environment(_e: &std::collections::BTreeMap<String, String>) -> Self {
        Self
    }
    pub(super) fn ready(&self, _s: &str) {}
    pub(super) fn stopping(&self) {}
    pub(super) fn watchdog(&self) {}
    pub(super) fn watchdog_interval(&self) -> Option<std::time::Duration> {
        None
    }
}
