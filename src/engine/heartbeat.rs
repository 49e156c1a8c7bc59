//! Decides when a ready worker is pinged and when a beat is missing.
//!
//! Pinged workers (`channel`, `probe`) get their first ping `initial_delay` after readiness and then one every `interval`,
//! answered or not; a ping without a sign of life within `timeout` is one miss. Workers that beat by themselves (`notify`)
//! owe a beat every `interval`, counted from readiness plus `initial_delay`. Never decides what misses lead to: that is
//! the worker's.
//!
//! A deadline that is handled more than one interval late says that the daemon stood still, not the worker: its answers
//! may lie unread. Then nothing is counted, and the worker gets one interval (or a new ping) of grace.

use std::collections::VecDeque;
use std::time::Duration;

use super::Time;
use crate::spec::{Heartbeat, HeartbeatSource};

/// No interval or timeout of a policy works as less than this, so that no policy can keep the loop from sleeping.
const DURATION_MIN: Duration = Duration::from_millis(1);
/// No interval that a worker sets for itself works as less than this.
pub(super) const OWN_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// With this many pings unanswered and not yet timed out, no further one is sent until one of them is settled.
const UNANSWERED_MAX: usize = 1024;

/// What a look at the clock found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Beats that have become missing.
    pub(super) misses: u32,
    /// Whether a ping is to be sent.
    pub(super) ping: bool,
}

/// The heartbeat of one ready worker.
#[derive(Debug)]
pub(super) struct Monitor {
    heartbeat: Heartbeat,
    /// Nothing is expected before this.
    quiet_until: Time,
    /// The next ping, or when the next beat is missing.
    next: Time,
    /// When each unanswered ping becomes a miss, oldest first.
    unanswered: VecDeque<Time>,
}

impl Monitor {
    /// Begins at readiness. `own_interval` is what the worker set for itself; only a worker that beats by itself can.
    pub(super) fn new(heartbeat: Heartbeat, own_interval: Option<Duration>, now: Time) -> Self {
        let quiet_until = now.after(heartbeat.initial_delay);
        let mut monitor = Self { heartbeat, quiet_until, next: quiet_until, unanswered: VecDeque::new() };
        monitor.heartbeat.interval = heartbeat.interval.max(DURATION_MIN);
        monitor.heartbeat.timeout = heartbeat.timeout.max(DURATION_MIN);
        if !monitor.pings() {
            monitor.next = quiet_until.after(monitor.heartbeat.interval);
        }
        if let Some(interval) = own_interval {
            monitor.set_interval(interval, now);
        }
        monitor
    }

    const fn pings(&self) -> bool {
        match self.heartbeat.source {
            HeartbeatSource::Channel | HeartbeatSource::Probe => true,
            HeartbeatSource::Notify => false,
        }
    }

    /// When to look again.
    pub(super) fn due(&self) -> Time {
        self.unanswered.front().map_or(self.next, |&first| first.min(self.next))
    }

    /// A sign of life: whatever was asked is answered by it.
    pub(super) fn beat(&mut self, now: Time) {
        self.unanswered.clear();
        if !self.pings() {
            self.next = now.max(self.quiet_until).after(self.heartbeat.interval);
        }
    }

    /// The oldest unanswered ping failed outright. `false` if there is none: it was counted already, or answered.
    pub(super) fn ping_failed(&mut self) -> bool {
        self.unanswered.pop_front().is_some()
    }

    /// The worker says how often it will beat; takes effect from now.
    pub(super) fn set_interval(&mut self, interval: Duration, now: Time) {
        if !self.pings() {
            self.heartbeat.interval = interval.max(OWN_INTERVAL_MIN);
            self.next = now.max(self.quiet_until).after(self.heartbeat.interval);
        }
    }

    /// Counts what is missing at `now` and says whether to ping.
    pub(super) fn look(&mut self, now: Time) -> Found {
        let interval = self.heartbeat.interval;
        if now.since(self.due()) > interval {
            return self.forgive(now);
        }
        let mut misses = 0;
        while self.unanswered.front().is_some_and(|&deadline| deadline <= now) {
            self.unanswered.pop_front();
            misses += 1;
        }
        let mut ping = false;
        if self.next <= now {
            self.next = self.next.after(interval);
            if !self.pings() {
                misses += 1;
            } else if self.unanswered.len() < UNANSWERED_MAX {
                self.unanswered.push_back(now.after(self.heartbeat.timeout));
                ping = true;
            }
        }
        Found { misses, ping }
    }

    fn forgive(&mut self, now: Time) -> Found {
        self.unanswered.clear();
        self.next = now.after(self.heartbeat.interval);
        let ping = self.pings();
        if ping {
            self.unanswered.push_back(now.after(self.heartbeat.timeout));
        }
        Found { misses: 0, ping }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time(millis * 1_000_000)
    }

    fn monitor(source: HeartbeatSource) -> Monitor {
        let heartbeat = Heartbeat {
            source,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(3),
            max_missed: 3,
            initial_delay: Duration::from_secs(1),
            dependent: true,
        };
        Monitor::new(heartbeat, None, at(0))
    }

    const QUIET: Found = Found { misses: 0, ping: false };

    #[test]
    fn pings_go_on_and_each_is_missed_at_its_own_timeout() {
        let mut monitor = monitor(HeartbeatSource::Channel);
        assert_eq!(monitor.due(), at(1000));
        assert_eq!(monitor.look(at(1000)), Found { misses: 0, ping: true });
        assert_eq!(monitor.look(at(3000)), Found { misses: 0, ping: true });
        assert_eq!(monitor.due(), at(4000));
        assert_eq!(monitor.look(at(4000)), Found { misses: 1, ping: false });
        monitor.beat(at(4500));
        assert_eq!(monitor.due(), at(5000));
        assert_eq!(monitor.look(at(4900)), QUIET);
    }

    #[test]
    fn a_failed_ping_is_not_missed_again_by_its_timeout() {
        let mut monitor = monitor(HeartbeatSource::Probe);
        assert!(!monitor.ping_failed());
        assert!(monitor.look(at(1000)).ping);
        assert!(monitor.ping_failed());
        assert!(!monitor.ping_failed());
        assert_eq!(monitor.due(), at(3000));
    }

    #[test]
    fn a_worker_that_beats_by_itself_owes_one_beat_an_interval() {
        let mut monitor = monitor(HeartbeatSource::Notify);
        assert_eq!(monitor.due(), at(3000));
        monitor.beat(at(500));
        assert_eq!(monitor.due(), at(3000));
        monitor.beat(at(2000));
        assert_eq!(monitor.look(at(4000)), Found { misses: 1, ping: false });
        assert_eq!(monitor.look(at(6000)), Found { misses: 1, ping: false });
        monitor.set_interval(Duration::from_secs(60), at(7000));
        assert_eq!(monitor.due(), at(67_000));
        monitor.set_interval(Duration::ZERO, at(8000));
        assert_eq!(monitor.due(), at(8010));
    }

    #[test]
    fn a_stall_of_the_daemon_is_not_a_miss() {
        for source in [HeartbeatSource::Channel, HeartbeatSource::Notify] {
            let mut monitor = monitor(source);
            let found = monitor.look(at(600_000));
            assert_eq!(found.misses, 0);
            assert!(monitor.due() >= at(602_000));
        }
    }
}
