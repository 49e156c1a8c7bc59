//! One worker: what it is doing, and what an event does to it.
//!
//! Carries out what the table in `step.rs` says; never looks at another worker, never arms a timer (the engine takes
//! [`Worker::deadline`] and [`Worker::beat_due`] from it after each step).

use std::collections::VecDeque;
use std::time::Duration;

use super::claims::Lease;
use super::dispatch::BreakerRecord;
use super::heartbeat::Monitor;
use super::idle::Idle;
use super::restart::{Decision, History, Random};
use super::step::{Action, After, Event, Phase, Verdict, step};
use super::{Cause, Effect, Ended, Sleep, State, Time, WorkerView};
use crate::spec::{Generation, PoolPolicy, WorkerId};

/// However often a worker asks for more time, its start or stop takes no longer than this.
pub(super) const EXTENSION_MAX: Duration = Duration::from_secs(3600);

/// What others want to know of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It is ready, or will not be for now.
    UpSettled,
    /// It is empty, or will not be for now.
    DownSettled,
    /// It is to be forgotten.
    Gone,
}

/// What a step works with beside the worker.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) now: Time,
    pub(super) policy: &'a PoolPolicy,
    pub(super) random: &'a mut Random,
    pub(super) last_generation: &'a mut u64,
    pub(super) effects: &'a mut VecDeque<Effect>,
    pub(super) news: &'a mut Vec<News>,
}

/// One place of a pool.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) phase: Phase,
    pub(super) generation: Option<Generation>,
    /// Who has it to itself.
    pub(super) lease: Option<Lease>,
    /// What an order makes of it; `None` leaves it to the restart policy.
    pub(super) after: Option<After>,
    pub(super) verdict: Verdict,
    /// Why we began to end this generation.
    pub(super) cause: Option<Cause>,
    /// Why we will end it once its spawn is answered.
    pub(super) meant: Option<Cause>,
    pub(super) certified: bool,
    /// Its spawn is not answered, and not cut short.
    pub(super) in_flight: bool,
    /// When the start or stop began that an extension prolongs.
    pub(super) began: Time,
    /// When the phase is overdue.
    pub(super) deadline: Option<Time>,
    pub(super) ready_at: Option<Time>,
    monitor: Option<Monitor>,
    pub(super) own_interval: Option<Duration>,
    missed: u32,
    pub(super) idle: Idle,
    pub(super) restarts: u64,
    pub(super) history: History,
    reported: Option<State>,
    since: Time,
    /// Its place in the pool's queue, while it is queued.
    pub(super) turn: u64,
    /// What the timers are armed for.
    pub(super) armed_deadline: Option<Time>,
    pub(super) armed_beat: Option<Time>,
    /// Its circuit breaker as it is written down.
    pub(super) breaker: BreakerRecord,
    pub(super) armed_measure: Option<Time>,
}

impl Worker {
    /// A new place, queued for its first start.
    pub(super) const fn new(id: WorkerId, now: Time) -> Self {
        Self {
            id,
            phase: Phase::Queued,
            generation: None,
            lease: None,
            after: None,
            verdict: Verdict::Stop,
            cause: None,
            meant: None,
            certified: false,
            in_flight: false,
            began: now,
            deadline: None,
            ready_at: None,
            monitor: None,
            own_interval: None,
            missed: 0,
            idle: Idle::new(now),
            restarts: 0,
            history: History::new(),
            reported: None,
            since: now,
            turn: 0,
            armed_deadline: None,
            armed_beat: None,
            breaker: BreakerRecord::BLANK,
            armed_measure: None,
        }
    }

    /// What the world is told that it is doing.
    pub(super) const fn state(&self) -> State {
        match self.phase {
            Phase::Stopped => State::Stopped,
            Phase::Crashed => State::Crashed,
            Phase::Queued | Phase::Spawning | Phase::Starting => State::Initializing,
            Phase::Running if self.missed == 0 => State::Healthy,
            Phase::Running => State::Unhealthy,
            Phase::Aborting | Phase::Stopping | Phase::Killing => State::Draining,
            Phase::Emptying => match (self.after, self.verdict) {
                (Some(After::Again), _) | (None, Verdict::Restart(_)) => State::Restarting,
                (Some(After::Down | After::Gone), _) | (None, Verdict::Crash | Verdict::Stop) => State::Draining,
            },
            Phase::Waiting => State::Restarting,
            Phase::Stuck => State::Stuck,
        }
    }

