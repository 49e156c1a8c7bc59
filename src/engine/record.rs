//! What of a worker outlives the daemon: its record, written down whenever it changes, and how a worker comes to be from it.
//!
//! Times are points of the monotonic clock, which means the same to every daemon of one boot; whoever keeps records lets go
//! of them when the machine has booted anew. A record says what the worker was when the daemon ended; what has become of
//! its processes meanwhile is its [`Fate`], found out by looking. Called by `orders.rs` for `PoolRestored`, and by
//! [`super::Engine::take_changes`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::claims::Lease;
use super::dispatch::BreakerRecord;
use super::restart::{History, RESTARTS_REMEMBERED_MAX};
use super::step::{After, Phase, Verdict};
use super::worker::{Context, EXTENSION_MAX, Worker};
use super::{Cause, Effect, Ended, Time};
use crate::spec::{Generation, WorkerId};

/// How long a worker that is taken over has to become ready at least: what it said meanwhile is read first.
const READY_GRACE: Duration = Duration::from_secs(1);

/// One worker as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Its latest spawn attempt.
    pub generation: Option<u64>,
    /// Where it was.
    pub phase: Phase,
    /// What an order makes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<After>,
    /// What the restart policy makes of it, while it is being emptied.
    #[serde(default)]
    pub verdict: Verdict,
    /// Why this generation is being ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Whether its death certificate is written.
    #[serde(default)]
    pub certified: bool,
    /// When the phase is overdue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// When the start or stop began that the deadline ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Time>,
    /// Since when it has been ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Time>,
    /// How often it beats by its own word, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_interval_usec: Option<u64>,
    /// Restarts over its whole life.
    #[serde(default)]
    pub restarts: u64,
    /// Restarts in a row without stable uptime.
    #[serde(default)]
    pub in_row: u32,
    /// Whether somebody has it to itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leased: bool,
    /// When its latest restarts were decided, within the window of the crash barrier.
    #[serde(default)]
    pub recent: Vec<Time>,
    /// Its circuit breaker.
    #[serde(default, skip_serializing_if = "BreakerRecord::is_blank")]
    pub breaker: BreakerRecord,
}

impl WorkerRecord {
    /// Whether there were processes of it, or were about to be.
    #[must_use]
    pub const fn had_processes(&self) -> bool {
        match self.phase {
            Phase::Stopped | Phase::Crashed | Phase::Queued | Phase::Waiting => false,
            Phase::Spawning
            | Phase::Aborting
            | Phase::Starting
            | Phase::Running
            | Phase::Stopping
            | Phase::Killing
            | Phase::Emptying
            | Phase::Stuck => true,
        }
    }

    /// Whether nothing can have ended yet in its phase: a certificate of that, which only a damaged record has, would keep its
    /// true end from being seen.
    const fn cannot_have_ended(&self) -> bool {
        matches!(self.phase, Phase::Spawning | Phase::Aborting | Phase::Starting | Phase::Running | Phase::Stopping)
    }

    /// The record for a daemon that is to begin everything anew: nothing of the past holds the worker back.
    #[must_use]
    pub fn to_begin_again(self) -> Self {
        Self { after: Some(After::Again), in_row: 0, recent: Vec::new(), ..self }
    }

    /// The record of a worker that was found in `phase`, of which nothing else is known than what an `older` record says.
    #[must_use]
    pub fn assumed(generation: u64, phase: Phase, older: Option<Self>, now: Time) -> Self {
        let (restarts, in_row, recent, breaker) =
            older.map_or_else(Default::default, |older| (older.restarts, older.in_row, older.recent, older.breaker));
        Self {
            generation: Some(generation),
            phase,
            after: None,
            verdict: Verdict::Stop,
            cause: None,
            certified: false,
            deadline: None,
            began: None,
            ready_at: (phase == Phase::Running).then_some(now),
            own_interval_usec: None,
            restarts,
            in_row,
            leased: false,
            recent,
            breaker,
        }
    }
}

