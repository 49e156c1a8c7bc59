//! What is promised about one place of a pool, written down from the contract and never learned from the engine.
//!
//! Each fact and order says what the engine must now do about this place (`owed`); each moment says what is due.

use std::time::Duration;

use halsup::engine::{Cause, Effect, Ended, State, Time};
use halsup::spec::{Generation, PoolPolicy, Restart, WorkerId};

use crate::beats::Beats;

/// What is to become of a place once it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// What the restart policy says.
    Policy,
    Down,
    Again,
    Gone,
}

/// What the restart policy said about the last end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Not before the first, at the latest at the second.
    Restart(Time, Time),
    Crash,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// `Spawn` was emitted and is not answered.
    Called,
    Runs,
    Ready,
}

/// One generation, from `Spawn` until nothing of it is left.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) generation: Generation,
    pub(crate) stage: Stage,
    /// Why its end was begun, by a signal or a kill.
    pub(crate) why: Option<Cause>,
    /// Why it is to be killed once its spawn is answered.
    pub(crate) meant: Option<Cause>,
    pub(crate) stopping: bool,
    pub(crate) killed: bool,
    pub(crate) exited: bool,
    pub(crate) stuck: bool,
    pub(crate) kill_at: Option<Time>,
    pub(crate) stuck_at: Option<Time>,
    pub(crate) fate: Option<Fate>,
    began: Time,
    pub(crate) ready_since: Option<Time>,
    pub(crate) own_interval: Option<Duration>,
    pub(crate) beats: Option<Beats>,
}

impl Live {
    /// Runs or begins to, and nobody wants it to end.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.meant.is_none() && !self.stopping && !self.killed && !self.exited && !self.stuck
    }

    /// Neither killed nor ended.
    pub(crate) fn can_be_killed(&self) -> bool {
        !self.killed && !self.exited && !self.stuck
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Down {
        crashed: bool,
    },
    /// To be started as soon as a batch has room.
    Due,
    /// Not to be started before the first, to be started from the second on.
    Delayed(Time, Time),
    Live(Box<Live>),
}

/// One place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) id: WorkerId,
    pub(crate) wish: Wish,
    pub(crate) body: Body,
    in_row: u32,
    restarts: Vec<Time>,
    /// As last reported by the engine.
    pub(crate) reported: Option<State>,
    /// Restarts over its whole life, as last listed.
    pub(crate) counted: u64,
    /// What the engine must do about it in this turn, in this order.
    pub(crate) owed: Vec<Effect>,
    /// Calls that wait for it to come up, or to go down, wait no more.
    pub(crate) up_settled: bool,
    pub(crate) down_settled: bool,
    pub(crate) gone: bool,
}

impl Place {
    pub(crate) fn new(id: WorkerId) -> Self {
        Self {
            id,
            wish: Wish::Policy,
            body: Body::Due,
            in_row: 0,
            restarts: Vec::new(),
            reported: None,
            counted: 0,
            owed: Vec::new(),
            up_settled: false,
            down_settled: false,
            gone: false,
        }
    }

    pub(crate) fn live(&self) -> Option<&Live> {
        match &self.body {
            Body::Live(live) => Some(live),
            Body::Down { .. } | Body::Due | Body::Delayed(..) => None,
        }
    }