    /// The worker for a listing.
    pub(super) const fn view(&self) -> WorkerView {
        let restart_at = match (self.phase, self.after, self.verdict) {
            (Phase::Waiting | Phase::Emptying | Phase::Stuck, None, Verdict::Restart(at)) => Some(at),
            (
                Phase::Stopped
                | Phase::Crashed
                | Phase::Queued
                | Phase::Spawning
                | Phase::Aborting
                | Phase::Starting
                | Phase::Running
                | Phase::Stopping
                | Phase::Killing
                | Phase::Emptying
                | Phase::Waiting
                | Phase::Stuck,
                _,
                _,
            ) => None,
        };
        WorkerView {
            worker: self.id,
            generation: self.generation,
            state: self.state(),
            since: self.since,
            restarts: self.restarts,
            missed: self.missed,
            restart_at,
            leased: self.lease.is_some(),
            sleep: self.idle.sleep,
        }
    }

    /// Whether beats are missing.
    pub(super) const fn is_unwell(&self) -> bool {
        self.missed > 0
    }

    /// When the heartbeat is to be looked at.
    pub(super) fn beat_due(&self) -> Option<Time> {
        self.monitor.as_ref().map(Monitor::due)
    }

    /// Whether something of it is, or is about to be, in the kernel's hands or on its way there.
    pub(super) const fn is_busy(&self) -> bool {
        match self.phase {
            Phase::Stopped | Phase::Crashed | Phase::Stuck => false,
            Phase::Queued
            | Phase::Spawning
            | Phase::Aborting
            | Phase::Starting
            | Phase::Running
            | Phase::Stopping
            | Phase::Killing
            | Phase::Emptying
            | Phase::Waiting => true,
        }
    }

    /// Whether a reset has something to forgive.
    pub(super) const fn is_held_back(&self) -> bool {
        match self.phase {
            Phase::Crashed | Phase::Waiting => true,
            Phase::Emptying | Phase::Stuck => match (self.after, self.verdict) {
                (None, Verdict::Restart(_) | Verdict::Crash) => true,
                (None, Verdict::Stop) | (Some(After::Down | After::Again | After::Gone), _) => false,
            },
            Phase::Stopped
            | Phase::Queued
            | Phase::Spawning
            | Phase::Aborting
            | Phase::Starting
            | Phase::Running
            | Phase::Stopping
            | Phase::Killing => false,
        }
    }

    /// Emits the state if it changed.
    pub(super) fn report(&mut self, now: Time, effects: &mut VecDeque<Effect>) {
        let state = self.state();
        if self.reported != Some(state) {
            self.reported = Some(state);
            self.since = now;
            effects.push_back(Effect::StateChanged(self.id, state));
        }
    }

    /// The pool's heartbeat is another one by now: it begins anew, as at readiness.
    pub(super) fn renew_monitor(&mut self, policy: &PoolPolicy, now: Time) {
        if self.phase == Phase::Running && self.idle.sleep == Sleep::Awake {
            self.missed = 0;
            self.monitor = policy.heartbeat.map(|heartbeat| Monitor::new(heartbeat, self.own_interval, now));
        }
    }

    /// Whether it is ready.
    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Whether beats of it are missing.
    pub(super) const fn misses_beats(&self) -> bool {
        self.missed > 0
    }

    /// Nothing is expected of it.
    pub(super) fn watch_no_more(&mut self) {
        self.monitor = None;
    }

    /// It was ready under another daemon: what it has beaten meanwhile is not known, so its heartbeat begins anew.
    pub(super) fn watch_again(&mut self, cx: &Context<'_>) {
        self.deadline = None;
        self.ready_at = self.ready_at.or(Some(cx.now));
        self.renew_monitor(cx.policy, cx.now);
        self.idle.begin(cx.policy.freeze_after, cx.now);
    }

