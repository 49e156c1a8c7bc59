//! What is promised about a call: one answer, when all it waits for has settled, and within a bound.

use std::collections::BTreeSet;
use std::time::Duration;

use halsup::engine::{Answer, State, Time};
use halsup::spec::{PoolPolicy, WorkerId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Up,
    Down,
    Size,
}

#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) ask: Ask,
    targets: Vec<WorkerId>,
    up: BTreeSet<WorkerId>,
    down: BTreeSet<WorkerId>,
    /// A shutdown has made it impossible.
    pub(crate) refused: bool,
    /// No impatient answer before this.
    patient_until: Time,
    /// Answered by then, come what may.
    pub(crate) bound: Time,
}

impl Call {
    pub(crate) fn new<'a>(
        ask: Ask,
        targets: Vec<WorkerId>,
        up: BTreeSet<WorkerId>,
        down: BTreeSet<WorkerId>,
        policies: impl Iterator<Item = &'a PoolPolicy>,
        places: usize,
        now: Time,
    ) -> Self {
        let batches = u32::try_from(places).expect("few") * 2 + 1;
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for policy in policies {
            let stop = policy.stop.grace + policy.stop.kill_timeout;
            let start = stop + policy.startup.ready_timeout;
            let long = policy.stop.kill_timeout + Duration::from_secs(3600);
            least = least.min(if ask == Ask::Down { stop } else { start });
            let slow = start + policy.startup.batch_delay * batches;
            most = most.max(if ask == Ask::Up { slow } else { slow.max(long) });
        }
        let margin = Duration::from_secs(20);
        let patient_until = now.after(least.min(Duration::from_secs(100_000)));
        Self { ask, targets, up, down, refused: false, patient_until, bound: now.after(most + margin) }
    }

    pub(crate) fn settle(&mut self, worker: WorkerId, up: Settled, down: Settled) {
        if up.0 {
            self.up.remove(&worker);
        }
        if down.0 {
            self.down.remove(&worker);
        }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.refused || (self.up.is_empty() && self.down.is_empty())
    }

    pub(crate) fn check(
        &self,
        answer: &Answer,
        state: impl Fn(&WorkerId) -> Option<State>,
        now: Time,
    ) -> Result<(), String> {
        if !self.is_complete() && now < self.patient_until {
            return Err(format!("answered before {:?} came up and {:?} went down", self.up, self.down));
        }
        let up = |id: &&WorkerId| matches!(state(id), Some(State::Healthy | State::Unhealthy));
        let down = |id: &&WorkerId| matches!(state(id), None | Some(State::Stopped));
        let achieved = match self.ask {
            Ask::Up | Ask::Size => self.targets.iter().filter(up).count(),
            Ask::Down => self.targets.iter().filter(down).count(),
        };
        let count = |number| u32::try_from(number).expect("few");
        let expected = if self.refused {
            Answer::ShuttingDown
        } else {
            Answer::Done { achieved: count(achieved), wanted: count(self.targets.len()) }
        };
        if *answer != expected {
            return Err(format!("answered {answer:?}, and it is {expected:?}"));
        }
        Ok(())
    }
}

/// Whether a worker has come to what a call waits for, or cannot for now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled(bool);

impl From<bool> for Settled {
    fn from(settled: bool) -> Self {
        Self(settled)
    }
}
