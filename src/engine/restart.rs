//! Decides when an ended worker is started again, and when no more.
//!
//! The first restart is immediate; the second waits `delay`, each further one twice as long, with jitter, never beyond
//! `delay_max`; stable uptime begins anew. More than `max_restarts` within `window` is the crash barrier. Failed spawns
//! count like deaths. Never looks at why a worker ended: the caller asks only where the policy is to decide.

use std::collections::VecDeque;
use std::time::Duration;

use super::Time;
use crate::spec::Restart;

/// Restarts that are remembered for the barrier at most; a larger `max_restarts` works as this.
pub(super) const RESTARTS_REMEMBERED_MAX: usize = 10_000;

/// The engine's only source of chance: splitmix64 over the seed it was given.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in 0..=`most`.
    fn up_to(&mut self, most: u64) -> u64 {
        let share = (u128::from(self.next()) * (u128::from(most) + 1)) >> 64;
        u64::try_from(share).unwrap_or(most)
    }
}

/// What the policy says about an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Start again at this time.
    At(Time),
    /// Too often: stay down until reset.
    Barrier,
}

/// What is remembered of a worker's ends.
#[derive(Debug)]
pub(super) struct History {
    /// Restarts in a row without stable uptime between them.
    in_row: u32,
    /// When restarts were decided, within the window.
    recent: VecDeque<Time>,
}

impl History {
    /// Nothing remembered.
    pub(super) const fn new() -> Self {
        Self { in_row: 0, recent: VecDeque::new() }
    }

    /// What another daemon remembered.
    pub(super) const fn of(in_row: u32, recent: VecDeque<Time>) -> Self {
        Self { in_row, recent }
    }

    /// What is to be remembered for another daemon: restarts in a row, and when the recent ones were decided.
    pub(super) fn remembered(&self) -> (u32, Vec<Time>) {
        (self.in_row, self.recent.iter().copied().collect())
    }

    /// Forgets barrier and delays.
    pub(super) fn clear(&mut self) {
        self.in_row = 0;
        self.recent.clear();
    }

    /// Judges an end at `now` after having been ready for `uptime` (`None`: never ready).
    pub(super) fn judge(
        &mut self,
        policy: &Restart,
        uptime: Option<Duration>,
        now: Time,
        random: &mut Random,
    ) -> Decision {
        if uptime.is_some_and(|up| up >= policy.stable_after) {
            self.in_row = 0;
        }
        while self.recent.front().is_some_and(|&then| now.since(then) >= policy.window) {
            self.recent.pop_front();
        }
        let most = usize::try_from(policy.max_restarts).unwrap_or(usize::MAX).min(RESTARTS_REMEMBERED_MAX);
        if self.recent.len() >= most {
            return Decision::Barrier;
        }
        let delay = delay(policy, self.in_row, random);
        self.recent.push_back(now);
        self.in_row = self.in_row.saturating_add(1);
        Decision::At(now.after(delay))
    }
}

/// The delay before the restart that has `before` restarts in a row before it.
fn delay(policy: &Restart, before: u32, random: &mut Random) -> Duration {
    let Some(doublings) = before.checked_sub(1) else {
        return Duration::ZERO;
    };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let base = policy.delay.saturating_mul(factor).min(policy.delay_max);
    let span = u64::try_from(base.as_nanos() * u128::from(policy.jitter_percent) / 100).unwrap_or(u64::MAX);
    base.saturating_add(Duration::from_nanos(random.up_to(span))).min(policy.delay_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn policy() -> Restart {
        Restart {
            enabled: true,
            delay: Duration::from_secs(1),
            delay_max: Duration::from_secs(10),
            jitter_percent: 0,
            stable_after: Duration::from_secs(60),
            max_restarts: 100,
            window: Duration::from_secs(600),
        }
    }

    #[test]
    fn delays_double_to_their_limit_and_begin_anew_after_stable_uptime() {
        let (mut history, mut random) = (History::new(), Random::new(1));
        let now = Time(0);
        let mut after = |uptime| match history.judge(&policy(), uptime, now, &mut random) {
            Decision::At(time) => time.since(now).as_secs(),
            Decision::Barrier => panic!("no barrier yet"),
        };
        assert_eq!([(); 7].map(|()| after(None)), [0, 1, 2, 4, 8, 10, 10]);
        assert_eq!(after(Some(Duration::from_secs(59))), 10);
        assert_eq!([after(Some(Duration::from_secs(60))), after(None)], [0, 1]);
    }

    #[test]
    fn jitter_is_added_and_never_exceeds_the_limit() {
        let mut random = Random::new(7);
        let policy = Restart { jitter_percent: 50, ..policy() };
        let drawn: Vec<Duration> = (0..200).map(|_| delay(&policy, 2, &mut random)).collect();
        assert!(drawn.iter().all(|d| (Duration::from_secs(2)..=Duration::from_secs(3)).contains(d)));
        assert!(drawn.iter().max() > drawn.iter().min());
        assert!((0..200).all(|_| delay(&policy, 30, &mut random) == Duration::from_secs(10)));
    }

    #[test]
    fn the_barrier_counts_within_a_window_that_slides() {
        let (mut history, mut random) = (History::new(), Random::new(1));
        let policy = Restart { max_restarts: 2, window: Duration::from_secs(10), ..policy() };
        let mut at = |second: u64| history.judge(&policy, None, Time(second * SECOND), &mut random);
        assert_ne!(at(0), Decision::Barrier);
        assert_ne!(at(5), Decision::Barrier);
        assert_eq!(at(9), Decision::Barrier);
        assert_ne!(at(10), Decision::Barrier);
        assert_eq!(at(11), Decision::Barrier);
    }

    #[test]
    fn no_restart_at_all_is_a_barrier_of_zero() {
        let policy = Restart { max_restarts: 0, ..policy() };
        assert_eq!(History::new().judge(&policy, None, Time(0), &mut Random::new(1)), Decision::Barrier);
    }
}