    /// What `event` does to it.
    pub(super) fn step(&mut self, event: Event, cx: &mut Context<'_>) {
        match step(self.phase, event) {
            Action::Ignore => {}
            Action::Spawn => self.spawn(cx),
            Action::Run => self.run(cx),
            Action::BeReady => self.be_ready(cx),
            Action::Beat => self.beat(cx),
            Action::Miss => self.ping_failed(cx),
            Action::Break => self.broke(cx),
            Action::Look => self.look(cx),
            Action::Measure => self.measure(cx),
            Action::Weigh(usage) => self.weigh(usage, cx),
            Action::BeFrozen => self.froze(),
            Action::Wake => self.wake(cx),
            Action::Extend(duration) => self.extend(duration, cx),
            Action::SetInterval(interval) => self.set_interval(interval, cx),
            Action::WindDown => self.wind_down(cx),
            Action::Abort(after, cause) => self.abort(after, cause, cx),
            Action::Terminate(after, cause) => self.terminate(after, cause, cx),
            Action::Turn(after) => self.turn_to(after, cx),
            Action::Revive if self.lease.is_some() => {}
            Action::Revive => self.after = Some(After::Again),
            Action::Kill(cause) => self.kill(Some(cause), cx),
            Action::KillAsMeant => self.kill(None, cx),
            Action::KillAgain => self.emit(cx, Effect::Kill),
            Action::Signal(signal) => {
                if self.is_ready() {
                    self.wake(cx);
                }
                self.emit(cx, |worker, generation| Effect::Signal(worker, generation, signal));
            }
            Action::End(ended) => self.end(ended, cx),
            Action::EndLate(ended) => self.certify(Cause::Itself(ended), Some(ended), cx),
            Action::Fail => {
                self.certify(Cause::StartFailed, None, cx);
                self.conclude(cx);
            }
            Action::Conclude => {
                self.certify(Cause::Itself(Ended::Unknown), None, cx);
                self.conclude(cx);
            }
            Action::Stick => self.stick(cx),
            Action::Enqueue => self.enqueue_again(),
            Action::Renew => self.renew(),
            Action::Rest(after) => self.rest(after, cx),
            Action::ForgetFailures => self.history.clear(),
            Action::Forgive => self.forgive(cx),
        }
    }

    pub(super) fn emit(&self, cx: &mut Context<'_>, effect: impl FnOnce(WorkerId, Generation) -> Effect) {
        if let Some(generation) = self.generation {
            cx.effects.push_back(effect(self.id, generation));
        }
    }

    fn enqueue(&mut self) {
        self.phase = Phase::Queued;
        self.deadline = None;
        self.after = None;
    }

    fn enqueue_again(&mut self) {
        self.restarts = self.restarts.saturating_add(1);
        self.enqueue();
    }

    fn renew(&mut self) {
        self.history.clear();
        self.enqueue();
    }

    fn spawn(&mut self, cx: &mut Context<'_>) {
        *cx.last_generation = cx.last_generation.wrapping_add(1);
        self.generation = Some(Generation(*cx.last_generation));
        self.phase = Phase::Spawning;
        self.after = None;
        self.cause = None;
        self.meant = None;
        self.certified = false;
        self.verdict = Verdict::Stop;
        self.in_flight = true;
        self.ready_at = None;
        self.own_interval = None;
        self.missed = 0;
        self.began = cx.now;
        self.deadline = Some(cx.now.after(cx.policy.startup.ready_timeout));
        self.emit(cx, Effect::Spawn);
    }

    fn run(&mut self, cx: &mut Context<'_>) {
        self.in_flight = false;
        if cx.policy.startup.waits_for_ready {
            self.phase = Phase::Starting;
        } else {
            self.be_ready(cx);
        }
    }

    fn be_ready(&mut self, cx: &mut Context<'_>) {
        self.in_flight = false;
        self.phase = Phase::Running;
        self.deadline = None;
        self.ready_at = Some(cx.now);
        self.monitor = cx.policy.heartbeat.map(|heartbeat| Monitor::new(heartbeat, self.own_interval, cx.now));
        self.idle.begin(cx.policy.freeze_after, cx.now);
        cx.news.push(News::UpSettled);
    }

