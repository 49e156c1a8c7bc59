//! The world's own copy of what a circuit breaker promises, and of what is counted.

use halsup::engine::{AttemptId, BreakerRecord, BreakerState, Time};
use halsup::spec::BreakerPolicy;

/// A breaker as the world has it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fuse {
    pub(super) failures: u32,
    blown_until: Option<Time>,
    /// It was blown and nobody has shown yet that all is well; who is trying to.
    doubted: bool,
    probe: Option<AttemptId>,
}

impl Fuse {
    pub(super) fn restored(record: BreakerRecord, policy: BreakerPolicy, now: Time) -> Self {
        let until = record.open_until.map(|until| until.min(now.after(policy.open_for)));
        Self { failures: record.failures, blown_until: until, doubted: until.is_some(), probe: None }
    }

    pub(super) fn state(&self) -> BreakerState {
        match (self.doubted, self.blown_until) {
            (false, _) => BreakerState::Closed,
            (true, Some(_)) => BreakerState::Open,
            (true, None) => BreakerState::HalfOpen,
        }
    }

    pub(super) fn lets_through(&self) -> bool {
        !self.doubted || (self.blown_until.is_none() && self.probe.is_none())
    }

    pub(super) fn began(&mut self, attempt: AttemptId) {
        if self.doubted {
            self.probe = Some(attempt);
        }
    }

    pub(super) fn succeeded(&mut self, attempt: AttemptId) {
        if !self.doubted || self.probe == Some(attempt) {
            *self = Self::default();
        }
    }

    pub(super) fn failed(&mut self, attempt: AttemptId, policy: BreakerPolicy, now: Time) {
        self.failures += 1;
        let too_many = policy.failures > 0 && self.failures >= policy.failures;
        if self.probe == Some(attempt) || (!self.doubted && too_many) {
            self.blow(policy, now);
        }
    }

    /// An attempt has shown nothing, and will not.
    pub(super) fn lost(&mut self, attempt: AttemptId, policy: BreakerPolicy, now: Time) {
        if self.probe == Some(attempt) {
            self.blow(policy, now);
        }
    }

    fn blow(&mut self, policy: BreakerPolicy, now: Time) {
        (self.doubted, self.probe) = (true, None);
        self.blown_until = Some(now.after(policy.open_for));
    }

    pub(super) fn tick(&mut self, now: Time) {
        self.blown_until = self.blown_until.filter(|until| *until > now);
    }

    /// Whether there was something to close.
    pub(super) fn reset(&mut self) -> bool {
        std::mem::take(self).doubted
    }
}

/// What the world has counted of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) requests: u64,
    pub(super) queued_total: u64,
    pub(super) answered: u64,
    pub(super) errors: u64,
    pub(super) queue_timeouts: u64,
    pub(super) saturated: u64,
    pub(super) retries: u64,
    pub(super) abandoned: u64,
    pub(super) quarantined: u64,
}
