//! One circuit breaker: closed until enough failures in a row, open for a while, then half-open for exactly one probe.
//!
//! Never decides what a failure is, and never looks at a clock: its owner tells it of outcomes and of its deadline, and asks
//! it before each attempt. A probe that is never heard of again is a failure at the latest when its attempt ends, so that no
//! breaker stays half-open for ever.

use serde::{Deserialize, Serialize};

use super::AttemptId;
use crate::engine::Time;
use crate::spec::BreakerPolicy;

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing, for now.
    Open,
    /// One probe.
    HalfOpen,
}

/// A breaker as it is written down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerRecord {
    /// Failures in a row.
    pub failures: u32,
    /// Until when it lets nothing through; `None` if it lets everything through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_until: Option<Time>,
}

impl BreakerRecord {
    /// Nothing to write down.
    pub(in crate::engine) const BLANK: Self = Self { failures: 0, open_until: None };

    /// The same, open no longer than the policy has it: a damaged record must not keep one open for ever.
    #[must_use]
    pub(in crate::engine) fn within(self, policy: BreakerPolicy, now: Time) -> Self {
        Self { open_until: self.open_until.map(|until| until.min(now.after(policy.open_for))), ..self }
    }

    /// Whether there is nothing to write down.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        *self == Self::default()
    }
}

/// Where it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Position {
    #[default]
    Closed,
    OpenUntil(Time),
    HalfOpen(Option<AttemptId>),
}

/// A circuit breaker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Breaker {
    position: Position,
    /// Failures in a row.
    failures: u32,
}

impl Breaker {
    /// One as an earlier daemon has left it.
    pub(super) const fn restored(record: BreakerRecord) -> Self {
        let position = match record.open_until {
            Some(until) => Position::OpenUntil(until),
            None => Position::Closed,
        };
        Self { position, failures: record.failures }
    }

    /// What is to be written down. Of a probe that is under way, a later daemon knows nothing: it makes another at once.
    pub(super) const fn record(&self) -> BreakerRecord {
        let open_until = match self.position {
            Position::Closed => None,
            Position::OpenUntil(until) => Some(until),
            Position::HalfOpen(_) => Some(Time(0)),
        };
        BreakerRecord { failures: self.failures, open_until }
    }

    /// What it lets through.
    pub(super) const fn state(&self) -> BreakerState {
        match self.position {
            Position::Closed => BreakerState::Closed,
            Position::OpenUntil(_) => BreakerState::Open,
            Position::HalfOpen(_) => BreakerState::HalfOpen,
        }
    }

    /// Failures in a row.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether an attempt may begin.
    pub(super) const fn allows(&self) -> bool {
        match self.position {
            Position::Closed | Position::HalfOpen(None) => true,
            Position::OpenUntil(_) | Position::HalfOpen(Some(_)) => false,
        }
    }

    /// When an open one has to be told that its time is over.
    pub(super) const fn open_until(&self) -> Option<Time> {
        match self.position {
            Position::OpenUntil(until) => Some(until),
            Position::Closed | Position::HalfOpen(_) => None,
        }
    }

    /// An attempt has begun: the probe, if it is half-open.
    pub(super) fn began(&mut self, attempt: AttemptId) {
        if self.position == Position::HalfOpen(None) {
            self.position = Position::HalfOpen(Some(attempt));
        }
    }

    /// An attempt was answered. Whether that changed what it lets through.
    pub(super) fn succeeded(&mut self, attempt: AttemptId) -> bool {
        match self.position {
            Position::Closed => {
                self.failures = 0;
                false
            }
            Position::HalfOpen(Some(probe)) if probe == attempt => self.reset(),
            // Late news of an attempt that began before it opened says nothing of now.
            Position::OpenUntil(_) | Position::HalfOpen(_) => false,
        }
    }

    /// An attempt failed. Whether that changed what it lets through.
    pub(super) fn failed(&mut self, attempt: AttemptId, policy: BreakerPolicy, now: Time) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.position {
            Position::Closed => policy.failures > 0 && self.failures >= policy.failures,
            Position::HalfOpen(probe) => probe == Some(attempt),
            Position::OpenUntil(_) => false,
        };
        if opens {
            self.position = Position::OpenUntil(now.after(policy.open_for));
        }
        opens
    }

    /// An attempt is over, or too late, and says nothing about whoever ran it. Whether that changed what it lets through: a
    /// probe that says nothing has not shown that all is well.
    pub(super) fn probe_lost(&mut self, attempt: AttemptId, policy: BreakerPolicy, now: Time) -> bool {
        let lost = self.position == Position::HalfOpen(Some(attempt));
        if lost {
            self.position = Position::OpenUntil(now.after(policy.open_for));
        }
        lost
    }

    /// Its deadline has come. Whether that changed what it lets through.
    pub(super) fn is_due(&mut self, now: Time) -> bool {
        match self.position {
            Position::OpenUntil(until) if until <= now => {
                self.position = Position::HalfOpen(None);
                true
            }
            Position::OpenUntil(_) | Position::Closed | Position::HalfOpen(_) => false,
        }
    }

    /// Forgets all failures. Whether that changed what it lets through.
    pub(super) fn reset(&mut self) -> bool {
        let was = self.position;
        *self = Self::default();
        was != Position::Closed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy { failures: 3, open_for: Duration::from_nanos(100) };

    #[test]
    fn three_failures_in_a_row_open_it_and_an_answer_between_them_does_not() {
        let mut breaker = Breaker::default();
        for (attempt, fails) in [(1, true), (2, true), (3, false), (4, true), (5, true)] {
            match fails {
                true => assert!(!breaker.failed(AttemptId(attempt), POLICY, Time(0))),
                false => assert!(!breaker.succeeded(AttemptId(attempt))),
            }
            assert!(breaker.allows(), "after {attempt}");
        }
        assert!(breaker.failed(AttemptId(6), POLICY, Time(7)));
        assert_eq!((breaker.state(), breaker.open_until()), (BreakerState::Open, Some(Time(107))));
        assert!(!breaker.allows() && !breaker.is_due(Time(106)) && !breaker.allows());
    }

    #[test]
    fn half_open_lets_exactly_one_probe_through_whose_outcome_decides() {
        let mut breaker = Breaker::restored(BreakerRecord { failures: 3, open_until: Some(Time(100)) });
        assert!(breaker.is_due(Time(100)) && breaker.allows());
        breaker.began(AttemptId(9));
        assert!(!breaker.allows(), "one probe");
        assert!(!breaker.succeeded(AttemptId(8)), "an older attempt is not the probe");
        assert!(!breaker.failed(AttemptId(8), POLICY, Time(110)), "nor is its failure");
        assert!(breaker.failed(AttemptId(9), POLICY, Time(120)));
        assert_eq!(breaker.open_until(), Some(Time(220)));
        assert!(breaker.is_due(Time(220)));
        breaker.began(AttemptId(10));
        assert!(breaker.succeeded(AttemptId(10)));
        assert_eq!((breaker.state(), breaker.failures()), (BreakerState::Closed, 0));
    }

    #[test]
    fn a_policy_without_failures_never_opens() {
        let mut breaker = Breaker::default();
        let policy = BreakerPolicy { failures: 0, ..POLICY };
        assert!((0..1000).all(|attempt| !breaker.failed(AttemptId(attempt), policy, Time(attempt))));
        assert!(breaker.allows());
    }

    #[test]
    fn a_reset_closes_it() {
        let mut breaker = Breaker::restored(BreakerRecord { failures: 3, open_until: Some(Time(100)) });
        assert!(breaker.reset() && breaker.allows() && !breaker.reset());
    }
}
