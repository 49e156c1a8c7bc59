//! One pool: its size, its places, and who begins next.
//!
//! A start *begins* with `Spawn` and is under way until the spawn is answered (or cut short by a kill); how long a program
//! then takes to become ready is its own affair and holds up no neighbour. At most `batch_size` are under way at once, and
//! with a `batch_delay`, after `batch_size` starts with less than that pause between them the next one waits for the pause.
//! Never decides about one worker: that is `worker.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::claims::Claims;
use super::dispatch::{BreakerRecord, Dispatcher};
use super::worker::Worker;
use super::{Time, Tuning};
use crate::spec::{ClaimPolicy, PoolPolicy, Size};

/// No pool has more, whatever a record says.
const WORKERS_MAX: u32 = 10_000;

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
    /// What is in force.
    pub(super) policy: PoolPolicy,
    /// What the configuration says, where `tuning` says something else.
    configured: (Size, Option<ClaimPolicy>),
    pub(super) tuning: Tuning,
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
    /// Its requests, where it dispatches any.
    pub(super) dispatcher: Dispatcher,
    /// Its circuit breaker as it is written down.
    pub(super) breaker: BreakerRecord,
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

    /// Takes over how its circuit breaker was, whose time is never longer than the policy has it.
    pub(super) fn restore_breaker(&mut self, record: BreakerRecord, now: Time) {
        if let Some(policy) = self.policy.dispatch {
            self.breaker = record.within(policy.pool_breaker, now);
            self.dispatcher.restore_breaker(self.breaker);
        }
    }

    /// A further worker that replaces others is one of the pool's own where the pool has become that large. If it was leaving
    /// already, it is replaced as those are, and before them.
    pub(super) fn keep_surge_in_size(&mut self) {
        self.dispatcher.keep_surge_below(self.wanted);
    }

    /// A pool with its smallest size and no places yet.
    pub(super) fn new(policy: PoolPolicy) -> Self {
        let wanted = fit(0, policy.size);
        Self {
            configured: (policy.size, policy.claims),
            policy,
            tuning: Tuning::default(),
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
            dispatcher: Dispatcher::default(),
            breaker: BreakerRecord::default(),
        }
    }

    /// Takes a changed policy; a size that it still allows stays. Other batches begin anew.
    pub(super) fn redefine(&mut self, policy: PoolPolicy) {
        if self.policy.startup != policy.startup {
            self.batch = 0;
        }
        // What an operator has set holds as long as the configuration says what it said then.
        if self.configured != (policy.size, policy.claims) {
            self.configured = (policy.size, policy.claims);
            self.tuning = Tuning::default();
        }
        self.policy = policy;
        self.tune(self.tuning);
    }

    /// Has these numbers in force in the place of the configuration's; a size that they still allow stays.
    pub(super) fn tune(&mut self, tuning: Tuning) {
        self.tuning = tuning;
        let (size, claims) = self.configured;
        (self.policy.size, self.policy.claims) = (size, claims);
        if let Some(claims) = &mut self.policy.claims {
            let max = tuning.max.unwrap_or(size.max).clamp(1, WORKERS_MAX);
            self.policy.size = Size { min: tuning.min.unwrap_or(size.min).min(max), max };
            claims.idle_timeout = tuning.idle_timeout.unwrap_or(claims.idle_timeout);
            claims.check_interval = tuning.check_interval.unwrap_or(claims.check_interval);
        }
        self.wanted = fit(self.wanted, self.policy.size);
        self.claims.extra = self.claims.extra.min(self.policy.size.max - self.wanted);
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