/// What has become of a worker's processes while no daemon ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They run, and are watched again.
    Lives,
    /// They have ended like this; an `Emptied` follows when nothing of them is left.
    Ended(Ended),
    /// They were ended because no daemon was there: no fault of the worker's. An `Emptied` follows.
    Abandoned,
    /// There are none, and nobody has waited for any.
    Nothing,
}

impl Worker {
    /// What is to be written down of it.
    pub(super) fn record(&self) -> WorkerRecord {
        let (in_row, recent) = self.history.remembered();
        WorkerRecord {
            generation: self.generation.map(|generation| generation.0),
            phase: self.phase,
            after: self.after,
            verdict: self.verdict,
            cause: self.cause.or(self.meant),
            certified: self.certified,
            deadline: self.deadline,
            began: self.deadline.and(Some(self.began)),
            ready_at: self.ready_at,
            own_interval_usec: self.own_interval.and_then(|interval| u64::try_from(interval.as_micros()).ok()),
            restarts: self.restarts,
            in_row,
            leased: self.lease == Some(Lease::Held),
            recent,
            breaker: self.breaker,
        }
    }

    /// The worker that a record describes, before anybody has looked for its processes.
    pub(super) fn from_record(id: WorkerId, record: &WorkerRecord, now: Time) -> Self {
        let mut worker = Self::new(id, now);
        worker.phase = record.phase;
        worker.generation = record.generation.map(Generation);
        worker.after = record.after;
        worker.verdict = record.verdict;
        // Of one whose spawn is not answered nothing is ended yet: if it ends now, that is its own end.
        match record.phase {
            Phase::Aborting => worker.meant = record.cause,
            Phase::Stopped
            | Phase::Crashed
            | Phase::Queued
            | Phase::Spawning
            | Phase::Starting
            | Phase::Running
            | Phase::Stopping
            | Phase::Killing
            | Phase::Emptying
            | Phase::Waiting
            | Phase::Stuck => worker.cause = record.cause,
        }
        worker.certified = record.certified && !record.cannot_have_ended();
        worker.began = record.began.map_or(now, |began| began.min(now));
        worker.ready_at = record.ready_at.map(|ready| ready.min(now));
        worker.own_interval = record.own_interval_usec.map(Duration::from_micros);
        worker.restarts = record.restarts;
        // Whoever waited for one that had not come up waits no more: then it is one like the others.
        worker.lease = (record.leased && record.had_processes()).then_some(Lease::Held);
        let recent = record.recent.iter().rev().take(RESTARTS_REMEMBERED_MAX).rev().map(|&then| then.min(now));
        worker.history = History::of(record.in_row, recent.collect());
        worker.breaker = record.breaker;
        worker
    }

    /// Brings a worker in line with what was found of its processes. Afterwards it is in a phase that the table knows how to
    /// leave: who was being ended is asked once more, who was ended is `Emptying`, who has no processes waits or is down.
    pub(super) fn settle_fate(&mut self, record: &WorkerRecord, fate: Fate, cx: &mut Context<'_>) {
        use Phase::{
            Aborting, Crashed, Emptying, Killing, Queued, Running, Spawning, Starting, Stopped, Stopping, Stuck,
            Waiting,
        };
        if self.generation.is_none() && record.had_processes() {
            // Processes that nobody has started: nothing can end, so it begins.
            self.phase = Queued;
            return;
        }
        // No restart was ever decided for later than this.
        let latest = cx.now.after(cx.policy.restart.delay_max);
        if let Verdict::Restart(at) = self.verdict {
            self.verdict = Verdict::Restart(at.min(latest));
        }
        let fate = if self.generation.is_some() { fate } else { Fate::Nothing };
        match (fate, self.phase) {
            // There was nothing to end, whatever was found.
            (Fate::Nothing | Fate::Abandoned | Fate::Ended(_), Stopped | Crashed | Queued) => {}
            (Fate::Nothing | Fate::Abandoned | Fate::Ended(_), Waiting) => {
                self.deadline = Some(record.deadline.map_or(cx.now, |deadline| deadline.min(latest)));
            }
            // Its spawn had not come far enough for anything to be there.
            (
                Fate::Nothing | Fate::Abandoned,
                Spawning | Aborting | Starting | Running | Stopping | Killing | Emptying | Stuck,
            ) => self.lose(cx),
            (Fate::Lives, Spawning) => {
                self.in_flight = true;
                self.start_again(record, cx);
            }
            (Fate::Lives, Starting) => self.start_again(record, cx),
            (Fate::Lives, Running) => self.watch_again(cx),
            (Fate::Lives, Stopping) => self.ask_again(record, cx),
            (Fate::Lives, Aborting | Killing | Stuck) => self.kill_again(cx),
            (Fate::Lives, Stopped | Crashed | Queued | Waiting | Emptying) => self.kill_unexpected(cx),
            (Fate::Ended(ended), Spawning | Aborting | Starting | Running | Stopping | Killing | Emptying | Stuck) => {
                self.phase = if self.certified { Emptying } else { self.phase };
                self.end_unseen(ended, cx);
            }
        }
    }

