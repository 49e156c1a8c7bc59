//! Decides when a worker has been idle for long enough to be frozen, and when it is to go on.
//!
//! Idle is who does no work: in a whole `freeze_after` it has used no processor time, and nobody has had anything to do with
//! it. What it writes costs it time, so only what others do to it is told ([`super::Input::Used`]). It is measured once a
//! `freeze_after`, so that one is frozen after it has been idle for so long, at the latest for twice as long; nothing is
//! measured of one that is frozen, or of a pool without the key. Never freezes: the daemon carries [`super::Effect::Freeze`] out
//! and says what came of it.

use std::time::Duration;

use super::worker::{Context, Worker};
use super::{Effect, Sleep, Time};
use crate::spec::PoolPolicy;

/// No policy measures more often than this.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// What a worker uses, as the daemon has found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all its processes so far, in microseconds.
    pub cpu_usec: u64,
    /// Whether somebody has something to do with it right now: looks at its terminal, runs a program in it, holds it still.
    pub in_use: bool,
}

/// What is known of one worker's idleness.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) sleep: Sleep,
    /// Since when nothing of it or to it has happened, as far as is known.
    quiet_since: Time,
    /// What it had used when it was measured last.
    cpu_usec: Option<u64>,
    /// When it is to be measured.
    pub(super) due: Option<Time>,
}

impl Idle {
    pub(super) const fn new(now: Time) -> Self {
        Self { sleep: Sleep::Awake, quiet_since: now, cpu_usec: None, due: None }
    }

    /// It begins, or is needed: from now on it has the whole time again.
    pub(super) fn begin(&mut self, freeze_after: Option<Duration>, now: Time) {
        self.sleep = Sleep::Awake;
        self.quiet_since = now;
        self.due = freeze_after.map(|after| now.after(after.max(PAUSE_MIN)));
    }

    /// It is not ready any more: whatever becomes of it now, nobody measures it.
    pub(super) const fn end(&mut self) {
        self.sleep = Sleep::Awake;
        self.cpu_usec = None;
        self.due = None;
    }

    /// It was measured; whether it has been idle for long enough.
    fn weigh(&mut self, usage: Usage, freeze_after: Duration, now: Time) -> bool {
        let worked = self.cpu_usec.replace(usage.cpu_usec) != Some(usage.cpu_usec);
        if worked || usage.in_use {
            self.begin(Some(freeze_after), now);
            return false;
        }
        let over = self.quiet_since.after(freeze_after.max(PAUSE_MIN));
        self.due = (now < over).then_some(over);
        now >= over
    }
}

impl Worker {
    /// Somebody needs it, or it is ready from now on: it goes on at once if it is frozen.
    pub(super) fn wake(&mut self, cx: &mut Context<'_>) {
        self.rouse(cx);
        self.idle.begin(cx.policy.freeze_after, cx.now);
    }

    /// It is being ended: it goes on, to be able to, and is measured no more.
    pub(super) fn wake_to_end(&mut self, cx: &mut Context<'_>) {
        self.rouse(cx);
        self.idle.end();
    }

    fn rouse(&mut self, cx: &mut Context<'_>) {
        if self.idle.sleep == Sleep::Awake {
            return;
        }
        self.idle.sleep = Sleep::Awake;
        self.emit(cx, Effect::Thaw);
        // Nothing was expected of it meanwhile.
        self.renew_monitor(cx.policy, cx.now);
    }

    /// It is to be measured by now.
    pub(super) fn measure(&mut self, cx: &mut Context<'_>) {
        let Some(after) = cx.policy.freeze_after.filter(|_| self.idle.sleep == Sleep::Awake) else {
            self.idle.due = None;
            return;
        };
        // Whatever keeps the answer from coming, it is measured again.
        self.idle.due = Some(cx.now.after(after.max(PAUSE_MIN)));
        self.emit(cx, Effect::Measure);
    }

    /// It was measured.
    pub(super) fn weigh(&mut self, usage: Usage, cx: &mut Context<'_>) {
        let Some(after) = cx.policy.freeze_after.filter(|_| self.idle.sleep == Sleep::Awake) else { return };
        // Who misses beats is to be watched, not to be put out of sight.
        let usage = Usage { in_use: usage.in_use || self.misses_beats(), ..usage };
        if self.idle.weigh(usage, after, cx.now) {
            self.idle.sleep = Sleep::Freezing;
            self.watch_no_more();
            self.emit(cx, Effect::Freeze);
        }
    }

    /// It stands still.
    pub(super) fn froze(&mut self) {
        if self.idle.sleep == Sleep::Freezing {
            self.idle.sleep = Sleep::Frozen;
        }
    }

    /// The pool's patience is another one by now.
    pub(super) fn renew_idle(&mut self, policy: &PoolPolicy, now: Time) -> Option<Effect> {
        if !self.is_ready() {
            return None;
        }
        let thaws = self.idle.sleep != Sleep::Awake;
        self.idle.begin(policy.freeze_after, now);
        if thaws {
            self.renew_monitor(policy, now);
        }
        self.generation.filter(|_| thaws).map(|generation| Effect::Thaw(self.id, generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn usage(cpu_usec: u64, in_use: bool) -> Usage {
        Usage { cpu_usec, in_use }
    }

    #[test]
    fn who_has_done_nothing_for_the_whole_time_is_idle() {
        let mut idle = Idle::new(at(0));
        idle.begin(Some(AFTER), at(0));
        assert_eq!(idle.due, Some(at(10)));
        assert!(!idle.weigh(usage(7, false), AFTER, at(10)), "nobody knows what it had used before");
        assert_eq!(idle.due, Some(at(20)));
        assert!(idle.weigh(usage(7, false), AFTER, at(20)));
    }

    #[test]
    fn work_and_use_begin_the_time_anew() {
        let mut idle = Idle::new(at(0));
        idle.begin(Some(AFTER), at(0));
        assert!(!idle.weigh(usage(7, false), AFTER, at(10)));
        assert!(!idle.weigh(usage(8, false), AFTER, at(20)), "it has worked");
        assert!(!idle.weigh(usage(8, true), AFTER, at(30)), "it is in use");
        idle.begin(Some(AFTER), at(35));
        assert!(!idle.weigh(usage(8, false), AFTER, at(40)), "it was used five seconds ago");
        assert_eq!(idle.due, Some(at(45)));
        assert!(idle.weigh(usage(8, false), AFTER, at(45)));
    }

    #[test]
    fn without_the_key_nothing_is_ever_due() {
        let mut idle = Idle::new(at(0));
        idle.begin(None, at(0));
        assert_eq!(idle.due, None);
        idle.begin(Some(Duration::ZERO), at(1));
        assert_eq!(idle.due, Some(at(1).after(PAUSE_MIN)));
    }
}