    fn beat(&mut self, cx: &Context<'_>) {
        if let Some(monitor) = &mut self.monitor {
            monitor.beat(cx.now);
            self.missed = 0;
        }
    }

    fn ping_failed(&mut self, cx: &mut Context<'_>) {
        if self.monitor.as_mut().is_some_and(Monitor::ping_failed) {
            self.miss(1, cx);
        }
    }

    fn broke(&mut self, cx: &mut Context<'_>) {
        if let Some(heartbeat) = cx.policy.heartbeat {
            self.miss(heartbeat.max_missed.saturating_sub(self.missed).max(1), cx);
        }
    }

    fn look(&mut self, cx: &mut Context<'_>) {
        let Some(monitor) = &mut self.monitor else { return };
        let found = monitor.look(cx.now);
        self.miss(found.misses, cx);
        if found.ping && self.phase == Phase::Running {
            self.emit(cx, Effect::Ping);
        }
    }

    /// A hung process cannot be asked to end: the last miss kills.
    fn miss(&mut self, misses: u32, cx: &mut Context<'_>) {
        self.missed = self.missed.saturating_add(misses);
        let fatal =
            |heartbeat: crate::spec::Heartbeat| heartbeat.dependent && self.missed >= heartbeat.max_missed.max(1);
        if misses > 0 && cx.policy.heartbeat.is_some_and(fatal) {
            self.kill(Some(Cause::Heartbeat), cx);
        }
    }

    fn extend(&mut self, duration: Duration, cx: &Context<'_>) {
        let asked = cx.now.after(duration).min(self.began.after(EXTENSION_MAX));
        self.deadline = self.deadline.max(Some(asked));
    }

    fn set_interval(&mut self, interval: Duration, cx: &Context<'_>) {
        self.own_interval = Some(interval);
        if let Some(monitor) = &mut self.monitor {
            monitor.set_interval(interval, cx.now);
        }
    }

    /// Without a cause of ours: it is its own end, and the restart policy judges it.
    fn wind_down(&mut self, cx: &mut Context<'_>) {
        self.wake_to_end(cx);
        self.phase = Phase::Stopping;
        self.monitor = None;
        self.began = cx.now;
        self.deadline = Some(cx.now.after(cx.policy.stop.grace));
    }

    fn abort(&mut self, after: Option<After>, cause: Cause, cx: &mut Context<'_>) {
        self.phase = Phase::Aborting;
        self.meant = Some(cause);
        self.deadline = Some(cx.now.after(cx.policy.stop.grace));
        if let Some(after) = after {
            self.turn_to(after, cx);
        }
    }

    fn terminate(&mut self, after: After, cause: Cause, cx: &mut Context<'_>) {
        self.turn_to(after, cx);
        if self.cause.is_none() {
            self.wind_down(cx);
            self.cause = Some(cause);
            let signal = cx.policy.stop.signal;
            self.emit(cx, |worker, generation| Effect::Signal(worker, generation, signal));
        }
    }

    /// Changes what becomes of it. A place that is given up stays so, unless it is wanted again ([`Action::Revive`]).
    fn turn_to(&mut self, after: After, cx: &mut Context<'_>) {
        if self.after != Some(After::Gone) {
            self.after = Some(after);
        }
        self.keep_to_lease();
        if after != After::Again {
            cx.news.push(News::UpSettled);
        }
    }

    /// What was leased is nobody else's afterwards: its place goes with it.
    pub(super) fn keep_to_lease(&mut self) {
        if self.lease.is_some() {
            self.after = Some(After::Gone);
        }
    }

    pub(super) fn kill(&mut self, cause: Option<Cause>, cx: &mut Context<'_>) {
        self.wake_to_end(cx);
        self.cause = self.cause.or(self.meant).or(cause);
        self.phase = Phase::Killing;
        self.in_flight = false;
        self.monitor = None;
        self.deadline = Some(cx.now.after(cx.policy.stop.kill_timeout));
        self.emit(cx, Effect::Kill);
    }