    /// Its generation came to nothing while nobody watched. What was known of its end before stays. An end that was begun for
    /// a reason counts as that; without one it was not its own fault, and it begins anew, past the restart policy, unless it
    /// was to be down.
    fn lose(&mut self, cx: &mut Context<'_>) {
        self.cause = self.cause.or(self.meant);
        if let (false, Some(cause)) = (self.certified, self.cause) {
            self.certify(cause, None, cx);
        } else if !self.certified {
            self.certified = true;
            self.emit(cx, |worker, generation| Effect::Certify(worker, generation, Cause::Shutdown));
            self.keep_to_lease();
            self.verdict = Verdict::Restart(cx.now);
        }
        self.in_flight = false;
        self.phase = Phase::Emptying;
        self.deadline = Some(cx.now.after(cx.policy.stop.kill_timeout));
    }

    fn end_unseen(&mut self, ended: Ended, cx: &mut Context<'_>) {
        if self.phase == Phase::Emptying {
            self.deadline = Some(cx.now.after(cx.policy.stop.kill_timeout));
        } else {
            self.end(ended, cx);
        }
    }

    /// It was on its way to be ready: the time that it has for that goes on.
    fn start_again(&mut self, record: &WorkerRecord, cx: &Context<'_>) {
        let least = cx.now.after(READY_GRACE);
        let deadline = self.deadline_kept(record, cx.policy.startup.ready_timeout, cx.now);
        self.deadline = Some(deadline.max(least));
    }

    /// The deadline of a start or stop that takes `patience` and can have been prolonged; from now, if none was written down.
    fn deadline_kept(&self, record: &WorkerRecord, patience: Duration, now: Time) -> Time {
        let most = self.began.after(patience.max(EXTENSION_MAX));
        record.deadline.map_or(now.after(patience), |deadline| deadline.min(most))
    }

    /// It was asked to end by a daemon that is gone, or said that it ends: its grace goes on.
    fn ask_again(&mut self, record: &WorkerRecord, cx: &mut Context<'_>) {
        self.deadline = Some(self.deadline_kept(record, cx.policy.stop.grace, cx.now));
        if self.cause.is_some() {
            let signal = cx.policy.stop.signal;
            self.emit(cx, |worker, generation| Effect::Signal(worker, generation, signal));
        }
    }

    /// It was being killed: that may not have been done. Its cause stays what it was, which is none for one that said by itself
    /// that it ends.
    fn kill_again(&mut self, cx: &mut Context<'_>) {
        self.kill(None, cx);
    }

    /// It lives and should not: the processes are right, and what its record says comes true once they are gone.
    fn kill_unexpected(&mut self, cx: &mut Context<'_>) {
        if matches!(self.phase, Phase::Stopped | Phase::Crashed) {
            self.after = self.after.or(Some(After::Down));
        }
        self.kill(Some(Cause::Shutdown), cx);
    }
}
