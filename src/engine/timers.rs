//! Owns every deadline of the engine, earliest first.
//!
//! Never reads a clock. Each owner of a deadline remembers for what it is armed, so that arming, moving and disarming are
//! O(log n) and an owner never has two. Called by the engine after each step of a worker, a pool or a call.

use std::collections::BTreeSet;
use std::time::Duration;

use super::dispatch::{RequestId, SessionId};
use super::worker::Worker;
use super::{CallId, Time};
use crate::spec::{PoolId, WorkerId};

/// Whose deadline it is. The order decides between deadlines of one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// What a worker's phase waits for at most: ready, grace, kill, restart.
    Phase(WorkerId),
    /// A worker's next ping, or the next miss.
    Beat(WorkerId),
    /// When a worker is to be measured.
    Measure(WorkerId),
    /// A pool's next start-up batch.
    Batch(PoolId),
    /// The end of the patience with warm workers that nobody wants.
    Idle(PoolId),
    /// The end of shutdown's patience.
    Shutdown,
    /// The end of a call's patience.
    Call(CallId),
    /// A request's deadline, or the end of its pause.
    Request(RequestId),
    /// The end of the patience with a worker that goes on with what nobody wants.
    Overdue(WorkerId),
    /// The end of an open breaker's time, of a worker and of a pool.
    Breaker(WorkerId),
    PoolBreaker(PoolId),
    /// The end of the time in which a worker that has crashed is chosen last.
    Taint(WorkerId),
    /// A worker's planned replacement by age, and the next look at its memory.
    Age(WorkerId),
    Memory(WorkerId),
    /// The end of a session of requests.
    Session(SessionId),
}

/// All armed deadlines.
#[derive(Debug, Default)]
pub(super) struct Timers {
    armed: BTreeSet<(Time, Key)>,
}

impl Timers {
    /// Moves the deadline of `key` from `armed` to `wanted`.
    pub(super) fn arm(&mut self, key: Key, armed: &mut Option<Time>, wanted: Option<Time>) {
        if *armed == wanted {
            return;
        }
        if let Some(old) = *armed {
            self.armed.remove(&(old, key));
        }
        if let Some(new) = wanted {
            self.armed.insert((new, key));
        }
        *armed = wanted;
    }

    /// Moves all deadlines of a worker to where it is now.
    pub(super) fn arm_all(&mut self, worker: &mut Worker) {
        let id = worker.id;
        let (beat_due, measure_due) = (worker.beat_due(), worker.idle.due);
        self.arm(Key::Phase(id), &mut worker.armed_deadline, worker.deadline);
        self.arm(Key::Beat(id), &mut worker.armed_beat, beat_due);
        self.arm(Key::Measure(id), &mut worker.armed_measure, measure_due);
    }

    /// Disarms all deadlines of a worker.
    pub(super) fn disarm(&mut self, worker: &mut Worker) {
        let id = worker.id;
        self.arm(Key::Phase(id), &mut worker.armed_deadline, None);
        self.arm(Key::Beat(id), &mut worker.armed_beat, None);
        self.arm(Key::Measure(id), &mut worker.armed_measure, None);
    }

    /// The earliest deadline.
    pub(super) fn first(&self) -> Option<Time> {
        self.armed.first().map(|&(time, _)| time)
    }

    /// Takes the earliest deadline out if it has come; its owner is to forget that it was armed.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<Key> {
        let &(time, key) = self.armed.first()?;
        if time > now {
            return None;
        }
        self.armed.remove(&(time, key));
        Some(key)
    }
}

impl Time {
    /// This much later; the end of time if that is beyond it.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_is_first_and_an_owner_has_one() {
        let mut timers = Timers::default();
        let (mut call, mut batch) = (None, None);
        timers.arm(Key::Call(CallId(1)), &mut call, Some(Time(30)));
        timers.arm(Key::Batch(PoolId(1)), &mut batch, Some(Time(20)));
        assert_eq!(timers.first(), Some(Time(20)));
        timers.arm(Key::Batch(PoolId(1)), &mut batch, Some(Time(40)));
        assert_eq!(timers.first(), Some(Time(30)));
        assert_eq!(timers.pop_due(Time(29)), None);
        assert_eq!(timers.pop_due(Time(30)), Some(Key::Call(CallId(1))));
        timers.arm(Key::Batch(PoolId(1)), &mut batch, None);
        assert_eq!(timers.first(), None);
    }

    #[test]
    fn time_does_not_overflow() {
        assert_eq!(Time(5).after(Duration::MAX), Time(u64::MAX));
        assert_eq!(Time(5).since(Time(9)), Duration::ZERO);
    }
}
