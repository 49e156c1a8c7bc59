//! The promise about heartbeats, in the world's own words: which pings are due when, and when a beat counts as missed.

use std::time::Duration;

use halsup::engine::Time;
use halsup::spec::{Heartbeat, HeartbeatSource};

/// What is owed to, and by, one ready worker.
#[derive(Debug, Clone)]
pub(crate) struct Beats {
    pub(crate) rule: Heartbeat,
    /// Nothing is expected of the worker before this.
    begin: Time,
    /// The latest moment at which nothing was missing: pings (or owed beats) count on from here in whole intervals.
    base: Time,
    /// Pings (or missed beats) since `base`.
    periods: u32,
    /// When each open ping will have been missed.
    open: Vec<Time>,
    pub(crate) missed: u32,
}

/// What a look at the clock must lead to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) pings: u32,
    pub(crate) fatal: bool,
}

impl Beats {
    pub(crate) fn new(rule: Heartbeat, own_interval: Option<Duration>, ready: Time) -> Self {
        let begin = ready.after(rule.initial_delay);
        let mut beats = Self { rule, begin, base: begin, periods: 0, open: Vec::new(), missed: 0 };
        if let Some(interval) = own_interval {
            beats.set_interval(interval, ready);
        }
        beats
    }

    fn asks(&self) -> bool {
        self.rule.source != HeartbeatSource::Notify
    }

    /// Pings are due at base, base + interval, …; a beat by itself is missed at base + interval, base + 2 × interval, ….
    fn next(&self) -> Time {
        let periods = if self.asks() { self.periods } else { self.periods + 1 };
        self.base.after(self.rule.interval * periods)
    }

    pub(crate) fn due(&self) -> Time {
        self.open.iter().copied().min().map_or(self.next(), |open| open.min(self.next()))
    }

    pub(crate) fn beat(&mut self, now: Time) {
        self.open.clear();
        self.missed = 0;
        if !self.asks() {
            self.base = now.max(self.begin);
            self.periods = 0;
        }
    }

    pub(crate) fn ping_failed(&mut self) -> bool {
        if self.open.is_empty() {
            return false;
        }
        self.open.remove(0);
        self.miss()
    }

    pub(crate) fn broken(&mut self) -> bool {
        self.missed = (self.missed + 1).max(self.rule.max_missed);
        self.rule.dependent
    }

    pub(crate) fn set_interval(&mut self, interval: Duration, now: Time) {
        if !self.asks() {
            self.rule.interval = interval.max(Duration::from_millis(10));
            self.base = now.max(self.begin);
            self.periods = 0;
        }
    }

    fn miss(&mut self) -> bool {
        self.missed += 1;
        self.rule.dependent && self.missed >= self.rule.max_missed
    }

    /// What is owed at `now`. A look that comes more than an interval late finds nothing missing and begins anew.
    pub(crate) fn tick(&mut self, now: Time) -> Owed {
        let mut owed = Owed::default();
        while self.due() <= now && !owed.fatal {
            if now.since(self.due()) > self.rule.interval {
                self.open.clear();
                self.base = now;
                self.periods = 0;
                if self.asks() {
                    owed.pings += 1;
                    self.periods = 1;
                    self.open.push(now.after(self.rule.timeout));
                }
                continue;
            }
            let expired = self.open.iter().filter(|&&open| open <= now).count();
            self.open.retain(|&open| open > now);
            for _ in 0..expired {
                owed.fatal |= self.miss();
            }
            if self.next() <= now {
                self.periods += 1;
                if self.asks() {
                    owed.pings += u32::from(!owed.fatal);
                    self.open.push(now.after(self.rule.timeout));
                } else {
                    owed.fatal |= self.miss();
                }
            }
        }
        owed
    }
}
