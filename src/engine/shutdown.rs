//! Decides how long shutdown is patient: one deadline for all workers, in parallel.
//!
//! Sticky: nothing takes a shutdown back, and a second request may only shorten it. Never touches a worker: the engine
//! stops them all when it begins, kills what is left at the deadline, and says `Finished` once when nothing is busy.

use super::Time;

/// A shutdown under way.
#[derive(Debug)]
pub(super) struct Shutdown {
    deadline: Time,
    /// Everything that was left has been killed.
    pub(super) expired: bool,
    pub(super) finished: bool,
    pub(super) armed: Option<Time>,
}

impl Shutdown {
    pub(super) const fn new(deadline: Time) -> Self {
        Self { deadline, expired: false, finished: false, armed: None }
    }

    /// A further request.
    pub(super) fn shorten(&mut self, deadline: Time) {
        self.deadline = self.deadline.min(deadline);
    }

    /// When to kill what is left; `None` once that is done.
    pub(super) fn wanted(&self) -> Option<Time> {
        (!self.expired && !self.finished).then_some(self.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_request_may_only_shorten() {
        let mut shutdown = Shutdown::new(Time(50));
        shutdown.shorten(Time(90));
        assert_eq!(shutdown.wanted(), Some(Time(50)));
        shutdown.shorten(Time(20));
        assert_eq!(shutdown.wanted(), Some(Time(20)));
        shutdown.expired = true;
        assert_eq!(shutdown.wanted(), None);
    }
}