    pub(crate) fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.body {
            Body::Live(live) => Some(live),
            Body::Down { .. } | Body::Due | Body::Delayed(..) => None,
        }
    }

    pub(crate) fn is_starting(&self) -> bool {
        self.live().is_some_and(|live| live.stage == Stage::Called && live.can_be_killed())
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.live().is_some_and(|live| live.stage == Stage::Ready && live.is_left_alone())
    }

    pub(crate) fn is_rising(&self) -> bool {
        match &self.body {
            Body::Due => true,
            Body::Live(live) if live.is_left_alone() => live.stage != Stage::Ready,
            Body::Live(live) => !live.stuck && matches!(self.wish, Wish::Policy | Wish::Again),
            Body::Down { .. } | Body::Delayed(..) => false,
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        match &self.body {
            Body::Due | Body::Delayed(..) => true,
            Body::Live(live) => !live.stuck,
            Body::Down { .. } => false,
        }
    }

    pub(crate) fn is_held_back(&self) -> bool {
        match &self.body {
            Body::Down { crashed } => *crashed,
            Body::Delayed(..) => true,
            Body::Due => false,
            Body::Live(live) => self.wish == Wish::Policy && matches!(live.fate, Some(Fate::Crash | Fate::Restart(..))),
        }
    }

    pub(crate) fn expected_state(&self) -> State {
        match &self.body {
            Body::Down { crashed: false } => State::Stopped,
            Body::Down { crashed: true } => State::Crashed,
            Body::Due => State::Initializing,
            Body::Delayed(..) => State::Restarting,
            Body::Live(live) if live.stuck => State::Stuck,
            Body::Live(live) if live.exited => match (self.wish, live.fate) {
                (Wish::Again, _) | (Wish::Policy, Some(Fate::Restart(..))) => State::Restarting,
                (Wish::Policy | Wish::Down | Wish::Gone, _) => State::Draining,
            },
            Body::Live(live) if !live.is_left_alone() => State::Draining,
            Body::Live(live) if live.stage != Stage::Ready => State::Initializing,
            Body::Live(live) => match &live.beats {
                Some(beats) if beats.missed > 0 => State::Unhealthy,
                Some(_) | None => State::Healthy,
            },
        }
    }

    /// The next moment at which something must happen to it.
    pub(crate) fn due(&self) -> Option<Time> {
        match &self.body {
            Body::Delayed(_, latest) => Some(*latest),
            Body::Live(live) => {
                let beat = live.beats.as_ref().map(Beats::due);
                [live.kill_at, live.stuck_at, beat].into_iter().flatten().min()
            }
            Body::Down { .. } | Body::Due => None,
        }
    }

    pub(crate) fn spawned(&mut self, generation: Generation, policy: &PoolPolicy, now: Time) {
        self.wish = Wish::Policy;
        self.body = Body::Live(Box::new(Live {
            generation,
            stage: Stage::Called,
            why: None,
            meant: None,
            stopping: false,
            killed: false,
            exited: false,
            stuck: false,
            kill_at: Some(now.after(policy.startup.ready_timeout)),
            stuck_at: None,
            fate: None,
            began: now,
            ready_since: None,
            own_interval: None,
            beats: None,
        }));
    }

    pub(crate) fn runs(&mut self, policy: &PoolPolicy, now: Time) {
        let Some(live) = self.live_mut() else { return };
        if live.stage != Stage::Called || !live.can_be_killed() {
            return;
        }
        if live.meant.is_some() {
            return self.kill(None, policy, now);
        }
        live.stage = Stage::Runs;
        if !policy.startup.waits_for_ready {
            self.ready(policy, now);
        }
    }

    pub(crate) fn ready(&mut self, policy: &PoolPolicy, now: Time) {
        let Some(live) = self.live_mut() else { return };
        if live.is_left_alone() && live.stage != Stage::Ready {
            live.stage = Stage::Ready;
            live.kill_at = None;
            live.ready_since = Some(now);
            live.beats = policy.heartbeat.map(|rule| Beats::new(rule, live.own_interval, now));
            self.up_settled = true;
        }
    }

    pub(crate) fn heartbeat_changed(&mut self, policy: &PoolPolicy, now: Time) {
        let Some(live) = self.live_mut() else { return };
        if live.is_left_alone() && live.stage == Stage::Ready {
            live.beats = policy.heartbeat.map(|rule| Beats::new(rule, live.own_interval, now));
        }
    }

    pub(crate) fn beats(&mut self) -> Option<&mut Beats> {
        self.live_mut().and_then(|live| live.beats.as_mut())
    }

    pub(crate) fn interval_set(&mut self, interval: Duration, now: Time) {
        let Some(live) = self.live_mut() else { return };
        if live.is_left_alone() {
            live.own_interval = Some(interval);
            if let Some(beats) = &mut live.beats {
                beats.set_interval(interval, now);
            }
        }
    }

    pub(crate) fn extended(&mut self, duration: Duration, now: Time) {
        let Some(live) = self.live_mut() else { return };
        let starting = live.is_left_alone() && live.stage != Stage::Ready;
        if starting || (live.stopping && live.can_be_killed()) {
            let most = live.began.after(Duration::from_secs(3600));
            live.kill_at = live.kill_at.max(Some(now.after(duration).min(most)));
        }
    }

    pub(crate) fn stop_announced(&mut self, policy: &PoolPolicy, now: Time) {
        let Some(live) = self.live_mut() else { return };
        if live.is_left_alone() && live.stage != Stage::Called {
            Self::wind_down(live, policy, now);
        }
    }

    fn wind_down(live: &mut Live, policy: &PoolPolicy, now: Time) {
        live.stopping = true;
        live.began = now;
        live.beats = None;
        live.kill_at = Some(now.after(policy.stop.grace));
    }

    pub(crate) fn kill(&mut self, cause: Option<Cause>, policy: &PoolPolicy, now: Time) {
        let id = self.id;
        let Some(live) = self.live_mut() else { return };
        live.why = live.why.or(live.meant).or(cause);
        live.killed = true;
        live.beats = None;
        live.kill_at = None;
        live.stuck_at = Some(now.after(policy.stop.kill_timeout));
        let generation = live.generation;
        self.owed.push(Effect::Kill(id, generation));
    }

    fn certify(&mut self, otherwise: Cause, policy: &PoolPolicy, now: Time) {
        let (id, wish) = (self.id, self.wish);
        let Some(live) = self.live_mut() else { return };
        live.exited = true;
        live.beats = None;
        live.kill_at = None;
        let (generation, cause, ready_since) = (live.generation, live.why.unwrap_or(otherwise), live.ready_since);
        self.owed.push(Effect::Certify(id, generation, cause));
        if wish == Wish::Policy {
            let fate = self.judge(&policy.restart, cause, ready_since, now);
            if let Some(live) = self.live_mut() {
                live.fate = Some(fate);
            }
            self.up_settled = true;
        }
    }

    pub(crate) fn judge(&mut self, policy: &Restart, cause: Cause, ready_since: Option<Time>, now: Time) -> Fate {
        if !policy.enabled {
            return if cause == Cause::Itself(Ended::Exited(0)) { Fate::Stop } else { Fate::Crash };
        }
        if ready_since.is_some_and(|since| now.since(since) >= policy.stable_after) {
            self.in_row = 0;
        }
        self.restarts.retain(|&then| now.since(then) < policy.window);
        if self.restarts.len() >= policy.max_restarts as usize {
            return Fate::Crash;
        }
        self.restarts.push(now);
        self.in_row += 1;
        if self.in_row == 1 {
            return Fate::Restart(now, now);
        }
        let doubled = policy.delay.as_nanos() << (self.in_row - 2).min(40);
        let most = policy.delay_max.as_nanos();
        let least = doubled.min(most);
        let latest = (least + least * u128::from(policy.jitter_percent) / 100).min(most);
        let nanos = |nanos: u128| Duration::from_nanos(u64::try_from(nanos).expect("delays are short"));
        Fate::Restart(now.after(nanos(least)), now.after(nanos(latest)))
    }

    pub(crate) fn exited(&mut self, ended: Ended, policy: &PoolPolicy, now: Time) {
        let Some(live) = self.live_mut() else { return };
        if live.exited {
            return;
        }
        if !live.killed && !live.stuck {
            live.stuck_at = Some(now.after(policy.stop.kill_timeout));
        }
        self.certify(Cause::Itself(ended), policy, now);
    }

    pub(crate) fn spawn_failed(&mut self, policy: &PoolPolicy, now: Time) {
        let Some(live) = self.live() else { return };
        if live.stage == Stage::Called && !live.exited {
            self.certify(Cause::StartFailed, policy, now);
            self.conclude(now);
        }
    }

    pub(crate) fn emptied(&mut self, now: Time) {
        if self.live().is_some_and(|live| live.exited) {
            self.conclude(now);
        }
    }

    fn conclude(&mut self, now: Time) {
        let Some(live) = self.live() else { return };
        let fate = live.fate;
        self.down_settled = true;
        match (self.wish, fate) {
            (Wish::Again, _) => self.body = Body::Due,
            (Wish::Gone, _) => return self.vanish(),
            (Wish::Down, _) => self.body = Body::Down { crashed: false },
            (Wish::Policy, Some(Fate::Stop) | None) => self.body = Body::Down { crashed: false },
            (Wish::Policy, Some(Fate::Crash)) => self.body = Body::Down { crashed: true },
            (Wish::Policy, Some(Fate::Restart(_, latest))) if latest <= now => self.body = Body::Due,
            (Wish::Policy, Some(Fate::Restart(least, latest))) => self.body = Body::Delayed(least, latest),
        }
        self.up_settled |= !matches!(self.body, Body::Due);
        self.wish = Wish::Policy;
    }

    fn vanish(&mut self) {
        self.gone = true;
        self.up_settled = true;
        self.down_settled = true;
        self.owed.push(Effect::Forget(self.id));
    }

    pub(crate) fn start(&mut self) {
        match &self.body {
            Body::Down { .. } => {
                self.forget_failures();
                self.body = Body::Due;
            }
            Body::Delayed(..) => self.body = Body::Due,
            Body::Due => {}
            Body::Live(live) if live.is_left_alone() => {}
            Body::Live(_) => self.wish = Wish::Again,
        }
    }

    pub(crate) fn stop(&mut self, wish: Wish, cause: Cause, policy: &PoolPolicy, now: Time) {
        if wish != Wish::Again {
            self.up_settled = true;
        }
        let (id, old) = (self.id, self.wish);
        let Some(live) = self.live_mut() else {
            return match wish {
                Wish::Again => self.start(),
                Wish::Gone => self.vanish(),
                Wish::Down | Wish::Policy => {
                    self.body = Body::Down { crashed: false };
                    self.down_settled = true;
                }
            };
        };
        if live.can_be_killed() {
            if live.stage == Stage::Called {
                if live.meant.is_none() {
                    live.meant = Some(cause);
                    live.kill_at = Some(now.after(policy.stop.grace));
                }
            } else if live.why.is_none() {
                Self::wind_down(live, policy, now);
                live.why = Some(cause);
                let generation = live.generation;
                self.owed.push(Effect::Signal(id, generation, policy.stop.signal));
            }
        }
        if old != Wish::Gone {
            self.wish = wish;
        }
    }

    /// An operator's kill, or that of a shutdown whose patience is over. Says whether it reached something.
    pub(crate) fn kill_ordered(&mut self, cause: Cause, policy: &PoolPolicy, now: Time) -> bool {
        let id = self.id;
        let Some(live) = self.live_mut() else { return false };
        if live.stuck {
            let generation = live.generation;
            self.owed.push(Effect::Kill(id, generation));
            return true;
        }
        if live.exited {
            return false;
        }
        if live.can_be_killed() {
            if live.stage == Stage::Called && live.meant.is_none() {
                live.meant = Some(cause);
                live.kill_at = Some(now.after(policy.stop.grace));
            } else {
                self.kill(Some(cause), policy, now);
            }
        }
        true
    }

    pub(crate) fn signal_ordered(&mut self, signal: i32) -> bool {
        let id = self.id;
        let Some(live) = self.live() else { return false };
        let reached = live.can_be_killed() && live.stage != Stage::Called;
        if reached {
            let generation = live.generation;
            self.owed.push(Effect::Signal(id, generation, signal));
        }
        reached
    }

    pub(crate) fn reset(&mut self, now: Time) {
        let held_back = self.is_held_back();
        self.forget_failures();
        match &mut self.body {
            Body::Down { crashed: true } | Body::Delayed(..) => self.body = Body::Due,
            Body::Live(live) if held_back => live.fate = Some(Fate::Restart(now, now)),
            Body::Down { crashed: false } | Body::Due | Body::Live(_) => {}
        }
    }

    pub(crate) fn forget_failures(&mut self) {
        self.in_row = 0;
        self.restarts.clear();
    }

    /// What has come due at `now`.
    pub(crate) fn tick(&mut self, policy: &PoolPolicy, now: Time) {
        if let Body::Delayed(_, latest) = self.body
            && latest <= now
        {
            self.body = Body::Due;
        }
        let id = self.id;
        let Some(live) = self.live_mut() else { return };
        if live.kill_at.is_some_and(|at| at <= now) {
            let ready_timeout = live.is_left_alone().then_some(Cause::ReadyTimeout);
            return self.kill(ready_timeout, policy, now);
        }
        if live.stuck_at.is_some_and(|at| at <= now) {
            live.stuck = true;
            live.stuck_at = None;
            self.up_settled = true;
            self.down_settled = true;
            return;
        }
        let generation = live.generation;
        let owed = live.beats.as_mut().map(|beats| beats.tick(now)).unwrap_or_default();
        for _ in 0..owed.pings {
            self.owed.push(Effect::Ping(id, generation));
        }
        if owed.fatal {
            self.kill(Some(Cause::Heartbeat), policy, now);
        }
    }
}
