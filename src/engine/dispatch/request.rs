//! One request that is not concluded: where it is and how far it has come.

use super::{AttemptId, Demand, RequestId, Requests};
use crate::engine::Time;
use crate::spec::{Affinity, Generation, PoolId, WorkerId};

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// In the queue; bound to one place, where it is strict about its session's worker.
    Waiting(Option<u32>),
    /// Out of the queue until then.
    BackingOff(Time),
    /// In a worker.
    InFlight(AttemptId, WorkerId),
}

/// A request that is not concluded.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) pool: PoolId,
    pub(super) demand: Demand,
    pub(super) affinity: Affinity,
    /// When it is concluded at the latest.
    pub(super) deadline: Time,
    /// Until when it waits for its first worker.
    pub(super) queue_deadline: Time,
    pub(super) stage: Stage,
    pub(super) attempts: u32,
    /// Whether a worker may have run some of it.
    pub(super) reached: bool,
    /// The places that it was given to, and those that it avoids.
    pub(super) tried: Vec<u32>,
    pub(super) armed: Option<Time>,
}

impl Request {
    /// When it has to be looked at.
    pub(super) fn due(&self) -> Time {
        match self.stage {
            Stage::Waiting(_) if self.attempts == 0 => self.queue_deadline.min(self.deadline),
            Stage::Waiting(_) | Stage::InFlight(..) => self.deadline,
            Stage::BackingOff(until) => until.min(self.deadline),
        }
    }

    /// Whether it may be given to no worker but its session's.
    pub(super) const fn is_strict(&self) -> bool {
        match self.affinity {
            Affinity::Hint => false,
            Affinity::StrictQueue | Affinity::StrictFailFast => self.demand.session.is_some(),
        }
    }
}

/// Where a session's requests are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) worker: WorkerId,
    pub(super) generation: Generation,
}

impl Requests {
    /// A number for an attempt. It counts on from the clock, so that no later daemon of this boot gives it out again.
    pub(super) fn next_attempt(&mut self, now: Time) -> AttemptId {
        self.last_attempt = self.last_attempt.saturating_add(1).max(now.0);
        AttemptId(self.last_attempt)
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Request> {
        self.open.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.open.get_mut(&id)
    }

    pub(super) fn insert(&mut self, id: RequestId, request: Request) {
        self.open.insert(id, request);
    }

    pub(super) fn take(&mut self, id: RequestId) -> Option<Request> {
        self.open.remove(&id)
    }

    /// How many requests are not concluded.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
