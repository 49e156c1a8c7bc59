//! One pool: its size, its places, and who begins next.
//!
//! A start *begins* with `Spawn` and is under way until the spawn is answered (or cut short by a kill); how long a program
//! then takes to become ready is its own affair and holds up no neighbour. At most `batch_size` are under way at once, and
//! with a `batch_delay`, after `batch_size` starts with less than that pause between them the next one waits for the pause.
//! Never decides about one worker: that is `worker.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Time;
use super::claims::Claims;
use super::worker::Worker;
use crate::spec::{PoolPolicy, Size};

/// Who may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// The worker in this place, now.
    Now(u32),
    /// Somebody, at this time.
    At(Time),
    /// Nobody until something happens.
    Idle,
}

/// A pool and all its places.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) policy: PoolPolicy,
    /// How many places it is to have; within min..=max of the policy.
    pub(super) wanted: u32,
    /// Its workers are being stopped, then it is forgotten.
    pub(super) removed: bool,
    pub(super) slots: BTreeMap<u32, Worker>,
    /// Who waits for a start, first come first.
    queue: BTreeSet<(u64, u32)>,
    next_turn: u64,
    /// Starts under way.
    pub(super) in_flight: u32,
    /// Starts since the last pause of `batch_delay`, and when the latest of them began.
    batch: u32,
    batch_latest: Option<Time>,
    pub(super) armed: Option<Time>,
    /// Who has a worker of it to itself.
    pub(super) claims: Claims,
}

/// The nearest size that the policy allows.
fn fit(wanted: u32, size: Size) -> u32 {
    wanted.max(size.min).min(size.max)
}

impl Pool {
    /// Sets how many places it is to have, as far as its policy allows.
    pub(super) fn want(&mut self, wanted: u32) {
        self.wanted = fit(wanted, self.policy.size);
    }

    /// A pool with its smallest size and no places yet.
    pub(super) fn new(policy: PoolPolicy) -> Self {
        let wanted = fit(0, policy.size);
        Self {
            policy,
            wanted,
            removed: false,
            slots: BTreeMap::new(),
            queue: BTreeSet::new(),
            next_turn: 0,
            in_flight: 0,
            batch: 0,
            batch_latest: None,
            armed: None,
            claims: Claims::default(),
        }
    }

    /// Takes a changed policy; a size that it still allows stays. Other batches begin anew.
    pub(super) fn redefine(&mut self, policy: PoolPolicy) {
        if self.policy.startup != policy.startup {
            self.batch = 0;
        }
        self.wanted = fit(self.wanted, policy.size);
        self.policy = policy;
    }

    /// Puts a place at the end of the queue and returns its turn.
    pub(super) fn enqueue(&mut self, slot: u32) -> u64 {
        let turn = self.next_turn;
        self.next_turn += 1;
        self.queue.insert((turn, slot));
        turn
    }

    /// Takes a place out of the queue.
    pub(super) fn dequeue(&mut self, turn: u64, slot: u32) {
        self.queue.remove(&(turn, slot));
    }

    /// How many wait for a start.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Who may begin at `now`.
    pub(super) fn admission(&self, now: Time) -> Admission {
        let startup = &self.policy.startup;
        let batch_size = startup.batch_size.max(1);
        let Some(&(_, slot)) = self.queue.first() else { return Admission::Idle };
        if self.in_flight >= batch_size {
            return Admission::Idle;
        }
        match self.pause_over() {
            Some(pause_over) if now < pause_over && self.batch >= batch_size => Admission::At(pause_over),
            Some(_) | None => Admission::Now(slot),
        }
    }

    /// Counts a start that begins at `now`.
    pub(super) fn began(&mut self, now: Time) {
        let paused = self.pause_over().is_none_or(|pause_over| now >= pause_over);
        self.batch = if paused { 1 } else { self.batch.saturating_add(1) };
        self.batch_latest = Some(now);
    }

    fn pause_over(&self) -> Option<Time> {
        self.batch_latest.map(|latest| latest.after(self.policy.startup.batch_delay))
    }

    /// How long it may take, from now, until `more` starts beside those that wait have been tried.
    pub(super) fn start_bound(&self, more: usize) -> Duration {
        let startup = &self.policy.startup;
        let batch_size = usize::try_from(startup.batch_size.max(1)).unwrap_or(usize::MAX);
        let batches = u32::try_from((self.queue.len() + more) / batch_size + 1).unwrap_or(u32::MAX);
        startup
            .ready_timeout
            .saturating_add(startup.batch_delay.saturating_mul(batches))
            .saturating_add(self.stop_bound())
    }

    /// How long it may take, from now, until a stop without extensions is over.
    pub(super) fn stop_bound(&self) -> Duration {
        self.policy.stop.grace.saturating_add(self.policy.stop.kill_timeout)
    }
}