    pub(super) fn end(&mut self, ended: Ended, cx: &mut Context<'_>) {
        self.certify(Cause::Itself(ended), Some(ended), cx);
        if self.phase != Phase::Killing {
            self.deadline = Some(cx.now.after(cx.policy.stop.kill_timeout));
        }
        self.phase = Phase::Emptying;
    }

    /// Writes the end of the generation down, once; `otherwise` is the cause if we did nothing to end it.
    pub(super) fn certify(&mut self, otherwise: Cause, ended: Option<Ended>, cx: &mut Context<'_>) {
        if self.certified {
            return;
        }
        self.certified = true;
        self.in_flight = false;
        self.wake_to_end(cx);
        self.monitor = None;
        let cause = self.cause.unwrap_or(otherwise);
        self.emit(cx, |worker, generation| Effect::Certify(worker, generation, cause));
        if self.after.is_none() && self.lease.is_some() {
            cx.news.push(News::UpSettled);
        }
        self.keep_to_lease();
        if self.after.is_none() {
            self.verdict = self.judge(cause, ended, cx);
            cx.news.push(News::UpSettled);
        }
    }

    fn judge(&mut self, cause: Cause, ended: Option<Ended>, cx: &mut Context<'_>) -> Verdict {
        let policy = &cx.policy.restart;
        if !policy.enabled {
            let well = ended == Some(Ended::Exited(0)) && cause == Cause::Itself(Ended::Exited(0));
            return if well { Verdict::Stop } else { Verdict::Crash };
        }
        let uptime = self.ready_at.map(|ready| cx.now.since(ready));
        match self.history.judge(policy, uptime, cx.now, cx.random) {
            Decision::At(time) => Verdict::Restart(time),
            Decision::Barrier => Verdict::Crash,
        }
    }

    fn conclude(&mut self, cx: &mut Context<'_>) {
        self.deadline = None;
        cx.news.push(News::DownSettled);
        match (self.after, self.verdict) {
            (Some(After::Down), _) | (None, Verdict::Stop) => self.phase = Phase::Stopped,
            (Some(After::Gone), _) => cx.news.push(News::Gone),
            (None, Verdict::Crash) => self.phase = Phase::Crashed,
            (Some(After::Again), _) => self.enqueue_again(),
            (None, Verdict::Restart(at)) if at <= cx.now => self.enqueue_again(),
            (None, Verdict::Restart(at)) => {
                self.phase = Phase::Waiting;
                self.deadline = Some(at);
            }
        }
        match self.phase {
            Phase::Stopped | Phase::Crashed | Phase::Waiting => {
                self.after = None;
                cx.news.push(News::UpSettled);
            }
            Phase::Queued
            | Phase::Spawning
            | Phase::Aborting
            | Phase::Starting
            | Phase::Running
            | Phase::Stopping
            | Phase::Killing
            | Phase::Emptying
            | Phase::Stuck => {}
        }
    }

    fn stick(&mut self, cx: &mut Context<'_>) {
        self.phase = Phase::Stuck;
        self.deadline = None;
        cx.news.extend([News::UpSettled, News::DownSettled]);
    }

    fn rest(&mut self, after: After, cx: &mut Context<'_>) {
        match if self.lease.is_some() { After::Gone } else { after } {
            After::Down => {
                self.phase = Phase::Stopped;
                self.deadline = None;
                cx.news.extend([News::UpSettled, News::DownSettled]);
            }
            After::Again => match self.phase {
                Phase::Stopped | Phase::Crashed => self.renew(),
                Phase::Waiting => self.enqueue_again(),
                Phase::Queued
                | Phase::Spawning
                | Phase::Aborting
                | Phase::Starting
                | Phase::Running
                | Phase::Stopping
                | Phase::Killing
                | Phase::Emptying
                | Phase::Stuck => {}
            },
            After::Gone => cx.news.push(News::Gone),
        }
    }

    fn forgive(&mut self, cx: &Context<'_>) {
        let held_back = self.is_held_back();
        self.history.clear();
        if held_back {
            self.verdict = Verdict::Restart(cx.now);
        }
    }
}
